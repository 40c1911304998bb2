//! The real link: three WebRTC data channels to a member whose wallet, certificate and membership were checked.
//!
//! One side makes a [`WebRtcLink::offer`], the other [answers](WebRtcLink::answer); the signed descriptions travel
//! by any way, all candidates inside. Neither side's certificate is believed because of the way it came: it must be
//! the one that the member's link key signed.
//!
//! Each link has two tasks besides the stack's own: one for signs of life, which also ends the link, and one for
//! tail probes, which sleeps unless something is unacknowledged. Received messages go from the stack's queue to
//! [`Transport::receive`] without another task between.

mod beat;
mod probe;
mod raw;
mod settings;
mod socket;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::timeout,
};
use webrtc::data_channel::{DataChannel, DataChannelEvent};

use self::{
    probe::Prober,
    raw::{Connected, Connecting},
    socket::Arrivals,
};
use crate::{
    identity::LinkIdentity,
    signal::{Description, DescriptionRole, SignalError, VerifyContext, verify_answer, verify_offer},
    stats::{Counters, LinkStats},
    transport::{CloseReason, Lane, LinkError, MAX_MESSAGE, MIN_MESSAGE, Transport, check_length},
};

pub use self::{
    raw::ConnectError,
    settings::{IceServer, LinkSettings, TailProbes},
};

/// A link over WebRTC data channels. Dropping it closes it.
pub struct WebRtcLink {
    shared: Arc<Shared>,
    /// Messages of the upper layers on the lossy lane.
    upper: Mutex<mpsc::Receiver<Bytes>>,
    finished: watch::Receiver<bool>,
}

/// An offer waiting for its answer. Dropping it gives up.
pub struct PendingLink {
    connecting: Connecting,
    settings: LinkSettings,
    context: VerifyContext,
    peer: Address,
    nonce: B256,
}

/// An answer waiting for the peer to connect. Dropping it gives up.
pub struct PendingAnswer {
    connecting: Connecting,
    settings: LinkSettings,
    peer: Address,
    fingerprint: B256,
}

/// What the link shares with its tasks.
struct Shared {
    peer: Address,
    lanes: [Arc<dyn DataChannel>; 3],
    settings: LinkSettings,
    counters: Counters,
    /// Set once; everything ends when it is.
    ended: watch::Sender<Option<CloseReason>>,
    prober: Prober,
    clock: Instant,
    /// When the peer was last heard of, in microseconds on `clock`.
    heard: AtomicU64,
    arrivals: Arc<Arrivals>,
}

impl Shared {
    /// Microseconds since the link began; never 0.
    fn now(&self) -> u64 {
        self.clock.elapsed().as_micros() as u64 + 1
    }

    fn lane(&self, lane: Lane) -> &Arc<dyn DataChannel> {
        &self.lanes[lane.index()]
    }

    fn heard_now(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    /// Ends the link, unless it has ended already.
    fn end(&self, reason: CloseReason) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                tracing::debug!(peer = %self.peer, %reason, "link ended");
                *ended = Some(reason);
            }
            first
        });
    }

    fn reason(&self) -> Option<CloseReason> {
        *self.ended.borrow()
    }

    /// Waits until the link has ended.
    async fn over(&self) -> CloseReason {
        let mut ended = self.ended.subscribe();
        let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| *reason);
        reason.unwrap_or(CloseReason::Here)
    }

    fn check(&self, message: &Bytes) -> Result<(), LinkError> {
        check_length(message)?;
        self.reason().map_or(Ok(()), |reason| Err(reason.into()))
    }

    fn sent(&self, lane: Lane, bytes: usize) {
        self.counters.sent(lane, bytes);
        self.prober.sent(lane, self.now());
    }
}

/// The form of a message on its lane: the lossy lane is shared with heartbeats.
fn packed(lane: Lane, message: Bytes) -> BytesMut {
    match lane {
        Lane::Act | Lane::Ctl => message.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..])),
        Lane::Beat => {
            let mut packed = BytesMut::with_capacity(message.len() + 1);
            packed.put_u8(beat::DATA);
            packed.extend_from_slice(&message);
            packed
        }
    }
}

