//! A connection with three open lanes, before anybody has said who is at the other end.

use std::{collections::HashMap, sync::Arc, time::Duration};

use alloy_primitives::B256;
use async_trait::async_trait;
use rtc::{
    ice::mdns::MulticastDnsMode, peer_connection::configuration::setting_engine::SctpMaxMessageSize,
    peer_connection::transport::RTCIceCandidateType,
};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};
use webrtc::{
    data_channel::{DataChannel, DataChannelEvent, RTCDataChannelInit},
    peer_connection::{
        PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCConfigurationBuilder,
        RTCIceGatheringState, RTCIceServer, RTCIceTransportPolicy, RTCPeerConnectionState, RTCSessionDescription,
        SettingEngineBuilder,
    },
};

use super::{
    settings::LinkSettings,
    socket::{Arrivals, BufferedRuntime},
};
use crate::{
    signal::SignalError,
    stats::LinkPath,
    transport::{Lane, MAX_MESSAGE},
};

/// The size of SCTP packets on the loopback interface, whose own limit is 64 KiB. A DTLS record holds 16 KiB. Large
/// packets save most of a message's cost, which is per packet.
const LOOPBACK_PACKET: u32 = 16_000;
/// ICE tries every pair of addresses this often until the deadline.
const ICE_CHECK: Duration = Duration::from_millis(50);

/// Why no link came to be.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// A description or signature does not hold.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// Something took too long.
    #[error("{0} took too long")]
    Deadline(&'static str),
    /// No way to the peer, or the peer could not prove to hold the certificate that it signed.
    #[error("no secure way to the peer was found")]
    Unreachable,
    /// The peer's certificate is not the signed one.
    #[error("the peer shows another certificate than the one it signed")]
    Certificate,
    /// The peer opened other channels than a link has.
    #[error("the peer did not open the three lanes of a link")]
    Lanes,
    /// The WebRTC stack failed.
    #[error("{operation} failed: {source}")]
    Stack {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: webrtc::error::Error,
    },
}

pub(super) fn stack(operation: &'static str) -> impl FnOnce(webrtc::error::Error) -> ConnectError {
    move |source| ConnectError::Stack { operation, source }
}

/// What the stack reports, turned into values to wait on.
struct Events {
    gathered: watch::Sender<bool>,
    state: watch::Sender<RTCPeerConnectionState>,
    opened: mpsc::Sender<Arc<dyn DataChannel>>,
}

#[async_trait]
impl PeerConnectionEventHandler for Events {
    async fn on_ice_gathering_state_change(&self, state: RTCIceGatheringState) {
        if state == RTCIceGatheringState::Complete {
            self.gathered.send_replace(true);
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        tracing::debug!(%state, "link state");
        self.state.send_replace(state);
    }

    async fn on_data_channel(&self, channel: Arc<dyn DataChannel>) {
        // More than three wait for nobody: `accept_lanes` has failed or finished, and dropping the channel is right.
        let _ = self.opened.try_send(channel);
    }
}

/// A connection in the making. Closed when dropped before it is [`Connected`].
pub(super) struct Connecting {
    guard: Guard,
    gathered: watch::Receiver<bool>,
    state: watch::Receiver<RTCPeerConnectionState>,
    opened: mpsc::Receiver<Arc<dyn DataChannel>>,
    /// The offering side's lanes, in the order of [`Lane::ALL`]; empty on the answering side.
    own: Vec<Arc<dyn DataChannel>>,
    arrivals: Arc<Arrivals>,
    deadline: Duration,
}

/// A secure connection with its three lanes, in the order of [`Lane::ALL`].
pub(super) struct Connected {
    pub(super) connection: Arc<dyn PeerConnection>,
    pub(super) state: watch::Receiver<RTCPeerConnectionState>,
    pub(super) lanes: [Arc<dyn DataChannel>; 3],
    pub(super) arrivals: Arc<Arrivals>,
    pub(super) path: LinkPath,
}

/// Closes the connection when dropped: the stack's own drop would leave its task running.
struct Guard(Option<Arc<dyn PeerConnection>>);

impl Guard {
    fn get(&self) -> Result<&Arc<dyn PeerConnection>, ConnectError> {
        self.0.as_ref().ok_or(ConnectError::Unreachable)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let (Some(connection), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let _ = connection.close().await;
            });
        }
    }
}

