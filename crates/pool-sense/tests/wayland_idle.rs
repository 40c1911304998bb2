//! A Wayland compositor with ext-idle-notify-v1, made of wayland-server.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use pool_sense::{IdleSource, Presence, Senses, Snapshot, Surroundings};
use tokio::runtime::Runtime;
use wayland_protocols::ext::idle_notify::v1::server::{
    ext_idle_notification_v1::{self, ExtIdleNotificationV1},
    ext_idle_notifier_v1::{self, ExtIdleNotifierV1},
};
use wayland_server::{
    Client, DataInit, Dispatch, Display, DisplayHandle, GlobalDispatch, ListeningSocket, New,
    backend::{ClientData, ClientId, DisconnectReason},
    protocol::wl_seat::{self, WlSeat},
};

use support::{in_time, nowhere, start, time_to_news, wait_for};

const SECOND: Duration = Duration::from_secs(1);

struct Subscription {
    notification: ExtIdleNotificationV1,
    timeout: Duration,
    /// Only input counts, not a film (version 2).
    input_only: bool,
    is_idle: bool,
}

struct State {
    subscriptions: Vec<Subscription>,
    last_input: Instant,
    film_runs: bool,
    film_changed: Instant,
}

impl State {
    fn touch(&mut self) {
        self.last_input = Instant::now();
        for subscription in self.subscriptions.iter_mut().filter(|subscription| subscription.is_idle) {
            subscription.is_idle = false;
            subscription.notification.resumed();
        }
    }

    /// A film begins or ends: for whoever counts it, the time without input begins anew, as in wlroots.
    fn film(&mut self, runs: bool) {
        (self.film_runs, self.film_changed) = (runs, Instant::now());
        for subscription in self.subscriptions.iter_mut().filter(|subscription| !subscription.input_only) {
            if runs && subscription.is_idle {
                subscription.is_idle = false;
                subscription.notification.resumed();
            }
        }
    }

    fn tell_who_is_idle(&mut self) {
        for subscription in &mut self.subscriptions {
            let (since, counts) = match subscription.input_only {
                true => (self.last_input, true),
                false => (self.last_input.max(self.film_changed), !self.film_runs),
            };
            if !subscription.is_idle && counts && since.elapsed() >= subscription.timeout {
                subscription.is_idle = true;
                subscription.notification.idled();
            }
        }
    }
}

enum Order {
    Touch,
    Film(bool),
    /// The keyboard and the mouse are pulled out, or plugged in.
    Seat(bool),
}

