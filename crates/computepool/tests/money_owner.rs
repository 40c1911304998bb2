//! An owner's machine without a screen, on a paid network: it serves in its hours, is paid by the second, and says what
//! it earned, used and kept.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod money_support;
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use money_support::{DevnetProcess, folder, good, json, money, refused, said, text};
use pool_coalition::{Roster, RosterRole};
use serde_json::Value;
use support::{Files, PATIENCE, Running, address_of, computepool, member, with_passphrase, without_desktop};

/// A wei amount that an interface tells as text with all its decimals.
fn wei(value: &Value) -> i128 {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no amount"));
    let (whole, decimals) = text.split_once('.').unwrap();
    assert_eq!(decimals.len(), 18, "{text}");
    format!("{whole}{decimals}").parse().unwrap()
}

/// Asks until the answer is as wanted.
fn until(what: &str, mut ask: impl FnMut() -> Value, wanted: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let told = ask();
        if wanted(&told) {
            return told;
        }
        assert!(began.elapsed() < PATIENCE, "{what} does not come about: {told:#}");
        sleep(Duration::from_millis(200));
    }
}

fn orchestrator(files: &Files, base: &Path, rpc: &str) -> Command {
    let mut command = computepool();
    command.arg("orchestrator").arg("--roster").arg(base.join("roster.json")).arg("--model").arg(files.model());
    command.arg("--state").arg(base.join("gateway")).args(["--api", "127.0.0.1:0", "--shards", "1"]);
    command.args(["--loopback-only", "--pay", "--linger", "1", "--rpc", rpc]);
    command
}

fn node(files: &Files, base: &Path, at: &str) -> Command {
    let mut command = computepool();
    command.arg("node").arg("--roster").arg(base.join("roster.json")).arg("--model").arg(files.model());
    command.arg("--state").arg(base.join("owner")).args(["--orchestrator", at, "--threads", "1", "--loopback-only"]);
    command
}

