pub use pool_types::Activation;
mod error;
mod gguf;
mod hugging_face;
mod shape;

use serde::{Deserialize, Serialize};

pub use error::{ConfigError, SUPPORTED};

/// The model families the engine knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 2 and 3.
    Llama,
    /// Mistral (Llama with an optional sliding window).
    Mistral,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMS norms on q and k per head.
    Qwen3,
}

/// Everything the engine, the planner and the gateway need to know of a model's shape; validated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Which architecture the weights belong to.
    pub family: Family,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: u32,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; not always `hidden_size / heads`.
    pub head_dim: usize,
    /// Epsilon of the RMS norms.
    pub norm_epsilon: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Longest sequence (prompt and answer) in tokens.
    pub max_positions: usize,
    /// Per layer: how many positions back a query may look (itself included), `None` for all.
    pub windows: Vec<Option<usize>>,
    /// The head uses the embedding table.
    pub tied_embeddings: bool,
    /// Biases on the q, k and v projections.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub output_bias: bool,
    /// Biases on the feed-forward projections.
    pub mlp_bias: bool,
    /// RMS norms on each head's q and k.
    pub qk_norm: bool,
    /// The type hidden states travel in: bf16 where the model was trained in bf16, else f16.
    pub activation: Activation,
    /// Beginning-of-sequence token, where the model has one.
    pub bos_token: Option<u32>,
    /// Tokens that end an answer.
    pub eos_tokens: Vec<u32>,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How a head's elements pair up.
    pub layout: RopeLayout,
    /// Stretching of the frequencies for long contexts.
    pub scaling: RopeScaling,
}

/// How a head's elements pair up for rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeLayout {
    /// Element `i` with `i + head_dim/2`: all Hugging Face safetensors, GGUF Qwen (candle's `rope`).
    HalfSplit,
    /// Element `2i` with `2i + 1`: GGUF Llama and Mistral (candle's `rope_i`).
    Interleaved,
}

/// Stretching of the rotary frequencies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All positions divided by `factor`.
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Llama 3.1's wavelength-dependent stretch.
    Llama3 {
        /// The stretch of the longest wavelengths.
        factor: f64,
        /// Wavelengths above `original_positions / low_frequency_factor` are stretched in full.
        low_frequency_factor: f64,
        /// Wavelengths below `original_positions / high_frequency_factor` are left alone.
        high_frequency_factor: f64,
        /// The context length of pre-training.
        original_positions: usize,
    },
    /// Frequency `i` is divided by the `i`-th value of the file's `rope_freqs` tensor (GGUF).
    Tensor,
}
