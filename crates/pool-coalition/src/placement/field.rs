//! The numbers of one placement problem, reckoned once: prefix sums of the layers, speeds and hops of the cards.

use alloy_primitives::Address;
use pool_types::LayerRange;

use super::{
    Card, FETCH_BYTES_PER_S, LIFETIME_TOKENS, LOAD_BYTES_PER_S, ModelNeeds, Objective, PlacementOptions, Span,
    cut::Seated,
};

/// Bytes of the message that carries a sampled token back to the entry shard.
const TOKEN_BYTES: f64 = 64.0;

/// Differences below this part of a value are rounding, not reasons.
const NOISE: f64 = 1e-9;

/// Up to this many cards their round trips are laid out in a table.
const TABLE_CARDS: usize = 256;

/// A usable card with room for at least one layer.
#[derive(Clone, Copy)]
pub(super) struct Seat<'a> {
    pub(super) card: &'a Card,
    pub(super) seconds_per_byte: f64,
}

/// What an order of cards with a cut of the layers is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Score {
    pub(super) token_seconds: f64,
    pub(super) bottleneck_seconds: f64,
    /// The time until the cards have their layers, spread over the tokens that come then.
    pub(super) waiting_seconds: f64,
}

impl Score {
    /// What a token costs one request, the wait for the first one included.
    pub(super) fn cost(&self) -> f64 {
        self.token_seconds + self.waiting_seconds
    }
}

/// What a card must wait for before it can serve.
#[derive(Clone)]
pub(super) struct Waits {
    /// Seconds to fetch what it lacks of the layers before `l`.
    fetch: Vec<f64>,
    /// The layers that it has in memory.
    loaded: Option<(usize, usize)>,
}

/// One placement problem. Cards are named by their place in `seats`, which is sorted by id.
pub(super) struct Field<'a> {
    pub(super) seats: Vec<Seat<'a>>,
    /// `resident[l]`: bytes of weights and KV cache of the layers before `l`. A token reads all of it.
    pub(super) resident: Vec<u64>,
    pub(super) smallest_layer: u64,
    pub(super) largest_layer: u64,
    pub(super) objective: Objective,
    pub(super) one_owner_may_neighbour: bool,
    model: &'a ModelNeeds,
    kv_per_layer: u64,
    head_bytes: f64,
    /// For each seat, where it is known what it holds.
    waits: Vec<Option<Waits>>,
    /// Round trips in seconds from every card to every other, row by row; empty above [`TABLE_CARDS`].
    trips: Vec<f64>,
}

impl<'a> Field<'a> {
    /// `model.total_bytes()` must have a value: every sum below is a part of it.
    pub(super) fn new(model: &'a ModelNeeds, cards: &'a [Card], options: &PlacementOptions) -> Self {
        let kv_per_layer = model.kv_bytes_per_layer().unwrap_or(u64::MAX);
        let mut resident = vec![0u64];
        for bytes in &model.layer_bytes {
            resident.push(resident[resident.len() - 1].saturating_add(bytes.saturating_add(kv_per_layer)));
        }
        let sizes = || resident.windows(2).map(|pair| pair[1] - pair[0]);
        let smallest_layer = sizes().min().unwrap_or(0);
        let largest_layer = sizes().max().unwrap_or(0);
        let head_weight = if model.head_weight.is_finite() { model.head_weight.max(0.0) } else { 1.0 };
        let mut seats: Vec<Seat> = (cards.iter())
            .filter(|card| card.is_usable() && card.memory_bytes >= smallest_layer)
            .map(|card| Seat { card, seconds_per_byte: 1.0 / card.speed() })
            .collect();
        seats.sort_by_key(|seat| seat.card.id);
        seats.dedup_by_key(|seat| seat.card.id);
        Self {
            trips: round_trips(&seats),
            waits: seats.iter().map(|seat| waits(model, seat.card)).collect(),
            seats,
            resident,
            smallest_layer,
            largest_layer,
            objective: options.objective,
            one_owner_may_neighbour: options.allow_same_owner_neighbours,
            head_bytes: model.exit_bytes as f64 * head_weight,
            model,
            kv_per_layer,
        }
    }

    /// The same problem with only some of the cards, named by their place in `seats`.
    pub(super) fn of_only(&self, seats: &[usize]) -> Self {
        let waits = seats.iter().map(|&seat| self.waits[seat].clone()).collect();
        let seats: Vec<Seat> = seats.iter().map(|&seat| self.seats[seat]).collect();
        Self { trips: round_trips(&seats), waits, seats, resident: self.resident.clone(), ..*self }
    }