#[test]
fn a_machine_without_a_screen_earns_in_its_hours_and_says_so() {
    let (files, chain) = (Files::new(), tempfile::tempdir().unwrap());
    let devnet = DevnetProcess::start(chain.path(), &[]);
    let base: PathBuf = files.state();
    fs::create_dir_all(&base).unwrap();
    let gateway = address_of(orchestrator(&files, &base, &devnet.rpc));
    let owner = address_of(node(&files, &base, "ws://127.0.0.1:1"));
    let members = vec![member(gateway, "gateway", RosterRole::Gateway), member(owner, "server", RosterRole::Node)];
    fs::write(base.join("roster.json"), Roster::new(gateway, members, 0).unwrap().to_json()).unwrap();
    // Made beforehand, because who sends transactions must have coin for gas.
    let sentinel = {
        let passphrase = pool_node::identity::Passphrase::new(support::PASSPHRASE);
        pool_node::identity::open_or_create(&base.join("gateway/sentinel"), &passphrase).unwrap().address()
    };
    for account in [gateway, sentinel] {
        good(&["devnet", "fund", &account.to_string(), "--usdc", "0", "--coin", "10", "--rpc", &devnet.rpc]);
    }
    let (_server, listening, _) = Running::orchestrator(orchestrator(&files, &base, &devnet.rpc));
    let api = format!("{}/v1", listening.replace("ws://", "http://"));

    // All hours are its hours; who sits in front of it is not known, and is not guessed.
    let settings = base.join("settings.json");
    fs::write(
        &settings,
        r#"{ "mode": "by-schedule", "schedule": "Mon-Sun 00:00-24:00", "notice": 0, "electricity_price": "0.36" }"#,
    )
    .unwrap();
    let book: Value = {
        let file: Value = serde_json::from_slice(&fs::read(base.join("gateway/chain.json")).unwrap()).unwrap();
        file["addressBook"].clone()
    };
    let registry = format!("{}:{}", book["chainId"], book["contracts"]["coalitionRegistry"].as_str().unwrap());
    let mut command = with_passphrase(node(&files, &base, &listening));
    command.args(["--policy", "--share-cpu", "--registry", &registry, "--rpc", &devnet.rpc]);
    command.arg("--settings").arg(&settings);
    let errors = fs::File::create(base.join("errors")).unwrap();
    without_desktop(&mut command).stderr(errors);
    let mut running = Running(command.spawn().unwrap());
    let state = base.join("owner");
    let of_owner = ["--state", text(&state)];
    let status = || {
        let output = said(money(&[&["status", "--json"], &of_owner[..]].concat()).output().unwrap());
        serde_json::from_str(&output.1).unwrap_or_default()
    };
    let earning = until("it serves", status, |status: &Value| status["state"]["stage"] == "earning");
    let missing = earning["state"]["unavailable"].to_string();
    assert!(missing.contains("idle"), "nobody knows whether somebody is there, and it says so: {missing}");

    let earnings = || json(&[&["earnings"], &of_owner[..]].concat());
    let before = until("the chain is read", earnings, |told| !told["earnings"]["reconciled_until"].is_null());
    assert_eq!(before["earnings"]["network"], "local");
    assert_eq!(before["earnings"]["test_money"], true);
    let (_keep, wallet) = folder();
    let wallet = text(&wallet);
    let payer = ["--wallet", wallet, "--development-account", "1", "--rpc", &devnet.rpc];
    // Sessions are sold once the coalition is active on the chain, too.
    let open = [&["session", "open", "--api", &api, "--seconds", "60", "--json"], &payer[..]].concat();
    let opened = until(
        "a session is sold",
        || serde_json::from_str(&said(money(&open).output().unwrap()).1).unwrap_or_default(),
        |opened| opened["session"]["id"].is_string(),
    );
    let session = opened["session"]["id"].as_str().unwrap();
    // The chain counts whole seconds, so an answer is asked for until one has passed.
    let (mut answers, mut given) = (0, 0);
    until(
        "something has streamed",
        || {
            let chat = ["chat", "--api", &api, "--max-tokens", "500", "--session", session, "hello"];
            let answer = json(&[&chat[..], &["--wallet", wallet]].concat());
            given += answer["answer"]["tokens"].as_u64().unwrap();
            answers += 1;
            json(&["session", "show", session, "--wallet", wallet])
        },
        |shown| shown["stream"]["streamed"].as_str().is_some_and(|wei| wei != "0"),
    );
    let closed = json(&[&["session", "close", session], &payer[..]].concat());
    let streamed: i128 = closed["session"]["receipt"]["streamed"].as_str().unwrap().parse().unwrap();

    let after = until("the stream is over and agrees", earnings, |told| {
        wei(&told["earnings"]["earned"]) == streamed
            && told["earnings"]["rate"] == "0.000000000000000000"
            && told["shifts"][0]["status"] == "idle"
    });
    let (earned, shift) = (wei(&after["earnings"]["earned"]), &after["shifts"][0]);
    assert_eq!(after["earnings"]["differs"], Value::Null, "the chain says the same to the wei");
    assert_eq!(wei(&after["earnings"]["today"]["gross"]), earned);
    assert_eq!(wei(&shift["books"]["gross"]), earned, "{shift:#}");
    assert_eq!(wei(&shift["books"]["net"]), earned - wei(&shift["books"]["cost"]), "net is gross less energy");
    assert_eq!((&shift["layers"], &shift["members"], &shift["ended"]), (&"0-3".into(), &1.into(), &Value::Null));
    assert!(earned % 100_000_000_000_000 == 0, "100 units of 10^-6 USDC for each whole second: {earned}");
    let counted = |told: &Value| told["shifts"][0]["books"]["tokens"].as_u64().unwrap();
    // Those of the questions count as well, and no token is worked on twice.
    let tokens = until("the tokens are counted", earnings, |told| counted(told) >= given);
    assert!(counted(&tokens) <= given + 64 * answers, "{} for {given} in {answers} answers", counted(&tokens));
    assert!(tokens["shifts"][0]["books"]["served"].as_u64() > Some(0));
    let text_form = good(&[&["earnings"], &of_owner[..]].concat());
    assert!(text_form.contains("play money") && text_form.contains("agreed to the wei"), "{text_form}");

    // What somebody who helps would need.
    let out = base.join("diagnostics.json");
    let words = good(&[&["diagnostics", "--out", text(&out)], &of_owner[..]].concat());
    assert!(words.contains("read it before you send it"), "{words}");
    let bundle = fs::read_to_string(&out).unwrap();
    let token = fs::read_to_string(pool_api::Access::path(&state)).unwrap();
    let token: Value = serde_json::from_str(&token).unwrap();
    assert!(!bundle.contains(token["token"].as_str().unwrap()), "the way in is not in it");
    let parsed: Value = serde_json::from_str(&bundle).unwrap();
    assert_eq!(parsed["running"]["state"]["stage"], "earning");
    assert!(parsed["log"].as_array().is_some_and(|lines| lines.len() > 5));
    let again = refused(&[&["diagnostics", "--out", text(&out)], &of_owner[..]].concat());
    assert!(again.contains("is there already"), "{again}");

    // After it has ended the books are there, and the money is not guessed.
    running.stop();
    let gone = refused(&[&["earnings"], &of_owner[..]].concat());
    assert!(gone.contains("no node runs"), "{gone}");
    good(&[&["diagnostics", "--out", text(&base.join("later.json"))], &of_owner[..]].concat());
}
