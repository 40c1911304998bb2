//! The connection to the orchestrator: registers, keeps it alive, and comes back after a loss.

use std::{fmt, time::Duration};

use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use futures::{SinkExt, StreamExt};
use pool_types::{Failure, Holdings, ModelId, ReasonCode};
use pool_wire::control::{
    CONTROL_VERSION, Capabilities, MAX_CONTROL, Registration, ToNode, ToOrchestrator, decode, to_text,
};
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config,
    tungstenite::{Message, http::Uri, protocol::WebSocketConfig},
};
use tracing::{debug, info, warn};

use crate::{backoff::Backoff, config::NodeError};

mod tls;

pub(crate) use tls::system_trust;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Connecting, and each answer during registration, take at most this long.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How often we show that we are alive.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A silent orchestrator is given up after this.
const SILENCE: Duration = Duration::from_secs(5);
/// A message that cannot be handed to the socket for this long means that the connection is dead.
const WRITE: Duration = Duration::from_secs(5);
/// What is still to be sent when the node leaves has this long.
const FAREWELL: Duration = Duration::from_millis(500);
const RETRY: [Duration; 6] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
];

/// What the connection tells the node.
pub(crate) enum UplinkEvent {
    /// Registered; earlier assignments are void.
    Up,
    /// A message of the orchestrator.
    Message(ToNode),
    /// The connection was lost; another is being made.
    Down,
    /// Turned away for good.
    Refused(Failure),
}

/// Who the node says it is.
#[derive(Clone)]
pub(crate) struct Introduction {
    pub(crate) wallet: PrivateKeySigner,
    pub(crate) name: String,
    pub(crate) capabilities: Capabilities,
    pub(crate) model: ModelId,
    /// Which layers of it are here when it introduces itself.
    pub(crate) holds: watch::Receiver<Holdings>,
}

/// Owned by the node's actor. Ends when this is dropped, or after [`UplinkEvent::Refused`].
pub(crate) struct Uplink {
    pub(crate) events: mpsc::Receiver<UplinkEvent>,
    outbox: Option<mpsc::Sender<ToOrchestrator>>,
    task: JoinHandle<()>,
}

impl Uplink {
    /// `trust` says whose certificates count where the address is `wss://`.
    pub(crate) fn start(address: Uri, trust: Connector, introduction: Introduction) -> Self {
        let (events_in, events) = mpsc::channel(256);
        let (outbox, outgoing) = mpsc::channel(256);
        let task = tokio::spawn(keep_connected(address, trust, introduction, events_in, outgoing));
        Self { events, outbox: Some(outbox), task }
    }

    /// Queues a message. While the connection is down messages are lost: they belong to assignments that the loss
    /// has voided. A full queue means a stuck connection, which its own deadlines end.
    pub(crate) fn send(&self, message: ToOrchestrator) {
        if self.outbox.as_ref().is_none_or(|outbox| outbox.try_send(message).is_err()) {
            debug!("a message to the orchestrator was dropped: the connection does not take any");
        }
    }

    /// Sends what is queued and says goodbye, within [`FAREWELL`].
    pub(crate) async fn close(mut self) {
        self.outbox = None;
        if timeout(FAREWELL, &mut self.task).await.is_err() {
            debug!("the connection to the orchestrator did not end in time");
        }
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `ws://host:port` or `wss://host` with the path that orchestrators listen on, unless it has one.
pub(crate) fn endpoint(text: &str) -> Result<Uri, NodeError> {
    let wrong = || NodeError::Address(text.to_owned());
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let scheme = uri.scheme_str().filter(|scheme| ["ws", "wss"].contains(scheme)).ok_or_else(wrong)?;
    if uri.host().is_none_or(str::is_empty) {
        return Err(wrong());
    }
    if uri.path() != "/" {
        return Ok(uri);
    }
    let authority = uri.authority().ok_or_else(wrong)?;
    format!("{scheme}://{authority}/v1/nodes/ws").parse().map_err(|_| wrong())
}

/// Why a connection ended.
enum Ended {
    /// The node itself is gone.
    NodeGone,
    Refused(Failure),
    /// The orchestrator said goodbye, as it does when it shuts down.
    Closed,
    Lost(String),
}

impl<E: fmt::Display> From<E> for Ended {
    fn from(error: E) -> Self {
        Ended::Lost(error.to_string())
    }
}

async fn keep_connected(
    address: Uri,
    trust: Connector,
    introduction: Introduction,
    events: mpsc::Sender<UplinkEvent>,
    mut outgoing: mpsc::Receiver<ToOrchestrator>,
) {
    let mut backoff = Backoff::new(&RETRY);
    loop {
        let mut registered = false;
        let ended = session(&address, &trust, &introduction, &events, &mut outgoing, &mut registered).await;
        if registered {
            backoff.reset();
            if events.send(UplinkEvent::Down).await.is_err() {
                return;
            }
        }
        match ended {
            Ok(never) => match never {},
            Err(Ended::NodeGone) => return,
            Err(Ended::Refused(failure)) if failure.code != ReasonCode::Timeout => {
                let _ = events.send(UplinkEvent::Refused(failure)).await;
                return;
            }
            Err(Ended::Refused(failure)) => warn!(reason = %failure, "the orchestrator turned the node away for now"),
            Err(Ended::Closed) => info!("the orchestrator closed the connection"),
            Err(Ended::Lost(reason)) if registered => warn!(%reason, "the connection to the orchestrator was lost"),
            Err(Ended::Lost(reason)) => debug!(%reason, "the orchestrator cannot be reached"),
        }
        let wait = backoff.next_jittered();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = events.closed() => return,
        }
    }
}

async fn session(
    address: &Uri,
    trust: &Connector,
    introduction: &Introduction,
    events: &mpsc::Sender<UplinkEvent>,
    outgoing: &mut mpsc::Receiver<ToOrchestrator>,
    registered: &mut bool,
) -> Result<std::convert::Infallible, Ended> {
    let config = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_CONTROL)
        .max_message_size(Some(MAX_CONTROL))
        .max_frame_size(Some(MAX_CONTROL));
    let connecting = connect_async_tls_with_config(address.clone(), Some(config), true, Some(trust.clone()));
    let (mut socket, _) = timeout(HANDSHAKE, connecting).await.map_err(|_| lost("connecting took too long"))??;

