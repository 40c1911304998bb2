//! Whoever relays the signalling, or comes with papers of its own making, gets no link and no place: it is refused with
//! a plain sentence, and everything works again once it is gone.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod support;

use std::{
    fs,
    io::Read,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use alloy_primitives::Address;
use alloy_signer_local::PrivateKeySigner;
use futures::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use pool_coalition::{Roster, RosterRole};
use pool_link::{Delegation, Description, LinkIdentity, VerifyContext};
use serde_json::Value;
use support::{
    Files, PASSPHRASE, PATIENCE, Running, Up, address_of, after, ask, assert_gone, coalition, computepool, member,
    request, texts, wait,
};
use tokio::net::TcpListener;
use tokio_tungstenite::{accept_async, connect_async, tungstenite::Message};

/// What a relay does to the descriptions it should only carry.
#[derive(Clone, Copy)]
enum Forgery {
    /// Those for the node carry another fingerprint.
    Fingerprint,
    /// Those of the node are signed by the relay instead.
    Signer,
}

/// A WebSocket relay between a node and the orchestrator that forges while `forges` is set.
async fn relay(orchestrator: String, forgery: Forgery, forges: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let wallet = PrivateKeySigner::random();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (orchestrator, forges, wallet) = (orchestrator.clone(), forges.clone(), wallet.clone());
            tokio::spawn(async move {
                let Ok(node) = accept_async(stream).await else { return };
                let Ok((upstream, _)) = connect_async(format!("{orchestrator}/v1/nodes/ws")).await else { return };
                let (mut to_node, mut from_node) = node.split();
                let (mut to_upstream, mut from_upstream) = upstream.split();
                loop {
                    tokio::select! {
                        message = from_node.next() => {
                            let Some(Ok(message)) = message else { break };
                            let forge = forges.load(Ordering::Relaxed) && matches!(forgery, Forgery::Signer);
                            let message = if forge { signed_by(&wallet, message).await } else { message };
                            if to_upstream.send(message).await.is_err() { break }
                        }
                        message = from_upstream.next() => {
                            let Some(Ok(message)) = message else { break };
                            let forge = forges.load(Ordering::Relaxed) && matches!(forgery, Forgery::Fingerprint);
                            let message = if forge { with_another_fingerprint(message) } else { message };
                            if to_node.send(message).await.is_err() { break }
                        }
                    }
                }
                let _ = (to_node.close().await, to_upstream.close().await);
            });
        }
    });
    format!("ws://{address}")
}

/// Gives the description in a signal to `change`, and leaves every other message alone.
fn forged(message: Message, change: impl FnOnce(Description) -> Description) -> Message {
    let Message::Text(text) = &message else { return message };
    let Ok(mut value) = serde_json::from_str::<Value>(text) else { return message };
    if value["type"] != "signal" {
        return message;
    }
    let description = serde_json::from_str(value["description"].as_str().unwrap()).unwrap();
    value["description"] = serde_json::to_string(&change(description)).unwrap().into();
    Message::text(value.to_string())
}

fn with_another_fingerprint(message: Message) -> Message {
    forged(message, |mut description| {
        let at = description.sdp.find("a=fingerprint:sha-256 ").unwrap() + "a=fingerprint:sha-256 ".len();
        let other = if description.sdp[at..].starts_with('0') { "1" } else { "0" };
        description.sdp.replace_range(at..at + 1, other);
        description
    })
}

/// The relay's own description in the node's name, signed by the relay's key.
async fn signed_by(wallet: &PrivateKeySigner, message: Message) -> Message {
    let key = LinkIdentity::new_key();
    let mut seen = None;
    forged(message.clone(), |description| {
        seen = Some(description.clone());
        description
    });
    let Some(seen) = seen else { return message };
    let expires = seen.delegation.expires;
    let delegation = Delegation::sign(wallet, key.address(), seen.coalition, seen.chain, expires).await.unwrap();
    let identity = key.with_delegation(delegation).unwrap();
    forged(message, |description| {
        let context = VerifyContext {
            members: [description.from, description.to, wallet.address()].into(),
            me: wallet.address(),
            coalition: description.coalition,
            chain: description.chain,
            epoch: description.epoch,
            now: description.expires - 60,
        };
        let Description { from, to, role, nonce, sdp, .. } = description;
        let own = Description::sign(&identity, &context, to, role, nonce, sdp, 60).unwrap();
        Description { from, ..own }
    })
}

