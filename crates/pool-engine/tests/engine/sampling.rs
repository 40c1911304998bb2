//! Tokens come from the exit, one for each step that asks, and anyone with the logits can re-check them.

use pool_engine::{Engine, SamplerSetup, SequenceId, Step, StepInput, StepOutput, TokenCounts, sample};
use pool_models::{ModelConfig, TensorType};
use pool_types::Sampling;

use crate::model::{llama, one, open_all, random_weights, score_chain, source, tokens};

const ID: SequenceId = SequenceId(1);

fn engine(config: &ModelConfig) -> Engine {
    one(config, &source(&random_weights(config, 6), TensorType::F32))
}

fn next(engine: &mut Engine, position: usize, tokens: &[u32]) -> u32 {
    let step = Step { sequence: ID, position, input: StepInput::Tokens(tokens), sample: true };
    match engine.advance(&[step]).unwrap().remove(0) {
        StepOutput::Token(choice) => choice.token,
        other => panic!("expected a token, got {other:?}"),
    }
}

/// The answer of `n` tokens to a prompt.
fn answer(engine: &mut Engine, sampling: &Sampling, prompt: &[u32], n: usize) -> Vec<u32> {
    let setup = SamplerSetup { sampling: sampling.clone(), prompt: prompt.to_vec() };
    engine.open(ID, prompt.len() + n, Some(setup)).unwrap();
    let mut answer = vec![next(engine, 0, prompt)];
    while answer.len() < n {
        let last = [answer[answer.len() - 1]];
        answer.push(next(engine, prompt.len() + answer.len() - 1, &last));
    }
    engine.release(ID);
    answer
}

#[test]
fn every_token_can_be_checked_again_from_its_logits() {
    let config = llama();
    let prompt = tokens(&config, 8, 20);
    let mut engine = engine(&config);
    let with_penalties = Sampling {
        seed: 7,
        repetition_penalty: 1.2,
        presence_penalty: 0.5,
        frequency_penalty: 0.3,
        ..Sampling::default()
    };
    for sampling in [Sampling::greedy(), Sampling { seed: 3, ..Sampling::default() }, with_penalties] {
        let answer = answer(&mut engine, &sampling, &prompt, 25);
        open_all(std::slice::from_mut(&mut engine), ID, 45);
        let whole: Vec<u32> = prompt.iter().chain(&answer).copied().collect();
        let logits = score_chain(std::slice::from_mut(&mut engine), ID, 0, &whole);
        let mut counts = TokenCounts::new(&prompt);
        for (i, token) in answer.iter().enumerate() {
            let row = &logits[(prompt.len() + i - 1) * config.vocab_size..][..config.vocab_size];
            let choice = sample(row, &sampling, &counts, (prompt.len() + i) as u64).unwrap();
            assert_eq!(choice.token, *token, "token {i} of {sampling:?}");
            counts.add(*token);
        }
        engine.release(ID);
    }
}

#[test]
fn the_seed_decides_the_answer_and_the_choice_makes_another() {
    let config = llama();
    let prompt = tokens(&config, 9, 10);
    let mut engine = engine(&config);
    let base = Sampling { seed: 1, ..Sampling::default() };
    let first = answer(&mut engine, &base, &prompt, 20);
    assert_eq!(first, answer(&mut engine, &base, &prompt, 20));
    assert_ne!(first, answer(&mut engine, &Sampling { seed: 2, ..base.clone() }, &prompt, 20));
    assert_ne!(first, answer(&mut engine, &Sampling { choice: 1, ..base }, &prompt, 20));
}

#[test]
fn a_rollback_takes_tokens_back_from_the_penalties() {
    let config = llama();
    let prompt = tokens(&config, 10, 10);
    let mut engine = engine(&config);
    let sampling = Sampling { temperature: 0.0, frequency_penalty: 2.0, presence_penalty: 2.0, ..Sampling::default() };
    let straight = answer(&mut engine, &sampling, &prompt, 20);
    engine.open(ID, 40, Some(SamplerSetup { sampling: sampling.clone(), prompt: prompt.clone() })).unwrap();
    let mut got = vec![next(&mut engine, 0, &prompt)];
    for i in 0..9 {
        let last = [got[i]];
        got.push(next(&mut engine, 10 + i, &last));
    }
    // A detour: the tokens sampled on it must not count afterwards.
    let detour = tokens(&config, 11, 5);
    next(&mut engine, 19, &detour);
    engine.truncate(ID, 15).unwrap();
    got.truncate(6);
    while got.len() < 20 {
        let last = [got[got.len() - 1]];
        got.push(next(&mut engine, 10 + got.len() - 1, &last));
    }
    assert_eq!(got, straight);
}

#[test]
fn an_answer_that_moves_to_another_shard_goes_on_as_it_would_have() {
    let config = llama();
    let prompt = tokens(&config, 12, 10);
    let mut engine = engine(&config);
    let sampling = Sampling { seed: 4, frequency_penalty: 1.5, ..Sampling::default() };
    let straight = answer(&mut engine, &sampling, &prompt, 20);
    engine.open(ID, 40, Some(SamplerSetup { sampling, prompt: prompt.clone() })).unwrap();
    assert!(engine.resume_answer(ID, 10, &straight[..8]));
    let replayed: Vec<u32> = prompt.iter().chain(&straight[..8]).copied().collect();
    let mut got = vec![next(&mut engine, 0, &replayed)];
    while got.len() < 12 {
        let last = [got[got.len() - 1]];
        got.push(next(&mut engine, 18 + got.len() - 1, &last));
    }
    assert_eq!(got, straight[8..]);
    assert!(!engine.resume_answer(SequenceId(99), 0, &[1]));
}

#[test]
fn only_steps_that_ask_are_sampled() {
    let config = llama();
    let mut engine = engine(&config);
    let prompt = tokens(&config, 13, 12);
    for id in 0..3 {
        let setup = SamplerSetup { sampling: Sampling::greedy(), prompt: prompt.clone() };
        engine.open(SequenceId(id), 12, Some(setup)).unwrap();
    }
    let step =
        |id, tokens, sample| Step { sequence: SequenceId(id), position: 0, input: StepInput::Tokens(tokens), sample };
    let outputs =
        engine.advance(&[step(0, &prompt[..5], true), step(1, &prompt, false), step(2, &prompt, true)]).unwrap();
    assert!(matches!(outputs[0], StepOutput::Token(_)));
    assert_eq!(outputs[1], StepOutput::Nothing);
    let StepOutput::Token(last) = &outputs[2] else { panic!("the third asked") };
    let mut alone = one(&config, &source(&random_weights(&config, 6), TensorType::F32));
    alone.open(ID, 12, Some(SamplerSetup { sampling: Sampling::greedy(), prompt: prompt.clone() })).unwrap();
    assert_eq!(next(&mut alone, 0, &prompt), last.token, "its own last row was sampled");
}
