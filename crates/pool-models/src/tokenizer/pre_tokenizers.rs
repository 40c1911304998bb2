//! How a text is cut into words before merging. GGUF files name the way (`tokenizer.ggml.pre`); the expressions are
//! those of the models' own tokenizer.json files, which llama.cpp mirrors under these names.

use tokenizers::{
    PreTokenizerWrapper, SplitDelimiterBehavior,
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::TokenizerError;

/// The names that are understood.
pub(super) const NAMES: &[&str] = &[
    "default",
    "gpt-2",
    "llama-bpe",
    "llama-v3",
    "llama3",
    "qwen2",
    "deepseek-r1-qwen",
    "smollm",
    "starcoder",
    "refact",
    "command-r",
    "codeshell",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "tekken",
    "falcon3",
    "megrez",
    "smaug-bpe",
    "dbrx",
];

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The letters DeepSeek's first tokenizers know as such. From Greek Extended on they are written as numbers, since
/// tools that normalise text would change some of them.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ",
    r"\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}",
    r"\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}",
    r"\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}",
    r"\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}",
    r"\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}",
    r"\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}",
    r"\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}",
    r"\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+",
);
const DEEPSEEK_MARKS: &str = "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+";
const DEEPSEEK_HAN: &str = "[一-龥ࠀ-一가-퟿]+";
const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// A way to cut text.
pub(super) struct PreTokenizer {
    pub(super) steps: PreTokenizerWrapper,
    /// A word that is in the vocabulary is one token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// The model's own tokenizer composes characters (NFC) first.
    pub(super) compose: bool,
    /// Texts of this kind begin with the beginning-of-sequence token unless the file says otherwise.
    pub(super) adds_bos: bool,
}

/// The way called `name`.
pub(super) fn named(name: &str) -> Result<PreTokenizer, TokenizerError> {
    let (expressions, single_digits): (&[&str], bool) = match name {
        "default" | "gpt-2" => (&[GPT2], false),
        "llama-bpe" | "llama-v3" | "llama3" | "falcon3" | "smaug-bpe" | "dbrx" => (&[LLAMA3], false),
        "qwen2" | "deepseek-r1-qwen" | "megrez" => (&[QWEN2], false),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => (&[GPT2], true),
        "deepseek-llm" => (&["[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", DEEPSEEK_HAN, r"\p{N}+"], false),
        "deepseek-coder" => (&["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_HAN, r"\p{N}"], false),
        "deepseek-v3" => (&[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3], false),
        "tekken" => (&[TEKKEN], false),
        other => return Err(TokenizerError::PreTokenizer(other.to_owned())),
    };
    let mut steps = Vec::new();
    if single_digits {
        steps.push(PreTokenizerWrapper::Digits(Digits::new(true)));
    }
    for expression in expressions {
        let pattern = SplitPattern::Regex((*expression).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        let split = split.map_err(|error| TokenizerError::Broken(error.to_string()))?;
        steps.push(PreTokenizerWrapper::Split(split));
    }
    steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)));
    Ok(PreTokenizer {
        steps: PreTokenizerWrapper::Sequence(Sequence::new(steps)),
        ignore_merges: matches!(name, "llama-bpe" | "llama-v3" | "llama3" | "falcon3" | "tekken"),
        compose: matches!(name, "qwen2" | "deepseek-r1-qwen"),
        adds_bos: matches!(name, "llama-bpe" | "llama-v3" | "llama3" | "falcon3" | "tekken"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_is_offered_builds() {
        for name in NAMES {
            assert!(named(name).is_ok(), "{name} does not build");
        }
        let error = named("gpt-9").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.starts_with("pre-tokenizer `gpt-9` is not supported; supported are default, gpt-2,"), "{error}");
    }
}
