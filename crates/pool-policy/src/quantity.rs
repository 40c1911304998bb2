use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Whole seconds, spoken in words: `5 minutes`, `1 hour 30 minutes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub u32);

impl Seconds {
    /// So many minutes.
    pub const fn from_minutes(minutes: u32) -> Self {
        Self(minutes.saturating_mul(60))
    }

    /// So many hours.
    pub const fn from_hours(hours: u32) -> Self {
        Self(hours.saturating_mul(3600))
    }

    /// As the standard library's duration.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }

    /// The whole seconds that cover `duration`.
    pub fn covering(duration: Duration) -> Self {
        let whole = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0));
        Self(u32::try_from(whole).unwrap_or(u32::MAX))
    }

    /// For sentences with "about": below a minute and a half to 10 seconds, below an hour and a half to a minute,
    /// above to an hour.
    pub(crate) fn rounded(self) -> Self {
        let to = |unit: u32| Self(self.0.saturating_add(unit / 2) / unit * unit);
        match self.0 {
            0..10 => self,
            10..55 => to(10),
            55..5_400 => to(60),
            _ => to(3_600),
        }
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [(self.0 / 3600, "hour"), (self.0 / 60 % 60, "minute"), (self.0 % 60, "second")];
        let spoken: Vec<String> = (parts.iter())
            .filter(|(count, unit)| *count > 0 || (self.0 == 0 && *unit == "second"))
            .map(|(count, unit)| format!("{count} {unit}{}", if *count == 1 { "" } else { "s" }))
            .collect();
        formatter.pad(&spoken.join(" "))
    }
}

/// A share of a hundred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Percent(pub u8);

impl fmt::Display for Percent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} %", self.0)
    }
}

/// Degrees Celsius.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Celsius(pub i16);

impl fmt::Display for Celsius {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} °C", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_spoken_as_people_speak() {
        let spoken = [0, 1, 59, 60, 90, 300, 3600, 5400, 7322].map(|n| Seconds(n).to_string());
        let expected = [
            "0 seconds",
            "1 second",
            "59 seconds",
            "1 minute",
            "1 minute 30 seconds",
            "5 minutes",
            "1 hour",
            "1 hour 30 minutes",
            "2 hours 2 minutes 2 seconds",
        ];
        assert_eq!(spoken, expected);
        let about = [4, 12, 37, 54, 58, 70, 310, 3_500, 6_000, u32::MAX].map(|n| Seconds(n).rounded().0);
        assert_eq!(about[..9], [4, 10, 40, 50, 60, 60, 300, 3_480, 7_200], "about so many, in one unit");
        assert!(about[9] > 4_000_000_000, "the largest number does not wrap around");
    }

    #[test]
    fn a_part_of_a_second_still_to_go_is_a_second_on_the_countdown() {
        assert_eq!(Seconds::covering(Duration::from_millis(9_001)), Seconds(10));
        assert_eq!(Seconds::covering(Duration::from_secs(9)), Seconds(9));
        assert_eq!(Seconds::covering(Duration::MAX), Seconds(u32::MAX));
    }
}
