//! Tokens per second of one engine with the whole of a model: prefill in chunks of 64, then decode at
//! batches of 1, 2, 4 and 8.
//!
//! ```text
//! cargo run --release -p pool-engine --example decode_speed -- [--threads N] [--prompt N] [--tokens N] [--quantise] MODEL
//! ```
//!
//! `MODEL` is a GGUF file or a Hugging Face directory, or `synthetic:q8_0`, `synthetic:q4_k`,
//! `synthetic:f16`: half a billion random weights, written to the temporary folder once.

use std::{
    error::Error,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use pool_engine::{
    Engine, EngineOptions, Quantise, SamplerSetup, SequenceId, Step, StepInput, configure_threads,
    synthetic::{SyntheticQuant, SyntheticShape, write_gguf},
};
use pool_models::{Activation, Model};
use pool_types::{ByteSize, LayerRange, Sampling};

const CHUNK: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut threads = 1;
    let mut prompt = 512;
    let mut tokens = 32;
    let mut quantise = None;
    let mut model = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number =
            || -> Result<usize, Box<dyn Error>> { Ok(arguments.next().ok_or("a number is missing")?.parse()?) };
        match argument.as_str() {
            "--threads" => threads = number()?,
            "--prompt" => prompt = number()?.max(1),
            "--tokens" => tokens = number()?.max(1),
            "--quantise" => quantise = Some(Quantise::Q8_0),
            _ => model = Some(argument),
        }
    }
    let threads = configure_threads(threads);
    let model = Model::open(path(&model.ok_or("name a model")?)?)?;
    let context = model.config.max_positions.min((prompt + tokens).max(256));
    let started = Instant::now();
    let options = EngineOptions {
        layers: LayerRange::new(0, model.config.layers)?,
        threads,
        quantise,
        wire: Activation::F32,
        kv_tokens: 8 * context,
        max_context: context,
    };
    let mut engine = Engine::load(Arc::clone(&model.config), model.source.as_ref(), options)?;
    let footprint = engine.footprint();
    println!(
        "{}: {} of weights, {} read, {} a token of cache, {threads} thread(s), loaded in {:.1} s",
        model.name,
        ByteSize(footprint.weight_bytes),
        ByteSize(footprint.bytes_read),
        ByteSize(footprint.kv_bytes_per_token),
        started.elapsed().as_secs_f64()
    );
    // The first use of a matrix may re-order it: not measured.
    prefill(&mut engine, CHUNK)?;
    decode(&mut engine, 1, 2)?;
    decode(&mut engine, 2, 2)?;

    println!("prefill of {prompt} in chunks of {CHUNK}: {:7.1} tokens/s", rate(prompt, prefill(&mut engine, prompt)?));
    for batch in [1, 2, 4, 8] {
        let took = decode(&mut engine, batch, tokens)?;
        println!(
            "decode, batch {batch}: {:7.1} tokens/s, {:6.2} ms a step",
            rate(batch * tokens, took),
            took.as_secs_f64() * 1e3 / tokens as f64
        );
    }
    Ok(())
}

fn path(model: &str) -> Result<PathBuf, Box<dyn Error>> {
    let quant = match model {
        "synthetic:q8_0" => SyntheticQuant::Q8_0,
        "synthetic:q4_k" => SyntheticQuant::Q4K,
        "synthetic:f16" => SyntheticQuant::F16,
        path => return Ok(path.into()),
    };
    let path = std::env::temp_dir().join(format!("computepool-{quant:?}.gguf"));
    if !path.exists() {
        write_gguf(&path, &SyntheticShape::half_billion(), quant, 1, |_, _| {})?;
    }
    Ok(path)
}

fn rate(tokens: usize, took: Duration) -> f64 {
    tokens as f64 / took.as_secs_f64()
}

fn open(engine: &mut Engine, id: u64, capacity: usize) -> Result<(), Box<dyn Error>> {
    let sampler = SamplerSetup { sampling: Sampling::default(), prompt: Vec::new() };
    Ok(engine.open(SequenceId(id), capacity, Some(sampler))?)
}

/// How long a prompt of `length` takes, sampling one token at its end.
fn prefill(engine: &mut Engine, length: usize) -> Result<Duration, Box<dyn Error>> {
    open(engine, 0, length)?;
    let vocab = engine.config().vocab_size as u32;
    let prompt: Vec<u32> = (0..length as u32).map(|i| (i * 7919 + 13) % vocab).collect();
    let started = Instant::now();
    for (i, chunk) in prompt.chunks(CHUNK).enumerate() {
        let position = i * CHUNK;
        let sample = position + chunk.len() == length;
        engine.advance(&[Step { sequence: SequenceId(0), position, input: StepInput::Tokens(chunk), sample }])?;
    }
    let took = started.elapsed();
    engine.release(SequenceId(0));
    Ok(took)
}

/// How long `steps` steps of `batch` sequences take, each sampled.
fn decode(engine: &mut Engine, batch: usize, steps: usize) -> Result<Duration, Box<dyn Error>> {
    for id in 0..batch as u64 {
        open(engine, id, steps)?;
    }
    let vocab = engine.config().vocab_size as u32;
    let started = Instant::now();
    for position in 0..steps {
        let inputs: Vec<[u32; 1]> =
            (0..batch as u32).map(|id| [(position as u32 * 31 + 5 + id * 77) % vocab]).collect();
        let steps: Vec<Step<'_>> = inputs
            .iter()
            .zip(0..)
            .map(|(input, id)| Step {
                sequence: SequenceId(id),
                position,
                input: StepInput::Tokens(input),
                sample: true,
            })
            .collect();
        engine.advance(&steps)?;
    }
    let took = started.elapsed();
    (0..batch as u64).for_each(|id| {
        engine.release(SequenceId(id));
    });
    Ok(took)
}
