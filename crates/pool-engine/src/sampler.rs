//! From logits to a token. Pure: the same logits, parameters, history and position give the same token
//! on every machine, so anyone who holds the logits can re-check a choice.
//!
//! The order is that of [`Sampling`]: logit bias, then repetition, presence and frequency penalties;
//! then temperature, top-k, top-p, min-p (each on what the one before has left); then a draw by the
//! Gumbel-max trick: the token with the largest `logit / T + g` wins, where `g` is Gumbel noise and a
//! function of (seed, choice, position, token) alone. That is a draw from the softmax distribution.
//!
//! **Noise.** With `mix` the finaliser of SplitMix64 (Steele, Lea and Flood, 2014) and all arithmetic
//! modulo 2^64:
//! ```text
//! GOLDEN = 0x9e3779b97f4a7c15
//! key = mix(mix(mix(seed + GOLDEN) + choice + GOLDEN) + position + GOLDEN)
//! u   = ((mix(key + (token + 1) * GOLDEN) >> 11) + 1/2) / 2^53
//! g   = -ln(-ln(u))                                               in f64
//! ```
//! Equal scores go to the smaller token id, everywhere. A bias of -100 or less bans a token.

use std::{
    borrow::Cow,
    cmp::Ordering,
    collections::{HashMap, HashSet},
};

use pool_types::{Sampling, TokenChoice};
use thiserror::Error;

use crate::simd;

/// Why no token was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SampleError {
    /// A logit is infinite or not a number.
    #[error("the logits are not all finite numbers")]
    NotFinite,
    /// There are no logits, or every token is banned.
    #[error("no token is left to choose from")]
    NothingLeft,
    /// A bias names a token outside the vocabulary.
    #[error("token {token} has a bias but is not in the vocabulary of {vocab}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// How many logits there are.
        vocab: usize,
    },
}

/// Which tokens a sequence has seen: the prompt's and, with how often, the answer's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    prompt: HashSet<u32>,
    answer: HashMap<u32, u32>,
}

impl TokenCounts {
    /// The counts before the first token of an answer.
    pub fn new(prompt: &[u32]) -> Self {
        Self { prompt: prompt.iter().copied().collect(), answer: HashMap::new() }
    }

    /// Counts a token of the answer.
    pub fn add(&mut self, token: u32) {
        *self.answer.entry(token).or_default() += 1;
    }

    /// Undoes one [`add`](Self::add).
    pub fn take_back(&mut self, token: u32) {
        if let Some(count) = self.answer.get_mut(&token) {
            *count -= 1;
            if *count == 0 {
                self.answer.remove(&token);
            }
        }
    }
}

/// Chooses the token with index `position` of a sequence from the `logits` of the row before it.
pub fn sample(
    logits: &[f32],
    sampling: &Sampling,
    history: &TokenCounts,
    position: u64,
) -> Result<TokenChoice, SampleError> {
    if !simd::vectorised!(simd::all_finite(logits)) {
        return Err(SampleError::NotFinite);
    }
    let scores = adjusted(logits, sampling, history)?;
    let best = most_likely(&scores).ok_or(SampleError::NothingLeft)?;
    let token = if sampling.temperature == 0.0 { best } else { draw(&scores, best, sampling, position) };
    let (logprob, top) = match sampling.logprobs {
        None => (f32::NAN, Vec::new()),
        Some(n) => {
            let total = log_sum_exp(logits);
            let logprob = |token: u32| (f64::from(logits[token as usize]) - total) as f32;
            let n = usize::from(n.min(Sampling::MAX_LOGPROBS));
            (logprob(token), largest(logits, n).into_iter().map(|t| (t, logprob(t))).collect())
        }
    };
    Ok(TokenChoice { token, logprob, top })
}

