//! A week's hours in which sharing is allowed.
//!
//! A window is open exactly while the clock on the wall shows a time within it. That is all there is to say about
//! daylight saving: hours that the clock skips do not exist for a window either, and hours that it shows twice count
//! twice. The zone is passed in, so a laptop that travels follows the wall it hangs on.

use std::{collections::BTreeSet, fmt, str::FromStr};

use jiff::{
    Timestamp,
    civil::{Date, Weekday},
    tz::{AmbiguousOffset, TimeZone},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const MINUTES_OF_A_DAY: u16 = 24 * 60;
const DAY_NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// One to [`Schedule::MAX_WINDOWS`] windows of the week. Where they overlap, either suffices.
///
/// ```
/// use pool_policy::Schedule;
///
/// let nights: Schedule = "Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00".parse()?;
/// assert_eq!(nights.to_string(), "Mon-Fri 22:00-06:00; Sat-Sun 00:00-24:00");
/// # Ok::<(), pool_policy::ScheduleError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Schedule {
    windows: Vec<Window>,
}

/// From one time of day to another, on the given days. A window that ends no later than it begins ends on the day
/// after; its days are those on which it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    /// Bit 0 is Monday.
    days: u8,
    /// Minutes since midnight, below a day.
    from: u16,
    /// Minutes since midnight, at most a day, never 0.
    until: u16,
}

/// Why a text is not a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScheduleError {
    /// No window at all: to share at all hours, turn the schedule off.
    #[error("a schedule needs at least one window, like Mon-Fri 22:00-06:00")]
    Empty,
    /// More windows than anybody can oversee.
    #[error("a schedule has at most {max} windows", max = Schedule::MAX_WINDOWS)]
    TooManyWindows,
    /// Not `days from-until`.
    #[error("`{0}` is not a window; write the days and the hours, like Mon-Fri 22:00-06:00")]
    Window(String),
    /// Not a day or a run of days.
    #[error("`{0}` is not a day; write Mon, Tue, Wed, Thu, Fri, Sat, Sun, a run like Mon-Fri, or daily")]
    Day(String),
    /// Not a time of day.
    #[error("`{0}` is not a time of day; write 00:00 to 24:00")]
    Time(String),
    /// It begins when it ends.
    #[error("the window `{0}` has no length; a whole day is 00:00-24:00")]
    NoLength(String),
}

/// What the schedule says at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Whether sharing is allowed now.
    pub open: bool,
    /// When that changes next; `None` if it never does.
    pub changes: Option<Timestamp>,
}

impl Schedule {
    /// The most windows a schedule may have.
    pub const MAX_WINDOWS: usize = 28;
    /// A window that a skipped hour swallows opens a week later; beyond two weeks nothing new comes.
    const DAYS_AHEAD: usize = 15;

    /// Whether it is open at `now`, and when that changes.
    pub fn opening(&self, now: Timestamp, zone: &TimeZone) -> Opening {
        let open = self.is_open(now, zone);
        Opening { open, changes: self.next_change(now, zone, open) }
    }

    fn is_open(&self, now: Timestamp, zone: &TimeZone) -> bool {
        let shown = zone.to_datetime(now);
        let minute = shown.hour() as u16 * 60 + shown.minute() as u16;
        self.windows.iter().any(|window| window.contains(shown.date().weekday(), minute))
    }

    /// Opening and closing happen only where a window begins or ends and where the zone changes its offset.
    fn next_change(&self, now: Timestamp, zone: &TimeZone, open: bool) -> Option<Timestamp> {
        let edges: BTreeSet<u16> = self.windows.iter().flat_map(|w| [w.from, w.until % MINUTES_OF_A_DAY]).collect();
        let mut day = zone.to_datetime(now).date();
        for _ in 0..Self::DAYS_AHEAD {
            let offset_changes = zone.following(now).map(|change| change.timestamp());
            let on_this_day = offset_changes.take_while(|at| zone.to_datetime(*at).date() <= day).take(4);
            let mut candidates: Vec<Timestamp> = on_this_day.collect();
            candidates.extend(edges.iter().flat_map(|minute| when_it_shows(day, *minute, zone)));
            candidates.sort_unstable();
            let change = candidates.into_iter().find(|at| *at > now && self.is_open(*at, zone) != open);
            if change.is_some() {
                return change;
            }
            day = day.tomorrow().ok()?;
        }
        None
    }
}

