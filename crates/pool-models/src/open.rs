//! From a path to a model: a Hugging Face directory or a GGUF file.

mod cached;
mod directory;
mod gguf_file;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use pool_types::ModelId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

#[cfg(feature = "downloads")]
pub(crate) use directory::{WORDS, shard_names};
#[cfg(feature = "downloads")]
pub(crate) use gguf_file::{listed as gguf_listed, name as gguf_name, refuse_split};

use crate::{
    cache::{self, CacheError, Lease},
    config::{ConfigError, ModelConfig},
    files::Listed,
    gguf::GgufError,
    manifest::ManifestError,
    mapping::Mapping,
    safetensors::SafetensorsError,
    source::TensorSource,
    template::{ChatTemplate, TemplateError},
    tokenizer::{Tokenizer, TokenizerError},
};

/// A model whose index has been read and checked; no weight has been touched yet.
#[derive(Clone)]
pub struct Model {
    /// SHA-256 of the index.
    pub id: ModelId,
    /// What to call it: `general.name` of a GGUF file, else the directory's or file's name.
    pub name: String,
    /// Its shape.
    pub config: Arc<ModelConfig>,
    /// Its tensors.
    pub source: Arc<dyn TensorSource>,
    /// Text to tokens, where the files have a tokenizer.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Chats to prompts, where the files have a template.
    pub chat_template: Option<Arc<ChatTemplate>>,
    /// What its files are.
    pub format: ModelFormat,
    /// Keeps its files from being removed, where they lie in a cache. Whoever works with what was read of them holds it
    /// for longer than the model itself: a shard that starts again needs the files again.
    pub lease: Option<Lease>,
}

/// What a model's files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelFormat {
    /// A directory with `config.json` and safetensors.
    Safetensors,
    /// One GGUF file.
    Gguf,
}

/// Why a model cannot be opened. Each message is one sentence that names the file and what to do where there is
/// something to do.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is nothing at the path, or it cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is neither a directory nor GGUF.
    #[error("{0} is neither a GGUF file nor a directory with config.json and safetensors")]
    NotAModel(PathBuf),
    /// A directory without weights that can be read.
    #[error("{0} has no model.safetensors and no model.safetensors.index.json{hint}", hint = if *.1 { "; its PyTorch weights must be converted to safetensors first" } else { "" })]
    NoWeights(PathBuf, bool),
    /// A JSON file that is not JSON, or larger than any real one.
    #[error("{path} is not usable: {reason}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The configuration cannot be used.
    #[error("{path}: {source}")]
    Config {
        /// Where it stands.
        path: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
    /// A broken GGUF file.
    #[error("{path} is not a usable GGUF file: {source}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: GgufError,
    },
    /// One part of several.
    #[error("{path} is part {part} of {parts} of a split GGUF model; join the parts first (llama-gguf-split --merge)")]
    Split {
        /// The file.
        path: PathBuf,
        /// Which part, counted from 1.
        part: u64,
        /// How many there are.
        parts: u64,
    },
    /// A broken safetensors file.
    #[error("{path} is not a usable safetensors file: {source}")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SafetensorsError,
    },
    /// A tensor that the configuration asks for is not there.
    #[error("the model has no tensor `{0}`, which its configuration asks for")]
    MissingTensor(String),
    /// A tensor of another shape than the configuration says.
    #[error("tensor `{tensor}` has shape {found:?}, but the configuration asks for {expected:?}")]
    Shape {
        /// The name in the file.
        tensor: String,
        /// What the configuration asks for.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
    },
    /// A tensor stored in a way the engine cannot read.
    #[error("tensor `{tensor}` is stored as {kind}, which is not supported")]
    TensorType {
        /// The name in the file.
        tensor: String,
        /// Its type.
        kind: String,
    },
    /// The tokenizer cannot be used.
    #[error("{path}: {source}")]
    Tokenizer {
        /// Where it stands.
        path: PathBuf,
        /// What is wrong.
        source: TokenizerError,
    },
    /// The chat template cannot be used.
    #[error("{path}: {source}")]
    Template {
        /// Where it stands.
        path: PathBuf,
        /// What is wrong.
        source: TemplateError,
    },
    /// The manifest of a model in the cache cannot be used.
    #[error("{path}: {source}")]
    Manifest {
        /// Where it stands.
        path: PathBuf,
        /// What is wrong.
        source: Box<ManifestError>,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Model {
    /// Opens a Hugging Face directory (`config.json`, safetensors in one file or with an index, and where present
    /// `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`, `generation_config.json`) or a single GGUF
    /// file. Reads headers only; every tensor the configuration asks for is known to exist, whole and in the right
    /// shape, when this returns.
    ///
    /// The path may also be that of a model in the [`crate::Cache`], of which this machine may have some layers only:
    /// the shape is then known for all tensors, and reading one that is not there is
    /// [`crate::TensorError::NotDownloaded`]. For as long as the model is held, nothing of it is evicted.
    pub fn open(path: impl AsRef<Path>) -> Result<Model, OpenError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(|source| OpenError::Read { path: path.to_owned(), source })?;
        if !metadata.is_dir() {
            return gguf_file::open(path);
        }
        // A model's own folder may hold a file of that name too, beside its configuration.
        if path.join(cache::MANIFEST).exists() && !path.join("config.json").exists() {
            return cached::open(path);
        }
        if !path.join("config.json").exists()
            && let Some(file) = only_gguf(path)
        {
            return gguf_file::open(&file);
        }
        directory::open(path)
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("format", &self.format)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// What a model's files hold, for its manifest.
pub(crate) struct Layout {
    pub(crate) files: Vec<(String, Mapping)>,
    pub(crate) listed: BTreeMap<String, Listed>,
    pub(crate) words: Vec<(String, Vec<u8>)>,
}

/// Finds the parts of a local model.
pub(crate) fn layout(path: &Path) -> Result<Layout, OpenError> {
    if !path.is_dir() {
        return gguf_file::layout(path);
    }
    match only_gguf(path).filter(|_| !path.join("config.json").exists()) {
        Some(file) => gguf_file::layout(&file),
        None => directory::layout(path),
    }
}

/// What turns text into tokens.
#[derive(Default)]
pub(crate) struct Words {
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    pub(crate) chat_template: Option<Arc<ChatTemplate>>,
}

/// A directory that holds one GGUF file stands for it.
fn only_gguf(directory: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    let mut ggufs = files.filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    let first = ggufs.next()?;
    ggufs.next().is_none().then_some(first)
}

/// The last part of a path that means something to a person.
fn stem(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = if absolute.is_dir() { absolute.file_name() } else { absolute.file_stem() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}