impl WebRtcLink {
    /// Offers a link to `peer`: gathers our addresses and signs them, with our certificate's fingerprint.
    /// `context.now` is the time of the signature.
    pub async fn offer(
        identity: &LinkIdentity,
        peer: Address,
        context: &VerifyContext,
        settings: LinkSettings,
    ) -> Result<(PendingLink, Description), ConnectError> {
        if !context.members.contains(&peer) {
            return Err(SignalError::NotAMember(peer).into());
        }
        let (connecting, sdp) = Connecting::offer(&settings).await?;
        let nonce = B256::random();
        let role = DescriptionRole::Offer;
        let offer = Description::sign(identity, context, peer, role, nonce, sdp, settings.description_lifetime)?;
        let context = context.clone();
        Ok((PendingLink { connecting, settings, context, peer, nonce }, offer))
    }

    /// Answers `offer` after checking everything it claims; `context.now` is the time. The caller guards against
    /// replay ([`crate::ReplayGuard`]).
    pub async fn answer(
        identity: &LinkIdentity,
        offer: &Description,
        context: &VerifyContext,
        settings: LinkSettings,
    ) -> Result<(Description, PendingAnswer), ConnectError> {
        verify_offer(offer, context)?;
        let (connecting, sdp) = Connecting::answer(&settings, &offer.sdp).await?;
        let (peer, role) = (offer.from, DescriptionRole::Answer);
        let answer = Description::sign(identity, context, peer, role, offer.nonce, sdp, settings.description_lifetime)?;
        Ok((answer, PendingAnswer { connecting, settings, peer, fingerprint: offer.fingerprint }))
    }

    fn start(connected: Connected, peer: Address, settings: LinkSettings) -> Self {
        let Connected { connection, state, lanes, arrivals, path } = connected;
        let (upper_in, upper) = mpsc::channel(beat::UPPER_QUEUE);
        let (finished_in, finished) = watch::channel(false);
        let clock = Instant::now();
        let shared = Arc::new(Shared {
            peer,
            lanes,
            settings,
            counters: Counters::new(path),
            ended: watch::Sender::new(None),
            prober: Prober::default(),
            clock,
            heard: AtomicU64::new(1),
            arrivals,
        });
        if shared.settings.probes.is_some() {
            tokio::spawn(probe::run(shared.clone()));
        }
        tokio::spawn(beat::run(shared.clone(), connection, state, upper_in, finished_in));
        Self { shared, upper: Mutex::new(upper), finished }
    }

    /// A message from a reliable lane, or `None` for what is not data.
    fn accept(&self, lane: Lane, event: Option<DataChannelEvent>) -> Option<Bytes> {
        match event {
            Some(DataChannelEvent::OnMessage(message)) => {
                let message = message.data.freeze();
                self.shared.heard_now();
                if message.len() > MAX_MESSAGE {
                    self.shared.end(CloseReason::Protocol);
                }
                let data = (MIN_MESSAGE..=MAX_MESSAGE).contains(&message.len());
                data.then(|| {
                    self.shared.counters.received(lane, message.len());
                    message
                })
            }
            Some(DataChannelEvent::OnClosing | DataChannelEvent::OnClose | DataChannelEvent::OnError) | None => {
                self.shared.end(CloseReason::There);
                None
            }
            Some(_) => None,
        }
    }
}

impl PendingLink {
    /// Takes the peer's answer, checks it, and connects; `now` is the time in Unix seconds. Returns once all lanes are
    /// open and the peer has proven to hold the certificate that it signed.
    pub async fn accept(mut self, answer: &Description, now: u64) -> Result<WebRtcLink, ConnectError> {
        verify_answer(answer, self.peer, self.nonce, &self.context.at(now))?;
        self.connecting.take_answer(&answer.sdp).await?;
        let connected = self.connecting.connected(Some(answer.fingerprint)).await?;
        Ok(WebRtcLink::start(connected, self.peer, self.settings))
    }
}

