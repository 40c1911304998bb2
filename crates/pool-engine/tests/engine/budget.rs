//! The KV budget: reserved when a sequence opens, free when it is released.

use pool_engine::{EngineOptions, OpenError, SequenceId, TruncateError};
use pool_models::TensorType;

use crate::model::{llama, open_all, options, random_weights, score_chain, source, tokens, whole};

fn engine(kv_tokens: usize, max_context: usize) -> pool_engine::Engine {
    let config = llama();
    let source = source(&random_weights(&config, 1), TensorType::F32);
    let options = EngineOptions { kv_tokens, max_context, ..options(&config, whole(&config)) };
    pool_engine::Engine::load(config.into(), &source, options).unwrap()
}

#[test]
fn sequences_reserve_and_give_back() {
    let mut engine = engine(100, 80);
    assert!(engine.is_empty());
    engine.open(SequenceId(1), 60, None).unwrap();
    assert_eq!((engine.free_tokens(), engine.sequences()), (40, 1));
    assert_eq!(engine.open(SequenceId(2), 41, None), Err(OpenError::KvFull { needed: 41, free: 40 }));
    engine.open(SequenceId(2), 40, None).unwrap();
    assert_eq!(engine.open(SequenceId(3), 1, None), Err(OpenError::KvFull { needed: 1, free: 0 }));
    assert!(engine.release(SequenceId(1)));
    assert!(!engine.release(SequenceId(1)), "only once");
    assert_eq!(engine.free_tokens(), 60);
    engine.open(SequenceId(3), 60, None).unwrap();
    assert_eq!((engine.len(SequenceId(3)), engine.len(SequenceId(1))), (Some(0), None));
}

#[test]
fn what_cannot_be_opened_says_why() {
    let mut engine = engine(1000, 80);
    assert_eq!(engine.open(SequenceId(1), 81, None), Err(OpenError::ContextTooLong { needed: 81, max: 80 }));
    assert_eq!(engine.open(SequenceId(1), 0, None), Err(OpenError::Empty));
    engine.open(SequenceId(1), 80, None).unwrap();
    assert_eq!(engine.open(SequenceId(1), 80, None), Err(OpenError::Exists(SequenceId(1))));
    assert_eq!(engine.truncate(SequenceId(9), 0), Err(TruncateError::Unknown(SequenceId(9))));
    let longer = TruncateError::Longer { sequence: SequenceId(1), len: 0, asked: 1 };
    assert_eq!(engine.truncate(SequenceId(1), 1), Err(longer));
}

#[test]
fn a_released_name_can_be_used_again_for_a_fresh_sequence() {
    let mut engine = [engine(40, 40)];
    let prompt = tokens(engine[0].config(), 3, 30);
    let mut answers = Vec::new();
    for _ in 0..3 {
        open_all(&mut engine, SequenceId(5), 40);
        answers.push(score_chain(&mut engine, SequenceId(5), 0, &prompt));
        engine[0].release(SequenceId(5));
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "nothing is left of the sequence before");
    assert_eq!(engine[0].free_tokens(), 40);
}
