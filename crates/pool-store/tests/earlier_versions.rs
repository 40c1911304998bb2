//! A database that an earlier version wrote opens, and everything in it is still there. One that a later version wrote
//! is refused and left alone.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use pool_store::{Store, StoreError, YieldTimes};
use pool_types::Epoch;
use serde_json::Value;
use sqlx::{Executor, SqlitePool, migrate::Migrator, sqlite::SqliteConnectOptions};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// What people's databases have been through: each step's number, and the first eight bytes of its SHA-384. A step that
/// has landed is never edited, for a database that took it would be refused; what is to change is a new step.
const LANDED: [(i64, &str); 5] = [
    (1, "b28011a6c849847a"),
    (3, "523eaa14da196fb1"),
    (4, "0e977ae754f7ce6a"),
    (5, "9be93149fadb1ec8"),
    (6, "de32bf72a59bd7ae"),
];

/// What each step's version may have written.
const WRITTEN: [(i64, &str); 5] = [
    (
        1,
        "INSERT INTO nodes VALUES ('0x0101010101010101010101010101010101010101', 'desk', '4', 100, 200);
         INSERT INTO coalitions VALUES (7, '0x0505050505050505050505050505050505050505050505050505050505050505', '{}', 'ended', NULL, 100, 110, 120);
         INSERT INTO settings VALUES ('colour', 'blue')",
    ),
    (
        3,
        "INSERT INTO sessions VALUES ('0x0202020202020202020202020202020202020202020202020202020202020202', 'tiny', \
         '0x0101010101010101010101010101010101010101', '0x0303030303030303030303030303030303030303', '1', '2', '3', \
         '0x0404040404040404040404040404040404040404040404040404040404040404', NULL, FALSE, 'open', NULL, 5, 100, 101, \
         NULL, NULL)",
    ),
    (
        4,
        "INSERT INTO stand_downs (operator, epoch, manner, statement, received_at) \
         VALUES ('0x0101010101010101010101010101010101010101', 7, 'yield', '{}', 300)",
    ),
    (
        5,
        "INSERT INTO decisions (at, state, sentence, decision, signals) \
         VALUES (400, 'waiting', 'Waiting: you are using this computer.', '{\"a\": 1}', '{\"b\": 2}');
         INSERT INTO yields (at, reason, noticed, process_gone, memory_back) VALUES (500, 'you are back', 3, 40, NULL)",
    ),
    (
        6,
        "INSERT INTO shifts VALUES (1, 1000, 2000, FALSE, 'tiny', '0-3', 2, 10, 11, 1000, 12, '13');
         INSERT INTO hours VALUES (0, 1000, 12, 10, 11, '13'); INSERT INTO income VALUES (100, '5', '1')",
    ),
];

async fn raw(path: &Path) -> SqlitePool {
    SqlitePool::connect_with(SqliteConnectOptions::new().filename(path).create_if_missing(true)).await.unwrap()
}

/// A database of the version whose last step was `version`, with what it may hold.
async fn written_by(version: i64, path: &Path) {
    let steps: Vec<_> = MIGRATIONS.iter().filter(|step| step.version <= version).cloned().collect();
    let pool = raw(path).await;
    Migrator { migrations: Cow::Owned(steps), ..Migrator::DEFAULT }.run(&pool).await.unwrap();
    for (_, rows) in WRITTEN.iter().filter(|(of, _)| *of <= version) {
        pool.execute(*rows).await.unwrap();
    }
    pool.close().await;
}

#[test]
fn steps_that_have_landed_are_as_they_were() {
    let steps: BTreeMap<i64, String> = MIGRATIONS
        .iter()
        .map(|step| (step.version, step.checksum.iter().take(8).map(|byte| format!("{byte:02x}")).collect()))
        .collect();
    let landed: BTreeMap<i64, String> = LANDED.iter().map(|(version, sum)| (*version, (*sum).to_owned())).collect();
    assert_eq!(steps, landed, "add a new step (and name it here) rather than edit one that people's databases took");
}

#[tokio::test]
async fn a_database_of_every_earlier_version_opens_with_all_that_is_in_it() {
    for (version, _) in LANDED {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        written_by(version, &path).await;
        let store = Store::open(&path).await.unwrap_or_else(|error| panic!("version {version}: {error}"));
        assert_eq!(store.set_aside(), None, "version {version} is not broken");
        assert_eq!(store.setting("colour").await.unwrap().as_deref(), Some("blue"));
        assert_eq!(store.nodes::<u32>().await.unwrap()[0].name, "desk");
        assert_eq!(store.coalitions::<Value>(9).await.unwrap().len(), 1);
        assert_eq!(store.next_epoch(1_000).await.unwrap(), Epoch(8), "epochs go on where they stood");
        let sessions = store.live_sessions::<u32, u32, u32, u32>().await.unwrap();
        assert_eq!(sessions.len(), usize::from(version >= 3), "version {version}");
        let rate =
            if let Some(session) = sessions.first() { store.next_rate_number(session.id).await.unwrap() } else { 0 };
        assert_eq!(rate, if version >= 3 { 6 } else { 0 }, "no rate of a session is given out twice");
        let decisions = store.decisions(9).await.unwrap();
        assert_eq!(decisions.len(), usize::from(version >= 5));
        let times = store.yield_times().await.unwrap();
        let expected = YieldTimes { count: 1, p50: 40, p95: 40, longest: 40 };
        assert_eq!(times, if version >= 5 { expected } else { YieldTimes::default() });
        assert_eq!(store.shifts(9).await.unwrap().len(), usize::from(version >= 6));
        let income = store.income_at(103).await.unwrap().map(|point| point.until(103).wei());
        assert_eq!(income, (version >= 6).then_some(8));
        // And it is a whole database of today.
        let shift = store.shift_begun(5_000, "tiny", "0-3", 1).await.unwrap();
        store.shift_worked(shift, 6_000, pool_store::Work::default(), true).await.unwrap();
        store.close().await;
    }
}

#[tokio::test]
async fn a_database_of_a_later_version_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    Store::open(&path).await.unwrap().close().await;
    let pool = raw(&path).await;
    pool.execute(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'of tomorrow', TRUE, x'00', 1); CREATE TABLE tomorrow (a TEXT)",
    )
    .await
    .unwrap();
    pool.close().await;
    let error = Store::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer), "{error}");
    let pool = raw(&path).await;
    assert!(pool.execute("SELECT a FROM tomorrow").await.is_ok(), "nothing of it was touched");
    assert_eq!(
        std::fs::read_dir(folder.path())
            .unwrap()
            .flatten()
            .filter(|file| file.file_name().to_string_lossy().contains("corrupt"))
            .count(),
        0
    );
}
