//! `kill -9`: a child process drives a journal against the chain of this one, is killed at random instants, and another
//! takes over from whatever is on disk.
//!
//! The child is this test program itself, asked for the one ignored test below.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use pool_journal::{
    Actions, Graph, JournalError, OutboxSettings, Outcome, RunnerError, RunnerSetup, Step, StepError,
    TransactionSigner, Wake,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    chain::{Faults, Key, Node, Remote, Shared, serve},
    world::{World, action, graph, intent, node, quick, until},
};

const FOLDER: &str = "JOURNAL_CRASH_FOLDER";
const RUNS: &str = "JOURNAL_CRASH_RUNS";
const CHAIN: &str = "JOURNAL_CRASH_CHAIN";
const FIRST_KEY: u8 = 1;
const SECOND_KEY: u8 = 2;

/// A session in small: opened by one transaction, which is reverted for every fifth and then made good by another;
/// then a sleep; then two rates and a close in the lane of its vault, by another key.
fn workflow() -> Graph {
    let policy = json!({"attempts": 1000, "firstDelayMs": 5, "ceilingMs": 100});
    let step = |id: &str, action: &str| node(id, action, json!({"n": "{{trigger.n}}"}), policy.clone());
    graph(
        "session",
        &[
            step("open", "x/open"),
            step("linger", "x/linger"),
            step("start", "x/send"),
            step("count", "x/count"),
            step("close", "x/send"),
            step("refund", "x/send"),
        ],
        &[
            "trigger open",
            "open failure refund",
            "open linger",
            "open start",
            "start close",
            "linger close",
            "close count",
        ],
    )
}

async fn send(step: &Step, key: u8, lane: String, data: String) -> Result<Outcome, StepError> {
    step.transact(intent(&step.key(), Key::new(key).address, &lane, &data)).await
}

fn actions(folder: PathBuf) -> Actions {
    let open = action(async |step: Step, input: Value| {
        let n = input["n"].as_u64().unwrap();
        let verb = if n.is_multiple_of(5) { "revert" } else { "do" };
        match send(&step, FIRST_KEY, format!("open/{n}"), format!("{verb} {n} open")).await? {
            Outcome::Confirmed { receipt } => Ok(json!({"transaction": receipt.transaction})),
            other => Err(StepError::failed("reverted", other.to_string())),
        }
    });
    let linger = action(async |step: Step, _| {
        let until = step.began().after(Duration::from_millis(40));
        if step.now() < until { Err(StepError::Waiting(Wake::At(until))) } else { Ok(Value::Null) }
    });
    let sends = action(async |step: Step, input: Value| {
        let n = &input["n"];
        let data = format!("do {n} {}", step.node());
        let outcome = send(&step, SECOND_KEY, format!("vault/{n}"), data).await?;
        Ok(json!({"happened": outcome.happened()}))
    });
    // Something that is no transaction: it may happen again, under the same name.
    let count = action(move |step: Step, _| {
        let file = folder.join(format!("counted-{}", step.run()));
        async move {
            std::fs::write(file, "once").map_err(|error| StepError::retry("file", error.to_string()))?;
            Ok(Value::Null)
        }
    });
    Actions::new().with("x/open", open).with("x/linger", linger).with("x/send", sends).with("x/count", count)
}

fn settings() -> OutboxSettings {
    OutboxSettings { confirmations: 2, ..quick() }
}

fn signers() -> Vec<Arc<dyn TransactionSigner>> {
    vec![Arc::new(Key::new(FIRST_KEY)), Arc::new(Key::new(SECOND_KEY))]
}

/// The child: starts what it is told to start, drives until all of it has ended, and ends well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child process of the tests below"]
async fn child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let runs: u64 = std::env::var(RUNS).unwrap().parse().unwrap();
    let world = World::now(&folder, [workflow()]).await;
    let chain = Remote { address: std::env::var(CHAIN).unwrap().parse().unwrap() };
    let runner = world.runner_on(actions(folder), Arc::new(chain), signers(), settings()).await;
    for n in 0..runs {
        world.journal.start("session", &n.to_string(), json!({"n": n})).await.unwrap();
    }
    for run in world.journal.unfinished(10_000).await.unwrap() {
        world.outcome(run).await;
    }
    runner.stop().await.unwrap();
    world.store.close().await;
}

