//! Money as integers with their decimals. Nothing here is a float, and nothing wraps.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;

/// Wei of USDCx in one unit of USDC: the two tokens have 18 and 6 decimals.
const WEI_PER_UNIT: i128 = 1_000_000_000_000;
const USDC_DECIMALS: usize = 6;
const USDCX_DECIMALS: usize = 18;
/// Beyond this no conversion between the two tokens can overflow (3 x 10^19 USDC; all that exists is below 10^12).
const MAX_UNITS: u128 = 1 << 85;

/// A text or number that is no amount of money.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AmountError {
    /// Not a number, or not one of this kind.
    #[error("`{0}` is not an amount; write a number such as 0.25 or 12")]
    NotANumber(String),
    /// Finer than the token's smallest unit.
    #[error("`{text}` has more than {decimals} digits after the point, which is the token's smallest unit")]
    TooFine {
        /// What was written.
        text: String,
        /// The token's decimals.
        decimals: usize,
    },
    /// More than an amount can hold.
    #[error("the amount is too large")]
    TooLarge,
}

/// An amount of USDC: whole units of 10^-6 USDC. In JSON a string of that integer, as x402 and EIP-3009 write it.
///
/// ```
/// use pool_types::Usdc;
///
/// let price: Usdc = "0.25".parse()?;
/// assert_eq!(price.units(), 250_000);
/// assert_eq!(price.to_string(), "0.250000");
/// assert_eq!(serde_json::to_string(&price).unwrap(), r#""250000""#);
/// # Ok::<(), pool_types::AmountError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usdc(u128);

impl Usdc {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// `units` of 10^-6 USDC; more than there can ever be is refused.
    pub const fn from_units(units: u128) -> Result<Self, AmountError> {
        if units > MAX_UNITS { Err(AmountError::TooLarge) } else { Ok(Self(units)) }
    }

    /// In units of 10^-6 USDC.
    pub const fn units(self) -> u128 {
        self.0
    }

    /// The same amount in the wrapped token.
    pub const fn to_usdcx(self) -> Usdcx {
        Usdcx(self.0 as i128 * WEI_PER_UNIT)
    }

    /// The sum, unless it is more than there can be.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        // Neither operand passes 2^85, so the sum cannot wrap.
        let sum = self.0 + other.0;
        if sum > MAX_UNITS { None } else { Some(Self(sum)) }
    }

    /// The difference, unless `other` is more.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(left) => Some(Self(left)),
            None => None,
        }
    }
}

impl fmt::Display for Usdc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&decimal(self.0, false, USDC_DECIMALS))
    }
}

impl FromStr for Usdc {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        Self::from_units(parse_decimal(text, USDC_DECIMALS)?)
    }
}

impl Serialize for Usdc {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Usdc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let units = integer(&text).ok_or_else(|| D::Error::custom("expected whole units of 10^-6 USDC as a string"))?;
        Self::from_units(units).map_err(D::Error::custom)
    }
}

/// An amount of USDCx, the streamable wrapper of USDC: wei of 10^-18. Negative where an account is short.
/// In JSON a string of that integer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usdcx(i128);

impl Usdcx {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// `wei` of 10^-18 USDCx.
    pub const fn from_wei(wei: i128) -> Self {
        Self(wei)
    }

    /// In wei of 10^-18 USDCx.
    pub const fn wei(self) -> i128 {
        self.0
    }

    /// The whole units of USDC in it, rounded down; nothing where it is negative.
    pub const fn whole_usdc(self) -> Usdc {
        if self.0 <= 0 { Usdc::ZERO } else { Usdc((self.0 / WEI_PER_UNIT) as u128) }
    }

    /// What [`Usdcx::whole_usdc`] leaves behind: 0 to 10^12 - 1 wei.
    pub const fn dust(self) -> Self {
        Self(self.0.rem_euclid(WEI_PER_UNIT))
    }

    /// The sum, unless it cannot be held.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, unless it cannot be held.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(left) => Some(Self(left)),
            None => None,
        }
    }
}

