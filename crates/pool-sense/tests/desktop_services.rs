//! What GNOME, systemd-logind, NetworkManager and screen savers say, on a private D-Bus.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use pool_sense::{IdleSource, Metered, Presence, Senses, Snapshot};
use pool_types::Reading;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;

use support::{
    bus::PrivateBus,
    in_time,
    services::{LoginManager, Mutter, NetworkManager, PlainMonitor, ScreenSaver, Session, SessionManager},
    start, time_to_news, wait_for,
};

const SECOND: Duration = Duration::from_secs(1);

fn idle(snapshot: &Snapshot) -> Option<Duration> {
    snapshot.input.reading.known().map(|idle| idle.idle_for)
}

fn away_for(senses: &Senses, at_least: Duration) -> Snapshot {
    wait_for(senses, 10 * SECOND, "nobody is there", |now| idle(now).is_some_and(|idle| idle >= at_least))
}

#[test]
fn gnome_says_when_somebody_comes_back_and_is_not_asked_all_the_time() {
    let (bus, runtime) = (PrivateBus::start(), Runtime::new().unwrap());
    let mutter = Mutter::idle_since(Instant::now() - 100 * SECOND);
    let service = runtime.block_on(mutter.start(&bus.address));
    let senses = start(&bus.surroundings());
    let now = away_for(&senses, 100 * SECOND);
    assert_eq!(now.input.reading.known().unwrap().source, IdleSource::Mutter);

    thread::sleep(SECOND / 2);
    let before = mutter.questions.load(Ordering::SeqCst);
    thread::sleep(3 * SECOND);
    let asked = mutter.questions.load(Ordering::SeqCst) - before;
    assert!(asked <= 1, "while nobody is there GNOME watches for us and is left alone, it was asked {asked} times");

    let mut news = senses.input();
    let mut latencies = Vec::new();
    for _ in 0..8 {
        away_for(&senses, Duration::from_millis(1600));
        news.mark_unchanged();
        let touched = Instant::now();
        runtime.block_on(mutter.touch(&service));
        latencies.push(time_to_news(&runtime, &mut news, touched));
    }
    in_time("GNOME, from the input to its being told", latencies);
}

#[test]
fn a_compositor_that_is_started_again_watches_again() {
    let (bus, runtime) = (PrivateBus::start(), Runtime::new().unwrap());
    let mutter = Mutter::idle_since(Instant::now() - 100 * SECOND);
    let mut service = runtime.block_on(mutter.start(&bus.address));
    let senses = start(&bus.surroundings());
    let mut news = senses.input();
    let mut latencies = Vec::new();
    for _ in 0..4 {
        away_for(&senses, Duration::from_millis(1600));
        thread::sleep(SECOND / 2);
        // The watch is lost with the one it was asked of.
        drop(service);
        service = runtime.block_on(mutter.start(&bus.address));
        thread::sleep(SECOND / 2);
        away_for(&senses, Duration::from_millis(1600));
        news.mark_unchanged();
        let touched = Instant::now();
        runtime.block_on(mutter.touch(&service));
        latencies.push(time_to_news(&runtime, &mut news, touched));
    }
    in_time("GNOME after a restart, from the input to its being told", latencies);
}

#[test]
fn an_idle_monitor_that_cannot_watch_is_asked_often_enough() {
    let (bus, runtime) = (PrivateBus::start(), Runtime::new().unwrap());
    let last_input = Arc::new(Mutex::new(Instant::now() - 100 * SECOND));
    let _service = runtime.block_on(PlainMonitor(last_input.clone()).start(&bus.address));
    let senses = start(&bus.surroundings());
    let mut news = senses.input();
    let mut latencies = Vec::new();
    for _ in 0..5 {
        away_for(&senses, Duration::from_millis(1600));
        news.mark_unchanged();
        let touched = Instant::now();
        *last_input.lock().unwrap() = touched;
        latencies.push(time_to_news(&runtime, &mut news, touched));
    }
    in_time("an idle monitor without watches, polled while nobody is there", latencies);
}

