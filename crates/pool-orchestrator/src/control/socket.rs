//! One node's WebSocket: proves who it is, then carries messages both ways.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use alloy_primitives::{Address, B256, Signature, hex};
use axum::{
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
};
use pool_coalition::{Roster, RosterRole, stand_down::SignedStandDown};
use pool_types::{Failure, ReasonCode};
use pool_wire::control::{CONTROL_VERSION, MAX_CONTROL, Registration, ToNode, ToOrchestrator, decode, to_text};
use tokio::{sync::Semaphore, sync::mpsc, time::timeout};
use tracing::{debug, info};

use super::{
    actor::{ControlPlane, Request, unix_now},
    registry::{ConnectionId, Input},
};

/// From the challenge to a registration that holds.
const REGISTRATION: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A node that says nothing for this long is lost.
const SILENCE: Duration = Duration::from_secs(5);
/// A message that cannot be handed over for this long means that the node is lost.
const WRITE: Duration = Duration::from_secs(5);
/// Messages a node may send at once, and per second.
const BURST: f64 = 400.0;
const PER_SECOND: f64 = 100.0;
/// Connections that have not registered yet, on top of one for each node of the roster.
const STRANGERS: usize = 16;
/// Messages that may wait for a node.
const OUTBOX: usize = 256;

/// The endpoint's state.
#[derive(Clone)]
pub(crate) struct Sockets {
    control: ControlPlane,
    places: Arc<Semaphore>,
    next: Arc<AtomicU64>,
}

impl Sockets {
    pub(crate) fn new(control: ControlPlane) -> Self {
        let nodes = control.shared.roster.members.iter().filter(|member| member.role == RosterRole::Node).count();
        Self { control, places: Arc::new(Semaphore::new(nodes + STRANGERS)), next: Arc::default() }
    }
}

/// `GET /v1/nodes/ws`.
pub(crate) async fn connect(State(sockets): State<Sockets>, upgrade: WebSocketUpgrade) -> Response {
    let Ok(place) = sockets.places.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many nodes are connecting; try again").into_response();
    };
    let connection = ConnectionId(sockets.next.fetch_add(1, Ordering::Relaxed));
    let control = sockets.control;
    upgrade
        .max_message_size(MAX_CONTROL)
        .max_frame_size(MAX_CONTROL)
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_CONTROL)
        .on_upgrade(move |socket| async move {
            let session = Session { socket, control, connection, node: None };
            session.run().await;
            drop(place);
        })
}

/// Whether the registration is signed by the address it names, over this nonce, and the roster has it as a node.
fn verify(registration: &Registration, nonce: B256, roster: &Roster) -> Result<(), Failure> {
    let refuse = |code, message: String| Err(Failure::new(code, message));
    if registration.version != CONTROL_VERSION {
        let message = format!(
            "the node speaks version {}, the orchestrator {CONTROL_VERSION}; update the older one",
            registration.version
        );
        return refuse(ReasonCode::Protocol, message);
    }
    let name = registration.name.chars();
    if name.clone().count() > 64 || name.clone().any(char::is_control) || registration.models.len() > 256 {
        return refuse(ReasonCode::Protocol, "the registration holds more than it may".to_owned());
    }
    if signer(&registration.signature, nonce) != Some(registration.address) {
        let message = "the signature over the challenge was not made by the address that registers".to_owned();
        return refuse(ReasonCode::Unauthorised, message);
    }
    if roster.role(registration.address) != Some(RosterRole::Node) {
        let message = format!("the roster does not name {} as a node", registration.address);
        return refuse(ReasonCode::Unauthorised, message);
    }
    Ok(())
}

/// EIP-191 over the nonce's hex text. Of a signature's two forms only the lower is taken (EIP-2).
fn signer(signature: &str, nonce: B256) -> Option<Address> {
    let bytes: [u8; 65] = hex::decode_to_array(signature).ok()?;
    let signature = Signature::from_raw_array(&bytes).ok()?;
    if signature.normalize_s().is_some() {
        return None;
    }
    signature.recover_address_from_msg(nonce.to_string()).ok()
}

struct Session {
    socket: WebSocket,
    control: ControlPlane,
    connection: ConnectionId,
    node: Option<Address>,
}

