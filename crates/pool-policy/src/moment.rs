use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One instant on two clocks.
///
/// The *wall* clock is what the owner reads; schedules and the ends of pauses follow it, and it may jump. The
/// *steady* clock only says how much time has passed; every "for 5 seconds" follows it, so that a jump of the wall clock
/// can neither start nor stop anything that waits for time to pass.
///
/// The steady clock may begin anywhere (the start of the process or of the machine) and begin anew after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The time of day, as an instant.
    pub wall: Timestamp,
    /// A clock that is never set.
    pub steady: Duration,
}

impl Moment {
    /// Time between two looks counts as at most this much: what nobody saw in between is not known to have lasted.
    /// So a suspended machine cannot wake up to "the GPU has been quiet for 8 hours".
    pub const LONGEST_STEP: Duration = Duration::from_secs(5);

    /// How much time has passed since `before`, never more than really has: nothing when the steady clock began anew.
    pub(crate) fn elapsed_since(self, before: Option<Moment>) -> Duration {
        let passed = before.map(|before| self.steady.saturating_sub(before.steady)).unwrap_or_default();
        passed.min(Self::LONGEST_STEP)
    }

    /// The wall clock after `delay`, if nobody sets it.
    pub(crate) fn after(self, delay: Duration) -> Timestamp {
        self.wall.saturating_add(delay).unwrap_or(Timestamp::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elapsed_time_is_never_overstated() {
        let at = |seconds| Moment { wall: Timestamp::UNIX_EPOCH, steady: Duration::from_secs(seconds) };
        assert_eq!(at(7).elapsed_since(None), Duration::ZERO, "nothing is known about the time before the first look");
        assert_eq!(at(7).elapsed_since(Some(at(5))), Duration::from_secs(2));
        assert_eq!(at(30_000).elapsed_since(Some(at(5))), Moment::LONGEST_STEP, "a suspended machine saw nothing");
        assert_eq!(at(1).elapsed_since(Some(at(5))), Duration::ZERO, "the machine restarted");
        assert_eq!(at(1).after(Duration::MAX), Timestamp::MAX, "the end of time does not overflow");
    }
}
