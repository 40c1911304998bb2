//! The node's actor: it joins what the orchestrator wants with what its shard process does.

mod fetching;
mod leaving;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use alloy_primitives::Address;
use alloy_signer::SignerSync;
use pool_coalition::{
    RosterRole,
    proposal::{Ballot, Vote},
    stand_down::Manner,
};
use pool_link::Delegation;
use pool_models::Model;
use pool_types::{Activation, Epoch, Failure, Holdings, LayerRange, ModelId, ReasonCode};
use pool_wire::control::{
    Assignment, CONTROL_VERSION, FromShard, LoadOrder, ShardFootprint, Signal, ToNode, ToOrchestrator, ToShard,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::leaving::{Activity, Ended, Shift};
use self::{
    fetching::{Way, news_of},
    leaving::asked,
};
use crate::{
    backoff::Backoff,
    config::{NodeConfig, NodeError, NodeModel, find_shard_program},
    shard::{ShardCommand, ShardEvent, ShardProcess},
    uplink::{Introduction, Uplink, UplinkEvent, endpoint, system_trust},
};

/// Waits before a shard that died is started again.
const RESTART: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];
/// A shard that lived this long did not die of how it was started.
const LONG_LIFE: Duration = Duration::from_secs(20);
/// How often a shard reports.
const REPORTS: Duration = Duration::from_secs(1);
/// A shard reports every second. One that links and is silent for this long is stuck,
const STUCK_LINKING: Duration = Duration::from_secs(6);
/// and one that serves may be silent for as long as its longest batch.
const STUCK_SERVING: Duration = Duration::from_secs(30);
/// Without an orchestrator for this long, the assignment is dropped.
const ORPHANED: Duration = Duration::from_secs(5);
/// How long a link key may speak for the wallet.
const DELEGATION: Duration = Duration::from_secs(12 * 3600);

/// Runs a node until `shutdown`, or until the orchestrator turns it away for good. When this returns its shard
/// process is gone.
pub async fn run(config: NodeConfig, shutdown: CancellationToken) -> Result<(), NodeError> {
    let (_stay, nobody_asks) = watch::channel(None);
    serve(config, shutdown, nobody_asks, Shift::default()).await.map(|_| ())
}

/// Runs a node as [`run`] does, and lets it leave in the middle: when `leave` says how, the node tells the orchestrator
/// so, signed, and returns once it has left. `shift` shows what it does meanwhile.
pub async fn serve(
    config: NodeConfig,
    shutdown: CancellationToken,
    mut leave: watch::Receiver<Option<Manner>>,
    shift: Shift,
) -> Result<Ended, NodeError> {
    let address = endpoint(&config.orchestrator)?;
    let wallet = config.wallet.address();
    let name = match config.roster.member(wallet) {
        Some(member) if member.role == RosterRole::Node && config.name.is_empty() => member.name.clone(),
        Some(member) if member.role == RosterRole::Node => config.name.clone(),
        _ => return Err(NodeError::NotInRoster(wallet)),
    };
    // Headers only, before anything else runs.
    let (model, path, holds) = match &config.model {
        NodeModel::Local(path) => {
            let model = Model::open(path)?;
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            (model.id, path, Holdings::of_all(model.config.layers))
        }
        // Known when it is here.
        NodeModel::Fetched(fetch) => (fetch.id()?, PathBuf::new(), fetch.holdings().await),
    };
    let (holds, held) = watch::channel(holds);
    let program = config.shard_program.clone().map_or_else(find_shard_program, Ok)?;
    let capabilities = config.capabilities.clone();
    let (cpus, gpus) = (config.cpus.clone(), config.gpus.clone());
    let command = ShardCommand { program, threads: capabilities.threads, cpus, gpus };
    let (shard_events_in, mut shard_events) = mpsc::channel(256);
    let introduction = Introduction { wallet: config.wallet.clone(), name, capabilities, model, holds: held };
    let mut uplink = Uplink::start(address, system_trust()?, introduction);
    let mut node = Node {
        path,
        fetching: None,
        fetched: None,
        config,
        model,
        holds,
        command,
        shard_events: shard_events_in,
        shard: None,
        incarnation: 0,
        restart: Backoff::new(&RESTART),
        start_at: None,
        orphaned_at: None,
        current: None,
        outbox: Vec::new(),
        draining: None,
        shift,
    };

    let mut duty = node.shift.duty();
    let outcome = loop {
        for message in node.outbox.drain(..) {
            uplink.send(message);
        }
        node.show();
        if node.has_drained() {
            break Ok(Ended::Drained);
        }
        tokio::select! {
            () = shutdown.cancelled() => break Ok(Ended::ShutDown),
            manner = asked(&mut leave) => match manner {
                Manner::Yield => {
                    // The owner's machine first, then the word.
                    let gone = node.let_go();
                    if let Some(word) = node.stand_down(Manner::Yield) {
                        uplink.send(word);
                    }
                    let (gone, ()) = tokio::join!(gone, uplink.close());
                    return Ok(Ended::Yielded(gone));
                }
                Manner::Drain => node.drain(),
            },
            event = uplink.events.recv() => match event {
                Some(UplinkEvent::Up) => {
                    node.orphaned_at = None;
                    node.drop_assignment();
                }
                Some(UplinkEvent::Message(message)) => node.on_orchestrator(message).await,
                Some(UplinkEvent::Down) => node.orphaned_at = Some(Instant::now() + ORPHANED),
                Some(UplinkEvent::Refused(failure)) => break Err(NodeError::Refused(failure)),
                None => break Ok(Ended::ShutDown),
            },
            Some((incarnation, event)) = shard_events.recv() => {
                if incarnation == node.incarnation {
                    node.on_shard(event).await;
                }
            }
            Ok(()) = duty.changed() => {
                let percent = *duty.borrow_and_update();
                node.to_shard(ToShard::Duty { percent });
            }
            news = news_of(&mut node.fetching) => node.on_fetch(news).await,
            () = until(node.start_at) => { node.start_at = None; node.ensure_shard().await; }
            () = until(node.shard.as_ref().and_then(Shard::stuck_at)) => {
                if let Some(shard) = &mut node.shard {
                    warn!("the shard is silent and is killed");
                    shard.give_up("the shard stopped answering and was ended");
                }
            }
            () = until(node.draining) => {
                warn!("what runs did not end in time; the node leaves without it");
                break Ok(Ended::Drained);
            }
            () = until(node.orphaned_at) => {
                warn!("the orchestrator is away; the coalition is left");
                node.orphaned_at = None;
                node.drop_assignment();
            }
        }
    };
    if let Some(shard) = node.shard.take() {
        shard.process.shut_down().await;
    }
    uplink.close().await;
    outcome
}

