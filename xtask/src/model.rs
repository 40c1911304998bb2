//! The Llama that is trained: the paper in plain operations, because candle's fused ones have no backward pass.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::rotary_emb::rope_slow;
use rand::Rng;

/// The shape of a Llama.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Tokens in the vocabulary.
    pub(crate) vocab: usize,
    /// Width of the hidden state.
    pub(crate) hidden: usize,
    /// Width of the feed-forward part.
    pub(crate) ffn: usize,
    /// Layers.
    pub(crate) layers: usize,
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head_dim: usize,
    /// Longest text in tokens.
    pub(crate) positions: usize,
    /// Base of the rotary angles.
    pub(crate) theta: f32,
    /// Keeps RMSNorm away from a division by zero.
    pub(crate) eps: f64,
}

impl Config {
    /// The bundled model: every width a multiple of 256 for Q4_K, six layers for 1, 2, 3 or 6 shards.
    pub(crate) fn tiny(vocab: usize) -> Self {
        Self {
            vocab,
            hidden: 256,
            ffn: 256,
            layers: 6,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            positions: 1024,
            theta: 10_000.0,
            eps: 1e-5,
        }
    }

    /// Name and shape of every tensor, as Hugging Face names them. The head is the embedding.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, q, kv) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, hidden])];
        for layer in 0..self.layers {
            let parts = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![q, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, q]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![self.ffn, hidden]),
                ("mlp.up_proj", vec![self.ffn, hidden]),
                ("mlp.down_proj", vec![hidden, self.ffn]),
            ];
            tensors.extend(parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape)));
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        tensors
    }

    /// Numbers in all tensors.
    pub(crate) fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
}

/// Fresh weights: norms at one, matrices normal, those that write to the residual stream smaller.
pub(crate) fn fresh_weights(config: &Config, rng: &mut impl Rng) -> Result<BTreeMap<String, Var>> {
    let mut weights = BTreeMap::new();
    for (name, shape) in config.tensors() {
        let size: usize = shape.iter().product();
        let deviation = match name.as_str() {
            name if name.ends_with("norm.weight") => None,
            name if name.contains("o_proj") || name.contains("down_proj") => {
                Some(0.05 / (2.0 * config.layers as f32).sqrt())
            }
            name if name.contains("embed_tokens") => Some(0.03),
            _ => Some(0.05),
        };
        let values = match deviation {
            None => vec![1.0; size],
            Some(deviation) => (0..size).map(|_| deviation * normal(rng)).collect(),
        };
        let var = Var::from_vec(values, shape, &Device::Cpu).with_context(|| format!("making {name}"))?;
        weights.insert(name, var);
    }
    Ok(weights)
}

/// A number of the standard normal distribution (Box and Muller, 1958).
fn normal(rng: &mut impl Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * rng.random::<f32>()).cos()
}

/// A Llama over given weights. Cloning is cheap and shares the weights.
#[derive(Clone)]
pub(crate) struct Llama {
    config: Config,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    cos: Tensor,
    sin: Tensor,
}

#[derive(Clone)]
struct Layer {
    input_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    post_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl Llama {
    /// Takes the weights by name, in f32.
    pub(crate) fn new(config: &Config, weight: impl Fn(&str) -> Result<Tensor>) -> Result<Self> {
        let layer = |index: usize| {
            let part = |part: &str| weight(&format!("model.layers.{index}.{part}.weight"));
            anyhow::Ok(Layer {
                input_norm: part("input_layernorm")?,
                q: part("self_attn.q_proj")?,
                k: part("self_attn.k_proj")?,
                v: part("self_attn.v_proj")?,
                o: part("self_attn.o_proj")?,
                post_norm: part("post_attention_layernorm")?,
                gate: part("mlp.gate_proj")?,
                up: part("mlp.up_proj")?,
                down: part("mlp.down_proj")?,
            })
        };
        let angles: Vec<f32> = (0..config.positions)
            .flat_map(|position| {
                let angle = move |i| position as f32 / config.theta.powf(i as f32 / config.head_dim as f32);
                (0..config.head_dim).step_by(2).map(angle)
            })
            .collect();
        let angles = Tensor::from_vec(angles, (config.positions, config.head_dim / 2), &Device::Cpu)?;
        Ok(Self {
            config: config.clone(),
            embedding: weight("model.embed_tokens.weight")?,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            norm: weight("model.norm.weight")?,
            cos: angles.cos()?,
            sin: angles.sin()?,
        })
    }

    /// Hidden states after the final norm, one row a token: `rows` texts of equal length, one after the other.
    pub(crate) fn hidden(&self, ids: &[u32], rows: usize) -> Result<Tensor> {
        let length = ids.len() / rows;
        let mask = self.mask(length)?;
        let (cos, sin) = (self.cos.narrow(0, 0, length)?, self.sin.narrow(0, 0, length)?);
        let ids = Tensor::new(ids, &Device::Cpu)?;
        let mut x = self.embedding.index_select(&ids, 0)?;
        for layer in &self.layers {
            let attended = self.attend(layer, &self.rms_norm(&x, &layer.input_norm)?, rows, &mask, &cos, &sin)?;
            x = (x + attended)?;
            let normed = self.rms_norm(&x, &layer.post_norm)?;
            let gated = (linear(&normed, &layer.gate)?.silu()? * linear(&normed, &layer.up)?)?;
            x = (x + linear(&gated, &layer.down)?)?;
        }
        self.rms_norm(&x, &self.norm)
    }

    /// Scores of all tokens for given rows of hidden states.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        linear(hidden, &self.embedding)
    }