    pub(super) fn with_same_owner_allowed(self) -> Self {
        Self { one_owner_may_neighbour: true, ..self }
    }

    pub(super) fn layer_count(&self) -> usize {
        self.resident.len() - 1
    }

    pub(super) fn all_layers_bytes(&self) -> u64 {
        self.resident[self.layer_count()]
    }

    pub(super) fn owner(&self, seat: usize) -> Address {
        self.seats[seat].card.owner
    }

    pub(super) fn may_neighbour(&self, a: usize, b: usize) -> bool {
        self.one_owner_may_neighbour || self.owner(a) != self.owner(b)
    }

    /// Bytes of layers and cache that `seat` can hold at `place` of `shards`; `None` where entry or exit alone exceed it.
    pub(super) fn capacity(&self, seat: usize, place: usize, shards: usize) -> Option<u64> {
        let entry = if place == 0 { self.model.entry_bytes } else { 0 };
        let exit = if place + 1 == shards { self.model.exit_bytes } else { 0 };
        self.seats[seat].card.memory_bytes.checked_sub(entry.saturating_add(exit))
    }

    /// Seconds of work per token that do not depend on the layers.
    pub(super) fn fixed_seconds(&self, seat: usize, place: usize, shards: usize) -> f64 {
        if place + 1 == shards { self.head_bytes * self.seats[seat].seconds_per_byte } else { 0.0 }
    }

    /// Seconds that a hop keeps the sender's uplink and software busy.
    pub(super) fn hop_busy(&self, from: usize, carries_token: bool) -> f64 {
        let card = self.seats[from].card;
        let bytes = if carries_token { TOKEN_BYTES } else { self.model.hidden_bytes as f64 };
        bytes / card.uplink_bytes_per_s + card.switch_seconds
    }

    /// Seconds from one card to another.
    pub(super) fn hop_seconds(&self, from: usize, to: usize, carries_token: bool) -> f64 {
        let trip = match self.trips.get(from * self.seats.len() + to) {
            Some(trip) => *trip,
            None => self.seats[from].card.round_trip_to(self.seats[to].card),
        };
        trip / 2.0 + self.hop_busy(from, carries_token)
    }

    /// Seconds of all hops of one token round `order`, and the busiest of them. Nothing for a coalition of one.
    pub(super) fn ring(&self, order: &[usize]) -> (f64, f64) {
        let mut sum = 0.0;
        let mut busiest: f64 = 0.0;
        if order.len() > 1 {
            for (i, &from) in order.iter().enumerate() {
                let back = i + 1 == order.len();
                sum += self.hop_seconds(from, order[(i + 1) % order.len()], back);
                busiest = busiest.max(self.hop_busy(from, back));
            }
        }
        (sum, busiest)
    }

    /// The figure that the objective minimises.
    pub(super) fn measure(&self, score: &Score) -> f64 {
        match self.objective {
            Objective::Latency => score.cost(),
            Objective::Throughput => score.bottleneck_seconds,
        }
    }

    /// The same once everything is loaded.
    pub(super) fn predicted(&self, score: &Score) -> f64 {
        match self.objective {
            Objective::Latency => score.token_seconds,
            Objective::Throughput => score.bottleneck_seconds,
        }
    }

    /// Seconds until `seat` has the layers `[start, end)` in memory.
    pub(super) fn startup_seconds(&self, seat: usize, start: usize, end: usize) -> f64 {
        match &self.waits[seat] {
            None => 0.0,
            Some(waits) if waits.loaded == Some((start, end)) => 0.0,
            Some(waits) => {
                let caches = self.kv_per_layer.saturating_mul((end - start) as u64);
                let weights = (self.resident[end] - self.resident[start]).saturating_sub(caches);
                waits.fetch[end] - waits.fetch[start] + weights as f64 / LOAD_BYTES_PER_S
            }
        }
    }

    /// That, spread over the tokens of a coalition.
    pub(super) fn waiting_seconds(&self, seat: usize, start: usize, end: usize) -> f64 {
        self.startup_seconds(seat, start, end) / LIFETIME_TOKENS
    }

