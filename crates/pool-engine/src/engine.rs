use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use candle_core::{Device, Tensor};
use pool_models::{Activation, ModelConfig, TensorSource};
use pool_types::{LayerRange, Sampling, TokenChoice};

use crate::{
    attention::LayerCache,
    decoder::{Decoder, SequenceRows},
    errors::{AdvanceError, LoadError, OpenError, TruncateError},
    hidden::{decode_hidden, encode_hidden, hidden_bytes},
    ops,
    sampler::{self, TokenCounts},
    threads::{Crew, available_threads},
    weights::Weights,
};

/// How an engine is set up.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Which decoder layers it holds.
    pub layers: LayerRange,
    /// Compute threads: at least 1, at most the cores. The process must have been set up for as many
    /// ([`configure_threads`](crate::configure_threads)).
    pub threads: usize,
    /// What becomes of unquantised matrices at load; `None` computes them in f32.
    pub quantise: Option<Quantise>,
    /// The type of hidden states that come in and go out.
    pub wire: Activation,
    /// KV budget over all sequences, in tokens.
    pub kv_tokens: usize,
    /// The longest sequence in tokens; at most the model's `max_positions`.
    pub max_context: usize,
}

/// Quantisation of f32, f16 and bf16 matrices at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantise {
    /// 8-bit blocks of 32: 1.0625 bytes an element. Matrices whose rows are not whole blocks stay f32.
    Q8_0,
}

/// A sequence's name, given by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the exit shard needs to sample a sequence's tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerSetup {
    /// The request's parameters.
    pub sampling: Sampling,
    /// The prompt, for the repetition penalty.
    pub prompt: Vec<u32>,
}

/// What one sequence does in a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step<'a> {
    /// Which sequence.
    pub sequence: SequenceId,
    /// Position of the first row: the sequence's length.
    pub position: usize,
    /// The new rows.
    pub input: StepInput<'a>,
    /// At the exit: sample a token after the last row.
    pub sample: bool,
}

/// The rows of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepInput<'a> {
    /// Token ids, for the entry.
    Tokens(&'a [u32]),
    /// Hidden states, for every other shard.
    Hidden {
        /// How many rows.
        rows: usize,
        /// Their type: the engine's `wire`.
        dtype: Activation,
        /// `rows * hidden_size` elements, little endian.
        data: &'a [u8],
    },
}

impl StepInput<'_> {
    /// How many rows there are.
    pub fn rows(&self) -> usize {
        match self {
            StepInput::Tokens(tokens) => tokens.len(),
            StepInput::Hidden { rows, .. } => *rows,
        }
    }
}

/// What a step gave.
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutput {
    /// The step's rows for the next shard, in the engine's `wire` type.
    Hidden(Vec<u8>),
    /// The exit's sampled token.
    Token(TokenChoice),
    /// The exit was not asked to sample.
    Nothing,
}

/// What an engine costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of weights in memory, once every matrix has been used (candle keeps a re-ordered second
    /// copy of some quantised types).
    pub weight_bytes: u64,
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Bytes of KV cache a token takes in this shard.
    pub kv_bytes_per_token: u64,
}

struct Sequence {
    caches: Vec<LayerCache>,
    len: usize,
    capacity: usize,
    sampler: Option<Sampler>,
}

struct Sampler {
    sampling: Sampling,
    counts: TokenCounts,
    /// Tokens of the answer with their index in the sequence, so that they can be taken back.
    answer: Vec<(usize, u32)>,
}

/// One shard of a model. See the [crate documentation](crate).
pub struct Engine {
    config: Arc<ModelConfig>,
    options: EngineOptions,
    decoder: Decoder,
    bytes_read: u64,
    sequences: HashMap<SequenceId, Sequence>,
    reserved: usize,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("options", &self.options)
            .field("sequences", &self.sequences.len())
            .field("reserved", &self.reserved)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Reads the layer range's tensors from `source`, and no others.
    pub fn load(
        config: Arc<ModelConfig>,
        source: &dyn TensorSource,
        options: EngineOptions,
    ) -> Result<Engine, LoadError> {
        check_config(&config)?;
        if options.layers.end() > config.layers {
            return Err(LoadError::Layers { range: options.layers, layers: config.layers });
        }
        let available = available_threads();
        if options.threads == 0 || options.threads > available {
            return Err(LoadError::Threads { asked: options.threads, available });
        }
        if options.max_context == 0 || options.max_context > config.max_positions {
            return Err(LoadError::Context { asked: options.max_context, available: config.max_positions });
        }
        let before = source.bytes_read();
        let weights = Weights::new(source, options.quantise);
        let decoder = Decoder::load(&config, &weights, options.layers, Crew::new(options.threads))?;
        let bytes_read = source.bytes_read().saturating_sub(before);
        let weight_bytes = decoder.weight_bytes();
        tracing::info!(layers = %options.layers, threads = options.threads, bytes_read, weight_bytes, "loaded");
        Ok(Engine { config, options, decoder, bytes_read, sequences: HashMap::new(), reserved: 0 })
    }

