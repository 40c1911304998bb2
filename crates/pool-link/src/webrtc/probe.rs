//! Tail probes: see [`TailProbes`]. The task sleeps without a timer while nothing is unacknowledged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{Shared, settings::TailProbes};
use crate::transport::Lane;

/// The reliable lanes, at their own indices.
const LANES: [Lane; 2] = [Lane::Act, Lane::Ctl];
/// A probe's only byte. Nothing reads it; the length says what it is.
const PROBE: &[u8] = b"?";

/// When each reliable lane last sent something.
#[derive(Default)]
pub(super) struct Prober {
    /// Microseconds on the link's clock.
    last: [AtomicU64; 2],
    armed: AtomicBool,
    wake: Notify,
}

impl Prober {
    /// Notes a message; called for every one, so it only stores a number while the task is awake.
    pub(super) fn sent(&self, lane: Lane, now: u64) {
        if let Some(last) = self.last.get(lane.index()) {
            last.store(now, Ordering::Release);
            if !self.armed.swap(true, Ordering::AcqRel) {
                self.wake.notify_one();
            }
        }
    }
}

/// One lane's probing after its last message.
#[derive(Clone, Copy, Default)]
struct Tail {
    /// The message it follows, by its time; 0 when all is acknowledged or enough was tried.
    message: u64,
    probes: u32,
}

impl Tail {
    /// When the next probe is due, in microseconds on the link's clock.
    fn due(&self, probes: &TailProbes) -> u64 {
        // first, then growth, 2 growth, 3 growth, ... later
        let after = probes.first + probes.growth * (self.probes * (self.probes + 1) / 2);
        self.message + after.as_micros() as u64
    }
}

/// Runs until the link ends.
pub(super) async fn run(shared: Arc<Shared>) {
    if let Some(probes) = shared.settings.probes {
        tokio::select! {
            _ = shared.over() => {}
            () = probe(&shared, probes) => {}
        }
    }
}

async fn probe(shared: &Shared, probes: TailProbes) {
    // The messages whose tails need no more probing, by their times.
    let mut done = [0u64; 2];
    loop {
        shared.prober.wake.notified().await;
        let mut tails = [Tail::default(); 2];
        loop {
            for (i, tail) in tails.iter_mut().enumerate() {
                let last = shared.prober.last[i].load(Ordering::Acquire);
                if last != tail.message && last != done[i] {
                    *tail = Tail { message: last, probes: 0 };
                }
            }
            let next = tails.iter().filter(|tail| tail.message != 0).map(|tail| tail.due(&probes)).min();
            let Some(next) = next else {
                // Disarm, then look once more: a message noted before the disarming woke nobody.
                shared.prober.armed.store(false, Ordering::Release);
                let unseen = (0..LANES.len()).any(|i| shared.prober.last[i].load(Ordering::Acquire) != done[i]);
                if unseen && !shared.prober.armed.swap(true, Ordering::AcqRel) {
                    continue;
                }
                break;
            };
            let now = shared.now();
            if next > now {
                sleep_until(Instant::now() + Duration::from_micros(next - now)).await;
                continue;
            }
            for (i, tail) in tails.iter_mut().enumerate().filter(|(_, tail)| tail.message != 0) {
                if tail.due(&probes) > now || shared.prober.last[i].load(Ordering::Acquire) != tail.message {
                    continue;
                }
                let lane = shared.lane(LANES[i]);
                let outstanding = lane.outstanding_bytes().await.unwrap_or(0);
                if outstanding == 0 || tail.probes >= probes.most {
                    done[i] = tail.message;
                    *tail = Tail::default();
                    continue;
                }
                tail.probes += 1;
                // A lane without room has plenty in flight, and needs no probe.
                if lane.try_send(BytesMut::from(PROBE)).await.is_ok() {
                    shared.counters.probes_sent.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}
