//! One side of a comparison: a real cluster whose shards are pinned, asked through its OpenAI endpoint.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};
use futures::future::try_join_all;
use pool_orchestrator::control::{CoalitionView, ServingWishes};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::model::FIRST_WORD;
use crate::{
    api_client::{ApiClient, completion_tokens},
    arguments::CpuSet,
    cluster::{Cluster, ClusterOptions},
    processes::{Spent, descendants},
    state::StateFolder,
};

const STARTUP: Duration = Duration::from_secs(300);
/// Shards report their counters every second.
const REPORTS: Duration = Duration::from_millis(1300);
/// Rows of a prompt computed at a time.
pub(crate) const CHUNK: u32 = 64;

/// How a side is set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) model: &'a Path,
    /// The core of each shard, each with one thread.
    pub(crate) cores: Vec<usize>,
    pub(crate) context: u32,
}

pub(crate) struct Side {
    cluster: Cluster,
    folder: StateFolder,
    _temporary: TempDir,
    api: ApiClient,
    model: String,
    /// The shards' processes.
    shards: Vec<u32>,
    /// Layers of each shard.
    pub(crate) layers: Vec<String>,
    pub(crate) cores: Vec<usize>,
}

/// What several requests at once came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) tokens_per_second: f64,
    /// Processor time of all shards, for each token.
    pub(crate) shard_seconds_per_token: f64,
    /// Of the time that the shards' threads were ready to run, the part in which something else had their core.
    pub(crate) shards_waited: f64,
    /// Processor time of gateway and client over the elapsed time: 1 is a whole core.
    pub(crate) gateway_share: f64,
}

/// The stream of one request.
struct Stream {
    /// When each piece of text came.
    pieces: Vec<Instant>,
    finished: Instant,
    tokens: u64,
}

impl Side {
    /// Starts a cluster and waits until it answers.
    pub(crate) async fn start(setup: Setup<'_>, stop: &CancellationToken) -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("computepool-bench-").tempdir()?;
        let mut folder = StateFolder::lock(temporary.path())?;
        let before = descendants();
        let shards = u32::try_from(setup.cores.len())?;
        let options = ClusterOptions {
            model: setup.model.to_owned(),
            model_name: None,
            shards,
            api: "127.0.0.1:0".to_owned(),
            threads: Some(1),
            cpus: setup.cores.iter().map(|core| CpuSet::single(*core)).collect(),
            wishes: ServingWishes {
                shards: Some(shards),
                context: Some(setup.context),
                kv_tokens: Some(u64::from(setup.context) * 2),
                prefill_chunk: Some(CHUNK),
                ..ServingWishes::default()
            },
            api_key: None,
            pay: None,
            verbose: 0,
        };
        let mut cluster = Cluster::start(&mut folder, options).await?;
        let ready = tokio::select! {
            ready = cluster.ready(STARTUP) => ready,
            () = stop.cancelled() => Err(anyhow!("stopped before the end")),
        };
        if let Err(error) = ready {
            cluster.stop().await;
            return Err(error);
        }
        let is_shard = |process: &u32| {
            fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim() == "pool-shard")
        };
        let started = descendants().into_keys().filter(|process| !before.contains_key(process));
        let api = ApiClient::new(&format!("http://{}", cluster.address()), None)?;
        let view = cluster.view().borrow().clone();
        let layers = view.members.iter().map(|member| member.layers.to_string()).collect();
        let model = view.model.clone();
        let shards = started.filter(is_shard).collect();
        Ok(Self { cluster, folder, _temporary: temporary, api, model, shards, layers, cores: setup.cores })
    }

    /// Ends every process of it.
    pub(crate) async fn stop(self) {
        self.cluster.stop().await;
        drop(self.folder);
    }

    /// The coalition, once the shards have reported after the last request.
    pub(crate) async fn report(&self) -> Result<CoalitionView> {
        tokio::time::sleep(REPORTS).await;
        self.api.coalition().await
    }

    /// Computes a prompt and one token: tokens of the prompt per second until that token is here.
    pub(crate) async fn prefill(&self, prompt: &[u32]) -> Result<Outcome> {
        let clock = self.clock();
        let began = Instant::now();
        let stream = self.ask(prompt, 1).await?;
        let tokens = prompt.len() as f64;
        Ok(clock.outcome(tokens / (stream.finished - began).as_secs_f64(), tokens))
    }

    /// Answers all prompts at once, each with `tokens` tokens: tokens per second of all of them together, from when
    /// every answer has begun until the first one ends.
    pub(crate) async fn answer(&self, prompts: &[Vec<u32>], tokens: u32) -> Result<Outcome> {
        let clock = self.clock();
        let streams = try_join_all(prompts.iter().map(|prompt| self.ask(prompt, tokens))).await?;
        let rows: usize = prompts.iter().map(Vec::len).sum();
        let answered: u64 = streams.iter().map(|stream| stream.tokens).sum();
        Ok(clock.outcome(rate(&streams)?, rows as f64 + answered as f64))
    }

    async fn ask(&self, prompt: &[u32], tokens: u32) -> Result<Stream> {
        // Words only: half a character would wait for its other half, and its time with it.
        let no_bytes: Map<String, Value> = (0..FIRST_WORD).map(|token| (token.to_string(), (-100).into())).collect();
        let body = json!({
            "model": self.model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": true, "temperature": 0,
            "logit_bias": no_bytes, "stream": true, "stream_options": { "include_usage": true },
        });
        let (mut pieces, mut finished, mut answered) = (Vec::new(), None, 0);
        let on_event = |event: &Value| {
            answered = completion_tokens(event).unwrap_or(answered);
            if event.pointer("/choices/0/text").and_then(Value::as_str).is_some_and(|text| !text.is_empty()) {
                pieces.push(Instant::now());
            }
            if event.pointer("/choices/0/finish_reason").is_some_and(Value::is_string) {
                finished = Some(Instant::now());
            }
        };
        self.api.stream("completions", &body, on_event).await?;
        let Some(finished) = finished else { bail!("an answer broke off") };
        if answered != u64::from(tokens) {
            bail!("an answer has {answered} tokens instead of {tokens}");
        }
        Ok(Stream { pieces, finished, tokens: answered })
    }

    fn clock(&self) -> Clock {
        Clock {
            began: Instant::now(),
            shards: self.shards.clone(),
            shards_before: self.shards.iter().map(|process| Spent::of(*process)).sum(),
            own_before: Spent::of(std::process::id()),
        }
    }
}

