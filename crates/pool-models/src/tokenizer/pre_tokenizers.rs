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
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
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
