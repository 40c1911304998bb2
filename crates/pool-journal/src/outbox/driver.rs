//! Drives the transactions of one signer on one chain.
//!
//! One task for each signer, so that a key in trouble does not hold up another (the sentinel's must work when the
//! orchestrator's is stuck). It owns the signer's nonces: nobody else gives them out. Its inbox is the database; it
//! looks when something is submitted, when a block arrives, and now and then. Stopping it at any point is safe,
//! because whatever it does to the chain was written down before.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use alloy_primitives::B256;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::{BlockRef, ChainPort, OutboxSettings, SignerError, TransactionSigner, Unreachable};
use crate::{Journal, JournalError, Timestamp};

/// See the module.
pub(crate) struct SignerDriver {
    pub(super) journal: Journal,
    pub(super) generation: i64,
    pub(super) port: Arc<dyn ChainPort>,
    pub(super) signer: Arc<dyn TransactionSigner>,
    pub(super) settings: OutboxSettings,
    pub(super) memory: Memory,
}

/// What the driver remembers between rounds. Losing it costs a few needless calls and nothing else.
#[derive(Default)]
pub(super) struct Memory {
    /// The newest block at the last look.
    pub(super) head: Option<BlockRef>,
    /// The highest block up to which every receipt was looked for, in a chain that has not changed since.
    pub(super) anchor: Option<BlockRef>,
    /// Intents with an outcome that must be looked for again: the chain changed, and no node has said yet what became
    /// of them.
    pub(super) doubted: HashSet<String>,
    /// Intents that were asked for without an answer.
    pub(super) unanswered: HashSet<String>,
    /// Since when nodes have been behind the block that held an intent.
    pub(super) behind: HashMap<String, Timestamp>,
    /// When each variant was last broadcast.
    pub(super) sent: HashMap<B256, Timestamp>,
    /// When each variant was first broadcast in this life, and since its block vanished if it had one.
    pub(super) waits_since: HashMap<B256, Timestamp>,
    /// Intents to look for and to broadcast without waiting: their block vanished, or their nonce is said to be used.
    pub(super) urgent: HashSet<String>,
    /// Intents whose newest variant a node found too cheap.
    pub(super) underpriced: HashSet<String>,
    /// How often nodes refused an intent for good.
    pub(super) refusals: HashMap<String, u32>,
    /// Intents whose nonce is used though none of their variants has a receipt: at how many heads that was seen.
    pub(super) missing: HashMap<String, (u32, BlockRef)>,
    /// Since when a nonce is known that nothing uses.
    pub(super) gaps: HashMap<u64, Timestamp>,
}

/// What to do after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing is under way.
    Idle,
    /// Look again when something happens.
    Watch,
    /// Look again at once.
    Again,
}

/// Why a round ended early. The next one begins from what is written down.
#[derive(Debug, Error)]
pub(super) enum RoundError {
    #[error(transparent)]
    Chain(#[from] Unreachable),
    #[error(transparent)]
    Signer(#[from] SignerError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl From<sqlx::Error> for RoundError {
    fn from(error: sqlx::Error) -> RoundError {
        RoundError::Journal(error.into())
    }
}

impl SignerDriver {
    /// The first pause after a failed round; it doubles up to the longest.
    const FIRST_PAUSE: Duration = Duration::from_millis(100);
    const LONGEST_PAUSE: Duration = Duration::from_secs(2);
    /// A port that returns from waiting with the same block is not asked again sooner than this.
    const SAME_HEAD_PAUSE: Duration = Duration::from_millis(50);

    pub(crate) fn new(
        journal: Journal,
        generation: i64,
        port: Arc<dyn ChainPort>,
        signer: Arc<dyn TransactionSigner>,
        settings: OutboxSettings,
    ) -> SignerDriver {
        SignerDriver { journal, generation, port, signer, settings, memory: Memory::default() }
    }

    /// Drives until it is stopped, or another runner takes over.
    pub(crate) async fn drive(mut self, stop: CancellationToken) -> Result<(), JournalError> {
        let mut changes = self.journal.intents();
        let mut pause = Self::FIRST_PAUSE;
        loop {
            changes.borrow_and_update();
            let round = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                round = self.round() => round,
            };
            let clock = self.journal.clock();
            let sleep_for = |time: Duration| clock.sleep_until(clock.now().after(time));
            if round.is_ok() {
                pause = Self::FIRST_PAUSE;
            }
            match round {
                Ok(Rest::Again) => {}
                Ok(Rest::Idle) => tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    _ = changes.changed() => {}
                    () = clock.sleep_until(self.journal.look_again()) => {}
                },
                Ok(Rest::Watch) => tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    _ = changes.changed() => {}
                    () = self.another_head() => {}
                    () = sleep_for(self.settings.look_after) => {}
                },
                Err(RoundError::Journal(JournalError::TakenOver)) => return Err(JournalError::TakenOver),
                Err(error) => {
                    tracing::warn!(signer = %self.signer.address(), chain = self.port.chain_id(), "outbox: {error}");
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = sleep_for(pause) => {}
                    }
                    pause = (pause * 2).min(Self::LONGEST_PAUSE);
                }
            }
        }
    }

    /// Ends when the newest block is another than at the last look. Never ends if the node cannot tell.
    async fn another_head(&self) {
        let Some(known) = self.memory.head else { return };
        loop {
            match self.port.next_head(known).await {
                Ok(head) if head != known => return,
                Ok(_) => tokio::time::sleep(Self::SAME_HEAD_PAUSE).await,
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Asks the port, but not for ever.
    pub(super) async fn ask<T, E: From<Unreachable>>(
        &self,
        question: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        match tokio::time::timeout(self.settings.call_timeout, question).await {
            Ok(answer) => answer,
            Err(_) => Err(Unreachable(format!("no answer within {:?}", self.settings.call_timeout)).into()),
        }
    }
}
