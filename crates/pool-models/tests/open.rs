//! Both kinds of model open from headers alone, agree about the same shape, and hand out exactly the bytes asked for.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use pool_models::{
    Activation, Family, Inspection, LayerTensor, Model, ModelFormat, RopeLayout, RopeScaling, TensorName, TensorType,
    entry_bytes, exit_bytes, layer_bytes,
};
use serde_json::json;
use support::{GgufFile, config, tensors, write_directory};

fn opened_directory() -> (tempfile::TempDir, Model) {
    let directory = tempfile::tempdir().unwrap();
    write_directory(directory.path(), &config(), &tensors());
    let model = Model::open(directory.path()).unwrap();
    (directory, model)
}

fn opened_gguf(file: &GgufFile) -> Model {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("some-model.gguf");
    std::fs::write(&path, file.build()).unwrap();
    Model::open(&path).unwrap()
}

#[test]
fn a_directory_and_a_gguf_file_of_one_model_give_one_shape() {
    let (directory, from_directory) = opened_directory();
    let from_gguf = opened_gguf(&GgufFile::llama());
    assert_eq!(from_directory.format, ModelFormat::Safetensors);
    assert_eq!(from_gguf.format, ModelFormat::Gguf);
    assert_eq!(from_directory.name, directory.path().file_name().unwrap().to_string_lossy());
    assert_eq!(from_gguf.name, "Tiny Llama", "a GGUF file says its own name");

    let (a, b) = (&from_directory.config, &from_gguf.config);
    assert_eq!(a.rope.layout, RopeLayout::HalfSplit);
    assert_eq!(b.rope.layout, RopeLayout::Interleaved, "GGUF files of Llama are permuted for interleaved rotation");
    assert_eq!((a.bos_token, a.eos_tokens.as_slice()), (Some(1), &[2][..]));
    assert!((a.norm_epsilon - b.norm_epsilon).abs() < 1e-9, "one is stored as f32");
    let mut b = pool_models::ModelConfig::clone(b);
    b.rope.layout = RopeLayout::HalfSplit;
    (b.bos_token, b.eos_tokens, b.norm_epsilon) = (a.bos_token, a.eos_tokens.clone(), a.norm_epsilon);
    assert_eq!(**a, b, "all else is the same");
    assert_eq!(from_directory.source.names(), from_gguf.source.names());
}

#[test]
fn tensors_come_whole_and_are_counted() {
    let (_directory, model) = opened_directory();
    let source = &model.source;
    assert_eq!(source.bytes_read(), 0, "opening reads no weights");
    let key = TensorName::Layer(1, LayerTensor::Key);
    let info = source.info(key).unwrap().clone();
    assert_eq!((info.file_name.as_str(), info.kind), ("model.layers.1.self_attn.k_proj.weight", TensorType::F32));
    assert_eq!((info.shape.as_slice(), info.length), (&[32, 64][..], 32 * 64 * 4));
    // Every byte of a tensor is its number in the list: the place is right to the byte.
    let number = tensors().iter().position(|(name, _)| *name == info.file_name).unwrap() as u8;
    assert_eq!(source.bytes(key).unwrap().as_ref(), vec![number; 32 * 64 * 4]);
    assert_eq!(source.bytes_read(), 32 * 64 * 4);
    assert!(source.info(TensorName::Layer(2, LayerTensor::Key)).is_none());
    let error = source.bytes(TensorName::RopeFrequencies).unwrap_err();
    assert_eq!(error.to_string(), "the model has no tensor RopeFrequencies");

    let layer: u64 = 4 * (64 + 64 * 64 + 2 * 32 * 64 + 64 * 64 + 64 + 3 * 128 * 64);
    assert_eq!(layer_bytes(source.as_ref(), 0), layer);
    assert_eq!(entry_bytes(source.as_ref()), 96 * 64 * 4);
    assert_eq!(exit_bytes(source.as_ref()), 96 * 64 * 4 + 64 * 4);
    assert_eq!(model.config.estimate_layer_bytes(TensorType::F32), layer, "the estimate is exact without quantising");
    assert_eq!(model.config.estimate_exit_bytes(TensorType::F32), exit_bytes(source.as_ref()));
    let elements: u64 = tensors().iter().map(|(_, shape)| shape.iter().product::<u64>()).sum();
    assert_eq!(model.config.parameters(), elements);
    assert_eq!(model.config.kv_bytes_per_token(2, 2), 2 * 2 * 32 * 2);
}

