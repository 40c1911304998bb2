//! What the owner asked for by a click: one wish at a time, the latest counts.

use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};

use crate::{Moment, Seconds};

/// What the owner asks for in the tray or the window. (Which GPUs are shared is a [setting](crate::Settings::gpus).)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Give the GPU back now.
    Pause(Term),
    /// Let the requests that run come to their end, for at most
    /// [`Settings::finish_within`](crate::Settings::finish_within); then pause until resumed. What would take the GPU
    /// back at once still does.
    FinishThenPause,
    /// Share now, even while the owner uses the computer. Hard rules hold all the same.
    ShareNow(Term),
    /// End a pause or a share-now: the settings decide again.
    Resume,
    /// Put the announced start off: a pause as long as [`Settings::start_after`](crate::Settings::start_after).
    NotNow,
}

/// Until when a wish holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Term {
    /// For so long; at most [`Term::LONGEST`].
    For(Seconds),
    /// Until 8:00 of the next day of the calendar.
    UntilTomorrow,
    /// Until the owner says otherwise.
    UntilTold,
}

impl Term {
    /// The longest wish with an end: a week.
    pub const LONGEST: Seconds = Seconds::from_hours(7 * 24);
    const MORNING_HOUR: i8 = 8;
}

/// When a wish ends: never by itself, or at an [`End`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deadline(Option<End>);

/// A time of day, and the time that may pass until then; the wish ends with whichever comes first. The time of day
/// counts while the program does not run; the time that passes sees to it that a clock that is set back cannot make an
/// hour's pause last for days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    at: Timestamp,
    left: Duration,
}

impl Deadline {
    /// A wish begins. `unseen` is the time since the last look, which the next one will take off what is left.
    pub(crate) fn begin(term: Term, now: Moment, unseen: Duration, zone: &TimeZone) -> Self {
        let at = match term {
            Term::UntilTold => return Self(None),
            Term::For(length) => now.after(length.min(Term::LONGEST).duration()),
            Term::UntilTomorrow => {
                let tomorrow = zone.to_datetime(now.wall).date().tomorrow();
                let morning = tomorrow.and_then(|day| zone.to_timestamp(day.at(Term::MORNING_HOUR, 0, 0, 0)));
                morning.unwrap_or(Timestamp::MAX)
            }
        };
        let length = Duration::try_from(at.duration_since(now.wall)).unwrap_or_default();
        Self(Some(End { at, left: length.saturating_add(unseen) }))
    }

    /// Time has passed; whether the wish still holds.
    fn holds(&mut self, now: Moment, elapsed: Duration) -> bool {
        let Self(Some(end)) = self else { return true };
        end.left = end.left.saturating_sub(elapsed);
        now.wall < end.at && end.left > Duration::ZERO
    }

    /// The time of day at which it ends, as far as can be known now.
    pub(crate) fn ends(&self, now: Moment) -> Option<Timestamp> {
        self.0.map(|end| end.at.min(now.after(end.left)))
    }
}

/// What the owner wants at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wish {
    /// What the settings say.
    #[default]
    Settings,
    Pause(Deadline),
    FinishThenPause {
        /// Asked for during a share-now: what it set aside stays aside until the end.
        overrides: bool,
    },
    ShareNow(Deadline),
}

impl Wish {
    /// Time has passed, and wishes end.
    pub(crate) fn advance(&mut self, now: Moment, elapsed: Duration) {
        let holds = match self {
            Self::Pause(deadline) | Self::ShareNow(deadline) => deadline.holds(now, elapsed),
            Self::Settings | Self::FinishThenPause { .. } => true,
        };
        if !holds {
            *self = Self::Settings;
        }
    }

    /// Nothing is left to finish: the pause begins.
    pub(crate) fn finished(&mut self) {
        if matches!(self, Self::FinishThenPause { .. }) {
            *self = Self::Pause(Deadline(None));
        }
    }

    /// Whether the rules that only look after the owner's comfort are set aside.
    pub(crate) fn overrides_soft_rules(&self) -> bool {
        matches!(self, Self::FinishThenPause { overrides: true } | Self::ShareNow(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(wall: &str, steady: u64) -> Moment {
        Moment { wall: wall.parse().unwrap(), steady: Duration::from_secs(steady) }
    }

    fn pause(now: Moment) -> Wish {
        Wish::Pause(Deadline::begin(Term::For(Seconds::from_minutes(30)), now, Duration::ZERO, &TimeZone::UTC))
    }

    #[test]
    fn until_tomorrow_is_eight_o_clock_on_the_owners_wall_also_when_the_clocks_change() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let end = |now: &str| {
            let now = moment(now, 0);
            Deadline::begin(Term::UntilTomorrow, now, Duration::ZERO, &berlin).ends(now).unwrap().to_string()
        };
        assert_eq!(end("2026-05-04T20:00:00Z"), "2026-05-05T06:00:00Z", "22:00 in summer");
        assert_eq!(end("2026-03-28T20:00:00Z"), "2026-03-29T06:00:00Z", "the night that has an hour less");
        assert_eq!(end("2026-10-24T20:00:00Z"), "2026-10-25T07:00:00Z", "the night that has an hour more");
        assert_eq!(end("2026-05-04T22:30:00Z"), "2026-05-06T06:00:00Z", "half past midnight is already the 5th there");
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_lengthen_a_pause() {
        let start = moment("2026-05-04T20:00:00Z", 100);
        let mut wish = pause(start);
        let set_back = moment("2025-01-01T00:00:00Z", 101);
        wish.advance(set_back, Duration::from_secs(1));
        assert_ne!(wish, Wish::Settings, "29 minutes 59 seconds are left");
        wish.advance(set_back, Duration::from_secs(1_799));
        assert_eq!(wish, Wish::Settings, "half an hour has passed whatever the clock says");
    }

    #[test]
    fn a_pause_ends_on_time_while_the_program_does_not_run() {
        let mut wish = pause(moment("2026-05-04T20:00:00Z", 100));
        wish.advance(moment("2026-05-04T20:29:59Z", 0), Duration::ZERO);
        assert_ne!(wish, Wish::Settings);
        wish.advance(moment("2026-05-04T20:30:00Z", 1), Duration::from_secs(1));
        assert_eq!(wish, Wish::Settings);
    }

    #[test]
    fn a_wish_without_end_has_none_and_one_with_an_end_has_a_bound() {
        let now = moment("2026-05-04T20:00:00Z", 0);
        let mut wish = Wish::ShareNow(Deadline::begin(Term::UntilTold, now, Duration::ZERO, &TimeZone::UTC));
        wish.advance(moment("2126-05-04T20:00:00Z", 1), Duration::from_secs(u64::MAX));
        assert_ne!(wish, Wish::Settings, "until the owner says otherwise");
        let longest = Deadline::begin(Term::For(Seconds(u32::MAX)), now, Duration::ZERO, &TimeZone::UTC);
        assert_eq!(longest.ends(now).unwrap().to_string(), "2026-05-11T20:00:00Z", "a week");
    }
}
