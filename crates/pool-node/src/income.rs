//! What the operator earns: the pools' rates over time, from the chain's events, compared with the chain's own books.
//!
//! Nothing here is polled for its own sake: a point of income is booked when a rate changes, and what was earned between
//! two points is their exact integral. After each reading the chain is asked what it says that the operator has received;
//! both must agree to the wei.

use std::{collections::BTreeMap, time::Duration};

use alloy_primitives::Address;
use pool_chain::{
    Chain, ChainError, LedgerError, PoolLedger,
    events::{Cursor, FollowOptions, Following, Sessions, Update},
};
use pool_store::{IncomePoint, Store, StoreError};
use pool_types::{Usdc, Usdcx};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Where the books are kept among the settings.
const BOOKS: &str = "owner.income";
/// After books that do not follow from each other, how long until they are made anew.
const ANEW: Duration = Duration::from_secs(30);
/// A chain that does not answer is asked in the background; what is shown says so after this.
const PATIENCE: Duration = Duration::from_secs(5);
/// An update without events comes after so many blocks.
const IDLE_BLOCKS: u64 = 8;

/// What is known of an operator's income.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IncomeView {
    /// What had been earned when the rate changed last, and the rate since. Nothing for an operator who never earned.
    pub last: IncomePoint,
    /// Unix seconds of the newest block that was read; 0 before the first.
    pub read: u64,
    /// Unix seconds until which the chain's own books agreed with these; `None` before the first comparison.
    pub agreed: Option<u64>,
    /// What the chain says less what was booked, where they did not agree at the last comparison.
    pub differs: Option<Usdcx>,
    /// Why the chain cannot be read now, in plain words.
    pub trouble: Option<String>,
}

/// What an operator's account holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// USDC.
    pub usdc: Usdc,
    /// USDCx that can be moved, what streams in included.
    pub usdcx: Usdcx,
    /// USDCx that pools hold for it: to be claimed, by anybody, before it can be moved.
    pub claimable: Usdcx,
    /// What streams in, wei a second.
    pub rate: i128,
    /// Unix seconds of the block at which that holds.
    pub at: u64,
}

/// An operator's income, followed in the background until it is dropped.
#[derive(Clone, Debug)]
pub struct Income {
    chain: Chain,
    operator: Address,
    view: watch::Receiver<IncomeView>,
    pools: watch::Receiver<Vec<Address>>,
}

#[derive(Debug, Error)]
enum IncomeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the books cannot be written: {0}")]
    Write(#[from] serde_json::Error),
}

/// The books, as they are kept.
#[derive(Debug, Serialize, Deserialize)]
struct Books {
    /// Of which registry on which chain.
    chain: u64,
    registry: Address,
    operator: Address,
    cursor: Cursor,
    pools: BTreeMap<Address, PoolLedger>,
}

impl Income {
    /// Follows what `operator` earns, with books in `store`, until `shutdown`. What was known before is known at once.
    /// Blocks with fewer than `confirmations` on top are not read yet: each time the chain takes back what was read, all of it
    /// is read anew.
    pub async fn follow(
        chain: Chain,
        operator: Address,
        store: Store,
        confirmations: u64,
        shutdown: CancellationToken,
    ) -> Result<Self, StoreError> {
        let ((show, view), (list, pools)) = (watch::channel(IncomeView::default()), watch::channel(Vec::new()));
        let follower = Follower { chain: chain.clone(), operator, store, confirmations, show, list };
        follower.open().await?;
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = follower.run() => {}
            }
        });
        Ok(Self { chain, operator, view, pools })
    }

    /// Who earns.
    pub fn operator(&self) -> Address {
        self.operator
    }

    /// On which chain.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// What is known, and its changes.
    pub fn view(&self) -> watch::Receiver<IncomeView> {
        self.view.clone()
    }

    /// What the operator's account holds now, as the chain says.
    pub async fn account(&self) -> Result<Account, ChainError> {
        let at = self.chain.head().await?.timestamp;
        let (usdc, balance) =
            tokio::try_join!(self.chain.usdc(self.operator), self.chain.realtime_balance(self.operator, at))?;
        let mut account = Account { usdc, usdcx: balance.available, at, ..Account::default() };
        let pools = self.pools.borrow().clone();
        for pool in pools {
            let member = self.chain.member(pool, self.operator).await?;
            account.rate += member.rate;
            account.claimable = account.claimable.checked_add(member.claimable).unwrap_or(account.claimable);
        }
        Ok(account)
    }
}

struct Follower {
    chain: Chain,
    operator: Address,
    store: Store,
    confirmations: u64,
    show: watch::Sender<IncomeView>,
    /// Pools in which the operator ever had units.
    list: watch::Sender<Vec<Address>>,
}

impl Follower {
    async fn run(self) {
        loop {
            if let Err(error) = self.go_on().await {
                error!(%error, "what was earned cannot be booked; the books are made anew");
                self.show.send_modify(|view| view.trouble = Some(error.to_string()));
                if let Err(error) = self.forget().await {
                    error!(%error, "the books of what was earned cannot be put away");
                }
            }
            sleep(ANEW).await;
        }
    }

    fn new_books(&self) -> Books {
        let book = self.chain.book();
        Books {
            chain: book.chain_id,
            registry: book.contracts.coalition_registry,
            operator: self.operator,
            cursor: Cursor::at(book.start_block),
            pools: BTreeMap::new(),
        }
    }

