//! `tokenizer.json`, by the library that defines it.

use serde_json::Value;
use tokenizers::{ModelWrapper, PreTokenizerWrapper};

use super::{Encoder, Leading, Pieces, Tokenizer, TokenizerError, TokenizerKind, byte_level};

/// Far above any vocabulary, so that one absurd token number cannot claim the memory.
const LARGEST_TOKEN: u32 = 1 << 24;

pub(super) fn load(json: &[u8]) -> Result<Tokenizer, TokenizerError> {
    // The library asserts some of what it expects of the file; a file is not a reason to end the process.
    let loaded = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(json));
    let loaded = loaded.map_err(|_| TokenizerError::Broken("tokenizer.json contradicts itself".to_owned()))?;
    let mut library = loaded.map_err(|error| TokenizerError::Broken(error.to_string()))?;
    // Both are leftovers of training; neither is applied when a model is served.
    library.with_padding(None);
    library.with_truncation(None).map_err(|error| TokenizerError::Broken(error.to_string()))?;

    let decoder = match library.get_decoder() {
        Some(decoder) => serde_json::to_value(decoder).map_err(|error| TokenizerError::Broken(error.to_string()))?,
        None => Value::Null,
    };
    let mut decoding = Decoding::default();
    decoding.read(&decoder)?;

    let mut tokens: Vec<(u32, bool)> = Vec::new();
    let added = library.get_added_vocabulary();
    let largest = library.get_vocab(true).into_values().max().unwrap_or(0);
    if largest > LARGEST_TOKEN {
        return Err(TokenizerError::Broken(format!("it has a token number {largest}")));
    }
    for id in 0..=largest {
        let special = added.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special);
        tokens.push((id, special));
    }
    let mut pieces = Pieces::new(decoding.leading);
    for (id, special) in tokens {
        match library.id_to_token(id) {
            Some(text) => pieces.push(Some((&decoding.bytes_of(&text), special))),
            None => pieces.push(None),
        }
    }
    let kind = match library.get_model() {
        ModelWrapper::BPE(_) if decoding.byte_level || byte_level_cut(library.get_pre_tokenizer()) => {
            TokenizerKind::ByteLevelBpe
        }
        ModelWrapper::BPE(_) => TokenizerKind::CharacterBpe,
        ModelWrapper::Unigram(_) => TokenizerKind::Unigram,
        _ => TokenizerKind::Words,
    };
    Ok(Tokenizer { encoder: Encoder::Library(Box::new(library)), pieces, kind })
}

fn byte_level_cut(pre_tokenizer: Option<&PreTokenizerWrapper>) -> bool {
    matches!(pre_tokenizer, Some(PreTokenizerWrapper::ByteLevel(_)))
}

/// What a decoder does with each token, gathered from its parts.
struct Decoding {
    byte_level: bool,
    byte_fallback: bool,
    /// The character that stands for a space.
    space: Option<String>,
    leading: Leading,
}

impl Default for Decoding {
    fn default() -> Self {
        Self { byte_level: false, byte_fallback: false, space: None, leading: Leading::Keep }
    }
}

impl Decoding {
    fn read(&mut self, decoder: &Value) -> Result<(), TokenizerError> {
        let kind = decoder.get("type").and_then(Value::as_str).unwrap_or("none");
        let unsupported = || TokenizerError::Decoder(kind.to_owned());
        match kind {
            "Sequence" => {
                let parts = decoder.get("decoders").and_then(Value::as_array).ok_or_else(unsupported)?;
                parts.iter().try_for_each(|part| self.read(part))?;
            }
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => {}
            "Metaspace" => {
                self.space = Some(decoder.get("replacement").and_then(Value::as_str).unwrap_or("▁").to_owned());
                if decoder.get("prepend_scheme").and_then(Value::as_str) != Some("never") {
                    self.leading = Leading::StripAll;
                }
            }
            "Replace" => {
                let pattern = decoder.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str);
                let content = decoder.get("content").and_then(Value::as_str);
                let (Some(pattern), Some(" ")) = (pattern, content) else { return Err(unsupported()) };
                self.space = Some(pattern.to_owned());
            }
            "Strip" => {
                let count = |name: &str| decoder.get(name).and_then(Value::as_u64).unwrap_or(0);
                let content = decoder.get("content").and_then(Value::as_str);
                if content != Some(" ") || count("stop") != 0 {
                    return Err(unsupported());
                }
                self.leading = Leading::Strip(count("start") as usize);
            }
            _ => return Err(unsupported()),
        }
        Ok(())
    }

    fn bytes_of(&self, token: &str) -> Vec<u8> {
        if self.byte_level {
            return byte_level::bytes_of(token);
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            return vec![byte];
        }
        match &self.space {
            Some(space) => token.replace(space.as_str(), " ").into_bytes(),
            None => token.as_bytes().to_vec(),
        }
    }
}

/// The byte of a token such as `<0x0A>`.
pub(super) fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some(())?;
    u8::from_str_radix(digits, 16).ok()
}
