//! A payer's session as pure functions: what it costs ([`Tariff`], [`Quote`]) and when its stream runs ([`Meter`]).
//!
//! Work and stream are the same length. The stream begins a little late, because its start must first be included in
//! a block, and ends late by about as much; [`Allowance::chain_delay`] covers the difference, so that a stream never
//! runs into the seconds that are kept for its safety.
//!
//! ```
//! use pool_coalition::session::{Allowance, Tariff};
//! use pool_types::FlowRate;
//!
//! let tariff = Tariff {
//!     rate: FlowRate::from_units_per_second(100),
//!     linger: 5,
//!     least_seconds: 10,
//!     most_seconds: 86_400,
//!     allowance: Allowance { liquidation_period: 600, guard: 120, chain_delay: 10 },
//! };
//! let quote = tariff.quote(300)?;
//! assert_eq!(quote.amount.to_string(), "0.103000", "300 s of work, 730 s that always come back");
//! assert_eq!(quote.returned.to_string(), "0.073000");
//! # Ok::<(), pool_coalition::session::QuoteError>(())
//! ```

mod meter;

pub use meter::{Change, Ended, Meter, MeterSettings};

use pool_types::{FlowRate, Usdc, Usdcx};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Seconds of a session's rate that are paid in and always refunded, never sold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowance {
    /// Superfluid holds this many seconds of the rate as buffer while the stream runs.
    pub liquidation_period: u64,
    /// With less runway than this anybody may stop the stream.
    pub guard: u64,
    /// How much later a stop may be included than the start was.
    pub chain_delay: u64,
}

impl Allowance {
    /// All of it.
    pub fn seconds(self) -> u64 {
        self.liquidation_period.saturating_add(self.guard).saturating_add(self.chain_delay)
    }
}

/// What a pool charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tariff {
    /// While any request of the session runs, and for `linger` after.
    pub rate: FlowRate,
    /// Seconds that the stream goes on after the last request: they are sold time, and spare a start and a stop.
    pub linger: u64,
    /// Shorter sessions are not sold.
    pub least_seconds: u64,
    /// Longer sessions are not sold.
    pub most_seconds: u64,
    /// What comes back.
    pub allowance: Allowance,
}

/// What a session of so many seconds costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// The rate at which it streams.
    pub rate: FlowRate,
    /// Seconds of work that are sold.
    pub seconds: u64,
    /// What the voucher must be worth: `(seconds + allowance) x rate`.
    pub amount: Usdc,
    /// The part of it that is never sold.
    pub returned: Usdc,
}

/// Why there is no price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QuoteError {
    /// Fewer or more seconds than are sold.
    #[error("a session lasts {least} to {most} seconds; {wanted} were asked for")]
    Seconds {
        /// What was asked for.
        wanted: u64,
        /// The shortest session.
        least: u64,
        /// The longest.
        most: u64,
    },
    /// The pool's rate is nothing, or more than Superfluid can stream.
    #[error("this pool's rate cannot be streamed")]
    Rate,
}

impl Tariff {
    /// The price of a session of `seconds`.
    pub fn quote(&self, seconds: u64) -> Result<Quote, QuoteError> {
        if !(self.least_seconds..=self.most_seconds).contains(&seconds) {
            return Err(QuoteError::Seconds { wanted: seconds, least: self.least_seconds, most: self.most_seconds });
        }
        if self.rate == FlowRate::ZERO || !self.rate.fits_superfluid() {
            return Err(QuoteError::Rate);
        }
        let price = |seconds| self.rate.over(seconds).ok_or(QuoteError::Rate);
        let returned = price(self.allowance.seconds())?;
        let amount = price(seconds.checked_add(self.allowance.seconds()).ok_or(QuoteError::Rate)?)?;
        Ok(Quote { rate: self.rate, seconds, amount, returned })
    }

    /// Seconds that so many tokens take at a measured speed, rounded up, and within what is sold.
    /// `None` where no speed has been measured.
    pub fn seconds_for(&self, tokens: u64, tokens_per_second: f64) -> Option<u64> {
        let measured = tokens_per_second.is_finite() && tokens_per_second > 0.0;
        let seconds = (tokens as f64 / tokens_per_second).ceil();
        measured.then(|| (seconds as u64).max(self.least_seconds))
    }

    /// What a million tokens cost at a measured speed, one request at a time; rounded up to a unit.
    pub fn per_million_tokens(&self, tokens_per_second: f64) -> Option<Usdc> {
        let seconds = self.seconds_for(1_000_000, tokens_per_second)?;
        self.rate.over(seconds)
    }

    /// Seconds of work that are left in a vault whose stream stands still, from what it has available. After a
    /// crash the chain knows what was used, not we.
    pub fn seconds_left(&self, available: Usdcx) -> u64 {
        let seconds = self.rate.seconds_in(available.whole_usdc()).unwrap_or(0);
        seconds.saturating_sub(self.allowance.seconds())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn tariff() -> Tariff {
        Tariff {
            rate: FlowRate::from_units_per_second(100),
            linger: 5,
            least_seconds: 10,
            most_seconds: 86_400,
            allowance: Allowance { liquidation_period: 600, guard: 120, chain_delay: 10 },
        }
    }

    #[test]
    fn only_what_is_sold_is_quoted() {
        let wrong = |wanted| QuoteError::Seconds { wanted, least: 10, most: 86_400 };
        assert_eq!(tariff().quote(9), Err(wrong(9)));
        assert_eq!(tariff().quote(86_401), Err(wrong(86_401)));
        assert_eq!(tariff().quote(u64::MAX), Err(wrong(u64::MAX)));
        let free = Tariff { rate: FlowRate::ZERO, ..tariff() };
        assert_eq!(free.quote(10), Err(QuoteError::Rate), "a pool without a price sells no sessions");
        let mad = Tariff { rate: FlowRate::from_units_per_second(u64::MAX), ..tariff() };
        assert_eq!(mad.quote(10), Err(QuoteError::Rate), "more than Superfluid can stream");
    }

    #[test]
    fn tokens_are_priced_by_measured_speed_and_not_without_one() {
        assert_eq!(tariff().seconds_for(1000, 20.0), Some(50));
        assert_eq!(tariff().seconds_for(1, 20.0), Some(10), "no session is shorter than the shortest");
        assert_eq!(tariff().per_million_tokens(20.0).map(|price| price.to_string()).as_deref(), Some("5.000000"));
        for unmeasured in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(tariff().seconds_for(1000, unmeasured), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_paid_lasts_exactly_as_long_as_was_sold(seconds in 10_u64..=86_400, used in 0_u64..=86_400) {
            let quote = tariff().quote(seconds).unwrap();
            prop_assert_eq!(tariff().seconds_left(quote.amount.to_usdcx()), seconds);
            let used = used.min(seconds);
            let streamed = quote.rate.over(used).unwrap();
            let left = quote.amount.checked_sub(streamed).unwrap().to_usdcx();
            prop_assert_eq!(tariff().seconds_left(left), seconds - used, "every second streamed is a second less");
        }
    }
}
