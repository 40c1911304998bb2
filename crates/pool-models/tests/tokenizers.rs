//! Tokens equal those of the reference libraries on a thousand strings of many scripts, for each way a tokenizer is
//! stored; texts come back from their tokens; a stream of tokens gives the text that all of them give at once.
//! `scripts/fixtures/tokenizers` makes the fixtures.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;

use pool_models::{Gguf, GgufValue, Tokenizer, TokenizerKind};
use proptest::prelude::*;
use serde::de::DeserializeOwned;

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/tokenizers/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&bytes(name)).unwrap()
}

fn gguf(name: &str) -> Gguf {
    Gguf::parse(&bytes(name)).unwrap()
}

fn load(name: &str) -> Arc<Tokenizer> {
    let tokenizer = match name.ends_with(".gguf") {
        true => Tokenizer::from_gguf(&gguf(name)).unwrap().unwrap(),
        false => Tokenizer::from_json(&bytes(name)).unwrap(),
    };
    Arc::new(tokenizer)
}

fn compare(tokenizer: &Tokenizer, expected: &[Vec<u32>], what: &str) {
    let texts: Vec<String> = read("strings.json");
    assert!(expected.len() >= 200 && expected.len() <= texts.len());
    let mut wrong = Vec::new();
    for (text, expected) in texts.iter().zip(expected) {
        let found = tokenizer.encode(text, false).unwrap();
        if found != *expected {
            wrong.push(format!("{text:?}\n  expected {expected:?}\n  found    {found:?}"));
        }
    }
    let shown = &wrong[..wrong.len().min(5)];
    assert!(wrong.is_empty(), "{what}: {} of {} differ, such as\n{}", wrong.len(), expected.len(), shown.join("\n"));
}

#[test]
fn tokenizer_json_of_the_bpe_kind() {
    let tokenizer = load("bpe.json");
    assert_eq!(tokenizer.kind(), TokenizerKind::ByteLevelBpe);
    compare(&tokenizer, &read::<Vec<_>>("bpe.ids.json"), "bpe.json");
}

#[test]
fn gguf_of_the_bpe_kind() {
    let tokenizer = load("bpe.gguf");
    assert_eq!(tokenizer.kind(), TokenizerKind::ByteLevelBpe);
    compare(&tokenizer, &read::<Vec<_>>("bpe.ids.json"), "bpe.gguf");
}

#[test]
fn gguf_of_the_sentencepiece_kind() {
    let tokenizer = load("spm.gguf");
    assert_eq!(tokenizer.kind(), TokenizerKind::SentencePieceBpe);
    compare(&tokenizer, &read::<Vec<_>>("spm.ids.json"), "spm.gguf against the sentencepiece library");
}

#[test]
fn tokenizer_json_of_the_sentencepiece_kind() {
    let tokenizer = load("spm.json");
    assert_eq!(tokenizer.kind(), TokenizerKind::CharacterBpe);
    compare(&tokenizer, &read::<Vec<_>>("spm-json.ids.json"), "spm.json");
}

#[test]
fn tokenizer_json_of_the_unigram_kind() {
    let tokenizer = load("unigram.json");
    assert_eq!(tokenizer.kind(), TokenizerKind::Unigram);
    let ids: Vec<Vec<u32>> = read("unigram.ids.json");
    compare(&tokenizer, &ids, "unigram.json");
    let texts: Vec<String> = read("unigram.texts.json");
    for (ids, text) in ids.iter().zip(&texts) {
        assert_eq!(tokenizer.decode(ids, true), *text, "decoding {ids:?}");
    }
}

#[test]
fn gguf_names_the_way_text_is_cut() {
    let ways: std::collections::BTreeMap<String, Vec<Vec<u32>>> = read("cuts.ids.json");
    assert!(ways.len() >= 4);
    for (name, expected) in ways {
        let mut gguf = gguf("bpe.gguf");
        gguf.metadata.insert("tokenizer.ggml.pre".to_owned(), GgufValue::Text(name.clone()));
        // The reference has no tokens besides the merges' own.
        gguf.metadata.remove("tokenizer.ggml.token_type");
        compare(&Tokenizer::from_gguf(&gguf).unwrap().unwrap(), &expected, &name);
    }
}

