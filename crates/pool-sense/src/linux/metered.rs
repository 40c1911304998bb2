//! Whether traffic costs, as NetworkManager says.

use pool_types::Reading;

use super::bus::{Bus, Place};
use crate::{
    sensor::{Sensor, because},
    values::Metered,
};

const NETWORK_MANAGER: Place = Place {
    service: "org.freedesktop.NetworkManager",
    path: "/org/freedesktop/NetworkManager",
    interface: "org.freedesktop.NetworkManager",
};

/// Reads NetworkManager's `Metered` (`NMMetered`: 0 unknown, 1 yes, 2 no, 3 probably, 4 probably not).
pub(super) struct NetworkManager {
    system: Bus,
}

impl NetworkManager {
    pub(super) fn new(system: Bus) -> Self {
        Self { system }
    }
}

impl Sensor<Metered> for NetworkManager {
    fn read(&mut self) -> Reading<Metered> {
        match self.system.property::<u32>(NETWORK_MANAGER, "Metered") {
            Ok(1) => Reading::Known(Metered { metered: true, stated: true }),
            Ok(2) => Reading::Known(Metered { metered: false, stated: true }),
            Ok(3) => Reading::Known(Metered { metered: true, stated: false }),
            Ok(4) => Reading::Known(Metered { metered: false, stated: false }),
            Ok(_) => Reading::unavailable("NetworkManager does not know the present connection"),
            Err(error) => Reading::Unavailable(because(&error)),
        }
    }
}
