//! How long a budget lasts and what it must hold: pure arithmetic over whole units, seconds and rates.
//!
//! A stream locks a *buffer* (Superfluid: liquidation period x rate, at least the minimum deposit) while it runs and
//! gives it back when it stops. Below a runway of `guard` seconds anybody may stop the stream, so that part of a budget
//! can never be sold either. Both come back to the payer. What is left is *useful*.

use pool_types::{FlowRate, Usdc, Usdcx};
use serde::{Deserialize, Serialize};

/// What a chain's Superfluid and our vaults ask of every stream. Read from governance where it is not ours.
///
/// ```
/// use pool_chain::StreamRules;
/// use pool_types::{FlowRate, Usdc};
///
/// let rules = StreamRules { guard: 120, ..StreamRules::OURS };
/// let rate = FlowRate::from_units_per_second(100); // 0.36 USDC an hour
/// assert_eq!(rules.reserve(rate).unwrap().to_string(), "0.072000");
/// assert_eq!(rules.price(rate, 60).unwrap().to_string(), "0.078000");
/// assert_eq!(rules.useful_seconds("0.078".parse::<Usdc>()?.to_usdcx(), rate), 60);
/// # Ok::<(), pool_types::AmountError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamRules {
    /// Seconds of rate that a running stream locks.
    pub liquidation_period: u64,
    /// The least that a running stream locks.
    pub minimum_deposit: Usdcx,
    /// Seconds of runway below which anybody may stop a stream.
    pub guard: u64,
}

impl StreamRules {
    /// Those of the chains we deploy to.
    pub const OURS: Self = Self { liquidation_period: 600, minimum_deposit: Usdcx::ZERO, guard: 120 };

    /// What a stream of `rate` locks while it runs; `None` where no number holds it.
    pub fn buffer(&self, rate: FlowRate) -> Option<Usdcx> {
        if rate == FlowRate::ZERO {
            return Some(Usdcx::ZERO);
        }
        Some(flow(rate, self.liquidation_period)?.max(self.minimum_deposit))
    }

    /// The part of a budget that is never sold and always comes back: buffer and guard, in whole units, rounded up.
    pub fn reserve(&self, rate: FlowRate) -> Option<Usdc> {
        let held = self.buffer(rate)?.checked_add(flow(rate, self.guard)?)?;
        let whole = held.whole_usdc();
        if held.dust() == Usdcx::ZERO { Some(whole) } else { whole.checked_add(Usdc::from_units(1).ok()?) }
    }

    /// The price of a voucher that buys `seconds` at `rate`: those seconds and the reserve.
    pub fn price(&self, rate: FlowRate, seconds: u64) -> Option<Usdc> {
        rate.over(seconds)?.checked_add(self.reserve(rate)?)
    }

    /// How many seconds a vault can stream at `rate` until its runway is down to the guard, starting from standstill
    /// with `available`. 0 where it may not start at all, or where nothing would flow.
    pub fn useful_seconds(&self, available: Usdcx, rate: FlowRate) -> u64 {
        let useful = || {
            let after_buffer = available.checked_sub(self.buffer(rate)?)?;
            after_buffer.checked_sub(flow(rate, self.guard)?)
        };
        seconds(useful().unwrap_or(Usdcx::ZERO), rate)
    }

    /// Whether the vault lets `rate` start from standstill: after locking the buffer it must still last the guard.
    pub fn may_start(&self, available: Usdcx, rate: FlowRate) -> bool {
        let left = || available.checked_sub(self.buffer(rate)?)?.checked_sub(flow(rate, self.guard)?);
        rate > FlowRate::ZERO && left().is_some_and(|left| left >= Usdcx::ZERO)
    }

    /// What is available after a change of rate: the old buffer comes back, the new one is locked.
    pub fn available_after(&self, available: Usdcx, old: FlowRate, new: FlowRate) -> Option<Usdcx> {
        available.checked_add(self.buffer(old)?)?.checked_sub(self.buffer(new)?)
    }

    /// The highest rate at which `available` lasts `seconds` from standstill; zero where there is none.
    pub fn highest_rate(&self, available: Usdcx, seconds: u64) -> FlowRate {
        let fits = |units: u64| {
            let rate = FlowRate::from_units_per_second(units);
            rate.fits_superfluid() && self.may_start(available, rate) && self.useful_seconds(available, rate) >= seconds
        };
        // Useful seconds fall as the rate grows, so halving finds the last rate that fits.
        let (mut low, mut high) = (0, u64::MAX >> 1);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        FlowRate::from_units_per_second(low)
    }
}

