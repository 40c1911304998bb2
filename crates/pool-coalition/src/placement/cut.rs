//! Exact cuts: given cards in order, which layers each holds.

use super::{
    Objective,
    field::{Field, Score, clearly_less},
};

/// Cards in order with their layers: card `order[i]` holds the layers from `ends[i - 1]` (0 for the first) to `ends[i]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seated {
    pub(super) order: Vec<usize>,
    pub(super) ends: Vec<usize>,
    pub(super) score: Score,
}

/// What a dynamic programme over the layers adds up.
#[derive(Clone, Copy, PartialEq)]
enum Total {
    Sum,
    Maximum,
}

impl Field<'_> {
    /// The best cut for this order, or `None` where the layers do not fit.
    pub(super) fn cut(&self, order: &[usize]) -> Option<Seated> {
        let (_, busiest_hop) = self.ring(order);
        let ends = match self.objective {
            Objective::Latency => self.programme(order, Total::Sum, f64::INFINITY)?,
            Objective::Throughput => {
                let even = self.programme(order, Total::Maximum, f64::INFINITY)?;
                let limit = self.longest_stage(order, &even).max(busiest_hop);
                self.programme(order, Total::Sum, limit).unwrap_or(even)
            }
        };
        Some(self.seated(order, ends))
    }

    /// Whether no stage of this order need take longer than `limit` seconds: false only where a cut is impossible.
    /// Every card takes all it can, which leaves the least to the others.
    pub(super) fn could_stay_within(&self, order: &[usize], limit: f64) -> bool {
        let mut held = 0;
        for (place, &seat) in order.iter().enumerate() {
            let Some(capacity) = self.capacity(seat, place, order.len()) else { return false };
            let rest = &self.resident[held + 1..];
            let fits = rest.partition_point(|end| end - self.resident[held] <= capacity);
            let spent = self.fixed_seconds(seat, place, order.len());
            let seconds = |end: &u64| (end - self.resident[held]) as f64 * self.seats[seat].seconds_per_byte + spent;
            held += rest[..fits].partition_point(|end| seconds(end) <= limit);
        }
        held == self.layer_count()
    }

    /// The same latency with the most even stages: cards of one speed share the layers evenly instead of anyhow.
    pub(super) fn balanced(&self, chosen: Seated) -> Seated {
        if self.objective == Objective::Throughput || chosen.order.len() < 2 {
            return chosen;
        }
        let mut limits = self.stage_lengths_below(&chosen);
        limits.sort_by(f64::total_cmp);
        limits.dedup();
        let mut best = chosen;
        let (mut low, mut high) = (0, limits.len());
        while low < high {
            let middle = (low + high) / 2;
            let even =
                self.programme(&best.order, Total::Sum, limits[middle]).map(|ends| self.seated(&best.order, ends));
            match even {
                Some(even) if !clearly_less(best.score.cost(), even.score.cost()) => {
                    best = even;
                    high = middle;
                }
                _ => low = middle + 1,
            }
        }
        best
    }

    fn seated(&self, order: &[usize], ends: Vec<usize>) -> Seated {
        let (hops, busiest_hop) = self.ring(order);
        let work: f64 = self.stages(order, &ends).sum();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let waiting_seconds = order
            .iter()
            .zip(starts.zip(&ends))
            .map(|(&seat, (start, &end))| self.waiting_seconds(seat, start, end))
            .sum();
        let bottleneck_seconds = self.longest_stage(order, &ends).max(busiest_hop);
        Seated {
            order: order.to_vec(),
            ends,
            score: Score { token_seconds: work + hops, bottleneck_seconds, waiting_seconds },
        }
    }

    fn stages<'s>(&'s self, order: &'s [usize], ends: &'s [usize]) -> impl Iterator<Item = f64> + 's {
        let starts = std::iter::once(0).chain(ends.iter().copied());
        (order.iter().zip(starts.zip(ends)).enumerate())
            .map(|(place, (&seat, (start, &end)))| self.stage_seconds(seat, place, order.len(), start, end))
    }

    fn longest_stage(&self, order: &[usize], ends: &[usize]) -> f64 {
        self.stages(order, ends).fold(0.0, f64::max)
    }

    /// Every length that a stage of this order could have, below the longest one it has.
    fn stage_lengths_below(&self, chosen: &Seated) -> Vec<f64> {
        let longest = self.longest_stage(&chosen.order, &chosen.ends);
        let layers = self.layer_count();
        let mut lengths = Vec::new();
        for (place, &seat) in chosen.order.iter().enumerate() {
            for start in 0..layers {
                let all =
                    (start + 1..=layers).map(|end| self.stage_seconds(seat, place, chosen.order.len(), start, end));
                lengths.extend(all.take_while(|length| *length < longest));
            }
        }
        lengths
    }

    /// Dynamic programme: `best[l]` is the least total with the cards so far holding the first `l` layers, each at
    /// least one, none above its memory or `limit` seconds. Shards times layers squared, half of it pruned.
    fn programme(&self, order: &[usize], total: Total, limit: f64) -> Option<Vec<usize>> {
        let (shards, layers) = (order.len(), self.layer_count());
        if shards == 0 || shards > layers {
            return None;
        }
        let mut best = vec![f64::INFINITY; layers + 1];
        best[0] = 0.0;
        let mut came_from = vec![0usize; shards * (layers + 1)];
        for (place, &seat) in order.iter().enumerate() {
            let capacity = self.capacity(seat, place, shards)?;
            let mut next = vec![f64::INFINITY; layers + 1];
            let last_end = layers - (shards - 1 - place);
            let first_end = if place + 1 == shards { layers } else { place + 1 };
            for end in first_end..=last_end {
                for start in (place..end).rev() {
                    if self.resident[end] - self.resident[start] > capacity {
                        break;
                    }
                    let stage = self.stage_seconds(seat, place, shards, start, end);
                    if stage > limit {
                        break;
                    }
                    let reached = match total {
                        Total::Sum => best[start] + stage + self.waiting_seconds(seat, start, end),
                        Total::Maximum => best[start].max(stage),
                    };
                    if reached < next[end] {
                        next[end] = reached;
                        came_from[place * (layers + 1) + end] = start;
                    }
                }
            }
            best = next;
        }
        if best[layers].is_infinite() {
            return None;
        }
        let mut ends = vec![layers; shards];
        for place in (1..shards).rev() {
            ends[place - 1] = came_from[place * (layers + 1) + ends[place]];
        }
        Some(ends)
    }
}
