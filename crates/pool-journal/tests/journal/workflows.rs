//! Runs from beginning to end, over failures, waits and restarts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pool_journal::{
    Actions, Clock, Graphs, Journal, ManualClock, RunState, Runner, RunnerError, RunnerSettings, RunnerSetup,
    StartError, StepError, StepState, SystemClock, Timestamp, WaitError, Wake,
};
use pool_store::Store;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::world::{World, action, graph, node, until};

fn echo() -> Arc<dyn pool_journal::Action> {
    action(async |_, input| Ok(input))
}

#[tokio::test]
async fn a_run_hands_what_its_steps_gave_from_one_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = [
        node("open", "session/open", json!({"session": "{{trigger.session}}"}), json!({})),
        node(
            "close",
            "session/close",
            json!({"of": "{{open.session}}", "text": "closed {{trigger.session}}"}),
            json!({}),
        ),
    ];
    let world = World::now(folder.path(), [graph("session", &nodes, &["trigger open", "open close"])]).await;
    let actions = Actions::new().with("session/open", echo()).with("session/close", echo());
    let runner = world.runner(actions).await;

    let run = world.journal.start("session", "0x07", json!({"session": "0x07"})).await.unwrap();
    let outcome = world.outcome(run).await;
    assert_eq!(outcome.failure, None);
    assert_eq!(
        Value::Object(outcome.outputs),
        json!({
            "trigger": {"session": "0x07"},
            "open": {"session": "0x07"},
            "close": {"of": "0x07", "text": "closed 0x07"},
        })
    );
    runner.stop().await.unwrap();
    let view = world.journal.view(run).await.unwrap().unwrap();
    assert_eq!((view.state, view.workflow.as_str(), view.key.as_str()), (RunState::Completed, "session", "0x07"));
    assert_eq!(view.steps.iter().map(|step| step.node.as_str()).collect::<Vec<_>>(), ["open", "close"]);
    assert_eq!(
        world.log().await,
        [
            "runner-began",
            "run-started 0x07",
            "step-began open",
            "step-completed open",
            "step-began close",
            "step-completed close",
            "run-completed",
        ]
    );
}

#[tokio::test]
async fn a_key_stands_for_one_run_however_often_and_from_wherever_it_is_started() {
    let folder = tempfile::tempdir().unwrap();
    let world =
        World::now(folder.path(), [graph("once", &[node("a", "x/a", json!({}), json!({}))], &["trigger a"])]).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let count = action(move |_, input| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok(input) }
    });
    let runner = world.runner(Actions::new().with("x/a", count)).await;
    let starts = (0..20).map(|_| {
        let journal = world.journal.clone();
        tokio::spawn(async move { journal.start("once", "key", json!({"n": 1, "m": 2})).await.unwrap() })
    });
    let mut runs = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        runs.push(start.await.unwrap());
    }
    runs.dedup();
    assert_eq!(runs.len(), 1);
    world.outcome(runs[0]).await;
    let again: Value = serde_json::from_str(r#"{"m": 2, "n": 1}"#).unwrap();
    assert_eq!(
        world.journal.start("once", "key", again).await.unwrap(),
        runs[0],
        "the order of fields is no difference"
    );
    let other = world.journal.start("once", "key", json!({"n": 2})).await;
    assert!(matches!(other, Err(StartError::KeyTaken(run)) if run == runs[0]));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    for (workflow, key, input) in [
        ("nothing", "key", json!(1)),
        ("once", "", json!(1)),
        ("once", "a\nb", json!(1)),
        ("once", &"k".repeat(201), json!(1)),
        ("once", "fraction", json!(0.5)),
        ("once", "long", json!("x".repeat(70_000))),
    ] {
        assert!(world.journal.start(workflow, key, input).await.is_err(), "{workflow} {key}");
    }
    runner.stop().await.unwrap();
}