/// Processor time from a moment on.
struct Clock {
    began: Instant,
    shards: Vec<u32>,
    shards_before: Spent,
    own_before: Spent,
}

impl Clock {
    /// `rows` is what the shards computed, prompts and answers.
    fn outcome(self, tokens_per_second: f64, rows: f64) -> Outcome {
        let elapsed = self.began.elapsed().as_secs_f64();
        let shards: Spent = self.shards.iter().map(|process| Spent::of(*process)).sum();
        let shards = shards.since(self.shards_before);
        let wanted = (shards.running + shards.waiting).as_secs_f64();
        let own = Spent::of(std::process::id()).since(self.own_before);
        Outcome {
            tokens_per_second,
            shard_seconds_per_token: shards.running.as_secs_f64() / rows,
            shards_waited: shards.waiting.as_secs_f64() / wanted.max(f64::MIN_POSITIVE),
            gateway_share: own.running.as_secs_f64() / elapsed,
        }
    }
}

/// Tokens per second of all streams while all of them run.
fn rate(streams: &[Stream]) -> Result<f64> {
    let begin = streams.iter().filter_map(|stream| stream.pieces.first()).max();
    let end = streams.iter().filter_map(|stream| stream.pieces.last()).min();
    let (Some(begin), Some(end)) = (begin, end) else { bail!("no text came") };
    let window = end.saturating_duration_since(*begin).as_secs_f64();
    if window <= 0.0 {
        bail!("the answers did not run at the same time");
    }
    let mut tokens = 0;
    for stream in streams {
        if stream.tokens != stream.pieces.len() as u64 {
            bail!("{} tokens came in {} pieces", stream.tokens, stream.pieces.len());
        }
        tokens += stream.pieces.iter().filter(|at| *at > begin && *at <= end).count();
    }
    Ok(tokens as f64 / window)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(start: Instant, first: u64, every: u64, tokens: u64) -> Stream {
        let pieces: Vec<Instant> = (0..tokens).map(|n| start + Duration::from_millis(first + n * every)).collect();
        Stream { finished: start + Duration::from_secs(9), pieces, tokens }
    }

    #[test]
    fn the_rate_counts_what_comes_while_all_run() {
        let start = Instant::now();
        let alone = rate(&[stream(start, 500, 10, 64)]).unwrap();
        assert!((alone - 100.0).abs() < 1e-6, "the wait for the first token does not count: {alone}");
        let two = rate(&[stream(start, 0, 10, 64), stream(start, 100, 10, 64)]).unwrap();
        assert!((two - 200.0).abs() < 4.0, "{two}");
        assert!(rate(&[stream(start, 0, 10, 8), stream(start, 500, 10, 8)]).is_err(), "one after the other");
    }
}
