//! Wayland compositors with ext-idle-notify-v1: KDE, sway, Hyprland and others. GNOME has none.
//!
//! It is a subscription: the compositor says when nothing was touched for a second, and when something is touched
//! again; nobody asks meanwhile. Of the protocol's two subscriptions we take the first version's: it does not count time
//! in which a program keeps the screen awake, for somebody who watches a film is there. The second version's, by input
//! alone, would call them away.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use pool_types::Reading;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use thiserror::Error;
use wayland_client::{
    Connection, Dispatch, DispatchError, EventQueue, QueueHandle,
    backend::WaylandError,
    delegate_noop,
    protocol::{
        wl_callback::{self, WlCallback},
        wl_registry::{self, WlRegistry},
        wl_seat::WlSeat,
    },
};
use wayland_protocols::ext::idle_notify::v1::client::{
    ext_idle_notification_v1::{self, ExtIdleNotificationV1},
    ext_idle_notifier_v1::ExtIdleNotifierV1,
};

use crate::sensor::{InputSource, LastInput, Sensor, reading};

/// The compositor tells us after this time without input.
const QUIET: Duration = Duration::from_secs(1);

/// How long it may take for an answer.
const DEADLINE: Duration = Duration::from_millis(250);

/// How often it is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(5);

/// How much later than the input its event may be read: our own waits are shorter.
const DELIVERY: Duration = Duration::from_millis(50);