#[tokio::test]
async fn a_step_that_fails_is_tried_again_with_back_off_and_then_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp(1_000_000));
    let policy = json!({"attempts": 4, "firstDelayMs": 100, "factor": 3, "ceilingMs": 500, "deadlineMs": 100_000});
    let nodes = [
        node("open", "x/open", json!({}), policy),
        node("serve", "x/serve", json!({}), json!({})),
        node("refund", "x/refund", json!({"failed": "{{open}}"}), json!({})),
    ];
    let world = World::open(
        folder.path(),
        [graph("session", &nodes, &["trigger open", "open serve", "open failure refund"])],
        Arc::new(clock.clone()),
    )
    .await;
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = Arc::clone(&times);
    let fail = action(move |step: pool_journal::Step, _| {
        noted.lock().unwrap().push((step.attempt(), step.now().0 - 1_000_000));
        async { Err(StepError::retry("chain", "the node is silent")) }
    });
    let actions = Actions::new().with("x/open", fail).with("x/serve", echo()).with("x/refund", echo());
    let runner = world.runner(actions).await;
    let run = world.journal.start("session", "1", json!({})).await.unwrap();
    until("the run's end", async || {
        clock.advance(Duration::from_millis(20));
        tokio::task::yield_now().await;
        world.journal.outcome(run).await.unwrap()
    })
    .await;
    let times = times.lock().unwrap().clone();
    assert_eq!(times.iter().map(|(attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2, 3, 4]);
    for (pair, pause) in times.windows(2).zip([100, 300, 500]) {
        assert!(pair[1].1 - pair[0].1 >= pause, "{pause} ms lie between the attempts: {times:?}");
    }
    let outcome = world.journal.outcome(run).await.unwrap().unwrap();
    let failure = outcome.failure.unwrap();
    assert_eq!((failure.node.as_str(), failure.failure.code.as_str()), ("open", "chain"));
    assert_eq!(outcome.outputs["refund"], json!({"failed": null}), "the failure edge was taken");
    assert_eq!(outcome.outputs["serve"], Value::Null);
    runner.stop().await.unwrap();
    let log = world.log().await;
    assert!(log.contains(&"step-blocked serve".to_owned()) && log.contains(&"run-failed".to_owned()), "{log:?}");
}

#[tokio::test]
async fn a_step_that_does_not_return_is_given_up_at_its_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp(0));
    let policy = json!({"ceilingMs": 500, "deadlineMs": 5_000});
    let nodes = [node("hang", "x/hang", json!({}), policy)];
    let world = World::open(folder.path(), [graph("w", &nodes, &["trigger hang"])], Arc::new(clock.clone())).await;
    let runner = world.runner(Actions::new().with("x/hang", action(|_, _| std::future::pending()))).await;
    let run = world.journal.start("w", "1", json!({})).await.unwrap();
    let outcome = until("the run's end", async || {
        clock.advance(Duration::from_millis(50));
        world.journal.outcome(run).await.unwrap()
    })
    .await;
    assert_eq!(outcome.failure.unwrap().failure.code, "deadline");
    assert!(clock.now() >= Timestamp(5_000));
    runner.stop().await.unwrap();
}

#[tokio::test]
async fn a_sleep_is_as_long_as_it_was_meant_to_be_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp(7_000));
    let workflow = || graph("linger", &[node("sleep", "x/sleep", json!({}), json!({}))], &["trigger sleep"]);
    let actions = || {
        Actions::new().with(
            "x/sleep",
            action(async |step, _| {
                let until = step.began().after(Duration::from_secs(600));
                if step.now() < until { Err(StepError::Waiting(Wake::At(until))) } else { Ok(json!(step.attempt())) }
            }),
        )
    };
    let mut run = None;
    for _ in 0..4 {
        let world = World::open(folder.path(), [workflow()], Arc::new(clock.clone())).await;
        let runner = world.runner(actions()).await;
        let this = world.journal.start("linger", "1", json!({})).await.unwrap();
        until("the sleep", async || {
            let view = world.journal.view(this).await.unwrap().unwrap();
            view.steps.iter().any(|step| step.due_at == Some(Timestamp(607_000))).then_some(())
        })
        .await;
        run = Some(this);
        clock.advance(Duration::from_secs(100));
        runner.stop().await.unwrap();
        world.store.close().await;
    }
    let world = World::open(folder.path(), [workflow()], Arc::new(clock.clone())).await;
    let runner = world.runner(actions()).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(world.journal.outcome(run.unwrap()).await.unwrap().is_none(), "400 of 600 seconds are over");
    clock.advance(Duration::from_secs(200));
    let outcome = world.outcome(run.unwrap()).await;
    assert_eq!(outcome.outputs["sleep"], json!(1), "a wait that survives a restart is still the same attempt");
    runner.stop().await.unwrap();
}

