//! The machine that is measured on: its cores, how busy it is, and keeping this process off the shards' cores.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use pool_sense::{HostSense, Sense};
use serde::Serialize;

/// What a reader must know to judge a figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    /// Cores this process may use, one of each pair of hyperthreads before any second one.
    pub(crate) cores: Vec<usize>,
    /// Whether the first two of `cores` are threads of one physical core.
    pub(crate) first_two_share_a_core: bool,
    pub(crate) memory_bytes: u64,
    /// Built for speed; figures of a debug build say nothing.
    pub(crate) optimised: bool,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let facts = HostSense.facts().unwrap_or_default();
        let allowed = allowed_cores();
        let (first, second): (Vec<usize>, Vec<usize>) =
            allowed.iter().partition(|core| siblings(**core).into_iter().all(|other| other >= **core));
        let cores: Vec<usize> = first.into_iter().chain(second).collect();
        let first_two_share_a_core = match cores[..] {
            [one, two, ..] => siblings(one).contains(&two),
            _ => false,
        };
        Self {
            processor: facts.cpu_name,
            cores,
            first_two_share_a_core,
            memory_bytes: facts.memory_total,
            optimised: !cfg!(debug_assertions),
        }
    }

    /// The cores that no shard is pinned to; all where shards have them all.
    pub(crate) fn beside<'a>(&self, shards: impl IntoIterator<Item = &'a usize>) -> Vec<usize> {
        let shards: Vec<&usize> = shards.into_iter().collect();
        let free: Vec<usize> = self.cores.iter().filter(|core| !shards.contains(core)).copied().collect();
        if free.is_empty() { self.cores.clone() } else { free }
    }
}

/// Threads of the same physical core as `core`, itself among them.
fn siblings(core: usize) -> Vec<usize> {
    let file = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    fs::read_to_string(file).map_or_else(|_| vec![core], |list| cores_of(&list))
}

/// Reads a list of cores as the kernel writes it: `0-3,8`.
fn cores_of(list: &str) -> Vec<usize> {
    let runs = list.trim().split(',').filter_map(|run| {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    runs.flatten().collect()
}

fn allowed_cores() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let cores = list.map(cores_of).unwrap_or_default();
    if cores.is_empty() { (0..std::thread::available_parallelism().map_or(1, usize::from)).collect() } else { cores }
}

/// Moves every thread of this process (the gateway and the client) to these cores. Where the system cannot, the figures
/// say by the processor time beside them how much was in the way.
pub(crate) fn move_to(cores: &[usize]) {
    #[cfg(target_os = "linux")]
    {
        use nix::{
            sched::{CpuSet, sched_setaffinity},
            unistd::Pid,
        };
        let mut set = CpuSet::new();
        if cores.iter().any(|core| set.set(*core).is_err()) {
            return;
        }
        let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        for thread in threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok()) {
            let _ = sched_setaffinity(Pid::from_raw(thread), &set);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = cores;
}

/// Processes that want to run, on average over the last minute; `None` where the system does not say.
pub(crate) fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_ascii_whitespace().next()?.parse().ok()
}

/// Now, like `2026-11-22 16:40:00 UTC`.
pub(crate) fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    crate::when::utc(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read_as_the_kernel_writes_them() {
        assert_eq!(cores_of("0-2,5,8-9\n"), [0, 1, 2, 5, 8, 9]);
        assert_eq!(cores_of(""), Vec::<usize>::new());
    }

    #[test]
    fn the_gateway_goes_beside_the_shards_where_there_is_room() {
        let mut machine = Machine::look();
        machine.cores = vec![0, 1];
        assert_eq!((machine.beside(&[0]), machine.beside(&[0, 1])), (vec![1], vec![0, 1]));
    }
}