/// The Gumbel noise of one token: see the [module documentation](self).
pub fn gumbel_noise(seed: u64, choice: u32, position: u64, token: u32) -> f64 {
    gumbel(uniform(noise_key(seed, choice, position), token))
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64.
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn noise_key(seed: u64, choice: u32, position: u64) -> u64 {
    let key = mix(seed.wrapping_add(GOLDEN));
    let key = mix(key.wrapping_add(u64::from(choice)).wrapping_add(GOLDEN));
    mix(key.wrapping_add(position).wrapping_add(GOLDEN))
}

/// A number in (0, 1) for each token.
fn uniform(key: u64, token: u32) -> f64 {
    let bits = mix(key.wrapping_add((u64::from(token) + 1).wrapping_mul(GOLDEN))) >> 11;
    (bits as f64 + 0.5) / (1u64 << 53) as f64
}

fn gumbel(u: f64) -> f64 {
    -(-u.ln()).ln()
}

/// The logits with bias and penalties; banned tokens at negative infinity. Copies only what changes.
fn adjusted<'a>(logits: &'a [f32], sampling: &Sampling, history: &TokenCounts) -> Result<Cow<'a, [f32]>, SampleError> {
    let mut scores = Cow::Borrowed(logits);
    for (&token, &bias) in &sampling.logit_bias {
        let vocab = logits.len();
        let score = scores.to_mut().get_mut(token as usize).ok_or(SampleError::UnknownToken { token, vocab })?;
        *score = if bias <= -100.0 { f32::NEG_INFINITY } else { *score + bias };
    }
    let penalty = sampling.repetition_penalty;
    if penalty != 1.0 && !(history.prompt.is_empty() && history.answer.is_empty()) {
        let scores = scores.to_mut();
        for token in history.prompt.iter().chain(history.answer.keys().filter(|t| !history.prompt.contains(t))) {
            if let Some(score) = scores.get_mut(*token as usize) {
                *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
            }
        }
    }
    let (presence, frequency) = (sampling.presence_penalty, sampling.frequency_penalty);
    if (presence != 0.0 || frequency != 0.0) && !history.answer.is_empty() {
        let scores = scores.to_mut();
        for (token, count) in &history.answer {
            if let Some(score) = scores.get_mut(*token as usize) {
                *score -= presence + frequency * *count as f32;
            }
        }
    }
    Ok(scores)
}

/// The largest score's token, the first of equals; `None` when nothing is above negative infinity.
fn most_likely(scores: &[f32]) -> Option<u32> {
    let largest = simd::vectorised!(simd::max(scores));
    if largest == f32::NEG_INFINITY {
        return None;
    }
    scores.iter().position(|s| *s == largest).map(|i| i as u32)
}

/// More likely first; equals by token id.
fn by_score(scores: &[f32]) -> impl Fn(&u32, &u32) -> Ordering {
    |a, b| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b))
}

/// The `n` tokens of the largest scores, most likely first.
fn largest(scores: &[f32], n: usize) -> Vec<u32> {
    let order = by_score(scores);
    let mut kept: Vec<u32> = Vec::with_capacity(n + 1);
    let mut threshold = f32::NEG_INFINITY;
    for (token, score) in scores.iter().enumerate() {
        // An equal score has a larger id, so it loses: strictly greater, once there are enough.
        if n == 0 || (kept.len() == n && *score <= threshold) {
            continue;
        }
        let token = token as u32;
        let at = kept.partition_point(|k| order(k, &token) == Ordering::Less);
        kept.insert(at, token);
        kept.truncate(n);
        threshold = scores[kept[kept.len() - 1] as usize];
    }
    kept
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = simd::vectorised!(simd::max(logits));
    let mut run = Vec::new();
    let sum: f64 = logits
        .chunks(1024)
        .map(|chunk| {
            run.clear();
            run.extend_from_slice(chunk);
            f64::from(simd::vectorised!(simd::exp_shifted(&mut run, largest)))
        })
        .sum();
    f64::from(largest) + sum.ln()
}

