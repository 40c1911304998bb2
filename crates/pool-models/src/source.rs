use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A tensor by its place in the model, whatever the file calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorName {
    /// `[vocab, hidden]`.
    TokenEmbedding,
    /// `[hidden]`.
    OutputNorm,
    /// `[vocab, hidden]`; absent when embeddings are tied.
    Output,
    /// `[head_dim / 2]`: GGUF's frequency factors.
    RopeFrequencies,
    /// A tensor of decoder layer `.0`.
    Layer(u32, LayerTensor),
}

/// A tensor inside one decoder layer. Matrices are `[out, in]`, row major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each name is the tensor's own")]
pub enum LayerTensor {
    AttentionNorm,
    Query,
    Key,
    Value,
    AttentionOutput,
    QueryBias,
    KeyBias,
    ValueBias,
    AttentionOutputBias,
    QueryNorm,
    KeyNorm,
    FeedForwardNorm,
    Gate,
    Up,
    Down,
    GateBias,
    UpBias,
    DownBias,
}

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each name is the format's own")]
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl TensorType {
    /// Elements in one block: rows are stored as whole blocks.
    pub fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes one block takes, scales included (ggml's block layouts).
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes that `elements` take, or `None` when they are not whole blocks or the sum overflows.
    pub fn byte_length(self, elements: u64) -> Option<u64> {
        let block = self.block_elements() as u64;
        if !elements.is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(self.block_bytes() as u64)
    }

    /// The type that is displayed so.
    pub fn from_name(name: &str) -> Option<Self> {
        const ALL: [TensorType; 13] = [
            TensorType::F32,
            TensorType::F16,
            TensorType::BF16,
            TensorType::Q4_0,
            TensorType::Q4_1,
            TensorType::Q5_0,
            TensorType::Q5_1,
            TensorType::Q8_0,
            TensorType::Q2K,
            TensorType::Q3K,
            TensorType::Q4K,
            TensorType::Q5K,
            TensorType::Q6K,
        ];
        ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether elements share scales in blocks.
    pub fn is_quantised(self) -> bool {
        self.block_elements() > 1
    }
}

/// The name GGUF tools print: `Q4_K`, `BF16`.
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl TensorType {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }
}

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// The name in the file.
    pub file_name: String,
    /// Element type.
    pub kind: TensorType,
    /// Row-major shape, outermost first: a matrix is `[out, in]`.
    pub shape: Vec<usize>,
    /// Which of the model's files (index into [`TensorSource::files`]).
    pub file: usize,
    /// First byte in that file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Where the engine reads a model's tensors from: local files, or the cache of single tensors.
pub trait TensorSource: Send + Sync {
    /// The tensor's place and form, or `None` when the model has no such tensor.
    fn info(&self, name: TensorName) -> Option<&TensorInfo>;

    /// The tensor's bytes, exactly `info.length` of them, little endian as in the file. Counts towards [`Self::bytes_read`].
    fn bytes(&self, name: TensorName) -> Result<Cow<'_, [u8]>, TensorError>;

    /// How many tensor bytes have been handed out: a shard must read its own layers' and no more.
    fn bytes_read(&self) -> u64;

    /// Every tensor the model has.
    fn names(&self) -> Vec<TensorName>;

    /// The files' names, for messages.
    fn files(&self) -> Vec<String>;
}

/// A tensor that cannot be had.
#[derive(Debug, Error)]
pub enum TensorError {
    /// The model's files do not hold it.
    #[error("the model has no tensor {0:?}")]
    Missing(TensorName),
    /// It belongs to the model, but only other layers have been downloaded.
    #[error("tensor `{0}` has not been downloaded; assign its layer to this machine and let the download finish")]
    NotDownloaded(String),
    /// The file ended before the tensor did.
    #[error("{file} is cut short: tensor `{tensor}` needs bytes {start}..{end} of {length}")]
    Truncated {
        /// The file.
        file: String,
        /// The name in the file.
        tensor: String,
        /// First byte wanted.
        start: u64,
        /// One past the last byte wanted.
        end: u64,
        /// The file's length.
        length: u64,
    },
    /// Reading failed.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Bytes of one decoder layer's tensors.
pub fn layer_bytes(source: &dyn TensorSource, layer: u32) -> u64 {
    sum(source, |name| matches!(name, TensorName::Layer(l, _) if l == layer))
}

/// Bytes an entry shard holds besides its layers: the embedding.
pub fn entry_bytes(source: &dyn TensorSource) -> u64 {
    sum(source, |name| matches!(name, TensorName::TokenEmbedding))
}

/// Bytes an exit shard holds besides its layers: the last norm and the head. Where the head is tied to the
/// embedding, the embedding counts here as well as at the entry, since both shards load it.
pub fn exit_bytes(source: &dyn TensorSource) -> u64 {
    let head = if source.info(TensorName::Output).is_some() { TensorName::Output } else { TensorName::TokenEmbedding };
    sum(source, |name| name == TensorName::OutputNorm || name == head)
}

fn sum(source: &dyn TensorSource, wanted: impl Fn(TensorName) -> bool) -> u64 {
    let lengths = source.names().into_iter().filter(|&name| wanted(name)).filter_map(|name| source.info(name));
    lengths.map(|info| info.length).sum()
}
