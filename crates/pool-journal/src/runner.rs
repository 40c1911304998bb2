//! The runner: the one that does the work of a journal.
//!
//! One task moves the runs on. Each of its turns is one write: it records what actions have returned since the last
//! turn, and begins what is due, as far as there is room; the actions run as tasks of their own. It sleeps until an
//! action returns, something is started or signalled, or the next instant is due. Beside it runs one
//! [`SignerDriver`](crate::outbox) for each signer and chain.
//!
//! Stopping is: begin nothing new; wait for the actions that run, but not long; record what they gave; end the rest
//! where it is. What did not come to its end is run again by the next runner.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use thiserror::Error;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    Actions, ChainPort, Journal, JournalError, LogKind, OutboxSettings, SettingsError, StepError, Timestamp,
    TransactionSigner,
    advance::{Begun, Returned, begin_due, next_due, record, resume_interrupted},
    lock::RunnerLock,
    log::Subject,
    outbox::{self, SignerDriver},
};

/// A chain that transactions can be sent to, and who signs them there.
#[derive(Clone)]
pub struct ChainAccess {
    /// The chain.
    pub port: Arc<dyn ChainPort>,
    /// Its signers.
    pub signers: Vec<Arc<dyn TransactionSigner>>,
    /// How its transactions are treated.
    pub settings: OutboxSettings,
}

/// What a runner needs.
#[derive(Clone, Default)]
pub struct RunnerSetup {
    /// The code behind the actions of the journal's workflows.
    pub actions: Actions,
    /// The chains, if any.
    pub chains: Vec<ChainAccess>,
    /// How it works.
    pub settings: RunnerSettings,
}

/// How a runner works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunnerSettings {
    /// How many actions run at the same time, 1 to 10,000.
    pub concurrency: usize,
    /// How long [`Runner::stop`] waits for actions that run.
    pub grace: Duration,
}

impl Default for RunnerSettings {
    fn default() -> Self {
        RunnerSettings { concurrency: 64, grace: Duration::from_secs(5) }
    }
}

/// Why a runner did not begin.
#[derive(Debug, Error)]
pub enum RunnerError {
    /// Another one drives this journal.
    #[error("another process drives the journal beside {0}; stop it first")]
    DrivenElsewhere(String),
    /// A workflow names an action without code.
    #[error("no code was given for the action {action} of the workflow {workflow}")]
    ActionMissing {
        /// The workflow.
        workflow: String,
        /// The action.
        action: String,
    },
    /// Two ports for one chain.
    #[error("the chain {0} was given twice")]
    ChainTwice(u64),
    /// Settings out of bounds.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The number of actions at the same time is out of bounds.
    #[error("a runner runs 1 to 10,000 actions at the same time, not {0}")]
    Concurrency(usize),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Drives a journal until it is stopped. Dropping it stops it as well, without waiting.
#[derive(Debug)]
pub struct Runner {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<Result<(), JournalError>>>,
    _lock: Arc<RunnerLock>,
}

impl Runner {
    /// Begins to drive: takes the lock, resumes every run that has not ended, and every transaction.
    pub async fn start(journal: &Journal, setup: RunnerSetup) -> Result<Runner, RunnerError> {
        check(journal, &setup)?;
        let path = journal.lock_path();
        let lock = RunnerLock::take(&path)?.ok_or_else(|| {
            RunnerError::DrivenElsewhere(path.file_name().unwrap_or_default().to_string_lossy().into_owned())
        })?;
        let lock = Arc::new(lock);
        let generation = take_over(journal).await?;

        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        let RunnerSetup { actions, chains, settings } = setup;
        for ChainAccess { port, signers, settings } in chains {
            for signer in signers {
                let driver = SignerDriver::new(journal.clone(), generation, Arc::clone(&port), signer, settings);
                tasks.push(spawn(driver.drive(stop.clone()), &stop, &lock));
            }
        }
        let runs = RunDriver { journal: journal.clone(), generation, actions, settings, stop: stop.clone() };
        tasks.push(spawn(runs.drive(), &stop, &lock));
        Ok(Runner { stop, tasks, _lock: lock })
    }

    /// Stops, and gives the journal free for another runner.
    pub async fn stop(mut self) -> Result<(), JournalError> {
        self.stop.cancel();
        self.ended().await
    }

