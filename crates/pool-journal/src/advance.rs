//! Moving runs on: what a step's result changes, which steps begin, when a run has ended. Everything here happens
//! inside one write; the runner decides when.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Value, json};

use crate::{
    Graph, JournalError, LogKind, RunId, Step, StepError, StepFailure, Timestamp, Wake,
    canonical::canonical_within,
    graph::{Node, NodeKind},
    journal::Writing,
    log::Subject,
    outbox,
    progress::{Blocked, Ending, Finish, progress},
    run::{MAX_VALUE_BYTES, RunRow, StepRow, StepState, first_failure, is_good_name, outputs},
    template::fill,
};

/// A step whose action is to be run now.
pub(crate) struct Begun {
    pub(crate) step: Step,
    pub(crate) action: String,
    pub(crate) input: Value,
}

/// A step whose action has returned.
#[derive(Debug)]
pub(crate) struct Returned {
    pub(crate) run: RunId,
    pub(crate) node: String,
    pub(crate) attempt: u32,
    pub(crate) result: Result<Value, StepError>,
}

/// How often the program may end under a running step before the step is taken for the cause.
const MAX_INTERRUPTIONS: i64 = 1000;

/// Finds what follows from the steps that have ended: makes steps ready, passes others over, decides conditions, and
/// ends the run when nothing is left.
pub(crate) async fn settle(writing: &mut Writing, run: RunId) -> Result<(), JournalError> {
    let row = RunRow::read(writing.connection(), run).await?.ok_or(JournalError::Row { what: "run" })?;
    let graph = stored_graph(writing, &row.graph).await?;
    loop {
        let steps = StepRow::of_run(writing.connection(), run).await?;
        let (mut ended, mut under_way) = (BTreeMap::new(), BTreeSet::new());
        for step in &steps {
            match ending(step) {
                Some(ending) => drop(ended.insert(step.node.clone(), ending)),
                None => drop(under_way.insert(step.node.clone())),
            }
        }
        let next = progress(&graph, &ended, &under_way);
        for (node, why) in &next.passed_over {
            let (state, kind) = match why {
                Blocked::ByFailure => ("blocked", LogKind::StepBlocked),
                Blocked::ByDecision => ("skipped", LogKind::StepSkipped),
            };
            add_step(writing, run, node, state, &graph.nodes[node], None).await?;
            writing.log(Subject::step(run, node), kind, &Value::Null).await?;
        }
        let mut decided = false;
        for node in &next.ready {
            let definition = &graph.nodes[node];
            match &definition.kind {
                NodeKind::Condition(condition) => {
                    let mut known = outputs(&steps)?;
                    known.insert(graph.trigger.clone(), row.input.clone());
                    let result = condition.holds(&known);
                    let at = writing.at();
                    add_step(writing, run, node, "ready", definition, Some(at)).await?;
                    let result = result.map(|holds| json!({"result": holds}));
                    match result {
                        Ok(output) => complete(writing, run, node, &output).await?,
                        Err(error) => {
                            let failure = StepFailure { code: "condition".to_owned(), message: error.to_string() };
                            fail(writing, run, node, &failure).await?;
                        }
                    }
                    decided = true;
                }
                NodeKind::Action { .. } | NodeKind::Trigger => {
                    let at = writing.at();
                    add_step(writing, run, node, "ready", definition, Some(at)).await?;
                    writing.wakes_runner();
                }
            }
        }
        if decided {
            continue;
        }
        if let Some(finish) = next.finished {
            end_run(writing, run, finish).await?;
        }
        return Ok(());
    }
}

fn ending(step: &StepRow) -> Option<Ending> {
    match step.state {
        StepState::Ready | StepState::Running | StepState::Waiting => None,
        StepState::Completed => {
            let decision = step.output.as_ref().and_then(|output| output.get("result")).and_then(Value::as_bool);
            Some(Ending::Succeeded(decision))
        }
        StepState::Failed => Some(Ending::Failed),
        StepState::Skipped => Some(Ending::Skipped),
        StepState::Blocked => Some(Ending::Blocked),
    }
}

async fn stored_graph(writing: &mut Writing, hash: &str) -> Result<Arc<Graph>, JournalError> {
    let journal = writing.journal().clone();
    journal.stored_graph(writing.connection(), hash).await
}

