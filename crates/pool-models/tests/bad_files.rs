//! Every way a model file can be broken ends in one clear sentence that names the file or the tensor.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::path::Path;

use pool_models::Model;
use serde_json::json;
use support::{GgufFile, config, safetensors, string, strings, tensors, with_header, write_directory};

/// What opening says, with the temporary directory's own path taken out.
fn message(path: &Path) -> String {
    let error = Model::open(path).map(|model| model.name).unwrap_err().to_string();
    assert!(!error.contains('\n'), "one sentence, not {error:?}");
    let root = path.ancestors().find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(".tmp")));
    error.replace(&format!("{}", root.unwrap().display()), "DIR").replace("DIR\\", "DIR/")
}

fn gguf_message(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    message(&path)
}

fn gguf_after(change: impl FnOnce(&mut GgufFile)) -> String {
    let mut file = GgufFile::llama();
    change(&mut file);
    gguf_message(&file.build())
}

fn directory_after(change: impl FnOnce(&Path)) -> String {
    let directory = tempfile::tempdir().unwrap();
    write_directory(directory.path(), &config(), &tensors());
    change(directory.path());
    message(directory.path())
}

fn config_after(key: &str, value: serde_json::Value) -> String {
    directory_after(|path| {
        let mut config = config();
        config[key] = value;
        std::fs::write(path.join("config.json"), config.to_string()).unwrap();
    })
}

fn write(path: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(path.join(name), bytes).unwrap();
}

#[test]
fn what_is_no_model_at_all() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(
        message(directory.path()),
        "DIR is neither a GGUF file nor a directory with config.json and safetensors"
    );
    let missing = message(&directory.path().join("nowhere"));
    assert!(missing.starts_with("cannot read DIR/nowhere: ") && missing.ends_with("(os error 2)"), "{missing}");
    assert_eq!(
        gguf_message(b"hello"),
        "DIR/m.gguf is neither a GGUF file nor a directory with config.json and safetensors"
    );
    assert_eq!(gguf_message(b""), "DIR/m.gguf is neither a GGUF file nor a directory with config.json and safetensors");
}

#[test]
fn gguf_headers() {
    let whole = GgufFile::llama().build();
    assert_eq!(
        gguf_message(&whole[..whole.len() - 1]),
        format!(
            "DIR/m.gguf is not a usable GGUF file: it is cut short: tensor `blk.1.ffn_down.weight` needs bytes {}..{} of {}",
            whole.len() - 64 * 128 / 32 * 34,
            whole.len(),
            whole.len() - 1
        )
    );
    assert_eq!(
        gguf_message(&whole[..100]),
        "DIR/m.gguf is not a usable GGUF file: it is cut short at byte 92 while reading a text"
            .replace("92", &cut_at(&whole[..100]))
    );
    assert_eq!(
        gguf_after(|file| file.version = 1),
        "DIR/m.gguf is not a usable GGUF file: GGUF version 1 is not supported; supported are 2 and 3"
    );
    let mut many = whole.clone();
    many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(
        gguf_message(&many),
        "DIR/m.gguf is not a usable GGUF file: the number of tensors is 18446744073709551615, more than 262144"
    );
    many[8..16].copy_from_slice(&whole[8..16]);
    many[16..24].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert_eq!(
        gguf_message(&many),
        "DIR/m.gguf is not a usable GGUF file: the number of metadata entries is 1099511627776, more than 65536"
    );
    assert_eq!(
        gguf_after(|file| file.set("x", 8, u64::MAX.to_le_bytes().to_vec())).split(" at byte").next().unwrap(),
        "DIR/m.gguf is not a usable GGUF file: it is cut short"
    );
    let nested = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat().repeat(5);
    assert_eq!(
        gguf_after(|file| file.set("x", 9, nested)),
        "DIR/m.gguf is not a usable GGUF file: the nesting of arrays is 5, more than 4"
    );
    assert_eq!(
        gguf_after(|file| file.set("x", 77, Vec::new())),
        "DIR/m.gguf is not a usable GGUF file: metadata `x` has the unknown type 77"
    );
    assert_eq!(
        gguf_after(|file| file.metadata.push(("general.name".to_owned(), 8, string("twice")))),
        "DIR/m.gguf is not a usable GGUF file: `general.name` occurs twice"
    );
    assert_eq!(
        gguf_after(|file| file.number("general.alignment", 7)),
        "DIR/m.gguf is not a usable GGUF file: the alignment 7 is not a power of two of at most 1048576"
    );
}

