//! Fixtures: what `transformers` computed (`scripts/parity/make_fixtures.py`, `scripts/fixtures/gguf/make.py`).

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::weights::Storage;

/// What the reference expects after one position of a sequence.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Which token of the sequence was the last one seen.
    pub(crate) position: usize,
    /// The most likely tokens with their log-probabilities, most likely first.
    pub(crate) top: Vec<(u32, f32)>,
    /// The log-probabilities of a few tokens that are the same for every row.
    pub(crate) watched: Vec<(u32, f32)>,
}

impl Row {
    /// The greedy token.
    pub(crate) fn best(&self) -> u32 {
        self.top[0].0
    }

    /// By how much the greedy token leads.
    pub(crate) fn margin(&self) -> f32 {
        self.top[0].1 - self.top[1].1
    }
}

/// Tokens, and what the reference expects after some of them.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) rows: Vec<Row>,
}

/// What the reference computed from one model.
#[derive(Clone, Debug)]
pub(crate) struct Expectations {
    pub(crate) name: String,
    pub(crate) seed: u64,
    /// The prompt and the 40 tokens of its greedy answer.
    pub(crate) main: Sequence,
    /// How many tokens of `main` are the prompt.
    pub(crate) prompt: usize,
    /// Other sequences, to be advanced in the same batch.
    pub(crate) companions: Vec<Sequence>,
}

/// A model whose weights come from a seed.
#[derive(Clone, Debug)]
pub(crate) struct Fixture {
    pub(crate) expectations: Expectations,
    pub(crate) storage: Storage,
    /// Over how many files the weights are spread.
    pub(crate) files: usize,
    /// `config.json`.
    pub(crate) config: Value,
    /// Stored tensors and their shapes; `*` stands for each layer.
    tensors: Vec<(String, Vec<usize>)>,
}

impl Fixture {
    /// Every stored tensor with its shape.
    pub(crate) fn expanded_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let layers = number(&self.config["num_hidden_layers"]);
        let copies = |name: &str| if name.contains('*') { layers } else { 1 };
        let expand = |(name, shape): &(String, Vec<usize>)| -> Vec<_> {
            (0..copies(name)).map(|layer| (name.replace('*', &layer.to_string()), shape.clone())).collect()
        };
        self.tensors.iter().flat_map(expand).collect()
    }
}

/// Where the committed fixtures lie.
pub(crate) fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind)
}

/// The parity fixtures whose name begins with `family`: the committed ones, or those in the folder that
/// `POOL_PARITY_FIXTURES` names (a live comparison).
pub(crate) fn parity(family: &str) -> Vec<Fixture> {
    let folder = env::var_os("POOL_PARITY_FIXTURES").map_or_else(|| folder("parity"), PathBuf::from);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| is_json_of(path, family))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no fixture of {family}", folder.display());
    paths.iter().map(|path| fixture(&read(path))).collect()
}

fn is_json_of(path: &Path, family: &str) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    path.extension().is_some_and(|extension| extension == "json") && stem.starts_with(family)
}

/// The JSON document at `path`.
pub(crate) fn read(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{} is not JSON: {error}", path.display()))
}

fn fixture(document: &Value) -> Fixture {
    Fixture {
        expectations: expectations(document),
        storage: Storage::named(text(&document["storage"])),
        files: number(&document["files"]),
        config: document["config"].clone(),
        tensors: document["tensors"].as_object().unwrap().iter().map(|(name, s)| (name.clone(), numbers(s))).collect(),
    }
}

/// The part that both kinds of fixture have.
pub(crate) fn expectations(document: &Value) -> Expectations {
    let watched = tokens(&document["watched"]);
    let prompt = tokens(&document["prompt"]);
    let answer = tokens(&document["answer"]);
    let sequence = |tokens: Vec<u32>, list: &Value| Sequence { tokens, rows: rows(list, &watched) };
    Expectations {
        name: text(&document["name"]).to_owned(),
        seed: document["seed"].as_u64().unwrap(),
        prompt: prompt.len(),
        main: sequence([prompt, answer].concat(), &document["rows"]),
        companions: array(&document["companions"]).iter().map(|c| sequence(tokens(&c["tokens"]), &c["rows"])).collect(),
    }
}

fn rows(list: &Value, watched: &[u32]) -> Vec<Row> {
    let value = |number: &Value| number.as_f64().unwrap() as f32;
    let row = |row: &Value| Row {
        position: number(&row["position"]),
        top: array(&row["top"]).iter().map(|pair| (number(&pair[0]) as u32, value(&pair[1]))).collect(),
        watched: watched.iter().copied().zip(array(&row["watched"]).iter().map(value)).collect(),
    };
    array(list).iter().map(row).collect()
}

fn tokens(list: &Value) -> Vec<u32> {
    numbers(list).into_iter().map(|id| id as u32).collect()
}

pub(crate) fn numbers(list: &Value) -> Vec<usize> {
    array(list).iter().map(number).collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

pub(crate) fn array(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}
