//! A worse network around any link, for tests: seeded delay, jitter, loss, reordering, stalls and a cut.
//!
//! Loss and reordering touch [`Lane::Beat`] alone, as the reliable lanes would recover from them; there they show as
//! delay.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use alloy_primitives::Address;
use async_trait::async_trait;
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    stats::LinkStats,
    transport::{CloseReason, Lane, LinkError, Transport, check_length},
};

/// Messages that may be on their way.
const IN_FLIGHT: usize = 256;
const SEND_DEADLINE: Duration = Duration::from_secs(10);

/// What happens to messages on their way to the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weather {
    /// Added to every message.
    pub delay: Duration,
    /// Up to this much more, drawn for each message; the reliable lanes stay in order.
    pub jitter: Duration,
    /// The share of messages on [`Lane::Beat`] that are lost, `[0, 1]`.
    pub beat_loss: f64,
    /// The share of messages on [`Lane::Beat`] that are overtaken by later ones, `[0, 1]`.
    pub beat_reorder: f64,
}

/// A link whose sends go through bad [`Weather`]. Receiving is the inner link's; wrap both ends for both directions.
pub struct LossyLink<T> {
    inner: Arc<T>,
    way: mpsc::Sender<(Lane, Bytes)>,
    stalled: watch::Sender<bool>,
    cut: watch::Sender<bool>,
}

impl<T: Transport + 'static> LossyLink<T> {
    /// Wraps `inner`. The same seed and the same order of sends meet the same losses. Needs a tokio runtime.
    pub fn new(inner: T, weather: Weather, seed: u64) -> Self {
        let inner = Arc::new(inner);
        let (way, messages) = mpsc::channel(IN_FLIGHT);
        let (stalled, cut) = (watch::Sender::new(false), watch::Sender::new(false));
        let (stalled_out, mut cut_out) = (stalled.subscribe(), cut.subscribe());
        let target = inner.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = cut_out.wait_for(|cut| *cut) => {}
                () = carry(target, messages, weather, seed, stalled_out) => {}
            }
        });
        Self { inner, way, stalled, cut }
    }

    /// Holds every message back from now on, or lets them go.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    /// Cuts the way to the peer: nothing arrives any more, and nobody says so.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }
}

/// Delivers messages at their times until the link is dropped.
async fn carry<T: Transport + 'static>(
    target: Arc<T>,
    mut messages: mpsc::Receiver<(Lane, Bytes)>,
    weather: Weather,
    seed: u64,
    stalled: watch::Receiver<bool>,
) {
    let rng = Mutex::new(StdRng::seed_from_u64(seed));
    let draw = |share: f64| rng.lock().unwrap_or_else(PoisonError::into_inner).random_bool(share.clamp(0.0, 1.0));
    let jitter = |most: Duration| most.mul_f64(rng.lock().unwrap_or_else(PoisonError::into_inner).random::<f64>());
    // One queue in order for the reliable lanes; the lossy lane's messages fly alone.
    let (ordered, mut in_order) = mpsc::channel::<(Instant, Lane, Bytes)>(IN_FLIGHT);
    let (to, mut held) = (target.clone(), stalled.clone());
    let deliver = async move {
        while let Some((due, lane, message)) = in_order.recv().await {
            sleep_until(due).await;
            if held.wait_for(|stalled| !stalled).await.is_err() || to.send(lane, message).await.is_err() {
                break;
            }
        }
    };
    let spread = async move {
        let mut flying = tokio::task::JoinSet::new();
        while let Some((lane, message)) = messages.recv().await {
            while flying.try_join_next().is_some() {}
            let mut wait = weather.delay + jitter(weather.jitter);
            if lane != Lane::Beat {
                if ordered.send((Instant::now() + wait, lane, message)).await.is_err() {
                    break;
                }
                continue;
            }
            let (lost, overtaken) = (draw(weather.beat_loss), draw(weather.beat_reorder));
            if overtaken {
                wait += (weather.delay + weather.jitter).max(Duration::from_millis(5));
            }
            if !lost && flying.len() < IN_FLIGHT {
                let (to, mut held) = (target.clone(), stalled.clone());
                flying.spawn(async move {
                    sleep(wait).await;
                    if held.wait_for(|stalled| !stalled).await.is_ok() {
                        let _ = to.try_send(lane, message).await;
                    }
                });
            }
        }
        drop(ordered);
        while flying.join_next().await.is_some() {}
    };
    tokio::join!(deliver, spread);
}

