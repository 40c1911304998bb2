//! The task that reads the chain's logs: always whole blocks, always checked against the hashes of what was read before.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use alloy::{
    primitives::{Address, B256},
    rpc::types::{Filter, Log},
};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use super::{
    Cursor, Event, Logged, SeenBlock, Update,
    cursor::WINDOW,
    decode::{AGREEMENT, EACH, OURS, decode},
};
use crate::{Chain, ChainError, Head, NewHeads};

/// Addresses in one question.
const ADDRESSES_AT_ONCE: usize = 200;
/// Blocks that are asked for at once.
const BLOCKS_AT_ONCE: usize = 8;
/// After a failure, wait so long at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Which sessions a follower listens to. Pools and coalitions are everybody's in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sessions {
    /// Everybody's.
    #[default]
    All,
    /// This orchestrator's.
    Of(Address),
    /// Nobody's: what operators earn does not depend on who pays.
    Nobodys,
}

/// How to follow a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowOptions {
    /// Which sessions to listen to. Stay with it for all the life of a cursor.
    pub sessions: Sessions,
    /// Blocks on top of one before it is read; 0 reads the newest, and what a re-organisation takes back is taken back.
    pub confirmations: u64,
    /// Blocks in one question. Halved by itself where a node refuses so many.
    pub blocks_at_once: u64,
    /// Updates that may wait to be taken; then reading pauses.
    pub waiting: usize,
    /// An update without events is sent after so many blocks, so that the stored cursor does not fall behind.
    pub idle_blocks: u64,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self { sessions: Sessions::All, confirmations: 0, blocks_at_once: 1_000, waiting: 16, idle_blocks: 32 }
    }
}

/// Events as they come. Its task ends when this is dropped; it never gives up by itself: while the node is away it
/// waits, and goes on where it stood.
pub struct Following {
    updates: mpsc::Receiver<Update>,
    trouble: watch::Receiver<Option<ChainError>>,
    _stop: DropGuard,
}

impl Following {
    /// The next update. Dropping the future loses none.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// Why nothing can be read at present, if so.
    pub fn trouble(&self) -> Option<ChainError> {
        self.trouble.borrow().clone()
    }
}

impl Chain {
    /// Follows the events of our contracts from `cursor` on. Must be called inside a tokio runtime.
    pub fn follow(&self, cursor: Cursor, options: FollowOptions) -> Following {
        let (sender, updates) = mpsc::channel(options.waiting.max(1));
        let (said, trouble) = watch::channel(None);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let follower = Follower {
            chain: self.clone(),
            blocks_at_once: options.blocks_at_once.max(1),
            sent: cursor.next,
            cursor,
            options,
        };
        let news = self.new_heads();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = follower.run(news, sender, said) => {}
            }
        });
        Following { updates, trouble, _stop: stop.drop_guard() }
    }
}

struct Follower {
    chain: Chain,
    cursor: Cursor,
    options: FollowOptions,
    blocks_at_once: u64,
    /// Up to where the last update went.
    sent: u64,
}

/// What one look at the chain brought.
enum Look {
    /// Something to tell.
    News(Update),
    /// Something was read, and nothing is worth telling.
    Quiet,
    /// The chain changed while it was read.
    Again,
    /// Nothing new.
    UpToDate,
}

impl Follower {
    async fn run(
        mut self,
        mut news: NewHeads,
        updates: mpsc::Sender<Update>,
        trouble: watch::Sender<Option<ChainError>>,
    ) {
        let mut wait = RETRY.0;
        loop {
            let look = self.look().await;
            if let Err(error) = &look {
                if trouble.send_replace(Some(error.clone())).is_none() {
                    warn!(%error, "the chain's events cannot be read now");
                }
                let refused = matches!(error, ChainError::Refused { .. });
                // Too many blocks or too many results: nodes have no common word for it.
                self.blocks_at_once = if refused { (self.blocks_at_once / 2).max(1) } else { self.blocks_at_once };
                sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
                continue;
            }
            wait = RETRY.0;
            if trouble.send_replace(None).is_some() {
                debug!("the chain's events are read again");
            }
            match look {
                Ok(Look::News(update)) => {
                    if updates.send(update).await.is_err() {
                        return;
                    }
                }
                Ok(Look::UpToDate) => news.changed().await,
                Ok(Look::Again) => sleep(RETRY.0).await,
                Ok(Look::Quiet) | Err(_) => {}
            }
        }
    }

