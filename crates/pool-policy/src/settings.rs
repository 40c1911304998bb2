use std::{collections::BTreeSet, fmt::Display};

use pool_types::{ByteSize, EnergyPrice, Usdc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;

use crate::{Celsius, GpuId, Percent, Schedule, Seconds};

/// When the owner wants to share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Only when the owner is away: after [`Settings::start_after`] without input. With a schedule, only in its hours.
    #[default]
    WhenAway,
    /// Also while the owner works, but then gently: at [`Settings::duty_beside_owner`]. With a schedule, only in its
    /// hours.
    Gently,
    /// In the hours of the schedule, without waiting for the owner to be away for long: an input still takes the GPU
    /// back at once, and sharing resumes as soon as [`Settings::rest_after_stop`] allows.
    BySchedule,
}

/// Which GPUs are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuChoice {
    /// All, also those that are added later.
    #[default]
    All,
    /// These and no others.
    Only(BTreeSet<GpuId>),
}

impl GpuChoice {
    /// Whether `gpu` is shared.
    pub fn includes(&self, gpu: &GpuId) -> bool {
        match self {
            Self::All => true,
            Self::Only(chosen) => chosen.contains(gpu),
        }
    }
}

/// What the owner has set. [`Settings::default`] is what somebody gets who skips every question.
///
/// A value that was read has been checked; one put together by hand is checked by [`Settings::validate`]. Fields that are
/// absent have their default.
///
/// ```
/// use pool_policy::{Mode, Seconds, Settings};
///
/// let read: Settings = serde_json::from_str(r#"{ "mode": "gently", "start_after": 120 }"#)?;
/// assert_eq!(read, Settings { mode: Mode::Gently, start_after: Seconds(120), ..Settings::default() });
/// let refused = serde_json::from_str::<Settings>(r#"{ "start_after": 1 }"#).unwrap_err();
/// assert!(refused.to_string().starts_with("start_after is 1 second; it must lie between 10 seconds and 24 hours"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Settings {
    /// When to share. Only when the owner is away.
    pub mode: Mode,
    /// The week's hours outside which nothing is shared. `None`, the default: all hours.
    pub schedule: Option<Schedule>,
    /// The owner is away after so long without input. 5 minutes; 10 seconds to 24 hours.
    pub start_after: Seconds,
    /// A start is announced, and can be put off, for so long. 10 seconds; 0 to 5 minutes.
    pub notice: Seconds,
    /// No start within this time of a stop. 60 seconds; 10 seconds to 1 hour.
    pub rest_after_stop: Seconds,
    /// Requests that run may take so long to finish when sharing ends gently. 5 minutes; 0 to 1 hour.
    pub finish_within: Seconds,
    /// Whether a full-screen application, or a program that keeps the screen on (a film, a call, a presentation), makes us
    /// wait. Yes.
    pub wait_for_full_screen: bool,
    /// Programs that make us wait while they run. None; at most [`Settings::MAX_PROGRAMS`] names of 1 to 128 characters.
    pub wait_for_programs: Vec<String>,
    /// Another program is using a GPU above this load. 10 %; 1 to 99.
    pub gpu_busy_above: Percent,
    /// ... for so long. 5 seconds; 1 second to 5 minutes.
    pub gpu_busy_for: Seconds,
    /// A GPU is free again when it was left alone for so long. 30 seconds; 1 second to 1 hour.
    pub gpu_calm_for: Seconds,
    /// GPU memory that must stay free for other programs. 256 MiB; at most 64 GiB.
    pub gpu_memory_reserve: ByteSize,
    /// A GPU pauses at this temperature. 83 °C; 50 to 100.
    pub gpu_pause_at: Celsius,
    /// ... and resumes at this one. 75 °C; at least 30, and below the temperature at which it pauses.
    pub gpu_resume_at: Celsius,
    /// The part of the time in which the GPU may compute while the owner is away. 100 %; 5 to 100. Less is quieter.
    pub duty_when_away: Percent,
    /// ... while the owner works, where [`Mode::Gently`] allows it. 30 %; 5 to 100.
    pub duty_beside_owner: Percent,
    /// Whether to share on battery. No.
    pub share_on_battery: bool,
    /// Whether to share over a metered network. No.
    pub share_on_metered: bool,
    /// The most that downloads may take, in bytes a second. `None`, the default: no limit; else 64 KiB to 10 GiB.
    pub bandwidth_cap: Option<ByteSize>,
    /// Disk space for models. 50 GiB; 1 GiB to 64 TiB.
    pub disk_budget: ByteSize,
    /// Disk space that models leave free whatever the budget. 10 GiB; at most 64 TiB.
    pub disk_reserve: ByteSize,
    /// Which GPUs are shared. All.
    pub gpus: GpuChoice,
    /// Whether the processor is shared. No.
    pub share_cpu: bool,
    /// What a kilowatt hour costs, in USDC, as text: `"0.36"`. `None`, the default: costs are not counted; else at most
    /// 100.
    pub electricity_price: Option<EnergyPrice>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::WhenAway,
            schedule: None,
            start_after: Seconds::from_minutes(5),
            notice: Seconds(10),
            rest_after_stop: Seconds(60),
            finish_within: Seconds::from_minutes(5),
            wait_for_full_screen: true,
            wait_for_programs: Vec::new(),
            gpu_busy_above: Percent(10),
            gpu_busy_for: Seconds(5),
            gpu_calm_for: Seconds(30),
            gpu_memory_reserve: ByteSize(256 * MIB),
            gpu_pause_at: Celsius(83),
            gpu_resume_at: Celsius(75),
            duty_when_away: Percent(100),
            duty_beside_owner: Percent(30),
            share_on_battery: false,
            share_on_metered: false,
            bandwidth_cap: None,
            disk_budget: ByteSize(50 * GIB),
            disk_reserve: ByteSize(10 * GIB),
            gpus: GpuChoice::All,
            share_cpu: false,
            electricity_price: None,
        }
    }
}

