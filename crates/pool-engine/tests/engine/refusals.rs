//! Bad input ends in a typed error that names the sequence or the tensor, and changes nothing.

use std::sync::Arc;

use pool_engine::{
    AdvanceError, Engine, EngineOptions, HiddenError, LoadError, OpenError, SampleError, SamplerSetup, SequenceId,
    Step, StepInput, StepOutput,
};
use pool_models::{Activation, LayerTensor, ModelConfig, TensorName, TensorType};
use pool_types::{LayerRange, Sampling};

use crate::model::{cut, entry, llama, one, open_all, options, random_weights, score_chain, source, tokens, whole};

const ID: SequenceId = SequenceId(1);
const OTHER: SequenceId = SequenceId(2);

/// A step, and whether an error is the one it should give.
type Case<'a> = (Step<'a>, fn(&AdvanceError) -> bool);

fn two() -> Vec<Engine> {
    let config = llama();
    let mut engines =
        cut(&config, &source(&random_weights(&config, 1), TensorType::F32), 2, Activation::F32, None).unwrap();
    for engine in &mut engines {
        let setup = SamplerSetup { sampling: Sampling::greedy(), prompt: vec![3] };
        engine.open(ID, 16, Some(setup.clone())).unwrap();
        engine.open(OTHER, 16, Some(setup)).unwrap();
    }
    engines
}

fn step(sequence: SequenceId, position: usize, tokens: &[u32]) -> Step<'_> {
    Step { sequence, position, input: StepInput::Tokens(tokens), sample: false }
}

fn hidden(position: usize, rows: usize, dtype: Activation, data: &[u8]) -> Step<'_> {
    Step { sequence: ID, position, input: StepInput::Hidden { rows, dtype, data }, sample: false }
}

#[test]
fn steps_that_do_not_fit_are_refused_and_change_nothing() {
    let mut engines = two();
    let entry = &mut engines[0];
    entry.advance(&[step(ID, 0, &[1, 2, 3])]).unwrap();
    let good = step(OTHER, 0, &[5]);
    let cases: Vec<Case<'_>> = vec![
        (step(SequenceId(9), 0, &[1]), |e| matches!(e, AdvanceError::Unknown { .. })),
        (step(ID, 2, &[1]), |e| matches!(e, AdvanceError::Position { len: 3, position: 2, .. })),
        (step(ID, 4, &[1]), |e| matches!(e, AdvanceError::Position { .. })),
        (step(ID, 3, &[]), |e| matches!(e, AdvanceError::Empty { .. })),
        (step(ID, 3, &[0; 14]), |e| matches!(e, AdvanceError::Capacity { needed: 17, capacity: 16, .. })),
        (step(ID, 3, &[61]), |e| matches!(e, AdvanceError::UnknownToken { token: 61, vocab: 61, .. })),
        (step(ID, 3, &[u32::MAX]), |e| matches!(e, AdvanceError::UnknownToken { .. })),
        (hidden(3, 1, Activation::F32, &[0; 192]), |e| matches!(e, AdvanceError::Input { .. })),
        (Step { sample: true, ..step(ID, 3, &[1]) }, |e| matches!(e, AdvanceError::NoSampler { .. })),
    ];
    for (bad, expected) in cases {
        let error = entry.advance(&[good, bad]).unwrap_err();
        assert!(expected(&error), "{bad:?} gave {error:?}");
        assert_eq!(error.sequence(), Some(bad.sequence), "{error} names the sequence");
        assert_eq!((entry.len(ID), entry.len(OTHER)), (Some(3), Some(0)), "nothing was changed by {bad:?}");
    }
    let twice = entry.advance(&[good, good]).unwrap_err();
    assert!(matches!(twice, AdvanceError::Twice { sequence: OTHER }));
    assert!(matches!(entry.score(&[good]), Err(AdvanceError::NoSampler { .. })), "only the exit has logits");
    assert_eq!(entry.len(OTHER), Some(0));
    assert!(entry.advance(&[good, step(ID, 3, &[4])]).is_ok(), "the same batch without the bad step goes on");
    assert!(entry.advance(&[]).unwrap().is_empty());
}