/// Where the reader stops depends on the order of the keys; the sentence around it does not.
fn cut_at(bytes: &[u8]) -> String {
    let error = pool_models::Gguf::parse(bytes).unwrap_err().to_string();
    error.split_whitespace().nth(6).unwrap().to_owned()
}

#[test]
fn gguf_tensors() {
    assert_eq!(
        gguf_after(|file| file.remove("blk.1.attn_k.weight")),
        "the model has no tensor `blk.1.attn_k.weight`, which its configuration asks for"
    );
    assert_eq!(
        gguf_after(|file| file.number("llama.feed_forward_length", 192)),
        "tensor `blk.0.ffn_gate.weight` has shape [128, 64], but the configuration asks for [192, 64]"
    );
    assert_eq!(
        gguf_after(|file| file.tensors[0].2 = 99),
        "DIR/m.gguf is not a usable GGUF file: tensor `token_embd.weight` has the unknown type 99"
    );
    assert_eq!(
        gguf_after(|file| (file.tensors[0].2, file.tensors[0].3) = (20, vec![0; 96 * 64 / 32 * 18])),
        "tensor `token_embd.weight` is stored as IQ4_NL, which is not supported"
    );
    assert_eq!(
        gguf_after(|file| file.tensors[0].1 = vec![u64::MAX, u64::MAX]),
        "DIR/m.gguf is not a usable GGUF file: tensor `token_embd.weight` has an impossible shape [18446744073709551615, 18446744073709551615]"
    );
    assert_eq!(
        gguf_after(|file| file.tensors[0].1 = vec![33, 96]),
        "DIR/m.gguf is not a usable GGUF file: tensor `token_embd.weight` has an impossible shape [33, 96]"
    );
    assert_eq!(
        gguf_after(|file| file.tensors[1].0 = "token_embd.weight".to_owned()),
        "DIR/m.gguf is not a usable GGUF file: `token_embd.weight` occurs twice"
    );
    let split = gguf_after(|file| {
        file.set("split.count", 2, 3u16.to_le_bytes().to_vec());
        file.set("split.no", 2, 0u16.to_le_bytes().to_vec());
    });
    assert_eq!(
        split,
        "DIR/m.gguf is part 1 of 3 of a split GGUF model; join the parts first (llama-gguf-split --merge)"
    );
}

#[test]
fn gguf_configurations_and_tokenizers() {
    type Change = fn(&mut GgufFile);
    let cases: [(&str, Change); 9] = [
        ("architecture `gemma3` is not supported; supported are llama, mistral, qwen2, qwen3", |f| {
            f.text("general.architecture", "gemma3");
        }),
        ("`llama.block_count` is missing", |f| f.metadata.retain(|(key, ..)| key != "llama.block_count")),
        ("rope scaling `yarn` is not supported; supported are linear and llama3", |f| {
            f.text("llama.rope.scaling.type", "yarn")
        }),
        ("a mixture of experts is not supported", |f| f.number("llama.expert_count", 8)),
        ("a partial rotary embedding is not supported", |f| f.number("llama.rope.dimension_count", 8)),
        ("`num_hidden_layers` is 4000000000, which is outside 1..=2048", |f| {
            f.number("llama.block_count", 4_000_000_000)
        }),
        ("tokenizer kind `bert` is not supported; supported are gpt2 (BPE) and llama (SentencePiece)", |f| {
            f.text("tokenizer.ggml.model", "bert");
        }),
        ("the tokenizer is not usable: 2 tokens have 0 scores", |f| {
            f.text("tokenizer.ggml.model", "llama");
            f.set("tokenizer.ggml.tokens", 9, strings(&["a", "b"]));
        }),
        ("the tokenizer is not usable: it lists no merges", |f| {
            f.text("tokenizer.ggml.model", "gpt2");
            f.set("tokenizer.ggml.tokens", 9, strings(&["a", "b"]));
        }),
    ];
    for (expected, change) in cases {
        assert_eq!(gguf_after(change), format!("DIR/m.gguf: {expected}"));
    }
    let unknown = gguf_after(|file| {
        file.text("tokenizer.ggml.model", "gpt2");
        file.text("tokenizer.ggml.pre", "gpt-17");
        file.set("tokenizer.ggml.tokens", 9, strings(&["a", "b"]));
        file.set("tokenizer.ggml.merges", 9, strings(&[]));
    });
    assert!(
        unknown.starts_with("DIR/m.gguf: pre-tokenizer `gpt-17` is not supported; supported are default, "),
        "{unknown}"
    );
}

