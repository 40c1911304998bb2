//! However a model is cut, it is the same model, and each part reads its own tensors only.

use std::sync::Arc;

use pool_engine::{Engine, Quantise, SequenceId};
use pool_models::{Activation, TensorName, TensorSource, TensorType};
use pool_types::LayerRange;

use crate::model::{
    cut, families, gap, llama, open_all, options, random_weights, score_chain, source, tensor_shapes, tokens,
};

#[test]
fn one_two_three_and_a_shard_per_layer_give_the_same_logits() {
    for (seed, (name, config)) in families().into_iter().enumerate() {
        let weights = random_weights(&config, seed as u64);
        for (kind, quantise) in [
            (TensorType::F32, None),
            (TensorType::F16, None),
            (TensorType::BF16, None),
            (TensorType::BF16, Some(Quantise::Q8_0)),
        ] {
            let source = source(&weights, kind);
            let tokens = tokens(&config, seed as u64, 70);
            let mut expected: Option<Vec<f32>> = None;
            for parts in [1, 2, 3, config.layers] {
                let mut engines = cut(&config, &source, parts, Activation::F32, quantise).unwrap();
                open_all(&mut engines, SequenceId(4), 70);
                let mut got = score_chain(&mut engines, SequenceId(4), 0, &tokens[..66]);
                for at in 66..70 {
                    got.extend(score_chain(&mut engines, SequenceId(4), at, &tokens[at..=at]));
                }
                let expected = expected.get_or_insert_with(|| got.clone());
                let gap = gap(&got, expected);
                assert!(gap <= 1e-5, "{name}, {kind:?} {quantise:?} in {parts} parts: logits differ by {gap}");
            }
        }
    }
}

#[test]
fn narrow_wires_cost_little_precision() {
    let config = llama();
    let source = source(&random_weights(&config, 5), TensorType::F32);
    let tokens = tokens(&config, 5, 40);
    let mut logits = Vec::new();
    for wire in [Activation::F32, Activation::F16, Activation::Bf16] {
        let mut engines = cut(&config, &source, 3, wire, None).unwrap();
        open_all(&mut engines, SequenceId(0), 40);
        logits.push(score_chain(&mut engines, SequenceId(0), 0, &tokens));
    }
    let largest = logits[0].iter().fold(0f32, |m, l| m.max(l.abs()));
    assert!(gap(&logits[1], &logits[0]) < 0.01 * largest, "f16: {}", gap(&logits[1], &logits[0]));
    assert!(gap(&logits[2], &logits[0]) < 0.08 * largest, "bf16: {}", gap(&logits[2], &logits[0]));
}

#[test]
fn a_shard_reads_the_tensors_of_its_range_and_no_others() {
    for (name, config) in families() {
        let weights = random_weights(&config, 1);
        for start in 0..config.layers {
            for end in start + 1..=config.layers {
                let source = source(&weights, TensorType::F16);
                let layers = LayerRange::new(start, end).unwrap();
                let expected: u64 = tensor_shapes(&config)
                    .iter()
                    .filter(|(tensor, _)| match tensor {
                        TensorName::TokenEmbedding => start == 0 || end == config.layers && config.tied_embeddings,
                        TensorName::OutputNorm | TensorName::Output => end == config.layers,
                        TensorName::RopeFrequencies => true,
                        TensorName::Layer(layer, _) => layers.contains(*layer),
                    })
                    .map(|(tensor, _)| source.info(*tensor).unwrap().length)
                    .sum();
                let engine = Engine::load(Arc::new(config.clone()), &source, options(&config, layers)).unwrap();
                assert_eq!(source.bytes_read(), expected, "{name}, layers {layers}");
                assert_eq!(engine.footprint().bytes_read, expected);
                assert_eq!((engine.is_entry(), engine.is_exit()), (start == 0, end == config.layers));
            }
        }
    }
}

#[test]
fn the_footprint_says_what_is_in_memory() {
    let config = llama();
    let weights = random_weights(&config, 1);
    let floats: u64 = weights.values().map(|(_, values)| values.len() as u64 * 4).sum();
    let engine = &cut(&config, &source(&weights, TensorType::F32), 1, Activation::F32, None).unwrap()[0];
    assert_eq!(engine.footprint().weight_bytes, floats, "f32 weights stay as they are");
    assert_eq!(engine.footprint().kv_bytes_per_token, 4 * 2 * 2 * 16 * 4, "layers x (k, v) x heads x width x f32");
    // Half-width floats: the embedding keeps its form where nothing multiplies with it.
    let engine = &cut(&config, &source(&weights, TensorType::F16), 1, Activation::F32, None).unwrap()[0];
    let embedding = (config.vocab_size * config.hidden_size) as u64;
    assert_eq!(engine.footprint().weight_bytes, floats - 2 * embedding);
    // Quantised at load: matrices whose rows are whole blocks of 32. Rows of 48 and 80 are not, rows of 96 are.
    let quantised = cut(&config, &source(&weights, TensorType::F16), 1, Activation::F32, Some(Quantise::Q8_0)).unwrap();
    let output = (config.hidden_size * config.heads * config.head_dim) as u64;
    let saved = u64::from(config.layers) * (output * 4 - output / 32 * 34);
    assert_eq!(quantised[0].footprint().weight_bytes, floats - saved, "only attention outputs have rows of 96");
}
