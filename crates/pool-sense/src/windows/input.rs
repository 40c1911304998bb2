//! Keyboard and mouse of this session (GetLastInputInfo).
#![allow(unsafe_code, reason = "Win32 has no safe form")]

use std::{
    thread,
    time::{Duration, Instant},
};

use pool_types::Reading;
use windows::Win32::{
    System::SystemInformation::GetTickCount,
    UI::Input::KeyboardAndMouse::{GetLastInputInfo, LASTINPUTINFO},
};

use crate::sensor::{InputSource, LastInput, Sensor};

const POLL_EVERY: Duration = Duration::from_millis(100);

/// The tick count moves in steps of up to 16 ms.
const RESOLUTION: Duration = Duration::from_millis(16);

/// Asks Windows. Sees the session in which this process runs.
pub(super) struct WindowsInput;

impl Sensor<LastInput> for WindowsInput {
    fn read(&mut self) -> Reading<LastInput> {
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
        Reading::Known(LastInput::from_idle_time(asked, Instant::now(), idle, RESOLUTION))
    }
}

impl InputSource for WindowsInput {
    fn wait(&mut self, at_most: Duration) {
        thread::sleep(at_most.min(POLL_EVERY));
    }
}
