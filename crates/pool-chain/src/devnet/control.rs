//! What only a local chain can do: make money, move time, make and unmake blocks.

use std::time::Duration;

use alloy::{
    primitives::{Address, B256, Bytes, U64, U256},
    providers::{Provider, RootProvider},
    rpc::types::TransactionReceipt,
};
use pool_types::Usdc;
use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::DevnetError;
use crate::{AddressBook, Call, ChainError, calls};

const DEADLINE: Duration = Duration::from_secs(20);

/// A local chain's node, addressed from any process.
#[derive(Clone)]
pub struct DevnetControl {
    provider: RootProvider,
    book: AddressBook,
}

impl DevnetControl {
    /// A local chain at `http` that answers.
    pub async fn connect(http: &str, book: AddressBook) -> Result<Self, DevnetError> {
        let url = http.parse().map_err(|_| ChainError::Address("HTTP"))?;
        let control = Self { provider: RootProvider::new_http(url), book };
        control.wait_until_it_answers().await?;
        Ok(control)
    }

    /// Where everything is on it.
    pub fn book(&self) -> &AddressBook {
        &self.book
    }

    pub(super) async fn wait_until_it_answers(&self) -> Result<(), ChainError> {
        let begun = Instant::now();
        loop {
            match self.ask::<U64>("eth_chainId", json!([])).await {
                Ok(_) => return Ok(()),
                Err(error) if begun.elapsed() > DEADLINE => return Err(error),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Gives an account the chain's coin for gas (in wei, absolute) and mints test USDC for it.
    pub async fn fund(&self, account: Address, native: u128, usdc: Usdc) -> Result<(), ChainError> {
        self.ask::<IgnoredAny>("anvil_setBalance", (account, U256::from(native))).await?;
        if usdc > Usdc::ZERO {
            let accounts: Vec<Address> = self.ask("eth_accounts", json!([])).await?;
            let minter = accounts.first().ok_or(ChainError::Nonsense { operation: "list the chain's own accounts" })?;
            self.send_as(*minter, &calls::mint(&self.book, account, usdc)).await?;
        }
        Ok(())
    }

    /// Sends a transaction as any account, whose key nobody needs here, and waits for its receipt. An error where it
    /// was reverted.
    pub async fn send_as(&self, from: Address, call: &Call) -> Result<TransactionReceipt, ChainError> {
        let receipt = self.try_as(from, call).await?;
        if receipt.status() {
            return Ok(receipt);
        }
        let revert = crate::Revert::decode(&Bytes::new());
        Err(ChainError::Reverted { operation: call.what, revert })
    }

    /// The same, with the receipt of a transaction that was reverted.
    pub async fn try_as(&self, from: Address, call: &Call) -> Result<TransactionReceipt, ChainError> {
        self.ask::<IgnoredAny>("anvil_impersonateAccount", (from,)).await?;
        let gas = U64::from(call.gas_limit);
        let transaction = json!({ "from": from, "to": call.to, "data": call.data, "gas": gas });
        let hash: B256 = self.ask("eth_sendTransaction", (transaction,)).await?;
        let begun = Instant::now();
        loop {
            let receipt: Option<TransactionReceipt> = self.ask("eth_getTransactionReceipt", (hash,)).await?;
            if let Some(receipt) = receipt {
                return Ok(receipt);
            }
            if begun.elapsed() > DEADLINE {
                return Err(ChainError::Deadline { operation: call.what, after: DEADLINE });
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets so many seconds pass: the clock is moved and a block is made.
    pub async fn advance(&self, seconds: u64) -> Result<(), ChainError> {
        self.ask::<IgnoredAny>("evm_increaseTime", (U64::from(seconds),)).await?;
        self.mine(1).await
    }

    /// Makes the next block carry this time (Unix seconds), which must be later than the newest block's.
    pub async fn next_block_at(&self, time: u64) -> Result<(), ChainError> {
        self.ask::<IgnoredAny>("evm_setNextBlockTimestamp", (U64::from(time),)).await.map(drop)
    }

    /// Makes so many blocks.
    pub async fn mine(&self, blocks: u64) -> Result<(), ChainError> {
        self.ask::<IgnoredAny>("anvil_mine", (U64::from(blocks),)).await.map(drop)
    }

    /// Whether each transaction makes a block of its own at once. Without, [`DevnetControl::mine`] makes them.
    pub async fn automine(&self, on: bool) -> Result<(), ChainError> {
        self.ask::<IgnoredAny>("evm_setAutomine", (on,)).await.map(drop)
    }

    /// A block every so many seconds; 0 makes none.
    pub async fn block_time(&self, seconds: u64) -> Result<(), ChainError> {
        self.ask::<IgnoredAny>("evm_setIntervalMining", (seconds,)).await.map(drop)
    }

    /// What the next block's base fee will be, in wei.
    pub async fn next_base_fee(&self, wei: u128) -> Result<(), ChainError> {
        self.ask::<IgnoredAny>("anvil_setNextBlockBaseFeePerGas", (U256::from(wei),)).await.map(drop)
    }

    /// Replaces the last `depth` blocks by as many others, which hold `transactions` (block's place in the new ones,
    /// signed bytes).
    pub async fn reorganise(&self, depth: u64, transactions: Vec<(Bytes, u64)>) -> Result<(), ChainError> {
        self.ask::<IgnoredAny>("anvil_reorg", (depth, transactions)).await.map(drop)
    }

    /// Takes a picture of the chain for [`DevnetControl::revert`].
    pub async fn snapshot(&self) -> Result<U256, ChainError> {
        self.ask("evm_snapshot", json!([])).await
    }

    /// Goes back to a picture, which is used up.
    pub async fn revert(&self, picture: U256) -> Result<(), ChainError> {
        let done: bool = self.ask("evm_revert", (picture,)).await?;
        if done { Ok(()) } else { Err(ChainError::Nonsense { operation: "go back to a picture of the chain" }) }
    }

    /// Puts code at an address, so that it is no ordinary account.
    pub async fn set_code(&self, address: Address, code: &Bytes) -> Result<(), ChainError> {
        self.ask::<IgnoredAny>("anvil_setCode", (address, code)).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: &'static str,
        parameters: impl Serialize,
    ) -> Result<T, ChainError> {
        let nonsense = |_| ChainError::Nonsense { operation: method };
        let parameters = serde_json::value::to_raw_value(&parameters).map_err(nonsense)?;
        let request = self.provider.raw_request_dyn(method.into(), &parameters);
        match timeout(DEADLINE, request).await {
            Ok(Ok(answer)) => serde_json::from_str(answer.get()).map_err(nonsense),
            Ok(Err(error)) => Err(ChainError::of(method, &error)),
            Err(_) => Err(ChainError::Deadline { operation: method, after: DEADLINE }),
        }
    }
}
