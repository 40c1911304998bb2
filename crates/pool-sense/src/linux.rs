//! Linux: X11, Wayland, D-Bus services, sysfs.

mod bus;
mod full_screen;
mod joysticks;
mod kept_awake;
mod login;
mod metered;
mod mutter;
mod power_supply;
mod powercap;
mod wayland;
mod x11;

use std::path::PathBuf;

use crate::{
    input::{Candidate, OwnerInput},
    platform::Sensors,
    sensor::{InputSource, reading},
    surroundings::Surroundings,
    values::IdleSource,
};

use self::{
    bus::Bus, full_screen::X11FullScreen, joysticks::Joysticks, kept_awake::Inhibitors, login::LoginInput,
    metered::NetworkManager, mutter::MutterInput, power_supply::PowerSupplies, powercap::Powercap,
    wayland::WaylandInput, x11::X11Input,
};

const POWER_SUPPLIES: &str = "/sys/class/power_supply";
const POWERCAP: &str = "/sys/class/powercap";
const JOYSTICKS: &str = "/dev/input";

/// The sensors of this system, none of them asked yet.
pub(crate) fn sensors(surroundings: &Surroundings) -> Sensors {
    let joysticks = surroundings.joysticks.clone().unwrap_or_else(|| PathBuf::from(JOYSTICKS));
    // The input has connections of its own: it must not wait until another sensor has been answered.
    let input = OwnerInput::new(input_candidates(surroundings), Box::new(Joysticks::new(joysticks)));
    let (session, system) = (Bus::session(surroundings), Bus::system(surroundings));
    let power_supplies = surroundings.power_supplies.clone().unwrap_or_else(|| PathBuf::from(POWER_SUPPLIES));
    let powercap = surroundings.powercap.clone().unwrap_or_else(|| PathBuf::from(POWERCAP));
    Sensors {
        input,
        full_screen: Box::new(X11FullScreen::new(surroundings.x11_display.clone())),
        kept_awake: Box::new(Inhibitors::new(session, system)),
        metered: Box::new(NetworkManager::new(Bus::system(surroundings))),
        power: Box::new(PowerSupplies::new(power_supplies)),
        cpu_energy: Box::new(Powercap::new(powercap)),
    }
}

/// In the order that [`IdleSource`] lists.
fn input_candidates(surroundings: &Surroundings) -> Vec<Candidate> {
    let display = surroundings.x11_display.clone();
    let x11 = move || reading(X11Input::open(display.as_deref())).map(|input| Box::new(input) as Box<dyn InputSource>);
    let here = surroundings.clone();
    let mutter = move || reading(MutterInput::open(&here)).map(|input| Box::new(input) as Box<dyn InputSource>);
    let socket = surroundings.wayland_socket.clone();
    let wayland =
        move || reading(WaylandInput::open(socket.as_deref())).map(|input| Box::new(input) as Box<dyn InputSource>);
    let here = surroundings.clone();
    let login = move || pool_types::Reading::Known(Box::new(LoginInput::new(&here)) as Box<dyn InputSource>);
    vec![
        Candidate { source: IdleSource::X11, open: Box::new(x11) },
        Candidate { source: IdleSource::Mutter, open: Box::new(mutter) },
        Candidate { source: IdleSource::ExtIdleNotify, open: Box::new(wayland) },
        Candidate { source: IdleSource::Login, open: Box::new(login) },
    ]
}
