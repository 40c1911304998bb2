use pool_models::{Activation, TensorError, TensorName, TensorType};
use pool_types::LayerRange;
use thiserror::Error;

use crate::{engine::SequenceId, hidden::HiddenError, sampler::SampleError};

/// A layer range that cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The range goes beyond the model's layers.
    #[error("layers {range} are not all in the model: it has {layers}")]
    Layers {
        /// What was asked for.
        range: LayerRange,
        /// How many layers the model has.
        layers: u32,
    },
    /// More compute threads than cores, or none.
    #[error("{asked} compute threads were asked for; choose between 1 and {available}")]
    Threads {
        /// What was asked for.
        asked: usize,
        /// The cores this process may use.
        available: usize,
    },
    /// A longer context than the model was made for, or none.
    #[error("a context of {asked} tokens was asked for; choose between 1 and {available}")]
    Context {
        /// What was asked for.
        asked: usize,
        /// The model's longest sequence.
        available: usize,
    },
    /// The configuration contradicts itself.
    #[error("the model's configuration does not hold together: {0}")]
    Config(&'static str),
    /// The model lacks a tensor that its configuration calls for.
    #[error("the model has no tensor {0:?}")]
    Missing(TensorName),
    /// A tensor's shape is not what the configuration says.
    #[error("tensor `{file_name}` ({name:?}) has shape {got:?}, expected {expected:?}")]
    Shape {
        /// Which tensor.
        name: TensorName,
        /// Its name in the file.
        file_name: String,
        /// What the configuration says.
        expected: Vec<usize>,
        /// What the file says.
        got: Vec<usize>,
    },
    /// A tensor is stored in a form that its place does not allow.
    #[error("tensor `{file_name}` ({name:?}) cannot be used as {kind:?} here: {reason}")]
    Type {
        /// Which tensor.
        name: TensorName,
        /// Its name in the file.
        file_name: String,
        /// How it is stored.
        kind: TensorType,
        /// Why that does not do.
        reason: &'static str,
    },
    /// A tensor's bytes are more or fewer than its shape and type need.
    #[error("tensor `{file_name}` ({name:?}) has {got} bytes, expected {expected}")]
    Length {
        /// Which tensor.
        name: TensorName,
        /// Its name in the file.
        file_name: String,
        /// What shape and type need.
        expected: u64,
        /// What there is.
        got: u64,
    },
    /// A tensor could not be read.
    #[error(transparent)]
    Read(#[from] TensorError),
    /// The tensor library refused a tensor.
    #[error("cannot take in tensor {name:?}: {source}")]
    Tensor {
        /// Which tensor.
        name: TensorName,
        /// What the library said.
        source: candle_core::Error,
    },
}

/// A sequence that cannot be opened.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum OpenError {
    /// The KV budget has no room for it now.
    #[error("the sequence needs room for {needed} tokens, {free} are free")]
    KvFull {
        /// Tokens asked for.
        needed: usize,
        /// Tokens not reserved by other sequences.
        free: usize,
    },
    /// It is longer than this shard's context.
    #[error("the sequence needs a context of {needed} tokens, the longest is {max}")]
    ContextTooLong {
        /// Tokens asked for.
        needed: usize,
        /// The longest sequence.
        max: usize,
    },
    /// A sequence must hold at least one token.
    #[error("a sequence needs room for at least one token")]
    Empty,
    /// There is one of that id already.
    #[error("sequence {0} is already open")]
    Exists(SequenceId),
    /// A sampling parameter is outside its bounds.
    #[error(transparent)]
    Sampling(#[from] pool_types::SamplingError),
    /// A token of the prompt, or one with a bias, is not in the vocabulary.
    #[error("token {token} is not in the vocabulary of {vocab}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// The vocabulary's size.
        vocab: usize,
    },
}

