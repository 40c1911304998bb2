//! Memory, cores and names, read from the operating system.

use std::time::Duration;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
use thiserror::Error;

use crate::bandwidth::measure_memory_bandwidth;

/// What a machine is and has free at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The machine's name, empty where it has none.
    pub host_name: String,
    /// The processor's name as its maker writes it.
    pub cpu_name: String,
    /// Hardware threads this process may use (its affinity mask and CPU quota counted).
    pub logical_cores: usize,
    /// Physical cores of the machine; never more than [`HostFacts::logical_cores`].
    pub physical_cores: usize,
    /// Memory in bytes, or the container's limit where that is lower.
    pub memory_total: u64,
    /// Bytes that can be taken without swapping, within the container's limit.
    pub memory_available: u64,
}

/// Why the machine could not be read.
#[derive(Debug, Error)]
pub enum SenseError {
    /// The operating system gave no information.
    #[error("this system does not tell its memory and cores: {0}")]
    Unsupported(String),
    /// The number of usable threads is unknown.
    #[error("the number of usable processor threads is unknown")]
    Threads(#[source] std::io::Error),
    /// Too little memory to measure with.
    #[error("{needed} bytes for the bandwidth measurement could not be had")]
    NoMemory {
        /// Bytes that were asked for.
        needed: usize,
    },
}

/// What a node wants to know of its machine. Calls block for as long as they say.
pub trait Sense: Send + Sync {
    /// Reads the machine. Takes some milliseconds.
    fn facts(&self) -> Result<HostFacts, SenseError>;

    /// Bytes per second that `threads` threads stream from memory. Takes about `budget`.
    fn memory_bandwidth(&self, budget: Duration, threads: usize) -> Result<f64, SenseError>;
}

/// The machine this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostSense;

impl Sense for HostSense {
    fn facts(&self) -> Result<HostFacts, SenseError> {
        let wanted = RefreshKind::nothing()
            .with_memory(MemoryRefreshKind::nothing().with_ram())
            .with_cpu(CpuRefreshKind::nothing());
        let system = System::new_with_specifics(wanted).map_err(|e| SenseError::Unsupported(e.to_string()))?;
        let logical_cores = std::thread::available_parallelism().map_err(SenseError::Threads)?.get();
        let physical_cores = System::physical_core_count().unwrap_or(logical_cores).clamp(1, logical_cores);
        let (mut memory_total, mut memory_available) = (system.total_memory(), system.available_memory());
        if let Some(limits) = system.cgroup_limits().filter(|limits| limits.total_memory > 0) {
            memory_total = memory_total.min(limits.total_memory);
            memory_available = memory_available.min(limits.free_memory);
        }
        Ok(HostFacts {
            host_name: System::host_name().unwrap_or_default(),
            cpu_name: system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()).unwrap_or_default(),
            logical_cores,
            physical_cores,
            memory_total,
            memory_available: memory_available.min(memory_total),
        })
    }

    fn memory_bandwidth(&self, budget: Duration, threads: usize) -> Result<f64, SenseError> {
        measure_memory_bandwidth(budget, threads)
    }
}

/// A machine whose figures are given: for tests and for planning over machines that are not here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FixedSense {
    /// What [`Sense::facts`] answers.
    pub facts: HostFacts,
    /// What [`Sense::memory_bandwidth`] answers, in bytes per second.
    pub bandwidth: f64,
}

impl Sense for FixedSense {
    fn facts(&self) -> Result<HostFacts, SenseError> {
        Ok(self.facts.clone())
    }

    fn memory_bandwidth(&self, _budget: Duration, _threads: usize) -> Result<f64, SenseError> {
        Ok(self.bandwidth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_and_cores() {
        let facts = HostSense.facts().unwrap();
        assert!(facts.logical_cores >= 1 && (1..=facts.logical_cores).contains(&facts.physical_cores), "{facts:?}");
        assert!(facts.memory_total > 64 << 20, "a test machine has more than 64 MiB, {facts:?}");
        assert!((1..=facts.memory_total).contains(&facts.memory_available), "free memory is a part of all, {facts:?}");
    }

    #[test]
    fn bandwidth_is_measured_within_its_time_and_in_a_believable_range() {
        let began = std::time::Instant::now();
        let bandwidth = HostSense.memory_bandwidth(Duration::from_millis(100), 1).unwrap();
        let took = began.elapsed();
        assert!(
            (50e6..2e12).contains(&bandwidth),
            "between a busy toy and a server of many channels: {bandwidth:e} B/s"
        );
        assert!(took < Duration::from_secs(5), "a budget of 100 ms ends soon even on a busy machine, took {took:?}");
    }

    #[test]
    fn no_threads_and_no_time_still_give_a_figure() {
        let bandwidth = measure_memory_bandwidth(Duration::ZERO, 0).unwrap();
        assert!(bandwidth.is_finite() && bandwidth > 0.0, "at least one pass is timed, {bandwidth}");
    }
}