async fn add_step(
    writing: &mut Writing,
    run: RunId,
    node: &str,
    state: &str,
    definition: &Node,
    due: Option<Timestamp>,
) -> Result<(), JournalError> {
    let ended = if due.is_none() { Some(writing.at().to_row()) } else { None };
    sqlx::query(
        "INSERT INTO journal_steps (run, node, state, ended_at, patience, due_at) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(run.to_string())
    .bind(node)
    .bind(state)
    .bind(ended)
    .bind(i64::try_from(definition.policy.deadline.as_millis()).unwrap_or(i64::MAX))
    .bind(due.map(Timestamp::to_row))
    .execute(writing.connection())
    .await?;
    Ok(())
}

async fn end_run(writing: &mut Writing, run: RunId, finish: Finish) -> Result<(), JournalError> {
    let (state, kind, body) = match finish {
        Finish::Completed => ("completed", LogKind::RunCompleted, Value::Null),
        Finish::Failed => {
            let steps = StepRow::of_run(writing.connection(), run).await?;
            let failure = serde_json::to_value(first_failure(&steps)).unwrap_or_default();
            ("failed", LogKind::RunFailed, failure)
        }
    };
    sqlx::query("UPDATE journal_runs SET state = $2, ended_at = $3 WHERE id = $1 AND state = 'running'")
        .bind(run.to_string())
        .bind(state)
        .bind(writing.at().to_row())
        .execute(writing.connection())
        .await?;
    writing.log(Subject::run(run), kind, &body).await
}

async fn complete(writing: &mut Writing, run: RunId, node: &str, output: &Value) -> Result<(), JournalError> {
    sqlx::query(
        "UPDATE journal_steps SET state = 'completed', output = $3, failure = NULL, ended_at = $4, due_at = NULL
         WHERE run = $1 AND node = $2",
    )
    .bind(run.to_string())
    .bind(node)
    .bind(output.to_string())
    .bind(writing.at().to_row())
    .execute(writing.connection())
    .await?;
    writing.log(Subject::step(run, node), LogKind::StepCompleted, &json!({"output": output})).await
}

async fn fail(writing: &mut Writing, run: RunId, node: &str, failure: &StepFailure) -> Result<(), JournalError> {
    let text = serde_json::to_string(failure).unwrap_or_default();
    sqlx::query(
        "UPDATE journal_steps
         SET state = 'failed', failure = $3, ended_at = $4, due_at = NULL, event = NULL, intent = NULL
         WHERE run = $1 AND node = $2",
    )
    .bind(run.to_string())
    .bind(node)
    .bind(text)
    .bind(writing.at().to_row())
    .execute(writing.connection())
    .await?;
    writing.log(Subject::step(run, node), LogKind::StepFailed, &json!(failure)).await
}

/// Fails a step, unless a transaction of its own may still land: then the step waits for that and is run once more,
/// so that what happened on the chain is never left without its step. What has no nonce yet is withdrawn.
async fn give_up(writing: &mut Writing, run: RunId, node: &str, failure: &StepFailure) -> Result<(), JournalError> {
    match outbox::withdraw(writing, run, node).await? {
        None => {
            fail(writing, run, node, failure).await?;
            settle(writing, run).await
        }
        Some(intent) => {
            park(writing, run, node, None, None, Some(&intent)).await?;
            let body = json!({"transaction": intent, "before_failing": failure});
            writing.log(Subject::step(run, node), LogKind::StepWaits, &body).await
        }
    }
}

async fn park(
    writing: &mut Writing,
    run: RunId,
    node: &str,
    due: Option<Timestamp>,
    event: Option<&str>,
    intent: Option<&str>,
) -> Result<(), JournalError> {
    sqlx::query(
        "UPDATE journal_steps SET state = 'waiting', due_at = $3, event = $4, intent = $5 WHERE run = $1 AND node = $2",
    )
    .bind(run.to_string())
    .bind(node)
    .bind(due.map(Timestamp::to_row))
    .bind(event)
    .bind(intent)
    .execute(writing.connection())
    .await?;
    Ok(())
}

/// Writes down what an action gave.
pub(crate) async fn record(writing: &mut Writing, returned: &Returned) -> Result<(), JournalError> {
    let Returned { run, node, attempt, result } = returned;
    let row = sqlx::query("SELECT * FROM journal_steps WHERE run = $1 AND node = $2")
        .bind(run.to_string())
        .bind(node)
        .fetch_one(writing.connection())
        .await?;
    let step = StepRow::read(&row)?;
    if step.state != StepState::Running || step.attempt != *attempt {
        // A write that was retried after its commit had in fact gone through.
        return Ok(());
    }
    match result {
        Ok(output) => match canonical_within(output, MAX_VALUE_BYTES) {
            Ok(_) => {
                complete(writing, *run, node, output).await?;
                settle(writing, *run).await
            }
            Err(error) => {
                let failure = StepFailure { code: "output".to_owned(), message: error.to_string() };
                give_up(writing, *run, node, &failure).await
            }
        },
        Err(StepError::Failed(failure)) => give_up(writing, *run, node, &shortened(failure)).await,
        Err(StepError::Retry(failure)) => retry(writing, &step, &shortened(failure)).await,
        Err(StepError::Waiting(wake)) => wait_for(writing, &step, wake).await,
    }
}

fn shortened(failure: &StepFailure) -> StepFailure {
    let cut = |text: &str| text[..text.floor_char_boundary(StepError::MAX_TEXT_BYTES)].to_owned();
    StepFailure { code: cut(&failure.code), message: cut(&failure.message) }
}

async fn retry(writing: &mut Writing, step: &StepRow, failure: &StepFailure) -> Result<(), JournalError> {
    let (run, node) = (step.run, step.node.as_str());
    let row = RunRow::read(writing.connection(), run).await?.ok_or(JournalError::Row { what: "run" })?;
    let graph = stored_graph(writing, &row.graph).await?;
    let policy = graph.nodes.get(node).ok_or(JournalError::Row { what: "step" })?.policy;
    let failures = step.failures.saturating_add(1);
    let delay = policy.delay(failures);
    sqlx::query("UPDATE journal_steps SET failures = $3, failure = $4 WHERE run = $1 AND node = $2")
        .bind(run.to_string())
        .bind(node)
        .bind(i64::from(failures))
        .bind(serde_json::to_string(failure).unwrap_or_default())
        .execute(writing.connection())
        .await?;
    if failures >= policy.attempts {
        return give_up(writing, run, node, failure).await;
    }
    let due = writing.at().after(delay).min(step.deadline_at.unwrap_or_default());
    sqlx::query("UPDATE journal_steps SET state = 'ready', due_at = $3 WHERE run = $1 AND node = $2")
        .bind(run.to_string())
        .bind(node)
        .bind(due.to_row())
        .execute(writing.connection())
        .await?;
    let body = json!({"failures": failures, "due_at": due, "failure": failure});
    writing.log(Subject::step(run, node), LogKind::StepWillRetry, &body).await
}

async fn wait_for(writing: &mut Writing, step: &StepRow, wake: &Wake) -> Result<(), JournalError> {
    let (run, node) = (step.run, step.node.as_str());
    let (now, deadline) = (writing.at(), step.deadline_at.unwrap_or_default());
    let (event, until) = match wake {
        Wake::At(until) => (None, *until),
        Wake::Event(name) => (Some(name), deadline),
        Wake::EventOrAt(name, until) => (Some(name), *until),
        Wake::Transaction(key) => {
            let Some(ended) = outbox::has_ended(writing.connection(), key).await? else {
                let message = "the step waits for a transaction that was never submitted".to_owned();
                return give_up(writing, run, node, &StepFailure { code: "intent".to_owned(), message }).await;
            };
            let due = ended.then_some(now);
            park(writing, run, node, due, None, Some(key)).await?;
            let body = json!({"transaction": key});
            return writing.log(Subject::step(run, node), LogKind::StepWaits, &body).await;
        }
    };
    if event.is_some_and(|name| !is_good_name(name)) {
        let message = "the name of an event must have 1 to 200 bytes without control characters".to_owned();
        return give_up(writing, run, node, &StepFailure { code: "event".to_owned(), message }).await;
    }
    let signalled = match event {
        None => false,
        Some(name) => {
            let found: Option<i64> = sqlx::query_scalar("SELECT at FROM journal_events WHERE name = $1")
                .bind(name)
                .fetch_optional(writing.connection())
                .await?;
            found.is_some()
        }
    };
    // A wait for an instant that is over must not turn into a loop without a pause.
    let earliest = now.after(std::time::Duration::from_millis(1));
    let due = if signalled { now } else { until.max(earliest).min(deadline) };
    park(writing, run, node, Some(due), event.map(String::as_str), None).await?;
    writing.log(Subject::step(run, node), LogKind::StepWaits, &json!({"event": event, "until": due})).await
}

/// Begins steps that are due, at most `free`.
pub(crate) async fn begin_due(writing: &mut Writing, free: usize) -> Result<Vec<Begun>, JournalError> {
    let mut begun = Vec::new();
    // Steps that are found to be over time free no place but may make others ready; hence the rounds.
    while begun.len() < free {
        let rows = sqlx::query("SELECT * FROM journal_steps WHERE due_at <= $1 ORDER BY due_at, run, node LIMIT $2")
            .bind(writing.at().to_row())
            .bind(i64::try_from(free - begun.len()).unwrap_or(i64::MAX))
            .fetch_all(writing.connection())
            .await?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            begun.extend(begin(writing, &StepRow::read(row)?).await?);
        }
    }
    Ok(begun)
}

