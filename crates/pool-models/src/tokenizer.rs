//! Text to tokens and back. Two encoders stand behind [`Tokenizer`]: the `tokenizers` crate (tokenizer.json and GGUF
//! files of the BPE kind) and our own SentencePiece merges ([`sentencepiece`], GGUF files of the `llama` kind).
//! Decoding is one and the same for both: each token stands for fixed bytes, looked up in a table made at load.

mod byte_level;
mod gguf_bpe;
mod json;
mod pieces;
mod pre_tokenizers;
mod sentencepiece;
mod stream;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::gguf::{Gguf, GgufValue};
use pieces::{Leading, Pieces};
use sentencepiece::SentencePiece;
pub use stream::TokenStream;

/// A model's tokenizer.
///
/// Special tokens in the text are read as special tokens, as Hugging Face does: a rendered chat template contains
/// them as text. Nothing distinguishes them from the same characters typed by a user.
pub struct Tokenizer {
    encoder: Encoder,
    pieces: Pieces,
    kind: TokenizerKind,
}

enum Encoder {
    /// Adds the special tokens that its own post-processor knows.
    Library(Box<tokenizers::Tokenizer>),
    /// Adds beginning and end as GGUF metadata says.
    Bpe { library: Box<tokenizers::Tokenizer>, bos: Option<u32>, eos: Option<u32> },
    /// Ours.
    SentencePiece(Box<SentencePiece>),
}

/// What kind of tokenizer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerKind {
    /// Byte-pair encoding over bytes.
    ByteLevelBpe,
    /// Byte-pair encoding over characters, with bytes for the rest.
    CharacterBpe,
    /// Unigram language model.
    Unigram,
    /// SentencePiece's merges by score.
    SentencePieceBpe,
    /// Whole words.
    Words,
}

/// Why a tokenizer cannot be loaded or a text cannot be encoded.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// tokenizer.json is broken.
    #[error("the tokenizer is not usable: {0}")]
    Broken(String),
    /// A decoder we cannot follow byte for byte.
    #[error("the tokenizer's decoder `{0}` is not supported")]
    Decoder(String),
    /// A GGUF tokenizer of another kind.
    #[error("tokenizer kind `{0}` is not supported; supported are gpt2 (BPE) and llama (SentencePiece)")]
    Kind(String),
    /// A GGUF pre-tokenizer we do not know; guessing one would give other tokens than the model was trained on.
    #[error("pre-tokenizer `{0}` is not supported; supported are {list}", list = pre_tokenizers::NAMES.join(", "))]
    PreTokenizer(String),
    /// The text could not be encoded.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        json::load(json)
    }

    /// Builds the tokenizer a GGUF file describes, or `None` when it has none.
    pub fn from_gguf(gguf: &Gguf) -> Result<Option<Self>, TokenizerError> {
        let Some(kind) = gguf.text("tokenizer.ggml.model") else { return Ok(None) };
        match kind {
            "gpt2" => gguf_bpe::load(gguf).map(Some),
            "llama" => sentencepiece::load(gguf).map(Some),
            "none" | "no_vocab" => Ok(None),
            other => Err(TokenizerError::Kind(other.to_owned())),
        }
    }

    /// The tokens of a text. `add_special` adds what the model expects around a text of its own (such as a
    /// beginning-of-sequence token); leave it off for a rendered chat template, which writes them itself.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encode = |library: &tokenizers::Tokenizer, add_special| {
            let encoding = library.encode_fast(text, add_special);
            encoding.map(|e| e.get_ids().to_vec()).map_err(|e| TokenizerError::Encode(e.to_string()))
        };
        match &self.encoder {
            Encoder::Library(library) => encode(library, add_special),
            Encoder::Bpe { library, bos, eos } => {
                let text = encode(library, false)?;
                Ok(if add_special { bos.iter().copied().chain(text).chain(*eos).collect() } else { text })
            }
            Encoder::SentencePiece(model) => Ok(model.encode(text, add_special)),
        }
    }

    /// The text of tokens. Bytes that are not UTF-8 become U+FFFD; a word separator before the first word, which
    /// SentencePiece adds when encoding, is taken away.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::new();
        let mut first = true;
        for &token in tokens {
            let Some(piece) = self.pieces.get(token) else { continue };
            if skip_special && piece.special {
                continue;
            }
            if first {
                bytes.extend_from_slice(&self.pieces.first(&piece));
            } else {
                bytes.extend_from_slice(piece.bytes);
            }
            first = false;
        }
        String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// Decodes tokens one at a time; special tokens are left out. The parts joined are what [`Self::decode`] gives
    /// for all tokens with `skip_special`.
    pub fn stream(self: &Arc<Self>) -> TokenStream {
        TokenStream::new(self.clone(), false)
    }

    /// As [`Self::stream`], for tokens that continue a text: a word separator before the first word is kept.
    pub fn continuation(self: &Arc<Self>) -> TokenStream {
        TokenStream::new(self.clone(), true)
    }

    /// The exact bytes of one token in the middle of a text, which need not be whole characters.
    pub fn token_bytes(&self, token: u32) -> Option<Vec<u8>> {
        self.pieces.get(token).map(|piece| piece.bytes.to_vec())
    }

    /// The text of one token, such as `<|eot_id|>`.
    pub fn token_text(&self, token: u32) -> Option<String> {
        self.pieces.get(token).map(|piece| String::from_utf8_lossy(piece.bytes).into_owned())
    }

    /// The token that the vocabulary (not the text) calls so.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.encoder {
            Encoder::Library(library) | Encoder::Bpe { library, .. } => library.token_to_id(token),
            Encoder::SentencePiece(model) => model.token_id(token),
        }
    }

    /// One more than the largest token.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Whether a token is special: part of the format, not of the text.
    pub fn is_special(&self, token: u32) -> bool {
        self.pieces.get(token).is_some_and(|piece| piece.special)
    }

    /// What kind of tokenizer it is.
    pub fn kind(&self) -> TokenizerKind {
        self.kind
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("kind", &self.kind).field("vocab_size", &self.vocab_size()).finish()
    }
}

