//! A simulated chain that is a strict judge: a nonce can be used once, an effect can happen once, and whoever breaks
//! that ends the test.
//!
//! A transaction's data is a sentence: `do <effect>` has the effect, unless the chain has been told to revert it,
//! `revert <effect>` is always reverted, and nothing has none. Blocks come when the test mines them; the newest can be taken back, with or without what was in
//! them; the mempool can be lost. The port to it fails, lags and lies about fees as it is told, by a seeded die.
//!
//! It lives in the memory of the test. Processes that the test kills reach it over a socket ([`serve`], [`Remote`]).

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use async_trait::async_trait;
use pool_journal::{
    BlockRef, BroadcastError, ChainPort, CountAt, Fees, Receipt, SignedTransaction, SignerError, TransactionSigner,
    Unreachable, UnsignedTransaction,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

pub(crate) const CHAIN_ID: u64 = 16602;

/// A signed transaction; its JSON is its encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transaction {
    pub(crate) from: Address,
    pub(crate) nonce: u64,
    pub(crate) max_fee: u128,
    pub(crate) priority_fee: u128,
    pub(crate) gas_limit: u64,
    pub(crate) to: Address,
    pub(crate) data: String,
}

impl Transaction {
    pub(crate) fn raw(&self) -> Bytes {
        serde_json::to_vec(self).unwrap().into()
    }

    pub(crate) fn hash(&self) -> B256 {
        keccak256(self.raw())
    }

    fn effect(&self) -> Option<&str> {
        self.data.strip_prefix("do ")
    }
}

/// A transaction in a block.
#[derive(Clone, Debug)]
pub(crate) struct Included {
    hash: B256,
    pub(crate) transaction: Transaction,
    pub(crate) succeeded: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) hash: B256,
    base_fee: u128,
    pub(crate) transactions: Vec<Included>,
}

#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) blocks: Vec<Block>,
    pub(crate) mempool: Vec<Transaction>,
    /// What the next block's gas costs.
    pub(crate) base_fee: u128,
    /// The least priority fee that a block takes.
    pub(crate) least_priority: u128,
    /// How many transactions a block takes.
    pub(crate) capacity: usize,
    /// Senders that have run out of money.
    pub(crate) poor: Vec<Address>,
    /// Effects that are reverted from now on.
    pub(crate) reverting: Vec<String>,
    salt: u64,
}

impl Chain {
    pub(crate) fn new() -> Chain {
        let genesis = Block { hash: keccak256("genesis"), base_fee: 100, transactions: Vec::new() };
        Chain {
            blocks: vec![genesis],
            mempool: Vec::new(),
            base_fee: 100,
            least_priority: 1,
            capacity: 50,
            poor: Vec::new(),
            reverting: Vec::new(),
            salt: 0,
        }
    }

    pub(crate) fn height(&self) -> u64 {
        self.blocks.len() as u64 - 1
    }

    pub(crate) fn head(&self) -> BlockRef {
        self.at(self.height())
    }

    fn at(&self, number: u64) -> BlockRef {
        BlockRef { number, hash: self.blocks[number as usize].hash }
    }

    /// The transactions of an account up to a height.
    pub(crate) fn count(&self, account: Address, height: u64) -> u64 {
        let blocks = &self.blocks[..=height as usize];
        blocks.iter().flat_map(|block| &block.transactions).filter(|i| i.transaction.from == account).count() as u64
    }

    pub(crate) fn broadcast(&mut self, transaction: Transaction) -> Result<(), BroadcastError> {
        if transaction.nonce < self.count(transaction.from, self.height()) {
            return Err(BroadcastError::NonceTooLow);
        }
        if self.mempool.contains(&transaction) {
            return Err(BroadcastError::AlreadyKnown);
        }
        if self.poor.contains(&transaction.from) {
            return Err(BroadcastError::InsufficientFunds);
        }
        let same = |t: &&mut Transaction| t.from == transaction.from && t.nonce == transaction.nonce;
        match self.mempool.iter_mut().find(same) {
            None => self.mempool.push(transaction),
            Some(old) => {
                let outbids = |new: u128, old: u128| new * 10 >= old * 11;
                if !outbids(transaction.max_fee, old.max_fee) || !outbids(transaction.priority_fee, old.priority_fee) {
                    return Err(BroadcastError::Underpriced);
                }
                *old = transaction;
            }
        }
        Ok(())
    }

