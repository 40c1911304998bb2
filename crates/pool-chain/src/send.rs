//! One transaction of a person's own key: sent, and waited for. Whoever sends many, and must not lose one, uses the
//! journal's outbox instead.

use std::time::Duration;

use alloy::{
    primitives::{Address, B256, U256},
    signers::local::PrivateKeySigner,
};
use pool_journal::{
    BroadcastError, ChainPort as _, CountAt, Receipt, TransactionSigner as _, Unreachable, UnsignedTransaction,
};
use thiserror::Error;
use tokio::time::{Instant, sleep};

use crate::{Call, Chain, ChainError, LocalTransactionSigner, Revert};

/// How long a transaction may take to be included.
const INCLUSION: Duration = Duration::from_secs(180);
/// How often its receipt is asked for.
const LOOK: Duration = Duration::from_millis(200);

/// Why a transaction was not sent, or did not do what it was to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// It would fail, and was not sent; or the chain could not be asked.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The chain could not be asked.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// Gas is paid in the chain's own coin.
    #[error("{account} has too little of the chain's coin to pay for gas: send it some")]
    NoCoin {
        /// Whose transaction it is.
        account: Address,
    },
    /// The key or the node refuses it.
    #[error("the transaction to {operation} was not taken: {reason}")]
    NotTaken {
        /// What it was to do.
        operation: &'static str,
        /// Why not.
        reason: String,
    },
    /// No block has it yet.
    #[error("no block took the transaction {transaction} (to {operation}) within {} s; it may still come", INCLUSION.as_secs())]
    NotIncluded {
        /// What it was to do.
        operation: &'static str,
        /// Which one.
        transaction: B256,
    },
    /// It was included, and failed.
    #[error("the transaction {transaction} failed to {operation}{}", because(.revert))]
    Failed {
        /// What it was to do.
        operation: &'static str,
        /// Which one.
        transaction: B256,
        /// Why, where that can be told.
        revert: Option<Revert>,
    },
}

fn because(revert: &Option<Revert>) -> String {
    revert.map_or_else(String::new, |revert| format!(": {revert}"))
}

impl Chain {
    /// Simulates a transaction, signs it with `key`, sends it and waits until a block holds it. A transaction that
    /// would fail costs nothing: it is not sent.
    pub async fn send_and_wait(&self, key: &PrivateKeySigner, call: &Call) -> Result<Receipt, SendError> {
        let account = key.address();
        self.simulate(account, call).await?;
        let (fees, nonce) = tokio::try_join!(self.fees(), self.transaction_count(account, CountAt::Pending))?;
        let chain_id = self.book().chain_id;
        let unsigned = UnsignedTransaction {
            chain_id,
            nonce,
            // Holds for several full blocks.
            max_fee_per_gas: fees.base_fee.saturating_mul(2).saturating_add(fees.priority_fee),
            max_priority_fee_per_gas: fees.priority_fee,
            gas_limit: call.gas_limit,
            to: call.to,
            value: U256::ZERO,
            data: call.data.clone(),
        };
        let not_taken = |reason: String| SendError::NotTaken { operation: call.what, reason };
        let signed = LocalTransactionSigner::new(key.clone(), chain_id).sign(&unsigned).await;
        let signed = signed.map_err(|error| not_taken(error.to_string()))?;
        match self.broadcast(&signed.raw).await {
            Ok(()) | Err(BroadcastError::AlreadyKnown) => {}
            Err(BroadcastError::InsufficientFunds) => return Err(SendError::NoCoin { account }),
            Err(error) => return Err(not_taken(error.to_string())),
        }
        let receipt = self.wait_for(signed.hash, call).await?;
        if receipt.succeeded {
            return Ok(receipt);
        }
        let revert = self.why_reverted(account, call, receipt.block.number).await.unwrap_or_default();
        Err(SendError::Failed { operation: call.what, transaction: signed.hash, revert })
    }

    async fn wait_for(&self, transaction: B256, call: &Call) -> Result<Receipt, SendError> {
        let begun = Instant::now();
        loop {
            // A node that does not answer now may answer in a moment; the transaction is on its way.
            let answer = self.receipt(transaction).await;
            match answer {
                Ok(Some(receipt)) => return Ok(receipt),
                Ok(None) | Err(_) if begun.elapsed() < INCLUSION => sleep(LOOK).await,
                Ok(None) | Err(_) => return Err(SendError::NotIncluded { operation: call.what, transaction }),
            }
        }
    }
}
