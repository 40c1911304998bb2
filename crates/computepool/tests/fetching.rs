//! Nodes without the model: each fetches the layers it is assigned, and no more, then serves.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

#[path = "../../pool-models/tests/downloads/server.rs"]
#[allow(dead_code, reason = "shared with the tests of downloads")]
mod server;
mod support;

use std::{
    fs,
    io::Read,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use pool_coalition::{Roster, RosterRole};
use pool_models::{Manifest, Wanted};
use serde_json::{Value, json};
use server::Server;
use support::{
    Files, PATIENCE, Running, address_of, ask, ask_until_served, coalition, computepool, member, request, wait,
    with_passphrase,
};

/// A pool's owner with the model, and where two operators find its manifest and its files.
struct Pool {
    files: Files,
    base: PathBuf,
    manifest: PathBuf,
    owner: String,
    host: Server,
}

impl Pool {
    async fn new() -> Self {
        let files = Files::new();
        let base = files.state();
        fs::create_dir_all(&base).unwrap();
        let manifest = base.join("noise.json");
        let mut command = with_passphrase(computepool());
        command
            .arg("manifest")
            .arg(files.model())
            .arg("--out")
            .arg(&manifest)
            .arg("--key")
            .arg(base.join("pool-owner"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        let owner =
            said.lines().find_map(|line| line.strip_prefix("signed by ")).expect("it says who signed").to_owned();
        let of_model = fs::read_dir(files.model()).unwrap().map(|entry| entry.unwrap().path());
        let named = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
        let host = Server::start(&of_model.map(named).collect::<Vec<_>>()).await;
        Self { files, base, manifest, owner, host }
    }

    fn node(&self, name: &str, at: &str) -> Command {
        let mut command = computepool();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.arg("node").arg("--roster").arg(self.base.join("roster.json")).arg("--state").arg(self.base.join(name));
        command.arg("--manifest").arg(&self.manifest).args(["--mirror", &self.host.url(), "--pool-owner", &self.owner]);
        command.args(["--orchestrator", at, "--threads", "1", "--loopback-only"]);
        // Measured anew at each start, the machine could seem another one, and get other layers.
        let capabilities = json!({
            "device": "cpu", "memory_bytes": 1_u64 << 30, "bandwidth_bytes_per_second": 10_000_000_000_u64, "threads": 1,
            "uplink_bytes_per_second": null,
        });
        command.arg("--capabilities").arg(capabilities.to_string());
        command
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_fetch_their_own_layers_and_nothing_else_and_serve_together() {
    let pool = Pool::new().await;
    let orchestrator = || {
        let mut command = computepool();
        command.arg("orchestrator").arg("--roster").arg(pool.base.join("roster.json"));
        command.arg("--model").arg(pool.files.model()).arg("--state").arg(pool.base.join("gateway"));
        command.args(["--api", "127.0.0.1:0", "--shards", "2", "--loopback-only"]);
        command
    };
    let nobody = "ws://127.0.0.1:1";
    let gateway = address_of(orchestrator());
    let members = vec![
        member(gateway, "gateway", RosterRole::Gateway),
        member(address_of(pool.node("left", nobody)), "left", RosterRole::Node),
        member(address_of(pool.node("right", nobody)), "right", RosterRole::Node),
    ];
    fs::write(pool.base.join("roster.json"), Roster::new(gateway, members, 0).unwrap().to_json()).unwrap();
    let (server, listening, _) = Running::orchestrator(orchestrator());
    let url = format!("{}/v1", listening.replace("ws://", "http://"));
    let nodes = [Running::start(pool.node("left", &listening)), Running::start(pool.node("right", &listening))];
    ask_until_served(&url, PATIENCE).await;

    // What left the host, against what the two shards are made of.
    let view: Value = coalition(&url).await;
    let manifest = Manifest::parse(&fs::read(&pool.manifest).unwrap()).unwrap();
    let bytes = |layers: &Value| -> u64 {
        let layers = serde_json::from_value(layers.clone()).unwrap();
        let wanted = Wanted::shard(layers, &manifest.config);
        manifest.items(wanted).iter().map(|item| item.content.length).sum()
    };
    let members = view["members"].as_array().unwrap();
    assert_eq!(members.len(), 2, "{view}");
    let needed: u64 = members.iter().map(|member| bytes(&member["layers"])).sum();
    let sent = pool.host.sent(".safetensors");
    println!("{sent} bytes were fetched for shards of {needed} bytes");
    assert!(sent >= needed && sent as f64 <= 1.02 * needed as f64, "{sent} bytes were sent for {needed}");
    let (_, answer) = ask(&url, &request("is it the same?", 24, false)).await;

    // A node that starts again has its layers, and the answer is that of the model.
    drop(nodes);
    pool.host.forget();
    let nodes = [Running::start(pool.node("left", &listening)), Running::start(pool.node("right", &listening))];
    ask_until_served(&url, PATIENCE).await;
    assert_eq!(pool.host.sent(".safetensors"), 0, "nothing is fetched twice");
    let (_, again) = ask(&url, &request("is it the same?", 24, false)).await;
    assert_eq!(again["choices"], answer["choices"]);
    drop((nodes, server));
    let whole = support::Up::start(pool.files.up_command().args(["--shards", "1"]));
    let (_, expected) = ask(&whole.url, &request("is it the same?", 24, false)).await;
    assert_eq!(answer["choices"], expected["choices"], "fetched layers answer like the files they came from");
}

#[tokio::test]
async fn a_model_that_the_pools_owner_has_not_signed_is_not_fetched() {
    let mut pool = Pool::new().await;
    pool.owner = "0x00000000000000000000000000000000000000aa".to_owned();
    let nobody = "ws://127.0.0.1:1";
    let left = address_of(pool.node("left", nobody));
    let gateway = alloy_primitives::Address::repeat_byte(1);
    let members = vec![member(gateway, "gateway", RosterRole::Gateway), member(left, "left", RosterRole::Node)];
    fs::write(pool.base.join("roster.json"), Roster::new(gateway, members, 0).unwrap().to_json()).unwrap();
    let mut node = with_passphrase(pool.node("left", nobody));
    let mut node = Running(node.stderr(Stdio::piped()).spawn().unwrap());
    let status = wait(&mut node.0, Duration::from_secs(20));
    let mut errors = String::new();
    node.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(status.code(), Some(2), "{errors}");
    assert!(errors.contains("signed"), "it says what is wrong: {errors}");
    assert_eq!(pool.host.seen().len(), 0, "and nothing is asked of the host");
}
