//! The words the scheduler and the worker share: places, peers, steps and effects.

use bytes::Bytes;
use pool_types::{Activation, Epoch, RequestId, Sampling, TokenChoice};
use pool_wire::frame::Frame;

/// Who a frame comes from or goes to, seen from this shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// The orchestrator's gateway (entry and exit only).
    Gateway,
    /// The shard that holds the layers before.
    Previous,
    /// The shard that holds the layers after.
    Next,
    /// Seen from the exit of three shards or more: the entry.
    Entry,
    /// Seen from the entry of three shards or more: the exit.
    Exit,
}

/// This shard's place in the coalition.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The membership generation.
    pub epoch: Epoch,
    /// 0 is the entry.
    pub index: usize,
    /// How many shards there are.
    pub shards: usize,
    /// Width of a hidden state.
    pub hidden: u32,
    /// Element type between shards.
    pub wire: Activation,
    /// Rows of prefill in one batch.
    pub prefill_chunk: u32,
    /// Rows of the embedding table: tokens must be below.
    pub vocabulary: u32,
}

impl Place {
    pub(super) fn is_entry(&self) -> bool {
        self.index == 0
    }

    pub(super) fn is_exit(&self) -> bool {
        self.index + 1 == self.shards
    }

    /// How the entry sees the exit. With two shards, the exit is the next one.
    pub(super) fn exit_seen_from_entry(&self) -> Peer {
        if self.shards == 2 { Peer::Next } else { Peer::Exit }
    }

    pub(super) fn entry_seen_from_exit(&self) -> Peer {
        if self.shards == 2 { Peer::Previous } else { Peer::Entry }
    }
}

/// Something the worker must do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send frames to a peer.
    Send(Peer, Vec<Frame>),
    /// Reserve cache for a request; on failure call [`Scheduler::fail`].
    Open {
        /// The request.
        request: RequestId,
        /// Tokens to reserve.
        capacity: u32,
        /// At the exit: how to sample, and the prompt for penalties.
        sampler: Option<(Sampling, Vec<u32>)>,
    },
    /// Free a request's cache.
    Close(RequestId),
}

/// One step to compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// Whose step.
    pub request: RequestId,
    /// Which step.
    pub step: u32,
    /// Position of its first row.
    pub position: u32,
    /// Roll the cache back to this length first.
    pub truncate_to: Option<u32>,
    /// The rows.
    pub input: WorkInput,
    /// Sample after the last row (at the exit), or let the exit do so.
    pub sample: bool,
}

/// A step's rows.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkInput {
    /// Token ids, at the entry.
    Tokens(Vec<u32>),
    /// Hidden states, everywhere else.
    Hidden {
        /// How many rows.
        rows: u32,
        /// Their element type.
        dtype: Activation,
        /// `rows * hidden` elements.
        data: Bytes,
    },
}

impl Work {
    /// How many rows it adds to a batch.
    pub fn rows(&self) -> u32 {
        match &self.input {
            WorkInput::Tokens(tokens) => tokens.len() as u32,
            WorkInput::Hidden { rows, .. } => *rows,
        }
    }

    /// Bytes of hidden states it holds.
    pub(super) fn bytes(&self) -> usize {
        match &self.input {
            WorkInput::Tokens(_) => 0,
            WorkInput::Hidden { data, .. } => data.len(),
        }
    }
}

/// What the engine made of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Hidden states for the next shard.
    Hidden(Vec<u8>),
    /// The exit's token.
    Token(TokenChoice),
    /// The exit worked a chunk that is not the last of its prompt.
    Nothing,
}
