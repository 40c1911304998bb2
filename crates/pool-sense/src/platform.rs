//! The sensors that each operating system brings its own of.

use crate::{
    energy::MeteredEnergy,
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
    pub(crate) cpu_energy: Box<dyn Sensor<MeteredEnergy>>,
}

#[cfg(target_os = "linux")]
pub(crate) use crate::linux::sensors;
#[cfg(windows)]
pub(crate) use crate::windows::sensors;

/// A system that we do not know: nothing is guessed.
#[cfg(not(any(target_os = "linux", windows)))]
pub(crate) fn sensors(_surroundings: &crate::Surroundings) -> Sensors {
    Sensors {
        input: OwnerInput::new(Vec::new(), Box::new(crate::controllers::NoControllers)),
        full_screen: Box::new(Unknown),
        kept_awake: Box::new(Unknown),
        metered: Box::new(Unknown),
        power: Box::new(Unknown),
        cpu_energy: Box::new(Unknown),
    }
}

/// A sensor that this system lacks.
#[cfg(not(target_os = "linux"))]
pub(crate) struct Unknown;

#[cfg(not(target_os = "linux"))]
impl<T> Sensor<T> for Unknown {
    fn read(&mut self) -> pool_types::Reading<T> {
        pool_types::Reading::unavailable("ComputePool cannot tell it on this operating system")
    }
}
