//! Whether a program asks the desktop to stay awake: a film, a presentation, a video call.

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
    session: Bus,
    system: Bus,
}

impl Inhibitors {
    pub(super) fn new(session: Bus, system: Bus) -> Self {
        Self { session, system }
    }

    fn login_manager(&mut self) -> Result<bool, BusError> {
        let blocked: String = self.system.property(LOGIN, "BlockInhibited")?;
        Ok(blocked.split(':').any(|what| what == "idle"))
    }
}

impl Sensor<bool> for Inhibitors {
    /// True if one of them says so; false if at least one is there and all that are there say no. One that is there and
    /// gives no answer may know of a film that the others do not know of.
    fn read(&mut self) -> Reading<bool> {
        let answers = [
            self.session.call::<_, bool>(GNOME, "IsInhibited", &(GNOME_IDLE,)),
            self.session.call::<_, bool>(KDE, "HasInhibition", &(KDE_SCREEN,)),
            self.login_manager(),
        ];
        if answers.iter().any(|answer| matches!(answer, Ok(true))) {
            return Reading::Known(true);
        }
        let one_says_no = answers.iter().any(|answer| matches!(answer, Ok(false)));
        let mut reasons: Vec<String> = (answers.iter())
            .filter_map(|answer| answer.as_ref().err())
            .filter(|error| !one_says_no || !error.is_absence())
            .map(|error| because(error))
            .collect();
        reasons.dedup();
        if reasons.is_empty() { Reading::Known(false) } else { Reading::Unavailable(reasons.join("; ")) }
    }
}