    /// Waits until the runner ends by itself: because another one took over, or never.
    pub async fn ended(&mut self) -> Result<(), JournalError> {
        let mut result = Ok(());
        for task in self.tasks.drain(..) {
            let ended = task.await.unwrap_or_else(|error| {
                tracing::error!("a part of the journal's runner broke down: {error}");
                Ok(())
            });
            result = result.and(ended);
        }
        result
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A part of the runner as a task. When one ends, all do; the lock is held until the last has.
fn spawn(
    part: impl Future<Output = Result<(), JournalError>> + Send + 'static,
    stop: &CancellationToken,
    lock: &Arc<RunnerLock>,
) -> JoinHandle<Result<(), JournalError>> {
    let (stop, lock) = (stop.clone(), Arc::clone(lock));
    tokio::spawn(async move {
        let _all_stop = stop.drop_guard();
        let result = part.await;
        drop(lock);
        result
    })
}

fn check(journal: &Journal, setup: &RunnerSetup) -> Result<(), RunnerError> {
    for graph in journal.graphs().iter() {
        if let Some(action) = graph.actions().find(|action| setup.actions.get(action).is_none()) {
            let (workflow, action) = (graph.name().to_owned(), action.to_owned());
            return Err(RunnerError::ActionMissing { workflow, action });
        }
    }
    for (place, chain) in setup.chains.iter().enumerate() {
        chain.settings.check()?;
        let id = chain.port.chain_id();
        if setup.chains[..place].iter().any(|earlier| earlier.port.chain_id() == id) {
            return Err(RunnerError::ChainTwice(id));
        }
    }
    let concurrency = setup.settings.concurrency;
    if !(1..=10_000).contains(&concurrency) {
        return Err(RunnerError::Concurrency(concurrency));
    }
    Ok(())
}

/// Takes a new generation and makes ready what the runner before left running.
async fn take_over(journal: &Journal) -> Result<i64, JournalError> {
    let mut writing = journal.write().await?;
    let generation: i64 = sqlx::query_scalar(
        "UPDATE journal_runner SET generation = generation + 1 WHERE place = 1 RETURNING generation",
    )
    .fetch_one(writing.connection())
    .await?;
    writing.log(Subject::default(), LogKind::RunnerBegan, &json!({"generation": generation})).await?;
    resume_interrupted(&mut writing).await?;
    writing.commit().await?;
    Ok(generation)
}

struct RunDriver {
    journal: Journal,
    generation: i64,
    actions: Actions,
    settings: RunnerSettings,
    stop: CancellationToken,
}

impl RunDriver {
    const FIRST_PAUSE: Duration = Duration::from_millis(50);
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);

    async fn drive(self) -> Result<(), JournalError> {
        let mut running: JoinSet<Returned> = JoinSet::new();
        let mut returned: Vec<Returned> = Vec::new();
        let mut pause = Self::FIRST_PAUSE;
        loop {
            while let Some(result) = running.try_join_next() {
                returned.extend(result.inspect_err(broken).ok());
            }
            let free = if self.stop.is_cancelled() { 0 } else { self.settings.concurrency - running.len() };
            let due = match self.turn(&returned, free).await {
                Ok((begun, due)) => {
                    pause = Self::FIRST_PAUSE;
                    returned.clear();
                    for begun in begun {
                        self.run(begun, &mut running);
                    }
                    due
                }
                Err(JournalError::TakenOver) => return Err(JournalError::TakenOver),
                Err(error) => {
                    tracing::warn!("the journal cannot write, and tries again: {error}");
                    let again = self.journal.clock().now().after(pause);
                    pause = (pause * 2).min(Self::LONGEST_PAUSE);
                    self.journal.clock().sleep_until(again).await;
                    if self.stop.is_cancelled() {
                        return Err(error);
                    }
                    continue;
                }
            };
            if self.stop.is_cancelled() {
                return self.end(running).await;
            }
            let look_again = self.journal.look_again();
            // A full house waits for room, not for the clock.
            let due = if running.len() < self.settings.concurrency { due.unwrap_or(look_again) } else { look_again };
            tokio::select! {
                () = self.stop.cancelled() => {}
                Some(result) = running.join_next() => returned.extend(result.inspect_err(broken).ok()),
                () = self.journal.work().notified() => {}
                () = self.journal.clock().sleep_until(due.min(look_again)) => {}
            }
        }
    }

    /// One write: records, expires, begins.
    async fn turn(&self, returned: &[Returned], free: usize) -> Result<(Vec<Begun>, Option<Timestamp>), JournalError> {
        let mut writing = self.journal.write_as(self.generation).await?;
        for returned in returned {
            record(&mut writing, returned).await?;
        }
        outbox::expire(&mut writing).await?;
        let begun = begin_due(&mut writing, free).await?;
        let due = next_due(&mut writing).await?.into_iter().chain(outbox::next_expiry(&mut writing).await?).min();
        writing.commit().await?;
        Ok((begun, due))
    }

    fn run(&self, begun: Begun, running: &mut JoinSet<Returned>) {
        let Begun { step, action, input } = begun;
        let (run, node, attempt) = (step.run(), step.node().to_owned(), step.attempt());
        let code = self.actions.get(&action);
        let clock = Arc::clone(self.journal.clock());
        running.spawn(async move {
            let Some(code) = code else {
                // A run that began under another version of its workflow.
                let message = format!("no code was given for the action {action}");
                return Returned { run, node, attempt, result: Err(StepError::retry("no_such_action", message)) };
            };
            let deadline = step.deadline();
            // A task of its own, so that a panic ends this attempt and nothing else.
            let mut task = AbortOnDrop(tokio::spawn(async move { code.run(&step, input).await }));
            let result = tokio::select! {
                result = &mut task.0 => result.unwrap_or_else(|error| Err(panicked(&error))),
                () = clock.sleep_until(deadline) => Err(late()),
            };
            Returned { run, node, attempt, result }
        });
    }

    /// Waits for the actions that run, but not long, and records what they gave.
    async fn end(&self, mut running: JoinSet<Returned>) -> Result<(), JournalError> {
        let mut returned = Vec::new();
        let grace = tokio::time::sleep(self.settings.grace);
        tokio::pin!(grace);
        while !running.is_empty() {
            tokio::select! {
                Some(result) = running.join_next() => returned.extend(result.inspect_err(broken).ok()),
                () = &mut grace => break,
            }
        }
        self.turn(&returned, 0).await.map(drop)
    }
}

fn broken(error: &tokio::task::JoinError) {
    tracing::error!("the journal lost an action: {error}");
}

fn panicked(error: &tokio::task::JoinError) -> StepError {
    tracing::error!("an action broke down: {error}");
    StepError::retry("panic", "the action broke down; the log of the program says more")
}

fn late() -> StepError {
    StepError::failed("deadline", "the step was not done in time")
}

struct AbortOnDrop(JoinHandle<Result<Value, StepError>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
