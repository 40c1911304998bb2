//! Requests that found their place in the cache not yet freed.

use std::time::{Duration, Instant};

use pool_types::{Epoch, Failure, ReasonCode};

use super::{DataPlane, Live};

/// How often a request is offered again that found its place in the cache not yet freed.
pub(super) const RETRIES: u32 = 8;
const RETRY_AFTER: Duration = Duration::from_millis(15);

impl DataPlane {
    /// Offers a request again, after a moment; the term counts it as retrying until then.
    pub(super) async fn offer_again(self, epoch: Epoch, live: Live) {
        tokio::time::sleep(RETRY_AFTER * (live.retries + 1)).await;
        let mut state = self.state();
        let tokens = live.tokens.clone();
        let changed = || Failure::new(ReasonCode::PeerLost, "the coalition changed before the request began");
        let offered = match state.term.as_mut().filter(|term| term.assignment.epoch == epoch) {
            Some(term) => {
                term.retrying -= 1;
                let offered = if tokens.is_closed() {
                    Err(changed())
                } else {
                    term.reserved += u64::from(live.prompt.capacity());
                    self.launch(term, Live { retries: live.retries + 1, heard: Instant::now(), ..live })
                };
                term.settle(&self);
                offered
            }
            None => Err(changed()),
        };
        if let Err(failure) = offered {
            state.counters.failed += 1;
            let _ = tokens.try_send(Err(failure));
        }
    }
}
