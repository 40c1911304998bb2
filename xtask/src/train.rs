//! Training on the processor: two workers take half of each batch, AdamW takes the sum of their gradients.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use rand::Rng;

use crate::corpus::{self, Corpus};
use crate::model::{Config, Llama, fresh_weights};
use crate::tokenizer::{Marked, Tokenizer};

/// Steps that are enough for the bundled model, in less than half an hour on two cores.
pub(crate) const DEFAULT_STEPS: usize = 1400;

/// Highest rate of learning, reached after the warm-up.
const RATE: f64 = 2e-3;
const WARM_UP: usize = 60;
/// Longest step that the gradient may ask for.
const CLIP: f64 = 1.0;
/// Halves of a batch; fixed, so that the result does not depend on the number of cores.
const WORKERS: usize = 2;
/// An ordinary batch of a worker.
const SHORT: Batch = Batch { rows: 4, length: 160 };
/// Now and then one long conversation each, so that the whole context works.
const LONG: Batch = Batch { rows: 1, length: 1024 };
const LONG_EVERY: usize = 16;
const REPORT_EVERY: usize = 20;

#[derive(Clone, Copy)]
struct Batch {
    rows: usize,
    length: usize,
}

/// How long to train.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    /// A number of steps, which makes the result repeatable.
    Steps(usize),
    /// Wall-clock minutes.
    Minutes(f64),
}

impl Length {
    /// The part that is done, from 0 to 1.
    fn done(self, step: usize, elapsed: Duration) -> f64 {
        match self {
            Length::Steps(steps) => step as f64 / steps as f64,
            Length::Minutes(minutes) => elapsed.as_secs_f64() / (minutes * 60.0),
        }
    }
}

/// The weights and how they came about.
pub(crate) struct Trained {
    /// Weights by name, in f32.
    pub(crate) weights: BTreeMap<String, Var>,
    /// Seed of all choices.
    pub(crate) seed: u64,
    /// Steps taken.
    pub(crate) steps: usize,
    /// Tokens read.
    pub(crate) tokens: usize,
    /// Mean loss of the last steps, in nats for each token of an answer.
    pub(crate) loss: f64,
    /// Wall-clock time.
    pub(crate) time: Duration,
}

/// Each worker multiplies matrices on its own core, and candle takes its number of threads from the environment only:
/// so the program starts itself once more with one thread. True when the work is done. The second start also tells
/// glibc to keep freed memory: giving it back after every tensor costs a quarter of the time in page faults.
pub(crate) fn restart_with_one_thread_each() -> Result<bool> {
    const THREADS: &str = "RAYON_NUM_THREADS";
    if std::env::var(THREADS).is_ok_and(|threads| threads == "1") {
        return Ok(false);
    }
    let program = std::env::current_exe().context("finding this program")?;
    let status = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(THREADS, "1")
        .env("MALLOC_MMAP_THRESHOLD_", "1073741824")
        .env("MALLOC_TRIM_THRESHOLD_", "8589934592")
        .env("MALLOC_TOP_PAD_", "268435456")
        .status()
        .context("starting this program again")?;
    ensure!(status.success(), "training ended with {status}");
    Ok(true)
}

/// Trains a new model.
pub(crate) fn train(
    corpus: &Corpus,
    tokenizer: &Tokenizer,
    config: &Config,
    length: Length,
    seed: u64,
) -> Result<Trained> {
    let mut rng = corpus::rng(seed);
    let weights = fresh_weights(config, &mut rng)?;
    let weight = |name: &str| weights.get(name).map(|var| var.as_tensor().clone()).context("no such weight");
    let llama = Llama::new(config, weight)?;
    let vars: Vec<Var> = weights.values().cloned().collect();
    let settings = ParamsAdamW { lr: RATE, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.05 };
    let mut optimizer = AdamW::new(vars.clone(), settings).context("making the optimizer")?;
    println!("{} parameters, seed {seed}, {length:?}", config.parameters());

    let start = Instant::now();
    let (mut step, mut tokens, mut recent) = (0, 0, vec![]);
    loop {
        let done = length.done(step, start.elapsed());
        if done >= 1.0 {
            break;
        }
        let warm = ((step + 1) as f64 / WARM_UP as f64).min(1.0);
        let rate = RATE * warm * (0.01 + 0.99 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()));
        optimizer.set_learning_rate(rate);

        let long = step % LONG_EVERY == LONG_EVERY - 1;
        let batch = if long { LONG } else { SHORT };
        let halves: Vec<Vec<Marked>> = (0..WORKERS)
            .map(|_| (0..batch.rows).map(|_| row(corpus, tokenizer, &mut rng, batch.length, long)).collect())
            .collect::<Result<_>>()?;
        let (loss, gradients) = gradients(&llama, &vars, &halves).with_context(|| format!("in step {step}"))?;
        ensure!(loss.is_finite(), "the loss is no number after {step} steps");
        optimizer.step(&gradients).context("changing the weights")?;

        step += 1;
        tokens += WORKERS * batch.rows * batch.length;
        recent.push(loss);
        if step.is_multiple_of(REPORT_EVERY) {
            let seconds = start.elapsed().as_secs_f64();
            let mean = mean_of_last(&recent, REPORT_EVERY);
            println!(
                "step {step:5}  loss {mean:.4}  rate {rate:.5}  {seconds:5.0} s  {:.2} s/step",
                seconds / step as f64
            );
        }
    }
    let loss = mean_of_last(&recent, 50);
    Ok(Trained { weights, seed, steps: step, tokens, loss, time: start.elapsed() })
}

