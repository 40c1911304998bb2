//! The gateway's end of the data plane: a peer like any other, linked with the entry and the exit shard.
//!
//! Prompts go to both, tokens come from the exit. Hidden states never come here: a frame that carries any
//! breaks the protocol and ends the link. Admission keeps what live requests may hold within the coalition's
//! KV budget; what does not fit waits in a bounded queue.

mod drain;
mod retry;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alloy_primitives::Address;
use alloy_signer_local::PrivateKeySigner;
use async_trait::async_trait;
use pool_link::mesh::{Mesh, MeshEvent, MeshPlan};
use pool_link::webrtc::LinkSettings;
use pool_link::{Delegation, Lane, LinkIdentity};
use pool_types::{Epoch, Failure, LayerRange, ReasonCode, RequestId};
use pool_wire::control::{Assignment, LinkReport, Signal};
use pool_wire::frame::{Frame, Kind};
use pool_wire::{Prompt, Token};
use tokio::sync::{mpsc, oneshot};

use self::retry::RETRIES;
use crate::completion::{CancelGuard, Completion, Completions, ServedModel, StartError};

/// How long the gateway's link key is delegated for.
const DELEGATION_SECONDS: u64 = 12 * 3600;
/// A request from which nothing is heard for this long is given up (shards give up sooner).
const SILENT: Duration = Duration::from_secs(150);

/// Sees every frame that crosses the gateway's links: (peer, true when sent, frame).
pub type Tap = Arc<dyn Fn(Address, bool, &Frame) + Send + Sync>;

/// How the gateway's data plane is set up.
#[derive(Clone)]
pub struct DataPlaneSettings {
    /// Link with peers on this machine only.
    pub loopback_only: bool,
    /// Requests that may wait for cache.
    pub max_waiting: usize,
    /// How long one may wait.
    pub queue_deadline: Duration,
    /// Watches the traffic, for audits and tests.
    pub tap: Option<Tap>,
}

impl Default for DataPlaneSettings {
    fn default() -> Self {
        DataPlaneSettings { loopback_only: false, max_waiting: 64, queue_deadline: Duration::from_secs(60), tap: None }
    }
}

/// What the data plane tells the registry.
#[derive(Debug)]
pub enum DataPlaneEvent {
    /// Relay this description to `signal.to`.
    Signal(Signal),
    /// The gateway's links of this epoch are up.
    Joined {
        /// The assignment's epoch.
        epoch: Epoch,
    },
    /// They are not, or not any more.
    Lost {
        /// The assignment's epoch.
        epoch: Epoch,
        /// Why.
        failure: Failure,
    },
    /// The last request of a draining epoch has ended.
    Drained {
        /// The assignment's epoch.
        epoch: Epoch,
    },
}

/// What the data plane has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataPlaneCounters {
    /// Requests running now.
    pub live: usize,
    /// Requests waiting for cache now.
    pub waiting: usize,
    /// Requests begun.
    pub started: u64,
    /// Answers completed.
    pub finished: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests whose client went away or had enough.
    pub cancelled: u64,
    /// Tokens received from exit shards.
    pub tokens: u64,
}

/// The gateway's end of the data plane. Clones share one state.
#[derive(Clone)]
pub struct DataPlane(Arc<Inner>);

struct Inner {
    wallet: PrivateKeySigner,
    settings: DataPlaneSettings,
    registry: mpsc::Sender<DataPlaneEvent>,
    mesh_events: mpsc::Sender<(Epoch, MeshEvent)>,
    state: Mutex<State>,
    next_request: AtomicU64,
}

#[derive(Default)]
struct State {
    models: BTreeMap<String, ServedModel>,
    term: Option<Term>,
    counters: DataPlaneCounters,
}

/// The epoch being served.
struct Term {
    model: String,
    assignment: Assignment,
    mesh: Option<Mesh>,
    joined: bool,
    /// Nothing new begins: a member leaves when what runs has ended.
    draining: bool,
    /// Requests that are offered again in a moment: they run, but are not among the live.
    retrying: usize,
    live: HashMap<RequestId, Live>,
    reserved: u64,
    waiting: VecDeque<Waiter>,
}

/// A request that waits for cache, first come first served.
struct Waiter {
    need: u64,
    grant: oneshot::Sender<Reservation>,
}