/// Why settings cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// A number beyond its bounds.
    #[error("{setting} is {value}; it must lie between {least} and {most}")]
    OutOfBounds {
        /// The field.
        setting: &'static str,
        /// What it was set to.
        value: String,
        /// The least it may be.
        least: String,
        /// The most it may be.
        most: String,
    },
    /// A GPU that resumes at the temperature at which it pauses would do both by turns.
    #[error("gpu_resume_at is {resume}; it must lie below gpu_pause_at, which is {pause}")]
    ResumesTooHot {
        /// Where it resumes.
        resume: Celsius,
        /// Where it pauses.
        pause: Celsius,
    },
    /// Sharing by schedule without one.
    #[error("sharing by schedule needs a schedule; set one, or choose another mode")]
    NoSchedule,
    /// More programs than are watched.
    #[error("wait_for_programs lists {0} programs; at most {max} are watched", max = Settings::MAX_PROGRAMS)]
    TooManyPrograms(usize),
    /// A program's name that is empty, too long, or has control characters.
    #[error("wait_for_programs has a name that is empty, longer than 128 characters, or not printable")]
    ProgramName,
    /// More GPUs than a machine has.
    #[error("{0} GPUs are chosen; at most {max} are known", max = crate::Signals::MAX_GPUS)]
    TooManyGpus(usize),
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn within<T: Copy + PartialOrd + Display>(
    setting: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<(), SettingsError> {
    if least <= value && value <= most {
        return Ok(());
    }
    let [value, least, most] = [value, least, most].map(|number| number.to_string());
    Err(SettingsError::OutOfBounds { setting, value, least, most })
}

impl Settings {
    /// The most programs that can be listed.
    pub const MAX_PROGRAMS: usize = 100;
    const MAX_PROGRAM_CHARS: usize = 128;

    /// Checks every bound that is written at the fields.
    pub fn validate(&self) -> Result<(), SettingsError> {
        within("start_after", self.start_after, Seconds(10), Seconds::from_hours(24))?;
        within("notice", self.notice, Seconds(0), Seconds::from_minutes(5))?;
        within("rest_after_stop", self.rest_after_stop, Seconds(10), Seconds::from_hours(1))?;
        within("finish_within", self.finish_within, Seconds(0), Seconds::from_hours(1))?;
        within("gpu_busy_above", self.gpu_busy_above, Percent(1), Percent(99))?;
        within("gpu_busy_for", self.gpu_busy_for, Seconds(1), Seconds::from_minutes(5))?;
        within("gpu_calm_for", self.gpu_calm_for, Seconds(1), Seconds::from_hours(1))?;
        within("gpu_memory_reserve", self.gpu_memory_reserve, ByteSize(0), ByteSize(64 * GIB))?;
        within("gpu_pause_at", self.gpu_pause_at, Celsius(50), Celsius(100))?;
        within("gpu_resume_at", self.gpu_resume_at, Celsius(30), Celsius(99))?;
        within("duty_when_away", self.duty_when_away, Percent(5), Percent(100))?;
        within("duty_beside_owner", self.duty_beside_owner, Percent(5), Percent(100))?;
        if let Some(cap) = self.bandwidth_cap {
            within("bandwidth_cap", cap, ByteSize(64 << 10), ByteSize(10 * GIB))?;
        }
        if let Some(price) = self.electricity_price {
            let most = Usdc::from_units(100_000_000).unwrap_or_default();
            within("electricity_price", price.0, Usdc::ZERO, most)?;
        }
        within("disk_budget", self.disk_budget, ByteSize(GIB), ByteSize(64 * TIB))?;
        within("disk_reserve", self.disk_reserve, ByteSize(0), ByteSize(64 * TIB))?;
        if self.gpu_resume_at >= self.gpu_pause_at {
            return Err(SettingsError::ResumesTooHot { resume: self.gpu_resume_at, pause: self.gpu_pause_at });
        }
        if self.mode == Mode::BySchedule && self.schedule.is_none() {
            return Err(SettingsError::NoSchedule);
        }
        if self.wait_for_programs.len() > Self::MAX_PROGRAMS {
            return Err(SettingsError::TooManyPrograms(self.wait_for_programs.len()));
        }
        let printable = |name: &String| {
            (1..=Self::MAX_PROGRAM_CHARS).contains(&name.chars().count()) && !name.chars().any(char::is_control)
        };
        if !self.wait_for_programs.iter().all(printable) {
            return Err(SettingsError::ProgramName);
        }
        match &self.gpus {
            GpuChoice::Only(chosen) if chosen.len() > crate::Signals::MAX_GPUS => {
                Err(SettingsError::TooManyGpus(chosen.len()))
            }
            _ => Ok(()),
        }
    }

    /// How long the owner must have been away before sharing starts beside an empty chair.
    pub(crate) fn away_after(&self) -> Seconds {
        match self.mode {
            Mode::WhenAway | Mode::Gently => self.start_after,
            Mode::BySchedule => self.start_after.min(self.rest_after_stop),
        }
    }
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let settings = Self::deserialize(deserializer)?;
        settings.validate().map_err(D::Error::custom)?;
        Ok(settings)
    }
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_specification_and_valid() {
        let settings = Settings::default();
        settings.validate().expect("somebody who skips every question gets settings that work");
        assert_eq!((settings.start_after, settings.notice), (Seconds(300), Seconds(10)));
        assert_eq!((settings.gpu_busy_above, settings.gpu_busy_for), (Percent(10), Seconds(5)));
        assert_eq!((settings.gpu_calm_for, settings.rest_after_stop), (Seconds(30), Seconds(60)));
        assert_eq!((settings.gpu_pause_at, settings.gpu_resume_at), (Celsius(83), Celsius(75)));
        assert_eq!((settings.mode, settings.schedule), (Mode::WhenAway, None));
        assert!(!settings.share_on_battery && !settings.share_on_metered && !settings.share_cpu);
    }

    #[test]
    fn settings_survive_being_written_and_absent_fields_have_their_default() {
        let gpus = GpuChoice::Only([GpuId("GPU-1".into())].into());
        let schedule = Some("Mon-Fri 22:00-06:00".parse().unwrap());
        let settings = Settings { gpus, schedule, mode: Mode::BySchedule, ..Settings::default() };
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings);
        assert_eq!(serde_json::from_str::<Settings>("{}").unwrap(), Settings::default());
        assert!(serde_json::from_str::<Settings>(r#"{ "start_afer": 1 }"#).is_err(), "a misspelt setting is not lost");
    }

    #[test]
    fn every_bound_is_kept_and_named() {
        let dear = EnergyPrice("100.000001".parse().unwrap());
        let broken: [(&str, Settings); 17] = [
            ("electricity_price", Settings { electricity_price: Some(dear), ..Settings::default() }),
            ("start_after", Settings { start_after: Seconds(9), ..Settings::default() }),
            ("notice", Settings { notice: Seconds(301), ..Settings::default() }),
            ("rest_after_stop", Settings { rest_after_stop: Seconds(9), ..Settings::default() }),
            ("finish_within", Settings { finish_within: Seconds(3_601), ..Settings::default() }),
            ("gpu_busy_above", Settings { gpu_busy_above: Percent(100), ..Settings::default() }),
            ("gpu_busy_for", Settings { gpu_busy_for: Seconds(0), ..Settings::default() }),
            ("gpu_calm_for", Settings { gpu_calm_for: Seconds(0), ..Settings::default() }),
            ("gpu_memory_reserve", Settings { gpu_memory_reserve: ByteSize(65 << 30), ..Settings::default() }),
            ("gpu_pause_at", Settings { gpu_pause_at: Celsius(101), ..Settings::default() }),
            ("gpu_resume_at", Settings { gpu_resume_at: Celsius(29), ..Settings::default() }),
            ("gpu_resume_at", Settings { gpu_resume_at: Celsius(83), ..Settings::default() }),
            ("duty_when_away", Settings { duty_when_away: Percent(4), ..Settings::default() }),
            ("duty_beside_owner", Settings { duty_beside_owner: Percent(101), ..Settings::default() }),
            ("bandwidth_cap", Settings { bandwidth_cap: Some(ByteSize(0)), ..Settings::default() }),
            ("disk_budget", Settings { disk_budget: ByteSize(0), ..Settings::default() }),
            ("disk_reserve", Settings { disk_reserve: ByteSize(65 << 40), ..Settings::default() }),
        ];
        for (setting, settings) in broken {
            let error = settings.validate().expect_err(setting).to_string();
            assert!(error.starts_with(setting), "the message names the setting: {error}");
            let text = serde_json::to_string(&settings).unwrap();
            assert!(serde_json::from_str::<Settings>(&text).is_err(), "{setting}: what is read has been checked");
        }
    }

    #[test]
    fn lists_are_bounded_and_a_schedule_to_follow_must_exist() {
        let error = |settings: Settings| settings.validate().unwrap_err();
        let programs = |names: Vec<String>| Settings { wait_for_programs: names, ..Settings::default() };
        assert_eq!(error(programs(vec!["a".into(); 101])), SettingsError::TooManyPrograms(101));
        for name in ["", "two\nlines", &"x".repeat(129)] {
            assert_eq!(error(programs(vec![name.into()])), SettingsError::ProgramName, "{name:?}");
        }
        let many = (0..65).map(|number| GpuId(number.to_string())).collect();
        assert_eq!(
            error(Settings { gpus: GpuChoice::Only(many), ..Settings::default() }),
            SettingsError::TooManyGpus(65)
        );
        assert_eq!(error(Settings { mode: Mode::BySchedule, ..Settings::default() }), SettingsError::NoSchedule);
    }
}
