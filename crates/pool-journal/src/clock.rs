//! Time, passed in: the journal never asks the machine itself.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// An instant in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This instant and `duration` later; stays at the end of time instead of overflowing.
    pub fn after(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long it is from `earlier` to here; zero if `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// As SQLite keeps it.
    pub(crate) fn to_row(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    pub(crate) fn from_row(value: i64) -> Timestamp {
        Timestamp(u64::try_from(value).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A wait that ends at some instant.
pub type Sleep<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Where time comes from.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// What time it is.
    fn now(&self) -> Timestamp;
    /// Ends when [`Clock::now`] is `at` or later. It may end earlier; who must be sure asks `now` again.
    fn sleep_until(&self, at: Timestamp) -> Sleep<'_>;
}

/// The machine's clock. Waits on it need a tokio runtime with its timer.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// The clock may be set, and machines sleep: a long wait looks at it again this often.
    const LOOK_AGAIN: Duration = Duration::from_secs(30);
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    }

    fn sleep_until(&self, at: Timestamp) -> Sleep<'_> {
        Box::pin(async move {
            loop {
                let left = at.since(self.now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(Self::LOOK_AGAIN)).await;
            }
        })
    }
}

/// A clock that stands still until it is set, for simulations and tests. Clones show the same time.
///
/// ```
/// use pool_journal::{Clock, ManualClock, Timestamp};
/// use std::time::Duration;
///
/// let clock = ManualClock::new(Timestamp(1_000));
/// clock.advance(Duration::from_secs(2));
/// assert_eq!(clock.now(), Timestamp(3_000));
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock {
    time: watch::Sender<Timestamp>,
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: Timestamp) -> ManualClock {
        ManualClock { time: watch::Sender::new(now) }
    }

    /// Moves the time forward and wakes whoever waited for an instant on the way.
    pub fn advance(&self, by: Duration) {
        self.time.send_modify(|now| *now = now.after(by));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.time.borrow()
    }

    fn sleep_until(&self, at: Timestamp) -> Sleep<'_> {
        let mut time = self.time.subscribe();
        Box::pin(async move {
            // Fails only when the clock is gone, and then nobody waits on it.
            let _ = time.wait_for(|now| *now >= at).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleeper_on_a_manual_clock_wakes_when_its_time_has_come() {
        let clock = ManualClock::new(Timestamp(0));
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move {
                clock.sleep_until(Timestamp(50)).await;
                clock.now()
            }
        });
        clock.advance(Duration::from_millis(49));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished(), "a millisecond is left");
        clock.advance(Duration::from_millis(1));
        assert_eq!(sleeper.await.unwrap(), Timestamp(50));
    }

    #[test]
    fn time_neither_overflows_nor_runs_backwards() {
        assert_eq!(Timestamp(u64::MAX).after(Duration::from_secs(1)), Timestamp(u64::MAX));
        assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
        assert_eq!(Timestamp::from_row(Timestamp(u64::MAX).to_row()), Timestamp(i64::MAX as u64));
    }
}
