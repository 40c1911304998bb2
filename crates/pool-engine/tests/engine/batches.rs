//! A sequence's answer does not depend on who is in its batch, on how its prompt was cut into chunks,
//! or on what was rolled back.

use pool_engine::SequenceId;
use pool_models::{Activation, TensorType};

use crate::model::{cut, families, gap, one, open_all, random_weights, score_batch, score_chain, source, tokens};

#[test]
fn a_prompt_in_chunks_is_the_prompt_whole() {
    for (seed, (name, config)) in families().into_iter().enumerate() {
        let mut engine = [one(&config, &source(&random_weights(&config, seed as u64), TensorType::F32))];
        let tokens = tokens(&config, 3, 150);
        let (whole, chunked) = (SequenceId(1), SequenceId(2));
        open_all(&mut engine, whole, 150);
        open_all(&mut engine, chunked, 150);
        let expected = score_chain(&mut engine, whole, 0, &tokens);
        let mut got = Vec::new();
        let mut at = 0;
        for chunk in [64, 1, 2, 3, 40, 5, 35] {
            got.extend(score_chain(&mut engine, chunked, at, &tokens[at..at + chunk]));
            at += chunk;
        }
        let gap = gap(&got, &expected);
        assert!(gap < 1e-4, "{name}: chunks differ from the whole by {gap}");
    }
}

#[test]
fn a_ragged_batch_gives_each_what_it_would_have_alone() {
    for (seed, (name, config)) in families().into_iter().enumerate() {
        let source = source(&random_weights(&config, seed as u64), TensorType::F32);
        let mut together = cut(&config, &source, 2, Activation::F32, None).unwrap();
        let mut alone = cut(&config, &source, 2, Activation::F32, None).unwrap();
        let prompts: Vec<Vec<u32>> =
            [40, 1, 17, 3, 90].into_iter().enumerate().map(|(i, n)| tokens(&config, i as u64, n + 12)).collect();
        let ids: Vec<SequenceId> = (0..5).map(SequenceId).collect();
        ids.iter().zip(&prompts).for_each(|(id, p)| open_all(&mut together, *id, p.len()));
        ids.iter().zip(&prompts).for_each(|(id, p)| open_all(&mut alone, *id, p.len()));
        // Sequences join one after another: decodes and prefills in one batch.
        let mut lengths = [0usize; 5];
        for round in 0..12 {
            let mut runs = Vec::new();
            for (i, prompt) in prompts.iter().enumerate().filter(|(i, _)| *i <= round / 2) {
                let n = if lengths[i] == 0 { prompt.len() - 12 } else { 1 };
                runs.push((ids[i], lengths[i], &prompt[lengths[i]..lengths[i] + n]));
                lengths[i] += n;
            }
            // The order within a batch is the caller's.
            if round % 2 == 1 {
                runs.reverse();
            }
            let got = score_batch(&mut together, &runs);
            for (run, got) in runs.iter().zip(got) {
                let expected = score_batch(&mut alone, &[*run]).remove(0);
                let gap = gap(&got, &expected);
                assert!(gap < 1e-4, "{name}, round {round}, sequence {}: differs by {gap}", run.0);
            }
        }
    }
}

#[test]
fn a_rolled_back_sequence_goes_on_as_if_nothing_had_been() {
    for (seed, (name, config)) in families().into_iter().enumerate() {
        let source = source(&random_weights(&config, seed as u64), TensorType::F32);
        let mut engines = cut(&config, &source, 2, Activation::F32, None).unwrap();
        let (straight, wandering) = (SequenceId(1), SequenceId(2));
        open_all(&mut engines, straight, 60);
        open_all(&mut engines, wandering, 60);
        let right = tokens(&config, 1, 60);
        let wrong = tokens(&config, 2, 60);
        let expected = score_chain(&mut engines, straight, 0, &right);
        let vocab = config.vocab_size;

        score_chain(&mut engines, wandering, 0, &right[..20]);
        score_chain(&mut engines, wandering, 20, &wrong[..30]);
        engines.iter_mut().for_each(|e| e.truncate(wandering, 20).unwrap());
        assert_eq!(engines[0].len(wandering), Some(20));
        let got = score_chain(&mut engines, wandering, 20, &right[20..50]);
        let at = gap(&got, &expected[20 * vocab..50 * vocab]);
        assert!(at < 1e-4, "{name}: differs by {at} after a rollback");
        engines.iter_mut().for_each(|e| e.truncate(wandering, 0).unwrap());
        let got = score_chain(&mut engines, wandering, 0, &right);
        assert_eq!(got, expected, "{name}: from the start it is the same computation");
    }
}
