//! How a node leaves in the middle of its shift, and what can be seen of it meanwhile.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use alloy_signer::SignerSync;
use pool_coalition::stand_down::{Manner, SignedStandDown, StandDown};
use pool_types::{Epoch, Failure, LayerRange};
use pool_wire::control::ToOrchestrator;
use tokio::sync::watch;
use tracing::{error, info};

use super::{Node, now};

/// Longer than the orchestrator lets a coalition drain: the node leaves without it.
const DRAIN: Duration = Duration::from_secs(330);

/// How a shift ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Told to shut down, or the node's own end.
    ShutDown,
    /// The machine was given back at once. The shard's process was gone this long after that was asked for; `None` when
    /// there was none.
    Yielded(Option<Duration>),
    /// After the last request.
    Drained,
}

/// What a node does at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// It has no layers.
    #[default]
    Idle,
    /// Its layers are on their way.
    Fetching {
        /// Which layers.
        layers: LayerRange,
        /// Bytes that are here.
        done: u64,
        /// Bytes in all.
        size: u64,
        /// Why nothing comes, where that is so, and what helps.
        waits: Option<String>,
    },
    /// It loads its layers, or waits for the other members.
    Preparing {
        /// Which layers.
        layers: LayerRange,
        /// Members of the coalition, itself included.
        members: usize,
    },
    /// It serves.
    Serving {
        /// Which layers.
        layers: LayerRange,
        /// Members of the coalition, itself included.
        members: usize,
        /// Requests that hold cache, as the shard last said.
        requests: u32,
    },
}

/// What can be seen of a running node, and how much it works: share one with [`serve`](super::serve).
#[derive(Clone, Debug)]
pub struct Shift {
    shown: watch::Sender<(Activity, Option<u32>)>,
    duty: watch::Sender<u8>,
    tokens: Arc<AtomicU64>,
    trouble: watch::Sender<Option<Failure>>,
}

impl Default for Shift {
    fn default() -> Self {
        Self {
            shown: watch::channel((Activity::Idle, None)).0,
            duty: watch::channel(100).0,
            tokens: Arc::default(),
            trouble: watch::channel(None).0,
        }
    }
}

impl Shift {
    /// What the node does now.
    pub fn activity(&self) -> Activity {
        self.shown.borrow().0.clone()
    }

    /// The process id of its shard, while there is one.
    pub fn process(&self) -> Option<u32> {
        self.shown.borrow().1
    }

    /// Changes of either.
    pub fn changes(&self) -> watch::Receiver<(Activity, Option<u32>)> {
        self.shown.subscribe()
    }

    /// Tokens that went through the node's layers so far.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Why the layers that it was given last could not be loaded; nothing once others could.
    pub fn trouble(&self) -> Option<Failure> {
        self.trouble.borrow().clone()
    }

    pub(super) fn set_trouble(&self, trouble: Option<Failure>) {
        self.trouble.send_if_modified(|told| std::mem::replace(told, trouble.clone()) != trouble);
    }

    pub(super) fn worked(&self, tokens: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Makes the shard compute for this part of the time only, in percent, from now on.
    pub fn set_duty(&self, percent: u8) {
        self.duty.send_if_modified(|duty| std::mem::replace(duty, percent) != percent);
    }

    pub(super) fn duty(&self) -> watch::Receiver<u8> {
        self.duty.subscribe()
    }
}

/// Waits until the node is told to leave; for ever when nobody tells it.
pub(super) async fn asked(leave: &mut watch::Receiver<Option<Manner>>) -> Manner {
    while leave.changed().await.is_ok() {
        if let Some(manner) = *leave.borrow_and_update() {
            return manner;
        }
    }
    pending().await
}

impl Node {
    /// Ends the shard's process at once. What is returned waits until it is gone, and says how long that took.
    pub(super) fn let_go(&mut self) -> impl Future<Output = Option<Duration>> + use<> {
        let began = Instant::now();
        let shard = self.shard.take();
        if let Some(shard) = &shard {
            shard.process.kill();
        }
        async move {
            shard?.process.end().await;
            let gone = began.elapsed();
            info!(milliseconds = gone.as_millis() as u64, "the machine is given back");
            Some(gone)
        }
    }

    /// The signed word that the node leaves.
    pub(super) fn stand_down(&self, manner: Manner) -> Option<ToOrchestrator> {
        let roster = &self.config.roster;
        let stand_down = StandDown {
            operator: self.config.wallet.address(),
            coalition: roster.coalition_id(),
            chain: roster.chain,
            epoch: self.current.as_ref().map_or(Epoch(0), |assignment| assignment.epoch),
            manner,
            at: now().as_secs(),
        };
        let signed = self.config.wallet.sign_hash_sync(&stand_down.digest());
        let signature = match signed {
            Ok(signature) => signature.as_bytes().into(),
            Err(error) => {
                error!(%error, "the wallet does not sign the stand-down; the orchestrator will notice by itself");
                return None;
            }
        };
        let statement = serde_json::to_string(&SignedStandDown { stand_down, signature }).ok()?;
        Some(ToOrchestrator::StandDown { statement })
    }

    /// Begins to leave after the last request.
    pub(super) fn drain(&mut self) {
        if self.draining.is_some() {
            return;
        }
        info!("the node leaves after the last request");
        self.draining = Some(Instant::now() + DRAIN);
        self.outbox.extend(self.stand_down(Manner::Drain));
    }

    /// Whether it is leaving and the orchestrator has ended what it served in.
    pub(super) fn has_drained(&self) -> bool {
        self.draining.is_some() && self.current.is_none()
    }

    /// Shows what it does now.
    pub(super) fn show(&self) {
        let activity = self.current.as_deref().and_then(|assignment| {
            let (layers, members) = (self.layers(assignment)?, assignment.members.len());
            let serving = self.shard.as_ref().filter(|shard| shard.linked);
            // What is on the disk is not downloaded: it is looked through, which belongs to loading.
            if let Some(way) = self.fetching.as_ref().filter(|way| way.done < way.size) {
                let (done, size, waits) = (way.done, way.size, way.waits.clone());
                return Some(Activity::Fetching { layers, done, size, waits });
            }
            Some(match serving {
                Some(shard) => Activity::Serving { layers, members, requests: shard.requests },
                None => Activity::Preparing { layers, members },
            })
        });
        let shown = (activity.unwrap_or_default(), self.shard.as_ref().and_then(|shard| shard.process.id()));
        self.shift.shown.send_if_modified(|before| {
            let differs = *before != shown;
            if differs {
                *before = shown;
            }
            differs
        });
    }
}