    fn attend(
        &self,
        layer: &Layer,
        x: &Tensor,
        rows: usize,
        mask: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
    ) -> Result<Tensor> {
        let Config { heads, kv_heads, head_dim, .. } = self.config;
        let length = x.dim(0)? / rows;
        let split = |x: Tensor, heads: usize| x.reshape((rows, length, heads, head_dim))?.transpose(1, 2)?.contiguous();
        let q = rope_slow(&split(linear(x, &layer.q)?, heads)?, cos, sin)?;
        let k = rope_slow(&split(linear(x, &layer.k)?, kv_heads)?, cos, sin)?;
        let v = split(linear(x, &layer.v)?, kv_heads)?;
        // Query heads that share a key head lie next to each other, so they become longer rows of one product.
        let shared = heads / kv_heads;
        let q = (q.reshape((rows, kv_heads, shared * length, head_dim))? * (head_dim as f64).powf(-0.5))?;
        let scores = q.matmul(&k.t()?)?.broadcast_add(mask)?;
        let mixed = softmax(&scores)?.matmul(&v)?.reshape((rows, heads, length, head_dim))?;
        linear(&mixed.transpose(1, 2)?.reshape((rows * length, heads * head_dim))?, &layer.o)
    }

    /// Minus infinity where a token would look ahead, once for each query head that shares a key head.
    fn mask(&self, length: usize) -> Result<Tensor> {
        let shared = self.config.heads / self.config.kv_heads;
        let look = |from: usize| (0..length).map(move |to| if to > from { f32::NEG_INFINITY } else { 0.0 });
        let mask: Vec<f32> = (0..shared * length).flat_map(|row| look(row % length)).collect();
        Ok(Tensor::from_vec(mask, (shared * length, length), &Device::Cpu)?)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        Ok(x.broadcast_div(&(mean + self.config.eps)?.sqrt()?)?.broadcast_mul(weight)?)
    }
}

fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(x.matmul(&weight.t()?)?)
}

fn softmax(x: &Tensor) -> candle_core::Result<Tensor> {
    // The maximum only keeps the exponents small; it cancels, so it needs no gradient.
    let exponents = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    exponents.broadcast_div(&exponents.sum_keepdim(D::Minus1)?)
}

/// Natural logarithms of the chances of all tokens at a temperature, one row a position.
pub(crate) fn log_chances(logits: &Tensor, temperature: f64) -> Result<Vec<Vec<f32>>> {
    let logits = (logits.to_dtype(DType::F32)? / temperature)?;
    Ok(candle_nn::ops::log_softmax(&logits, D::Minus1)?.to_vec2()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Llama {
        let config = Config { layers: 2, vocab: 40, ..Config::tiny(40) };
        let weights = fresh_weights(&config, &mut crate::corpus::rng(3)).unwrap();
        Llama::new(&config, |name| Ok(weights[name].as_tensor().clone())).unwrap()
    }

    #[test]
    fn the_bundled_shape_is_as_promised() {
        let config = Config::tiny(1024);
        assert!((2_000_000..3_500_000).contains(&config.parameters()), "{}", config.parameters());
        assert_eq!(config.layers % 6, 0, "one, two, three or six shards");
        for (name, shape) in config.tensors() {
            assert_eq!(shape[shape.len() - 1] % 256, 0, "Q4_K packs rows of 256: {name} {shape:?}");
        }
    }

    #[test]
    fn a_token_never_sees_what_comes_later() {
        let llama = small();
        let short = llama.hidden(&[1, 2, 3], 1).unwrap().to_vec2::<f32>().unwrap();
        let long = llama.hidden(&[1, 2, 3, 4, 5], 1).unwrap().to_vec2::<f32>().unwrap();
        for (a, b) in short.iter().flatten().zip(long[..3].iter().flatten()) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }

    #[test]
    fn rows_of_a_batch_do_not_mix() {
        let llama = small();
        let alone = llama.hidden(&[7, 8, 9], 1).unwrap().to_vec2::<f32>().unwrap();
        let second = llama.hidden(&[1, 2, 3, 7, 8, 9], 2).unwrap().to_vec2::<f32>().unwrap();
        for (a, b) in alone.iter().flatten().zip(second[3..].iter().flatten()) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}
