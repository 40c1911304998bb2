use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How the exit shard turns logits into the next token. The defaults are OpenAI's.
///
/// The order of application is: logit bias, then repetition, presence and frequency penalties, then
/// temperature, top-k, top-p, min-p, and a seeded Gumbel-max draw over what is left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// 0 takes the most likely token; otherwise logits are divided by it. `[0, 2]`.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set whose probability reaches `top_p`. `(0, 1]`.
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the most likely one. `[0, 1]`.
    pub min_p: f32,
    /// Divide positive and multiply negative logits of tokens seen in prompt or answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token already in the answer. `[-2, 2]`.
    pub presence_penalty: f32,
    /// Subtracted per occurrence from the logit of every token already in the answer. `[-2, 2]`.
    pub frequency_penalty: f32,
    /// Added to single logits. `[-100, 100]`.
    pub logit_bias: BTreeMap<u32, f32>,
    /// The seed of the Gumbel noise; noise is a function of (seed, choice, position, token).
    pub seed: u64,
    /// Which of a request's `n` choices this is; 0 is the request itself.
    pub choice: u32,
    /// `None`: no log-probabilities. `Some(n)`: the chosen token's and those of the `n` most likely (at most 20).
    pub logprobs: Option<u8>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
            choice: 0,
            logprobs: None,
        }
    }
}

/// A sampling parameter outside its bounds.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{parameter} must be between {min} and {max}, got {value}")]
pub struct SamplingError {
    /// The parameter's name in the API.
    pub parameter: &'static str,
    /// Smallest value allowed.
    pub min: f32,
    /// Largest value allowed.
    pub max: f32,
    /// What was given.
    pub value: f32,
}

impl Sampling {
    /// The most tokens a request may bias.
    pub const MAX_LOGIT_BIAS: usize = 1024;
    /// The most alternatives per token.
    pub const MAX_LOGPROBS: u8 = 20;

    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every bound; NaN is outside all of them.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |parameter, value: f32, min: f32, max: f32| {
            if value >= min && value <= max { Ok(()) } else { Err(SamplingError { parameter, min, max, value }) }
        };
        check("temperature", self.temperature, 0.0, 2.0)?;
        check("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        check("min_p", self.min_p, 0.0, 1.0)?;
        check("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        check("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        check("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        check("logit_bias entries", self.logit_bias.len() as f32, 0.0, Self::MAX_LOGIT_BIAS as f32)?;
        for bias in self.logit_bias.values() {
            check("logit_bias", *bias, -100.0, 100.0)?;
        }
        check("top_logprobs", f32::from(self.logprobs.unwrap_or(0)), 0.0, f32::from(Self::MAX_LOGPROBS))
    }
}

/// Why an answer is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop string appeared.
    Stop,
    /// The answer reached its token limit or the context its end.
    Length,
}

/// A sampled token and, when asked for, what the model thought of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenChoice {
    /// The token id.
    pub token: u32,
    /// Natural log of its probability under the unmodified distribution; NaN unless asked for.
    pub logprob: f32,
    /// The most likely tokens with their log-probabilities, most likely first.
    pub top: Vec<(u32, f32)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_every_bound_is_checked() {
        Sampling::default().validate().unwrap();
        Sampling::greedy().validate().unwrap();
        let bad = [
            Sampling { temperature: f32::NAN, ..Sampling::default() },
            Sampling { temperature: 2.1, ..Sampling::default() },
            Sampling { top_p: 0.0, ..Sampling::default() },
            Sampling { min_p: 1.5, ..Sampling::default() },
            Sampling { repetition_penalty: 0.0, ..Sampling::default() },
            Sampling { presence_penalty: -3.0, ..Sampling::default() },
            Sampling { frequency_penalty: 3.0, ..Sampling::default() },
            Sampling { logit_bias: BTreeMap::from([(1, 101.0)]), ..Sampling::default() },
            Sampling { logprobs: Some(21), ..Sampling::default() },
        ];
        for sampling in bad {
            assert!(sampling.validate().is_err(), "{sampling:?} must be refused");
        }
    }
}
