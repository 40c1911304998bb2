//! Hidden states cross only between shards: everything the orchestrator hears and says is recorded.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use alloy_signer_local::PrivateKeySigner;
use pool_coalition::{Roster, RosterRole};
use pool_models::Model;
use pool_orchestrator::{
    Orchestrator, OrchestratorConfig, Tap,
    control::{ControlTap, ServingWishes, Stage, Timing},
};
use pool_types::Activation;
use pool_wire::frame::{Frame, Kind};
use support::{Files, PATIENCE, ask, coalition, member, node_config, request};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_orchestrator_never_sees_a_hidden_state() {
    let files = Files::new();
    let gateway = PrivateKeySigner::random();
    let nodes: Vec<PrivateKeySigner> = (0..2).map(|_| PrivateKeySigner::random()).collect();
    let mut members = vec![member(gateway.address(), "gateway", RosterRole::Gateway)];
    members
        .extend(nodes.iter().zip(["left", "right"]).map(|(key, name)| member(key.address(), name, RosterRole::Node)));
    let roster = Roster::new(gateway.address(), members, 0).unwrap();

    let heard = Arc::new(Mutex::new(Vec::<(bool, String)>::new()));
    let record = heard.clone();
    let control_tap = ControlTap::new(move |crossing| {
        record.lock().unwrap().push((crossing.from_node, crossing.text.to_owned()));
    });
    let frames = Arc::new(Mutex::new(Vec::<(bool, Kind, usize)>::new()));
    let record = frames.clone();
    let data_tap: Tap = Arc::new(move |_, sent, frame: &Frame| {
        record.lock().unwrap().push((sent, frame.kind, frame.payload.len()));
    });
    let shutdown = CancellationToken::new();
    std::fs::create_dir_all(files.state()).unwrap();
    let orchestrator = Orchestrator::bind(OrchestratorConfig {
        api: "127.0.0.1:0".to_owned(),
        database: files.state().join("state.db"),
        wallet: gateway,
        roster: roster.clone(),
        model: Arc::new(Model::open(files.model()).unwrap()),
        model_name: "noise".to_owned(),
        wishes: ServingWishes { shards: Some(2), wire: Some(Activation::F32), ..ServingWishes::default() },
        api_key: None,
        loopback_only: true,
        max_waiting: 8,
        queue_deadline: Duration::from_secs(5),
        timing: Timing::default(),
        control_tap,
        data_tap: Some(data_tap),
        money: None,
    })
    .await
    .unwrap();
    let url = format!("http://{}/v1", orchestrator.address());
    let (mut view, dataplane) = (orchestrator.view(), orchestrator.dataplane());
    let mut tasks = Vec::new();
    for wallet in nodes {
        let config = node_config(orchestrator.address(), &roster, wallet, files.model());
        tasks.push(tokio::spawn(pool_node::run(config, shutdown.clone())));
    }
    let server = tokio::spawn(orchestrator.serve(shutdown.clone()));
    tokio::time::timeout(PATIENCE, view.wait_for(|view| view.state == Stage::Active)).await.unwrap().unwrap();

    // A prompt of several chunks and an answer of many steps.
    let question = "who sees what? ".repeat(20);
    let (status, answer) = ask(&url, &request(&question, 100, false)).await;
    assert_eq!(status, 200, "{answer}");
    tokio::time::sleep(Duration::from_millis(1300)).await;

    // Between the shards, the hidden state of every row crossed once: rows x width x 4 bytes, and headers.
    let rows = answer["usage"]["total_tokens"].as_u64().unwrap() - 1;
    let coalition = coalition(&url).await;
    let between_shards: u64 = coalition["links"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|link| link["from"] != "gateway" && link["to"] != "gateway")
        .map(|link| link["hidden_bytes"].as_u64().unwrap())
        .sum();
    let width = support::model::Shape::default().hidden as u64 * 4;
    assert!(between_shards >= rows * width, "{between_shards} bytes for {rows} rows of {width}");

    // On the gateway's links, not one byte on the lane of hidden states, and few on the other.
    for link in dataplane.links() {
        assert_eq!((link.act_bytes_sent, link.act_bytes_received), (0, 0), "{link:?}");
        let others = link.ctl_bytes_sent + link.ctl_bytes_received;
        assert!(others < between_shards / 4, "{others} bytes of prompts and tokens: {link:?}");
    }
    let frames = std::mem::take(&mut *frames.lock().unwrap());
    assert!(frames.len() > 100, "every token is a frame: {}", frames.len());
    for (sent, kind, length) in &frames {
        let allowed = if *sent { [Kind::Prompt, Kind::Release] } else { [Kind::Token, Kind::Fail] };
        assert!(allowed.contains(kind), "a frame of kind {kind:?} ({length} bytes) on the gateway's link");
    }
    // On the control connections, nothing but known small messages; no prompt, no answer.
    let heard = std::mem::take(&mut *heard.lock().unwrap());
    assert!(heard.len() > 10, "the tap sees the conversation");
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    for (_, message) in &heard {
        assert!(message.len() < 32 << 10, "a control message of {} bytes", message.len());
        assert!(!message.contains("who sees what"), "a prompt on a control connection");
        assert!(!message.contains(text), "an answer on a control connection");
    }
    let from_nodes: usize = heard.iter().filter(|(from_node, _)| *from_node).map(|(_, message)| message.len()).sum();
    assert!((from_nodes as u64) < between_shards, "{from_nodes} bytes from nodes cannot hide {between_shards}");

    shutdown.cancel();
    server.await.unwrap().unwrap();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}
