//! The real parts that the tests run: an X server, a D-Bus daemon, and services on it.
#![allow(dead_code, reason = "each test program uses some of it")]

pub(crate) mod bus;
pub(crate) mod services;
pub(crate) mod x_server;

use std::{
    process::Child,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pool_sense::{Presence, Senses, Snapshot, Surroundings};

/// Nothing is where a sensor could look, unless a test puts it there.
pub(crate) fn nowhere() -> Surroundings {
    Surroundings {
        power_supplies: Some("/no/such/folder".into()),
        joysticks: Some("/no/such/folder".into()),
        nvml: Some("/no/such/library.so".into()),
        ..Surroundings::default()
    }
}

pub(crate) fn start(surroundings: &Surroundings) -> Senses {
    let senses = Senses::start(surroundings).expect("threads can be started");
    assert!(senses.wait_for_first_readings(Duration::from_secs(20)), "every sensor answers or says why it does not");
    senses
}

/// Waits until the snapshot is as wanted; fails with `reason` and the last snapshot after `at_most`.
pub(crate) fn wait_for(
    senses: &Senses,
    at_most: Duration,
    reason: &str,
    wanted: impl Fn(&Snapshot) -> bool,
) -> Snapshot {
    let until = Instant::now() + at_most;
    loop {
        let now = senses.snapshot();
        if wanted(&now) {
            return now;
        }
        assert!(Instant::now() < until, "{reason}; after {at_most:?} it is {now:#?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A child process that ends with its owner.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Asked first: an X server that is killed leaves its lock behind. It may have ended by itself.
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let until = Instant::now() + Duration::from_secs(2);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Blocks until the input is told anew, and says how long after `since`.
pub(crate) fn time_to_news(
    runtime: &tokio::runtime::Runtime,
    news: &mut tokio::sync::watch::Receiver<pool_types::Reading<Instant>>,
    since: Instant,
) -> Duration {
    let changed = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), news.changed()).await });
    changed.expect("an input is told within five seconds").expect("the senses live");
    since.elapsed()
}

/// Prints latencies and gives the median.
pub(crate) fn report(name: &str, mut latencies: Vec<Duration>) -> Duration {
    latencies.sort();
    let median = latencies[latencies.len() / 2];
    println!(
        "{name}: median {median:?}, least {:?}, most {:?} of {}",
        latencies[0],
        latencies[latencies.len() - 1],
        latencies.len()
    );
    median
}
