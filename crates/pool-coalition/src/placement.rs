//! Which card holds which layers: a pure function of a model's needs and the cards on offer.
//!
//! [`place`] minimises, under the cards' memory limits, the time of one decoded token
//!
//! ```text
//! T = sum over shards ((weights + KV) / speed)  +  sum over hops (round trip / 2 + bytes / uplink + switch)
//! ```
//!
//! where the last hop carries the sampled token back from the exit to the entry; or, for
//! [`Objective::Throughput`], the busiest stage or link, which bounds tokens/s once as many requests are in
//! flight as there are shards. Where it is known which layers the cards hold, the time until they have theirs counts as
//! well, spread over [`LIFETIME_TOKENS`]: who holds the layers goes before who is a little faster and must fetch them.
//! Two neighbouring shards never have one owner unless that is allowed, every span keeps a standby while cards remain,
//! and a split that is slower than one card that fits is refused, whatever they hold.
//!
//! ```
//! use pool_coalition::placement::{Card, ModelNeeds, PlacementOptions, place};
//! use alloy_primitives::Address;
//!
//! let model = ModelNeeds { layer_bytes: vec![1 << 30; 12], ..ModelNeeds::default() };
//! let cards = [1u8, 2].map(|n| Card::new(Address::repeat_byte(n), 8 << 30, 500e9));
//! let placement = place(&model, &cards, &PlacementOptions::default())?;
//! assert_eq!(placement.spans.len(), 2, "12 GiB do not fit on one card of 8 GiB");
//! # Ok::<(), pool_coalition::placement::PlacementError>(())
//! ```
//!
//! Exact for up to seven usable cards; beyond that the best of several local searches over the most useful
//! cards. The same input always gives the same placement.

mod cut;
mod explain;
mod field;
mod search;
mod standby;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use alloy_primitives::Address;
use pool_types::{ByteSize, Holdings, LayerRange};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use cut::Seated;
use field::Field;

/// Tokens that a coalition is expected to give before it forms anew; the time until it can begin is spread over them.
pub const LIFETIME_TOKENS: f64 = 1e5;
/// Bytes of weights a second that a card fetches: an owner's line of 100 Mbit/s.
const FETCH_BYTES_PER_S: f64 = 12.5e6;
/// Bytes of weights a second that a card reads from its disk.
const LOAD_BYTES_PER_S: f64 = 1e9;

/// What a model asks of the cards that serve it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelNeeds {
    /// Bytes of each decoder layer's weights as they lie in memory, in order.
    pub layer_bytes: Vec<u64>,
    /// Bytes of the embedding, held by the entry shard. A token reads one row of it, so it costs memory but no time.
    pub entry_bytes: u64,
    /// Bytes of the final norm and the output head, held by the exit shard and read for every token.
    pub exit_bytes: u64,
    /// Bytes of keys and values that one token leaves in one layer.
    pub kv_bytes_per_token_per_layer: u64,
    /// Bytes of one hidden state on the wire.
    pub hidden_bytes: u64,
    /// Tokens of context, over all live sequences, that every shard reserves room for.
    pub context_tokens: u64,
    /// Cost of a byte of the head relative to a byte of a layer (1 reads it once; sampling adds a little).
    pub head_weight: f64,
}

impl Default for ModelNeeds {
    fn default() -> Self {
        Self {
            layer_bytes: Vec::new(),
            entry_bytes: 0,
            exit_bytes: 0,
            kv_bytes_per_token_per_layer: 0,
            hidden_bytes: 0,
            context_tokens: 0,
            head_weight: 1.0,
        }
    }
}

impl ModelNeeds {
    /// Weights and KV cache in bytes, or `None` above `u64::MAX`.
    pub fn total_bytes(&self) -> Option<u64> {
        let layers = self.layer_bytes.iter().try_fold(0u64, |sum, bytes| sum.checked_add(*bytes))?;
        let cache = self.kv_bytes_per_layer()?.checked_mul(self.layer_bytes.len() as u64)?;
        layers.checked_add(cache)?.checked_add(self.entry_bytes)?.checked_add(self.exit_bytes)
    }

    fn kv_bytes_per_layer(&self) -> Option<u64> {
        self.kv_bytes_per_token_per_layer.checked_mul(self.context_tokens)
    }
}

