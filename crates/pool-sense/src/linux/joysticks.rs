//! Game controllers through the kernel's joystick devices (Documentation/input/joydev/joystick-api.rst), which the
//! person at the seat may read. The kernel makes none for the motion sensors of controllers.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::controllers::{Controllers, coarse};

/// Controllers come and go.
const LOOK_FOR_CONTROLLERS: Duration = Duration::from_secs(5);

/// Controllers that are watched.
const MOST: usize = 8;

/// `struct js_event`: time (4 bytes), value (2), type (1), number (1).
const EVENT_BYTES: usize = 8;

/// Events that are read at a look, per controller; the rest waits for the next one.
const MOST_EVENTS: usize = 64;

const BUTTON: u8 = 1;
const AXIS: u8 = 2;

/// With this bit an event tells the state as it is: at the beginning, and again when events were lost because too many
/// waited. What differs then from what was known before was caused by somebody.
const INITIAL: u8 = 0x80;

/// Reads `/dev/input/js*`, or another folder's.
pub(super) struct Joysticks {
    folder: PathBuf,
    open: HashMap<PathBuf, Joystick>,
    look_at: Instant,
    played: Option<Instant>,
}

struct Joystick {
    device: File,
    /// Where each button and stick (its kind and number) was last, sticks coarsely.
    state: HashMap<(u8, u8), i32>,
}

impl Joysticks {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, open: HashMap::new(), look_at: Instant::now(), played: None }
    }

    fn look_for_controllers(&mut self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let is_joystick = |name: &str| name.strip_prefix("js").is_some_and(|number| number.parse::<u8>().is_ok());
        for path in
            entries.filter(|entry| entry.file_name().to_str().is_some_and(is_joystick)).map(|entry| entry.path())
        {
            // One that may not be read belongs to another seat.
            if self.open.len() < MOST
                && !self.open.contains_key(&path)
                && let Ok(device) = File::open(&path)
            {
                self.open.insert(path, Joystick { device, state: HashMap::new() });
            }
        }
    }
}

impl Controllers for Joysticks {
    fn last_played(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if now >= self.look_at {
            self.look_at = now + LOOK_FOR_CONTROLLERS;
            self.look_for_controllers();
        }
        let mut is_played = false;
        // One that was unplugged is closed.
        self.open.retain(|_, joystick| joystick.look().inspect(|played| is_played |= played).is_some());
        if is_played {
            self.played = Some(now);
        }
        self.played
    }
}

impl Joystick {
    /// Whether it was used since the last look; `None` if it is gone.
    fn look(&mut self) -> Option<bool> {
        let mut waiting = [PollFd::new(&self.device, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut waiting, Some(&at_once)).ok()? == 0 {
            return Some(false);
        }
        let mut bytes = [0; EVENT_BYTES * MOST_EVENTS];
        let length = self.device.read(&mut bytes).ok().filter(|length| *length > 0)?;
        let mut is_played = false;
        for event in bytes[..length].as_chunks::<EVENT_BYTES>().0 {
            let [_, _, _, _, low, high, kind, number] = *event;
            let (value, is_initial, kind) = (i16::from_ne_bytes([low, high]), kind & INITIAL != 0, kind & !INITIAL);
            let value = match kind {
                BUTTON => value.into(),
                AXIS => coarse(value),
                _ => continue,
            };
            let before = self.state.insert((kind, number), value);
            is_played |= (kind == BUTTON && !is_initial) || before.is_some_and(|before| before != value);
        }
        Some(is_played)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, path::Path, process::Command};

    use super::*;

    /// A pipe in a device's place, with the player's end of it. (A pipe opened for both directions waits for nobody.)
    fn controller(folder: &Path, name: &str) -> File {
        let path = folder.join(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success(), "a pipe can be made");
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn event(value: i16, kind: u8, number: u8) -> [u8; EVENT_BYTES] {
        let [low, high] = value.to_ne_bytes();
        [1, 2, 3, 4, low, high, kind, number]
    }

    #[test]
    fn a_player_presses_buttons_and_moves_sticks_and_a_resting_controller_trembles() {
        let folder = tempfile::tempdir().unwrap();
        let mut player = controller(folder.path(), "js0");
        let mut joysticks = Joysticks::new(folder.path().to_owned());
        let mut send = |events: &[[u8; EVENT_BYTES]]| player.write_all(&events.concat()).unwrap();
        send(&[event(0, BUTTON | INITIAL, 0), event(300, AXIS | INITIAL, 0), event(-32767, AXIS | INITIAL, 2)]);
        assert_eq!(joysticks.last_played(), None, "the state at the beginning is nobody's doing");
        send(&[event(-900, AXIS, 0), event(1200, AXIS, 0), event(-32500, AXIS, 2)]);
        assert_eq!(joysticks.last_played(), None, "a stick trembles around its middle, a trigger at its end");
        let before = Instant::now();
        send(&[event(1, BUTTON, 0)]);
        let pressed = joysticks.last_played().expect("a button was pressed");
        assert!(pressed >= before, "it was seen now");
        assert_eq!(joysticks.last_played(), Some(pressed), "nothing happened since");
        send(&[event(20_000, AXIS, 0)]);
        assert!(joysticks.last_played().unwrap() > pressed, "a stick was pushed");
    }

    #[test]
    fn what_was_played_while_events_were_lost_is_seen_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let mut player = controller(folder.path(), "js0");
        let mut joysticks = Joysticks::new(folder.path().to_owned());
        let mut send = |events: &[[u8; EVENT_BYTES]]| player.write_all(&events.concat()).unwrap();
        let initial = |button: i16, stick: i16| [event(button, BUTTON | INITIAL, 0), event(stick, AXIS | INITIAL, 0)];
        send(&initial(0, 300));
        assert_eq!(joysticks.last_played(), None, "the state at the beginning");
        send(&initial(0, -900));
        assert_eq!(joysticks.last_played(), None, "told again, and nobody has touched it");
        send(&initial(0, 20_000));
        let pushed = joysticks.last_played().expect("the stick was pushed while nobody looked");
        send(&initial(1, 20_000));
        assert!(joysticks.last_played().unwrap() > pushed, "and then the button");
    }

    #[test]
    fn controllers_come_and_go_and_other_devices_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut joysticks = Joysticks::new(folder.path().to_owned());
        assert_eq!(joysticks.last_played(), None, "no controller is there");
        let mut keyboard = controller(folder.path(), "event3");
        keyboard.write_all(&event(1, BUTTON, 0)).unwrap();
        let mut player = controller(folder.path(), "js1");
        player.write_all(&event(1, BUTTON, 3)).unwrap();
        assert_eq!(joysticks.last_played(), None, "the folder is not looked through every time");
        joysticks.look_at = Instant::now();
        assert!(joysticks.last_played().is_some(), "it was plugged in");
        assert_eq!(joysticks.open.len(), 1, "a keyboard's device is not opened");
        drop(player);
        assert!(joysticks.last_played().is_some() && joysticks.open.is_empty(), "it was unplugged");
        let nowhere = Joysticks::new(PathBuf::from("/no/such/folder")).last_played();
        assert_eq!(nowhere, None, "a machine without such devices");
    }
}
