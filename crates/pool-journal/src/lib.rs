//! Durable workflows on the store's SQLite file: what was begun is finished, whatever ends the process in between.
//!
//! - A *workflow* is a graph in `workflows/`; a *run* is a workflow begun under a key, once; a *step* is a node of a
//!   run; an [`Action`] is the code behind it.
//! - A step may run again after a crash; what it does to the world it does under its key, so that again is the same.
//!   Chain transactions go through the outbox ([`Step::transact`], [`Journal::submit`]), which does each of them once.
//! - Every change of a run, a step or a transaction is a row of a log that is chained by hashes and written in the
//!   same database transaction as the change. [`Journal::export`] and [`verify_export`] take it anywhere.
//! - Any process may start runs and look; one [`Runner`] drives.

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