fn spawn(folder: &Path, chain: SocketAddr, runs: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["crash::child", "--exact", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .env(CHAIN, chain.to_string())
        .env(RUNS, runs.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// A chain for children, with all the faults of a bad node, and where it is asked.
async fn served(seed: u64) -> (Shared, SocketAddr) {
    let chain = Shared::new();
    let node = Node::new(chain.clone(), seed);
    node.set(Faults { unreachable: 30, unsaid: 30, lag: 1, underpriced: 10, refuse: false });
    let address = serve(node).await;
    (chain, address)
}

/// Lets the chain go on until the child has ended or the time is over.
fn live(chain: &Shared, die: &mut StdRng, child: &mut Child, time: Duration) -> Option<bool> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.success());
        }
        chain.with(|chain| match die.random_range(0..20) {
            0 => chain.reorganise(die.random_range(1..=3), die.random_bool(0.3)),
            1 => chain.mempool.clear(),
            ..8 => chain.mine(),
            _ if !chain.mempool.is_empty() => chain.mine(),
            _ => {}
        });
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// What has not ended, for whoever looks for the reason.
async fn standing(folder: &Path, chain: &Shared) -> String {
    let world = World::now(folder, [workflow()]).await;
    let left = world.journal.unfinished(10_000).await.unwrap();
    let mut text = format!("{} runs have not ended\n", left.len());
    for run in left.into_iter().take(3) {
        text += &format!("{:#?}\n", world.journal.view(run).await.unwrap());
    }
    let mempool =
        chain.with(|chain| chain.mempool.iter().map(|t| (t.from, t.nonce, t.data.clone())).collect::<Vec<_>>());
    text += &format!("in the mempool: {mempool:?}\n");
    let mut export = Vec::new();
    world.journal.export(&mut export).await.unwrap();
    for entry in crate::world::entries(&export).iter().rev().take(100) {
        text += &format!("{} {} {} {}\n", entry["at"], entry["kind"], entry["step"], entry["body"]);
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_thirty_random_instants_everything_ends_rightly_and_nothing_happens_twice() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("JOURNAL_SEED").unwrap_or(1);
    let kills: u64 = number("JOURNAL_KILLS").unwrap_or(30);
    println!("seed {seed}, {kills} kills");
    let mut die = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let (chain, address) = served(seed).await;
    let mut killed = 0;
    let mut runs = 0;
    while killed < kills {
        runs += 3;
        let mut child = spawn(folder.path(), address, runs);
        let time = Duration::from_millis(die.random_range(15..400));
        match live(&chain, &mut die, &mut child, time) {
            Some(success) => assert!(success, "a child that is not killed ends well"),
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                killed += 1;
            }
        }
    }
    let mut last = spawn(folder.path(), address, runs);
    let ended = live(&chain, &mut die, &mut last, Duration::from_secs(120));
    if ended != Some(true) {
        let _ = last.kill();
        last.wait().unwrap();
        panic!("the last child does not end well ({ended:?}): {}", standing(folder.path(), &chain).await);
    }

    // The judge has watched every block; now for what is missing.
    let world = World::now(folder.path(), [workflow()]).await;
    assert_eq!(world.journal.unfinished(1).await.unwrap(), []);
    let effects: Vec<String> = chain.with(|chain| chain.effects().into_iter().map(str::to_owned).collect());
    for n in 0..runs {
        let run = world.journal.start("session", &n.to_string(), json!({"n": n})).await.unwrap();
        let outcome = world.outcome(run).await;
        let expected: &[&str] = if n % 5 == 0 { &["refund"] } else { &["open", "start", "close"] };
        let happened: Vec<&str> = effects
            .iter()
            .filter_map(|e| e.split_once(' '))
            .filter(|(m, _)| *m == n.to_string())
            .map(|(_, e)| e)
            .collect();
        // In one lane the order holds whatever happens. `open` has a lane and a key of its own, and a re-organisation
        // that is deeper than the confirmations can put it behind what came after it.
        let sorted = |effects: &[&str]| {
            let mut effects: Vec<String> = effects.iter().map(|&effect| effect.to_owned()).collect();
            effects.sort_unstable();
            effects
        };
        let in_lane = |effects: &[&str]| -> Vec<String> {
            effects.iter().filter(|effect| **effect != "open").map(|&effect| effect.to_owned()).collect()
        };
        assert_eq!(sorted(&happened), sorted(expected), "run {n}, seed {seed}, each once: {outcome:?}");
        assert_eq!(in_lane(&happened), in_lane(expected), "run {n}, seed {seed}, in order: {outcome:?}");
        assert_eq!(outcome.failure.is_some(), n % 5 == 0, "run {n} says what happened: {outcome:?}");
        assert_eq!(folder.path().join(format!("counted-{run}")).exists(), n % 5 != 0);
    }
    let log = world.log().await;
    let began = log.iter().filter(|line| *line == "runner-began").count() as u64;
    println!("{runs} runs, {began} runners, {} log entries, {} blocks", log.len(), chain.with(|chain| chain.height()));
    assert!(began > kills / 2, "most children lived long enough to begin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_on_one_file_do_not_both_drive() {
    let folder = tempfile::tempdir().unwrap();
    let (_chain, address) = served(1).await;
    let mut child = spawn(folder.path(), address, 4);
    let lock = folder.path().join("state.db.runner-lock");
    until("the child's lock", async || lock.exists().then_some(())).await;
    let world = World::now(folder.path(), [workflow()]).await;
    let begun = async || {
        let mut export = Vec::new();
        world.journal.export(&mut export).await.unwrap();
        String::from_utf8(export).unwrap().contains("run-started").then_some(())
    };
    until("the child's first run", begun).await;
    let start = async || {
        let setup = RunnerSetup { actions: actions(folder.path().to_owned()), ..RunnerSetup::default() };
        pool_journal::Runner::start(&world.journal, setup).await
    };
    assert!(matches!(start().await, Err(RunnerError::DrivenElsewhere(_))));
    // Others may start runs, and the one that drives sees them.
    let ours = world.journal.start("session", "ours", json!({"n": 1_001})).await.unwrap();
    until("our run's first transaction", async || {
        let view = world.journal.view(ours).await.unwrap().unwrap();
        (!view.transactions.is_empty()).then_some(())
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    let runner = start().await.expect("a lock ends with its process, at once");

    // Should the lock fail, the older runner finds out at its next write. (Windows lets nobody take the file away.)
    if cfg!(windows) {
        return runner.stop().await.unwrap();
    }
    std::fs::remove_file(lock).unwrap();
    let newer = start().await.unwrap();
    world.journal.start("session", "another", json!({"n": 1_002})).await.unwrap();
    let mut runner = runner;
    let ended = tokio::time::timeout(Duration::from_secs(20), runner.ended()).await.unwrap();
    assert!(matches!(ended, Err(JournalError::TakenOver)), "{ended:?}");
    newer.stop().await.unwrap();
}
