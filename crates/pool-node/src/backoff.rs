//! Waiting longer and longer after each failure.

use std::time::Duration;

use rand::Rng;

/// The waits after the first, second, ... failure in a row; the last one repeats.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    steps: &'static [Duration],
    failures: usize,
}

impl Backoff {
    pub(crate) fn new(steps: &'static [Duration]) -> Self {
        Self { steps, failures: 0 }
    }

    /// How long to wait after one more failure.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.steps.get(self.failures).or(self.steps.last()).copied().unwrap_or_default();
        self.failures = (self.failures + 1).min(self.steps.len());
        wait
    }

    /// The same, spread over 50 % to 100 % so that many nodes do not return at one instant.
    pub(crate) fn next_jittered(&mut self) -> Duration {
        self.next().mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Things went well: the next failure is the first again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_at_the_last_and_start_over_after_success() {
        const STEPS: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];
        let mut backoff = Backoff::new(&STEPS);
        let waits: Vec<u64> = (0..4).map(|_| backoff.next().as_millis() as u64).collect();
        assert_eq!(waits, [200, 1000, 1000, 1000]);
        backoff.reset();
        let wait = backoff.next_jittered();
        assert!((100..=200).contains(&(wait.as_millis() as u64)), "{wait:?} is half to all of 200 ms");
    }
}