#[test]
fn configurations() {
    let cases = [
        (
            "model_type",
            json!("falcon"),
            "architecture `falcon` is not supported; supported are llama, mistral, qwen2, qwen3",
        ),
        ("hidden_size", json!(0), "`hidden_size` is 0, which is outside 1..=262144"),
        ("hidden_size", json!("wide"), "`hidden_size` should be a whole number"),
        ("num_hidden_layers", json!(1_000_000), "`num_hidden_layers` is 1000000, which is outside 1..=2048"),
        ("num_key_value_heads", json!(3), "4 attention heads cannot share 3 key/value heads evenly"),
        ("head_dim", json!(15), "the head dimension 15 is odd, but rotary embedding turns pairs"),
        (
            "num_attention_heads",
            json!(6),
            "hidden size 64 is not a multiple of 6 heads, and no head dimension is given",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 4.0}),
            "rope scaling `yarn` is not supported; supported are linear and llama3",
        ),
        (
            "rope_scaling",
            json!({"type": "dynamic", "factor": 2.0}),
            "rope scaling `dynamic` is not supported; supported are linear and llama3",
        ),
        ("rope_scaling", json!({"type": "linear"}), "`factor` is missing"),
        ("rope_scaling", json!({"type": "linear", "factor": 0.0}), "`factor` is 0, which is not usable"),
        ("hidden_act", json!("gelu"), "the activation function `gelu` is not supported"),
        (
            "quantization_config",
            json!({"quant_method": "gptq"}),
            "quantisation `gptq` inside safetensors (use the original weights or a GGUF file) is not supported",
        ),
        ("rms_norm_eps", json!(-1.0), "`rms_norm_eps` is -1, which is not usable"),
        ("partial_rotary_factor", json!(0.5), "a partial rotary embedding is not supported"),
    ];
    for (key, value, expected) in cases {
        assert_eq!(config_after(key, value), format!("DIR/config.json: {expected}"));
    }
    assert_eq!(
        config_after("vocab_size", json!(97)),
        "tensor `model.embed_tokens.weight` has shape [96, 64], but the configuration asks for [97, 64]"
    );
    let broken = directory_after(|path| write(path, "config.json", "{\"hidden_size\": "));
    assert!(broken.starts_with("DIR/config.json is not usable: it is not valid JSON (EOF while parsing"), "{broken}");
    assert_eq!(
        directory_after(|path| write(path, "config.json", "[]")),
        "DIR/config.json: the configuration is not a JSON object"
    );
}