/// One card (or a CPU that was offered as one) and how it reaches the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// The node that runs it.
    pub id: Address,
    /// The operator it belongs to.
    pub owner: Address,
    /// Free memory in bytes that a shard may fill with weights and KV cache.
    pub memory_bytes: u64,
    /// Measured memory bandwidth in bytes per second.
    pub bandwidth_bytes_per_s: f64,
    /// The part of the bandwidth that decoding reaches, above 0 and at most 1.
    pub efficiency: f64,
    /// Bytes of weights per second measured on real layers; where present it replaces bandwidth times efficiency.
    pub layer_speed: Option<f64>,
    /// Uplink in bytes per second.
    pub uplink_bytes_per_s: f64,
    /// Measured round trips to other cards in seconds. One direction is enough.
    pub round_trips: BTreeMap<Address, f64>,
    /// Round trip in seconds to cards that were not measured.
    pub default_round_trip: f64,
    /// Software time in seconds that this card adds to every frame it sends.
    pub switch_seconds: f64,
    /// Which of the model's layers it has; `None` where that is not known, and is left out.
    pub holds: Option<Holdings>,
}

impl Card {
    /// A card that is its own owner: 70 % efficiency, 1 Gbit/s uplink, 1 ms to every other card, 0.3 ms a hop.
    pub fn new(id: Address, memory_bytes: u64, bandwidth_bytes_per_s: f64) -> Self {
        Self {
            id,
            owner: id,
            memory_bytes,
            bandwidth_bytes_per_s,
            efficiency: 0.7,
            layer_speed: None,
            uplink_bytes_per_s: 125e6,
            round_trips: BTreeMap::new(),
            default_round_trip: 1e-3,
            switch_seconds: 0.3e-3,
            holds: None,
        }
    }

    /// Bytes of weights it reads per second.
    pub fn speed(&self) -> f64 {
        self.layer_speed.unwrap_or(self.bandwidth_bytes_per_s * self.efficiency)
    }

    /// Round trip to `other` in seconds.
    pub fn round_trip_to(&self, other: &Card) -> f64 {
        let measured = self.round_trips.get(&other.id).or_else(|| other.round_trips.get(&self.id));
        measured
            .copied()
            .filter(|s| s.is_finite() && *s >= 0.0)
            .unwrap_or(self.default_round_trip.max(other.default_round_trip))
    }

    /// Whether its figures can be reckoned with. A card whose measurements are missing or absurd serves nothing.
    fn is_usable(&self) -> bool {
        let above_zero = [self.speed(), self.uplink_bytes_per_s].iter().all(|v| v.is_finite() && *v > 0.0);
        above_zero && [self.default_round_trip, self.switch_seconds].iter().all(|v| v.is_finite() && *v >= 0.0)
    }
}

/// What a placement is chosen for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// The shortest time of one token for one request.
    #[default]
    Latency,
    /// The most tokens per second when every shard is kept busy.
    Throughput,
}

/// How to place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementOptions {
    /// Exactly this many shards, even where a split is slower than one card.
    pub shards: Option<u32>,
    /// At least this many shards, refused where one card that fits would be faster.
    pub min_shards: u32,
    /// What to optimise.
    pub objective: Objective,
    /// Keep a standby per span while cards remain.
    pub standby: bool,
    /// Let one owner hold two neighbouring shards: own machines, or a cluster on one machine.
    pub allow_same_owner_neighbours: bool,
}

impl Default for PlacementOptions {
    fn default() -> Self {
        Self {
            shards: None,
            min_shards: 1,
            objective: Objective::Latency,
            standby: true,
            allow_same_owner_neighbours: false,
        }
    }
}

/// One shard's part of a placement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// The card that holds it.
    pub card: Address,
    /// Its layers.
    pub layers: LayerRange,
    /// Bytes of weights: its layers, and the embedding or the head where it is entry or exit.
    pub weight_bytes: u64,
    /// Bytes reserved for the KV cache.
    pub kv_bytes: u64,
    /// Predicted seconds of work per token.
    pub stage_seconds: f64,
    /// Predicted seconds until the card has fetched and loaded its layers; 0 where it is not known what it holds.
    pub startup_seconds: f64,
    /// Predicted seconds from here to the next shard; from the exit, back to the entry. 0 for a coalition of one.
    pub hop_seconds: f64,
}

/// A card that keeps a span's layers loaded to take over from its holder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standby {
    /// The span it stands by for: an index into [`Placement::spans`].
    pub span: usize,
    /// The card.
    pub card: Address,
    /// Predicted seconds of work per token after it took over.
    pub stage_seconds: f64,
}

/// Who holds what, in the order in which a token passes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// Entry first, exit last; together every layer once.
    pub spans: Vec<Span>,
    /// At most one per span.
    pub standbys: Vec<Standby>,
    /// Predicted seconds per token of a single request.
    pub seconds_per_token: f64,
    /// Predicted seconds of the busiest stage or link: its inverse bounds tokens/s with enough requests in flight.
    pub bottleneck_seconds: f64,
    /// The same in plain sentences, one per line.
    pub explanation: String,
}

