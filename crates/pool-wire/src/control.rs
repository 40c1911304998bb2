//! Control messages: JSON, at most [`MAX_CONTROL`] bytes each. Between node and orchestrator one message is
//! one WebSocket text message; between node and shard each is preceded by its length (u32, little endian)
//! on the shard's standard input and output.

use std::path::PathBuf;

use alloy_primitives::{Address, B256};
use pool_types::{Activation, CoalitionId, Epoch, Failure, Holdings, LayerRange, ModelId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Most bytes of one control message.
pub const MAX_CONTROL: usize = 256 * 1024;
/// The version both ends of a control connection must speak.
pub const CONTROL_VERSION: u32 = 1;

/// Node to orchestrator.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum ToOrchestrator {
    /// First message, in answer to [`ToNode::Challenge`].
    Register(Box<Registration>),
    /// The layers are not on the node's machine yet; told every second while they come.
    Fetching {
        /// The assignment's epoch.
        epoch: Epoch,
        /// Bytes that are here.
        done: u64,
        /// Bytes in all.
        size: u64,
    },
    /// The shard holds its layers and can be linked.
    Loaded {
        /// The assignment's epoch.
        epoch: Epoch,
        /// What the shard took.
        footprint: ShardFootprint,
    },
    /// Every link of the assignment is up.
    Joined {
        /// The assignment's epoch.
        epoch: Epoch,
    },
    /// A signed link description for another member; the orchestrator relays it unread.
    Signal(Signal),
    /// The shard cannot serve (any more).
    Failed {
        /// The assignment's epoch.
        epoch: Epoch,
        /// Why.
        failure: Failure,
    },
    /// Sent every second while serving.
    Stats {
        /// The assignment's epoch.
        epoch: Epoch,
        /// Counters since the shard joined.
        stats: ShardStats,
    },
    /// The answer to [`ToNode::Ballot`]: the operator's signatures.
    Vote {
        /// The ballot's epoch.
        epoch: Epoch,
        /// `pool_coalition::proposal::Vote` as JSON text.
        vote: String,
    },
    /// The answer to [`ToNode::Ballot`] of an operator that does not sign.
    VoteRefused {
        /// The ballot's epoch.
        epoch: Epoch,
        /// Why.
        failure: Failure,
    },
    /// The node leaves: its owner came back or asked it to stop.
    StandDown {
        /// `pool_coalition::stand_down::SignedStandDown` as JSON text: what was signed is what is kept.
        statement: String,
    },
    /// Keeps the connection known to be alive.
    Heartbeat,
}

/// Orchestrator to node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum ToNode {
    /// First message: sign this (EIP-191 over its hex) to prove who you are.
    Challenge {
        /// Fresh random bytes.
        nonce: B256,
        /// [`CONTROL_VERSION`] of the orchestrator.
        version: u32,
    },
    /// The registration stands.
    Registered {
        /// The orchestrator's own address: the gateway's identity on links.
        gateway: Address,
    },
    /// Load these layers; link to the other members when told to.
    Assign(Box<Assignment>),
    /// Every member has loaded its layers: link up now.
    Link {
        /// The assignment's epoch.
        epoch: Epoch,
    },
    /// A link description from another member.
    Signal(Signal),
    /// Drop the assignment: close its links, free its requests; keep the layers loaded.
    Dissolve {
        /// The assignment's epoch.
        epoch: Epoch,
        /// Why.
        failure: Failure,
    },
    /// The coalition as it is to be activated on the chain: sign it, or say why not.
    Ballot {
        /// The assignment's epoch: what is signed must be what this node was assigned.
        epoch: Epoch,
        /// `pool_coalition::proposal::Ballot` as JSON text.
        ballot: String,
    },
    /// The registration is refused; the connection ends.
    Refused {
        /// Why.
        failure: Failure,
    },
    /// Keeps the connection known to be alive.
    Heartbeat,
}