    /// Makes a block of what the mempool holds, as far as it pays and fits.
    pub(crate) fn mine(&mut self) {
        let height = self.height();
        let mut next: HashMap<Address, u64> = HashMap::new();
        for account in self.mempool.iter().map(|t| t.from) {
            next.entry(account).or_insert_with(|| self.count(account, height));
        }
        let mut transactions: Vec<Transaction> = Vec::new();
        while transactions.len() < self.capacity {
            let (base_fee, least) = (self.base_fee, self.least_priority);
            let pays = |t: &Transaction| t.max_fee >= base_fee && t.priority_fee >= least;
            let Some(place) = self.mempool.iter().position(|t| next[&t.from] == t.nonce && pays(t)) else { break };
            let transaction = self.mempool.remove(place);
            *next.entry(transaction.from).or_default() += 1;
            transactions.push(transaction);
        }
        self.add(transactions);
        self.mempool.retain(|t| t.nonce >= next[&t.from]);
    }

    /// Adds a block, and judges it.
    fn add(&mut self, transactions: Vec<Transaction>) {
        let mut counts: Vec<(Address, u64)> = Vec::new();
        for transaction in &transactions {
            let from = transaction.from;
            let mined = counts.iter().filter(|(account, _)| *account == from).count() as u64;
            let expected = self.count(from, self.height()) + mined;
            assert_eq!(transaction.nonce, expected, "a nonce of {from} is used once, and in its turn");
            counts.push((from, transaction.nonce));
        }
        self.salt += 1;
        let hash = keccak256(format!("{} {} {}", self.blocks.len(), self.salt, self.head().hash));
        let included = transactions.into_iter().map(|transaction| {
            let succeeded = match transaction.effect() {
                Some(effect) => !self.reverting.iter().any(|reverting| reverting == effect),
                None => transaction.data.is_empty(),
            };
            Included { hash: transaction.hash(), transaction, succeeded }
        });
        let transactions = included.collect();
        self.blocks.push(Block { hash, base_fee: self.base_fee, transactions });
        let mut effects: Vec<&str> = self.effects();
        effects.sort_unstable();
        for pair in effects.windows(2) {
            assert_ne!(pair[0], pair[1], "an effect happened twice");
        }
    }

    /// Takes the newest blocks back and puts as many others in their place. What was in them goes back to the mempool,
    /// or is lost with it.
    pub(crate) fn reorganise(&mut self, depth: usize, lose: bool) {
        let depth = depth.min(self.blocks.len() - 1);
        let gone: Vec<Block> = self.blocks.drain(self.blocks.len() - depth..).collect();
        let returned = gone.into_iter().flat_map(|block| block.transactions).map(|included| included.transaction);
        let returned: Vec<Transaction> = returned.collect();
        self.mempool.splice(0..0, returned);
        // Two transactions of one nonce: the one that was in a block stays.
        let mut seen = Vec::new();
        self.mempool.retain(|t| {
            let is_new = !seen.contains(&(t.from, t.nonce));
            seen.push((t.from, t.nonce));
            is_new
        });
        if lose {
            self.mempool.clear();
        }
        (0..depth).for_each(|_| self.add(Vec::new()));
    }

    /// What has happened, in order.
    pub(crate) fn effects(&self) -> Vec<&str> {
        let included = self.blocks.iter().flat_map(|block| &block.transactions);
        included.filter(|included| included.succeeded).filter_map(|included| included.transaction.effect()).collect()
    }

