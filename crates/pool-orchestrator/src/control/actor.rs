//! Carries out what the registry decides.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use alloy_primitives::Address;
use pool_coalition::{
    Roster,
    proposal::{Ballot, Vote},
};
use pool_models::Model;
use pool_store::{Store, StoreError};
use pool_types::{Epoch, Failure, LayerRange, ReasonCode};
use pool_wire::control::{Assignment, ToNode, ToOrchestrator};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tracing::{error, info, warn};

use super::{
    placing::Serving,
    registry::{ConnectionId, Input, Output, Record, Registry, Timing},
    tap::ControlTap,
    view::{CoalitionView, ConnectedNode, LinkView, MemberView, Stage},
};
use crate::{
    dataplane::{DataPlane, DataPlaneEvent},
    gateway::Privacy,
};

/// What the control plane is told when it starts.
pub struct ControlSettings {
    /// Who may take part.
    pub roster: Roster,
    /// The model and its name in the API.
    pub model: Arc<Model>,
    /// The model's name in the API.
    pub model_name: String,
    /// How it is served.
    pub serving: Serving,
    /// How long things may take.
    pub timing: Timing,
    /// Sees every control message.
    pub tap: ControlTap,
}

/// A handle on the control plane's actor, which owns the [`Registry`], has an inbox of 1,024 messages, and stops
/// when told to by [`ControlPlane::stop`].
#[derive(Clone)]
pub struct ControlPlane {
    inbox: mpsc::Sender<Request>,
    view: watch::Receiver<Arc<CoalitionView>>,
    pub(crate) shared: Arc<Shared>,
}

/// What every socket needs to know.
pub(crate) struct Shared {
    pub(crate) roster: Roster,
    pub(crate) tap: ControlTap,
}

pub(crate) enum Request {
    /// A node that proved who it is; from now on messages for it go into `outbox`.
    Register {
        connection: ConnectionId,
        outbox: mpsc::Sender<ToNode>,
        input: Input,
    },
    Event(Input),
    /// A member's signature is wanted.
    Ballot {
        epoch: Epoch,
        operator: Address,
        ballot: String,
        answer: oneshot::Sender<Result<String, Failure>>,
    },
    Stop(oneshot::Sender<()>),
}

/// How long a member may take to vote.
const VOTE: Duration = Duration::from_secs(10);

impl ControlPlane {
    /// Starts the actor. It ends coalitions that an earlier run left open in the store.
    pub async fn start(
        settings: ControlSettings,
        store: Store,
        dataplane: DataPlane,
        dataplane_events: mpsc::Receiver<DataPlaneEvent>,
    ) -> Result<(Self, JoinHandle<()>), StoreError> {
        let now = unix_now();
        let left_over = Failure::new(ReasonCode::StandDown, "the orchestrator ended");
        store.end_left_over_coalitions(&left_over, now).await?;
        let epoch = store.next_epoch(now).await?;
        let ControlSettings { roster, model, model_name, serving, timing, tap } = settings;
        let registry = Registry::new(roster.clone(), serving, timing, epoch, Instant::now());
        let (inbox, requests) = mpsc::channel(1024);
        let actor = Actor {
            registry,
            model,
            model_name,
            store,
            dataplane,
            outboxes: HashMap::new(),
            ballots: HashMap::new(),
            publish: watch::channel(Arc::new(CoalitionView::default())).0,
        };
        actor.publish_view();
        let view = actor.publish.subscribe();
        let task = tokio::spawn(actor.run(requests, dataplane_events));
        Ok((Self { inbox, view, shared: Arc::new(Shared { roster, tap }) }, task))
    }

    /// The coalition as it is now, and its changes.
    pub fn view(&self) -> watch::Receiver<Arc<CoalitionView>> {
        self.view.clone()
    }

    /// Dissolves the coalition and stops. Returns when members have been told.
    pub async fn stop(&self) {
        let (done, wait) = oneshot::channel();
        if self.inbox.send(Request::Stop(done)).await.is_ok() {
            let _ = wait.await;
        }
    }

    /// Asks a member of the present coalition for its signatures, and checks them.
    pub async fn vote(&self, epoch: Epoch, operator: Address, ballot: &Ballot) -> Result<Vote, Failure> {
        let gone = |_| Failure::new(ReasonCode::StandDown, "the orchestrator is shutting down");
        let text = serde_json::to_string(ballot)
            .map_err(|error| Failure::new(ReasonCode::Protocol, format!("the ballot cannot be written: {error}")))?;
        let (answer, answered) = oneshot::channel();
        let request = Request::Ballot { epoch, operator, ballot: text, answer };
        self.inbox.send(request).await.map_err(|_| gone(()))?;
        let answered = tokio::time::timeout(VOTE, answered).await;
        let late = |_| Failure::new(ReasonCode::Timeout, format!("{operator} did not vote in time"));
        let vote = answered
            .map_err(late)?
            .map_err(|_| Failure::new(ReasonCode::PeerLost, format!("{operator} left before it voted")))??;
        let vote: Vote = serde_json::from_str(&vote).map_err(|error| {
            Failure::new(ReasonCode::Protocol, format!("the vote of {operator} is not one: {error}"))
        })?;
        if !ballot.is_voted_by(operator, &vote) {
            let message = format!("the vote of {operator} is not signed by it");
            return Err(Failure::new(ReasonCode::Unauthorised, message));
        }
        Ok(vote)
    }