impl fmt::Display for Usdcx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&decimal(self.0.unsigned_abs(), self.0 < 0, USDCX_DECIMALS))
    }
}

impl Serialize for Usdcx {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Usdcx {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix('-').unwrap_or(&text);
        let whole = integer(digits).and_then(|_| text.parse().ok());
        whole.map(Self).ok_or_else(|| D::Error::custom("expected whole wei of 10^-18 USDCx as a string"))
    }
}

/// How fast money streams: whole units of USDC (10^-6) a second, so that every second moves an exact number of them
/// and no rounding is left anywhere. In JSON a string of that integer.
///
/// ```
/// use pool_types::{FlowRate, Usdc};
///
/// let rate = FlowRate::from_units_per_second(100);
/// assert_eq!(rate.wei_per_second(), 100_000_000_000_000);
/// assert_eq!(rate.over(720), Usdc::from_units(72_000).ok());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowRate(u64);

impl FlowRate {
    /// No flow.
    pub const ZERO: Self = Self(0);

    /// `units` of 10^-6 USDC a second.
    pub const fn from_units_per_second(units: u64) -> Self {
        Self(units)
    }

    /// Units of 10^-6 USDC a second.
    pub const fn units_per_second(self) -> u64 {
        self.0
    }

    /// Wei of 10^-18 USDCx a second, as Superfluid counts. At most 2^104, which a flow rate (int96) need not hold:
    /// see [`FlowRate::fits_superfluid`].
    pub const fn wei_per_second(self) -> u128 {
        self.0 as u128 * WEI_PER_UNIT as u128
    }

    /// The rate of so many wei a second, where they are whole units of USDC.
    pub const fn from_wei_per_second(wei: u128) -> Option<Self> {
        let unit = WEI_PER_UNIT as u128;
        if wei.is_multiple_of(unit) && wei / unit <= u64::MAX as u128 { Some(Self((wei / unit) as u64)) } else { None }
    }

    /// Whether Superfluid can stream so fast: its rates are signed 96-bit integers.
    pub const fn fits_superfluid(self) -> bool {
        self.wei_per_second() < 1 << 95
    }

    /// What flows in so many seconds, unless that is more than there can be.
    pub fn over(self, seconds: u64) -> Option<Usdc> {
        Usdc::from_units(u128::from(self.0) * u128::from(seconds)).ok()
    }

    /// How many whole seconds `amount` lasts; `None` where nothing flows.
    pub const fn seconds_in(self, amount: Usdc) -> Option<u64> {
        if self.0 == 0 {
            return None;
        }
        let seconds = amount.units() / self.0 as u128;
        Some(if seconds > u64::MAX as u128 { u64::MAX } else { seconds as u64 })
    }
}

impl fmt::Display for FlowRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Usdc(self.0.into()))
    }
}

impl Serialize for FlowRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for FlowRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let units = integer(&text).and_then(|units| u64::try_from(units).ok());
        units.map(Self).ok_or_else(|| D::Error::custom("expected whole units of 10^-6 USDC a second as a string"))
    }
}

/// Digits alone, without sign, spaces or leading zeros that would give one amount two spellings.
fn integer(text: &str) -> Option<u128> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let one_spelling = text == "0" || !text.starts_with('0');
    if plain && one_spelling { text.parse().ok() } else { None }
}

fn decimal(magnitude: u128, negative: bool, decimals: usize) -> String {
    let one = 10_u128.pow(decimals as u32);
    let sign = if negative { "-" } else { "" };
    format!("{sign}{}.{:0decimals$}", magnitude / one, magnitude % one)
}

