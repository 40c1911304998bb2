//! Sessions of a real cluster on a real chain, as a payer uses them.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod money_support;
mod support;

use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use alloy_primitives::Address;
use money_support::{DevnetProcess, folder, good, json, money, refused, run, said, text};
use nix::sys::signal::Signal;
use pool_node::identity::{Passphrase, make_private_directory, open_or_create};
use serde_json::Value;
use support::{Files, PATIENCE, Up};

/// The keys that `up` will use: made beforehand, because who sends transactions must have coin for gas.
fn keys(state: &Path) -> [Address; 2] {
    make_private_directory(state).unwrap();
    let passphrase = Passphrase::from_file_or_random(&state.join("passphrase")).unwrap();
    ["gateway", "sentinel"].map(|name| open_or_create(&state.join(name), &passphrase).unwrap().address())
}

fn paid_cluster(files: &Files, devnet: &DevnetProcess) -> Up {
    for account in keys(&files.state()) {
        good(&["devnet", "fund", &account.to_string(), "--usdc", "0", "--coin", "10", "--rpc", &devnet.rpc]);
    }
    let mut up = files.up_command();
    up.env_remove("COMPUTEPOOL_RPC").args(["--shards", "2", "--pay", "--rpc", &devnet.rpc]);
    Up::start(&mut up)
}

/// Shows a session until something has streamed: the chain counts whole seconds, and an answer may take less than one.
fn streamed(show: &[&str]) -> Value {
    let began = Instant::now();
    loop {
        let shown = json(show);
        if shown["stream"]["streamed"].as_str().is_some_and(|wei| wei != "0") {
            return shown;
        }
        assert!(began.elapsed() < PATIENCE, "nothing has streamed: {shown}");
        sleep(Duration::from_millis(200));
    }
}

fn units(value: &Value, name: &str) -> u128 {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}")).parse().unwrap()
}