/// A compositor on a thread; ends when dropped.
struct Compositor {
    orders: mpsc::Sender<Order>,
    hangs: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Compositor {
    /// Offers `version` of the protocol; 0 is none.
    fn start(socket: &Path, version: u32) -> Self {
        let listener = ListeningSocket::bind_absolute(socket.to_owned()).expect("the socket's place is free");
        let (orders, inbox) = mpsc::channel();
        let hangs = Arc::new(AtomicBool::new(false));
        let is_hanging = hangs.clone();
        let thread = thread::spawn(move || {
            let mut display: Display<State> = Display::new().unwrap();
            let handle = display.handle();
            let mut seat = Some(handle.create_global::<State, WlSeat, ()>(7, ()));
            if version > 0 {
                handle.create_global::<State, ExtIdleNotifierV1, ()>(version, ());
            }
            let now = Instant::now();
            let mut state = State { subscriptions: Vec::new(), last_input: now, film_runs: false, film_changed: now };
            loop {
                match inbox.recv_timeout(Duration::from_millis(2)) {
                    Ok(Order::Touch) => state.touch(),
                    Ok(Order::Film(runs)) => state.film(runs),
                    Ok(Order::Seat(true)) => seat = Some(handle.create_global::<State, WlSeat, ()>(7, ())),
                    Ok(Order::Seat(false)) => {
                        seat.take().into_iter().for_each(|seat| handle.remove_global::<State>(seat))
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
                if is_hanging.load(Ordering::SeqCst) {
                    continue;
                }
                if let Some(stream) = listener.accept().unwrap() {
                    display.handle().insert_client(stream, Arc::new(Nobody)).unwrap();
                }
                display.dispatch_clients(&mut state).unwrap();
                state.tell_who_is_idle();
                display.flush_clients().unwrap();
            }
        });
        Self { orders, hangs, thread: Some(thread) }
    }

    fn order(&self, order: Order) {
        self.orders.send(order).expect("the compositor lives");
    }
}

impl Drop for Compositor {
    fn drop(&mut self) {
        self.orders = mpsc::channel().0;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the compositor did not panic");
        }
    }
}

struct Nobody;

impl ClientData for Nobody {
    fn initialized(&self, _: ClientId) {}
    fn disconnected(&self, _: ClientId, _: DisconnectReason) {}
}

impl GlobalDispatch<WlSeat, ()> for State {
    fn bind(_: &mut Self, _: &DisplayHandle, _: &Client, new: New<WlSeat>, _: &(), data: &mut DataInit<'_, Self>) {
        data.init(new, ());
    }
}

impl Dispatch<WlSeat, ()> for State {
    fn request(
        _: &mut Self,
        _: &Client,
        _: &WlSeat,
        _: wl_seat::Request,
        _: &(),
        _: &DisplayHandle,
        _: &mut DataInit<'_, Self>,
    ) {
    }
}

impl GlobalDispatch<ExtIdleNotifierV1, ()> for State {
    fn bind(
        _: &mut Self,
        _: &DisplayHandle,
        _: &Client,
        new: New<ExtIdleNotifierV1>,
        _: &(),
        data: &mut DataInit<'_, Self>,
    ) {
        data.init(new, ());
    }
}

impl Dispatch<ExtIdleNotifierV1, ()> for State {
    fn request(
        state: &mut Self,
        _: &Client,
        _: &ExtIdleNotifierV1,
        request: ext_idle_notifier_v1::Request,
        _: &(),
        _: &DisplayHandle,
        data: &mut DataInit<'_, Self>,
    ) {
        let (id, timeout, input_only) = match request {
            ext_idle_notifier_v1::Request::GetIdleNotification { id, timeout, .. } => (id, timeout, false),
            ext_idle_notifier_v1::Request::GetInputIdleNotification { id, timeout, .. } => (id, timeout, true),
            _ => return,
        };
        let notification = data.init(id, ());
        let timeout = Duration::from_millis(timeout.into());
        state.subscriptions.push(Subscription { notification, timeout, input_only, is_idle: false });
    }
}

impl Dispatch<ExtIdleNotificationV1, ()> for State {
    fn request(
        _: &mut Self,
        _: &Client,
        _: &ExtIdleNotificationV1,
        _: ext_idle_notification_v1::Request,
        _: &(),
        _: &DisplayHandle,
        _: &mut DataInit<'_, Self>,
    ) {
    }

    fn destroyed(state: &mut Self, _: ClientId, gone: &ExtIdleNotificationV1, _: &()) {
        state.subscriptions.retain(|subscription| &subscription.notification != gone);
    }
}

fn at(socket: &Path) -> Surroundings {
    Surroundings { wayland_socket: Some(socket.to_owned()), ..nowhere() }
}

fn socket(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("wayland-test")
}

fn idle(snapshot: &Snapshot) -> Option<Duration> {
    snapshot.input.reading.known().map(|idle| idle.idle_for)
}

fn away_for(senses: &Senses, at_least: Duration) -> Snapshot {
    wait_for(senses, 10 * SECOND, "nobody is there", |now| idle(now).is_some_and(|idle| idle >= at_least))
}

#[test]
fn the_compositor_says_when_somebody_leaves_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let compositor = Compositor::start(&socket(&folder), 2);
    let senses = start(&at(&socket(&folder)));
    let now = senses.snapshot();
    assert_eq!(now.input.reading.known().map(|idle| idle.source), Some(IdleSource::ExtIdleNotify), "{now:?}");
    let runtime = Runtime::new().unwrap();
    let mut news = senses.input();
    let mut latencies = Vec::new();
    for _ in 0..6 {
        let before = Instant::now();
        compositor.order(Order::Touch);
        let away = away_for(&senses, Duration::from_millis(1500));
        let (told, truth) = (idle(&away).unwrap(), before.elapsed());
        assert!(told <= truth, "never more than the truth: told {told:?} after {truth:?}");
        news.mark_unchanged();
        let touched = Instant::now();
        compositor.order(Order::Touch);
        latencies.push(time_to_news(&runtime, &mut news, touched));
        wait_for(&senses, SECOND, "somebody is there", |now| idle(now).is_some_and(|idle| idle < SECOND));
    }
    in_time("ext-idle-notify, from the input to its being told", latencies);
    away_for(&senses, 7 * SECOND);
}

#[test]
fn while_somebody_types_no_second_first_input_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let compositor = Compositor::start(&socket(&folder), 2);
    let senses = start(&at(&socket(&folder)));
    let runtime = Runtime::new().unwrap();
    let mut news = senses.input();
    away_for(&senses, 3 * SECOND / 2);
    news.mark_unchanged();
    compositor.order(Order::Touch);
    time_to_news(&runtime, &mut news, Instant::now());
    news.mark_unchanged();
    for _ in 0..30 {
        thread::sleep(Duration::from_millis(100));
        compositor.order(Order::Touch);
    }
    assert!(idle(&senses.snapshot()).unwrap() < SECOND, "they are typing");
    assert!(!news.has_changed().unwrap(), "the first key press was told, the thirty after it are not");
    away_for(&senses, 3 * SECOND / 2);
    assert!(!news.has_changed().unwrap(), "leaving is no input");
}

