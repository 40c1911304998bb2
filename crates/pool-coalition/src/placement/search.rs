//! Which cards, in which order: every order while cards are few, local search over the most useful ones beyond.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use alloy_primitives::Address;

use super::{
    Objective,
    cut::Seated,
    field::{Field, Score},
};

/// Up to this many cards every order is considered.
const EXHAUSTIVE_CARDS: usize = 7;
/// Beyond that, at most this many shards more than the fewest that hold the model are tried.
const FURTHER_SHARDS: usize = 7;
/// The most useful cards that local search looks at, and more where a model needs more shards.
const CANDIDATES: usize = 48;
/// Measured neighbours that local search starts from.
const NEAR_PAIRS: usize = 8;
/// Bounds looked at by all local searches of one call together.
const BUDGET: usize = 60_000;

impl Field<'_> {
    /// The best placement with a number of shards in `shards`.
    pub(super) fn best_of(&self, shards: RangeInclusive<usize>) -> Option<Seated> {
        let (fewest, most) = (*shards.start(), (*shards.end()).min(self.seats.len()).min(self.layer_count()));
        if fewest > most {
            return None;
        }
        if most == 1 {
            let alone = (0..self.seats.len()).map(|seat| vec![seat]).collect();
            return self.best_order(alone);
        }
        if self.seats.len() <= EXHAUSTIVE_CARDS {
            return self.best_order(Orders::of(self, fewest, most));
        }
        self.best_found(fewest, most)
    }

    /// Cuts the orders from the most promising on, until no bound is better than what was found. Exact.
    pub(super) fn best_order(&self, orders: Vec<Vec<usize>>) -> Option<Seated> {
        let mut bounded: Vec<(Score, Vec<usize>)> =
            orders.into_iter().filter_map(|order| Some((self.bound(&order).ok()?, order))).collect();
        bounded.sort_by(|a, b| {
            let by_measure = self.measure(&a.0).total_cmp(&self.measure(&b.0));
            by_measure.then_with(|| a.0.cost().total_cmp(&b.0.cost())).then_with(|| a.1.cmp(&b.1))
        });
        let mut best: Option<Seated> = None;
        for (bound, order) in bounded {
            if let Some(best) = &best {
                if self.measure(&bound) > self.measure(&best.score) {
                    break;
                }
                let limit = match self.objective {
                    Objective::Latency => f64::INFINITY,
                    Objective::Throughput => best.score.bottleneck_seconds,
                };
                if !self.is_better(&bound, &best.score) || !self.could_stay_within(&order, limit) {
                    continue;
                }
            }
            let Some(seated) = self.cut(&order) else { continue };
            if best.as_ref().is_none_or(|best| self.is_better(&seated.score, &best.score)) {
                best = Some(seated);
            }
        }
        best
    }

    /// A lower bound of what any cut of this order scores, from layers that could be poured like water; or, as the
    /// error, the bytes of layers that find no room.
    fn bound(&self, order: &[usize]) -> Result<Score, f64> {
        let total = self.all_layers_bytes() as f64;
        let least = self.smallest_layer as f64;
        let shards = order.len();
        // (seconds per byte, room beyond the one layer that every shard holds, seconds that are spent anyway)
        let mut pools: Vec<(f64, f64, f64)> = Vec::with_capacity(shards);
        let mut missing: f64 = 0.0;
        for (place, &seat) in order.iter().enumerate() {
            let room = self.room(seat, place, shards);
            missing += (least - room).max(0.0);
            let speed = self.seats[seat].seconds_per_byte;
            pools.push((speed, (room - least).max(0.0), self.fixed_seconds(seat, place, shards) + least * speed));
        }
        let to_pour = (total - least * shards as f64).max(0.0);
        missing += (to_pour - pools.iter().map(|pool| pool.1).sum::<f64>()).max(0.0);
        if missing > 0.0 {
            return Err(missing);
        }
        let (hops, busiest_hop) = self.ring(order);
        pools.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut rest = to_pour;
        let mut token_seconds = hops;
        for (speed, room, spent) in &pools {
            let poured = rest.min(*room);
            rest -= poured;
            token_seconds += spent + poured * speed;
        }
        let floor = pools.iter().map(|pool| pool.2).fold(busiest_hop, f64::max);
        let bottleneck_seconds = match self.objective {
            Objective::Latency => floor,
            Objective::Throughput => water_level(&pools, to_pour, floor),
        };
        Ok(Score { token_seconds, bottleneck_seconds, waiting_seconds: self.least_waiting(order) })
    }

    /// Bytes of whole layers that fit on `seat`, never less than what can really be put there.
    fn room(&self, seat: usize, place: usize, shards: usize) -> f64 {
        let Some(capacity) = self.capacity(seat, place, shards) else { return 0.0 };
        let whole_layers = capacity.checked_div(self.smallest_layer).unwrap_or(u64::MAX);
        capacity.min(whole_layers.saturating_mul(self.largest_layer)) as f64
    }

    /// The best of many local searches.
    pub(super) fn best_found(&self, fewest: usize, most: usize) -> Option<Seated> {
        let fewest = fewest.max(self.fewest_that_hold()?);
        let most = most.min(fewest + FURTHER_SHARDS);
        if fewest > most {
            return None;
        }
        let pairs = self.near_pairs(most);
        let candidates = self.candidates(most, &pairs);
        let within = |seat: usize| candidates.binary_search(&seat).ok();
        let pairs: Vec<(usize, usize)> = pairs.iter().filter_map(|(a, b)| Some((within(*a)?, within(*b)?))).collect();
        let mut best = self.of_only(&candidates).best_climbed(fewest, most, &pairs)?;
        best.order.iter_mut().for_each(|seat| *seat = candidates[*seat]);
        Some(best)
    }

    /// The best of local searches that may use every card of the field.
    fn best_climbed(&self, fewest: usize, most: usize, pairs: &[(usize, usize)]) -> Option<Seated> {
        let starts: Vec<Vec<usize>> = (fewest..=most).flat_map(|shards| self.starts(shards, pairs)).collect();
        let budget = BUDGET / starts.len().max(1);
        let finds: BTreeSet<Vec<usize>> = starts.into_iter().map(|start| self.climb(start, budget)).collect();
        let keeps_owners_apart = |order: &Vec<usize>| order.windows(2).all(|pair| self.may_neighbour(pair[0], pair[1]));
        self.best_order(finds.into_iter().filter(keeps_owners_apart).collect())
    }

    /// Pairs of cards that were measured to be near each other and are fast, the best first, no card twice.
    fn near_pairs(&self, shards: usize) -> Vec<(usize, usize)> {
        let share = self.all_layers_bytes() as f64 / shards as f64;
        let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
        for (from, seat) in self.seats.iter().enumerate() {
            for (id, seconds) in &seat.card.round_trips {
                let Ok(to) = self.seats.binary_search_by_key(id, |other| other.card.id) else { continue };
                if to != from && seconds.is_finite() && *seconds >= 0.0 && self.may_neighbour(from, to) {
                    let work = share * (seat.seconds_per_byte + self.seats[to].seconds_per_byte);
                    pairs.push((seconds / 2.0 + work, from, to));
                }
            }
        }
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let mut used = BTreeSet::new();
        let mut chosen = Vec::new();
        for (_, from, to) in pairs {
            if chosen.len() == NEAR_PAIRS {
                break;
            }
            if !used.contains(&from) && !used.contains(&to) {
                used.extend([from, to]);
                chosen.push((from, to));
            }
        }
        chosen
    }

    /// The fewest cards whose memory together holds the model.
    fn fewest_that_hold(&self) -> Option<usize> {
        let mut memory: Vec<u64> = self.seats.iter().map(|seat| seat.card.memory_bytes).collect();
        memory.sort_unstable_by(|a, b| b.cmp(a));
        let mut sum = 0u64;
        memory
            .iter()
            .position(|bytes| {
                sum = sum.saturating_add(*bytes);
                sum >= self.all_layers_bytes()
            })
            .map(|last| last + 1)
    }

    /// The cards worth looking at: the fastest, the largest, the best of both, near pairs and what is near to those.
    fn candidates(&self, shards: usize, pairs: &[(usize, usize)]) -> Vec<usize> {
        let wanted = CANDIDATES.max(3 * shards);
        // A farm of equal cards must not push every other owner out.
        let share = if self.one_owner_may_neighbour { wanted } else { shards.div_ceil(2) + 1 };
        let mut taken: BTreeMap<Address, usize> = BTreeMap::new();
        let mut chosen = BTreeSet::new();
        for ranking in [self.fastest(), self.largest(), self.most_useful()] {
            let mut added = 0;
            for seat in ranking {
                if added == wanted / 4 {
                    break;
                }
                let of_owner = taken.entry(self.owner(seat)).or_default();
                if *of_owner < share && chosen.insert(seat) {
                    *of_owner += 1;
                    added += 1;
                }
            }
        }
        for &(a, b) in pairs {
            chosen.extend([a, b]);
            let trips = self.seats[a].card.round_trips.keys();
            let mut near: Vec<(f64, usize)> = trips
                .filter_map(|id| self.seats.binary_search_by_key(id, |other| other.card.id).ok())
                .map(|seat| (self.hop_then_work(a, seat, shards), seat))
                .collect();
            near.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            chosen.extend(near.into_iter().take(shards.min(4)).map(|(_, seat)| seat));
        }
        chosen.into_iter().collect()
    }

    fn fastest(&self) -> Vec<usize> {
        self.ranked(|seat| 1.0 / self.seats[seat].seconds_per_byte)
    }

    fn largest(&self) -> Vec<usize> {
        self.ranked(|seat| self.useful_memory(seat))
    }

    fn most_useful(&self) -> Vec<usize> {
        self.ranked(|seat| self.useful_memory(seat) / self.seats[seat].seconds_per_byte)
    }

    /// Bytes of memory, as far as the model could fill them.
    fn useful_memory(&self, seat: usize) -> f64 {
        self.seats[seat].card.memory_bytes.min(self.all_layers_bytes()) as f64
    }

    /// All seats by `worth`, the highest first.
    fn ranked(&self, worth: impl Fn(usize) -> f64) -> Vec<usize> {
        let mut seats: Vec<(f64, usize)> = (0..self.seats.len()).map(|seat| (worth(seat), seat)).collect();
        seats.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        seats.into_iter().map(|(_, seat)| seat).collect()
    }

    /// Seconds to reach `to` and to do an even share of the work there.
    fn hop_then_work(&self, from: usize, to: usize, shards: usize) -> f64 {
        let share = self.all_layers_bytes() as f64 / shards as f64;
        self.hop_seconds(from, to, false) + share * self.seats[to].seconds_per_byte
    }

    /// Where to start: the fastest, the largest, and chains of near cards from near pairs and from the most useful.
    fn starts(&self, shards: usize, pairs: &[(usize, usize)]) -> Vec<Vec<usize>> {
        if self.seats.len() < shards {
            return Vec::new();
        }
        let hubs = self.most_useful().into_iter().take(3).map(|hub| vec![hub]);
        let near = pairs.iter().filter(|_| shards > 1).map(|&(a, b)| vec![a, b]);
        let mut starts = vec![self.fastest()[..shards].to_vec(), self.largest()[..shards].to_vec()];
        for mut chain in hubs.chain(near) {
            while chain.len() < shards {
                let from = chain[chain.len() - 1];
                let cost = |seat: usize| {
                    let conflict = if self.may_neighbour(from, seat) { 0.0 } else { 1e3 };
                    conflict + self.hop_then_work(from, seat, shards)
                };
                let free = (0..self.seats.len()).filter(|seat| !chain.contains(seat));
                let Some(next) = free.min_by(|&a, &b| cost(a).total_cmp(&cost(b))) else { break };
                chain.push(next);
            }
            starts.push(chain);
        }
        starts
    }

    /// Swaps and replaces cards while that helps: first what is against the rules, then the bound.
    fn climb(&self, mut order: Vec<usize>, mut budget: usize) -> Vec<usize> {
        let mut worth = self.worth(&order);
        let mut improved = true;
        while improved {
            improved = false;
            for place in 0..order.len() {
                for seat in 0..self.seats.len() {
                    if budget == 0 {
                        return order;
                    }
                    budget -= 1;
                    // A card that already serves changes places, any other comes in for the one that is there.
                    let held = order[place];
                    let other = order.iter().position(|taken| *taken == seat);
                    if other == Some(place) {
                        continue;
                    }
                    order[place] = seat;
                    other.into_iter().for_each(|other| order[other] = held);
                    let changed = self.worth(&order);
                    if self.worth_order(&changed, &worth) == Ordering::Less {
                        (worth, improved) = (changed, true);
                    } else {
                        order[place] = held;
                        other.into_iter().for_each(|other| order[other] = seat);
                    }
                }
            }
        }
        order
    }

    fn worth(&self, order: &[usize]) -> Worth {
        let conflicts = order.windows(2).filter(|pair| !self.may_neighbour(pair[0], pair[1])).count();
        match self.bound(order) {
            Ok(score) => Worth { missing: 0.0, conflicts, score: Some(score) },
            Err(missing) => Worth { missing, conflicts, score: None },
        }
    }

    fn worth_order(&self, a: &Worth, b: &Worth) -> Ordering {
        let rules = a.missing.total_cmp(&b.missing).then(a.conflicts.cmp(&b.conflicts));
        rules.then_with(|| match (&a.score, &b.score) {
            (Some(a), Some(b)) if self.is_better(a, b) => Ordering::Less,
            _ => Ordering::Equal,
        })
    }
}

