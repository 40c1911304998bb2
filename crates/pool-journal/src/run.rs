//! Runs: a workflow begun for something, under a key, once.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};
use thiserror::Error;
use tokio::sync::watch;

use crate::{
    CanonicalError, IntentView, Journal, JournalError, LogKind, StepFailure, Timestamp,
    advance::settle,
    canonical::canonical_within,
    log::{Subject, number, sha256},
    outbox,
    redaction::redacted,
};

/// A run's name: 32 hexadecimal digits, the same for the same workflow and key on every machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId([u8; 16]);

impl RunId {
    pub(crate) fn of(workflow: &str, key: &str) -> RunId {
        let hash = sha256(&[workflow, "\0", key]);
        // The first half of a hash in hexadecimal is 32 digits.
        hash[..32].parse().unwrap_or(RunId([0; 16]))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a run is named by 32 hexadecimal digits")]
pub struct NotARunId;

impl FromStr for RunId {
    type Err = NotARunId;

    fn from_str(text: &str) -> Result<RunId, NotARunId> {
        let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 32 || !text.bytes().all(lower) {
            return Err(NotARunId);
        }
        let mut id = [0; 16];
        for (place, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).map_err(|_| NotARunId)?;
        }
        Ok(RunId(id))
    }
}

impl Serialize for RunId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Some of its steps have not ended.
    Running,
    /// Every step that was led to succeeded.
    Completed,
    /// A step failed; the steps on its failure edges, if any, have been taken.
    Failed,
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// It will begin, or begin again, when it is due.
    Ready,
    /// Its action runs.
    Running,
    /// It waits for an instant, an event or a transaction.
    Waiting,
    /// It succeeded.
    Completed,
    /// It failed.
    Failed,
    /// A condition led elsewhere.
    Skipped,
    /// A step before it failed.
    Blocked,
}

/// How a run ended, for programs.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOutcome {
    /// What its steps gave, by node id; the input stands under the trigger's.
    pub outputs: Map<String, Value>,
    /// The step that failed first, if one did.
    pub failure: Option<RunFailure>,
}

/// A step that made its run fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunFailure {
    /// The step.
    pub node: String,
    /// Why.
    #[serde(flatten)]
    pub failure: StepFailure,
}

/// A run as it may be shown: secrets are taken out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunView {
    /// The run.
    pub run: RunId,
    /// Its workflow.
    pub workflow: String,
    /// What it was started for.
    pub key: String,
    /// Where it stands.
    pub state: RunState,
    /// What it was started with.
    pub input: Value,
    /// When it was started.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Its steps so far, in the order in which they began; those that were passed over last.
    pub steps: Vec<StepView>,
    /// The transactions of its steps, in the order in which they were wanted.
    pub transactions: Vec<IntentView>,
}

/// A step as it may be shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepView {
    /// The node's id.
    pub node: String,
    /// Where it stands.
    pub state: StepState,
    /// How often it began.
    pub attempt: u32,
    /// When it first began.
    pub began_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// When it is looked at next.
    pub due_at: Option<Timestamp>,
    /// The event it waits for.
    pub waits_for_event: Option<String>,
    /// The transaction it waits for.
    pub waits_for_transaction: Option<String>,
    /// What it gave.
    pub output: Option<Value>,
    /// Why it failed, or why it is tried again.
    pub failure: Option<StepFailure>,
}