/// Who a node is and what it offers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Registration {
    /// [`CONTROL_VERSION`] of the node.
    pub version: u32,
    /// The operator's address.
    pub address: Address,
    /// A name people know the node by.
    pub name: String,
    /// EIP-191 signature over the challenge's nonce, 65 bytes in hex.
    pub signature: String,
    /// What it measured of itself.
    pub capabilities: Capabilities,
    /// Models it has at hand.
    pub models: Vec<ModelId>,
    /// Which layers of the first of them it has, where it says so. Nothing depends on its being true but how soon it can
    /// serve.
    #[serde(default)]
    pub holds: Option<Holdings>,
}

/// What a node measured of its machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    /// `cpu`, or the GPU's name.
    pub device: String,
    /// Memory a shard may use, in bytes.
    pub memory_bytes: u64,
    /// Measured memory bandwidth, bytes per second.
    pub bandwidth_bytes_per_second: u64,
    /// Threads a shard may compute with.
    pub threads: u32,
    /// Uplink, bytes per second, where known.
    pub uplink_bytes_per_second: Option<u64>,
}

/// A member's part in a coalition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The coalition.
    pub coalition: CoalitionId,
    /// Chain its signatures are bound to (0: a roster file).
    pub chain: u64,
    /// The membership generation.
    pub epoch: Epoch,
    /// Which model.
    pub model: ModelId,
    /// The gateway's address.
    pub gateway: Address,
    /// Every member with its layers, entry first.
    pub members: Vec<Member>,
    /// Element type of hidden states between shards.
    pub wire: Activation,
    /// Tokens of KV cache each member reserves.
    pub kv_tokens: u64,
    /// Longest sequence.
    pub max_context: u32,
    /// Rows of a prefill chunk.
    pub prefill_chunk: u32,
}

/// A member and its layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The operator's address.
    pub address: Address,
    /// What it holds.
    pub layers: LayerRange,
}

impl Assignment {
    /// The place of `address` in the chain of shards.
    pub fn index_of(&self, address: Address) -> Option<usize> {
        self.members.iter().position(|member| member.address == address)
    }

    /// The layers of `address`.
    pub fn layers_of(&self, address: Address) -> Option<LayerRange> {
        self.members.iter().find(|member| member.address == address).map(|member| member.layers)
    }

    /// The members that `address` keeps a link with, each once: its neighbours in the ring of shards and,
    /// for entry and exit, the gateway. The first of a pair (in the order gateway, entry, ..., exit) offers.
    pub fn links_of(&self, address: Address) -> Vec<LinkPlan> {
        let order: Vec<Address> = std::iter::once(self.gateway).chain(self.members.iter().map(|m| m.address)).collect();
        let last = order.len() - 1;
        let mut pairs: Vec<(usize, usize)> = (1..last).map(|i| (i, i + 1)).collect();
        pairs.extend([(0, 1), (0, last), (1, last)]);
        pairs.sort_unstable();
        pairs.dedup();
        let Some(me) = order.iter().position(|a| *a == address) else { return Vec::new() };
        pairs
            .into_iter()
            .filter(|(a, b)| a != b && (*a == me || *b == me))
            .map(|(a, b)| LinkPlan { peer: order[if a == me { b } else { a }], offers: a == me })
            .collect()
    }
}

/// One link a member keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkPlan {
    /// The other end.
    pub peer: Address,
    /// Whether this end makes the offer.
    pub offers: bool,
}

/// A signed link description on its way; `description` is opaque to whoever relays it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Signal {
    /// The assignment's epoch.
    pub epoch: Epoch,
    /// Who wrote it (checked by the signature inside, not by the relay).
    pub from: Address,
    /// Whom it is for.
    pub to: Address,
    /// The description, signed, as JSON text: opaque to this message, so that what was signed is what arrives.
    pub description: String,
}

/// What a loaded shard takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardFootprint {
    /// Weights in memory.
    pub weight_bytes: u64,
    /// Tensor bytes read from the model's files.
    pub bytes_read: u64,
    /// KV cache bytes per token.
    pub kv_bytes_per_token: u64,
    /// Tokens of KV cache reserved.
    pub kv_tokens: u64,
    /// Resident memory of the process.
    pub resident_bytes: u64,
    /// Seconds the load took.
    pub load_seconds: f64,
    /// Seconds that one token takes through these layers, as the canary measured.
    #[serde(default)]
    pub token_seconds: f64,
}