#[test]
fn a_desktop_that_hangs_costs_nobody_else_anything_and_recovers() {
    let (bus, runtime) = (PrivateBus::start(), Runtime::new().unwrap());
    let mutter = Mutter::idle_since(Instant::now() - 100 * SECOND);
    let _service = runtime.block_on(mutter.start(&bus.address));
    let _network = runtime.block_on(NetworkManager(Arc::new(AtomicU32::new(2))).start(&bus.address));
    let senses = start(&bus.surroundings());
    away_for(&senses, 100 * SECOND);
    mutter.hangs.store(true, Ordering::SeqCst);
    let now = wait_for(&senses, 15 * SECOND, "a silent desktop tells nothing", |now| idle(now).is_none());
    let told = now.input.reading.to_string();
    assert!(told.contains("org.gnome.Mutter.IdleMonitor has not answered within 250 ms"), "it says why: {told}");
    assert!(now.metered.reading.known().is_some(), "the network's sensor goes on: {:?}", now.metered);
    let mut longest = Duration::ZERO;
    for _ in 0..200 {
        let asked = Instant::now();
        senses.snapshot();
        longest = longest.max(asked.elapsed());
        thread::sleep(Duration::from_millis(2));
    }
    println!("the longest of 200 snapshots beside a hanging service: {longest:?}");
    assert!(longest < Duration::from_millis(100), "a snapshot waits for nobody, the longest took {longest:?}");
    mutter.hangs.store(false, Ordering::SeqCst);
    away_for(&senses, 100 * SECOND);
}

#[test]
fn a_service_that_starts_later_is_found() {
    let (bus, runtime) = (PrivateBus::start(), Runtime::new().unwrap());
    let senses = start(&bus.surroundings());
    let now = senses.snapshot();
    assert_eq!(
        now.metered.reading.to_string(),
        "unavailable, because org.freedesktop.NetworkManager is not running",
        "and it was not started by our asking"
    );
    assert!(idle(&now).is_none(), "nobody tells the last input: {:?}", now.input);
    let mutter = Mutter::idle_since(Instant::now());
    let _mutter = runtime.block_on(mutter.start(&bus.address));
    let _network = runtime.block_on(NetworkManager(Arc::new(AtomicU32::new(1))).start(&bus.address));
    wait_for(&senses, 10 * SECOND, "GNOME has started", |now| idle(now).is_some());
    let metered = Reading::Known(Metered { metered: true, stated: true });
    wait_for(&senses, 15 * SECOND, "the network has come up", |now| now.metered.reading == metered);
}

#[test]
fn the_login_managers_hint_never_counts_alone() {
    let (bus, runtime) = (PrivateBus::start(), Runtime::new().unwrap());
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
    let since = now.saturating_sub(60 * SECOND).as_micros() as u64;
    let session = Session { idle: true, idle_since_monotonic: since, locked: false };
    let service = runtime.block_on(session.start(&bus.address));
    let active = Arc::new(AtomicBool::new(false));
    let _saver = runtime.block_on(ScreenSaver(active.clone()).start(&bus.address));
    let senses = start(&bus.surroundings());
    let told = senses.snapshot().input.reading.to_string();
    assert!(told.contains("no locked screen or active screen saver confirms it"), "one witness is none: {told}");

    active.store(true, Ordering::SeqCst);
    let seen = away_for(&senses, 55 * SECOND);
    assert_eq!(seen.input.reading.known().unwrap().source, IdleSource::Login, "two witnesses agree");
    active.store(false, Ordering::SeqCst);
    wait_for(&senses, 10 * SECOND, "the screen saver ended", |now| idle(now).is_none());

    runtime.block_on(Session::change(&service, |session| session.locked = true));
    away_for(&senses, 55 * SECOND);
    let mut news = senses.input();
    news.mark_unchanged();
    let touched = Instant::now();
    runtime.block_on(Session::change(&service, |session| (session.idle, session.locked) = (false, false)));
    let took = time_to_news(&runtime, &mut news, touched);
    in_time("the login manager's change", vec![took]);
    let told = senses.snapshot().input.reading.to_string();
    assert!(told.contains("many desktops never tell it"), "an unset hint is not taken for somebody's presence: {told}");
}

