//! What the devices that are shared have used since the last look.

use std::collections::BTreeMap;

use pool_policy::GpuId;
use pool_sense::{MeteredEnergy, Snapshot};

use super::{books::Used, signals::id_of};

/// The meters as they stood at the last look.
#[derive(Debug, Default)]
pub(super) struct Meters {
    last: BTreeMap<Device, MeteredEnergy>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Device {
    /// The whole processor package, whoever made it work: it has one meter.
    Processor,
    Gpu(GpuId),
}

impl Meters {
    /// Reads all meters; gives what those of the devices that a shift runs on say since the last time: of its cards, or of
    /// the processor where it has none. Measured is the time over which all of them were.
    pub(super) fn read(&mut self, seen: &Snapshot, cards: Option<&[GpuId]>) -> Used {
        let processor = seen.cpu_energy.reading.known().map(|energy| (Device::Processor, *energy));
        let meters = seen.gpus.reading.known().into_iter().flat_map(|gpus| &gpus.cards);
        let meters = meters.filter_map(|card| Some((Device::Gpu(id_of(card)), *card.energy.known()?)));
        let now: BTreeMap<Device, MeteredEnergy> = processor.into_iter().chain(meters).collect();
        let mut used: Option<MeteredEnergy> = None;
        for device in cards.map(devices).unwrap_or_default() {
            let (Some(now), Some(last)) = (now.get(&device), self.last.get(&device)) else {
                // One that does not tell makes the whole incomplete.
                used = Some(used.unwrap_or_default().together(&MeteredEnergy::default()));
                continue;
            };
            let step = now.since(last);
            used = Some(used.map_or(step, |used| used.together(&step)));
        }
        self.last = now;
        used.map_or(Used::default(), |used| Used { energy: used.used, measured: used.measured })
    }
}

fn devices(cards: &[GpuId]) -> Vec<Device> {
    match cards {
        [] => vec![Device::Processor],
        cards => cards.iter().cloned().map(Device::Gpu).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pool_sense::{Gpu, Gpus, Sensed};
    use pool_types::{Energy, Reading};

    use super::*;

    fn energy(millijoules: u64, seconds: u64) -> Reading<MeteredEnergy> {
        let measured = Duration::from_secs(seconds);
        Reading::Known(MeteredEnergy { used: Energy(millijoules), measured, not_measured: Duration::ZERO })
    }

    #[test]
    fn only_what_is_shared_is_counted_and_only_from_one_look_to_the_next() {
        let mut meters = Meters::default();
        let seen = |millijoules, seconds| Snapshot {
            cpu_energy: Sensed::now(energy(millijoules, seconds)),
            ..Snapshot::nothing()
        };
        let mut read = |seen: &Snapshot, cards: Option<&[GpuId]>| {
            let Used { energy, measured } = meters.read(seen, cards);
            (energy.0, measured.as_secs())
        };
        assert_eq!(read(&seen(5_000, 10), Some(&[])), (0, 0), "what was used before the first look is not ours");
        assert_eq!(read(&seen(5_700, 11), Some(&[])), (700, 1));
        assert_eq!(read(&seen(5_700, 11), Some(&[])), (0, 0), "nothing is counted twice");
        assert_eq!(read(&seen(6_000, 12), None), (0, 0), "while nothing runs, nothing is used");
        assert_eq!(read(&Snapshot::nothing(), Some(&[])), (0, 0));
        assert_eq!(read(&seen(9_000, 13), Some(&[])), (0, 0), "what went by while nobody could read it is not made up");
    }

    #[test]
    fn a_card_without_a_meter_makes_the_time_not_measured() {
        let card = |index: u32, energy: Reading<MeteredEnergy>| Gpu {
            index,
            uuid: Reading::Known(format!("GPU-{index}")),
            name: Reading::unavailable("a test"),
            memory_total: Reading::Known(8 << 30),
            memory_used: Reading::Known(0),
            memory_ours: Reading::Known(0),
            memory_others: Reading::Known(0),
            load: Reading::unavailable("a test"),
            temperature: Reading::Known(50),
            power_milliwatts: Reading::unavailable("a test"),
            energy,
        };
        let seen = |first, second| Snapshot {
            gpus: Sensed::now(Reading::Known(Gpus {
                driver_version: "580".to_owned(),
                cards: vec![card(0, first), card(1, second)],
            })),
            ..Snapshot::nothing()
        };
        let both = [GpuId("GPU-0".to_owned()), GpuId("GPU-1".to_owned())];
        let mut meters = Meters::default();
        meters.read(&seen(energy(0, 0), energy(0, 0)), Some(&both));
        let used = meters.read(&seen(energy(300, 2), energy(500, 2)), Some(&both));
        assert_eq!((used.energy.0, used.measured.as_secs()), (800, 2), "two cards side by side");
        let used = meters.read(&seen(energy(500, 4), energy(600, 4)), Some(&both[1..]));
        assert_eq!((used.energy.0, used.measured.as_secs()), (100, 2), "the other card does nothing for us");
        let silent = Reading::unavailable("this card does not tell it");
        let used = meters.read(&seen(energy(600, 4), silent), Some(&both));
        assert_eq!((used.energy.0, used.measured.as_secs()), (100, 0), "what is known counts, and is not called all");
    }
}