impl Connecting {
    async fn new(settings: &LinkSettings) -> Result<Self, ConnectError> {
        let mut engine = SettingEngineBuilder::new()
            .with_include_loopback_candidate(true)
            // Binding the multicast port fails outright on hosts without multicast.
            .with_multicast_dns_mode(MulticastDnsMode::Disabled)
            .with_sctp_max_message_size(SctpMaxMessageSize::Bounded(MAX_MESSAGE as u32))
            .with_ice_connection_attempts(
                Some(ICE_CHECK),
                Some(u16::try_from(settings.connect_deadline.as_millis() / ICE_CHECK.as_millis()).unwrap_or(u16::MAX)),
            )
            .with_host_acceptance_min_wait(Some(Duration::ZERO))
            // Signs of life that do not queue behind lost data, as everything inside SCTP does.
            .with_ice_timeouts(None, None, Some(settings.heartbeat));
        if let Some(window) = settings.receive_window {
            engine = engine.with_sctp_max_receive_buffer_size(window.max(2 * MAX_MESSAGE as u32));
        }
        if let Some(bytes) = settings.packet_size.or(settings.loopback_only.then_some(LOOPBACK_PACKET)) {
            engine = engine.with_sctp_mtu(bytes);
        }
        let servers = settings.ice_servers.iter().map(|server| RTCIceServer {
            urls: server.urls.clone(),
            username: server.username.clone(),
            credential: server.credential.clone(),
        });
        let mut configuration = RTCConfigurationBuilder::new().with_ice_servers(servers.collect());
        if settings.relay_only {
            configuration = configuration.with_ice_transport_policy(RTCIceTransportPolicy::Relay);
        }
        let (gathered_in, gathered) = watch::channel(false);
        let (state_in, state) = watch::channel(RTCPeerConnectionState::New);
        let (opened_in, opened) = mpsc::channel(Lane::ALL.len());
        let arrivals = Arc::new(Arrivals::new());
        let connection = PeerConnectionBuilder::new()
            .with_runtime(Arc::new(BufferedRuntime { buffer: settings.socket_buffer, arrivals: arrivals.clone() }))
            .with_configuration(configuration.build())
            .with_setting_engine(engine.build())
            .with_handler(Arc::new(Events { gathered: gathered_in, state: state_in, opened: opened_in }))
            .with_udp_addrs(settings.addresses())
            .with_dedicated_reactor_pool_size(settings.reactor_threads)
            .with_data_channel_send_buffer_limit(settings.send_buffer)
            .build()
            .await
            .map_err(stack("starting the connection"))?;
        let guard = Guard(Some(Arc::new(connection)));
        let (own, deadline) = (Vec::new(), settings.connect_deadline);
        Ok(Self { guard, gathered, state, opened, own, arrivals, deadline })
    }

    /// Opens the lanes and describes this side, with all its addresses.
    pub(super) async fn offer(settings: &LinkSettings) -> Result<(Self, String), ConnectError> {
        let mut connecting = Self::new(settings).await?;
        let connection = connecting.guard.get()?.clone();
        for lane in Lane::ALL {
            let init = match lane {
                Lane::Act | Lane::Ctl => RTCDataChannelInit::default(),
                Lane::Beat => {
                    RTCDataChannelInit { ordered: false, max_retransmits: Some(0), ..RTCDataChannelInit::default() }
                }
            };
            let channel =
                connection.create_data_channel(lane.label(), Some(init)).await.map_err(stack("opening a lane"))?;
            connecting.own.push(channel);
        }
        let offer = connection.create_offer(None).await.map_err(stack("making an offer"))?;
        let sdp = connecting.describe(offer).await?;
        Ok((connecting, sdp))
    }

    /// Answers an offer, with all addresses of this side.
    pub(super) async fn answer(settings: &LinkSettings, offer: &str) -> Result<(Self, String), ConnectError> {
        let mut connecting = Self::new(settings).await?;
        let connection = connecting.guard.get()?.clone();
        let offer = RTCSessionDescription::offer(offer.to_owned()).map_err(stack("reading the offer"))?;
        connection.set_remote_description(offer).await.map_err(stack("taking the offer"))?;
        let answer = connection.create_answer(None).await.map_err(stack("making an answer"))?;
        let sdp = connecting.describe(answer).await?;
        Ok((connecting, sdp))
    }

    /// Sets the local description, waits until every address is known, and returns its final text.
    async fn describe(&mut self, description: RTCSessionDescription) -> Result<String, ConnectError> {
        let connection = self.guard.get()?;
        connection.set_local_description(description).await.map_err(stack("describing this side"))?;
        let gathered = timeout_at(Instant::now() + self.deadline, self.gathered.wait_for(|done| *done));
        if !gathered.await.is_ok_and(|gathered| gathered.is_ok()) {
            return Err(ConnectError::Deadline("looking for ways to this machine"));
        }
        let local = connection.local_description().await.ok_or(ConnectError::Unreachable)?;
        Ok(local.sdp)
    }

