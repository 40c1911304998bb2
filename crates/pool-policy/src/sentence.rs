//! The words. Plain, without jargon, and the same for the same reason: only countdowns change by the second.

use std::fmt;

use jiff::{Timestamp, civil::Date, tz::TimeZone};

use crate::{
    Activity, AfterFinishing, Decision, Event, GpuReason, Moment, Reason, Seconds, Sensor, Serving, Shard, State,
};

/// A decision in words. Its `Display` is all of it; the tray shows [`Sentence::row`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// `Waiting`
    pub state: &'static str,
    /// `a full-screen application is running`
    pub reason: String,
    /// `Sharing resumes about 5 minutes after it closes.`
    pub more: Vec<String>,
}

impl Sentence {
    /// The reason as a row of a menu: `A full-screen application is running`.
    pub fn row(&self) -> String {
        let mut letters = self.reason.chars();
        letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
    }
}

impl fmt::Display for Sentence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}.", self.state, self.reason)?;
        self.more.iter().try_for_each(|sentence| write!(formatter, " {sentence}"))
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.word())
    }
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Earning => "Earning",
            Self::Waiting => "Waiting",
            Self::Paused => "Paused",
            Self::Problem => "Problem",
            Self::Updating => "Updating",
        }
    }
}

impl Decision {
    /// The decision in words, with times of day as the owner's wall shows them.
    pub fn sentence(&self, now: Moment, zone: &TimeZone) -> Sentence {
        let today = zone.to_datetime(now.wall).date();
        let clock = Clock { today, zone };
        let serving = self.serving.as_ref().filter(|_| self.state == State::Earning).map(Serving::to_string);
        let more = [serving, self.what_comes_next(clock), self.without_idle_detection()];
        Sentence {
            state: self.state.word(),
            reason: self.reason_in_words(clock),
            more: more.into_iter().flatten().collect(),
        }
    }

    fn reason_in_words(&self, clock: Clock) -> String {
        match &self.reason {
            Reason::Away => "you are away".into(),
            Reason::Gently => "gently, while you use this computer".into(),
            Reason::WithinSchedule => "these are the hours you chose".into(),
            Reason::ShareNow => "you asked to share now".into(),
            Reason::Finishing { requests, then: AfterFinishing::Pause } => {
                format!("finishing {}, then pausing", count(*requests))
            }
            Reason::Finishing { requests, then: AfterFinishing::ScheduleEnds } => {
                format!("finishing {}, for the hours you chose are over", count(*requests))
            }
            Reason::NoCoalition => "no coalition needs this computer yet".into(),
            Reason::Downloading { shard, done } => format!("downloading {shard}, {done} done"),
            Reason::DownloadWaits { shard, done, because } => {
                format!("the download of {shard} waits at {done}: {because}")
            }
            Reason::Loading { shard } => format!("loading {shard}"),
            Reason::Notice { starts_in } => format!("sharing starts in {starts_in}"),
            Reason::Rest => "sharing stopped a moment ago".into(),
            Reason::OwnerHere => "you are using this computer".into(),
            Reason::IdleUnavailable { because } => format!("idle detection unavailable, because {because}"),
            Reason::FullScreen => "a full-screen application is running".into(),
            Reason::KeptAwake => "a film, a call or a presentation keeps the screen on".into(),
            Reason::Program { name } => format!("{name} is running"),
            Reason::GpuBusy { gpu } => format!("another program is using the {gpu}"),
            Reason::GpuMemoryNeeded { gpu } => format!("another program needs the memory of the {gpu}"),
            Reason::GpuHot { gpu, celsius: Some(celsius), .. } => {
                format!("the {gpu} is cooling down, now at {celsius}")
            }
            Reason::GpuHot { gpu, celsius: None, .. } => format!("the {gpu} was too hot"),
            Reason::OnBattery => "this computer runs on battery".into(),
            Reason::Metered => "the network connection is metered".into(),
            Reason::DiskFull { wanted, room } => {
                format!("the next model needs {wanted} of disk space and may use {room}")
            }
            Reason::OutsideSchedule => "these are not the hours you chose".into(),
            Reason::OwnerPaused { until: Some(until) } => format!("you paused sharing until {}", clock.until(*until)),
            Reason::OwnerPaused { until: None } => "you paused sharing until you resume it".into(),
            Reason::NoGpuChosen => "no GPU of this computer is chosen for sharing".into(),
            Reason::Problem(problem) => problem.what.clone(),
            Reason::NoGpu => "this computer has no GPU that can be shared".into(),
            Reason::GpusUnavailable { because } => format!("the GPUs cannot be looked at, because {because}"),
            Reason::Updating { version, requests: 0 } => format!("version {version} is being installed"),
            Reason::Updating { version, requests } => {
                format!("finishing {}, then version {version} is installed", count(*requests))
            }
        }
    }

