//! How fast memory streams: the figure that bounds decoding, which reads every weight once per token.
//!
//! Method: each thread sums its part of a buffer that no cache holds, over and over, and the best whole pass of all
//! threads counts, as STREAM does (McCalpin 1995): interruptions only ever make a pass slower.

use std::{
    hint::black_box,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use crate::SenseError;

/// Larger than the last-level cache of consumer processors, small beside a model.
const BUFFER_BYTES: usize = 128 << 20;

/// Passes after which more tell nothing new.
const MOST_PASSES: u32 = 64;

/// Bytes per second that `threads` threads (at least one) read from memory together. Takes `budget` and the time to
/// write 128 MiB first, about 0.1 s; at least one pass is timed however small the budget.
pub fn measure_memory_bandwidth(budget: Duration, threads: usize) -> Result<f64, SenseError> {
    let threads = threads.max(1);
    let words = BUFFER_BYTES / size_of::<u64>();
    let mut buffer: Vec<u64> = Vec::new();
    buffer.try_reserve_exact(words).map_err(|_| SenseError::NoMemory { needed: BUFFER_BYTES })?;
    // Written, so that every page is really there: untouched pages are one shared page of zeros.
    buffer.extend(0..words as u64);

    let began = Instant::now();
    let mut best = Duration::MAX;
    let parts: Vec<&[u64]> = buffer.chunks(words.div_ceil(threads)).collect();
    for _ in 0..MOST_PASSES {
        best = best.min(one_pass(&parts));
        if began.elapsed() >= budget {
            break;
        }
    }
    Ok(BUFFER_BYTES as f64 / best.max(Duration::from_nanos(1)).as_secs_f64())
}

/// The time from the moment all threads are ready until the last has read its part.
fn one_pass(parts: &[&[u64]]) -> Duration {
    if let [only] = parts {
        let began = Instant::now();
        black_box(sum(only));
        return began.elapsed();
    }
    let ready = Barrier::new(parts.len() + 1);
    thread::scope(|scope| {
        let readers: Vec<_> = (parts.iter())
            .map(|part| {
                scope.spawn(|| {
                    ready.wait();
                    let began = Instant::now();
                    black_box(sum(part));
                    (began, Instant::now())
                })
            })
            .collect();
        ready.wait();
        let times: Vec<(Instant, Instant)> = readers.into_iter().filter_map(|reader| reader.join().ok()).collect();
        let first = times.iter().map(|(began, _)| *began).min();
        let last = times.iter().map(|(_, ended)| *ended).max();
        first.zip(last).map_or(Duration::MAX, |(first, last)| last - first)
    })
}

/// Eight sums side by side, so that the additions never wait for each other and vectorise.
fn sum(words: &[u64]) -> u64 {
    let (eights, rest) = words.as_chunks::<8>();
    let mut lanes = [0u64; 8];
    for eight in eights {
        for (lane, word) in lanes.iter_mut().zip(eight) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}
