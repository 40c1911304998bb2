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
        powercap: Some("/no/such/folder".into()),
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

/// The first input after a pause is told within this time, for the GPU must be back before the owner notices.
const AT_ONCE: Duration = Duration::from_millis(250);

/// Every latency is short. Of several one may be longer, for the machine that runs the tests may itself have stood
/// still; but none is as long as the next look of a source that has missed the input.
pub(crate) fn in_time(name: &str, mut latencies: Vec<Duration>) {
    latencies.sort();
    let (least, most) = (latencies[0], latencies[latencies.len() - 1]);
    println!(
        "{name}: median {:?}, least {least:?}, most {most:?} of {}",
        latencies[latencies.len() / 2],
        latencies.len()
    );
    let late = latencies.iter().filter(|latency| **latency > AT_ONCE).count();
    assert!(late <= usize::from(latencies.len() > 1), "{name}: {late} are later than {AT_ONCE:?}: {latencies:?}");
    assert!(most < Duration::from_secs(1), "{name}: {latencies:?}");
}
