//! The login manager's idle hint, the last resort, and never alone.
//!
//! `IdleHint` of systemd-logind is whatever the desktop last said, and many never say anything. So it counts only
//! together with a second witness: the session is locked (`LockedHint`), or its screen saver is active
//! (`org.freedesktop.ScreenSaver` or `org.gnome.ScreenSaver`, `GetActive`). If both say that nobody is there, nobody has
//! been there since `IdleSinceHintMonotonic`. Everything else is unavailable: an unset hint looks the same with somebody
//! at the keyboard and with a desktop that never sets it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use pool_types::Reading;
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;
use zbus::zvariant::OwnedValue;

use super::bus::{Bus, BusError, Heard, Place};
use crate::{
    sensor::{InputSource, LastInput, Sensor, because},
    surroundings::Surroundings,
};

/// `auto` is the session of whoever asks.
const SESSION: Place = Place {
    service: "org.freedesktop.login1",
    path: "/org/freedesktop/login1/session/auto",
    interface: "org.freedesktop.DBus.Properties",
};
const SESSION_INTERFACE: &str = "org.freedesktop.login1.Session";

const SCREEN_SAVERS: [Place; 2] = [
    Place {
        service: "org.freedesktop.ScreenSaver",
        path: "/org/freedesktop/ScreenSaver",
        interface: "org.freedesktop.ScreenSaver",
    },
    Place { service: "org.gnome.ScreenSaver", path: "/org/gnome/ScreenSaver", interface: "org.gnome.ScreenSaver" },
];

/// The login manager says when something changed; this is for screen savers, and to see that it still lives.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// The hint is set by a desktop that itself looks only now and then.
const RESOLUTION: Duration = Duration::from_millis(50);

#[derive(Debug, Error)]
enum LoginError {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("the login manager does not report this session as idle, which says nothing: many desktops never tell it")]
    NoHint,
    #[error(
        "only the login manager's idle hint says that nobody is there, and no locked screen or active screen saver confirms it"
    )]
    NoSecondWitness,
}

/// Asks systemd-logind and a second witness.
pub(super) struct LoginInput {
    system: Bus,
    session: Bus,
    last: Option<LastInput>,
    ask_at: Instant,
}

impl LoginInput {
    pub(super) fn new(surroundings: &Surroundings) -> Self {
        let (system, session) = (Bus::system(surroundings), Bus::session(surroundings));
        Self { system, session, last: None, ask_at: Instant::now() }
    }

    fn ask(&mut self) -> Result<LastInput, LoginError> {
        let asked = Instant::now();
        let said: HashMap<String, OwnedValue> = self.system.call(SESSION, "GetAll", &(SESSION_INTERFACE,))?;
        let is = |name: &str| said.get(name).and_then(|value| value.downcast_ref::<bool>().ok()) == Some(true);
        if !is("IdleHint") {
            return Err(LoginError::NoHint);
        }
        if !is("LockedHint") && !self.screen_saver_is_active() {
            return Err(LoginError::NoSecondWitness);
        }
        let since = said.get("IdleSinceHintMonotonic").and_then(|value| value.downcast_ref::<u64>().ok()).unwrap_or(0);
        let clock = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(clock.tv_sec.unsigned_abs(), clock.tv_nsec.unsigned_abs() as u32);
        // A hint without a time says only that nobody is there now.
        let idle = if since == 0 { Duration::ZERO } else { now.saturating_sub(Duration::from_micros(since)) };
        Ok(LastInput::from_idle_time(asked, Instant::now(), idle, RESOLUTION))
    }

    fn screen_saver_is_active(&mut self) -> bool {
        SCREEN_SAVERS.iter().any(|place| self.session.call::<_, bool>(*place, "GetActive", &()).unwrap_or(false))
    }
}

impl Sensor<LastInput> for LoginInput {
    fn read(&mut self) -> Reading<LastInput> {
        if let Some(last) = self.last.filter(|_| Instant::now() < self.ask_at) {
            return Reading::Known(last);
        }
        self.last = None;
        match self.ask() {
            Ok(last) => {
                if !self.system.listens() {
                    // Without signals it is asked every two seconds all the same.
                    let _ = self.system.listen(SESSION, "PropertiesChanged", Some(SESSION_INTERFACE));
                }
                self.last = Some(last);
                self.ask_at = Instant::now() + ASK_EVERY;
                Reading::Known(last)
            }
            Err(error) => Reading::Unavailable(because(&error)),
        }
    }
}

impl InputSource for LoginInput {
    fn wait(&mut self, at_most: Duration) {
        let at_most = at_most.min(self.ask_at.saturating_duration_since(Instant::now()));
        if self.system.wait(at_most) != Heard::Nothing {
            self.ask_at = Instant::now();
        }
    }
}
