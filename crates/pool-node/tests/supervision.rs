//! A node with the real `pool-shard` and an orchestrator that the test plays.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

#[path = "../../computepool/tests/support/model.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod model;

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use alloy_primitives::{Address, B256, Signature, hex};
use alloy_signer_local::PrivateKeySigner;
use futures::{SinkExt, StreamExt};
use pool_coalition::{
    Roster, RosterMember, RosterRole,
    stand_down::{SignedStandDown, StandDown},
};
use pool_models::Model;
use pool_node::{Activity, Ended, Manner, NodeConfig, NodeError, NodeModel, Shift, find_shard_program};
use pool_types::{Activation, Epoch, Failure, LayerRange, ModelId, ReasonCode};
use pool_wire::control::{
    Assignment, CONTROL_VERSION, Capabilities, Member, Registration, ToNode, ToOrchestrator, decode, to_text,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, accept_async, tungstenite::Message};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// The tests count this process's shards, so where they share a process they take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// An orchestrator that says only what the test says.
struct Orchestrator {
    listener: TcpListener,
    gateway: PrivateKeySigner,
}

struct Connection(WebSocketStream<TcpStream>);

impl Orchestrator {
    async fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), gateway: PrivateKeySigner::random() }
    }

    fn url(&self) -> String {
        format!("ws://{}", self.listener.local_addr().unwrap())
    }

    async fn accept(&self) -> Connection {
        let (stream, _) = timeout(PATIENCE, self.listener.accept()).await.expect("a node connects").unwrap();
        Connection(accept_async(stream).await.unwrap())
    }

    /// Challenge and registration, as a real one does it.
    async fn register(&self) -> (Connection, Registration) {
        let mut connection = self.accept().await;
        let nonce = B256::from(rand::random::<[u8; 32]>());
        connection.say(&ToNode::Challenge { nonce, version: CONTROL_VERSION }).await;
        let ToOrchestrator::Register(said) = connection.hear().await else { panic!("not a registration") };
        let signature = Signature::from_raw(&hex::decode(&said.signature).unwrap()).unwrap();
        let signer = signature.recover_address_from_msg(nonce.to_string()).unwrap();
        assert_eq!(signer, said.address, "the node proves that it holds its key");
        connection.say(&ToNode::Registered { gateway: self.gateway.address() }).await;
        (connection, *said)
    }
}

impl Connection {
    async fn say(&mut self, message: &ToNode) {
        self.0.send(Message::text(to_text(message).unwrap())).await.unwrap();
    }

    /// The next message that is no heartbeat and no statistics.
    async fn hear(&mut self) -> ToOrchestrator {
        loop {
            let message = timeout(PATIENCE, self.0.next()).await.expect("the node says something").unwrap().unwrap();
            match decode(message.to_text().unwrap().as_bytes()).unwrap() {
                ToOrchestrator::Heartbeat | ToOrchestrator::Stats { .. } => {}
                message => return message,
            }
        }
    }

    async fn hear_loaded(&mut self, expected: Epoch) {
        match self.hear().await {
            ToOrchestrator::Loaded { epoch, footprint } => {
                assert_eq!(epoch, expected);
                assert!(footprint.bytes_read > 0, "a shard reads its layers");
            }
            other => panic!("expected the layers to be loaded, heard {other:?}"),
        }
    }

    async fn hear_failed(&mut self, expected: Epoch) -> Failure {
        match self.hear().await {
            ToOrchestrator::Failed { epoch, failure } if epoch == expected => failure,
            other => panic!("expected a failure of {expected}, heard {other:?}"),
        }
    }
}

/// A running node with its files.
struct Node {
    wallet: PrivateKeySigner,
    roster: Roster,
    model: ModelId,
    shutdown: CancellationToken,
    leave: watch::Sender<Option<Manner>>,
    shift: Shift,
    task: JoinHandle<Result<Ended, NodeError>>,
    _files: tempfile::TempDir,
}

