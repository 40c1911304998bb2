//! What operators have earned and sessions have streamed, from events alone: the integral of rates over time in exact
//! integers, equal to the chain's own books to the wei.
//!
//! A GDA pool keeps one number, what a unit has received; each member's income is that times its units. [`PoolLedger`]
//! is the same arithmetic (Superfluid's *SemanticMoney*, `PDPoolIndex` and `pool_member_update`): rates are the *actual*
//! ones that the events carry, and a change of units divides the running rate anew, rounding towards zero; the rest
//! flows to the pool's admin until somebody sets a rate again.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use pool_types::{FlowRate, Usdcx};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why an event does not follow from those before it: one is missing, or they came in another order.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// An event older than one that was booked.
    #[error("an event at {at} came after one at {last} (Unix seconds)")]
    OutOfOrder {
        /// When it happened.
        at: u64,
        /// When the last one happened.
        last: u64,
    },
    /// A member's units are not those that the event changes.
    #[error("{member} has {booked} units by the events so far, but {found} on the chain")]
    Units {
        /// Whose.
        member: Address,
        /// As booked.
        booked: u128,
        /// As the event says.
        found: u128,
    },
    /// A stream runs at another rate than the event changes.
    #[error("the stream of {0} ran at another rate than the events so far say")]
    Rate(Address),
    /// More members than any pool of ours.
    #[error("the pool has more than {max} members", max = PoolLedger::MAX_MEMBERS)]
    TooManyMembers,
    /// Beyond all money there is.
    #[error("the amounts are too large")]
    TooLarge,
}

/// One thing that changes what a pool's members receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolChange {
    /// `FlowDistributionUpdated`: the pool's whole rate, and what flows to its admin besides, both actual, in wei/s.
    Rate {
        /// To all members together.
        total: i128,
        /// To the admin, for rounding.
        adjustment: i128,
    },
    /// `MemberUnitsUpdated`.
    Units {
        /// Whose.
        member: Address,
        /// Before.
        old: u128,
        /// After.
        new: u128,
    },
    /// `InstantDistributionUpdated`: so much at once, actual, in wei.
    Amount(i128),
}

/// The books of one GDA pool, from its first event on.
///
/// ```
/// use alloy_primitives::Address;
/// use pool_chain::{PoolChange, PoolLedger};
///
/// let [ada, bob] = [1, 2].map(Address::repeat_byte);
/// let mut ledger = PoolLedger::default();
/// ledger.apply(100, PoolChange::Units { member: ada, old: 0, new: 750_000 })?;
/// ledger.apply(100, PoolChange::Units { member: bob, old: 0, new: 250_000 })?;
/// ledger.apply(110, PoolChange::Rate { total: 100_000_000_000_000, adjustment: 0 })?;
/// assert_eq!(ledger.earned(ada, 130).unwrap().to_string(), "0.001500000000000000");
/// assert_eq!(ledger.rate(bob), 25_000_000_000_000);
/// # Ok::<(), pool_chain::LedgerError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolLedger {
    /// When the last event happened.
    at: u64,
    units: i128,
    per_unit: Meter,
    members: BTreeMap<Address, Share>,
    admin: Meter,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Share {
    units: i128,
    /// What a unit had received when these units began to count.
    since: i128,
    /// What was earned with the units before.
    settled: i128,
}

/// A number that grows by `rate` each second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Meter {
    value: i128,
    rate: i128,
}

impl Meter {
    fn after(self, seconds: u64) -> Option<i128> {
        self.rate.checked_mul(i128::from(seconds))?.checked_add(self.value)
    }
}

impl PoolLedger {
    /// The most members a pool may ever have had.
    pub const MAX_MEMBERS: usize = 4096;

    /// Books one change that happened at `at` (the block's Unix seconds). An error leaves the books as they were.
    pub fn apply(&mut self, at: u64, change: PoolChange) -> Result<(), LedgerError> {
        let mut next = self.clone();
        next.settle(at)?;
        next.change(change)?;
        *self = next;
        Ok(())
    }