fn logged(folder: &Path, text: &str) -> bool {
    texts(folder).iter().any(|(path, log)| path.ends_with("log.jsonl") && log.contains(text))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_forges_descriptions_can_refuse_a_link_but_never_sit_in_one() {
    let files = Files::new();
    let base = files.state();
    let (gateway, left, right) = (base.join("gateway-state"), base.join("left"), base.join("right"));
    fs::create_dir_all(&base).unwrap();
    let roster = base.join("roster.json");
    let orchestrator = || {
        let mut command = computepool();
        command.arg("orchestrator").arg("--roster").arg(&roster).arg("--model").arg(files.model());
        command.arg("--state").arg(&gateway).args(["--api", "127.0.0.1:0", "--shards", "2", "--loopback-only"]);
        command
    };
    let node = |state: &Path, at: &str| {
        let mut command = computepool();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.arg("node").arg("--roster").arg(&roster).arg("--model").arg(files.model()).arg("--state").arg(state);
        command.args(["--orchestrator", at, "--threads", "1", "--loopback-only"]);
        command
    };
    let addresses = (address_of(orchestrator()), address_of(node(&left, "ws://127.0.0.1:1")));
    let members = vec![
        member(addresses.0, "gateway", RosterRole::Gateway),
        member(addresses.1, "left", RosterRole::Node),
        member(address_of(node(&right, "ws://127.0.0.1:1")), "right", RosterRole::Node),
    ];
    fs::write(&roster, Roster::new(addresses.0, members, 0).unwrap().to_json()).unwrap();

    let (mut server, listening, printed) = Running::orchestrator(orchestrator());
    let url = format!("{}/v1", listening.replace("ws://", "http://"));
    let forges = Arc::new(AtomicBool::new(true));
    let relays = (
        relay(listening.clone(), Forgery::Signer, forges.clone()).await,
        relay(listening, Forgery::Fingerprint, forges.clone()).await,
    );
    let mut nodes = [Running::start(node(&left, &relays.0)), Running::start(node(&right, &relays.1))];

    // The attempt to link fails, in its time and with a sentence; requests are refused meanwhile, at once.
    let began = Instant::now();
    let failure = loop {
        let view = coalition(&url).await;
        assert_ne!(view["state"], "active", "no link may come up through the forger: {view}");
        if view["failures"].as_u64() > Some(0) {
            break view["last_failure"]["message"].as_str().unwrap().to_owned();
        }
        assert!(began.elapsed() < PATIENCE, "an attempt that cannot succeed must end: {view}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert!(failure.contains("link"), "a plain sentence: {failure}");
    eprintln!("after {:?}: {failure}", began.elapsed());
    let asked = Instant::now();
    let (status, answer) = ask(&url, &request("is anybody there?", 4, false)).await;
    assert!(
        status == 503 && asked.elapsed() < Duration::from_secs(5),
        "{status} after {:?}: {answer}",
        asked.elapsed()
    );
    assert!(!answer["error"]["message"].as_str().unwrap().is_empty());
    // Each side said what was wrong.
    assert!(logged(&right, "exactly the one fingerprint that was signed"), "the changed fingerprint was refused");
    assert!(logged(&gateway, "an answer was refused"), "and the answer that the relay signed");
    assert!(logged(&right, "an offer was refused") || logged(&right, "names somebody else"));

    // The relay carries faithfully from now on: the same processes link, and answer.
    forges.store(false, Ordering::Relaxed);
    assert!(after(&printed, "ready ", PATIENCE).is_some(), "a coalition forms through an honest relay");
    let (status, answer) = ask(&url, &request("is anybody there?", 8, false)).await;
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &Value::from(8)), "{answer}");

    let mut processes = server.processes();
    nodes.iter().for_each(|node| processes.extend(node.processes()));
    assert!(processes.len() >= 5, "three programs and two shards: {processes:?}");
    nodes.iter_mut().for_each(Running::stop);
    server.stop();
    assert_gone(&processes);
}

#[tokio::test]
async fn a_node_with_a_roster_of_its_own_making_is_turned_away_with_a_sentence() {
    let files = Files::new();
    let up = Up::start(files.up_command().args(["--shards", "1"]));
    let before = coalition(&up.url).await;
    let own = tempfile::tempdir().unwrap();
    let roster = own.path().join("roster.json");
    let node = || {
        let mut command = computepool();
        command.arg("node").arg("--roster").arg(&roster).arg("--model").arg(files.model());
        command.arg("--state").arg(own.path().join("state"));
        command.args(["--orchestrator", &up.root().replace("http://", "ws://"), "--loopback-only"]);
        command.env("COMPUTEPOOL_PASSPHRASE", PASSPHRASE);
        command
    };
    let address = address_of(node());
    let gateway: Address = before["gateway"].as_str().unwrap().parse().unwrap();
    let members = vec![member(gateway, "gateway", RosterRole::Gateway), member(address, "intruder", RosterRole::Node)];
    fs::write(&roster, Roster::new(gateway, members, 0).unwrap().to_json()).unwrap();
    let mut child = node().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = wait(&mut child, Duration::from_secs(20));
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_ne!(status.code(), Some(0), "{errors}");
    assert!(errors.contains("roster"), "a sentence that says what is wrong: {errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    let after = coalition(&up.url).await;
    assert_eq!((&after["epoch"], &after["state"]), (&before["epoch"], &before["state"]), "nobody was disturbed");
    up.stop(Signal::SIGTERM);
}