    /// Whether this shard takes token ids.
    pub fn is_entry(&self) -> bool {
        self.options.layers.start() == 0
    }

    /// Whether this shard gives tokens.
    pub fn is_exit(&self) -> bool {
        self.options.layers.end() == self.config.layers
    }

    /// The model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How this engine was set up.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// What it costs.
    pub fn footprint(&self) -> Footprint {
        let per_layer = 2 * self.config.kv_heads * self.config.head_dim * size_of::<f32>();
        Footprint {
            weight_bytes: self.decoder.weight_bytes(),
            bytes_read: self.bytes_read,
            kv_bytes_per_token: u64::from(self.options.layers.len()) * per_layer as u64,
        }
    }

    /// Opens an empty sequence that will hold at most `capacity` tokens, reserved from the budget; its
    /// memory is taken as it grows. The exit needs `sampler` to sample; elsewhere it is ignored.
    pub fn open(&mut self, id: SequenceId, capacity: usize, sampler: Option<SamplerSetup>) -> Result<(), OpenError> {
        if self.sequences.contains_key(&id) {
            return Err(OpenError::Exists(id));
        }
        if capacity == 0 {
            return Err(OpenError::Empty);
        }
        if capacity > self.options.max_context {
            return Err(OpenError::ContextTooLong { needed: capacity, max: self.options.max_context });
        }
        if capacity > self.free_tokens() {
            return Err(OpenError::KvFull { needed: capacity, free: self.free_tokens() });
        }
        let sampler = match sampler {
            Some(setup) if self.is_exit() => Some(self.sampler(setup)?),
            _ => None,
        };
        // Empty caches hold no memory: making them cannot fail.
        let caches = self.decoder.caches().unwrap_or_default();
        self.reserved += capacity;
        self.sequences.insert(id, Sequence { caches, len: 0, capacity, sampler });
        Ok(())
    }

    fn sampler(&self, setup: SamplerSetup) -> Result<Sampler, OpenError> {
        setup.sampling.validate()?;
        let vocab = self.config.vocab_size;
        let mut tokens = setup.prompt.iter().chain(setup.sampling.logit_bias.keys());
        if let Some(token) = tokens.find(|t| **t as usize >= vocab) {
            return Err(OpenError::UnknownToken { token: *token, vocab });
        }
        Ok(Sampler { counts: TokenCounts::new(&setup.prompt), sampling: setup.sampling, answer: Vec::new() })
    }

    /// Tells the sampler of `id` which tokens of the answer were sampled elsewhere, so that penalties
    /// count them (a sequence that moved to this shard in mid-answer). `first` is the first one's index
    /// in the sequence. False when there is no such sequence or it has no sampler.
    pub fn resume_answer(&mut self, id: SequenceId, first: usize, tokens: &[u32]) -> bool {
        let Some(sampler) = self.sequences.get_mut(&id).and_then(|s| s.sampler.as_mut()) else { return false };
        for (i, token) in tokens.iter().enumerate() {
            sampler.counts.add(*token);
            sampler.answer.push((first + i, *token));
        }
        true
    }

    /// Closes a sequence: its memory and its reservation are free. False when there is none.
    pub fn release(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.remove(&id) else { return false };
        self.reserved -= sequence.capacity;
        true
    }

    /// Rolls a sequence back to its first `len` tokens; sampled tokens beyond are forgotten.
    pub fn truncate(&mut self, id: SequenceId, len: usize) -> Result<(), TruncateError> {
        let sequence = self.sequences.get_mut(&id).ok_or(TruncateError::Unknown(id))?;
        if len > sequence.len {
            return Err(TruncateError::Longer { sequence: id, len: sequence.len, asked: len });
        }
        sequence.len = len;
        if let Some(sampler) = &mut sequence.sampler {
            // The token with index `len` was sampled from the rows that stay.
            while let Some((_, token)) = sampler.answer.pop_if(|(index, _)| *index > len) {
                sampler.counts.take_back(token);
            }
        }
        Ok(())
    }

    /// How many tokens a sequence holds.
    pub fn len(&self, id: SequenceId) -> Option<usize> {
        self.sequences.get(&id).map(|s| s.len)
    }

    /// Whether no sequence is open.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Tokens of the KV budget that no sequence has reserved.
    pub fn free_tokens(&self) -> usize {
        self.options.kv_tokens - self.reserved
    }

