//! Small models in memory, and engines over them.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use half::{bf16, f16};
use pool_engine::{Engine, EngineOptions, LoadError, Quantise, SequenceId, Step, StepInput, StepOutput};
use pool_models::{
    Activation, Family, LayerTensor, ModelConfig, Rope, RopeLayout, RopeScaling, TensorError, TensorInfo, TensorName,
    TensorSource, TensorType,
};
use pool_types::LayerRange;

/// A model's tensors in memory.
pub(crate) struct MemorySource {
    pub(crate) tensors: BTreeMap<TensorName, (TensorInfo, Vec<u8>)>,
    read: AtomicU64,
}

impl TensorSource for MemorySource {
    fn info(&self, name: TensorName) -> Option<&TensorInfo> {
        self.tensors.get(&name).map(|(info, _)| info)
    }

    fn bytes(&self, name: TensorName) -> Result<Cow<'_, [u8]>, TensorError> {
        let (_, bytes) = self.tensors.get(&name).ok_or(TensorError::Missing(name))?;
        self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(Cow::Borrowed(bytes))
    }

    fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    fn names(&self) -> Vec<TensorName> {
        self.tensors.keys().copied().collect()
    }

    fn files(&self) -> Vec<String> {
        vec!["memory".into()]
    }
}

/// A Llama of 4 layers whose widths divide nothing evenly that need not be: 6 heads of 16 over 2
/// key/value heads, hidden 48.
pub(crate) fn llama() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        vocab_size: 61,
        hidden_size: 48,
        intermediate_size: 80,
        layers: 4,
        heads: 6,
        kv_heads: 2,
        head_dim: 16,
        norm_epsilon: 1e-5,
        rope: Rope { theta: 10_000.0, layout: RopeLayout::Interleaved, scaling: RopeScaling::None },
        max_positions: 512,
        windows: vec![None; 4],
        tied_embeddings: false,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        activation: Activation::F16,
        bos_token: Some(1),
        eos_tokens: vec![2],
    }
}

/// Every option that a supported family uses, in one configuration each.
pub(crate) fn families() -> Vec<(&'static str, ModelConfig)> {
    let rope = |layout, scaling| Rope { theta: 50_000.0, layout, scaling };
    let half = RopeLayout::HalfSplit;
    let llama3 = RopeScaling::Llama3 {
        factor: 4.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_positions: 32,
    };
    vec![
        ("llama, untied, interleaved", llama()),
        ("llama, tied, llama3 scaling", ModelConfig { tied_embeddings: true, rope: rope(half, llama3), ..llama() }),
        (
            "llama, frequency factors, all biases",
            ModelConfig {
                qkv_bias: true,
                output_bias: true,
                mlp_bias: true,
                rope: rope(RopeLayout::Interleaved, RopeScaling::Tensor),
                ..llama()
            },
        ),
        (
            "mistral, windows shorter than the prompt, some layers without",
            ModelConfig {
                family: Family::Mistral,
                windows: vec![Some(7), None, Some(1), Some(20)],
                rope: rope(half, RopeScaling::Linear { factor: 2.0 }),
                ..llama()
            },
        ),
        (
            "qwen2, biases on q, k and v, one key/value head",
            ModelConfig {
                family: Family::Qwen2,
                qkv_bias: true,
                kv_heads: 1,
                head_dim: 8,
                rope: rope(half, RopeScaling::None),
                ..llama()
            },
        ),
        (
            "qwen3, norms on q and k, tied, as many key/value heads as heads",
            ModelConfig {
                family: Family::Qwen3,
                qk_norm: true,
                tied_embeddings: true,
                kv_heads: 6,
                rope: rope(half, RopeScaling::None),
                ..llama()
            },
        ),
    ]
}

/// Every tensor that a configuration calls for, with its shape.
pub(crate) fn tensor_shapes(config: &ModelConfig) -> Vec<(TensorName, Vec<usize>)> {
    use LayerTensor::*;
    let (vocab, hidden, inner) = (config.vocab_size, config.hidden_size, config.intermediate_size);
    let (query, key) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut shapes = vec![(TensorName::TokenEmbedding, vec![vocab, hidden]), (TensorName::OutputNorm, vec![hidden])];
    if !config.tied_embeddings {
        shapes.push((TensorName::Output, vec![vocab, hidden]));
    }
    if config.rope.scaling == RopeScaling::Tensor {
        shapes.push((TensorName::RopeFrequencies, vec![config.head_dim / 2]));
    }
    for layer in 0..config.layers {
        let mut add = |tensor, shape| shapes.push((TensorName::Layer(layer, tensor), shape));
        add(AttentionNorm, vec![hidden]);
        add(FeedForwardNorm, vec![hidden]);
        add(Query, vec![query, hidden]);
        add(Key, vec![key, hidden]);
        add(Value, vec![key, hidden]);
        add(AttentionOutput, vec![hidden, query]);
        add(Gate, vec![inner, hidden]);
        add(Up, vec![inner, hidden]);
        add(Down, vec![hidden, inner]);
        if config.qkv_bias {
            add(QueryBias, vec![query]);
            add(KeyBias, vec![key]);
            add(ValueBias, vec![key]);
        }
        if config.output_bias {
            add(AttentionOutputBias, vec![hidden]);
        }
        if config.mlp_bias {
            add(GateBias, vec![inner]);
            add(UpBias, vec![inner]);
            add(DownBias, vec![hidden]);
        }
        if config.qk_norm {
            add(QueryNorm, vec![config.head_dim]);
            add(KeyNorm, vec![config.head_dim]);
        }
    }
    shapes
}

