//! What must be fetched for a part of a model: a pure function of the manifest, the part, and what is there already.

use std::collections::HashSet;

use alloy_primitives::B256;
use pool_types::LayerRange;
use serde::{Deserialize, Serialize};

use crate::{
    config::{ModelConfig, RopeScaling},
    manifest::{Content, Item, Manifest},
    open::ModelFormat,
    source::TensorName,
};

/// One request asks for at most this much, so that what fails is tried again soon.
const RUN_BYTES: u64 = 64 << 20;
/// There are about so many requests or more, for connections and hosts to share the work evenly...
const RUNS: u64 = 16;
/// ...but none for fewer pieces than this, unless no more lie together.
const RUN_PIECES: u64 = 4;
/// Neighbours as close as this are fetched by one request, the bytes between them thrown away, such as the padding
/// between GGUF tensors.
const BRIDGE_BYTES: u64 = 4 << 10;
/// At most this share of what is fetched is thrown away.
const BRIDGE_SHARE: u64 = 200;

/// A part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Which decoder layers.
    pub layers: Option<LayerRange>,
    /// The embedding.
    pub entry: bool,
    /// The last norm and the head.
    pub exit: bool,
    /// Tokenizer and templates: what a gateway needs and a shard does not.
    pub words: bool,
    /// Everything else in the files: headers, and tensors nobody asks for. Together with all layers, both ends and the
    /// words this is every byte of the model, so that whole-file hashes can be checked.
    pub rest: bool,
}

impl Wanted {
    /// What the shard of these layers loads: the first layer's holds the embedding, the last one's the head.
    pub fn shard(layers: LayerRange, config: &ModelConfig) -> Self {
        let (entry, exit) = (layers.start() == 0, layers.end() >= config.layers);
        Self { layers: Some(layers), entry, exit, words: false, rest: false }
    }

    /// What turns text into tokens, and no weight.
    pub fn words() -> Self {
        Self { layers: None, entry: false, exit: false, words: true, rest: false }
    }

    /// The whole model.
    pub fn everything(config: &ModelConfig) -> Self {
        let layers = LayerRange::new(0, config.layers).ok();
        Self { layers, entry: true, exit: true, words: true, rest: true }
    }

    /// Whether a shard that wants this loads the tensor of that place.
    fn tensor(self, name: TensorName, config: &ModelConfig) -> bool {
        match name {
            TensorName::TokenEmbedding => self.entry || (self.exit && config.tied_embeddings),
            TensorName::OutputNorm | TensorName::Output => self.exit,
            TensorName::RopeFrequencies => self.layers.is_some() && config.rope.scaling == RopeScaling::Tensor,
            TensorName::Layer(layer, _) => self.layers.is_some_and(|layers| layers.contains(layer)),
        }
    }
}

/// A piece of an item, and where it lies in the item's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PiecePlace {
    /// Which of [`Plan::items`].
    pub item: usize,
    /// Which piece of it.
    pub piece: u32,
    /// First byte in the file.
    pub start: u64,
    /// Length in bytes.
    pub length: u32,
}

impl PiecePlace {
    /// One past its last byte in the file.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(u64::from(self.length))
    }
}

/// What one request fetches: neighbouring pieces of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which file: [`Manifest::path`].
    pub file: usize,
    /// The pieces, by place.
    pub pieces: Vec<PiecePlace>,
}

impl Run {
    /// First byte in the file.
    pub fn start(&self) -> u64 {
        self.pieces.first().map_or(0, |piece| piece.start)
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.pieces.last().map_or(0, PiecePlace::end)
    }
}

/// What must be fetched for a part of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The tensors and small files wanted, each content once.
    pub items: Vec<Item>,
    /// The requests, by file and place.
    pub runs: Vec<Run>,
    /// The files (of [`Manifest::files`]) of which every byte is wanted.
    pub whole_files: Vec<usize>,
    wanted: u64,
    missing: u64,
}

impl Plan {
    /// Plans `wanted`; `has` says which pieces of which content are there already.
    pub fn new(manifest: &Manifest, wanted: Wanted, has: &dyn Fn(&Content, u32) -> bool) -> Self {
        Self::of_items(manifest, wanted, manifest.items(wanted), has)
    }