fn parse_decimal(text: &str, decimals: usize) -> Result<u128, AmountError> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let dangling = text.ends_with('.') || whole.is_empty();
    if dangling || text.len() > 64 || !digits(whole) || !digits(fraction) {
        return Err(AmountError::NotANumber(text.chars().take(64).collect()));
    }
    if fraction.len() > decimals {
        return Err(AmountError::TooFine { text: text.to_owned(), decimals });
    }
    let all = format!("{whole}{fraction:0<decimals$}");
    all.parse().map_err(|_| AmountError::TooLarge)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_what_is_meant_or_it_is_refused() {
        let units = |text: &str| text.parse::<Usdc>().map(Usdc::units);
        assert_eq!(units("0"), Ok(0));
        assert_eq!(units("12"), Ok(12_000_000));
        assert_eq!(units("0.000001"), Ok(1));
        assert_eq!(units("1.5"), Ok(1_500_000));
        for wrong in ["", ".", "1.", ".5", "-1", "+1", "1e3", "1,5", " 1", "0x10", "1.2.3", "ten", "１"] {
            assert!(matches!(units(wrong), Err(AmountError::NotANumber(_))), "{wrong:?}");
        }
        assert!(matches!(units("0.0000001"), Err(AmountError::TooFine { .. })), "a tenth of a unit does not exist");
        assert_eq!(units(&"9".repeat(40)), Err(AmountError::TooLarge));
        assert_eq!(units(&"9".repeat(50)), Err(AmountError::TooLarge));
    }

    #[test]
    fn amounts_have_one_form_in_json() {
        let read = |text: &str| serde_json::from_str::<Usdc>(text).map(Usdc::units).ok();
        assert_eq!(read(r#""250000""#), Some(250_000));
        for wrong in ["250000", "0.25", r#""0.25""#, r#""-1""#, r#""""#, r#""007""#, r#"" 1""#, "null"] {
            assert_eq!(read(wrong), None, "{wrong} is another form");
        }
        let short = Usdcx::from_wei(-1_500_000_000_000_000_000);
        assert_eq!(short.to_string(), "-1.500000000000000000");
        assert_eq!(serde_json::to_string(&short).unwrap(), r#""-1500000000000000000""#);
        assert_eq!(serde_json::from_str::<Usdcx>(r#""-1500000000000000000""#).unwrap(), short);
    }

    #[test]
    fn a_rate_is_whole_units_and_fits_the_chain() {
        assert_eq!(FlowRate::from_wei_per_second(1), None, "less than a unit a second would round");
        assert_eq!(FlowRate::from_wei_per_second(3_000_000_000_000), Some(FlowRate::from_units_per_second(3)));
        assert!(FlowRate::from_units_per_second(1_000_000_000).fits_superfluid());
        assert!(!FlowRate::from_units_per_second(u64::MAX).fits_superfluid());
        assert_eq!(FlowRate::from_units_per_second(u64::MAX).over(u64::MAX), None);
        assert_eq!(FlowRate::from_units_per_second(100).to_string(), "0.000100/s");
    }

    proptest! {
        #[test]
        fn text_and_json_carry_any_amount_unchanged(units in 0..=MAX_UNITS) {
            let amount = Usdc::from_units(units).unwrap();
            prop_assert_eq!(amount.to_string().parse::<Usdc>(), Ok(amount));
            prop_assert_eq!(serde_json::from_str::<Usdc>(&serde_json::to_string(&amount).unwrap()).unwrap(), amount);
        }

        #[test]
        fn wrapping_and_unwrapping_lose_nothing_but_dust(units in 0..=MAX_UNITS, dust in 0..WEI_PER_UNIT) {
            let amount = Usdc::from_units(units).unwrap();
            let wrapped = amount.to_usdcx().checked_add(Usdcx::from_wei(dust)).unwrap();
            prop_assert_eq!(wrapped.whole_usdc(), amount);
            prop_assert_eq!(wrapped.dust(), Usdcx::from_wei(dust));
        }

        #[test]
        fn a_budget_lasts_as_long_as_it_says(rate in 1_u64..1 << 40, seconds in 0_u64..1 << 40, rest in 0_u64..1 << 40) {
            let rate_of = FlowRate::from_units_per_second(rate);
            let budget = rate_of.over(seconds).unwrap();
            let more = Usdc::from_units(budget.units() + u128::from(rest % rate)).unwrap();
            prop_assert_eq!(rate_of.seconds_in(more), Some(seconds), "less than one second's worth buys no second");
        }
    }
}
