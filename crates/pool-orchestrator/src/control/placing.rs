//! From a model and the connected nodes to the layers each of them holds.

use alloy_primitives::Address;
use pool_coalition::placement::{Card, ModelNeeds, PlacementError, PlacementOptions, place};
use pool_models::{Model, TensorSource, TensorType, entry_bytes, exit_bytes, layer_bytes};
use pool_types::{Activation, Holdings, LayerRange, ModelId};
use pool_wire::control::{Capabilities, Member};
use thiserror::Error;

/// The engine keeps keys and values in f32.
const KV_ELEMENT_BYTES: usize = 4;
/// The longest context that is reserved for unless the operator says otherwise.
const DEFAULT_CONTEXT: u32 = 4096;
/// How many full contexts the KV budget holds unless the operator says otherwise.
const DEFAULT_SEQUENCES: u64 = 4;
const DEFAULT_CHUNK: u32 = 64;

/// How a model is served, after defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Serving {
    /// Which model.
    pub model: ModelId,
    /// Its decoder layers.
    pub layers: u32,
    /// Exactly this many shards, or as placement finds best.
    pub shards: Option<u32>,
    /// Element type of hidden states between shards.
    pub wire: Activation,
    /// Longest sequence in tokens.
    pub context: u32,
    /// Tokens of KV cache that every member reserves.
    pub kv_tokens: u64,
    /// Rows of a prefill chunk.
    pub prefill_chunk: u32,
    needs: ModelNeeds,
}

/// Why a model cannot be served as asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ServingError {
    /// More shards than layers, or none.
    #[error("{wanted} shards cannot share the {layers} layers of this model; ask for 1 to {layers}")]
    Shards {
        /// What was asked for.
        wanted: u32,
        /// What there is.
        layers: u32,
    },
    /// A context that the model was not made for.
    #[error("a context of {wanted} tokens is outside what this model takes; ask for 1 to {limit}")]
    Context {
        /// What was asked for.
        wanted: u32,
        /// The model's limit.
        limit: usize,
    },
    /// No room for one whole sequence.
    #[error("{kv_tokens} tokens of cache cannot hold one context of {context}; ask for at least as many")]
    KvTokens {
        /// What was asked for.
        kv_tokens: u64,
        /// The longest sequence.
        context: u32,
    },
    /// A chunk of no rows, or of too many.
    #[error("a prefill chunk of {0} rows is not possible; ask for 1 to 4096")]
    PrefillChunk(u32),
    /// Without a tokenizer no text can be answered.
    #[error("the model has no tokenizer; put tokenizer.json beside its weights")]
    NoTokenizer,
}

/// What the operator asked for; `None` leaves it to the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServingWishes {
    /// Exactly this many shards.
    pub shards: Option<u32>,
    /// Element type of hidden states; the model's own unless said.
    pub wire: Option<Activation>,
    /// Longest sequence in tokens; the model's own, at most 4096, unless said.
    pub context: Option<u32>,
    /// Tokens of KV cache; four contexts unless said.
    pub kv_tokens: Option<u64>,
    /// Rows of a prefill chunk; 64 unless said.
    pub prefill_chunk: Option<u32>,
    /// Whether nodes quantise unquantised matrices to Q8_0 when they load.
    pub quantise: bool,
}

/// A node that offers to serve.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// Which.
    pub address: Address,
    /// What it measured of its machine.
    pub capabilities: &'a Capabilities,
    /// Which layers it has, where it said so.
    pub holds: Option<&'a Holdings>,
}

impl Offer<'_> {
    fn is_like(&self, other: &Self) -> bool {
        (self.capabilities, self.holds) == (other.capabilities, other.holds)
    }
}