/// A vault's money at a moment: what runs and what is left, as the chain says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Unix seconds at which this holds.
    pub at: u64,
    /// What can still stream or be refunded; the buffer is not in it.
    pub available: Usdcx,
    /// What flows.
    pub rate: FlowRate,
}

impl Running {
    /// What is available at `time` if nothing changes; negative once the buffer is eaten into.
    pub fn available_at(&self, time: u64) -> Option<Usdcx> {
        self.available.checked_sub(flow(self.rate, time.saturating_sub(self.at))?)
    }

    /// Whole seconds until nothing is available; `None` where nothing flows.
    pub fn runway(&self) -> Option<u64> {
        if self.rate == FlowRate::ZERO { None } else { Some(seconds(self.available, self.rate)) }
    }

    /// The last second at which the runway is not yet shorter than `guard`: a stop included then is early enough.
    /// `None` where nothing flows; `at` where it is too late.
    pub fn stop_at(&self, guard: u64) -> Option<u64> {
        Some(self.at.saturating_add(self.runway()?.saturating_sub(guard)))
    }

    /// When a stop has to be sent so that it is included in time, if inclusion takes up to `inclusion` seconds.
    pub fn send_stop_at(&self, guard: u64, inclusion: u64) -> Option<u64> {
        Some(self.stop_at(guard)?.saturating_sub(inclusion).max(self.at))
    }

    /// Whether anybody may stop the stream now, as the vault decides it.
    pub fn is_short(&self, guard: u64) -> bool {
        let needed = flow(self.rate, guard);
        self.rate > FlowRate::ZERO && needed.is_none_or(|needed| self.available < needed)
    }
}

/// What flows in so many seconds, in the wrapped token.
fn flow(rate: FlowRate, seconds: u64) -> Option<Usdcx> {
    rate.over(seconds).map(Usdc::to_usdcx)
}