/// A sequence that cannot be rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TruncateError {
    /// There is no such sequence.
    #[error("sequence {0} is not open")]
    Unknown(SequenceId),
    /// It is shorter than that.
    #[error("sequence {sequence} has {len} tokens, it cannot be cut to {asked}")]
    Longer {
        /// Which sequence.
        sequence: SequenceId,
        /// Its length.
        len: usize,
        /// What was asked for.
        asked: usize,
    },
}

/// A batch that was not worked. Nothing was changed: leave the named sequence out and try again.
#[derive(Debug, Error)]
pub enum AdvanceError {
    /// The sequence is not open.
    #[error("sequence {sequence} is not open")]
    Unknown {
        /// Which sequence.
        sequence: SequenceId,
    },
    /// The batch has two steps of one sequence.
    #[error("sequence {sequence} is in the batch twice")]
    Twice {
        /// Which sequence.
        sequence: SequenceId,
    },
    /// The step does not begin where the sequence ends.
    #[error("sequence {sequence} has {len} tokens, a step at {position} does not fit")]
    Position {
        /// Which sequence.
        sequence: SequenceId,
        /// Its length.
        len: usize,
        /// The step's position.
        position: usize,
    },
    /// The step has no rows.
    #[error("the step of sequence {sequence} is empty")]
    Empty {
        /// Which sequence.
        sequence: SequenceId,
    },
    /// The step goes beyond what the sequence reserved.
    #[error("sequence {sequence} would hold {needed} tokens, {capacity} are reserved")]
    Capacity {
        /// Which sequence.
        sequence: SequenceId,
        /// Tokens after the step.
        needed: usize,
        /// Tokens reserved.
        capacity: usize,
    },
    /// The entry shard takes token ids, every other one hidden states.
    #[error("sequence {sequence}: this shard takes {expected}")]
    Input {
        /// Which sequence.
        sequence: SequenceId,
        /// What the shard takes.
        expected: &'static str,
    },
    /// A token is not in the vocabulary.
    #[error("sequence {sequence}: token {token} is not in the vocabulary of {vocab}")]
    UnknownToken {
        /// Which sequence.
        sequence: SequenceId,
        /// The token.
        token: u32,
        /// The vocabulary's size.
        vocab: usize,
    },
    /// Hidden states came in another type than this coalition's.
    #[error("sequence {sequence}: hidden states are {got:?}, expected {expected:?}")]
    WireType {
        /// Which sequence.
        sequence: SequenceId,
        /// The coalition's type.
        expected: Activation,
        /// The step's type.
        got: Activation,
    },
    /// Hidden states that cannot be read, or that this shard made and the wire type cannot carry.
    #[error("sequence {sequence}: {source}")]
    Hidden {
        /// Which sequence.
        sequence: SequenceId,
        /// What is wrong with them.
        source: HiddenError,
    },
    /// Only the exit shard samples, and only sequences opened with a sampler.
    #[error("sequence {sequence} has no sampler on this shard")]
    NoSampler {
        /// Which sequence.
        sequence: SequenceId,
    },
    /// No token could be chosen.
    #[error("sequence {sequence}: {source}")]
    Sample {
        /// Which sequence.
        sequence: SequenceId,
        /// Why.
        source: SampleError,
    },
    /// The tensor library failed; no sequence in particular is to blame.
    #[error("the computation failed: {0}")]
    Compute(#[from] candle_core::Error),
}

impl AdvanceError {
    /// The sequence to blame.
    pub fn sequence(&self) -> Option<SequenceId> {
        match self {
            AdvanceError::Unknown { sequence }
            | AdvanceError::Twice { sequence }
            | AdvanceError::Position { sequence, .. }
            | AdvanceError::Empty { sequence }
            | AdvanceError::Capacity { sequence, .. }
            | AdvanceError::Input { sequence, .. }
            | AdvanceError::UnknownToken { sequence, .. }
            | AdvanceError::WireType { sequence, .. }
            | AdvanceError::Hidden { sequence, .. }
            | AdvanceError::NoSampler { sequence }
            | AdvanceError::Sample { sequence, .. } => Some(*sequence),
            AdvanceError::Compute(_) => None,
        }
    }
}