/// What a shard did since it joined.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardStats {
    /// Requests that hold cache now.
    pub sequences: u32,
    /// KV tokens reserved now.
    pub kv_reserved: u64,
    /// Batches computed.
    pub batches: u64,
    /// Rows (tokens) computed.
    pub rows: u64,
    /// Tokens sampled (exit only).
    pub tokens: u64,
    /// Frames dropped because they repeat, or belong to an ended request or another epoch.
    pub dropped_frames: u64,
    /// Seconds spent computing.
    pub busy_seconds: f64,
    /// CPU seconds of the whole process.
    pub cpu_seconds: f64,
    /// Resident memory of the process.
    pub resident_bytes: u64,
    /// Each link.
    pub links: Vec<LinkReport>,
}

/// A link's counters as one end sees them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkReport {
    /// The other end.
    pub peer: Address,
    /// Bytes of hidden states sent.
    pub act_bytes_sent: u64,
    /// Bytes of hidden states received.
    pub act_bytes_received: u64,
    /// Bytes of tokens and credits sent.
    pub ctl_bytes_sent: u64,
    /// Bytes of tokens and credits received.
    pub ctl_bytes_received: u64,
    /// Median round trip of heartbeats, microseconds.
    pub round_trip_p50_micros: Option<u64>,
    /// 99th percentile of the same.
    pub round_trip_p99_micros: Option<u64>,
}

/// Node to shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum ToShard {
    /// Load layers of a model. Comes once.
    Load(Box<LoadOrder>),
    /// Link up for an assignment; replaces the one before.
    Join {
        /// The assignment.
        assignment: Box<Assignment>,
        /// The wallet's delegation to the shard's link key (opaque here; pool-link's `Delegation`).
        delegation: String,
        /// Addresses allowed on links: the roster.
        roster: Vec<Address>,
    },
    /// A description from a peer.
    Signal(Signal),
    /// Close the links of this epoch and free its requests.
    Leave {
        /// The assignment's epoch.
        epoch: Epoch,
    },
    /// Compute for this part of the time only, from now on: rest between steps, keep the memory.
    Duty {
        /// 1 to 100.
        percent: u8,
    },
    /// Finish and exit.
    Shutdown,
}

/// What to load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadOrder {
    /// The operator's address: who this shard is on links.
    pub address: Address,
    /// Model directory or file.
    pub path: PathBuf,
    /// The model's id; another one at `path` is refused.
    pub model: ModelId,
    /// Which layers.
    pub layers: LayerRange,
    /// Element type of hidden states.
    pub wire: Activation,
    /// Tokens of KV cache to reserve.
    pub kv_tokens: u64,
    /// Longest sequence.
    pub max_context: u32,
    /// Quantise unquantised matrices to Q8_0.
    pub quantise: bool,
    /// Bind links to loopback only.
    pub loopback_only: bool,
}

/// Shard to node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum FromShard {
    /// First message.
    Hello {
        /// [`CONTROL_VERSION`] of the shard.
        version: u32,
        /// The key it made for its links.
        link_key: Address,
    },
    /// The layers are in memory.
    Loaded {
        /// What they take.
        footprint: ShardFootprint,
    },
    /// Every link of the epoch is up.
    Joined {
        /// The assignment's epoch.
        epoch: Epoch,
    },
    /// A description for a peer.
    Signal(Signal),
    /// The epoch cannot go on (a peer fell silent, links did not come up, the engine failed).
    Failed {
        /// The assignment's epoch.
        epoch: Epoch,
        /// Why.
        failure: Failure,
    },
    /// Loading failed; the shard exits.
    LoadFailed {
        /// Why.
        failure: Failure,
    },
    /// Sent every second while joined.
    Stats {
        /// The assignment's epoch.
        epoch: Epoch,
        /// Counters since it joined.
        stats: ShardStats,
    },
}

