//! No bytes make a reader panic, hang or claim memory: random ones, truncated ones, and real files with a few
//! bytes changed (the kind that gets furthest).
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use pool_models::{
    ChatTemplate, Gguf, Manifest, ManifestOptions, Model, ModelConfig, Plan, Tokenizer, Wanted, parse_safetensors,
};
use proptest::prelude::*;
use support::{GgufFile, config, safetensors, tensors, write_directory};

/// Everything that is done with a GGUF file's bytes.
fn read_gguf(bytes: &[u8]) {
    if let Ok(gguf) = Gguf::parse(bytes) {
        for tensor in &gguf.tensors {
            assert!(tensor.offset + tensor.length <= bytes.len() as u64, "{tensor:?} reaches past the end");
        }
        let _ = ModelConfig::from_gguf(&gguf);
        if let Ok(Some(tokenizer)) = Tokenizer::from_gguf(&gguf) {
            let _ = tokenizer.encode("a b c <s> é", true);
            let _ = tokenizer.decode(&[0, 1, 2, u32::MAX], false);
        }
    }
}

fn read_safetensors(bytes: &[u8]) {
    for (name, entry) in parse_safetensors(bytes).into_iter().flatten() {
        assert!(entry.offset + entry.length <= bytes.len() as u64, "{name} reaches past the end");
    }
}

/// Everything that is done with a stranger's manifest.
fn read_manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        assert_eq!(manifest.to_bytes(), bytes, "one text, one hash");
        let plan = Plan::new(&manifest, Wanted::everything(&manifest.config), &|_, _| false);
        for run in &plan.runs {
            assert!(run.end() <= manifest.length(run.file), "{run:?} reaches past the end of its file");
        }
        assert!(manifest.model_id().is_ok());
    }
}

static MANIFEST: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    write_directory(directory.path(), &config(), &tensors());
    Manifest::of(directory.path(), &ManifestOptions::default()).unwrap().to_bytes()
});

