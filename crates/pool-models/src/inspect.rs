//! What `computepool inspect` shows.

use std::{collections::BTreeMap, fmt};

use pool_types::{ByteSize, ModelId};
use serde::{Deserialize, Serialize};

use crate::{
    config::{Activation, Family},
    open::{Model, ModelFormat},
    source::{TensorName, TensorType, entry_bytes, exit_bytes, layer_bytes},
    tokenizer::TokenizerKind,
};

/// A model at a glance; `Display` is a table for people, serde the same for programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// What it is called.
    pub name: String,
    /// The hash of its index.
    pub id: ModelId,
    /// What its files are.
    pub format: ModelFormat,
    /// The files' names.
    pub files: Vec<String>,
    /// The architecture.
    pub family: Family,
    /// Number of parameters.
    pub parameters: u64,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Query heads, key/value heads, width of a head.
    pub heads: [usize; 3],
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// The type hidden states travel in.
    pub activation: Activation,
    /// Bytes of all tensors in the files.
    pub total_bytes: u64,
    /// Bytes an entry shard holds besides its layers.
    pub entry_bytes: u64,
    /// Bytes an exit shard holds besides its layers.
    pub exit_bytes: u64,
    /// Bytes of key/value cache per token over all layers, at two bytes an element.
    pub kv_bytes_per_token: u64,
    /// Each layer.
    pub layers: Vec<LayerInspection>,
    /// How the elements are stored, the largest share first.
    pub types: Vec<TensorTypeShare>,
    /// The tokenizer's kind, where there is one.
    pub tokenizer: Option<TokenizerKind>,
    /// Whether there is a chat template.
    pub chat_template: bool,
}

/// One decoder layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInspection {
    /// Its number.
    pub layer: u32,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// How far back a query looks, `None` for all the way.
    pub window: Option<usize>,
}

/// What share of a model is stored in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorTypeShare {
    /// The element type.
    pub kind: TensorType,
    /// How many tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Inspection {
    /// Gathers what an opened model's index says.
    pub fn new(model: &Model) -> Self {
        let (config, source) = (&model.config, model.source.as_ref());
        let mut types: BTreeMap<TensorType, (usize, u64)> = BTreeMap::new();
        for info in source.names().into_iter().filter_map(|name: TensorName| source.info(name)) {
            let (tensors, bytes) = types.entry(info.kind).or_default();
            *tensors += 1;
            *bytes += info.length;
        }
        let total_bytes = types.values().map(|(_, bytes)| bytes).sum();
        let mut types: Vec<TensorTypeShare> =
            types.into_iter().map(|(kind, (tensors, bytes))| TensorTypeShare { kind, tensors, bytes }).collect();
        types.sort_by_key(|share| std::cmp::Reverse(share.bytes));
        let window = |layer: u32| config.windows.get(layer as usize).copied().flatten();
        Self {
            name: model.name.clone(),
            id: model.id,
            format: model.format,
            files: source.files(),
            family: config.family,
            parameters: config.parameters(),
            hidden_size: config.hidden_size,
            heads: [config.heads, config.kv_heads, config.head_dim],
            vocab_size: config.vocab_size,
            context: config.max_positions,
            activation: config.activation,
            total_bytes,
            entry_bytes: entry_bytes(source),
            exit_bytes: exit_bytes(source),
            kv_bytes_per_token: config.kv_bytes_per_token(config.layers, 2),
            layers: (0..config.layers)
                .map(|layer| LayerInspection { layer, bytes: layer_bytes(source, layer), window: window(layer) })
                .collect(),
            types,
            tokenizer: model.tokenizer.as_ref().map(|tokenizer| tokenizer.kind()),
            chat_template: model.chat_template.is_some(),
        }
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "{name:<14} {value}");
        row("model", self.name.clone())?;
        row("id", self.id.to_string())?;
        let format = match self.format {
            ModelFormat::Safetensors => "safetensors",
            ModelFormat::Gguf => "GGUF",
        };
        row("files", format!("{format}, {}", self.files.join(", ")))?;
        row("architecture", format!("{:?}", self.family))?;
        row("parameters", millions(self.parameters))?;
        let [heads, kv_heads, head_dim] = self.heads;
        row("hidden", format!("{} ({heads} heads, {kv_heads} key/value, {head_dim} wide)", self.hidden_size))?;
        row("vocabulary", self.vocab_size.to_string())?;
        row("context", format!("{} tokens", self.context))?;
        row("hidden states", format!("{:?}", self.activation).to_lowercase())?;
        let types = self.types.iter().map(|share| format!("{} {}", share.kind, ByteSize(share.bytes)));
        row("stored as", types.collect::<Vec<_>>().join(", "))?;
        row("tokenizer", self.tokenizer.map_or("none", kind_name).to_owned())?;
        row("chat template", if self.chat_template { "yes" } else { "no" }.to_owned())?;
        row("cache", format!("{} per token (f16)", ByteSize(self.kv_bytes_per_token)))?;
        row("total", ByteSize(self.total_bytes).to_string())?;
        row("entry", format!("{} besides its layers", ByteSize(self.entry_bytes)))?;
        row("exit", format!("{} besides its layers", ByteSize(self.exit_bytes)))?;
        for run in self.layers.chunk_by(|a, b| (a.bytes, a.window) == (b.bytes, b.window)) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let name = if first.layer == last.layer {
                format!("layer {}", first.layer)
            } else {
                format!("layers {}-{}", first.layer, last.layer)
            };
            let window = first.window.map_or(String::new(), |window| format!(", window of {window} tokens"));
            writeln!(f, "{name:<14} {} each{window}", ByteSize(first.bytes))?;
        }
        Ok(())
    }
}

fn kind_name(kind: TokenizerKind) -> &'static str {
    match kind {
        TokenizerKind::ByteLevelBpe => "byte-level BPE",
        TokenizerKind::CharacterBpe => "BPE with byte fallback",
        TokenizerKind::Unigram => "Unigram",
        TokenizerKind::SentencePieceBpe => "SentencePiece",
        TokenizerKind::Words => "words",
    }
}

fn millions(parameters: u64) -> String {
    if parameters >= 1_000_000_000 {
        format!("{:.2} B", parameters as f64 / 1e9)
    } else {
        format!("{:.2} M", parameters as f64 / 1e6)
    }
}
