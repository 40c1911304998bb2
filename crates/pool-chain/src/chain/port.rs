//! The chain as the journal's outbox sees it.

use std::time::Duration;

use alloy::{
    eips::{BlockId, BlockNumberOrTag},
    primitives::{Address, B256, Bytes, U128},
    providers::Provider,
    rpc::types::TransactionReceipt,
    transports::RpcError,
};
use async_trait::async_trait;
use pool_journal::{BlockRef, BroadcastError, ChainPort, CountAt, Fees, Receipt, Unreachable};
use tokio::time::Instant;

use super::{Chain, Head};
use crate::ChainError;

/// How long [`ChainPort::next_head`] waits before it returns the block that is known already.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

impl From<Head> for BlockRef {
    fn from(head: Head) -> Self {
        Self { number: head.number, hash: head.hash }
    }
}

#[async_trait]
impl ChainPort for Chain {
    fn chain_id(&self) -> u64 {
        self.book().chain_id
    }

    async fn head(&self) -> Result<BlockRef, Unreachable> {
        Ok(Chain::head(self).await?.into())
    }

    async fn next_head(&self, known: BlockRef) -> Result<BlockRef, Unreachable> {
        let mut news = self.new_heads();
        let until = Instant::now() + LONGEST_WAIT;
        loop {
            let head = BlockRef::from(Chain::head(self).await?);
            if head != known || Instant::now() >= until {
                return Ok(head);
            }
            news.changed().await;
        }
    }

    async fn block_hash(&self, number: u64) -> Result<Option<B256>, Unreachable> {
        Ok(self.block(number).await?.map(|block| block.hash))
    }

    async fn transaction_count(&self, account: Address, at: CountAt) -> Result<u64, Unreachable> {
        let at = match at {
            CountAt::Latest => BlockNumberOrTag::Latest,
            CountAt::Pending => BlockNumberOrTag::Pending,
            CountAt::Block(number) => BlockNumberOrTag::Number(number),
        };
        let request = self.inner.provider.get_transaction_count(account).block_id(BlockId::Number(at));
        Ok(self.timed("count an account's transactions", request).await?)
    }

    async fn fees(&self) -> Result<Fees, Unreachable> {
        let operation = "ask for the price of gas";
        let history = self.inner.provider.get_fee_history(1, BlockNumberOrTag::Latest, &[]);
        let tip = self.inner.provider.raw_request::<_, U128>("eth_maxPriorityFeePerGas".into(), ());
        let (history, tip) = tokio::try_join!(self.timed(operation, history), self.timed(operation, tip))?;
        // The last entry is the block that comes next.
        let base_fee = history.base_fee_per_gas.last().copied().ok_or(ChainError::Nonsense { operation })?;
        Ok(Fees { base_fee, priority_fee: tip.to() })
    }

    async fn broadcast(&self, raw: &Bytes) -> Result<(), BroadcastError> {
        let operation = "send a transaction";
        let request = self.inner.provider.raw_request::<_, B256>("eth_sendRawTransaction".into(), (raw,));
        let after = self.inner.config.deadline;
        let Ok(answer) = tokio::time::timeout(after, request).await else {
            return Err(Unreachable::from(ChainError::Deadline { operation, after }).into());
        };
        match answer {
            Ok(_) => Ok(()),
            Err(RpcError::ErrorResp(payload)) => Err(refusal(payload.code, &payload.message)),
            Err(error) => Err(Unreachable::from(ChainError::of(operation, &error)).into()),
        }
    }

    async fn receipt(&self, transaction: B256) -> Result<Option<Receipt>, Unreachable> {
        let request = self.inner.provider.get_transaction_receipt(transaction);
        let receipt: Option<TransactionReceipt> = self.timed("ask for a receipt", request).await?;
        // A receipt without a block is one of a pending transaction, and says nothing.
        Ok(receipt.and_then(|receipt| {
            Some(Receipt {
                transaction,
                block: BlockRef { number: receipt.block_number?, hash: receipt.block_hash? },
                succeeded: receipt.status(),
                gas_used: receipt.gas_used,
                gas_price: receipt.effective_gas_price,
            })
        }))
    }
}

/// What a node means by refusing signed bytes. Nodes have one code for all of it, so their words decide; they are not
/// passed on.
fn refusal(code: i64, message: &str) -> BroadcastError {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let never = |reason: &str| BroadcastError::Refused(reason.to_owned());
    if says(&["already known", "already imported", "known transaction", "already exists", "already in the mempool"]) {
        BroadcastError::AlreadyKnown
    } else if says(&["nonce too low", "nonce is too low", "nonce has already been used", "invalid nonce; got"]) {
        BroadcastError::NonceTooLow
    } else if says(&["underpriced", "fee too low", "less than block base fee", "below the minimum", "fee per gas less"])
    {
        BroadcastError::Underpriced
    } else if says(&["insufficient funds", "insufficient balance", "enough funds", "lack of funds"]) {
        BroadcastError::InsufficientFunds
    } else if says(&["gas limit", "intrinsic gas", "gas too low", "gas too high", "exceeds the cap", "exceeds block"]) {
        never("its gas limit or fee is outside what this chain allows")
    } else if says(&["chain id", "chainid", "invalid sender", "invalid signature", "replay-protected"]) {
        never("it was signed for another chain")
    } else if says(&["rlp", "decode", "oversized", "transaction type", "failed to parse"]) || code == -32602 {
        never("it is malformed")
    } else {
        // A full mempool, a limit on requests, something new: to be tried again rather than given up.
        BroadcastError::Unreachable(Unreachable(format!("it refused a transaction with code {code}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_say_is_understood() {
        // Words of geth, anvil, erigon, nethermind and besu.
        let known = |message| matches!(refusal(-32000, message), BroadcastError::AlreadyKnown);
        assert!(
            known("already known") && known("transaction already imported") && known("AlreadyKnown, already known")
        );
        let low = |message| matches!(refusal(-32000, message), BroadcastError::NonceTooLow);
        assert!(low("nonce too low: next nonce 5, tx nonce 4") && low("Nonce too low"));
        let cheap = |message| matches!(refusal(-32000, message), BroadcastError::Underpriced);
        assert!(cheap("replacement transaction underpriced") && cheap("max fee per gas less than block base fee"));
        assert!(matches!(
            refusal(-32000, "insufficient funds for gas * price + value: balance 0"),
            BroadcastError::InsufficientFunds
        ));
        for message in ["exceeds block gas limit", "intrinsic gas too low", "invalid chain id for signer", "rlp: input"]
        {
            assert!(matches!(refusal(-32000, message), BroadcastError::Refused(_)), "{message}");
        }
        assert!(matches!(refusal(-32000, "txpool is full"), BroadcastError::Unreachable(_)), "it may be taken later");
    }
}