/// How far an order is from the rules, and its bound where memory suffices.
struct Worth {
    missing: f64,
    conflicts: usize,
    score: Option<Score>,
}

/// The level at which pools (seconds per byte, room, seconds spent) that fill in time take in `to_pour` bytes.
fn water_level(pools: &[(f64, f64, f64)], to_pour: f64, floor: f64) -> f64 {
    let taken = |level: f64| -> f64 {
        pools
            .iter()
            .map(|(speed, room, spent)| if *speed > 0.0 { ((level - spent) / speed).clamp(0.0, *room) } else { *room })
            .sum()
    };
    let (mut low, mut high) =
        (floor, pools.iter().map(|(speed, room, spent)| spent + room * speed).fold(floor, f64::max));
    if taken(low) >= to_pour {
        return low;
    }
    for _ in 0..48 {
        let middle = (low + high) / 2.0;
        if taken(middle) >= to_pour { high = middle } else { low = middle }
    }
    low
}

/// Every order of cards that keeps owners apart, without those that only exchange cards which differ in nothing.
pub(super) struct Orders<'a, 'f> {
    field: &'f Field<'a>,
    /// The card before, in id order, that differs in nothing from this one.
    twin_before: Vec<Option<usize>>,
    sizes: RangeInclusive<usize>,
    found: Vec<Vec<usize>>,
}