    /// Reads the next blocks, or steps back where the chain did.
    async fn look(&mut self) -> Result<Look, ChainError> {
        let head = self.chain.head().await?;
        if let Some(from) = self.fork(head).await? {
            warn!(from, seen = ?self.cursor.seen(), "the chain was re-organised");
            self.cursor.rewind(from);
            self.sent = from;
            return Ok(Look::News(Update {
                removed_from: Some(from),
                events: Vec::new(),
                cursor: self.cursor.clone(),
            }));
        }
        if let Some(seen) = self.cursor.seen().filter(|seen| seen.number > head.number) {
            return Err(ChainError::Behind { head: head.number, seen: seen.number });
        }
        let newest = head.number.checked_sub(self.options.confirmations);
        let Some(newest) = newest.filter(|newest| *newest >= self.cursor.next) else { return Ok(Look::UpToDate) };
        let last = newest.min(self.cursor.next.saturating_add(self.blocks_at_once - 1));
        let Some(events) = self.read(last, head.number).await? else { return Ok(Look::Again) };
        self.blocks_at_once = (self.blocks_at_once * 2).min(self.options.blocks_at_once.max(1));
        if events.is_empty() && self.cursor.next < self.sent + self.options.idle_blocks.max(1) {
            return Ok(Look::Quiet);
        }
        self.sent = self.cursor.next;
        Ok(Look::News(Update { removed_from: None, events, cursor: self.cursor.clone() }))
    }

    /// The first block to be read again, if the chain is no longer the one that was read.
    async fn fork(&self, head: Head) -> Result<Option<u64>, ChainError> {
        let mut last_read = true;
        for seen in self.cursor.recent.iter().rev() {
            // A node that lags does not have the block; that alone says nothing.
            if seen.number <= head.number {
                let block = self.chain.block(seen.number).await?;
                let same = block.is_some_and(|block| block.hash == seen.hash);
                if same {
                    return Ok(if last_read { None } else { Some(seen.number + 1) });
                }
                last_read = false;
            }
        }
        Ok(if last_read { None } else { Some(self.cursor.start) })
    }

    /// Reads the blocks up to `last`; `None` where they changed meanwhile.
    async fn read(&mut self, last: u64, newest: u64) -> Result<Option<Vec<Logged>>, ChainError> {
        let first = self.cursor.next;
        let Some(before) = self.chain.block(last).await? else { return Ok(None) };
        let logs = self.logs(first, last).await?;

        let in_window = newest.saturating_sub(WINDOW).max(first)..=last;
        let with_logs = logs.iter().filter_map(|log| log.block_number);
        let numbers: BTreeSet<u64> = in_window.chain(with_logs).chain([last]).collect();
        let blocks = self.blocks(numbers).await?;
        if blocks.get(&last) != Some(&before) || !self.follows(&blocks) {
            return Ok(None);
        }

        let mut cursor = self.cursor.clone();
        let mut events = Vec::with_capacity(logs.len());
        let known = self.after(&logs);
        for log in &logs {
            let (Some(number), Some(hash)) = (log.block_number, log.block_hash) else { return Ok(None) };
            let (Some(index), Some(transaction)) = (log.log_index, log.transaction_hash) else { return Ok(None) };
            let Some(block) = blocks.get(&number).filter(|block| block.hash == hash && !log.removed) else {
                return Ok(None);
            };
            let Some(event) = decode(self.chain.book(), &known, log).filter(|event| self.wants(event, &known)) else {
                continue;
            };
            cursor.learn(number, &event);
            events.push(Logged { block: number, timestamp: block.timestamp, index, transaction, event });
        }
        let seen: Vec<SeenBlock> =
            blocks.values().map(|block| SeenBlock { number: block.number, hash: block.hash }).collect();
        cursor.advance(last + 1, &seen);
        self.cursor = cursor;
        Ok(Some(events))
    }

