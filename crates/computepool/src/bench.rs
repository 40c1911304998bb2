//! `computepool bench`: what splitting a model costs and gains, as ratios of two sides that run in turn on one machine.
//!
//! Each side is a real cluster (orchestrator, nodes, shard processes, links) asked through its OpenAI endpoint with
//! token ids. The two sides of a row take turns, so that a machine that gets slower or busier changes both alike; the
//! ratio is the median over the pairs. Bounds are those of docs/benchmarks.md.

mod hop;
mod machine;
mod model;
mod report;
mod side;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use futures::future::join_all;
use indicatif::ProgressBar;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::{arguments::BenchArguments, logs, serving, stop, up::spinner};
use machine::Machine;
use model::FIRST_WORD;
pub(crate) use model::{Quant, Size};
use report::{Compared, Figures, Report, Row, ShardRow, overview};
use side::{CHUNK, Outcome, Setup, Side};

/// Prompts whose length does not matter.
const SHORT: usize = 16;
/// Requests of the largest row.
const MOST_REQUESTS: usize = 8;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Two shards on one core against one process there: what splitting costs
    Decode,
    /// A long prompt on two cores against one: how shards overlap
    Prefill,
    /// Twice the requests on twice the cores: what a second shard gains
    Pipelining,
    /// Several requests at once in one process
    Batching,
    /// A message of 16 KiB between two processes, and bulk, against TCP
    Hop,
    /// Bytes read and memory of every shard
    Memory,
}

pub(crate) fn run(arguments: BenchArguments) -> Result<ExitCode> {
    logs::start(None, arguments.verbose).context("cannot write a log")?;
    serving::runtime(2)?.block_on(async {
        let stop = stop::on_signal()?;
        let mut bench = Bench::new(arguments, stop)?;
        bench.print_head();
        let outcome = bench.run().await;
        bench.progress.finish_and_clear();
        bench.stop_sides().await;
        bench.finish()?;
        outcome.map(|()| ExitCode::SUCCESS)
    })
}

struct Bench {
    arguments: BenchArguments,
    cache: PathBuf,
    stop: CancellationToken,
    progress: ProgressBar,
    report: Report,
    /// What runs now.
    sides: Vec<Side>,
}

/// What a side is asked.
#[derive(Clone, Copy)]
struct Load {
    /// Which of [`Bench::sides`].
    side: usize,
    requests: usize,
    prompt: usize,
    /// 1 measures the prompt, more measures the answer.
    answer: u32,
}

/// Two loads that are compared.
struct Comparison {
    name: String,
    quant: Quant,
    bound: Option<f64>,
    loads: [Load; 2],
    names: [String; 2],
}

