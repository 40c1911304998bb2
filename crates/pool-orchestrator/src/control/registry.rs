//! Which nodes are here and which coalition they form: a state machine without clock, socket or store.
//!
//! Time and events go in, decisions come out. A coalition is *loading* until every member holds its layers,
//! *linking* until every link is up, then *active*; any loss ends it at once, and the next one has a higher epoch.

mod leaving;
mod node;
mod reason;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use alloy_primitives::Address;
use pool_coalition::{Roster, RosterRole, stand_down::SignedStandDown};
use pool_types::{Epoch, Failure, ReasonCode};
use pool_wire::control::{Assignment, Registration, Signal, ToNode, ToOrchestrator};

pub(crate) use node::Node;

use super::{
    placing::{Offer, Serving},
    view::Stage,
};

/// One WebSocket, numbered in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// With fewer nodes than the roster names: how long their number must have stayed the same.
    pub settle: Duration,
    /// From the assignment to the last member's report that its layers are loaded.
    pub load: Duration,
    /// From then to the last link.
    pub link: Duration,
    /// From a member's word that it leaves after the last request until it leaves without it.
    pub drain: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(1500),
            load: Duration::from_secs(600),
            link: Duration::from_secs(20),
            drain: Duration::from_secs(300),
        }
    }
}

/// Pauses before the next attempt after one, two, ... coalitions in a row that did not last.
const RETRY: [Duration; 6] = [
    Duration::from_millis(200),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];
/// A coalition that was active this long counts as one that lasted.
const LASTED: Duration = Duration::from_secs(10);
/// A pair of members needs one offer and one answer; nobody needs more descriptions than this per epoch.
const MAX_SIGNALS: u32 = 64;
/// Links a member may report on.
const MAX_LINKS: usize = 16;

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A node proved who it is and stands in the roster.
    Registered {
        /// Its connection.
        connection: ConnectionId,
        /// What it said.
        registration: Box<Registration>,
    },
    /// A registered node said something else.
    Said {
        /// Its connection.
        connection: ConnectionId,
        /// What it said.
        message: ToOrchestrator,
    },
    /// A connection ended or fell silent.
    Disconnected {
        /// Which one.
        connection: ConnectionId,
    },
    /// The gateway describes its end of a link.
    GatewaySignal(Signal),
    /// The gateway's links are up.
    GatewayJoined(Epoch),
    /// The gateway lost a link.
    GatewayLost(Epoch, Failure),
    /// The last request of a draining coalition has ended.
    GatewayDrained(Epoch),
    /// A node says that it leaves; its signature has been checked.
    StandsDown {
        /// Its connection.
        connection: ConnectionId,
        /// What it said.
        word: Box<SignedStandDown>,
    },
    /// Time has passed.
    Tick,
    /// The orchestrator is ending.
    ShutDown,
}

/// What is to be done, in this order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send a message to a node.
    Send {
        /// Its connection.
        connection: ConnectionId,
        /// The message.
        message: ToNode,
    },
    /// End a connection, after everything sent before.
    Close {
        /// Which one.
        connection: ConnectionId,
    },
    /// Remember something before going on.
    Record(Record),
    /// Link the gateway to the members.
    JoinGateway(Box<Assignment>),
    /// A description for the gateway.
    SignalGateway(Signal),
    /// Begin nothing new in this coalition, and say when what runs has ended.
    DrainGateway(Epoch),
    /// End every request of this coalition with this failure.
    LeaveGateway(Epoch, Failure),
}

/// What the store keeps.
#[derive(Clone, Debug)]
pub enum Record {
    /// A node registered.
    Seen(Box<Registration>),
    /// A coalition is being formed; must be stored before any member hears of it.
    Formed(Box<Assignment>),
    /// It answers requests.
    Active(Epoch),
    /// A node said that it leaves.
    StoodDown(Box<SignedStandDown>),
    /// It ended.
    Ended(Epoch, Failure),
}

