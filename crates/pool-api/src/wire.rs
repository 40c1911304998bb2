//! The words of the interface.

mod downloads;
mod earnings;

use pool_node::{Activity, owner::OwnerView};
use pool_policy::{Command, Seconds, Term};
use pool_store::{DecisionRecord, YieldTimes};
use serde::{Deserialize, Serialize};
use ts_rs::{Config, TS};

pub(crate) use self::downloads::found;
pub use self::downloads::{
    CheckingView, DiskView, DownloadCommand, DownloadStage, DownloadView, DownloadsView, ModelView, StrandedView,
};
pub use self::earnings::{EarningsView, Period, ShiftStatus, ShiftView, WalletView};

/// What the node is in, in one word: the tray's icon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It serves.
    Earning,
    /// It will when something changes by itself.
    Waiting,
    /// The owner wants nothing to be shared.
    Paused,
    /// The owner must put something right.
    Problem,
    /// A new version is being installed.
    Updating,
}

impl From<pool_policy::State> for Stage {
    fn from(state: pool_policy::State) -> Self {
        match state {
            pool_policy::State::Earning => Self::Earning,
            pool_policy::State::Waiting => Self::Waiting,
            pool_policy::State::Paused => Self::Paused,
            pool_policy::State::Problem => Self::Problem,
            pool_policy::State::Updating => Self::Updating,
        }
    }
}

/// What the node does now, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct OwnerState {
    /// In one word.
    pub stage: Stage,
    /// In one or two plain sentences.
    pub sentence: String,
    /// The reason alone, as a row of a menu.
    pub row: String,
    /// Layers that it serves, as text like `0-15`; absent when it serves none.
    pub layers: Option<String>,
    /// Members of the coalition it serves in; 0 when it serves in none.
    pub members: u32,
    /// Requests that it works on.
    pub requests: u32,
    /// Its GPUs.
    pub gpus: Vec<GpuState>,
    /// Sensors without a value.
    pub unavailable: Vec<UnavailableSensor>,
    /// How fast the machine was given back so far.
    pub given_back: GivenBack,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct GpuState {
    /// For the settings.
    pub id: String,
    /// For people.
    pub name: String,
    /// Whether it may be used now.
    pub may_use: bool,
    /// Whether the node works on it, or is about to.
    pub in_use: bool,
    /// What speaks against this one in particular, as text like `another program is using it`.
    pub because: Option<String>,
}

/// A sensor without a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct UnavailableSensor {
    /// Which, as text like `full-screen`.
    pub sensor: String,
    /// Why, to be read after "because".
    pub because: String,
}

/// How long giving the machine back took, in milliseconds from the event that asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct GivenBack {
    /// How many times.
    #[ts(type = "number")]
    pub count: u64,
    /// Half of them took at most this long.
    #[ts(type = "number")]
    pub p50: u64,
    /// 95 of 100 took at most this long.
    #[ts(type = "number")]
    pub p95: u64,
    /// The longest.
    #[ts(type = "number")]
    pub longest: u64,
}

impl From<YieldTimes> for GivenBack {
    fn from(YieldTimes { count, p50, p95, longest }: YieldTimes) -> Self {
        Self { count, p50, p95, longest }
    }
}

impl From<&OwnerView> for OwnerState {
    fn from(view: &OwnerView) -> Self {
        let (layers, members, requests) = match &view.activity {
            Activity::Serving { layers, members, requests } => {
                (Some(layers.to_string()), u32::try_from(*members).unwrap_or(u32::MAX), *requests)
            }
            Activity::Idle | Activity::Fetching { .. } | Activity::Preparing { .. } => (None, 0, 0),
        };
        let gpus = view.decision.gpus.iter();
        let unavailable = view.decision.unavailable.iter();
        let word = |sensor| match serde_json::to_value(sensor) {
            Ok(serde_json::Value::String(word)) => word,
            _ => String::new(),
        };
        Self {
            stage: view.decision.state.into(),
            sentence: view.sentence.clone(),
            row: view.row.clone(),
            layers,
            members,
            requests,
            gpus: gpus
                .map(|gpu| GpuState {
                    id: gpu.id.0.clone(),
                    name: gpu.name.clone(),
                    may_use: gpu.may_use,
                    in_use: view.gpus.contains(&gpu.id),
                    because: gpu.because.map(|because| because.to_string()),
                })
                .collect(),
            unavailable: unavailable
                .map(|missing| UnavailableSensor { sensor: word(missing.sensor), because: missing.because.clone() })
                .collect(),
            given_back: view.yields.into(),
        }
    }
}

