//! Models of random weights, made once and kept in a cache.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use pool_node::find_shard_program;
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

const SEED: u64 = 1;
/// Ids below this one are bytes and control tokens; every id from here on is a word.
pub(crate) const FIRST_WORD: u32 = 260;

/// How large a model to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
pub(crate) enum Size {
    /// 0.5 billion parameters, 16 layers
    #[value(name = "0.5b")]
    #[serde(rename = "0.5b")]
    HalfBillion,
    /// 1.1 billion parameters, 22 layers
    #[value(name = "1b")]
    #[serde(rename = "1b")]
    OneBillion,
    /// A million parameters: for trying the program out, its figures mean nothing
    #[value(name = "tiny-synthetic")]
    #[serde(rename = "tiny-synthetic")]
    Tiny,
}

impl Size {
    /// What `pool-shard` calls the shape.
    fn shape(self) -> &'static str {
        match self {
            Size::HalfBillion => "half-billion",
            Size::OneBillion => "one-billion",
            Size::Tiny => "tiny",
        }
    }

    /// The most tokens of a sequence.
    pub(crate) fn positions(self) -> usize {
        if self == Size::Tiny { 2048 } else { 8192 }
    }

    /// Its tokens.
    pub(crate) fn vocabulary(self) -> u32 {
        if self == Size::Tiny { 320 } else { 32_000 }
    }
}

/// How its weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
pub(crate) enum Quant {
    /// 8-bit blocks
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4-bit blocks, with 6-bit ones where it matters
    #[value(name = "q4_k")]
    #[serde(rename = "q4_k")]
    Q4K,
}

impl Quant {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Quant::Q8_0 => "q8_0",
            Quant::Q4K => "q4_k",
        }
    }
}

/// The cache for people who did not name one: `$XDG_CACHE_HOME/computepool`, or `~/.cache/computepool`.
pub(crate) fn default_cache() -> Result<PathBuf> {
    let named = |variable| std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
    let cache = named("XDG_CACHE_HOME").or_else(|| named("HOME").map(|home| home.join(".cache")));
    Ok(cache.context("there is no home to keep the model in; name a folder with --model-cache")?.join("computepool"))
}

/// The model's file; written first where it is missing.
pub(crate) async fn at_hand(cache: &Path, size: Size, quant: Quant) -> Result<PathBuf> {
    let file = cache.join(format!("synthetic-{}-{}-{SEED}.gguf", size.shape(), quant.name()));
    if file.is_file() {
        return Ok(file);
    }
    std::fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let program = find_shard_program()?;
    let mut command = Command::new(&program);
    command.arg("--write-synthetic").arg(&file).args(["--shape", size.shape(), "--quant", quant.name()]);
    command.args(["--seed", &SEED.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let bar = ProgressBar::new(0).with_message(format!("making {}", file.display()));
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:24} {binary_bytes} of {binary_total_bytes}") {
        bar.set_style(style);
    }
    if let Some(output) = child.stdout.take() {
        let mut lines = BufReader::new(output).lines();
        while let Some(line) = lines.next_line().await? {
            if let Some((done, all)) = line.split_once(' ')
                && let (Ok(done), Ok(all)) = (done.parse(), all.parse())
            {
                bar.set_length(all);
                bar.set_position(done);
            }
        }
    }
    let status = child.wait().await?;
    bar.finish_and_clear();
    if !status.success() {
        bail!("the model could not be written ({status})");
    }
    Ok(file)
}