impl Node {
    fn start(orchestrator: &Orchestrator, shard_program: Option<PathBuf>) -> Self {
        let files = tempfile::tempdir().unwrap();
        model::write(files.path(), model::Shape::default());
        let wallet = PrivateKeySigner::random();
        let member = |address, name: &str, role| RosterMember { address, name: name.to_owned(), role };
        let gateway = orchestrator.gateway.address();
        let members =
            vec![member(gateway, "gateway", RosterRole::Gateway), member(wallet.address(), "desk", RosterRole::Node)];
        let roster = Roster::new(gateway, members, 0).unwrap();
        let shutdown = CancellationToken::new();
        let config = NodeConfig {
            orchestrator: orchestrator.url(),
            roster: roster.clone(),
            name: String::new(),
            wallet: wallet.clone(),
            model: NodeModel::Local(files.path().to_owned()),
            shard_program,
            capabilities: Capabilities {
                device: "cpu".to_owned(),
                memory_bytes: 1 << 30,
                bandwidth_bytes_per_second: 1_000_000_000,
                threads: 1,
                uplink_bytes_per_second: None,
            },
            cpus: Vec::new(),
            gpus: None,
            quantise: false,
            loopback_only: true,
            vote: None,
        };
        let model = Model::open(files.path()).unwrap().id;
        let (leave, asked) = watch::channel(None);
        let shift = Shift::default();
        let task = tokio::spawn(pool_node::serve(config, shutdown.clone(), asked, shift.clone()));
        Self { wallet, roster, model, shutdown, leave, shift, task, _files: files }
    }

    fn assignment(&self, epoch: u64, layers: (u32, u32)) -> Box<Assignment> {
        Box::new(Assignment {
            coalition: self.roster.coalition_id(),
            chain: 0,
            epoch: Epoch(epoch),
            model: self.model,
            gateway: self.roster.gateway,
            members: vec![Member {
                address: self.wallet.address(),
                layers: LayerRange::new(layers.0, layers.1).unwrap(),
            }],
            wire: Activation::F32,
            kv_tokens: 256,
            max_context: 128,
            prefill_chunk: 16,
        })
    }

    /// Checks a stand-down as an orchestrator does.
    fn check(&self, message: ToOrchestrator) -> StandDown {
        let ToOrchestrator::StandDown { statement } = message else { panic!("no stand-down: {message:?}") };
        let word: SignedStandDown = serde_json::from_str(&statement).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        word.verify(self.wallet.address(), self.roster.coalition_id(), 0, now).expect("the node's own word")
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(Duration::from_secs(3), self.task).await.expect("a node ends within its grace").unwrap().unwrap();
    }
}

fn real_shard() -> Option<PathBuf> {
    let program = find_shard_program().expect("build pool-shard first: cargo build -p pool-shard");
    Some(program)
}

/// Processes that this test process started and that run `pool-shard`.
fn own_shards() -> Vec<i32> {
    let me = std::process::id();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| {
            let process: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let (name, rest) = stat.rsplit_once(')')?;
            let mut fields = rest.split_ascii_whitespace();
            let (state, parent) = (fields.next()?, fields.next()?);
            let ours = parent == me.to_string() && name.contains("(pool-shard") && state != "Z";
            ours.then_some(process)
        })
        .collect()
}

