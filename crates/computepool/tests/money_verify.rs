//! `computepool verify audit`: a log that was tampered with is found out, and where.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod money_support;
mod support;

use std::{fs, io::Write, path::Path, process::Stdio, sync::Arc};

use money_support::{json, money, refused, run, said, text};
use pool_journal::{Graphs, Journal, SystemClock};
use pool_store::Store;
use serde_json::{Value, json};

/// The log of a journal in which so many sessions began to open.
async fn export(folder: &Path, sessions: u32) -> String {
    let store = Store::open(folder.join("state.db")).await.unwrap();
    let journal = Journal::open(&store, Graphs::built_in().unwrap(), Arc::new(SystemClock)).await.unwrap();
    for session in 0..sessions {
        let input = json!({ "session": session, "vault": "0x00", "rate": "100" });
        journal.start("session-open", &format!("session/{session}/open"), input).await.unwrap();
    }
    let mut log = Vec::new();
    journal.export(&mut log).await.unwrap();
    String::from_utf8(log).unwrap()
}

fn unsound(file: &Path) -> Value {
    let (status, out, errors) = run(&["verify", "audit", text(file), "--json"]);
    assert_eq!(status, Some(1), "a log that is not sound is an outcome of its own: {out}{errors}");
    serde_json::from_str(&out).unwrap()
}

#[tokio::test]
async fn a_log_is_sound_or_the_first_line_that_is_not_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let log = export(folder.path(), 5).await;
    fs::write(&file, &log).unwrap();

    let sound = json(&["verify", "audit", text(&file)]);
    assert_eq!((&sound["sound"], &sound["entries"], &sound["runs"]), (&true.into(), &5.into(), &5.into()), "{sound}");
    assert!(sound["first"].as_u64() <= sound["last"].as_u64() && sound["first"].is_u64(), "{sound}");
    let (status, words, _) = run(&["verify", "audit", text(&file)]);
    assert_eq!(status, Some(0));
    assert!(words.contains("entries       5\nruns          5\n") && words.contains(" UTC\n"), "{words}");
    assert!(words.contains(sound["head"].as_str().unwrap()), "{words}");

    let mut piped = money(&["verify", "audit", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(log.as_bytes()).unwrap();
    let (status, from_pipe, _) = said(piped.wait_with_output().unwrap());
    assert_eq!((status, from_pipe), (Some(0), words), "standard input is as good as a file");

    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 7, "a first line, five entries, a last line");
    let write = |lines: &[&str]| fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>());

    write(&[&lines[..3], &lines[4..]].concat()).unwrap();
    assert_eq!(unsound(&file)["line"], 4, "an entry was taken out of the middle");
    write(&lines[..4]).unwrap();
    let cut = unsound(&file);
    assert_eq!(cut["line"], 5, "the end was cut off: {cut}");
    write(&[lines[0], lines[1], lines[3], lines[2], lines[4], lines[5], lines[6]]).unwrap();
    assert_eq!(unsound(&file)["line"], 3, "two entries changed places");
    let forged = lines[4].replace("\"rate\":\"100\"", "\"rate\":\"900\"");
    assert_ne!(forged, lines[4], "there is something to forge");
    write(&[&lines[..4], &[&forged], &lines[5..]].concat()).unwrap();
    assert_eq!(unsound(&file)["line"], 5, "a rate was changed");
    let (status, _, errors) = run(&["verify", "audit", text(&file)]);
    assert_eq!(status, Some(1));
    assert!(errors.contains("line 5") && errors.lines().count() == 1, "one sentence: {errors}");
    fs::write(&file, &log.as_bytes()[..log.len() / 2]).unwrap();
    assert!(unsound(&file)["line"].as_u64() > Some(1), "half a file");

    let missing = refused(&["verify", "audit", "nowhere"]);
    assert!(missing.contains("cannot read nowhere"), "{missing}");
}

#[tokio::test]
async fn a_log_that_was_written_anew_does_not_hold_the_head_noted_earlier() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let early = ours.path().join("early.jsonl");
    fs::write(&early, export(ours.path(), 2).await).unwrap();
    let noted = json(&["verify", "audit", text(&early)])["head"].as_str().unwrap().to_owned();

    let later = ours.path().join("later.jsonl");
    fs::write(&later, export(ours.path(), 5).await).unwrap();
    let grown = json(&["verify", "audit", text(&later), "--noted", &noted]);
    assert_eq!(grown["entries"], 5, "what was noted is still in it: {grown}");

    let anew = theirs.path().join("anew.jsonl");
    fs::write(&anew, export(theirs.path(), 5).await).unwrap();
    assert_eq!(json(&["verify", "audit", text(&anew)])["sound"], true, "by itself it is sound");
    let (status, _, errors) = run(&["verify", "audit", text(&anew), "--noted", &noted]);
    assert_eq!(status, Some(1));
    assert!(errors.contains("was written anew") && errors.contains(&noted), "{errors}");
}
