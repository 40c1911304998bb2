//! One running shift: the node's serving task, and how it is told to leave.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use pool_coalition::stand_down::Manner;
use pool_policy::Problem;
use pool_store::YieldRecord;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::clock::{Clock, unix_milliseconds};
use crate::{
    config::{NodeConfig, NodeError},
    node::{Activity, Ended, Shift, serve},
};

/// A node that serves, or is about to.
pub(super) struct Running {
    pub(super) shift: Shift,
    changes: watch::Receiver<(Activity, Option<u32>)>,
    leave: watch::Sender<Option<Manner>>,
    asked: Option<Asked>,
    task: JoinHandle<Result<Ended, NodeError>>,
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
    pub(super) fn start(config: NodeConfig) -> Self {
        let ((leave, told), shift) = (watch::channel(None), Shift::default());
        // Nobody shuts a shift down: it leaves, and says so.
        let task = tokio::spawn(serve(config, CancellationToken::new(), told, shift.clone()));
        let changes = shift.changes();
        Self { shift, changes, leave, asked: None, task }
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
        Ok(Ok(Ended::Yielded(Some(gone)))) => match running.asked.take() {
            Some(Asked { event, noticed, reason }) => Finished::GaveBack(YieldRecord {
                at: now.saturating_sub(event.elapsed().as_millis() as u64),
                reason,
                noticed: noticed.as_millis() as u64,
                process_gone: (noticed + gone).as_millis() as u64,
                // A process that is gone holds nothing; what a driver still shows is not looked at yet.
                memory_back: None,
            }),
            None => Finished::Left,
        },
        Ok(Ok(Ended::Yielded(None) | Ended::Drained)) => Finished::Left,
        Ok(Ok(Ended::ShutDown)) => Finished::Problem(Problem {
            what: "the connection to the orchestrator has ended for good".to_owned(),
            next_action: "It is tried again by itself; if this returns, send the log".to_owned(),
        }),
        Ok(Err(error)) => Finished::Problem(problem(&error)),
        Err(_) => Finished::Problem(Problem {
            what: "the part of the node that serves has crashed".to_owned(),
            next_action: "It is started again by itself; if this returns, send the log".to_owned(),
        }),
    }
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