impl<'a, 'f> Orders<'a, 'f> {
    pub(super) fn of(field: &'f Field<'a>, fewest: usize, most: usize) -> Vec<Vec<usize>> {
        let seats = 0..field.seats.len();
        let twin_before = seats.map(|seat| (0..seat).rev().find(|&other| are_twins(field, other, seat))).collect();
        let mut orders = Orders { field, twin_before, sizes: fewest..=most, found: Vec::new() };
        orders.extend(&mut Vec::new());
        orders.found
    }

    fn extend(&mut self, order: &mut Vec<usize>) {
        if self.sizes.contains(&order.len()) {
            self.found.push(order.clone());
        }
        if order.len() >= *self.sizes.end() {
            return;
        }
        for seat in 0..self.field.seats.len() {
            let follows_its_twin = self.twin_before[seat].is_none_or(|twin| order.contains(&twin));
            let keeps_apart = order.last().is_none_or(|&last| self.field.may_neighbour(last, seat));
            if follows_its_twin && keeps_apart && !order.contains(&seat) {
                order.push(seat);
                self.extend(order);
                order.pop();
            }
        }
    }
}

/// Whether exchanging two cards changes nothing but names.
fn are_twins(field: &Field, a: usize, b: usize) -> bool {
    let others = || (0..field.seats.len()).filter(|&seat| seat != a && seat != b);
    let (card_a, card_b) = (field.seats[a].card, field.seats[b].card);
    let owns_alone = |seat: usize| others().all(|other| field.owner(other) != field.owner(seat));
    field.hold_the_same(a, b)
        && card_a.memory_bytes == card_b.memory_bytes
        && field.seats[a].seconds_per_byte == field.seats[b].seconds_per_byte
        && card_a.uplink_bytes_per_s == card_b.uplink_bytes_per_s
        && card_a.switch_seconds == card_b.switch_seconds
        && (field.one_owner_may_neighbour || card_a.owner == card_b.owner || (owns_alone(a) && owns_alone(b)))
        && others().all(|other| {
            let other = field.seats[other].card;
            card_a.round_trip_to(other) == card_b.round_trip_to(other)
                && other.round_trip_to(card_a) == other.round_trip_to(card_b)
        })
}