#[async_trait]
impl<T: Transport + 'static> Transport for LossyLink<T> {
    fn peer(&self) -> Address {
        self.inner.peer()
    }

    async fn send(&self, lane: Lane, message: Bytes) -> Result<(), LinkError> {
        check_length(&message)?;
        if *self.cut.borrow() {
            // Nobody has told this side yet.
            return Ok(());
        }
        match timeout(SEND_DEADLINE, self.way.send((lane, message))).await {
            Ok(sent) => sent.map_err(|_| CloseReason::There.into()),
            Err(_) => Err(LinkError::Deadline),
        }
    }

    async fn try_send(&self, lane: Lane, message: Bytes) -> Result<(), LinkError> {
        check_length(&message)?;
        if *self.cut.borrow() {
            return Ok(());
        }
        self.way.try_send((lane, message)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => LinkError::Full,
            mpsc::error::TrySendError::Closed(_) => CloseReason::There.into(),
        })
    }

    async fn receive(&self) -> Result<(Lane, Bytes), LinkError> {
        self.inner.receive().await
    }

    fn stats(&self) -> LinkStats {
        self.inner.stats()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{self, MemoryLink};

    fn ends(weather: Weather, seed: u64) -> (LossyLink<MemoryLink>, MemoryLink) {
        let (a, b) = memory::pair(Address::repeat_byte(1), Address::repeat_byte(2));
        (LossyLink::new(a, weather, seed), b)
    }

    /// What arrives of 200 beats, in its order.
    async fn arrivals(weather: Weather, seed: u64) -> Vec<u16> {
        let (a, b) = ends(weather, seed);
        for n in 0..200u16 {
            a.send(Lane::Beat, n.to_le_bytes().to_vec().into()).await.unwrap();
        }
        let mut seen = Vec::new();
        while let Ok(Ok((_, message))) = timeout(Duration::from_millis(300), b.receive()).await {
            seen.push(u16::from_le_bytes(message[..].try_into().unwrap()));
        }
        seen
    }

    #[tokio::test]
    async fn the_same_seed_loses_and_reorders_the_same_beats() {
        let weather =
            Weather { delay: Duration::from_millis(20), beat_loss: 0.2, beat_reorder: 0.2, ..Weather::default() };
        let (seen, again, other) = tokio::join!(arrivals(weather, 7), arrivals(weather, 7), arrivals(weather, 8));
        let sorted = |seen: &[u16]| seen.iter().copied().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(sorted(&seen), sorted(&again), "seed 7 must be seed 7");
        assert_ne!(sorted(&seen), sorted(&other), "another seed is another network");
        assert!((120..=190).contains(&seen.len()), "a fifth of 200 is lost, give or take: {}", seen.len());
        assert!(seen.windows(2).any(|w| w[0] > w[1]), "some are overtaken");
    }

    #[tokio::test]
    async fn reliable_lanes_arrive_late_but_whole_and_in_order() {
        let weather = Weather {
            delay: Duration::from_millis(40),
            jitter: Duration::from_millis(20),
            beat_loss: 1.0,
            beat_reorder: 1.0,
        };
        let (a, b) = ends(weather, 3);
        let start = Instant::now();
        for n in 0..100u8 {
            let lane = if n % 2 == 0 { Lane::Act } else { Lane::Ctl };
            a.send(lane, vec![n; 3].into()).await.unwrap();
        }
        for n in 0..100u8 {
            assert_eq!(b.receive().await.unwrap().1, vec![n; 3], "message {n}");
        }
        assert!(start.elapsed() >= Duration::from_millis(40), "everything is delayed: {:?}", start.elapsed());
        assert!(start.elapsed() <= Duration::from_secs(2), "but not one after the other: {:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_stall_ends_and_a_cut_does_not() {
        let (a, b) = ends(Weather::default(), 1);
        a.stall(true);
        a.send(Lane::Act, Bytes::from_static(b"held")).await.unwrap();
        assert!(timeout(Duration::from_millis(100), b.receive()).await.is_err(), "nothing passes a stall");
        a.stall(false);
        assert_eq!(b.receive().await.unwrap().1, "held");
        a.cut();
        a.send(Lane::Act, Bytes::from_static(b"lost")).await.unwrap();
        assert!(
            timeout(Duration::from_millis(100), b.receive()).await.is_err(),
            "nothing passes a cut, no news either"
        );
    }
}
