//! Keyboard and mouse of this session (GetLastInputInfo), and game controllers (XInput), which Windows does not count.
#![allow(unsafe_code, reason = "Win32 has no safe form")]

use std::{
    thread,
    time::{Duration, Instant},
};

use pool_types::Reading;
use windows::Win32::{
    Foundation::ERROR_SUCCESS,
    System::SystemInformation::GetTickCount,
    UI::Input::{
        KeyboardAndMouse::{GetLastInputInfo, LASTINPUTINFO},
        XboxController::{XINPUT_GAMEPAD, XINPUT_STATE, XInputGetState},
    },
};

use crate::sensor::{InputSource, LastInput, Sensor};

const POLL_EVERY: Duration = Duration::from_millis(100);

/// The tick count moves in steps of up to 16 ms.
const RESOLUTION: Duration = Duration::from_millis(16);

/// XInput knows this many controllers.
const CONTROLLERS: usize = 4;

/// Asking for a controller that is not there takes Windows some milliseconds, so empty places are looked at rarely.
const LOOK_FOR_CONTROLLERS: Duration = Duration::from_secs(5);

/// A stick within this distance of its middle is at rest (`XINPUT_GAMEPAD_RIGHT_THUMB_DEADZONE`).
const DEAD_ZONE: i32 = 8689;

/// A trigger below this is not pulled (`XINPUT_GAMEPAD_TRIGGER_THRESHOLD`).
const TRIGGER: u8 = 30;

/// Asks Windows. Sees the session in which this process runs.
pub(super) struct WindowsInput {
    controllers: [Option<Held>; CONTROLLERS],
    look_at: Instant,
    /// When a controller was last used.
    played: Option<Instant>,
}

/// What is pressed and pushed on a controller, coarsely: sticks tremble.
type Held = (u16, [i32; 6]);

impl WindowsInput {
    pub(super) fn new() -> Self {
        Self { controllers: [None; CONTROLLERS], look_at: Instant::now(), played: None }
    }

    fn watch_controllers(&mut self) {
        let now = Instant::now();
        let look_everywhere = now >= self.look_at;
        if look_everywhere {
            self.look_at = now + LOOK_FOR_CONTROLLERS;
        }
        for (place, known) in self.controllers.iter_mut().enumerate() {
            if known.is_none() && !look_everywhere {
                continue;
            }
            let mut state = XINPUT_STATE::default();
            // SAFETY: `state` is a valid, writable XINPUT_STATE for the whole call; the place is below four.
            let code = unsafe { XInputGetState(place as u32, &mut state) };
            let held = (code == ERROR_SUCCESS.0).then(|| held(&state.Gamepad));
            if known.is_some() && held.is_some() && *known != held {
                self.played = Some(now);
            }
            *known = held;
        }
    }
}

fn held(pad: &XINPUT_GAMEPAD) -> Held {
    let stick = |value: i16| if i32::from(value).abs() < DEAD_ZONE { 0 } else { i32::from(value) / 4096 };
    let trigger = |value: u8| i32::from(value > TRIGGER);
    let sticks = [stick(pad.sThumbLX), stick(pad.sThumbLY), stick(pad.sThumbRX), stick(pad.sThumbRY)];
    let [left, right] = [trigger(pad.bLeftTrigger), trigger(pad.bRightTrigger)];
    (pad.wButtons.0, [sticks[0], sticks[1], sticks[2], sticks[3], left, right])
}

impl Sensor<LastInput> for WindowsInput {
    fn read(&mut self) -> Reading<LastInput> {
        self.watch_controllers();
        let asked = Instant::now();
        let mut info = LASTINPUTINFO { cbSize: size_of::<LASTINPUTINFO>() as u32, dwTime: 0 };
        // SAFETY: `info` is a valid, writable LASTINPUTINFO whose size field is set, for the whole call.
        let answered = unsafe { GetLastInputInfo(&mut info) }.as_bool();
        // SAFETY: takes nothing and touches no memory of ours.
        let ticks = unsafe { GetTickCount() };
        if !answered {
            return Reading::unavailable("Windows does not tell the last input of this session");
        }
        if info.dwTime == 0 {
            return Reading::unavailable(
                "this session has never had any input (a service cannot see its owner's session)",
            );
        }
        // The count starts again after 49.7 days.
        let idle = Duration::from_millis(ticks.wrapping_sub(info.dwTime).into());
        let keyboard = LastInput::from_idle_time(asked, Instant::now(), idle, RESOLUTION);
        let controller = self.played.map(|played| {
            let idle = asked.saturating_duration_since(played);
            LastInput::between(asked, idle, idle + POLL_EVERY)
        });
        let now = Instant::now();
        let later = controller.filter(|controller| controller.idle_for(now) < keyboard.idle_for(now));
        Reading::Known(later.unwrap_or(keyboard))
    }
}

impl InputSource for WindowsInput {
    fn wait(&mut self, at_most: Duration) {
        thread::sleep(at_most.min(POLL_EVERY));
    }
}
