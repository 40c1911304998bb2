//! What somebody wants to have done on a chain, and how it ended.

use std::fmt;

use alloy_primitives::{Address, Bytes, U256};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Receipt, Timestamp};

/// A transaction that is wanted. Who submits the same intent twice gets one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Its idempotency key, unique for all time; [`Step::key`](crate::Step::key) for the transaction of a step.
    pub key: String,
    /// The chain to act on.
    pub chain: u64,
    /// Who signs and pays.
    pub signer: Address,
    /// Transactions of one lane happen one after the other, in the order they were submitted: `vault/0x…`.
    pub lane: String,
    /// Whether a newer intent of the same lane makes this one pointless. Such an intent is dropped with
    /// [`Outcome::Superseded`] if it has no nonce yet when the newer one arrives.
    pub supersedable: bool,
    /// The contract or account called.
    pub to: Address,
    /// Wei sent along.
    pub value: U256,
    /// Call data; at most [`Intent::MAX_DATA_BYTES`].
    pub data: Bytes,
    /// The most gas it may use, set by hand: an estimate can find a starving path.
    pub gas_limit: u64,
    /// When it is no longer wanted. An intent without a nonce is then dropped with [`Outcome::Expired`]; one that
    /// may already be on its way is driven to its end.
    pub deadline: Option<Timestamp>,
}

impl Intent {
    /// The longest key or lane, in bytes.
    pub const MAX_NAME_BYTES: usize = 200;
    /// The longest call data, in bytes.
    pub const MAX_DATA_BYTES: usize = 64 << 10;
    /// The highest gas limit (EIP-7825).
    pub const MAX_GAS_LIMIT: u64 = 1 << 24;
    /// The lowest gas limit: what a transaction costs that does nothing.
    pub const MIN_GAS_LIMIT: u64 = 21_000;
    /// How many intents of one signer may wait without an end.
    pub const MAX_WAITING: u32 = 10_000;
}

/// How an intent ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It happened: a variant is in a block under the configured number of confirmations.
    Confirmed {
        /// What the chain says.
        receipt: Receipt,
    },
    /// It was included and reverted: it cost gas and did nothing. A failure to handle; it is not tried again.
    Reverted {
        /// What the chain says.
        receipt: Receipt,
    },
    /// A newer intent of its lane came before it had a nonce. It never happened and never will.
    Superseded {
        /// The newer intent's key.
        by: String,
    },
    /// Its deadline passed before it had a nonce. It never happened and never will.
    Expired,
    /// The signer or every node refuses it. It never happened; its nonce, if it had one, was used for nothing else
    /// than a transfer of nothing to the signer itself.
    Refused {
        /// Why, in one sentence.
        reason: String,
    },
}

impl Outcome {
    /// Whether the chain holds the effect.
    pub fn happened(&self) -> bool {
        matches!(self, Outcome::Confirmed { .. })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Confirmed { receipt } => {
                write!(f, "transaction {} is in block {}", receipt.transaction, receipt.block.number)
            }
            Outcome::Reverted { receipt } => {
                write!(f, "transaction {} was reverted in block {}", receipt.transaction, receipt.block.number)
            }
            Outcome::Superseded { by } => write!(f, "dropped before it was signed, for {by} came after it"),
            Outcome::Expired => f.write_str("dropped before it was signed, for its time was over"),
            Outcome::Refused { reason } => write!(f, "refused: {reason}"),
        }
    }
}

/// Where an intent stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submission {
    /// It is being worked on; [`Wake::Transaction`](crate::Wake::Transaction) wakes a step when it ends.
    Pending,
    /// It ended.
    Ended(Outcome),
}

/// Why an intent was not taken. None of these leaves a trace in the outbox.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// The key stands for another transaction.
    #[error("the key {0} already stands for another transaction")]
    KeyTaken(String),
    /// A field is out of bounds.
    #[error("the transaction {key} cannot be taken: {reason}")]
    Invalid {
        /// The intent's key, shortened.
        key: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// Too many transactions of the signer wait already.
    #[error("{0} has {max} transactions waiting; try again later", max = Intent::MAX_WAITING)]
    Full(Address),
    /// The journal's database failed.
    #[error(transparent)]
    Journal(#[from] crate::JournalError),
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;
    use serde_json::json;

    use super::*;
    use crate::BlockRef;

    #[test]
    fn outcomes_are_read_as_they_were_written() {
        let receipt = Receipt {
            transaction: B256::repeat_byte(1),
            block: BlockRef { number: 7, hash: B256::repeat_byte(2) },
            succeeded: true,
            gas_used: 21_000,
            gas_price: u128::MAX,
        };
        for outcome in [
            Outcome::Confirmed { receipt: receipt.clone() },
            Outcome::Reverted { receipt },
            Outcome::Superseded { by: "stop".to_owned() },
            Outcome::Expired,
            Outcome::Refused { reason: "no".to_owned() },
        ] {
            let text = serde_json::to_string(&outcome).unwrap();
            assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome, "{text}");
        }
        assert_eq!(serde_json::to_value(Outcome::Expired).unwrap(), json!({"outcome": "expired"}));
    }
}
