//! Durable workflows on the store's SQLite file: what was begun is finished, whatever ends the process in between.
//!
//! - A *workflow* is a graph in `workflows/`; a *run* is a workflow begun under a key, once; a *step* is a node of a
//!   run; an [`Action`] is the code behind it.
//! - A step may run again after a crash; what it does to the world it does under its key, so that again is the same.
//!   Chain transactions go through the outbox ([`Step::transact`], [`Journal::submit`]), which does each of them once.
//! - Every change of a run, a step or a transaction is a row of a log that is chained by hashes and written in the
//!   same database transaction as the change. [`Journal::export`] and [`verify_export`] take it anywhere.
//! - Any process may start runs and look; one [`Runner`] drives.
//!
//! Inputs and outputs of steps are kept in the store's file as they are, for the steps that need them; the log and
//! every view leave secrets out ([`redacted`]). The log is never shortened: it grows with what is done.
//!
//! ```
//! # let directory = tempfile::tempdir()?;
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use std::{sync::Arc, time::Duration};
//!
//! use pool_journal::{
//!     Action, Actions, Clock, Graph, Graphs, Journal, Runner, RunnerSetup, Step, StepError, SystemClock, verify_export,
//! };
//! use pool_store::Store;
//! use serde_json::{Value, json};
//!
//! /// Pays what it is told to, and says under which key it did.
//! struct Pay;
//!
//! #[async_trait::async_trait]
//! impl Action for Pay {
//!     async fn run(&self, step: &Step, input: Value) -> Result<Value, StepError> {
//!         let Some(amount) = input["amount"].as_u64() else {
//!             return Err(StepError::failed("amount", "the amount is no number"));
//!         };
//!         Ok(json!({"paid": amount, "under": step.key()}))
//!     }
//! }
//!
//! let graph = r#"{
//!     "name": "pay-once",
//!     "nodes": [
//!         {"id": "trigger", "type": "trigger", "data": {"type": "trigger", "label": "Start", "config": {}}},
//!         {"id": "pay", "type": "action", "data": {"type": "action", "label": "Pay",
//!             "config": {"actionType": "till/pay", "amount": "{{trigger.amount}}"}}}
//!     ],
//!     "edges": [{"id": "first", "source": "trigger", "target": "pay"}]
//! }"#;
//! let graphs = Graphs::new([Graph::parse(graph, &["till/pay"])?])?;
//! let store = Store::open(directory.path().join("state.db")).await?;
//! let journal = Journal::open(&store, graphs, Arc::new(SystemClock)).await?;
//!
//! // On disk, and done when a runner comes by. The same key again is the same run.
//! let run = journal.start("pay-once", "invoice 7", json!({"amount": 25})).await?;
//! assert_eq!(journal.start("pay-once", "invoice 7", json!({"amount": 25})).await?, run);
//!
//! let actions = Actions::new().with("till/pay", Arc::new(Pay));
//! let runner = Runner::start(&journal, RunnerSetup { actions, ..RunnerSetup::default() }).await?;
//! let outcome = journal.wait(run, journal.clock().now().after(Duration::from_secs(10))).await?;
//! assert_eq!(outcome.outputs["pay"], json!({"paid": 25, "under": format!("{run}/pay")}));
//! runner.stop().await?;
//!
//! let mut export = Vec::new();
//! journal.export(&mut export).await?;
//! assert_eq!(verify_export(&export[..])?.entries, 5);
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod advance;
mod canonical;
mod changes;
mod clock;
mod condition;
mod error;
mod event;
mod export;
mod graph;
mod journal;
mod lock;
mod log;
mod outbox;
mod progress;
mod redaction;
mod run;
mod runner;
mod step;
mod template;

pub use canonical::CanonicalError;
pub use clock::{Clock, ManualClock, Sleep, SystemClock, Timestamp};
pub use condition::ConditionError;
pub use error::JournalError;
pub use event::SignalError;
pub use export::{ExportError, ExportReport, VerifyError, verify_export};
pub use graph::{ACTIONS, Graph, GraphError, Graphs};
pub use journal::Journal;
pub use log::{LogEntry, LogKind};
pub use outbox::{
    BlockRef, BroadcastError, ChainPort, CountAt, Fees, Intent, IntentState, IntentView, OutboxSettings, Outcome,
    Receipt, SettingsError, SignedTransaction, SignerError, Submission, SubmitError, TransactionSigner, Unreachable,
    UnsignedTransaction,
};
pub use redaction::redacted;
pub use run::{
    NotARunId, RunFailure, RunId, RunOutcome, RunState, RunView, RunWatch, StartError, StepState, StepView, WaitError,
};
pub use runner::{ChainAccess, Runner, RunnerError, RunnerSettings, RunnerSetup};
pub use step::{Action, Actions, Step, StepError, StepFailure, Wake};
pub use template::TemplateError;
