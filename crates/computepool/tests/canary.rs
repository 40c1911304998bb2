//! Layers that have rotten on an owner's disk: nobody is served by them, the owner is told, and mended they serve.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use pool_coalition::{Roster, RosterRole};
use serde_json::Value;
use support::{
    Files, PATIENCE, Running, address_of, ask, ask_until_served, computepool, member, request, run, with_passphrase,
    without_desktop,
};

/// Turns one weight of a matrix of layer 2 into no number, or back.
fn rot(model: &Path, with: [u8; 4]) -> [u8; 4] {
    let file = model.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let tensor = &tensors["model.layers.2.mlp.down_proj.weight"];
    assert_eq!(tensor["dtype"], "F32", "{tensor}");
    let at = 8 + header + tensor["data_offsets"][0].as_u64().unwrap() as usize;
    let before = bytes[at..at + 4].try_into().unwrap();
    bytes[at..at + 4].copy_from_slice(&with);
    fs::write(file, bytes).unwrap();
    before
}

fn status(state: &Path) -> Value {
    let output = run(&["status", "--json", "--state", state.to_str().unwrap()]);
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

async fn until(what: &str, state: &Path, wanted: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let told = status(state);
        if wanted(&told) {
            return told;
        }
        assert!(began.elapsed() < PATIENCE, "{what} does not come about: {told:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotten_layers_serve_nobody_and_their_owner_is_told() {
    let files = Files::new();
    let base = files.state();
    let own = base.join("own");
    fs::create_dir_all(&own).unwrap();
    for file in fs::read_dir(files.model()).unwrap().flatten() {
        fs::copy(file.path(), own.join(file.file_name())).unwrap();
    }
    let right = rot(&own, f32::NAN.to_le_bytes());
    let (roster, state, settings) = (base.join("roster.json"), base.join("owner"), base.join("settings.json"));
    // Without a screen: all hours are its hours.
    fs::write(
        &settings,
        r#"{ "mode": "by-schedule", "schedule": "Mon-Sun 00:00-24:00", "notice": 0, "rest_after_stop": 10 }"#,
    )
    .unwrap();
    let orchestrator = || {
        let mut command = computepool();
        command.arg("orchestrator").arg("--roster").arg(&roster).arg("--model").arg(files.model());
        command.arg("--state").arg(base.join("gateway"));
        command.args(["--api", "127.0.0.1:0", "--shards", "1", "--loopback-only"]);
        command
    };
    let node = |at: &str| -> Command {
        let mut command = computepool();
        command.arg("node").arg("--roster").arg(&roster).arg("--model").arg(&own).arg("--state").arg(&state);
        command.args(["--orchestrator", at, "--threads", "1", "--loopback-only"]);
        command
    };
    let gateway = address_of(orchestrator());
    let owner = address_of(node("ws://127.0.0.1:1"));
    let members = vec![member(gateway, "gateway", RosterRole::Gateway), member(owner, "desk", RosterRole::Node)];
    fs::write(&roster, Roster::new(gateway, members, 0).unwrap().to_json()).unwrap();
    let (_server, listening, _) = Running::orchestrator(orchestrator());
    let url = format!("{}/v1", listening.replace("ws://", "http://"));
    let mut command = with_passphrase(node(&listening));
    command.args(["--policy", "--share-cpu"]).arg("--settings").arg(&settings);
    without_desktop(&mut command).stderr(Stdio::null());
    let mut running = Running(command.spawn().unwrap());

    let told = until("the owner is told", &state, |told| told["state"]["stage"] == "problem").await;
    let sentence = told["state"]["sentence"].as_str().unwrap();
    assert!(sentence.contains("the layers give no numbers"), "{sentence}");
    let (code, answer) = ask(&url, &request("hello", 8, false)).await;
    assert_eq!(code, 503, "no client sees an answer of such layers: {answer}");

    rot(&own, right);
    let began = Instant::now();
    ask_until_served(&url, PATIENCE).await;
    assert!(began.elapsed() < Duration::from_secs(40), "it is tried again by itself: {:?}", began.elapsed());
    until("it earns", &state, |told| told["state"]["stage"] == "earning").await;
    running.stop();
}
