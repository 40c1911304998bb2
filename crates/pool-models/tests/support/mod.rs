//! Writers of small model files, straight from the formats' descriptions, so that tests can break them anywhere.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::Path;

use serde_json::{Value, json};

/// A Llama of two layers: vocabulary 96, width 64, four heads of 16 sharing two key/value heads, feed-forward 128.
pub(crate) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
    })
}

/// The same model's tensors as Hugging Face calls them, with row-major shapes.
pub(crate) fn tensors() -> Vec<(String, Vec<u64>)> {
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![96, 64]),
        ("model.norm.weight".to_owned(), vec![64]),
        ("lm_head.weight".to_owned(), vec![96, 64]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm.weight", vec![64]),
            ("self_attn.q_proj.weight", vec![64, 64]),
            ("self_attn.k_proj.weight", vec![32, 64]),
            ("self_attn.v_proj.weight", vec![32, 64]),
            ("self_attn.o_proj.weight", vec![64, 64]),
            ("post_attention_layernorm.weight", vec![64]),
            ("mlp.gate_proj.weight", vec![128, 64]),
            ("mlp.up_proj.weight", vec![128, 64]),
            ("mlp.down_proj.weight", vec![64, 128]),
        ] {
            all.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    all
}

/// A safetensors file of f32 tensors whose every byte is its tensor's number.
pub(crate) fn safetensors(tensors: &[(String, Vec<u64>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut data = Vec::new();
    for (number, (name, shape)) in tensors.iter().enumerate() {
        let length = shape.iter().product::<u64>() as usize * 4;
        let start = data.len();
        data.resize(start + length, number as u8);
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    with_header(&Value::Object(header), &data)
}

/// A safetensors file of this header and data.
pub(crate) fn with_header(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// Writes a directory model with this configuration and these tensors.
pub(crate) fn write_directory(path: &Path, config: &Value, tensors: &[(String, Vec<u64>)]) {
    std::fs::write(path.join("config.json"), config.to_string()).unwrap();
    std::fs::write(path.join("model.safetensors"), safetensors(tensors)).unwrap();
}

/// A GGUF file in the making.
#[derive(Clone)]
pub(crate) struct GgufFile {
    pub(crate) version: u32,
    /// Key, type number, encoded value.
    pub(crate) metadata: Vec<(String, u32, Vec<u8>)>,
    /// Name, dimensions in ggml's order (innermost first), type number, data.
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    /// Where tensors begin: at multiples of this. A reader must be told of another one than 32, see [`Self::align`].
    alignment: usize,
}

impl GgufFile {
    /// The model of [`config`] with f32 norms and Q8_0 matrices.
    pub(crate) fn llama() -> Self {
        let mut file = Self { version: 3, metadata: Vec::new(), tensors: Vec::new(), alignment: 32 };
        file.text("general.architecture", "llama");
        file.text("general.name", "Tiny Llama");
        for (key, value) in [
            ("block_count", 2),
            ("embedding_length", 64),
            ("feed_forward_length", 128),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("context_length", 256),
            ("rope.dimension_count", 16),
            ("vocab_size", 96),
        ] {
            file.number(&format!("llama.{key}"), value);
        }
        file.metadata.push(("llama.attention.layer_norm_rms_epsilon".to_owned(), 6, 1e-5f32.to_le_bytes().to_vec()));
        for (name, shape) in tensors() {
            let name = name
                .replace("model.embed_tokens", "token_embd")
                .replace("model.norm", "output_norm")
                .replace("lm_head", "output")
                .replace("model.layers", "blk")
                .replace("input_layernorm", "attn_norm")
                .replace("post_attention_layernorm", "ffn_norm")
                .replace("self_attn.o_proj", "attn_output")
                .replace("self_attn.", "attn_")
                .replace("mlp.", "ffn_")
                .replace("_proj", "");
            let dims: Vec<u64> = shape.into_iter().rev().collect();
            let elements: u64 = dims.iter().product();
            let (kind, length) = if dims.len() == 1 { (0, elements * 4) } else { (8, elements / 32 * 34) };
            file.tensors.push((name, dims, kind, vec![7; length as usize]));
        }
        file
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.set(key, 8, string(value));
    }

    /// Lets tensors begin at multiples of `alignment`, and says so.
    pub(crate) fn align(&mut self, alignment: u32) {
        self.number("general.alignment", alignment);
        self.alignment = alignment as usize;
    }

    pub(crate) fn number(&mut self, key: &str, value: u32) {
        self.set(key, 4, value.to_le_bytes().to_vec());
    }

    pub(crate) fn float(&mut self, key: &str, value: f32) {
        self.set(key, 6, value.to_le_bytes().to_vec());
    }

    /// Sets a key, in place of an earlier value.
    pub(crate) fn set(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        self.metadata.retain(|(other, ..)| other != key);
        self.metadata.push((key.to_owned(), kind, value));
    }

    pub(crate) fn remove(&mut self, tensor: &str) {
        self.tensors.retain(|(name, ..)| name != tensor);
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.metadata {
            file.extend(string(key));
            file.extend(kind.to_le_bytes());
            file.extend(value);
        }
        let mut offset = 0;
        for (name, dims, kind, data) in &self.tensors {
            file.extend(string(name));
            file.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset += data.len().next_multiple_of(self.alignment);
        }
        for (.., data) in &self.tensors {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
            file.extend(data);
        }
        file
    }
}

/// GGUF's text: length, then bytes.
pub(crate) fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// A GGUF array of texts.
pub(crate) fn strings(texts: &[&str]) -> Vec<u8> {
    let mut bytes = 8u32.to_le_bytes().to_vec();
    bytes.extend((texts.len() as u64).to_le_bytes());
    texts.iter().for_each(|text| bytes.extend(string(text)));
    bytes
}
