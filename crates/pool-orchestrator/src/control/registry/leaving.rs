//! Members that say they leave, or that they need time.

use std::time::{Duration, Instant};

use alloy_primitives::Address;
use pool_coalition::stand_down::{Manner, SignedStandDown};
use pool_types::{Epoch, Failure, ReasonCode};

use super::{ConnectionId, Output, Record, Registry, Stage};

/// Layers that come from far may take their time, but not for ever.
const LONGEST_FETCH: Duration = Duration::from_secs(24 * 3600);

impl Registry {
    /// A node leaves: at once, which ends its coalition, or after the last request, until when the coalition begins
    /// nothing new.
    pub(super) fn stands_down(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        word: Box<SignedStandDown>,
        out: &mut Vec<Output>,
    ) {
        let Some(address) = self.address_of(connection) else { return };
        let manner = word.stand_down.manner;
        let Some(node) = self.nodes.get_mut(&address) else { return };
        // Once a connection, and once more when a member that drains leaves at once after all.
        if node.leaving.replace(manner) == Some(manner) {
            return;
        }
        out.push(Output::Record(Record::StoodDown(word)));
        (self.changed, self.obstacle) = (now, None);
        let Some(coalition) = self.coalition.as_mut().filter(|it| it.assignment.index_of(address).is_some()) else {
            return;
        };
        let serves = coalition.stage == Stage::Active;
        if manner == Manner::Drain && serves {
            if coalition.leaver.is_none() {
                // The stage lasts from now on, for its deadline.
                (coalition.leaver, coalition.since) = (Some(address), now);
                out.push(Output::DrainGateway(coalition.assignment.epoch));
            }
            return;
        }
        let name = self.name(address);
        let message = match manner {
            Manner::Yield => format!("{name} gave its computer back to its owner"),
            Manner::Drain => format!("{name} left before the coalition served"),
        };
        self.end(now, Failure::new(ReasonCode::StandDown, message), out);
    }

    pub(super) fn drained(&mut self, now: Instant, epoch: Epoch, out: &mut Vec<Output>) {
        if self.is_current(epoch) {
            self.end_draining(now, out);
        }
    }

    /// Ends a coalition that drains: its last request has ended, or had its time.
    pub(super) fn end_draining(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(leaver) = self.coalition.as_ref().and_then(|coalition| coalition.leaver) else { return };
        let message = format!("{} left after its last request", self.name(leaver));
        self.end(now, Failure::new(ReasonCode::StandDown, message), out);
    }

    /// A member's layers are on their way: as long as more of them comes, it has time.
    pub(super) fn fetches(&mut self, now: Instant, address: Address, epoch: Epoch, done: u64) {
        if self.in_stage(epoch, Stage::Loading).is_none() {
            return;
        }
        let Some(node) = self.nodes.get_mut(&address) else { return };
        let grows = done > node.fetched;
        node.fetched = node.fetched.max(done);
        let Some(coalition) = self.in_stage(epoch, Stage::Loading) else { return };
        let is_member = coalition.assignment.index_of(address).is_some();
        if is_member && grows && now.saturating_duration_since(coalition.formed) < LONGEST_FETCH {
            coalition.since = now;
        }
    }

    /// Whether there is a node that may get layers.
    pub(super) fn anybody_stays(&self) -> bool {
        self.nodes.values().any(|node| node.leaving.is_none())
    }
}
