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

/// An input may be stamped later than the tick count that is read after it: drivers stamp by a clock of their own.
const AHEAD: Duration = Duration::from_secs(60);

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
        Reading::Known(LastInput::from_idle_time(asked, Instant::now(), idle(ticks, info.dwTime), RESOLUTION))
    }
}

/// The time from `input` to `now`, both in milliseconds of a count that starts again after 49.7 days. An input that
/// lies a little ahead is of this moment.
fn idle(now: u32, input: u32) -> Duration {
    let ahead = Duration::from_millis(input.wrapping_sub(now).into());
    if ahead <= AHEAD { Duration::ZERO } else { Duration::from_millis(now.wrapping_sub(input).into()) }
}

impl InputSource for WindowsInput {
    fn wait(&mut self, at_most: Duration) {
        thread::sleep(at_most.min(POLL_EVERY));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_a_moment_ahead_of_the_clock_is_not_seven_weeks_old() {
        assert_eq!(idle(1_000_000, 400_000), Duration::from_secs(600), "ten minutes ago");
        assert_eq!(idle(1_000_000, 1_000_016), Duration::ZERO, "16 ms ahead is now");
        assert_eq!(idle(5_000, u32::MAX - 4_999), Duration::from_secs(10), "the count has started again");
        assert_eq!(idle(u32::MAX, 15), Duration::ZERO, "and so has it for the input alone");
        let weeks = 40 * 24 * 3600 * 1000;
        assert_eq!(idle(weeks, 0), Duration::from_millis(weeks.into()), "a server that nobody has touched for weeks");
    }
}
