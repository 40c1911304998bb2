//! The language of scenario files.
//!
//! ```text
//! # The head: where, when, what is set, which GPUs (one called A if nothing is said), and how far apart looks are.
//! zone Europe/Berlin
//! begin 2026-05-04 21:59:00
//! settings { "mode": "gently" }
//! gpus A=RTX 4090, B=RTX 3060
//! tick 1s
//!
//! # time   for   what changes        what is decided, each second until the next line
//! 21:59:00 +1m   typing gpu=3%    -> waiting owner-here
//! ```
//!
//! A line holds until the time of the next one, or for the time after `+`. The time is what the wall clock shows once the
//! line's changes are made. What a line does not change stays; idle time grows by itself.
//!
//! Changes: `typing` (all the time), `input` (once), `idle=5m`, `screen=film`, `screen=kept-on`, `screen=free`,
//! `program=Blender`, `power=battery`, `power=mains`, `metered=yes`, `disk=full` (the budget), `disk=tight` (the disk itself),
//! `disk=ok`, `problem=driver`,
//! `update=1.2.0`, `requests=2`, `coalition=no` (or `yes`, `downloading`, `loading`: what the node finds when it may
//! share), `gpu=40%`, `temp=83`, `vram=2G` (what others leave us), `gpu.B=40%` for one of several, `gpus=none`. Any sensor
//! can be `=unavailable`; `=none` ends a program, problem or update. `clock=+2h` sets the wall clock, `asleep=8h` suspends
//! the machine, `stalled=8m` lets it run without a look, `restart` begins the steady clock anew. Commands: `!pause`, `!pause=30m`, `!pause=tomorrow`, `!share`,
//! `!share=1h`, `!finish`, `!resume`, `!not-now`.
//!
//! Expected: state, reason, and as wished the action, `gpus=A,B` (those in use; `gpus=-` for none), `downloads=run` or why
//! not, `cap=1048576` (bytes a second that downloads may take; `cap=-` for any), `duty=30` (the percentage of the time in
//! which the GPU may compute), `starts=22:05:00` (the earliest change), and `says "..."` (the whole sentence).

use std::{fmt, time::Duration};

use jiff::{civil::DateTime, tz::TimeZone};
use pool_policy::Settings;

pub(crate) struct Script {
    pub(crate) zone: TimeZone,
    pub(crate) begin: DateTime,
    pub(crate) settings: Settings,
    /// Letter and name.
    pub(crate) gpus: Vec<(String, String)>,
    pub(crate) tick: Duration,
    pub(crate) lines: Vec<Line>,
}

pub(crate) struct Line {
    pub(crate) number: usize,
    /// `22:04:10`, perhaps with a date before.
    pub(crate) time: String,
    pub(crate) lasts: Option<Duration>,
    pub(crate) changes: Vec<String>,
    pub(crate) expected: Vec<String>,
    pub(crate) says: Option<String>,
}

/// A line that cannot be read or does not hold.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) line: usize,
    pub(crate) what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.line, self.what)
    }
}

impl Script {
    pub(crate) fn parse(text: &str) -> Result<Self, Wrong> {
        let gpus = vec![("A".to_owned(), "RTX 4090".to_owned())];
        let mut script = Self {
            zone: TimeZone::UTC,
            begin: DateTime::ZERO,
            settings: Settings::default(),
            gpus,
            tick: Duration::from_secs(1),
            lines: Vec::new(),
        };
        let lines = text.lines().map(str::trim).enumerate();
        for (index, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let wrong = |what: String| Wrong { line: index + 1, what };
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            match word {
                "zone" => script.zone = TimeZone::get(rest).map_err(|error| wrong(error.to_string()))?,
                "begin" => script.begin = rest.parse().map_err(|error| wrong(format!("{error}")))?,
                "settings" => script.settings = serde_json::from_str(rest).map_err(|error| wrong(error.to_string()))?,
                "tick" => script.tick = duration(rest).ok_or_else(|| wrong(format!("{rest} is not a duration")))?,
                "gpus" => {
                    let named = rest.split(',').map(|gpu| gpu.trim().split_once('='));
                    let named = named.map(|gpu| gpu.map(|(id, name)| (id.to_owned(), name.to_owned())));
                    script.gpus = named.collect::<Option<_>>().ok_or_else(|| wrong("gpus A=name, B=name".into()))?;
                }
                _ => script.lines.push(Line::parse(line, index + 1)?),
            }
        }
        Ok(script)
    }
}

impl Line {
    fn parse(line: &str, number: usize) -> Result<Self, Wrong> {
        let wrong = |what: &str| Wrong { line: number, what: what.to_owned() };
        let (left, right) = line.split_once("->").ok_or_else(|| wrong("no -> between signals and decision"))?;
        let (right, says) = match right.split_once("says \"") {
            Some((right, says)) => {
                let says = says.trim_end().strip_suffix('"').ok_or_else(|| wrong("says \"...\" comes last"))?;
                (right, Some(says.to_owned()))
            }
            None => (right, None),
        };
        let mut words = left.split_whitespace().map(str::to_owned).peekable();
        let mut time = words.next().ok_or_else(|| wrong("a line begins with its time"))?;
        if time.contains('-') {
            time = format!("{time} {}", words.next().ok_or_else(|| wrong("a date is followed by a time"))?);
        }
        let lasts = match words.next_if(|word| word.starts_with('+')) {
            Some(word) => Some(duration(&word[1..]).ok_or_else(|| wrong("+ is followed by a duration"))?),
            None => None,
        };
        let expected: Vec<String> = right.split_whitespace().map(str::to_owned).collect();
        if expected.len() < 2 {
            return Err(wrong("a decision has a state and a reason"));
        }
        Ok(Self { number, time, lasts, changes: words.collect(), expected, says })
    }
}

/// `30s`, `5m`, `8h`, `1d`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    Some(Duration::from_secs(number.parse::<u64>().ok()? * seconds))
}
