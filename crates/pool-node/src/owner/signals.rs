//! What the sensors tell, in the policy's words.

use pool_policy::{Activity as Doing, Celsius, Disk, Gpu, GpuId, Percent, Problem, Shard, Signals};
use pool_sense::{GpuLoad, Snapshot};
use pool_types::{ByteSize, LayerRange, Reading};

use crate::node::Activity;

/// Puts together what is known of one moment.
pub(super) fn of(
    seen: &Snapshot,
    activity: &Activity,
    model: &str,
    problem: Option<Problem>,
    disk: Option<Reading<Disk>>,
) -> Signals {
    let shard = |layers: &LayerRange| Shard { model: model.to_owned(), layers: *layers };
    let coalition = |members: &usize| u32::try_from(*members).unwrap_or(u32::MAX);
    let computes = *activity != Activity::Idle;
    Signals {
        idle: seen.input.reading.clone().map(|idle| idle.idle_for),
        full_screen: seen.full_screen.reading.clone(),
        kept_awake: seen.kept_awake.reading.clone(),
        programs: seen.programs.reading.clone(),
        on_battery: seen.power.reading.clone().map(|power| power.on_battery),
        metered: seen.metered.reading.clone().map(|metered| metered.metered),
        disk: disk.unwrap_or_else(|| {
            Reading::unavailable("the model lies in a folder of the owner's, and nothing is downloaded")
        }),
        gpus: seen.gpus.reading.clone().map(|gpus| gpus.cards.iter().map(|card| gpu(card, computes)).collect()),
        problem,
        updating: None,
        activity: match activity {
            Activity::Idle => Doing::Nothing,
            Activity::Fetching { layers, done, size, waits } => Doing::Downloading {
                shard: shard(layers),
                done: ByteSize(*done),
                size: ByteSize(*size),
                waits: waits.clone(),
            },
            Activity::Preparing { layers, .. } => Doing::Loading(shard(layers)),
            Activity::Serving { layers, members, requests } => {
                Doing::Serving { shard: shard(layers), coalition: coalition(members), requests: *requests }
            }
        },
    }
}

/// A card's name for life, or its number where it has none.
pub(super) fn id_of(card: &pool_sense::Gpu) -> GpuId {
    GpuId(card.uuid.known().cloned().unwrap_or_else(|| card.index.to_string()))
}

fn gpu(card: &pool_sense::Gpu, computes: bool) -> Gpu {
    let known = |reading: &Reading<u64>| reading.known().copied();
    let memory_free = match (&card.memory_total, &card.memory_used) {
        (Reading::Known(total), Reading::Known(used)) => Reading::Known(ByteSize(total.saturating_sub(*used))),
        (Reading::Unavailable(because), _) | (_, Reading::Unavailable(because)) => {
            Reading::unavailable(because.clone())
        }
    };
    let busy = match &card.load {
        Reading::Known(GpuLoad::Others(percent)) => Reading::Known(Percent(*percent)),
        Reading::Known(GpuLoad::Whole(_)) if computes => {
            Reading::unavailable("this driver does not tell other programs' work from ours")
        }
        Reading::Known(GpuLoad::Whole(percent)) => Reading::Known(Percent(*percent)),
        Reading::Unavailable(because) => Reading::unavailable(because.clone()),
    };
    Gpu {
        id: id_of(card),
        name: card.name.known().cloned().unwrap_or_else(|| format!("GPU {}", card.index)),
        busy,
        memory_free,
        memory_ours: ByteSize(known(&card.memory_ours).unwrap_or(0)),
        memory_needed: ByteSize(0),
        temperature: card.temperature.clone().map(|degrees| Celsius(degrees.min(255) as _)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pool_sense::{Gpus, Idle, IdleSource, Power, Sensed};

    use super::*;

    fn card(load: GpuLoad) -> pool_sense::Gpu {
        pool_sense::Gpu {
            index: 1,
            uuid: Reading::Known("GPU-1".to_owned()),
            name: Reading::unavailable("this card does not tell it"),
            memory_total: Reading::Known(24 << 30),
            memory_used: Reading::Known(2 << 30),
            memory_ours: Reading::Known(0),
            memory_others: Reading::Known(2 << 30),
            load: Reading::Known(load),
            temperature: Reading::Known(61),
            power_milliwatts: Reading::unavailable("this card does not tell it"),
            energy: Reading::unavailable("this card does not tell it"),
        }
    }

    #[test]
    fn what_is_seen_is_told_and_what_is_not_says_why() {
        let sensed = |reading| Sensed { reading, age: Some(Duration::ZERO) };
        let seen = Snapshot {
            input: Sensed {
                reading: Reading::Known(Idle { idle_for: Duration::from_secs(7), source: IdleSource::X11 }),
                age: Some(Duration::ZERO),
            },
            power: Sensed {
                reading: Reading::Known(Power { on_battery: true, charge_percent: None }),
                age: Some(Duration::ZERO),
            },
            gpus: sensed(Reading::Known(Gpus {
                driver_version: "580".to_owned(),
                cards: vec![card(GpuLoad::Whole(40))],
            })),
            ..Snapshot::nothing()
        };
        let signals = of(&seen, &Activity::Idle, "tiny", None, None);
        assert_eq!(signals.idle, Reading::Known(Duration::from_secs(7)));
        assert_eq!(signals.on_battery, Reading::Known(true));
        assert!(signals.full_screen.known().is_none() && signals.metered.known().is_none(), "nothing is made up");
        let gpu = &signals.gpus.known().unwrap()[0];
        assert_eq!((gpu.id.0.as_str(), gpu.name.as_str()), ("GPU-1", "GPU 1"));
        assert_eq!(
            (gpu.memory_free.clone(), gpu.temperature.clone()),
            (Reading::Known(ByteSize(22 << 30)), Reading::Known(Celsius(61)))
        );
        assert_eq!(gpu.busy, Reading::Known(Percent(40)), "while we do nothing, all work is others'");

        let serving = Activity::Serving { layers: LayerRange::new(0, 4).unwrap(), members: 2, requests: 3 };
        let signals = of(&seen, &serving, "tiny", None, None);
        assert!(signals.gpus.known().unwrap()[0].busy.known().is_none(), "our own work is not taken for others'");
        assert!(matches!(signals.activity, Doing::Serving { coalition: 2, requests: 3, .. }), "{:?}", signals.activity);
    }
}
