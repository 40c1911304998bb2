//! What `up`, `node` and `orchestrator` share: opening the model, a runtime, a name.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use pool_models::Model;
use tokio::runtime::{Builder, Runtime};

/// Opens a model; headers only.
pub(crate) fn open_model(path: &Path) -> Result<Arc<Model>> {
    Ok(Arc::new(Model::open(path)?))
}

/// Few threads: the work is done in shards, and their cores are theirs.
pub(crate) fn runtime(threads: usize) -> Result<Runtime> {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build().context("cannot start the runtime")
}

/// The model's name in the API: what the person said, else its own.
pub(crate) fn model_name(said: Option<&str>, model: &Model) -> String {
    said.map_or_else(|| model.name.clone(), str::to_owned)
}