/// Temperature, filters and the draw. `best` is the most likely token.
fn draw(scores: &[f32], best: u32, sampling: &Sampling, position: u64) -> u32 {
    let top = scores[best as usize];
    let temperature = f64::from(sampling.temperature);
    let scaled = |token: u32| (f64::from(scores[token as usize]) - f64::from(top)) / temperature;
    let key = noise_key(sampling.seed, sampling.choice, position);

    let filtered = sampling.top_k > 0 && (sampling.top_k as usize) < scores.len() || sampling.top_p < 1.0;
    let mut winner = (f64::NEG_INFINITY, best);
    let mut consider = |token: u32, scaled: f64, u: f64| {
        let score = scaled + gumbel(u);
        if score > winner.0 || (score == winner.0 && token < winner.1) {
            winner = (score, token);
        }
        winner.0
    };
    // Relative to the most likely token, in logits over temperature.
    let floor = if sampling.min_p > 0.0 { f64::from(sampling.min_p).ln() } else { f64::NEG_INFINITY };

    if filtered {
        for token in nucleus(scores, best, sampling) {
            let scaled = scaled(token);
            if scaled >= floor {
                consider(token, scaled, uniform(key, token));
            }
        }
        return winner.1;
    }

    // Over a whole vocabulary most tokens cannot win whatever their noise; two logarithms are spent on
    // the others only. A token wins when -ln(u) < e^(scaled - best so far), and 1 - u <= -ln(u).
    let mut best_so_far = consider(best, 0.0, uniform(key, best));
    let mut bar = (-best_so_far).exp();
    let weights = relative_weights(scores, top, sampling.temperature);
    for (token, weight) in weights.iter().enumerate() {
        // Noise lies in (-3.7, 36.8): what is 80 below the most likely token (weight 0 or nearly) never wins.
        if *weight == 0.0 {
            continue;
        }
        let token = token as u32;
        let u = uniform(key, token);
        if 1.0 - u > f64::from(*weight) * bar * 1.000_01 {
            continue;
        }
        let scaled = scaled(token);
        if scaled >= floor {
            let now = consider(token, scaled, u);
            if now > best_so_far {
                best_so_far = now;
                bar = (-now).exp();
            }
        }
    }
    winner.1
}

/// `e^((score - top) / temperature)` within a few units in the last place; 0 below e^-87.
fn relative_weights(scores: &[f32], top: f32, temperature: f32) -> Vec<f32> {
    let inverse = 1.0 / temperature.max(f32::MIN_POSITIVE);
    let mut weights = vec![0f32; scores.len()];
    simd::vectorised!({
        for (w, s) in weights.iter_mut().zip(scores) {
            // The most likely token's difference is 0 and must stay 0 for any temperature.
            let below = *s - top;
            *w = if below == 0.0 { 1.0 } else { simd::exp(below * inverse) };
        }
    });
    weights
}

/// The tokens that top-k, then top-p leave, most likely first.
fn nucleus(scores: &[f32], best: u32, sampling: &Sampling) -> Vec<u32> {
    let order = by_score(scores);
    let top = scores[best as usize];
    let weights = relative_weights(scores, top, sampling.temperature);
    let mut tokens: Vec<u32> = (0..scores.len() as u32).filter(|t| scores[*t as usize] > f32::NEG_INFINITY).collect();
    let top_k = sampling.top_k as usize;
    if top_k > 0 && top_k < tokens.len() {
        tokens.select_nth_unstable_by(top_k - 1, &order);
        tokens.truncate(top_k);
    }
    if sampling.top_p >= 1.0 {
        return tokens;
    }
    let weight = |token: &u32| f64::from(weights[*token as usize]);
    let target = f64::from(sampling.top_p) * tokens.iter().map(weight).sum::<f64>();
    // Sorted from the top in growing runs, until the mass is reached: the whole vocabulary is seldom needed.
    let mut reached = 0.0;
    let mut sorted = 0;
    let mut run = 128;
    while sorted < tokens.len() {
        let rest = &mut tokens[sorted..];
        let take = run.min(rest.len());
        if take < rest.len() {
            rest.select_nth_unstable_by(take - 1, &order);
        }
        rest[..take].sort_unstable_by(&order);
        for (i, token) in rest[..take].iter().enumerate() {
            reached += weight(token);
            if reached >= target {
                tokens.truncate(sorted + i + 1);
                return tokens;
            }
        }
        sorted += take;
        run *= 4;
    }
    tokens
}

#[cfg(test)]
mod tests;
