//! A session's terms, and the address that follows from them.

use alloy::{
    primitives::{Address, B256, aliases::I96, keccak256},
    sol_types::SolValue,
};
use pool_types::FlowRate;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{AddressBook, contracts};

/// What a payer agrees to. The vault's address is a function of exactly this.
///
/// In JSON as the contract has it, numbers as strings: `{"payer", "orchestrator", "pool", "maxRate", "expiry",
/// "session"}`, with `maxRate` in wei of USDCx per second, so that any client can encode it and compute the address.
///
/// ```
/// use alloy_primitives::{Address, B256};
/// use pool_chain::Terms;
/// use pool_types::FlowRate;
///
/// let terms = Terms {
///     payer: Address::repeat_byte(1),
///     orchestrator: Address::repeat_byte(2),
///     pool: Address::repeat_byte(3),
///     max_rate: FlowRate::from_units_per_second(100),
///     expiry: 1_800_000_000,
///     session: B256::repeat_byte(4),
/// };
/// let dearer = Terms { max_rate: FlowRate::from_units_per_second(101), ..terms };
/// let [factory, implementation] = [8, 9].map(Address::repeat_byte);
/// assert_ne!(terms.vault(factory, implementation), dearer.vault(factory, implementation));
/// # assert_eq!(serde_json::from_str::<Terms>(&serde_json::to_string(&terms).unwrap()).unwrap(), terms);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Terms {
    /// Every refund goes here, and nowhere else.
    pub payer: Address,
    /// Sets the rate; may stop and close.
    pub orchestrator: Address,
    /// The GDA pool that is streamed to.
    pub pool: Address,
    /// The most that may stream.
    pub max_rate: FlowRate,
    /// Unix seconds; from then on the rate cannot be set, and anybody may stop and close.
    pub expiry: u64,
    /// Tells two sessions with otherwise equal terms apart.
    pub session: B256,
}

/// Terms that no vault can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TermsError {
    /// Rates are whole units of USDC per second.
    #[error("the highest rate is not a whole number of USDC units per second")]
    Rate,
    /// Rates are signed 96-bit integers on the chain.
    #[error("the highest rate is more than the chain can stream")]
    TooFast,
    /// Nobody could be paid, refunded or charged.
    #[error("the terms name the zero address as {0}")]
    Zero(&'static str),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    payer: Address,
    orchestrator: Address,
    pool: Address,
    #[serde(with = "decimal")]
    max_rate: u128,
    #[serde(with = "decimal")]
    expiry: u64,
    session: B256,
}

impl Terms {
    /// The most that the chain can stream in a second.
    pub const FASTEST: FlowRate = FlowRate::from_units_per_second(((1_u128 << 95) / 1_000_000_000_000) as u64);

    /// Checks what the contract would refuse or could not hold.
    pub fn validate(&self) -> Result<(), TermsError> {
        let roles = [("payer", self.payer), ("orchestrator", self.orchestrator), ("pool", self.pool)];
        for (role, address) in roles {
            if address == Address::ZERO {
                return Err(TermsError::Zero(role));
            }
        }
        if self.max_rate.fits_superfluid() { Ok(()) } else { Err(TermsError::TooFast) }
    }

    /// The only address at which a vault of these terms can ever live: an OpenZeppelin clone of `implementation`
    /// whose code ends in the encoded terms, deployed by `factory` with CREATE2 (EIP-1014) and salt 0.
    pub fn vault(&self, factory: Address, implementation: Address) -> Address {
        let arguments = self.encode();
        // Clones.sol of OpenZeppelin 5: 10 bytes that return the rest, then a 45-byte proxy, then the arguments.
        let length = u16::try_from(arguments.len() + 45).unwrap_or(u16::MAX);
        let mut code = Vec::with_capacity(arguments.len() + 55);
        code.push(0x61);
        code.extend(length.to_be_bytes());
        code.extend(alloy::primitives::hex!("3d81600a3d39f3363d3d373d3d3d363d73"));
        code.extend(implementation);
        code.extend(alloy::primitives::hex!("5af43d82803e903d91602b57fd5bf3"));
        code.extend(arguments);
        factory.create2(B256::ZERO, keccak256(code))
    }

    /// The vault's address on the chain of `book`.
    pub fn vault_in(&self, book: &AddressBook) -> Address {
        self.vault(book.contracts.session_vault_factory, book.contracts.session_vault_implementation)
    }

    /// `abi.encode(terms)`: 192 bytes.
    pub fn encode(&self) -> Vec<u8> {
        contracts::Terms::from(self).abi_encode()
    }
}

impl From<&Terms> for contracts::Terms {
    fn from(terms: &Terms) -> Self {
        Self {
            payer: terms.payer,
            orchestrator: terms.orchestrator,
            pool: terms.pool,
            maxRate: wei_per_second(terms.max_rate),
            expiry: terms.expiry,
            session: terms.session,
        }
    }
}

impl TryFrom<contracts::Terms> for Terms {
    type Error = TermsError;

    fn try_from(terms: contracts::Terms) -> Result<Self, TermsError> {
        let contracts::Terms { payer, orchestrator, pool, maxRate, expiry, session } = terms;
        let max_rate = rate_of(maxRate).ok_or(TermsError::Rate)?;
        Ok(Self { payer, orchestrator, pool, max_rate, expiry, session })
    }
}