#[test]
fn safetensors_files() {
    let rewritten = |bytes: Vec<u8>| directory_after(|path| write(path, "model.safetensors", bytes));
    let whole = safetensors(&tensors());
    const UNUSABLE: &str = "DIR/model.safetensors is not a usable safetensors file:";

    let missing: Vec<_> = tensors().into_iter().filter(|(name, _)| name != "model.norm.weight").collect();
    assert_eq!(
        rewritten(safetensors(&missing)),
        "the model has no tensor `model.norm.weight`, which its configuration asks for"
    );
    let length = whole.len();
    let down = 64 * 128 * 4;
    assert_eq!(
        rewritten(whole[..length - 10].to_vec()),
        format!(
            "{UNUSABLE} it is cut short: tensor `model.layers.1.mlp.down_proj.weight` needs bytes {}..{length} of {}",
            length - down,
            length - 10
        )
    );
    assert_eq!(rewritten(vec![1, 2, 3]), format!("{UNUSABLE} it is cut short: its header needs 8 bytes of 3"));
    assert_eq!(
        rewritten(u64::MAX.to_le_bytes().to_vec()),
        format!("{UNUSABLE} its header claims 18446744073709551615 bytes, more than 100000000")
    );
    let header = |entry: serde_json::Value| rewritten(with_header(&json!({"a": entry}), &[0; 64]));
    assert_eq!(
        header(json!({"dtype": "F32", "shape": [4], "data_offsets": [0, 15]})),
        format!("{UNUSABLE} tensor `a` of type F32 and shape [4] cannot take 15 bytes")
    );
    assert_eq!(
        header(json!({"dtype": "F32", "shape": [u64::MAX, 9], "data_offsets": [0, 16]})),
        format!("{UNUSABLE} tensor `a` of type F32 and shape [18446744073709551615, 9] cannot take 16 bytes")
    );
    assert_eq!(
        header(json!({"dtype": "F32", "shape": [4], "data_offsets": [16, 0]})),
        format!("{UNUSABLE} tensor `a` overlaps another or leaves a gap before it")
    );
    assert_eq!(
        header(json!({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]})),
        format!("{UNUSABLE} tensor `a` overlaps another or leaves a gap before it")
    );
    let dtype = header(json!({"dtype": 5, "shape": [1], "data_offsets": [0, 4]}));
    assert!(dtype.starts_with(&format!("{UNUSABLE} its header is not valid JSON: invalid type")), "{dtype}");
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let deep = [&(deep.len() as u64).to_le_bytes()[..], deep.as_bytes()].concat();
    assert!(rewritten(deep).contains("its header is not valid JSON"), "deep nesting is refused, not followed");
    let eight: Vec<u8> = String::from_utf8_lossy(&whole[8..])
        .split_once("\"F32\"")
        .map(|(before, after)| [before, "\"I32\"", &after[..after.find("}}").unwrap() + 2]].concat().into_bytes())
        .unwrap();
    let mut integers = (eight.len() as u64).to_le_bytes().to_vec();
    integers.extend(&eight);
    integers.resize(whole.len(), 0);
    assert_eq!(rewritten(integers), "tensor `model.embed_tokens.weight` is stored as I32, which is not supported");
}

#[test]
fn other_files_of_a_directory() {
    let without_weights = |also: &'static [&'static str]| {
        directory_after(|path| {
            std::fs::remove_file(path.join("model.safetensors")).unwrap();
            also.iter().for_each(|name| write(path, name, b"{}"));
        })
    };
    assert_eq!(without_weights(&[]), "DIR has no model.safetensors and no model.safetensors.index.json");
    assert_eq!(
        without_weights(&["pytorch_model.bin"]),
        "DIR has no model.safetensors and no model.safetensors.index.json; its PyTorch weights must be converted to safetensors first"
    );
    let index = |map: serde_json::Value| {
        directory_after(|path| {
            std::fs::remove_file(path.join("model.safetensors")).unwrap();
            write(path, "model.safetensors.index.json", json!({"weight_map": map}).to_string());
        })
    };
    for outside in ["../other.safetensors", "/etc/hostname", "", ".", "a/b"] {
        assert_eq!(
            index(json!({"x": outside})),
            format!(
                "DIR/model.safetensors.index.json is not usable: it names the file `{outside}`, which is not beside it"
            )
        );
    }
    assert_eq!(index(json!({})), "DIR/model.safetensors.index.json is not usable: it names 0 files");
    assert_eq!(index(json!(null)), "DIR/model.safetensors.index.json is not usable: it has no `weight_map`");
    let gone = index(json!({"x": "gone.safetensors"}));
    assert!(gone.starts_with("cannot read DIR/gone.safetensors: ") && gone.ends_with("(os error 2)"), "{gone}");

    let tokenizer = directory_after(|path| write(path, "tokenizer.json", b"{}"));
    assert!(tokenizer.starts_with("DIR/tokenizer.json: the tokenizer is not usable: "), "{tokenizer}");
    let template = directory_after(|path| write(path, "chat_template.jinja", b"{% for x in %}"));
    assert!(template.starts_with("DIR/chat_template.jinja: the chat template is not valid: "), "{template}");
    assert!(template.ends_with("(line 1)"), "{template}");
}
