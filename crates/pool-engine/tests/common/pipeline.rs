//! A coalition in one process: engines that hold the model's layers in order, hidden states passed on as bytes.

use std::sync::{Arc, Once};

use pool_engine::{
    Engine, EngineOptions, Quantise, SamplerSetup, SequenceId, Step, StepInput, StepOutput, configure_threads,
};
use pool_models::{Activation, Model};
use pool_types::{LayerRange, Sampling, TokenChoice};

/// Into how many shards a model is split.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Parts {
    Number(u32),
    /// A shard for each layer.
    Layers,
}

impl Parts {
    fn ranges(self, layers: u32) -> Vec<LayerRange> {
        let parts = match self {
            Parts::Number(parts) => parts,
            Parts::Layers => layers,
        };
        LayerRange::new(0, layers).unwrap().split_evenly(parts)
    }
}

/// Some tokens of a sequence, from `position` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk<'a> {
    pub(crate) sequence: SequenceId,
    pub(crate) position: usize,
    pub(crate) tokens: &'a [u32],
}

/// Every row's logits of one chunk.
pub(crate) struct Logits {
    values: Vec<f32>,
    vocabulary: usize,
}

impl Logits {
    /// The logits after the chunk's `row`-th token.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.vocabulary..(row + 1) * self.vocabulary]
    }
}

/// The shards of one model, in order.
pub(crate) struct Pipeline {
    shards: Vec<Engine>,
    wire: Activation,
}

impl Pipeline {
    pub(crate) fn load(model: &Model, parts: Parts, wire: Activation, quantise: Option<Quantise>) -> Self {
        // Tests already run side by side; more threads that spin for work would only slow each other down.
        static ONE_THREAD: Once = Once::new();
        ONE_THREAD.call_once(|| assert_eq!(configure_threads(1), 1));
        let ranges = parts.ranges(model.config.layers);
        let load = |layers| {
            let options = EngineOptions {
                layers,
                threads: 1,
                quantise,
                wire,
                kv_tokens: 1024,
                max_context: model.config.max_positions.min(512),
            };
            Engine::load(Arc::clone(&model.config), &*model.source, options)
                .unwrap_or_else(|error| panic!("{}, layers {layers}: {error}", model.name))
        };
        Self { shards: ranges.into_iter().map(load).collect(), wire }
    }

    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Opens a sequence on every shard; the exit samples greedily with log-probabilities.
    pub(crate) fn open(&mut self, sequence: SequenceId, capacity: usize, prompt: &[u32]) {
        let sampling = Sampling { logprobs: Some(8), ..Sampling::greedy() };
        for shard in &mut self.shards {
            let setup = SamplerSetup { sampling: sampling.clone(), prompt: prompt.to_vec() };
            shard.open(sequence, capacity, Some(setup)).unwrap();
        }
    }

    pub(crate) fn release(&mut self, sequence: SequenceId) {
        for shard in &mut self.shards {
            assert!(shard.release(sequence), "every shard has the sequence");
        }
    }

    pub(crate) fn truncate(&mut self, sequence: SequenceId, len: usize) {
        for shard in &mut self.shards {
            shard.truncate(sequence, len).unwrap();
        }
    }

    /// Advances a batch through all shards and gives the exit's logits, chunk by chunk.
    pub(crate) fn score(&mut self, chunks: &[Chunk<'_>]) -> Vec<Logits> {
        let hidden = self.before_exit(chunks);
        let wire = self.wire;
        let exit = self.shards.last_mut().unwrap();
        let vocabulary = exit.config().vocab_size;
        let scores = exit.score(&steps(chunks, hidden.as_deref(), wire, false)).unwrap();
        scores.into_iter().map(|values| Logits { values, vocabulary }).collect()
    }

    /// Advances a batch through all shards and gives the token sampled after each chunk.
    pub(crate) fn sample(&mut self, chunks: &[Chunk<'_>]) -> Vec<TokenChoice> {
        let hidden = self.before_exit(chunks);
        let wire = self.wire;
        let exit = self.shards.last_mut().unwrap();
        let outputs = exit.advance(&steps(chunks, hidden.as_deref(), wire, true)).unwrap();
        let token = |output| match output {
            StepOutput::Token(choice) => choice,
            other => panic!("the exit was asked to sample and gave {other:?}"),
        };
        outputs.into_iter().map(token).collect()
    }

    /// The hidden states that reach the exit; `None` when the entry is the exit.
    fn before_exit(&mut self, chunks: &[Chunk<'_>]) -> Option<Vec<Vec<u8>>> {
        let wire = self.wire;
        let (_, before) = self.shards.split_last_mut().unwrap();
        let mut hidden: Option<Vec<Vec<u8>>> = None;
        for shard in before {
            let outputs = shard.advance(&steps(chunks, hidden.as_deref(), wire, false)).unwrap();
            let bytes = |output| match output {
                StepOutput::Hidden(bytes) => bytes,
                other => panic!("a shard before the exit gave {other:?}"),
            };
            hidden = Some(outputs.into_iter().map(bytes).collect());
        }
        hidden
    }
}

fn steps<'a>(chunks: &[Chunk<'a>], hidden: Option<&'a [Vec<u8>]>, dtype: Activation, sample: bool) -> Vec<Step<'a>> {
    let step = |(index, chunk): (usize, &Chunk<'a>)| {
        let input = match hidden {
            None => StepInput::Tokens(chunk.tokens),
            Some(hidden) => StepInput::Hidden { rows: chunk.tokens.len(), dtype, data: &hidden[index] },
        };
        Step { sequence: chunk.sequence, position: chunk.position, input, sample }
    };
    chunks.iter().enumerate().map(step).collect()
}