/// Waits for a moment; for ever when there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// What a shard process holds; another set needs another process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Load {
    model: ModelId,
    layers: LayerRange,
    wire: Activation,
    kv_tokens: u64,
    max_context: u32,
}

struct Shard {
    process: ShardProcess,
    load: Load,
    started: Instant,
    link_key: Option<Address>,
    footprint: Option<ShardFootprint>,
    /// The epoch it was told to join.
    joined: Option<Epoch>,
    /// Whether it said that its links are up.
    linked: bool,
    /// Requests that hold cache, as it last said.
    requests: u32,
    /// The tokens that it had worked on in an epoch, as it last said.
    counted: (Epoch, u64),
    /// Since when it owes a word.
    quiet_since: Option<Instant>,
    /// Why it was killed, where we did it.
    verdict: Option<&'static str>,
}

impl Shard {
    fn new(process: ShardProcess, load: Load) -> Self {
        Self {
            process,
            load,
            started: Instant::now(),
            link_key: None,
            footprint: None,
            joined: None,
            linked: false,
            requests: 0,
            counted: (Epoch(0), 0),
            quiet_since: None,
            verdict: None,
        }
    }

    /// It said something.
    fn heard(&mut self) {
        self.quiet_since = self.joined.map(|_| Instant::now());
    }

    /// When it is to be given up, unless it says something.
    fn stuck_at(&self) -> Option<Instant> {
        self.joined?;
        Some(self.quiet_since? + if self.linked { STUCK_SERVING } else { STUCK_LINKING })
    }

    /// Ends it for a reason of our own; its exit follows.
    fn give_up(&mut self, verdict: &'static str) {
        self.verdict = Some(verdict);
        self.quiet_since = None;
        self.process.kill();
    }
}

struct Node {
    config: NodeConfig,
    path: PathBuf,
    model: ModelId,
    /// Layers on their way.
    fetching: Option<Way>,
    /// Layers that are here, of a model that is fetched.
    fetched: Option<LayerRange>,
    /// Which layers are here, for the next introduction.
    holds: watch::Sender<Holdings>,
    command: ShardCommand,
    shard_events: mpsc::Sender<(u64, ShardEvent)>,
    shard: Option<Shard>,
    /// Numbers shard processes, so that a late word of one that is gone is not taken for its successor's.
    incarnation: u64,
    restart: Backoff,
    /// When a shard may be started again.
    start_at: Option<Instant>,
    orphaned_at: Option<Instant>,
    current: Option<Box<Assignment>>,
    outbox: Vec<ToOrchestrator>,
    /// Set when it leaves after the last request: when it leaves without that.
    draining: Option<Instant>,
    shift: Shift,
}

