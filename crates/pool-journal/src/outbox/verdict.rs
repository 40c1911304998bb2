//! What a look at the chain means for an intent: a pure decision.

use super::{BlockRef, Receipt, record::IntentState};

/// What becomes of an intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it was.
    Unchanged,
    /// A block holds it, another one than before if there was one; more blocks must follow.
    Included(Receipt),
    /// It is under enough blocks.
    Final(Receipt),
    /// The block that held it is no longer part of the chain.
    Vanished,
}

/// Decides.
///
/// `held` is the receipt known before, `found` the one that the chain gives now. A node that is behind the block that
/// held the transaction says nothing by not knowing it.
pub(super) fn judge(
    state: IntentState,
    held: Option<&Receipt>,
    found: Option<&Receipt>,
    head: BlockRef,
    confirmations: u64,
) -> Verdict {
    match (state, held, found) {
        (IntentState::Signed | IntentState::Included | IntentState::Final, _, Some(found)) => {
            let same = held == Some(found);
            let depth = head.number.saturating_sub(found.block.number) + 1;
            match state {
                IntentState::Final if same => Verdict::Unchanged,
                _ if depth >= confirmations => Verdict::Final(found.clone()),
                _ if same => Verdict::Unchanged,
                _ => Verdict::Included(found.clone()),
            }
        }
        (IntentState::Included | IntentState::Final, Some(held), None) if head.number >= held.block.number => {
            Verdict::Vanished
        }
        _ => Verdict::Unchanged,
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;

    use super::*;

    fn block(number: u64, fork: u8) -> BlockRef {
        BlockRef { number, hash: B256::repeat_byte(fork) }
    }

    fn receipt(number: u64, fork: u8) -> Receipt {
        Receipt {
            transaction: B256::repeat_byte(9),
            block: block(number, fork),
            succeeded: true,
            gas_used: 21_000,
            gas_price: 1,
        }
    }

    #[test]
    fn a_transaction_ends_under_enough_blocks_and_comes_back_when_its_block_goes() {
        use IntentState::{Final, Included, Signed};
        let a = receipt(10, 1);
        let b = receipt(11, 2);
        for (state, held, found, head, verdict) in [
            (Signed, None, None, 12, Verdict::Unchanged),
            (Signed, None, Some(&a), 10, Verdict::Included(a.clone())),
            (Signed, None, Some(&a), 12, Verdict::Final(a.clone())),
            (Included, Some(&a), Some(&a), 11, Verdict::Unchanged),
            (Included, Some(&a), Some(&a), 12, Verdict::Final(a.clone())),
            (Included, Some(&a), Some(&b), 12, Verdict::Included(b.clone())),
            (Included, Some(&a), None, 12, Verdict::Vanished),
            (Included, Some(&a), None, 9, Verdict::Unchanged),
            (Final, Some(&a), Some(&a), 40, Verdict::Unchanged),
            (Final, Some(&a), Some(&b), 11, Verdict::Included(b.clone())),
            (Final, Some(&a), Some(&b), 14, Verdict::Final(b.clone())),
            (Final, Some(&a), None, 10, Verdict::Vanished),
            (Final, Some(&a), None, 8, Verdict::Unchanged),
        ] {
            let told = judge(state, held, found, block(head, 7), 3);
            assert_eq!(told, verdict, "{state:?}, head {head}, {held:?} -> {found:?}");
        }
    }
}
