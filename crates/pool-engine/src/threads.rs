//! How many threads compute, and how work is shared among them.
//!
//! candle 0.11.1 has two pools, both sized once for the whole process at their first use:
//! - the *barrier pool* (quantised products; our attention and norms share it):
//!   `CANDLE_NUM_THREADS`, else `RAYON_NUM_THREADS`, else the physical cores; its workers spin for
//!   `CANDLE_BARRIER_POOL_SPIN_LIMIT` rounds (25,000) after each task before they sleep;
//! - *rayon* (f32 products): `RAYON_NUM_THREADS`, else the physical cores.
//!
//! With one thread neither pool starts a worker: everything runs on the caller's thread.

use std::{
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::available_parallelism,
};

use candle_core::utils::barrier_pool;

/// The cores this process may use.
pub fn available_threads() -> usize {
    available_parallelism().map_or(1, NonZero::get)
}

/// The environment that makes a child process compute with `threads` threads (at least one, at most
/// the cores available): for a parent that starts shards.
pub fn thread_environment(threads: usize) -> [(&'static str, String); 2] {
    let threads = threads.clamp(1, available_threads()).to_string();
    [("CANDLE_NUM_THREADS", threads.clone()), ("RAYON_NUM_THREADS", threads)]
}

/// Makes this process compute with `threads` threads (at least one, at most the cores available) and
/// returns how many that is. Call it first thing in `main`, before any other thread starts and before
/// any other use of this crate: later calls change nothing. A parent may instead start the process
/// with [`thread_environment`].
#[allow(unsafe_code, reason = "the only way to size candle's process-wide pools from inside")]
pub fn configure_threads(threads: usize) -> usize {
    for (name, value) in thread_environment(threads) {
        // SAFETY: the caller is the only thread (documented above), so nothing reads the environment meanwhile.
        unsafe { std::env::set_var(name, value) };
    }
    threads.clamp(1, available_threads())
}

/// The threads that share one engine's work: the caller and candle's barrier pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crew {
    threads: usize,
}

impl Crew {
    pub(crate) fn new(threads: usize) -> Self {
        Self { threads: threads.max(1) }
    }

    pub(crate) fn threads(self) -> usize {
        self.threads
    }

    /// Runs `work` on every part; parts are taken in order by whichever thread is free.
    pub(crate) fn each<T: Send>(self, parts: Vec<T>, work: impl Fn(T) + Sync) {
        if self.threads == 1 || parts.len() < 2 {
            parts.into_iter().for_each(work);
            return;
        }
        let next = AtomicUsize::new(0);
        let parts: Vec<Mutex<Option<T>>> = parts.into_iter().map(|part| Mutex::new(Some(part))).collect();
        barrier_pool().execute(|_| {
            while let Some(slot) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                let part = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(part) = part {
                    work(part);
                }
            }
        });
    }

    /// Cuts `data` (rows of `width`) into about equal runs of rows, one or a few for each thread, and
    /// runs `work(first_row, run)` on each. Small data stays on the caller's thread.
    pub(crate) fn rows(self, data: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
        const WORTH_SHARING: usize = 32 * 1024;
        if self.threads == 1 || data.len() < WORTH_SHARING || width == 0 {
            work(0, data);
            return;
        }
        let run = (data.len() / width).div_ceil(self.threads).max(1);
        let parts = data.chunks_mut(run * width).enumerate().map(|(i, part)| (i * run, part)).collect();
        self.each(parts, |(first, part): (usize, &mut [f32])| work(first, part));
    }
}