#[tokio::test]
async fn an_event_wakes_its_step_whether_it_comes_before_or_after_the_wait() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp(0));
    let nodes = [node("vote", "x/vote", json!({"event": "{{trigger.event}}"}), json!({}))];
    let world = World::open(folder.path(), [graph("votes", &nodes, &["trigger vote"])], Arc::new(clock.clone())).await;
    let vote = action(async |step: pool_journal::Step, input: Value| {
        let name = input["event"].as_str().unwrap().to_owned();
        match step.event(&name).await? {
            Some(votes) => Ok(votes),
            None if step.now() >= Timestamp(60_000) => Err(StepError::failed("no_votes", "not everybody voted")),
            None => Err(StepError::Waiting(Wake::EventOrAt(name, Timestamp(60_000)))),
        }
    });
    let runner = world.runner(Actions::new().with("x/vote", vote)).await;
    let start = async |key: &str| world.journal.start("votes", key, json!({"event": key})).await.unwrap();

    assert!(world.journal.signal("early", json!({"votes": 3})).await.unwrap());
    assert!(!world.journal.signal("early", json!({"votes": 4})).await.unwrap(), "the first body stands");
    assert_eq!(world.outcome(start("early").await).await.outputs["vote"], json!({"votes": 3}));

    let late = start("late").await;
    let waits = async |run| {
        until("the wait", async || {
            let view = world.journal.view(run).await.unwrap().unwrap();
            view.steps.iter().any(|step| step.state == StepState::Waiting).then_some(())
        })
        .await;
    };
    waits(late).await;
    world.journal.signal("late", json!({"votes": 5})).await.unwrap();
    assert_eq!(world.outcome(late).await.outputs["vote"], json!({"votes": 5}));

    let never = start("never").await;
    waits(never).await;
    clock.advance(Duration::from_secs(60));
    assert_eq!(world.outcome(never).await.failure.unwrap().failure.code, "no_votes");
    runner.stop().await.unwrap();
}

#[tokio::test]
async fn an_action_that_breaks_down_costs_an_attempt_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let policy = json!({"firstDelayMs": 1});
    let world = World::now(folder.path(), [graph("w", &[node("a", "x/a", json!({}), policy)], &["trigger a"])]).await;
    let broken = action(async |step: pool_journal::Step, _| {
        assert!(step.attempt() > 2, "breaks down on purpose");
        Ok(json!(step.attempt()))
    });
    let runner = world.runner(Actions::new().with("x/a", broken)).await;
    let run = world.journal.start("w", "1", json!({})).await.unwrap();
    assert_eq!(world.outcome(run).await.outputs["a"], json!(3));
    runner.stop().await.unwrap();
}

#[tokio::test]
async fn no_more_actions_run_at_once_than_there_is_room_for() {
    let folder = tempfile::tempdir().unwrap();
    let world =
        World::now(folder.path(), [graph("w", &[node("a", "x/a", json!({}), json!({}))], &["trigger a"])]).await;
    let running = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let counted = Arc::clone(&running);
    let slow = action(move |_, _| {
        let running = Arc::clone(&counted);
        async move {
            let now = running.0.fetch_add(1, Ordering::SeqCst) + 1;
            running.1.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(3)).await;
            running.0.fetch_sub(1, Ordering::SeqCst);
            Ok(Value::Null)
        }
    });
    let settings = RunnerSettings { concurrency: 3, ..RunnerSettings::default() };
    let setup = RunnerSetup { actions: Actions::new().with("x/a", slow), settings, ..RunnerSetup::default() };
    let mut runs = Vec::new();
    for n in 0..40 {
        runs.push(world.journal.start("w", &n.to_string(), json!({})).await.unwrap());
    }
    let runner = Runner::start(&world.journal, setup).await.unwrap();
    for run in runs {
        world.outcome(run).await;
    }
    assert_eq!(running.1.load(Ordering::SeqCst), 3, "three at a time, and no fewer when 40 wait");
    runner.stop().await.unwrap();
}