    fn settle(&mut self, at: u64) -> Result<(), LedgerError> {
        let seconds = at.checked_sub(self.at).ok_or(LedgerError::OutOfOrder { at, last: self.at })?;
        self.per_unit.value = self.per_unit.after(seconds).ok_or(LedgerError::TooLarge)?;
        self.admin.value = self.admin.after(seconds).ok_or(LedgerError::TooLarge)?;
        self.at = at;
        Ok(())
    }

    fn change(&mut self, change: PoolChange) -> Result<(), LedgerError> {
        match change {
            PoolChange::Rate { total, adjustment } => {
                // The chain divides before it reports, so nothing is left over; without units nothing flows.
                self.per_unit.rate = total.checked_div(self.units).unwrap_or(0);
                self.admin.rate = adjustment;
            }
            PoolChange::Amount(amount) => {
                let each = amount.checked_div(self.units).unwrap_or(0);
                self.per_unit.value = self.per_unit.value.checked_add(each).ok_or(LedgerError::TooLarge)?;
            }
            PoolChange::Units { member, old, new } => self.change_units(member, old, new)?,
        }
        Ok(())
    }

    fn change_units(&mut self, member: Address, old: u128, new: u128) -> Result<(), LedgerError> {
        let per_unit = self.per_unit.value;
        let share = self.members.entry(member).or_default();
        let booked = share.units.unsigned_abs();
        if booked != old {
            return Err(LedgerError::Units { member, booked, found: old });
        }
        let new = i128::try_from(new).map_err(|_| LedgerError::TooLarge)?;
        let settled = share.earned(per_unit).ok_or(LedgerError::TooLarge)?;
        let before = self.units;
        self.units = before.checked_add(new - share.units).ok_or(LedgerError::TooLarge)?;
        *share = Share { units: new, since: per_unit, settled };
        if self.members.len() > Self::MAX_MEMBERS {
            return Err(LedgerError::TooManyMembers);
        }
        // The whole rate is divided anew; what does not divide, or has nobody left to flow to, goes to the admin.
        let total = self.per_unit.rate.checked_mul(before).ok_or(LedgerError::TooLarge)?;
        self.per_unit.rate = total.checked_div(self.units).unwrap_or(0);
        let rest = total - self.per_unit.rate * self.units;
        self.admin.rate = self.admin.rate.checked_add(rest).ok_or(LedgerError::TooLarge)?;
        Ok(())
    }

    /// What a member has received by `at`, claimed or not: the chain's `getTotalAmountReceivedByMember`. `None` before
    /// the last event, or beyond all money there is.
    pub fn earned(&self, member: Address, at: u64) -> Option<Usdcx> {
        let per_unit = self.per_unit.after(at.checked_sub(self.at)?)?;
        let share = self.members.get(&member).copied().unwrap_or_default();
        share.earned(per_unit).map(Usdcx::from_wei)
    }

    /// What flows to a member now, in wei/s.
    pub fn rate(&self, member: Address) -> i128 {
        self.members.get(&member).map_or(0, |share| share.units * self.per_unit.rate)
    }

    /// What flows to all members now, in wei/s: the chain's `getTotalFlowRate`.
    pub fn total_rate(&self) -> i128 {
        self.units * self.per_unit.rate
    }

    /// What the pool's admin has received by `at` from rounding and from times without members; to be paid out.
    pub fn adjustments(&self, at: u64) -> Option<Usdcx> {
        self.admin.after(at.checked_sub(self.at)?).map(Usdcx::from_wei)
    }

    /// What flows to the pool's admin now, in wei/s.
    pub fn adjustment_rate(&self) -> i128 {
        self.admin.rate
    }

    /// A member's units.
    pub fn units(&self, member: Address) -> u128 {
        self.members.get(&member).map_or(0, |share| share.units.unsigned_abs())
    }

    /// Everybody who ever had units.
    pub fn members(&self) -> impl Iterator<Item = Address> {
        self.members.keys().copied()
    }

