//! Energy over time: from a counter where there is one, else from power that is looked at again and again.

use std::{
    fmt,
    time::{Duration, Instant},
};

use pool_types::Energy;

/// What a meter has measured since it began. All three only grow; the difference of two is what was measured between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeteredEnergy {
    /// Energy that was used while it was measured.
    pub used: Energy,
    /// The time over which it was.
    pub measured: Duration,
    /// The time over which nothing is known, up to the last reading: nothing is made up for it.
    pub not_measured: Duration,
}

impl MeteredEnergy {
    /// What came after `earlier`, an older reading of the same meter.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            used: Energy(self.used.0.saturating_sub(earlier.used.0)),
            measured: self.measured.saturating_sub(earlier.measured),
            not_measured: self.not_measured.saturating_sub(earlier.not_measured),
        }
    }

    /// What two devices used side by side: measured is the time over which both were.
    pub fn together(&self, other: &Self) -> Self {
        Self {
            used: self.used.plus(other.used),
            measured: self.measured.min(other.measured),
            not_measured: self.not_measured.max(other.not_measured),
        }
    }
}

impl fmt::Display for MeteredEnergy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} in {} s", self.used, self.measured.as_secs())?;
        if self.not_measured.is_zero() {
            return Ok(());
        }
        write!(formatter, ", and {} s that were not measured", self.not_measured.as_secs())
    }
}

/// What a device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnergyReading {
    /// A counter that only grows until its driver is loaded again.
    Counter(Energy),
    /// A counter that begins again at zero when it reaches `range`.
    Wrapping {
        /// The counter.
        counter: Energy,
        /// Where it wraps.
        range: Energy,
    },
    /// The power at this moment.
    Power {
        /// In thousandths of a watt.
        milliwatts: u32,
    },
}

/// No device draws more. A counter that grew faster was set to another value, or wrapped more than once.
const MOST_MILLIWATTS: u128 = 2_000_000;

/// Counts a device's energy from its readings.
///
/// A counter counts while nobody looks, so the time between two readings of it is measured however long it is. Power
/// is taken to change evenly between two looks, unless they lie further apart than a given time. What lies between a
/// reading and one that does not continue it (the driver was loaded again, a counter after power) is not measured, and
/// takes nothing away from what was.
///
/// ```
/// use std::time::{Duration, Instant};
/// use pool_sense::{EnergyMeter, EnergyReading};
/// use pool_types::Energy;
///
/// let (start, second) = (Instant::now(), Duration::from_secs(1));
/// let mut meter = EnergyMeter::new(10 * second);
/// meter.count(start, EnergyReading::Power { milliwatts: 100_000 });
/// meter.count(start + 2 * second, EnergyReading::Power { milliwatts: 300_000 });
/// assert_eq!(meter.total().used, Energy(400_000), "two seconds at 200 W on average");
/// assert_eq!(meter.total().measured, 2 * second);
/// ```
#[derive(Clone, Debug)]
pub struct EnergyMeter {
    longest_gap: Duration,
    last: Option<(Instant, EnergyReading)>,
    total: MeteredEnergy,
    /// Twice the energy of power readings, in milliwatts times nanoseconds: nothing is lost by rounding step by step.
    doubled_power: u128,
    counted: u64,
}

impl EnergyMeter {
    /// Power readings that lie further apart than `longest_gap` say nothing of the time between.
    pub fn new(longest_gap: Duration) -> Self {
        Self { longest_gap, last: None, total: MeteredEnergy::default(), doubled_power: 0, counted: 0 }
    }

    /// What was measured up to the last reading.
    pub fn total(&self) -> MeteredEnergy {
        self.total
    }

    /// The device said `reading` at `at`. Nothing is counted before the second one.
    pub fn count(&mut self, at: Instant, reading: EnergyReading) {
        let Some((before_at, before)) = self.last.replace((at, reading)) else { return };
        let step = at.saturating_duration_since(before_at);
        if self.add(before, reading, step) {
            self.total.measured += step;
        } else {
            self.total.not_measured += step;
        }
        let from_power = u64::try_from(self.doubled_power / 2_000_000_000).unwrap_or(u64::MAX);
        self.total.used = Energy(self.counted.saturating_add(from_power));
    }

