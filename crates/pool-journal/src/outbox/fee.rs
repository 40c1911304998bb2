//! What a variant offers for a unit of gas.

use super::{Fees, record::VariantRow};

/// A max fee and a priority fee, in wei for a unit of gas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) max_fee: u128,
    pub(super) priority_fee: u128,
}

impl Offer {
    /// The first offer: twice the base fee, so that it holds through six full blocks, and the priority fee.
    pub(super) fn first(fees: Fees, ceiling: u128) -> Offer {
        let max_fee = fees.base_fee.saturating_mul(2).saturating_add(fees.priority_fee).max(1).min(ceiling);
        Offer { max_fee, priority_fee: fees.priority_fee.min(max_fee) }
    }

    /// An offer that outbids `last`: an eighth more on both fees, for nodes want a tenth, or what gas costs now if
    /// that is more. `None` if that is above the ceiling.
    pub(super) fn above(last: &VariantRow, fees: Fees, ceiling: u128) -> Option<Offer> {
        let raised = |fee: u128| fee.saturating_add(fee.div_ceil(8)).saturating_add(1);
        let now = Offer::first(fees, ceiling);
        let max_fee = raised(last.max_fee).max(now.max_fee);
        let priority_fee = raised(last.priority_fee).max(now.priority_fee).min(max_fee);
        (max_fee <= ceiling).then_some(Offer { max_fee, priority_fee })
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{B256, Bytes};
    use proptest::prelude::*;

    use super::*;
    use crate::{Timestamp, outbox::record::VariantKind};

    fn variant(offer: Offer) -> VariantRow {
        VariantRow {
            hash: B256::ZERO,
            nonce: 0,
            kind: VariantKind::Call,
            max_fee: offer.max_fee,
            priority_fee: offer.priority_fee,
            raw: Bytes::new(),
            signed_at: Timestamp(0),
            was_broadcast: true,
        }
    }

    proptest! {
        #[test]
        fn every_bump_outbids_by_a_tenth_and_stays_below_the_ceiling(
            base_fee in 0u128..1 << 70, priority_fee in 0u128..1 << 70, ceiling in 1u128..1 << 72, more in 0u128..1 << 71,
        ) {
            let first = Offer::first(Fees { base_fee, priority_fee }, ceiling);
            prop_assert!(first.max_fee <= ceiling && first.priority_fee <= first.max_fee);
            let fees = Fees { base_fee: more, priority_fee };
            if let Some(next) = Offer::above(&variant(first), fees, ceiling) {
                prop_assert!(next.max_fee <= ceiling && next.priority_fee <= next.max_fee);
                prop_assert!(next.max_fee * 10 >= first.max_fee * 11);
                prop_assert!(next.priority_fee * 10 >= first.priority_fee * 11);
            }
        }
    }

    #[test]
    fn fees_stop_rising_at_the_ceiling() {
        let fees = Fees { base_fee: 100, priority_fee: 10 };
        let (mut offer, mut bumps) = (Offer::first(fees, 1000), 0);
        while let Some(next) = Offer::above(&variant(offer), fees, 1000) {
            (offer, bumps) = (next, bumps + 1);
        }
        assert_eq!(bumps, 12, "from 210 by eighths to 1000");
    }
}