/// A seeded stream of numbers in (-1, 1).
pub(crate) fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// The f32 values of every tensor, drawn from `seed`.
pub(crate) fn random_weights(config: &ModelConfig, seed: u64) -> BTreeMap<TensorName, (Vec<usize>, Vec<f32>)> {
    let mut next = noise(seed);
    tensor_shapes(config)
        .into_iter()
        .map(|(name, shape)| {
            let elements = shape.iter().product();
            let values = (0..elements)
                .map(|i| match (&name, shape.len()) {
                    (TensorName::RopeFrequencies, _) => 1.0 + (i % 4) as f32,
                    (_, 1) => 1.0 + 0.3 * next(),
                    (TensorName::TokenEmbedding, _) => next(),
                    _ => next() * 2.0 / (shape[1] as f32).sqrt(),
                })
                .collect();
            (name, (shape, values))
        })
        .collect()
}

/// Unquantised tensors in a source.
pub(crate) fn source(weights: &BTreeMap<TensorName, (Vec<usize>, Vec<f32>)>, kind: TensorType) -> MemorySource {
    let tensors = weights
        .iter()
        .map(|(name, (shape, values))| {
            // Norms and biases are f32 in GGUF files whatever the matrices are.
            let kind = if shape.len() == 1 { TensorType::F32 } else { kind };
            let bytes: Vec<u8> = match kind {
                TensorType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                TensorType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
                TensorType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
                other => panic!("{other:?} is not a float type"),
            };
            (*name, entry(format!("{name:?}"), kind, shape.clone(), bytes))
        })
        .collect();
    memory(tensors)
}

pub(crate) fn entry(file_name: String, kind: TensorType, shape: Vec<usize>, bytes: Vec<u8>) -> (TensorInfo, Vec<u8>) {
    let info = TensorInfo { file_name, kind, shape, file: 0, offset: 0, length: bytes.len() as u64 };
    (info, bytes)
}

pub(crate) fn memory(tensors: BTreeMap<TensorName, (TensorInfo, Vec<u8>)>) -> MemorySource {
    MemorySource { tensors, read: AtomicU64::new(0) }
}

pub(crate) fn options(config: &ModelConfig, layers: LayerRange) -> EngineOptions {
    EngineOptions {
        layers,
        threads: 1,
        quantise: None,
        wire: Activation::F32,
        kv_tokens: 2048,
        max_context: config.max_positions,
    }
}

pub(crate) fn whole(config: &ModelConfig) -> LayerRange {
    LayerRange::new(0, config.layers).unwrap()
}

/// The whole model in one engine.
pub(crate) fn one(config: &ModelConfig, source: &MemorySource) -> Engine {
    Engine::load(Arc::new(config.clone()), source, options(config, whole(config))).unwrap()
}

/// The model cut into `parts` engines.
pub(crate) fn cut(
    config: &ModelConfig,
    source: &MemorySource,
    parts: u32,
    wire: Activation,
    quantise: Option<Quantise>,
) -> Result<Vec<Engine>, LoadError> {
    whole(config)
        .split_evenly(parts)
        .into_iter()
        .map(|layers| {
            let options = EngineOptions { wire, quantise, ..options(config, layers) };
            Engine::load(Arc::new(config.clone()), source, options)
        })
        .collect()
}

/// Some tokens of the vocabulary.
pub(crate) fn tokens(config: &ModelConfig, seed: u64, n: usize) -> Vec<u32> {
    let mut next = noise(seed + 1000);
    (0..n).map(|_| ((next() + 1.0) / 2.0 * (config.vocab_size - 1) as f32) as u32).collect()
}

/// A run of tokens through a chain of engines: each row's logits from the last one.
pub(crate) fn score_chain(engines: &mut [Engine], id: SequenceId, position: usize, tokens: &[u32]) -> Vec<f32> {
    score_batch(engines, &[(id, position, tokens)]).remove(0)
}

/// A ragged batch through a chain of engines.
pub(crate) fn score_batch(engines: &mut [Engine], runs: &[(SequenceId, usize, &[u32])]) -> Vec<Vec<f32>> {
    let (last, others) = engines.split_last_mut().unwrap();
    let mut carried: Option<Vec<Vec<u8>>> = None;
    let mut wire = last.options().wire;
    for engine in others {
        wire = engine.options().wire;
        let outputs = engine.advance(&steps(runs, carried.as_deref(), wire)).unwrap();
        carried = Some(
            outputs
                .into_iter()
                .map(|output| match output {
                    StepOutput::Hidden(bytes) => bytes,
                    other => panic!("a shard in between gave {other:?}"),
                })
                .collect(),
        );
    }
    last.score(&steps(runs, carried.as_deref(), wire)).unwrap()
}

fn steps<'a>(
    runs: &'a [(SequenceId, usize, &'a [u32])],
    carried: Option<&'a [Vec<u8>]>,
    dtype: Activation,
) -> Vec<Step<'a>> {
    runs.iter()
        .enumerate()
        .map(|(i, (sequence, position, tokens))| Step {
            sequence: *sequence,
            position: *position,
            input: match carried {
                None => StepInput::Tokens(tokens),
                Some(hidden) => StepInput::Hidden { rows: tokens.len(), dtype, data: &hidden[i] },
            },
            sample: false,
        })
        .collect()
}

pub(crate) fn open_all(engines: &mut [Engine], id: SequenceId, capacity: usize) {
    engines.iter_mut().for_each(|engine| engine.open(id, capacity, None).unwrap());
}

/// The largest difference of two runs of logits.
pub(crate) fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "as many logits on both sides");
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}
