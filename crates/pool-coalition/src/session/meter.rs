//! When a session's stream runs: a state machine over milliseconds that somebody else measures.

use pool_types::FlowRate;
use thiserror::Error;

/// What a session's stream is bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeterSettings {
    /// The rate while it runs.
    pub rate: FlowRate,
    /// Work that was sold, in milliseconds. Lingering is sold work too.
    pub sold: u64,
    /// How long the stream goes on after the last request, in milliseconds.
    pub linger: u64,
    /// Requests that may run at once.
    pub most_requests: u32,
}

/// A session's meter. Times are milliseconds of any clock that never goes back.
///
/// The stream is on while a request runs and for the linger after the last; the time that it is on is used up. When
/// all of it is used, the session is spent: its requests must be ended, and no other begins.
#[derive(Clone, Debug)]
pub struct Meter {
    settings: MeterSettings,
    running: u32,
    /// Since when the stream has been on.
    on_since: Option<u64>,
    /// Used up before that.
    used: u64,
    /// When lingering ends.
    off_at: Option<u64>,
    ended: Option<Ended>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Set the stream to this rate.
    SetRate(FlowRate),
}

/// Why a session takes no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Ended {
    /// Every second that was paid for is used.
    #[error("the session's time is used up; open another session")]
    Spent,
    /// It is closing, or closed.
    #[error("the session is closed; open another session")]
    Closed,
    /// As many requests run as may.
    #[error("the session already runs as many requests as it may at once; wait for one to end")]
    Busy,
}

impl Meter {
    /// A session that has not begun.
    pub fn new(settings: MeterSettings) -> Self {
        Self { settings, running: 0, on_since: None, used: 0, off_at: None, ended: None }
    }

    /// A request begins.
    pub fn begin(&mut self, now: u64) -> Result<Change, Ended> {
        self.tick(now);
        if let Some(ended) = self.ended {
            return Err(ended);
        }
        if self.running >= self.settings.most_requests {
            return Err(Ended::Busy);
        }
        self.running += 1;
        self.off_at = None;
        Ok(match self.on_since {
            Some(_) => Change::None,
            None => {
                self.on_since = Some(now);
                Change::SetRate(self.settings.rate)
            }
        })
    }

    /// A request has ended, however it did.
    pub fn end(&mut self, now: u64) -> Change {
        let change = self.tick(now);
        self.running = self.running.saturating_sub(1);
        if self.running == 0 && self.on_since.is_some() {
            self.off_at = Some(now.saturating_add(self.settings.linger));
            if self.settings.linger == 0 {
                return self.turn_off(now);
            }
        }
        change
    }

    /// Time has passed.
    pub fn tick(&mut self, now: u64) -> Change {
        if self.on_since.is_some() && self.spent_at().is_some_and(|at| now >= at) {
            self.ended.get_or_insert(Ended::Spent);
            return self.turn_off(now);
        }
        match self.off_at {
            Some(at) if now >= at => self.turn_off(at),
            _ => Change::None,
        }
    }

    /// The session is to take no more requests. Closing the vault stops its stream, so nothing is to be set.
    pub fn close(&mut self, now: u64) {
        self.turn_off(now);
        self.ended = Some(Ended::Closed);
    }

    /// When [`Meter::tick`] is due.
    pub fn wake_at(&self) -> Option<u64> {
        match (self.off_at, self.spent_at()) {
            (Some(off), Some(spent)) => Some(off.min(spent)),
            (off, spent) => off.or(spent),
        }
    }

    /// Milliseconds of work that are left.
    pub fn left(&self, now: u64) -> u64 {
        let running = self.on_since.map_or(0, |since| now.saturating_sub(since));
        self.settings.sold.saturating_sub(self.used).saturating_sub(running)
    }

    /// Whether the stream is to be on.
    pub fn is_on(&self) -> bool {
        self.on_since.is_some()
    }

    /// Requests that run.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Why it takes no more requests.
    pub fn ended(&self) -> Option<Ended> {
        self.ended
    }

    fn spent_at(&self) -> Option<u64> {
        let since = self.on_since?;
        Some(since.saturating_add(self.settings.sold.saturating_sub(self.used)))
    }