#[test]
fn hidden_states_that_a_peer_made_up_are_refused() {
    let mut engines = two();
    let exit = &mut engines[1];
    let width = 48 * 4;
    let nan: Vec<u8> = f32::NAN.to_le_bytes().repeat(48);
    let infinite: Vec<u8> = f32::INFINITY.to_le_bytes().repeat(48);
    let cases: Vec<Case<'_>> = vec![
        (hidden(0, 1, Activation::F16, &[0; 96]), |e| {
            matches!(e, AdvanceError::WireType { expected: Activation::F32, got: Activation::F16, .. })
        }),
        (hidden(0, 2, Activation::F32, &[0; 192]), |e| {
            matches!(e, AdvanceError::Hidden { source: HiddenError::Length { expected: 384, got: 192 }, .. })
        }),
        (hidden(0, 1, Activation::F32, &[0; 191]), |e| matches!(e, AdvanceError::Hidden { .. })),
        (hidden(0, 1, Activation::F32, &nan), |e| {
            matches!(e, AdvanceError::Hidden { source: HiddenError::NotFinite(_), .. })
        }),
        (hidden(0, 1, Activation::F32, &infinite), |e| matches!(e, AdvanceError::Hidden { .. })),
        (hidden(0, usize::MAX, Activation::F32, &[]), |e| matches!(e, AdvanceError::Capacity { .. })),
        (step(ID, 0, &[1]), |e| matches!(e, AdvanceError::Input { .. })),
    ];
    for (bad, expected) in cases {
        let error = exit.advance(&[bad]).unwrap_err();
        assert!(expected(&error), "{bad:?} gave {error:?}");
        assert_eq!((error.sequence(), exit.len(ID)), (Some(ID), Some(0)));
    }
    // Finite but absurd: the computation overflows, and that is found before anything is sent or sampled.
    let absurd: Vec<u8> = 3e38f32.to_le_bytes().repeat(48);
    let result = exit.advance(&[Step { sample: true, ..hidden(0, 1, Activation::F32, &absurd) }]);
    match result {
        Err(AdvanceError::Sample { sequence: ID, source: SampleError::NotFinite }) => {}
        other => panic!("expected broken logits to be found, got {other:?}"),
    }
    assert_eq!(exit.len(ID), Some(0));
    let fine = vec![0u8; width];
    let good = Step { sample: true, ..hidden(0, 1, Activation::F32, &fine) };
    assert!(matches!(exit.advance(&[good]).unwrap()[0], StepOutput::Token(_)), "the sequence can go on");
}

#[test]
fn a_state_too_large_for_the_wire_is_an_error_not_an_infinity() {
    let config = llama();
    let mut weights = random_weights(&config, 1);
    let embedding = &mut weights.get_mut(&TensorName::TokenEmbedding).unwrap().1;
    embedding[5 * 48..6 * 48].fill(1e5);
    let source = source(&weights, TensorType::F32);
    let run = [step(ID, 0, &[4]), step(OTHER, 0, &[5])];
    for (wire, fits) in [(Activation::F16, false), (Activation::Bf16, true), (Activation::F32, true)] {
        let mut entry = cut(&config, &source, 2, wire, None).unwrap().remove(0);
        open_all(std::slice::from_mut(&mut entry), ID, 4);
        open_all(std::slice::from_mut(&mut entry), OTHER, 4);
        match entry.advance(&run) {
            Ok(_) => assert!(fits, "{wire:?} cannot hold 100,000"),
            Err(AdvanceError::Hidden { sequence: OTHER, source: HiddenError::NotFinite(Activation::F16) }) => {
                assert!(!fits);
                assert_eq!((entry.len(ID), entry.len(OTHER)), (Some(0), Some(0)));
            }
            Err(other) => panic!("{wire:?}: {other}"),
        }
    }
}

#[test]
fn a_failed_batch_leaves_the_good_sequences_as_they_were() {
    let mut engines = two();
    let exit = &mut engines[1];
    let fine: Vec<u8> = (0..48).flat_map(|i| (i as f32 * 0.02 - 0.4).to_le_bytes()).collect();
    let absurd: Vec<u8> = 3e38f32.to_le_bytes().repeat(48);
    let good = Step { sample: true, ..hidden(0, 1, Activation::F32, &fine) };
    let bad = Step { sequence: OTHER, sample: true, ..hidden(0, 1, Activation::F32, &absurd) };
    let error = exit.advance(&[good, bad]).unwrap_err();
    assert_eq!(error.sequence(), Some(OTHER), "{error}");
    assert_eq!(exit.len(ID), Some(0), "the good step was not taken either");
    let after = exit.advance(&[good]).unwrap();
    let mut fresh = two();
    assert_eq!(format!("{after:?}"), format!("{:?}", fresh[1].advance(&[good]).unwrap()));
}

