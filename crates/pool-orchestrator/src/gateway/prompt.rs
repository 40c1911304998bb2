//! From what a client says to the tokens of a prompt.

use std::{sync::Arc, time::SystemTime};

use pool_models::{ChatTemplate, RenderOptions, TemplateError, Tokenizer};
use serde_json::{Value, json};

use super::{
    error::ApiError,
    request::{Content, Message, PromptInput, Role, is_empty},
};
use crate::ServedModel;

/// The most prompts of one request.
const MAX_PROMPTS: usize = 64;

/// A prompt, ready to be continued.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tokenised {
    /// Never empty, and shorter than the context.
    pub(super) tokens: Vec<u32>,
    /// What it says, for `echo`.
    pub(super) text: String,
}

/// The model's tokenizer.
pub(super) fn tokenizer(model: &ServedModel) -> Result<Arc<Tokenizer>, ApiError> {
    let missing =
        || ApiError::internal(format!("The model `{}` has no tokenizer, so it cannot read text.", model.name));
    model.model.tokenizer.clone().ok_or_else(missing)
}

/// Renders a conversation with the model's template and tokenises it.
pub(super) async fn chat(
    model: &ServedModel,
    messages: Option<Vec<Message>>,
    now: SystemTime,
) -> Result<Tokenised, ApiError> {
    let missing = || ApiError::invalid("messages", "`messages` must be an array with at least one message.");
    let messages = messages.filter(|messages| !messages.is_empty()).ok_or_else(missing)?;
    let messages: Vec<Value> = messages
        .into_iter()
        .enumerate()
        .map(|(place, message)| for_template(place, message))
        .collect::<Result<_, _>>()?;
    let tokenizer = tokenizer(model)?;
    let template = model.model.chat_template.clone();
    let tokens = blocking(move || {
        // The model's own template writes its beginning-of-sequence token; the plain one knows none.
        let add_special = template.is_none();
        let template = template.unwrap_or_else(|| Arc::new(ChatTemplate::plain()));
        let options = RenderOptions { now: Some(now), ..RenderOptions::default() };
        let text = template.render(&messages, &options).map_err(refused)?;
        encode(&tokenizer, &text, add_special, "messages")
    })
    .await?;
    check("messages", model, &tokens)?;
    Ok(Tokenised { tokens, text: String::new() })
}

/// Tokenises the prompts of a plain completion. `with_text`: also tell what they say.
pub(super) async fn plain(
    model: &ServedModel,
    input: Option<PromptInput>,
    with_text: bool,
) -> Result<Vec<Tokenised>, ApiError> {
    let missing = || ApiError::invalid("prompt", "`prompt` is missing.");
    let input = input.ok_or_else(missing)?;
    let count = match &input {
        PromptInput::Text(_) | PromptInput::Tokens(_) => 1,
        PromptInput::Texts(texts) => texts.len(),
        PromptInput::TokenLists(lists) => lists.len(),
    };
    if count == 0 || count > MAX_PROMPTS {
        return Err(ApiError::invalid(
            "prompt",
            format!("`prompt` must hold 1 to {MAX_PROMPTS} prompts, got {count}."),
        ));
    }
    let vocabulary = model.model.config.vocab_size;
    let tokenizer = tokenizer(model)?;
    let prompts = blocking(move || {
        let from_text = |text: String| {
            let tokens = encode(&tokenizer, &text, true, "prompt")?;
            Ok(Tokenised { tokens, text: if with_text { text } else { String::new() } })
        };
        let from_tokens = |tokens: Vec<u32>| {
            if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
                let message = format!("`prompt` holds the token {token}; this model has tokens below {vocabulary}.");
                return Err(ApiError::invalid("prompt", message));
            }
            let text = if with_text { tokenizer.decode(&tokens, true) } else { String::new() };
            Ok(Tokenised { tokens, text })
        };
        match input {
            PromptInput::Text(text) => Ok(vec![from_text(text)?]),
            PromptInput::Texts(texts) => texts.into_iter().map(from_text).collect(),
            PromptInput::Tokens(tokens) => Ok(vec![from_tokens(tokens)?]),
            PromptInput::TokenLists(lists) => lists.into_iter().map(from_tokens).collect(),
        }
    })
    .await?;
    prompts.iter().try_for_each(|prompt| check("prompt", model, &prompt.tokens))?;
    Ok(prompts)
}

