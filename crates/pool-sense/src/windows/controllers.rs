//! Game controllers through XInput.
#![allow(unsafe_code, reason = "Win32 has no safe form")]

use std::time::{Duration, Instant};

use windows::Win32::{
    Foundation::ERROR_SUCCESS,
    UI::Input::XboxController::{XINPUT_GAMEPAD, XINPUT_STATE, XInputGetState},
};

use crate::controllers::{Controllers, coarse};

/// XInput knows this many controllers.
const PLACES: usize = 4;

/// Asking for a controller that is not there takes Windows some milliseconds, so empty places are looked at rarely.
const LOOK_FOR_CONTROLLERS: Duration = Duration::from_secs(5);

/// A trigger below this is not pulled (`XINPUT_GAMEPAD_TRIGGER_THRESHOLD`).
const TRIGGER: u8 = 30;

/// What is pressed and pushed on a controller, coarsely: buttons, sticks, triggers.
type Held = (u16, [i32; 4], [bool; 2]);

/// Asks XInput.
pub(super) struct XInput {
    places: [Option<Held>; PLACES],
    look_at: Instant,
    played: Option<Instant>,
}

impl XInput {
    pub(super) fn new() -> Self {
        Self { places: [None; PLACES], look_at: Instant::now(), played: None }
    }
}

impl Controllers for XInput {
    fn last_played(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let look_everywhere = now >= self.look_at;
        if look_everywhere {
            self.look_at = now + LOOK_FOR_CONTROLLERS;
        }
        for (place, known) in self.places.iter_mut().enumerate() {
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
        self.played
    }
}

fn held(pad: &XINPUT_GAMEPAD) -> Held {
    let sticks = [pad.sThumbLX, pad.sThumbLY, pad.sThumbRX, pad.sThumbRY].map(coarse);
    (pad.wButtons.0, sticks, [pad.bLeftTrigger > TRIGGER, pad.bRightTrigger > TRIGGER])
}
