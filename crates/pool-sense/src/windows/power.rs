//! Battery or mains (GetSystemPowerStatus).
#![allow(unsafe_code, reason = "Win32 has no safe form")]

use pool_types::Reading;
use windows::Win32::System::Power::{GetSystemPowerStatus, SYSTEM_POWER_STATUS};

use crate::{
    sensor::{Sensor, because},
    values::Power,
};

/// `ACLineStatus` and `BatteryLifePercent` of an unknown state.
const UNKNOWN: u8 = 255;

/// `BatteryFlag` of a machine without a battery.
const NO_BATTERY: u8 = 128;

/// Asks Windows.
pub(super) struct PowerStatus;

impl Sensor<Power> for PowerStatus {
    fn read(&mut self) -> Reading<Power> {
        let mut status = SYSTEM_POWER_STATUS::default();
        // SAFETY: `status` is a valid, writable SYSTEM_POWER_STATUS for the whole call.
        if let Err(error) = unsafe { GetSystemPowerStatus(&mut status) } {
            return Reading::Unavailable(format!("Windows does not tell it: {}", because(&error)));
        }
        let has_battery = status.BatteryFlag == UNKNOWN || status.BatteryFlag & NO_BATTERY == 0;
        let charge_percent = (has_battery && status.BatteryLifePercent != UNKNOWN).then_some(status.BatteryLifePercent);
        match status.ACLineStatus {
            0 => Reading::Known(Power { on_battery: true, charge_percent }),
            1 => Reading::Known(Power { on_battery: false, charge_percent }),
            _ if !has_battery => Reading::Known(Power { on_battery: false, charge_percent: None }),
            _ => Reading::unavailable("Windows does not know where the power comes from"),
        }
    }
}