impl Node {
    async fn on_orchestrator(&mut self, message: ToNode) {
        match message {
            ToNode::Assign(assignment) => {
                self.drop_assignment();
                let epoch = assignment.epoch;
                if let Err(failure) = self.check(&assignment) {
                    warn!(%epoch, reason = %failure, "an assignment was refused");
                    self.outbox.push(ToOrchestrator::Failed { epoch, failure });
                    return;
                }
                info!(%epoch, layers = ?self.layers(&assignment), "assigned");
                self.current = Some(assignment);
                self.ensure_shard().await;
            }
            ToNode::Link { epoch } if self.is_current(epoch) => self.join().await,
            ToNode::Signal(signal) if self.is_current(signal.epoch) => self.to_shard(ToShard::Signal(signal)),
            ToNode::Dissolve { epoch, failure } if self.is_current(epoch) => {
                info!(%epoch, reason = %failure, "the coalition is dissolved");
                self.drop_assignment();
            }
            ToNode::Ballot { epoch, ballot } => self.outbox.push(match self.vote(epoch, &ballot) {
                Ok(vote) => ToOrchestrator::Vote { epoch, vote },
                Err(failure) => {
                    warn!(%epoch, reason = %failure, "a proposal was not signed");
                    ToOrchestrator::VoteRefused { epoch, failure }
                }
            }),
            ToNode::Link { .. } | ToNode::Signal(_) | ToNode::Dissolve { .. } => {}
            ToNode::Challenge { .. } | ToNode::Registered { .. } | ToNode::Refused { .. } | ToNode::Heartbeat => {}
        }
    }

    async fn on_shard(&mut self, event: ShardEvent) {
        let message = match event {
            ShardEvent::Message(message) => message,
            ShardEvent::Exited(how) => return self.on_exit(how),
        };
        let Some(shard) = &mut self.shard else { return };
        shard.heard();
        match message {
            FromShard::Hello { version: CONTROL_VERSION, link_key } => {
                shard.link_key = Some(link_key);
                let Load { model, layers, wire, kv_tokens, max_context } = shard.load;
                let order = LoadOrder {
                    address: self.config.wallet.address(),
                    path: self.path.clone(),
                    model,
                    layers,
                    wire,
                    kv_tokens,
                    max_context,
                    quantise: self.config.quantise,
                    loopback_only: self.config.loopback_only,
                };
                shard.process.send(ToShard::Load(Box::new(order)));
            }
            FromShard::Hello { version, .. } => {
                error!(version, expected = CONTROL_VERSION, "pool-shard is of another version than this program");
                shard.give_up("pool-shard is of another version than this program");
            }
            FromShard::Loaded { footprint } => {
                self.shift.set_trouble(None);
                shard.footprint = Some(footprint);
                let percent = *self.shift.duty().borrow();
                shard.process.send(ToShard::Duty { percent });
                let layers = shard.load.layers;
                self.holds.send_modify(|holds| {
                    holds.keep(layers);
                    holds.loaded = Some(layers);
                });
                let ShardFootprint { load_seconds: seconds, bytes_read, token_seconds, .. } = footprint;
                info!(seconds, bytes_read, token_seconds, "the layers are loaded, and the canary has come through");
                if let Some(epoch) = self.epoch_for_loaded() {
                    self.outbox.push(ToOrchestrator::Loaded { epoch, footprint });
                }
            }
            FromShard::Joined { epoch } => {
                shard.linked |= shard.joined == Some(epoch);
                self.forward(epoch, ToOrchestrator::Joined { epoch });
            }
            FromShard::Signal(signal) => {
                let Signal { epoch, from, .. } = signal;
                if from == self.config.wallet.address() {
                    self.forward(epoch, ToOrchestrator::Signal(signal));
                }
            }
            FromShard::Failed { epoch, failure } => {
                // The orchestrator judges whether that was in order, and warns where it was not.
                info!(%epoch, reason = %failure, "the shard cannot go on with this coalition");
                self.forward(epoch, ToOrchestrator::Failed { epoch, failure });
            }
            FromShard::LoadFailed { failure } => {
                error!(reason = %failure, "the layers cannot be loaded");
                self.shift.set_trouble(Some(failure.clone()));
                if let Some(assignment) = self.current.take() {
                    self.outbox.push(ToOrchestrator::Failed { epoch: assignment.epoch, failure });
                }
            }
            FromShard::Stats { epoch, stats } => {
                shard.requests = stats.sequences;
                // They count from the beginning of the epoch.
                let before = if shard.counted.0 == epoch { shard.counted.1 } else { 0 };
                self.shift.worked(stats.rows.saturating_sub(before));
                shard.counted = (epoch, stats.rows);
                self.forward(epoch, ToOrchestrator::Stats { epoch, stats });
            }
        }
    }

