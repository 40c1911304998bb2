//! An owner at a real keyboard: the machine serves while nobody touches it, and is the owner's at the first key.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod support;
#[path = "../../pool-sense/tests/support/x_server.rs"]
#[allow(dead_code, reason = "shared with the tests of the sensors")]
mod x_server;

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use pool_coalition::{Roster, RosterRole};
use serde_json::Value;
use support::{
    Files, PATIENCE, Running, Stream, address_of, ask, assert_gone, computepool, descendants, member, request, run,
    runs, wait, with_passphrase, without_desktop,
};
use x_server::XServer;

/// From the key to the machine given back.
const GIVEN_BACK: Duration = Duration::from_millis(1500);
/// An orchestrator, and the node of an owner who sits at a screen of their own.
struct Home {
    screen: XServer,
    orchestrator: Running,
    node: Running,
    state: PathBuf,
    url: String,
    _files: Files,
}

impl Home {
    fn start() -> Self {
        let files = Files::new();
        let base = files.state();
        fs::create_dir_all(&base).unwrap();
        let (roster, state) = (base.join("roster.json"), base.join("owner"));
        let orchestrator = || {
            let mut command = computepool();
            command.arg("orchestrator").arg("--roster").arg(&roster).arg("--model").arg(files.model());
            command.arg("--state").arg(base.join("gateway"));
            command.args(["--api", "127.0.0.1:0", "--shards", "1", "--loopback-only"]);
            command
        };
        let node = |at: &str| {
            let mut command = computepool();
            command.arg("node").arg("--roster").arg(&roster).arg("--model").arg(files.model());
            command.arg("--state").arg(&state).args(["--orchestrator", at, "--threads", "1", "--loopback-only"]);
            command
        };
        let gateway = address_of(orchestrator());
        let owner = address_of(node("ws://127.0.0.1:1"));
        let members = vec![member(gateway, "gateway", RosterRole::Gateway), member(owner, "desk", RosterRole::Node)];
        fs::write(&roster, Roster::new(gateway, members, 0).unwrap().to_json()).unwrap();

        let (orchestrator, listening, _) = Running::orchestrator(orchestrator());

        let screen = XServer::start();
        // The shortest times that the owner may set.
        let settings = base.join("settings.json");
        fs::write(&settings, r#"{ "start_after": 10, "notice": 0, "rest_after_stop": 10 }"#).unwrap();
        let mut node = with_passphrase(node(&listening));
        node.arg("--policy").arg("--settings").arg(&settings).arg("--share-cpu");
        without_desktop(&mut node).env("DISPLAY", &screen.display);
        node.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let node = Running(node.spawn().unwrap());
        let url = format!("{}/v1", listening.replace("ws://", "http://"));
        Self { screen, orchestrator, node, state, url, _files: files }
    }

    fn shard(&self) -> Option<u32> {
        let below = descendants(self.node.0.id());
        below.into_iter().find(|(process, line)| line.contains("pool-shard") && runs(*process)).map(|(shard, _)| shard)
    }

    /// Leaves the machine alone until it serves; how long that took.
    async fn away(&self) -> Duration {
        let began = Instant::now();
        loop {
            let (status, answer) = ask(&self.url, &request("again", 4, false)).await;
            if status == 200 {
                break;
            }
            assert_eq!(status, 503, "nothing but the missing coalition keeps it from answering: {answer}");
            assert!(began.elapsed() < PATIENCE, "the machine does not serve: {answer}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let served = began.elapsed();
        self.says("earning").await;
        served
    }

    /// Waits until the node says that it is in this state.
    async fn says(&self, stage: &str) {
        let began = Instant::now();
        loop {
            let state = self.state.to_str().unwrap();
            let output = run(&["status", "--json", "--state", state]);
            // At first there is nothing that could be asked.
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if status["state"]["stage"] == stage {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "the node is not {stage}: {status} {output:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Presses a key in the middle of an answer: how long until the client was told, and until the shard was gone.
    async fn back(&self) -> (Duration, Duration) {
        let mut stream = Stream::open(&self.url, &request("tell me everything", 3000, true)).await;
        stream.next().await.expect("the answer begins");
        let shard = self.shard().expect("it serves with a shard");
        let pressed = Instant::now();
        self.screen.xdotool(&["key", "a"]);
        let message = stream.error().await;
        let told = pressed.elapsed();
        assert!(message.contains("desk gave its computer back"), "the reason, in plain words: {message}");
        while runs(shard) {
            assert!(pressed.elapsed() < GIVEN_BACK, "the shard still runs");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let gone = pressed.elapsed();
        assert!(gone < GIVEN_BACK, "the machine was given back after {gone:?}");
        (told, gone)
    }
}

fn output_of(arguments: &[&str], state: &Path) -> String {
    let output = run(&[arguments, &["--state", state.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_machine_serves_and_the_first_key_takes_it_back() {
    let rounds: u64 = std::env::var("COMPUTEPOOL_YIELDS").ok().map_or(2, |text| text.parse().unwrap());
    let mut home = Home::start();
    home.says("waiting").await;
    assert_eq!(home.shard(), None, "nothing is shared before the owner has been away for as long as was set");
    let mut slowest = Duration::ZERO;
    for round in 1..=rounds {
        let away = home.away().await;
        let (told, gone) = home.back().await;
        slowest = slowest.max(gone);
        println!("round {round}: served after {away:?}, client told after {told:?}, machine given back after {gone:?}");
        assert_eq!(home.shard(), None, "no process is left");
    }
    println!("{rounds} yields, the slowest {slowest:?} from key to process gone");

    // The book is written after the machine was given back.
    let written = Instant::now();
    let status = loop {
        let status: Value = serde_json::from_str(&output_of(&["status", "--json"], &home.state)).unwrap();
        if status["given_back"]["count"] == rounds {
            break status;
        }
        assert!(written.elapsed() < Duration::from_secs(5), "each return is measured and kept: {status}");
    };
    assert_eq!((&status["runs"], &status["state"]["stage"]), (&Value::from(true), &Value::from("waiting")), "{status}");
    let given_back = &status["given_back"];
    let p95 = given_back["p95"].as_u64().unwrap();
    assert!(u128::from(p95) < GIVEN_BACK.as_millis(), "{status}");
    println!("as the node measured it: {given_back}");
    let log = output_of(&["log"], &home.state);
    for sentence in ["Waiting: you are using this computer.", "Earning: you are away. Serving layers 0-3 of noise"] {
        assert!(log.contains(sentence), "`{sentence}` in\n{log}");
    }
    assert!(!log.contains("has not been read yet"), "the first decision waits for the first readings:\n{log}");

    // The owner says no, and yes, from another terminal.
    let paused = output_of(&["pause", "--minutes", "30"], &home.state);
    assert!(paused.starts_with("Paused: "), "{paused}");
    let told = output_of(&["downloads"], &home.state);
    assert!(told.starts_with("Nothing is being fetched.\n"), "its model is here: {told}");
    let resumed = output_of(&["resume"], &home.state);
    assert!(resumed.starts_with("Waiting: "), "{resumed}");

    let processes = descendants(home.node.0.id());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(home.node.0.id() as i32), Signal::SIGTERM).unwrap();
    let ended = wait(&mut home.node.0, Duration::from_secs(5));
    let mut errors = String::new();
    home.node.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(ended.code(), Some(0), "{errors}");
    assert!(errors.contains("Earning: you are away."), "it says what it does while it runs: {errors}");
    assert_gone(&processes);
    let status = output_of(&["status"], &home.state);
    assert!(status.starts_with("The node does not run."), "{status}");
    let nobody = run(&["pause", "--state", home.state.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no node runs with the state folder"), "{nobody:?}");
    drop(home.orchestrator);
}

#[test]
fn settings_that_cannot_be_are_refused_before_anything_runs() {
    let files = Files::new();
    let settings = files.model().join("settings.json");
    fs::write(&settings, r#"{ "start_after": 1 }"#).unwrap();
    let mut command = with_passphrase(computepool());
    command.args(["node", "--orchestrator", "ws://127.0.0.1:1", "--policy", "--roster", "roster.json"]);
    command.arg("--state").arg(files.state()).arg("--model").arg(files.model()).arg("--settings").arg(&settings);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("start_after is 1 second; it must lie between 10 seconds and 24 hours"), "{errors}");
    let nothing = run(&["status", "--state", files.state().to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("is not the state folder of a"), "{nothing:?}");
}