/// Why a compositor tells nothing.
#[derive(Debug, Error)]
pub(super) enum IdleNotifyError {
    #[error("no Wayland display is set")]
    NoDisplay,
    #[error("the Wayland compositor at {} cannot be reached", .0.display())]
    Connect(PathBuf, #[source] io::Error),
    #[error("the Wayland connection could not be set up")]
    SetUp(#[source] wayland_client::ConnectError),
    #[error("the Wayland compositor does not offer ext-idle-notify-v1")]
    NotOffered,
    #[error("the Wayland compositor has no seat to watch")]
    NoSeat,
    #[error("the Wayland compositor has taken back the seat that was watched, or its idle notifier")]
    Withdrawn,
    #[error("the Wayland compositor has not answered within {} ms", DEADLINE.as_millis())]
    Silent,
    #[error("the connection to the Wayland compositor broke")]
    Broken(#[from] WaylandError),
    #[error("the Wayland compositor sent something unknown")]
    Events(#[from] DispatchError),
}

/// What the compositor has said so far.
struct Said {
    /// The registry's names of what we use.
    notifier: Option<u32>,
    seat: Option<u32>,
    /// One of the two is gone, and with it the subscription.
    is_withdrawn: bool,
    /// Since when we know that nothing is touched; `None` while something is.
    idle_since: Option<Instant>,
    /// When something was touched again.
    resumed_at: Instant,
    answers: u32,
}

/// Listens to a compositor.
pub(super) struct WaylandInput {
    connection: Connection,
    queue: EventQueue<Said>,
    said: Said,
    /// Kept: dropping it ends the subscription at some compositors.
    _notification: ExtIdleNotificationV1,
    ping_at: Instant,
}

impl WaylandInput {
    pub(super) fn open(socket: Option<&Path>) -> Result<Self, IdleNotifyError> {
        let socket = socket.ok_or(IdleNotifyError::NoDisplay)?;
        let stream = UnixStream::connect(socket).map_err(|e| IdleNotifyError::Connect(socket.to_owned(), e))?;
        let connection = Connection::from_socket(stream).map_err(IdleNotifyError::SetUp)?;
        let mut queue: EventQueue<Said> = connection.new_event_queue();
        let handle = queue.handle();
        let mut said = Said {
            notifier: None,
            seat: None,
            is_withdrawn: false,
            idle_since: None,
            resumed_at: Instant::now(),
            answers: 0,
        };
        let registry = connection.display().get_registry(&handle, ());
        ask(&connection, &mut queue, &mut said)?;
        let notifier = said.notifier.ok_or(IdleNotifyError::NotOffered)?;
        let seat = said.seat.ok_or(IdleNotifyError::NoSeat)?;
        let notifier: ExtIdleNotifierV1 = registry.bind(notifier, 1, &handle, ());
        let seat: WlSeat = registry.bind(seat, 1, &handle, ());
        let notification = notifier.get_idle_notification(QUIET.as_millis() as u32, &seat, &handle, ());
        ask(&connection, &mut queue, &mut said)?;
        let ping_at = Instant::now() + PING_EVERY;
        Ok(Self { connection, queue, said, _notification: notification, ping_at })
    }

    fn look(&mut self) -> Result<LastInput, IdleNotifyError> {
        pump(&self.connection, &mut self.queue, &mut self.said, Duration::ZERO)?;
        if Instant::now() >= self.ping_at {
            ask(&self.connection, &mut self.queue, &mut self.said)?;
            self.ping_at = Instant::now() + PING_EVERY;
        }
        if self.said.is_withdrawn {
            return Err(IdleNotifyError::Withdrawn);
        }
        let now = Instant::now();
        Ok(match self.said.idle_since {
            Some(since) => {
                let idle = now.saturating_duration_since(since) + QUIET;
                LastInput::between(now, idle, idle + DELIVERY)
            }
            // Somebody came back this long ago, or touched something within the last second.
            None => {
                let back_for = now.saturating_duration_since(self.said.resumed_at) + DELIVERY;
                LastInput::between(now, Duration::ZERO, back_for.min(QUIET + DELIVERY))
            }
        })
    }
}

impl Sensor<LastInput> for WaylandInput {
    fn read(&mut self) -> Reading<LastInput> {
        reading(self.look())
    }
}

impl InputSource for WaylandInput {
    fn wait(&mut self, at_most: Duration) {
        // A broken connection is reported by the next reading; it must not be asked in a tight loop.
        if pump(&self.connection, &mut self.queue, &mut self.said, at_most).is_err() {
            thread::sleep(at_most);
        }
    }
}

/// Asks for a sign of life and waits for it.
fn ask(connection: &Connection, queue: &mut EventQueue<Said>, said: &mut Said) -> Result<(), IdleNotifyError> {
    let wanted = said.answers + 1;
    connection.display().sync(&queue.handle(), ());
    let until = Instant::now() + DEADLINE;
    while said.answers < wanted {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(IdleNotifyError::Silent);
        }
        pump(connection, queue, said, left)?;
    }
    Ok(())
}

/// Takes what the compositor has sent; waits `at_most` for something if there is nothing.
fn pump(
    connection: &Connection,
    queue: &mut EventQueue<Said>,
    said: &mut Said,
    at_most: Duration,
) -> Result<(), IdleNotifyError> {
    queue.dispatch_pending(said)?;
    match connection.flush() {
        // Its socket is full: it reads later, or the deadline ends the waiting.
        Err(WaylandError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
        flushed => flushed?,
    }
    let Some(guard) = connection.prepare_read() else {
        queue.dispatch_pending(said)?;
        return Ok(());
    };
    let timeout = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: at_most.subsec_nanos().into() };
    let ready = {
        let mut sockets = [PollFd::from_borrowed_fd(guard.connection_fd(), PollFlags::IN)];
        match poll(&mut sockets, Some(&timeout)) {
            Ok(ready) => ready > 0,
            Err(Errno::INTR) => false,
            Err(error) => return Err(IdleNotifyError::Broken(WaylandError::Io(error.into()))),
        }
    };
    if ready {
        match guard.read() {
            Err(WaylandError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => {
                read?;
            }
        }
        queue.dispatch_pending(said)?;
    }
    Ok(())
}

impl Dispatch<WlRegistry, ()> for Said {
    fn event(
        said: &mut Self,
        _: &WlRegistry,
        event: wl_registry::Event,
        _: &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        match event {
            wl_registry::Event::Global { name, interface, .. } => match interface.as_str() {
                "ext_idle_notifier_v1" => said.notifier = said.notifier.or(Some(name)),
                "wl_seat" => said.seat = said.seat.or(Some(name)),
                _ => {}
            },
            wl_registry::Event::GlobalRemove { name } => {
                said.is_withdrawn |= [said.notifier, said.seat].contains(&Some(name));
            }
            _ => {}
        }
    }
}

impl Dispatch<ExtIdleNotificationV1, ()> for Said {
    fn event(
        said: &mut Self,
        _: &ExtIdleNotificationV1,
        event: ext_idle_notification_v1::Event,
        _: &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        match event {
            ext_idle_notification_v1::Event::Idled => said.idle_since = Some(Instant::now()),
            ext_idle_notification_v1::Event::Resumed => {
                said.idle_since = None;
                said.resumed_at = Instant::now();
            }
            _ => {}
        }
    }
}

impl Dispatch<WlCallback, ()> for Said {
    fn event(
        said: &mut Self,
        _: &WlCallback,
        event: wl_callback::Event,
        _: &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        if let wl_callback::Event::Done { .. } = event {
            said.answers += 1;
        }
    }
}

delegate_noop!(Said: ExtIdleNotifierV1);
delegate_noop!(Said: ignore WlSeat);
