//! What a sensor is, and when somebody last touched the keyboard or the mouse.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use pool_types::Reading;

/// Something that can be asked about one thing.
///
/// A sensor never guesses: where it cannot tell, it says why. It may block its caller for as long as its documentation
/// says, so [`Senses`](crate::Senses) asks each on a thread of its own; call none from inside an async runtime.
pub trait Sensor<T>: Send {
    /// What it says now.
    fn read(&mut self) -> Reading<T>;
}

/// Something that knows when the owner last touched the keyboard or the mouse.
pub trait InputSource: Sensor<LastInput> {
    /// Returns when another reading may say more than the last one, or after `at_most`.
    fn wait(&mut self, at_most: Duration);
}

/// When the last input was, as exactly as a source can say: between two moments.
///
/// The two bounds tell a new input from one input that was measured twice: the time a question takes, and the rounding
/// of an answer, never look like somebody at the keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastInput {
    observed: Instant,
    idle_at_least: Duration,
    idle_at_most: Duration,
}

impl LastInput {
    /// From an answer that says how long nothing was touched: asked at `asked`, received at `answered`, counted in
    /// steps of `resolution`.
    pub fn from_idle_time(asked: Instant, answered: Instant, idle: Duration, resolution: Duration) -> Self {
        Self {
            observed: answered,
            idle_at_least: idle.saturating_sub(resolution),
            idle_at_most: idle + resolution + answered.saturating_duration_since(asked),
        }
    }

    /// An input between `idle_at_most` and `idle_at_least` before `observed`.
    pub fn between(observed: Instant, idle_at_least: Duration, idle_at_most: Duration) -> Self {
        Self { observed, idle_at_least, idle_at_most: idle_at_most.max(idle_at_least) }
    }

    /// For how long nothing has been touched at `now`, as far as is known: never too long.
    pub fn idle_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.observed) + self.idle_at_least
    }

    /// When this was observed.
    pub fn observed(&self) -> Instant {
        self.observed
    }

    /// Whether something was certainly touched after `earlier` was observed to be the last input.
    pub fn is_news_after(&self, earlier: &Self) -> bool {
        let passed = self.observed.checked_duration_since(earlier.observed);
        passed.is_some_and(|passed| passed + earlier.idle_at_least > self.idle_at_most)
    }
}

/// An error as the end of "unavailable, because ...": what went wrong and what was behind it.
pub(crate) fn because(error: &dyn Error) -> String {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Many libraries repeat the cause in their own text.
        if !reason.contains(&cause_text) {
            reason = format!("{reason}: {cause_text}");
        }
        source = cause.source();
    }
    reason
}

/// A result as a reading.
#[cfg(target_os = "linux")]
pub(crate) fn reading<T, E: Error>(result: Result<T, E>) -> Reading<T> {
    match result {
        Ok(value) => Reading::Known(value),
        Err(error) => Reading::Unavailable(because(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn one_input_measured_twice_is_no_news() {
        let start = Instant::now();
        let first = LastInput::from_idle_time(start, start + MILLISECOND, Duration::from_secs(10), MILLISECOND);
        // The second answer lay 40 ms in a busy machine's queue; the counter was read at its beginning.
        let asked = start + Duration::from_millis(100);
        let late = asked + Duration::from_millis(40);
        let second = LastInput::from_idle_time(asked, late, Duration::from_millis(10_100), MILLISECOND);
        assert!(!second.is_news_after(&first), "a slow answer is not somebody at the keyboard");
        assert!(!first.is_news_after(&second), "nor is an older answer");
    }

    #[test]
    fn a_key_press_between_two_answers_is_news() {
        let start = Instant::now();
        let first = LastInput::from_idle_time(start, start, Duration::from_secs(10), MILLISECOND);
        let asked = start + Duration::from_millis(100);
        let second = LastInput::from_idle_time(asked, asked, Duration::from_millis(30), MILLISECOND);
        assert!(second.is_news_after(&first), "30 ms ago is after 10 s ago");
        assert_eq!(second.idle_for(asked + Duration::from_secs(1)), Duration::from_millis(1029), "it grows with time");
    }

    #[test]
    fn an_active_seat_without_a_counter_is_no_news_every_time() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let seen = |after: u64| LastInput::between(start + Duration::from_millis(after), Duration::ZERO, second);
        assert!(!seen(200).is_news_after(&seen(0)), "within the last second is all that is known both times");
    }

    #[test]
    fn reasons_tell_the_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("the door is shut")]
        struct Shut(#[source] std::io::Error);
        let error = Shut(std::io::Error::other("the key is lost"));
        assert_eq!(because(&error), "the door is shut: the key is lost");
    }
}
