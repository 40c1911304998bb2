//! What an action is: the code behind a node of a graph.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Intent, Journal, JournalError, Outcome, RunId, Submission, SubmitError, Timestamp};

/// The code behind an action name such as `session/open`.
///
/// An action may be run again at any time: after a crash, after a failure that asked for it, after each wait. Whatever
/// it does to the world must therefore be done under [`Step::key`], so that doing it again changes nothing; chain
/// transactions go through [`Step::transact`], which is exactly that.
#[async_trait]
pub trait Action: Send + Sync + 'static {
    /// Does the step. `input` is the node's configuration with its templates filled in; the value returned is what
    /// later nodes read as `{{node.field}}`. Values hold no fractions: amounts are integers, or text.
    async fn run(&self, step: &Step, input: Value) -> Result<Value, StepError>;
}

/// Why a step failed: a code that programs act on, a sentence that people read. Neither holds a secret or a prompt;
/// both end up in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFailure {
    /// A short word such as `not_paid`.
    pub code: String,
    /// One sentence.
    pub message: String,
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What wakes a step that waits. Its deadline does as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// An instant. Survives restarts.
    At(Timestamp),
    /// [`Journal::signal`] with this name. If it was signalled before, the step goes on at once.
    Event(String),
    /// The event or the instant, whichever comes first.
    EventOrAt(String, Timestamp),
    /// The end of the intent with this key.
    Transaction(String),
}

/// How a step ends when it does not end well, or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepError {
    /// Not this time: try again after the back-off of the node's policy, unless its attempts are used up.
    Retry(StepFailure),
    /// It cannot be done. The node's failure edge is taken and the run will end as failed.
    Failed(StepFailure),
    /// Nothing to do until then; run the action again when it happens. Not counted as an attempt.
    Waiting(Wake),
}

impl StepError {
    /// The longest code or message that is kept; the rest is cut off.
    pub(crate) const MAX_TEXT_BYTES: usize = 500;

    /// A failure that may pass.
    pub fn retry(code: impl Into<String>, message: impl Into<String>) -> StepError {
        StepError::Retry(StepFailure { code: code.into(), message: message.into() })
    }

    /// A failure that will not pass.
    pub fn failed(code: impl Into<String>, message: impl Into<String>) -> StepError {
        StepError::Failed(StepFailure { code: code.into(), message: message.into() })
    }
}

impl From<JournalError> for StepError {
    /// The journal's own database failing is no reason to give up a step.
    fn from(error: JournalError) -> StepError {
        StepError::retry("journal", error.to_string())
    }
}

impl From<SubmitError> for StepError {
    fn from(error: SubmitError) -> StepError {
        match error {
            SubmitError::Journal(error) => error.into(),
            SubmitError::Full(_) => StepError::retry("outbox_full", error.to_string()),
            SubmitError::KeyTaken(_) | SubmitError::Invalid { .. } => StepError::failed("intent", error.to_string()),
        }
    }
}

/// The step that an action is run for.
#[derive(Clone, Debug)]
pub struct Step {
    pub(crate) journal: Journal,
    pub(crate) run: RunId,
    pub(crate) node: String,
    pub(crate) attempt: u32,
    pub(crate) began: Timestamp,
    pub(crate) deadline: Timestamp,
    pub(crate) outputs: Arc<Map<String, Value>>,
}

impl Step {
    /// `run/node`: the same for every attempt. What the step does to the world is done under this key.
    pub fn key(&self) -> String {
        format!("{}/{}", self.run, self.node)
    }

    /// The run it belongs to.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// The node's id in its graph.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Which attempt this is, from 1. Waits begin no new attempt; a restart of the program does.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When the step first began. The same after a restart, so a sleep is "until `began` plus so much".
    pub fn began(&self) -> Timestamp {
        self.began
    }

    /// When it is given up.
    pub fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        self.journal.clock().now()
    }

    /// What the nodes before gave, by node id; the run's input stands under the trigger's id.
    pub fn outputs(&self) -> &Map<String, Value> {
        &self.outputs
    }

    /// The body of an event, if it was signalled.
    pub async fn event(&self, name: &str) -> Result<Option<Value>, StepError> {
        Ok(self.journal.event(name).await?)
    }

    /// Submits `intent` for this step and gives its outcome once it has one; until then the step waits.
    ///
    /// ```text
    /// let outcome = step.transact(intent).await?;   // the `?` lets the step wait
    /// ```
    /// An intent without a deadline gets the step's. A step whose transaction may still land is not failed: it goes on
    /// waiting, and its time begins anew with the outcome.
    pub async fn transact(&self, mut intent: Intent) -> Result<Outcome, StepError> {
        let key = intent.key.clone();
        intent.deadline.get_or_insert(self.deadline);
        match self.journal.submit_for(Some((self.run, &self.node)), intent).await? {
            Submission::Ended(outcome) => Ok(outcome),
            Submission::Pending => Err(StepError::Waiting(Wake::Transaction(key))),
        }
    }
}

/// The actions a runner can carry out, by name.
#[derive(Clone, Default)]
pub struct Actions {
    by_name: BTreeMap<String, Arc<dyn Action>>,
}

impl Actions {
    /// None yet.
    pub fn new() -> Actions {
        Actions::default()
    }

    /// Adds the code behind `name` (`plugin/slug`), in place of what was there.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, action: Arc<dyn Action>) -> Actions {
        self.by_name.insert(name.into(), action);
        self
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<dyn Action>> {
        self.by_name.get(name).cloned()
    }
}

impl fmt::Debug for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}