/// The instants at which the wall clock shows `minute` of `day`: none in a skipped hour, two in a repeated one.
fn when_it_shows(day: Date, minute: u16, zone: &TimeZone) -> impl Iterator<Item = Timestamp> {
    let shown = day.at((minute / 60) as i8, (minute % 60) as i8, 0, 0);
    let offsets = match zone.to_ambiguous_timestamp(shown).offset() {
        AmbiguousOffset::Unambiguous { offset } => [Some(offset), None],
        AmbiguousOffset::Gap { .. } => [None, None],
        AmbiguousOffset::Fold { before, after } => [Some(before), Some(after)],
    };
    offsets.into_iter().flatten().filter_map(move |offset| offset.to_timestamp(shown).ok())
}

impl Window {
    fn contains(self, day: Weekday, minute: u16) -> bool {
        let begins_on = |day: Weekday| self.days & (1 << day.to_monday_zero_offset()) != 0;
        if self.from < self.until {
            begins_on(day) && (self.from..self.until).contains(&minute)
        } else {
            (begins_on(day) && minute >= self.from) || (begins_on(day.previous()) && minute < self.until)
        }
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let parts = text.split(';').map(str::trim).filter(|part| !part.is_empty());
        let windows = parts.take(Self::MAX_WINDOWS + 1).map(str::parse).collect::<Result<Vec<Window>, _>>()?;
        match windows.len() {
            0 => Err(ScheduleError::Empty),
            count if count > Self::MAX_WINDOWS => Err(ScheduleError::TooManyWindows),
            _ => Ok(Self { windows }),
        }
    }
}

impl FromStr for Window {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let syntax = || ScheduleError::Window(text.to_owned());
        let (days, hours) = text.rsplit_once(char::is_whitespace).ok_or_else(syntax)?;
        let (from, until) = hours.split_once('-').ok_or_else(syntax)?;
        let window = Self { days: parse_days(days)?, from: parse_time(from)?, until: parse_time(until)? };
        if window.from == window.until {
            return Err(ScheduleError::NoLength(text.to_owned()));
        }
        // Midnight is the end of one day and the beginning of the next.
        let from = window.from % MINUTES_OF_A_DAY;
        let until = if window.until == 0 { MINUTES_OF_A_DAY } else { window.until };
        let begins_at_its_end = window.from == MINUTES_OF_A_DAY;
        if begins_at_its_end { Err(ScheduleError::Time(hours.to_owned())) } else { Ok(Self { from, until, ..window }) }
    }
}

fn parse_days(text: &str) -> Result<u8, ScheduleError> {
    if text.trim().eq_ignore_ascii_case("daily") {
        return Ok(0b111_1111);
    }
    let number = |name: &str| {
        let found = DAY_NAMES.iter().position(|day| day.eq_ignore_ascii_case(name.trim()));
        found.ok_or_else(|| ScheduleError::Day(name.trim().to_owned()))
    };
    text.split(',').try_fold(0, |days, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        let length = (last + 7 - first) % 7 + 1;
        Ok((first..first + length).fold(days, |days, day| days | 1 << (day % 7)))
    })
}

fn parse_time(text: &str) -> Result<u16, ScheduleError> {
    let wrong = || ScheduleError::Time(text.to_owned());
    let number = |digits: &str| -> Result<u16, ScheduleError> {
        let plain = (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        if plain { digits.parse().map_err(|_| wrong()) } else { Err(wrong()) }
    };
    let (hour, minute) = text.split_once(':').ok_or_else(wrong)?;
    let (hour, minute) = (number(hour)?, number(minute)?);
    let total = hour * 60 + minute;
    if minute < 60 && total <= MINUTES_OF_A_DAY { Ok(total) } else { Err(wrong()) }
}

impl fmt::Display for Window {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |day: usize| self.days & (1 << day) != 0;
        if self.days == 0b111_1111 {
            formatter.write_str("daily")?;
        } else {
            let mut runs: Vec<String> = Vec::new();
            let mut day = 0;
            while day < 7 {
                let length = (day..7).take_while(|day| on(*day)).count();
                match length {
                    0 => {}
                    1 => runs.push(DAY_NAMES[day].to_owned()),
                    _ => runs.push(format!("{}-{}", DAY_NAMES[day], DAY_NAMES[day + length - 1])),
                }
                day += length.max(1);
            }
            formatter.write_str(&runs.join(","))?;
        }
        let time = |minutes: u16| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        write!(formatter, " {}-{}", time(self.from), time(self.until))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let windows: Vec<String> = self.windows.iter().map(Window::to_string).collect();
        formatter.write_str(&windows.join("; "))
    }
}