/// Why a session ends; told to the node where there is something to tell.
enum End {
    Refuse(Failure),
    Silently(&'static str),
}

impl Session {
    async fn run(mut self) {
        let end = match self.register().await {
            Ok(outbox) => {
                let end = self.carry(outbox).await;
                self.control.tell(Request::Event(Input::Disconnected { connection: self.connection })).await;
                end
            }
            Err(end) => end,
        };
        match end {
            End::Refuse(failure) => {
                info!(node = ?self.node, reason = %failure, "a node was turned away");
                let _ = self.send(&ToNode::Refused { failure }).await;
            }
            End::Silently(reason) => debug!(node = ?self.node, reason, "a node's connection ended"),
        }
        let _ = timeout(WRITE, self.socket.send(Message::Close(None))).await;
    }

    /// Challenges the node; afterwards the control plane knows it.
    async fn register(&mut self) -> Result<mpsc::Receiver<ToNode>, End> {
        let nonce = B256::from(rand::random::<[u8; 32]>());
        self.send(&ToNode::Challenge { nonce, version: CONTROL_VERSION }).await?;
        let first = timeout(REGISTRATION, self.receive()).await;
        let first = first.map_err(|_| {
            End::Refuse(Failure::new(ReasonCode::Timeout, "no registration came within five seconds"))
        })??;
        let ToOrchestrator::Register(registration) = first else {
            return Err(End::Refuse(Failure::new(ReasonCode::Protocol, "the first message must be a registration")));
        };
        verify(&registration, nonce, &self.control.shared.roster).map_err(End::Refuse)?;
        self.node = Some(registration.address);
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let connection = self.connection;
        let input = Input::Registered { connection, registration };
        if !self.control.tell(Request::Register { connection, outbox, input }).await {
            return Err(End::Silently("the orchestrator is shutting down"));
        }
        Ok(messages)
    }

    async fn carry(&mut self, mut outbox: mpsc::Receiver<ToNode>) -> End {
        let mut heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let silence = tokio::time::sleep(SILENCE);
        tokio::pin!(silence);
        let mut allowance = Allowance::new(Instant::now());
        loop {
            let sent = tokio::select! {
                message = self.receive() => {
                    silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
                    let message = match message {
                        Ok(message) => message,
                        Err(end) => return end,
                    };
                    if !allowance.take(Instant::now()) {
                        let failure = Failure::new(ReasonCode::Protocol, "the node sends too many messages");
                        return End::Refuse(failure);
                    }
                    if !matches!(message, ToOrchestrator::Heartbeat) {
                        let input = match self.input(message) {
                            Ok(input) => input,
                            Err(end) => return end,
                        };
                        if !self.control.tell(Request::Event(input)).await {
                            return End::Silently("the orchestrator is shutting down");
                        }
                    }
                    Ok(())
                }
                message = outbox.recv() => match message {
                    Some(message) => self.send(&message).await,
                    None => return End::Silently("closed by the orchestrator"),
                },
                _ = heartbeat.tick() => self.send(&ToNode::Heartbeat).await,
                () = &mut silence => return End::Silently("it fell silent"),
            };
            if let Err(end) = sent {
                return end;
            }
        }
    }

    /// What a message is to the registry. A stand-down counts only with its signature.
    fn input(&self, message: ToOrchestrator) -> Result<Input, End> {
        let connection = self.connection;
        let (ToOrchestrator::StandDown { statement }, Some(node)) = (&message, self.node) else {
            return Ok(Input::Said { connection, message });
        };
        let refuse = |code, message: String| End::Refuse(Failure::new(code, message));
        let word: Box<SignedStandDown> = serde_json::from_str(statement)
            .map_err(|error| refuse(ReasonCode::Protocol, format!("the stand-down is not one: {error}")))?;
        let roster = &self.control.shared.roster;
        word.verify(node, roster.coalition_id(), roster.chain, unix_now())
            .map_err(|error| refuse(ReasonCode::Unauthorised, error.to_string()))?;
        Ok(Input::StandsDown { connection, word })
    }

