//! The node's time, passed in: so that a day can be lived through in seconds.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use pool_policy::Moment;
use tokio::{sync::watch, time::sleep};

/// How often the machine is looked at, unless something happens before.
const LOOK: Duration = Duration::from_millis(250);

/// What an owner's node takes the time from. How long it took to give the machine back is always measured in real time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System { began: Instant },
    Told(watch::Receiver<Moment>),
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self(Source::System { began: Instant::now() })
    }

    /// A clock that stands still until it is told another time: for simulations.
    pub fn told(moments: watch::Receiver<Moment>) -> Self {
        Self(Source::Told(moments))
    }

    /// What time it is.
    pub fn now(&self) -> Moment {
        match &self.0 {
            Source::System { began } => Moment { wall: Timestamp::now(), steady: began.elapsed() },
            Source::Told(moments) => *moments.borrow(),
        }
    }

    /// Waits until it is time to look at the machine again. Nothing is lost when the future is dropped, except time.
    pub(super) async fn look(&mut self) {
        match &mut self.0 {
            Source::System { .. } => sleep(LOOK).await,
            Source::Told(moments) => {
                if moments.changed().await.is_err() {
                    // Nobody tells the time any more.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// Unix milliseconds of the wall clock; 0 before 1970.
pub(super) fn unix_milliseconds(moment: Moment) -> u64 {
    u64::try_from(moment.wall.as_millisecond()).unwrap_or(0)
}
