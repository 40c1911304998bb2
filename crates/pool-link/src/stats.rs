use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::transport::Lane;

/// What crossed one lane. Probes and heartbeats are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStats {
    /// Messages handed to the peer's direction.
    pub messages_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Messages the consumer received.
    pub messages_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
}

/// How long a heartbeat takes to the peer and back, over the last 256 heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTrip {
    /// The latest.
    pub last: Duration,
    /// The median.
    pub p50: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// How many were measured since the link began.
    pub samples: u64,
}

/// The way a link's packets take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkPath {
    /// Inside one process.
    Memory,
    /// Straight to the peer.
    Direct,
    /// Through a TURN server.
    Relay,
}

/// What a link has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkStats {
    /// Hidden states.
    pub act: LaneStats,
    /// Tokens and credits.
    pub ctl: LaneStats,
    /// Messages of the upper layers on the lossy lane.
    pub beat: LaneStats,
    /// `None` until the first heartbeat came back.
    pub round_trip: Option<RoundTrip>,
    /// How long the link has been up.
    pub connected_for: Duration,
    /// Tail probes sent.
    pub probes_sent: u64,
    /// The way its packets take.
    pub path: LinkPath,
}

impl LinkStats {
    /// The figures of one lane.
    pub fn lane(&self, lane: Lane) -> LaneStats {
        match lane {
            Lane::Act => self.act,
            Lane::Ctl => self.ctl,
            Lane::Beat => self.beat,
        }
    }
}

const ROUND_TRIPS_KEPT: usize = 256;

#[derive(Default)]
struct LaneCounters {
    messages_sent: AtomicU64,
    bytes_sent: AtomicU64,
    messages_received: AtomicU64,
    bytes_received: AtomicU64,
}

#[derive(Default)]
struct RoundTrips {
    recent: VecDeque<Duration>,
    samples: u64,
}

/// The counters behind [`LinkStats`]: lock-free where every message passes.
pub(crate) struct Counters {
    lanes: [LaneCounters; 3],
    round_trips: Mutex<RoundTrips>,
    pub(crate) probes_sent: AtomicU64,
    connected: Instant,
    path: LinkPath,
}

impl Counters {
    pub(crate) fn new(path: LinkPath) -> Self {
        Self {
            lanes: Default::default(),
            round_trips: Mutex::default(),
            probes_sent: AtomicU64::new(0),
            connected: Instant::now(),
            path,
        }
    }

    pub(crate) fn sent(&self, lane: Lane, bytes: usize) {
        let counters = &self.lanes[lane.index()];
        counters.messages_sent.fetch_add(1, Ordering::Relaxed);
        counters.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, lane: Lane, bytes: usize) {
        let counters = &self.lanes[lane.index()];
        counters.messages_received.fetch_add(1, Ordering::Relaxed);
        counters.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn round_trip(&self, took: Duration) {
        let mut trips = self.round_trips.lock().unwrap_or_else(PoisonError::into_inner);
        if trips.recent.len() == ROUND_TRIPS_KEPT {
            trips.recent.pop_front();
        }
        trips.recent.push_back(took);
        trips.samples += 1;
    }

    pub(crate) fn snapshot(&self) -> LinkStats {
        let lane = |lane: Lane| {
            let counters = &self.lanes[lane.index()];
            LaneStats {
                messages_sent: counters.messages_sent.load(Ordering::Relaxed),
                bytes_sent: counters.bytes_sent.load(Ordering::Relaxed),
                messages_received: counters.messages_received.load(Ordering::Relaxed),
                bytes_received: counters.bytes_received.load(Ordering::Relaxed),
            }
        };
        let round_trip = {
            let trips = self.round_trips.lock().unwrap_or_else(PoisonError::into_inner);
            let mut sorted: Vec<_> = trips.recent.iter().copied().collect();
            sorted.sort_unstable();
            trips.recent.back().map(|last| RoundTrip {
                last: *last,
                p50: sorted[(sorted.len() - 1) / 2],
                p99: sorted[(sorted.len() - 1) * 99 / 100],
                samples: trips.samples,
            })
        };
        LinkStats {
            act: lane(Lane::Act),
            ctl: lane(Lane::Ctl),
            beat: lane(Lane::Beat),
            round_trip,
            connected_for: self.connected.elapsed(),
            probes_sent: self.probes_sent.load(Ordering::Relaxed),
            path: self.path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_of_the_latest_256_heartbeats() {
        let counters = Counters::new(LinkPath::Memory);
        assert_eq!(counters.snapshot().round_trip, None, "nothing measured yet");
        for n in 1..=1000 {
            counters.round_trip(Duration::from_micros(n));
        }
        let trip = counters.snapshot().round_trip.unwrap();
        assert_eq!(trip.last, Duration::from_micros(1000));
        assert_eq!(trip.samples, 1000);
        assert_eq!(trip.p50, Duration::from_micros(872), "the median of 745..=1000");
        assert_eq!(trip.p99, Duration::from_micros(997));
    }
}
