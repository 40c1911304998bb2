//! Who signs transactions. The outbox sees an address and a way to sign; where the key lives is not its business.

use std::fmt;

use alloy_primitives::{Address, B256, Bytes, U256};
use async_trait::async_trait;
use thiserror::Error;

/// The fields of an EIP-1559 transaction without access list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsignedTransaction {
    /// The chain it is valid on.
    pub chain_id: u64,
    /// Its place among the signer's transactions.
    pub nonce: u64,
    /// The most wei paid for a unit of gas.
    pub max_fee_per_gas: u128,
    /// The most wei a unit of gas gives to the block's maker.
    pub max_priority_fee_per_gas: u128,
    /// The most gas it may use.
    pub gas_limit: u64,
    /// The contract or account it calls.
    pub to: Address,
    /// Wei sent along.
    pub value: U256,
    /// Call data.
    pub data: Bytes,
}

/// Bytes ready to broadcast, and the hash that a receipt will name.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedTransaction {
    /// The transaction's hash.
    pub hash: B256,
    /// Its EIP-2718 encoding.
    pub raw: Bytes,
}

impl fmt::Debug for SignedTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedTransaction").field("hash", &self.hash).field("bytes", &self.raw.len()).finish()
    }
}

/// Why nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignerError {
    /// The key cannot be used now; the outbox tries again.
    #[error("the key cannot be used now: {0}")]
    Unavailable(String),
    /// The signer will not sign this transaction, now or later.
    #[error("the signer refuses the transaction: {0}")]
    Refused(String),
}

/// A key that signs transactions. Signing the same fields twice may give different bytes; the outbox stores what it
/// got before it broadcasts, and never signs a nonce again without keeping the variants before.
#[async_trait]
pub trait TransactionSigner: Send + Sync + 'static {
    /// The account that pays and acts.
    fn address(&self) -> Address;

    /// Signs. The hash must be that of the bytes.
    async fn sign(&self, transaction: &UnsignedTransaction) -> Result<SignedTransaction, SignerError>;
}