#[test]
fn texts_come_back_from_their_tokens() {
    let texts: Vec<String> = read("strings.json");
    for name in ["bpe.json", "bpe.gguf", "spm.json", "spm.gguf"] {
        let tokenizer = load(name);
        for text in &texts {
            let tokens = tokenizer.encode(text, false).unwrap();
            // SentencePiece writes spaces as ▁ and cannot tell one from the other when reading back.
            let expected = if name.starts_with("spm") { text.replace('▁', " ") } else { text.clone() };
            let expected = match name {
                // In a converted tokenizer.json each stretch between added tokens gets a separator of its own.
                "spm.json" => expected.replace("<tool_call>", "<tool_call> ").replace("</tool_call>", "</tool_call> "),
                _ => expected,
            };
            let decoded = tokenizer.decode(&tokens, true);
            if name == "spm.json" && text.contains("tool_call>") {
                assert_eq!(decoded.replace(' ', ""), expected.replace(' ', ""), "{name}: {tokens:?}");
            } else {
                assert_eq!(decoded, expected, "{name}: {tokens:?}");
            }
        }
    }
}

#[test]
fn decoding_equals_that_of_the_reference_library() {
    for name in ["bpe.json", "spm.json"] {
        let ours = load(name);
        let theirs = tokenizers::Tokenizer::from_bytes(bytes(name)).unwrap();
        let mut numbers = 1u64;
        for _ in 0..2000 {
            let ids: Vec<u32> = (0..8)
                .map(|_| {
                    numbers = numbers.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    ((numbers >> 33) % ours.vocab_size() as u64) as u32
                })
                .collect();
            for skip_special in [true, false] {
                let (found, expected) = (ours.decode(&ids, skip_special), theirs.decode(&ids, skip_special).unwrap());
                // Byte tokens that are no character: the library replaces each byte of the run, we each wrong part.
                if name == "bpe.json" || !expected.contains(char::REPLACEMENT_CHARACTER) {
                    assert_eq!(found, expected, "{name}: {ids:?}");
                }
            }
        }
    }
}

#[test]
fn special_tokens_are_read_added_and_skipped() {
    for name in ["bpe.json", "bpe.gguf"] {
        let tokenizer = load(name);
        let id = |text: &str| tokenizer.token_id(text).unwrap();
        let (begin, turn, call) = (id("<|begin|>"), id("<|turn|>"), id("<tool_call>"));
        let tokens = tokenizer.encode("<|turn|>a<tool_call>b", true).unwrap();
        assert_eq!((tokens[0], tokens[1]), (begin, turn), "{name}: {tokens:?}");
        assert!(tokens.contains(&call), "{name}: a user-defined token is one token");
        assert_eq!(tokenizer.encode("a", true).unwrap().len(), tokenizer.encode("a", false).unwrap().len() + 1);
        assert!(tokenizer.is_special(turn) && !tokenizer.is_special(call));
        assert_eq!(tokenizer.decode(&tokens, true), "a<tool_call>b", "{name}: special tokens are left out");
        assert_eq!(tokenizer.decode(&tokens, false), "<|begin|><|turn|>a<tool_call>b");
        assert_eq!(tokenizer.vocab_size(), 1505);
        assert_eq!(tokenizer.token_text(turn).as_deref(), Some("<|turn|>"));
    }
    let tokenizer = load("spm.gguf");
    let (begin, turn) = (tokenizer.token_id("<s>").unwrap(), tokenizer.token_id("<|turn|>").unwrap());
    let tokens = tokenizer.encode("one<|turn|>two", true).unwrap();
    assert_eq!(tokens[0], begin);
    assert_eq!(tokens.iter().filter(|&&token| token == turn).count(), 1, "{tokens:?}");
    assert_eq!(tokenizer.decode(&tokens, true), "one two", "a stretch after a special token begins with a separator");
    assert_eq!(tokenizer.encode("", true).unwrap(), [begin]);
    assert_eq!(tokenizer.encode("", false).unwrap(), [0u32; 0]);
}

#[test]
fn the_bytes_of_each_token_are_exact() {
    let texts: Vec<String> = read("strings.json");
    for name in ["bpe.json", "bpe.gguf", "spm.gguf"] {
        let tokenizer = load(name);
        for text in texts.iter().filter(|text| !text.contains('▁')) {
            let tokens = tokenizer.encode(text, false).unwrap();
            let joined: Vec<u8> = tokens.iter().flat_map(|&token| tokenizer.token_bytes(token).unwrap()).collect();
            let expected = if name == "spm.gguf" && !text.is_empty() { format!(" {text}") } else { text.clone() };
            assert_eq!(String::from_utf8_lossy(&joined), expected, "{name}");
        }
        assert_eq!(tokenizer.token_bytes(u32::MAX), None);
    }
}