/// How many tokens the answer may have: what the client asks for, or else the default where the context leaves as
/// much.
pub(super) fn budget(
    param: &'static str,
    model: &ServedModel,
    prompt: usize,
    asked: Option<u32>,
    default: u32,
) -> Result<u32, ApiError> {
    let left = u64::from(model.max_context).saturating_sub(prompt as u64);
    match asked {
        None => Ok(left.min(u64::from(default.max(1))) as u32),
        Some(asked) if u64::from(asked) <= left => Ok(asked),
        Some(asked) => Err(ApiError::too_long(
            param,
            format!(
                "This model's maximum context length is {} tokens. However, you requested {} tokens ({prompt} in the \
                 {param}, {asked} in the completion). Please reduce the length of the {param} or completion.",
                model.max_context,
                prompt as u64 + u64::from(asked),
            ),
        )),
    }
}

/// A message as templates know it: `developer` is called `system`, and parts are joined by new lines.
fn for_template(place: usize, message: Message) -> Result<Value, ApiError> {
    if !is_empty(message.tool_calls.as_ref()) {
        let param = format!("messages[{place}].tool_calls");
        return Err(ApiError::unsupported(param, "Tool calls are not supported yet."));
    }
    let role = match message.role {
        Role::System | Role::Developer => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let content = match message.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let text = |(part, content): (usize, super::request::Part)| {
                let param = format!("messages[{place}].content[{part}]");
                match (content.kind.as_str(), content.text, content.refusal) {
                    ("text", Some(text), _) | ("refusal", _, Some(text)) => Ok(text),
                    ("text" | "refusal", ..) => {
                        let message = format!("`{param}` has the type `{}` but no such field.", content.kind);
                        Err(ApiError::invalid(param, message))
                    }
                    (kind, ..) => {
                        let message = format!(
                            "`{param}` has the type `{kind}`, which is not supported: the models here read text."
                        );
                        Err(ApiError::unsupported(param, message))
                    }
                }
            };
            parts.into_iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        None => {
            let param = format!("messages[{place}].content");
            let message = format!("`{param}` is missing.");
            return Err(ApiError::invalid(param, message));
        }
    };
    let mut value = json!({"role": role, "content": content});
    for (name, field) in [("name", message.name), ("tool_call_id", message.tool_call_id)] {
        if let Some(field) = field {
            value[name] = field.into();
        }
    }
    Ok(value)
}

fn refused(error: TemplateError) -> ApiError {
    match error {
        TemplateError::Refused(_) | TemplateError::Bounds => ApiError::invalid("messages", format!("{error}.")),
        TemplateError::Failed(_) => {
            ApiError::invalid("messages", format!("These messages cannot be rendered: {error}."))
        }
        TemplateError::Syntax(_) => ApiError::internal(format!("{error}.")),
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, add_special: bool, param: &'static str) -> Result<Vec<u32>, ApiError> {
    tokenizer.encode(text, add_special).map_err(|error| ApiError::invalid(param, format!("{error}.")))
}

fn check(param: &'static str, model: &ServedModel, tokens: &[u32]) -> Result<(), ApiError> {
    if tokens.is_empty() {
        return Err(ApiError::invalid(param, format!("`{param}` is empty: there is nothing to continue.")));
    }
    let vocabulary = model.model.config.vocab_size;
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
        let message = format!("The tokenizer gives the token {token}, but the model has tokens below {vocabulary}.");
        return Err(ApiError::internal(message));
    }
    if tokens.len() as u64 >= u64::from(model.max_context) {
        let message = format!(
            "This model's maximum context length is {} tokens, and an answer needs at least one of them. However, your \
             {param} resulted in {} tokens. Please reduce the length of the {param}.",
            model.max_context,
            tokens.len(),
        );
        return Err(ApiError::too_long(param, message));
    }
    Ok(())
}

/// Tokenising a long text takes a while: not on the threads that serve connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|_panicked| Err(ApiError::internal("The text could not be tokenised.")))
}