impl TryFrom<String> for Schedule {
    type Error = ScheduleError;

    fn try_from(text: String) -> Result<Self, ScheduleError> {
        text.parse()
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> Self {
        schedule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use jiff::{civil::date, tz};
    use proptest::prelude::*;

    use super::*;

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap_or_else(|error| panic!("the bundled zones know {name}: {error}"))
    }

    /// What the wall clock shows each time the schedule opens (`true`) or closes from the beginning of a day on.
    fn changes(schedule: &str, zone: &TimeZone, from: Date, count: usize) -> Vec<(bool, String)> {
        let schedule: Schedule = schedule.parse().unwrap();
        let mut now = zone.to_timestamp(from.at(0, 0, 0, 0)).unwrap();
        let mut seen = Vec::new();
        while seen.len() < count {
            let Some(next) = schedule.opening(now, zone).changes else { break };
            assert!(next > now, "the next change lies ahead");
            let shown = next.to_zoned(zone.clone());
            seen.push((schedule.opening(next, zone).open, shown.strftime("%d %H:%M %:z").to_string()));
            now = next;
        }
        seen
    }

    #[test]
    fn a_night_window_belongs_to_the_day_on_which_it_begins() {
        let berlin = zone("Europe/Berlin");
        let seen = changes("Fri 22:00-06:00", &berlin, date(2026, 5, 4), 3);
        let expected = [(true, "08 22:00 +02:00"), (false, "09 06:00 +02:00"), (true, "15 22:00 +02:00")];
        assert_eq!(seen, expected.map(|(open, at)| (open, at.to_owned())), "Friday night ends on Saturday morning");
    }

    #[test]
    fn windows_that_touch_are_one() {
        let berlin = zone("Europe/Berlin");
        let seen = changes("Mon 20:00-24:00; Tue 00:00-03:00; Mon 21:00-22:00", &berlin, date(2026, 5, 4), 2);
        assert_eq!(seen[0].1, "04 20:00 +02:00");
        assert_eq!(seen[1].1, "05 03:00 +02:00", "no pause at midnight, none where an inner window ends");
    }

    #[test]
    fn a_schedule_without_gaps_never_changes() {
        let berlin = zone("Europe/Berlin");
        for always in ["daily 00:00-24:00", "daily 12:00-11:00; daily 11:00-12:00"] {
            assert_eq!(changes(always, &berlin, date(2026, 3, 28), 1), [], "{always}, over a change of the clocks");
        }
    }

    #[test]
    fn hours_that_the_clock_skips_are_skipped() {
        // 29 March 2026, Berlin: 02:00 becomes 03:00.
        let berlin = zone("Europe/Berlin");
        let seen = changes("Sun 02:30-03:30", &berlin, date(2026, 3, 29), 2);
        assert_eq!(seen[0], (true, "29 03:00 +02:00".into()), "02:30 was never shown; 03:00 lies within the window");
        assert_eq!(seen[1], (false, "29 03:30 +02:00".into()));
        let swallowed = changes("Sun 02:10-02:50", &berlin, date(2026, 3, 29), 1);
        assert_eq!(swallowed, [(true, "05 02:10 +02:00".into())], "it does not open before the Sunday after");
        let night = changes("Sat 22:00-06:00", &berlin, date(2026, 3, 28), 2);
        assert_eq!(night[1], (false, "29 06:00 +02:00".into()), "that night has seven hours");
    }

    #[test]
    fn hours_that_the_clock_shows_twice_count_twice() {
        // 25 October 2026, Berlin: 03:00 becomes 02:00.
        let berlin = zone("Europe/Berlin");
        let seen = changes("Sun 01:30-02:30", &berlin, date(2026, 10, 25), 4);
        let expected = [
            (true, "25 01:30 +02:00"),
            (false, "25 02:30 +02:00"),
            (true, "25 02:00 +01:00"),
            (false, "25 02:30 +01:00"),
        ];
        assert_eq!(seen, expected.map(|(open, at)| (open, at.to_owned())));
    }

    #[test]
    fn zones_that_change_by_half_an_hour_or_at_midnight_are_followed() {
        // Lord Howe Island, 4 October 2026: 02:00 becomes 02:30.
        let seen = changes("Sun 02:15-04:00", &zone("Australia/Lord_Howe"), date(2026, 10, 4), 1);
        assert_eq!(seen, [(true, "04 02:30 +11:00".into())]);
        // Cairo, 24 April 2026: midnight becomes 01:00.
        let seen = changes("Fri 00:00-05:00", &zone("Africa/Cairo"), date(2026, 4, 23), 2);
        assert_eq!(seen[0], (true, "24 01:00 +03:00".into()), "a day that begins at one o'clock");
        assert_eq!(seen[1], (false, "24 05:00 +03:00".into()));
        // New York, 1 November 2026: 02:00 becomes 01:00.
        let seen = changes("Sat 22:00-01:30", &zone("America/New_York"), date(2026, 10, 31), 4);
        assert_eq!(seen[1], (false, "01 01:30 -04:00".into()));
        assert_eq!(seen[2..], [(true, "01 01:00 -05:00".into()), (false, "01 01:30 -05:00".into())]);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| text.parse::<Schedule>().unwrap_err();
        assert_eq!(error(" ; "), ScheduleError::Empty);
        assert_eq!(error("Mon"), ScheduleError::Window("Mon".into()));
        assert_eq!(error("Moo 10:00-11:00"), ScheduleError::Day("Moo".into()));
        assert_eq!(error("Mon- 10:00-11:00"), ScheduleError::Day("".into()));
        for time in ["25:00", "24:01", "9", "09:60", "+9:00", "009:00", "-1:00"] {
            let text = format!("Mon {time}-10:30");
            assert!(text.parse::<Schedule>().is_err(), "{text} is not a window");
        }
        assert!(matches!(error("Mon 10:00-10:00"), ScheduleError::NoLength(_)));
        assert!(matches!(error("Mon 24:00-10:00"), ScheduleError::Time(_)), "a day ends at 24:00, none begins there");
        assert_eq!(error(&"Mon 10:00-11:00;".repeat(29)), ScheduleError::TooManyWindows);
        let overnight: Schedule = "Sun 22:00-00:00".parse().unwrap();
        assert_eq!(overnight.to_string(), "Sun 22:00-24:00", "until midnight is until the end of the day");
        assert_eq!("fri-mon 1:00-2:00".parse::<Schedule>().unwrap().to_string(), "Mon,Fri-Sun 01:00-02:00");
    }

    fn any_schedule() -> impl Strategy<Value = Schedule> {
        let window = (1_u8..128, 0_u16..1440, 1_u16..=1440)
            .prop_filter("a window has a length", |(_, from, until)| from != until)
            .prop_map(|(days, from, until)| Window { days, from, until });
        prop::collection::vec(window, 1..6).prop_map(|windows| Schedule { windows })
    }

    fn any_zone() -> impl Strategy<Value = TimeZone> {
        const NAMES: [&str; 6] =
            ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "Asia/Kolkata", "UTC"];
        prop::sample::select(&NAMES[..]).prop_map(zone)
    }

