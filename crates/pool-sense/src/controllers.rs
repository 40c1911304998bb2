//! Game controllers: neither X servers nor compositors nor Windows count them as input.

use std::time::Instant;

/// A stick within this distance of its middle is at rest (Microsoft's `XINPUT_GAMEPAD_RIGHT_THUMB_DEADZONE`).
const DEAD_ZONE: i32 = 8689;

/// Steps into which a stick's way is divided.
const STEP: i32 = 4096;

/// The game controllers of a machine.
pub(crate) trait Controllers: Send {
    /// When a button was last pressed or a stick moved, seen at the last look or earlier. Called at every look for
    /// other input, several times a second.
    fn last_played(&mut self) -> Option<Instant>;
}

/// A system whose controllers we do not know.
#[cfg(any(test, not(any(target_os = "linux", windows))))]
pub(crate) struct NoControllers;

#[cfg(any(test, not(any(target_os = "linux", windows))))]
impl Controllers for NoControllers {
    fn last_played(&mut self) -> Option<Instant> {
        None
    }
}

/// Where a stick is, coarsely: they tremble, and rest beside their middle.
pub(crate) fn coarse(value: i16) -> i32 {
    let value = i32::from(value);
    if value.abs() < DEAD_ZONE { 0 } else { value / STEP }
}