/// Why there is no placement.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum PlacementError {
    /// The model has no layers.
    #[error("the model has no layers to place")]
    NoLayers,
    /// Memory does not suffice, taken together or card by card.
    #[error("the model needs {}, the cards offer {} in pieces it does not fit into; add cards or lower the context", ByteSize(*needed), ByteSize(*available))]
    NothingFits {
        /// Weights and KV cache in bytes (`u64::MAX` where it is more than that).
        needed: u64,
        /// Free memory of all usable cards in bytes.
        available: u64,
    },
    /// More shards are wanted than there are cards.
    #[error("{wanted} shards need {wanted} cards, but only {usable} can serve")]
    TooFewCards {
        /// Shards asked for.
        wanted: u32,
        /// Cards with usable figures and room for a layer.
        usable: u32,
    },
    /// More shards are wanted than the model has layers.
    #[error("{wanted} shards cannot share {layers} layers: each needs at least one")]
    TooFewLayers {
        /// Shards asked for.
        wanted: u32,
        /// The model's layers.
        layers: u32,
    },
    /// Only placements that give one owner two neighbouring shards would fit.
    #[error(
        "the cards fit, but one owner would hold neighbouring shards; add another owner's card, or allow it for machines of your own"
    )]
    SameOwner,
    /// The split that was asked for is slower than a single card that fits.
    #[error("a split takes {:.1} ms per token, one card alone {:.1} ms; ask for an exact number of shards to split all the same", split * 1e3, one * 1e3)]
    SplitSlower {
        /// Seconds per token (of the busiest stage for throughput) on the best single card.
        one: f64,
        /// The same for the best split.
        split: f64,
    },
}

/// Chooses the cards, their order and their layers. See the module's head for what is minimised.
pub fn place(model: &ModelNeeds, cards: &[Card], options: &PlacementOptions) -> Result<Placement, PlacementError> {
    let layers = u32::try_from(model.layer_bytes.len()).unwrap_or(u32::MAX);
    if layers == 0 {
        return Err(PlacementError::NoLayers);
    }
    let available =
        cards.iter().filter(|card| card.is_usable()).fold(0u64, |sum, c| sum.saturating_add(c.memory_bytes));
    let nothing_fits = |needed| PlacementError::NothingFits { needed, available };
    let needed = model.total_bytes().ok_or(nothing_fits(u64::MAX))?;
    let field = Field::new(model, cards, options);

    let wanted = options.shards.unwrap_or(options.min_shards).max(1);
    if wanted > layers {
        return Err(PlacementError::TooFewLayers { wanted, layers });
    }
    let usable = field.seats.len() as u32;
    if usable == 0 || available < needed {
        return Err(nothing_fits(needed));
    }
    if wanted > usable {
        return Err(PlacementError::TooFewCards { wanted, usable });
    }

    let most = layers.min(usable) as usize;
    let alone = field.best_of(1..=1);
    let (chosen, other) = match options.shards {
        Some(shards) => (field.best_of(shards as usize..=shards as usize), None),
        None => {
            let split = field.best_of((wanted as usize).max(2)..=most);
            match (alone, split) {
                (Some(one), Some(split)) => {
                    let faster = field.is_faster(&split.score, &one.score);
                    if wanted > 1 && !faster {
                        let seconds = |seated: &Seated| field.predicted(&seated.score);
                        return Err(PlacementError::SplitSlower { one: seconds(&one), split: seconds(&split) });
                    }
                    match wanted > 1 || (faster && field.is_better(&split.score, &one.score)) {
                        true => (Some(split), Some(one)),
                        false => (Some(one), Some(split)),
                    }
                }
                (Some(one), None) if wanted <= 1 => (Some(one), None),
                (_, split) => (split, None),
            }
        }
    };
    let Some(chosen) = chosen else {
        let fits_one_owner = !options.allow_same_owner_neighbours && {
            let range = options.shards.map_or(wanted as usize..=most, |n| n as usize..=n as usize);
            field.with_same_owner_allowed().best_of(range).is_some()
        };
        return Err(if fits_one_owner { PlacementError::SameOwner } else { nothing_fits(needed) });
    };
    let chosen = field.balanced(chosen);
    let spans = field.spans(&chosen);
    let standbys = if options.standby { field.standbys(&chosen) } else { Vec::new() };
    let mut placement = Placement {
        spans,
        standbys,
        seconds_per_token: chosen.score.token_seconds,
        bottleneck_seconds: chosen.score.bottleneck_seconds,
        explanation: String::new(),
    };
    placement.explanation = explain::explain(&placement, needed, other.as_ref(), cards.len() - field.seats.len());
    Ok(placement)
}
