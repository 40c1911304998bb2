//! What the devices that are shared have used since the last look.

use std::collections::BTreeMap;

use pool_policy::{Decision, GpuId, Settings};
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
    /// Reads all meters; gives what those of the devices in use say since the last time. Measured is the time over which
    /// all of them were.
    pub(super) fn read(&mut self, seen: &Snapshot, settings: &Settings, decision: Option<&Decision>) -> Used {
        let processor = seen.cpu_energy.reading.known().map(|energy| (Device::Processor, *energy));
        let cards = seen.gpus.reading.known().into_iter().flat_map(|gpus| &gpus.cards);
        let cards = cards.filter_map(|card| Some((Device::Gpu(id_of(card)), *card.energy.known()?)));
        let now: BTreeMap<Device, MeteredEnergy> = processor.into_iter().chain(cards).collect();
        let mut used: Option<MeteredEnergy> = None;
        for device in in_use(settings, decision) {
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

fn in_use(settings: &Settings, decision: Option<&Decision>) -> Vec<Device> {
    let gpus = decision.map(|decision| decision.gpus.as_slice()).unwrap_or_default();
    let gpus: Vec<Device> = gpus.iter().filter(|gpu| gpu.may_use).map(|gpu| Device::Gpu(gpu.id.clone())).collect();
    if gpus.is_empty() && settings.share_cpu { vec![Device::Processor] } else { gpus }
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
        let settings = Settings { share_cpu: true, ..Settings::default() };
        let seen = |millijoules, seconds| Snapshot {
            cpu_energy: Sensed::now(energy(millijoules, seconds)),
            ..Snapshot::nothing()
        };
        let mut read = |seen: &Snapshot, settings: &Settings| {
            let Used { energy, measured } = meters.read(seen, settings, None);
            (energy.0, measured.as_secs())
        };
        assert_eq!(read(&seen(5_000, 10), &settings), (0, 0), "what was used before the first look is not ours");
        assert_eq!(read(&seen(5_700, 11), &settings), (700, 1));
        assert_eq!(read(&seen(5_700, 11), &settings), (0, 0), "nothing is counted twice");
        assert_eq!(
            read(&seen(6_000, 12), &Settings::default()),
            (0, 0),
            "a processor that is not shared costs nothing"
        );
        assert_eq!(read(&Snapshot::nothing(), &settings), (0, 0));
        assert_eq!(read(&seen(9_000, 13), &settings), (0, 0), "what went by while nobody could read it is not made up");
    }

    #[test]
    fn a_card_without_a_meter_makes_the_time_not_measured() {
        use pool_policy::{Memory, Moment, Signals, decide};
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
        let settings = Settings::default();
        let now = Moment { wall: jiff::Timestamp::UNIX_EPOCH, steady: Duration::ZERO };
        let signals = Signals::unavailable("a test");
        let (mut decision, _) = decide(&settings, &Memory::default(), now, &jiff::tz::TimeZone::UTC, &signals);
        let may_use = |id: &str| pool_policy::GpuDecision {
            id: GpuId(id.to_owned()),
            name: id.to_owned(),
            may_use: true,
            because: None,
        };
        decision.gpus = vec![may_use("GPU-0"), may_use("GPU-1")];
        let mut meters = Meters::default();
        meters.read(&seen(energy(0, 0), energy(0, 0)), &settings, Some(&decision));
        let used = meters.read(&seen(energy(300, 2), energy(500, 2)), &settings, Some(&decision));
        assert_eq!((used.energy.0, used.measured.as_secs()), (800, 2), "two cards side by side");
        let silent = Reading::unavailable("this card does not tell it");
        let used = meters.read(&seen(energy(600, 4), silent), &settings, Some(&decision));
        assert_eq!((used.energy.0, used.measured.as_secs()), (300, 0), "what is known counts, and is not called all");
    }
}