/// Cache set aside for a request that has not begun. Given back when dropped.
struct Reservation {
    plane: DataPlane,
    epoch: Epoch,
    tokens: u64,
}

impl Reservation {
    /// The request has begun: what it holds is counted with it from now on.
    fn used(mut self) {
        self.tokens = 0;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.tokens > 0 {
            let mut state = self.plane.state();
            if let Some(term) = state.term.as_mut().filter(|term| term.assignment.epoch == self.epoch) {
                term.give_back(self.tokens, &self.plane);
            }
        }
    }
}

struct Live {
    prompt: Arc<Prompt>,
    tokens: mpsc::Sender<Result<Token, Failure>>,
    /// The id on the wire, shared with the guard: it changes when the request is offered again.
    id: Arc<AtomicU64>,
    last_step: Option<u32>,
    retries: u32,
    heard: Instant,
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Term {
    fn ends(&self) -> Vec<Address> {
        let members = &self.assignment.members;
        let mut ends: Vec<Address> = members.first().into_iter().chain(members.last()).map(|m| m.address).collect();
        ends.dedup();
        ends
    }

    /// A request has ended.
    fn remove(&mut self, id: RequestId, plane: &DataPlane) -> Option<Live> {
        let live = self.take(id, plane);
        self.settle(plane);
        live
    }

    fn take(&mut self, id: RequestId, plane: &DataPlane) -> Option<Live> {
        let live = self.live.remove(&id)?;
        self.give_back(u64::from(live.prompt.capacity()), plane);
        Some(live)
    }

    fn fits(&self, need: u64) -> bool {
        self.reserved + need <= self.assignment.kv_tokens
    }

    /// Frees cache and grants it to those who wait, in order.
    fn give_back(&mut self, tokens: u64, plane: &DataPlane) {
        self.reserved -= tokens;
        while self.waiting.front().is_some_and(|next| next.grant.is_closed() || self.fits(next.need)) {
            let Some(Waiter { need, grant }) = self.waiting.pop_front() else { return };
            let reservation = Reservation { plane: plane.clone(), epoch: self.assignment.epoch, tokens: need };
            match grant.send(reservation) {
                Ok(()) => self.reserved += need,
                // Nobody waits any more. Nothing was counted, so nothing is given back.
                Err(unwanted) => unwanted.used(),
            }
        }
    }
}

impl DataPlane {
    /// A data plane that speaks for `wallet`. The receiver hears what the registry must know. Must be called
    /// inside a Tokio runtime.
    pub fn new(wallet: PrivateKeySigner, settings: DataPlaneSettings) -> (DataPlane, mpsc::Receiver<DataPlaneEvent>) {
        let (registry, events) = mpsc::channel(1024);
        let (mesh_events, mut from_mesh) = mpsc::channel(8192);
        let inner = Arc::new(Inner {
            wallet,
            settings,
            registry,
            mesh_events,
            state: Mutex::default(),
            // Ids of an earlier run of the orchestrator are never used again while shards remember them.
            next_request: AtomicU64::new(rand::random::<u64>() >> 1),
        });
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            let mut sweep = tokio::time::interval(Duration::from_secs(1));
            loop {
                tokio::select! {
                    event = from_mesh.recv() => {
                        let (Some((epoch, event)), Some(inner)) = (event, weak.upgrade()) else { return };
                        DataPlane(inner).on_mesh(epoch, event).await;
                    }
                    _ = sweep.tick() => {
                        let Some(inner) = weak.upgrade() else { return };
                        DataPlane(inner).give_up_silent();
                    }
                }
            }
        });
        (DataPlane(inner), events)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a model; it is served once a coalition has joined for it.
    pub fn offer_model(&self, model: ServedModel) {
        self.state().models.insert(model.name.clone(), model);
    }

