//! What chat and plain completions have in common in their answers.

use std::{sync::Arc, time::UNIX_EPOCH};

use pool_models::Tokenizer;
use pool_types::{FinishReason, RequestId};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Gateway, answer::Scored, run::Event};
use crate::ServedModel;

/// Tokens used by a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = CompletionUsage)]
pub(super) struct Usage {
    /// Tokens of the prompts, each counted once.
    pub(super) prompt_tokens: u64,
    /// Tokens sampled for all answers; one that ends an answer counts, though it has no text.
    pub(super) completion_tokens: u64,
    /// Both.
    pub(super) total_tokens: u64,
}

impl Usage {
    /// Before anything was sampled.
    pub(super) fn of_prompts(prompt_tokens: u64) -> Self {
        Self { prompt_tokens, completion_tokens: 0, total_tokens: prompt_tokens }
    }

    /// After an answer of so many tokens.
    pub(super) fn add(&mut self, tokens: u32) {
        self.completion_tokens += u64::from(tokens);
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// Why an answer is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = FinishReason)]
pub(super) enum Finish {
    /// The model ended its turn, or a stop string appeared.
    Stop,
    /// The limit of tokens or the end of the context.
    Length,
}

impl From<FinishReason> for Finish {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
        }
    }
}

/// Who may read what is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Privacy {
    /// Operators could read prompts and answers.
    PublicPool,
    /// Only paired keys serve.
    OwnMachines,
}

impl Privacy {
    /// The sentence that goes with the label.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::PublicPool => "Public pool: operators could read this.",
            Self::OwnMachines => "Own machines: only paired keys serve it.",
        }
    }
}

/// A member and its part of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct ServedBy {
    /// The member's name.
    member: String,
    /// Its layers, first and last.
    #[schema(example = "0-15")]
    layers: String,
}

/// What ComputePool adds to OpenAI's fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ComputePoolMetadata)]
pub(super) struct Metadata {
    /// The ids of the choices on the wire, in order.
    requests: Vec<String>,
    /// Who may read this.
    privacy: Privacy,
    /// The same as a sentence.
    privacy_notice: &'static str,
    /// Who holds which layers, entry first.
    served_by: Vec<ServedBy>,
}

/// Who serves a model now.
pub(super) fn served_by(model: &ServedModel) -> Vec<ServedBy> {
    let members = model.members.iter();
    members.map(|(member, layers)| ServedBy { member: member.clone(), layers: layers.to_string() }).collect()
}

/// The fields that stand in front of every answer and chunk.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) system_fingerprint: String,
    privacy: Privacy,
    served_by: Vec<ServedBy>,
}

impl Head {
    /// For an answer that begins now.
    pub(super) fn new(prefix: &str, gateway: &Gateway, model: &ServedModel) -> Self {
        // A coalition may have formed while the request waited.
        let now = gateway.state.completions.models().into_iter().find(|known| known.name == model.name);
        Self {
            id: format!("{prefix}-{:032x}", rand::random::<u128>()),
            created: (gateway.state.clock)().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            model: model.name.clone(),
            system_fingerprint: format!("fp_{}", alloy_primitives::hex::encode(&model.model.id.0[..5])),
            privacy: gateway.state.privacy,
            served_by: served_by(now.as_ref().unwrap_or(model)),
        }
    }

    /// What is added for these choices.
    pub(super) fn metadata(&self, requests: &[RequestId]) -> Metadata {
        Metadata {
            requests: requests.iter().map(ToString::to_string).collect(),
            privacy: self.privacy,
            privacy_notice: self.privacy.sentence(),
            served_by: self.served_by.clone(),
        }
    }
}

/// One choice, complete.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) request: RequestId,
    pub(super) text: String,
    pub(super) tokens: Vec<Scored>,
    pub(super) finish: Option<FinishReason>,
}

/// How an endpoint writes what happens: whole, or chunk by chunk.
pub(super) trait Format: Send + 'static {
    /// What its ids begin with.
    const PREFIX: &'static str;
    /// The field that holds its prompts.
    const PROMPT: &'static str;
    /// Whether answers go on from their prompt's text.
    const CONTINUES: bool;
    /// The whole answer.
    type Whole: Serialize;
    /// A part of it.
    type Chunk: Serialize;

    /// The chunk that tells an event. `head` and `logprobs` are the same for all of an answer.
    fn chunk(head: &Head, tokenizer: &Tokenizer, logprobs: bool, event: Event) -> Self::Chunk;
    /// Sets a chunk's `usage`, or `null` on all but the last, where the client asked for it.
    fn set_usage(chunk: &mut Self::Chunk, usage: Option<Usage>);
    /// The last chunk, without choices, that tells the tokens used.
    fn usage_chunk(head: &Head, usage: Usage) -> Self::Chunk;
    /// The whole answer. `choices` lie in order of their indices.
    fn whole(
        head: &Head,
        tokenizer: &Arc<Tokenizer>,
        logprobs: bool,
        choices: Vec<Collected>,
        usage: Usage,
    ) -> Self::Whole;
}
