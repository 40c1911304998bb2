//! Layers that are fetched before they can be loaded.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use pool_types::{Epoch, Failure, LayerRange, ReasonCode};
use pool_wire::control::ToOrchestrator;
use tracing::{info, warn};

use super::Node;
use crate::{
    config::NodeModel,
    fetch::{Fetched, Fetching},
};

/// How often the orchestrator is told how far it is.
const TELL: Duration = Duration::from_secs(1);

/// Layers on their way, for an assignment.
pub(super) struct Way {
    epoch: Epoch,
    layers: LayerRange,
    fetching: Fetching,
    told: Option<Instant>,
    pub(super) done: u64,
    pub(super) size: u64,
    /// Why nothing comes, where that is so.
    pub(super) waits: Option<String>,
}

/// Waits for news of what is on its way; for ever when nothing is.
pub(super) async fn news_of(way: &mut Option<Way>) -> Fetched {
    match way {
        Some(way) => way.fetching.news().await,
        None => pending().await,
    }
}

impl Node {
    /// Whether the layers are on this machine. If not, they are fetched, and [`Node::on_fetch`] goes on.
    pub(super) async fn has_here(&mut self, epoch: Epoch, layers: LayerRange) -> bool {
        let NodeModel::Fetched(fetch) = &self.config.model else { return true };
        if self.fetched == Some(layers) {
            return true;
        }
        if self.fetching.as_ref().is_some_and(|way| way.epoch == epoch && way.layers == layers) {
            return false;
        }
        match fetch.begin(layers).await {
            Ok(fetching) => {
                info!(%epoch, %layers, "fetching the layers");
                self.fetching = Some(Way { epoch, layers, fetching, told: None, done: 0, size: 0, waits: None });
            }
            Err(error) => self.cannot_fetch(error.to_string()),
        }
        false
    }

    pub(super) async fn on_fetch(&mut self, news: Fetched) {
        let Some(way) = &mut self.fetching else { return };
        match news {
            Fetched::Part { done, size, waits } => {
                (way.done, way.size, way.waits) = (done, size, waits);
                if way.told.is_none_or(|told| told.elapsed() >= TELL) {
                    way.told = Some(Instant::now());
                    self.outbox.push(ToOrchestrator::Fetching { epoch: way.epoch, done, size });
                }
            }
            Fetched::All(path) => {
                info!(layers = %way.layers, "the layers are here");
                (self.path, self.fetched) = (path, Some(way.layers));
                let layers = way.layers;
                self.holds.send_modify(|holds| holds.keep(layers));
                self.fetching = None;
                self.ensure_shard().await;
            }
            Fetched::Failed(why) => {
                self.fetching = None;
                self.cannot_fetch(why);
            }
        }
    }

    fn cannot_fetch(&mut self, why: String) {
        warn!(why, "the layers cannot be fetched");
        if let Some(assignment) = self.current.take() {
            let failure = Failure::new(ReasonCode::Model, why);
            self.outbox.push(ToOrchestrator::Failed { epoch: assignment.epoch, failure });
        }
    }
}
