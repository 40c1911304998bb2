//! Model files, read without loading them: what a model is ([`ModelConfig`]), where each tensor lies
//! ([`TensorSource`]), how text becomes tokens ([`Tokenizer`]) and a chat becomes a prompt ([`ChatTemplate`]).
//!
//! A shape is known from a configuration alone, so a split can be planned before anything is downloaded:
//!
//! ```
//! use pool_models::{ModelConfig, TensorType};
//!
//! let config = ModelConfig::from_hugging_face(
//!     &serde_json::json!({
//!         "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
//!         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
//!         "rope_theta": 500000.0, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
//!     }),
//!     None,
//! )?;
//! assert_eq!(config.parameters(), 8_030_261_248);
//! assert_eq!(config.estimate_layer_bytes(TensorType::BF16), 436_224_000);
//! # Ok::<(), pool_models::ConfigError>(())
//! ```
//!
//! A [`Manifest`] says what a model is to the byte; a [`Plan`] says what of it a shard must fetch; the [`Cache`] keeps
//! single tensors, which the shards of a machine share and [`Model::open`] reads; [`Downloads`] fills it from hosts
//! (`cargo run -p pool-models --example download`):
//!
//! ```
//! use pool_models::{Cache, Manifest, ManifestOptions, Model, Plan, TensorName, Wanted};
//! use pool_types::LayerRange;
//!
//! let files = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny");
//! let manifest = Manifest::of(files.as_ref(), &ManifestOptions::default())?;
//!
//! // What the shard of the first layer needs: that layer and the embedding, nothing else.
//! let wanted = Wanted::shard(LayerRange::new(0, 1)?, &manifest.config);
//! let plan = Plan::new(&manifest, wanted, &|_, _| false);
//! assert!(plan.fetched_bytes() as f64 <= plan.wanted_bytes() as f64 * 1.02);
//!
//! // It is here already, so no host need be asked.
//! let folder = tempfile::tempdir()?;
//! let cache = Cache::open(folder.path())?;
//! cache.import(&manifest, files.as_ref(), wanted)?;
//! let model = Model::open(cache.model_path(manifest.hash()))?;
//! assert_eq!(model.id, Model::open(files)?.id);
//! assert!(model.source.bytes(TensorName::TokenEmbedding).is_ok());
//! assert!(model.source.bytes(TensorName::OutputNorm).is_err(), "another shard's");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Every reader is bounded and none panics, whatever the bytes: a broken file ends in one sentence that says what
//! is wrong with it.

mod cache;
mod config;
#[cfg(feature = "downloads")]
mod downloads;
mod files;
mod gguf;
mod inspect;
mod manifest;
mod mapping;
mod names;
mod open;
mod plan;
mod safetensors;
mod source;
mod template;
mod tokenizer;

pub use cache::{
    Budget, Cache, CacheError, CachedModel, Checking, DiskUse, Lease, NoRoom, Space, SystemSpace, Verified,
};
pub use config::{Activation, ConfigError, Family, ModelConfig, Rope, RopeLayout, RopeScaling, SUPPORTED};
#[cfg(feature = "downloads")]
pub use downloads::{
    AccessToken, DiskTotals, Download, DownloadError, DownloadId, DownloadOptions, DownloadState, DownloadStatus,
    Downloads, DownloadsOverview, HostError, Mirror, ModelCheck, QueueHealth, RemoteModel, SetAside, StrandedDownload,
    Unusable,
};
pub use gguf::{Gguf, GgufArray, GgufError, GgufTensor, GgufValue};
pub use inspect::{Inspection, LayerInspection, TensorTypeShare};
pub use manifest::{
    Content, Item, Manifest, ManifestError, ManifestOptions, ManifestTensor, SignedManifest, SigningError, WeightFile,
    WordFile,
};
pub use open::{Model, ModelFormat, OpenError};
pub use plan::{PiecePlace, Plan, Run, Wanted};
pub use safetensors::{SafetensorsEntry, SafetensorsError, parse_safetensors, parse_safetensors_prefix};
pub use source::{
    LayerTensor, TensorError, TensorInfo, TensorName, TensorSource, TensorType, entry_bytes, exit_bytes, layer_bytes,
};
pub use template::{ChatTemplate, RenderOptions, TemplateError};
pub use tokenizer::{TokenStream, Tokenizer, TokenizerError, TokenizerKind};
