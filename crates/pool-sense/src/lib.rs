//! What the machine offers: memory, cores, and how fast it streams memory. Sensors of the owner's presence come later.
//!
//! Callers take [`Sense`], so that tests pass [`FixedSense`] and the node passes [`HostSense`].
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

mod bandwidth;
mod host;

pub use bandwidth::measure_memory_bandwidth;
pub use host::{FixedSense, HostFacts, HostSense, Sense, SenseError};
