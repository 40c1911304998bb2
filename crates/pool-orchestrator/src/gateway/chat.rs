//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use pool_models::Tokenizer;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Gateway,
    answer::{Scored, finite, token_name},
    body,
    error::{ApiError, ErrorBody},
    prompt,
    request::{ChatParameters, ChatRequest, CommonParameters},
    respond::{Job, respond},
    response::{Collected, Finish, Format, Head, Metadata, Usage},
    run::{Event, What},
    settings::Settings,
};

/// An answer to a conversation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreateChatCompletionResponse)]
pub(super) struct ChatCompletion {
    id: String,
    #[schema(example = "chat.completion")]
    object: &'static str,
    /// Unix seconds.
    created: u64,
    model: String,
    /// Changes when the model does.
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    computepool: Metadata,
}

/// One of `n` answers.
#[derive(Debug, Serialize, ToSchema)]
struct ChatChoice {
    index: u32,
    message: AssistantMessage,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    finish_reason: Finish,
}

/// What the model said.
#[derive(Debug, Serialize, ToSchema)]
struct AssistantMessage {
    #[schema(example = "assistant")]
    role: &'static str,
    content: String,
    /// Always null: models here refuse in plain words.
    #[schema(required)]
    refusal: Option<String>,
}

/// A part of an answer as it is made.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreateChatCompletionStreamResponse)]
pub(super) struct ChatChunk {
    id: String,
    #[schema(example = "chat.completion.chunk")]
    object: &'static str,
    /// Unix seconds, the same in every chunk.
    created: u64,
    model: String,
    system_fingerprint: String,
    /// One choice; none in the chunk that tells the tokens used.
    choices: Vec<ChatChunkChoice>,
    /// With `stream_options.include_usage`: null, but for the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    usage: Option<Option<Usage>>,
    /// On the first chunk of each choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    computepool: Option<Metadata>,
}

/// A part of one of `n` answers.
#[derive(Debug, Serialize, ToSchema)]
struct ChatChunkChoice {
    index: u32,
    delta: Delta,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    /// Set on the choice's last chunk.
    #[schema(required)]
    finish_reason: Option<Finish>,
}

/// What is new.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = ChatCompletionStreamResponseDelta)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "assistant")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    content: Option<String>,
}

/// The log-probabilities of an answer's tokens.
#[derive(Debug, Serialize, ToSchema)]
struct ChatLogprobs {
    content: Vec<TokenLogprob>,
    /// Always null.
    #[schema(required)]
    refusal: Option<Vec<TokenLogprob>>,
}

/// A token of the answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChatCompletionTokenLogprob)]
struct TokenLogprob {
    /// Its text, or `bytes:\xe2...` where its bytes are no text on their own.
    token: String,
    /// Natural logarithm of its probability; -9999 where that is next to nothing.
    logprob: f32,
    /// Its bytes; tokens' bytes joined are the answer's.
    bytes: Vec<u8>,
    /// The most likely tokens at this place.
    top_logprobs: Vec<TopLogprob>,
}

/// A likely token.
#[derive(Debug, Serialize, ToSchema)]
struct TopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

fn logprobs(tokenizer: &Tokenizer, tokens: Vec<Scored>) -> ChatLogprobs {
    let bytes = |token| tokenizer.token_bytes(token).unwrap_or_default();
    let content = tokens.into_iter().map(|Scored { choice, .. }| {
        let top = choice.top.iter().map(|&(token, logprob)| {
            let bytes = bytes(token);
            TopLogprob { token: token_name(&bytes), logprob: finite(logprob), bytes }
        });
        let (top_logprobs, bytes) = (top.collect(), bytes(choice.token));
        TokenLogprob { token: token_name(&bytes), logprob: finite(choice.logprob), bytes, top_logprobs }
    });
    ChatLogprobs { content: content.collect(), refusal: None }
}

/// How chats are answered.
pub(super) struct Chat;

impl Format for Chat {
    const PREFIX: &'static str = "chatcmpl";
    const PROMPT: &'static str = "messages";
    const CONTINUES: bool = false;
    type Whole = ChatCompletion;
    type Chunk = ChatChunk;

