use std::time::Duration;

use pool_types::{ByteSize, LayerRange, Reading};
use serde::{Deserialize, Serialize};

use crate::{Celsius, Percent};

/// Everything that is known about one moment. A sensor that has no value says why.
///
/// What an unavailable sensor means is in the [crate's documentation](crate#sensors-that-are-unavailable).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signals {
    /// How long ago the last input was: keyboard, mouse or controller.
    pub idle: Reading<Duration>,
    /// Whether an application fills a screen.
    pub full_screen: Reading<bool>,
    /// Whether a program asks that the screen stay on: a film in a window, a call, a presentation.
    pub kept_awake: Reading<bool>,
    /// Which programs of [`Settings::wait_for_programs`](crate::Settings::wait_for_programs) run.
    pub programs: Reading<Vec<String>>,
    /// Whether a battery feeds the machine.
    pub on_battery: Reading<bool>,
    /// Whether the network connection is paid by volume.
    pub metered: Reading<bool>,
    /// Room for models.
    pub disk: Reading<Disk>,
    /// The GPUs; the first [`Signals::MAX_GPUS`] are looked at, and of two with one id the first.
    pub gpus: Reading<Vec<Gpu>>,
    /// What the owner must put right before anything can be shared.
    pub problem: Option<Problem>,
    /// The version that is being installed.
    pub updating: Option<String>,
    /// What the node is doing.
    pub activity: Activity,
}

impl Signals {
    /// The most GPUs that are looked at.
    pub const MAX_GPUS: usize = 64;

    /// No sensor works, for one reason, and the node does nothing: where tests and a node that is just starting begin.
    pub fn unavailable(because: &str) -> Self {
        Self {
            idle: Reading::unavailable(because),
            full_screen: Reading::unavailable(because),
            kept_awake: Reading::unavailable(because),
            programs: Reading::unavailable(because),
            on_battery: Reading::unavailable(because),
            metered: Reading::unavailable(because),
            disk: Reading::unavailable(because),
            gpus: Reading::unavailable(because),
            problem: None,
            updating: None,
            activity: Activity::Nothing,
        }
    }

    /// The GPUs that are looked at.
    pub(crate) fn gpus(&self) -> impl Iterator<Item = &Gpu> {
        let all = self.gpus.known().map(Vec::as_slice).unwrap_or_default();
        let all = &all[..all.len().min(Self::MAX_GPUS)];
        all.iter().enumerate().filter(|(at, gpu)| !all[..*at].iter().any(|before| before.id == gpu.id)).map(|(_, g)| g)
    }
}

/// Room for models on the disk that holds them. What the cache would delete by itself to make room is no model's and
/// counts as free: a policy that counted it as taken would hold the very download back that deletes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Disk {
    /// What models take and keep.
    pub models: ByteSize,
    /// What is free.
    pub free: ByteSize,
    /// What the next download needs; 0 if none is due.
    pub wanted: ByteSize,
}

/// A GPU's name for machines: its UUID where it has one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuId(pub String);

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Which one.
    pub id: GpuId,
    /// Its name for people, like `RTX 4090`.
    pub name: String,
    /// How busy other programs keep it. A driver that only tells the load of all programs together says nothing about
    /// others while our shard computes: unavailable then.
    pub busy: Reading<Percent>,
    /// Memory that nobody holds.
    pub memory_free: Reading<ByteSize>,
    /// Memory that our shard holds.
    pub memory_ours: ByteSize,
    /// Memory that our shard needs in all; 0 while there is no shard for this GPU.
    pub memory_needed: ByteSize,
    /// Its temperature.
    pub temperature: Reading<Celsius>,
}

/// What keeps a node from sharing until its owner acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong, without the full stop: `the NVIDIA driver is too old (version 580 or newer is needed)`.
    pub what: String,
    /// What the owner can do, as a sentence without the full stop: `Install the newest driver and restart`.
    pub next_action: String,
}

/// What the node is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// Nothing: no model at work.
    Nothing,
    /// Fetching a shard.
    Downloading {
        /// Which.
        shard: Shard,
        /// Bytes that are here.
        done: ByteSize,
        /// Bytes in all.
        size: ByteSize,
        /// Why nothing comes, where that is so, and what helps, without the full stop.
        waits: Option<String>,
    },
    /// Bringing a shard into memory.
    Loading(Shard),
    /// Serving in a coalition.
    Serving {
        /// What.
        shard: Shard,
        /// How many members share the layers.
        coalition: u32,
        /// Requests that run.
        requests: u32,
    },
}

/// Layers of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// The model's name for people.
    pub model: String,
    /// Its layers.
    pub layers: LayerRange,
}

impl Activity {
    /// Requests that would be cut short by a stop now.
    pub(crate) fn requests(&self) -> u32 {
        match self {
            Self::Serving { requests, .. } => *requests,
            _ => 0,
        }
    }

    /// Whether GPU memory is, or is about to be, held.
    pub(crate) fn holds_memory(&self) -> bool {
        matches!(self, Self::Loading(_) | Self::Serving { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_lists_gpus_twice_or_without_end_does_no_harm() {
        let gpu = |number: usize, name: &str| Gpu {
            id: GpuId(number.to_string()),
            name: name.to_owned(),
            busy: Reading::Known(Percent(0)),
            memory_free: Reading::Known(ByteSize(0)),
            memory_ours: ByteSize(0),
            memory_needed: ByteSize(0),
            temperature: Reading::Known(Celsius(50)),
        };
        let mut signals = Signals::unavailable("a test");
        assert_eq!(signals.gpus().count(), 0);
        signals.gpus = Reading::Known(vec![gpu(0, "first"), gpu(1, "other"), gpu(0, "again")]);
        let names: Vec<&str> = signals.gpus().map(|gpu| gpu.name.as_str()).collect();
        assert_eq!(names, ["first", "other"], "of two with one id the first counts");
        signals.gpus = Reading::Known((0..1_000).map(|number| gpu(number, "many")).collect());
        assert_eq!(signals.gpus().count(), Signals::MAX_GPUS);
    }
}
