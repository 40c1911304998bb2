//! The part of C's `strftime` that templates use, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const LONGEST: usize = 4096;

struct Moment {
    year: i64,
    /// From 0.
    month: usize,
    /// From 1.
    day: i64,
    /// From 1.
    day_of_year: i64,
    /// From 0, Monday.
    weekday: usize,
    second_of_day: i64,
    seconds: i64,
}

/// Unknown directives are written as they stand.
pub(super) fn format(now: SystemTime, format: &str) -> String {
    let moment = Moment::new(now);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if out.len() > LONGEST {
            break;
        }
        if character != '%' {
            out.push(character);
            continue;
        }
        match rest.next() {
            Some('-') => match rest.next() {
                Some(directive) => {
                    let padded = moment.directive(directive).unwrap_or_default();
                    let bare = padded.trim_start_matches(['0', ' ']);
                    out.push_str(if bare.is_empty() { "0" } else { bare });
                }
                None => out.push_str("%-"),
            },
            Some('%') => out.push('%'),
            Some(directive) => match moment.directive(directive) {
                Some(text) => out.push_str(&text),
                None => {
                    out.push('%');
                    out.push(directive);
                }
            },
            None => out.push('%'),
        }
    }
    out
}

impl Moment {
    /// Days to a civil date: Howard Hinnant, "chrono-compatible low-level date algorithms".
    fn new(now: SystemTime) -> Self {
        let seconds = match now.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX / 2),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX / 2),
        };
        let days = seconds.div_euclid(86_400);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let day = day_from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12;
        let year = year_of_era + era * 400 + i64::from(month < 2);
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let before_march = day_from_march + 1 + 59 + i64::from(leap);
        let day_of_year = if month < 2 { day_from_march - 305 } else { before_march };
        Self {
            year,
            month: month as usize,
            day,
            day_of_year,
            weekday: (days + 3).rem_euclid(7) as usize,
            second_of_day: seconds.rem_euclid(86_400),
            seconds,
        }
    }

    fn directive(&self, directive: char) -> Option<String> {
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let (day_name, month_name) = (DAYS[self.weekday], MONTHS[self.month]);
        Some(match directive {
            'Y' => format!("{:04}", self.year),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month + 1),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'A' => day_name.to_owned(),
            'a' => day_name[..3].to_owned(),
            'u' => (self.weekday + 1).to_string(),
            'w' => ((self.weekday + 1) % 7).to_string(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{:04}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'R' => format!("{hour:02}:{minute:02}"),
            'D' => format!("{:02}/{:02}/{:02}", self.month + 1, self.day, self.year.rem_euclid(100)),
            's' => self.seconds.to_string(),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64, directives: &str) -> String {
        format(UNIX_EPOCH + Duration::from_secs(seconds), directives)
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(at(0, "%A %d %B %Y %j %H:%M:%S %p"), "Thursday 01 January 1970 001 00:00:00 AM");
        assert_eq!(at(951_782_400, "%a %-d %b %Y %j"), "Tue 29 Feb 2000 060", "a leap day of a leap century");
        assert_eq!(at(1_795_219_199, "%F %T %I %p %j"), "2026-11-20 23:59:59 11 PM 324");
        assert_eq!(at(1_767_139_200, "%d %b %Y %j"), "31 Dec 2025 365");
        assert_eq!(at(1_735_603_200, "%j %e"), "366 31", "31 December of a leap year");
        assert_eq!(at(0, "100%% %Q %"), "100% %Q %");
    }
}