/// The coalition that is being formed or serves.
#[derive(Clone, Debug)]
pub(crate) struct Coalition {
    pub(crate) assignment: Box<Assignment>,
    pub(crate) stage: Stage,
    pub(crate) since: Instant,
    loaded: BTreeSet<Address>,
    joined: BTreeSet<Address>,
    gateway_joined: bool,
    /// Who leaves after the last request.
    leaver: Option<Address>,
    /// When it was formed.
    formed: Instant,
}

/// The state machine. Owned by the control plane's actor.
#[derive(Debug)]
pub struct Registry {
    roster: Roster,
    serving: Serving,
    timing: Timing,
    next_epoch: Epoch,
    nodes: BTreeMap<Address, Node>,
    coalition: Option<Coalition>,
    changed: Instant,
    not_before: Instant,
    failures: usize,
    /// Why there is no coalition, once that is known for the nodes that are here.
    obstacle: Option<Failure>,
    last_failure: Option<Failure>,
    closed: bool,
}

impl Registry {
    /// An orchestrator that begins with nobody. `next_epoch` is above every epoch used before.
    pub fn new(roster: Roster, serving: Serving, timing: Timing, next_epoch: Epoch, now: Instant) -> Self {
        Self {
            roster,
            serving,
            timing,
            next_epoch,
            nodes: BTreeMap::new(),
            coalition: None,
            changed: now,
            not_before: now,
            failures: 0,
            obstacle: None,
            last_failure: None,
            closed: false,
        }
    }