/// Why a run was not started.
#[derive(Debug, Error)]
pub enum StartError {
    /// No workflow of this name.
    #[error("there is no workflow {0}")]
    UnknownWorkflow(String),
    /// Keys have 1 to 200 bytes and no control characters.
    #[error("the key of a run must have 1 to 200 bytes without control characters")]
    Key,
    /// The input has no canonical form or is too long.
    #[error("the input of the run cannot be kept: {0}")]
    Input(#[from] CanonicalError),
    /// The key stands for a run with another input.
    #[error("the key already stands for run {0}, which has another input")]
    KeyTaken(RunId),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Why a wait for a run ended without its outcome.
#[derive(Debug, Error)]
pub enum WaitError {
    /// No such run.
    #[error("there is no run {0}")]
    Unknown(RunId),
    /// The run goes on, but the wait is over.
    #[error("run {0} has not ended in time; it goes on")]
    Deadline(RunId),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl From<sqlx::Error> for StartError {
    fn from(error: sqlx::Error) -> StartError {
        StartError::Journal(error.into())
    }
}

/// The longest input of a run and output of a step, in bytes of their canonical form.
pub(crate) const MAX_VALUE_BYTES: usize = 64 << 10;

const MAX_KEY_BYTES: usize = 200;

pub(crate) fn is_good_name(name: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&name.len()) && !name.chars().any(char::is_control)
}

impl Journal {
    /// Starts a workflow under a key. The same workflow, key and input again is the same run, whatever became of it.
    ///
    /// When this returns, the run is on disk; a runner drives it, now or after the next start.
    pub async fn start(&self, workflow: &str, key: &str, input: Value) -> Result<RunId, StartError> {
        let graph = self
            .graphs()
            .get(workflow)
            .ok_or_else(|| StartError::UnknownWorkflow(workflow.chars().take(MAX_KEY_BYTES).collect()))?;
        if !is_good_name(key) {
            return Err(StartError::Key);
        }
        let text = canonical_within(&input, MAX_VALUE_BYTES)?;
        let run = RunId::of(workflow, key);
        let known: Option<String> = sqlx::query_scalar("SELECT input FROM journal_runs WHERE id = $1")
            .bind(run.to_string())
            .fetch_optional(self.pool())
            .await?;
        if let Some(known) = known {
            return if known == text { Ok(run) } else { Err(StartError::KeyTaken(run)) };
        }

        let mut writing = self.write().await?;
        let hash = sha256(&[&graph.text]);
        sqlx::query("INSERT INTO journal_graphs (hash, text) VALUES ($1, $2) ON CONFLICT (hash) DO NOTHING")
            .bind(&hash)
            .bind(&graph.text)
            .execute(writing.connection())
            .await?;
        let added = sqlx::query(
            "INSERT INTO journal_runs (id, workflow, key, graph, input, state, started_at)
             VALUES ($1, $2, $3, $4, $5, 'running', $6) ON CONFLICT (id) DO NOTHING",
        )
        .bind(run.to_string())
        .bind(workflow)
        .bind(key)
        .bind(&hash)
        .bind(&text)
        .bind(writing.at().to_row())
        .execute(writing.connection())
        .await?;
        if added.rows_affected() == 0 {
            // Somebody started it between the look and the write.
            let known: String = sqlx::query_scalar("SELECT input FROM journal_runs WHERE id = $1")
                .bind(run.to_string())
                .fetch_one(writing.connection())
                .await?;
            return if known == text { Ok(run) } else { Err(StartError::KeyTaken(run)) };
        }
        let body = serde_json::json!({"workflow": workflow, "key": key, "graph": hash, "input": input});
        writing.log(Subject::run(run), LogKind::RunStarted, &body).await?;
        settle(&mut writing, run).await?;
        writing.commit().await?;
        Ok(run)
    }

    /// Waits until the run has ended, but not beyond `deadline`.
    pub async fn wait(&self, run: RunId, deadline: Timestamp) -> Result<RunOutcome, WaitError> {
        let mut changes = self.changes().subscribe(run);
        loop {
            changes.borrow_and_update();
            if let Some(outcome) = self.outcome(run).await? {
                return Ok(outcome);
            }
            if self.clock().now() >= deadline {
                return Err(WaitError::Deadline(run));
            }
            let look_again = self.look_again().min(deadline);
            tokio::select! {
                // The sender lives as long as somebody listens.
                _ = changes.changed() => {}
                () = self.clock().sleep_until(look_again) => {}
            }
        }
    }

    /// How the run ended, or `None` while it goes on.
    pub async fn outcome(&self, run: RunId) -> Result<Option<RunOutcome>, WaitError> {
        let mut connection = self.pool().acquire().await.map_err(JournalError::from)?;
        let row = RunRow::read(&mut connection, run).await?.ok_or(WaitError::Unknown(run))?;
        if row.state == RunState::Running {
            return Ok(None);
        }
        let steps = StepRow::of_run(&mut connection, run).await?;
        let graph = self.stored_graph(&mut connection, &row.graph).await?;
        let failure = first_failure(&steps);
        let mut outputs = outputs(&steps)?;
        outputs.insert(graph.trigger.clone(), row.input);
        Ok(Some(RunOutcome { outputs, failure }))
    }

    /// The run as it may be shown, or `None` if there is none.
    pub async fn view(&self, run: RunId) -> Result<Option<RunView>, JournalError> {
        let mut snapshot = self.pool().begin().await?;
        let Some(row) = RunRow::read(&mut snapshot, run).await? else { return Ok(None) };
        let steps = StepRow::of_run(&mut snapshot, run).await?;
        let transactions = outbox::views_of_run(&mut snapshot, run).await?;
        Ok(Some(RunView {
            run,
            workflow: row.workflow,
            key: row.key,
            state: row.state,
            input: redacted(&row.input),
            started_at: row.started_at,
            ended_at: row.ended_at,
            steps: steps.into_iter().map(StepRow::into_view).collect::<Result<_, _>>()?,
            transactions,
        }))
    }

    /// Follows a run.
    pub fn watch(&self, run: RunId) -> RunWatch {
        RunWatch { journal: self.clone(), run, changes: self.changes().subscribe(run), seen: None }
    }

    /// Runs that have not ended, the oldest first; at most `most`.
    pub async fn unfinished(&self, most: u32) -> Result<Vec<RunId>, JournalError> {
        let rows: Vec<String> =
            sqlx::query_scalar("SELECT id FROM journal_runs WHERE state = 'running' ORDER BY started_at LIMIT $1")
                .bind(i64::from(most))
                .fetch_all(self.pool())
                .await?;
        rows.iter().map(|id| id.parse().map_err(|_| JournalError::Row { what: "run" })).collect()
    }
}

/// Follows one run: each call of [`RunWatch::next`] gives its newest state, when that has changed.
#[derive(Debug)]
pub struct RunWatch {
    journal: Journal,
    run: RunId,
    changes: watch::Receiver<u64>,
    seen: Option<RunView>,
}

impl RunWatch {
    /// The run's state now, then its state after each change; several quick changes may be told as one. `None` after
    /// the end was told, and for a run that does not exist.
    pub async fn next(&mut self) -> Result<Option<RunView>, JournalError> {
        if self.seen.as_ref().is_some_and(|seen| seen.state != RunState::Running) {
            return Ok(None);
        }
        loop {
            self.changes.borrow_and_update();
            let view = self.journal.view(self.run).await?;
            if view.is_none() || view != self.seen {
                self.seen.clone_from(&view);
                return Ok(view);
            }
            tokio::select! {
                _ = self.changes.changed() => {}
                () = self.journal.clock().sleep_until(self.journal.look_again()) => {}
            }
        }
    }
}

/// A run as it is stored.
pub(crate) struct RunRow {
    pub(crate) workflow: String,
    pub(crate) key: String,
    pub(crate) graph: String,
    pub(crate) input: Value,
    pub(crate) state: RunState,
    pub(crate) started_at: Timestamp,
    pub(crate) ended_at: Option<Timestamp>,
}

impl RunRow {
    pub(crate) async fn read(connection: &mut SqliteConnection, run: RunId) -> Result<Option<RunRow>, JournalError> {
        let row = sqlx::query(
            "SELECT workflow, key, graph, input, state, started_at, ended_at FROM journal_runs WHERE id = $1",
        )
        .bind(run.to_string())
        .fetch_optional(connection)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(RunRow {
            workflow: row.try_get("workflow")?,
            key: row.try_get("key")?,
            graph: row.try_get("graph")?,
            input: from_json(&row, "input")?,
            state: word(&row, "state")?,
            started_at: Timestamp::from_row(row.try_get("started_at")?),
            ended_at: row.try_get::<Option<i64>, _>("ended_at")?.map(Timestamp::from_row),
        }))
    }
}

/// A step as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct StepRow {
    pub(crate) run: RunId,
    pub(crate) node: String,
    pub(crate) state: StepState,
    pub(crate) attempt: u32,
    pub(crate) failures: u32,
    pub(crate) began_at: Option<Timestamp>,
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) deadline_at: Option<Timestamp>,
    due_at: Option<Timestamp>,
    event: Option<String>,
    intent: Option<String>,
    pub(crate) output: Option<Value>,
    pub(crate) failure: Option<StepFailure>,
}

