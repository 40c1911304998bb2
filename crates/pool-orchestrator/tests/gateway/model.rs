//! A model whose tokenizer reads bytes and a few merges, so that a token is often less than a character.

use std::{path::Path, sync::Arc};

use pool_models::Model;
use pool_orchestrator::ServedModel;
use pool_types::LayerRange;
use serde_json::{Map, Value, json};

/// Ends an answer.
pub(crate) const END: u32 = 259;
/// As large as the vocabulary of the configuration; the tokenizer has fewer.
pub(crate) const VOCABULARY: usize = 272;
/// Prompt and answer, in tokens.
pub(crate) const CONTEXT: u32 = 200;

/// GPT-2's character for a byte.
fn byte_character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let shifted = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + shifted).unwrap()
}

fn tokenizer_json() -> Value {
    let mut vocabulary: Map<String, Value> =
        (0..=255u8).map(|byte| (byte_character(byte).to_string(), json!(byte))).collect();
    for (id, token) in [(256, "he"), (257, "ll"), (258, "Ġw")] {
        vocabulary.insert(token.to_owned(), json!(id));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(END, "<|end|>"), special(260, "<|system|>"), special(261, "<|user|>"),
                         special(262, "<|assistant|>"), special(263, "<|tool|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
                  "merges": [["h", "e"], ["l", "l"], ["Ġ", "w"]]}
    })
}

const TEMPLATE: &str = "{% for message in messages %}{% if message.content == 'REFUSE' %}\
    {{ raise_exception('no such talk') }}{% endif %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

fn write_weights(path: &Path) {
    let hidden = 8;
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        shapes.push((format!("model.layers.0.self_attn.{name}.weight"), vec![hidden, hidden]));
    }
    for name in ["gate_proj", "up_proj", "down_proj"] {
        shapes.push((format!("model.layers.0.mlp.{name}.weight"), vec![hidden, hidden]));
    }
    for name in ["input_layernorm", "post_attention_layernorm"] {
        shapes.push((format!("model.layers.0.{name}.weight"), vec![hidden]));
    }
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in shapes {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.resize(file.len() + end, 0);
    std::fs::write(path, file).unwrap();
}

/// The model, under a name, as a coalition of two would serve it.
pub(crate) fn served(name: &str) -> ServedModel {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, value: &Value| std::fs::write(directory.path().join(file), value.to_string()).unwrap();
    write(
        "config.json",
        &json!({"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
                "max_position_embeddings": CONTEXT, "tie_word_embeddings": true, "eos_token_id": END,
                "torch_dtype": "float32"}),
    );
    write("tokenizer.json", &tokenizer_json());
    write("tokenizer_config.json", &json!({"chat_template": TEMPLATE, "eos_token": "<|end|>"}));
    write_weights(&directory.path().join("model.safetensors"));
    let layers = |start, end| LayerRange::new(start, end).unwrap();
    ServedModel {
        name: name.to_owned(),
        model: Arc::new(Model::open(directory.path()).unwrap()),
        max_context: CONTEXT,
        created: 1_700_000_000,
        active: true,
        members: vec![("ada".to_owned(), layers(0, 3)), ("bob".to_owned(), layers(3, 6))],
    }
}