    /// Opens the kept books, if they are this operator's on this chain, and shows what they say.
    async fn open(&self) -> Result<Books, StoreError> {
        let new = self.new_books();
        let kept = self.store.setting(BOOKS).await?;
        let kept = kept.and_then(|text| {
            let read = (!text.is_empty()).then(|| serde_json::from_str::<Books>(&text))?;
            read.inspect_err(|error| warn!(%error, "the books of what was earned cannot be read; they are made anew"))
                .ok()
        });
        let ours = |kept: &Books| (kept.chain, kept.registry, kept.operator) == (new.chain, new.registry, new.operator);
        let books = match kept.filter(ours) {
            Some(kept) => kept,
            None => {
                self.forget().await?;
                new
            }
        };
        let last = self.store.income_at(u64::MAX).await?.unwrap_or_default();
        self.change(|view| view.last = last);
        self.tell_pools(&books);
        Ok(books)
    }

    async fn forget(&self) -> Result<(), StoreError> {
        self.store.income_booked(true, &[], BOOKS, "").await
    }

    /// Follows until the books do not follow from each other.
    async fn go_on(&self) -> Result<(), IncomeError> {
        let mut books = self.open().await?;
        let mut following = self.begin(&books);
        loop {
            let update = match timeout(PATIENCE, following.next()).await {
                Ok(Some(update)) => update,
                Ok(None) => return Ok(()),
                Err(_) => {
                    let trouble = following.trouble().map(|error| error.to_string());
                    self.change(|view| view.trouble = trouble);
                    continue;
                }
            };
            if update.removed_from.is_some() {
                info!("the chain was re-organised; what was earned is booked anew");
                books = self.new_books();
                self.forget().await?;
                self.change(|view| *view = IncomeView::default());
                following = self.begin(&books);
                continue;
            }
            self.book(&mut books, update).await?;
            self.tell_pools(&books);
            self.compare(&books).await;
        }
    }

    fn begin(&self, books: &Books) -> Following {
        let options = FollowOptions {
            sessions: Sessions::Nobodys,
            confirmations: self.confirmations,
            idle_blocks: IDLE_BLOCKS,
            ..FollowOptions::default()
        };
        self.chain.follow(books.cursor.clone(), options)
    }

    async fn book(&self, books: &mut Books, update: Update) -> Result<(), IncomeError> {
        let mut points: Vec<IncomePoint> = Vec::new();
        let mut last = self.show.borrow().last;
        for logged in &update.events {
            let Some((pool, change)) = logged.event.pool_change() else { continue };
            let at = logged.timestamp;
            books.pools.entry(pool).or_default().apply(at, change)?;
            let point = books.point(at).ok_or(LedgerError::TooLarge)?;
            if point.rate == last.rate && last.until(at) == point.earned {
                continue;
            }
            // Of one block only its end counts.
            points.pop_if(|before| before.at == at);
            points.push(point);
            last = point;
        }
        books.cursor = update.cursor;
        self.store.income_booked(false, &points, BOOKS, &serde_json::to_string(&books)?).await?;
        self.change(|view| view.last = last);
        Ok(())
    }

    /// Asks the chain what it says at the last block that was read.
    async fn compare(&self, books: &Books) {
        let Some(seen) = books.cursor.seen() else { return };
        let compared = async {
            let Some(block) = self.chain.block(seen.number).await? else { return Ok::<_, ChainError>(None) };
            let mut theirs = Usdcx::ZERO;
            for pool in books.pools_of() {
                let received = self.chain.received(pool, self.operator, seen.number).await?;
                theirs = theirs.checked_add(received).unwrap_or(theirs);
            }
            Ok((block.hash == seen.hash).then_some((block.timestamp, theirs)))
        };
        match compared.await {
            Ok(Some((at, theirs))) => {
                let ours = books.point(at).map(|point| point.earned);
                let difference = ours.and_then(|ours| theirs.checked_sub(ours)).filter(|rest| *rest != Usdcx::ZERO);
                if let Some(difference) = difference {
                    warn!(%difference, "what was booked is not what the chain says");
                }
                self.change(|view| {
                    (view.read, view.differs, view.trouble) = (at, difference, None);
                    if difference.is_none() {
                        view.agreed = Some(at);
                    }
                });
            }
            // It changes while it is asked: the next update says how.
            Ok(None) => {}
            Err(error) => self.change(|view| view.trouble = Some(error.to_string())),
        }
    }

    fn tell_pools(&self, books: &Books) {
        let pools: Vec<Address> = books.pools_of().collect();
        self.list.send_if_modified(|told| {
            let differs = *told != pools;
            if differs {
                *told = pools;
            }
            differs
        });
    }

    fn change(&self, change: impl FnOnce(&mut IncomeView)) {
        self.show.send_if_modified(|view| {
            let before = view.clone();
            change(view);
            *view != before
        });
    }
}

impl Books {
    /// Pools in which the operator ever had units.
    fn pools_of(&self) -> impl Iterator<Item = Address> {
        let seated = |ledger: &PoolLedger| ledger.members().any(|member| member == self.operator);
        self.pools.iter().filter(move |(_, ledger)| seated(ledger)).map(|(pool, _)| *pool)
    }

    /// What all pools together have brought by `at`, and bring from then on.
    fn point(&self, at: u64) -> Option<IncomePoint> {
        let mut point = IncomePoint { at, ..IncomePoint::default() };
        for ledger in self.pools.values() {
            point.earned = point.earned.checked_add(ledger.earned(self.operator, at)?)?;
            point.rate = point.rate.checked_add(ledger.rate(self.operator))?;
        }
        Some(point)
    }
}