impl StepRow {
    pub(crate) async fn of_run(connection: &mut SqliteConnection, run: RunId) -> Result<Vec<StepRow>, JournalError> {
        let rows = sqlx::query("SELECT * FROM journal_steps WHERE run = $1 ORDER BY began_at IS NULL, began_at, node")
            .bind(run.to_string())
            .fetch_all(connection)
            .await?;
        rows.iter().map(StepRow::read).collect()
    }

    pub(crate) fn read(row: &SqliteRow) -> Result<StepRow, JournalError> {
        let time = |column: &'static str| -> Result<Option<Timestamp>, JournalError> {
            Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_row))
        };
        let count = |column| u32::try_from(number(row, column)?).map_err(|_| JournalError::Row { what: "step" });
        let run: String = row.try_get("run")?;
        Ok(StepRow {
            run: run.parse().map_err(|_| JournalError::Row { what: "run" })?,
            node: row.try_get("node")?,
            state: word(row, "state")?,
            attempt: count("attempt")?,
            failures: count("failures")?,
            began_at: time("began_at")?,
            ended_at: time("ended_at")?,
            deadline_at: time("deadline_at")?,
            due_at: time("due_at")?,
            event: row.try_get("event")?,
            intent: row.try_get("intent")?,
            output: optional_json(row, "output")?,
            failure: optional_json(row, "failure")?,
        })
    }

    fn into_view(self) -> Result<StepView, JournalError> {
        Ok(StepView {
            node: self.node,
            state: self.state,
            attempt: self.attempt,
            began_at: self.began_at,
            ended_at: self.ended_at,
            due_at: self.due_at,
            waits_for_event: self.event,
            waits_for_transaction: self.intent,
            output: self.output.as_ref().map(redacted),
            failure: self.failure,
        })
    }
}

