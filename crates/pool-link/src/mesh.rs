//! All links of one member for one assignment: made, kept, and ended together.
//!
//! A [`Mesh`] owns one task per link that connects and then reads, and one that writes. What arrives goes, as
//! whole frames, to the owner's bounded inbox, and each link's share of it is bounded in bytes: a peer that floods
//! waits, and fills nobody's memory. What is sent waits in a bounded queue per link. A queue that
//! is full, a link that ends and a peer that sends garbage end the mesh: the owner hears [`MeshEvent::Lost`]
//! once. Dropping the mesh, or [`Mesh::close`], ends every task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use alloy_primitives::Address;
use bytes::Bytes;
use pool_types::{Epoch, Failure, ReasonCode};
use pool_wire::Assembler;
use pool_wire::control::{Assignment, LinkPlan, LinkReport, Signal};
use pool_wire::frame::{self, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::webrtc::{LinkSettings, WebRtcLink};
use crate::{Description, Lane, LinkIdentity, Transport, VerifyContext};

/// Messages that may wait to be sent on one link. Credits bound what a well-behaved coalition has in flight
/// far below this.
const OUTBOUND: usize = 4096;
/// Descriptions that may wait for one link.
const SIGNALS: usize = 8;
/// Longest body on a link: a prefill chunk of hidden states, or a prompt.
const MAX_BODY: usize = 16 << 20;

/// Bytes that one link may have in the owner's inbox; then its reader waits, and soon the peer's sends do. Twice the
/// longest body, so that a whole one always fits beside what came with it.
const UNREAD: usize = 2 * MAX_BODY;

/// What a mesh tells its owner.
#[derive(Debug)]
pub enum MeshEvent {
    /// A description to be relayed to `signal.to`.
    Signal(Signal),
    /// Whole bodies that came together in one message, in order.
    Frames {
        /// Who sent them.
        from: Address,
        /// The bodies.
        frames: Parcel,
    },
    /// Every link is up.
    Joined,
    /// A link did not come up, or ended. Comes once; nothing follows.
    Lost {
        /// The other end.
        peer: Address,
        /// Why.
        failure: Failure,
    },
}

/// Frames on their way to the owner. Counts against its link's share of the inbox until it, or the iterator over it,
/// is dropped.
#[derive(Debug)]
pub struct Parcel {
    frames: Vec<Frame>,
    held: OwnedSemaphorePermit,
}

impl std::ops::Deref for Parcel {
    type Target = [Frame];

    fn deref(&self) -> &[Frame] {
        &self.frames
    }
}

impl IntoIterator for Parcel {
    type Item = Frame;
    type IntoIter = ParcelFrames;

    fn into_iter(self) -> ParcelFrames {
        ParcelFrames { frames: self.frames.into_iter(), _held: self.held }
    }
}

/// The frames of a [`Parcel`], one after the other.
#[derive(Debug)]
pub struct ParcelFrames {
    frames: std::vec::IntoIter<Frame>,
    _held: OwnedSemaphorePermit,
}

impl Iterator for ParcelFrames {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        self.frames.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.frames.size_hint()
    }
}

/// What a mesh needs to know.
#[derive(Clone)]
pub struct MeshPlan {
    /// Our link key and the wallet's word for it.
    pub identity: Arc<LinkIdentity>,
    /// Who holds which layers, and who the gateway is.
    pub assignment: Assignment,
    /// The wallets that may be linked with at all.
    pub roster: BTreeSet<Address>,
    /// How links are made.
    pub settings: LinkSettings,
    /// Unix seconds now.
    pub clock: fn() -> u64,
}

/// A frame could not be queued: the peer does not take what it is sent, or there is no such link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the link to {0} takes no more")]
pub struct Backlogged(pub Address);

struct Port {
    outbound: mpsc::Sender<(Lane, Bytes)>,
    signals: mpsc::Sender<Description>,
    link: watch::Receiver<Option<Arc<WebRtcLink>>>,
}

/// The links of one assignment.
pub struct Mesh {
    ports: BTreeMap<Address, Port>,
    _tasks: JoinSet<()>,
}

/// The way from the link tasks to the owner.
struct Outlet<E> {
    epoch: Epoch,
    owner: mpsc::Sender<E>,
    missing: AtomicUsize,
    lost: AtomicBool,
}

impl<E: From<(Epoch, MeshEvent)> + Send + 'static> Outlet<E> {
    async fn tell(&self, event: MeshEvent) {
        // An owner that is gone has dropped the mesh, too: its tasks end at their next wait.
        let _ = self.owner.send((self.epoch, event).into()).await;
    }

    async fn lost(&self, peer: Address, failure: Failure) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            self.tell(MeshEvent::Lost { peer, failure }).await;
        }
    }
}