#[test]
fn quantised_matrices_and_plain_norms_are_told_apart() {
    let model = opened_gguf(&GgufFile::llama());
    let source = &model.source;
    let down = source.info(TensorName::Layer(0, LayerTensor::Down)).unwrap();
    assert_eq!((down.kind, down.shape.as_slice()), (TensorType::Q8_0, &[64, 128][..]), "GGUF lists shapes inside out");
    assert_eq!(down.length, 64 * 128 / 32 * 34);
    assert!(source.bytes(TensorName::Layer(0, LayerTensor::Down)).unwrap().iter().all(|&byte| byte == 7));
    assert_eq!(layer_bytes(source.as_ref(), 0), model.config.estimate_layer_bytes(TensorType::Q8_0));
    assert_eq!(model.config.activation, Activation::F16);

    let inspection = Inspection::new(&model);
    assert_eq!(inspection.types[0].kind, TensorType::Q8_0, "the largest share comes first");
    assert_eq!(inspection.types.iter().map(|share| share.tensors).sum::<usize>(), tensors().len());
    let table = inspection.to_string();
    for line in
        ["model          Tiny Llama", "layers 0-1", "tokenizer      none", "chat template  no", "architecture   Llama"]
    {
        assert!(table.contains(line), "`{line}` is not in\n{table}");
    }
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(serde_json::from_value::<Inspection>(json).unwrap(), inspection);
}

#[test]
fn a_tied_head_is_needed_at_both_ends() {
    let mut file = GgufFile::llama();
    file.remove("output.weight");
    let model = opened_gguf(&file);
    assert!(model.config.tied_embeddings);
    let table = 96 * 64 / 32 * 34;
    assert_eq!(entry_bytes(model.source.as_ref()), table);
    assert_eq!(exit_bytes(model.source.as_ref()), table + 64 * 4, "the exit loads the embedding as its head");
}

#[test]
fn gguf_says_by_its_tensors_what_its_metadata_does_not() {
    let mut file = GgufFile::llama();
    file.tensors.push(("rope_freqs.weight".to_owned(), vec![8], 0, vec![0; 32]));
    for layer in 0..2 {
        for (name, width) in [("attn_q", 64), ("attn_k", 32), ("attn_v", 32)] {
            file.tensors.push((format!("blk.{layer}.{name}.bias"), vec![width], 0, vec![0; width as usize * 4]));
        }
    }
    file.tensors.push(("blk.0.something_new.weight".to_owned(), vec![256], 16, vec![0; 66]));
    let model = opened_gguf(&file);
    assert_eq!(model.config.rope.scaling, RopeScaling::Tensor);
    assert!(model.config.qkv_bias && !model.config.output_bias);
    assert!(model.source.info(TensorName::RopeFrequencies).is_some());
    assert_eq!(model.source.info(TensorName::Layer(1, LayerTensor::KeyBias)).unwrap().shape, [32]);
    assert_eq!(model.source.names().len(), tensors().len() + 7, "a tensor nobody asked for is left aside");
}

#[test]
fn qwen3_in_gguf_rotates_in_halves_and_carries_bf16() {
    let mut file = GgufFile::llama();
    file.text("general.architecture", "qwen3");
    for (key, ..) in &mut file.metadata {
        *key = key.replace("llama.", "qwen3.");
    }
    file.number("qwen3.attention.key_length", 16);
    file.number("qwen3.attention.value_length", 16);
    for layer in 0..2 {
        for name in ["attn_q_norm", "attn_k_norm"] {
            file.tensors.push((format!("blk.{layer}.{name}.weight"), vec![16], 0, vec![0; 64]));
        }
    }
    let model = opened_gguf(&file);
    let config = &model.config;
    assert_eq!(
        (config.family, config.rope.layout, config.activation),
        (Family::Qwen3, RopeLayout::HalfSplit, Activation::Bf16)
    );
    assert!(config.qk_norm);
}

