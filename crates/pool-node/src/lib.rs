//! The operator's control plane without a window: it holds the wallet, registers with an orchestrator, and keeps
//! one shard process alive that does the work. It parses no weights and sees no hidden state.
//!
//! ```no_run
//! # async fn f(config: pool_node::NodeConfig) -> Result<(), pool_node::NodeError> {
//! use tokio_util::sync::CancellationToken;
//!
//! let shutdown = CancellationToken::new();
//! pool_node::run(config, shutdown).await
//! # }
//! ```
//!
//! ```
//! # let directory = tempfile::tempdir()?;
//! use pool_node::identity::{Passphrase, open_or_create};
//!
//! let passphrase = Passphrase::new("correct horse battery staple");
//! let first = open_or_create(directory.path(), &passphrase)?;
//! let again = open_or_create(directory.path(), &passphrase)?;
//! assert_eq!(first.address(), again.address(), "the key survives a restart, encrypted");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backoff;
mod capabilities;
mod config;
mod fetch;
pub mod identity;
pub mod income;
mod node;
pub mod owner;
mod shard;
mod uplink;

pub use capabilities::measure_capabilities;
pub use config::{NodeConfig, NodeError, NodeModel, ResourceLimits, VotePolicy, find_shard_program};
pub use fetch::ModelFetch;
pub use node::{Activity, Ended, Shift, run, serve};
pub use pool_coalition::stand_down::Manner;