    async fn receive(&mut self) -> Result<ToOrchestrator, End> {
        loop {
            match self.socket.recv().await {
                Some(Ok(Message::Text(text))) => {
                    self.control.shared.tap.show(self.node, true, text.as_str());
                    return decode(text.as_bytes()).map_err(|error| {
                        End::Refuse(Failure::new(ReasonCode::Protocol, format!("not understood: {error}")))
                    });
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Binary(_))) => {
                    return Err(End::Refuse(Failure::new(ReasonCode::Protocol, "control messages are text")));
                }
                Some(Ok(Message::Close(_))) | None => return Err(End::Silently("it closed the connection")),
                Some(Err(_)) => return Err(End::Silently("the connection failed")),
            }
        }
    }

    async fn send(&mut self, message: &ToNode) -> Result<(), End> {
        let text = to_text(message).map_err(|_| End::Silently("a message was too long"))?;
        self.control.shared.tap.show(self.node, false, &text);
        match timeout(WRITE, self.socket.send(Message::text(text))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Silently("the connection failed")),
            Err(_) => Err(End::Silently("it takes no messages")),
        }
    }
}

/// A bucket of messages that fills again with time.
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: BURST, at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left, self.at) = ((self.left + passed * PER_SECOND).min(BURST), now);
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use alloy_signer::SignerSync;
    use alloy_signer_local::PrivateKeySigner;
    use pool_coalition::RosterMember;
    use pool_wire::control::Capabilities;

    use super::*;

    fn registration(signer: &PrivateKeySigner, address: Address, nonce: B256) -> Registration {
        let signature = signer.sign_message_sync(nonce.to_string().as_bytes()).unwrap();
        Registration {
            version: CONTROL_VERSION,
            address,
            name: "desk".to_owned(),
            signature: hex::encode_prefixed(signature.as_bytes()),
            capabilities: Capabilities {
                device: "cpu".to_owned(),
                memory_bytes: 1,
                bandwidth_bytes_per_second: 1,
                threads: 1,
                uplink_bytes_per_second: None,
            },
            models: Vec::new(),
            holds: None,
        }
    }

    fn key(byte: u8) -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&B256::repeat_byte(byte)).unwrap()
    }

    #[test]
    fn only_the_rosters_own_keys_register_and_only_for_this_challenge() {
        let (gateway, node, stranger) = (key(1), key(2), key(3));
        let member = |key: &PrivateKeySigner, role| RosterMember { address: key.address(), name: "m".to_owned(), role };
        let members = vec![member(&gateway, RosterRole::Gateway), member(&node, RosterRole::Node)];
        let roster = Roster::new(gateway.address(), members, 0).unwrap();
        let nonce = B256::repeat_byte(9);
        let code = |said: &Registration, nonce| verify(said, nonce, &roster).map_err(|failure| failure.code);

        let good = registration(&node, node.address(), nonce);
        assert_eq!(code(&good, nonce), Ok(()));
        assert_eq!(code(&good, B256::repeat_byte(8)), Err(ReasonCode::Unauthorised), "a replay of an old answer");
        let forged = registration(&stranger, node.address(), nonce);
        assert_eq!(code(&forged, nonce), Err(ReasonCode::Unauthorised), "another key in a member's name");
        let unknown = registration(&stranger, stranger.address(), nonce);
        assert_eq!(code(&unknown, nonce), Err(ReasonCode::Unauthorised), "a stranger in its own name");
        let not_a_node = registration(&gateway, gateway.address(), nonce);
        assert_eq!(code(&not_a_node, nonce), Err(ReasonCode::Unauthorised), "the gateway holds no layers");
        for signature in ["", "0x", "zz", &"00".repeat(65), &"ff".repeat(64)] {
            let said = Registration { signature: signature.to_owned(), ..good.clone() };
            assert_eq!(code(&said, nonce), Err(ReasonCode::Unauthorised), "{signature:?}");
        }
        let other_version = Registration { version: 99, ..good.clone() };
        assert_eq!(code(&other_version, nonce), Err(ReasonCode::Protocol));
        let shouting = Registration { name: "n".repeat(65), ..good };
        assert_eq!(code(&shouting, nonce), Err(ReasonCode::Protocol));
    }

    #[test]
    fn a_flood_is_cut_off_and_a_steady_node_never_is() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        assert_eq!((0..1000).filter(|_| allowance.take(start)).count(), BURST as usize);
        let mut steady = Allowance::new(start);
        assert!((0..10_000).all(|i| steady.take(start + Duration::from_millis(20 * i))), "50 a second for 200 s");
    }
}
