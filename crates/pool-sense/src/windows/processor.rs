//! How busy all cores together are (GetSystemTimes). Performance counters would tell it too, slowly at first, and not at
//! all where their registry is damaged.
#![allow(unsafe_code, reason = "Win32 has no safe form")]

use pool_types::Reading;
use sysinfo::System;
use windows::Win32::{Foundation::FILETIME, System::Threading::GetSystemTimes};

use crate::sensor::because;

/// Processor time since the start, of all cores, in units of 100 ns.
#[derive(Clone, Copy, Default)]
struct Times {
    idle: u64,
    /// Idle time included.
    all: u64,
}

/// Remembers the last look.
pub(crate) struct Processor {
    last: Times,
}

impl Processor {
    pub(crate) fn new() -> Self {
        Self { last: Times::default() }
    }

    /// Percent of the time since the last look, whoever used it.
    pub(crate) fn look(&mut self, _system: &mut System) -> Reading<f32> {
        let [mut idle, mut kernel, mut user] = [FILETIME::default(); 3];
        // SAFETY: the three are valid, writable FILETIMEs for the whole call.
        let answer = unsafe { GetSystemTimes(Some(&mut idle), Some(&mut kernel), Some(&mut user)) };
        if let Err(error) = answer {
            return Reading::Unavailable(format!("Windows does not tell its load: {}", because(&error)));
        }
        let ticks = |time: FILETIME| u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime);
        // The kernel's time contains the idle time.
        let now = Times { idle: ticks(idle), all: ticks(kernel) + ticks(user) };
        let all = now.all.saturating_sub(self.last.all);
        let idle = now.idle.saturating_sub(self.last.idle);
        self.last = now;
        Reading::Known(if all == 0 { 0.0 } else { all.saturating_sub(idle) as f32 / all as f32 * 100.0 })
    }
}
