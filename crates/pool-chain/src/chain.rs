//! One EVM chain through one node: questions, simulation and broadcasting. Every request has a deadline.

mod heads;
mod port;
mod views;
mod vouchers;

use std::{fmt, future::IntoFuture, sync::Arc, time::Duration};

use alloy::{
    eips::{BlockId, BlockNumberOrTag},
    network::Ethereum,
    primitives::{Address, B256, Bytes, U256, keccak256},
    providers::{Provider, RootProvider},
    rpc::types::{Block, BlockOverrides, Filter, Log, TransactionInput, TransactionRequest},
    sol_types::SolCall,
    transports::TransportError,
};
use futures::{StreamExt as _, TryStreamExt as _};
pub use heads::NewHeads;
use tokio::time::timeout;
pub use views::{CoalitionState, MemberState, PoolState, RealtimeBalance, VaultState};
pub use vouchers::{VoucherCheckError, VoucherStanding};

use crate::{AddressBook, Call, ChainError, Revert};

/// Contracts whose code is asked for at once when a node is checked.
const CHECKS_AT_ONCE: usize = 8;

/// Which node to ask, and how patiently.
#[derive(Clone)]
pub struct ChainConfig {
    /// JSON-RPC over HTTP.
    pub http: String,
    /// JSON-RPC over WebSocket, for news of blocks as they come; without it the node is asked again and again.
    pub websocket: Option<String>,
    /// How long one request may take.
    pub deadline: Duration,
    /// How often to ask for the newest block where no news come.
    pub poll: Duration,
}

impl ChainConfig {
    /// A node at `http`, ten seconds for a request, a question each second.
    pub fn new(http: impl Into<String>) -> Self {
        Self { http: http.into(), websocket: None, deadline: Duration::from_secs(10), poll: Duration::from_secs(1) }
    }
}

impl fmt::Debug for ChainConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The addresses can hold keys.
        f.debug_struct("ChainConfig")
            .field("deadline", &self.deadline)
            .field("poll", &self.poll)
            .finish_non_exhaustive()
    }
}

/// A block, as far as we need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// The hash of the block before.
    pub parent: B256,
    /// Its time in Unix seconds.
    pub timestamp: u64,
}

/// A handle to one chain; cheap to clone. The task that listens for new blocks ends with the last handle.
#[derive(Clone)]
pub struct Chain {
    inner: Arc<Inner>,
}

struct Inner {
    provider: RootProvider<Ethereum>,
    book: AddressBook,
    config: ChainConfig,
    heads: heads::Heads,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let book = &self.inner.book;
        f.debug_struct("Chain")
            .field("network", &book.network)
            .field("chain_id", &book.chain_id)
            .finish_non_exhaustive()
    }
}

impl Chain {
    /// Connects to a node and checks that it serves the chain of `book` with the contracts of `book`.
    pub async fn connect(config: ChainConfig, book: AddressBook) -> Result<Self, ChainError> {
        let chain = Self::unchecked(config, book)?;
        chain.check().await?;
        Ok(chain)
    }

    /// A handle to a node that may not be there yet. [`Chain::check`] asks it.
    ///
    /// Must be called inside a tokio runtime.
    pub fn unchecked(config: ChainConfig, book: AddressBook) -> Result<Self, ChainError> {
        let http = config.http.parse().map_err(|_| ChainError::Address("HTTP"))?;
        if !config.http.starts_with("http://") && !config.http.starts_with("https://") {
            return Err(ChainError::Address("HTTP"));
        }
        let is_websocket = |url: &String| url.starts_with("ws://") || url.starts_with("wss://");
        if config.websocket.as_ref().is_some_and(|url| !is_websocket(url)) {
            return Err(ChainError::Address("WebSocket"));
        }
        let heads = heads::Heads::listen(config.websocket.clone(), config.deadline);
        Ok(Self { inner: Arc::new(Inner { provider: RootProvider::new_http(http), book, config, heads }) })
    }

    /// Checks that the node serves the chain of the address book, and that the contracts are those of the book.
    pub async fn check(&self) -> Result<(), ChainError> {
        let found = self.timed("ask for the chain's id", self.inner.provider.get_chain_id()).await?;
        if found != self.book().chain_id {
            return Err(ChainError::WrongChain { found, wanted: self.book().chain_id });
        }
        let contracts = self.book().contracts.all();
        let checks = contracts.into_iter().map(|(name, address)| self.check_contract(name, address));
        futures::stream::iter(checks).buffer_unordered(CHECKS_AT_ONCE).try_collect().await
    }

    async fn check_contract(&self, name: String, address: Address) -> Result<(), ChainError> {
        let code = self.code(address).await?;
        let wanted = self.book().code_hashes.get(&name);
        if code.is_empty() || wanted.is_some_and(|wanted| *wanted != keccak256(&code)) {
            return Err(ChainError::WrongContract { name, address });
        }
        Ok(())
    }

    /// Where everything is on this chain.
    pub fn book(&self) -> &AddressBook {
        &self.inner.book
    }

    /// The newest block.
    pub async fn head(&self) -> Result<Head, ChainError> {
        let operation = "ask for the newest block";
        self.block_at(operation, BlockNumberOrTag::Latest).await?.ok_or(ChainError::Nonsense { operation })
    }

