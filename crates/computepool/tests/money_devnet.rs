//! `computepool devnet`: a chain with the real contracts, for as long as it is wanted and no longer.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod money_support;
mod support;

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use money_support::{DevnetProcess, good, json, refused, text};
use nix::sys::signal::Signal;
use support::{PATIENCE, assert_gone, descendants, kill};

/// Nobody's account.
const ACCOUNT: &str = "0x00000000000000000000000000000000000c0ffe";

#[test]
fn a_chain_is_started_funded_moved_in_time_stopped_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("devnet");
    let at = ["--state", text(&state)];
    let devnet = |words: &[&'static str]| [&["devnet"], words, &at].concat();

    let nowhere = refused(&devnet(&["fund", ACCOUNT]));
    assert!(nowhere.contains("start one with `computepool devnet up`"), "{nowhere}");

    let first = DevnetProcess::start(&state, &[]);
    assert_eq!(first.line, format!("ready {} chain 16602", first.rpc));
    let second = refused(&devnet(&["up", "--port", "0"]));
    assert!(second.contains("runs in") && second.contains("computepool devnet down"), "{second}");
    assert!(second.contains(&first.rpc), "it says where: {second}");

    let funded = good(&devnet(&["fund", ACCOUNT]));
    assert_eq!(funded, format!("{ACCOUNT} has 10.000000 USDC, and 1 of the chain's coin\n"));
    let more = json(&devnet(&["fund", ACCOUNT, "--usdc", "0.5", "--coin", "0.25"]));
    assert_eq!(more["usdc"], "10500000", "funding adds: {more}");
    assert_eq!(more["coin"], "1250000000000000000", "{more}");

    let before = json(&devnet(&["time", "show"]));
    let after = json(&devnet(&["time", "advance", "3600"]));
    let passed = after["time"].as_u64().unwrap() - before["time"].as_u64().unwrap();
    assert!((3600..3700).contains(&passed), "an hour passed at once: {passed}");
    let shown = good(&devnet(&["time", "show"]));
    assert!(shown.contains("s ahead of this machine"), "{shown}");

    let nodes = descendants(first.child.id());
    assert!(!nodes.is_empty(), "the node is a process of its own");
    let down = money_support::run(&devnet(&["down"]));
    assert_eq!(down.0, Some(0), "{}", down.2);
    assert!(down.2.starts_with("Stopped. Its chain is kept in"), "{}", down.2);
    assert_gone(&nodes);
    let again = json(&devnet(&["down"]));
    assert_eq!(again["stopped"], false, "a chain is stopped once");

    let third = DevnetProcess::start(&state, &[]);
    let kept = json(&devnet(&["fund", ACCOUNT, "--usdc", "0", "--coin", "0"]));
    assert_eq!(kept["usdc"], "10500000", "a chain outlives its node: {kept}");
    assert_eq!(third.stop(Signal::SIGINT).code(), Some(0), "Ctrl-C is a way to stop");

    let fourth = DevnetProcess::start(&state, &["--fresh", "--block-time", "1"]);
    let anew = json(&devnet(&["fund", ACCOUNT, "--usdc", "0", "--coin", "0"]));
    assert_eq!(anew["usdc"], "0", "--fresh forgets: {anew}");
    let block = || json(&devnet(&["time", "show"]))["block"].as_u64().unwrap();
    let one = block();
    let began = Instant::now();
    while block() <= one {
        assert!(began.elapsed() < PATIENCE, "--block-time makes blocks by itself");
        sleep(Duration::from_millis(100));
    }

    let nodes = descendants(fourth.child.id());
    kill(fourth.child.id());
    assert_gone(&nodes);
}

#[test]
fn a_chain_in_the_background_is_left_alone_until_it_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("devnet");
    let line = good(&["devnet", "up", "--detach", "--port", "0", "--state", text(&state), "--json"]);
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&ready["chain"], &ready["network"]), (&16602.into(), &"local".into()), "{ready}");
    let book = fs::read_to_string(ready["address_book"].as_str().unwrap()).unwrap();
    assert!(book.contains("sessionVaultFactory"), "the address book lies beside it");
    let rpc = ready["rpc"].as_str().unwrap();

    let funded = json(&["devnet", "fund", ACCOUNT, "--rpc", rpc]);
    assert_eq!(funded["usdc"], "10000000", "a node is found by its address as well: {funded}");
    let wallet = json(&["wallet", "--development-account", "3", "--rpc", rpc]);
    assert_eq!(wallet["address"], "0x90f79bf6eb2c4f870365e785982e1f101e93b906", "anvil's fourth account");
    assert_ne!(wallet["usdc"], "0", "development accounts have USDC: {wallet}");

    good(&["devnet", "down", "--state", text(&state)]);
    let gone = refused(&["devnet", "time", "show", "--rpc", rpc]);
    assert!(gone.contains("cannot be reached"), "{gone}");
}
