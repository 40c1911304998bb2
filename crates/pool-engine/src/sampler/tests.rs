use std::collections::BTreeMap;

use super::*;

/// A seeded stream of logits in (-scale, scale).
fn logits(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    (0..n as u32).map(|t| (uniform(noise_key(seed, 7, 7), t) as f32 * 2.0 - 1.0) * scale).collect()
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|l| (f64::from(l - top) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

fn token(logits: &[f32], sampling: &Sampling, position: u64) -> u32 {
    sample(logits, sampling, &TokenCounts::default(), position).unwrap().token
}

fn counts(logits: &[f32], sampling: &Sampling, draws: u64) -> Vec<u64> {
    let mut counts = vec![0; logits.len()];
    (0..draws).for_each(|position| counts[token(logits, sampling, position) as usize] += 1);
    counts
}

/// The chi-square statistic of `counts` against `expected` probabilities, with its degrees of freedom.
fn chi_square(counts: &[u64], expected: &[f64]) -> (f64, f64) {
    let draws = counts.iter().sum::<u64>() as f64;
    let mut statistic = 0.0;
    let mut cells = 0.0;
    for (count, p) in counts.iter().zip(expected) {
        if *p == 0.0 {
            assert_eq!(*count, 0, "a token without probability was drawn");
        } else {
            statistic += (*count as f64 - p * draws).powi(2) / (p * draws);
            cells += 1.0;
        }
    }
    (statistic, cells - 1.0)
}

/// Far beyond chance: mean plus six standard deviations of the chi-square distribution.
fn plausible((statistic, freedom): (f64, f64)) -> bool {
    statistic < freedom + 6.0 * (2.0 * freedom).sqrt()
}

#[test]
fn draws_follow_the_softmax_at_any_temperature() {
    for (case, temperature) in [0.5f32, 1.0, 1.7].into_iter().enumerate() {
        let logits = logits(case as u64, 24, 2.0);
        let sampling = Sampling { temperature, seed: 11 + case as u64, ..Sampling::default() };
        let result = chi_square(&counts(&logits, &sampling, 20_000), &softmax(&logits, f64::from(temperature)));
        assert!(plausible(result), "temperature {temperature}: chi-square {result:?}");
    }
}

#[test]
fn seeds_choices_and_positions_draw_independently() {
    let logits = logits(3, 8, 1.0);
    let mut counts_by_seed = vec![0; 8];
    let mut counts_by_choice = vec![0; 8];
    for i in 0..20_000u32 {
        let by_seed = Sampling { seed: u64::from(i), ..Sampling::default() };
        counts_by_seed[token(&logits, &by_seed, 5) as usize] += 1;
        let by_choice = Sampling { seed: 1, choice: i, ..Sampling::default() };
        counts_by_choice[token(&logits, &by_choice, 5) as usize] += 1;
    }
    let expected = softmax(&logits, 1.0);
    assert!(plausible(chi_square(&counts_by_seed, &expected)));
    assert!(plausible(chi_square(&counts_by_choice, &expected)));
}

#[test]
fn the_shortcut_over_a_whole_vocabulary_gives_the_documented_argmax() {
    let logits = logits(9, 5_000, 12.0);
    for position in 0..200 {
        for temperature in [0.3, 1.0, 2.0] {
            let sampling = Sampling { temperature, seed: 5, choice: 2, ..Sampling::default() };
            let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let expected = (0..5_000u32)
                .map(|t| {
                    let scaled = (f64::from(logits[t as usize]) - f64::from(top)) / f64::from(temperature);
                    (scaled + gumbel_noise(5, 2, position, t), t)
                })
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .unwrap();
            assert_eq!(token(&logits, &sampling, position), expected.1, "position {position}");
        }
    }
}

#[test]
fn noise_is_what_the_documentation_says() {
    // Reference values of SplitMix64 with seed 0: its first outputs are mix(GOLDEN), mix(2 GOLDEN), ...
    assert_eq!(mix(GOLDEN), 0xe220_a839_7b1d_cdaf);
    assert_eq!(mix(GOLDEN.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
    // Golden: a change here would make past choices impossible to re-check.
    assert_eq!(noise_key(0, 0, 0), mix(mix(mix(GOLDEN).wrapping_add(GOLDEN)).wrapping_add(GOLDEN)));
    let mean = (0..100_000).map(|t| gumbel_noise(1, 0, 3, t)).sum::<f64>() / 100_000.0;
    assert!((mean - 0.577_215_66).abs() < 0.02, "the mean of Gumbel noise is Euler's constant, got {mean}");
}

#[test]
fn top_k_keeps_the_k_most_likely_and_redistributes_their_mass() {
    let logits = logits(4, 40, 2.0);
    let sampling = Sampling { top_k: 5, seed: 2, ..Sampling::default() };
    let kept = largest(&logits, 5);
    let mut expected = softmax(&logits, 1.0);
    (0..40u32).filter(|t| !kept.contains(t)).for_each(|t| expected[t as usize] = 0.0);
    let mass: f64 = expected.iter().sum();
    expected.iter_mut().for_each(|p| *p /= mass);
    assert!(plausible(chi_square(&counts(&logits, &sampling, 20_000), &expected)));
    let all = Sampling { top_k: 40, seed: 2, ..Sampling::default() };
    let off = Sampling { seed: 2, ..Sampling::default() };
    assert!((0..100).all(|p| token(&logits, &all, p) == token(&logits, &off, p)), "top-k of all is off");
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_it() {
    for (seed, n, top_p) in [(1, 30, 0.5f32), (2, 30, 0.9), (3, 3_000, 0.95), (4, 3_000, 0.999), (5, 300, 1e-6)] {
        let logits = logits(seed, n, 4.0);
        let p = softmax(&logits, 1.0);
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.sort_by(by_score(&logits));
        let mut mass = 0.0;
        let size = 1 + order
            .iter()
            .position(|t| {
                mass += p[*t as usize];
                mass >= f64::from(top_p)
            })
            .unwrap();
        let best = most_likely(&logits).unwrap();
        let kept = nucleus(&logits, best, &Sampling { top_p, ..Sampling::default() });
        assert_eq!(kept, order[..size], "top-p {top_p} of {n}");
    }
}

#[test]
fn min_p_drops_what_is_unlikely_beside_the_best() {
    let logits = logits(6, 50, 3.0);
    let p = softmax(&logits, 1.0);
    let best = p.iter().copied().fold(0.0, f64::max);
    let sampling = Sampling { min_p: 0.2, seed: 8, ..Sampling::default() };
    let mut expected: Vec<f64> = p.iter().map(|p| if *p >= 0.2 * best { *p } else { 0.0 }).collect();
    let mass: f64 = expected.iter().sum();
    expected.iter_mut().for_each(|p| *p /= mass);
    assert!(expected.contains(&0.0), "the case drops something");
    assert!(plausible(chi_square(&counts(&logits, &sampling, 20_000), &expected)));
    let with_top_p = Sampling { top_p: 0.99, ..sampling };
    assert!(counts(&logits, &with_top_p, 500).iter().zip(&expected).all(|(c, e)| *e > 0.0 || *c == 0));
}

#[test]
fn greedy_takes_the_first_of_equals_and_hardly_any_temperature_is_greedy() {
    let mut scores = logits(7, 1000, 5.0);
    for at in [17, 400, 999] {
        scores[at] = 9.0;
    }
    assert_eq!(token(&scores, &Sampling::greedy(), 0), 17);
    assert_eq!(largest(&scores, 4)[..3], [17, 400, 999]);
    let mut cold = Sampling { temperature: f32::MIN_POSITIVE, ..Sampling::default() };
    assert!([17, 400, 999].contains(&token(&scores, &cold, 0)));
    cold.top_p = 0.5;
    assert!([17, 400, 999].contains(&token(&scores, &cold, 0)));
    scores[400] = 9.1;
    assert!((0..50).all(|p| token(&scores, &cold, p) == 400));
}

#[test]
fn a_bias_of_minus_100_bans_and_a_bias_moves_the_odds() {
    let mut scores = logits(8, 20, 1.0);
    scores[3] = 150.0;
    for temperature in [0.0, 1.0] {
        let sampling =
            Sampling { temperature, logit_bias: BTreeMap::from([(3, -100.0), (5, 50.0)]), ..Sampling::default() };
        assert!((0..500).all(|p| token(&scores, &sampling, p) == 5), "3 is banned, 5 is lifted above all others");
    }
    let everything = Sampling { logit_bias: (0..20).map(|t| (t, -100.0)).collect(), ..Sampling::default() };
    assert_eq!(sample(&scores, &everything, &TokenCounts::default(), 0), Err(SampleError::NothingLeft));
    let outside = Sampling { logit_bias: BTreeMap::from([(20, 1.0)]), ..Sampling::default() };
    let error = SampleError::UnknownToken { token: 20, vocab: 20 };
    assert_eq!(sample(&scores, &outside, &TokenCounts::default(), 0), Err(error));
}

#[test]
fn penalties_count_what_they_should() {
    let scores = vec![2.0, -2.0, 2.0, -2.0, 1.0];
    let mut history = TokenCounts::new(&[0, 1]);
    history.add(2);
    history.add(2);
    history.add(3);
    let repetition = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
    assert_eq!(*adjusted(&scores, &repetition, &history).unwrap(), [1.0, -4.0, 1.0, -4.0, 1.0]);
    let presence = Sampling { presence_penalty: 0.5, ..Sampling::default() };
    assert_eq!(*adjusted(&scores, &presence, &history).unwrap(), [2.0, -2.0, 1.5, -2.5, 1.0], "answer only");
    let frequency = Sampling { frequency_penalty: 0.5, ..Sampling::default() };
    assert_eq!(*adjusted(&scores, &frequency, &history).unwrap(), [2.0, -2.0, 1.0, -2.5, 1.0]);
    history.take_back(2);
    assert_eq!(*adjusted(&scores, &frequency, &history).unwrap(), [2.0, -2.0, 1.5, -2.5, 1.0]);
    // A bias comes first: it is what the repetition penalty divides.
    let both = Sampling { logit_bias: BTreeMap::from([(0, 4.0)]), ..repetition };
    assert_eq!(adjusted(&scores, &both, &history).unwrap()[0], 3.0);
    assert!(matches!(adjusted(&scores, &Sampling::default(), &history).unwrap(), Cow::Borrowed(_)));
}

#[test]
fn log_probabilities_are_those_of_the_unmodified_distribution() {
    let scores = logits(10, 3_000, 8.0);
    let p = softmax(&scores, 1.0);
    let sampling = Sampling {
        temperature: 0.3,
        top_k: 3,
        logit_bias: BTreeMap::from([(100, 30.0)]),
        logprobs: Some(20),
        ..Sampling::default()
    };
    let choice = sample(&scores, &sampling, &TokenCounts::default(), 4).unwrap();
    assert_eq!(choice.token, 100, "the bias decides");
    assert!((f64::from(choice.logprob) - p[100].ln()).abs() < 1e-4);
    assert_eq!(choice.top.len(), 20);
    assert_eq!(choice.top[0].0, most_likely(&scores).unwrap());
    assert!(choice.top.windows(2).all(|w| w[0].1 >= w[1].1));
    for (token, logprob) in choice.top {
        assert!((f64::from(logprob) - p[token as usize].ln()).abs() < 1e-4);
    }
    let none = sample(&scores, &Sampling { logprobs: Some(0), ..sampling.clone() }, &TokenCounts::default(), 4);
    assert!(none.as_ref().is_ok_and(|c| c.top.is_empty() && c.logprob.is_finite()));
    let off = sample(&scores, &Sampling { logprobs: None, ..sampling }, &TokenCounts::default(), 4).unwrap();
    assert!(off.logprob.is_nan());
}

#[test]
fn broken_logits_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let result = sample(&[1.0, bad], &Sampling::default(), &TokenCounts::default(), 0);
        assert_eq!(result, Err(SampleError::NotFinite));
    }
    assert_eq!(sample(&[], &Sampling::default(), &TokenCounts::default(), 0), Err(SampleError::NothingLeft));
}