    /// Takes one event in and says what is to be done.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Registered { connection, registration } => self.register(now, connection, registration, &mut out),
            Input::Said { connection, message } => self.said(now, connection, message, &mut out),
            Input::Disconnected { connection } => self.disconnected(now, connection, &mut out),
            Input::GatewaySignal(signal) => self.relay_from_gateway(signal, &mut out),
            Input::GatewayJoined(epoch) => {
                if let Some(coalition) = self.in_stage(epoch, Stage::Linking) {
                    coalition.gateway_joined = true;
                    self.activate_when_joined(now, &mut out);
                }
            }
            Input::GatewayLost(epoch, failure) => {
                if self.is_current(epoch) {
                    self.end(now, failure, &mut out);
                }
            }
            Input::GatewayDrained(epoch) => self.drained(now, epoch, &mut out),
            Input::StandsDown { connection, word } => self.stands_down(now, connection, word, &mut out),
            Input::Tick => self.check_deadline(now, &mut out),
            Input::ShutDown => {
                self.closed = true;
                self.end(now, Failure::new(ReasonCode::StandDown, "the orchestrator is shutting down"), &mut out);
            }
        }
        self.form_when_possible(now, &mut out);
        out
    }

    /// When [`Input::Tick`] is due at the latest.
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.coalition {
            Some(coalition) => self.deadline(coalition),
            None if self.obstacle.is_some() || !self.anybody_stays() || self.closed => None,
            None => Some(self.form_at()),
        }
    }

    fn register(&mut self, now: Instant, connection: ConnectionId, said: Box<Registration>, out: &mut Vec<Output>) {
        let refuse = |failure, out: &mut Vec<Output>| {
            out.push(Output::Send { connection, message: ToNode::Refused { failure } });
            out.push(Output::Close { connection });
        };
        if self.roster.role(said.address) != Some(RosterRole::Node) {
            let failure = Failure::new(ReasonCode::Unauthorised, "the roster does not name this address as a node");
            return refuse(failure, out);
        }
        if !said.models.contains(&self.serving.model) {
            let failure = Failure::new(
                ReasonCode::Model,
                "the node has other model files than the orchestrator; give both the same model",
            );
            return refuse(failure, out);
        }
        if let Some(old) = self.nodes.remove(&said.address) {
            let failure = Failure::new(ReasonCode::StandDown, "a newer connection of the same node took over");
            out.push(Output::Send { connection: old.connection, message: ToNode::Refused { failure } });
            out.push(Output::Close { connection: old.connection });
            self.lose(now, said.address, out);
        }
        self.nodes.insert(said.address, Node::new(connection, &said));
        self.changed = now;
        self.obstacle = None;
        out.push(Output::Record(Record::Seen(said)));
        out.push(Output::Send { connection, message: ToNode::Registered { gateway: self.roster.gateway } });
    }

    fn disconnected(&mut self, now: Instant, connection: ConnectionId, out: &mut Vec<Output>) {
        let Some(address) = self.address_of(connection) else { return };
        self.nodes.remove(&address);
        self.changed = now;
        self.obstacle = None;
        self.lose(now, address, out);
    }

    /// Ends the coalition that `address` was part of.
    fn lose(&mut self, now: Instant, address: Address, out: &mut Vec<Output>) {
        if self.coalition.as_ref().is_some_and(|coalition| coalition.assignment.index_of(address).is_some()) {
            let message = format!("the connection to {} was lost", self.name(address));
            self.end(now, Failure::new(ReasonCode::PeerLost, message), out);
        }
    }

    fn said(&mut self, now: Instant, connection: ConnectionId, message: ToOrchestrator, out: &mut Vec<Output>) {
        let Some(address) = self.address_of(connection) else { return };
        match message {
            ToOrchestrator::Loaded { epoch, footprint } => {
                let Some(coalition) = self.in_stage(epoch, Stage::Loading) else { return };
                let Some(layers) = coalition.assignment.layers_of(address) else { return };
                coalition.loaded.insert(address);
                let all = coalition.loaded.len() == coalition.assignment.members.len();
                if let Some(node) = self.nodes.get_mut(&address) {
                    node.has_loaded(layers, footprint);
                }
                if all {
                    self.link(now, out);
                }
            }
            ToOrchestrator::Fetching { epoch, done, .. } => self.fetches(now, address, epoch, done),
            ToOrchestrator::Joined { epoch } => {
                let Some(coalition) = self.in_stage(epoch, Stage::Linking) else { return };
                if coalition.assignment.index_of(address).is_some() {
                    coalition.joined.insert(address);
                    self.activate_when_joined(now, out);
                }
            }
            ToOrchestrator::Signal(signal) => self.relay_from_member(now, address, signal, out),
            ToOrchestrator::Failed { epoch, failure } => {
                let member = self.coalition.as_ref().and_then(|coalition| coalition.assignment.index_of(address));
                if self.is_current(epoch) && member.is_some() {
                    let message = format!("{}: {}", self.name(address), failure.message);
                    // The word that one leaves is signed and comes as an input of its own; here it would only spare the
                    // pause before the next attempt.
                    let code = match failure.code {
                        ReasonCode::StandDown => ReasonCode::Protocol,
                        code => code,
                    };
                    self.end(now, Failure::new(code, message), out);
                }
            }
            ToOrchestrator::Stats { epoch, mut stats } => {
                if self.is_current(epoch)
                    && let Some(node) = self.nodes.get_mut(&address)
                {
                    stats.links.truncate(MAX_LINKS);
                    node.stats = Some(stats);
                }
            }
            // Votes concern whoever asked for them, not who serves; a stand-down comes as an input of its own.
            ToOrchestrator::Heartbeat
            | ToOrchestrator::StandDown { .. }
            | ToOrchestrator::Vote { .. }
            | ToOrchestrator::VoteRefused { .. } => {}
            ToOrchestrator::Register(_) => {
                let failure = Failure::new(ReasonCode::Protocol, "a node registers once per connection");
                out.push(Output::Send { connection, message: ToNode::Refused { failure } });
                out.push(Output::Close { connection });
                self.disconnected(now, connection, out);
            }
        }
    }

    /// A member's description goes to the peer it plans a link with, and to nobody else.
    fn relay_from_member(&mut self, now: Instant, sender: Address, signal: Signal, out: &mut Vec<Output>) {
        let Some(coalition) = &self.coalition else { return };
        let planned = coalition.assignment.links_of(sender).iter().any(|link| link.peer == signal.to);
        if signal.epoch != coalition.assignment.epoch || coalition.stage == Stage::Loading {
            return;
        }
        let Some(node) = self.nodes.get_mut(&sender) else { return };
        node.signals += 1;
        if signal.from != sender || !planned || node.signals > MAX_SIGNALS {
            let message = format!("{} sent link descriptions that it may not send", self.name(sender));
            return self.end(now, Failure::new(ReasonCode::Protocol, message), out);
        }
        if signal.to == self.roster.gateway {
            out.push(Output::SignalGateway(signal));
        } else if let Some(peer) = self.nodes.get(&signal.to) {
            out.push(Output::Send { connection: peer.connection, message: ToNode::Signal(signal) });
        }
    }

    fn relay_from_gateway(&self, signal: Signal, out: &mut Vec<Output>) {
        let Some(coalition) = &self.coalition else { return };
        let planned = coalition.assignment.links_of(self.roster.gateway).iter().any(|link| link.peer == signal.to);
        if signal.epoch == coalition.assignment.epoch
            && planned
            && let Some(peer) = self.nodes.get(&signal.to)
        {
            out.push(Output::Send { connection: peer.connection, message: ToNode::Signal(signal) });
        }
    }

    fn form_at(&self) -> Instant {
        let expected = self.roster.members.iter().filter(|member| member.role == RosterRole::Node).count();
        let settled = if self.nodes.len() >= expected { self.changed } else { self.changed + self.timing.settle };
        settled.max(self.not_before)
    }

    fn form_when_possible(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.coalition.is_some() || self.closed || !self.anybody_stays() || self.obstacle.is_some() {
            return;
        }
        if now < self.form_at() {
            return;
        }
        let in_order = self.roster.members.iter().filter_map(|member| {
            let node = self.nodes.get(&member.address).filter(|node| node.leaving.is_none())?;
            Some(Offer { address: member.address, capabilities: &node.capabilities, holds: node.holds.as_ref() })
        });
        let members = match self.serving.place(in_order) {
            Ok(members) => members,
            Err(error) => {
                self.obstacle = Some(Failure::new(ReasonCode::Model, error.to_string()));
                return;
            }
        };
        let epoch = self.next_epoch;
        self.next_epoch = Epoch(epoch.0 + 1);
        let assignment = Box::new(Assignment {
            coalition: self.roster.coalition_id(),
            chain: self.roster.chain,
            epoch,
            model: self.serving.model,
            gateway: self.roster.gateway,
            members,
            wire: self.serving.wire,
            kv_tokens: self.serving.kv_tokens,
            max_context: self.serving.context,
            prefill_chunk: self.serving.prefill_chunk,
        });
        for (address, node) in &mut self.nodes {
            node.begins(assignment.layers_of(*address));
        }
        out.push(Output::Record(Record::Formed(assignment.clone())));
        for connection in self.connections_of(&assignment) {
            out.push(Output::Send { connection, message: ToNode::Assign(assignment.clone()) });
        }
        self.coalition = Some(Coalition {
            assignment,
            stage: Stage::Loading,
            since: now,
            loaded: BTreeSet::new(),
            joined: BTreeSet::new(),
            gateway_joined: false,
            leaver: None,
            formed: now,
        });
    }

    fn link(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(coalition) = &mut self.coalition else { return };
        (coalition.stage, coalition.since) = (Stage::Linking, now);
        let assignment = coalition.assignment.clone();
        let epoch = assignment.epoch;
        for connection in self.connections_of(&assignment) {
            out.push(Output::Send { connection, message: ToNode::Link { epoch } });
        }
        out.push(Output::JoinGateway(assignment));
    }

    fn activate_when_joined(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(coalition) = &mut self.coalition else { return };
        if coalition.gateway_joined && coalition.joined.len() == coalition.assignment.members.len() {
            (coalition.stage, coalition.since) = (Stage::Active, now);
            out.push(Output::Record(Record::Active(coalition.assignment.epoch)));
        }
    }

    fn deadline(&self, coalition: &Coalition) -> Option<Instant> {
        match coalition.stage {
            Stage::Loading => Some(coalition.since + self.timing.load),
            Stage::Linking => Some(coalition.since + self.timing.link),
            // Who drains has a deadline; who serves has none.
            Stage::Active => coalition.leaver.map(|_| coalition.since + self.timing.drain),
            Stage::Waiting => None,
        }
    }

    fn check_deadline(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(coalition) = &self.coalition else { return };
        if self.deadline(coalition).is_none_or(|deadline| now < deadline) {
            return;
        }
        if coalition.stage == Stage::Active {
            return self.end_draining(now, out);
        }
        let done = if coalition.stage == Stage::Loading { &coalition.loaded } else { &coalition.joined };
        let missing: Vec<String> = coalition
            .assignment
            .members
            .iter()
            .filter(|member| !done.contains(&member.address))
            .map(|member| self.name(member.address))
            .collect();
        let what = if coalition.stage == Stage::Loading { "load their layers" } else { "link up" };
        let who = if missing.is_empty() { "the gateway".to_owned() } else { missing.join(", ") };
        self.end(now, Failure::new(ReasonCode::Timeout, format!("{who} did not {what} in time")), out);
    }

    /// Ends the coalition, if there is one: first the clients hear of it, then the members.
    fn end(&mut self, now: Instant, failure: Failure, out: &mut Vec<Output>) {
        let Some(coalition) = self.coalition.take() else { return };
        let epoch = coalition.assignment.epoch;
        if coalition.stage == Stage::Active && now.saturating_duration_since(coalition.since) >= LASTED {
            self.failures = 0;
        }
        if failure.code == ReasonCode::StandDown {
            // Nobody failed: whoever stays may begin anew at once.
            self.not_before = now;
        } else {
            self.not_before = now + RETRY[self.failures.min(RETRY.len() - 1)];
            self.failures += 1;
        }
        self.last_failure = Some(failure.clone());
        if coalition.stage != Stage::Loading {
            out.push(Output::LeaveGateway(epoch, failure.clone()));
        }
        for connection in self.connections_of(&coalition.assignment) {
            out.push(Output::Send { connection, message: ToNode::Dissolve { epoch, failure: failure.clone() } });
        }
        out.push(Output::Record(Record::Ended(epoch, failure)));
    }

    fn connections_of(&self, assignment: &Assignment) -> Vec<ConnectionId> {
        let nodes = assignment.members.iter().filter_map(|member| self.nodes.get(&member.address));
        nodes.map(|node| node.connection).collect()
    }

    pub(crate) fn address_of(&self, connection: ConnectionId) -> Option<Address> {
        self.nodes.iter().find(|(_, node)| node.connection == connection).map(|(address, _)| *address)
    }

    fn is_current(&self, epoch: Epoch) -> bool {
        self.coalition.as_ref().is_some_and(|coalition| coalition.assignment.epoch == epoch)
    }

    fn in_stage(&mut self, epoch: Epoch, stage: Stage) -> Option<&mut Coalition> {
        self.coalition.as_mut().filter(|coalition| coalition.assignment.epoch == epoch && coalition.stage == stage)
    }

    /// The roster's name for a member.
    pub(crate) fn name(&self, address: Address) -> String {
        self.roster.member(address).map_or_else(|| address.to_string(), |member| member.name.clone())
    }

    pub(crate) fn nodes(&self) -> &BTreeMap<Address, Node> {
        &self.nodes
    }

    pub(crate) fn coalition(&self) -> Option<&Coalition> {
        self.coalition.as_ref()
    }

    pub(crate) fn serving(&self) -> &Serving {
        &self.serving
    }

    pub(crate) fn roster(&self) -> &Roster {
        &self.roster
    }

    pub(crate) fn obstacle(&self) -> Option<&Failure> {
        self.obstacle.as_ref()
    }

    pub(crate) fn failures(&self) -> usize {
        self.failures
    }

    pub(crate) fn last_failure(&self) -> Option<&Failure> {
        self.last_failure.as_ref()
    }
}