    /// The offering side takes the answer.
    pub(super) async fn take_answer(&mut self, answer: &str) -> Result<(), ConnectError> {
        let answer = RTCSessionDescription::answer(answer.to_owned()).map_err(stack("reading the answer"))?;
        self.guard.get()?.set_remote_description(answer).await.map_err(stack("taking the answer"))
    }

    /// Waits until all lanes are open, then compares the peer's certificate with `fingerprint`.
    pub(super) async fn connected(mut self, fingerprint: Option<B256>) -> Result<Connected, ConnectError> {
        let deadline = Instant::now() + self.deadline;
        let mut state = self.state.clone();
        let over =
            |s: &RTCPeerConnectionState| matches!(s, RTCPeerConnectionState::Failed | RTCPeerConnectionState::Closed);
        let lanes = tokio::select! {
            lanes = timeout_at(deadline, open_lanes(self.own, &mut self.opened)) => lanes,
            () = async { drop(state.wait_for(over).await) } => return Err(ConnectError::Unreachable),
        };
        let lanes = lanes.map_err(|_| ConnectError::Deadline("connecting to the peer"))??;

        let connection = self.guard.get()?;
        let sctp = connection.sctp().await.ok_or(ConnectError::Unreachable)?;
        let dtls = sctp.transport();
        if let Some(fingerprint) = fingerprint {
            let shown = dtls.get_remote_certificates().await.map_err(stack("reading the peer's certificate"))?;
            let shown = shown.first().ok_or(ConnectError::Certificate)?;
            if Sha256::digest(shown).as_slice() != fingerprint.as_slice() {
                return Err(ConnectError::Certificate);
            }
        }
        let pair = dtls.ice_transport().get_selected_candidate_pair().await.map_err(stack("reading the path"))?;
        let relayed = |pair: &rtc::peer_connection::transport::RTCIceCandidatePair| {
            [pair.local(), pair.remote()].iter().any(|candidate| candidate.typ == RTCIceCandidateType::Relay)
        };
        let path = if pair.as_ref().is_some_and(relayed) { LinkPath::Relay } else { LinkPath::Direct };
        let connection = self.guard.0.take().ok_or(ConnectError::Unreachable)?;
        Ok(Connected { connection, state: self.state, lanes, arrivals: self.arrivals, path })
    }
}

/// Waits for every lane to open: our own, or the three that the offering peer opens.
async fn open_lanes(
    own: Vec<Arc<dyn DataChannel>>,
    opened: &mut mpsc::Receiver<Arc<dyn DataChannel>>,
) -> Result<[Arc<dyn DataChannel>; 3], ConnectError> {
    let lanes: [Arc<dyn DataChannel>; 3] = if own.is_empty() {
        let mut found = HashMap::new();
        while found.len() < Lane::ALL.len() {
            let channel = opened.recv().await.ok_or(ConnectError::Unreachable)?;
            let label = channel.label().await.map_err(stack("reading a lane's name"))?;
            let lane = Lane::ALL.into_iter().find(|lane| lane.label() == label).ok_or(ConnectError::Lanes)?;
            let ordered = channel.ordered().await.map_err(stack("reading a lane's order"))?;
            let retransmits = channel.max_retransmits().await.map_err(stack("reading a lane's reliability"))?;
            let lifetime = channel.max_packet_life_time().await.map_err(stack("reading a lane's reliability"))?;
            let reliable = ordered && retransmits.is_none() && lifetime.is_none();
            if reliable != (lane != Lane::Beat) || found.insert(lane, channel).is_some() {
                return Err(ConnectError::Lanes);
            }
        }
        let mut take = |lane| found.remove(&lane).ok_or(ConnectError::Lanes);
        [take(Lane::Act)?, take(Lane::Ctl)?, take(Lane::Beat)?]
    } else {
        own.try_into().map_err(|_| ConnectError::Lanes)?
    };
    for lane in &lanes {
        loop {
            match lane.poll().await {
                Some(DataChannelEvent::OnOpen) => break,
                Some(DataChannelEvent::OnBufferedAmountLow | DataChannelEvent::OnBufferedAmountHigh) => {}
                Some(_) | None => return Err(ConnectError::Unreachable),
            }
        }
    }
    Ok(lanes)
}
