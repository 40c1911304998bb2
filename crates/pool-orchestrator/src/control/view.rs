//! What the outside may know of the coalition: no prompt, no token, no key.

use alloy_primitives::Address;
use pool_types::{Activation, Epoch, Failure, LayerRange, ModelId};
use pool_wire::control::{Capabilities, LinkReport, ShardFootprint, ShardStats};
use serde::{Deserialize, Serialize};

/// How far the coalition is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// No coalition: nodes are missing, or they cannot hold the model.
    #[default]
    Waiting,
    /// Members load their layers.
    Loading,
    /// Members link up.
    Linking,
    /// It answers requests.
    Active,
}

/// The coalition as `GET /v1/coalition` shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CoalitionView {
    /// How far it is.
    pub state: Stage,
    /// Why it is not active, as one sentence.
    pub reason: Option<String>,
    /// Why the nodes that are here cannot form one at all.
    pub obstacle: Option<String>,
    /// Coalitions in a row that ended before they had served for ten seconds.
    pub failures: usize,
    /// Why the last one ended.
    pub last_failure: Option<Failure>,
    /// The membership generation, while there is one.
    pub epoch: Option<Epoch>,
    /// The model's name in the API.
    pub model: String,
    /// The model's id.
    pub model_id: ModelId,
    /// Decoder layers of the model.
    pub layers: u32,
    /// Element type of hidden states between shards.
    pub wire: Option<Activation>,
    /// Tokens of KV cache that every member reserves.
    pub kv_tokens: u64,
    /// Longest sequence in tokens.
    pub max_context: u32,
    /// Rows of a prefill chunk.
    pub prefill_chunk: u32,
    /// The gateway's address.
    pub gateway: Address,
    /// Who can read prompts, in one sentence.
    pub privacy: String,
    /// Members, entry first.
    pub members: Vec<MemberView>,
    /// Every node that is connected, members or not.
    pub connected: Vec<ConnectedNode>,
    /// Each direction of each link, as its sender counts it.
    pub links: Vec<LinkView>,
}

/// A connected node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectedNode {
    /// The operator's address.
    pub address: Address,
    /// The roster's name for it.
    pub name: String,
    /// What it offers.
    pub capabilities: Capabilities,
}

/// A member and its shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberView {
    /// The operator's address.
    pub address: Address,
    /// The roster's name for it.
    pub name: String,
    /// What it holds.
    pub layers: LayerRange,
    /// Bytes that the tensors of these layers take in the model's files.
    pub layer_bytes: u64,
    /// What the shard took when it loaded.
    pub footprint: Option<ShardFootprint>,
    /// What it did since it joined.
    pub stats: Option<ShardStats>,
}

/// One direction of a link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkView {
    /// The sender's name.
    pub from: String,
    /// The receiver's name.
    pub to: String,
    /// Bytes of hidden states sent.
    pub hidden_bytes: u64,
    /// Bytes of prompts, tokens and credits sent.
    pub token_bytes: u64,
    /// Median round trip, microseconds.
    pub round_trip_p50_micros: Option<u64>,
    /// 99th percentile of the same.
    pub round_trip_p99_micros: Option<u64>,
}

impl LinkView {
    pub(crate) fn new(from: String, to: String, report: &LinkReport) -> Self {
        Self {
            from,
            to,
            hidden_bytes: report.act_bytes_sent,
            token_bytes: report.ctl_bytes_sent,
            round_trip_p50_micros: report.round_trip_p50_micros,
            round_trip_p99_micros: report.round_trip_p99_micros,
        }
    }
}
