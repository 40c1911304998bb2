//! A connected node, as the registry knows it.

use pool_coalition::stand_down::Manner;
use pool_types::{Holdings, LayerRange};
use pool_wire::control::{Capabilities, Registration, ShardFootprint, ShardStats};

use super::ConnectionId;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) connection: ConnectionId,
    pub(crate) capabilities: Capabilities,
    pub(crate) footprint: Option<ShardFootprint>,
    pub(crate) stats: Option<ShardStats>,
    pub(super) signals: u32,
    /// How it said that it leaves: it gets no layers until it registers again.
    pub(super) leaving: Option<Manner>,
    /// Bytes of its layers that were on its machine when it last said so.
    pub(super) fetched: u64,
    /// Which layers it has, where it said so.
    pub(super) holds: Option<Holdings>,
}

impl Node {
    pub(super) fn new(connection: ConnectionId, said: &Registration) -> Self {
        Self {
            connection,
            capabilities: said.capabilities.clone(),
            footprint: None,
            stats: None,
            signals: 0,
            leaving: None,
            fetched: 0,
            holds: said.holds.clone(),
        }
    }

    /// A coalition is being formed, in which it has these layers, or none.
    pub(super) fn begins(&mut self, layers: Option<LayerRange>) {
        (self.footprint, self.stats, self.signals, self.fetched) = (None, None, 0, 0);
        // A shard of other layers ends before these are loaded; one of a node without a part keeps what it has.
        if let (Some(holds), Some(layers)) = (&mut self.holds, layers) {
            holds.loaded = holds.loaded.filter(|loaded| *loaded == layers);
        }
    }

    pub(super) fn has_loaded(&mut self, layers: LayerRange, footprint: ShardFootprint) {
        self.footprint = Some(footprint);
        if let Some(holds) = &mut self.holds {
            holds.keep(layers);
            holds.loaded = Some(layers);
        }
    }
}
