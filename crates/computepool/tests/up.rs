//! `computepool up`: it serves, it ends, and it says in one sentence why it cannot start.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod support;

use std::{
    net::TcpListener,
    process::{Output, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{Files, Up, ask, assert_gone, request, run, texts};

/// Exit code 2, nothing on standard output, one sentence on standard error.
fn assert_refused(output: &Output, expected: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(output.stdout.is_empty(), "standard output is for the ready line");
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(lines.len(), 1, "one sentence, not a heap: {errors}");
    assert!(lines[0].starts_with("computepool: ") && lines[0].contains(expected), "{errors}");
}

#[tokio::test]
async fn it_serves_over_two_shards_and_leaves_nothing_behind() {
    let files = Files::new();
    let up = Up::start(files.up_command().args(["--shards", "2"]));
    let processes = up.processes();
    assert_eq!(up.processes_with(" node ").len(), 2, "{processes:?}");
    assert_eq!(up.processes_with("pool-shard").len(), 2, "{processes:?}");

    let secret = "the wombat sleeps at noon";
    let (status, answer) = ask(&up.url, &request(secret, 24, false)).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 24, "{answer}");
    let (_, again) = ask(&up.url, &request(secret, 24, false)).await;
    assert_eq!(answer["choices"], again["choices"], "greedy answers repeat");

    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let health = client.get(format!("{}/healthz", up.root())).send().await.unwrap();
    assert_eq!(health.status().as_u16(), 200);
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let coalition: Value = client.get(format!("{}/coalition", up.url)).send().await.unwrap().json().await.unwrap();
    assert_eq!(coalition["state"], "active");
    let members = coalition["members"].as_array().unwrap();
    assert_eq!(members.len(), 2);
    for member in members {
        assert_eq!(member["footprint"]["bytes_read"], member["layer_bytes"], "a shard reads its layers and no more");
        assert!(member["stats"]["rows"].as_u64().unwrap() > 0, "{member}");
    }
    let hidden = |from: &str| -> u64 {
        let links = coalition["links"].as_array().unwrap().iter();
        links.filter(|link| link["from"] == from).map(|link| link["hidden_bytes"].as_u64().unwrap()).sum()
    };
    assert!(hidden(members[0]["name"].as_str().unwrap()) > 0, "hidden states go from the entry to the exit");
    assert_eq!(hidden("gateway"), 0, "the gateway sends none");
    let metrics = client.get(format!("{}/metrics", up.root())).send().await.unwrap().text().await.unwrap();
    for expected in ["computepool_requests_total{outcome=\"finished\"} 2", "computepool_tokens_total 48"] {
        assert!(metrics.contains(expected), "{expected} is missing in\n{metrics}");
    }

    let (status, errors) = up.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{errors}");
    assert_gone(&processes);
    for (path, text) in texts(&files.state()) {
        assert!(!text.contains("wombat"), "{} holds a prompt", path.display());
    }
    assert!(!errors.contains("wombat"));
}

#[tokio::test]
async fn a_restart_uses_the_same_keys_and_a_higher_epoch() {
    let files = Files::new();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let up = Up::start(files.up_command().args(["--shards", "1"]));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let view: Value = client.get(format!("{}/coalition", up.url)).send().await.unwrap().json().await.unwrap();
        seen.push((view["epoch"].as_u64().unwrap(), view["members"][0]["address"].clone()));
        let (status, errors) = up.stop(Signal::SIGINT);
        assert_eq!(status.code(), Some(0), "{errors}");
    }
    assert_eq!(seen[0].1, seen[1].1, "the same node");
    assert!(seen[1].0 > seen[0].0, "epochs survive a restart: {seen:?}");
}

#[tokio::test]
async fn when_it_is_killed_its_children_end_too() {
    let files = Files::new();
    let up = Up::start(files.up_command().args(["--shards", "2"]));
    let processes = up.processes();
    assert_eq!(processes.len(), 4, "{processes:?}");
    let (status, _) = up.stop(Signal::SIGKILL);
    assert!(!status.success());
    // A node gives its shard a second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_gone(&processes);
}

#[test]
fn a_port_in_use_is_named() {
    let files = Files::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let api = taken.local_addr().unwrap().to_string();
    let output = files.up_command_at(&api).stdin(Stdio::null()).output().unwrap();
    assert_refused(&output, &format!("cannot listen on {api}"));
}

#[test]
fn models_that_cannot_be_used_are_named() {
    let files = Files::new();
    let state = files.state();
    let (state, missing) = (state.to_str().unwrap(), files.model().with_file_name("nowhere"));
    let up = |model: &str| run(&["up", "--model", model, "--state", state, "--api", "127.0.0.1:0"]);
    assert_refused(&up(missing.to_str().unwrap()), "nowhere");

    let model = files.model();
    let weights = model.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    assert_refused(&up(model.to_str().unwrap()), "model.safetensors");
    std::fs::write(&weights, &bytes).unwrap();
    std::fs::write(model.join("config.json"), r#"{"model_type":"mamba","architectures":["Mamba"]}"#).unwrap();
    assert_refused(&up(model.to_str().unwrap()), "mamba");
}

#[test]
fn more_shards_than_layers_are_refused() {
    let files = Files::new();
    let output = files.up_command().args(["--shards", "5"]).stdin(Stdio::null()).output().unwrap();
    assert_refused(&output, "5 shards cannot share the 4 layers");
}

#[test]
fn what_the_machine_does_not_have_is_refused() {
    let files = Files::new();
    let with = |extra: &[&str]| files.up_command().args(extra).stdin(Stdio::null()).output().unwrap();
    assert_refused(&with(&["--kv-tokens", "40000000000"]), "the model needs");
    assert_refused(&with(&["--cpus", "4095"]), "core 4095");
    assert_refused(&with(&["--context", "5000"]), "a context of 5000 tokens");
}

#[test]
fn a_state_folder_serves_one_cluster_at_a_time() {
    let files = Files::new();
    let up = Up::start(files.up_command().args(["--shards", "1"]));
    let output = files.up_command().stdin(Stdio::null()).output().unwrap();
    assert_refused(&output, &format!("process {}", up.id()));
    let (status, _) = up.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn detached_it_runs_until_down() {
    let files = Files::new();
    let output = files.up_command().args(["--shards", "2", "--detach"]).stdin(Stdio::null()).output().unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let url = out.trim().strip_prefix("ready ").expect("one line says where").to_owned();
    let (status, answer) = ask(&url, &request("hello", 4, false)).await;
    assert_eq!(status, 200, "{answer}");

    let state = files.state();
    let down = run(&["down", "--state", state.to_str().unwrap()]);
    assert_eq!(down.status.code(), Some(0), "{}", String::from_utf8_lossy(&down.stderr));
    assert!(reqwest::get(format!("{url}/models")).await.is_err(), "nothing listens any more");
    let again = run(&["down", "--state", state.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(0), "stopping what does not run is no error");

    let bad = files.up_command().args(["--shards", "9", "--detach"]).stdin(Stdio::null()).output().unwrap();
    assert_refused(&bad, "9 shards cannot share the 4 layers");
}
