//! A link inside one process, for tests and for the shards of one process: bounded, instant, lossless.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::time::Duration;

use alloy_primitives::Address;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::{Mutex, Semaphore, mpsc},
    time::timeout,
};

use crate::{
    stats::{Counters, LinkPath, LinkStats},
    transport::{CloseReason, Lane, LinkError, Transport, check_length},
};

/// Messages that may wait in each direction, all lanes together.
const QUEUE: usize = 256;
const SEND_DEADLINE: Duration = Duration::from_secs(10);

/// One end of [`pair`].
pub struct MemoryLink {
    peer: Address,
    out: mpsc::Sender<(Lane, Bytes)>,
    inbox: Mutex<mpsc::Receiver<(Lane, Bytes)>>,
    shared: Arc<Shared>,
    closed_here: AtomicBool,
    counters: Counters,
}

/// Closed for both ends at once; a closed semaphore wakes all who wait on it.
struct Shared(Semaphore);

/// Two ends of one link. The first belongs to `a` (its peer is `b`), the second to `b`.
pub fn pair(a: Address, b: Address) -> (MemoryLink, MemoryLink) {
    let (to_b, from_a) = mpsc::channel(QUEUE);
    let (to_a, from_b) = mpsc::channel(QUEUE);
    let shared = Arc::new(Shared(Semaphore::new(0)));
    let end = |peer, out, inbox| MemoryLink {
        peer,
        out,
        inbox: Mutex::new(inbox),
        shared: shared.clone(),
        closed_here: AtomicBool::new(false),
        counters: Counters::new(LinkPath::Memory),
    };
    (end(b, to_b, from_b), end(a, to_a, from_a))
}

impl MemoryLink {
    fn reason(&self) -> LinkError {
        let here = self.closed_here.load(Ordering::Acquire);
        LinkError::Closed(if here { CloseReason::Here } else { CloseReason::There })
    }

    fn check(&self, message: &Bytes) -> Result<(), LinkError> {
        check_length(message)?;
        if self.shared.0.is_closed() { Err(self.reason()) } else { Ok(()) }
    }
}

#[async_trait]
impl Transport for MemoryLink {
    fn peer(&self) -> Address {
        self.peer
    }

    async fn send(&self, lane: Lane, message: Bytes) -> Result<(), LinkError> {
        self.check(&message)?;
        let bytes = message.len();
        let room = tokio::select! {
            room = timeout(SEND_DEADLINE, self.out.reserve()) => room.map_err(|_| LinkError::Deadline)?,
            _ = self.shared.0.acquire() => return Err(self.reason()),
        };
        room.map_err(|_| self.reason())?.send((lane, message));
        self.counters.sent(lane, bytes);
        Ok(())
    }

    async fn try_send(&self, lane: Lane, message: Bytes) -> Result<(), LinkError> {
        self.check(&message)?;
        let bytes = message.len();
        self.out.try_send((lane, message)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => LinkError::Full,
            mpsc::error::TrySendError::Closed(_) => self.reason(),
        })?;
        self.counters.sent(lane, bytes);
        Ok(())
    }

    async fn receive(&self) -> Result<(Lane, Bytes), LinkError> {
        let mut inbox = self.inbox.lock().await;
        let next = tokio::select! {
            biased;
            next = inbox.recv() => next,
            _ = self.shared.0.acquire() => None,
        };
        let (lane, message) = next.ok_or_else(|| self.reason())?;
        self.counters.received(lane, message.len());
        Ok((lane, message))
    }

    fn stats(&self) -> LinkStats {
        self.counters.snapshot()
    }

    async fn close(&self) {
        if !self.shared.0.is_closed() {
            self.closed_here.store(true, Ordering::Release);
            self.shared.0.close();
        }
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.shared.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_MESSAGE;

    fn ends() -> (MemoryLink, MemoryLink) {
        pair(Address::repeat_byte(1), Address::repeat_byte(2))
    }

    #[tokio::test]
    async fn what_was_sent_before_the_close_is_still_received() {
        let (a, b) = ends();
        assert_eq!((a.peer(), b.peer()), (Address::repeat_byte(2), Address::repeat_byte(1)));
        for n in 0..10u8 {
            a.send(Lane::Ctl, Bytes::from(vec![n; 2])).await.unwrap();
        }
        a.close().await;
        for n in 0..10u8 {
            assert_eq!(b.receive().await.unwrap(), (Lane::Ctl, Bytes::from(vec![n; 2])), "in order, none lost");
        }
        assert_eq!(b.receive().await.unwrap_err(), LinkError::Closed(CloseReason::There));
        assert_eq!(a.send(Lane::Act, Bytes::from_static(b"no")).await.unwrap_err(), CloseReason::Here.into());
        assert_eq!(b.stats().ctl.bytes_received, 20);
    }

    #[tokio::test]
    async fn a_receiver_that_stays_away_bounds_the_queue() {
        let (a, b) = ends();
        let message = Bytes::from_static(b"wait");
        for _ in 0..QUEUE {
            a.try_send(Lane::Act, message.clone()).await.unwrap();
        }
        assert_eq!(a.try_send(Lane::Act, message.clone()).await.unwrap_err(), LinkError::Full);
        let waiting = timeout(Duration::from_millis(50), a.send(Lane::Act, message.clone())).await;
        assert!(waiting.is_err(), "a send waits for room");
        b.receive().await.unwrap();
        a.try_send(Lane::Act, message).await.expect("one taken makes room for one");
    }

    #[tokio::test]
    async fn lengths_are_checked_and_a_dropped_end_is_a_closed_one() {
        let (a, b) = ends();
        for bad in [0, 1, MAX_MESSAGE + 1] {
            assert_eq!(a.send(Lane::Act, vec![0; bad].into()).await.unwrap_err(), LinkError::Length(bad));
        }
        drop(b);
        assert_eq!(a.receive().await.unwrap_err(), LinkError::Closed(CloseReason::There));
    }
}
