//! `config.json` in both of its forms: `rope_scaling`/`rope_theta`/`torch_dtype`, and since transformers 5
//! `rope_parameters`/`dtype`/`layer_types`. Missing settings take the defaults of transformers' own classes.

use serde_json::{Map, Value};

use super::{Activation, ConfigError, Family, ModelConfig, Rope, RopeLayout, RopeScaling};

struct Fields<'a>(&'a Map<String, Value>);

impl ModelConfig {
    /// Reads `config.json`, and `generation_config.json` where there is one (for the tokens that end an answer).
    pub fn from_hugging_face(config: &Value, generation: Option<&Value>) -> Result<ModelConfig, ConfigError> {
        let fields = Fields(config.as_object().ok_or(ConfigError::NotAnObject)?);
        let family = family(&fields)?;
        refuse_what_is_not_supported(&fields)?;

        let hidden_size = fields.size("hidden_size")?.ok_or_else(|| missing("hidden_size"))?;
        let heads = fields.size("num_attention_heads")?.ok_or_else(|| missing("num_attention_heads"))?;
        let layers = fields.size("num_hidden_layers")?.ok_or_else(|| missing("num_hidden_layers"))?;
        let layers = u32::try_from(layers).unwrap_or(u32::MAX);
        let kv_heads = match (fields.size("num_key_value_heads")?, family) {
            (Some(kv_heads), _) => kv_heads,
            (None, Family::Mistral) if !fields.0.contains_key("num_key_value_heads") => 8,
            (None, Family::Qwen2 | Family::Qwen3) if !fields.0.contains_key("num_key_value_heads") => 32,
            (None, _) => heads,
        };
        let head_dim = match (fields.size("head_dim")?, family) {
            (Some(head_dim), _) => head_dim,
            (None, Family::Qwen3) if !fields.0.contains_key("head_dim") => 128,
            (None, _) if heads == 0 => 0,
            (None, _) if hidden_size % heads == 0 => hidden_size / heads,
            (None, _) => return Err(ConfigError::HeadSize { hidden_size, heads }),
        };
        let max_positions = fields.size("max_position_embeddings")?.unwrap_or(match family {
            Family::Llama => 2048,
            Family::Mistral => 4096 * 32,
            Family::Qwen2 | Family::Qwen3 => 32_768,
        });
        let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
        let rope = rope(&fields, max_positions)?;
        let mut read = ModelConfig {
            family,
            vocab_size: fields.size("vocab_size")?.ok_or_else(|| missing("vocab_size"))?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?.ok_or_else(|| missing("intermediate_size"))?,
            layers,
            heads,
            kv_heads,
            head_dim,
            norm_epsilon: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope,
            max_positions,
            windows: Vec::new(),
            tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: match family {
                Family::Qwen2 => true,
                Family::Llama | Family::Qwen3 => attention_bias,
                Family::Mistral => false,
            },
            output_bias: matches!(family, Family::Llama | Family::Qwen3) && attention_bias,
            mlp_bias: family == Family::Llama && fields.flag("mlp_bias")?.unwrap_or(false),
            qk_norm: family == Family::Qwen3,
            activation: activation(&fields),
            bos_token: first_token(config, generation, "bos_token_id"),
            eos_tokens: Vec::new(),
        };
        for source in generation.into_iter().chain([config]) {
            for token in tokens(source.get("eos_token_id")) {
                if !read.eos_tokens.contains(&token) {
                    read.eos_tokens.push(token);
                }
            }
        }
        // The bound on layers is checked before the windows are laid out.
        read.windows = vec![None; layers.min(4096) as usize];
        read.validate()?;
        read.windows = windows(&fields, family, layers)?;
        read.validate()?;
        Ok(read)
    }
}

fn family(fields: &Fields<'_>) -> Result<Family, ConfigError> {
    if let Some(kind) = fields.text("model_type") {
        return match kind {
            "llama" => Ok(Family::Llama),
            "mistral" => Ok(Family::Mistral),
            "qwen2" => Ok(Family::Qwen2),
            "qwen3" => Ok(Family::Qwen3),
            other => Err(ConfigError::Architecture(other.to_owned())),
        };
    }
    let named = fields.0.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    match named.ok_or(ConfigError::NoArchitecture)? {
        "LlamaForCausalLM" => Ok(Family::Llama),
        "MistralForCausalLM" => Ok(Family::Mistral),
        "Qwen2ForCausalLM" => Ok(Family::Qwen2),
        "Qwen3ForCausalLM" => Ok(Family::Qwen3),
        other => Err(ConfigError::Architecture(other.to_owned())),
    }
}

