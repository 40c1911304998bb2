//! Full-screen programs and presentations.
#![allow(unsafe_code, reason = "Win32 has no safe form")]

use pool_types::Reading;
use windows::Win32::{
    Foundation::RECT,
    Graphics::Gdi::{GetMonitorInfoW, MONITOR_DEFAULTTONEAREST, MONITORINFO, MonitorFromWindow},
    System::Power::{CallNtPowerInformation, ES_DISPLAY_REQUIRED, SystemExecutionState},
    UI::{
        Shell::{
            QUERY_USER_NOTIFICATION_STATE, QUNS_NOT_PRESENT, QUNS_PRESENTATION_MODE, QUNS_RUNNING_D3D_FULL_SCREEN,
            SHQueryUserNotificationState,
        },
        WindowsAndMessaging::{GetClassNameW, GetForegroundWindow, GetShellWindow, GetWindowRect, IsZoomed},
    },
};

use crate::sensor::{Sensor, because};

/// Asks the shell for a Direct3D full-screen program (`QUNS_RUNNING_D3D_FULL_SCREEN`), and looks whether the foreground
/// window covers its monitor without being maximised. `QUNS_BUSY` alone is no evidence: NVIDIA's overlay raises it.
pub(super) struct ForegroundWindow;

impl Sensor<bool> for ForegroundWindow {
    fn read(&mut self) -> Reading<bool> {
        match shell_state() {
            Ok(state) if state == QUNS_RUNNING_D3D_FULL_SCREEN => Reading::Known(true),
            // The session is locked; what covers the monitor is the lock screen.
            Ok(state) if state == QUNS_NOT_PRESENT => Reading::Known(false),
            Ok(_) => Reading::Known(foreground_covers_its_monitor()),
            Err(error) => Reading::Unavailable(format!("the shell gives no answer: {}", because(&error))),
        }
    }
}

/// Presentation mode, or a program that keeps the display on (`ES_DISPLAY_REQUIRED`).
pub(super) struct KeptAwake;

impl Sensor<bool> for KeptAwake {
    fn read(&mut self) -> Reading<bool> {
        if shell_state().is_ok_and(|state| state == QUNS_PRESENTATION_MODE) {
            return Reading::Known(true);
        }
        let mut state = 0u32;
        let size = size_of::<u32>() as u32;
        // SAFETY: nothing goes in, and the four bytes that SystemExecutionState writes are those of `state`.
        let status =
            unsafe { CallNtPowerInformation(SystemExecutionState, None, 0, Some((&raw mut state).cast()), size) };
        match status.ok() {
            Ok(()) => Reading::Known(state & ES_DISPLAY_REQUIRED.0 != 0),
            Err(error) => Reading::Unavailable(format!("Windows does not tell it: {}", because(&error))),
        }
    }
}

fn shell_state() -> windows::core::Result<QUERY_USER_NOTIFICATION_STATE> {
    // SAFETY: takes nothing; the answer is returned by value.
    unsafe { SHQueryUserNotificationState() }
}

fn foreground_covers_its_monitor() -> bool {
    // SAFETY: both take nothing; a handle may become invalid at any time, which the calls below report.
    let (window, shell) = unsafe { (GetForegroundWindow(), GetShellWindow()) };
    if window.is_invalid() || window == shell {
        return false;
    }
    let mut name = [0u16; 64];
    // SAFETY: `name` is a writable buffer whose length is passed with it.
    let length = unsafe { GetClassNameW(window, &mut name) };
    let name = String::from_utf16_lossy(&name[..usize::try_from(length).unwrap_or(0)]);
    // The desktop itself.
    if ["Progman", "WorkerW"].contains(&name.as_str()) {
        return false;
    }
    // SAFETY: takes a handle and reports false for one that has become invalid.
    if unsafe { IsZoomed(window) }.as_bool() {
        return false;
    }
    let mut area = RECT::default();
    // SAFETY: `area` is a valid, writable RECT for the whole call.
    if unsafe { GetWindowRect(window, &mut area) }.is_err() {
        return false;
    }
    let mut monitor = MONITORINFO { cbSize: size_of::<MONITORINFO>() as u32, ..MONITORINFO::default() };
    // SAFETY: `monitor` is a valid, writable MONITORINFO whose size field is set; with MONITOR_DEFAULTTONEAREST there is
    // always a monitor handle, and a stale one is reported as failure.
    let known = unsafe { GetMonitorInfoW(MonitorFromWindow(window, MONITOR_DEFAULTTONEAREST), &mut monitor) };
    let screen = monitor.rcMonitor;
    known.as_bool()
        && area.left <= screen.left
        && area.top <= screen.top
        && area.right >= screen.right
        && area.bottom >= screen.bottom
}
