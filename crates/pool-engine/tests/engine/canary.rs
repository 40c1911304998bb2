//! The canary: right layers let it through, broken ones do not, and nothing of it stays.

use std::time::Instant;

use pool_engine::{CanaryError, Quantise};
use pool_models::{Activation, LayerTensor, TensorName, TensorType};

use crate::model::{cut, families, llama, random_weights, source};

#[test]
fn it_comes_through_every_part_of_every_family_and_leaves_nothing() {
    for (seed, (name, config)) in families().into_iter().enumerate() {
        let weights = random_weights(&config, seed as u64);
        for (kind, wire, quantise) in [
            (TensorType::F32, Activation::F32, None),
            (TensorType::BF16, Activation::Bf16, None),
            (TensorType::F16, Activation::F16, Some(Quantise::Q8_0)),
        ] {
            for mut engine in cut(&config, &source(&weights, kind), 3, wire, quantise).unwrap() {
                let (free, layers) = (engine.free_tokens(), engine.options().layers);
                let canary =
                    engine.canary(Instant::now).unwrap_or_else(|error| panic!("{name}, {kind:?}, {layers}: {error}"));
                assert!(canary.rows > 1 && canary.token_seconds > 0.0 && canary.prefill_seconds > 0.0, "{canary:?}");
                assert_eq!((engine.sequences(), engine.free_tokens()), (0, free), "{name}: nothing is left of it");
            }
        }
    }
}

#[test]
fn one_number_that_is_none_stops_the_part_that_holds_it() {
    let config = llama();
    let mut weights = random_weights(&config, 3);
    weights.get_mut(&TensorName::Layer(1, LayerTensor::Down)).unwrap().1[17] = f32::NAN;
    for wire in [Activation::F32, Activation::Bf16] {
        let mut engines = cut(&config, &source(&weights, TensorType::F32), 4, wire, None).unwrap();
        let verdicts: Vec<bool> = engines.iter_mut().map(|engine| engine.canary(Instant::now).is_ok()).collect();
        assert_eq!(verdicts, [true, false, true, true], "layer 1 alone computes wrongly");
        assert!(matches!(engines[1].canary(Instant::now), Err(CanaryError::NotFinite)));
        assert_eq!(engines[1].sequences(), 0, "what failed is taken back, too");
    }
}

#[test]
fn a_head_of_zeros_is_not_taken_for_an_answer() {
    let config = llama();
    let mut weights = random_weights(&config, 3);
    weights.get_mut(&TensorName::Output).unwrap().1.fill(0.0);
    let mut engines = cut(&config, &source(&weights, TensorType::F32), 2, Activation::F32, None).unwrap();
    assert!(engines[0].canary(Instant::now).is_ok());
    let error = engines[1].canary(Instant::now).unwrap_err();
    assert!(matches!(error, CanaryError::Flat), "{error}");
}
