//! Chats to prompts, rendered like transformers' `apply_chat_template` does: Jinja with `trim_blocks` and
//! `lstrip_blocks`, Python's methods on text and maps, `raise_exception`, `strftime_now`, and a `tojson` that writes
//! what Python's `json.dumps(ensure_ascii=False)` writes.
//!
//! A template comes with the model and is not trusted: work and memory are bounded by minijinja's fuel, the output by
//! a limit, the nesting of calls by another, and each chat is rendered on a stack that even the deepest value this
//! fuel can build does not exhaust. One way out is left in minijinja 3.1: lists that hold another list twice, forty
//! levels deep, are small until `~` or a text filter writes them out, which minijinja does not charge for.

mod json;
mod methods;
mod python;
mod strftime;

use std::{fmt, io, time::SystemTime};

use minijinja::{
    Environment, Error, ErrorKind, State, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use thiserror::Error as ThisError;

const NAME: &str = "chat";
/// A message takes some hundred units, 64 bytes of text one; this bounds a hostile template to about 128 MB and a
/// fraction of a second.
const FUEL: u64 = 2_000_000;
/// Reserved, not used, but by templates that nest values as deep as their fuel lasts (some 300,000 levels): minijinja
/// compares, prints and drops them recursively.
const STACK: usize = 256 << 20;
const RECURSION: usize = 100;
const LARGEST_OUTPUT: usize = 32 << 20;
const LARGEST_TEMPLATE: usize = 1 << 20;

const PLAIN: &str = "\
{%- for message in messages %}
{{- message.role | capitalize }}: {% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content or [] %}{{ part.text or '' }}{% endfor %}{% endif %}{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}";

/// A model's chat template, compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

/// What a template is given besides the messages.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// End with the beginning of the assistant's answer (on by default).
    pub add_generation_prompt: bool,
    /// Tools as JSON schemas, in OpenAI's form.
    pub tools: Option<Vec<serde_json::Value>>,
    /// The time that `strftime_now` tells, in UTC. Without one the template finds no such function, and falls back to
    /// whatever date it was written with.
    pub now: Option<SystemTime>,
    /// Further variables, such as `enable_thinking`.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, tools: None, now: None, extra: serde_json::Map::new() }
    }
}

/// Why a template cannot be used or a chat cannot be rendered.
#[derive(Debug, ThisError)]
pub enum TemplateError {
    /// The template is not valid.
    #[error("the chat template is not valid: {0}")]
    Syntax(String),
    /// The template refused the chat with `raise_exception`: the message is the model maker's own.
    #[error("the chat template refuses these messages: {0}")]
    Refused(String),
    /// The template did more work or made more text than any real one.
    #[error("the chat template does not come to an end within its bounds")]
    Bounds,
    /// Rendering failed.
    #[error("the chat template failed: {0}")]
    Failed(String),
}

impl ChatTemplate {
    /// Compiles a template. The tokens are what it writes for `bos_token` and `eos_token`.
    pub fn new(source: &str, bos_token: Option<String>, eos_token: Option<String>) -> Result<Self, TemplateError> {
        if source.len() > LARGEST_TEMPLATE {
            return Err(TemplateError::Syntax(format!("it has {} bytes", source.len())));
        }
        let failed = |error: Error| TemplateError::Syntax(describe(&error));
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(methods::call);
        environment.set_formatter(python::write);
        environment.set_recursion_limit(RECURSION);
        environment.set_fuel(Some(FUEL));
        environment.set_debug(false);
        // Both write values out with indentation and at no cost; no chat template uses them.
        environment.remove_filter("pprint");
        environment.remove_global("debug");
        environment.add_filter("tojson", to_json);
        environment.add_filter("string", |state: &State<'_, '_>, value: Value| python::text(state, &value));
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
        });
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(failed)?;
        Ok(Self { environment, source: source.to_owned(), bos_token, eos_token })
    }

    /// For models that come without a template: each message as `Role: text` on its own line, then `Assistant:`.
    pub fn plain() -> Self {
        Self::new(PLAIN, None, None).unwrap_or_else(|error| unreachable!("the plain template is constant: {error}"))
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for a chat. `messages` are OpenAI's, passed as they are: `role`, `content`, `tool_calls`, ...
    /// Encode the result without adding special tokens: the template writes them.
    pub fn render(&self, messages: &[serde_json::Value], options: &RenderOptions) -> Result<String, TemplateError> {
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(STACK);
            let rendering = builder.spawn_scoped(scope, || self.render_here(messages, options));
            let rendering =
                rendering.map_err(|error| TemplateError::Failed(format!("no thread to render on: {error}")))?;
            rendering.join().unwrap_or_else(|_| Err(TemplateError::Failed("the template engine gave up".to_owned())))
        })
    }

    fn render_here(&self, messages: &[serde_json::Value], options: &RenderOptions) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(|error| TemplateError::Failed(describe(&error)))?;
        let mut context: Vec<(String, Value)> =
            options.extra.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value)))).collect();
        let mut set = |name: &str, value: Value| context.push((name.to_owned(), value));
        set("messages", Value::from(Serde(messages)));
        set("tools", Value::from(Serde(&options.tools)));
        set("documents", Value::from(()));
        set("add_generation_prompt", options.add_generation_prompt.into());
        for (name, token) in [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)] {
            if let Some(token) = token {
                set(name, token.as_str().into());
            }
        }
        if let Some(now) = options.now {
            set("strftime_now", Value::from_function(move |format: String| strftime::format(now, &format)));
        }
        let mut output = Limited(Vec::new());
        template.render_captured_to(Value::from_pairs(context), &mut output).map_err(why)?;
        String::from_utf8(output.0).map_err(|error| TemplateError::Failed(error.to_string()))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

fn to_json(state: &State<'_, '_>, value: Value, options: Kwargs) -> Result<Value, Error> {
    let style = json::Style::from_arguments(&options)?;
    json::dumps(state, &value, &style).map(Value::from)
}

/// `{% generation %}` only marks what the assistant wrote, for training; it becomes a block that changes nothing.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        result.push_str(before);
        // Behind the opening: `{%}` is no tag.
        let Some(length) = tag[2..].find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(2 + length + 2);
        let inner = &tag[2..2 + length];
        let word = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        match word {
            "generation" => result.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => result.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => result.push_str(tag),
        }
        rest = after;
    }
    result.push_str(rest);
    result
}

/// What `raise_exception` said.
#[derive(Debug, ThisError)]
#[error("{0}")]
struct Refusal(String);

fn why(error: Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(Refusal(message)) = current.downcast_ref() {
            return TemplateError::Refused(message.clone());
        }
        if let Some(io) = current.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::FileTooLarge
        {
            return TemplateError::Bounds;
        }
        if let Some(inner) = current.downcast_ref::<Error>()
            && inner.kind() == ErrorKind::OutOfFuel
        {
            return TemplateError::Bounds;
        }
        cause = current.source();
    }
    TemplateError::Failed(describe(&error))
}

/// One line: what and where.
fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    error.line().map_or_else(|| what.clone(), |line| format!("{what} (line {line})"))
}

struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LARGEST_OUTPUT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