/// A GGUF vocabulary, checked for agreeing lengths.
struct Vocabulary<'a> {
    tokens: &'a [String],
    types: Vec<i64>,
}

/// ggml's token types.
mod token_type {
    pub(super) const NORMAL: i64 = 1;
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
    pub(super) const UNUSED: i64 = 5;
    pub(super) const BYTE: i64 = 6;
}

impl<'a> Vocabulary<'a> {
    fn new(gguf: &'a Gguf) -> Result<Self, TokenizerError> {
        let broken = |what: &str| TokenizerError::Broken(what.to_owned());
        let tokens = gguf.metadata.get("tokenizer.ggml.tokens").and_then(GgufValue::as_texts);
        let tokens = tokens.filter(|tokens| !tokens.is_empty()).ok_or_else(|| broken("it lists no tokens"))?;
        let types = match gguf.metadata.get("tokenizer.ggml.token_type") {
            Some(types) => types.as_integers().ok_or_else(|| broken("token types are not numbers"))?,
            None => vec![token_type::NORMAL; tokens.len()],
        };
        if types.len() != tokens.len() {
            return Err(broken(&format!("{} tokens have {} types", tokens.len(), types.len())));
        }
        Ok(Self { tokens, types })
    }

    /// Every token with its number and type.
    fn iter(&self) -> impl Iterator<Item = (u32, &'a str, i64)> {
        (0..).zip(self.tokens.iter().zip(&self.types)).map(|(id, (text, &kind))| (id, text.as_str(), kind))
    }

    /// A token that the metadata names, if it lies in the vocabulary.
    fn named(&self, gguf: &Gguf, key: &str) -> Option<u32> {
        let id = u32::try_from(gguf.unsigned(key)?).ok()?;
        ((id as usize) < self.tokens.len()).then_some(id)
    }
}
