use alloy_primitives::Address;
use async_trait::async_trait;
use bytes::Bytes;
use pool_types::ReasonCode;
use thiserror::Error;

use crate::stats::LinkStats;

/// The longest message a link carries, in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// The shortest message a link carries, in bytes: a message of one byte is a tail probe, never data.
pub(crate) const MIN_MESSAGE: usize = 2;

/// A stream of messages within a link. Lanes do not wait for each other's lost packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Hidden states: reliable and in order.
    Act,
    /// Tokens and credits: reliable and in order.
    Ctl,
    /// Signs of life: out of order, never sent again when lost.
    Beat,
}

impl Lane {
    /// All lanes.
    pub const ALL: [Lane; 3] = [Lane::Act, Lane::Ctl, Lane::Beat];

    /// The name of the data channel.
    pub fn label(self) -> &'static str {
        match self {
            Lane::Act => "act",
            Lane::Ctl => "ctl",
            Lane::Beat => "beat",
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// Why a link is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum CloseReason {
    /// This side closed it.
    #[error("this side closed the link")]
    Here,
    /// The peer closed it.
    #[error("the peer closed the link")]
    There,
    /// The peer fell silent.
    #[error("the peer fell silent")]
    PeerLost,
    /// The peer sent what no peer may send.
    #[error("the peer broke the link's protocol")]
    Protocol,
}

impl CloseReason {
    /// The code that goes to whoever waited for the peer.
    pub fn code(self) -> ReasonCode {
        match self {
            CloseReason::Here => ReasonCode::Cancelled,
            CloseReason::There | CloseReason::PeerLost => ReasonCode::PeerLost,
            CloseReason::Protocol => ReasonCode::Protocol,
        }
    }
}

/// Why a message was not sent or received.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LinkError {
    /// A message of 0 or 1 bytes, or of more than [`MAX_MESSAGE`].
    #[error("a message of {0} bytes; links carry {MIN_MESSAGE} to {MAX_MESSAGE}")]
    Length(usize),
    /// The lane's send buffer is full now.
    #[error("the send buffer is full")]
    Full,
    /// The lane's send buffer stayed full until the deadline: the peer does not take what it is sent.
    #[error("the peer took nothing until the deadline")]
    Deadline,
    /// The link is over; it carries nothing any more.
    #[error("{0}")]
    Closed(#[from] CloseReason),
}

/// One link to one peer. Owned by whoever connected it; ends by [`close`](Transport::close), by being dropped,
/// or when the peer ends it, breaks the protocol or falls silent.
#[async_trait]
pub trait Transport: Send + Sync {
    /// The peer's wallet.
    fn peer(&self) -> Address;

    /// Queues a message for the peer. Waits while the lane's send buffer is full, up to a deadline.
    ///
    /// Returns once the message is queued; it may still be lost when the link ends.
    async fn send(&self, lane: Lane, message: Bytes) -> Result<(), LinkError>;

    /// Queues a message for the peer, or fails with [`LinkError::Full`] instead of waiting for room.
    ///
    /// (Asynchronous because the WebRTC stack's state is behind an asynchronous lock, held for microseconds.)
    async fn try_send(&self, lane: Lane, message: Bytes) -> Result<(), LinkError>;

    /// The next message. One consumer at a time; may be cancelled without losing a message.
    ///
    /// What arrived before the link ended is handed out first, then [`LinkError::Closed`] for ever. A consumer
    /// that stays away fills a bounded queue; from then on the peer's sends wait.
    async fn receive(&self) -> Result<(Lane, Bytes), LinkError>;

    /// What crossed the link so far.
    fn stats(&self) -> LinkStats;

    /// Ends the link. The peer's `receive` returns [`CloseReason::There`].
    async fn close(&self);
}

/// Checks a message's length before it is sent.
pub(crate) fn check_length(message: &Bytes) -> Result<(), LinkError> {
    if (MIN_MESSAGE..=MAX_MESSAGE).contains(&message.len()) { Ok(()) } else { Err(LinkError::Length(message.len())) }
}