impl Bench {
    fn new(arguments: BenchArguments, stop: CancellationToken) -> Result<Self> {
        let cache = arguments.model_cache.clone().map_or_else(model::default_cache, Ok)?;
        let command: Vec<String> = std::env::args().skip(1).collect();
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            command: format!("computepool {}", command.join(" ")),
            date: machine::date(),
            machine: Machine::look(),
            size: arguments.size,
            rows: Vec::new(),
        };
        Ok(Self { arguments, cache, stop, progress: spinner("starting"), report, sides: Vec::new() })
    }

    fn print_head(&self) {
        let machine = &self.report.machine;
        println!("{}\n{}", self.report.command, self.report.date);
        let gib = machine.memory_bytes as f64 / (1u64 << 30) as f64;
        println!("{}, {} cores, {gib:.0} GiB", machine.processor, machine.cores.len());
        if machine.first_two_share_a_core {
            println!("The two cores used are threads of one physical core: a second shard gains little.");
        }
        if !machine.optimised {
            println!("This is a debug build: its figures mean nothing.");
        }
    }

    fn wants(&self, kind: Kind) -> bool {
        self.arguments.only.is_empty() || self.arguments.only.contains(&kind)
    }

    async fn run(&mut self) -> Result<()> {
        if self.wants(Kind::Hop) {
            self.hop().await?;
        }
        let with_model = [Kind::Decode, Kind::Prefill, Kind::Pipelining, Kind::Batching, Kind::Memory];
        if with_model.into_iter().any(|kind| self.wants(kind)) {
            for quant in self.arguments.quant.clone() {
                self.progress.set_message(format!("making the model, {}", quant.name()));
                let model = self.until_stopped(model::at_hand(&self.cache, self.arguments.size, quant)).await?;
                let outcome = self.with_model(quant, &model).await;
                self.stop_sides().await;
                outcome?;
            }
        }
        Ok(())
    }

    async fn hop(&mut self) -> Result<()> {
        let load_before = machine::load();
        self.progress.set_message("hop");
        let runs = self.arguments.repeats as usize;
        let deadline = Instant::now() + Duration::from_secs(self.arguments.row_seconds);
        let measured = self.until_stopped(async {
            Ok(match timeout_at(deadline, hop::measure(runs)).await {
                Ok(Ok(hop)) => Figures::Hop(Box::new(hop)),
                Ok(Err(error)) => Figures::NotMeasured(format!("{error:#}")),
                Err(_) => Figures::NotMeasured("it took too long".to_owned()),
            })
        });
        let figures = measured.await?;
        let name = "hop, 16 KiB".to_owned();
        self.add(Row { name, quant: None, load_before, figures, notes: Vec::new() });
        Ok(())
    }

    /// Every row of one model. Side 0 is one process on one core.
    async fn with_model(&mut self, quant: Quant, model: &Path) -> Result<()> {
        let cores = self.report.machine.cores.clone();
        let (Some(first), second) = (cores.first().copied(), cores.get(1).copied()) else {
            bail!("no core is allowed to this process");
        };
        let Load { prompt, answer, .. } = self.sized();
        if let Err(error) = self.start(model, &[first]).await {
            return self.unmeasured("every row", quant, &error);
        }
        if self.wants(Kind::Decode) {
            match self.start(model, &[first, first]).await {
                Ok(()) => {
                    let name = format!("decode, 1 request of {answer} tokens");
                    let load = Load { side: 1, requests: 1, prompt: SHORT, answer };
                    self.compare(name, quant, Some(0.97), [load, Load { side: 0, ..load }]).await?;
                    self.memory_of(1, quant).await?;
                    self.stop_second().await;
                }
                Err(error) => self.unmeasured("decode", quant, &error)?,
            }
        }
        let two_cores = [Kind::Prefill, Kind::Pipelining, Kind::Memory].into_iter().any(|kind| self.wants(kind));
        if two_cores {
            match second {
                None => self.unmeasured("two cores", quant, &anyhow!("this process may use one core only"))?,
                Some(second) => match self.start(model, &[first, second]).await {
                    Ok(()) => {
                        self.on_two_cores(quant, prompt, answer).await?;
                        self.memory_of(1, quant).await?;
                        self.stop_second().await;
                    }
                    Err(error) => self.unmeasured("two cores", quant, &error)?,
                },
            }
        }
        if self.wants(Kind::Batching) {
            for requests in [2, 4, MOST_REQUESTS] {
                let name = format!("batching, {requests} requests / 1 in one process");
                let load = Load { side: 0, requests, prompt: SHORT, answer };
                self.compare(name, quant, None, [load, Load { requests: 1, ..load }]).await?;
            }
        }
        self.memory_of(0, quant).await
    }

    async fn on_two_cores(&mut self, quant: Quant, prompt: usize, answer: u32) -> Result<()> {
        if self.wants(Kind::Prefill) {
            let name = format!("prefill of {prompt} tokens in chunks of {CHUNK}, a core a shard");
            let load = Load { side: 1, requests: 1, prompt, answer: 1 };
            self.compare(name, quant, Some(1.7), [load, Load { side: 0, ..load }]).await?;
        }
        if self.wants(Kind::Pipelining) {
            for many in [1, 2, 4] {
                let name = format!("pipelining, {} requests on 2 shards / {many} on 1, a core a shard", 2 * many);
                let load = Load { side: 1, requests: 2 * many, prompt: SHORT, answer };
                let bound = (many == 4).then_some(1.85);
                self.compare(name, quant, bound, [load, Load { side: 0, requests: many, ..load }]).await?;
            }
        }
        Ok(())
    }

    /// The longest prompt and answer, cut to what the model takes.
    fn sized(&self) -> Load {
        let BenchArguments { size, prompt, answer, .. } = self.arguments;
        let most = size.positions();
        let answer = (answer.max(2) as usize).min(most / MOST_REQUESTS - SHORT);
        Load { side: 0, requests: 1, prompt: prompt.clamp(1, most - 1), answer: answer as u32 }
    }

    async fn start(&mut self, model: &Path, cores: &[usize]) -> Result<()> {
        self.progress.set_message(format!("starting {} on {}", shards(cores.len()), on(cores)));
        // Children begin where this process is.
        machine::move_to(&self.report.machine.cores);
        let Load { prompt, answer, .. } = self.sized();
        let context = (prompt + 1).max((SHORT + answer as usize) * MOST_REQUESTS / 2) as u32;
        let setup = Setup { model, cores: cores.to_vec(), context };
        self.sides.push(Side::start(setup, &self.stop).await?);
        Ok(())
    }

    async fn stop_second(&mut self) {
        if self.sides.len() > 1
            && let Some(side) = self.sides.pop()
        {
            side.stop().await;
        }
    }

    async fn stop_sides(&mut self) {
        join_all(self.sides.drain(..).map(Side::stop)).await;
    }

    /// Runs both loads in turn, as often as wished or until the row's time is over.
    async fn compare(&mut self, name: String, quant: Quant, bound: Option<f64>, loads: [Load; 2]) -> Result<()> {
        let load_before = machine::load();
        let names = loads.map(|load| self.sides.get(load.side).map(|side| side_name(side, load.requests)));
        let names = names.map(Option::unwrap_or_default);
        let comparison = Comparison { name, quant, bound, loads, names };
        let mut pairs = Vec::new();
        let failed = self.until_stopped(async { Ok(self.pairs(&comparison, &mut pairs).await.err()) }).await?;
        let mut notes: Vec<String> = failed.map(|error| format!("ended early: {error:#}")).into_iter().collect();
        let figures = if pairs.is_empty() {
            Figures::NotMeasured(notes.pop().unwrap_or_else(|| "nothing ran".to_owned()))
        } else {
            let names = comparison.names.each_ref().map(String::as_str);
            let compared = Compared::new(names, "tokens/s", comparison.bound, &pairs);
            let waited = compared.second.shards_waited.median;
            if waited > 0.05 {
                notes.push(format!(
                    "one process had to wait for its core {:.0} % of the time: the machine was busy",
                    waited * 100.0
                ));
            }
            Figures::Compared(compared)
        };
        self.add(Row { name: comparison.name, quant: Some(quant.name()), load_before, figures, notes });
        Ok(())
    }

    async fn pairs(&self, comparison: &Comparison, pairs: &mut Vec<(Outcome, Outcome)>) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(self.arguments.row_seconds);
        let Comparison { name, quant, loads, .. } = comparison;
        let sides: Vec<&Side> = loads.iter().filter_map(|load| self.sides.get(load.side)).collect();
        machine::move_to(&self.report.machine.beside(sides.iter().flat_map(|side| &side.cores)));
        let repeats = u64::from(self.arguments.repeats);
        // Turn 0 is not counted: it touches the weights and fills the caches.
        for turn in 0..=repeats {
            self.progress.set_message(format!("{name}, {}: {turn} of {repeats}", quant.name()));
            let [first, second] = loads.map(|load| match (turn, load.answer) {
                (0, 1) => Load { prompt: load.prompt.min(2 * CHUNK as usize), ..load },
                (0, answer) => Load { answer: answer.min(8), ..load },
                _ => load,
            });
            let pair = timeout_at(deadline, async {
                anyhow::Ok((self.measure(first, turn).await?, self.measure(second, turn).await?))
            });
            let Ok(pair) = pair.await else {
                bail!("{} s are over", self.arguments.row_seconds);
            };
            let pair = pair?;
            if turn > 0 {
                pairs.push(pair);
            }
        }
        Ok(())
    }

    async fn measure(&self, load: Load, turn: u64) -> Result<Outcome> {
        let side = self.sides.get(load.side).context("this side does not run")?;
        let words = self.arguments.size.vocabulary() - FIRST_WORD;
        let prompts: Vec<Vec<u32>> =
            (0..load.requests as u64).map(|request| prompt(turn << 8 | request, load.prompt, words)).collect();
        match (load.answer, &prompts[..]) {
            (1, [prompt]) => side.prefill(prompt).await,
            _ => side.answer(&prompts, load.answer).await,
        }
    }

    async fn memory_of(&mut self, side: usize, quant: Quant) -> Result<()> {
        if !self.wants(Kind::Memory) {
            return Ok(());
        }
        let Some(side) = self.sides.get(side) else { return Ok(()) };
        let (name, load_before) = (side_name(side, 0), machine::load());
        let figures = self.until_stopped(async {
            Ok(match side.report().await {
                Ok(view) => Figures::Shards(view.members.iter().map(|member| ShardRow::new(&name, member)).collect()),
                Err(error) => Figures::NotMeasured(format!("{error:#}")),
            })
        });
        let figures = figures.await?;
        let name = "bytes read and memory".to_owned();
        self.add(Row { name, quant: Some(quant.name()), load_before, figures, notes: Vec::new() });
        Ok(())
    }

    /// Notes that rows are missing; an error only when the person ended the run.
    fn unmeasured(&mut self, what: &str, quant: Quant, error: &anyhow::Error) -> Result<()> {
        if self.stop.is_cancelled() {
            bail!("stopped before the end");
        }
        let figures = Figures::NotMeasured(format!("{error:#}"));
        let (name, load_before) = (what.to_owned(), machine::load());
        self.add(Row { name, quant: Some(quant.name()), load_before, figures, notes: Vec::new() });
        Ok(())
    }

    fn add(&mut self, row: Row) {
        self.progress.suspend(|| print!("{row}"));
        self.report.rows.push(row);
    }

    async fn until_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            outcome = work => outcome,
            () = self.stop.cancelled() => bail!("stopped before the end"),
        }
    }

    /// The table and the file, also of a run that was stopped.
    fn finish(&self) -> Result<()> {
        if !self.report.rows.is_empty() {
            print!("\n{}", overview(&self.report.rows));
        }
        let Some(path) = &self.arguments.json else { return Ok(()) };
        let json = serde_json::to_string_pretty(&self.report)?;
        std::fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

fn shards(count: usize) -> String {
    if count == 1 { "1 process".to_owned() } else { format!("{count} shards") }
}

fn on(cores: &[usize]) -> String {
    let mut distinct = cores.to_vec();
    distinct.dedup();
    let list: Vec<String> = distinct.iter().map(usize::to_string).collect();
    format!("core{} {}", if list.len() == 1 { "" } else { "s" }, list.join(" and "))
}

/// `2 shards (0-8, 8-16) on core 0, 4 requests`; without the requests where there are none.
fn side_name(side: &Side, requests: usize) -> String {
    let asked = match requests {
        0 => String::new(),
        1 => ", 1 request".to_owned(),
        many => format!(", {many} requests"),
    };
    format!("{} ({}) on {}{asked}", shards(side.cores.len()), side.layers.join(", "), on(&side.cores))
}

/// The same words for the same seed (SplitMix64).
fn prompt(seed: u64, length: usize, words: u32) -> Vec<u32> {
    let mut state = seed;
    let mut word = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        FIRST_WORD + ((mixed ^ (mixed >> 31)) % u64::from(words.max(1))) as u32
    };
    (0..length).map(|_| word()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_repeat_and_hold_words_only() {
        let words = Size::Tiny.vocabulary() - FIRST_WORD;
        let one = prompt(1, 2048, words);
        assert_eq!(one, prompt(1, 2048, words), "both sides of a pair are asked the same");
        assert_ne!(one, prompt(2, 2048, words));
        assert!(one.iter().all(|token| (260..320).contains(token)));
    }

    #[test]
    fn sides_are_named_by_their_cores() {
        assert_eq!((on(&[0]), on(&[0, 0]), on(&[0, 1])), ("core 0".into(), "core 0".into(), "cores 0 and 1".into()));
    }
}
