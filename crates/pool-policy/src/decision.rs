use std::{mem::discriminant, time::Duration};

use jiff::Timestamp;
use pool_types::ByteSize;
use serde::{Deserialize, Serialize};

use crate::{Celsius, GpuId, Percent, Problem, Seconds, Shard};

/// What holds at one moment: one state, one reason, one next event, and what the node shall do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The icon in the tray; always that of the reason.
    pub state: State,
    /// The one reason.
    pub reason: Reason,
    /// What will change it.
    pub next: NextEvent,
    /// What the node shall do.
    pub action: Action,
    /// Each GPU, in the order of the signals. One that may not be used is given back at once whatever the action.
    pub gpus: Vec<GpuDecision>,
    /// Whether the processor may be used.
    pub cpu: bool,
    /// Whether downloads may run.
    pub downloads: Downloads,
    /// What is being served, for the sentence.
    pub serving: Option<Serving>,
    /// Sensors that have no value, and why: what diagnostics show.
    pub unavailable: Vec<UnavailableSensor>,
}

impl Decision {
    /// Whether the decision log gets a new line after `before`: another state, reason, action, or use of a GPU. Numbers
    /// that only count on (seconds left, requests, degrees) are no transition.
    pub fn is_transition_from(&self, before: &Decision) -> bool {
        let kinds = |decision: &Decision| {
            let gpus: Vec<(GpuId, bool)> = decision.gpus.iter().map(|gpu| (gpu.id.clone(), gpu.may_use)).collect();
            (discriminant(&decision.reason), discriminant(&decision.action), gpus, decision.cpu)
        };
        kinds(self) != kinds(before)
    }
}

/// What the app is doing, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A model is being served.
    Earning,
    /// It will be when something changes by itself.
    Waiting,
    /// The owner wants nothing to be shared.
    Paused,
    /// The owner must put something right.
    Problem,
    /// A new version is being installed.
    Updating,
}

/// Why the state is what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reason {
    /// Earning: the owner is away.
    Away,
    /// Earning gently beside the owner.
    Gently,
    /// Earning in the hours of the schedule.
    WithinSchedule,
    /// Earning because the owner said so.
    ShareNow,
    /// Earning for the last time: no new requests are taken.
    Finishing {
        /// Requests that still run.
        requests: u32,
        /// What comes then.
        then: AfterFinishing,
    },
    /// Waiting: the node may share, and no coalition has a place for it.
    NoCoalition,
    /// Waiting: a shard is on its way.
    Downloading {
        /// Which.
        shard: Shard,
        /// How much of it is here.
        done: Percent,
    },
    /// Waiting: a shard is on its way, and nothing of it comes.
    DownloadWaits {
        /// Which.
        shard: Shard,
        /// How much of it is here.
        done: Percent,
        /// Why, and what helps.
        because: String,
    },
    /// Waiting: a shard is being brought into memory.
    Loading {
        /// Which.
        shard: Shard,
    },
    /// Waiting: the start is announced, and can be put off.
    Notice {
        /// The countdown.
        starts_in: Seconds,
    },
    /// Waiting: sharing stopped too short a while ago.
    Rest,
    /// Waiting: the owner is using the computer.
    OwnerHere,
    /// Waiting: whether somebody is there cannot be known, and no schedule says what to do.
    IdleUnavailable {
        /// Why it cannot be known.
        because: String,
    },
    /// Waiting: an application fills a screen.
    FullScreen,
    /// Waiting: a program keeps the screen on.
    KeptAwake,
    /// Waiting: a program of the owner's list runs.
    Program {
        /// Its name.
        name: String,
    },
    /// Waiting: another program uses the GPU.
    GpuBusy {
        /// The GPU's name.
        gpu: String,
    },
    /// Waiting: another program needs the GPU's memory.
    GpuMemoryNeeded {
        /// The GPU's name.
        gpu: String,
    },
    /// Waiting: the GPU is too hot, or has not yet cooled down.
    GpuHot {
        /// The GPU's name.
        gpu: String,
        /// Its temperature, if it can be read.
        celsius: Option<Celsius>,
        /// Where it resumes.
        resumes_at: Celsius,
    },
    /// Waiting: the computer runs on its battery.
    OnBattery,
    /// Waiting: the network is paid by volume.
    Metered,
    /// Waiting: the shard that is due has no room on the disk.
    DiskFull {
        /// What it needs.
        wanted: ByteSize,
        /// What models may still take.
        room: ByteSize,
    },
    /// Waiting: not in the hours of the schedule.
    OutsideSchedule,
    /// Paused: the owner said so.
    OwnerPaused {
        /// Until when; `None` until the owner resumes.
        until: Option<Timestamp>,
    },
    /// Paused: the owner shares none of the GPUs.
    NoGpuChosen,
    /// Problem: something from outside.
    Problem(Problem),
    /// Problem: there is no GPU, and the processor is not shared.
    NoGpu,
    /// Problem: the GPUs cannot be looked at, and the processor is not shared.
    GpusUnavailable {
        /// Why.
        because: String,
    },
    /// Updating: a version is being installed.
    Updating {
        /// Which.
        version: String,
        /// Requests that are finished first.
        requests: u32,
    },
}