fn mean_of_last(losses: &[f64], count: usize) -> f64 {
    let last = &losses[losses.len().saturating_sub(count)..];
    last.iter().sum::<f64>() / last.len().max(1) as f64
}

/// One row of a batch, a token longer than its length: conversations one after the other, the last one cut.
/// A long row is one conversation.
fn row(corpus: &Corpus, tokenizer: &Tokenizer, rng: &mut impl Rng, length: usize, long: bool) -> Result<Marked> {
    let mut row = Marked::default();
    while row.ids.len() <= length {
        let next = if long {
            tokenizer.conversation(&corpus.conversation_of(rng, 24))?
        } else if rng.random_bool(0.05) {
            tokenizer.passage(&corpus.passage(rng))?
        } else {
            tokenizer.conversation(&corpus.conversation(rng))?
        };
        row.ids.extend(next.ids);
        row.learn.extend(next.learn);
    }
    row.ids.truncate(length + 1);
    row.learn.truncate(length + 1);
    Ok(row)
}

/// Mean loss over all answer tokens of the batch, and its gradients, no longer than [`CLIP`].
fn gradients(llama: &Llama, vars: &[Var], halves: &[Vec<Marked>]) -> Result<(f64, GradStore)> {
    let learnt = halves.iter().flatten().flat_map(|row| &row.learn[1..]).filter(|learn| **learn).count();
    let parts: Vec<(f64, GradStore)> = std::thread::scope(|scope| {
        let workers: Vec<_> = halves.iter().map(|rows| scope.spawn(|| half(llama, rows, learnt))).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow!("a worker of the training panicked"))?)
            .collect::<Result<_>>()
    })?;
    let mut parts = parts.into_iter();
    let (mut loss, mut sum) = parts.next().context("a batch without rows")?;
    for (more, gradients) in parts {
        loss += more;
        for var in vars {
            if let (Some(a), Some(b)) = (sum.get(var), gradients.get(var)) {
                let both = (a + b)?;
                sum.insert(var, both);
            }
        }
    }
    let mut squares = 0.0;
    for gradient in vars.iter().filter_map(|var| sum.get(var)) {
        squares += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    let norm = squares.sqrt();
    if norm > CLIP {
        for var in vars {
            if let Some(gradient) = sum.get(var) {
                let clipped = (gradient * (CLIP / norm))?;
                sum.insert(var, clipped);
            }
        }
    }
    Ok((loss, sum))
}

/// The share of one worker in the mean loss over `learnt` tokens.
fn half(llama: &Llama, rows: &[Marked], learnt: usize) -> Result<(f64, GradStore)> {
    let (mut inputs, mut places, mut targets) = (vec![], vec![], vec![]);
    for row in rows {
        for (at, pair) in row.ids.windows(2).enumerate() {
            if row.learn[at + 1] {
                places.push(inputs.len() as u32);
                targets.push(pair[1]);
            }
            inputs.push(pair[0]);
        }
    }
    let share = targets.len() as f64 / learnt as f64;
    let hidden = llama.hidden(&inputs, rows.len())?.index_select(&Tensor::new(places, &Device::Cpu)?, 0)?;
    let targets = Tensor::new(targets, &Device::Cpu)?;
    let loss = (candle_nn::loss::cross_entropy(&llama.logits(&hidden)?, &targets)? * share)?;
    let gradients = loss.backward().context("going backwards")?;
    Ok((f64::from(loss.to_scalar::<f32>()?), gradients))
}
