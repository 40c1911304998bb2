//! `POST /v1/completions`.

use std::{collections::BTreeMap, sync::Arc};

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
    request::{CommonParameters, CompletionParameters, CompletionRequest},
    respond::{Job, respond},
    response::{Collected, Finish, Format, Head, Metadata, Usage},
    run::{Event, What},
    settings::Settings,
};

/// Continuations of prompts; in a stream, parts of them.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreateCompletionResponse)]
pub(super) struct TextCompletion {
    id: String,
    #[schema(example = "text_completion")]
    object: &'static str,
    /// Unix seconds.
    created: u64,
    model: String,
    /// Changes when the model does.
    system_fingerprint: String,
    /// The first prompt's `n` first, then the second's. In a stream one, or none in the chunk that tells the tokens
    /// used.
    choices: Vec<TextChoice>,
    /// In a stream only with `stream_options.include_usage`: null, but for the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    usage: Option<Option<Usage>>,
    /// In a stream on the first chunk of each choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    computepool: Option<Metadata>,
}

/// A continuation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CompletionChoice)]
struct TextChoice {
    index: u32,
    text: String,
    #[schema(required)]
    logprobs: Option<TextLogprobs>,
    /// In a stream null until the choice's last chunk.
    #[schema(required)]
    finish_reason: Option<Finish>,
}

/// The log-probabilities of a continuation's tokens, as lists of the same length.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = CompletionLogprobs)]
struct TextLogprobs {
    /// Each token's text, or `bytes:\xe2...` where its bytes are no text on their own.
    tokens: Vec<String>,
    /// Natural logarithms of their probabilities; -9999 where that is next to nothing.
    token_logprobs: Vec<f32>,
    /// The most likely tokens at each place, and the one that was taken.
    top_logprobs: Vec<BTreeMap<String, f32>>,
    /// How many characters of the continuation stand before each token.
    text_offset: Vec<usize>,
}

fn logprobs(tokenizer: &Tokenizer, tokens: Vec<Scored>) -> TextLogprobs {
    let name = |token| token_name(&tokenizer.token_bytes(token).unwrap_or_default());
    let mut lists = TextLogprobs::default();
    for Scored { choice, offset, .. } in tokens {
        let taken = (choice.token, choice.logprob);
        // The most likely of tokens with the same name comes first, so it is written last.
        let top = std::iter::once(&taken).chain(choice.top.iter().rev());
        lists.top_logprobs.push(top.map(|&(token, logprob)| (name(token), finite(logprob))).collect());
        lists.tokens.push(name(choice.token));
        lists.token_logprobs.push(finite(choice.logprob));
        lists.text_offset.push(offset);
    }
    lists
}

/// How plain completions are answered.
pub(super) struct Plain;

impl Format for Plain {
    const PREFIX: &'static str = "cmpl";
    const PROMPT: &'static str = "prompt";
    const CONTINUES: bool = true;
    type Whole = TextCompletion;
    type Chunk = TextCompletion;

    fn chunk(head: &Head, tokenizer: &Tokenizer, with_logprobs: bool, Event { index, what }: Event) -> TextCompletion {
        let mut choice = TextChoice { index, text: String::new(), logprobs: None, finish_reason: None };
        let mut computepool = None;
        match what {
            What::Started(request) => computepool = Some(head.metadata(&[request])),
            What::Piece(piece) => {
                choice.text = piece.text;
                choice.logprobs = with_logprobs.then(|| logprobs(tokenizer, piece.tokens));
            }
            What::Finished { reason, .. } => choice.finish_reason = Some(reason.into()),
        }
        TextCompletion { choices: vec![choice], computepool, ..bare(head) }
    }

    fn set_usage(chunk: &mut TextCompletion, usage: Option<Usage>) {
        chunk.usage = Some(usage);
    }

    fn usage_chunk(head: &Head, usage: Usage) -> TextCompletion {
        TextCompletion { usage: Some(Some(usage)), ..bare(head) }
    }

    fn whole(
        head: &Head,
        tokenizer: &Arc<Tokenizer>,
        with_logprobs: bool,
        choices: Vec<Collected>,
        usage: Usage,
    ) -> TextCompletion {
        let requests: Vec<_> = choices.iter().map(|choice| choice.request).collect();
        let choices = (0..).zip(choices).map(|(index, choice)| TextChoice {
            index,
            text: choice.text,
            logprobs: with_logprobs.then(|| logprobs(tokenizer, choice.tokens)),
            finish_reason: choice.finish.map(Finish::from),
        });
        let choices = choices.collect();
        TextCompletion { choices, usage: Some(Some(usage)), computepool: Some(head.metadata(&requests)), ..bare(head) }
    }
}

fn bare(head: &Head) -> TextCompletion {
    TextCompletion {
        id: head.id.clone(),
        object: "text_completion",
        created: head.created,
        model: head.model.clone(),
        system_fingerprint: head.system_fingerprint.clone(),
        choices: Vec::new(),
        usage: None,
        computepool: None,
    }
}

/// Continues prompts.
#[utoipa::path(
    post,
    path = "/v1/completions",
    operation_id = "createCompletion",
    tag = "completions",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The continuations; with `stream`, their parts as server-sent events and `[DONE]` at the end.", content(
            (TextCompletion = "application/json", example = json!({
                "id": "cmpl-0f5c", "object": "text_completion", "created": 1_800_000_000, "model": "tiny",
                "system_fingerprint": "fp_0011223344",
                "choices": [{
                    "index": 0,
                    "text": " two",
                    "logprobs": {
                        "tokens": [" two"], "token_logprobs": [-0.25],
                        "top_logprobs": [{" two": -0.25, " three": -1.5}], "text_offset": [0]
                    },
                    "finish_reason": "length"
                }],
                "usage": {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5},
                "computepool": {
                    "requests": ["18"],
                    "privacy": "public_pool",
                    "privacy_notice": "Public pool: operators could read this.",
                    "served_by": [{"member": "node-1", "layers": "0-5"}]
                }
            })),
            (TextCompletion = "text/event-stream", example = json!({
                "id": "cmpl-0f5c", "object": "text_completion", "created": 1_800_000_000, "model": "tiny",
                "system_fingerprint": "fp_0011223344",
                "choices": [{"index": 0, "text": " two", "logprobs": null, "finish_reason": null}]
            }))
        )),
        (status = 400, description = "The request is at fault.", body = ErrorBody, example = json!({"error": {
            "message": "`suffix` is not supported: the models here only continue.",
            "type": "invalid_request_error", "param": "suffix", "code": "unsupported_parameter"
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
    let completion: CompletionParameters = body::parse(&bytes)?;
    drop(bytes);
    let model = gateway.model(common.model.as_deref())?;
    let settings = Settings::for_completion(common, &completion, &model)?;
    let prompts = prompt::plain(&model, completion.prompt, settings.echo).await?;
    respond::<Plain>(&gateway, Job { place, model, settings, prompts }).await
}