    /// When the last event happened (Unix seconds).
    pub fn at(&self) -> u64 {
        self.at
    }
}

impl Share {
    fn earned(self, per_unit: i128) -> Option<i128> {
        per_unit.checked_sub(self.since)?.checked_mul(self.units)?.checked_add(self.settled)
    }
}

/// What one vault has streamed, from its `FlowDistributionUpdated` events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamMeter {
    at: u64,
    meter: Meter,
}

impl StreamMeter {
    /// Books that `vault`'s stream ran at `old` until `at` and runs at `new` from then on, in wei/s.
    pub fn apply(&mut self, vault: Address, at: u64, old: i128, new: i128) -> Result<(), LedgerError> {
        if old != self.meter.rate {
            return Err(LedgerError::Rate(vault));
        }
        let seconds = at.checked_sub(self.at).ok_or(LedgerError::OutOfOrder { at, last: self.at })?;
        let value = self.meter.after(seconds).ok_or(LedgerError::TooLarge)?;
        *self = Self { at, meter: Meter { value, rate: new } };
        Ok(())
    }

    /// What has streamed by `at`; `None` before the last event.
    pub fn streamed(&self, at: u64) -> Option<Usdcx> {
        self.meter.after(at.checked_sub(self.at)?).map(Usdcx::from_wei)
    }

