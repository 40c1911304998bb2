//! The decoder block family of Llama 2/3, Mistral, Qwen2/2.5 and Qwen3, read off the configuration:
//!
//! ```text
//! x = x + O(attention(rope(norm?(Q n)), rope(norm?(K n)), V n))      n = rms_norm(x)
//! x = x + down(silu(gate m) * up m)                                  m = rms_norm(x)
//! ```
//!
//! The rows of all sequences of a batch go through norms and projections together; attention is per
//! sequence, on its own cache.

use candle_core::Tensor;
use pool_models::{LayerTensor, ModelConfig, RopeScaling, TensorName};
use pool_types::LayerRange;

use crate::{
    attention::{Heads, LayerCache, Span, attend},
    errors::LoadError,
    linear::{Embedding, Linear, Matrix},
    ops::{self, RmsNorm},
    rope::{Rotary, Turns},
    threads::Crew,
    weights::Weights,
};

/// Layers `[a, b)` of a model, with the embedding at its beginning and the head at its end.
pub(crate) struct Decoder {
    embedding: Option<Embedding>,
    layers: Vec<Layer>,
    head: Option<Head>,
    rotary: Rotary,
    heads: Heads,
    crew: Crew,
    bytes: u64,
}

/// The new rows of one sequence, and its cache: one for each of this shard's layers.
pub(crate) struct SequenceRows<'a> {
    pub(crate) caches: &'a mut [LayerCache],
    pub(crate) start: usize,
    pub(crate) rows: usize,
    pub(crate) capacity: usize,
}

struct Head {
    norm: RmsNorm,
    output: Linear,
}

struct Layer {
    attention_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    /// Norms of each head's query and key (Qwen3).
    head_norms: Option<(RmsNorm, RmsNorm)>,
    attention_output: Linear,
    feed_forward_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    window: Option<usize>,
}

impl Decoder {
    /// Reads the tensors of `range`, and no others.
    pub(crate) fn load(
        config: &ModelConfig,
        weights: &Weights<'_>,
        range: LayerRange,
        crew: Crew,
    ) -> Result<Self, LoadError> {
        let (entry, exit) = (range.start() == 0, range.end() == config.layers);
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let factors = match config.rope.scaling {
            RopeScaling::Tensor => Some(weights.vector(TensorName::RopeFrequencies, config.head_dim / 2)?),
            _ => None,
        };
        let output = match (exit, config.tied_embeddings) {
            (false, _) => None,
            (true, true) => Some(weights.matrix(TensorName::TokenEmbedding, vocab, hidden)?),
            (true, false) => Some(weights.matrix(TensorName::Output, vocab, hidden)?),
        };
        let embedding = match (&output, entry) {
            (_, false) => None,
            (Some(shared), true) if config.tied_embeddings => Some(Embedding::of(shared)),
            _ => Some(weights.embedding(TensorName::TokenEmbedding, vocab, hidden)?),
        };
        let layers: Vec<Layer> =
            range.iter().map(|layer| Layer::load(config, weights, layer)).collect::<Result<_, _>>()?;
        let head = match output {
            Some(matrix) => Some(Head {
                norm: RmsNorm::new(weights.vector(TensorName::OutputNorm, hidden)?, config.norm_epsilon),
                output: Linear { matrix, bias: None },
            }),
            None => None,
        };
        let shared = head.is_some() && config.tied_embeddings;
        let bytes = layers.iter().map(Layer::bytes).sum::<u64>()
            + embedding.as_ref().map_or(0, |e| if shared { 0 } else { e.bytes() })
            + head.as_ref().map_or(0, |h| h.norm.bytes() + h.output.bytes());
        Ok(Self {
            embedding,
            layers,
            head,
            rotary: Rotary::new(config.head_dim, &config.rope, factors.as_deref()),
            heads: Heads { heads: config.heads, kv_heads: config.kv_heads, head_dim: config.head_dim },
            crew,
            bytes,
        })
    }

    pub(crate) fn weight_bytes(&self) -> u64 {
        self.bytes
    }

    /// Empty caches for a new sequence.
    pub(crate) fn caches(&self) -> candle_core::Result<Vec<LayerCache>> {
        self.layers.iter().map(|_| LayerCache::new(self.heads)).collect()
    }

    /// The entry's hidden states of `tokens`: `[tokens, hidden]`; `None` elsewhere.
    pub(crate) fn embed(&self, tokens: &[u32]) -> Option<candle_core::Result<Tensor>> {
        self.embedding.as_ref().map(|embedding| embedding.rows(tokens))
    }

    /// Takes `hidden` (`[rows, hidden]`, the sequences' rows one after another) through the layers and
    /// stores keys and values of the new positions in the caches. `hidden` is overwritten.
    pub(crate) fn forward(&self, hidden: Tensor, sequences: &mut [SequenceRows<'_>]) -> candle_core::Result<Tensor> {
        let positions = sequences.iter().flat_map(|s| s.start..s.start + s.rows);
        let turns = self.rotary.turns(positions);
        for (index, layer) in self.layers.iter().enumerate() {
            layer.forward(self, index, &hidden, &turns, sequences)?;
        }
        Ok(hidden)
    }

    /// The exit's logits of `hidden`'s rows: `[rows, vocab]`; `None` elsewhere.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Option<candle_core::Result<Tensor>> {
        let head = self.head.as_ref()?;
        Some(head.norm.forward(self.crew, hidden).and_then(|normed| head.output.forward(self.crew, &normed)))
    }
}