fn kill(process: i32) {
    use nix::{sys::signal, unistd::Pid};
    signal::kill(Pid::from_raw(process), signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_killed_shard_is_reported_at_once_and_the_next_assignment_gets_a_new_one() {
    let _turn = TURN.lock().await;
    let orchestrator = Orchestrator::new().await;
    let node = Node::start(&orchestrator, real_shard());
    let (mut connection, said) = orchestrator.register().await;
    assert_eq!((said.address, said.name.as_str()), (node.wallet.address(), "desk"), "the roster's name");
    assert_eq!(said.models, [node.model]);

    connection.say(&ToNode::Assign(node.assignment(1, (0, 2)))).await;
    connection.hear_loaded(Epoch(1)).await;
    let shards = own_shards();
    assert_eq!(shards.len(), 1, "one shard process");

    let killed = Instant::now();
    kill(shards[0]);
    let failure = connection.hear_failed(Epoch(1)).await;
    let took = killed.elapsed();
    assert!(took < Duration::from_millis(200), "it took {took:?} to report a killed shard");
    assert_eq!(failure.code, ReasonCode::PeerLost);

    connection.say(&ToNode::Assign(node.assignment(2, (0, 2)))).await;
    connection.hear_loaded(Epoch(2)).await;
    assert_ne!(own_shards(), shards, "another process");

    let again = Instant::now();
    connection.say(&ToNode::Dissolve { epoch: Epoch(2), failure: Failure::new(ReasonCode::PeerLost, "x") }).await;
    connection.say(&ToNode::Assign(node.assignment(3, (0, 2)))).await;
    connection.hear_loaded(Epoch(3)).await;
    assert!(again.elapsed() < Duration::from_millis(500), "a shard that holds the layers answers at once");
    let before = own_shards();
    connection.say(&ToNode::Assign(node.assignment(4, (1, 4)))).await;
    connection.hear_loaded(Epoch(4)).await;
    let after = own_shards();
    assert!(after.len() == 1 && after != before, "other layers need another process, and the old one is gone");

    node.stop().await;
    assert!(own_shards().is_empty(), "no shard outlives its node");
}

#[tokio::test]
async fn a_node_that_yields_gives_the_machine_back_first_and_says_so_signed() {
    let _turn = TURN.lock().await;
    let orchestrator = Orchestrator::new().await;
    let node = Node::start(&orchestrator, real_shard());
    let (mut connection, _) = orchestrator.register().await;
    connection.say(&ToNode::Assign(node.assignment(7, (0, 2)))).await;
    connection.hear_loaded(Epoch(7)).await;
    let layers = LayerRange::new(0, 2).unwrap();
    assert_eq!(node.shift.activity(), Activity::Preparing { layers, members: 1 });
    assert_eq!(own_shards(), [node.shift.process().expect("it runs") as i32]);

    let asked = Instant::now();
    node.leave.send(Some(Manner::Yield)).unwrap();
    let said = node.check(connection.hear().await);
    assert_eq!((said.manner, said.epoch), (Manner::Yield, Epoch(7)));
    let ended = timeout(PATIENCE, node.task).await.unwrap().unwrap().unwrap();
    assert!(own_shards().is_empty(), "the shard is gone when the node has left");
    let Ended::Yielded(Some(gone)) = ended else { panic!("{ended:?}") };
    assert!(gone <= asked.elapsed() && gone < Duration::from_millis(1500), "it took {gone:?}");
    println!("the shard was gone after {gone:?}, the node after {:?}", asked.elapsed());
}

#[tokio::test]
async fn a_node_that_yields_without_an_orchestrator_gives_the_machine_back_all_the_same() {
    let _turn = TURN.lock().await;
    let orchestrator = Orchestrator::new().await;
    let node = Node::start(&orchestrator, real_shard());
    let (mut connection, _) = orchestrator.register().await;
    connection.say(&ToNode::Assign(node.assignment(1, (0, 2)))).await;
    connection.hear_loaded(Epoch(1)).await;
    drop((connection, orchestrator));
    let asked = Instant::now();
    node.leave.send(Some(Manner::Yield)).unwrap();
    let ended = timeout(PATIENCE, node.task).await.unwrap().unwrap().unwrap();
    assert!(matches!(ended, Ended::Yielded(Some(_))) && own_shards().is_empty(), "{ended:?}");
    assert!(asked.elapsed() < Duration::from_millis(1500), "nobody is waited for: {:?}", asked.elapsed());
}

#[tokio::test]
async fn a_node_that_drains_serves_on_until_its_coalition_is_dissolved() {
    let _turn = TURN.lock().await;
    let orchestrator = Orchestrator::new().await;
    let node = Node::start(&orchestrator, real_shard());
    let (mut connection, _) = orchestrator.register().await;
    connection.say(&ToNode::Assign(node.assignment(3, (0, 2)))).await;
    connection.hear_loaded(Epoch(3)).await;
    node.leave.send(Some(Manner::Drain)).unwrap();
    let said = node.check(connection.hear().await);
    assert_eq!((said.manner, said.epoch), (Manner::Drain, Epoch(3)));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(own_shards().len(), 1, "its shard works on");
    let failure = Failure::new(ReasonCode::StandDown, "desk left after its last request");
    connection.say(&ToNode::Dissolve { epoch: Epoch(3), failure }).await;
    let ended = timeout(PATIENCE, node.task).await.unwrap().unwrap().unwrap();
    assert_eq!(ended, Ended::Drained);
    assert!(own_shards().is_empty(), "no shard outlives its node");
}

#[tokio::test]
async fn assignments_that_the_roster_does_not_cover_are_refused() {
    let _turn = TURN.lock().await;
    let orchestrator = Orchestrator::new().await;
    let node = Node::start(&orchestrator, real_shard());
    let (mut connection, _) = orchestrator.register().await;
    let good = node.assignment(1, (0, 4));
    let mut other_coalition = good.clone();
    other_coalition.coalition.0 = B256::repeat_byte(9);
    let mut other_gateway = good.clone();
    other_gateway.gateway = Address::repeat_byte(9);
    let mut stranger = good.clone();
    stranger.members.push(Member { address: Address::repeat_byte(7), layers: LayerRange::new(2, 4).unwrap() });
    let mut other_model = good.clone();
    other_model.model = ModelId(B256::repeat_byte(9));
    let expected = [
        (other_coalition, ReasonCode::Unauthorised),
        (other_gateway, ReasonCode::Unauthorised),
        (stranger, ReasonCode::Unauthorised),
        (other_model, ReasonCode::Model),
    ];
    for (assignment, code) in expected {
        connection.say(&ToNode::Assign(assignment)).await;
        assert_eq!(connection.hear_failed(Epoch(1)).await.code, code);
    }
    assert!(own_shards().is_empty(), "nothing was started for any of them");
    node.stop().await;
}

#[tokio::test]
async fn a_shard_that_cannot_load_says_why() {
    let _turn = TURN.lock().await;
    let orchestrator = Orchestrator::new().await;
    let node = Node::start(&orchestrator, real_shard());
    let (mut connection, _) = orchestrator.register().await;
    // Cut after the node has read the index: the tensors are no longer all there.
    let weights = node._files.path().join("model.safetensors");
    let length = std::fs::metadata(&weights).unwrap().len();
    std::fs::File::options().write(true).open(&weights).unwrap().set_len(length / 2).unwrap();
    connection.say(&ToNode::Assign(node.assignment(1, (0, 4)))).await;
    let failure = connection.hear_failed(Epoch(1)).await;
    assert_eq!(failure.code, ReasonCode::Model, "{failure}");
    node.stop().await;
}

#[tokio::test]
async fn a_node_comes_back_after_its_orchestrator_was_away() {
    let _turn = TURN.lock().await;
    let orchestrator = Orchestrator::new().await;
    let node = Node::start(&orchestrator, real_shard());
    let (connection, _) = orchestrator.register().await;
    drop(connection);
    let (mut connection, said) = orchestrator.register().await;
    assert_eq!(said.address, node.wallet.address());
    connection.0.send(Message::text("this is not a control message")).await.unwrap();
    let (_connection, _) = orchestrator.register().await;
    node.stop().await;
}

#[tokio::test]
async fn a_refusal_ends_the_node_with_the_reason() {
    let _turn = TURN.lock().await;
    let orchestrator = Orchestrator::new().await;
    let node = Node::start(&orchestrator, real_shard());
    let mut connection = orchestrator.accept().await;
    connection.say(&ToNode::Challenge { nonce: B256::ZERO, version: CONTROL_VERSION }).await;
    connection.hear().await;
    let failure = Failure::new(ReasonCode::Unauthorised, "the roster does not name you");
    connection.say(&ToNode::Refused { failure }).await;
    let outcome = timeout(PATIENCE, node.task).await.unwrap().unwrap();
    let error = outcome.expect_err("a node that is refused cannot go on").to_string();
    assert!(error.contains("the roster does not name you"), "{error}");
}

#[tokio::test]
async fn a_program_that_is_no_shard_is_given_up_with_a_reason() {
    let orchestrator = Orchestrator::new().await;
    // Any program will do that does not take `--threads`: this test's own.
    let node = Node::start(&orchestrator, Some(std::env::current_exe().unwrap()));
    let (mut connection, _) = orchestrator.register().await;
    connection.say(&ToNode::Assign(node.assignment(1, (0, 4)))).await;
    let failure = connection.hear_failed(Epoch(1)).await;
    assert_eq!(failure.code, ReasonCode::PeerLost, "{failure}");
    node.stop().await;
}
