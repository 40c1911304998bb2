//! GGUF tokenizers of the kind `gpt2`: byte-level BPE with a list of merges.

use tokenizers::{AddedToken, NormalizerWrapper, decoders::byte_level::ByteLevel, models::bpe::BPE, normalizers::NFC};

use super::{
    Encoder, Leading, Pieces, Tokenizer, TokenizerError, TokenizerKind, Vocabulary, byte_level, pre_tokenizers,
    token_type,
};
use crate::gguf::{Gguf, GgufValue};

pub(super) fn load(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
    let vocabulary = Vocabulary::new(gguf)?;
    let broken = |what: String| TokenizerError::Broken(what);
    let merges = gguf.metadata.get("tokenizer.ggml.merges").and_then(GgufValue::as_texts);
    let merges = merges.ok_or_else(|| broken("it lists no merges".to_owned()))?;
    let pair = |merge: &String| {
        // A token is never empty, so the separating space is not the first character.
        let (at, _) = merge.char_indices().skip(1).find(|&(_, c)| c == ' ')?;
        Some((merge[..at].to_owned(), merge[at + 1..].to_owned()))
    };
    let merges: Option<Vec<(String, String)>> = merges.iter().map(pair).collect();
    let merges = merges.ok_or_else(|| broken("a merge is not two tokens with a space between".to_owned()))?;

    let cut = pre_tokenizers::named(gguf.text("tokenizer.ggml.pre").unwrap_or("default"))?;
    let words: ahash::AHashMap<String, u32> = vocabulary.iter().map(|(id, text, _)| (text.to_owned(), id)).collect();
    let model = BPE::builder()
        .vocab_and_merges(words, merges)
        .ignore_merges(cut.ignore_merges)
        .build()
        .map_err(|error| broken(error.to_string()))?;
    let mut library = tokenizers::Tokenizer::new(model);
    library.with_pre_tokenizer(Some(cut.steps));
    library.with_decoder(Some(ByteLevel::default()));
    if cut.compose {
        library.with_normalizer(Some(NormalizerWrapper::NFC(NFC))).map_err(|error| broken(error.to_string()))?;
    }
    let is_special = |kind| matches!(kind, token_type::CONTROL | token_type::UNKNOWN);
    let added: Vec<AddedToken> = vocabulary
        .iter()
        .filter(|&(_, _, kind)| is_special(kind) || kind == token_type::USER_DEFINED)
        .map(|(_, text, kind)| AddedToken::from(text, is_special(kind)).normalized(false))
        .collect();
    library.add_tokens(added).map_err(|error| broken(error.to_string()))?;

    let mut pieces = Pieces::new(Leading::Keep);
    for (_, text, kind) in vocabulary.iter() {
        pieces.push(Some((&byte_level::bytes_of(text), is_special(kind))));
    }
    let wanted = |key: &str, default: bool| gguf.flag(&format!("tokenizer.ggml.add_{key}_token")).unwrap_or(default);
    let bos = vocabulary.named(gguf, "tokenizer.ggml.bos_token_id").filter(|_| wanted("bos", cut.adds_bos));
    let eos = vocabulary.named(gguf, "tokenizer.ggml.eos_token_id").filter(|_| wanted("eos", false));
    Ok(Tokenizer {
        encoder: Encoder::Bpe { library: Box::new(library), bos, eos },
        pieces,
        kind: TokenizerKind::ByteLevelBpe,
    })
}