impl Mesh {
    /// Begins to link with every peer of the assignment. `owner` receives all events, made from
    /// (epoch, [`MeshEvent`]); a full inbox makes the peers wait. Must be called inside a Tokio runtime.
    pub fn start<E: From<(Epoch, MeshEvent)> + Send + 'static>(plan: MeshPlan, owner: mpsc::Sender<E>) -> Mesh {
        let links = plan.assignment.links_of(plan.identity.wallet());
        let outlet = Arc::new(Outlet {
            epoch: plan.assignment.epoch,
            owner,
            missing: AtomicUsize::new(links.len()),
            lost: AtomicBool::new(false),
        });
        let plan = Arc::new(plan);
        let mut tasks = JoinSet::new();
        let mut ports = BTreeMap::new();
        for link in links {
            let (outbound, outbound_out) = mpsc::channel(OUTBOUND);
            let (signals, signals_out) = mpsc::channel(SIGNALS);
            let (up, link_out) = watch::channel(None);
            ports.insert(link.peer, Port { outbound, signals, link: link_out });
            tasks.spawn(keep_link(plan.clone(), link, signals_out, outbound_out, up, outlet.clone()));
        }
        Mesh { ports, _tasks: tasks }
    }

    /// Hands in a description from a peer. One that belongs to no link, or comes too often, is dropped.
    pub fn signal(&self, signal: &Signal) {
        let Some(port) = self.ports.get(&signal.from) else { return };
        match serde_json::from_str::<Description>(&signal.description) {
            Ok(description) => drop(port.signals.try_send(description)),
            Err(error) => tracing::warn!(from = %signal.from, %error, "a link description that is none"),
        }
    }

    /// Queues frames for a peer, packed into as few messages as hold them. Those for a link that has ended go
    /// nowhere: [`MeshEvent::Lost`] says why it did.
    pub fn send(&self, to: Address, lane: Lane, frames: &[Frame]) -> Result<(), Backlogged> {
        let port = self.ports.get(&to).ok_or(Backlogged(to))?;
        for message in frame::messages(frames) {
            if let Err(mpsc::error::TrySendError::Full(_)) = port.outbound.try_send((lane, message)) {
                return Err(Backlogged(to));
            }
        }
        Ok(())
    }

    /// The counters of every link that is up.
    pub fn reports(&self) -> Vec<LinkReport> {
        let report = |(peer, port): (&Address, &Port)| {
            let stats = port.link.borrow().as_ref()?.stats();
            Some(LinkReport {
                peer: *peer,
                act_bytes_sent: stats.act.bytes_sent,
                act_bytes_received: stats.act.bytes_received,
                ctl_bytes_sent: stats.ctl.bytes_sent,
                ctl_bytes_received: stats.ctl.bytes_received,
                round_trip_p50_micros: stats.round_trip.map(|r| r.p50.as_micros() as u64),
                round_trip_p99_micros: stats.round_trip.map(|r| r.p99.as_micros() as u64),
            })
        };
        self.ports.iter().filter_map(report).collect()
    }

    /// Ends every link, telling the peers.
    pub async fn close(self) {
        for port in self.ports.values() {
            let link = port.link.borrow().clone();
            if let Some(link) = link {
                link.close().await;
            }
        }
    }
}

async fn keep_link<E: From<(Epoch, MeshEvent)> + Send + 'static>(
    plan: Arc<MeshPlan>,
    link: LinkPlan,
    signals: mpsc::Receiver<Description>,
    outbound: mpsc::Receiver<(Lane, Bytes)>,
    up: watch::Sender<Option<Arc<WebRtcLink>>>,
    outlet: Arc<Outlet<E>>,
) {
    let connected = match connect(&plan, &link, signals, &outlet).await {
        Ok(connected) => Arc::new(connected),
        Err(failure) => return outlet.lost(link.peer, failure).await,
    };
    up.send_replace(Some(connected.clone()));
    if outlet.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
        outlet.tell(MeshEvent::Joined).await;
    }
    let failure = tokio::select! {
        failure = read(&connected, &outlet) => failure,
        failure = write(&connected, outbound) => failure,
    };
    outlet.lost(link.peer, failure).await;
    // Closing waits for the peer; the owner has been told already.
    connected.close().await;
}