    /// What was included, effects and reverted ones, in order.
    pub(crate) fn sentences(&self) -> Vec<&str> {
        let all = self.blocks.iter().flat_map(|block| &block.transactions);
        all.map(|included| included.transaction.data.as_str()).filter(|data| !data.is_empty()).collect()
    }

    fn receipt(&self, hash: B256, height: u64) -> Option<Receipt> {
        (0..=height).rev().find_map(|number| {
            let block = &self.blocks[number as usize];
            let found = block.transactions.iter().find(|included| included.hash == hash)?;
            Some(Receipt {
                transaction: hash,
                block: self.at(number),
                succeeded: found.succeeded,
                gas_used: found.transaction.gas_limit / 2,
                gas_price: block.base_fee + found.transaction.priority_fee,
            })
        })
    }
}

/// A chain that several may ask.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Chain>>);

impl Shared {
    pub(crate) fn new() -> Shared {
        Shared(Arc::new(Mutex::new(Chain::new())))
    }

    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Chain) -> R) -> R {
        // A judge that panicked has poisoned the chain, and whoever comes next must notice.
        act(&mut self.0.lock().unwrap())
    }
}

/// How a port misbehaves; chances are in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// A call fails and does nothing.
    pub(crate) unreachable: u32,
    /// A broadcast does what it should and then says that it failed.
    pub(crate) unsaid: u32,
    /// Each answer is given by a node that is up to so many blocks behind.
    pub(crate) lag: u64,
    /// A broadcast is turned down for its fee.
    pub(crate) underpriced: u32,
    /// Every broadcast is refused for good.
    pub(crate) refuse: bool,
}

/// A node that a journal may talk to.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) chain: Shared,
    pub(crate) faults: Arc<Mutex<Faults>>,
    die: Arc<Mutex<StdRng>>,
}

impl Node {
    pub(crate) fn new(chain: Shared, seed: u64) -> Node {
        Node { chain, faults: Arc::default(), die: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))) }
    }

    pub(crate) fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    fn faults(&self) -> Faults {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn thrown(&self, chance: u32) -> bool {
        self.die.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..1000) < chance
    }

    /// Asks a node that is some blocks behind, if it answers at all.
    fn ask<R>(&self, question: impl FnOnce(&Chain, u64) -> R) -> Result<R, Unreachable> {
        let faults = self.faults();
        if self.thrown(faults.unreachable) {
            return Err(Unreachable("the simulated node is silent".to_owned()));
        }
        let behind = self.die.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..=faults.lag);
        Ok(self.chain.with(|chain| question(chain, chain.height().saturating_sub(behind))))
    }
}

#[async_trait]
impl ChainPort for Node {
    fn chain_id(&self) -> u64 {
        CHAIN_ID
    }

    async fn head(&self) -> Result<BlockRef, Unreachable> {
        self.ask(|chain, height| chain.at(height))
    }

