//! A simulated chain that is a strict judge: a nonce can be used once, an effect can happen once, and whoever breaks
//! that ends the test.
//!
//! A transaction's data is a sentence: `do <effect>` has the effect, unless the chain has been told to revert it,
//! `revert <effect>` is always reverted, and nothing has none. Blocks come when the test mines them; the newest can be taken back, with or without what was in
//! them; the mempool can be lost. The port to it fails, lags and lies about fees as it is told, by a seeded die.

use std::{
    fs::{self, File},
    path::PathBuf,
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
use serde::{Deserialize, Serialize};

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
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Included {
    hash: B256,
    pub(crate) transaction: Transaction,
    pub(crate) succeeded: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Block {
    pub(crate) hash: B256,
    base_fee: u128,
    pub(crate) transactions: Vec<Included>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
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
        let mut transactions: Vec<Transaction> = Vec::new();
        loop {
            let next = self.mempool.iter().position(|t| {
                let mined = transactions.iter().filter(|done| done.from == t.from).count() as u64;
                t.nonce == self.count(t.from, self.height()) + mined
                    && t.max_fee >= self.base_fee
                    && t.priority_fee >= self.least_priority
            });
            match next {
                Some(place) if transactions.len() < self.capacity => transactions.push(self.mempool.remove(place)),
                _ => break,
            }
        }
        self.add(transactions);
        let height = self.height();
        let counts: Vec<bool> = self.mempool.iter().map(|t| t.nonce >= self.count(t.from, height)).collect();
        let mut counts = counts.into_iter();
        self.mempool.retain(|_| counts.next().unwrap_or_default());
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

/// Where a chain is kept.
pub(crate) trait Place: Send + Sync + 'static {
    fn with<R>(&self, act: impl FnOnce(&mut Chain) -> R) -> R;
}

/// In memory, for one process.
#[derive(Clone)]
pub(crate) struct InMemory(Arc<Mutex<Chain>>);

impl InMemory {
    pub(crate) fn new() -> InMemory {
        InMemory(Arc::new(Mutex::new(Chain::new())))
    }
}

impl Place for InMemory {
    fn with<R>(&self, act: impl FnOnce(&mut Chain) -> R) -> R {
        // A judge that panicked has poisoned the chain, and whoever comes next must notice.
        act(&mut self.0.lock().unwrap())
    }
}

/// In a file, for several processes of which some are killed.
#[derive(Clone)]
pub(crate) struct InFile {
    pub(crate) folder: PathBuf,
}

impl InFile {
    pub(crate) fn create(folder: PathBuf) -> InFile {
        let place = InFile { folder };
        fs::write(place.folder.join("chain.json"), serde_json::to_vec(&Chain::new()).unwrap()).unwrap();
        place
    }
}

impl Place for InFile {
    fn with<R>(&self, act: impl FnOnce(&mut Chain) -> R) -> R {
        // The system takes the lock back if its holder is killed; the chain is renamed into place as a whole.
        let lock = File::create(self.folder.join("chain.lock")).unwrap();
        lock.lock().unwrap();
        let file = self.folder.join("chain.json");
        let before = fs::read(&file).unwrap();
        let mut chain: Chain = serde_json::from_slice(&before).unwrap();
        let result = act(&mut chain);
        let after = serde_json::to_vec(&chain).unwrap();
        if after != before {
            let new = self.folder.join(format!("chain.new-{}", std::process::id()));
            fs::write(&new, after).unwrap();
            fs::rename(&new, &file).unwrap();
        }
        result
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
pub(crate) struct Node<P> {
    pub(crate) place: P,
    pub(crate) faults: Arc<Mutex<Faults>>,
    die: Arc<Mutex<StdRng>>,
}

impl<P: Place> Node<P> {
    pub(crate) fn new(place: P, seed: u64) -> Node<P> {
        Node { place, faults: Arc::default(), die: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))) }
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
        Ok(self.place.with(|chain| question(chain, chain.height().saturating_sub(behind))))
    }
}

#[async_trait]
impl<P: Place> ChainPort for Node<P> {
    fn chain_id(&self) -> u64 {
        CHAIN_ID
    }

    async fn head(&self) -> Result<BlockRef, Unreachable> {
        self.ask(|chain, height| chain.at(height))
    }

    async fn next_head(&self, known: BlockRef) -> Result<BlockRef, Unreachable> {
        for _ in 0..50 {
            let head = self.place.with(|chain| chain.head());
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
        let answer = self.place.with(|chain| chain.broadcast(transaction));
        if self.thrown(faults.unsaid) { Err(silent().into()) } else { answer }
    }

    async fn receipt(&self, transaction: B256) -> Result<Option<Receipt>, Unreachable> {
        self.ask(|chain, height| chain.receipt(transaction, height))
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
