//! Models small enough for a test and large enough that headers matter as little as they do in life.

use std::path::Path;

use pool_models::{Manifest, ManifestOptions, Wanted};
use pool_types::LayerRange;
use serde_json::{Value, json};

use crate::support::{GgufFile, with_header};

pub(crate) const LAYERS: u32 = 4;
/// Small pieces, so that a small model has many.
pub(crate) const PIECE: u32 = 64 << 10;

/// A Llama of four layers of some 1.1 MB each.
pub(crate) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    })
}

pub(crate) fn tensors() -> Vec<(String, Vec<u64>)> {
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![512, 256]),
        ("model.norm.weight".to_owned(), vec![256]),
        ("lm_head.weight".to_owned(), vec![512, 256]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm.weight", vec![256]),
            ("self_attn.q_proj.weight", vec![256, 256]),
            ("self_attn.k_proj.weight", vec![128, 256]),
            ("self_attn.v_proj.weight", vec![128, 256]),
            ("self_attn.o_proj.weight", vec![256, 256]),
            ("post_attention_layernorm.weight", vec![256]),
            ("mlp.gate_proj.weight", vec![688, 256]),
            ("mlp.up_proj.weight", vec![688, 256]),
            ("mlp.down_proj.weight", vec![256, 688]),
        ] {
            all.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    // As Hugging Face writes them: by name, so that a layer's tensors lie together.
    all.sort();
    all
}

/// SplitMix64: bytes that look like weights and repeat nowhere.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(count);
        bytes
    }
}

fn safetensors(tensors: &[(String, Vec<u64>)], numbers: &mut Numbers) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        data.extend(numbers.bytes(shape.iter().product::<u64>() as usize * 2));
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    with_header(&Value::Object(header), &data)
}

/// A model's files by name.
pub(crate) type Files = Vec<(String, Vec<u8>)>;

fn words() -> Files {
    let fixture =
        |name: &str| std::fs::read(format!("{}/tests/fixtures/tokenizers/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let template = json!({"chat_template": "{{ messages[0].content }}", "bos_token": "<s>"});
    vec![
        ("config.json".to_owned(), config().to_string().into_bytes()),
        ("tokenizer.json".to_owned(), fixture("bpe.json")),
        ("tokenizer_config.json".to_owned(), template.to_string().into_bytes()),
    ]
}

pub(crate) fn single(seed: u64) -> Files {
    let mut files = words();
    files.push(("model.safetensors".to_owned(), safetensors(&tensors(), &mut Numbers(seed))));
    files
}

pub(crate) fn sharded(seed: u64) -> Files {
    let (tensors, mut numbers) = (tensors(), Numbers(seed));
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let (mut files, mut map) = (words(), serde_json::Map::new());
    for (file, part) in [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)] {
        files.push((file.to_owned(), safetensors(part, &mut numbers)));
        part.iter().for_each(|(name, _)| drop(map.insert(name.clone(), json!(file))));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    files.push(("model.safetensors.index.json".to_owned(), index.to_string().into_bytes()));
    files
}

/// The same shape as a GGUF file: f32 norms and Q8_0 matrices, with a vocabulary in the header.
pub(crate) fn gguf(seed: u64) -> Files {
    let (mut file, mut numbers) = (GgufFile::llama(), Numbers(seed));
    for (key, value) in [
        ("block_count", LAYERS),
        ("embedding_length", 256),
        ("feed_forward_length", 688 / 32 * 32),
        ("rope.dimension_count", 64),
        ("vocab_size", 512),
    ] {
        file.number(&format!("llama.{key}"), value);
    }
    let template = file.tensors.clone();
    file.tensors.clear();
    for (name, ..) in &template {
        let layers = if name.starts_with("blk.0.") { 0..LAYERS } else { 0..1 };
        if name.starts_with("blk.1.") {
            continue;
        }
        for layer in layers {
            let name = name.replace("blk.0.", &format!("blk.{layer}."));
            let feed = 688 / 32 * 32;
            let dims: Vec<u64> = match name.rsplit_once('.').unwrap().0.rsplit('.').next().unwrap() {
                "token_embd" | "output" => vec![256, 512],
                "attn_q" | "attn_output" => vec![256, 256],
                "attn_k" | "attn_v" => vec![256, 128],
                "ffn_gate" | "ffn_up" => vec![256, feed],
                "ffn_down" => vec![feed, 256],
                _ => vec![256],
            };
            let elements: u64 = dims.iter().product();
            let (kind, length) = if dims.len() == 1 { (0, elements * 4) } else { (8, elements / 32 * 34) };
            file.tensors.push((name, dims, kind, numbers.bytes(length as usize)));
        }
    }
    vec![("tiny.gguf".to_owned(), file.build())]
}

/// Writes a model to a folder, and returns the path to open it by.
pub(crate) fn write(folder: &Path, files: &Files) -> std::path::PathBuf {
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    match files.as_slice() {
        [(only, _)] => folder.join(only),
        _ => folder.to_owned(),
    }
}

/// The manifest of these files, and the folder they lie in.
pub(crate) fn manifest(files: &Files) -> (tempfile::TempDir, Manifest) {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), files);
    let options = ManifestOptions { name: Some("Tiny".to_owned()), piece_bytes: PIECE, ..ManifestOptions::default() };
    let manifest = Manifest::of(&path, &options).unwrap();
    (folder, manifest)
}

pub(crate) fn layers(start: u32, end: u32) -> LayerRange {
    LayerRange::new(start, end).unwrap()
}

pub(crate) fn shard(manifest: &Manifest, start: u32, end: u32) -> Wanted {
    Wanted::shard(layers(start, end), &manifest.config)
}