/// A control message that cannot be sent or understood.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Longer than [`MAX_CONTROL`].
    #[error("control message of {0} bytes exceeds the limit")]
    Oversized(usize),
    /// Not the JSON expected.
    #[error("control message not understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// A message as text, for WebSocket.
pub fn to_text<T: Serialize>(message: &T) -> Result<String, ControlError> {
    let text = serde_json::to_string(message)?;
    if text.len() > MAX_CONTROL { Err(ControlError::Oversized(text.len())) } else { Ok(text) }
}

/// A message with its length before it, for a pipe.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ControlError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MAX_CONTROL {
        return Err(ControlError::Oversized(length));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// The length of the message that follows this prefix.
pub fn length(prefix: [u8; 4]) -> Result<usize, ControlError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_CONTROL { Err(ControlError::Oversized(length)) } else { Ok(length) }
}

/// Reads a message (without its length prefix).
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ControlError> {
    if bytes.len() > MAX_CONTROL {
        return Err(ControlError::Oversized(bytes.len()));
    }
    Ok(serde_json::from_slice(bytes)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assignment(shards: u8) -> Assignment {
        Assignment {
            coalition: CoalitionId::default(),
            chain: 0,
            epoch: Epoch(1),
            model: ModelId::default(),
            gateway: Address::repeat_byte(0xaa),
            members: LayerRange::new(0, 12)
                .unwrap()
                .split_evenly(shards.into())
                .into_iter()
                .zip(1..)
                .map(|(layers, i)| Member { address: Address::repeat_byte(i), layers })
                .collect(),
            wire: Activation::F16,
            kv_tokens: 100,
            max_context: 100,
            prefill_chunk: 64,
        }
    }

    #[test]
    fn every_pair_has_one_offering_end_and_the_gateway_meets_only_entry_and_exit() {
        for shards in 1..=6u8 {
            let plan = assignment(shards);
            let everyone: Vec<Address> =
                std::iter::once(plan.gateway).chain(plan.members.iter().map(|m| m.address)).collect();
            let mut links = 0;
            for me in &everyone {
                for link in plan.links_of(*me) {
                    let back = plan.links_of(link.peer);
                    let other = back.iter().find(|l| l.peer == *me).expect("links are mutual");
                    assert_ne!(link.offers, other.offers, "one end offers, the other answers");
                    links += usize::from(link.offers);
                }
            }
            let expected = match shards {
                1 => 1,
                2 => 3,
                n => usize::from(n) + 2,
            };
            assert_eq!(links, expected, "{shards} shards");
            let gateway: Vec<Address> = plan.links_of(plan.gateway).into_iter().map(|l| l.peer).collect();
            let ends = [plan.members[0].address, plan.members[plan.members.len() - 1].address];
            assert!(gateway.iter().all(|peer| ends.contains(peer)));
        }
        assert!(assignment(2).links_of(Address::repeat_byte(0x77)).is_empty(), "a stranger has no link");
    }

    #[test]
    fn every_message_that_carries_another_text_survives_the_pipe() {
        let signal =
            Signal { epoch: Epoch(4), from: Address::ZERO, to: Address::ZERO, description: r#"{"a":[1]}"#.into() };
        let sent = encode(&ToShard::Signal(signal.clone())).unwrap();
        assert_eq!(length(sent[..4].try_into().unwrap()).unwrap(), sent.len() - 4);
        let ToShard::Signal(back) = decode(&sent[4..]).unwrap() else { panic!("another kind came back") };
        assert_eq!(back.description, signal.description);
        let join = ToShard::Join { assignment: Box::new(assignment(2)), delegation: "{}".into(), roster: vec![] };
        let ToShard::Join { assignment: back, .. } = decode(&encode(&join).unwrap()[4..]).unwrap() else {
            panic!("another kind came back")
        };
        assert_eq!(*back, assignment(2));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<ToShard>(&bytes);
            let _ = decode::<FromShard>(&bytes);
            let _ = decode::<ToNode>(&bytes);
            let _ = decode::<ToOrchestrator>(&bytes);
        }
    }
}
