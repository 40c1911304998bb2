//! GNOME: the compositor's idle counter, and its word when somebody comes back.

use std::{
    thread,
    time::{Duration, Instant},
};

use pool_types::Reading;

use super::bus::{Bus, BusError, Heard, Place};
use crate::{
    sensor::{InputSource, LastInput, Sensor, reading},
    surroundings::Surroundings,
};

const MONITOR: Place = Place {
    service: "org.gnome.Mutter.IdleMonitor",
    path: "/org/gnome/Mutter/IdleMonitor/Core",
    interface: "org.gnome.Mutter.IdleMonitor",
};

const RESOLUTION: Duration = Duration::from_millis(1);

/// Nothing was touched for this long: nobody is typing, and the compositor is asked to say when somebody begins.
const QUIET: Duration = Duration::from_secs(1);

/// While somebody types there is nothing to be quick about.
const WHILE_ACTIVE: Duration = Duration::from_millis(500);

/// While the compositor watches for us, it is asked only to see that it still lives.
const WHILE_WATCHED: Duration = Duration::from_secs(5);

/// Where it cannot watch for us.
const WHILE_QUIET: Duration = Duration::from_millis(100);

/// Asks `org.gnome.Mutter.IdleMonitor`. While nobody is there it is not polled: `AddUserActiveWatch` makes the
/// compositor send a signal at the first input.
pub(super) struct MutterInput {
    bus: Bus,
    last: Option<LastInput>,
    ask_at: Instant,
    watch: Watch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// Not asked for, or no longer known to a compositor that was started again.
    Off,
    /// The compositor will say when somebody comes back.
    On,
    /// This service has no such thing.
    Unsupported,
}

impl MutterInput {
    pub(super) fn open(surroundings: &Surroundings) -> Result<Self, BusError> {
        let bus = Bus::session(surroundings);
        let mut input = Self { bus, last: None, ask_at: Instant::now(), watch: Watch::Off };
        input.refresh()?;
        Ok(input)
    }

    fn ask(&mut self) -> Result<LastInput, BusError> {
        let asked = Instant::now();
        let idle: u64 = self.bus.call(MONITOR, "GetIdletime", &())?;
        let last = LastInput::from_idle_time(asked, Instant::now(), Duration::from_millis(idle), RESOLUTION);
        self.last = Some(last);
        Ok(last)
    }

    fn refresh(&mut self) -> Result<LastInput, BusError> {
        let mut last = self.ask()?;
        if !self.bus.listens() {
            self.bus.listen(MONITOR, "WatchFired", None)?;
            self.watch = Watch::Off;
        }
        let is_quiet = |last: &LastInput| last.idle_for(Instant::now()) >= QUIET;
        if !is_quiet(&last) && self.watch == Watch::On {
            // It has fired; if its signal was not heard, it is gone all the same.
            self.watch = Watch::Off;
        }
        if is_quiet(&last) && self.watch == Watch::Off {
            match self.bus.call::<_, u32>(MONITOR, "AddUserActiveWatch", &()) {
                Ok(_) => {
                    self.watch = Watch::On;
                    // Somebody may have come between the question and the watch.
                    last = self.ask()?;
                }
                Err(BusError::Refused { .. }) => self.watch = Watch::Unsupported,
                Err(error) => return Err(error),
            }
        }
        let pause = match (is_quiet(&last), self.watch) {
            (false, _) => WHILE_ACTIVE,
            (true, Watch::On) => WHILE_WATCHED,
            (true, _) => WHILE_QUIET,
        };
        self.ask_at = Instant::now() + pause;
        Ok(last)
    }
}

impl Sensor<LastInput> for MutterInput {
    fn read(&mut self) -> Reading<LastInput> {
        if let Some(last) = self.last.filter(|_| Instant::now() < self.ask_at) {
            return Reading::Known(last);
        }
        reading(self.refresh())
    }
}

impl InputSource for MutterInput {
    fn wait(&mut self, at_most: Duration) {
        let at_most = at_most.min(self.ask_at.saturating_duration_since(Instant::now()));
        if self.watch == Watch::Unsupported {
            thread::sleep(at_most);
        } else if self.bus.wait(at_most) != Heard::Nothing {
            // A watch fires once, and ends with the compositor.
            self.watch = Watch::Off;
            self.ask_at = Instant::now();
        }
    }
}