    /// `false` when the control plane has stopped.
    pub(crate) async fn tell(&self, request: Request) -> bool {
        self.inbox.send(request).await.is_ok()
    }
}

struct Actor {
    registry: Registry,
    model: Arc<Model>,
    model_name: String,
    store: Store,
    dataplane: DataPlane,
    outboxes: HashMap<ConnectionId, mpsc::Sender<ToNode>>,
    /// Members that were asked for their vote, at most one ballot each.
    ballots: HashMap<Address, (Epoch, oneshot::Sender<Result<String, Failure>>)>,
    publish: watch::Sender<Arc<CoalitionView>>,
}

impl Actor {
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut dataplane_events: mpsc::Receiver<DataPlaneEvent>,
    ) {
        loop {
            let wake = self.registry.wake_at();
            let input = tokio::select! {
                request = requests.recv() => match request {
                    Some(Request::Register { connection, outbox, input }) => {
                        self.outboxes.insert(connection, outbox);
                        input
                    }
                    Some(Request::Event(Input::Said { connection, message: ToOrchestrator::Vote { epoch, vote } })) => {
                        self.voted(connection, epoch, Ok(vote));
                        continue;
                    }
                    Some(Request::Event(Input::Said {
                        connection,
                        message: ToOrchestrator::VoteRefused { epoch, failure },
                    })) => {
                        self.voted(connection, epoch, Err(failure));
                        continue;
                    }
                    Some(Request::Event(input)) => {
                        if let Input::Disconnected { connection } = &input {
                            self.outboxes.remove(connection);
                            if let Some(address) = self.registry.address_of(*connection) {
                                self.ballots.remove(&address);
                            }
                        }
                        input
                    }
                    Some(Request::Ballot { epoch, operator, ballot, answer }) => {
                        self.ask(epoch, operator, ballot, answer);
                        continue;
                    }
                    Some(Request::Stop(done)) => {
                        self.handle(Input::ShutDown).await;
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                Some(event) = dataplane_events.recv() => match event {
                    DataPlaneEvent::Signal(signal) => Input::GatewaySignal(signal),
                    DataPlaneEvent::Joined { epoch } => Input::GatewayJoined(epoch),
                    DataPlaneEvent::Lost { epoch, failure } => Input::GatewayLost(epoch, failure),
                    DataPlaneEvent::Drained { epoch } => Input::GatewayDrained(epoch),
                },
                () = async {
                    match wake {
                        Some(moment) => tokio::time::sleep_until(moment.into()).await,
                        None => std::future::pending().await,
                    }
                } => Input::Tick,
            };
            self.handle(input).await;
        }
    }

    /// Sends a ballot to a member of the present coalition.
    fn ask(
        &mut self,
        epoch: Epoch,
        operator: Address,
        ballot: String,
        answer: oneshot::Sender<Result<String, Failure>>,
    ) {
        let member = self.registry.coalition().is_some_and(|coalition| {
            coalition.assignment.epoch == epoch && coalition.assignment.index_of(operator).is_some()
        });
        let node = self.registry.nodes().get(&operator).filter(|_| member);
        let outbox = node.and_then(|node| self.outboxes.get(&node.connection));
        let sent = outbox.is_some_and(|outbox| outbox.try_send(ToNode::Ballot { epoch, ballot }).is_ok());
        if sent {
            // A ballot that was still open is dropped, which whoever asked will notice.
            self.ballots.insert(operator, (epoch, answer));
        } else {
            let message = format!("{operator} is not a member of the present coalition");
            let _ = answer.send(Err(Failure::new(ReasonCode::PeerLost, message)));
        }
    }

    /// Hands a member's answer to whoever asked.
    fn voted(&mut self, connection: ConnectionId, epoch: Epoch, vote: Result<String, Failure>) {
        let Some(address) = self.registry.address_of(connection) else { return };
        if self.ballots.get(&address).is_some_and(|(asked, _)| *asked == epoch)
            && let Some((_, answer)) = self.ballots.remove(&address)
        {
            let _ = answer.send(vote);
        }
    }

    async fn handle(&mut self, input: Input) {
        let mut waiting = vec![input];
        while let Some(input) = waiting.pop() {
            for output in self.registry.handle(Instant::now(), input) {
                if let Some(connection) = self.carry_out(output).await {
                    // A node that takes no messages is as good as gone.
                    waiting.push(Input::Disconnected { connection });
                }
            }
        }
        self.publish_view();
    }

    /// Returns the connection that turned out to be dead, if one did.
    async fn carry_out(&mut self, output: Output) -> Option<ConnectionId> {
        match output {
            Output::Send { connection, message } => {
                if self.outboxes.get(&connection)?.try_send(message).is_err() {
                    self.outboxes.remove(&connection);
                    return Some(connection);
                }
            }
            // Its socket sends what is queued, then finds the queue closed.
            Output::Close { connection } => drop(self.outboxes.remove(&connection)),
            Output::Record(record) => {
                if let Err(error) = self.record(&record).await {
                    error!(%error, "a change of the coalition could not be stored");
                }
            }
            Output::JoinGateway(assignment) => {
                let roster = self.registry.roster().members.iter().map(|member| member.address).collect();
                let names = self.names(&assignment);
                self.dataplane.join(&self.model_name, *assignment, roster, names);
            }
            Output::SignalGateway(signal) => self.dataplane.signal(&signal),
            Output::DrainGateway(epoch) => self.dataplane.drain(epoch),
            Output::LeaveGateway(epoch, failure) => self.dataplane.leave(epoch, failure),
        }
        None
    }

    async fn record(&self, record: &Record) -> Result<(), StoreError> {
        let now = unix_now();
        match record {
            Record::Seen(said) => {
                info!(node = %self.registry.name(said.address), address = %said.address, "a node registered");
                self.store.node_seen(said.address, &said.name, &said.capabilities, now).await
            }
            Record::Formed(assignment) => {
                info!(epoch = %assignment.epoch, members = ?self.names(assignment), "forming a coalition");
                self.store.coalition_formed(assignment.epoch, assignment.model, assignment, now).await
            }
            Record::Active(epoch) => {
                info!(%epoch, "the coalition is active");
                self.store.coalition_active(*epoch, now).await
            }
            Record::StoodDown(word) => {
                let said = &word.stand_down;
                info!(node = %self.registry.name(said.operator), epoch = %said.epoch, manner = said.manner.as_str(), "a node stands down");
                self.store.stood_down(word, now).await
            }
            Record::Ended(epoch, failure) => {
                match failure.code {
                    ReasonCode::StandDown => info!(%epoch, reason = %failure, "the coalition ended"),
                    _ => warn!(%epoch, reason = %failure, "the coalition ended"),
                }
                self.store.coalition_ended(*epoch, failure, now).await
            }
        }
    }

    fn names(&self, assignment: &Assignment) -> Vec<(String, LayerRange)> {
        let members = assignment.members.iter();
        members.map(|member| (self.registry.name(member.address), member.layers)).collect()
    }

    fn publish_view(&self) {
        let registry = &self.registry;
        let name = |address: Address| registry.name(address);
        let serving = registry.serving();
        let nodes = registry.nodes();
        let coalition = registry.coalition();
        let members: Vec<MemberView> = coalition
            .iter()
            .flat_map(|coalition| &coalition.assignment.members)
            .map(|member| {
                let node = nodes.get(&member.address);
                MemberView {
                    address: member.address,
                    name: name(member.address),
                    layers: member.layers,
                    layer_bytes: serving.file_bytes(&*self.model.source, member.layers),
                    footprint: node.and_then(|node| node.footprint),
                    stats: node.and_then(|node| node.stats.clone()),
                }
            })
            .collect();
        let links = members
            .iter()
            .flat_map(|member| {
                let reports = member.stats.iter().flat_map(|stats| &stats.links);
                reports.map(|report| LinkView::new(member.name.clone(), name(report.peer), report))
            })
            .collect();
        let view = CoalitionView {
            state: coalition.map_or(Stage::Waiting, |coalition| coalition.stage),
            reason: registry.reason(),
            obstacle: registry.obstacle().map(|failure| failure.message.clone()),
            failures: registry.failures(),
            last_failure: registry.last_failure().cloned(),
            epoch: coalition.map(|coalition| coalition.assignment.epoch),
            model: self.model_name.clone(),
            model_id: serving.model,
            layers: serving.layers,
            wire: Some(serving.wire),
            kv_tokens: serving.kv_tokens,
            max_context: serving.context,
            prefill_chunk: serving.prefill_chunk,
            gateway: registry.roster().gateway,
            privacy: Privacy::OwnMachines.sentence().to_owned(),
            members,
            connected: nodes
                .iter()
                .map(|(address, node)| ConnectedNode {
                    address: *address,
                    name: name(*address),
                    capabilities: node.capabilities.clone(),
                })
                .collect(),
            links,
        };
        self.publish.send_if_modified(|current| {
            let changed = **current != view;
            if changed {
                *current = Arc::new(view);
            }
            changed
        });
    }
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
