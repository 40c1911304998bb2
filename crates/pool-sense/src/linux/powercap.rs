//! The energy of the processor's packages, from the kernel's power capping class (sysfs,
//! Documentation/power/powercap/powercap.rst): RAPL, which Intel's and AMD's processors have.
//!
//! Cores and memory are zones within a package and are not added again; `psys`, a zone of its own, contains the
//! packages. On many systems only the administrator may read the counters, for they tell too much of what others
//! compute (CVE-2020-8694).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use pool_types::{Energy, Reading};
use thiserror::Error;

use crate::{
    energy::{EnergyMeter, EnergyReading, MeteredEnergy},
    sensor::{Sensor, reading},
};

/// Packages that are looked at; more than any board has sockets.
const MOST_PACKAGES: usize = 64;

#[derive(Debug, Error)]
pub(super) enum PowercapError {
    #[error("this computer has no counter of its processor's energy")]
    NoCounter,
    #[error("only the administrator may read the processor's energy counter")]
    Forbidden,
    #[error("the processor's energy counter cannot be read")]
    Read(#[source] io::Error),
    #[error("the processor's energy counter says {0:?}, which is no number")]
    NoNumber(String),
}

impl From<io::Error> for PowercapError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoCounter,
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            _ => Self::Read(error),
        }
    }
}

/// Reads a folder like `/sys/class/powercap`.
pub(super) struct Powercap {
    folder: PathBuf,
    meters: BTreeMap<PathBuf, EnergyMeter>,
}

impl Powercap {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, meters: BTreeMap::new() }
    }

    fn look(&mut self) -> Result<MeteredEnergy, PowercapError> {
        for package in packages(&self.folder)? {
            let counter = microjoules(&package, "energy_uj")?;
            let range = microjoules(&package, "max_energy_range_uj")?;
            // The counter never wraps in the time between two looks, so no gap of power readings occurs.
            let meter = self.meters.entry(package).or_insert_with(|| EnergyMeter::new(Duration::ZERO));
            meter.count(Instant::now(), EnergyReading::Wrapping { counter, range });
        }
        let totals = self.meters.values().map(EnergyMeter::total);
        totals.reduce(|one, other| one.together(&other)).ok_or(PowercapError::NoCounter)
    }
}

impl Sensor<MeteredEnergy> for Powercap {
    fn read(&mut self) -> Reading<MeteredEnergy> {
        reading(self.look())
    }
}

/// The zones `intel-rapl:0`, `intel-rapl:1`, ... that are packages. AMD's have the same names.
fn packages(folder: &Path) -> Result<Vec<PathBuf>, PowercapError> {
    let mut packages = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("intel-rapl:"));
        if number.is_none_or(|number| number.parse::<u8>().is_err()) {
            continue;
        }
        if fs::read_to_string(entry.path().join("name"))?.starts_with("package") && packages.len() < MOST_PACKAGES {
            packages.push(entry.path());
        }
    }
    Ok(packages)
}

fn microjoules(zone: &Path, file: &str) -> Result<Energy, PowercapError> {
    let text = fs::read_to_string(zone.join(file))?;
    let text = text.trim();
    let value: u64 = text.parse().map_err(|_| PowercapError::NoNumber(text.to_owned()))?;
    Ok(Energy(value / 1000))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Zones in a folder: name of the zone, what it is, its counter in microjoules.
    fn zones(zones: &[(&str, &str, u64)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (zone, name, counter) in zones {
            let zone = folder.path().join(zone);
            fs::create_dir(&zone).unwrap();
            fs::write(zone.join("name"), format!("{name}\n")).unwrap();
            fs::write(zone.join("energy_uj"), format!("{counter}\n")).unwrap();
            fs::write(zone.join("max_energy_range_uj"), "262143328850\n").unwrap();
        }
        folder
    }

    fn set(folder: &tempfile::TempDir, zone: &str, counter: u64) {
        fs::write(folder.path().join(zone).join("energy_uj"), format!("{counter}\n")).unwrap();
    }

    fn known(sensor: &mut Powercap) -> MeteredEnergy {
        let energy = sensor.read();
        *energy.known().unwrap_or_else(|| panic!("the counters can be read: {energy}"))
    }

    #[test]
    fn two_packages_are_added_and_what_lies_in_them_or_around_them_is_not() {
        let folder = zones(&[
            ("intel-rapl:0", "package-0", 1_000_000_000),
            ("intel-rapl:0:0", "core", 600_000_000),
            ("intel-rapl:1", "package-1", 262_143_000_000),
            ("intel-rapl:2", "psys", 3_000_000_000),
            ("intel-rapl-mmio:0", "package-0", 1_000_000_000),
            ("dtpm", "dtpm", 5),
        ]);
        let mut sensor = Powercap::new(folder.path().to_owned());
        assert_eq!(known(&mut sensor).used, Energy(0), "what was used before is not ours to count");
        thread::sleep(Duration::from_millis(100));
        set(&folder, "intel-rapl:0", 1_005_000_000);
        set(&folder, "intel-rapl:1", 2_671_150);
        set(&folder, "intel-rapl:0:0", 604_000_000);
        set(&folder, "intel-rapl:2", 3_009_000_000);
        let energy = known(&mut sensor);
        assert_eq!(energy.used, Energy(5_000 + 2_999), "5 J, and 3 J over the end of the counter");
        assert!(energy.measured >= Duration::from_millis(100) && energy.not_measured.is_zero(), "{energy:?}");
    }

    #[test]
    fn what_cannot_be_read_is_not_guessed() {
        let told = |folder: &Path| Powercap::new(folder.to_owned()).read().to_string();
        let none = "unavailable, because this computer has no counter of its processor's energy";
        assert_eq!(told(Path::new("/no/such/folder")), none);
        assert_eq!(told(zones(&[("intel-rapl:0", "psys", 1)]).path()), none, "the whole machine is not its processor");
        let broken = zones(&[("intel-rapl:0", "package-0", 1)]);
        fs::write(broken.path().join("intel-rapl:0/energy_uj"), "much\n").unwrap();
        assert!(told(broken.path()).contains("says \"much\", which is no number"), "{}", told(broken.path()));
        let forbidden = PowercapError::from(io::Error::from(io::ErrorKind::PermissionDenied)).to_string();
        assert_eq!(forbidden, "only the administrator may read the processor's energy counter", "as on most systems");
    }
}