    /// Links with entry and exit of a new epoch, in the background; [`DataPlaneEvent`] says how that went.
    /// `names` are the members as clients see them.
    pub fn join(&self, model: &str, assignment: Assignment, roster: Vec<Address>, names: Vec<(String, LayerRange)>) {
        let epoch = assignment.epoch;
        {
            let mut state = self.state();
            if let Some(served) = state.models.get_mut(model) {
                served.members = names;
            }
            state.term = Some(Term {
                model: model.to_owned(),
                assignment: assignment.clone(),
                mesh: None,
                joined: false,
                draining: false,
                retrying: 0,
                live: HashMap::new(),
                reserved: 0,
                waiting: VecDeque::new(),
            });
        }
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(failure) = this.link(assignment, roster).await {
                this.tell(DataPlaneEvent::Lost { epoch, failure }).await;
            }
        });
    }

    async fn link(&self, assignment: Assignment, roster: Vec<Address>) -> Result<(), Failure> {
        let refused = |e: pool_link::SignalError| Failure::new(ReasonCode::Unauthorised, e.to_string());
        let key = LinkIdentity::new_key();
        let expires = unix_seconds() + DELEGATION_SECONDS;
        let (coalition, chain, epoch) = (assignment.coalition, assignment.chain, assignment.epoch);
        let delegation =
            Delegation::sign(&self.0.wallet, key.address(), coalition, chain, expires).await.map_err(refused)?;
        let identity = Arc::new(key.with_delegation(delegation).map_err(refused)?);
        let settings =
            if self.0.settings.loopback_only { LinkSettings::loopback() } else { LinkSettings::wide_area(Vec::new()) };
        let plan =
            MeshPlan { identity, assignment, roster: roster.into_iter().collect(), settings, clock: unix_seconds };
        let mut state = self.state();
        if let Some(term) = state.term.as_mut().filter(|term| term.assignment.epoch == epoch) {
            term.mesh = Some(Mesh::start(plan, self.0.mesh_events.clone()));
        }
        Ok(())
    }

    /// Hands in a description that is addressed to the gateway. One that comes before [`Self::join`] has begun
    /// to link is lost; members offer to the gateway never: it is the gateway that offers.
    pub fn signal(&self, signal: &Signal) {
        let state = self.state();
        if let Some(term) = state.term.as_ref().filter(|term| term.assignment.epoch == signal.epoch)
            && let Some(mesh) = &term.mesh
        {
            mesh.signal(signal);
        }
    }

    /// Ends the epoch: live requests end with `failure` at once, links close in the background.
    pub fn leave(&self, epoch: Epoch, failure: Failure) {
        let mut state = self.state();
        if state.term.as_ref().is_none_or(|term| term.assignment.epoch != epoch) {
            return;
        }
        let Some(mut term) = state.term.take() else { return };
        state.counters.failed += term.live.len() as u64;
        if let Some(served) = state.models.get_mut(&term.model) {
            served.active = false;
            served.members.clear();
        }
        for (_, live) in term.live.drain() {
            let _ = live.tokens.try_send(Err(failure.clone()));
        }
        if let Some(mesh) = term.mesh.take() {
            tokio::spawn(mesh.close());
        }
    }

    /// The gateway's links.
    pub fn links(&self) -> Vec<LinkReport> {
        let state = self.state();
        state.term.as_ref().and_then(|term| term.mesh.as_ref()).map(Mesh::reports).unwrap_or_default()
    }

    /// Counters since the start.
    pub fn counters(&self) -> DataPlaneCounters {
        let state = self.state();
        let (live, waiting) = state.term.as_ref().map_or((0, 0), |term| {
            (term.live.len(), term.waiting.iter().filter(|waiter| !waiter.grant.is_closed()).count())
        });
        DataPlaneCounters { live, waiting, ..state.counters }
    }

    async fn tell(&self, event: DataPlaneEvent) {
        let _ = self.0.registry.send(event).await;
    }

    async fn on_mesh(&self, epoch: Epoch, event: MeshEvent) {
        match event {
            MeshEvent::Signal(signal) => self.tell(DataPlaneEvent::Signal(signal)).await,
            MeshEvent::Joined => {
                {
                    let mut state = self.state();
                    let Some(term) = state.term.as_mut().filter(|term| term.assignment.epoch == epoch) else { return };
                    term.joined = true;
                    let model = term.model.clone();
                    if let Some(served) = state.models.get_mut(&model) {
                        served.active = true;
                    }
                }
                self.tell(DataPlaneEvent::Joined { epoch }).await;
            }
            MeshEvent::Lost { failure, .. } => self.tell(DataPlaneEvent::Lost { epoch, failure }).await,
            MeshEvent::Frames { from, frames } => {
                for frame in frames {
                    if let Err(failure) = self.on_frame(epoch, from, frame) {
                        self.tell(DataPlaneEvent::Lost { epoch, failure }).await;
                        return;
                    }
                }
            }
        }
    }

    /// A frame from a shard. An error is a breach of the protocol that ends the epoch.
    fn on_frame(&self, epoch: Epoch, from: Address, frame: Frame) -> Result<(), Failure> {
        if let Some(tap) = &self.0.settings.tap {
            tap(from, false, &frame);
        }
        let breach = |what: String| Err(Failure::new(ReasonCode::Protocol, format!("{from} {what}")));
        let mut state = self.state();
        let State { term, counters, .. } = &mut *state;
        let Some(term) = term.as_mut().filter(|term| term.assignment.epoch == epoch) else { return Ok(()) };
        match frame.kind {
            Kind::Token => {
                let Ok(token) = Token::parse(frame.payload) else { return breach("sent a token that is none".into()) };
                let Some(live) = term.live.get_mut(&frame.request) else { return Ok(()) };
                if live.last_step.is_some_and(|last| frame.step <= last) {
                    return Ok(());
                }
                live.last_step = Some(frame.step);
                live.heard = Instant::now();
                counters.tokens += 1;
                let finished = token.finish.is_some();
                // The queue holds every token the request may have: it is full only when nobody reads any more.
                let _ = live.tokens.try_send(Ok(token));
                if finished {
                    counters.finished += 1;
                    term.remove(frame.request, self);
                }
                Ok(())
            }
            Kind::Fail => {
                let failure = frame.failure();
                let Some(live) = term.take(frame.request, self) else { return Ok(()) };
                if failure.code == ReasonCode::KvFull && live.last_step.is_none() && live.retries < RETRIES {
                    // Admission counts a request as gone when its last token arrives here; a shard may hear
                    // of that a moment later. The release makes sure that nothing of this try stays behind.
                    release(term, frame.request);
                    term.retrying += 1;
                    tokio::spawn(self.clone().offer_again(epoch, live));
                    return Ok(());
                }
                term.settle(self);
                counters.failed += 1;
                let _ = live.tokens.try_send(Err(failure));
                release(term, frame.request);
                Ok(())
            }
            kind => breach(format!("sent a {kind:?} frame to the gateway")),
        }
    }

    /// Sends a request, whose cache is reserved, to entry and exit.
    fn launch(&self, term: &mut Term, live: Live) -> Result<RequestId, Failure> {
        let need = u64::from(live.prompt.capacity());
        self.send_prompt(term, live).inspect_err(|_| term.give_back(need, self))
    }

    fn send_prompt(&self, term: &mut Term, live: Live) -> Result<RequestId, Failure> {
        let id = RequestId(self.0.next_request.fetch_add(1, Ordering::Relaxed));
        let frames = live
            .prompt
            .frames(term.assignment.epoch, id)
            .map_err(|e| Failure::new(ReasonCode::Protocol, e.to_string()))?;
        let Some(mesh) = &term.mesh else {
            return Err(Failure::new(ReasonCode::PeerLost, "the coalition has no links"));
        };
        for end in term.ends() {
            if let Some(tap) = &self.0.settings.tap {
                frames.iter().for_each(|frame| tap(end, true, frame));
            }
            mesh.send(end, Lane::Ctl, &frames).map_err(|e| Failure::new(ReasonCode::PeerLost, e.to_string()))?;
        }
        live.id.store(id.0, Ordering::Release);
        term.live.insert(id, live);
        Ok(id)
    }

    /// Ends requests from which nothing was heard for too long.
    fn give_up_silent(&self) {
        let mut state = self.state();
        let State { term: Some(term), counters, .. } = &mut *state else { return };
        let silent: Vec<RequestId> =
            term.live.iter().filter(|(_, live)| live.heard.elapsed() > SILENT).map(|(id, _)| *id).collect();
        for id in silent {
            release(term, id);
            if let Some(live) = term.remove(id, self) {
                counters.failed += 1;
                let failure = Failure::new(ReasonCode::Timeout, "the coalition gave no token in time");
                let _ = live.tokens.try_send(Err(failure));
            }
        }
    }

    fn cancel(&self, epoch: Epoch, id: RequestId) {
        let mut state = self.state();
        let State { term, counters, .. } = &mut *state;
        let Some(term) = term.as_mut().filter(|term| term.assignment.epoch == epoch) else { return };
        if term.remove(id, self).is_some() {
            counters.cancelled += 1;
            release(term, id);
        }
    }
}

