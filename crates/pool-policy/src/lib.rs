//! Share or wait: one pure function of the owner's settings, what is remembered, the time and the sensors.
//!
//! [`decide`] is asked some times a second and answers with one [`State`], one [`Reason`], one [`NextEvent`], and what
//! the node shall do. It reads no clock and no sensor; the same arguments give the same answer on every machine.
//!
//! ```
//! use std::time::Duration;
//! use jiff::{Timestamp, tz::TimeZone};
//! use pool_policy::{Action, Memory, Moment, Settings, Signals, State, decide};
//! use pool_types::Reading;
//!
//! let settings = Settings { share_cpu: true, ..Settings::default() };
//! let mut signals = Signals::unavailable("this is an example");
//! let mut memory = Memory::default();
//! let mut at = |second: u64, idle: u64| {
//!     signals.idle = Reading::Known(Duration::from_secs(idle));
//!     let now = Moment { wall: Timestamp::UNIX_EPOCH, steady: Duration::from_secs(second) };
//!     let (decision, next) = decide(&settings, &memory, now, &TimeZone::UTC, &signals);
//!     memory = next;
//!     (decision.action, decision.sentence(now, &TimeZone::UTC).to_string())
//! };
//! let sentence = "Waiting: you are using this computer. Sharing resumes about 5 minutes after you leave it alone.";
//! assert_eq!(at(0, 0), (Action::Stay, sentence.to_owned()));
//! assert_eq!(at(1, 300).1, "Waiting: sharing starts in 10 seconds. Choose Not now to put it off.");
//! (2..11).for_each(|second| assert_eq!(at(second, 300 + second).0, Action::Stay));
//! assert_eq!(at(11, 310).0, Action::Share);
//! assert_eq!(at(12, 0).1, sentence, "the first input takes everything back");
//! ```
//!
//! # The order of precedence
//!
//! The first rule of this table that forbids sharing gives the reason. *At once* gives GPU and memory back now;
//! *finish* lets the requests that run come to their end, for at most [`Settings::finish_within`], unless a rule further
//! down wants the GPU at once.
//!
//! | | Rule | State | Ends sharing | Overridden by share-now |
//! |---|---|---|---|---|
//! | 1 | a new version is being installed | Updating | finish | no |
//! | 2 | a [`Problem`] from outside | Problem | at once | no |
//! | 3 | no GPU, or none can be looked at | Problem | at once | no |
//! | 4 | the owner paused | Paused | at once | (it ends the pause) |
//! | 5 | no GPU is chosen | Paused | at once | no |
//! | 6 | on battery | Waiting | at once | no |
//! | 7 | metered network | Waiting | at once | no |
//! | 8 | no room on the disk for the shard that is due | Waiting | (nothing is served then) | no |
//! | 9 | every chosen GPU is too hot, or another program needs its memory | Waiting | at once | no |
//! | 10 | the owner asked to finish, then pause | Earning, then Paused | finish | (it ends the wish) |
//! | 11 | outside the schedule | Waiting | finish | yes |
//! | 12 | a program of the owner's list runs | Waiting | at once | yes |
//! | 13 | full-screen application, or a program that keeps the screen on | Waiting | at once | yes |
//! | 14 | every chosen GPU is used by other programs | Waiting | at once | yes |
//! | 15 | the owner is there (not in [`Mode::Gently`]) or nobody can know | Waiting | at once | yes |
//! | 16 | sharing stopped less than [`Settings::rest_after_stop`] ago | Waiting | - | (it ends the rest) |
//! | 17 | the start is being announced | Waiting | - | yes |
//!
//! Rules 1 to 9 are *hard*. [`Command::ShareNow`] sets 11 to 15 and 17 aside, and what was set aside stays so while
//! [`Command::FinishThenPause`] ends it. When nothing forbids, the reason says why it is right to share (share now, then
//! the schedule, then away or gently), or, while nothing is served, what the node waits for: a coalition, a download,
//! loading.
//!
//! Rules 9 and 14 hold for each GPU by itself: one that is hot is given back while another goes on
//! ([`GpuDecision::may_use`]). With the processor shared, the node goes on without any GPU.
//!
//! # Where the owner is
//!
//! Somebody who watches a film touches nothing and is there: what takes the screen or is on the owner's list counts
//! like an input, so that sharing resumes [`Settings::start_after`] after it closes. In [`Mode::BySchedule`] the owner
//! has said when the computer is free: an input takes the GPU back at once, and a minute later
//! ([`Settings::rest_after_stop`]) sharing resumes. In [`Mode::Gently`] the owner's presence only makes it quieter.
//!
//! # Sensors that are unavailable
//!
//! No value is made up; [`Decision::unavailable`] lists every sensor without one for diagnostics.
//!
//! | Sensor | Without it |
//! |---|---|
//! | input | "idle detection unavailable": the schedule alone decides, and without one only share-now shares. If it worked a moment ago, its failure counts as an input. |
//! | full screen, screen kept on, programs | rules 13 and 12 cannot hold; the input sensor still protects |
//! | battery | a computer without a battery: rule 6 does not hold |
//! | metered, disk | rules 7 and 8 do not hold |
//! | GPUs as a whole | rule 3: nothing is shared on what cannot be seen |
//! | a GPU's load or memory | its rule does not begin to hold; one that holds ends after [`Settings::gpu_calm_for`] |
//! | a GPU's temperature | likewise; a GPU that was too hot is taken for cool after 10 minutes |
//!
//! # Clocks
//!
//! Everything that waits for time to pass follows the steady clock of [`Moment`], schedules and the ends of pauses the
//! wall clock. So a wall clock that jumps opens or closes a window of the schedule and touches no hysteresis. Set
//! forward, like a suspended machine, it ends a pause or share-now whose time of day has come; set back, it cannot
//! lengthen one. Time in which nobody looked (a suspended machine, a busy one, a restart) counts as at most
//! [`Moment::LONGEST_STEP`].

