//! Which of the remaining cards stands by for which span.

use std::collections::BTreeSet;

use super::{Standby, cut::Seated, field::Field};

impl Field<'_> {
    /// One standby per span while cards remain: the span that fewest cards can take over chooses first, and takes the
    /// card that would be fastest there. Another owner than the holder's is preferred, so that one household's outage
    /// does not take both.
    pub(super) fn standbys(&self, seated: &Seated) -> Vec<Standby> {
        let mut free: BTreeSet<usize> = (0..self.seats.len()).filter(|seat| !seated.order.contains(seat)).collect();
        let mut open: Vec<usize> = (0..seated.order.len()).collect();
        let mut standbys = Vec::new();
        while !open.is_empty() {
            let able = |place: usize| free.iter().filter(|&&seat| self.can_take_over(seated, place, seat)).count();
            let hardest = open.iter().copied().map(|place| (able(place), place)).filter(|(able, _)| *able > 0).min();
            let Some((_, place)) = hardest else { break };
            open.retain(|other| *other != place);
            let holder = self.owner(seated.order[place]);
            let best =
                (free.iter().copied()).filter(|&seat| self.can_take_over(seated, place, seat)).min_by(|&a, &b| {
                    let same_owner = |seat| self.owner(seat) == holder;
                    let cost = |seat| self.seconds_after_takeover(seated, place, seat);
                    same_owner(a).cmp(&same_owner(b)).then(cost(a).total_cmp(&cost(b)))
                });
            let Some(seat) = best else { break };
            free.remove(&seat);
            let (start, end) = bounds(seated, place);
            let stage_seconds = self.stage_seconds(seat, place, seated.order.len(), start, end);
            standbys.push(Standby { span: place, card: self.seats[seat].card.id, stage_seconds });
        }
        standbys.sort_by_key(|standby| standby.span);
        standbys
    }

    fn can_take_over(&self, seated: &Seated, place: usize, seat: usize) -> bool {
        let (start, end) = bounds(seated, place);
        let fits = self
            .capacity(seat, place, seated.order.len())
            .is_some_and(|room| self.resident[end] - self.resident[start] <= room);
        let before = place.checked_sub(1).map(|before| seated.order[before]);
        let after = seated.order.get(place + 1).copied();
        fits && before.into_iter().chain(after).all(|neighbour| self.may_neighbour(neighbour, seat))
    }

    /// Seconds of a token's way into, through and out of the span with `seat` in the holder's place.
    fn seconds_after_takeover(&self, seated: &Seated, place: usize, seat: usize) -> f64 {
        let shards = seated.order.len();
        let (start, end) = bounds(seated, place);
        let work = self.stage_seconds(seat, place, shards, start, end) + self.waiting_seconds(seat, start, end);
        if shards == 1 {
            return work;
        }
        let (before, after) = ((place + shards - 1) % shards, (place + 1) % shards);
        work + self.hop_seconds(seated.order[before], seat, place == 0)
            + self.hop_seconds(seat, seated.order[after], place + 1 == shards)
    }
}

fn bounds(seated: &Seated, place: usize) -> (usize, usize) {
    (if place == 0 { 0 } else { seated.ends[place - 1] }, seated.ends[place])
}