/// Begins a step or, if its time is over or its input cannot be made, fails it.
async fn begin(writing: &mut Writing, step: &StepRow) -> Result<Option<Begun>, JournalError> {
    let (run, node) = (step.run, step.node.as_str());
    let row = RunRow::read(writing.connection(), run).await?.ok_or(JournalError::Row { what: "run" })?;
    let graph = stored_graph(writing, &row.graph).await?;
    let definition = graph.nodes.get(node).ok_or(JournalError::Row { what: "step" })?;
    let now = writing.at();
    if step.deadline_at.is_some_and(|deadline| now >= deadline) {
        let failure = step.failure.clone().unwrap_or_else(|| StepFailure {
            code: "deadline".to_owned(),
            message: "the step was not done in time".to_owned(),
        });
        give_up(writing, run, node, &failure).await?;
        return Ok(None);
    }
    let NodeKind::Action { name, input } = &definition.kind else {
        return Err(JournalError::Row { what: "step" });
    };
    let mut known = outputs(&StepRow::of_run(writing.connection(), run).await?)?;
    known.insert(graph.trigger.clone(), row.input);
    let input = match fill(&Value::Object(input.clone()), &known) {
        Ok(input) => input,
        Err(error) => {
            let failure = StepFailure { code: "template".to_owned(), message: error.to_string() };
            give_up(writing, run, node, &failure).await?;
            return Ok(None);
        }
    };
    let woke = step.state == StepState::Waiting;
    let attempt = if woke { step.attempt } else { step.attempt.saturating_add(1) };
    let began = step.began_at.unwrap_or(now);
    let deadline = step.deadline_at.unwrap_or_else(|| now.after(definition.policy.deadline));
    sqlx::query(
        "UPDATE journal_steps
         SET state = 'running', attempt = $3, began_at = $4, deadline_at = $5, due_at = NULL, event = NULL, intent = NULL
         WHERE run = $1 AND node = $2",
    )
    .bind(run.to_string())
    .bind(node)
    .bind(i64::from(attempt))
    .bind(began.to_row())
    .bind(deadline.to_row())
    .execute(writing.connection())
    .await?;
    let (kind, body) = if woke {
        (LogKind::StepWoke, Value::Null)
    } else {
        (LogKind::StepBegan, json!({"action": name, "attempt": attempt}))
    };
    writing.log(Subject::step(run, node), kind, &body).await?;
    let step = Step {
        journal: writing.journal().clone(),
        run,
        node: node.to_owned(),
        attempt,
        began,
        deadline,
        outputs: Arc::new(known),
    };
    Ok(Some(Begun { step, action: name.clone(), input }))
}

