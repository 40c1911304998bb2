//! Where a follower stands, in a form that the caller stores.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use serde::{Deserialize, Serialize};

use super::Event;

/// Blocks whose hashes are all kept: how deep a re-organisation is followed to the block. Of older ones a few are
/// kept, ever farther apart, so that a chain that was set back for longer is still found out.
pub(super) const WINDOW: u64 = 128;
/// Hashes kept of each doubling of the distance beyond the window.
const PER_DOUBLING: u64 = 8;
/// Vaults that are listened to at most. Anybody may deploy some; so those that nobody paid go first, then closed ones,
/// then the oldest.
const MOST_VAULTS: usize = 10_000;
/// Pools that are listened to at most. Each took its owner's signature.
const MOST_POOLS: usize = 1_000;

/// A block that was seen, by height and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenBlock {
    /// Its height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
}

/// Everything up to here was seen. Store it together with what the events caused, as JSON.
///
/// It also knows which pools and vaults to listen to: pools that were activated, vaults that were deployed. A closed
/// vault is let go when its end is deep enough not to be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cursor {
    /// The first block that was to be read.
    pub(super) start: u64,
    /// The next block to read.
    pub(super) next: u64,
    /// Blocks that were read, oldest first.
    pub(super) recent: Vec<SeenBlock>,
    /// GDA pools, and the block that made each known.
    pub(super) pools: BTreeMap<Address, u64>,
    /// Vaults, and the blocks in which each became known and was closed.
    pub(super) vaults: BTreeMap<Address, Life>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Life {
    pub(super) since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) opened: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) closed: Option<u64>,
}

impl Cursor {
    /// Begins at a block, for example the address book's start block.
    pub fn at(block: u64) -> Self {
        Self { start: block, next: block, recent: Vec::new(), pools: BTreeMap::new(), vaults: BTreeMap::new() }
    }

    /// The next block to read: all before it was.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The last block that was read.
    pub fn seen(&self) -> Option<SeenBlock> {
        self.recent.last().copied()
    }

    /// The GDA pools that are listened to.
    pub fn pools(&self) -> impl Iterator<Item = Address> {
        self.pools.keys().copied()
    }

    /// The vaults that are listened to.
    pub fn vaults(&self) -> impl Iterator<Item = Address> {
        self.vaults.keys().copied()
    }

    /// Listens to a vault whatever the events before have named.
    pub(super) fn listen_to(&mut self, vault: Address) {
        self.vaults.insert(vault, Life { since: self.start, opened: None, closed: None });
    }

    /// Notes that everything up to `blocks`' last one was read.
    pub(super) fn advance(&mut self, next: u64, blocks: &[SeenBlock]) {
        self.next = next;
        self.recent.extend(blocks);
        let floor = next.saturating_sub(WINDOW);
        self.recent.retain(|block| block.number >= floor || is_milestone(block.number, next));
        self.vaults.retain(|_, life| life.closed.is_none_or(|closed| closed >= floor));
        while self.vaults.len() > MOST_VAULTS {
            let worth = |life: &Life| (life.opened.is_some(), life.closed.is_none(), life.since);
            let Some(vault) = self.vaults.iter().min_by_key(|(_, life)| worth(life)).map(|(vault, _)| *vault) else {
                break;
            };
            self.vaults.remove(&vault);
        }
        while self.pools.len() > MOST_POOLS {
            let Some(pool) = self.pools.iter().min_by_key(|(_, since)| **since).map(|(pool, _)| *pool) else { break };
            self.pools.remove(&pool);
        }
    }

    /// Takes back every block from `from` on.
    pub(super) fn rewind(&mut self, from: u64) {
        self.next = from;
        self.recent.retain(|block| block.number < from);
        self.pools.retain(|_, since| *since < from);
        self.vaults.retain(|_, life| life.since < from);
        for life in self.vaults.values_mut() {
            life.opened = life.opened.filter(|opened| *opened < from);
            life.closed = life.closed.filter(|closed| *closed < from);
        }
    }

    /// Learns from an event whom to listen to.
    pub(super) fn learn(&mut self, block: u64, event: &Event) {
        match event {
            Event::Activated { gda_pool, .. } => {
                self.pools.entry(*gda_pool).or_insert(block);
            }
            Event::VaultDeployed { vault, .. } => {
                self.vaults.entry(*vault).or_insert(Life { since: block, opened: None, closed: None });
            }
            Event::SessionOpened { vault, .. } => {
                if let Some(life) = self.vaults.get_mut(vault) {
                    life.opened.get_or_insert(block);
                }
            }
            Event::VaultClosed { vault, .. } => {
                if let Some(life) = self.vaults.get_mut(vault) {
                    life.closed = Some(block);
                }
            }
            _ => {}
        }
    }
}