    async fn next_head(&self, known: BlockRef) -> Result<BlockRef, Unreachable> {
        for _ in 0..50 {
            let head = self.chain.with(|chain| chain.head());
            if head != known {
                return Ok(head);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(known)
    }

    async fn block_hash(&self, number: u64) -> Result<Option<B256>, Unreachable> {
        self.ask(|chain, height| (number <= height).then(|| chain.at(number).hash))
    }

    async fn transaction_count(&self, account: Address, at: CountAt) -> Result<u64, Unreachable> {
        self.ask(|chain, height| match at {
            CountAt::Latest => chain.count(account, height),
            CountAt::Block(number) => chain.count(account, number.min(height)),
            CountAt::Pending => {
                let mut next = chain.count(account, height);
                while chain.mempool.iter().any(|t| t.from == account && t.nonce == next) {
                    next += 1;
                }
                next
            }
        })
    }

    async fn fees(&self) -> Result<Fees, Unreachable> {
        self.ask(|chain, _| Fees { base_fee: chain.base_fee, priority_fee: 10 })
    }

    async fn broadcast(&self, raw: &Bytes) -> Result<(), BroadcastError> {
        let faults = self.faults();
        let silent = || Unreachable("the simulated node is silent".to_owned());
        if faults.refuse && !String::from_utf8_lossy(raw).contains("\"data\":\"\"") {
            return Err(BroadcastError::Refused("exceeds block gas limit".to_owned()));
        }
        if self.thrown(faults.unreachable) {
            return Err(silent().into());
        }
        if self.thrown(faults.underpriced) {
            return Err(BroadcastError::Underpriced);
        }
        let transaction: Transaction = serde_json::from_slice(raw).unwrap();
        let answer = self.chain.with(|chain| chain.broadcast(transaction));
        if self.thrown(faults.unsaid) { Err(silent().into()) } else { answer }
    }

    async fn receipt(&self, transaction: B256) -> Result<Option<Receipt>, Unreachable> {
        self.ask(|chain, height| chain.receipt(transaction, height))
    }
}

/// What a killed process may have asked of the chain.
#[derive(Serialize, Deserialize)]
enum Question {
    Head,
    NextHead(BlockRef),
    BlockHash(u64),
    CountLatest(Address),
    CountPending(Address),
    CountAt(Address, u64),
    Fees,
    Broadcast(Bytes),
    Receipt(B256),
}

/// [`BroadcastError`] as it crosses the socket.
#[derive(Serialize, Deserialize)]
enum Refusal {
    AlreadyKnown,
    NonceTooLow,
    Underpriced,
    InsufficientFunds,
    Unreachable(String),
    Refused(String),
}

impl From<BroadcastError> for Refusal {
    fn from(error: BroadcastError) -> Self {
        match error {
            BroadcastError::AlreadyKnown => Self::AlreadyKnown,
            BroadcastError::NonceTooLow => Self::NonceTooLow,
            BroadcastError::Underpriced => Self::Underpriced,
            BroadcastError::InsufficientFunds => Self::InsufficientFunds,
            BroadcastError::Unreachable(Unreachable(why)) => Self::Unreachable(why),
            BroadcastError::Refused(why) => Self::Refused(why),
        }
    }
}

impl From<Refusal> for BroadcastError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::AlreadyKnown => Self::AlreadyKnown,
            Refusal::NonceTooLow => Self::NonceTooLow,
            Refusal::Underpriced => Self::Underpriced,
            Refusal::InsufficientFunds => Self::InsufficientFunds,
            Refusal::Unreachable(why) => Self::Unreachable(Unreachable(why)),
            Refusal::Refused(why) => Self::Refused(why),
        }
    }
}

/// Answers whoever connects, one question each. A question that was asked is acted on, whether or not whoever asked
/// it lives to hear the answer.
pub(crate) async fn serve(node: Node) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let node = node.clone();
            tokio::spawn(async move { answer(&node, stream).await });
        }
    });
    address
}

async fn answer(node: &Node, mut stream: TcpStream) {
    let mut question = Vec::new();
    if stream.read_to_end(&mut question).await.is_err() {
        return;
    }
    // Cut off in mid-question: its process was killed.
    let Ok(question) = serde_json::from_slice(&question) else { return };
    let answer = match question {
        Question::Head => said(node.head().await),
        Question::NextHead(known) => said(node.next_head(known).await),
        Question::BlockHash(number) => said(node.block_hash(number).await),
        Question::CountLatest(account) => said(node.transaction_count(account, CountAt::Latest).await),
        Question::CountPending(account) => said(node.transaction_count(account, CountAt::Pending).await),
        Question::CountAt(account, block) => said(node.transaction_count(account, CountAt::Block(block)).await),
        Question::Fees => said(node.fees().await),
        Question::Broadcast(raw) => said(node.broadcast(&raw).await),
        Question::Receipt(transaction) => said(node.receipt(transaction).await),
    };
    let _ = stream.write_all(&answer).await;
}