    /// Whether the blocks continue what was read, and each other.
    fn follows(&self, blocks: &BTreeMap<u64, Head>) -> bool {
        let before = self.cursor.seen().map(|seen| (seen.number, seen.hash));
        let known = before.into_iter().chain(blocks.values().map(|block| (block.number, block.hash)));
        let parents: BTreeMap<u64, B256> = known.collect();
        blocks.values().all(|block| {
            let parent = block.number.checked_sub(1).and_then(|number| parents.get(&number));
            parent.is_none_or(|hash| *hash == block.parent)
        })
    }

    /// The cursor with all vaults and pools that these logs make known. An activation's own log comes after those of
    /// the units that it set.
    fn after(&self, logs: &[Log]) -> Cursor {
        let mut known = self.cursor.clone();
        for log in logs {
            if let Some(event) = decode(self.chain.book(), &known, log).filter(|event| self.wants(event, &known)) {
                known.learn(log.block_number.unwrap_or(self.cursor.next), &event);
            }
        }
        known
    }

    /// Whether somebody's session is one that is listened to.
    fn wants(&self, event: &Event, known: &Cursor) -> bool {
        match event {
            Event::VaultDeployed { terms, .. } => match self.options.sessions {
                Sessions::All => true,
                Sessions::Of(orchestrator) => orchestrator == terms.orchestrator,
                Sessions::Nobodys => false,
            },
            Event::SessionOpened { vault, .. } => known.vaults.contains_key(vault),
            _ => true,
        }
    }

    async fn blocks(&self, numbers: BTreeSet<u64>) -> Result<BTreeMap<u64, Head>, ChainError> {
        let blocks = numbers.into_iter().map(|number| self.chain.block(number));
        let blocks = futures::stream::iter(blocks).buffer_unordered(BLOCKS_AT_ONCE);
        let blocks = blocks.try_filter_map(|block| async move { Ok(block.map(|block| (block.number, block))) });
        blocks.try_collect().await
    }

    /// All logs of the range that can be ours, in the chain's order, each once.
    async fn logs(&self, first: u64, last: u64) -> Result<Vec<Log>, ChainError> {
        let contracts = &self.chain.book().contracts;
        let range = || Filter::new().from_block(first).to_block(last);
        let ours = vec![contracts.session_vault_factory, contracts.coalition_registry];
        let ours = self.chain.logs(&range().address(ours).event_signature(OURS.to_vec())).await?;

        // Vaults and pools that came to be in this very range have logs in it, too.
        let known = self.after(&ours);
        let pools: Vec<Address> = known.pools().collect();
        let each: Vec<Address> = known.vaults().chain(known.pools()).collect();
        let mut all = ours;
        for some in pools.chunks(ADDRESSES_AT_ONCE) {
            let pools: Vec<B256> = some.iter().map(|pool| pool.into_word()).collect();
            let filter = range().address(contracts.gda).event_signature(AGREEMENT.to_vec());
            all.extend(self.chain.logs(&filter.topic1(contracts.usdcx.into_word()).topic2(pools)).await?);
        }
        for some in each.chunks(ADDRESSES_AT_ONCE) {
            all.extend(self.chain.logs(&range().address(some.to_vec()).event_signature(EACH.to_vec())).await?);
        }
        all.sort_by_key(|log| (log.block_number, log.log_index));
        all.dedup_by_key(|log| (log.block_number, log.log_index));
        Ok(all)
    }
}