    fn chunk(head: &Head, tokenizer: &Tokenizer, with_logprobs: bool, Event { index, what }: Event) -> ChatChunk {
        let mut choice = ChatChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason: None };
        let mut computepool = None;
        match what {
            What::Started(request) => {
                choice.delta = Delta { role: Some("assistant"), content: Some(String::new()) };
                computepool = Some(head.metadata(&[request]));
            }
            What::Piece(piece) => {
                choice.delta.content = Some(piece.text);
                choice.logprobs = with_logprobs.then(|| logprobs(tokenizer, piece.tokens));
            }
            What::Finished { reason, .. } => choice.finish_reason = Some(reason.into()),
        }
        ChatChunk { choices: vec![choice], computepool, ..bare(head) }
    }

    fn set_usage(chunk: &mut ChatChunk, usage: Option<Usage>) {
        chunk.usage = Some(usage);
    }

    fn usage_chunk(head: &Head, usage: Usage) -> ChatChunk {
        ChatChunk { usage: Some(Some(usage)), ..bare(head) }
    }

    fn whole(
        head: &Head,
        tokenizer: &Arc<Tokenizer>,
        with_logprobs: bool,
        choices: Vec<Collected>,
        usage: Usage,
    ) -> ChatCompletion {
        let requests: Vec<_> = choices.iter().map(|choice| choice.request).collect();
        let choices = (0..).zip(choices).map(|(index, choice)| ChatChoice {
            index,
            message: AssistantMessage { role: "assistant", content: choice.text, refusal: None },
            logprobs: with_logprobs.then(|| logprobs(tokenizer, choice.tokens)),
            finish_reason: choice.finish.map_or(Finish::Stop, Finish::from),
        });
        ChatCompletion {
            id: head.id.clone(),
            object: "chat.completion",
            created: head.created,
            model: head.model.clone(),
            system_fingerprint: head.system_fingerprint.clone(),
            choices: choices.collect(),
            usage,
            computepool: head.metadata(&requests),
        }
    }
}

fn bare(head: &Head) -> ChatChunk {
    ChatChunk {
        id: head.id.clone(),
        object: "chat.completion.chunk",
        created: head.created,
        model: head.model.clone(),
        system_fingerprint: head.system_fingerprint.clone(),
        choices: Vec::new(),
        usage: None,
        computepool: None,
    }
}

/// Answers a conversation.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    operation_id = "createChatCompletion",
    tag = "completions",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer; with `stream`, its parts as server-sent events and `[DONE]` at the end.", content(
            (ChatCompletion = "application/json", example = json!({
                "id": "chatcmpl-0f5c", "object": "chat.completion", "created": 1_800_000_000, "model": "tiny",
                "system_fingerprint": "fp_0011223344",
                "choices": [{
                    "index": 0,
                    "message": {"role": "assistant", "content": "A shard is a run of layers.", "refusal": null},
                    "logprobs": null,
                    "finish_reason": "stop"
                }],
                "usage": {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21},
                "computepool": {
                    "requests": ["17"],
                    "privacy": "own_machines",
                    "privacy_notice": "Own machines: only paired keys serve it.",
                    "served_by": [{"member": "node-1", "layers": "0-2"}, {"member": "node-2", "layers": "3-5"}]
                }
            })),
            (ChatChunk = "text/event-stream", example = json!({
                "id": "chatcmpl-0f5c", "object": "chat.completion.chunk", "created": 1_800_000_000, "model": "tiny",
                "system_fingerprint": "fp_0011223344",
                "choices": [{"index": 0, "delta": {"content": "A shard"}, "logprobs": null, "finish_reason": null}]
            }))
        )),
        (status = 400, description = "The request is at fault.", body = ErrorBody, example = json!({"error": {
            "message": "`temperature` must be between 0 and 2, got 3.",
            "type": "invalid_request_error", "param": "temperature", "code": "invalid_value"
        }})),
        (status = 401, description = "The API key is missing or wrong.", body = ErrorBody),
        (status = 402, description = "The request must be paid for: the header PAYMENT-REQUIRED says what and how (x402 version 2); or the session's time is used up.", body = ErrorBody),
        (status = 404, description = "There is no such model.", body = ErrorBody),
        (status = 413, description = "The body is too large.", body = ErrorBody),
        (status = 415, description = "The body is not JSON.", body = ErrorBody),
        (status = 429, description = "Everything is taken; try again after `Retry-After` seconds.", body = ErrorBody),
        (status = 502, description = "A shard failed.", body = ErrorBody),
        (status = 503, description = "No coalition serves the model now; try again after `Retry-After` seconds.", body = ErrorBody),
    )
)]
pub(super) async fn create(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, ApiError> {
    let place = gateway.admit(&request)?;
    let bytes = gateway.body(request).await?;
    let common: CommonParameters = body::parse(&bytes)?;
    let chat: ChatParameters = body::parse(&bytes)?;
    drop(bytes);
    let model = gateway.model(common.model.as_deref())?;
    let settings = Settings::for_chat(common, &chat, &model)?;
    let prompt = prompt::chat(&model, chat.messages, (gateway.state.clock)()).await?;
    respond::<Chat>(&gateway, Job { place, model, settings, prompts: vec![prompt] }).await
}
