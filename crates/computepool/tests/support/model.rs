//! A small Llama of random weights with a byte tokenizer, written in a moment: it says nothing sensible, always the
//! same, and never stops by itself (the row of its end token is zero).

#![allow(unreachable_pub, reason = "shared by tests")]

use std::{fs, path::Path};

use serde_json::{Map, Value, json};

/// The model's shape.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Decoder layers.
    pub layers: usize,
    /// Width of a hidden state; a multiple of 16.
    pub hidden: usize,
    /// Longest sequence.
    pub context: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { layers: 4, hidden: 64, context: 4096 }
    }
}

const VOCABULARY: usize = 257;
const END: usize = 256;

/// Writes `config.json`, `model.safetensors`, `tokenizer.json` and `chat_template.jinja` into `folder`.
pub fn write(folder: &Path, shape: Shape) {
    fs::create_dir_all(folder).unwrap();
    let put = |name: &str, value: &Value| fs::write(folder.join(name), value.to_string()).unwrap();
    let Shape { layers, hidden, context } = shape;
    put(
        "config.json",
        &json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
            "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": hidden / 4, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "max_position_embeddings": context, "torch_dtype": "float32",
            "hidden_act": "silu", "tie_word_embeddings": false, "bos_token_id": null, "eos_token_id": END,
        }),
    );
    put("tokenizer.json", &tokenizer());
    put("tokenizer_config.json", &json!({ "eos_token": "<|end|>" }));
    let template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:";
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
    fs::write(folder.join("model.safetensors"), weights(shape)).unwrap();
}

fn weights(Shape { layers, hidden, .. }: Shape) -> Vec<u8> {
    let (feed, key) = (2 * hidden, hidden / 2);
    let mut tensors: Vec<(String, Vec<usize>)> = vec![("model.embed_tokens.weight".into(), vec![VOCABULARY, hidden])];
    for layer in 0..layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        tensors.extend([
            (name("input_layernorm"), vec![hidden]),
            (name("self_attn.q_proj"), vec![hidden, hidden]),
            (name("self_attn.k_proj"), vec![key, hidden]),
            (name("self_attn.v_proj"), vec![key, hidden]),
            (name("self_attn.o_proj"), vec![hidden, hidden]),
            (name("post_attention_layernorm"), vec![hidden]),
            (name("mlp.gate_proj"), vec![feed, hidden]),
            (name("mlp.up_proj"), vec![feed, hidden]),
            (name("mlp.down_proj"), vec![hidden, feed]),
        ]);
    }
    tensors.push(("model.norm.weight".into(), vec![hidden]));
    tensors.push(("lm_head.weight".into(), vec![VOCABULARY, hidden]));

    let (mut header, mut data, mut random) = (Map::new(), Vec::new(), 0x9e37_79b9_7f4a_7c15u64);
    for (name, shape) in tensors {
        let start = data.len();
        let elements: usize = shape.iter().product();
        let width = *shape.last().unwrap();
        for element in 0..elements {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let uniform = (random >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            let value = match () {
                () if shape.len() == 1 => 1.0,
                () if name == "lm_head.weight" && element / width == END => 0.0,
                () => uniform * 3.0 / (width as f32).sqrt(),
            };
            data.extend_from_slice(&value.to_le_bytes());
        }
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] }));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.append(&mut header);
    file.append(&mut data);
    file
}

/// Every byte is a token, written with GPT-2's alphabet of printable characters.
fn tokenizer() -> Value {
    let printable =
        |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || (174..=255).contains(&byte);
    let (mut vocabulary, mut shifted) = (Map::new(), 256);
    for byte in 0..256u32 {
        let letter = if printable(byte) {
            byte
        } else {
            shifted += 1;
            shifted - 1
        };
        vocabulary.insert(char::from_u32(letter).unwrap().to_string(), json!(byte));
    }
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{
            "id": END, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}