impl TryFrom<Wire> for Terms {
    type Error = TermsError;

    fn try_from(wire: Wire) -> Result<Self, TermsError> {
        let Wire { payer, orchestrator, pool, max_rate, expiry, session } = wire;
        let max_rate = FlowRate::from_wei_per_second(max_rate).ok_or(TermsError::Rate)?;
        let terms = Self { payer, orchestrator, pool, max_rate, expiry, session };
        terms.validate()?;
        Ok(terms)
    }
}

impl From<Terms> for Wire {
    fn from(terms: Terms) -> Self {
        let Terms { payer, orchestrator, pool, max_rate, expiry, session } = terms;
        Self { payer, orchestrator, pool, max_rate: max_rate.wei_per_second(), expiry, session }
    }
}

/// A rate as the contracts have it. A rate that no int96 holds becomes the highest one, which every vault refuses.
pub(crate) fn wei_per_second(rate: FlowRate) -> I96 {
    i128::try_from(rate.wei_per_second()).ok().and_then(|wei| I96::try_from(wei).ok()).unwrap_or(I96::MAX)
}

/// A rate of the contracts, where it is whole units of USDC and not negative.
pub(crate) fn rate_of(wei: I96) -> Option<FlowRate> {
    FlowRate::from_wei_per_second(u128::try_from(i128::try_from(wei).ok()?).ok()?)
}

/// Unsigned integers as decimal strings, in one spelling only.
pub(crate) mod decimal {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<T: Display, S: Serializer>(number: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(crate) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let one_spelling = text == "0" || !text.starts_with('0');
        let number = if plain && one_spelling { text.parse().ok() } else { None };
        number.ok_or_else(|| D::Error::custom("expected a whole number as a string"))
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::address;
    use proptest::prelude::*;

    use super::*;

    fn terms() -> Terms {
        Terms {
            payer: Address::repeat_byte(0x11),
            orchestrator: Address::repeat_byte(0x22),
            pool: Address::repeat_byte(0x33),
            max_rate: FlowRate::from_units_per_second(100),
            expiry: 1_800_000_000,
            session: B256::repeat_byte(0x44),
        }
    }

    #[test]
    fn the_address_is_the_one_that_another_implementation_computes() {
        // viem 2.57: getContractAddress over the code of OpenZeppelin's Clones with encodeAbiParameters(terms).
        let expected = address!("0xd77B4fFB50E09967d7a02Ac6fd102CdB129C1cEc");
        assert_eq!(terms().vault(Address::repeat_byte(8), Address::repeat_byte(9)), expected);
    }

    #[test]
    fn terms_have_one_form_in_json() {
        let json = serde_json::to_value(terms()).unwrap();
        assert_eq!(json["maxRate"], "100000000000000", "wei per second, as the contract has it");
        assert_eq!(json["expiry"], "1800000000");
        for (field, wrong) in [
            ("maxRate", serde_json::json!("100000000000001")),
            ("maxRate", serde_json::json!(100_000_000_000_000_u64)),
            ("maxRate", serde_json::json!("0100000000000000")),
            ("maxRate", serde_json::json!("18446744073709551615000000000000")),
            ("expiry", serde_json::json!("18446744073709551616")),
            ("expiry", serde_json::json!("-1")),
            ("payer", serde_json::json!("0x0000000000000000000000000000000000000000")),
            ("session", serde_json::json!("0x44")),
        ] {
            let mut bad = json.clone();
            bad[field] = wrong.clone();
            assert!(serde_json::from_value::<Terms>(bad).is_err(), "{field} = {wrong} must be refused");
        }
    }

    proptest! {
        #[test]
        fn any_difference_in_the_terms_is_another_address(
            bytes in any::<[u8; 20]>(), rate in 1_u64..1 << 55, expiry in any::<u64>(), which in 0..6,
        ) {
            let base = Terms { max_rate: FlowRate::from_units_per_second(rate), expiry, ..terms() };
            let other = Address::from(bytes);
            let changed = match which {
                0 => Terms { payer: other, ..base },
                1 => Terms { orchestrator: other, ..base },
                2 => Terms { pool: other, ..base },
                3 => Terms { max_rate: FlowRate::from_units_per_second(rate + 1), ..base },
                4 => Terms { expiry: expiry.wrapping_add(1), ..base },
                _ => Terms { session: keccak256(bytes), ..base },
            };
            prop_assume!(changed != base);
            let at = |terms: &Terms| terms.vault(Address::repeat_byte(8), Address::repeat_byte(9));
            prop_assert_ne!(at(&changed), at(&base));
            prop_assert_eq!(Terms::try_from(contracts::Terms::from(&changed)), Ok(changed));
        }

        #[test]
        fn the_fastest_rate_is_the_last_that_fits(above in 1_u64..1_000_000) {
            prop_assert!(Terms::FASTEST.fits_superfluid());
            let faster = FlowRate::from_units_per_second(Terms::FASTEST.units_per_second() + above);
            prop_assert!(!faster.fits_superfluid());
            prop_assert_eq!(wei_per_second(faster), I96::MAX, "no vault takes it for a slower one");
        }
    }
}