#[tokio::test]
async fn a_step_that_ran_when_the_runner_stopped_runs_again_and_a_finished_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let workflow = || {
        graph(
            "w",
            &[node("a", "x/a", json!({}), json!({})), node("b", "x/b", json!({}), json!({}))],
            &["trigger a", "a b"],
        )
    };
    let world = World::now(folder.path(), [workflow()]).await;
    let begun = Arc::new(Notify::new());
    let tell = Arc::clone(&begun);
    let hang = action(move |_, _| {
        tell.notify_one();
        std::future::pending()
    });
    let settings = RunnerSettings { grace: Duration::from_millis(10), ..RunnerSettings::default() };
    let actions = Actions::new().with("x/a", echo()).with("x/b", hang);
    let runner =
        Runner::start(&world.journal, RunnerSetup { actions, settings, ..RunnerSetup::default() }).await.unwrap();
    let run = world.journal.start("w", "1", json!({})).await.unwrap();
    begun.notified().await;
    runner.stop().await.unwrap();
    world.store.close().await;

    let world = World::now(folder.path(), [workflow()]).await;
    assert_eq!(world.journal.unfinished(10).await.unwrap(), [run]);
    let attempt = || action(async |step: pool_journal::Step, _| Ok(json!(step.attempt())));
    let runner = world.runner(Actions::new().with("x/a", attempt()).with("x/b", attempt())).await;
    let outcome = world.outcome(run).await;
    assert_eq!(outcome.outputs["a"], json!({}), "the first runner's output stands");
    assert_eq!(outcome.outputs["b"], json!(2), "the second attempt");
    runner.stop().await.unwrap();
    assert!(world.log().await.contains(&"step-interrupted b".to_owned()));
}

#[tokio::test]
async fn a_run_ends_by_the_graph_it_began_with() {
    let folder = tempfile::tempdir().unwrap();
    let old = graph("w", &[node("a", "x/a", json!({"from": "old"}), json!({}))], &["trigger a"]);
    let new = graph("w", &[node("z", "x/a", json!({"from": "new"}), json!({}))], &["trigger z"]);
    let world = World::now(folder.path(), [old]).await;
    let run = world.journal.start("w", "1", json!({})).await.unwrap();
    world.store.close().await;
    let world = World::now(folder.path(), [new]).await;
    let runner = world.runner(Actions::new().with("x/a", echo())).await;
    let next = world.journal.start("w", "2", json!({})).await.unwrap();
    assert_eq!(world.outcome(run).await.outputs["a"], json!({"from": "old"}));
    assert_eq!(world.outcome(next).await.outputs["z"], json!({"from": "new"}));
    runner.stop().await.unwrap();
}

#[tokio::test]
async fn a_watcher_sees_a_run_change_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = [node("a", "x/a", json!({}), json!({})), node("b", "x/a", json!({}), json!({}))];
    let world = World::now(folder.path(), [graph("w", &nodes, &["trigger a", "a b"])]).await;
    let run = world.journal.start("w", "1", json!({"session_token": "hush"})).await.unwrap();
    let mut watch = world.journal.watch(run);
    let first = watch.next().await.unwrap().unwrap();
    assert_eq!((first.state, first.steps.len()), (RunState::Running, 1));
    assert_eq!(first.input, json!({"session_token": "[redacted]"}), "a view shows no secrets");
    let slow = action(async |_, input| {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(input)
    });
    let runner = world.runner(Actions::new().with("x/a", slow)).await;
    let mut seen = Vec::new();
    while let Some(view) = watch.next().await.unwrap() {
        seen.push(view);
    }
    assert_eq!(seen.last().unwrap().state, RunState::Completed);
    assert!(seen.len() >= 3, "changes are told as they happen, not at the end");
    let unknown = world.journal.wait("0".repeat(32).parse().unwrap(), Timestamp(0)).await;
    assert!(matches!(unknown, Err(WaitError::Unknown(_))));
    runner.stop().await.unwrap();
}

#[tokio::test]
async fn a_wait_ends_at_its_deadline_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let world =
        World::now(folder.path(), [graph("w", &[node("a", "x/a", json!({}), json!({}))], &["trigger a"])]).await;
    let run = world.journal.start("w", "1", json!({})).await.unwrap();
    let soon = SystemClock.now().after(Duration::from_millis(30));
    assert!(matches!(world.journal.wait(run, soon).await, Err(WaitError::Deadline(_))));
    let runner = world.runner(Actions::new().with("x/a", echo())).await;
    world.outcome(run).await;
    runner.stop().await.unwrap();
}

/// The fields that a workflow reads of each of its nodes: `{{@close:Close.refundDeferred}}`.
fn fields_read(workflow: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let mut fields: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let text = workflow.to_string();
    for reference in text.split("{{@").skip(1).filter_map(|rest| rest.split_once("}}")).map(|(inside, _)| inside) {
        let (node, path) = reference.split_once(':').unwrap();
        if let Some((_, field)) = path.split_once('.') {
            fields.entry(node.to_owned()).or_default().insert(field.to_owned());
        }
    }
    fields
}