    /// The process is gone: say so at once, and start another for the next assignment after a pause that grows.
    fn on_exit(&mut self, how: String) {
        let Some(shard) = self.shard.take() else { return };
        self.holds.send_modify(|holds| holds.loaded = None);
        if shard.started.elapsed() >= LONG_LIFE {
            self.restart.reset();
        }
        let wait = self.restart.next();
        self.start_at = Some(Instant::now() + wait);
        if let Some(assignment) = self.current.take() {
            let how = shard.verdict.map_or(how, str::to_owned);
            let failure = Failure::new(ReasonCode::PeerLost, how);
            self.outbox.push(ToOrchestrator::Failed { epoch: assignment.epoch, failure });
        }
    }

    /// Gets a shard that holds what the assignment asks for: the running one, or a new one as soon as one may start.
    async fn ensure_shard(&mut self) {
        let Some(assignment) = &self.current else { return };
        let Some(layers) = self.layers(assignment) else { return };
        let Assignment { epoch, model, wire, kv_tokens, max_context, .. } = **assignment;
        let load = Load { model, layers, wire, kv_tokens, max_context };
        if let Some(shard) = &self.shard
            && shard.load == load
        {
            if let Some(footprint) = shard.footprint {
                self.outbox.push(ToOrchestrator::Loaded { epoch, footprint });
            }
            return;
        }
        if !self.has_here(epoch, layers).await {
            return;
        }
        match self.shard.take() {
            // Its memory is needed for the new one, so wait until it is gone. Its last words carry an old number.
            Some(other) => {
                self.holds.send_modify(|holds| holds.loaded = None);
                other.process.end().await;
            }
            None if self.start_at.is_some() => return,
            None => {}
        }
        self.incarnation += 1;
        match ShardProcess::start(&self.command, self.incarnation, self.shard_events.clone()) {
            Ok(process) => self.shard = Some(Shard::new(process, load)),
            Err(error) => {
                error!(%error, "the shard does not start");
                let failure = Failure::new(ReasonCode::Engine, error.to_string());
                self.outbox.push(ToOrchestrator::Failed { epoch, failure });
                self.current = None;
                self.start_at = Some(Instant::now() + self.restart.next());
            }
        }
    }

    /// Hands the shard its assignment and the wallet's word for its key.
    async fn join(&mut self) {
        let (Some(assignment), Some(shard)) = (&self.current, &mut self.shard) else { return };
        let (Some(link_key), Some(_)) = (shard.link_key, shard.footprint) else { return };
        let Assignment { epoch, coalition, chain, .. } = **assignment;
        let expires = (now() + DELEGATION).as_secs();
        let delegation = Delegation::sign(&self.config.wallet, link_key, coalition, chain, expires).await;
        let delegation = delegation.map_err(|error| error.to_string());
        let delegation =
            delegation.and_then(|signed| serde_json::to_string(&signed).map_err(|error| error.to_string()));
        match delegation {
            Ok(delegation) => {
                let roster = self.config.roster.members.iter().map(|member| member.address).collect();
                shard.joined = Some(epoch);
                shard.quiet_since.get_or_insert_with(Instant::now);
                shard.process.send(ToShard::Join { assignment: assignment.clone(), delegation, roster });
            }
            Err(error) => {
                let message = format!("the wallet cannot sign for the shard: {error}");
                let failure = Failure::new(ReasonCode::Unauthorised, message);
                self.outbox.push(ToOrchestrator::Failed { epoch, failure });
            }
        }
    }

    /// Leaves the current coalition; the shard keeps its layers.
    fn drop_assignment(&mut self) {
        self.current = None;
        // Nobody waits for it any more; it goes on by itself.
        self.fetching = None;
        if let Some(shard) = &mut self.shard
            && let Some(epoch) = shard.joined.take()
        {
            shard.linked = false;
            // One that reported lately owes nothing until it is told to join again.
            if shard.quiet_since.is_some_and(|since| since.elapsed() < 2 * REPORTS) {
                shard.quiet_since = None;
            }
            shard.process.send(ToShard::Leave { epoch });
        }
    }

