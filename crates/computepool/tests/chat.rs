//! `computepool chat` against a running cluster.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod support;

use std::{io::Write, process::Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{Files, Up, computepool};

#[test]
fn a_question_is_answered_in_the_terminal_with_who_served_it() {
    let files = Files::new();
    let up = Up::start(files.up_command().args(["--shards", "2", "--api-key", "sesame"]));
    let chat = |extra: &[&str]| {
        let mut command = computepool();
        command.args(["chat", "--api", &up.url, "--max-tokens", "12", "--temperature", "0"]).args(extra);
        command
    };
    let locked = chat(&["hello"]).output().unwrap();
    assert_eq!(locked.status.code(), Some(2), "without the key nothing is answered");
    assert!(String::from_utf8_lossy(&locked.stderr).contains("401"), "{locked:?}");

    let answer = chat(&["--api-key", "sesame", "hello"]).output().unwrap();
    let words = String::from_utf8_lossy(&answer.stderr);
    assert_eq!(answer.status.code(), Some(0), "{words}");
    assert!(!answer.stdout.is_empty(), "the answer goes to standard output");
    for expected in ["Own machines", "holds layers 0-1", "holds layers 2-3", "12 tokens", "tokens/s"] {
        assert!(words.contains(expected), "{expected} is missing: {words}");
    }
    let json = chat(&["--api-key", "sesame", "--json", "hello"]).output().unwrap();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["answer"]["tokens"], 12, "{json}");

    let mut talk = chat(&["--api-key", "sesame"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    talk.stdin.take().unwrap().write_all(b"first\n\nsecond\n").unwrap();
    let talk = talk.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&talk.stderr);
    assert_eq!(words.matches("12 tokens").count(), 2, "two questions, two answers: {words}");
    let (status, _) = up.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0));
}