/// Whether a block outside the window is one of those kept: multiples of a power of two that grows with the distance.
fn is_milestone(number: u64, next: u64) -> bool {
    let distance = next.saturating_sub(number);
    number.is_multiple_of((distance / PER_DOUBLING).next_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(number: u64, fork: u8) -> SeenBlock {
        SeenBlock { number, hash: B256::repeat_byte(fork) }
    }

    fn close(vault: Address) -> Event {
        Event::VaultClosed { vault, by: Address::ZERO }
    }

    #[test]
    fn a_rewind_forgets_what_was_learnt_above() {
        let mut cursor = Cursor::at(10);
        let [old, new] = [1, 2].map(Address::repeat_byte);
        cursor.vaults.insert(old, Life { since: 11, opened: Some(11), closed: None });
        cursor.vaults.insert(new, Life { since: 13, opened: None, closed: None });
        cursor.pools.insert(new, 13);
        cursor.learn(13, &close(old));
        cursor.advance(14, &[block(11, 1), block(12, 1), block(13, 1)]);
        cursor.rewind(13);
        assert_eq!(cursor.next, 13);
        assert_eq!(cursor.seen(), Some(block(12, 1)));
        assert_eq!(cursor.vaults().collect::<Vec<_>>(), [old]);
        assert_eq!(cursor.vaults[&old].closed, None, "its end was taken back");
        assert_eq!(cursor.pools().count(), 0);
    }

    #[test]
    fn closed_vaults_are_let_go_and_the_window_is_bounded() {
        let mut cursor = Cursor::at(0);
        let [gone, open] = [1, 2].map(Address::repeat_byte);
        for vault in [gone, open] {
            cursor.vaults.insert(vault, Life { since: 1, opened: Some(1), closed: None });
        }
        cursor.learn(5, &close(gone));
        let blocks: Vec<SeenBlock> = (0..5 + WINDOW).map(|number| block(number, 1)).collect();
        cursor.advance(5 + WINDOW, &blocks);
        assert_eq!(cursor.vaults().count(), 2, "its end can still be taken back");
        cursor.advance(6 + WINDOW, &[block(5 + WINDOW, 1)]);
        assert_eq!(cursor.vaults().collect::<Vec<_>>(), [open]);
        assert!(cursor.recent.len() as u64 <= WINDOW + 2 * PER_DOUBLING, "{}", cursor.recent.len());
    }

    #[test]
    fn vaults_that_nobody_paid_never_drive_out_those_that_somebody_did() {
        let mut cursor = Cursor::at(0);
        let paid = Address::repeat_byte(0xff);
        cursor.vaults.insert(paid, Life { since: 1, opened: Some(1), closed: None });
        for number in 0..MOST_VAULTS as u64 + 500 {
            let junk = Address::left_padding_from(&number.to_be_bytes());
            cursor.vaults.insert(junk, Life { since: 2, opened: None, closed: None });
        }
        cursor.advance(3, &[block(2, 1)]);
        assert_eq!(cursor.vaults.len(), MOST_VAULTS);
        assert!(cursor.vaults.contains_key(&paid));
    }

    #[test]
    fn of_a_long_chain_few_hashes_are_kept_and_none_is_far_from_any_block() {
        let mut cursor = Cursor::at(0);
        let last = 20_000;
        for number in 0..=last {
            cursor.advance(number + 1, &[block(number, 1)]);
        }
        assert!(cursor.recent.len() < 128 + 16 * 10, "{} hashes", cursor.recent.len());
        for back in [200, 1_000, 6_000, 15_000] {
            let wanted = last - back;
            let below = cursor.recent.iter().rev().find(|block| block.number <= wanted).unwrap();
            assert!(wanted - below.number <= back / 2, "{back} blocks back, {} are read again", wanted - below.number);
        }
    }

    #[test]
    fn a_cursor_survives_its_text() {
        let mut cursor = Cursor::at(7);
        cursor.vaults.insert(Address::repeat_byte(1), Life { since: 8, opened: None, closed: Some(9) });
        cursor.advance(9, &[block(7, 1), block(8, 2)]);
        let text = serde_json::to_string(&cursor).unwrap();
        assert_eq!(serde_json::from_str::<Cursor>(&text).unwrap(), cursor);
    }
}