fn said<T: Serialize>(answer: Result<T, impl Into<BroadcastError>>) -> Vec<u8> {
    serde_json::to_vec(&answer.map_err(|error| Refusal::from(error.into()))).unwrap()
}

/// The chain of another process.
pub(crate) struct Remote {
    pub(crate) address: SocketAddr,
}

impl Remote {
    async fn ask<T: DeserializeOwned>(&self, question: Question) -> Result<T, BroadcastError> {
        let gone = |error: std::io::Error| Unreachable(error.to_string());
        let mut stream = TcpStream::connect(self.address).await.map_err(gone)?;
        stream.write_all(&serde_json::to_vec(&question).unwrap()).await.map_err(gone)?;
        stream.shutdown().await.map_err(gone)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map_err(gone)?;
        let answer: Result<T, Refusal> = serde_json::from_slice(&answer).expect("the judge has given up");
        answer.map_err(BroadcastError::from)
    }

    async fn look<T: DeserializeOwned>(&self, question: Question) -> Result<T, Unreachable> {
        self.ask(question).await.map_err(|error| Unreachable(error.to_string()))
    }
}

#[async_trait]
impl ChainPort for Remote {
    fn chain_id(&self) -> u64 {
        CHAIN_ID
    }

    async fn head(&self) -> Result<BlockRef, Unreachable> {
        self.look(Question::Head).await
    }

    async fn next_head(&self, known: BlockRef) -> Result<BlockRef, Unreachable> {
        self.look(Question::NextHead(known)).await
    }

    async fn block_hash(&self, number: u64) -> Result<Option<B256>, Unreachable> {
        self.look(Question::BlockHash(number)).await
    }

    async fn transaction_count(&self, account: Address, at: CountAt) -> Result<u64, Unreachable> {
        self.look(match at {
            CountAt::Latest => Question::CountLatest(account),
            CountAt::Pending => Question::CountPending(account),
            CountAt::Block(number) => Question::CountAt(account, number),
        })
        .await
    }

    async fn fees(&self) -> Result<Fees, Unreachable> {
        self.look(Question::Fees).await
    }

    async fn broadcast(&self, raw: &Bytes) -> Result<(), BroadcastError> {
        self.ask(Question::Broadcast(raw.clone())).await
    }

    async fn receipt(&self, transaction: B256) -> Result<Option<Receipt>, Unreachable> {
        self.look(Question::Receipt(transaction)).await
    }
}

/// A key of the simulated chain.
#[derive(Clone, Default)]
pub(crate) struct Key {
    pub(crate) address: Address,
    /// Data that it will not sign.
    pub(crate) refuses: Option<String>,
    /// How long it takes to sign.
    pub(crate) slow: Duration,
}

impl Key {
    pub(crate) fn new(n: u8) -> Key {
        Key { address: Address::repeat_byte(n), ..Key::default() }
    }
}

#[async_trait]
impl TransactionSigner for Key {
    fn address(&self) -> Address {
        self.address
    }

    async fn sign(&self, unsigned: &UnsignedTransaction) -> Result<SignedTransaction, SignerError> {
        assert_eq!((unsigned.chain_id, unsigned.value), (CHAIN_ID, U256::ZERO));
        tokio::time::sleep(self.slow).await;
        let data = String::from_utf8(unsigned.data.to_vec()).unwrap();
        if self.refuses.as_ref() == Some(&data) {
            return Err(SignerError::Refused("this key does not sign that".to_owned()));
        }
        let transaction = Transaction {
            from: self.address,
            nonce: unsigned.nonce,
            max_fee: unsigned.max_fee_per_gas,
            priority_fee: unsigned.max_priority_fee_per_gas,
            gas_limit: unsigned.gas_limit,
            to: unsigned.to,
            data,
        };
        Ok(SignedTransaction { hash: transaction.hash(), raw: transaction.raw() })
    }
}