/// Makes the link: offers, or answers the first offer that holds.
async fn connect<E: From<(Epoch, MeshEvent)> + Send + 'static>(
    plan: &MeshPlan,
    link: &LinkPlan,
    mut signals: mpsc::Receiver<Description>,
    outlet: &Outlet<E>,
) -> Result<WebRtcLink, Failure> {
    let deadline = plan.settings.connect_deadline * 2;
    let context = |now| VerifyContext {
        members: plan.roster.clone(),
        me: plan.identity.wallet(),
        coalition: plan.assignment.coalition,
        chain: plan.assignment.chain,
        epoch: plan.assignment.epoch,
        now,
    };
    let refused = |error: &dyn std::fmt::Display| {
        Failure::new(ReasonCode::PeerLost, format!("no link with {}: {error}", link.peer))
    };
    let attempt = async {
        if link.offers {
            let (pending, offer) =
                WebRtcLink::offer(&plan.identity, link.peer, &context((plan.clock)()), plan.settings.clone())
                    .await
                    .map_err(|e| refused(&e))?;
            tell_description(plan, link, &offer, outlet).await?;
            // An answer that does not hold is not the peer's word: wait for the one that does.
            let answer = loop {
                let answer = signals.recv().await.ok_or_else(|| refused(&"the mesh is gone"))?;
                match crate::verify_answer(&answer, link.peer, offer.nonce, &context((plan.clock)())) {
                    Ok(()) => break answer,
                    Err(error) => tracing::warn!(peer = %link.peer, %error, "an answer was refused"),
                }
            };
            return pending.accept(&answer, (plan.clock)()).await.map_err(|e| refused(&e));
        }
        loop {
            let offer = signals.recv().await.ok_or_else(|| refused(&"the mesh is gone"))?;
            if offer.from != link.peer {
                tracing::warn!(peer = %link.peer, "an offer that names somebody else was refused");
                continue;
            }
            match WebRtcLink::answer(&plan.identity, &offer, &context((plan.clock)()), plan.settings.clone()).await {
                Ok((answer, pending)) => {
                    tell_description(plan, link, &answer, outlet).await?;
                    return pending.established().await.map_err(|e| refused(&e));
                }
                Err(error) => tracing::warn!(peer = %link.peer, %error, "an offer was refused"),
            }
        }
    };
    tokio::time::timeout(deadline, attempt).await.unwrap_or_else(|_| Err(refused(&"the deadline passed")))
}

async fn tell_description<E: From<(Epoch, MeshEvent)> + Send + 'static>(
    plan: &MeshPlan,
    link: &LinkPlan,
    description: &Description,
    outlet: &Outlet<E>,
) -> Result<(), Failure> {
    let description = serde_json::to_string(description)
        .map_err(|e| Failure::new(ReasonCode::Protocol, format!("a link description cannot be written: {e}")))?;
    let (epoch, from) = (plan.assignment.epoch, plan.identity.wallet());
    outlet.tell(MeshEvent::Signal(Signal { epoch, from, to: link.peer, description })).await;
    Ok(())
}

async fn read<E: From<(Epoch, MeshEvent)> + Send + 'static>(link: &WebRtcLink, outlet: &Outlet<E>) -> Failure {
    let peer = link.peer();
    let garbage = |error: &dyn std::fmt::Display| {
        Failure::new(ReasonCode::Protocol, format!("{peer} sent what is no frame: {error}"))
    };
    let mut assemblers = [Assembler::new(MAX_BODY), Assembler::new(MAX_BODY)];
    let unread = Arc::new(Semaphore::new(UNREAD));
    loop {
        let (lane, message) = match link.receive().await {
            Ok(received) => received,
            Err(error) => return Failure::new(ReasonCode::PeerLost, format!("the link with {peer} ended: {error}")),
        };
        let assembler = match lane {
            Lane::Act => &mut assemblers[0],
            Lane::Ctl => &mut assemblers[1],
            Lane::Beat => continue,
        };
        let mut frames = Vec::new();
        for frame in frame::parse(message) {
            match frame.map_err(|e| garbage(&e)).and_then(|f| assembler.push(f).map_err(|e| garbage(&e))) {
                Ok(whole) => frames.extend(whole),
                Err(failure) => return failure,
            }
        }
        if !frames.is_empty() {
            let bytes = frames.iter().map(Frame::encoded_len).sum::<usize>().min(UNREAD);
            let Ok(held) = unread.clone().acquire_many_owned(bytes as u32).await else {
                return Failure::new(ReasonCode::PeerLost, format!("the inbox of the link with {peer} is closed"));
            };
            outlet.tell(MeshEvent::Frames { from: peer, frames: Parcel { frames, held } }).await;
        }
    }
}

async fn write(link: &WebRtcLink, mut outbound: mpsc::Receiver<(Lane, Bytes)>) -> Failure {
    let peer = link.peer();
    while let Some((lane, message)) = outbound.recv().await {
        if let Err(error) = link.send(lane, message).await {
            return Failure::new(ReasonCode::PeerLost, format!("the link with {peer} ended: {error}"));
        }
    }
    // The mesh was dropped: nothing more to send; the reader ends with it.
    std::future::pending().await
}

#[cfg(test)]
mod tests;
