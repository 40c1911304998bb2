//! Whether traffic costs (INetworkCostManager).
#![allow(unsafe_code, reason = "COM has no safe form")]

use pool_types::Reading;
use windows::{
    Win32::{
        Networking::NetworkListManager::{
            INetworkCostManager, NLM_CONNECTION_COST_FIXED, NLM_CONNECTION_COST_UNRESTRICTED,
            NLM_CONNECTION_COST_VARIABLE, NetworkListManager,
        },
        System::Com::{CLSCTX_ALL, CoCreateInstance, CoIncrementMTAUsage},
    },
    core::Result,
};

use crate::{
    sensor::{Sensor, because},
    values::Metered,
};

/// Asks Windows about the machine's connection.
#[derive(Default)]
pub(super) struct NetworkCost {
    /// COM is in use in this process; it stays so, other parts of the program may use it too.
    com_is_ready: bool,
}

impl NetworkCost {
    fn cost(&mut self) -> Result<u32> {
        if !self.com_is_ready {
            // SAFETY: takes nothing; from now on a thread that has not chosen an apartment is in the process's shared one.
            unsafe { CoIncrementMTAUsage() }?;
            self.com_is_ready = true;
        }
        // SAFETY: this thread is in the shared apartment; the class and the interface that is asked for belong together.
        let manager: INetworkCostManager = unsafe { CoCreateInstance(&NetworkListManager, None, CLSCTX_ALL) }?;
        let mut cost = 0;
        // SAFETY: `cost` is writable for the whole call; no address means the machine's connection as such.
        unsafe { manager.GetCost(&mut cost, std::ptr::null()) }?;
        Ok(cost)
    }
}

impl Sensor<Metered> for NetworkCost {
    fn read(&mut self) -> Reading<Metered> {
        let cost = match self.cost() {
            Ok(cost) => cost,
            Err(error) => return Reading::Unavailable(format!("Windows does not tell it: {}", because(&error))),
        };
        let is = |flag: i32| cost & flag.unsigned_abs() != 0;
        if is(NLM_CONNECTION_COST_FIXED.0) || is(NLM_CONNECTION_COST_VARIABLE.0) {
            return Reading::Known(Metered { metered: true, stated: true });
        }
        if is(NLM_CONNECTION_COST_UNRESTRICTED.0) {
            return Reading::Known(Metered { metered: false, stated: true });
        }
        Reading::unavailable("Windows does not know the cost of the present connection")
    }
}
