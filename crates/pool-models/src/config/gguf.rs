//! GGUF metadata (`llama.block_count` and its like), as llama.cpp's converter writes it.

use super::{Activation, ConfigError, Family, ModelConfig, Rope, RopeLayout, RopeScaling};
use crate::{
    gguf::{Gguf, GgufArray, GgufValue},
    source::TensorType,
};

/// Tokens that end a turn in well-known chat formats; files name only one of them as end-of-sequence.
const TURN_ENDS: [&str; 6] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>"];

impl ModelConfig {
    /// Reads the metadata, and from the index what no metadata says: tied embeddings and biases.
    pub fn from_gguf(gguf: &Gguf) -> Result<ModelConfig, ConfigError> {
        let architecture = gguf.text("general.architecture").ok_or(ConfigError::NoArchitecture)?;
        let family = match architecture {
            "llama" => Family::Llama,
            "mistral" => Family::Mistral,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            other => return Err(ConfigError::Architecture(other.to_owned())),
        };
        let metadata = Metadata { gguf, architecture };
        if metadata.size("expert_count")?.is_some_and(|experts| experts > 0) {
            return Err(ConfigError::Unsupported("a mixture of experts".to_owned()));
        }

        let hidden_size = metadata.required("embedding_length")?;
        let heads = metadata.required("attention.head_count")?;
        let layers = u32::try_from(metadata.required("block_count")?).unwrap_or(u32::MAX);
        let head_dim = match metadata.size("attention.key_length")? {
            Some(head_dim) => head_dim,
            None if heads == 0 => 0,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => return Err(ConfigError::HeadSize { hidden_size, heads }),
        };
        if metadata.size("attention.value_length")?.is_some_and(|length| length != head_dim) {
            return Err(ConfigError::Unsupported("values of another width than keys".to_owned()));
        }
        if metadata.size("rope.dimension_count")?.is_some_and(|dimensions| dimensions != head_dim) {
            return Err(ConfigError::Unsupported("a partial rotary embedding".to_owned()));
        }
        let window = metadata.size("attention.sliding_window")?.filter(|&window| window > 0);
        let embedding = gguf.tensor("token_embd.weight");
        let vocab_size = match (metadata.size("vocab_size")?, embedding) {
            (_, Some(embedding)) if embedding.shape.len() == 2 => embedding.shape[0],
            (Some(vocab_size), _) => vocab_size,
            (None, _) => gguf.metadata.get("tokenizer.ggml.tokens").and_then(GgufValue::as_texts).map_or(0, <[_]>::len),
        };
        let interleaved = matches!(family, Family::Llama | Family::Mistral);
        let has = |name: &str| gguf.tensor(name).is_some();
        let mut config = ModelConfig {
            family,
            vocab_size,
            hidden_size,
            intermediate_size: metadata.required("feed_forward_length")?,
            layers,
            heads,
            kv_heads: metadata.size("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            norm_epsilon: metadata
                .number("attention.layer_norm_rms_epsilon")
                .ok_or_else(|| metadata.missing("attention.layer_norm_rms_epsilon"))?,
            rope: Rope {
                theta: metadata.number("rope.freq_base").unwrap_or(10_000.0),
                layout: if interleaved { RopeLayout::Interleaved } else { RopeLayout::HalfSplit },
                scaling: scaling(&metadata, has("rope_freqs.weight"))?,
            },
            max_positions: metadata.size("context_length")?.unwrap_or(2048),
            windows: vec![window; layers.min(4096) as usize],
            tied_embeddings: !has("output.weight"),
            qkv_bias: family == Family::Qwen2 || has("blk.0.attn_q.bias"),
            output_bias: has("blk.0.attn_output.bias"),
            mlp_bias: has("blk.0.ffn_gate.bias"),
            qk_norm: family == Family::Qwen3,
            activation: match (interleaved, embedding.map(|e| e.kind)) {
                (true, Some(Ok(TensorType::BF16))) | (false, _) => Activation::Bf16,
                (true, _) => Activation::F16,
            },
            bos_token: token(gguf, "tokenizer.ggml.bos_token_id"),
            eos_tokens: Vec::new(),
        };
        config.eos_tokens = eos_tokens(gguf);
        config.validate()?;
        Ok(config)
    }
}

struct Metadata<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Metadata<'_> {
    fn get(&self, name: &str) -> Option<&GgufValue> {
        self.gguf.metadata.get(&format!("{}.{name}", self.architecture))
    }

    fn missing(&self, name: &str) -> ConfigError {
        ConfigError::Missing(format!("{}.{name}", self.architecture))
    }

    /// A size, or an array with one equal size per layer.
    fn size(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = match value {
            GgufValue::Array(array) => match (array, value.as_integers().as_deref()) {
                (GgufArray::Signed(_) | GgufArray::Unsigned(_), Some([first, rest @ ..])) => {
                    if rest.iter().any(|other| other != first) {
                        return Err(ConfigError::Unsupported(format!("`{name}` that differs from layer to layer")));
                    }
                    u64::try_from(*first).ok()
                }
                _ => None,
            },
            value => value.as_unsigned(),
        };
        let wrong = || ConfigError::Type { field: format!("{}.{name}", self.architecture), expected: "a whole number" };
        number.and_then(|n| usize::try_from(n).ok()).map(Some).ok_or_else(wrong)
    }

    fn required(&self, name: &str) -> Result<usize, ConfigError> {
        self.size(name)?.ok_or_else(|| self.missing(name))
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.get(name).and_then(GgufValue::as_float)
    }
}

fn scaling(metadata: &Metadata<'_>, factors_in_file: bool) -> Result<RopeScaling, ConfigError> {
    let factor = metadata.number("rope.scaling.factor").or_else(|| metadata.number("rope.scale_linear"));
    let kind = metadata.get("rope.scaling.type").and_then(GgufValue::as_text);
    match kind {
        None | Some("none" | "") if factors_in_file => Ok(RopeScaling::Tensor),
        None => Ok(factor.filter(|&f| f != 1.0).map_or(RopeScaling::None, |factor| RopeScaling::Linear { factor })),
        Some("none" | "") => Ok(RopeScaling::None),
        Some("linear") if factors_in_file => {
            Err(ConfigError::Unsupported("linear rope scaling together with frequency factors".to_owned()))
        }
        Some("linear") => {
            let factor = factor.ok_or_else(|| metadata.missing("rope.scaling.factor"))?;
            Ok(RopeScaling::Linear { factor })
        }
        Some(other) => Err(ConfigError::RopeScaling(other.to_owned())),
    }
}

fn token(gguf: &Gguf, key: &str) -> Option<u32> {
    gguf.unsigned(key).and_then(|id| u32::try_from(id).ok())
}

fn eos_tokens(gguf: &Gguf) -> Vec<u32> {
    let named = ["eos_token_id", "eot_token_id", "eom_token_id"];
    let mut ids: Vec<u32> = named.iter().filter_map(|name| token(gguf, &format!("tokenizer.ggml.{name}"))).collect();
    if let Some(tokens) = gguf.metadata.get("tokenizer.ggml.tokens").and_then(GgufValue::as_texts) {
        let control = 3;
        let types = gguf.metadata.get("tokenizer.ggml.token_type").and_then(GgufValue::as_integers);
        let is_control = |id: usize| types.as_ref().is_none_or(|types| types.get(id) == Some(&control));
        let ends = tokens.iter().enumerate().filter(|(id, text)| TURN_ENDS.contains(&text.as_str()) && is_control(*id));
        ids.extend(ends.filter_map(|(id, _)| u32::try_from(id).ok()));
    }
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(*id));
    ids
}
