//! The seam between the gateway (HTTP) and the data plane: a prompt goes in, tokens come out.

use std::sync::Arc;

use async_trait::async_trait;
use pool_models::Model;
use pool_types::{Failure, LayerRange, RequestId};
use pool_wire::{Prompt, Token};
use thiserror::Error;
use tokio::sync::mpsc;

/// A model that clients can ask for.
#[derive(Clone)]
pub struct ServedModel {
    /// The name in the API.
    pub name: String,
    /// Its tokenizer, chat template and configuration; the gateway never touches its weights.
    pub model: Arc<Model>,
    /// Longest sequence, prompt and answer, in tokens.
    pub max_context: u32,
    /// When it was first served, Unix seconds.
    pub created: u64,
    /// Whether a coalition is active for it now.
    pub active: bool,
    /// Who holds which layers now, entry first: (name, layers).
    pub members: Vec<(String, LayerRange)>,
}

/// Why a completion cannot start. Each becomes one HTTP status.
#[derive(Debug, Error)]
pub enum StartError {
    /// 404.
    #[error("the model `{0}` does not exist")]
    UnknownModel(String),
    /// 503: no coalition is active; one may be forming.
    #[error("no coalition serves `{0}` right now")]
    NoCoalition(String),
    /// 429: the queue for KV cache is full.
    #[error("all {capacity} tokens of cache are taken and {waiting} requests are waiting")]
    Full {
        /// Tokens of KV cache of the coalition.
        capacity: u64,
        /// Requests in the queue.
        waiting: usize,
    },
    /// 400: it could never fit.
    #[error("{needed} tokens of prompt and answer exceed the limit of {limit}")]
    TooLong {
        /// Prompt plus answer.
        needed: u64,
        /// The context, or the whole KV budget where that is less.
        limit: u64,
    },
    /// Anything the data plane says before the first token.
    #[error("{0}")]
    Failed(#[from] Failure),
}

/// Something that turns prompts into tokens: the data plane, or a script in the gateway's own tests.
#[async_trait]
pub trait Completions: Send + Sync + 'static {
    /// Every model known, active or not.
    fn models(&self) -> Vec<ServedModel>;

    /// Starts one completion. Waits (bounded) while the KV budget is taken.
    async fn start(&self, model: &str, prompt: Prompt) -> Result<Completion, StartError>;
}

/// A running completion. Dropping it cancels the request on every shard.
pub struct Completion {
    /// Its id on the wire.
    pub request: RequestId,
    /// Tokens in order, each exactly once; the last has `finish` set, or an error ends the stream.
    pub tokens: mpsc::Receiver<Result<Token, Failure>>,
    /// Cancels on drop.
    pub guard: CancelGuard,
}

/// Runs its function when dropped.
pub struct CancelGuard(Option<Box<dyn FnOnce() + Send + Sync>>);

impl CancelGuard {
    /// A guard that runs `cancel` once, when dropped.
    pub fn new(cancel: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(cancel)))
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        if let Some(cancel) = self.0.take() {
            cancel();
        }
    }
}
