//! What the senses themselves cost. One test alone in its program: it measures the whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::{
    sync::{Arc, atomic::AtomicU32},
    thread,
    time::{Duration, Instant},
};

use nix::sys::resource::{UsageWho, getrusage};
use pool_sense::{Presence, Surroundings};
use tokio::runtime::Runtime;

use support::{
    bus::PrivateBus,
    services::{NetworkManager, SessionManager},
    start,
    x_server::XServer,
};

fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = |value: nix::sys::time::TimeVal| Duration::new(value.tv_sec() as u64, value.tv_usec() as u32 * 1000);
    time(usage.user_time()) + time(usage.system_time())
}

#[test]
fn a_paused_node_looks_around_for_less_than_half_a_percent_of_a_core() {
    let (server, bus) = (XServer::start(), PrivateBus::start());
    // The services answer from this process and are counted with it.
    let runtime = Runtime::new().unwrap();
    let _network = runtime.block_on(NetworkManager(Arc::new(AtomicU32::new(2))).start(&bus.address));
    let _session = runtime.block_on(SessionManager::default().start(&bus.address));
    let surroundings =
        Surroundings { x11_display: Some(server.display.clone()), power_supplies: None, ..bus.surroundings() };
    let senses = start(&surroundings);
    senses.set_programs(vec!["blender".to_owned(), "steam".to_owned()]);

    let (began, used) = (Instant::now(), processor_time());
    thread::sleep(Duration::from_secs(12));
    let share = (processor_time() - used).as_secs_f64() / began.elapsed().as_secs_f64();
    println!("the senses use {:.3} % of a core", share * 100.0);
    assert!(share < 0.005, "a paused node must not be felt, it used {:.3} % of a core", share * 100.0);

    let mut times: Vec<Duration> = (0..1000)
        .map(|_| {
            let asked = Instant::now();
            std::hint::black_box(senses.snapshot());
            asked.elapsed()
        })
        .collect();
    times.sort();
    println!("a snapshot: median {:?}, most {:?}", times[500], times[999]);
    assert!(times[500] < Duration::from_millis(1), "a snapshot is cheap, the median is {:?}", times[500]);

    let began = Instant::now();
    drop(senses);
    assert!(began.elapsed() < Duration::from_secs(2), "its threads end with it, took {:?}", began.elapsed());
}
