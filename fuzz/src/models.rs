//! Model files: weights' headers, configurations, tokenizers, chat templates.

use pool_models::{
    ChatTemplate, Gguf, Manifest, ModelConfig, Plan, RenderOptions, Tokenizer, Wanted, parse_safetensors,
};
use serde_json::json;

/// A GGUF file.
pub(crate) fn gguf(bytes: &[u8]) {
    let Ok(gguf) = Gguf::parse(bytes) else { return };
    for tensor in &gguf.tensors {
        let end = tensor.offset.checked_add(tensor.length);
        assert!(end.is_some_and(|end| end <= bytes.len() as u64), "{tensor:?} reaches past the file's end");
    }
    let _ = ModelConfig::from_gguf(&gguf);
    if let Ok(Some(tokenizer)) = Tokenizer::from_gguf(&gguf) {
        encode(&tokenizer);
    }
}

/// A safetensors file.
pub(crate) fn safetensors(bytes: &[u8]) {
    for (name, entry) in parse_safetensors(bytes).into_iter().flatten() {
        let end = entry.offset.checked_add(entry.length);
        assert!(end.is_some_and(|end| end <= bytes.len() as u64), "{name} reaches past the file's end");
    }
}

/// `config.json`.
pub(crate) fn configuration(bytes: &[u8]) {
    let Ok(json) = serde_json::from_slice(bytes) else { return };
    let Ok(config) = ModelConfig::from_hugging_face(&json, None) else { return };
    assert!(config.heads > 0 && config.kv_heads > 0, "a model has heads");
    assert!(config.heads.is_multiple_of(config.kv_heads), "query heads share key heads evenly");
    assert_eq!(config.windows.len(), config.layers as usize, "each layer has its window or none");
}

/// `tokenizer.json`.
pub(crate) fn tokenizer(bytes: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_json(bytes) {
        encode(&tokenizer);
    }
}

/// A model's manifest.
pub(crate) fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    assert_eq!(manifest.to_bytes(), bytes, "a manifest has one form");
    let pieces: u64 = manifest.contents().map(|content| u64::from(content.piece_count(manifest.piece_bytes))).sum();
    assert!(pieces <= Manifest::MOST_PIECES, "{pieces} pieces cannot be kept account of");
    let plan = Plan::new(&manifest, Wanted::everything(&manifest.config), &|_, _| false);
    assert!(plan.missing_bytes() <= plan.wanted_bytes(), "no more is missing than is wanted");
    for item in manifest.items(Wanted::everything(&manifest.config)) {
        let end = item.offset.checked_add(item.content.length);
        assert!(end.is_some_and(|end| end <= manifest.length(item.file)), "{} reaches past its file's end", item.name);
    }
}

/// A chat template, rendered over a short conversation.
pub(crate) fn template(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let Ok(template) = ChatTemplate::new(source, Some("<s>".to_owned()), Some("</s>".to_owned())) else { return };
    let messages =
        [json!({ "role": "system", "content": "Be brief." }), json!({ "role": "user", "content": "What is a shard?" })];
    let _ = template.render(&messages, &RenderOptions { add_generation_prompt: true, ..RenderOptions::default() });
}

fn encode(tokenizer: &Tokenizer) {
    let _ = tokenizer.encode("a b c <s> \u{e9} \u{1f600}", true);
    let _ = tokenizer.decode(&[0, 1, 2, u32::MAX], false);
}
