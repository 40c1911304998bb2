//! A client of the OpenAI endpoint, as small as `chat` and `demo` need it.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use pool_orchestrator::control::CoalitionView;
pub(crate) use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::Serialize;
use serde_json::{Value, json};

/// Connecting takes at most this long; answers may take as long as they like between two events.
const CONNECT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(120);
/// An event larger than this is not one of ours.
const MAX_EVENT: usize = 1 << 20;
/// A larger answer is not one of ours.
const MAX_REPLY: usize = 4 << 20;

pub(crate) struct ApiClient {
    base: String,
    key: Option<String>,
    http: reqwest::Client,
}

/// A whole answer, whatever its status.
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<Vec<u8>> {
        self.headers.get(name).map(|value| value.as_bytes().to_vec())
    }

    /// The sentence of an error.
    pub(crate) fn message(&self) -> String {
        let error: Option<Value> = serde_json::from_slice(&self.body).ok();
        error
            .as_ref()
            .and_then(|body| body.get("error"))
            .map_or_else(|| format!("the endpoint answered with status {}", self.status), message_of)
    }

    /// The error that this answer is.
    pub(crate) fn refusal(&self) -> anyhow::Error {
        refusal(self.status, &self.body)
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Turn {
    pub(crate) role: &'static str,
    pub(crate) content: String,
}

/// What is asked besides the conversation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AskOptions {
    pub(crate) temperature: Option<f32>,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) seed: Option<i64>,
}

/// A finished answer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: u64,
    /// From the request to the first text.
    pub(crate) first_token_seconds: f64,
    /// Tokens after the first, over the time after the first.
    pub(crate) tokens_per_second: Option<f64>,
    pub(crate) finish: Option<String>,
}

impl ApiClient {
    /// A client of `base`, which ends in `/v1` or not.
    pub(crate) fn new(base: &str, key: Option<String>) -> Result<Self> {
        let base = base.trim_end_matches('/');
        let base = if base.ends_with("/v1") { base.to_owned() } else { format!("{base}/v1") };
        if base.starts_with("https://") {
            bail!("this client speaks http only; give it the endpoint's own address");
        }
        let http = reqwest::Client::builder().connect_timeout(CONNECT).read_timeout(SILENCE).no_proxy().build()?;
        Ok(Self { base, key, http })
    }

    /// The models served, with what ComputePool adds to each.
    pub(crate) async fn models(&self) -> Result<Vec<Value>> {
        let answer: Value = self.get("models").await?;
        Ok(answer.get("data").and_then(Value::as_array).cloned().unwrap_or_default())
    }

    /// The first model served.
    pub(crate) async fn first_model(&self) -> Result<String> {
        let models = self.models().await?;
        models.first().and_then(name_of).context("the endpoint serves no model")
    }

    /// Who serves, and what crossed.
    pub(crate) async fn coalition(&self) -> Result<CoalitionView> {
        self.get("coalition").await
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T> {
        let reply = self.send(Method::GET, path, None, None).await?;
        if !(200..300).contains(&reply.status) {
            return Err(reply.refusal());
        }
        serde_json::from_slice(&reply.body).with_context(|| format!("{} does not answer like ComputePool", self.base))
    }

    /// Sends a request and takes the whole answer, of any status.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        header: Option<(&str, &str)>,
    ) -> Result<Reply> {
        let mut request = self.http.request(method, format!("{}/{path}", self.base));
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let answer = self.authorised(request).send().await;
        let mut answer = answer.with_context(|| format!("{} cannot be reached", self.base))?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let mut body = Vec::new();
        while let Some(bytes) = answer.chunk().await.context("the answer broke off")? {
            body.extend_from_slice(&bytes);
            if body.len() > MAX_REPLY {
                bail!("{} answers with more than {MAX_REPLY} bytes, which is not like ComputePool", self.base);
            }
        }
        Ok(Reply { status, headers, body })
    }

    /// Writes a long answer to `file` as it comes.
    pub(crate) async fn download(&self, path: &str, file: &mut impl Write) -> Result<()> {
        let answer = self.authorised(self.http.get(format!("{}/{path}", self.base))).send().await;
        let mut answer = answer.with_context(|| format!("{} cannot be reached", self.base))?;
        let status = answer.status();
        if !status.is_success() {
            return Err(refusal(status.as_u16(), &answer.bytes().await.unwrap_or_default()));
        }
        while let Some(bytes) = answer.chunk().await.context("the answer broke off")? {
            file.write_all(&bytes).context("cannot keep the answer")?;
        }
        Ok(())
    }

