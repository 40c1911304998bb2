//! What the node offers of its machine.

use std::time::Duration;

use pool_sense::{Sense, SenseError};
use pool_wire::control::Capabilities;

use crate::config::ResourceLimits;

/// How long the memory is measured.
const MEASURE: Duration = Duration::from_millis(60);

/// Measures the machine and keeps to the limits. Blocks for about 0.2 s, most of it to fill a buffer.
pub fn measure_capabilities(sense: &dyn Sense, limits: ResourceLimits) -> Result<Capabilities, SenseError> {
    let facts = sense.facts()?;
    let threads = limits.threads.unwrap_or(facts.physical_cores).clamp(1, facts.logical_cores.max(1));
    let share = if limits.memory_share.is_finite() { limits.memory_share.clamp(0.0, 1.0) } else { 0.0 };
    let memory_bytes = limits.memory_bytes.unwrap_or((facts.memory_available as f64 * share) as u64);
    let bandwidth = sense.memory_bandwidth(MEASURE, threads)?;
    Ok(Capabilities {
        device: if facts.cpu_name.is_empty() { "cpu".to_owned() } else { format!("cpu: {}", facts.cpu_name) },
        memory_bytes,
        bandwidth_bytes_per_second: bandwidth as u64,
        threads: u32::try_from(threads).unwrap_or(u32::MAX),
        uplink_bytes_per_second: None,
    })
}

#[cfg(test)]
mod tests {
    use pool_sense::{FixedSense, HostFacts};

    use super::*;

    #[test]
    fn a_node_offers_no_more_than_it_may() {
        let facts = HostFacts {
            memory_total: 16 << 30,
            memory_available: 10 << 30,
            logical_cores: 8,
            physical_cores: 4,
            ..HostFacts::default()
        };
        let sense = FixedSense { facts, bandwidth: 40e9 };
        let offer = |limits| measure_capabilities(&sense, limits).unwrap();
        let all = offer(ResourceLimits::default());
        assert_eq!((all.threads, all.memory_bytes), (4, 8 << 30), "physical cores and 80 % of what is free");
        let half = offer(ResourceLimits { threads: Some(2), memory_share: 0.5, memory_bytes: None });
        assert_eq!((half.threads, half.memory_bytes), (2, 5 << 30));
        let exact = offer(ResourceLimits { threads: Some(99), memory_share: f64::NAN, memory_bytes: Some(1 << 20) });
        assert_eq!((exact.threads, exact.memory_bytes), (8, 1 << 20), "never more threads than there are");
    }
}
