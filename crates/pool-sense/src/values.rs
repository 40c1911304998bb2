//! What the sensors tell, with units.

use std::{fmt, time::Duration};

use pool_types::Reading;

use crate::MeteredEnergy;

/// How long the owner has not touched keyboard, mouse or game controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Nothing has been touched for this long; never more than the truth.
    pub idle_for: Duration,
    /// Who says so.
    pub source: IdleSource,
}

/// Who tells when the last input was. The sources of keyboard and mouse are in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleSource {
    /// The X server's own counter (XScreenSaver).
    X11,
    /// GNOME's compositor (org.gnome.Mutter.IdleMonitor).
    Mutter,
    /// A Wayland compositor's ext-idle-notify-v1: KDE, sway, Hyprland and others.
    ExtIdleNotify,
    /// The login manager's idle hint together with a locked screen or an active screen saver.
    Login,
    /// Windows (GetLastInputInfo).
    Windows,
    /// A game controller, used later than keyboard and mouse: the kernel's joystick devices, or XInput.
    Controller,
}

impl fmt::Display for IdleSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::X11 => "the X server",
            Self::Mutter => "GNOME",
            Self::ExtIdleNotify => "the Wayland compositor",
            Self::Login => "the login manager and the locked screen",
            Self::Windows => "Windows",
            Self::Controller => "a game controller",
        })
    }
}

/// Where the machine's power comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Power {
    /// Whether a battery (or an uninterruptible power supply) feeds it at this moment. A machine without one is on mains.
    pub on_battery: bool,
    /// How full the battery is, 0 to 100, where there is one that tells; the emptiest of several.
    pub charge_percent: Option<u8>,
}

/// Whether traffic over the present connection costs its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metered {
    /// It does.
    pub metered: bool,
    /// The owner or the network said so; otherwise the system concluded it from the kind of connection.
    pub stated: bool,
}

/// NVIDIA's GPUs in this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpus {
    /// For example `580.82.07`.
    pub driver_version: String,
    /// The cards, by their number in the driver.
    pub cards: Vec<Gpu>,
}

/// One GPU. What a card does not tell is unavailable on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number in the driver; may change when the machine starts again.
    pub index: u32,
    /// Its name for life, for example `GPU-8e5f0a51-...`.
    pub uuid: Reading<String>,
    /// For example `NVIDIA GeForce RTX 4090`.
    pub name: Reading<String>,
    /// Memory of the card, in bytes.
    pub memory_total: Reading<u64>,
    /// Bytes of it that are in use by anybody.
    pub memory_used: Reading<u64>,
    /// Bytes that our own processes use.
    pub memory_ours: Reading<u64>,
    /// Bytes that others use: all that is used, without ours.
    pub memory_others: Reading<u64>,
    /// How busy it is.
    pub load: Reading<GpuLoad>,
    /// Degrees Celsius.
    pub temperature: Reading<u32>,
    /// Power draw at this moment, in milliwatts.
    pub power_milliwatts: Reading<u32>,
    /// What the card has used since it was first looked at, by whomever: by its own counter, or where it has none by its
    /// power.
    pub energy: Reading<MeteredEnergy>,
}

/// How busy a GPU is, in percent of the time: 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuLoad {
    /// With the work of other programs: ours is not in it.
    Others(u8),
    /// With all work, ours included: this driver does not tell programs apart.
    Whole(u8),
}

impl GpuLoad {
    /// The percentage, whoever causes it.
    pub fn percent(self) -> u8 {
        match self {
            Self::Others(percent) | Self::Whole(percent) => percent,
        }
    }
}

impl fmt::Display for Idle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.1} s ago, says {}", self.idle_for.as_secs_f64(), self.source)
    }
}

impl fmt::Display for Power {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.on_battery { "battery" } else { "mains" })?;
        self.charge_percent.map_or(Ok(()), |percent| write!(formatter, ", battery {percent} % full"))
    }
}

impl fmt::Display for Metered {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match (self.metered, self.stated) {
            (true, true) => "yes",
            (false, true) => "no",
            (true, false) => "probably",
            (false, false) => "probably not",
        })
    }
}

impl fmt::Display for GpuLoad {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Others(percent) => write!(formatter, "{percent} % by other programs"),
            Self::Whole(percent) => write!(formatter, "{percent} % by all programs together"),
        }
    }
}

impl fmt::Display for Gpus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.cards.iter().map(|card| card.name.to_string()).collect();
        write!(formatter, "driver {}; {}", self.driver_version, names.join(", "))
    }
}
