//! Signs of life on the lossy lane, and the end of a link.
//!
//! Every heartbeat carries its sender's clock, the latest clock heard from the peer, and how long that was held: one
//! message in each direction keeps both sides alive and gives both the round-trip time (the scheme of RTCP's LSR and
//! DLSR, RFC 3550 section 6.4.1).
//!
//! A peer is lost when nothing was heard of it for a second, whether or not anybody waits for its messages. Silence can
//! be our own, though: the stack hands out nothing behind a full queue, a lost packet holds up all that SCTP sends
//! after it, and on a busy machine this thread may not have run. Then datagrams have come in all the same, or lie
//! unread in the socket, and the peer gets longer. Only a machine that is gone sends none: ICE asks and answers every
//! 250 ms, too, past all queues.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use webrtc::{
    data_channel::DataChannelEvent,
    peer_connection::{PeerConnection, RTCPeerConnectionState},
};

use super::Shared;
use crate::transport::{CloseReason, Lane, MAX_MESSAGE, MIN_MESSAGE};

/// Messages of the upper layers that may wait; more are lost, as the lane's contract has it.
pub(super) const UPPER_QUEUE: usize = 64;

/// First byte of a heartbeat: then the sender's clock, the echoed clock (0: none), and how long it was held.
const BEAT: u8 = 1;
const BEAT_LENGTH: usize = 1 + 8 + 8 + 4;
/// First byte of an upper layer's message.
pub(super) const DATA: u8 = 2;
/// First byte of a farewell.
const BYE: u8 = 3;

/// While something comes in and no heartbeat is among it, the peer gets this many times longer.
const PATIENCE_IN_STALL: u32 = 10;
/// How long an ending link waits for the peer to acknowledge what was sent.
const LINGER: Duration = Duration::from_millis(250);
const LINGER_STEP: Duration = Duration::from_millis(2);
/// What the stack gets to put the farewell on the wire.
const FAREWELL: Duration = Duration::from_millis(5);

/// The latest clock heard from the peer, and when.
#[derive(Default)]
struct Echo {
    clock: u64,
    heard: u64,
}

/// Beats, listens and judges until the link ends; then closes the connection. Owns the connection.
pub(super) async fn run(
    shared: Arc<Shared>,
    connection: Arc<dyn PeerConnection>,
    mut state: watch::Receiver<RTCPeerConnectionState>,
    upper: mpsc::Sender<Bytes>,
    finished: watch::Sender<bool>,
) {
    let settings = &shared.settings;
    let lane = shared.lane(Lane::Beat).clone();
    let mut ticks = interval(settings.heartbeat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let judgement = sleep_until(Instant::now() + settings.silent_after);
    tokio::pin!(judgement);
    let over = shared.over();
    tokio::pin!(over);
    let mut echo = Echo::default();
    let reason = loop {
        tokio::select! {
            biased;
            reason = &mut over => break reason,
            event = lane.poll() => match event {
                Some(DataChannelEvent::OnMessage(message)) => hear(&shared, message.data, &mut echo, &upper),
                Some(DataChannelEvent::OnClose) | None => shared.end(CloseReason::There),
                Some(_) => {}
            },
            changed = state.changed() => {
                let now = *state.borrow_and_update();
                match now {
                    RTCPeerConnectionState::Failed => shared.end(CloseReason::PeerLost),
                    RTCPeerConnectionState::Closed => shared.end(CloseReason::There),
                    _ if changed.is_err() => shared.end(CloseReason::There),
                    _ => {}
                }
            }
            _ = ticks.tick() => {
                // A full send buffer means that plenty is on its way already.
                let _ = lane.try_send(beat(&shared, &echo)).await;
                judgement.as_mut().reset(Instant::now() + silence_left(&shared));
            }
            () = &mut judgement => {
                let left = silence_left(&shared);
                if left.is_zero() {
                    shared.end(CloseReason::PeerLost);
                }
                judgement.as_mut().reset(Instant::now() + left.max(settings.heartbeat / 4));
            }
        }
    };
    if reason == CloseReason::Here {
        linger(&shared).await;
    }
    if matches!(reason, CloseReason::Here | CloseReason::Protocol) {
        let _ = lane.try_send(BytesMut::from(&[BYE, 0][..])).await;
        sleep(FAREWELL).await;
    }
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "closing a link's connection");
    }
    shared.arrivals.end();
    finished.send_replace(true);
}

fn beat(shared: &Shared, echo: &Echo) -> BytesMut {
    let now = shared.now();
    let mut beat = BytesMut::with_capacity(BEAT_LENGTH);
    beat.put_u8(BEAT);
    beat.put_u64_le(now);
    beat.put_u64_le(echo.clock);
    beat.put_u32_le(u32::try_from(now.saturating_sub(echo.heard)).unwrap_or(u32::MAX));
    beat
}

/// Takes a message of the lossy lane. What is none of ours is ignored: a later version may say more.
fn hear(shared: &Shared, mut message: BytesMut, echo: &mut Echo, upper: &mpsc::Sender<Bytes>) {
    shared.heard_now();
    match message.first() {
        Some(&BEAT) if message.len() == BEAT_LENGTH => {
            let now = shared.now();
            message.advance(1);
            *echo = Echo { clock: message.get_u64_le(), heard: now };
            let (ours, held) = (message.get_u64_le(), u64::from(message.get_u32_le()));
            // A peer may lie about what it heard and how long it held it; the figure is its own loss, within bounds.
            if let Some(took) = now.checked_sub(ours).and_then(|took| took.checked_sub(held))
                && ours != 0
            {
                shared.counters.round_trip(Duration::from_micros(took));
            }
        }
        Some(&DATA) if message.len() > MIN_MESSAGE => {
            let data = message.split_off(1).freeze();
            if data.len() > MAX_MESSAGE {
                shared.end(CloseReason::Protocol);
            } else {
                let _ = upper.try_send(data);
            }
        }
        Some(&BYE) if message.len() == 2 => shared.end(CloseReason::There),
        _ => {}
    }
}

/// How much longer the peer may stay silent.
fn silence_left(shared: &Shared) -> Duration {
    let patience = shared.settings.silent_after;
    let silent = Duration::from_micros(shared.now().saturating_sub(shared.heard.load(Ordering::Relaxed)));
    let left = patience.saturating_sub(silent);
    let spoke = || shared.arrivals.quiet_for() < patience || shared.arrivals.unread();
    if left.is_zero() && spoke() { (patience * PATIENCE_IN_STALL).saturating_sub(silent) } else { left }
}

/// Waits until the peer has acknowledged what was sent on the reliable lanes, within limits.
async fn linger(shared: &Shared) {
    let deadline = Instant::now() + LINGER;
    for lane in [Lane::Ctl, Lane::Act] {
        while Instant::now() < deadline && matches!(shared.lane(lane).outstanding_bytes().await, Ok(1..)) {
            sleep(LINGER_STEP).await;
        }
    }
}