/// A decision of the past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct PastDecision {
    /// When, in Unix milliseconds.
    #[ts(type = "number")]
    pub at: u64,
    /// What the person reads.
    pub sentence: String,
    /// The whole decision, for diagnostics.
    #[ts(type = "unknown")]
    pub decision: serde_json::Value,
    /// The signals that caused it, for diagnostics.
    #[ts(type = "unknown")]
    pub signals: serde_json::Value,
}

impl From<DecisionRecord> for PastDecision {
    fn from(record: DecisionRecord) -> Self {
        let DecisionRecord { at, state: _, sentence, decision, signals } = record;
        Self { at, sentence, decision, signals }
    }
}

/// What the owner asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum OwnerCommand {
    /// Give the machine back now, and share nothing for a while.
    Pause {
        /// For how long.
        until: Until,
    },
    /// Let what runs come to its end, then pause.
    FinishThenPause,
    /// Share now, even while the owner uses the machine.
    ShareNow {
        /// For how long.
        until: Until,
    },
    /// The settings decide again.
    Resume,
    /// Put the announced start off.
    NotNow,
}

/// Until when a wish holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Until {
    /// For so many seconds, a week at most.
    For {
        /// At least 1.
        seconds: u32,
    },
    /// Until tomorrow, 8:00.
    Tomorrow,
    /// Until the owner says otherwise.
    Told,
}

impl From<Until> for Term {
    fn from(until: Until) -> Self {
        match until {
            Until::For { seconds } => Self::For(Seconds(seconds)),
            Until::Tomorrow => Self::UntilTomorrow,
            Until::Told => Self::UntilTold,
        }
    }
}

impl From<OwnerCommand> for Command {
    fn from(command: OwnerCommand) -> Self {
        match command {
            OwnerCommand::Pause { until } => Self::Pause(until.into()),
            OwnerCommand::FinishThenPause => Self::FinishThenPause,
            OwnerCommand::ShareNow { until } => Self::ShareNow(until.into()),
            OwnerCommand::Resume => Self::Resume,
            OwnerCommand::NotNow => Self::NotNow,
        }
    }
}

/// What is told to those who listen: each kind once at first, then at its changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum OwnerEvent {
    /// What the node does.
    State(Box<OwnerState>),
    /// All downloads.
    Downloads(Box<DownloadsView>),
    /// What is earned: when the rate changes, or the chain was compared. In between, count on at `rate`.
    Earnings(Box<EarningsView>),
}

/// Errors that an interface acts on; everything else is told by its status and its sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The token is missing or wrong: read it again, the node may have been started anew.
    Token,
    /// The settings cannot be: show the sentence beside them.
    Settings,
    /// Anything else.
    Other,
}

/// The body of every answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct ErrorAnswer {
    /// What the interface does about it.
    pub code: ErrorCode,
    /// What is wrong, in one plain sentence.
    pub message: String,
    /// What the owner can do.
    pub next_action: String,
}

/// All of it as TypeScript.
pub fn typescript() -> String {
    let config = Config::default();
    let declarations = [
        Stage::decl(&config),
        GpuState::decl(&config),
        UnavailableSensor::decl(&config),
        GivenBack::decl(&config),
        OwnerState::decl(&config),
        PastDecision::decl(&config),
        DownloadStage::decl(&config),
        DownloadView::decl(&config),
        StrandedView::decl(&config),
        CheckingView::decl(&config),
        DiskView::decl(&config),
        DownloadsView::decl(&config),
        ModelView::decl(&config),
        DownloadCommand::decl(&config),
        Until::decl(&config),
        OwnerCommand::decl(&config),
        Period::decl(&config),
        EarningsView::decl(&config),
        ShiftStatus::decl(&config),
        ShiftView::decl(&config),
        WalletView::decl(&config),
        OwnerEvent::decl(&config),
        ErrorCode::decl(&config),
        ErrorAnswer::decl(&config),
    ];
    let mut text = String::from("// Generated by pool-api; see crates/pool-api/tests/bindings.rs.\n");
    for declaration in declarations {
        text.push_str("\nexport ");
        text.push_str(&declaration);
        text.push('\n');
    }
    text
}