    /// Whether the orchestrator asks for something this node signed up for.
    fn check(&self, assignment: &Assignment) -> Result<(), Failure> {
        let refuse = |code, message: &str| Err(Failure::new(code, message));
        let roster = &self.config.roster;
        if assignment.coalition != roster.coalition_id() || assignment.chain != roster.chain {
            return refuse(ReasonCode::Unauthorised, "the assignment is for another coalition than this node's roster");
        }
        if assignment.gateway != roster.gateway {
            return refuse(ReasonCode::Unauthorised, "the assignment names a gateway that the roster does not");
        }
        let members: BTreeSet<Address> = assignment.members.iter().map(|member| member.address).collect();
        let are_nodes = members.iter().all(|member| roster.role(*member) == Some(RosterRole::Node));
        if members.len() != assignment.members.len() || !are_nodes {
            return refuse(ReasonCode::Unauthorised, "the assignment names a member that the roster does not");
        }
        if assignment.model != self.model {
            return refuse(ReasonCode::Model, "the assignment is for a model that this node does not have");
        }
        if self.layers(assignment).is_none() {
            return refuse(ReasonCode::Protocol, "the assignment leaves this node out");
        }
        Ok(())
    }

    /// Signs the coalition that this node serves in, if its terms are the operator's: as JSON text.
    fn vote(&self, epoch: Epoch, ballot: &str) -> Result<String, Failure> {
        let refuse = |message: String| Failure::new(ReasonCode::Unauthorised, message);
        let Some(policy) = &self.config.vote else {
            return Err(refuse("this node was not told which registry to trust".to_owned()));
        };
        let ballot: Ballot = serde_json::from_str(ballot)
            .map_err(|error| Failure::new(ReasonCode::Protocol, format!("the ballot is not one: {error}")))?;
        if ballot.domain != policy.domain {
            return Err(refuse("the ballot is for another registry than the one this node trusts".to_owned()));
        }
        let assignment = self.current.as_deref().filter(|assignment| assignment.epoch == epoch);
        let Some((assignment, layers)) = assignment.and_then(|found| Some((found, self.layers(found)?))) else {
            return Err(refuse("the ballot is for a coalition that this node does not serve in".to_owned()));
        };
        let proposal = &ballot.proposal;
        let seats = proposal.seats.iter().map(|seat| (seat.operator, seat.layers));
        if !seats.eq(assignment.members.iter().map(|member| (member.address, member.layers))) {
            return Err(refuse("the ballot names other members or layers than the assignment".to_owned()));
        }
        if proposal.manifest != self.model.0 || proposal.orchestrator != assignment.gateway {
            return Err(refuse("the ballot names another model or orchestrator than the assignment".to_owned()));
        }
        let operator = self.config.wallet.address();
        let acceptable = proposal.acceptable_to(operator, layers, policy.least, now().as_secs());
        acceptable.map_err(|error| refuse(error.to_string()))?;
        let sign = |digest| {
            let signature = self.config.wallet.sign_hash_sync(&digest);
            signature.map(|signature| signature.as_bytes().into()).map_err(|error| refuse(error.to_string()))
        };
        let vote = Vote {
            proposal: sign(proposal.digest(&ballot.domain))?,
            registration: sign(ballot.domain.registration_digest(operator, ballot.registration_deadline))?,
        };
        info!(%epoch, digest = %proposal.digest(&ballot.domain), "signed the coalition's proposal");
        serde_json::to_string(&vote).map_err(|error| refuse(error.to_string()))
    }

    fn layers(&self, assignment: &Assignment) -> Option<LayerRange> {
        assignment.layers_of(self.config.wallet.address())
    }

    fn is_current(&self, epoch: Epoch) -> bool {
        self.current.as_ref().is_some_and(|assignment| assignment.epoch == epoch)
    }

    /// The epoch to report a finished load for.
    fn epoch_for_loaded(&self) -> Option<Epoch> {
        self.current.as_ref().map(|assignment| assignment.epoch)
    }

    /// Passes a shard's word on while it concerns the current coalition.
    fn forward(&mut self, epoch: Epoch, message: ToOrchestrator) {
        if self.is_current(epoch) {
            self.outbox.push(message);
        }
    }

    fn to_shard(&self, message: ToShard) {
        if let Some(shard) = &self.shard {
            shard.process.send(message);
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
