//! One running shift: the node's serving task, and how it is told to leave.

use std::{
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use pool_coalition::stand_down::Manner;
use pool_policy::{GpuDecision, GpuId, Problem};
use pool_sense::Presence;
use pool_store::YieldRecord;
use pool_types::{ByteSize, Failure, ReasonCode};
use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::clock::{Clock, unix_milliseconds};
use crate::{
    config::{NodeConfig, NodeError},
    node::{Activity, Ended, Shift, serve},
};

/// A node that serves, or is about to.
pub(super) struct Running {
    /// The cards that it runs on; none for the processor.
    pub(super) gpus: Vec<GpuId>,
    /// Since when (on the steady clock) it could have more cards.
    pub(super) more_since: Option<Duration>,
    pub(super) shift: Shift,
    changes: watch::Receiver<(Activity, Option<u32>)>,
    leave: watch::Sender<Option<Manner>>,
    asked: Option<Asked>,
    /// Whether it has served: then whatever was wrong before is over.
    pub(super) served: bool,
    task: JoinHandle<(Result<Ended, NodeError>, Option<Instant>)>,
}

/// The node was told to give the machine back.
struct Asked {
    /// When whatever asked for it happened.
    event: Instant,
    /// From then until it was told.
    noticed: Duration,
    reason: String,
}

/// How a shift ended.
pub(super) enum Finished {
    /// A shard ran, and the machine is the owner's again.
    GaveBack(YieldRecord),
    /// It left in order, or had nothing to give back.
    Left,
    /// It cannot serve until the owner does something, or for a while.
    Problem(Problem),
}

impl Running {
    pub(super) fn start(config: NodeConfig, gpus: Vec<GpuId>, presence: Arc<dyn Presence>) -> Self {
        let config = NodeConfig { gpus: Some(gpus.iter().map(|gpu| gpu.0.clone()).collect()), ..config };
        let ((leave, told), shift) = (watch::channel(None), Shift::default());
        // Nobody shuts a shift down: it leaves, and says so.
        let serving = serve(config, CancellationToken::new(), told, shift.clone());
        let task = tokio::spawn(with_memory(serving, shift.clone(), presence));
        let changes = shift.changes();
        Self { gpus, more_since: None, shift, changes, leave, asked: None, served: false, task }
    }

    /// Tells the node to leave, once; after a drain it may still be told to give the machine back.
    pub(super) fn leave(&mut self, manner: Manner, event: Instant, reason: String) {
        let told = *self.leave.borrow();
        if told == Some(manner) || told == Some(Manner::Yield) {
            return;
        }
        if manner == Manner::Yield {
            self.asked = Some(Asked { event, noticed: event.elapsed(), reason });
        }
        self.leave.send_replace(Some(manner));
    }
}

/// A card that becomes free joins those of a shift when nothing has been asked of it for a moment, and it was free for so
/// long,
const JOINS: Duration = Duration::from_secs(600);
/// or for so long, whatever is asked.
const JOINS_BUSY: Duration = Duration::from_secs(3600);

impl Running {
    /// Leaves when one of its cards is needed for something else: the next shift goes on with the others. Where there
    /// could be more cards, the next shift takes them; for that it leaves in order, when it disturbs nobody.
    pub(super) fn follow_cards(&mut self, cards: &[GpuDecision], now: Duration) {
        let may_use = |id: &GpuId| cards.iter().any(|card| card.may_use && card.id == *id);
        if let Some(lost) = self.gpus.iter().find(|id| !may_use(id)) {
            let reason = match cards.iter().find(|card| card.id == *lost) {
                Some(GpuDecision { name, because: Some(because), .. }) => {
                    format!("The {name} is not shared any more: {because}")
                }
                Some(GpuDecision { name, because: None, .. }) => format!("The {name} is not shared any more"),
                None => "A GPU is gone".to_owned(),
            };
            self.leave(Manner::Yield, Instant::now(), reason);
        }
        if !cards.iter().any(|card| card.may_use && !self.gpus.contains(&card.id)) {
            self.more_since = None;
            return;
        }
        let free = now.saturating_sub(*self.more_since.get_or_insert(now));
        let joins = match self.shift.activity() {
            Activity::Idle => Duration::ZERO,
            Activity::Serving { requests: 0, .. } => JOINS,
            Activity::Serving { .. } | Activity::Preparing { .. } | Activity::Fetching { .. } => JOINS_BUSY,
        };
        if free >= joins {
            self.leave(Manner::Drain, Instant::now(), String::new());
        }
    }
}

/// How often a running shard's GPU memory is looked at: to know, when it ends, whether that can be seen at all.
const LOOK: Duration = Duration::from_secs(2);
/// How often, once it has ended, until it is free.
const WAIT: Duration = Duration::from_millis(10);
/// Memory that is not free after so long is not waited for any more; that is how long it took, then.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Serves, and says when the GPU memory of a shard that was ended at once was free again; `None` where it held none, or
/// nobody can tell.
async fn with_memory(
    serving: impl Future<Output = Result<Ended, NodeError>>,
    shift: Shift,
    presence: Arc<dyn Presence>,
) -> (Result<Ended, NodeError>, Option<Instant>) {
    let (note, holder) = watch::channel(None);
    let looked = presence.clone();
    // On its own, so that a slow driver delays nothing.
    let watcher = tokio::spawn(async move {
        loop {
            sleep(LOOK).await;
            if let Some(process) = shift.process()
                && held_by(&looked, process).await > ByteSize(0)
            {
                note.send_replace(Some(process));
            }
        }
    });
    let ended = serving.await;
    watcher.abort();
    let process = *holder.borrow();
    let (Some(process), Ok(Ended::Yielded(Some(_)))) = (process, &ended) else { return (ended, None) };
    let gone = Instant::now();
    while held_by(&presence, process).await > ByteSize(0) {
        if gone.elapsed() >= LONGEST_WAIT {
            warn!(process, "the driver still shows memory of a process that is gone");
            break;
        }
        sleep(WAIT).await;
    }
    (ended, Some(Instant::now()))
}

/// The GPU memory that a process holds, as far as anybody can tell.
async fn held_by(presence: &Arc<dyn Presence>, process: u32) -> ByteSize {
    let presence = presence.clone();
    // The driver may take its time, and the first look loads it.
    let held = tokio::task::spawn_blocking(move || presence.gpu_memory_of(process)).await;
    held.ok().and_then(|held| held.known().copied()).unwrap_or(ByteSize(0))
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nobody would tell it to leave any more. Its shard ends with it.
        self.task.abort();
    }
}