#[test]
fn a_film_is_an_owner_in_every_version() {
    for version in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let compositor = Compositor::start(&socket(&folder), version);
        let senses = start(&at(&socket(&folder)));
        away_for(&senses, 2 * SECOND);
        compositor.order(Order::Film(true));
        let is_present = |now: &Snapshot| idle(now).is_some_and(|idle| idle < SECOND);
        wait_for(&senses, SECOND, "whoever starts a film is there", is_present);
        let until = Instant::now() + 3 * SECOND;
        while Instant::now() < until {
            let now = senses.snapshot();
            assert!(
                is_present(&now),
                "version {version}: nobody touches anything while the film runs, {:?}",
                now.input
            );
            thread::sleep(Duration::from_millis(50));
        }
        compositor.order(Order::Film(false));
        away_for(&senses, 2 * SECOND);
    }
}

#[test]
fn a_seat_that_is_taken_away_tells_nothing_until_there_is_one_again() {
    let folder = tempfile::tempdir().unwrap();
    let compositor = Compositor::start(&socket(&folder), 2);
    let senses = start(&at(&socket(&folder)));
    away_for(&senses, 3 * SECOND / 2);
    compositor.order(Order::Seat(false));
    let now = wait_for(&senses, 10 * SECOND, "nobody can touch what is not there", |now| idle(now).is_none());
    let told = now.input.reading.to_string();
    assert!(told.contains("has no seat to watch"), "what is wrong is said: {told}");
    compositor.order(Order::Seat(true));
    away_for(&senses, 3 * SECOND / 2);
    compositor.order(Order::Touch);
    wait_for(&senses, SECOND, "the new seat is watched", |now| idle(now).is_some_and(|idle| idle < SECOND));
}

#[test]
fn a_compositor_without_the_protocol_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let _compositor = Compositor::start(&socket(&folder), 0);
    let told = start(&at(&socket(&folder))).snapshot().input.reading.to_string();
    assert!(told.contains("does not offer ext-idle-notify-v1"), "as GNOME's: {told}");
}

#[test]
fn a_compositor_that_ends_or_hangs_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let compositor = Compositor::start(&socket(&folder), 2);
    let senses = start(&at(&socket(&folder)));
    assert!(idle(&senses.snapshot()).is_some(), "it tells");
    drop(compositor);
    let now = wait_for(&senses, 10 * SECOND, "it is gone", |now| idle(now).is_none());
    let told = now.input.reading.to_string();
    assert!(told.contains("cannot be reached"), "what is wrong is said: {told}");
    let compositor = Compositor::start(&socket(&folder), 2);
    wait_for(&senses, 10 * SECOND, "the next session tells", |now| idle(now).is_some());
    compositor.hangs.store(true, Ordering::SeqCst);
    let now = wait_for(&senses, 15 * SECOND, "it hangs", |now| idle(now).is_none());
    let told = now.input.reading.to_string();
    assert!(told.contains("has not answered within 250 ms"), "what is wrong is said: {told}");
    compositor.hangs.store(false, Ordering::SeqCst);
    wait_for(&senses, 10 * SECOND, "it woke up", |now| idle(now).is_some());
}