    /// What streams now, where it is whole units of USDC.
    pub fn rate(&self) -> Option<FlowRate> {
        FlowRate::from_wei_per_second(u128::try_from(self.meter.rate).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIT: i128 = 1_000_000_000_000;

    fn who(n: u8) -> Address {
        Address::repeat_byte(n)
    }

    fn units(member: u8, old: u128, new: u128) -> PoolChange {
        PoolChange::Units { member: who(member), old, new }
    }

    fn rate(units_per_second: i128) -> PoolChange {
        PoolChange::Rate { total: units_per_second * UNIT, adjustment: 0 }
    }

    fn book(changes: &[(u64, PoolChange)]) -> PoolLedger {
        let mut ledger = PoolLedger::default();
        for (at, change) in changes {
            ledger.apply(*at, *change).unwrap();
        }
        ledger
    }

    #[test]
    fn a_standby_takes_over_and_everybody_is_paid_for_their_time() {
        // One transaction adds the standby before it removes the member: no second passes in between.
        let ledger = book(&[
            (10, units(1, 0, 600_000)),
            (10, units(2, 0, 400_000)),
            (20, rate(100)),
            (50, units(3, 0, 400_000)),
            (50, units(2, 400_000, 0)),
            (50, rate(100)),
            (70, rate(0)),
        ]);
        let earned = |n, at| ledger.earned(who(n), at).unwrap().wei();
        assert_eq!(earned(1, 70), 50 * 60 * UNIT);
        assert_eq!(earned(2, 70), 30 * 40 * UNIT);
        assert_eq!(earned(3, 70), 20 * 40 * UNIT);
        assert_eq!(earned(3, 1000), 20 * 40 * UNIT, "nothing flows any more");
        assert_eq!(ledger.adjustments(1000), Some(Usdcx::ZERO));
    }

    #[test]
    fn what_does_not_divide_goes_to_the_admin_until_a_rate_is_set() {
        // 7, 11 and 13 units, as on the real contracts: 101 units a second become 31 x 3,258,064,516,129 wei/s.
        let mut ledger = book(&[(0, units(1, 0, 7)), (0, units(2, 0, 11)), (0, units(3, 0, 13))]);
        let total = 101 * UNIT - 1;
        ledger.apply(0, PoolChange::Rate { total, adjustment: 0 }).unwrap();
        assert_eq!(ledger.total_rate(), total);
        ledger.apply(10, units(1, 7, 8)).unwrap();
        assert_eq!(ledger.total_rate() + ledger.adjustment_rate(), total, "no wei is lost");
        assert!(ledger.adjustment_rate() > 0);
        let all: i128 = (1..=3).map(|n| ledger.earned(who(n), 110).unwrap().wei()).sum();
        assert_eq!(all + ledger.adjustments(110).unwrap().wei(), total * 110);
        ledger.apply(120, units(1, 8, 0)).unwrap();
        ledger.apply(120, units(2, 11, 0)).unwrap();
        ledger.apply(120, units(3, 13, 0)).unwrap();
        assert_eq!(
            (ledger.total_rate(), ledger.adjustment_rate()),
            (0, total),
            "without members all goes to the admin"
        );
    }

    #[test]
    fn an_instant_distribution_is_shared_by_units() {
        let mut ledger = book(&[(5, units(1, 0, 750_000)), (5, units(2, 0, 250_000))]);
        ledger.apply(9, PoolChange::Amount(8_000_000)).unwrap();
        assert_eq!(ledger.earned(who(1), 9), Some(Usdcx::from_wei(6_000_000)));
        assert_eq!(ledger.earned(who(2), 9), Some(Usdcx::from_wei(2_000_000)));
    }

    #[test]
    fn events_that_do_not_follow_are_refused_and_change_nothing() {
        let mut ledger = book(&[(10, units(1, 0, 1_000_000)), (20, rate(1))]);
        let before = ledger.clone();
        assert_eq!(ledger.apply(19, rate(2)), Err(LedgerError::OutOfOrder { at: 19, last: 20 }));
        let missing = LedgerError::Units { member: who(1), booked: 1_000_000, found: 5 };
        assert_eq!(ledger.apply(30, units(1, 5, 6)), Err(missing));
        assert_eq!(ledger.apply(30, units(2, 0, u128::MAX)), Err(LedgerError::TooLarge));
        assert_eq!(ledger, before);
        assert_eq!(ledger.earned(who(1), 19), None, "the past is not kept");
        let mut meter = StreamMeter::default();
        assert_eq!(meter.apply(who(9), 5, 1, 0), Err(LedgerError::Rate(who(9))));
        meter.apply(who(9), 5, 0, UNIT).unwrap();
        meter.apply(who(9), 15, UNIT, 0).unwrap();
        assert_eq!(meter.streamed(99), Some(Usdcx::from_wei(10 * UNIT)));
    }

    proptest! {
        /// Whatever happens, members and admin together receive exactly what streams in.
        #[test]
        fn nothing_is_lost_and_nothing_is_made(
            steps in proptest::collection::vec((0_u64..1000, 0..3, 0_u8..6, 0_u32..2_000_000, 0_i128..10_000), 1..60),
        ) {
            let mut ledger = PoolLedger::default();
            let (mut at, mut flowing, mut poured) = (0_u64, 0_i128, 0_i128);
            for (wait, kind, member, amount, rate) in steps {
                poured += flowing * i128::from(wait);
                at += wait;
                let total_units: i128 = ledger.members().collect::<Vec<_>>().into_iter()
                    .map(|m| ledger.units(m) as i128).sum();
                match kind {
                    0 => {
                        let old = ledger.units(who(member));
                        ledger.apply(at, units(member, old, u128::from(amount))).unwrap();
                    }
                    1 => {
                        // As the agreement does it: the rate and all adjustment are divided anew, and what does not
                        // divide is not taken from the sender.
                        let divided = rate * UNIT / total_units.max(1) * total_units;
                        ledger.apply(at, PoolChange::Rate { total: divided, adjustment: 0 }).unwrap();
                        flowing = divided;
                    }
                    _ => {
                        let divided = i128::from(amount) / total_units.max(1) * total_units;
                        ledger.apply(at, PoolChange::Amount(divided)).unwrap();
                        poured += divided;
                    }
                }
                prop_assert_eq!(ledger.total_rate() + ledger.adjustment_rate(), flowing);
            }
            let members: Vec<Address> = ledger.members().collect();
            let received: i128 = members.iter().map(|m| ledger.earned(*m, at).unwrap().wei()).sum();
            prop_assert_eq!(received + ledger.adjustments(at).unwrap().wei(), poured);
        }
    }
}
