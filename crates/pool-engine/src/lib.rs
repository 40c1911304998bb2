//! A shard's mathematics. An [`Engine`] holds the decoder layers `[a, b)` of one model, with the
//! embedding when it is the *entry* and the final norm, head and sampler when it is the *exit*, and
//! one KV cache for each sequence. [`Engine::advance`] takes a ragged batch (some sequences a chunk of
//! their prompt, others one token) one step further: the entry takes token ids, shards in between
//! take and give hidden states, the exit gives sampled tokens.
//!
//! Weights stay quantised in memory, and only the tensors of the layer range are read.
//!
//! ```no_run
//! use std::sync::Arc;
//! use pool_engine::{Engine, EngineOptions, SamplerSetup, SequenceId, Step, StepInput, StepOutput};
//! use pool_models::{Activation, ModelConfig, TensorSource};
//! use pool_types::{LayerRange, Sampling};
//!
//! fn first_token(config: ModelConfig, source: &dyn TensorSource) -> Result<u32, Box<dyn std::error::Error>> {
//!     pool_engine::configure_threads(2); // first thing in `main`, before any thread starts
//!     let mut engine = Engine::load(
//!         Arc::new(config.clone()),
//!         source,
//!         EngineOptions {
//!             layers: LayerRange::new(0, config.layers)?,
//!             threads: 2,
//!             quantise: None,
//!             wire: Activation::F32,
//!             kv_tokens: 4096,
//!             max_context: 2048,
//!         },
//!     )?;
//!     let prompt = vec![1, 15, 27];
//!     let id = SequenceId(7);
//!     engine.open(id, 64, Some(SamplerSetup { sampling: Sampling::greedy(), prompt: prompt.clone() }))?;
//!     let step = Step { sequence: id, position: 0, input: StepInput::Tokens(&prompt), sample: true };
//!     match engine.advance(&[step])?.remove(0) {
//!         StepOutput::Token(choice) => Ok(choice.token),
//!         _ => unreachable!("one shard with all layers is the exit"),
//!     }
//! }
//! ```

mod attention;
mod canary;
mod decoder;
mod engine;
mod errors;
mod hidden;
mod linear;
mod ops;
mod rope;
mod sampler;
mod simd;
pub mod synthetic;
mod threads;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod weights;

pub use canary::{Canary, CanaryError};
pub use engine::{Engine, EngineOptions, Footprint, Quantise, SamplerSetup, SequenceId, Step, StepInput, StepOutput};
pub use errors::{AdvanceError, LoadError, OpenError, TruncateError};
pub use hidden::{HiddenError, decode_hidden, encode_hidden, hidden_bytes};
pub use sampler::{SampleError, TokenCounts, gumbel_noise, sample};
pub use threads::{available_threads, configure_threads, thread_environment};