mod decision;
mod gpu;
mod memory;
mod moment;
mod next;
mod owner;
mod quantity;
mod rules;
mod schedule;
mod sentence;
mod settings;
mod signals;

pub use decision::{
    Action, AfterFinishing, Decision, Downloads, DownloadsWait, Event, GpuDecision, GpuReason, NextEvent, Reason,
    Sensor, Serving, State, UnavailableSensor,
};
pub use memory::Memory;
pub use moment::Moment;
pub use owner::{Command, Term};
pub use quantity::{Celsius, Percent, Seconds};
pub use schedule::{Opening, Schedule, ScheduleError};
pub use sentence::Sentence;
pub use settings::{GpuChoice, Mode, Settings, SettingsError};
pub use signals::{Activity, Disk, Gpu, GpuId, Problem, Shard, Signals};

use jiff::tz::TimeZone;
use pool_types::{ByteSize, Reading};

use crate::{
    memory::{Owner, Phase},
    owner::Wish,
    rules::{Scene, Verdict, judge},
};

/// Decides for this moment, and what to remember for the next. See the [crate's documentation](crate).
pub fn decide(
    settings: &Settings,
    memory: &Memory,
    now: Moment,
    zone: &TimeZone,
    signals: &Signals,
) -> (Decision, Memory) {
    let mut observed = memory.clone();
    observed.observe(settings, now, signals);
    let scene = Scene::new(settings, &observed, now, zone, signals);
    let verdict = judge(&scene);
    let mut settled = observed.clone();
    settled.settle(settings, signals, &verdict);
    let scene = scene.settled(&settled);

    let reason = scene.reason(verdict);
    let decision = Decision {
        state: reason.state(),
        next: next::next_event(&scene, &reason),
        reason,
        action: scene.action(),
        gpus: scene.gpus(),
        cpu: settings.share_cpu && settled.phase().shares(),
        downloads: scene.downloads(),
        serving: Serving::of(&signals.activity),
        unavailable: unavailable(signals),
    };
    (decision, settled)
}

