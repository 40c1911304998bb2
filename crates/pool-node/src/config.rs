//! What a node is told when it starts.

use std::{env, io, path::PathBuf};

use alloy_signer_local::PrivateKeySigner;
use pool_coalition::{Roster, proposal::RegistryDomain};
use pool_models::{ManifestError, OpenError};
use pool_types::{Failure, FlowRate};
use pool_wire::control::Capabilities;
use thiserror::Error;

use crate::fetch::ModelFetch;

/// The environment variable that may name the shard program.
pub(crate) const SHARD_VARIABLE: &str = "COMPUTEPOOL_SHARD";

/// How much of the machine a node may offer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResourceLimits {
    /// Most threads a shard computes with; `None` for all the machine has.
    pub threads: Option<usize>,
    /// The part of the available memory that may be used, above 0 and at most 1.
    pub memory_share: f64,
    /// Exactly this many bytes instead.
    pub memory_bytes: Option<u64>,
}

impl Default for ResourceLimits {
    fn default() -> Self {
        Self { threads: None, memory_share: 0.8, memory_bytes: None }
    }
}

/// On what terms an operator lets itself be paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VotePolicy {
    /// The registry it trusts; it signs for no other.
    pub domain: RegistryDomain,
    /// The least income it serves for, while a session streams.
    pub least: FlowRate,
}

/// Where a node's model comes from.
#[derive(Clone, Debug)]
pub enum NodeModel {
    /// A directory or file of the operator's.
    Local(PathBuf),
    /// Hosts, as far as the node is assigned layers of it.
    Fetched(Box<ModelFetch>),
}

/// What a node is told when it starts.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The orchestrator: `ws://host:port` or `wss://host`, with or without the path.
    pub orchestrator: String,
    /// Who may link with whom.
    pub roster: Roster,
    /// The name people know the node by; the roster's name for it where this is empty.
    pub name: String,
    /// The operator's key.
    pub wallet: PrivateKeySigner,
    /// Where its model comes from.
    pub model: NodeModel,
    /// The shard program; searched for when `None` ([`find_shard_program`]).
    pub shard_program: Option<PathBuf>,
    /// What the node offers ([`measure_capabilities`](crate::measure_capabilities)).
    pub capabilities: Capabilities,
    /// The cores a shard is pinned to; empty for all.
    pub cpus: Vec<usize>,
    /// The GPUs that its shard may see, by their names for life (`GPU-...`): these and no others, or whichever there are.
    pub gpus: Option<Vec<String>>,
    /// Quantise unquantised matrices to Q8_0 when loading.
    pub quantise: bool,
    /// Bind links to loopback only: every member is on this machine.
    pub loopback_only: bool,
    /// Which coalitions it signs for payment; none without one.
    pub vote: Option<VotePolicy>,
}

/// Why a node cannot start or go on.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The orchestrator's address is not one.
    #[error("`{0}` is not an orchestrator's address; write it like wss://pool.example or ws://192.168.1.10:8080")]
    Address(String),
    /// The certificates that this machine trusts cannot be read.
    #[error("the certificates that this machine trusts cannot be used: {0}")]
    Certificates(#[source] rustls::Error),
    /// The wallet does not stand in the roster as a node.
    #[error("the roster does not name {0} as a node; add it, or use the key that the roster names")]
    NotInRoster(alloy_primitives::Address),
    /// The model cannot be used.
    #[error(transparent)]
    Model(#[from] OpenError),
    /// The model's manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The program that does the work is missing.
    #[error("the program pool-shard is not beside this one; set {SHARD_VARIABLE} to its path")]
    NoShardProgram,
    /// The program that does the work does not start.
    #[error("cannot start {path}: {source}")]
    ShardProgram {
        /// Which program.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The orchestrator turned the node away.
    #[error("the orchestrator refuses this node: {0}")]
    Refused(Failure),
}

/// The shard program: `$COMPUTEPOOL_SHARD`, else beside the running program, else one directory up (where
/// Cargo puts programs while tests run in `deps`).
pub fn find_shard_program() -> Result<PathBuf, NodeError> {
    if let Some(path) = env::var_os(SHARD_VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(path));
    }
    let name = format!("pool-shard{}", env::consts::EXE_SUFFIX);
    let own = env::current_exe().map_err(|_| NodeError::NoShardProgram)?;
    let places = own.ancestors().skip(1).take(2).map(|directory| directory.join(&name));
    places.into_iter().find(|path| path.is_file()).ok_or(NodeError::NoShardProgram)
}
