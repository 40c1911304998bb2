//! The transaction outbox: what is wanted is written down before it is signed, what is signed before it is sent.
//!
//! ```text
//! submit -> queued -> signed -> included -> final -> settled
//!             |         ^           |         |
//!             v         +-----------+---------+   a re-organisation took its block away: the same bytes again
//!          dropped
//! ```
//!
//! An intent is *queued* until its lane is free and its signer has room. It becomes *signed* when its nonce, its first
//! variant and the signer's next nonce are written down, in one database transaction; only then are the bytes sent.
//! A raised fee is a further variant of the same nonce, written down before it is sent. The receipt of any variant
//! ends the intent; a reverted one is an outcome like another, and not tried again. *Dropped* are intents that never
//! had a nonce: superseded, expired, or refused by the signer.

mod admit;
mod chain;
mod driver;
mod fee;
mod intent;
mod ledger;
mod look;
mod nonce;
mod queue;
mod record;
mod round;
mod settings;
mod signer;
mod verdict;

pub use chain::{BlockRef, BroadcastError, ChainPort, CountAt, Fees, Receipt, Unreachable};
pub(crate) use driver::SignerDriver;
pub use intent::{Intent, Outcome, Submission, SubmitError};
pub(crate) use queue::{expire, has_ended, next_expiry, views_of_run, withdraw};
pub use record::{IntentState, IntentView};
pub use settings::{OutboxSettings, SettingsError};
pub use signer::{SignedTransaction, SignerError, TransactionSigner, UnsignedTransaction};