    register(&mut socket, introduction).await?;
    *registered = true;
    info!(orchestrator = %address, "registered");
    while outgoing.try_recv().is_ok() {}
    events.send(UplinkEvent::Up).await.map_err(|_| Ended::NodeGone)?;

    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let silence = tokio::time::sleep(SILENCE);
    tokio::pin!(silence);
    loop {
        tokio::select! {
            message = next(&mut socket) => {
                silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
                match message? {
                    ToNode::Heartbeat => {}
                    ToNode::Refused { failure } => return Err(Ended::Refused(failure)),
                    message => events.send(UplinkEvent::Message(message)).await.map_err(|_| Ended::NodeGone)?,
                }
            }
            message = outgoing.recv() => {
                let Some(message) = message else {
                    let _ = timeout(FAREWELL, socket.close(None)).await;
                    return Err(Ended::NodeGone);
                };
                send(&mut socket, &message).await?;
            }
            _ = heartbeat.tick() => send(&mut socket, &ToOrchestrator::Heartbeat).await?,
            () = &mut silence => return Err(lost("it fell silent")),
        }
    }
}

async fn register(socket: &mut Socket, introduction: &Introduction) -> Result<(), Ended> {
    let first = timeout(HANDSHAKE, next(socket)).await.map_err(|_| lost("it sent no challenge"))??;
    let nonce = match first {
        ToNode::Challenge { nonce, version: CONTROL_VERSION } => nonce,
        ToNode::Challenge { version, .. } => {
            let message = format!("it speaks version {version}, this node {CONTROL_VERSION}; update the older one");
            return Err(Ended::Refused(Failure::new(ReasonCode::Protocol, message)));
        }
        ToNode::Refused { failure } => return Err(Ended::Refused(failure)),
        _ => return Err(lost("it began with something other than a challenge")),
    };
    let signature = introduction.wallet.sign_message_sync(nonce.to_string().as_bytes())?;
    let registration = Registration {
        version: CONTROL_VERSION,
        address: introduction.wallet.address(),
        name: introduction.name.clone(),
        signature: alloy_primitives::hex::encode_prefixed(signature.as_bytes()),
        capabilities: introduction.capabilities.clone(),
        models: vec![introduction.model],
        holds: Some(introduction.holds.borrow().clone()),
    };
    send(socket, &ToOrchestrator::Register(Box::new(registration))).await?;
    let answer = async {
        loop {
            match next(socket).await? {
                ToNode::Heartbeat => {}
                answer => return Ok::<_, Ended>(answer),
            }
        }
    };
    match timeout(HANDSHAKE, answer).await.map_err(|_| lost("it did not answer the registration"))?? {
        ToNode::Registered { .. } => Ok(()),
        ToNode::Refused { failure } => Err(Ended::Refused(failure)),
        _ => Err(lost("it answered the registration with something else")),
    }
}

fn lost(reason: &str) -> Ended {
    Ended::Lost(reason.to_owned())
}

/// The next control message; answers to pings happen inside the socket.
async fn next(socket: &mut Socket) -> Result<ToNode, Ended> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(decode(text.as_bytes())?),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) => return Err(Ended::Closed),
            None => return Err(lost("it broke off")),
            Some(Ok(_)) => return Err(lost("it sent something other than text")),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

async fn send(socket: &mut Socket, message: &ToOrchestrator) -> Result<(), Ended> {
    let text = to_text(message)?;
    timeout(WRITE, socket.send(Message::text(text))).await.map_err(|_| lost("it takes no messages"))??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orchestrators_address_needs_no_path_and_nonsense_is_refused() {
        assert_eq!(endpoint("ws://127.0.0.1:8080").unwrap().to_string(), "ws://127.0.0.1:8080/v1/nodes/ws");
        assert_eq!(endpoint("wss://pool.example").unwrap().to_string(), "wss://pool.example/v1/nodes/ws");
        assert_eq!(endpoint("ws://pool.lan:8080/v1/nodes/ws").unwrap().path(), "/v1/nodes/ws");
        for wrong in ["", "8080", "http://127.0.0.1:8080", "ws://", "not an address"] {
            assert!(endpoint(wrong).is_err(), "{wrong:?}");
        }
    }
}