    fn turn_off(&mut self, now: u64) -> Change {
        self.off_at = None;
        match self.on_since.take() {
            None => Change::None,
            Some(since) => {
                self.used = self.used.saturating_add(now.saturating_sub(since)).min(self.settings.sold);
                if self.used == self.settings.sold {
                    self.ended.get_or_insert(Ended::Spent);
                }
                Change::SetRate(FlowRate::ZERO)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: FlowRate = FlowRate::from_units_per_second(100);
    const ON: Change = Change::SetRate(RATE);
    const OFF: Change = Change::SetRate(FlowRate::ZERO);

    fn meter(sold: u64, linger: u64) -> Meter {
        Meter::new(MeterSettings { rate: RATE, sold, linger, most_requests: 4 })
    }

    #[test]
    fn a_conversation_streams_once_and_stops_a_linger_after_its_last_answer() {
        let mut meter = meter(60_000, 5_000);
        assert_eq!(meter.begin(1_000), Ok(ON));
        assert_eq!(meter.begin(2_000), Ok(Change::None), "the stream runs already");
        assert_eq!(meter.end(3_000), Change::None);
        assert_eq!(meter.end(4_000), Change::None, "it lingers");
        assert_eq!(meter.wake_at(), Some(9_000));
        assert_eq!(meter.begin(8_000), Ok(Change::None), "the next question comes within the linger");
        assert_eq!(meter.tick(9_000), Change::None);
        assert_eq!(meter.end(10_000), Change::None);
        assert_eq!(meter.tick(14_999), Change::None);
        assert_eq!(meter.tick(15_000), OFF);
        assert_eq!(meter.left(20_000), 60_000 - 14_000, "nothing is used while the stream stands still");
        assert_eq!(meter.wake_at(), None);
    }

    #[test]
    fn without_linger_the_stream_ends_with_the_request() {
        let mut meter = meter(60_000, 0);
        assert_eq!(meter.begin(0), Ok(ON));
        assert_eq!(meter.end(700), OFF);
        assert_eq!(meter.left(700), 59_300);
    }

    #[test]
    fn when_the_time_is_used_up_the_session_is_spent_whatever_still_runs() {
        let mut meter = meter(10_000, 5_000);
        assert_eq!(meter.begin(0), Ok(ON));
        assert_eq!(meter.wake_at(), Some(10_000));
        assert_eq!(meter.tick(10_000), OFF);
        assert_eq!((meter.ended(), meter.running()), (Some(Ended::Spent), 1), "its request is to be ended");
        assert_eq!(meter.begin(10_001), Err(Ended::Spent));
        assert_eq!(meter.end(10_002), Change::None, "the stream was stopped before");
    }

    #[test]
    fn a_late_tick_uses_no_more_than_was_lingered() {
        let mut meter = meter(60_000, 5_000);
        meter.begin(0).unwrap();
        meter.end(1_000);
        assert_eq!(meter.tick(30_000), OFF, "the timer came late");
        assert_eq!(meter.left(30_000), 54_000, "the payer is not charged for our delay");
    }

    #[test]
    fn a_closed_session_takes_nothing_and_only_so_many_requests_run_at_once() {
        let mut meter = meter(60_000, 5_000);
        for _ in 0..4 {
            meter.begin(0).unwrap();
        }
        assert_eq!(meter.begin(0), Err(Ended::Busy));
        meter.close(1_000);
        assert_eq!(meter.begin(1_000), Err(Ended::Closed));
        assert_eq!((meter.wake_at(), meter.is_on()), (None, false));
    }

    proptest! {
        /// Random conversations: on and off alternate, the stream is on exactly while a request runs or lingers, and
        /// never longer in all than was sold.
        #[test]
        fn the_stream_is_as_long_as_the_work(
            sold in 1_u64..20_000,
            linger in 0_u64..3_000,
            steps in proptest::collection::vec((0_u8..3, 0_u64..2_000), 1..60),
        ) {
            let mut meter = meter(sold, linger);
            let (mut now, mut on, mut on_for, mut since) = (0, false, 0, 0);
            let mut apply = |change: Change, at: u64| match change {
                Change::None => Ok(()),
                Change::SetRate(rate) => {
                    let turns_on = rate != FlowRate::ZERO;
                    prop_assert_ne!(turns_on, on, "a rate is set only when it changes");
                    if turns_on { since = at } else { on_for += at - since }
                    on = turns_on;
                    Ok(())
                }
            };
            for (step, wait) in steps {
                let until = now + wait;
                while let Some(at) = meter.wake_at().filter(|at| *at <= until) {
                    now = now.max(at);
                    let change = meter.tick(now);
                    prop_assert_ne!(change, Change::None, "it asked to be woken for something");
                    apply(change, now)?;
                }
                now = until;
                match step {
                    0 => if let Ok(change) = meter.begin(now) { apply(change, now)? },
                    1 if meter.running() > 0 => apply(meter.end(now), now)?,
                    _ => apply(meter.tick(now), now)?,
                }
                if meter.running() > 0 && meter.ended().is_none() {
                    prop_assert!(meter.is_on(), "a request runs unpaid");
                }
            }
            meter.close(now);
            prop_assert!(on_for <= sold, "{} ms streamed of {} sold", on_for, sold);
        }
    }
}