/// Every workflow of `workflows/`: once with all going well, and once for each of its steps failing.
#[tokio::test]
async fn the_repository_s_own_workflows_run_on_every_way() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("state.db")).await.unwrap();
    let journal = Journal::open(&store, Graphs::built_in().unwrap(), Arc::new(SystemClock)).await.unwrap();
    let missing = Runner::start(&journal, RunnerSetup::default()).await;
    assert!(matches!(missing, Err(RunnerError::ActionMissing { .. })), "a runner knows at its start what it lacks");

    let mut workflows = BTreeMap::new();
    for graph in journal.graphs().iter() {
        let file = format!("{}/../../workflows/{}.json", env!("CARGO_MANIFEST_DIR"), graph.name());
        let workflow: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        workflows.insert(graph.name().to_owned(), workflow);
    }
    // One action for all: it fails where the input says so, and gives whatever later nodes read of it.
    let fields: BTreeMap<String, _> = workflows.iter().map(|(name, w)| (name.clone(), fields_read(w))).collect();
    let known = Arc::new(fields.clone());
    let act = action(move |step: pool_journal::Step, _| {
        let input = step.outputs()["trigger"].clone();
        let read = known[input["workflow"].as_str().unwrap()].get(step.node()).cloned().unwrap_or_default();
        let fails = input["fails"] == json!(step.node());
        let given = read.into_iter().map(|field| {
            let value = if field == "refundDeferred" { input["deferred"].clone() } else { json!(field) };
            (field, value)
        });
        let given = Value::Object(given.collect());
        async move { if fails { Err(StepError::failed("test", "as the test wants it")) } else { Ok(given) } }
    });
    let mut actions = Actions::new();
    for name in pool_journal::ACTIONS {
        actions = actions.with(name, Arc::clone(&act));
    }
    let runner = Runner::start(&journal, RunnerSetup { actions, ..RunnerSetup::default() }).await.unwrap();
    let play = async |workflow: &str, fails: &str, deferred: bool| {
        let mut input = json!({"workflow": workflow, "fails": fails, "deferred": deferred});
        for field in fields[workflow].get("trigger").into_iter().flatten() {
            input[field] = json!(field);
        }
        let run = journal.start(workflow, &format!("{fails} {deferred}"), input).await.unwrap();
        crate::world::ended(&journal, run).await
    };
    for (name, workflow) in &workflows {
        assert_eq!(play(name, "", false).await.failure, None, "{name}");
        for node in workflow["nodes"].as_array().unwrap() {
            let id = node["id"].as_str().unwrap();
            let reached = play(name, "", false).await.outputs.get(id).is_some_and(|output| !output.is_null());
            if id != "trigger" && node["data"]["config"]["actionType"] != json!("Condition") && reached {
                let failure = play(name, id, false).await.failure;
                assert_eq!(failure.map(|failure| failure.node), Some(id.to_owned()), "{name}");
            }
        }
    }
    let ran = |outcome: pool_journal::RunOutcome, node: &str| outcome.outputs.get(node).is_some_and(|o| !o.is_null());
    assert!(ran(play("coalition-dissolve", "drain", false).await, "dissolve"), "dissolved also if it does not drain");
    assert!(ran(play("session-open", "open", false).await, "refund"), "what reached the vault goes back");
    assert!(!ran(play("session-close", "", false).await, "refund"));
    assert!(ran(play("session-close", "", true).await, "refund"), "a refund that was deferred is sent");
    assert!(!ran(play("session-close", "refund", true).await, "receipt"), "and no receipt is written before it is");
    runner.stop().await.unwrap();
}

#[tokio::test]
async fn a_thousand_runs() {
    let folder = tempfile::tempdir().unwrap();
    let nodes: Vec<Value> =
        ["a", "b", "c"].iter().map(|id| node(id, "x/a", json!({"n": "{{trigger.n}}"}), json!({}))).collect();
    let world = World::now(folder.path(), [graph("w", &nodes, &["trigger a", "a b", "b c"])]).await;
    let runner = world.runner(Actions::new().with("x/a", echo())).await;
    let began = std::time::Instant::now();
    let mut runs = Vec::new();
    for n in 0..1000 {
        runs.push(world.journal.start("w", &n.to_string(), json!({"n": n})).await.unwrap());
    }
    let started = began.elapsed();
    for (n, run) in runs.into_iter().enumerate() {
        assert_eq!(world.outcome(run).await.outputs["c"], json!({"n": n}));
    }
    println!("1,000 runs of 3 steps: started in {started:.2?}, ended after {:.2?}", began.elapsed());
    runner.stop().await.unwrap();
    assert_eq!(world.log().await.len(), 1 + 1000 * 8, "a run started and ended, three steps begun and done");
}
