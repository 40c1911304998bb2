//! What follows from a configuration alone: which tensors there must be, and how many bytes they take.

use super::{ConfigError, ModelConfig, RopeScaling};
use crate::source::{LayerTensor, TensorName, TensorType};

/// Bounds far above any published model, so that no later product overflows.
const BOUNDS: [(&str, u64); 6] = [
    ("vocab_size", 1 << 24),
    ("hidden_size", 1 << 18),
    ("intermediate_size", 1 << 21),
    ("num_hidden_layers", 2048),
    ("num_attention_heads", 8192),
    ("max_position_embeddings", 1 << 28),
];
const MOST_HEAD_DIM: u64 = 4096;

impl ModelConfig {
    /// Checks what the formats do not promise: positive, plausible sizes, whole head groups, an even head.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let values = [
            self.vocab_size as u64,
            self.hidden_size as u64,
            self.intermediate_size as u64,
            u64::from(self.layers),
            self.heads as u64,
            self.max_positions as u64,
        ];
        for ((field, most), value) in BOUNDS.into_iter().zip(values) {
            if value == 0 || value > most {
                return Err(ConfigError::Range { field, value, least: 1, most });
            }
        }
        let head_dim = self.head_dim as u64;
        if head_dim == 0 || head_dim > MOST_HEAD_DIM {
            return Err(ConfigError::Range { field: "head_dim", value: head_dim, least: 2, most: MOST_HEAD_DIM });
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::OddHead(self.head_dim));
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigError::HeadGroups { heads: self.heads, kv_heads: self.kv_heads });
        }
        if !(self.norm_epsilon > 0.0 && self.norm_epsilon < 1.0) {
            return Err(ConfigError::Number { field: "rms_norm_eps", value: self.norm_epsilon });
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return Err(ConfigError::Number { field: "rope_theta", value: self.rope.theta });
        }
        let positive = |field, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { Err(ConfigError::Number { field, value }) }
        };
        match self.rope.scaling {
            RopeScaling::None | RopeScaling::Tensor => {}
            RopeScaling::Linear { factor } => positive("factor", factor)?,
            RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_positions } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low_frequency_factor)?;
                positive("high_freq_factor", high_frequency_factor)?;
                if high_frequency_factor <= low_frequency_factor {
                    return Err(ConfigError::Number { field: "high_freq_factor", value: high_frequency_factor });
                }
                if original_positions == 0 {
                    return Err(ConfigError::Number { field: "original_max_position_embeddings", value: 0.0 });
                }
            }
        }
        if self.windows.len() != self.layers as usize {
            return Err(ConfigError::LayerTypes { listed: self.windows.len(), layers: self.layers });
        }
        if self.windows.contains(&Some(0)) {
            return Err(ConfigError::Number { field: "sliding_window", value: 0.0 });
        }
        Ok(())
    }

    /// The tensors of one decoder layer with their row-major shapes.
    pub fn layer_tensors(&self) -> Vec<(LayerTensor, Vec<usize>)> {
        let (hidden, feed) = (self.hidden_size, self.intermediate_size);
        let (query, key) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![
            (LayerTensor::AttentionNorm, vec![hidden]),
            (LayerTensor::Query, vec![query, hidden]),
            (LayerTensor::Key, vec![key, hidden]),
            (LayerTensor::Value, vec![key, hidden]),
            (LayerTensor::AttentionOutput, vec![hidden, query]),
            (LayerTensor::FeedForwardNorm, vec![hidden]),
            (LayerTensor::Gate, vec![feed, hidden]),
            (LayerTensor::Up, vec![feed, hidden]),
            (LayerTensor::Down, vec![hidden, feed]),
        ];
        if self.qkv_bias {
            tensors.push((LayerTensor::QueryBias, vec![query]));
            tensors.push((LayerTensor::KeyBias, vec![key]));
            tensors.push((LayerTensor::ValueBias, vec![key]));
        }
        if self.output_bias {
            tensors.push((LayerTensor::AttentionOutputBias, vec![hidden]));
        }
        if self.qk_norm {
            tensors.push((LayerTensor::QueryNorm, vec![self.head_dim]));
            tensors.push((LayerTensor::KeyNorm, vec![self.head_dim]));
        }
        if self.mlp_bias {
            tensors.push((LayerTensor::GateBias, vec![feed]));
            tensors.push((LayerTensor::UpBias, vec![feed]));
            tensors.push((LayerTensor::DownBias, vec![hidden]));
        }
        tensors
    }

    /// Every tensor a model of this configuration must have, with its row-major shape.
    pub fn tensors(&self) -> Vec<(TensorName, Vec<usize>)> {
        let mut all = vec![
            (TensorName::TokenEmbedding, vec![self.vocab_size, self.hidden_size]),
            (TensorName::OutputNorm, vec![self.hidden_size]),
        ];
        if !self.tied_embeddings {
            all.push((TensorName::Output, vec![self.vocab_size, self.hidden_size]));
        }
        if self.rope.scaling == RopeScaling::Tensor {
            all.push((TensorName::RopeFrequencies, vec![self.head_dim / 2]));
        }
        let layer = self.layer_tensors();
        for index in 0..self.layers {
            all.extend(layer.iter().map(|(tensor, shape)| (TensorName::Layer(index, *tensor), shape.clone())));
        }
        all
    }

    /// Number of parameters; a tied embedding counts once.
    pub fn parameters(&self) -> u64 {
        let layer: u64 = self.layer_tensors().iter().map(|(_, shape)| elements(shape)).sum();
        let tables = if self.tied_embeddings { 1 } else { 2 };
        let table = self.vocab_size as u64 * self.hidden_size as u64;
        layer * u64::from(self.layers) + tables * table + self.hidden_size as u64
    }

    /// Bytes of one decoder layer when its matrices are stored as `kind`; norms and biases count as f32 beside
    /// quantised matrices (as GGUF files have them), else as `kind`.
    pub fn estimate_layer_bytes(&self, kind: TensorType) -> u64 {
        self.layer_tensors().iter().map(|(_, shape)| stored(shape, kind)).sum()
    }

    /// Bytes an entry shard needs besides its layers: the embedding.
    pub fn estimate_entry_bytes(&self, kind: TensorType) -> u64 {
        stored(&[self.vocab_size, self.hidden_size], kind)
    }

    /// Bytes an exit shard needs besides its layers: the last norm and the head, which a tied model loads as well.
    pub fn estimate_exit_bytes(&self, kind: TensorType) -> u64 {
        stored(&[self.hidden_size], kind) + stored(&[self.vocab_size, self.hidden_size], kind)
    }

    /// Bytes the key/value cache of `layers` layers grows by with each token, at `element_bytes` an element.
    pub fn kv_bytes_per_token(&self, layers: u32, element_bytes: usize) -> u64 {
        2 * u64::from(layers) * (self.kv_heads * self.head_dim * element_bytes) as u64
    }
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|&n| n as u64).product()
}

/// Rows that are not whole blocks are rounded up: an estimate, where a quantiser would fall back to another type.
fn stored(shape: &[usize], kind: TensorType) -> u64 {
    let kind = if shape.len() < 2 && kind.is_quantised() { TensorType::F32 } else { kind };
    elements(shape).div_ceil(kind.block_elements() as u64) * kind.block_bytes() as u64
}
