//! Commands that print and end.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod support;

use serde_json::Value;
use support::{Files, run};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn inspect_and_plan_read_a_model_and_speak_json() {
    let files = Files::new();
    let model = files.model();
    let model = model.to_str().unwrap();
    let inspected = run(&["inspect", model, "--json"]);
    assert_eq!(inspected.status.code(), Some(0), "{}", text(&inspected.stderr));
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["layers"].as_array().unwrap().len(), 4);
    let words = text(&run(&["inspect", model]).stdout);
    assert!(words.contains("llama") || words.contains("Llama"), "{words}");

    let planned = run(&["plan", model, "--cards", "1GiB@100GB/s,1GiB@100GB/s", "--shards", "2", "--json"]);
    assert_eq!(planned.status.code(), Some(0), "{}", text(&planned.stderr));
    let planned: Value = serde_json::from_slice(&planned.stdout).unwrap();
    assert_eq!(planned["placement"]["spans"].as_array().unwrap().len(), 2);
}

#[test]
fn well_known_shapes_are_planned_from_their_configuration_alone() {
    for (shape, cards) in [
        ("llama-3-8b", "8GiB@300GB/s,8GiB@300GB/s"),
        ("llama-3-70b", "24GiB@900GB/s,24GiB@900GB/s"),
        ("qwen3-32b", "12GiB@360GB/s,12GiB@360GB/s,24GiB@900GB/s"),
    ] {
        let planned = run(&["plan", "--shape", shape, "--cards", cards]);
        assert_eq!(planned.status.code(), Some(0), "{shape}: {}", text(&planned.stderr));
        let words = text(&planned.stdout);
        assert!(words.contains("on card ") && !words.contains("0x"), "{words}");
    }
    let refused = run(&["plan", "--shape", "llama-3-70b", "--cards", "8GiB@300GB/s"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("the model needs"), "{}", text(&refused.stderr));
}

#[test]
fn a_chain_that_only_the_environment_names_is_no_wish_to_be_paid() {
    let files = Files::new();
    let orchestrator = |rpc: &[&str], environment: Option<&str>| {
        let mut command = support::computepool();
        command.args(["orchestrator", "--roster", "nowhere.json", "--model", "nowhere"]).args(rpc);
        command.arg("--state").arg(files.state());
        command.env("COMPUTEPOOL_PASSPHRASE", "x").env_remove("COMPUTEPOOL_RPC");
        environment.map(|url| command.env("COMPUTEPOOL_RPC", url));
        text(&command.output().unwrap().stderr)
    };
    let errors = orchestrator(&[], Some("http://127.0.0.1:1"));
    assert!(errors.contains("nowhere") && !errors.contains("--pay"), "{errors}");
    let errors = orchestrator(&["--rpc", "http://127.0.0.1:1"], None);
    assert!(errors.contains("--rpc needs --pay") && errors.contains("Usage: "), "{errors}");
    let errors = orchestrator(&["--pay", "--rpc-ws", "ws://127.0.0.1:1"], None);
    assert!(errors.contains("--rpc-ws needs --rpc"), "{errors}");
}

#[test]
fn mistakes_are_answered_with_one_sentence() {
    for (arguments, expected) in [
        (&["inspect", "nowhere"][..], "nowhere"),
        (&["down", "--state", "nowhere"], "Nothing runs"),
        (&["chat", "--api", "http://127.0.0.1:9/v1", "hello"], "cannot be reached"),
        (&["plan", "--shape", "llama-3-8b", "--cards", "8GiB@300GB/s", "--quant", "q9"], "not a type of weights"),
    ] {
        let output = run(arguments);
        let errors = text(&output.stderr);
        assert!(errors.contains(expected) && errors.lines().count() == 1, "{arguments:?}: {errors}");
    }
}

#[test]
fn completions_are_printed_for_common_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("computepool"), "{shell}");
    }
}

#[test]
fn who_has_read_enough_sees_no_crash() {
    let files = Files::new();
    let mut child = support::computepool()
        .args(["inspect"])
        .arg(files.model())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Nobody reads, from the first byte on.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(141), "as a program that the signal ends");
}
