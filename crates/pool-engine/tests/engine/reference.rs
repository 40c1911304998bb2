//! The decoder straight from its definition, one position at a time, in f64: slow and obvious.

use std::collections::BTreeMap;

use pool_engine::SequenceId;
use pool_models::{LayerTensor, ModelConfig, RopeLayout, RopeScaling, TensorName, TensorType};

use crate::model::{families, gap, one, random_weights, score_chain, source, tokens};

type Weights = BTreeMap<TensorName, (Vec<usize>, Vec<f32>)>;

/// The logits after every token.
pub(crate) fn logits(config: &ModelConfig, weights: &Weights, tokens: &[u32]) -> Vec<f32> {
    let vector = |name: TensorName| -> Vec<f64> { weights[&name].1.iter().map(|v| f64::from(*v)).collect() };
    let times = |name: TensorName, x: &[f64]| -> Vec<f64> {
        let (shape, values) = &weights[&name];
        values.chunks(shape[1]).map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
    };
    let plus = |x: Vec<f64>, name: TensorName| -> Vec<f64> {
        match weights.get(&name) {
            Some((_, bias)) => x.iter().zip(bias).map(|(x, b)| x + f64::from(*b)).collect(),
            None => x,
        }
    };
    let norm = |x: &[f64], name: TensorName| -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(vector(name)).map(|(x, w)| x / (mean + config.norm_epsilon).sqrt() * w).collect()
    };
    let heads_normed = |x: Vec<f64>, name: TensorName| -> Vec<f64> {
        if config.qk_norm { x.chunks(config.head_dim).flat_map(|head| norm(head, name)).collect() } else { x }
    };
    let dim = config.head_dim;
    let factors = weights.get(&TensorName::RopeFrequencies).map(|(_, f)| f.clone());
    let turned = |mut x: Vec<f64>, position: usize| -> Vec<f64> {
        for head in x.chunks_mut(dim) {
            for i in 0..dim / 2 {
                let mut frequency = config.rope.theta.powf(-2.0 * i as f64 / dim as f64);
                match &config.rope.scaling {
                    RopeScaling::None => {}
                    RopeScaling::Linear { factor } => frequency /= factor,
                    RopeScaling::Tensor => frequency /= f64::from(factors.as_ref().unwrap()[i]),
                    RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_positions } => {
                        let turns = *original_positions as f64 * frequency / std::f64::consts::TAU;
                        let ramp = (turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
                        let ramp = ramp.clamp(0.0, 1.0);
                        frequency *= ramp + (1.0 - ramp) / factor;
                    }
                }
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let (a, b) = match config.rope.layout {
                    RopeLayout::HalfSplit => (i, i + dim / 2),
                    RopeLayout::Interleaved => (2 * i, 2 * i + 1),
                };
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
            }
        }
        x
    };

    let embedding = vector(TensorName::TokenEmbedding);
    let mut caches = vec![(Vec::<Vec<f64>>::new(), Vec::<Vec<f64>>::new()); config.layers as usize];
    let mut out = Vec::new();
    for (position, token) in tokens.iter().enumerate() {
        let at = *token as usize * config.hidden_size;
        let mut x = embedding[at..at + config.hidden_size].to_vec();
        for layer in 0..config.layers {
            use LayerTensor::*;
            let name = |tensor| TensorName::Layer(layer, tensor);
            let n = norm(&x, name(AttentionNorm));
            let q = plus(times(name(Query), &n), name(QueryBias));
            let k = plus(times(name(Key), &n), name(KeyBias));
            let v = plus(times(name(Value), &n), name(ValueBias));
            let q = turned(heads_normed(q, name(QueryNorm)), position);
            let k = turned(heads_normed(k, name(KeyNorm)), position);
            let (keys, values) = &mut caches[layer as usize];
            keys.push(k);
            values.push(v);
            let first = config.windows[layer as usize].map_or(0, |w| (position + 1).saturating_sub(w));
            let mut attended = vec![0.0; config.heads * dim];
            for head in 0..config.heads {
                let kv = head * config.kv_heads / config.heads * dim;
                let query = &q[head * dim..(head + 1) * dim];
                let weights: Vec<f64> = (first..=position)
                    .map(|p| query.iter().zip(&keys[p][kv..]).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt())
                    .map(f64::exp)
                    .collect();
                let sum: f64 = weights.iter().sum();
                for (p, weight) in (first..=position).zip(&weights) {
                    for i in 0..dim {
                        attended[head * dim + i] += weight / sum * values[p][kv + i];
                    }
                }
            }
            let added = plus(times(name(AttentionOutput), &attended), name(AttentionOutputBias));
            x.iter_mut().zip(added).for_each(|(x, a)| *x += a);
            let m = norm(&x, name(FeedForwardNorm));
            let gate = plus(times(name(Gate), &m), name(GateBias));
            let up = plus(times(name(Up), &m), name(UpBias));
            let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let added = plus(times(name(Down), &inner), name(DownBias));
            x.iter_mut().zip(added).for_each(|(x, a)| *x += a);
        }
        let head = if config.tied_embeddings { TensorName::TokenEmbedding } else { TensorName::Output };
        out.extend(times(head, &norm(&x, TensorName::OutputNorm)).into_iter().map(|l| l as f32));
    }
    out
}

#[test]
fn every_family_gives_the_logits_of_its_definition() {
    for (seed, (name, config)) in families().into_iter().enumerate() {
        let weights = random_weights(&config, seed as u64);
        let tokens = tokens(&config, seed as u64, 90);
        let expected = logits(&config, &weights, &tokens);
        let mut engine = [one(&config, &source(&weights, TensorType::F32))];
        let id = SequenceId(1);
        engine[0].open(id, 90, None).unwrap();
        // A prompt of more than one attention block, then a run of single tokens.
        let mut got = score_chain(&mut engine, id, 0, &tokens[..80]);
        for at in 80..90 {
            got.extend(score_chain(&mut engine, id, at, &tokens[at..at + 1]));
        }
        let largest = expected.iter().fold(0f32, |m, l| m.max(l.abs()));
        assert!(largest > 1.0, "{name}: the case says something (logits up to {largest})");
        let gap = gap(&got, &expected);
        assert!(gap < 2e-4 * largest, "{name}: logits differ by {gap}, they reach {largest}");
    }
}
