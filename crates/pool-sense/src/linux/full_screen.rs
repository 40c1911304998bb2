//! Whether the window in front covers a whole monitor, under X11.

use pool_types::Reading;
use x11rb::{
    errors::ReplyError,
    protocol::{
        randr::ConnectionExt as _,
        xproto::{AtomEnum, ConnectionExt as _, MapState, Window, WindowClass},
    },
};

use super::x11::{Display, X11Error};
use crate::sensor::{Sensor, because};

/// Windows that are looked at from the top where no window manager says which is active.
const MOST_WINDOWS: usize = 64;

x11rb::atom_manager! {
    /// Names of the Extended Window Manager Hints (EWMH).
    Atoms: AtomsCookie {
        _NET_ACTIVE_WINDOW,
        _NET_WM_STATE,
        _NET_WM_STATE_FULLSCREEN,
        _NET_WM_STATE_HIDDEN,
        _NET_WM_STATE_MAXIMIZED_HORZ,
        _NET_WM_STATE_MAXIMIZED_VERT,
        _NET_WM_WINDOW_TYPE,
        _NET_WM_WINDOW_TYPE_DESKTOP,
        _NET_WM_WINDOW_TYPE_DOCK,
    }
}

/// A rectangle on the screen, in pixels.
#[derive(Clone, Copy, Debug)]
struct Area {
    left: i32,
    top: i32,
    width: i32,
    height: i32,
}

impl Area {
    fn covers(&self, other: &Self) -> bool {
        self.left <= other.left
            && self.top <= other.top
            && self.left + self.width >= other.left + other.width
            && self.top + self.height >= other.top + other.height
    }
}

/// Looks at the active window: it says that it is full-screen (`_NET_WM_STATE_FULLSCREEN`), or it covers a monitor
/// without a frame and without being maximised, as many games do. Without a window manager, at the topmost window.
///
/// Inside a Wayland session only windows of X programs can be seen: a full-screen one is known, its absence is not.
pub(super) struct X11FullScreen {
    name: Option<String>,
    open: Option<(Display, Atoms)>,
}

impl X11FullScreen {
    pub(super) fn new(name: Option<String>) -> Self {
        Self { name, open: None }
    }

    fn ask(&mut self) -> Result<(bool, bool), X11Error> {
        let (display, atoms) = match &mut self.open {
            Some(open) => open,
            none => {
                let display = Display::open(self.name.as_deref())?;
                let atoms = Atoms::new(&display.connection)?.reply()?;
                none.insert((display, atoms))
            }
        };
        let window = front_window(display, atoms)?;
        let covers = match window.map(|window| is_full_screen(display, atoms, window)).transpose() {
            // It was closed while we looked.
            Err(ReplyError::X11Error(_)) => false,
            answer => answer?.unwrap_or(false),
        };
        Ok((covers, display.is_xwayland))
    }
}

impl Sensor<bool> for X11FullScreen {
    fn read(&mut self) -> Reading<bool> {
        match self.ask() {
            Ok((false, true)) => {
                Reading::unavailable("in a Wayland session no program may look at the windows of others")
            }
            Ok((covers, _)) => Reading::Known(covers),
            Err(error) => {
                self.open = None;
                Reading::Unavailable(because(&error))
            }
        }
    }
}

fn front_window(display: &Display, atoms: &Atoms) -> Result<Option<Window>, ReplyError> {
    let connection = &display.connection;
    let active =
        connection.get_property(false, display.root, atoms._NET_ACTIVE_WINDOW, AtomEnum::WINDOW, 0, 1)?.reply()?;
    if active.type_ != x11rb::NONE {
        let window = active.value32().and_then(|mut windows| windows.next());
        return Ok(window.filter(|window| *window != x11rb::NONE));
    }
    let stack = connection.query_tree(display.root)?.reply()?.children;
    for window in stack.into_iter().rev().take(MOST_WINDOWS) {
        let Ok(attributes) = connection.get_window_attributes(window)?.reply() else { continue };
        if attributes.map_state == MapState::VIEWABLE && attributes.class == WindowClass::INPUT_OUTPUT {
            return Ok(Some(window));
        }
    }
    Ok(None)
}

fn is_full_screen(display: &Display, atoms: &Atoms, window: Window) -> Result<bool, ReplyError> {
    let connection = &display.connection;
    let list = |property: u32| -> Result<Vec<u32>, ReplyError> {
        let reply = connection.get_property(false, window, property, AtomEnum::ATOM, 0, 32)?.reply()?;
        Ok(reply.value32().map(Iterator::collect).unwrap_or_default())
    };
    let kinds = list(atoms._NET_WM_WINDOW_TYPE)?;
    if [atoms._NET_WM_WINDOW_TYPE_DESKTOP, atoms._NET_WM_WINDOW_TYPE_DOCK].iter().any(|kind| kinds.contains(kind)) {
        return Ok(false);
    }
    let states = list(atoms._NET_WM_STATE)?;
    let is = |state: u32| states.contains(&state);
    if is(atoms._NET_WM_STATE_HIDDEN) {
        return Ok(false);
    }
    if is(atoms._NET_WM_STATE_FULLSCREEN) {
        return Ok(true);
    }
    if is(atoms._NET_WM_STATE_MAXIMIZED_HORZ) && is(atoms._NET_WM_STATE_MAXIMIZED_VERT) {
        return Ok(false);
    }
    let size = connection.get_geometry(window)?.reply()?;
    let place = connection.translate_coordinates(window, display.root, 0, 0)?.reply()?;
    let area = Area {
        left: place.dst_x.into(),
        top: place.dst_y.into(),
        width: size.width.into(),
        height: size.height.into(),
    };
    Ok(monitors(display)?.iter().any(|monitor| area.covers(monitor)))
}

/// The monitors, or the whole screen where the server knows of none.
fn monitors(display: &Display) -> Result<Vec<Area>, ReplyError> {
    let connection = &display.connection;
    let known = connection.randr_get_monitors(display.root, true).map_err(ReplyError::from).and_then(|ask| ask.reply());
    let monitors = match known {
        Ok(reply) => reply.monitors,
        Err(ReplyError::ConnectionError(error)) => return Err(error.into()),
        Err(ReplyError::X11Error(_)) => Vec::new(),
    };
    if monitors.is_empty() {
        let screen = connection.get_geometry(display.root)?.reply()?;
        return Ok(vec![Area { left: 0, top: 0, width: screen.width.into(), height: screen.height.into() }]);
    }
    let area = |monitor: &x11rb::protocol::randr::MonitorInfo| Area {
        left: monitor.x.into(),
        top: monitor.y.into(),
        width: monitor.width.into(),
        height: monitor.height.into(),
    };
    Ok(monitors.iter().map(area).collect())
}
