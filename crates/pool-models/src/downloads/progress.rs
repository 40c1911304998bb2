//! How fast a download is and when it will be done.

use std::time::Duration;

/// After this long a change of speed shows by two thirds.
const MEMORY: Duration = Duration::from_secs(5);

/// A smoothed speed, from a counter that is read now and then.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meter {
    last: u64,
    speed: Option<f64>,
}

impl Meter {
    /// A reading `elapsed` after the one before.
    pub(crate) fn read(&mut self, counter: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let come = counter.saturating_sub(self.last);
        self.last = counter;
        if seconds <= 0.0 {
            return;
        }
        let now = come as f64 / seconds;
        let weight = 1.0 - (-seconds / MEMORY.as_secs_f64()).exp();
        self.speed = Some(self.speed.map_or(now, |speed| speed + weight * (now - speed)));
    }

    /// Forgets the speed, as after a pause.
    pub(crate) fn rest(&mut self, counter: u64) {
        *self = Self { last: counter, speed: None };
    }

    /// Bytes a second.
    pub(crate) fn speed(&self) -> u64 {
        self.speed.map_or(0, |speed| speed as u64)
    }

    /// How long `left` bytes will take; `None` where nothing moves.
    pub(crate) fn left(&self, left: u64) -> Option<Duration> {
        let speed = self.speed.filter(|speed| *speed >= 1.0)?;
        Duration::try_from_secs_f64((left as f64 / speed).ceil()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_smooth_and_the_time_left_follows_from_it() {
        let mut meter = Meter::default();
        assert_eq!((meter.speed(), meter.left(100)), (0, None), "nothing is known yet");
        let second = Duration::from_secs(1);
        let mut counter = 0;
        for _ in 0..20 {
            counter += 1_000_000;
            meter.read(counter, second);
        }
        assert_eq!(meter.speed(), 1_000_000);
        assert_eq!(meter.left(10_000_000), Some(Duration::from_secs(10)));
        meter.read(counter, second);
        let dipped = meter.speed();
        assert!((700_000..900_000).contains(&dipped), "one second without bytes is no standstill, {dipped}");
        for _ in 0..60 {
            meter.read(counter, second);
        }
        assert!(meter.speed() < 10, "a minute without bytes is one");
        meter.rest(counter);
        assert_eq!(meter.left(1), None);
    }
}
