//! What is known before anybody decides by it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::time::{Duration, Instant};

use pool_sense::{Presence, Senses, Snapshot};
use pool_types::Reading;

use support::nowhere;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_node_that_waits_for_the_first_readings_decides_by_all_of_them() {
    let senses = Senses::start(&nowhere()).unwrap();
    assert!(senses.wait_for_first_readings(SOON), "every sensor says what it can, or why not");
    let Snapshot { input, full_screen, kept_awake, programs, power, cpu_energy, metered, gpus } = senses.snapshot();
    let session = [input.age, full_screen.age, kept_awake.age, programs.age];
    let machine = [power.age, cpu_energy.age, metered.age, gpus.age];
    assert!(session.iter().chain(&machine).all(Option::is_some), "each was read: {session:?} {machine:?}");
}

#[test]
fn the_programs_that_the_owner_names_are_looked_for_at_once() {
    let senses = Senses::start(&nowhere()).unwrap();
    assert!(senses.wait_for_first_readings(SOON), "no program is named yet");
    let here = std::env::current_exe().unwrap();
    let here = vec![here.file_name().unwrap().to_str().unwrap().to_owned()];
    let named = Instant::now();
    senses.set_programs(here.clone());
    assert!(senses.wait_for_first_readings(SOON), "this program is looked for");
    assert_eq!(senses.snapshot().programs.reading, Reading::Known(here), "it runs, and nothing is decided before that");
    let took = named.elapsed();
    assert!(took < Duration::from_secs(2), "nobody waits for the next interval, took {took:?}");
}