#[test]
fn models_that_do_not_fit_their_configuration_name_the_tensor() {
    let config = llama();
    let weights = random_weights(&config, 1);
    let name = TensorName::Layer(2, LayerTensor::Down);
    let load = |config: &ModelConfig, source: &crate::model::MemorySource| {
        Engine::load(Arc::new(config.clone()), source, options(config, whole(config))).unwrap_err()
    };

    let mut missing = source(&weights, TensorType::F32);
    missing.tensors.remove(&name);
    assert!(matches!(load(&config, &missing), LoadError::Missing(found) if found == name));

    let mut shape = source(&weights, TensorType::F32);
    shape.tensors.get_mut(&name).unwrap().0.shape = vec![80, 48];
    let error = load(&config, &shape);
    assert!(matches!(&error, LoadError::Shape { name: found, .. } if *found == name), "{error}");
    assert!(error.to_string().contains("Down"), "{error}");

    let mut short = source(&weights, TensorType::F32);
    short.tensors.get_mut(&name).unwrap().1.pop();
    assert!(matches!(load(&config, &short), LoadError::Length { name: found, .. } if found == name));
    let mut lying = source(&weights, TensorType::F32);
    lying.tensors.get_mut(&name).unwrap().0.length -= 4;
    assert!(matches!(load(&config, &lying), LoadError::Length { name: found, .. } if found == name));

    let mut quantised_norm = source(&weights, TensorType::F32);
    let norm = TensorName::OutputNorm;
    quantised_norm.tensors.insert(norm, entry("norm".into(), TensorType::Q8_0, vec![48], vec![0; 51]));
    assert!(matches!(load(&config, &quantised_norm), LoadError::Type { name: found, .. } if found == norm));
    let wide = ModelConfig { hidden_size: 64, ..config.clone() };
    let mut quantised_norm = source(&random_weights(&wide, 1), TensorType::F32);
    quantised_norm.tensors.insert(norm, entry("norm".into(), TensorType::Q8_0, vec![64], vec![0; 68]));
    let error = load(&wide, &quantised_norm);
    assert!(matches!(error, LoadError::Type { reason: "vectors are not quantised", .. }), "{error}");

    let mut odd = source(&weights, TensorType::F32);
    odd.tensors.get_mut(&name).unwrap().0.kind = TensorType::Q4K;
    assert!(matches!(load(&config, &odd), LoadError::Type { name: found, .. } if found == name));
}

#[test]
fn options_beyond_machine_or_model_are_refused() {
    let config = llama();
    let source = source(&random_weights(&config, 1), TensorType::F32);
    let load = |config: ModelConfig, options| Engine::load(Arc::new(config), &source, options).map(|_| ());
    let good = options(&config, whole(&config));
    let beyond = LayerRange::new(2, 5).unwrap();
    let bad = [
        EngineOptions { layers: beyond, ..good.clone() },
        EngineOptions { threads: 0, ..good.clone() },
        EngineOptions { threads: 10_000, ..good.clone() },
        EngineOptions { max_context: 513, ..good.clone() },
        EngineOptions { max_context: 0, ..good.clone() },
    ];
    for options in bad {
        assert!(load(config.clone(), options.clone()).is_err(), "{options:?} must be refused");
    }
    for config in [
        ModelConfig { kv_heads: 4, ..config.clone() },
        ModelConfig { kv_heads: 0, ..config.clone() },
        ModelConfig { head_dim: 15, ..config.clone() },
        ModelConfig { windows: vec![Some(0); 4], ..config },
    ] {
        assert!(matches!(load(config, good.clone()), Err(LoadError::Config(_))));
    }
}

#[test]
fn samplers_are_checked_when_a_sequence_opens() {
    let config = llama();
    let mut engine = one(&config, &source(&random_weights(&config, 1), TensorType::F32));
    let setup = |sampling: Sampling, prompt: &[u32]| Some(SamplerSetup { sampling, prompt: prompt.to_vec() });
    let hot = Sampling { temperature: 9.0, ..Sampling::default() };
    assert!(matches!(engine.open(ID, 8, setup(hot, &[1])), Err(OpenError::Sampling(_))));
    let prompt = engine.open(ID, 8, setup(Sampling::default(), &[1, 61]));
    assert_eq!(prompt, Err(OpenError::UnknownToken { token: 61, vocab: 61 }));
    let biased = Sampling { logit_bias: [(99, 1.0)].into(), ..Sampling::default() };
    assert!(matches!(engine.open(ID, 8, setup(biased, &[1])), Err(OpenError::UnknownToken { token: 99, .. })));
    assert_eq!((engine.sequences(), engine.free_tokens()), (0, 2048), "nothing stays reserved");
    engine.open(ID, 8, None).unwrap();
    let asked = [Step { sample: true, ..step(ID, 0, &[1]) }];
    assert!(matches!(engine.advance(&asked), Err(AdvanceError::NoSampler { sequence: ID })));
    let all = tokens(&config, 1, 8);
    score_chain(std::slice::from_mut(&mut engine), ID, 0, &all);
}
