//! What a program remembers between runs, in one SQLite file. An orchestrator: the nodes it has met, what they signed
//! when they left, the coalitions it formed, the sessions that were paid for. An owner's node: its decisions, how
//! fast it gave the machine back, what it worked, used and earned. Both: their settings. No SQL leaves this crate.
//!
//! The file is private to its owner (mode 0600), written ahead (WAL), and migrated when opened. A file that is not
//! a sound database is kept aside under another name, never overwritten, and [`Store::set_aside`] says so.
//!
//! ```
//! # let directory = tempfile::tempdir()?;
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use pool_store::Store;
//!
//! let store = Store::open(directory.path().join("state.db")).await?;
//! store.set_setting("greeting", "hello").await?;
//! assert_eq!(store.setting("greeting").await?.as_deref(), Some("hello"));
//! # store.close().await;
//! # Ok::<(), pool_store::StoreError>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```
//! # let directory = tempfile::tempdir()?;
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use pool_store::Store;
//! use pool_types::Epoch;
//!
//! let store = Store::open(directory.path().join("state.db")).await?;
//! assert_eq!(store.next_epoch(1_800_000_000).await?, Epoch(1), "the first coalition of a new store");
//! # store.close().await;
//! # Ok::<(), pool_store::StoreError>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod coalitions;
mod earnings;
mod nodes;
mod owner;
mod sessions;
mod settings;
mod stand_downs;
mod store;

pub use coalitions::{CoalitionRecord, CoalitionState};
pub use earnings::{HourRecord, IncomePoint, ShiftRecord, Work};
pub use nodes::NodeRecord;
pub use owner::{DecisionRecord, YieldRecord, YieldTimes};
pub use sessions::{SessionRecord, SessionState, SessionStored};
pub use store::{Store, StoreError};
