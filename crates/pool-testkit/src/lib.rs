//! What tests of several crates need: a funded local chain with the real contracts, deterministic accounts, a real
//! coalition and sessions. For tests and demonstrations only.
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> anyhow::Result<()> {
//! use pool_testkit::LocalChain;
//! use pool_types::FlowRate;
//!
//! let local = LocalChain::start().await?;
//! let coalition = local.activate_coalition(2).await?;
//! let session = local.open_session(&coalition, 0, "0.2".parse()?, FlowRate::from_units_per_second(100)).await?;
//! assert_eq!(local.chain().vault(session.vault).await?.rate, FlowRate::from_units_per_second(100));
//! # Ok(()) }
//! ```

mod accounts;
mod local_chain;

pub use accounts::Accounts;
pub use local_chain::{ActiveCoalition, LocalChain, OpenSession};
