//! Whether a program asks the desktop to stay awake: a film, a presentation, a video call.

use std::sync::{Arc, Mutex, PoisonError};

use pool_types::Reading;

use super::bus::{Bus, BusError, Place};
use crate::sensor::{Sensor, because};

const GNOME: Place = Place {
    service: "org.gnome.SessionManager",
    path: "/org/gnome/SessionManager",
    interface: "org.gnome.SessionManager",
};
/// `GSM_INHIBITOR_FLAG_IDLE`: the session shall not be marked idle.
const GNOME_IDLE: u32 = 8;

const KDE: Place = Place {
    service: "org.kde.Solid.PowerManagement.PolicyAgent",
    path: "/org/kde/Solid/PowerManagement/PolicyAgent",
    interface: "org.kde.Solid.PowerManagement.PolicyAgent",
};
/// `ChangeScreenSettings`: the screen shall stay on.
const KDE_SCREEN: u32 = 4;

const LOGIN: Place = Place {
    service: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
};

/// Asks those who can be asked: GNOME's session manager (`IsInhibited`), KDE's power manager (`HasInhibition`) and the
/// login manager (`BlockInhibited`). `org.freedesktop.ScreenSaver` takes requests but answers no such question; GNOME and
/// KDE hand those requests on to the services above.
pub(super) struct Inhibitors {
    session: Arc<Mutex<Bus>>,
    system: Arc<Mutex<Bus>>,
}

impl Inhibitors {
    pub(super) fn new(session: Arc<Mutex<Bus>>, system: Arc<Mutex<Bus>>) -> Self {
        Self { session, system }
    }

    fn login_manager(&self) -> Result<bool, BusError> {
        let blocked: String =
            self.system.lock().unwrap_or_else(PoisonError::into_inner).property(LOGIN, "BlockInhibited")?;
        Ok(blocked.split(':').any(|what| what == "idle"))
    }
}

impl Sensor<bool> for Inhibitors {
    /// True if one of them says so; false if at least one can be asked and none says so.
    fn read(&mut self) -> Reading<bool> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = [
            session.call::<_, bool>(GNOME, "IsInhibited", &(GNOME_IDLE,)),
            session.call::<_, bool>(KDE, "HasInhibition", &(KDE_SCREEN,)),
            self.login_manager(),
        ];
        if answers.iter().any(|answer| matches!(answer, Ok(true))) {
            return Reading::Known(true);
        }
        if answers.iter().any(|answer| matches!(answer, Ok(false))) {
            return Reading::Known(false);
        }
        let mut reasons: Vec<String> =
            answers.iter().filter_map(|answer| answer.as_ref().err()).map(|e| because(e)).collect();
        reasons.dedup();
        Reading::Unavailable(reasons.join("; "))
    }
}
