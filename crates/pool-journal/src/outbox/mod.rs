//! The transaction outbox: what is wanted is written down before it is signed, what is signed before it is sent.

mod chain;
mod intent;
mod signer;

pub use chain::{BlockRef, BroadcastError, ChainPort, CountAt, Fees, Receipt, Unreachable};
pub use intent::{Intent, Outcome, Submission, SubmitError};
pub use signer::{SignedTransaction, SignerError, TransactionSigner, UnsignedTransaction};