#[test]
fn a_session_is_opened_used_shown_and_closed_and_every_figure_adds_up() {
    let (files, chain) = (Files::new(), tempfile::tempdir().unwrap());
    let devnet = DevnetProcess::start(chain.path(), &[]);
    let up = paid_cluster(&files, &devnet);
    let (_keep, wallet) = folder();
    let (wallet, rpc, api) = (text(&wallet), devnet.rpc.as_str(), up.url.as_str());
    let payer = ["--wallet", wallet, "--development-account", "1", "--rpc", rpc];
    let kept = ["--wallet", wallet];
    let had = json(&["wallet", "--development-account", "1", "--rpc", rpc]);

    let (status, _, stranger) = run(&["chat", "--api", api, "hello"]);
    assert_eq!(status, Some(2), "without paying nothing is answered");
    assert!(stranger.to_lowercase().contains("this model is paid for"), "{stranger}");
    let greedy =
        refused(&[&["session", "open", "--api", api, "--seconds", "120", "--most", "0.01"], &payer[..]].concat());
    assert!(greedy.contains("at most 0.010000 USDC were allowed") && greedy.contains("--most"), "{greedy}");

    let opened = json(&[&["session", "open", "--api", api, "--seconds", "120"], &payer[..]].concat());
    let session = &opened["session"];
    let id = session["id"].as_str().unwrap();
    assert_eq!((&session["state"], &session["seconds"]), (&"open".into(), &120.into()), "{opened}");
    assert!(opened["transaction"].as_str().is_some_and(|hash| hash.len() == 66), "{opened}");
    assert!(!opened.to_string().contains("cps_"), "the token is kept, not shown: {opened}");
    let token = good(&[&["session", "token", id], &kept[..]].concat());
    assert!(token.starts_with("cps_"), "unless it is asked for");

    let chat = |more: &[&str]| {
        let mut command = money(&["chat", "--api", api, "--max-tokens", "24", "--temperature", "0"]);
        said(command.args(more).output().unwrap())
    };
    let (status, answer, words) = chat(&["--session", &id[..12], "--wallet", wallet, "hello"]);
    assert_eq!(status, Some(0), "{words}");
    assert!(!answer.trim().is_empty(), "an answer on standard output");
    for expected in ["24 tokens", "streamed", "The session stays open"] {
        assert!(words.contains(expected), "{expected} is missing: {words}");
    }
    let shown = good(&[&["session", "show", id], &kept[..]].concat());
    for expected in ["state    open", "of which", "s left", "operator", "50.00 %"] {
        assert!(shown.contains(expected), "{expected} is missing: {shown}");
    }
    let shown = streamed(&[&["session", "show", id], &kept[..]].concat());
    assert_eq!(shown["stream"]["operators"].as_array().unwrap().len(), 2, "{shown}");
    assert!(!shown.to_string().contains("cps_"), "{shown}");

    let closed = json(&[&["session", "close", id], &payer[..]].concat());
    let receipt = &closed["session"]["receipt"];
    let unit = 1_000_000_000_000;
    assert_eq!(
        units(receipt, "paid") * unit,
        units(receipt, "streamed") + units(receipt, "refunded") * unit,
        "{receipt}"
    );
    assert!(units(receipt, "streamed") > 0, "work was paid for: {receipt}");
    let has = json(&["wallet", "--development-account", "1", "--rpc", rpc]);
    assert_eq!(units(&had, "usdc") - units(&has, "usdc"), units(receipt, "streamed") / unit, "all else came back");
    let again = refused(&[&["session", "show", id], &kept[..]].concat());
    assert!(again.contains("it is closed"), "{again}");

    let (status, answer, words) = chat(&[&["--pay", "--seconds", "60"], &payer[..], &["hello"]].concat());
    assert_eq!(status, Some(0), "{words}");
    assert!(!answer.trim().is_empty());
    for expected in [" is open: ", "streamed ", "paid 0.081000 = streamed ", " + refunded "] {
        assert!(words.contains(expected), "{expected} is missing: {words}");
    }
    let (status, lines, words) = chat(&[&["--pay", "--json"], &payer[..], &["hello"]].concat());
    assert_eq!(status, Some(0), "{words}");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["answer"]["tokens"], &lines[1]["session"]["state"]), (&24.into(), &"closed".into()));

    let log = chain.path().join("audit.jsonl");
    let audited = json(&["verify", "audit", "--from", api, "--save", text(&log)]);
    assert_eq!(audited["sound"], true, "{audited}");
    assert!(audited["confirmed"].as_u64() > Some(6), "three sessions opened and closed: {audited}");
    let head = audited["head"].as_str().unwrap();
    let later = json(&["verify", "audit", "--from", api, "--noted", head]);
    assert_eq!(later["sound"], true, "the log only grows: {later}");
    let saved = fs::read_to_string(&log).unwrap();
    fs::write(&log, saved.replacen("run-completed", "run-failed", 1)).unwrap();
    let (status, _, errors) = run(&["verify", "audit", text(&log)]);
    assert_eq!(status, Some(1), "a changed word is found: {errors}");

    let (status, errors) = up.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{errors}");
    assert!(!errors.contains("cps_") && !saved.contains("cps_"), "no token in errors or in the log");
}

#[test]
fn an_orchestrator_that_is_killed_keeps_nobodys_money() {
    let (files, chain) = (Files::new(), tempfile::tempdir().unwrap());
    let devnet = DevnetProcess::start(chain.path(), &[]);
    let up = paid_cluster(&files, &devnet);
    let (_keep, wallet) = folder();
    let (wallet, rpc) = (text(&wallet), devnet.rpc.as_str());
    let payer = ["--wallet", wallet, "--development-account", "1", "--rpc", rpc];
    let had = json(&["wallet", "--development-account", "1", "--rpc", rpc]);
    let opened = json(&[&["session", "open", "--api", &up.url, "--seconds", "120"], &payer[..]].concat());
    let id = opened["session"]["id"].as_str().unwrap();

    drop(up);
    let gone = refused(&[&["session", "close", id], &payer[..]].concat());
    assert!(gone.contains("--direct") && gone.contains("cannot be reached"), "it says what else there is: {gone}");
    let closed = json(&[&["session", "close", id, "--direct"], &payer[..]].concat());
    assert_eq!(closed["receipt"]["refunded"], closed["receipt"]["paid"], "nothing ran, nothing was charged: {closed}");
    let has = json(&["wallet", "--development-account", "1", "--rpc", rpc]);
    assert_eq!(has["usdc"], had["usdc"], "all of it came back");
}
