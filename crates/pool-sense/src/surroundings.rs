//! Where the sensors look.

use std::path::PathBuf;

/// The places where the owner's session and the machine are looked at. A node takes [`Surroundings::of_this_process`];
/// tests name servers of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The X11 display, for example `:0`.
    pub x11_display: Option<String>,
    /// The Wayland compositor's socket.
    pub wayland_socket: Option<PathBuf>,
    /// The address of the session's D-Bus.
    pub session_bus: Option<String>,
    /// The address of the system's D-Bus.
    pub system_bus: Option<String>,
    /// The folder of power supplies; without it, Linux's own.
    pub power_supplies: Option<PathBuf>,
    /// The folder of energy counters; without it, Linux's own.
    pub powercap: Option<PathBuf>,
    /// The folder of joystick devices; without it, Linux's own.
    pub joysticks: Option<PathBuf>,
    /// NVIDIA's management library; without it, the one that its driver installs.
    pub nvml: Option<PathBuf>,
}

impl Surroundings {
    /// What this process's environment says. On Windows there is nothing to say.
    pub fn of_this_process() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let runtime_folder = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
        // A relative name lies in the runtime folder (wl_display_connect(3)).
        let wayland_socket = variable("WAYLAND_DISPLAY").and_then(|name| {
            let name = PathBuf::from(name);
            if name.is_absolute() { Some(name) } else { runtime_folder.as_ref().map(|folder| folder.join(name)) }
        });
        let usual_session_bus = || {
            let socket = runtime_folder.as_ref().map(|folder| folder.join("bus")).filter(|socket| socket.exists());
            socket.map(|socket| format!("unix:path={}", socket.display()))
        };
        let usual_system_bus = || "unix:path=/var/run/dbus/system_bus_socket".to_owned();
        Self {
            x11_display: variable("DISPLAY"),
            wayland_socket,
            session_bus: variable("DBUS_SESSION_BUS_ADDRESS").or_else(usual_session_bus),
            system_bus: Some(variable("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(usual_system_bus)),
            power_supplies: None,
            powercap: None,
            joysticks: None,
            nvml: None,
        }
    }
}