fn refuse_what_is_not_supported(fields: &Fields<'_>) -> Result<(), ConfigError> {
    if let Some(activation) = fields.text("hidden_act")
        && !matches!(activation, "silu" | "swish")
    {
        return Err(ConfigError::Unsupported(format!("the activation function `{activation}`")));
    }
    if let Some(quantisation) = fields.0.get("quantization_config").filter(|q| !q.is_null()) {
        let method = quantisation.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        return Err(ConfigError::Unsupported(format!(
            "quantisation `{method}` inside safetensors (use the original weights or a GGUF file)"
        )));
    }
    if fields.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(ConfigError::Unsupported("a partial rotary embedding".to_owned()));
    }
    Ok(())
}

/// The rope settings, wherever this form of the file keeps them.
fn rope(fields: &Fields<'_>, max_positions: usize) -> Result<Rope, ConfigError> {
    let object = |name: &str| fields.0.get(name).and_then(Value::as_object);
    let mut settings = object("rope_parameters").or_else(|| object("rope_scaling"));
    if let Some(outer) = settings {
        // transformers 5 may keep one set per layer type.
        let per_type: Vec<_> = outer.values().filter_map(Value::as_object).collect();
        if let Some((first, rest)) = per_type.split_first() {
            if rest.iter().any(|other| other != first) {
                return Err(ConfigError::RopePerLayer);
            }
            settings = Some(first);
        }
    }
    let inner = settings.map(Fields);
    let inner_number = |name: &str| inner.as_ref().map_or(Ok(None), |f| f.number(name));
    let theta = match inner_number("rope_theta")? {
        Some(theta) => theta,
        None => fields.number("rope_theta")?.unwrap_or(10_000.0),
    };
    if inner_number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(ConfigError::Unsupported("a partial rotary embedding".to_owned()));
    }
    let required = |name: &str| inner_number(name)?.ok_or_else(|| missing(name));
    let kind = inner.as_ref().and_then(|f| f.text("rope_type").or_else(|| f.text("type"))).unwrap_or("default");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: required("factor")? },
        "llama3" => {
            let original = match inner.as_ref().map_or(Ok(None), |f| f.size("original_max_position_embeddings"))? {
                Some(original) => original,
                None => fields.size("original_max_position_embeddings")?.unwrap_or(max_positions),
            };
            RopeScaling::Llama3 {
                factor: required("factor")?,
                low_frequency_factor: required("low_freq_factor")?,
                high_frequency_factor: required("high_freq_factor")?,
                original_positions: original,
            }
        }
        other => return Err(ConfigError::RopeScaling(other.to_owned())),
    };
    Ok(Rope { theta, layout: RopeLayout::HalfSplit, scaling })
}

fn windows(fields: &Fields<'_>, family: Family, layers: u32) -> Result<Vec<Option<usize>>, ConfigError> {
    let count = layers as usize;
    let window = match family {
        Family::Llama => None,
        Family::Mistral if !fields.0.contains_key("sliding_window") => Some(4096),
        Family::Mistral => fields.size("sliding_window")?,
        Family::Qwen2 | Family::Qwen3 if !fields.flag("use_sliding_window")?.unwrap_or(false) => None,
        Family::Qwen2 | Family::Qwen3 if !fields.0.contains_key("sliding_window") => Some(4096),
        Family::Qwen2 | Family::Qwen3 => fields.size("sliding_window")?,
    };
    let Some(window) = window else { return Ok(vec![None; count]) };
    if let Some(types) = fields.0.get("layer_types").and_then(Value::as_array) {
        if types.len() != count {
            return Err(ConfigError::LayerTypes { listed: types.len(), layers });
        }
        let window_of = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(Some(window)),
            other => Err(ConfigError::Unsupported(format!("the layer type `{}`", other.unwrap_or("?")))),
        };
        return types.iter().map(window_of).collect();
    }
    let full = match family {
        Family::Qwen2 | Family::Qwen3 => fields.size("max_window_layers")?.unwrap_or(28),
        Family::Llama | Family::Mistral => 0,
    };
    Ok((0..count).map(|layer| (layer >= full).then_some(window)).collect())
}

fn activation(fields: &Fields<'_>) -> Activation {
    match fields.text("dtype").or_else(|| fields.text("torch_dtype")) {
        Some("bfloat16") => Activation::Bf16,
        _ => Activation::F16,
    }
}

fn first_token(config: &Value, generation: Option<&Value>, name: &str) -> Option<u32> {
    [Some(config), generation].into_iter().flatten().find_map(|source| tokens(source.get(name)).first().copied())
}

/// A token id or a list of them.
fn tokens(value: Option<&Value>) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().take(256).filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn missing(field: &str) -> ConfigError {
    ConfigError::Missing(field.to_owned())
}

impl Fields<'_> {
    /// `null` counts as missing.
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    fn size(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        let wrong = || ConfigError::Type { field: name.to_owned(), expected: "a whole number" };
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_u64().and_then(|n| usize::try_from(n).ok()).map(Some).ok_or_else(wrong)
    }

    fn number(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        let wrong = || ConfigError::Type { field: name.to_owned(), expected: "a number" };
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(wrong)
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        let wrong = || ConfigError::Type { field: name.to_owned(), expected: "true or false" };
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(wrong)
    }
}
