//! Is the owner at the keyboard? On a real X server, with xdotool as the owner.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pool_sense::{IdleSource, Presence, Surroundings};
use tokio::runtime::Runtime;
use x11rb::{
    connection::Connection,
    protocol::{xproto::MOTION_NOTIFY_EVENT, xtest::ConnectionExt as _},
};

use support::{in_time, nowhere, start, time_to_news, wait_for, x_server::XServer};

const SECOND: Duration = Duration::from_secs(1);

fn on(server: &XServer) -> Surroundings {
    Surroundings { x11_display: Some(server.display.clone()), ..nowhere() }
}

fn idle(snapshot: &pool_sense::Snapshot) -> Option<Duration> {
    snapshot.input.reading.known().map(|idle| idle.idle_for)
}

#[test]
fn nobody_types_then_somebody_presses_a_key() {
    let server = XServer::start();
    let senses = start(&on(&server));
    server.xdotool(&["key", "a"]);
    let before = Instant::now();
    let away =
        wait_for(&senses, 10 * SECOND, "two seconds pass", |now| idle(now).is_some_and(|idle| idle >= 2 * SECOND));
    assert_eq!(away.input.reading.known().unwrap().source, IdleSource::X11);
    let (told, truth) = (idle(&away).unwrap(), before.elapsed() + SECOND / 2);
    assert!(told <= truth, "never more than the truth: told {told:?}, at most {truth:?} have passed");

    server.xdotool(&["key", "a"]);
    wait_for(&senses, SECOND, "a key press makes the owner present", |now| idle(now).is_some_and(|idle| idle < SECOND));
    wait_for(&senses, 10 * SECOND, "away again", |now| idle(now).is_some_and(|idle| idle >= SECOND));
    server.xdotool(&["mousemove", "100", "100"]);
    wait_for(&senses, SECOND, "so does the mouse", |now| idle(now).is_some_and(|idle| idle < SECOND));
}

#[test]
fn the_first_input_is_told_within_a_quarter_of_a_second() {
    let server = XServer::start();
    let senses = start(&on(&server));
    let runtime = Runtime::new().unwrap();
    let mut news = senses.input();
    let (owner, screen) = x11rb::connect(Some(&server.display)).unwrap();
    let root = owner.setup().roots[screen].root;
    let mut latencies = Vec::new();
    for step in 0..15i16 {
        // Not in step with the senses' own rhythm.
        thread::sleep(Duration::from_millis(300 + 37 * step as u64));
        news.mark_unchanged();
        let touched = Instant::now();
        owner.xtest_fake_input(MOTION_NOTIFY_EVENT, 0, 0, root, 10 + step, 10, 0).unwrap();
        owner.flush().unwrap();
        latencies.push(time_to_news(&runtime, &mut news, touched));
    }
    in_time("X11, from the input to its being told", latencies);

    thread::sleep(SECOND);
    assert!(!news.has_changed().unwrap(), "while nobody touches anything, no input is told");
}

#[test]
fn the_desktop_restarts_and_the_sense_comes_back() {
    let server = XServer::start_on_own_display();
    let senses = start(&on(&server));
    assert!(idle(&senses.snapshot()).is_some(), "the server tells");
    let display = server.display.clone();
    drop(server);
    let gone = wait_for(&senses, 5 * SECOND, "a server that is gone tells nothing", |now| idle(now).is_none());
    let told = gone.input.reading.to_string();
    assert!(told.contains("cannot be reached"), "what is wrong is said: {told}");
    let _again = XServer::start_on(&display).expect("the display is free again");
    wait_for(&senses, 10 * SECOND, "the new server tells", |now| idle(now).is_some());
}

#[test]
fn a_server_that_hangs_makes_the_sense_unavailable_not_wrong() {
    let server = XServer::start();
    let senses = start(&on(&server));
    let pid = Pid::from_raw(server.pid() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    let hung = Instant::now();
    let now = wait_for(&senses, 5 * SECOND, "no answer, no value", |now| idle(now).is_none());
    println!("a hanging X server is noticed after {:?}", hung.elapsed());
    let told = now.input.reading.to_string();
    assert!(told.contains("no answer"), "what is wrong is said: {told}");
    let asked = Instant::now();
    senses.snapshot();
    assert!(asked.elapsed() < Duration::from_millis(100), "nobody waits for the server, {:?}", asked.elapsed());
    kill(pid, Signal::SIGCONT).unwrap();
    wait_for(&senses, 10 * SECOND, "it tells again", |now| idle(now).is_some());
}

#[test]
fn a_headless_machine_says_why_it_cannot_tell() {
    let senses = start(&nowhere());
    let told = senses.snapshot().input.reading.to_string();
    for why in ["no X11 display is set", "no session bus", "no Wayland display is set", "no system bus"] {
        assert!(told.contains(why), "every source says what it lacks, {why} in: {told}");
    }
    assert!(senses.input().borrow().known().is_none(), "and nothing is told as an input");
}
