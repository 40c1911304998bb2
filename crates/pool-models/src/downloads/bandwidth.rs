//! How fast all downloads together may be.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// What may pass at once after a pause, as time at the full rate.
const BURST: Duration = Duration::from_millis(100);

/// A cap shared by all connections, which may be changed at any time.
#[derive(Debug)]
pub(crate) struct Bandwidth {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Bytes a second; `None` for no cap.
    rate: Option<u64>,
    /// When everything that has passed will have been paid for at the rate.
    paid: Instant,
}

impl Bandwidth {
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Self { state: Mutex::new(State { rate, paid: Instant::now() }), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the cap. Whoever waits under the old one goes on at once.
    pub(crate) fn set(&self, rate: Option<u64>) {
        *self.state() = State { rate, paid: Instant::now() };
        self.changed.notify_waiters();
    }

    /// Waits until `bytes` that have come may be counted as come.
    pub(crate) async fn take(&self, bytes: u64) {
        // Listens before it looks, so that no change is missed.
        let changed = self.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let until = {
            let mut state = self.state();
            let Some(rate) = state.rate else { return };
            let now = Instant::now();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let price = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            state.paid = state.paid.max(earliest) + price;
            state.paid
        };
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = changed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn seconds_for(bandwidth: &Bandwidth, chunks: u64, bytes: u64) -> f64 {
        let began = Instant::now();
        for _ in 0..chunks {
            bandwidth.take(bytes).await;
        }
        began.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn a_cap_holds_over_all_connections_and_can_be_changed() {
        let bandwidth = Arc::new(Bandwidth::new(Some(1_000_000)));
        let took = seconds_for(&bandwidth, 100, 50_000).await;
        assert!((4.8..5.1).contains(&took), "5 MB at 1 MB a second take 5 seconds, not {took}");
        let two = tokio::join!(seconds_for(&bandwidth, 50, 50_000), seconds_for(&bandwidth, 50, 50_000));
        assert!((4.8..5.2).contains(&two.0.max(two.1)), "two connections share the cap, {two:?}");
        bandwidth.set(None);
        assert!(seconds_for(&bandwidth, 100, 50_000).await < 0.01, "without a cap nobody waits");
    }

    #[tokio::test(start_paused = true)]
    async fn lifting_the_cap_frees_whoever_waits_under_it() {
        let bandwidth = Arc::new(Bandwidth::new(Some(1)));
        let waiting = tokio::spawn({
            let bandwidth = bandwidth.clone();
            async move { seconds_for(&bandwidth, 1, 1_000_000).await }
        });
        tokio::time::sleep(Duration::from_secs(2)).await;
        bandwidth.set(Some(1_000_000));
        let waited = waiting.await.expect("it does not panic");
        assert!(waited < 2.1, "it waited {waited} seconds of the 11 days that the old cap asked for");
    }
}
