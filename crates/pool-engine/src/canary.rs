//! The canary: a known input through the loaded layers, before anybody depends on them.
//!
//! It goes through twice, at once and row by row. Whatever is wrong with the weights, the memory or the kernels shows in
//! numbers that are none, in numbers that are all alike, or in two answers to one question. How long a row took is the
//! speed of these layers on this machine, measured and not claimed.

use std::time::Instant;

use pool_types::Sampling;
use thiserror::Error;

use crate::{
    engine::{Engine, SamplerSetup, SequenceId, Step, StepInput, StepOutput},
    errors::{AdvanceError, OpenError},
    hidden::{HiddenError, decode_hidden, encode_hidden},
};

/// Rows of the known input.
const ROWS: usize = 8;
/// How alike the two answers must be: the cosine of the angle between them.
const ALIKE: f64 = 0.99;

/// What the canary measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Canary {
    /// Rows that went through.
    pub rows: usize,
    /// Seconds they took at once.
    pub prefill_seconds: f64,
    /// Seconds that one of them takes alone: the median.
    pub token_seconds: f64,
}

/// Layers that must not serve.
#[derive(Debug, Error)]
pub enum CanaryError {
    /// The engine has no room for it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The engine cannot compute.
    #[error("{0}")]
    Compute(#[source] AdvanceError),
    /// The answer holds infinite numbers, or none.
    #[error("the layers give no numbers")]
    NotFinite,
    /// All numbers of the answer are the same.
    #[error("the layers give the same number everywhere")]
    Flat,
    /// Twice the same question, two answers.
    #[error("the layers give two answers to one question (their likeness is {0:.4})")]
    Differs(f64),
}

impl From<AdvanceError> for CanaryError {
    fn from(error: AdvanceError) -> Self {
        match error {
            AdvanceError::Hidden { source: HiddenError::NotFinite(_), .. } => Self::NotFinite,
            error => Self::Compute(error),
        }
    }
}

/// The known input: token ids, or hidden states in the engine's wire type.
enum Known {
    Tokens(Vec<u32>),
    Hidden(Vec<u8>),
}

impl Engine {
    /// Sends the canary; `now` tells how long it takes. Nothing is left of it afterwards.
    pub fn canary(&mut self, now: fn() -> Instant) -> Result<Canary, CanaryError> {
        let rows = ROWS.min(self.options().max_context).min(self.free_tokens());
        let known = self.known(rows)?;
        let (at_once, whole) = self.through(rows, &known, &[rows], now)?;
        let (singly, mut each) = self.through(rows, &known, &vec![1; rows], now)?;
        judge(&at_once, &singly)?;
        each.sort_by(f64::total_cmp);
        let (prefill_seconds, token_seconds) = (whole.iter().sum(), each.get(rows / 2).copied().unwrap_or_default());
        Ok(Canary { rows, prefill_seconds, token_seconds })
    }

    fn known(&self, rows: usize) -> Result<Known, CanaryError> {
        // Any numbers do that are the same every time and not alike: a multiplicative sequence.
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        if self.is_entry() {
            let vocabulary = u32::try_from(self.config().vocab_size).unwrap_or(u32::MAX).max(1);
            return Ok(Known::Tokens((0..rows).map(|_| next() % vocabulary).collect()));
        }
        let values: Vec<f32> =
            (0..rows * self.config().hidden_size).map(|_| next() as f32 / (1 << 23) as f32 - 1.0).collect();
        Ok(Known::Hidden(encode_hidden(&values, self.options().wire).map_err(|_| CanaryError::NotFinite)?))
    }

    /// Takes the known input through in parts; gives the answer after the last row, and the seconds of each part.
    fn through(
        &mut self,
        rows: usize,
        known: &Known,
        parts: &[usize],
        now: fn() -> Instant,
    ) -> Result<(Vec<f32>, Vec<f64>), CanaryError> {
        let id = SequenceId(u64::MAX);
        let sampler = SamplerSetup { sampling: Sampling::greedy(), prompt: Vec::new() };
        self.open(id, rows, Some(sampler))?;
        let answer = self.parts_through(id, known, parts, now);
        self.release(id);
        answer
    }

    fn parts_through(
        &mut self,
        id: SequenceId,
        known: &Known,
        parts: &[usize],
        now: fn() -> Instant,
    ) -> Result<(Vec<f32>, Vec<f64>), CanaryError> {
        let dtype = self.options().wire;
        let width = self.config().hidden_size;
        let (mut position, mut answer, mut taken) = (0, Vec::new(), Vec::with_capacity(parts.len()));
        for rows in parts {
            let input = match known {
                Known::Tokens(tokens) => StepInput::Tokens(&tokens[position..position + rows]),
                Known::Hidden(bytes) => {
                    let row = crate::hidden_bytes(width, dtype);
                    StepInput::Hidden { rows: *rows, dtype, data: &bytes[position * row..(position + rows) * row] }
                }
            };
            let step = Step { sequence: id, position, input, sample: false };
            let began = now();
            if self.is_exit() {
                let logits = self.score(&[step])?.pop().unwrap_or_default();
                taken.push((now() - began).as_secs_f64());
                answer = logits.rchunks(self.config().vocab_size).next().map(<[f32]>::to_vec).unwrap_or_default();
            } else {
                let outputs = self.advance(&[step])?;
                taken.push((now() - began).as_secs_f64());
                let Some(StepOutput::Hidden(bytes)) = outputs.first() else { return Err(CanaryError::NotFinite) };
                answer.clear();
                let mut all = Vec::new();
                decode_hidden(bytes, rows * width, dtype, &mut all).map_err(|_| CanaryError::NotFinite)?;
                answer = all.split_off(all.len() - width);
            }
            position += rows;
        }
        Ok((answer, taken))
    }
}

fn judge(at_once: &[f32], singly: &[f32]) -> Result<(), CanaryError> {
    if at_once.iter().chain(singly).any(|value| !value.is_finite()) {
        return Err(CanaryError::NotFinite);
    }
    for answer in [at_once, singly] {
        if answer.iter().all(|value| Some(value) == answer.first()) {
            return Err(CanaryError::Flat);
        }
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let likeness = dot(at_once, singly) / (dot(at_once, at_once) * dot(singly, singly)).sqrt();
    if likeness >= ALIKE { Ok(()) } else { Err(CanaryError::Differs(likeness)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_what_they_are() {
        let right = [1.0, -2.0, 0.5];
        assert!(judge(&right, &[1.001, -2.0, 0.5]).is_ok(), "kernels may round otherwise");
        assert!(matches!(judge(&right, &[1.0, f32::NAN, 0.5]), Err(CanaryError::NotFinite)));
        assert!(matches!(judge(&[0.0; 3], &[0.0; 3]), Err(CanaryError::Flat)), "memory that was never written");
        assert!(matches!(judge(&right, &[-2.0, 1.0, 0.5]), Err(CanaryError::Differs(_))));
    }
}