/// When the next step is due, if one is.
pub(crate) async fn next_due(writing: &mut Writing) -> Result<Option<Timestamp>, JournalError> {
    let due: Option<i64> = sqlx::query_scalar("SELECT MIN(due_at) FROM journal_steps WHERE due_at IS NOT NULL")
        .fetch_one(writing.connection())
        .await?;
    Ok(due.map(Timestamp::from_row))
}

/// Steps that ran when the program ended will run again.
pub(crate) async fn resume_interrupted(writing: &mut Writing) -> Result<usize, JournalError> {
    let rows = sqlx::query("SELECT * FROM journal_steps WHERE state = 'running' ORDER BY run, node")
        .fetch_all(writing.connection())
        .await?;
    for row in &rows {
        let StepRow { run, node, attempt, .. } = StepRow::read(row)?;
        let interruptions: i64 = sqlx::query_scalar(
            "UPDATE journal_steps SET state = 'ready', due_at = $3, interruptions = interruptions + 1
             WHERE run = $1 AND node = $2 RETURNING interruptions",
        )
        .bind(run.to_string())
        .bind(&node)
        .bind(writing.at().to_row())
        .fetch_one(writing.connection())
        .await?;
        let body = json!({"attempt": attempt, "interruptions": interruptions});
        writing.log(Subject::step(run, &node), LogKind::StepInterrupted, &body).await?;
        if interruptions > MAX_INTERRUPTIONS {
            let message = "the program ended under this step too often".to_owned();
            give_up(writing, run, &node, &StepFailure { code: "interrupted".to_owned(), message }).await?;
        }
    }
    Ok(rows.len())
}
