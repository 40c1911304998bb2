//! The sensors that each operating system brings its own of.

use pool_types::Reading;
#[cfg(not(windows))]
use sysinfo::{CpuRefreshKind, System};

use crate::{
    input::OwnerInput,
    sensor::Sensor,
    values::{Metered, Power},
};

/// What [`sensors`] gives.
pub(crate) struct Sensors {
    pub(crate) input: OwnerInput,
    pub(crate) full_screen: Box<dyn Sensor<bool>>,
    pub(crate) kept_awake: Box<dyn Sensor<bool>>,
    pub(crate) metered: Box<dyn Sensor<Metered>>,
    pub(crate) power: Box<dyn Sensor<Power>>,
}

#[cfg(target_os = "linux")]
pub(crate) use crate::linux::sensors;
#[cfg(windows)]
pub(crate) use crate::windows::{Processor, sensors};

/// How busy all cores together are.
#[cfg(not(windows))]
pub(crate) struct Processor;

#[cfg(not(windows))]
impl Processor {
    pub(crate) fn new() -> Self {
        Self
    }

    /// Percent of the time since the last look, whoever used it. `system` counts it.
    pub(crate) fn look(&mut self, system: &mut System) -> Reading<f32> {
        system.refresh_cpu_specifics(CpuRefreshKind::nothing().with_usage());
        Reading::Known(system.global_cpu_usage())
    }
}

/// A system that we do not know: nothing is guessed.
#[cfg(not(any(target_os = "linux", windows)))]
pub(crate) fn sensors(_surroundings: &crate::Surroundings) -> Sensors {
    Sensors {
        input: OwnerInput::new(Vec::new(), Box::new(crate::controllers::NoControllers)),
        full_screen: Box::new(Unknown),
        kept_awake: Box::new(Unknown),
        metered: Box::new(Unknown),
        power: Box::new(Unknown),
    }
}

/// A sensor that this system lacks.
#[cfg_attr(any(target_os = "linux", windows), allow(dead_code, reason = "for other systems"))]
struct Unknown;

impl<T> Sensor<T> for Unknown {
    fn read(&mut self) -> Reading<T> {
        Reading::unavailable("ComputePool cannot tell it on this operating system")
    }
}
