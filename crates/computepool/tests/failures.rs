//! Processes that die and peers that lie: a clear error at once, and service again soon.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod support;

use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, hex};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use futures::{SinkExt, StreamExt};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use pool_types::ReasonCode;
use pool_wire::control::{CONTROL_VERSION, Capabilities, Registration, ToNode, ToOrchestrator, decode, to_text};
use serde_json::Value;
use support::{Files, Stream, Up, ask_until_served, assert_gone, kill, request, runs};
use tokio_tungstenite::{connect_async, tungstenite::Message};

/// A client hears of a death within this.
const CLEAR: Duration = Duration::from_millis(1500);

/// Streams an answer, kills a process in the middle, and returns when the client got its error.
async fn kill_in_the_middle(up: &Up, victim: u32) -> Duration {
    let mut stream = Stream::open(&up.url, &request("tell me everything", 3000, true)).await;
    stream.pieces(20).await;
    let killed = Instant::now();
    kill(victim);
    stream.error().await;
    killed.elapsed()
}

#[tokio::test]
async fn a_killed_shard_ends_the_answer_clearly_and_is_replaced() {
    let files = Files::new();
    let up = Up::start(files.up_command().args(["--shards", "2"]));
    for round in 0..2 {
        let shards = up.processes_with("pool-shard");
        let took = kill_in_the_middle(&up, shards[round % shards.len()]).await;
        assert!(took < CLEAR, "the client waited {took:?} for its error");
        let back = ask_until_served(&up.url, Duration::from_secs(20)).await;
        eprintln!("error after {took:?}, served again after {back:?}");
    }
    let processes = up.processes();
    let (status, errors) = up.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{errors}");
    assert_gone(&processes);
}

#[tokio::test]
async fn a_killed_node_takes_its_shard_along_and_is_replaced() {
    let files = Files::new();
    let up = Up::start(files.up_command().args(["--shards", "2"]));
    let before = up.processes();
    let node = up.processes_with("node-2")[0];
    let took = kill_in_the_middle(&up, node).await;
    assert!(took < CLEAR, "the client waited {took:?} for its error");
    let back = ask_until_served(&up.url, Duration::from_secs(20)).await;
    eprintln!("error after {took:?}, served again after {back:?}");
    let after = up.processes();
    assert_eq!(after.len(), before.len(), "the orphaned shard has ended: {after:?}");
    assert!(!after.contains_key(&node));
    let (status, errors) = up.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{errors}");
    assert_gone(&after);
}

#[tokio::test]
async fn a_shard_that_hangs_is_given_up_and_replaced() {
    let files = Files::new();
    let up = Up::start(files.up_command().args(["--shards", "2"]));
    let victim = up.processes_with("pool-shard")[1];
    let mut stream = Stream::open(&up.url, &request("tell me everything", 3000, true)).await;
    for _ in 0..10 {
        stream.next().await.expect("the answer goes on");
    }
    let hung = Instant::now();
    signal::kill(Pid::from_raw(victim as i32), Signal::SIGSTOP).unwrap();
    let error = loop {
        let event: Value = serde_json::from_str(&stream.next().await.expect("an error comes first")).unwrap();
        if let Some(error) = event.get("error") {
            break error.clone();
        }
    };
    let took = hung.elapsed();
    assert!(took < Duration::from_millis(2500), "a silent peer is given up after a second, not {took:?}: {error}");
    let back = ask_until_served(&up.url, Duration::from_secs(40)).await;
    eprintln!("error after {took:?}, served again after {back:?}");
    assert!(!runs(victim), "the hanging process was killed");
    let processes = up.processes();
    let (status, errors) = up.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{errors}");
    assert_gone(&processes);
}