/// How many whole seconds an amount lasts; 0 where it is negative or nothing flows.
fn seconds(amount: Usdcx, rate: FlowRate) -> u64 {
    let wei = u128::try_from(amount.wei()).unwrap_or(0);
    let lasts = wei.checked_div(rate.wei_per_second()).unwrap_or(0);
    u64::try_from(lasts).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(units: u64) -> FlowRate {
        FlowRate::from_units_per_second(units)
    }

    fn usdc(text: &str) -> Usdc {
        text.parse().unwrap()
    }

    #[test]
    fn what_a_stream_locks_is_what_was_measured_on_the_real_contracts() {
        let rules = StreamRules { liquidation_period: 600, minimum_deposit: Usdcx::ZERO, guard: 120 };
        let four_hours = StreamRules { liquidation_period: 4 * 3600, ..rules };
        // 0.36 USDC an hour is 100 units a second; 1 USDC an hour is 278 (the report's 277.8 rounded up).
        assert_eq!(rules.reserve(rate(100)), Some(usdc("0.072")));
        assert_eq!(four_hours.reserve(rate(100)), Some(usdc("1.452")));
        assert!(rules.may_start(usdc("0.072").to_usdcx(), rate(100)));
        assert!(!rules.may_start(usdc("0.071999").to_usdcx(), rate(100)), "the vault answers RunwayTooShort");
        let with_minimum = StreamRules { minimum_deposit: usdc("1").to_usdcx(), ..rules };
        assert_eq!(with_minimum.reserve(rate(100)), Some(usdc("1.012")));
    }

    #[test]
    fn a_reserve_that_is_no_whole_unit_is_rounded_up() {
        let rules = StreamRules { minimum_deposit: Usdcx::from_wei(1_000_000_000_001), ..StreamRules::OURS };
        let one = StreamRules { liquidation_period: 1, guard: 1, ..rules };
        assert_eq!(one.reserve(rate(1)).map(Usdc::units), Some(3), "1 unit and 1 wei locked, 1 unit guarded");
    }

    #[test]
    fn runways_of_a_table() {
        // rate, available, guard -> runway, stop within, short now
        let cases = [
            (100, "0.15", 120, Some(1500), Some(1380), false),
            (100, "0.0121", 120, Some(121), Some(1), false),
            (100, "0.012", 120, Some(120), Some(0), false),
            (100, "0.011999", 120, Some(119), Some(0), true),
            (100, "0", 120, Some(0), Some(0), true),
            (0, "0.15", 120, None, None, false),
        ];
        for (units, available, guard, runway, stop, short) in cases {
            let running = Running { at: 1000, available: usdc(available).to_usdcx(), rate: rate(units) };
            assert_eq!(running.runway(), runway, "{available} at {units}");
            assert_eq!(running.stop_at(guard), stop.map(|s: u64| 1000 + s), "{available} at {units}");
            assert_eq!(running.is_short(guard), short, "{available} at {units}");
        }
        let critical = Running { at: 1000, available: Usdcx::from_wei(-1), rate: rate(1) };
        assert_eq!(critical.runway(), Some(0));
        assert!(critical.is_short(0), "below zero the liquidators may take the buffer");
    }

    #[test]
    fn prices_that_no_number_holds_are_none_not_wrong() {
        let rules = StreamRules::OURS;
        assert_eq!(rules.price(rate(u64::MAX), u64::MAX), None);
        assert_eq!(rules.useful_seconds(Usdcx::from_wei(i128::MIN), rate(1)), 0);
        assert_eq!(rules.highest_rate(Usdcx::from_wei(-5), 1), FlowRate::ZERO);
    }

    proptest! {
        #[test]
        fn a_voucher_buys_exactly_the_seconds_it_was_priced_for(
            units in 1_u64..1 << 40, wanted in 0_u64..1 << 24, period in 1_u64..100_000, guard in 1_u64..10_000,
            deposit in 0_i128..1 << 70, more in 0_u64..1 << 40,
        ) {
            let rules = StreamRules {
                liquidation_period: period, guard, minimum_deposit: Usdcx::from_wei(deposit),
            };
            let price = rules.price(rate(units), wanted).unwrap();
            prop_assert!(rules.may_start(price.to_usdcx(), rate(units)));
            prop_assert_eq!(rules.useful_seconds(price.to_usdcx(), rate(units)), wanted);
            let reserve = rules.reserve(rate(units)).unwrap();
            let short = Usdc::from_units(reserve.units() - 1).unwrap();
            prop_assert!(!rules.may_start(short.to_usdcx(), rate(units)), "a unit less than the reserve cannot start");
            // A budget that is larger by less than a second's worth buys no further second.
            let larger = Usdc::from_units(price.units() + u128::from(more % units)).unwrap();
            prop_assert_eq!(rules.useful_seconds(larger.to_usdcx(), rate(units)), wanted);
        }

        #[test]
        fn streaming_for_the_useful_seconds_leaves_the_guard_and_one_more_does_not(
            units in 1_u64..1 << 40, budget in 1_u128..1 << 70,
        ) {
            let rules = StreamRules::OURS;
            let available = Usdc::from_units(budget).unwrap().to_usdcx();
            prop_assume!(rules.may_start(available, rate(units)));
            let useful = rules.useful_seconds(available, rate(units));
            let started = rules.available_after(available, FlowRate::ZERO, rate(units)).unwrap();
            let running = Running { at: 50, available: started, rate: rate(units) };
            prop_assert_eq!(running.stop_at(rules.guard), Some(50 + useful));
            let at = |time| Running { at: time, available: running.available_at(time).unwrap(), ..running };
            prop_assert!(!at(50 + useful).is_short(rules.guard), "at the last useful second only its owners may stop it");
            prop_assert!(at(51 + useful).is_short(rules.guard), "a second later anybody may");
            let stopped = rules.available_after(at(50 + useful).available, rate(units), FlowRate::ZERO).unwrap();
            let streamed = rate(units).over(useful).unwrap();
            prop_assert_eq!(stopped.checked_add(streamed.to_usdcx()), Some(available), "paid = streamed + refunded");
        }

        #[test]
        fn the_highest_rate_lasts_as_long_as_asked_and_a_higher_one_does_not(
            budget in 0_u128..1 << 60, wanted in 1_u64..1 << 20,
        ) {
            let rules = StreamRules::OURS;
            let available = Usdc::from_units(budget).unwrap().to_usdcx();
            let highest = rules.highest_rate(available, wanted);
            if highest > FlowRate::ZERO {
                prop_assert!(rules.useful_seconds(available, highest) >= wanted);
            }
            prop_assert!(rules.useful_seconds(available, rate(highest.units_per_second() + 1)) < wanted);
        }
    }
}