    fn what_comes_next(&self, clock: Clock) -> Option<String> {
        let resumes = |after: &str| match self.next.then_shares_after.map(|delay| Seconds::covering(delay).rounded()) {
            Some(Seconds(0)) | None => format!("Sharing resumes when {after}."),
            Some(delay) => format!("Sharing resumes about {delay} after {after}."),
        };
        let next = match self.next.event {
            Event::OwnerReturns => return None,
            Event::RequestsFinish if self.state == State::Earning => "No new requests are taken.".into(),
            Event::RequestsFinish | Event::UpdateEnds => "Sharing resumes with the new version.".into(),
            Event::OwnerLeaves if self.state == State::Earning => return None,
            Event::OwnerLeaves => resumes("you leave it alone"),
            Event::KeptAwakeEnds => resumes("it ends"),
            Event::FullScreenCloses | Event::ProgramCloses => resumes("it closes"),
            Event::GpuCalms => resumes("it stops"),
            Event::GpuMemoryIsFree => resumes("it gives the memory back"),
            Event::GpuCools => match &self.reason {
                Reason::GpuHot { resumes_at, .. } => resumes(&format!("it is down to {resumes_at}")),
                _ => return None,
            },
            Event::PluggedIn => resumes("it is plugged in"),
            Event::NetworkUnmetered => resumes("an unmetered connection is back"),
            Event::DiskHasRoom => "Raise the disk budget in Settings or remove a model.".into(),
            Event::ScheduleOpens => format!("Sharing starts {}.", clock.at(self.next.earliest?)),
            Event::ScheduleCloses => format!("Sharing goes on until {}.", clock.until(self.next.earliest?)),
            Event::SharingStarts if matches!(self.reason, Reason::Notice { .. }) => {
                "Choose Not now to put it off.".into()
            }
            Event::SharingStarts => match Seconds::covering(self.next.then_shares_after?).rounded() {
                Seconds(0) => return None,
                delay => format!("Sharing resumes in about {delay}."),
            },
            Event::PauseEnds | Event::OwnerResumes => return None,
            Event::ShareNowEnds => format!("Sharing goes on until {}.", clock.until(self.next.earliest?)),
            Event::OwnerStops => "Sharing goes on until you stop it.".into(),
            Event::SettingsChange => match &self.reason {
                Reason::NoGpuChosen => "Choose one in the menu under GPUs.".into(),
                Reason::IdleUnavailable { .. } => {
                    "Sharing then follows a schedule only, and none is set. Set one in Settings, or choose Share now."
                        .into()
                }
                _ => return None,
            },
            Event::CoalitionForms => "It takes part when one has a place for it.".into(),
            Event::DownloadEnds | Event::LoadingEnds => return None,
            Event::ProblemSolved => match &self.reason {
                Reason::Problem(problem) => format!("{}.", problem.next_action),
                Reason::NoGpu => "Sharing the processor can be switched on in Settings.".into(),
                _ => "It is tried again all the time; if it stays so, restart the computer.".into(),
            },
        };
        Some(next)
    }

    /// A machine that cannot know says so whenever that matters.
    fn without_idle_detection(&self) -> Option<String> {
        let follows_schedule = matches!(self.reason, Reason::WithinSchedule | Reason::OutsideSchedule);
        let idle = self.unavailable.iter().find(|missing| missing.sensor == Sensor::Idle)?;
        follows_schedule
            .then(|| format!("Idle detection unavailable, because {}: the schedule alone decides.", idle.because))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "layers {} of {}", self.layers, self.model)
    }
}

impl fmt::Display for GpuReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotChosen => formatter.write_str("not chosen for sharing"),
            Self::Hot { celsius: Some(celsius), resumes_at } => {
                write!(formatter, "cooling down, now at {celsius}; shared again at {resumes_at}")
            }
            Self::Hot { celsius: None, resumes_at } => {
                write!(formatter, "was too hot, and does not tell its temperature; shared again at {resumes_at}")
            }
            Self::MemoryNeeded => formatter.write_str("another program needs its memory"),
            Self::Busy => formatter.write_str("another program is using it"),
            Self::Rests { remaining } => write!(formatter, "given back a moment ago; shared again in {remaining}"),
        }
    }
}

impl fmt::Display for Serving {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Serving {}", self.shard)?;
        match self.coalition {
            0 | 1 => formatter.write_str(" alone."),
            members => write!(formatter, " in a coalition of {members}."),
        }
    }
}

impl Serving {
    pub(crate) fn of(activity: &Activity) -> Option<Self> {
        match activity {
            Activity::Serving { shard, coalition, requests } => {
                Some(Self { shard: shard.clone(), coalition: *coalition, requests: *requests })
            }
            _ => None,
        }
    }
}

fn count(requests: u32) -> String {
    match requests {
        1 => "the last request".into(),
        many => format!("the last {many} requests"),
    }
}

/// Tells times of day as seen from today.
#[derive(Clone, Copy)]
struct Clock<'a> {
    today: Date,
    zone: &'a TimeZone,
}

impl Clock<'_> {
    /// To be read after "until": `22:30`, `tomorrow 8:00`, `Monday 8:00`, `3 December 8:00`.
    fn until(self, at: Timestamp) -> String {
        let (day, time) = self.parts(at);
        day.map_or(time.clone(), |day| format!("{} {time}", day.trim_start_matches("on ")))
    }

    /// `at 22:30`, `tomorrow at 8:00`, `on Monday at 8:00`, `on 3 December at 8:00`.
    fn at(self, at: Timestamp) -> String {
        let (day, time) = self.parts(at);
        day.map_or(format!("at {time}"), |day| format!("{day} at {time}"))
    }

    fn parts(self, at: Timestamp) -> (Option<String>, String) {
        let shown = self.zone.to_datetime(at);
        let days = self.today.duration_until(shown.date()).as_hours() / 24;
        let day = match days {
            0 => None,
            1 => Some("tomorrow".to_owned()),
            2..7 => Some(shown.strftime("on %A").to_string()),
            _ => Some(shown.strftime("on %-d %B").to_string()),
        };
        (day, shown.strftime("%-H:%M").to_string())
    }
}