/// Registers with a signature of `signer` in the name of `address` and returns the orchestrator's answer.
async fn register(up: &Up, signer: &PrivateKeySigner, address: Address) -> ToNode {
    let url = format!("{}/v1/nodes/ws", up.root().replace("http://", "ws://"));
    let (mut socket, _) = connect_async(url).await.unwrap();
    let first = socket.next().await.unwrap().unwrap();
    let ToNode::Challenge { nonce, .. } = decode(first.to_text().unwrap().as_bytes()).unwrap() else {
        panic!("no challenge")
    };
    let signature = signer.sign_message_sync(nonce.to_string().as_bytes()).unwrap();
    let registration = Registration {
        version: CONTROL_VERSION,
        address,
        name: "impostor".to_owned(),
        signature: hex::encode_prefixed(signature.as_bytes()),
        capabilities: Capabilities {
            device: "cpu".to_owned(),
            memory_bytes: 1 << 40,
            bandwidth_bytes_per_second: 1 << 40,
            threads: 1,
            uplink_bytes_per_second: None,
        },
        models: Vec::new(),
        holds: None,
    };
    let text = to_text(&ToOrchestrator::Register(Box::new(registration))).unwrap();
    socket.send(Message::text(text)).await.unwrap();
    let answer = socket.next().await.unwrap().unwrap();
    decode(answer.to_text().unwrap().as_bytes()).unwrap()
}

#[tokio::test]
async fn a_stranger_and_a_forger_are_turned_away_and_disturb_nobody() {
    let files = Files::new();
    let up = Up::start(files.up_command().args(["--shards", "1"]));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let coalition = format!("{}/coalition", up.url);
    let before: Value = client.get(&coalition).send().await.unwrap().json().await.unwrap();
    let member: Address = before["members"][0]["address"].as_str().unwrap().parse().unwrap();

    let stranger = PrivateKeySigner::from_bytes(&B256::repeat_byte(5)).unwrap();
    for (address, what) in [(member, "another key in a member's name"), (stranger.address(), "its own, unknown name")] {
        let answer = register(&up, &stranger, address).await;
        let ToNode::Refused { failure } = answer else { panic!("{what} was let in: {answer:?}") };
        assert_eq!(failure.code, ReasonCode::Unauthorised, "{what}: {failure}");
    }
    let after: Value = client.get(&coalition).send().await.unwrap().json().await.unwrap();
    assert_eq!(after["epoch"], before["epoch"], "the coalition did not notice");
    up.stop(Signal::SIGTERM);
}

#[tokio::test]
async fn garbage_on_the_nodes_endpoint_ends_that_connection_only() {
    let files = Files::new();
    let up = Up::start(files.up_command().args(["--shards", "1"]));
    let url = format!("{}/v1/nodes/ws", up.root().replace("http://", "ws://"));
    let garbage = [
        Message::text("{"),
        Message::text(r#"{"type":"heartbeat"}"#),
        Message::binary(vec![0xff; 1000]),
        Message::text("x".repeat(1 << 20)),
    ];
    for message in garbage {
        let (mut socket, _) = connect_async(&url).await.unwrap();
        let challenge = socket.next().await.unwrap().unwrap();
        assert!(challenge.to_text().unwrap().contains("challenge"));
        let _ = socket.send(message).await;
        let ended = tokio::time::timeout(Duration::from_secs(10), async {
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Text(text) = &message {
                    assert!(text.contains("refused"), "{text}");
                }
            }
        });
        ended.await.expect("the connection ends");
    }
    ask_until_served(&up.url, Duration::from_secs(5)).await;
    up.stop(Signal::SIGTERM);
}

#[test]
fn a_node_with_a_key_that_the_roster_does_not_name_does_not_start() {
    let files = Files::new();
    let up = Up::start(files.up_command().args(["--shards", "1"]));
    let output = support::computepool()
        .arg("node")
        .args(["--orchestrator", &up.root().replace("http://", "ws://")])
        .arg("--roster")
        .arg(files.state().join("roster.json"))
        .arg("--state")
        .arg(files.state().with_file_name("stranger"))
        .arg("--model")
        .arg(files.model())
        .env("COMPUTEPOOL_PASSPHRASE", "a stranger's own")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("the roster does not name"), "{errors}");
    up.stop(Signal::SIGTERM);
}