fn streamed(tokenizer: &Arc<Tokenizer>, tokens: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text: String = tokens.iter().filter_map(|&token| stream.push(token)).collect();
    text.extend(stream.finish());
    text
}

#[test]
fn a_stream_never_splits_a_character() {
    for name in ["bpe.json", "spm.gguf"] {
        let tokenizer = load(name);
        let text = "Grüße 👩\u{200d}💻 你好 𠀀 end";
        let tokens = tokenizer.encode(text, false).unwrap();
        let mut stream = tokenizer.stream();
        let parts: Vec<Option<String>> = tokens.iter().map(|&token| stream.push(token)).collect();
        assert!(parts.iter().any(Option::is_none), "{name}: some tokens are parts of a character and say nothing");
        assert!(parts.iter().flatten().all(|part| !part.contains(char::REPLACEMENT_CHARACTER)), "{name}: {parts:?}");
        assert_eq!(parts.into_iter().flatten().collect::<String>(), text);
        assert_eq!(stream.finish(), None);

        // An answer cut off inside a character shows that something was there.
        let emoji = tokenizer.encode("𠀀", false).unwrap();
        let mut stream = tokenizer.stream();
        let shown: String = emoji[..emoji.len() - 1].iter().filter_map(|&token| stream.push(token)).collect();
        assert_eq!((shown.as_str(), stream.finish().as_deref()), ("", Some("\u{fffd}")), "{name}");
        assert_eq!(stream.finish(), None, "it is said once");
    }
}

#[test]
fn a_continuation_keeps_the_space_before_its_first_word() {
    let tokenizer = load("spm.gguf");
    let tokens = tokenizer.encode("model answer", false).unwrap();
    let text = |mut stream: pool_models::TokenStream| tokens.iter().filter_map(|&t| stream.push(t)).collect::<String>();
    assert_eq!(text(tokenizer.stream()), "model answer");
    assert_eq!(text(tokenizer.continuation()), " model answer", "it goes on after other text");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn streaming_equals_decoding_at_once(
        ids in prop::collection::vec(0u32..1600, 0..40),
        bytes in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        thread_local! {
            static ALL: Vec<Arc<Tokenizer>> =
                ["bpe.json", "bpe.gguf", "spm.json", "spm.gguf", "unigram.json"].iter().map(|name| load(name)).collect();
        }
        // Besides any tokens, runs of single bytes: characters begun, broken off and begun again.
        ALL.with(|all| {
            for tokenizer in all {
                let single: Vec<u32> = (0..tokenizer.vocab_size() as u32)
                    .filter(|&id| tokenizer.token_bytes(id).is_some_and(|b| b.len() == 1))
                    .collect();
                let mixed: Vec<u32> = ids.iter().copied().chain(bytes.iter().map(|index| *index.get(&single))).collect();
                prop_assert_eq!(streamed(tokenizer, &mixed), tokenizer.decode(&mixed, true));
            }
            Ok(())
        })?;
    }

    #[test]
    fn any_text_survives(text in "\\PC{0,40}") {
        thread_local! {
            static BOTH: [Arc<Tokenizer>; 2] = [load("bpe.gguf"), load("spm.gguf")];
        }
        BOTH.with(|[bpe, spm]| {
            prop_assert_eq!(&bpe.decode(&bpe.encode(&text, false).unwrap(), false), &text);
            prop_assert_eq!(spm.decode(&spm.encode(&text, false).unwrap(), false), text.replace('▁', " "));
            Ok(())
        })?;
    }
}

#[test]
fn a_stream_of_many_tokens_takes_time_in_proportion() {
    let tokenizer = load("bpe.json");
    let once = tokenizer.encode(&"The entry shard holds 👩\u{200d}💻 the embedding. ".repeat(50), false).unwrap();
    let time = |times: usize| {
        let tokens = once.repeat(times);
        let best = (0..5).map(|_| {
            let began = std::time::Instant::now();
            assert!(!streamed(&tokenizer, &tokens).is_empty());
            began.elapsed()
        });
        best.min().unwrap().as_secs_f64()
    };
    let (short, long) = (time(4), time(64));
    assert!(long < short * 16.0 * 4.0, "16 times the tokens took {:.1} times as long", long / short);
}
