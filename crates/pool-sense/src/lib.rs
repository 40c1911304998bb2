//! What the machine offers (memory, cores, how fast memory streams), whether its owner is there, and what state it is
//! in. Senses and never decides; whoever decides takes the [`Sense`] and [`Presence`] traits.
//!
//! ```
//! use pool_sense::{FixedSense, HostFacts, Sense};
//! use std::time::Duration;
//!
//! let facts = HostFacts { memory_total: 16 << 30, memory_available: 12 << 30, logical_cores: 8, physical_cores: 4, ..HostFacts::default() };
//! let sense = FixedSense { facts, bandwidth: 40e9 };
//! assert_eq!(sense.facts()?.memory_available, 12 << 30);
//! assert_eq!(sense.memory_bandwidth(Duration::from_millis(100), 4)?, 40e9);
//! # Ok::<(), pool_sense::SenseError>(())
//! ```
//!
//! [`Senses`] reads every sensor in the background; a [`Snapshot`] copies what was read and never blocks:
//!
//! ```
//! use pool_sense::{Presence, Senses, Surroundings};
//! use std::time::Duration;
//!
//! let senses = Senses::start(&Surroundings::of_this_process())?;
//! senses.set_programs(vec!["blender".to_owned()]);
//! senses.wait_for_first_readings(Duration::from_secs(5));
//! let now = senses.snapshot();
//! println!("Battery: {:?}. Full-screen: {}.", now.power.reading, now.full_screen.reading);
//! # Ok::<(), pool_sense::SensesError>(())
//! ```
//!
//! # What is read, how, and how often
//!
//! Every value is a [`pool_types::Reading`]: a value, or "unavailable, because ...". A sensor whose service hangs costs its
//! own thread 250 ms and tells nothing until the service answers again; nothing is ever guessed.
//!
//! | value | Linux, in this order | Windows | every |
//! |---|---|---|---|
//! | last input | X11 (XScreenSaver; not under Wayland) | GetLastInputInfo | 100 ms |
//! | | GNOME (org.gnome.Mutter.IdleMonitor) | | signal; 0.5 s while active, 5 s while idle |
//! | | ext-idle-notify-v1: KDE, sway, Hyprland | | signal; sign of life every 5 s |
//! | | logind's idle hint together with a locked screen or an active screen saver | | signal; 2 s |
//! | | and game controllers: /dev/input/js* | and XInput | with the above, at most 200 ms |
//! | full-screen | the active X11 window | Direct3D and foreground window | 1 s |
//! | kept awake | GNOME, KDE, logind inhibitors | presentation mode, execution state | 2 s |
//! | GPUs and their energy | NVML | NVML | 2 s (30 s without a driver) |
//! | GPU memory of one process | NVML | NVML | when asked |
//! | programs | /proc | process list | 4 s (never, if none is named) |
//! | power | /sys/class/power_supply | GetSystemPowerStatus | 5 s |
//! | energy of the processor | /sys/class/powercap (RAPL) | - | 5 s |
//! | metered | NetworkManager | INetworkCostManager | 5 s |
//!
//! ext-idle-notify takes a program that keeps the screen awake for an input, for somebody who watches a film is there; the
//! other sources do not, and *kept awake* tells it.
//!
//! Where no source of input works, all are tried again every 2 s; where a later one serves, the earlier ones are tried
//! every 30 s. A value that was not renewed for three intervals and 2 s is unavailable.

mod bandwidth;
mod cell;
mod controllers;
mod energy;
mod gpu;
mod host;
mod input;
mod lane;
#[cfg(target_os = "linux")]
mod linux;
mod platform;
mod processes;
mod senses;
mod sensor;
mod surroundings;
mod values;
#[cfg(windows)]
mod windows;

pub use bandwidth::measure_memory_bandwidth;
pub use cell::Sensed;
pub use energy::{EnergyMeter, EnergyReading, MeteredEnergy};
pub use host::{FixedSense, HostFacts, HostSense, Sense, SenseError};
pub use senses::{FixedPresence, Presence, Senses, SensesError, Snapshot};
pub use sensor::{InputSource, LastInput, Sensor};
pub use surroundings::Surroundings;
pub use values::{Gpu, GpuLoad, Gpus, Idle, IdleSource, Metered, Power};