/// What follows when the last requests are finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterFinishing {
    /// The owner's pause.
    Pause,
    /// The hours outside the schedule.
    ScheduleEnds,
}

impl Reason {
    /// The state to which a reason belongs: there is one for each.
    pub fn state(&self) -> State {
        match self {
            Self::Away | Self::Gently | Self::WithinSchedule | Self::ShareNow | Self::Finishing { .. } => {
                State::Earning
            }
            Self::NoCoalition
            | Self::Downloading { .. }
            | Self::DownloadWaits { .. }
            | Self::Loading { .. }
            | Self::Notice { .. }
            | Self::Rest
            | Self::OwnerHere
            | Self::IdleUnavailable { .. }
            | Self::FullScreen
            | Self::KeptAwake
            | Self::Program { .. }
            | Self::GpuBusy { .. }
            | Self::GpuMemoryNeeded { .. }
            | Self::GpuHot { .. }
            | Self::OnBattery
            | Self::Metered
            | Self::DiskFull { .. }
            | Self::OutsideSchedule => State::Waiting,
            Self::OwnerPaused { .. } | Self::NoGpuChosen => State::Paused,
            Self::Problem(_) | Self::NoGpu | Self::GpusUnavailable { .. } => State::Problem,
            Self::Updating { .. } => State::Updating,
        }
    }
}

/// What ends the present reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextEvent {
    /// What has to happen.
    pub event: Event,
    /// How long after it sharing begins; `None` where it does not begin by itself.
    pub then_shares_after: Option<Duration>,
    /// When the state changes at the earliest, if that can be known: for something that might happen at once, how long
    /// sharing takes to begin from now.
    pub earliest: Option<Timestamp>,
}

/// What can change a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The owner touches the computer.
    OwnerReturns,
    /// The owner leaves it alone.
    OwnerLeaves,
    /// The full-screen application closes.
    FullScreenCloses,
    /// No program keeps the screen on any more.
    KeptAwakeEnds,
    /// The program of the list closes.
    ProgramCloses,
    /// Other programs leave the GPU alone.
    GpuCalms,
    /// Other programs give back memory.
    GpuMemoryIsFree,
    /// It is cool enough.
    GpuCools,
    /// The mains are back.
    PluggedIn,
    /// A connection that is not paid by volume.
    NetworkUnmetered,
    /// Models are removed or the budget is raised.
    DiskHasRoom,
    /// A window of the schedule begins.
    ScheduleOpens,
    /// It ends.
    ScheduleCloses,
    /// The countdown or the rest is over.
    SharingStarts,
    /// A pause ends by itself.
    PauseEnds,
    /// The owner ends it.
    OwnerResumes,
    /// Share-now ends by itself.
    ShareNowEnds,
    /// The owner ends it.
    OwnerStops,
    /// The owner changes a setting.
    SettingsChange,
    /// The last request is finished, or its time is up.
    RequestsFinish,
    /// A coalition takes the node in.
    CoalitionForms,
    /// The download is complete.
    DownloadEnds,
    /// The shard is in memory.
    LoadingEnds,
    /// The problem is solved.
    ProblemSolved,
    /// The new version runs.
    UpdateEnds,
}

