//! Battery or mains, from the kernel's power supply class (sysfs, Documentation/ABI/testing/sysfs-class-power).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pool_types::Reading;
use thiserror::Error;

use crate::{
    sensor::{Sensor, reading},
    values::Power,
};

#[derive(Debug, Error)]
pub(super) enum PowerSupplyError {
    #[error("the folder of power supplies cannot be read")]
    Folder(#[source] io::Error),
    #[error("the battery does not say whether it is being used")]
    Unclear,
}

/// Reads a folder like `/sys/class/power_supply`.
pub(super) struct PowerSupplies {
    folder: PathBuf,
}

impl PowerSupplies {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn look(&self) -> Result<Power, PowerSupplyError> {
        let (mut outside, mut batteries) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.folder).map_err(PowerSupplyError::Folder)? {
            let supply = entry.map_err(PowerSupplyError::Folder)?.path();
            // The battery of a mouse or a headset feeds nothing else.
            if attribute(&supply, "scope").as_deref() == Some("Device") {
                continue;
            }
            match attribute(&supply, "type").as_deref() {
                Some("Battery" | "UPS") if attribute(&supply, "present").as_deref() != Some("0") => {
                    batteries.push(Battery::read(&supply));
                }
                Some("Mains" | "USB" | "Wireless") => {
                    if let Some(online) = attribute(&supply, "online") {
                        outside.push(online != "0");
                    }
                }
                _ => {}
            }
        }
        let charge_percent = batteries.iter().filter_map(|battery| battery.charge_percent).min();
        let on_battery = if batteries.is_empty() || outside.contains(&true) {
            false
        } else if batteries.iter().any(|battery| battery.discharging == Some(true)) {
            true
        } else if batteries.iter().all(|battery| battery.discharging == Some(false)) {
            false
        } else if !outside.is_empty() {
            // Every plug says that it is not plugged in.
            true
        } else {
            return Err(PowerSupplyError::Unclear);
        };
        Ok(Power { on_battery, charge_percent })
    }
}

impl Sensor<Power> for PowerSupplies {
    fn read(&mut self) -> Reading<Power> {
        reading(self.look())
    }
}

struct Battery {
    /// `None`: it does not say.
    discharging: Option<bool>,
    charge_percent: Option<u8>,
}

impl Battery {
    fn read(supply: &Path) -> Self {
        let discharging = match attribute(supply, "status").as_deref() {
            Some("Discharging") => Some(true),
            Some("Charging" | "Full" | "Not charging") => Some(false),
            _ => None,
        };
        let capacity = attribute(supply, "capacity").and_then(|percent| percent.parse::<u8>().ok());
        Self { discharging, charge_percent: capacity.map(|percent| percent.min(100)) }
    }
}

fn attribute(supply: &Path, name: &str) -> Option<String> {
    fs::read_to_string(supply.join(name)).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of supplies: name, attribute, value.
    fn look(supplies: &[(&str, &[(&str, &str)])]) -> Reading<Power> {
        let folder = tempfile::tempdir().unwrap();
        for (name, attributes) in supplies {
            fs::create_dir(folder.path().join(name)).unwrap();
            for (attribute, value) in *attributes {
                fs::write(folder.path().join(name).join(attribute), format!("{value}\n")).unwrap();
            }
        }
        PowerSupplies::new(folder.path().to_owned()).read()
    }

    const PLUGGED: (&str, &[(&str, &str)]) = ("AC", &[("type", "Mains"), ("online", "1")]);
    const UNPLUGGED: (&str, &[(&str, &str)]) = ("AC", &[("type", "Mains"), ("online", "0")]);
    const DRAINING: (&str, &[(&str, &str)]) =
        ("BAT0", &[("type", "Battery"), ("present", "1"), ("status", "Discharging"), ("capacity", "63")]);
    const CHARGING: (&str, &[(&str, &str)]) =
        ("BAT0", &[("type", "Battery"), ("present", "1"), ("status", "Charging"), ("capacity", "64")]);

    fn known(on_battery: bool, charge_percent: Option<u8>) -> Reading<Power> {
        Reading::Known(Power { on_battery, charge_percent })
    }

    #[test]
    fn a_laptop_is_plugged_in_and_out() {
        assert_eq!(look(&[PLUGGED, CHARGING]), known(false, Some(64)), "charging at the wall");
        assert_eq!(look(&[UNPLUGGED, DRAINING]), known(true, Some(63)), "on the train");
        assert_eq!(look(&[DRAINING]), known(true, Some(63)), "some laptops list no plug");
        let unknown: (&str, &[(&str, &str)]) = ("BAT0", &[("type", "Battery"), ("status", "Unknown")]);
        assert_eq!(look(&[UNPLUGGED, unknown]), known(true, None), "no plug is in, so it can only be the battery");
        assert_eq!(look(&[PLUGGED, DRAINING]), known(false, Some(63)), "a weak charger is still a charger");
    }

    #[test]
    fn a_desktop_and_its_wireless_mouse_are_on_mains() {
        assert_eq!(look(&[]), known(false, None), "no battery, so it runs on mains");
        let mouse: (&str, &[(&str, &str)]) = (
            "hidpp_battery_0",
            &[("type", "Battery"), ("scope", "Device"), ("status", "Discharging"), ("capacity", "5")],
        );
        assert_eq!(look(&[mouse]), known(false, None), "a mouse's empty battery does not stop the computer");
        let bay: (&str, &[(&str, &str)]) = ("BAT1", &[("type", "Battery"), ("present", "0"), ("status", "Unknown")]);
        assert_eq!(look(&[PLUGGED, bay]), known(false, None), "an empty battery bay is no battery");
    }

    #[test]
    fn two_batteries_and_a_power_supply_of_the_whole_house() {
        let second: (&str, &[(&str, &str)]) =
            ("BAT1", &[("type", "Battery"), ("status", "Not charging"), ("capacity", "12")]);
        assert_eq!(look(&[UNPLUGGED, DRAINING, second]), known(true, Some(12)), "the emptiest counts");
        let ups: (&str, &[(&str, &str)]) = ("UPS", &[("type", "UPS"), ("status", "Discharging"), ("capacity", "80")]);
        assert_eq!(look(&[ups]), known(true, Some(80)), "the mains failed and the UPS carries the desktop");
    }

    #[test]
    fn what_is_not_said_is_not_guessed() {
        let told = look(&[("BAT0", &[("type", "Battery"), ("status", "Unknown")])]).to_string();
        assert_eq!(told, "unavailable, because the battery does not say whether it is being used");
        let told = PowerSupplies::new(PathBuf::from("/no/such/folder")).read().to_string();
        assert!(told.starts_with("unavailable, because the folder of power supplies cannot be read"), "{told}");
    }
}