impl Serving {
    /// Fills in the defaults and checks what was asked for against the model.
    pub fn new(model: &Model, wishes: ServingWishes) -> Result<Self, ServingError> {
        let config = &model.config;
        let layers = config.layers;
        if let Some(wanted) = wishes.shards
            && !(1..=layers).contains(&wanted)
        {
            return Err(ServingError::Shards { wanted, layers });
        }
        let limit = config.max_positions;
        let context = wishes.context.unwrap_or(DEFAULT_CONTEXT.min(u32::try_from(limit).unwrap_or(u32::MAX)));
        if context == 0 || context as usize > limit {
            return Err(ServingError::Context { wanted: context, limit });
        }
        let kv_tokens = wishes.kv_tokens.unwrap_or(DEFAULT_SEQUENCES * u64::from(context));
        if kv_tokens < u64::from(context) {
            return Err(ServingError::KvTokens { kv_tokens, context });
        }
        let prefill_chunk = wishes.prefill_chunk.unwrap_or(DEFAULT_CHUNK);
        if !(1..=4096).contains(&prefill_chunk) {
            return Err(ServingError::PrefillChunk(prefill_chunk));
        }
        if model.tokenizer.is_none() {
            return Err(ServingError::NoTokenizer);
        }
        let wire = wishes.wire.unwrap_or(config.activation);
        let needs = ModelNeeds {
            layer_bytes: (0..layers)
                .map(|layer| match wishes.quantise {
                    true => config.estimate_layer_bytes(TensorType::Q8_0),
                    false => layer_bytes(&*model.source, layer),
                })
                .collect(),
            entry_bytes: entry_bytes(&*model.source),
            exit_bytes: match wishes.quantise {
                true => config.estimate_exit_bytes(TensorType::Q8_0),
                false => exit_bytes(&*model.source),
            },
            kv_bytes_per_token_per_layer: config.kv_bytes_per_token(1, KV_ELEMENT_BYTES),
            hidden_bytes: (config.hidden_size * wire.size()) as u64,
            context_tokens: kv_tokens,
            ..ModelNeeds::default()
        };
        Ok(Self { model: model.id, layers, shards: wishes.shards, wire, context, kv_tokens, prefill_chunk, needs })
    }

    /// Who holds what, entry first. All machines belong to the roster's owner, so neighbours may share one. Nodes
    /// that offer the same take their places in the order given.
    pub fn place<'a>(&self, nodes: impl Iterator<Item = Offer<'a>>) -> Result<Vec<Member>, PlacementError> {
        let nodes: Vec<Offer> = nodes.collect();
        let cards: Vec<Card> = nodes
            .iter()
            .map(|&Offer { address, capabilities: offer, holds }| {
                let mut card = Card::new(address, offer.memory_bytes, offer.bandwidth_bytes_per_second as f64);
                if let Some(uplink) = offer.uplink_bytes_per_second {
                    card.uplink_bytes_per_s = uplink as f64;
                }
                Card { holds: holds.cloned(), ..card }
            })
            .collect();
        let options = PlacementOptions {
            shards: self.shards,
            standby: false,
            allow_same_owner_neighbours: true,
            ..PlacementOptions::default()
        };
        let spans = place(&self.needs, &cards, &options)?.spans;
        let chosen: Vec<Offer> =
            nodes.into_iter().filter(|node| spans.iter().any(|span| span.card == node.address)).collect();
        let alike = chosen.windows(2).all(|pair| pair[0].is_like(&pair[1]));
        let members = spans.into_iter().zip(chosen);
        Ok(members
            .map(|(span, next)| Member { address: if alike { next.address } else { span.card }, layers: span.layers })
            .collect())
    }

    /// Bytes of the tensors, as they lie in the model's files, that a shard of these layers holds.
    pub(crate) fn file_bytes(&self, source: &dyn TensorSource, layers: LayerRange) -> u64 {
        let own: u64 = layers.iter().map(|layer| layer_bytes(source, layer)).sum();
        let entry = if layers.start() == 0 { entry_bytes(source) } else { 0 };
        let exit = if layers.end() == self.layers { exit_bytes(source) } else { 0 };
        // A tied table that entry and exit share is read once by a shard that is both.
        let shared =
            if entry > 0 && exit > 0 && source.info(pool_models::TensorName::Output).is_none() { entry } else { 0 };
        own + entry + exit - shared
    }

    #[cfg(test)]
    pub(crate) fn for_tests(layers: u32, shards: Option<u32>) -> Self {
        let needs = ModelNeeds { layer_bytes: vec![1 << 20; layers as usize], ..ModelNeeds::default() };
        Self {
            model: ModelId::default(),
            layers,
            shards,
            wire: Activation::F16,
            context: 512,
            kv_tokens: 2048,
            prefill_chunk: 64,
            needs,
        }
    }
}