#[test]
fn weights_in_several_files_and_without_the_models_prefix_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let mut tied = config();
    tied["tie_word_embeddings"] = json!(true);
    std::fs::write(directory.path().join("config.json"), tied.to_string()).unwrap();
    let mut bare = tensors();
    bare.retain(|(name, _)| name != "lm_head.weight");
    bare.iter_mut().for_each(|(name, _)| *name = name.replacen("model.", "", 1));
    let (first, second) = bare.split_at(9);
    let mut map = serde_json::Map::new();
    for (file, part) in [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)] {
        std::fs::write(directory.path().join(file), support::safetensors(part)).unwrap();
        part.iter().for_each(|(name, _)| drop(map.insert(name.clone(), json!(file))));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    std::fs::write(directory.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let model = Model::open(directory.path()).unwrap();
    assert_eq!(model.source.files(), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
    let last = model.source.info(TensorName::Layer(1, LayerTensor::Down)).unwrap();
    assert_eq!((last.file_name.as_str(), last.file), ("layers.1.mlp.down_proj.weight", 1));
    assert!(model.source.bytes(TensorName::Layer(1, LayerTensor::Down)).is_ok());
}

#[test]
fn the_models_id_depends_on_its_index_and_on_nothing_else() {
    let (_first, a) = opened_directory();
    let (_second, b) = opened_directory();
    assert_eq!(a.id, b.id, "the same files elsewhere are the same model");
    let directory = tempfile::tempdir().unwrap();
    let mut swapped = tensors();
    swapped.swap(3, 8);
    write_directory(directory.path(), &config(), &swapped);
    assert_ne!(Model::open(directory.path()).unwrap().id, a.id, "two tensors changed places");
    assert_ne!(opened_gguf(&GgufFile::llama()).id, a.id);
}

// Windows lets nobody shrink a file that is open in this way.
#[cfg(unix)]
#[test]
fn a_file_that_shrinks_after_opening_is_an_error_and_not_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    write_directory(directory.path(), &config(), &tensors());
    let model = Model::open(directory.path()).unwrap();
    let path = directory.path().join("model.safetensors");
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    let error = model.source.bytes(TensorName::Layer(1, LayerTensor::Down)).unwrap_err().to_string();
    assert!(
        error.starts_with("model.safetensors is cut short: tensor `model.layers.1.mlp.down_proj.weight` needs bytes"),
        "{error}"
    );
    assert!(model.source.bytes(TensorName::TokenEmbedding).is_ok(), "what is still there can be read");
}

#[test]
fn a_directory_with_one_gguf_file_stands_for_that_file() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("model.gguf"), GgufFile::llama().build()).unwrap();
    assert_eq!(Model::open(directory.path()).unwrap().format, ModelFormat::Gguf);
}

fn vocabulary(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/tokenizers/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn tokenizer_template_and_endings_come_with_a_directory() {
    let (directory, bare) = opened_directory();
    assert!(bare.tokenizer.is_none() && bare.chat_template.is_none());
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    std::fs::write(directory.path().join("tokenizer.json"), vocabulary("bpe.json")).unwrap();
    write("generation_config.json", r#"{"eos_token_id": [5, 2]}"#);
    let named = json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}]);
    let tokens = json!({"chat_template": named, "bos_token": {"content": "<|begin|>"}});
    write("tokenizer_config.json", &tokens.to_string());
    write("special_tokens_map.json", r#"{"eos_token": "<|end|>", "bos_token": "overruled"}"#);
    let model = Model::open(directory.path()).unwrap();
    assert_eq!(model.config.eos_tokens, [5, 2]);
    assert_eq!(model.id, bare.id, "words and weights are different things");
    let chat = [json!({"role": "user", "content": "Hello"})];
    let render = |model: &Model| model.chat_template.as_ref().unwrap().render(&chat, &Default::default()).unwrap();
    assert_eq!(render(&model), "<|begin|>Hello<|end|>");
    let tokenizer = model.tokenizer.as_ref().unwrap();
    let tokens = tokenizer.encode(&render(&model), false).unwrap();
    assert!(tokenizer.is_special(tokens[0]), "the template's own special tokens are read as such");

    write("chat_template.jinja", "alone: {{ messages[0].content }}\n");
    assert_eq!(render(&Model::open(directory.path()).unwrap()), "alone: Hello", "the newer place comes first");
}

#[test]
fn tokenizer_template_and_endings_come_in_a_gguf_file() {
    let mut file = GgufFile::llama();
    file.text("tokenizer.ggml.model", "llama");
    file.set("tokenizer.ggml.tokens", 9, support::strings(&["<unk>", "<s>", "</s>", "<|im_end|>", "▁", "a", "▁a"]));
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let array = |kind: u32, count: u64, bytes: Vec<u8>| {
        [kind.to_le_bytes().to_vec(), count.to_le_bytes().to_vec(), bytes].concat()
    };
    file.set("tokenizer.ggml.scores", 9, array(6, 7, floats(&[0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -0.5])));
    let types = [2i32, 3, 3, 3, 1, 1, 1].iter().flat_map(|t| t.to_le_bytes()).collect();
    file.set("tokenizer.ggml.token_type", 9, array(5, 7, types));
    file.number("tokenizer.ggml.bos_token_id", 1);
    file.number("tokenizer.ggml.eos_token_id", 2);
    file.text("tokenizer.chat_template", "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}");
    let model = opened_gguf(&file);
    assert_eq!(model.config.eos_tokens, [2, 3], "a well-known end of turn ends an answer as well");
    let chat = [json!({"role": "user", "content": "a a"})];
    let prompt = model.chat_template.as_ref().unwrap().render(&chat, &Default::default()).unwrap();
    assert_eq!(prompt, "<s>a a</s>");
    let tokenizer = model.tokenizer.as_ref().unwrap();
    assert_eq!(tokenizer.encode(&prompt, false).unwrap(), [1, 6, 6, 2]);
    assert_eq!(tokenizer.encode("a", true).unwrap(), [1, 6], "texts of this kind begin with the first token");
    assert_eq!(tokenizer.encode("b", false).unwrap(), [4, 0], "without byte tokens the rest is unknown");
}