    proptest! {
        #[test]
        fn a_schedule_survives_its_own_text(schedule in any_schedule()) {
            prop_assert_eq!(schedule.to_string().parse::<Schedule>(), Ok(schedule));
        }

        #[test]
        fn nothing_changes_before_the_next_change(schedule in any_schedule(), zone in any_zone(), start in 1_767_225_600_i64..1_798_761_600) {
            let now = Timestamp::from_second(start).unwrap();
            let opening = schedule.opening(now, &zone);
            let horizon = opening.changes.map_or(start + 8 * 86_400, |change| change.as_second());
            for second in (start..horizon).step_by(300).chain([horizon - 1]) {
                let seen = schedule.is_open(Timestamp::from_second(second).unwrap(), &zone);
                prop_assert_eq!(seen, opening.open, "{} at {} seconds before the announced change", schedule, horizon - second);
            }
            if let Some(change) = opening.changes {
                prop_assert_ne!(schedule.is_open(change, &zone), opening.open, "the announced change comes");
            }
        }

        #[test]
        fn no_moment_is_too_early_or_too_late(schedule in any_schedule(), zone in any_zone()) {
            for now in [Timestamp::MIN, Timestamp::MAX, Timestamp::UNIX_EPOCH] {
                schedule.opening(now, &zone);
            }
            schedule.opening(Timestamp::MAX, &tz::TimeZone::fixed(tz::offset(25)));
        }
    }
}
