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
//! Every reader is bounded and none panics, whatever the bytes: a broken file ends in one sentence that says what
//! is wrong with it.

mod config;
mod files;
mod gguf;
mod inspect;
mod mapping;
mod names;
mod open;
mod safetensors;
mod source;
mod template;
mod tokenizer;

pub use config::{Activation, ConfigError, Family, ModelConfig, Rope, RopeLayout, RopeScaling, SUPPORTED};
pub use gguf::{Gguf, GgufArray, GgufError, GgufTensor, GgufValue};
pub use inspect::{Inspection, LayerInspection, TensorTypeShare};
pub use open::{Model, ModelFormat, OpenError};
pub use safetensors::{SafetensorsEntry, SafetensorsError, parse_safetensors};
pub use source::{
    LayerTensor, TensorError, TensorInfo, TensorName, TensorSource, TensorType, entry_bytes, exit_bytes, layer_bytes,
};
pub use template::{ChatTemplate, RenderOptions, TemplateError};
pub use tokenizer::{TokenStream, Tokenizer, TokenizerError, TokenizerKind};
