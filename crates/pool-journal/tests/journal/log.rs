//! The log keeps what it was told, says when it was changed, and holds no secrets.

use std::sync::Arc;

use pool_journal::{Actions, Graphs, Journal, JournalError, SystemClock, VerifyError, verify_export};
use serde_json::json;

use crate::world::{World, action, entries, graph, node};

async fn a_run(folder: &std::path::Path) -> World {
    let nodes = [node("a", "x/a", json!({"n": "{{trigger.n}}"}), json!({})), node("b", "x/a", json!({}), json!({}))];
    let world = World::now(folder, [graph("w", &nodes, &["trigger a", "a b"])]).await;
    let runner = world.runner(Actions::new().with("x/a", action(async |_, input| Ok(input)))).await;
    let run = world.journal.start("w", "1", json!({"n": 5})).await.unwrap();
    world.outcome(run).await;
    runner.stop().await.unwrap();
    world
}

async fn exported(world: &World) -> Vec<u8> {
    let mut export = Vec::new();
    let report = world.journal.export(&mut export).await.unwrap();
    assert_eq!(verify_export(&export[..]).unwrap(), report, "an export is sound, and its report says the same");
    export
}

#[tokio::test]
async fn any_changed_byte_of_an_export_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let export = exported(&a_run(folder.path()).await).await;
    for place in 0..export.len() {
        let mut changed = export.clone();
        changed[place] ^= 1 << (place % 8);
        let error = verify_export(&changed[..]).expect_err("a changed byte is found");
        let VerifyError::Line { line, .. } = error else { panic!("{error}") };
        let true_line = export[..place].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        assert!(line == true_line || line == true_line + 1, "byte {place} is in line {true_line}, not {line}");
    }
}

#[tokio::test]
async fn the_database_refuses_to_change_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let world = a_run(folder.path()).await;
    let before = exported(&world).await;
    for statement in [
        "UPDATE journal_log SET body = 'null' WHERE sequence = 2",
        "DELETE FROM journal_log WHERE sequence = (SELECT MAX(sequence) FROM journal_log)",
        "DELETE FROM journal_log",
        "REPLACE INTO journal_log SELECT sequence, at, run, step, kind, 'null', previous, hash FROM journal_log
         WHERE sequence = 2",
        "INSERT INTO journal_log SELECT sequence + 100, at, run, step, kind, body, previous, hash FROM journal_log
         WHERE sequence = 2",
    ] {
        let refused = sqlx::query(statement).execute(world.store.connections()).await;
        let error = refused.expect_err(statement).to_string();
        assert!(error.contains("append-only") || error.contains("no gaps"), "{statement}: {error}");
    }
    assert_eq!(exported(&world).await, before);
}

#[tokio::test]
async fn a_log_that_was_changed_behind_the_triggers_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let world = a_run(folder.path()).await;
    let pool = world.store.connections();
    let change = async |sequence: &'static str| {
        sqlx::query("DROP TRIGGER IF EXISTS journal_log_is_not_changed").execute(pool).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(format!("UPDATE journal_log SET at = at + 1 WHERE sequence = {sequence}")))
            .execute(pool)
            .await
            .unwrap();
    };
    change("3").await;
    let mut export = Vec::new();
    world.journal.export(&mut export).await.unwrap();
    let error = verify_export(&export[..]).unwrap_err();
    assert!(matches!(error, VerifyError::Line { line: 4, .. }), "entry 3 stands in line 4: {error}");
    change("(SELECT MAX(sequence) FROM journal_log)").await;
    let opened = Journal::open(&world.store, Graphs::default(), Arc::new(SystemClock)).await;
    assert!(matches!(opened, Err(JournalError::Tampered { .. })), "nothing is run on a journal whose end was changed");
}

#[tokio::test]
async fn secrets_reach_actions_and_not_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = [
        node("open", "x/open", json!({"voucher": "{{trigger.voucher}}"}), json!({})),
        node("use", "x/use", json!({"seen": "{{open.bearerToken}}"}), json!({})),
    ];
    let world = World::now(folder.path(), [graph("w", &nodes, &["trigger open", "open use"])]).await;
    let actions = Actions::new()
        .with("x/open", action(async |_, _| Ok(json!({"bearerToken": "hush-output", "session": "0x07"}))))
        .with("x/use", action(async |_, input| Ok(json!({"length": input["seen"].as_str().unwrap().len()}))));
    let runner = world.runner(actions).await;
    let input = json!({"voucher": {"signature": "hush-input", "value": 5}, "payer": "0x09"});
    let run = world.journal.start("w", "1", input).await.unwrap();
    let outcome = world.outcome(run).await;
    assert_eq!(outcome.outputs["open"]["bearerToken"], json!("hush-output"), "programs get what they need");
    assert_eq!(outcome.outputs["use"]["length"], json!(11));
    world.journal.signal("paid", json!({"apiKey": "hush-event"})).await.unwrap();
    runner.stop().await.unwrap();
    let export = String::from_utf8(exported(&world).await).unwrap();
    let view = serde_json::to_string(&world.journal.view(run).await.unwrap()).unwrap();
    for (what, text) in [("the log", &export), ("the view", &view)] {
        assert!(!text.contains("hush"), "{what} holds a secret: {text}");
        assert!(text.contains("0x09") && text.contains("0x07"), "{what} holds the rest");
    }
}

#[tokio::test]
async fn what_is_too_long_for_the_log_is_told_by_its_hash_and_what_is_too_long_to_keep_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let world =
        World::now(folder.path(), [graph("w", &[node("a", "x/a", json!({}), json!({}))], &["trigger a"])]).await;
    let long = action(async |step: pool_journal::Step, _| {
        let bytes = step.outputs()["trigger"]["bytes"].as_u64().unwrap() as usize;
        Ok(json!("x".repeat(bytes)))
    });
    let runner = world.runner(Actions::new().with("x/a", long)).await;
    let kept = world.journal.start("w", "kept", json!({"bytes": 40_000})).await.unwrap();
    assert_eq!(world.outcome(kept).await.outputs["a"].as_str().unwrap().len(), 40_000);
    let lost = world.journal.start("w", "lost", json!({"bytes": 70_000})).await.unwrap();
    assert_eq!(world.outcome(lost).await.failure.unwrap().failure.code, "output");
    runner.stop().await.unwrap();
    let export = exported(&world).await;
    assert!(export.len() < 10_000);
    assert!(entries(&export).iter().any(|entry| entry["body"]["omitted_bytes"].as_u64() > Some(40_000)));
}