/// Tells entry and exit to free a request; the entry passes it on.
fn release(term: &Term, id: RequestId) {
    let frame = [Frame::new(Kind::Release, term.assignment.epoch, id)];
    for end in term.ends() {
        if let Some(mesh) = &term.mesh {
            let _ = mesh.send(end, Lane::Ctl, &frame);
        }
    }
}

#[async_trait]
impl Completions for DataPlane {
    fn models(&self) -> Vec<ServedModel> {
        self.state().models.values().cloned().collect()
    }

    async fn start(&self, model: &str, prompt: Prompt) -> Result<Completion, StartError> {
        let prompt = Arc::new(prompt);
        let need = u64::from(prompt.capacity());
        let (waits, epoch, full) = {
            let mut state = self.state();
            let limit = self.limit(&state, model)?;
            let State { term, counters, .. } = &mut *state;
            let term = serving(term, model)?;
            if need > limit {
                return Err(StartError::TooLong { needed: need, limit });
            }
            if term.waiting.is_empty() && term.fits(need) {
                term.reserved += need;
                return self.begin(term, counters, prompt);
            }
            term.waiting.retain(|waiter| !waiter.grant.is_closed());
            let full = StartError::Full { capacity: term.assignment.kv_tokens, waiting: term.waiting.len() };
            if term.waiting.len() >= self.0.settings.max_waiting {
                return Err(full);
            }
            let (grant, waits) = oneshot::channel();
            term.waiting.push_back(Waiter { need, grant });
            (waits, term.assignment.epoch, full)
        };
        let reservation = match tokio::time::timeout(self.0.settings.queue_deadline, waits).await {
            Ok(Ok(reservation)) => reservation,
            Ok(Err(_)) => return Err(StartError::NoCoalition(model.to_owned())),
            Err(_) => return Err(full),
        };
        let mut state = self.state();
        let State { term, counters, .. } = &mut *state;
        // The reservation must not be dropped while the state is locked.
        match serving(term, model) {
            Ok(term) if term.assignment.epoch == epoch => {
                reservation.used();
                self.begin(term, counters, prompt)
            }
            _ => {
                reservation.used();
                Err(StartError::NoCoalition(model.to_owned()))
            }
        }
    }
}