impl Scene<'_> {
    /// The verdict's reason, as it stands now that what follows from it is settled.
    fn reason(&self, verdict: Verdict) -> Reason {
        let requests = self.signals.activity.requests();
        match (verdict, self.memory.phase()) {
            (Verdict::May(_), Phase::Notice(lasted)) => {
                let left = self.settings.notice.duration().saturating_sub(lasted);
                Reason::Notice { starts_in: Seconds::covering(left) }
            }
            (Verdict::May(why), _) => match &self.signals.activity {
                Activity::Serving { .. } => why,
                Activity::Nothing => Reason::NoCoalition,
                Activity::Loading(shard) => Reason::Loading { shard: shard.clone() },
                Activity::Downloading { shard, done, size, waits } => {
                    let (shard, done) = (shard.clone(), part(*done, *size));
                    match waits.clone() {
                        None => Reason::Downloading { shard, done },
                        Some(because) => Reason::DownloadWaits { shard, done, because },
                    }
                }
            },
            (Verdict::MayNot(Reason::OutsideSchedule, _), Phase::Leaving(_)) => {
                Reason::Finishing { requests, then: AfterFinishing::ScheduleEnds }
            }
            (Verdict::MayNot(Reason::Updating { version, .. }, _), Phase::Leaving(_)) => {
                Reason::Updating { version, requests }
            }
            (Verdict::MayNot(reason, _), _) => reason,
        }
    }

    fn action(&self) -> Action {
        let beside_owner = self.settings.mode == Mode::Gently
            && self.owner != Owner::Away
            && !self.memory.wish().overrides_soft_rules();
        let duty = if beside_owner { self.settings.duty_beside_owner } else { self.settings.duty_when_away };
        match self.memory.phase() {
            Phase::Sharing if duty >= Percent(100) => Action::Share,
            Phase::Sharing => Action::ShareGently(duty),
            Phase::Leaving(_) => Action::Drain(duty),
            Phase::Resting | Phase::Notice(_) if self.signals.activity.holds_memory() => Action::Yield,
            Phase::Resting | Phase::Notice(_) => Action::Stay,
        }
    }

    fn gpus(&self) -> Vec<GpuDecision> {
        let decide = |gpu: &Gpu| {
            let rest = self.memory.gpu_rest(gpu, self.settings);
            let rests = || (!rest.is_zero()).then(|| GpuReason::Rests { remaining: Seconds::covering(rest) });
            let because = self.memory.gpu_forbidden(gpu, self.settings).or_else(rests);
            let may_use = self.memory.phase().shares() && because.is_none();
            GpuDecision { id: gpu.id.clone(), name: gpu.name.clone(), may_use, because }
        };
        self.signals.gpus().map(decide).collect()
    }

    fn downloads(&self) -> Downloads {
        let (settings, signals, wish) = (self.settings, self.signals, self.memory.wish());
        let comfort = !wish.overrides_soft_rules();
        let waits = [
            (signals.updating.is_some(), DownloadsWait::Updating),
            (matches!(wish, Wish::Pause(_)), DownloadsWait::Paused),
            (settings.waits_on_battery(signals), DownloadsWait::OnBattery),
            (settings.waits_on_metered(signals), DownloadsWait::Metered),
            (settings.lacks_room(signals).is_some(), DownloadsWait::DiskFull),
            (comfort && settings.listed_program(signals).is_some(), DownloadsWait::Program),
            (comfort && settings.waits_for_screen(signals), DownloadsWait::FullScreen),
        ];
        match waits.into_iter().find(|(holds, _)| *holds) {
            Some((_, wait)) => Downloads::Wait(wait),
            None => Downloads::Run { at_most: settings.bandwidth_cap },
        }
    }
}

fn part(done: ByteSize, size: ByteSize) -> Percent {
    let hundredths = u128::from(done.0) * 100 / u128::from(size.0.max(1));
    Percent(hundredths.min(100) as u8)
}

/// Every sensor without a value.
fn unavailable(signals: &Signals) -> Vec<UnavailableSensor> {
    fn missing<T>(sensor: Sensor, gpu: Option<&Gpu>, reading: &Reading<T>) -> Option<UnavailableSensor> {
        match reading {
            Reading::Known(_) => None,
            Reading::Unavailable(because) => {
                Some(UnavailableSensor { sensor, gpu: gpu.map(|gpu| gpu.name.clone()), because: because.clone() })
            }
        }
    }
    let of_the_machine = [
        missing(Sensor::Idle, None, &signals.idle),
        missing(Sensor::FullScreen, None, &signals.full_screen),
        missing(Sensor::KeptAwake, None, &signals.kept_awake),
        missing(Sensor::Programs, None, &signals.programs),
        missing(Sensor::Battery, None, &signals.on_battery),
        missing(Sensor::Metered, None, &signals.metered),
        missing(Sensor::Disk, None, &signals.disk),
        missing(Sensor::Gpus, None, &signals.gpus),
    ];
    let of_gpus = signals.gpus().flat_map(|gpu| {
        [
            missing(Sensor::GpuBusy, Some(gpu), &gpu.busy),
            missing(Sensor::GpuMemory, Some(gpu), &gpu.memory_free),
            missing(Sensor::GpuTemperature, Some(gpu), &gpu.temperature),
        ]
    });
    of_the_machine.into_iter().chain(of_gpus).flatten().collect()
}