/// What the steps gave: the output of one that completed, nothing for one that did not.
pub(crate) fn outputs(steps: &[StepRow]) -> Result<Map<String, Value>, JournalError> {
    let ended = steps.iter().filter(|step| {
        matches!(step.state, StepState::Completed | StepState::Failed | StepState::Skipped | StepState::Blocked)
    });
    Ok(ended.map(|step| (step.node.clone(), step.output.clone().unwrap_or(Value::Null))).collect())
}

/// The step that failed before the others.
pub(crate) fn first_failure(steps: &[StepRow]) -> Option<RunFailure> {
    let failed = steps.iter().filter(|step| step.state == StepState::Failed);
    let first = failed.min_by_key(|step| step.ended_at)?;
    let unknown = || StepFailure { code: "unknown".to_owned(), message: "the step failed".to_owned() };
    Some(RunFailure { node: first.node.clone(), failure: first.failure.clone().unwrap_or_else(unknown) })
}

/// A column with one of an enum's words.
pub(crate) fn word<T: for<'de> Deserialize<'de>>(row: &SqliteRow, column: &'static str) -> Result<T, JournalError> {
    let text: String = row.try_get(column)?;
    serde_json::from_value(Value::from(text)).map_err(|_| JournalError::Row { what: column })
}

/// A column with JSON.
pub(crate) fn from_json<T: for<'de> Deserialize<'de>>(
    row: &SqliteRow,
    column: &'static str,
) -> Result<T, JournalError> {
    optional_json(row, column)?.ok_or(JournalError::Row { what: column })
}

/// A column with JSON or nothing.
pub(crate) fn optional_json<T: for<'de> Deserialize<'de>>(
    row: &SqliteRow,
    column: &'static str,
) -> Result<Option<T>, JournalError> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| serde_json::from_str(&text).map_err(|_| JournalError::Row { what: column })).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_named_by_its_workflow_and_key() {
        let run = RunId::of("session-open", "0x07");
        assert_eq!(run, run.to_string().parse().unwrap());
        assert_ne!(run, RunId::of("session-close", "0x07"));
        assert_ne!(RunId::of("a", "bc"), RunId::of("ab", "c"), "the two parts are kept apart");
        for wrong in ["", "xyz", &"AB".repeat(16), &"é0".repeat(16), &"0".repeat(31)] {
            assert!(wrong.parse::<RunId>().is_err(), "{wrong:?}");
        }
    }
}
