//! Windows: Win32 and COM.

mod controllers;
mod input;
mod network;
mod power;
mod screen;

use pool_types::Reading;

use crate::{
    input::{Candidate, OwnerInput},
    platform::{Sensors, Unknown},
    sensor::InputSource,
    surroundings::Surroundings,
    values::IdleSource,
};

use self::{
    controllers::XInput,
    input::WindowsInput,
    network::NetworkCost,
    power::PowerStatus,
    screen::{ForegroundWindow, KeptAwake},
};

/// The sensors of this system, none of them asked yet.
pub(crate) fn sensors(_surroundings: &Surroundings) -> Sensors {
    let open = || Reading::Known(Box::new(WindowsInput) as Box<dyn InputSource>);
    let keyboard_and_mouse = vec![Candidate { source: IdleSource::Windows, open: Box::new(open) }];
    let input = OwnerInput::new(keyboard_and_mouse, Box::new(XInput::new()));
    Sensors {
        input,
        full_screen: Box::new(ForegroundWindow),
        kept_awake: Box::new(KeptAwake),
        metered: Box::new(NetworkCost::default()),
        power: Box::new(PowerStatus),
        cpu_energy: Box::new(Unknown),
    }
}
