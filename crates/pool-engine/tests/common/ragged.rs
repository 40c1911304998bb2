//! The ways a sequence goes through a pipeline: alone with its prompt in chunks, or in a ragged batch.

use pool_engine::SequenceId;

use super::{
    deviation::Deviation,
    fixture::{Expectations, Sequence},
    pipeline::{Chunk, Pipeline},
    weights::stream,
};

const CHUNK_SIZES: [usize; 7] = [1, 2, 3, 5, 8, 13, 34];

/// Compares the chunk that begins at `position` with what the reference expects of its rows.
fn compare(
    deviation: &mut Deviation,
    sequence: &Sequence,
    prompt: usize,
    position: usize,
    logits: &super::pipeline::Logits,
    rows: usize,
    place: &str,
) {
    for expected in &sequence.rows {
        if (position..position + rows).contains(&expected.position) {
            deviation.compare(expected, logits.row(expected.position - position), || match expected.position + 1 {
                seen if seen < prompt => format!("{place}, prompt row {}", expected.position),
                seen => format!("{place}, step {}", seen - prompt),
            });
        }
    }
}

/// The main sequence alone, teacher-forced: the prompt in chunks of varying size, then a token at a time.
pub(crate) fn teacher_forced(expectations: &Expectations, pipeline: &mut Pipeline, deviation: &mut Deviation) {
    let sequence = SequenceId(1);
    let tokens = &expectations.main.tokens;
    let prompt = expectations.prompt;
    let place = format!("{} on {} shards", expectations.name, pipeline.shards());
    let mut sizes = stream(expectations.seed + pipeline.shards() as u64, "chunk sizes");
    pipeline.open(sequence, tokens.len(), &tokens[..prompt]);
    let mut position = 0;
    while position < tokens.len() {
        let rows = if position < prompt {
            let size = CHUNK_SIZES[(sizes.next().unwrap() % CHUNK_SIZES.len() as u64) as usize];
            size.min(prompt - position)
        } else {
            1
        };
        let logits = pipeline.score(&[Chunk { sequence, position, tokens: &tokens[position..position + rows] }]);
        compare(deviation, &expectations.main, prompt, position, &logits[0], rows, &place);
        position += rows;
    }
    pipeline.release(sequence);
}

/// The main sequence alone, on its own: each sampled token is the next input.
pub(crate) fn free_running(expectations: &Expectations, pipeline: &mut Pipeline, deviation: &mut Deviation) {
    let sequence = SequenceId(1);
    let (prompt, answer) = expectations.main.tokens.split_at(expectations.prompt);
    pipeline.open(sequence, prompt.len() + answer.len(), prompt);
    let mut input = prompt.to_vec();
    let mut position = 0;
    for (step, expected) in answer.iter().enumerate() {
        let choice = pipeline.sample(&[Chunk { sequence, position, tokens: &input }]).remove(0);
        let place = || format!("{} on {} shards, step {step}", expectations.name, pipeline.shards());
        position += input.len();
        let row = expectations.main.rows.iter().find(|row| row.position + 1 == position).unwrap();
        assert_eq!(row.best(), *expected, "{}: the fixture contradicts itself", place());
        deviation.compare_token(row, choice.token, &place);
        assert_eq!(choice.token, *expected, "{}: another token than the reference's", place());
        deviation.value(choice.token, choice.logprob, row.top[0].1, &place);
        for (token, want) in &row.top {
            // Where two are as good as equal, the eighth may be another token.
            if let Some((_, got)) = choice.top.iter().find(|(id, _)| id == token) {
                deviation.value(*token, *got, *want, &place);
            } else {
                let last = choice.top.last().map_or(f32::NEG_INFINITY, |(_, logprob)| *logprob);
                assert!(last - want <= 1e-3, "{}: token {token} is missing from the most likely ones", place());
            }
        }
        input = vec![choice.token];
    }
    pipeline.release(sequence);
}

struct Cursor<'a> {
    id: SequenceId,
    sequence: &'a Sequence,
    /// Tokens before this are prefilled in chunks, those after it decoded one by one.
    prompt: usize,
    at: usize,
    /// The round it joins in.
    joins: u64,
    /// Once this many tokens are in, it is cut back to the second number and goes on from there.
    rollback: Option<(usize, usize)>,
}

/// Several sequences of different lengths in one batch: prefill and decode mixed, some sitting out a round, joining
/// late, leaving early, or rolled back.
pub(crate) fn ragged_batch(expectations: &Expectations, pipeline: &mut Pipeline, deviation: &mut Deviation) {
    let main = &expectations.main;
    let prompt = expectations.prompt;
    let cursor = |index: u64, sequence, prompt, joins, rollback| Cursor {
        id: SequenceId(10 + index),
        sequence,
        prompt,
        at: 0,
        joins,
        rollback,
    };
    let mut waiting = vec![cursor(0, main, prompt, 0, Some((prompt + 20, prompt / 2)))];
    for (index, companion) in (1..).zip(&expectations.companions) {
        let length = companion.tokens.len();
        // The second half of a companion is fed as decode steps; a third one repeats the main sequence later.
        waiting.push(cursor(index, companion, length / 2, 2 * index, Some((length - 2, 1))));
    }
    waiting.push(cursor(9, main, prompt, 7, None));
    let mut random = stream(expectations.seed, "ragged batch");
    let mut next = move |below: usize| (random.next().unwrap() % below as u64) as usize;
    let mut active: Vec<Cursor<'_>> = Vec::new();
    let mut largest = 0;
    let mut round = 0;
    while !(waiting.is_empty() && active.is_empty()) {
        while let Some(index) = waiting.iter().position(|cursor| cursor.joins <= round) {
            let cursor = waiting.remove(index);
            pipeline.open(cursor.id, cursor.sequence.tokens.len(), &cursor.sequence.tokens[..cursor.prompt]);
            active.push(cursor);
        }
        round += 1;
        if active.is_empty() {
            continue;
        }
        let turn = next(active.len());
        active.rotate_left(turn);
        let mut takes: Vec<(usize, usize)> = Vec::new();
        for (index, cursor) in active.iter().enumerate() {
            if next(5) == 0 {
                continue;
            }
            let rows = if cursor.at < cursor.prompt { (1 + next(11)).min(cursor.prompt - cursor.at) } else { 1 };
            takes.push((index, rows));
        }
        if takes.is_empty() {
            continue;
        }
        largest = largest.max(takes.len());
        let chunks: Vec<Chunk<'_>> = takes
            .iter()
            .map(|&(index, rows)| {
                let Cursor { id, sequence, at, .. } = active[index];
                Chunk { sequence: id, position: at, tokens: &sequence.tokens[at..at + rows] }
            })
            .collect();
        let place = format!("{} on {} shards, in a batch of {}", expectations.name, pipeline.shards(), chunks.len());
        let scores = pipeline.score(&chunks);
        for (&(index, rows), logits) in takes.iter().zip(&scores) {
            let cursor = &mut active[index];
            let place = format!("{place}, sequence {}", cursor.id);
            compare(deviation, cursor.sequence, cursor.prompt, cursor.at, logits, rows, &place);
            cursor.at += rows;
            if let Some((_, back)) = cursor.rollback.take_if(|(at, _)| *at == cursor.at) {
                pipeline.truncate(cursor.id, back);
                cursor.at = back;
            }
        }
        active.retain(|cursor| {
            let done = cursor.at == cursor.sequence.tokens.len();
            if done {
                pipeline.release(cursor.id);
            }
            !done
        });
    }
    assert!(largest > 2, "{}: no round had more than two sequences", expectations.name);
}
