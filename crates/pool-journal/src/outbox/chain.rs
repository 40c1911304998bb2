//! What the outbox needs of a chain, and nothing more.

use alloy_primitives::{Address, B256, Bytes};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A block by number and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockRef {
    /// Its height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
}

/// After which transactions an account's transactions are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountAt {
    /// After the newest block.
    Latest,
    /// After the newest block and what waits in the node's mempool.
    Pending,
    /// After the block of this height.
    Block(u64),
}

/// What a unit of gas costs now, in wei.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fees {
    /// The base fee that the next block is expected to burn (EIP-1559).
    pub base_fee: u128,
    /// The priority fee that gets a transaction into one of the next blocks.
    pub priority_fee: u128,
}

/// What a transaction did when it was included in a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The hash of the variant that was included.
    pub transaction: B256,
    /// The block that holds it.
    pub block: BlockRef,
    /// Whether it ran to its end; `false` if it was reverted.
    pub succeeded: bool,
    /// Gas used.
    pub gas_used: u64,
    /// Wei paid for each unit of gas; decimal text in JSON.
    #[serde(with = "decimal")]
    pub gas_price: u128,
}

/// An integer as decimal text: JSON numbers of other programs end at 2^53, serde's buffers at 2^64.
mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The node could not be asked, or gave no usable answer. Says nothing about what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the chain's node cannot be reached: {0}")]
pub struct Unreachable(pub String);

/// Why a node did not take a signed transaction.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BroadcastError {
    /// It has these very bytes already. Good news.
    #[error("the node knows this transaction already")]
    AlreadyKnown,
    /// A transaction of this nonce is in a block; which one, the receipts tell.
    #[error("a transaction with this nonce is on the chain already")]
    NonceTooLow,
    /// The fees are below what the node takes, or do not outbid a transaction of the same nonce.
    #[error("the fees are too low for the node to take the transaction")]
    Underpriced,
    /// The signer cannot pay gas limit times max fee plus value.
    #[error("the signer has too little of the chain's coin to pay for the transaction")]
    InsufficientFunds,
    /// The node could not be asked. It may have taken the transaction all the same.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The node will never take these bytes: gas limit above a block's, wrong chain id, malformed.
    #[error("the node refuses the transaction: {0}")]
    Refused(String),
}

/// One chain as the outbox sees it. Implementations time out by themselves; the outbox bounds each call as well.
///
/// A node may lag, forget its mempool, and change its mind about the newest blocks. The outbox expects all of it and
/// never takes an [`Unreachable`] for a statement about a transaction.
#[async_trait]
pub trait ChainPort: Send + Sync + 'static {
    /// The chain's id (EIP-155).
    fn chain_id(&self) -> u64;

    /// The newest block.
    async fn head(&self) -> Result<BlockRef, Unreachable>;

    /// Waits until the newest block is another than `known`, and returns it. It may return `known` after a while;
    /// dropping the future gives up waiting.
    async fn next_head(&self, known: BlockRef) -> Result<BlockRef, Unreachable>;

    /// The hash of the block at a height, or `None` above the newest block.
    async fn block_hash(&self, number: u64) -> Result<Option<B256>, Unreachable>;

    /// How many transactions `account` has sent: the nonce of its next one.
    async fn transaction_count(&self, account: Address, at: CountAt) -> Result<u64, Unreachable>;

    /// What gas costs now.
    async fn fees(&self) -> Result<Fees, Unreachable>;

    /// Hands signed bytes to the node. `Ok` means that the node has taken them, not that a block has.
    async fn broadcast(&self, raw: &Bytes) -> Result<(), BroadcastError>;

    /// The receipt of a transaction, or `None` if no block of the node's present chain holds it.
    async fn receipt(&self, transaction: B256) -> Result<Option<Receipt>, Unreachable>;
}