fn serving<'a>(term: &'a mut Option<Term>, model: &str) -> Result<&'a mut Term, StartError> {
    term.as_mut()
        .filter(|term| term.joined && !term.draining && term.model == model)
        .ok_or_else(|| StartError::NoCoalition(model.to_owned()))
}

impl DataPlane {
    /// The longest request `model` can serve: its context, or the whole KV budget where that is less.
    fn limit(&self, state: &State, model: &str) -> Result<u64, StartError> {
        let served = state.models.get(model).ok_or_else(|| StartError::UnknownModel(model.to_owned()))?;
        let budget = state.term.as_ref().map_or(u64::MAX, |term| term.assignment.kv_tokens);
        Ok(u64::from(served.max_context).min(budget))
    }

    /// Begins a request whose cache is reserved.
    fn begin(
        &self,
        term: &mut Term,
        counters: &mut DataPlaneCounters,
        prompt: Arc<Prompt>,
    ) -> Result<Completion, StartError> {
        let (tokens, received) = mpsc::channel(prompt.max_new_tokens as usize + 2);
        let id = Arc::new(AtomicU64::new(0));
        let live = Live { prompt, tokens, id: id.clone(), last_step: None, retries: 0, heard: Instant::now() };
        let request = self.launch(term, live)?;
        counters.started += 1;
        let (this, epoch) = (self.clone(), term.assignment.epoch);
        let guard = CancelGuard::new(move || this.cancel(epoch, RequestId(id.load(Ordering::Acquire))));
        Ok(Completion { request, tokens: received, guard })
    }
}

impl std::fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataPlane").field("wallet", &self.0.wallet.address()).finish_non_exhaustive()
    }
}
