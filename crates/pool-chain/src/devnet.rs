//! A local chain with the real contracts: an anvil node on loopback, loaded from a cached snapshot that the
//! repository's own deployment made.
//!
//! For tests, demonstrations and development, from a checkout with `npm ci` done. Nothing here runs in production.

mod control;
mod node;
mod snapshot;

use std::{path::PathBuf, time::Duration};

pub use control::DevnetControl;
use thiserror::Error;

use self::node::{Ending, Node};
use crate::{AddressBook, AddressBookError, Chain, ChainConfig, ChainError};

/// Names another program than the `anvil` that npm installed.
pub const ANVIL_VARIABLE: &str = "COMPUTEPOOL_ANVIL";
/// Names the checkout, where the working directory is not inside it.
pub const REPOSITORY_VARIABLE: &str = "COMPUTEPOOL_REPOSITORY";

/// How to start a local chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DevnetOptions {
    /// The checkout; otherwise [`REPOSITORY_VARIABLE`] or the nearest folder upwards that is one.
    pub repository: Option<PathBuf>,
    /// The port on loopback; 0 takes a free one.
    pub port: u16,
    /// Seconds between blocks; `None` makes a block for each transaction at once.
    pub block_time: Option<u64>,
    /// The file that keeps the chain over a restart; otherwise one that ends with the [`Devnet`]. It is used if it is
    /// there, and made from the snapshot if not.
    pub state: Option<PathBuf>,
}

/// Why there is no local chain.
#[derive(Debug, Error)]
pub enum DevnetError {
    /// Not inside a checkout.
    #[error(
        "the local chain needs a checkout of ComputePool: run this inside one, or name it in {REPOSITORY_VARIABLE}"
    )]
    NoRepository,
    /// npm has not run.
    #[error("the local chain's node is not installed: run `npm ci` in the checkout's root")]
    NotInstalled,
    /// A program cannot be started.
    #[error("{program} cannot be started: {source}")]
    Program {
        /// Which one.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The deployment failed.
    #[error("the contracts could not be deployed to a fresh chain: {0}")]
    Snapshot(String),
    /// Another process deploys, and takes too long.
    #[error("another process has been making the chain's snapshot for more than {} s", .0.as_secs())]
    Locked(Duration),
    /// The node ended, or did not answer.
    #[error("the local chain's node did not start: {0}")]
    Start(String),
    /// A file cannot be read or written.
    #[error("the local chain's files cannot be used: {0}")]
    Files(#[from] std::io::Error),
    /// The deployment's addresses cannot be read.
    #[error(transparent)]
    Addresses(#[from] AddressBookError),
    /// The node does not answer as hoped.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// A running local chain. Its node listens on loopback only and ends with this value, and with this process, however
/// that ends.
pub struct Devnet {
    options: DevnetOptions,
    program: PathBuf,
    state: PathBuf,
    node: Option<Node>,
    port: u16,
    control: DevnetControl,
    /// Keeps the state's folder.
    _folder: Option<tempfile::TempDir>,
}

impl std::fmt::Debug for Devnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Devnet")
            .field("port", &self.port)
            .field("running", &self.node.is_some())
            .finish_non_exhaustive()
    }
}

impl Devnet {
    /// Starts one. The first start of a checkout's contracts deploys them (half a minute); later ones take a second.
    pub async fn start(options: DevnetOptions) -> Result<Self, DevnetError> {
        let repository = snapshot::repository(options.repository.as_deref())?;
        let program = snapshot::anvil(&repository)?;
        let snapshot = snapshot::ensure(&repository).await?;
        let (state, folder) = match &options.state {
            Some(state) => (state.clone(), None),
            None => {
                let folder = tempfile::Builder::new().prefix("computepool-devnet-").tempdir()?;
                (folder.path().join("state.json"), Some(folder))
            }
        };
        let book = AddressBook::read(&snapshot.join("addresses.json"))?;
        if !state.exists() {
            tokio::fs::copy(snapshot.join("state.json"), &state).await?;
        }
        let node = Node::start(&program, options.port, &state, book.chain_id, options.block_time).await?;
        let port = node.port;
        let control = DevnetControl::connect(&format!("http://127.0.0.1:{port}"), book).await?;
        Ok(Self { options, program, state, node: Some(node), port, control, _folder: folder })
    }

    /// JSON-RPC over HTTP.
    pub fn http(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// JSON-RPC over WebSocket.
    pub fn websocket(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    /// Where everything is on it.
    pub fn book(&self) -> &AddressBook {
        self.control.book()
    }

    /// What only a local chain can do.
    pub fn control(&self) -> &DevnetControl {
        &self.control
    }

    /// How to reach it, with news by WebSocket and questions five times a second.
    pub fn chain_config(&self) -> ChainConfig {
        ChainConfig {
            websocket: Some(self.websocket()),
            poll: Duration::from_millis(200),
            ..ChainConfig::new(self.http())
        }
    }

    /// A handle to it.
    pub async fn chain(&self) -> Result<Chain, ChainError> {
        Chain::connect(self.chain_config(), self.book().clone()).await
    }

    /// The node's process, while it runs.
    pub fn process(&self) -> Option<u32> {
        self.node.as_ref().map(|node| node.process)
    }

    /// Ends the node and keeps its chain for [`Devnet::restart`].
    pub async fn stop(&mut self) -> Result<(), DevnetError> {
        if let Some(node) = self.node.take() {
            node.end(Ending::Keep).await?;
        }
        Ok(())
    }

    /// Starts the node again on the same port, with the chain it had when it was stopped.
    pub async fn restart(&mut self) -> Result<(), DevnetError> {
        self.stop().await?;
        let chain_id = self.book().chain_id;
        let node = Node::start(&self.program, self.port, &self.state, chain_id, self.options.block_time).await?;
        self.node = Some(node);
        self.control.wait_until_it_answers().await?;
        Ok(())
    }
}
