//! Durable workflows on the store's SQLite file: what was begun is finished, whatever ends the process in between.

mod clock;
mod error;
mod outbox;

pub use clock::{Clock, ManualClock, Sleep, SystemClock, Timestamp};
pub use error::JournalError;
pub use outbox::{
    BlockRef, BroadcastError, ChainPort, CountAt, Fees, Intent, Outcome, Receipt, SignedTransaction, SignerError,
    Submission, SubmitError, TransactionSigner, Unreachable, UnsignedTransaction,
};
