//! A model that is not here: fetched as far as the node is assigned layers of it, and no further.

use std::{path::PathBuf, sync::Arc};

use alloy_primitives::Address;
use pool_models::{
    Download, DownloadError, DownloadId, DownloadState, DownloadStatus, Downloads, DownloadsOverview, Manifest,
    ManifestError, Mirror, SignedManifest, Wanted,
};
use pool_types::{Holdings, LayerRange, ModelId};
use tokio::sync::watch;
use tracing::warn;

/// A model by its manifest, and who has it. A download goes on from one shift to the next, and from one run to the next.
#[derive(Clone, Debug)]
pub struct ModelFetch {
    manifest: Arc<Manifest>,
    signature: Option<SignedManifest>,
    owner: Option<Address>,
    mirrors: Vec<Mirror>,
    downloads: Downloads,
}

impl ModelFetch {
    /// The model of this manifest. With an `owner` (the pool's), the manifest's signature must be theirs.
    pub fn new(
        manifest: Manifest,
        signature: Option<SignedManifest>,
        owner: Option<Address>,
        mirrors: Vec<Mirror>,
        downloads: Downloads,
    ) -> Self {
        Self { manifest: Arc::new(manifest), signature, owner, mirrors, downloads }
    }

    /// Which model it is.
    pub fn id(&self) -> Result<ModelId, ManifestError> {
        self.manifest.model_id()
    }

    /// Its name for people.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// All downloads of this machine: to pause them, and to cap what they take.
    pub fn downloads(&self) -> &Downloads {
        &self.downloads
    }

    /// Which of its layers are on this machine already.
    pub(crate) async fn holdings(&self) -> Holdings {
        let (cache, manifest) = (self.downloads.cache().clone(), self.manifest.clone());
        let here = tokio::task::spawn_blocking(move || cache.layers_here(&manifest)).await;
        let here = match here {
            Ok(Ok(here)) => here,
            Ok(Err(error)) => {
                warn!(%error, "what is here of the model cannot be told");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        Holdings { on_disk: here, loaded: None }
    }

    /// Begins to fetch these layers, or goes on with it. Others of this model are no longer this machine's: what is here
    /// of them stays until the space is needed.
    pub(crate) async fn begin(&self, layers: LayerRange) -> Result<Fetching, DownloadError> {
        let wanted = Wanted::shard(layers, &self.manifest.config);
        let download = Download {
            manifest: self.manifest.clone(),
            signature: self.signature.clone(),
            owner: self.owner,
            wanted,
            mirrors: self.mirrors.clone(),
            priority: 0,
        };
        // One that is in the list stays there, with its place and its pause; one that failed tries all its hosts again.
        let id = self.downloads.add(download).await?;
        self.downloads.unassign_others(self.manifest.hash(), wanted).await?;
        Ok(Fetching { id, list: self.downloads.watch(), seen: false, waits: None })
    }
}

/// Layers on their way.
pub(crate) struct Fetching {
    id: DownloadId,
    list: watch::Receiver<DownloadsOverview>,
    seen: bool,
    waits: Option<Wait>,
}

/// What a download waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wait {
    why: String,
    /// How many bytes are here: it waits until there are more. `None` where somebody will say when it is over.
    until_more_than: Option<u64>,
}

/// How far a fetch is.
pub(crate) enum Fetched {
    /// On its way.
    Part {
        /// Bytes that are here.
        done: u64,
        /// Bytes in all.
        size: u64,
        /// Why nothing comes, where that is so, and what helps.
        waits: Option<String>,
    },
    /// All of it is here and right: the path to open the model by.
    All(PathBuf),
    /// It cannot go on; the sentence says why.
    Failed(String),
}

impl Fetching {
    /// Waits for news.
    pub(crate) async fn news(&mut self) -> Fetched {
        // The first time, what holds now is news.
        if std::mem::replace(&mut self.seen, true) && self.list.changed().await.is_err() {
            return Fetched::Failed("the downloads have ended".to_owned());
        }
        let list = self.list.borrow_and_update();
        let Some(status) = list.downloads.iter().find(|status| status.id == self.id) else {
            return Fetched::Failed("the download was cancelled".to_owned());
        };
        match status.state {
            DownloadState::Done => Fetched::All(status.path.clone()),
            DownloadState::Failed => {
                let message = status.message.clone();
                Fetched::Failed(message.unwrap_or_else(|| "the layers could not be downloaded".to_owned()))
            }
            _ => {
                self.waits = waits(self.waits.take(), status, list.all_paused);
                let why = self.waits.as_ref().map(|wait| wait.why.clone());
                Fetched::Part { done: status.done.0, size: status.total.0, waits: why }
            }
        }
    }
}

/// What a download waits for. A try to go on is no end of it: only a byte that comes is. All downloads together wait for
/// what the owner's settings say, which is another matter.
fn waits(before: Option<Wait>, status: &DownloadStatus, all_paused: bool) -> Option<Wait> {
    let here = status.done.0;
    match (status.state, &status.message) {
        (DownloadState::Paused, _) if all_paused => None,
        (DownloadState::Paused, _) => {
            Some(Wait { why: "you paused it; resume it in the list of downloads".to_owned(), until_more_than: None })
        }
        (DownloadState::Waiting, Some(why)) => Some(Wait { why: why.clone(), until_more_than: Some(here) }),
        (DownloadState::Verifying, _) => None,
        _ => before.filter(|wait| wait.until_more_than.is_some_and(|then| here <= then)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use pool_types::ByteSize;

    use super::*;

    fn status(state: DownloadState, done: u64, message: Option<&str>) -> DownloadStatus {
        DownloadStatus {
            id: DownloadId(1),
            name: "noise".to_owned(),
            manifest: Default::default(),
            wanted: Wanted { layers: None, entry: false, exit: false, words: false, rest: false },
            path: PathBuf::new(),
            state,
            priority: 0,
            done: ByteSize(done),
            total: ByteSize(100),
            speed: ByteSize(0),
            left: None,
            hashed: true,
            message: message.map(str::to_owned),
        }
    }

    #[test]
    fn a_download_waits_until_a_byte_comes() {
        use DownloadState::{Downloading, Paused, Queued, Waiting};
        let mut before = None;
        for (state, done, message, all_paused, expected) in [
            (Downloading, 10, None, false, None),
            (Waiting, 10, Some("the host is away"), false, Some("the host is away")),
            (Downloading, 10, None, false, Some("the host is away")),
            (Waiting, 10, Some("the host is busy"), false, Some("the host is busy")),
            (Queued, 8, None, false, Some("the host is busy")),
            (Downloading, 11, None, false, None),
            (Downloading, 11, None, false, None),
            (Paused, 11, None, false, Some("you paused it; resume it in the list of downloads")),
            (Queued, 11, None, false, None),
            (Paused, 11, None, true, None),
        ] {
            before = waits(before, &status(state, done, message), all_paused);
            assert_eq!(before.as_ref().map(|wait| wait.why.as_str()), expected, "{state:?} with {done}");
        }
    }
}