#[test]
fn a_film_keeps_the_screen_awake() {
    let (bus, runtime) = (PrivateBus::start(), Runtime::new().unwrap());
    let manager = SessionManager::default();
    let flags = manager.inhibited.clone();
    let _session = runtime.block_on(manager.start(&bus.address));
    let senses = start(&bus.surroundings());
    assert_eq!(senses.snapshot().kept_awake.reading, Reading::Known(false), "nobody asks for it");
    flags.store(4, Ordering::SeqCst);
    thread::sleep(5 * SECOND / 2);
    assert_eq!(senses.snapshot().kept_awake.reading, Reading::Known(false), "a download that forbids sleep is no film");
    flags.store(8, Ordering::SeqCst);
    let kept = |now: &Snapshot| now.kept_awake.reading == Reading::Known(true);
    wait_for(&senses, 10 * SECOND, "a film inhibits idleness", kept);
}

#[test]
fn who_knows_of_films_and_is_silent_is_not_taken_for_no() {
    let (bus, runtime) = (PrivateBus::start(), Runtime::new().unwrap());
    let manager = SessionManager::default();
    manager.hangs.store(true, Ordering::SeqCst);
    let _session = runtime.block_on(manager.clone().start(&bus.address));
    let _login = runtime.block_on(LoginManager("shutdown:sleep".to_owned()).start(&bus.address));
    let senses = start(&bus.surroundings());
    let told = senses.snapshot().kept_awake.reading.to_string();
    let why = "unavailable, because org.gnome.SessionManager has not answered within 250 ms";
    assert_eq!(told, why, "the login manager knows nothing of GNOME's films, and its no is not GNOME's");
    manager.hangs.store(false, Ordering::SeqCst);
    wait_for(&senses, 10 * SECOND, "GNOME says no", |now| now.kept_awake.reading == Reading::Known(false));
}

#[test]
fn the_login_manager_knows_of_presentations_too() {
    let (bus, runtime) = (PrivateBus::start(), Runtime::new().unwrap());
    let inhibited = |what: &str| {
        let service = runtime.block_on(LoginManager(what.to_owned()).start(&bus.address));
        let reading = start(&bus.surroundings()).snapshot().kept_awake.reading;
        runtime.block_on(service.close()).unwrap();
        reading
    };
    assert_eq!(inhibited("shutdown:sleep"), Reading::Known(false), "an update that forbids shutting down");
    assert_eq!(inhibited("sleep:idle"), Reading::Known(true), "a presentation");
    let told = start(&bus.surroundings()).snapshot().kept_awake.reading.to_string();
    assert!(told.contains("org.gnome.SessionManager is not running"), "nobody can be asked: {told}");
}

#[test]
fn networkmanager_knows_or_guesses_or_does_not_know() {
    let (bus, runtime) = (PrivateBus::start(), Runtime::new().unwrap());
    let value = Arc::new(AtomicU32::new(0));
    let _network = runtime.block_on(NetworkManager(value.clone()).start(&bus.address));
    let expected = [
        (1, "yes"),
        (2, "no"),
        (3, "probably"),
        (4, "probably not"),
        (0, "unavailable, because NetworkManager does not know the present connection"),
    ];
    for (number, words) in expected {
        value.store(number, Ordering::SeqCst);
        let told = start(&bus.surroundings()).snapshot().metered.reading.to_string();
        assert_eq!(told, words, "NMMetered {number}");
    }
}