impl Layer {
    fn load(config: &ModelConfig, weights: &Weights<'_>, layer: u32) -> Result<Self, LoadError> {
        use LayerTensor::*;
        let name = |tensor| TensorName::Layer(layer, tensor);
        let norm = |tensor, width| -> Result<RmsNorm, LoadError> {
            Ok(RmsNorm::new(weights.vector(name(tensor), width)?, config.norm_epsilon))
        };
        let linear = |tensor, bias: Option<LayerTensor>, rows, columns| -> Result<Linear, LoadError> {
            let matrix: Matrix = weights.matrix(name(tensor), rows, columns)?;
            let bias = bias.map(|bias| weights.vector(name(bias), rows)).transpose()?;
            Ok(Linear { matrix, bias })
        };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (query, key) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let (qkv_bias, mlp_bias) = (config.qkv_bias, config.mlp_bias);
        Ok(Self {
            attention_norm: norm(AttentionNorm, hidden)?,
            query: linear(Query, qkv_bias.then_some(QueryBias), query, hidden)?,
            key: linear(Key, qkv_bias.then_some(KeyBias), key, hidden)?,
            value: linear(Value, qkv_bias.then_some(ValueBias), key, hidden)?,
            head_norms: if config.qk_norm {
                Some((norm(QueryNorm, config.head_dim)?, norm(KeyNorm, config.head_dim)?))
            } else {
                None
            },
            attention_output: linear(
                AttentionOutput,
                config.output_bias.then_some(AttentionOutputBias),
                hidden,
                query,
            )?,
            feed_forward_norm: norm(FeedForwardNorm, hidden)?,
            gate: linear(Gate, mlp_bias.then_some(GateBias), inner, hidden)?,
            up: linear(Up, mlp_bias.then_some(UpBias), inner, hidden)?,
            down: linear(Down, mlp_bias.then_some(DownBias), hidden, inner)?,
            window: config.windows.get(layer as usize).copied().flatten(),
        })
    }

    fn bytes(&self) -> u64 {
        let linears = [&self.query, &self.key, &self.value, &self.attention_output, &self.gate, &self.up, &self.down];
        let norms = [&self.attention_norm, &self.feed_forward_norm];
        linears.iter().map(|l| l.bytes()).sum::<u64>()
            + norms.iter().map(|n| n.bytes()).sum::<u64>()
            + self.head_norms.as_ref().map_or(0, |(q, k)| q.bytes() + k.bytes())
    }

    /// One layer over `hidden` (`[rows, hidden]`), in place; `index` is its place in this shard.
    fn forward(
        &self,
        decoder: &Decoder,
        index: usize,
        hidden: &Tensor,
        turns: &Turns,
        sequences: &mut [SequenceRows<'_>],
    ) -> candle_core::Result<()> {
        let crew = decoder.crew;
        let attended = self.attention(decoder, index, &self.attention_norm.forward(crew, hidden)?, turns, sequences)?;
        ops::add_in_place(hidden, &self.attention_output.forward(crew, &attended)?)?;

        let normed = self.feed_forward_norm.forward(crew, hidden)?;
        let [gate, up] = Linear::forward_all(crew, [&self.gate, &self.up], &normed)?;
        ops::silu_times(crew, &gate, &up)?;
        ops::add_in_place(hidden, &self.down.forward(crew, &gate)?)
    }

    /// Attention of the normed rows, before the output projection: `[rows, heads * head_dim]`.
    fn attention(
        &self,
        decoder: &Decoder,
        index: usize,
        normed: &Tensor,
        turns: &Turns,
        sequences: &mut [SequenceRows<'_>],
    ) -> candle_core::Result<Tensor> {
        let (crew, heads) = (decoder.crew, decoder.heads);
        let [query, key, value] = Linear::forward_all(crew, [&self.query, &self.key, &self.value], normed)?;
        if let Some((query_norm, key_norm)) = &self.head_norms {
            query_norm.forward_heads(crew, &query)?;
            key_norm.forward_heads(crew, &key)?;
        }
        decoder.rotary.apply(crew, &query, heads.query_width(), turns)?;
        decoder.rotary.apply(crew, &key, heads.key_width(), turns)?;
        let mut first = 0;
        for sequence in sequences.iter_mut() {
            let rows = |t: &Tensor| t.narrow(0, first, sequence.rows);
            sequence.caches[index].write(sequence.start, &rows(&key)?, &rows(&value)?, sequence.capacity)?;
            first += sequence.rows;
        }
        let spans: Vec<Span<'_>> = sequences
            .iter()
            .map(|s| Span { cache: &s.caches[index], start: s.start, rows: s.rows, window: self.window })
            .collect();
        attend(crew, heads, &query, &spans)
    }
}