/// What a running shift tells.
pub(super) enum News {
    /// It does something else now.
    Changed,
    /// It has ended.
    Finished(Finished),
}

/// Waits for news of the running shift; for ever when none runs.
pub(super) async fn news(running: &mut Option<Running>, clock: &Clock) -> News {
    let Some(shift) = running else { return pending().await };
    let mut changes = shift.changes.clone();
    tokio::select! {
        Ok(()) = changes.changed() => {}
        finished = finished(running, clock) => return News::Finished(finished),
    }
    if let Some(running) = running {
        running.changes.mark_unchanged();
    }
    News::Changed
}

/// Waits until the running shift has ended; for ever when none runs.
pub(super) async fn finished(running: &mut Option<Running>, clock: &Clock) -> Finished {
    let Some(running) = running else { return pending().await };
    let ended = (&mut running.task).await;
    let now = unix_milliseconds(clock.now());
    match ended {
        Ok((Ok(Ended::Yielded(Some(gone))), free)) => match running.asked.take() {
            Some(Asked { event, noticed, reason }) => Finished::GaveBack(YieldRecord {
                at: now.saturating_sub(event.elapsed().as_millis() as u64),
                reason,
                noticed: noticed.as_millis() as u64,
                process_gone: (noticed + gone).as_millis() as u64,
                memory_back: free.map(|free| free.saturating_duration_since(event).as_millis() as u64),
            }),
            None => Finished::Left,
        },
        Ok((Ok(Ended::Yielded(None) | Ended::Drained), _)) => Finished::Left,
        Ok((Ok(Ended::ShutDown), _)) => Finished::Problem(Problem {
            what: "the connection to the orchestrator has ended for good".to_owned(),
            next_action: "It is tried again by itself; if this returns, send the log".to_owned(),
        }),
        Ok((Err(error), _)) => Finished::Problem(problem(&error)),
        Err(_) => Finished::Problem(Problem {
            what: "the part of the node that serves has crashed".to_owned(),
            next_action: "It is started again by itself; if this returns, send the log".to_owned(),
        }),
    }
}

/// What the owner is told when the layers cannot be loaded.
pub(super) fn cannot_load(failure: &Failure) -> Problem {
    let next_action = match failure.code {
        ReasonCode::Model => "Check the model's folder, or fetch the model again",
        _ => "It is tried again by itself; if this returns, check the machine's memory and send the diagnostics",
    };
    let what = format!("the layers cannot be served here: {}", failure.message);
    Problem { what: what.trim_end_matches('.').to_owned(), next_action: next_action.to_owned() }
}

fn problem(error: &NodeError) -> Problem {
    let next_action = match error {
        NodeError::Address(_) => "Correct the orchestrator's address",
        NodeError::Certificates(_) => "Check the certificates of this computer",
        NodeError::NotInRoster(_) => "Ask the pool's owner for a roster that names this node",
        NodeError::Model(_) | NodeError::Manifest(_) => "Check the model's folder, or fetch the model again",
        NodeError::NoShardProgram | NodeError::ShardProgram { .. } => "Install ComputePool again",
        NodeError::Refused(_) => "Ask the pool's owner; it is tried again by itself",
    };
    let what = error.to_string();
    Problem { what: what.trim_end_matches('.').to_owned(), next_action: next_action.to_owned() }
}