/// What the node shall do. It holds until the next decision: the node compares it with what it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Not sharing, and nothing to give back.
    Stay,
    /// Join coalitions, load, serve.
    Share,
    /// The same in quiet mode: hold between steps so that the GPU computes in this part of the time.
    ShareGently(Percent),
    /// Take nothing new; leave when the requests that run are finished. The duty cycle goes on.
    Drain(Percent),
    /// Give memory and GPU back at once: sign the stand-down and end the shard.
    Yield,
}

impl Action {
    /// Whether requests are computed.
    pub fn computes(self) -> bool {
        matches!(self, Self::Share | Self::ShareGently(_) | Self::Drain(_))
    }
}

/// What holds for one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuDecision {
    /// Which one.
    pub id: GpuId,
    /// Its name for people.
    pub name: String,
    /// Whether it may be used now.
    pub may_use: bool,
    /// What speaks against this one in particular, whether or not the node shares.
    pub because: Option<GpuReason>,
}

/// Why a GPU is not used while others may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum GpuReason {
    /// The owner does not share it.
    NotChosen,
    /// Too hot, or not yet cool again.
    Hot {
        /// Its temperature, if it can be read.
        celsius: Option<Celsius>,
        /// Where it resumes.
        resumes_at: Celsius,
    },
    /// Another program needs its memory, or did until a moment ago.
    MemoryNeeded,
    /// Another program uses it, or did until a moment ago.
    Busy,
    /// It was taken back too short a while ago.
    Rests {
        /// How much longer.
        remaining: Seconds,
    },
}

/// Whether shards may be downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Downloads {
    /// Yes, and how many bytes a second at most.
    Run {
        /// `None` is no limit.
        at_most: Option<ByteSize>,
    },
    /// No, because.
    Wait(DownloadsWait),
}

/// Why downloads wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DownloadsWait {
    /// A new version is being installed.
    Updating,
    /// The owner paused.
    Paused,
    /// On battery.
    OnBattery,
    /// The network is paid by volume.
    Metered,
    /// The disk budget is used up, or the disk is nearly full.
    DiskFull,
    /// A game or a call may need the network.
    FullScreen,
    /// A program of the owner's list runs.
    Program,
}

/// What is being served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// Which layers of which model.
    pub shard: Shard,
    /// How many members share the layers.
    pub coalition: u32,
    /// Requests that run.
    pub requests: u32,
}

/// A sensor without a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnavailableSensor {
    /// Which.
    pub sensor: Sensor,
    /// The GPU's name, where it is one of a GPU.
    pub gpu: Option<String>,
    /// Why, to be read after "because".
    pub because: String,
}

/// The sensors, for diagnostics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sensor {
    /// Time since the last input.
    Idle,
    /// Full-screen applications.
    FullScreen,
    /// Programs that keep the screen on.
    KeptAwake,
    /// Programs that run.
    Programs,
    /// Battery or mains.
    Battery,
    /// Whether the network is paid by volume.
    Metered,
    /// Room on the disk.
    Disk,
    /// The GPUs as a whole.
    Gpus,
    /// Other programs' load on a GPU.
    GpuBusy,
    /// A GPU's free memory.
    GpuMemory,
    /// A GPU's temperature.
    GpuTemperature,
}