    /// The least that any cut of this order can wait: each layer with whichever card has to fetch least of it.
    pub(super) fn least_waiting(&self, order: &[usize]) -> f64 {
        let Some(waits) = order.iter().map(|&seat| self.waits[seat].as_ref()).collect::<Option<Vec<_>>>() else {
            return 0.0;
        };
        let least = |layer: usize| {
            waits.iter().map(|waits| waits.fetch[layer + 1] - waits.fetch[layer]).fold(f64::INFINITY, f64::min)
        };
        (0..self.layer_count()).map(least).sum::<f64>() / LIFETIME_TOKENS
    }

    /// Whether two seats have the same layers.
    pub(super) fn hold_the_same(&self, a: usize, b: usize) -> bool {
        self.seats[a].card.holds == self.seats[b].card.holds
    }

    /// Whether `a` beats `b` once everything is loaded.
    pub(super) fn is_faster(&self, a: &Score, b: &Score) -> bool {
        let loaded = |score: &Score| Score { waiting_seconds: 0.0, ..*score };
        self.is_better(&loaded(a), &loaded(b))
    }

    /// Whether `a` beats `b` by more than rounding: on the objective, then on the other figure.
    pub(super) fn is_better(&self, a: &Score, b: &Score) -> bool {
        let (first, second) = match self.objective {
            Objective::Latency => ((a.cost(), b.cost()), (a.bottleneck_seconds, b.bottleneck_seconds)),
            Objective::Throughput => ((a.bottleneck_seconds, b.bottleneck_seconds), (a.cost(), b.cost())),
        };
        clearly_less(first.0, first.1) || (!clearly_less(first.1, first.0) && clearly_less(second.0, second.1))
    }

    /// Seconds of work per token of the layers `[start, end)` at `place` of `shards`.
    pub(super) fn stage_seconds(&self, seat: usize, place: usize, shards: usize, start: usize, end: usize) -> f64 {
        (self.resident[end] - self.resident[start]) as f64 * self.seats[seat].seconds_per_byte
            + self.fixed_seconds(seat, place, shards)
    }

    /// The spans of a finished choice.
    pub(super) fn spans(&self, seated: &Seated) -> Vec<Span> {
        let shards = seated.order.len();
        let mut spans = Vec::with_capacity(shards);
        let mut start = 0;
        for (place, (&seat, &end)) in seated.order.iter().zip(&seated.ends).enumerate() {
            // A cut gives every card at least one layer, so the range always exists.
            let Ok(layers) = LayerRange::new(start as u32, end as u32) else { continue };
            let kv_bytes = self.kv_per_layer * (end - start) as u64;
            let entry = if place == 0 { self.model.entry_bytes } else { 0 };
            let exit = if place + 1 == shards { self.model.exit_bytes } else { 0 };
            let next = seated.order[(place + 1) % shards];
            spans.push(Span {
                card: self.seats[seat].card.id,
                layers,
                weight_bytes: self.resident[end] - self.resident[start] - kv_bytes + entry + exit,
                kv_bytes,
                stage_seconds: self.stage_seconds(seat, place, shards, start, end),
                startup_seconds: self.startup_seconds(seat, start, end),
                hop_seconds: if shards > 1 { self.hop_seconds(seat, next, place + 1 == shards) } else { 0.0 },
            });
            start = end;
        }
        spans
    }
}

/// What a card waits for; `None` where it is not known what it holds.
fn waits(model: &ModelNeeds, card: &Card) -> Option<Waits> {
    let holds = card.holds.as_ref()?;
    let layers = model.layer_bytes.len();
    let bound = |layer: u32| (layer as usize).min(layers);
    let mut here = vec![false; layers];
    for range in &holds.on_disk {
        here[bound(range.start())..bound(range.end())].fill(true);
    }
    let mut fetch = vec![0.0];
    for (bytes, here) in model.layer_bytes.iter().zip(here) {
        let seconds = if here { 0.0 } else { *bytes as f64 / FETCH_BYTES_PER_S };
        fetch.push(fetch[fetch.len() - 1] + seconds);
    }
    Some(Waits { fetch, loaded: holds.loaded.map(|range| (range.start() as usize, range.end() as usize)) })
}

fn round_trips(seats: &[Seat]) -> Vec<f64> {
    if seats.len() > TABLE_CARDS {
        return Vec::new();
    }
    seats.iter().flat_map(|from| seats.iter().map(|to| from.card.round_trip_to(to.card))).collect()
}

/// Whether `a` is less than `b` by more than rounding.
pub(super) fn clearly_less(a: f64, b: f64) -> bool {
    a < b - NOISE * b.abs()
}
