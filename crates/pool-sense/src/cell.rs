//! The last reading of a sensor, kept for whoever asks next.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use pool_types::Reading;

/// A reading and how old it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sensed<T> {
    /// What the sensor said.
    pub reading: Reading<T>,
    /// How long ago; `None` if it was never read.
    pub age: Option<Duration>,
}

impl<T> Sensed<T> {
    /// A reading of this moment.
    pub fn now(reading: Reading<T>) -> Self {
        Self { reading, age: Some(Duration::ZERO) }
    }

    /// Another value from this one.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Sensed<U> {
        Sensed { reading: self.reading.map(change), age: self.age }
    }

    /// A sensor that was never read.
    pub fn never() -> Self {
        Self { reading: Reading::unavailable("it has not been read yet"), age: None }
    }
}

/// Holds one reading; written by the sensor's thread, read by anybody, and never locked for longer than a copy takes.
pub(crate) struct Cell<T> {
    last: Mutex<Option<(Reading<T>, Instant)>>,
    /// A value older than this is not told any more: the sensor hangs, and what it said may be wrong by now.
    stale_after: Duration,
}

impl<T: Clone> Cell<T> {
    pub(crate) fn new(stale_after: Duration) -> Self {
        Self { last: Mutex::new(None), stale_after }
    }

    pub(crate) fn set(&self, reading: Reading<T>, read_at: Instant) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((reading, read_at));
    }

    pub(crate) fn was_read(&self) -> bool {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(crate) fn get(&self, now: Instant) -> Sensed<T> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((reading, read_at)) = last else { return Sensed::never() };
        let age = now.saturating_duration_since(read_at);
        if reading.known().is_some() && age > self.stale_after {
            let reason = format!("the sensor has not answered for {} s", age.as_secs());
            return Sensed { reading: Reading::Unavailable(reason), age: Some(age) };
        }
        Sensed { reading, age: Some(age) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_value_is_not_told_as_if_it_were_true() {
        let cell = Cell::new(Duration::from_secs(5));
        let start = Instant::now();
        assert_eq!(cell.get(start).age, None, "nothing was read yet");
        cell.set(Reading::Known(7), start);
        let soon = cell.get(start + Duration::from_secs(4));
        assert_eq!((soon.reading, soon.age), (Reading::Known(7), Some(Duration::from_secs(4))), "fresh enough");
        let late = cell.get(start + Duration::from_secs(60));
        let told = late.reading.to_string();
        assert_eq!(
            told, "unavailable, because the sensor has not answered for 60 s",
            "a hanging sensor is not believed"
        );
    }
}