    /// As [`Self::new`], where it is known what the part consists of.
    pub(crate) fn of_items(
        manifest: &Manifest,
        wanted: Wanted,
        items: Vec<Item>,
        has: &dyn Fn(&Content, u32) -> bool,
    ) -> Self {
        let mut pieces = Vec::new();
        for (number, item) in items.iter().enumerate() {
            for piece in 0..item.content.piece_count(manifest.piece_bytes) {
                let (start, length) = item.content.piece_place(piece, manifest.piece_bytes);
                if !has(&item.content, piece) {
                    let start = item.offset.saturating_add(start);
                    pieces.push((item.file, PiecePlace { item: number, piece, start, length }));
                }
            }
        }
        let whole_files = if wanted == Wanted::everything(&manifest.config) {
            (0..manifest.files.len()).collect()
        } else {
            Vec::new()
        };
        let wanted = items.iter().fold(0u64, |sum, item| sum.saturating_add(item.content.length));
        let missing = pieces.iter().fold(0u64, |sum, (_, piece)| sum.saturating_add(u64::from(piece.length)));
        Self { items, runs: runs(pieces, missing, manifest.piece_bytes), whole_files, wanted, missing }
    }

    /// Bytes of everything wanted, whether it is there or not.
    pub fn wanted_bytes(&self) -> u64 {
        self.wanted
    }

    /// Bytes of what is wanted and not there.
    pub fn missing_bytes(&self) -> u64 {
        self.missing
    }

    /// Bytes that will travel: what is missing, and what lies between neighbours.
    pub fn fetched_bytes(&self) -> u64 {
        self.runs.iter().fold(0, |sum, run| sum.saturating_add(run.end().saturating_sub(run.start())))
    }
}

/// Joins pieces into requests.
fn runs(mut pieces: Vec<(usize, PiecePlace)>, missing: u64, piece_bytes: u32) -> Vec<Run> {
    let most = (missing / RUNS).max(RUN_PIECES * u64::from(piece_bytes)).min(RUN_BYTES.max(u64::from(piece_bytes)));
    pieces.sort_by_key(|(file, piece)| (*file, piece.start));
    let mut to_throw_away = missing / BRIDGE_SHARE;
    let mut runs: Vec<Run> = Vec::new();
    for (file, piece) in pieces {
        if let Some(run) = runs.last_mut()
            && run.file == file
            && piece.end().saturating_sub(run.start()) <= most
            && let Some(gap) = piece.start.checked_sub(run.end())
            && gap <= BRIDGE_BYTES.min(to_throw_away)
        {
            to_throw_away -= gap;
            run.pieces.push(piece);
        } else {
            runs.push(Run { file, pieces: vec![piece] });
        }
    }
    runs
}

impl Manifest {
    /// What a part of the model consists of, each content once, empty ones left out.
    pub fn items(&self, wanted: Wanted) -> Vec<Item> {
        self.items_of_any(&[wanted])
    }

    /// What several parts consist of together.
    pub(crate) fn items_of_any(&self, parts: &[Wanted]) -> Vec<Item> {
        let index = self.index().unwrap_or_default();
        let chosen = |name: &TensorName| parts.iter().any(|wanted| wanted.tensor(*name, &self.config));
        let rest = parts.iter().any(|wanted| wanted.rest);
        let with_words = parts.iter().any(|wanted| wanted.words);
        let mut names: HashSet<&str> =
            index.iter().filter(|(name, _)| chosen(name)).map(|(_, info)| info.file_name.as_str()).collect();
        if rest {
            let known: HashSet<&str> = index.values().map(|info| info.file_name.as_str()).collect();
            names.extend(self.tensors.iter().map(|tensor| tensor.name.as_str()).filter(|name| !known.contains(name)));
        }
        let headers =
            self.files.iter().enumerate().filter(|_| rest || (with_words && self.format == ModelFormat::Gguf));
        let headers = headers.map(|(file, weights)| Item {
            name: format!("the header of {}", weights.path),
            file,
            offset: 0,
            content: weights.header.clone(),
        });
        let tensors = self.tensors.iter().filter(|tensor| names.contains(tensor.name.as_str()));
        let tensors = tensors.map(|tensor| Item {
            name: tensor.name.clone(),
            file: tensor.file as usize,
            offset: tensor.offset,
            content: tensor.content.clone(),
        });
        let words = self.words.iter().enumerate().filter(|_| with_words);
        let words = words.map(|(number, word)| Item {
            name: word.path.clone(),
            file: self.files.len() + number,
            offset: 0,
            content: word.content.clone(),
        });
        let mut seen: HashSet<B256> = HashSet::new();
        let all = headers.chain(tensors).chain(words);
        all.filter(|item| item.content.length > 0 && seen.insert(item.content.key)).collect()
    }
}
