//! Whether traffic costs (NetworkInformation, ConnectionCost).

use pool_types::Reading;
use windows::Networking::Connectivity::{NetworkCostType, NetworkInformation};

use crate::{
    sensor::{Sensor, because},
    values::Metered,
};

/// Asks Windows about the connection to the internet.
pub(super) struct NetworkCost;

impl Sensor<Metered> for NetworkCost {
    fn read(&mut self) -> Reading<Metered> {
        let cost = NetworkInformation::GetInternetConnectionProfile().and_then(|profile| profile.GetConnectionCost());
        match cost.and_then(|cost| cost.NetworkCostType()) {
            Ok(NetworkCostType::Unrestricted) => Reading::Known(Metered { metered: false, stated: true }),
            Ok(NetworkCostType::Fixed | NetworkCostType::Variable) => {
                Reading::Known(Metered { metered: true, stated: true })
            }
            Ok(_) => Reading::unavailable("Windows does not know the cost of the present connection"),
            Err(error) => Reading::Unavailable(format!("no connection to the internet was found: {}", because(&error))),
        }
    }
}