    /// The endpoint, with its version.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    fn authorised(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Asks, and hands over the text as it comes.
    pub(crate) async fn ask(
        &self,
        model: &str,
        turns: &[Turn],
        options: AskOptions,
        mut on_text: impl FnMut(&str),
    ) -> Result<Answer> {
        let mut body = json!({
            "model": model, "messages": turns, "stream": true, "stream_options": { "include_usage": true },
        });
        let optional = [
            ("temperature", options.temperature.map(Value::from)),
            ("max_tokens", options.max_tokens.map(Value::from)),
            ("seed", options.seed.map(Value::from)),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        let began = Instant::now();
        let (mut text, mut first, mut last, mut tokens, mut finish) = (String::new(), None, began, 0, None);
        let on_event = |event: &Value| {
            if let Some(count) = completion_tokens(event) {
                tokens = count;
            }
            if let Some(reason) = event.pointer("/choices/0/finish_reason").and_then(Value::as_str) {
                finish = Some(reason.to_owned());
            }
            if let Some(piece) = event.pointer("/choices/0/delta/content").and_then(Value::as_str)
                && !piece.is_empty()
            {
                last = Instant::now();
                first.get_or_insert(last);
                on_text(piece);
                text.push_str(piece);
            }
        };
        self.stream("chat/completions", &body, on_event).await?;
        if finish.is_none() {
            bail!("the answer broke off");
        }
        let first = first.unwrap_or(last);
        let generating = (last - first).as_secs_f64();
        let tokens_per_second = (tokens > 1 && generating > 0.0).then(|| (tokens - 1) as f64 / generating);
        let first_token_seconds = (first - began).as_secs_f64();
        Ok(Answer { text, tokens, first_token_seconds, tokens_per_second, finish })
    }

    /// Posts a body that asks for a stream, and hands over its events as they come.
    pub(crate) async fn stream(&self, path: &str, body: &Value, mut on_event: impl FnMut(&Value)) -> Result<()> {
        let request = self.http.post(format!("{}/{path}", self.base)).json(body);
        let answer = self.authorised(request).send().await;
        let mut answer = answer.with_context(|| format!("{} cannot be reached", self.base))?;
        let status = answer.status();
        if !status.is_success() {
            return Err(refusal(status.as_u16(), &answer.bytes().await.unwrap_or_default()));
        }
        let mut events = Events::default();
        while let Some(bytes) = answer.chunk().await.context("the answer broke off")? {
            events.push(&bytes)?;
            while let Some(event) = events.next() {
                if event == "[DONE]" {
                    continue;
                }
                let event: Value = serde_json::from_str(&event).context("an event is not JSON")?;
                if let Some(error) = event.get("error") {
                    bail!("{}", message_of(error));
                }
                on_event(&event);
            }
        }
        Ok(())
    }
}

/// A model's name in the API.
pub(crate) fn name_of(model: &Value) -> Option<String> {
    model.get("id").and_then(Value::as_str).map(str::to_owned)
}

/// The tokens answered, from the event that tells them.
pub(crate) fn completion_tokens(event: &Value) -> Option<u64> {
    event.pointer("/usage/completion_tokens").and_then(Value::as_u64)
}

/// An OpenAI error as one sentence.
fn refusal(status: u16, body: &[u8]) -> anyhow::Error {
    let error: Option<Value> = serde_json::from_slice(body).ok();
    match error.as_ref().and_then(|body| body.get("error")) {
        Some(error) => anyhow!("{} (status {status})", message_of(error)),
        None => anyhow!("the endpoint answered with status {status}"),
    }
}

fn message_of(error: &Value) -> String {
    let message = error.get("message").and_then(Value::as_str).unwrap_or("the endpoint reports an error");
    message.trim_end_matches('.').to_owned()
}

/// Cuts a stream of bytes into server-sent events (WHATWG HTML, "server-sent events"): here always one `data:` line.
#[derive(Default)]
struct Events {
    buffer: Vec<u8>,
}

impl Events {
    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() > MAX_EVENT { Err(anyhow!("an event is larger than any of ours")) } else { Ok(()) }
    }

    /// The next whole `data:` line.
    fn next(&mut self) -> Option<String> {
        loop {
            let end = self.buffer.iter().position(|byte| *byte == b'\n')?;
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(data) = line.trim_end_matches(['\r', '\n']).strip_prefix("data:") {
                return Some(data.trim_start().to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_the_bytes_arrive() {
        let stream = b": keep-alive\n\ndata: {\"a\":1}\r\n\r\ndata: [DONE]\n\n";
        for size in 1..stream.len() {
            let (mut events, mut found) = (Events::default(), Vec::new());
            for piece in stream.chunks(size) {
                events.push(piece).unwrap();
                found.extend(std::iter::from_fn(|| events.next()));
            }
            assert_eq!(found, ["{\"a\":1}", "[DONE]"], "pieces of {size} bytes");
        }
        let mut endless = Events::default();
        assert!(endless.push(&vec![b'x'; MAX_EVENT + 1]).is_err(), "an endless event takes bounded space");
    }
}
