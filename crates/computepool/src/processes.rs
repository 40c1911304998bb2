//! What `/proc` says of processes.

use std::{collections::BTreeMap, fs, time::Duration};

use crate::state::start_of;

/// Every process that this one started, directly or not, with its start time (from `/proc`).
pub(crate) fn descendants() -> BTreeMap<u32, u64> {
    let parent_of = |process: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: BTreeMap<u32, u32> = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|process| Some((process, parent_of(process)?)))
        .collect();
    let mut found = BTreeMap::new();
    let mut waiting = vec![std::process::id()];
    while let Some(parent) = waiting.pop() {
        for (process, _) in parents.iter().filter(|(_, of)| **of == parent) {
            if let Some(started) = start_of(*process)
                && found.insert(*process, started).is_none()
            {
                waiting.push(*process);
            }
        }
    }
    found
}

/// Time of a process's threads, counted from their starts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// On a processor.
    pub(crate) running: Duration,
    /// Ready to run, while others had the processor.
    pub(crate) waiting: Duration,
}

impl Spent {
    /// Of all threads that the process has now; zero where the system does not say.
    pub(crate) fn of(process: u32) -> Self {
        let mut spent = Self::default();
        for thread in fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
            // Nanoseconds on a processor, nanoseconds waiting for one, and how often (kernel, sched-stats).
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let mut fields = text.split_ascii_whitespace().map(|field| field.parse().map(Duration::from_nanos));
            if let (Some(Ok(running)), Some(Ok(waiting))) = (fields.next(), fields.next()) {
                spent.running += running;
                spent.waiting += waiting;
            }
        }
        spent
    }

    /// What was spent since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            running: self.running.saturating_sub(earlier.running),
            waiting: self.waiting.saturating_sub(earlier.waiting),
        }
    }
}

impl std::iter::Sum for Spent {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            running: sum.running + one.running,
            waiting: sum.waiting + one.waiting,
        })
    }
}