impl PendingAnswer {
    /// Waits until the peer has connected, all lanes are open, and it has proven to hold the certificate that it signed.
    pub async fn established(self) -> Result<WebRtcLink, ConnectError> {
        let connected = self.connecting.connected(Some(self.fingerprint)).await?;
        Ok(WebRtcLink::start(connected, self.peer, self.settings))
    }
}

#[async_trait]
impl Transport for WebRtcLink {
    fn peer(&self) -> Address {
        self.shared.peer
    }

    async fn send(&self, lane: Lane, message: Bytes) -> Result<(), LinkError> {
        let shared = &self.shared;
        shared.check(&message)?;
        let bytes = message.len();
        let sent = timeout(shared.settings.send_deadline, shared.lane(lane).send(packed(lane, message)));
        match sent.await {
            Ok(Ok(())) => {
                shared.sent(lane, bytes);
                Ok(())
            }
            Ok(Err(_)) => Err(shared.reason().unwrap_or(CloseReason::There).into()),
            Err(_) => Err(LinkError::Deadline),
        }
    }

    async fn try_send(&self, lane: Lane, message: Bytes) -> Result<(), LinkError> {
        let shared = &self.shared;
        shared.check(&message)?;
        let bytes = message.len();
        match shared.lane(lane).try_send(packed(lane, message)).await {
            Ok(()) => {
                shared.sent(lane, bytes);
                Ok(())
            }
            Err(webrtc::error::Error::ErrSendBufferFull) => Err(LinkError::Full),
            Err(_) => Err(shared.reason().unwrap_or(CloseReason::There).into()),
        }
    }

    async fn receive(&self) -> Result<(Lane, Bytes), LinkError> {
        let shared = &self.shared;
        if shared.reason() == Some(CloseReason::Protocol) {
            return Err(CloseReason::Protocol.into());
        }
        let mut upper = self.upper.lock().await;
        // Once a lane has ended it is left alone, so that what the others still hold is handed out.
        let (mut act_open, mut ctl_open) = (true, true);
        loop {
            let (lane, event) = tokio::select! {
                biased;
                event = shared.lane(Lane::Ctl).poll(), if ctl_open => (Lane::Ctl, event),
                event = shared.lane(Lane::Act).poll(), if act_open => (Lane::Act, event),
                Some(message) = upper.recv() => {
                    shared.counters.received(Lane::Beat, message.len());
                    return Ok((Lane::Beat, message));
                }
                reason = shared.over() => return Err(reason.into()),
            };
            match lane {
                Lane::Ctl => ctl_open = event.is_some(),
                _ => act_open = event.is_some(),
            }
            if let Some(message) = self.accept(lane, event) {
                return Ok((lane, message));
            }
            if shared.reason() == Some(CloseReason::Protocol) {
                return Err(CloseReason::Protocol.into());
            }
        }
    }

    fn stats(&self) -> LinkStats {
        self.shared.counters.snapshot()
    }

    async fn close(&self) {
        self.shared.end(CloseReason::Here);
        let _ = self.finished.clone().wait_for(|finished| *finished).await;
    }
}

impl Drop for WebRtcLink {
    fn drop(&mut self) {
        self.shared.end(CloseReason::Here);
    }
}

/// Links to WebRTC implementations that know nothing of our signatures. Only for tests/interop.
#[cfg(feature = "interop")]
pub mod interop {
    use super::*;

    /// An unsigned offer waiting for its answer.
    pub struct PendingForeign(Connecting, LinkSettings);

    /// Offers a link to a peer that nobody vouches for. Returns the session description.
    pub async fn offer(settings: LinkSettings) -> Result<(PendingForeign, String), ConnectError> {
        let (connecting, sdp) = Connecting::offer(&settings).await?;
        Ok((PendingForeign(connecting, settings), sdp))
    }

    impl PendingForeign {
        /// Takes the peer's session description and connects. The certificate is checked against that description only.
        pub async fn accept(mut self, answer: &str) -> Result<WebRtcLink, ConnectError> {
            self.0.take_answer(answer).await?;
            Ok(WebRtcLink::start(self.0.connected(None).await?, Address::ZERO, self.1))
        }
    }
}

#[cfg(test)]
mod tests;
