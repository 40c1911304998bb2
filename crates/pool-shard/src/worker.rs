//! The engine thread: owns the engine, the scheduler and the links of the current epoch.
//!
//! Its inbox is bounded; link readers wait when it is full. Nothing it sends waits: each link has a bounded
//! queue, and a peer that lets it fill is lost. It ends with [`Event::Stop`] or when its inbox closes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use alloy_primitives::Address;
use pool_engine::{AdvanceError, Engine, OpenError, SamplerSetup, SequenceId, Step, StepInput, StepOutput};
use pool_link::Lane;
use pool_link::mesh::{Mesh, MeshEvent};
use pool_types::{Epoch, Failure, ReasonCode, RequestId};
use pool_wire::control::{Assignment, FromShard, ShardStats, Signal};
use pool_wire::frame::{Frame, Kind};
use tokio::{sync::mpsc, time::timeout_at};

use crate::process;
use crate::schedule::{Effect, Outcome, Peer, Place, Scheduler, Work, WorkInput};

/// Something for the engine thread to do.
pub enum Event {
    /// A new epoch begins: its place and its links. Replaces the one before.
    Join {
        /// The assignment.
        assignment: Assignment,
        /// Our address in it.
        me: Address,
        /// The links, already being made.
        mesh: Mesh,
    },
    /// From the links.
    Mesh(Epoch, MeshEvent),
    /// A description from a peer, by way of the node.
    Signal(Signal),
    /// End this epoch.
    Leave(Epoch),
    /// A quarter of a second has passed.
    Tick,
    /// Say what has been done so far.
    Stats,
    /// Compute for this part of the time only, in percent.
    Duty(u8),
    /// Finish.
    Stop,
}

impl From<(Epoch, MeshEvent)> for Event {
    fn from((epoch, event): (Epoch, MeshEvent)) -> Self {
        Event::Mesh(epoch, event)
    }
}

/// How long to rest after a step, at most; a node that wants the machine back ends the process anyway.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// How long to rest after working for so long, to work `percent` of the time.
fn rest_after(worked: Duration, percent: u8) -> Duration {
    let percent = u32::from(percent.clamp(1, 100));
    (worked * (100 - percent) / percent).min(LONGEST_REST)
}

/// The epoch being served.
struct Term {
    epoch: Epoch,
    peers: HashMap<Address, Peer>,
    addresses: HashMap<Peer, Address>,
    scheduler: Scheduler,
    mesh: Mesh,
    lost: bool,
    stats: ShardStats,
    cpu_before: f64,
}

/// Runs until told to stop. `node` takes what the node must hear; `runtime` carries the links.
pub fn run(
    mut engine: Engine,
    mut inbox: mpsc::Receiver<Event>,
    node: mpsc::Sender<FromShard>,
    runtime: tokio::runtime::Handle,
) {
    let begun = Instant::now();
    let mut term: Option<Term> = None;
    let mut duty = 100;
    let mut rests_until: Option<Instant> = None;
    loop {
        let event = match &mut term {
            Some(term) if !term.lost => match inbox.try_recv() {
                Ok(event) => Some(event),
                Err(mpsc::error::TryRecvError::Disconnected) => break,
                Err(mpsc::error::TryRecvError::Empty) => match rests_until {
                    Some(until) => match runtime.block_on(async { timeout_at(until.into(), inbox.recv()).await }) {
                        Ok(event) => event,
                        Err(_) => {
                            rests_until = None;
                            continue;
                        }
                    },
                    None => {
                        let batch = term.scheduler.next_batch();
                        if batch.is_empty() {
                            inbox.blocking_recv()
                        } else {
                            let began = Instant::now();
                            term.work(&mut engine, batch, &node);
                            let rest = rest_after(began.elapsed(), duty);
                            rests_until = (!rest.is_zero()).then(|| Instant::now() + rest);
                            continue;
                        }
                    }
                },
            },
            _ => inbox.blocking_recv(),
        };
        match event {
            None | Some(Event::Stop) => break,
            Some(Event::Duty(percent)) => {
                (duty, rests_until) = (percent, None);
            }
            Some(Event::Join { assignment, me, mesh }) => {
                end(term.take(), &mut engine, &runtime);
                term = Term::begin(&engine, assignment, me, mesh);
            }
            Some(Event::Leave(epoch)) if term.as_ref().is_some_and(|t| t.epoch == epoch) => {
                // What was done since the last report counts as well.
                term.iter_mut().for_each(|term| term.report(&engine, &node));
                end(term.take(), &mut engine, &runtime);
            }
            Some(Event::Leave(_)) => {}
            Some(event) => {
                let Some(term) = &mut term else { continue };
                match event {
                    Event::Mesh(epoch, event) if epoch == term.epoch => term.on_mesh(event, &mut engine, &node),
                    Event::Signal(signal) if signal.epoch == term.epoch => term.mesh.signal(&signal),
                    Event::Tick => {
                        term.scheduler.tick(begun.elapsed());
                        term.carry_out(&mut engine, &node);
                    }
                    Event::Stats => term.report(&engine, &node),
                    _ => {}
                }
            }
        }
    }
    end(term.take(), &mut engine, &runtime);
}