    /// How many sequences are open.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Takes a ragged batch one step: each step's rows are appended to its sequence. One output for
    /// each step, in order. When it fails nothing was changed.
    pub fn advance(&mut self, steps: &[Step<'_>]) -> Result<Vec<StepOutput>, AdvanceError> {
        self.work(steps, |engine, steps, sequences, hidden| {
            if engine.is_exit() { engine.sample(steps, sequences, &hidden) } else { engine.send(steps, &hidden) }
        })
    }

    /// As [`advance`](Self::advance) at the exit, but gives every row's logits, `rows * vocab_size` for
    /// each step, and samples nothing: for tests, audits and the log-probabilities of prompts.
    pub fn score(&mut self, steps: &[Step<'_>]) -> Result<Vec<Vec<f32>>, AdvanceError> {
        self.work(steps, |engine, steps, _, hidden| {
            let Some(logits) = engine.decoder.logits(&hidden) else {
                return match steps.first() {
                    Some(step) => Err(AdvanceError::NoSampler { sequence: step.sequence }),
                    None => Ok(Vec::new()),
                };
            };
            let vocab = engine.config.vocab_size;
            Ok(ops::with_elements(&logits?, |logits| {
                let mut rest = logits;
                steps
                    .iter()
                    .map(|step| rest.split_off(..step.input.rows() * vocab).unwrap_or_default().to_vec())
                    .collect()
            })?)
        })
    }

    /// Checks the steps, takes their rows through the layers, and lets `finish` make the outputs of the
    /// last layer's hidden states. Lengths are moved only when all went well.
    fn work<T>(
        &mut self,
        steps: &[Step<'_>],
        finish: impl FnOnce(&Engine, &[Step<'_>], &mut [Sequence], Tensor) -> Result<Vec<T>, AdvanceError>,
    ) -> Result<Vec<T>, AdvanceError> {
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        self.check(steps)?;
        let hidden = self.receive(steps)?;
        // The batch's sequences leave the map while they are worked on.
        let mut sequences = Vec::with_capacity(steps.len());
        for step in steps {
            sequences.extend(self.sequences.remove(&step.sequence));
        }
        let mut rows: Vec<SequenceRows<'_>> = sequences
            .iter_mut()
            .zip(steps)
            .map(|(s, step)| SequenceRows {
                caches: &mut s.caches,
                start: s.len,
                rows: step.input.rows(),
                capacity: s.capacity,
            })
            .collect();
        let result = self
            .decoder
            .forward(hidden, &mut rows)
            .map_err(AdvanceError::Compute)
            .and_then(|hidden| finish(self, steps, &mut sequences, hidden));
        for (step, mut sequence) in steps.iter().zip(sequences) {
            if result.is_ok() {
                sequence.len += step.input.rows();
            }
            self.sequences.insert(step.sequence, sequence);
        }
        result
    }

    fn check(&self, steps: &[Step<'_>]) -> Result<(), AdvanceError> {
        let mut seen = HashSet::with_capacity(steps.len());
        for step in steps {
            let sequence = step.sequence;
            let open = self.sequences.get(&sequence).ok_or(AdvanceError::Unknown { sequence })?;
            if !seen.insert(sequence) {
                return Err(AdvanceError::Twice { sequence });
            }
            if step.position != open.len {
                return Err(AdvanceError::Position { sequence, len: open.len, position: step.position });
            }
            let rows = step.input.rows();
            if rows == 0 {
                return Err(AdvanceError::Empty { sequence });
            }
            let needed = open.len.saturating_add(rows);
            if needed > open.capacity {
                return Err(AdvanceError::Capacity { sequence, needed, capacity: open.capacity });
            }
            if step.sample && open.sampler.is_none() {
                return Err(AdvanceError::NoSampler { sequence });
            }
            match step.input {
                StepInput::Tokens(tokens) if self.is_entry() => {
                    let vocab = self.config.vocab_size;
                    if let Some(token) = tokens.iter().find(|t| **t as usize >= vocab) {
                        return Err(AdvanceError::UnknownToken { sequence, token: *token, vocab });
                    }
                }
                StepInput::Tokens(_) => return Err(AdvanceError::Input { sequence, expected: "hidden states" }),
                StepInput::Hidden { .. } if self.is_entry() => {
                    return Err(AdvanceError::Input { sequence, expected: "token ids" });
                }
                StepInput::Hidden { dtype, .. } if dtype != self.options.wire => {
                    return Err(AdvanceError::WireType { sequence, expected: self.options.wire, got: dtype });
                }
                StepInput::Hidden { .. } => {}
            }
        }
        Ok(())
    }

    /// The batch's rows on this shard's input side: `[rows, hidden]`.
    fn receive(&self, steps: &[Step<'_>]) -> Result<Tensor, AdvanceError> {
        let width = self.config.hidden_size;
        let mut tokens = Vec::new();
        let mut hidden = Vec::new();
        for step in steps {
            match step.input {
                StepInput::Tokens(ids) => tokens.extend_from_slice(ids),
                StepInput::Hidden { rows, dtype, data } => decode_hidden(data, rows * width, dtype, &mut hidden)
                    .map_err(|source| AdvanceError::Hidden { sequence: step.sequence, source })?,
            }
        }
        match self.decoder.embed(&tokens) {
            Some(rows) => Ok(rows?),
            None => {
                let rows = hidden.len() / width;
                Ok(Tensor::from_vec(hidden, (rows, width), &Device::Cpu)?)
            }
        }
    }

    /// The outputs of a shard that is not the exit.
    fn send(&self, steps: &[Step<'_>], hidden: &Tensor) -> Result<Vec<StepOutput>, AdvanceError> {
        let width = self.config.hidden_size;
        ops::with_elements(hidden, |elements| {
            let mut first = 0;
            steps
                .iter()
                .map(|step| {
                    let rows = &elements[first * width..(first + step.input.rows()) * width];
                    first += step.input.rows();
                    let bytes = encode_hidden(rows, self.options.wire)
                        .map_err(|source| AdvanceError::Hidden { sequence: step.sequence, source })?;
                    debug_assert_eq!(bytes.len(), hidden_bytes(rows.len(), self.options.wire));
                    Ok(StepOutput::Hidden(bytes))
                })
                .collect()
        })?
    }

    /// The exit's outputs: only the last row of each step that samples goes through the head.
    fn sample(
        &self,
        steps: &[Step<'_>],
        sequences: &mut [Sequence],
        hidden: &Tensor,
    ) -> Result<Vec<StepOutput>, AdvanceError> {
        let mut last_rows = Vec::new();
        let mut end = 0;
        for step in steps {
            end += step.input.rows();
            if step.sample {
                last_rows.push(end as u32 - 1);
            }
        }
        if last_rows.is_empty() {
            return Ok(steps.iter().map(|_| StepOutput::Nothing).collect());
        }
        let all = last_rows.len() == hidden.dim(0)?;
        let wanted = if all {
            hidden.clone()
        } else {
            hidden.index_select(&Tensor::new(last_rows.as_slice(), &Device::Cpu)?, 0)?
        };
        let Some(logits) = self.decoder.logits(&wanted) else {
            return Ok(steps.iter().map(|_| StepOutput::Nothing).collect());
        };
        let choices = ops::with_elements(&logits?, |logits| {
            let mut rows = logits.chunks_exact(self.config.vocab_size);
            let mut choices = Vec::with_capacity(steps.len());
            for (step, sequence) in steps.iter().zip(sequences.iter()) {
                choices.push(match (&sequence.sampler, step.sample.then(|| rows.next()).flatten()) {
                    (Some(sampler), Some(row)) => {
                        let index = sequence.len + step.input.rows();
                        let choice = sampler::sample(row, &sampler.sampling, &sampler.counts, index as u64)
                            .map_err(|source| AdvanceError::Sample { sequence: step.sequence, source })?;
                        Some((index, choice))
                    }
                    _ => None,
                });
            }
            Ok::<_, AdvanceError>(choices)
        })??;
        // All were chosen: only now is anything counted.
        Ok(choices
            .into_iter()
            .zip(sequences)
            .map(|(choice, sequence)| match (choice, &mut sequence.sampler) {
                (Some((index, choice)), Some(sampler)) => {
                    sampler.counts.add(choice.token);
                    sampler.answer.push((index, choice.token));
                    StepOutput::Token(choice)
                }
                _ => StepOutput::Nothing,
            })
            .collect())
    }
}

/// What the kernels rely on. (`pool-models` checks a configuration in full.)
fn check_config(config: &ModelConfig) -> Result<(), LoadError> {
    let sizes = [
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.layers as usize,
    ];
    if sizes.contains(&0) {
        return Err(LoadError::Config("a size is zero"));
    }
    if !config.heads.is_multiple_of(config.kv_heads) {
        return Err(LoadError::Config("the key/value heads do not divide the heads"));
    }
    if !config.head_dim.is_multiple_of(2) {
        return Err(LoadError::Config("the head width is odd"));
    }
    if config.windows.contains(&Some(0)) {
        return Err(LoadError::Config("an attention window is zero"));
    }
    let sane = |v: f64| v.is_finite() && v > 0.0;
    if !sane(config.rope.theta) || !config.norm_epsilon.is_finite() || config.norm_epsilon < 0.0 {
        return Err(LoadError::Config("rope theta or norm epsilon is not a usable number"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_can_move_to_its_own_thread() {
        fn is_send<T: Send>() {}
        is_send::<Engine>();
    }
}
