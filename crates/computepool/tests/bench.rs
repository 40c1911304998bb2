//! `computepool bench`, on a model too small for its figures to mean anything.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod support;

use std::{
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use support::{PATIENCE, computepool, descendants, wait};

fn bench(folder: &tempfile::TempDir, extra: &[&str]) -> Child {
    let mut command = computepool();
    command.args(["bench", "--size", "tiny-synthetic", "--quant", "q8_0", "--answer", "24"]).args(extra);
    command.arg("--json").arg(folder.path().join("figures.json"));
    command.arg("--model-cache").arg(folder.path().join("cache"));
    command.env("TMPDIR", folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn two_sides_are_compared_and_every_figure_is_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let output = bench(&folder, &["--only", "decode,memory", "--repeats", "2"]).wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{words}{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&std::fs::read(folder.path().join("figures.json")).unwrap()).unwrap();
    let rows = figures["rows"].as_array().unwrap();
    let decode = &rows[0]["compared"];
    assert_eq!((&decode["pairs"], &decode["bound"]), (&2.into(), &0.97.into()), "{rows:#?}");
    let [ratio, least, most] = ["median", "min", "max"].map(|end| decode["ratio"][end].as_f64().unwrap());
    assert!(0.0 < least && least <= ratio && ratio <= most, "{decode:#}");
    let shards: Vec<&Value> = rows.iter().filter_map(|row| row["shards"].as_array()).flatten().collect();
    assert!(shards.len() >= 3, "both shards of one side, and the one of the other: {rows:#?}");
    for shard in shards {
        assert_eq!(shard["bytes_read"], shard["layer_bytes"], "a shard reads its layers and nothing else");
    }
    assert!(words.contains("ratio") && words.contains("at least 0.97"), "{words}");
}

#[test]
fn an_interrupted_run_leaves_no_process_and_no_folder_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = bench(&folder, &["--only", "batching", "--repeats", "99"]);
    let began = Instant::now();
    let started = loop {
        let processes = descendants(child.id());
        if processes.values().any(|line| line.contains("pool-shard --threads")) {
            break processes;
        }
        assert!(began.elapsed() < PATIENCE, "no shard was started");
        thread::sleep(Duration::from_millis(20));
    };
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let status = wait(&mut child, Duration::from_secs(10));
    assert_eq!(status.code(), Some(2), "what was asked for was not done");
    support::assert_gone(&started);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("computepool-bench")), "{left:?}");
}
