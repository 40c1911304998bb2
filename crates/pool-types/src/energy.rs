//! Energy as whole millijoules, and what it costs.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{Usdc, Usdcx};

/// Energy in a kilowatt hour.
const PER_KILOWATT_HOUR: i128 = 3_600_000_000;
/// Wei of USDCx in a unit of USDC, over the millijoules in a kilowatt hour, in lowest terms: 2500 / 9.
const WEI_PER_UNIT_AND_MILLIJOULE: (i128, i128) = (1_000_000_000_000 / 400_000_000, PER_KILOWATT_HOUR / 400_000_000);

/// An amount of energy, in millijoules.
///
/// ```
/// use pool_types::Energy;
///
/// assert_eq!(Energy(3_600_000_000).to_string(), "1.000 kWh");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Energy(pub u64);

impl Energy {
    /// The sum; all the energy that a number can hold where it is more.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Energy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let watt_hours = self.0 / 3_600_000;
        f.pad(&format!("{}.{:03} kWh", watt_hours / 1000, watt_hours % 1000))
    }
}

/// What a kilowatt hour costs its owner, in USDC. In JSON a text such as `"0.36"`, as people write it.
///
/// ```
/// use pool_types::{Energy, EnergyPrice};
///
/// let price = EnergyPrice("0.36".parse()?);
/// assert_eq!(price.of(Energy(1_800_000_000)).to_string(), "0.180000000000000000", "half a kilowatt hour");
/// # Ok::<(), pool_types::AmountError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnergyPrice(pub Usdc);

impl EnergyPrice {
    /// What so much energy costs, rounded up to the wei: a cost is never made to look smaller than it is.
    pub const fn of(self, energy: Energy) -> Usdcx {
        let (wei, millijoules) = WEI_PER_UNIT_AND_MILLIJOULE;
        // At most 2^85 units, as `Usdc` has no more; beyond what a number holds, the most that it does.
        let product = (self.0.units() as i128).saturating_mul(energy.0 as i128).saturating_mul(wei);
        Usdcx::from_wei(product / millijoules + if product % millijoules == 0 { 0 } else { 1 })
    }
}

impl fmt::Display for EnergyPrice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} USDC a kilowatt hour", self.0)
    }
}

impl Serialize for EnergyPrice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for EnergyPrice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_written_as_people_write_it() {
        let price: EnergyPrice = serde_json::from_str(r#""0.36""#).unwrap();
        assert_eq!(price.0.units(), 360_000);
        assert_eq!(serde_json::to_string(&price).unwrap(), r#""0.360000""#);
        for wrong in ["0.36", r#""36 cents""#, r#""-1""#] {
            assert!(serde_json::from_str::<EnergyPrice>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_cost_is_exact_and_never_too_small() {
        let price = EnergyPrice("0.25".parse().unwrap());
        assert_eq!(price.of(Energy(3_600_000_000)), Usdcx::from_wei(250_000_000_000_000_000));
        assert_eq!(price.of(Energy(1)), Usdcx::from_wei(69_444_445), "69,444,444.4 wei");
        assert_eq!(price.of(Energy(0)), Usdcx::ZERO);
        let most = EnergyPrice(Usdc::from_units(1 << 85).unwrap()).of(Energy(u64::MAX));
        assert!(most > Usdcx::ZERO, "nothing wraps");
    }

    #[test]
    fn energy_is_shown_to_the_watt_hour() {
        assert_eq!(Energy(0).to_string(), "0.000 kWh");
        assert_eq!(Energy(12_345 * 3_600_000).to_string(), "12.345 kWh");
        assert_eq!(Energy(u64::MAX).plus(Energy(1)), Energy(u64::MAX));
    }
}
