//! A connection to an X server that never waits longer than a deadline, and the server's idle counter.

use std::{
    io::{self, IoSlice},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use pool_types::Reading;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use thiserror::Error;
use x11rb::{
    connection::{Connection, RequestConnection},
    errors::{ConnectError, ReplyError},
    protocol::{
        randr::{self, ConnectionExt as _},
        screensaver::{self, ConnectionExt as _},
        xproto::{ConnectionExt as _, Window},
    },
    reexports::x11rb_protocol::{parse_display::parse_display, xauth::get_auth},
    rust_connection::{DefaultStream, PollMode, RustConnection, Stream},
    utils::RawFdContainer,
};

use crate::sensor::{InputSource, LastInput, Sensor, reading};

/// How long the server may be silent before it counts as hanging.
const DEADLINE: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// How often the idle counter is asked. It costs one round trip however much is typed; events of the X Input extension
/// would cost one wake-up for each of a mouse's thousand reports a second.
const POLL_EVERY: Duration = Duration::from_millis(100);

const RESOLUTION: Duration = Duration::from_millis(1);

/// Why an X server tells nothing.
#[derive(Debug, Error)]
pub(super) enum X11Error {
    #[error("no X11 display is set")]
    NoDisplay,
    #[error("the X11 display {0} cannot be reached")]
    Connect(String, #[source] ConnectError),
    #[error("the X11 display {0} belongs to a Wayland compositor and does not see all input")]
    IsXwayland(String),
    #[error("the X11 display {0} has no screen saver extension")]
    NoIdleCounter(String),
    #[error("the X server gives no answer")]
    Reply(#[from] ReplyError),
}

impl From<x11rb::errors::ConnectionError> for X11Error {
    fn from(error: x11rb::errors::ConnectionError) -> Self {
        Self::Reply(error.into())
    }
}

/// A stream whose waits end at [`DEADLINE`] with [`io::ErrorKind::TimedOut`].
pub(super) struct Patient(DefaultStream);

impl Stream for Patient {
    fn poll(&self, mode: PollMode) -> io::Result<()> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, mode.readable());
        wanted.set(PollFlags::OUT, mode.writable());
        let mut streams = [PollFd::from_borrowed_fd(self.0.as_fd(), wanted)];
        loop {
            match poll(&mut streams, Some(&DEADLINE)) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 250 ms")),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn read(&self, bytes: &mut [u8], descriptors: &mut Vec<RawFdContainer>) -> io::Result<usize> {
        self.0.read(bytes, descriptors)
    }

    fn write(&self, bytes: &[u8], descriptors: &mut Vec<RawFdContainer>) -> io::Result<usize> {
        self.0.write(bytes, descriptors)
    }

    fn write_vectored(&self, parts: &[IoSlice<'_>], descriptors: &mut Vec<RawFdContainer>) -> io::Result<usize> {
        self.0.write_vectored(parts, descriptors)
    }
}

/// An X server and its first screen.
pub(super) struct Display {
    pub(super) connection: RustConnection<Patient>,
    pub(super) root: Window,
    /// Whether it serves X programs inside a Wayland session and sees nothing else.
    pub(super) is_xwayland: bool,
}

impl Display {
    /// Connects to `name`; blocks for some deadlines at most.
    pub(super) fn open(name: Option<&str>) -> Result<Self, X11Error> {
        let name = name.ok_or(X11Error::NoDisplay)?;
        let failed = |error: ConnectError| X11Error::Connect(name.to_owned(), error);
        let parsed = parse_display(Some(name)).map_err(|error| failed(error.into()))?;
        let mut last_error = io::Error::from(io::ErrorKind::NotFound);
        for address in parsed.connect_instruction() {
            let (stream, (family, peer)) = match DefaultStream::connect(&address) {
                Ok(connected) => connected,
                Err(error) => {
                    last_error = error;
                    continue;
                }
            };
            // As Xlib does: without a cookie the server decides.
            let (protocol, cookie) = get_auth(family, &peer, parsed.display).ok().flatten().unwrap_or_default();
            let screen = usize::from(parsed.screen);
            let connection =
                RustConnection::connect_to_stream_with_auth_info(Patient(stream), screen, protocol, cookie)
                    .map_err(failed)?;
            let root = connection.setup().roots[screen].root;
            let is_xwayland = is_xwayland(&connection, root)?;
            return Ok(Self { connection, root, is_xwayland });
        }
        Err(failed(ConnectError::IoError(last_error)))
    }
}

/// Newer ones say so by an extension, older ones by the names of their monitors.
fn is_xwayland(connection: &RustConnection<Patient>, root: Window) -> Result<bool, ReplyError> {
    if connection.query_extension(b"XWAYLAND")?.reply()?.present {
        return Ok(true);
    }
    if connection.extension_information(randr::X11_EXTENSION_NAME)?.is_none() {
        return Ok(false);
    }
    for monitor in connection.randr_get_monitors(root, true)?.reply()?.monitors {
        if connection.get_atom_name(monitor.name)?.reply()?.name.starts_with(b"XWAYLAND") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The server's own counter, XScreenSaver's `ms_since_user_input`: keyboard, mouse, touch and tablet.
pub(super) struct X11Input {
    display: Display,
}

impl X11Input {
    pub(super) fn open(name: Option<&str>) -> Result<Self, X11Error> {
        let display = Display::open(name)?;
        let named = || name.unwrap_or_default().to_owned();
        if display.is_xwayland {
            return Err(X11Error::IsXwayland(named()));
        }
        if display.connection.extension_information(screensaver::X11_EXTENSION_NAME)?.is_none() {
            return Err(X11Error::NoIdleCounter(named()));
        }
        Ok(Self { display })
    }

    fn ask(&self) -> Result<LastInput, X11Error> {
        let asked = Instant::now();
        let answer = self.display.connection.screensaver_query_info(self.display.root)?.reply()?;
        let idle = Duration::from_millis(answer.ms_since_user_input.into());
        Ok(LastInput::from_idle_time(asked, Instant::now(), idle, RESOLUTION))
    }
}

impl Sensor<LastInput> for X11Input {
    fn read(&mut self) -> Reading<LastInput> {
        reading(self.ask())
    }
}

impl InputSource for X11Input {
    fn wait(&mut self, at_most: Duration) {
        thread::sleep(at_most.min(POLL_EVERY));
    }
}