    /// Adds what was used between two readings; says whether that is known.
    fn add(&mut self, before: EnergyReading, now: EnergyReading, step: Duration) -> bool {
        match (before, now) {
            (EnergyReading::Counter(before), EnergyReading::Counter(now)) if now >= before => {
                self.counted = self.counted.saturating_add(now.0 - before.0);
                true
            }
            (EnergyReading::Wrapping { counter: before, .. }, EnergyReading::Wrapping { counter: now, range }) => {
                let most = step.as_nanos() * MOST_MILLIWATTS / 1_000_000_000;
                let used = if now >= before { now.0 - before.0 } else { (range.0 + now.0).saturating_sub(before.0) };
                let is_believable = most < range.0.into() && u128::from(used) <= most;
                if is_believable {
                    self.counted = self.counted.saturating_add(used);
                }
                is_believable
            }
            (EnergyReading::Power { milliwatts: before }, EnergyReading::Power { milliwatts: now })
                if step <= self.longest_gap =>
            {
                self.doubled_power += (u128::from(before) + u128::from(now)) * step.as_nanos();
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What a meter says after readings at these seconds.
    fn metered(readings: &[(u64, EnergyReading)]) -> MeteredEnergy {
        let (start, mut meter) = (Instant::now(), EnergyMeter::new(10 * SECOND));
        readings.iter().for_each(|(second, reading)| meter.count(start + *second as u32 * SECOND, *reading));
        meter.total()
    }

    fn counter(joules: u64) -> EnergyReading {
        EnergyReading::Counter(Energy(joules * 1000))
    }

    fn power(watts: u32) -> EnergyReading {
        EnergyReading::Power { milliwatts: watts * 1000 }
    }

    fn energy(joules: u64, measured: u32, not_measured: u32) -> MeteredEnergy {
        MeteredEnergy { used: Energy(joules * 1000), measured: measured * SECOND, not_measured: not_measured * SECOND }
    }

    #[test]
    fn a_counter_counts_while_nobody_looks() {
        assert_eq!(metered(&[(0, counter(91_000))]), energy(0, 0, 0), "what was used before is not ours to count");
        let night = [(0, counter(91_000)), (2, counter(91_600)), (3_600, counter(1_091_600))];
        assert_eq!(metered(&night), energy(1_000_600, 3_600, 0), "an hour without a look is measured all the same");
    }

    #[test]
    fn a_driver_that_is_loaded_again_takes_nothing_away() {
        let reloaded = [(0, counter(91_000)), (10, counter(94_000)), (20, counter(50)), (30, counter(3_050))];
        let total = metered(&reloaded);
        assert_eq!(total, energy(6_000, 20, 10), "3 kJ before, 3 kJ after, and ten seconds that nobody knows");
        let earlier = metered(&reloaded[..2]);
        assert_eq!(total.since(&earlier), energy(3_000, 10, 10), "of a shift that began at second ten");
    }

    #[test]
    fn power_is_summed_between_looks_and_never_across_a_long_gap() {
        let steady = [(0, power(200)), (2, power(200)), (4, power(100))];
        assert_eq!(metered(&steady), energy(700, 4, 0), "400 J, then 300 J on the way down");
        let gap = [(0, power(200)), (2, power(200)), (62, power(200)), (64, power(200))];
        assert_eq!(metered(&gap), energy(800, 4, 60), "for the minute that nobody looked nothing is made up");
        let just = [(0, power(100)), (10, power(100))];
        assert_eq!(metered(&just), energy(1_000, 10, 0), "ten seconds are the longest gap");
    }

    #[test]
    fn small_powers_do_not_round_to_nothing() {
        let (start, mut meter) = (Instant::now(), EnergyMeter::new(SECOND));
        // A third of a watt, looked at a thousand times a second.
        for step in 0..=3_000 {
            meter.count(start + step * Duration::from_millis(1), EnergyReading::Power { milliwatts: 333 });
        }
        assert_eq!(meter.total().used, Energy(999));
    }

    #[test]
    fn a_counter_that_follows_power_begins_anew() {
        let changed = [(0, power(100)), (2, power(100)), (4, counter(5_000)), (6, counter(5_300)), (8, power(100))];
        assert_eq!(metered(&changed), energy(500, 4, 4), "the steps between two kinds of reading are nobody's");
    }

    #[test]
    fn a_processors_counter_wraps_and_is_not_believed_when_it_jumps() {
        let range = Energy(262_144_000);
        let at = |joules: u64| EnergyReading::Wrapping { counter: Energy(joules * 1000), range };
        assert_eq!(metered(&[(0, at(262_000)), (5, at(356))]), energy(500, 5, 0), "it wrapped: 144 J, then 356 J");
        let asleep = [(0, at(9_000)), (5, at(9_500)), (10, at(20)), (15, at(520))];
        assert_eq!(metered(&asleep), energy(1_000, 10, 5), "nothing draws 50 kW: it was set back, as after a sleep");
        let long = [(0, at(1_000)), (3_600, at(2_000))];
        assert_eq!(metered(&long), energy(0, 0, 3_600), "in an hour it may have wrapped, who knows how often");
    }

    #[test]
    fn a_clock_that_stands_still_measures_nothing() {
        assert_eq!(metered(&[(5, power(100)), (5, power(100))]), energy(0, 0, 0));
        assert_eq!(metered(&[(5, power(100)), (4, power(100))]), energy(0, 0, 0), "nor does one that goes back");
    }

    #[test]
    fn two_devices_are_measured_while_both_are() {
        let together = energy(500, 10, 0).together(&energy(300, 8, 2));
        assert_eq!(together, energy(800, 8, 2));
        assert_eq!(together.to_string(), "0.000 kWh in 8 s, and 2 s that were not measured");
        assert_eq!(energy(1_800_000, 3_600, 0).to_string(), "0.500 kWh in 3600 s", "half a kilowatt for an hour");
    }
}
