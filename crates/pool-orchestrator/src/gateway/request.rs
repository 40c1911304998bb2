//! The bodies clients send, as OpenAI documents them. Fields that are not listed are passed over, because clients send
//! new ones; fields that are listed must have the right type.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// A chat completion.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = CreateChatCompletionRequest, example = json!({
    "model": "tiny",
    "messages": [{"role": "user", "content": "What is a shard?"}],
    "max_tokens": 64,
    "stream": true
}))]
#[allow(dead_code, reason = "read part by part; whole only in the OpenAPI document")]
pub(super) struct ChatRequest {
    #[serde(flatten)]
    chat: ChatParameters,
    #[serde(flatten)]
    common: CommonParameters,
}

/// A plain completion.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = CreateCompletionRequest, example = json!({
    "model": "tiny",
    "prompt": "A coalition is",
    "max_tokens": 32,
    "temperature": 0
}))]
#[allow(dead_code, reason = "read part by part; whole only in the OpenAPI document")]
pub(super) struct CompletionRequest {
    #[serde(flatten)]
    completion: CompletionParameters,
    #[serde(flatten)]
    common: CommonParameters,
}

/// What chat and plain completions share.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct CommonParameters {
    /// The model's name, one of `GET /v1/models`.
    #[schema(required, nullable = false)]
    pub(super) model: Option<String>,
    /// The answer ends after this many tokens. Without it: what the context leaves, or the server's default where that
    /// is less.
    #[schema(minimum = 1)]
    pub(super) max_tokens: Option<u32>,
    /// 0 always takes the most likely token.
    #[schema(minimum = 0, maximum = 2, default = 1)]
    pub(super) temperature: Option<f32>,
    /// Samples from the smallest set of tokens whose probability reaches this.
    #[schema(minimum = 0, maximum = 1, default = 1)]
    pub(super) top_p: Option<f32>,
    /// How many answers to each prompt.
    #[schema(minimum = 1, maximum = 8, default = 1)]
    pub(super) n: Option<u32>,
    /// Answer as server-sent events, token by token.
    pub(super) stream: Option<bool>,
    /// Only with `stream`.
    pub(super) stream_options: Option<StreamOptions>,
    /// At most 4 strings, each of at most 1,024 bytes; the answer ends before the first that appears.
    pub(super) stop: Option<Stop>,
    /// The same seed, request and coalition give the same answer. Without it one is drawn.
    pub(super) seed: Option<i64>,
    /// Subtracted from tokens that the answer already contains.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub(super) presence_penalty: Option<f32>,
    /// Subtracted from tokens for each time that the answer contains them.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub(super) frequency_penalty: Option<f32>,
    /// Added to the logits of tokens, given by id; -100 to 100 each.
    pub(super) logit_bias: Option<BTreeMap<String, f32>>,
    /// An extension: sample from this many most likely tokens; 0 is all.
    #[schema(default = 0)]
    pub(super) top_k: Option<u32>,
    /// An extension: drop tokens less likely than this times the most likely one.
    #[schema(minimum = 0, maximum = 1, default = 0)]
    pub(super) min_p: Option<f32>,
    /// An extension: divides the logits of tokens seen in prompt or answer; 1 is off.
    #[schema(minimum = 0.01, maximum = 100, default = 1)]
    pub(super) repetition_penalty: Option<f32>,
    /// An extension: go on past the model's end of answer, up to `max_tokens`.
    #[schema(default = false)]
    pub(super) ignore_eos: Option<bool>,
}

/// What only chat completions have.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct ChatParameters {
    /// The conversation, oldest first.
    #[schema(required, nullable = false, min_items = 1)]
    pub(super) messages: Option<Vec<Message>>,
    /// Wins over `max_tokens`.
    #[schema(minimum = 1)]
    pub(super) max_completion_tokens: Option<u32>,
    /// Return the log-probability of each token of the answer.
    pub(super) logprobs: Option<bool>,
    /// With `logprobs`: also those of this many most likely tokens at each place.
    #[schema(minimum = 0, maximum = 20)]
    pub(super) top_logprobs: Option<u32>,
    /// Only `{"type": "text"}`.
    #[schema(value_type = Option<Object>)]
    pub(super) response_format: Option<Value>,
    /// Not supported yet: must be empty.
    #[schema(value_type = Option<Vec<Object>>, max_items = 0)]
    pub(super) tools: Option<Value>,
    /// Not supported: must be empty.
    #[schema(value_type = Option<Vec<Object>>, max_items = 0)]
    pub(super) functions: Option<Value>,
    /// Only `["text"]`.
    pub(super) modalities: Option<Vec<String>>,
}

/// What only plain completions have.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct CompletionParameters {
    /// A text, several texts, the token ids of a text, or those of several.
    #[schema(required, nullable = false)]
    pub(super) prompt: Option<PromptInput>,
    /// Return the log-probability of each token, and those of this many most likely tokens at each place.
    #[schema(minimum = 0, maximum = 5)]
    pub(super) logprobs: Option<u32>,
    /// Begin the answer with the prompt. Not together with `logprobs`.
    #[schema(default = false)]
    pub(super) echo: Option<bool>,
    /// Not supported: must be absent or empty.
    pub(super) suffix: Option<String>,
    /// Only the value of `n`.
    pub(super) best_of: Option<u32>,
}

/// How to stream.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct StreamOptions {
    /// Send one more chunk before the end, without choices, that tells the tokens used.
    pub(super) include_usage: Option<bool>,
}

/// Where to stop.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub(super) enum Stop {
    /// At one string.
    One(String),
    /// At whichever of at most 4 comes first.
    Several(Vec<String>),
}

/// What to continue.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of token ids, or an array of arrays of token ids"
)]
pub(super) enum PromptInput {
    /// One text.
    Text(String),
    /// One text as tokens.
    Tokens(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Several texts as tokens.
    TokenLists(Vec<Vec<u32>>),
}

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// Instructions.
    System,
    /// Instructions, under their newer name.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
}

/// One turn of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatCompletionRequestMessage)]
pub(super) struct Message {
    /// Who says it.
    pub(super) role: Role,
    /// What is said.
    #[serde(default)]
    pub(super) content: Option<Content>,
    /// Tells speakers of the same role apart, where the model's template knows names.
    #[serde(default)]
    pub(super) name: Option<String>,
    /// Which call a tool's result answers.
    #[serde(default)]
    pub(super) tool_call_id: Option<String>,
    /// Not supported yet: must be empty.
    #[serde(default)]
    #[schema(value_type = Option<Vec<Object>>, max_items = 0)]
    pub(super) tool_calls: Option<Value>,
}

/// What is said.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of content parts, each an object with a `type`")]
pub(super) enum Content {
    /// As one text.
    Text(String),
    /// In parts.
    Parts(Vec<Part>),
}

/// A part of what is said: text only.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Part {
    /// `text` (or, in what the assistant said, `refusal`).
    #[serde(rename = "type")]
    #[schema(example = "text")]
    pub(super) kind: String,
    /// The text.
    pub(super) text: Option<String>,
    /// The assistant's refusal.
    pub(super) refusal: Option<String>,
}

/// An empty array, an empty object or null: nothing was asked for.
pub(super) fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(_) => false,
    }
}