/// Frees every sequence of an epoch and closes its links in the background.
fn end(term: Option<Term>, engine: &mut Engine, runtime: &tokio::runtime::Handle) {
    let Some(mut term) = term else { return };
    for request in term.scheduler.abandon() {
        engine.release(SequenceId(request.0));
    }
    runtime.spawn(term.mesh.close());
}

/// The lane a frame travels on. What a shard sends the next one stays in order with its hidden states.
fn lane(frame: &Frame, to: Peer) -> Lane {
    match frame.kind {
        Kind::Hidden | Kind::Open | Kind::Release if to == Peer::Next => Lane::Act,
        _ => Lane::Ctl,
    }
}

impl Term {
    fn begin(engine: &Engine, assignment: Assignment, me: Address, mesh: Mesh) -> Option<Term> {
        let index = assignment.index_of(me)?;
        let last = assignment.members.len() - 1;
        let mut addresses = HashMap::new();
        if index > 0 {
            addresses.insert(Peer::Previous, assignment.members[index - 1].address);
        }
        if index < last {
            addresses.insert(Peer::Next, assignment.members[index + 1].address);
        }
        if last >= 2 && index == last {
            addresses.insert(Peer::Entry, assignment.members[0].address);
        }
        if last >= 2 && index == 0 {
            addresses.insert(Peer::Exit, assignment.members[last].address);
        }
        if index == 0 || index == last {
            addresses.insert(Peer::Gateway, assignment.gateway);
        }
        let place = Place {
            epoch: assignment.epoch,
            index,
            shards: assignment.members.len(),
            hidden: engine.config().hidden_size as u32,
            wire: assignment.wire,
            prefill_chunk: assignment.prefill_chunk.max(1),
            vocabulary: engine.config().vocab_size as u32,
        };
        Some(Term {
            epoch: assignment.epoch,
            peers: addresses.iter().map(|(peer, address)| (*address, *peer)).collect(),
            addresses,
            scheduler: Scheduler::new(place),
            mesh,
            lost: false,
            stats: ShardStats::default(),
            cpu_before: process::cpu_seconds(),
        })
    }

    fn on_mesh(&mut self, event: MeshEvent, engine: &mut Engine, node: &mpsc::Sender<FromShard>) {
        match event {
            MeshEvent::Signal(signal) => tell(node, FromShard::Signal(signal)),
            MeshEvent::Joined => tell(node, FromShard::Joined { epoch: self.epoch }),
            MeshEvent::Lost { failure, .. } => self.lose(failure, engine, node),
            MeshEvent::Frames { from, frames } => {
                let Some(peer) = self.peers.get(&from).copied() else { return };
                for frame in frames {
                    self.scheduler.on_frame(peer, frame);
                }
                self.carry_out(engine, node);
            }
        }
    }

    /// The epoch cannot go on: free everything now, and wait for the orchestrator's next word.
    fn lose(&mut self, failure: Failure, engine: &mut Engine, node: &mpsc::Sender<FromShard>) {
        if std::mem::replace(&mut self.lost, true) {
            return;
        }
        for request in self.scheduler.abandon() {
            engine.release(SequenceId(request.0));
        }
        tell(node, FromShard::Failed { epoch: self.epoch, failure });
    }