fn with_changes(mut bytes: Vec<u8>, changes: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    for (index, value) in changes {
        let at = index.index(bytes.len());
        bytes[at] = *value;
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    let value = prop_oneof![Just(0), Just(0xFF), Just(0x7F), any::<u8>()];
    prop::collection::vec((any::<prop::sample::Index>(), value), 1..8)
}

/// A file's part before its data, where a change has consequences.
fn header(file: &GgufFile) -> Vec<u8> {
    let mut file = file.clone();
    file.tensors.truncate(3);
    file.build()
}

fn vocabulary(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/tokenizers/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        read_gguf(&bytes);
        read_gguf(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
        read_safetensors(&bytes);
        read_manifest(&bytes);
        read_safetensors(&[&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat());
    }

    #[test]
    fn a_gguf_file_with_some_bytes_changed(changes in changes()) {
        read_gguf(&with_changes(header(&GgufFile::llama()), &changes));
    }

    #[test]
    fn a_safetensors_file_with_some_bytes_changed(changes in changes()) {
        let file = safetensors(&tensors()[1..2]);
        read_safetensors(&with_changes(file, &changes));
    }

    #[test]
    fn a_manifest_with_some_bytes_changed(changes in changes(), digit in any::<bool>()) {
        if digit {
            // Digits for digits: the kind of change that stays JSON.
            let changed = changes.iter().map(|(index, value)| (index.index(MANIFEST.len()), b'0' + value % 10));
            let mut bytes = MANIFEST.clone();
            changed.filter(|(at, _)| MANIFEST[*at].is_ascii_digit()).for_each(|(at, value)| bytes[at] = value);
            read_manifest(&bytes);
        } else {
            read_manifest(&with_changes(MANIFEST.clone(), &changes));
        }
    }

    #[test]
    fn a_manifest_with_any_numbers(
        key in prop::sample::select(vec!["offset", "file", "length", "piece_bytes", "layers", "head_dim", "vocab_size"]),
        value in prop_oneof![Just(0), Just(u64::MAX), Just(u64::from(u32::MAX)), any::<u64>(), 0u64..100_000],
        which in any::<prop::sample::Index>(),
    ) {
        let text = std::str::from_utf8(&MANIFEST).unwrap();
        let places: Vec<usize> = text.match_indices(&format!("\"{key}\":")).map(|(at, found)| at + found.len()).collect();
        let at = places[which.index(places.len())];
        let end = at + text[at..].find(|c: char| !c.is_ascii_digit()).unwrap();
        read_manifest(format!("{}{value}{}", &text[..at], &text[end..]).as_bytes());
    }

    #[test]
    fn a_configuration_with_any_numbers(
        key in prop::sample::select(vec!["hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
            "num_hidden_layers", "vocab_size", "intermediate_size", "max_position_embeddings", "sliding_window", "max_window_layers"]),
        value in prop_oneof![Just(0), Just(u64::MAX), any::<u64>(), 0u64..300],
        family in prop::sample::select(vec!["llama", "mistral", "qwen2", "qwen3"]),
    ) {
        let mut config = config();
        config["model_type"] = family.into();
        config["use_sliding_window"] = true.into();
        config[key] = value.into();
        if let Ok(read) = ModelConfig::from_hugging_face(&config, None) {
            // What is accepted can be reckoned with.
            prop_assert!(read.parameters() > 0);
            prop_assert!(read.kv_bytes_per_token(read.layers, 4) > 0);
            prop_assert_eq!(read.windows.len(), read.layers as usize);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_vocabulary_with_some_bytes_changed(changes in changes(), spm in any::<bool>()) {
        read_gguf(&with_changes(vocabulary(if spm { "spm.gguf" } else { "bpe.gguf" }), &changes));
    }

    #[test]
    fn a_tokenizer_json_with_some_bytes_changed(changes in changes(), spm in any::<bool>()) {
        let bytes = with_changes(vocabulary(if spm { "spm.json" } else { "bpe.json" }), &changes);
        if let Ok(tokenizer) = Tokenizer::from_json(&bytes) {
            let _ = tokenizer.encode("Hello <|turn|> wörld", true);
        }
    }
}

#[test]
fn a_gguf_file_cut_anywhere() {
    let whole = header(&GgufFile::llama());
    for length in 0..whole.len().min(1500) {
        assert!(Gguf::parse(&whole[..length]).is_err(), "cut to {length} bytes it cannot be whole");
    }
    let vocabulary = vocabulary("spm.gguf");
    for length in (0..vocabulary.len()).step_by(97) {
        read_gguf(&vocabulary[..length]);
    }
}

#[test]
fn a_safetensors_file_cut_anywhere() {
    let whole = safetensors(&tensors()[1..2]);
    for length in 0..whole.len() {
        assert!(parse_safetensors(&whole[..length]).is_err(), "cut to {length} bytes it cannot be whole");
    }
}

#[test]
fn a_whole_model_with_bytes_changed_on_disk_opens_or_says_why_not() {
    use rand_like::Numbers;
    let directory = tempfile::tempdir().unwrap();
    write_directory(directory.path(), &config(), &tensors());
    let path = directory.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut numbers = Numbers(7);
    for _ in 0..200 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            let at = numbers.below(2600);
            bytes[at] = numbers.below(256) as u8;
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(model) = Model::open(directory.path()) {
            for name in model.source.names() {
                assert!(model.source.bytes(name).is_ok(), "what opens is whole");
            }
        }
    }
}

#[test]
fn templates_that_never_end_or_grow_without_bound_are_stopped() {
    let hostile = [
        "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ 'x' * 1000000000000 }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ [1, 2] | tojson(indent=99999999999) }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(10000) %}{% for j in range(20) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{% endfor %}{{ ns.x }}",
        "{{ range(99999999) | list | length }}",
        "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
        "{{ ('ab ' * 100000).split() | join('x' * 100000) }}",
        "{{ ('x' * 100000).join(('ab ' * 100000).split()) }}",
        "{{ '{:>999999999}'.format('x') }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    ];
    for source in hostile {
        let began = std::time::Instant::now();
        let result =
            ChatTemplate::new(source, None, None).and_then(|template| template.render(&[], &Default::default()));
        let text = result.map(|text| text.len());
        assert!(text.as_ref().is_err() || text.as_ref().is_ok_and(|&length| length < 40 << 20), "{source}: {text:?}");
        let took = began.elapsed();
        assert!(took.as_secs() < 10, "{source} took {took:?}");
    }
}

/// Seeded numbers without another dependency.
mod rand_like {
    pub(crate) struct Numbers(pub(crate) u64);

    impl Numbers {
        /// SplitMix64.
        pub(crate) fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) % bound as u64) as usize
        }
    }
}