    /// The block at a height of the node's present chain; `None` above the newest.
    pub async fn block(&self, number: u64) -> Result<Option<Head>, ChainError> {
        self.block_at("ask for a block", BlockNumberOrTag::Number(number)).await
    }

    async fn block_at(&self, operation: &'static str, at: BlockNumberOrTag) -> Result<Option<Head>, ChainError> {
        let block: Option<Block> = self.timed(operation, self.inner.provider.get_block_by_number(at)).await?;
        Ok(block.map(|block| Head {
            number: block.header.number,
            hash: block.header.hash,
            parent: block.header.parent_hash,
            timestamp: block.header.timestamp,
        }))
    }

    /// The time that a transaction would see if it were included now, in Unix seconds: the pending block's. A chain
    /// that makes blocks only on demand stands still between them, and its newest block can be old.
    pub async fn time(&self) -> Result<u64, ChainError> {
        Ok(self.now().await?.1)
    }

    /// The newest block, to read several things at, and the time.
    async fn now(&self) -> Result<(BlockId, u64), ChainError> {
        let latest = self.head().await?;
        let operation = "ask for the pending block";
        let request = self.inner.provider.raw_request("eth_getBlockByNumber".into(), ("pending", false));
        // Some nodes have no pending block; then the newest one's time is the best there is.
        let pending: Option<serde_json::Value> = match self.timed(operation, request).await {
            Ok(block) => block,
            Err(error) if error.is_transient() => return Err(error),
            Err(_) => None,
        };
        let timestamp = pending.as_ref().and_then(|block| block["timestamp"].as_str()?.strip_prefix("0x"));
        let pending = timestamp.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(latest.timestamp);
        Ok((latest.number.into(), pending.max(latest.timestamp)))
    }

    /// Listens for new blocks.
    pub fn new_heads(&self) -> NewHeads {
        self.inner.heads.subscribe(self.inner.config.poll)
    }

    /// The code at an address; empty where there is none.
    pub async fn code(&self, address: Address) -> Result<Bytes, ChainError> {
        self.code_at(address, BlockId::latest()).await
    }

    async fn code_at(&self, address: Address, block: BlockId) -> Result<Bytes, ChainError> {
        let request = self.inner.provider.get_code_at(address).block_id(block);
        self.timed("read a contract's code", request).await
    }

    /// The chain's own coin that an account has, in wei; what exceeds 128 bits is shown as the most that fits.
    pub async fn native_balance(&self, account: Address) -> Result<u128, ChainError> {
        let balance = self.timed("read a balance", self.inner.provider.get_balance(account)).await?;
        Ok(u128::try_from(balance).unwrap_or(u128::MAX))
    }

    /// Runs a transaction on the pending block without sending it: whether it would go through, and if not, why.
    pub async fn simulate(&self, from: Address, call: &Call) -> Result<(), ChainError> {
        self.replay(from, call, BlockId::Number(BlockNumberOrTag::Pending), BlockOverrides::default()).await
    }

    /// Why a transaction was reverted in the block of this height: it is run again at that block's time, on the state
    /// before. `None` where it goes through then, for another transaction of the same block was in its way.
    pub async fn why_reverted(&self, from: Address, call: &Call, block: u64) -> Result<Option<Revert>, ChainError> {
        let timestamp = self.block(block).await?.map(|block| block.timestamp);
        let then = BlockOverrides { number: Some(U256::from(block)), time: timestamp, ..BlockOverrides::default() };
        match self.replay(from, call, block.saturating_sub(1).into(), then).await {
            Ok(()) => Ok(None),
            Err(ChainError::Reverted { revert, .. }) => Ok(Some(revert)),
            Err(error) => Err(error),
        }
    }

    async fn replay(&self, from: Address, call: &Call, at: BlockId, with: BlockOverrides) -> Result<(), ChainError> {
        let input = TransactionInput::new(call.data.clone());
        let request = TransactionRequest::default().from(from).to(call.to).input(input).gas_limit(call.gas_limit);
        let request = self.inner.provider.call(request).block(at).with_block_overrides(with);
        self.timed(call.what, request).await.map(drop)
    }

    /// Asks a view of a contract at a block.
    pub(crate) async fn view<C: SolCall>(
        &self,
        operation: &'static str,
        to: Address,
        call: C,
        at: BlockId,
    ) -> Result<C::Return, ChainError> {
        let input = TransactionInput::new(call.abi_encode().into());
        let request = TransactionRequest::default().to(to).input(input);
        let answer = self.timed(operation, self.inner.provider.call(request).block(at)).await?;
        C::abi_decode_returns(&answer).map_err(|_| ChainError::Nonsense { operation })
    }

    /// The logs that a filter lets through.
    pub(crate) async fn logs(&self, filter: &Filter) -> Result<Vec<Log>, ChainError> {
        self.timed("read the chain's events", self.inner.provider.get_logs(filter)).await
    }

    /// Waits for a request, no longer than its deadline, and sorts its error.
    async fn timed<T>(
        &self,
        operation: &'static str,
        request: impl IntoFuture<Output = Result<T, TransportError>>,
    ) -> Result<T, ChainError> {
        let after = self.inner.config.deadline;
        match timeout(after, request.into_future()).await {
            Ok(answer) => answer.map_err(|error| ChainError::of(operation, &error)),
            Err(_) => Err(ChainError::Deadline { operation, after }),
        }
    }
}