    /// Does what the scheduler decided; a cache that cannot be had fails its request, which decides more.
    fn carry_out(&mut self, engine: &mut Engine, node: &mpsc::Sender<FromShard>) {
        loop {
            let effects = self.scheduler.take_effects();
            if effects.is_empty() {
                return;
            }
            let mut parcels: Vec<((Peer, Lane), Vec<Frame>)> = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Send(peer, frames) => {
                        for frame in frames {
                            let key = (peer, lane(&frame, peer));
                            match parcels.iter_mut().find(|(k, _)| *k == key) {
                                Some((_, parcel)) => parcel.push(frame),
                                None => parcels.push((key, vec![frame])),
                            }
                        }
                    }
                    Effect::Open { request, capacity, sampler } => {
                        let sampler = sampler.map(|(sampling, prompt)| SamplerSetup { sampling, prompt });
                        if let Err(error) = engine.open(SequenceId(request.0), capacity as usize, sampler) {
                            self.scheduler.fail(request, open_failure(&error));
                        }
                    }
                    Effect::Close(request) => {
                        engine.release(SequenceId(request.0));
                    }
                }
            }
            for ((peer, lane), frames) in parcels {
                let Some(address) = self.addresses.get(&peer) else { continue };
                if let Err(error) = self.mesh.send(*address, lane, &frames) {
                    let failure = Failure::new(ReasonCode::PeerLost, error.to_string());
                    return self.lose(failure, engine, node);
                }
            }
        }
    }

    fn work(&mut self, engine: &mut Engine, mut batch: Vec<Work>, node: &mpsc::Sender<FromShard>) {
        let started = Instant::now();
        while !batch.is_empty() {
            match advance(engine, &batch) {
                Ok(outcomes) => {
                    self.stats.rows += batch.iter().map(|work| u64::from(work.rows())).sum::<u64>();
                    self.stats.batches += 1;
                    self.scheduler.complete(std::mem::take(&mut batch), outcomes);
                }
                // One sequence spoils nothing for the others: it fails, they go on.
                Err((Some(request), failure)) => {
                    self.scheduler.fail(request, failure);
                    batch.retain(|work| work.request != request);
                }
                Err((None, failure)) => {
                    for work in batch.drain(..) {
                        self.scheduler.fail(work.request, failure.clone());
                    }
                }
            }
        }
        self.stats.busy_seconds += started.elapsed().as_secs_f64();
        self.carry_out(engine, node);
    }

    fn report(&mut self, engine: &Engine, node: &mpsc::Sender<FromShard>) {
        let counters = self.scheduler.counters();
        self.stats.sequences = engine.sequences() as u32;
        self.stats.kv_reserved = (engine.options().kv_tokens - engine.free_tokens()) as u64;
        self.stats.tokens = counters.tokens;
        self.stats.dropped_frames = counters.dropped;
        self.stats.cpu_seconds = process::cpu_seconds() - self.cpu_before;
        self.stats.resident_bytes = process::resident_bytes();
        self.stats.links = self.mesh.reports();
        tell(node, FromShard::Stats { epoch: self.epoch, stats: self.stats.clone() });
    }
}

/// The node's queue is bounded; a node that does not read is about to be gone, and the shard with it.
fn tell(node: &mpsc::Sender<FromShard>, message: FromShard) {
    if node.try_send(message).is_err() {
        tracing::warn!("the node does not take messages");
    }
}

fn open_failure(error: &OpenError) -> Failure {
    let code = match error {
        OpenError::KvFull { .. } => ReasonCode::KvFull,
        OpenError::ContextTooLong { .. } => ReasonCode::ContextTooLong,
        _ => ReasonCode::Protocol,
    };
    Failure::new(code, error.to_string())
}

fn advance(engine: &mut Engine, batch: &[Work]) -> Result<Vec<Outcome>, (Option<RequestId>, Failure)> {
    for work in batch {
        if let Some(length) = work.truncate_to {
            engine
                .truncate(SequenceId(work.request.0), length as usize)
                .map_err(|e| (Some(work.request), Failure::new(ReasonCode::Protocol, e.to_string())))?;
        }
    }
    let steps: Vec<Step<'_>> = batch
        .iter()
        .map(|work| Step {
            sequence: SequenceId(work.request.0),
            position: work.position as usize,
            input: match &work.input {
                WorkInput::Tokens(tokens) => StepInput::Tokens(tokens),
                WorkInput::Hidden { rows, dtype, data } => {
                    StepInput::Hidden { rows: *rows as usize, dtype: *dtype, data }
                }
            },
            sample: work.sample && engine.is_exit(),
        })
        .collect();
    let outputs = engine.advance(&steps).map_err(|error: AdvanceError| {
        let request = error.sequence().map(|sequence| RequestId(sequence.0));
        (request, Failure::new(ReasonCode::Engine, error.to_string()))
    })?;
    Ok(outputs
        .into_iter()
        .map(|output| match output {
            StepOutput::Hidden(rows) => Outcome::Hidden(rows),
            StepOutput::Token(choice) => Outcome::Token(choice),
            StepOutput::Nothing => Outcome::Nothing,
        })
        .collect())
}

/// How often [`Event::Tick`] is due.
pub const TICK: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_makes_work_the_part_of_the_time_that_was_asked_for() {
        let worked = Duration::from_millis(30);
        assert_eq!(rest_after(worked, 100), Duration::ZERO);
        assert_eq!(rest_after(worked, 50), worked);
        assert_eq!(rest_after(worked, 25), 3 * worked);
        assert_eq!(rest_after(worked, 0), LONGEST_REST, "never dead, however little is asked for");
        assert_eq!(rest_after(Duration::from_secs(60), 10), LONGEST_REST);
    }
}
