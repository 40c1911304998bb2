//! Downloads: a list of models, or parts of models, that are fetched from hosts into the [`Cache`].
//!
//! One actor owns the list; [`Downloads`] is its handle. It fetches with a few connections, those of the highest
//! priority first, each asking one host for one run of neighbouring pieces. Every piece is hashed before it is written,
//! so what a kill costs is the pieces in flight, and a host that sends wrong bytes costs those bytes.
//!
//! - **Owner and end.** Whoever calls [`Downloads::start`] owns it; it ends with [`Downloads::stop`] or with its last
//!   handle. Whatever it was doing goes on when the same download is added again, in this process or the next.
//! - **Inbox.** 64 commands. At most [`Downloads::MOST`] downloads are in the list.
//! - **Out.** A [`watch`] of the whole list, renewed four times a second and at each change of state.
//! - **Hosts.** Several may have the model; the one with the fewest failures is asked. A host that is down or busy is
//!   asked again after a growing pause; one that lies about lengths, sends another file or wrong bytes is asked no
//!   more for that file or piece. Only when no host is left does the download fail, with one sentence.
//! - **Space.** Before fetching, and again whenever the disk is full, [`Cache::make_room`] is asked; without room the
//!   download waits and goes on by itself when there is some.

mod actor;
mod bandwidth;
mod error;
mod host;
mod job;
mod progress;
mod survey;
mod work;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use alloy_primitives::{Address, B256};
use pool_types::ByteSize;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, spawn_blocking},
};

pub use error::{DownloadError, HostError, Unusable};
pub use host::{AccessToken, Mirror};
pub use survey::RemoteModel;

use self::{
    actor::{Actor, Command},
    host::Http,
};
use crate::{
    cache::{Budget, Cache, Space},
    manifest::{Manifest, ManifestError, SignedManifest},
    plan::Wanted,
};

const INBOX: usize = 64;

/// How downloads behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownloadOptions {
    /// Connections of all downloads together.
    pub connections: usize,
    /// Most bytes a second of all downloads together; `None` for no cap.
    pub bandwidth: Option<ByteSize>,
    /// How long a host may send nothing before another connection is tried.
    pub stall: Duration,
    /// The pause after a host's first failure; it doubles with each further one.
    pub pause: Duration,
    /// The longest such pause.
    pub longest_pause: Duration,
    /// How much space models may take.
    pub budget: Budget,
}

impl Default for DownloadOptions {
    fn default() -> Self {
        Self {
            connections: 6,
            bandwidth: None,
            stall: Duration::from_secs(20),
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            budget: Budget { most: None, keep_free: ByteSize(2 << 30) },
        }
    }
}

/// What to download.
#[derive(Clone, Debug)]
pub struct Download {
    /// The model.
    pub manifest: Arc<Manifest>,
    /// The signature its manifest came with.
    pub signature: Option<SignedManifest>,
    /// Who must have made that signature: the pool's owner. `None` for a model that the operator chose for themself.
    pub owner: Option<Address>,
    /// Which part of it.
    pub wanted: Wanted,
    /// Who has it.
    pub mirrors: Vec<Mirror>,
    /// Higher goes first; equals go in the order in which they came.
    pub priority: i32,
}

/// A download in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DownloadId(pub u64);

/// Where a download stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownloadState {
    /// It looks at what is there already.
    Preparing,
    /// Others go first.
    Queued,
    /// Bytes are coming.
    Downloading,
    /// It waits for a host or for space and goes on by itself; the message says for what.
    Waiting,
    /// The owner paused it.
    Paused,
    /// Everything is there; whole files are being hashed.
    Verifying,
    /// Everything is there, and right.
    Done,
    /// It cannot go on without the owner; the message says why.
    Failed,
}

/// What the list shows of a download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadStatus {
    /// Which.
    pub id: DownloadId,
    /// The model's name.
    pub name: String,
    /// The hash of its manifest.
    pub manifest: B256,
    /// The path to open the model by once it is there.
    pub path: PathBuf,
    /// Where it stands.
    pub state: DownloadState,
    /// Higher goes first.
    pub priority: i32,
    /// Bytes that are there.
    pub done: ByteSize,
    /// Bytes wanted.
    pub total: ByteSize,
    /// Bytes a second, smoothed.
    pub speed: ByteSize,
    /// How long it will take at that speed.
    pub left: Option<Duration>,
    /// Whether every byte is checked against hashes that do not come from the host. If not, the interface must say
    /// that the model is unverified.
    pub hashed: bool,
    /// One sentence where something is the matter.
    pub message: Option<String>,
}

impl DownloadStatus {
    /// Whether it will not go on by itself.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, DownloadState::Done | DownloadState::Failed)
    }
}

impl fmt::Display for DownloadStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} of {}", self.name, self.done, self.total)?;
        match self.state {
            DownloadState::Downloading => {
                if self.speed.0 > 0 {
                    write!(f, ", {}/s", self.speed)?;
                }
                match self.left.map(|left| left.as_secs()) {
                    Some(seconds @ 0..60) => write!(f, ", {seconds} s left"),
                    Some(seconds @ 60..3600) => write!(f, ", {} min left", seconds.div_ceil(60)),
                    Some(seconds) => write!(f, ", {} h {} min left", seconds / 3600, seconds % 3600 / 60),
                    None => Ok(()),
                }?;
            }
            state => write!(f, ", {}", format!("{state:?}").to_lowercase())?,
        }
        if !self.hashed {
            f.write_str(", not verified by a manifest")?;
        }
        self.message.as_ref().map_or(Ok(()), |message| write!(f, ": {message}"))
    }
}

/// The handle to all downloads; cheap to clone.
#[derive(Clone)]
pub struct Downloads {
    cache: Cache,
    http: Http,
    inbox: mpsc::Sender<Command>,
    list: watch::Receiver<Vec<DownloadStatus>>,
    actor: Arc<tokio::sync::Mutex<Option<JoinHandle<()>>>>,
}

impl fmt::Debug for Downloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Downloads").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Downloads {
    /// The most downloads in the list.
    pub const MOST: usize = 256;

    /// Starts with an empty list. Must be called inside a tokio runtime.
    pub fn start(cache: Cache, options: DownloadOptions, space: Arc<dyn Space>) -> Result<Self, DownloadError> {
        let http = Http::new(options.stall, options.connections.max(1))?;
        let (inbox, commands) = mpsc::channel(INBOX);
        let (out, list) = watch::channel(Vec::new());
        let actor = Actor::new(cache.clone(), http.clone(), options, space, out);
        let actor = tokio::spawn(actor.run(commands));
        Ok(Self { cache, http, inbox, list, actor: Arc::new(tokio::sync::Mutex::new(Some(actor))) })
    }

    /// Adds a download, assigns what it wants to this machine, and begins. What is there already, whole or in part,
    /// is not fetched again.
    pub async fn add(&self, download: Download) -> Result<DownloadId, DownloadError> {
        if download.mirrors.is_empty() {
            return Err(DownloadError::NoMirror);
        }
        if let Some(owner) = download.owner {
            let signature = download.signature.as_ref().ok_or(ManifestError::Signature)?;
            signature.check(&download.manifest, owner)?;
        }
        let (cache, added) = (self.cache.clone(), download.clone());
        let registered = spawn_blocking(move || {
            let hash = added.manifest.hash();
            cache.add(&added.manifest, added.signature.as_ref())?;
            cache.assign(hash, added.wanted)?;
            Ok(hash)
        });
        let hash = registered.await.map_err(|_| DownloadError::Broken)?.map_err(DownloadError::Cache)?;
        self.ask(|reply| Command::Add { download: Box::new(download), hash, reply }).await?
    }

    /// Pauses a download; what is in flight is thrown away.
    pub async fn pause(&self, id: DownloadId) -> Result<(), DownloadError> {
        self.ask(|reply| Command::Pause { id, reply }).await?
    }

    /// Lets a paused download go on, or one that failed try again with all its hosts.
    pub async fn resume(&self, id: DownloadId) -> Result<(), DownloadError> {
        self.ask(|reply| Command::Resume { id, reply }).await?
    }

    /// Takes a download out of the list and its part from this machine's assignments. What has been fetched stays
    /// until the space is needed.
    pub async fn cancel(&self, id: DownloadId) -> Result<(), DownloadError> {
        let (hash, wanted) = self.ask(|reply| Command::Cancel { id, reply }).await??;
        let cache = self.cache.clone();
        let taken_back = spawn_blocking(move || cache.unassign(hash, wanted)).await;
        Ok(taken_back.map_err(|_| DownloadError::Broken)??)
    }

    /// Takes every part of a model back from this machine's assignments but this one, whoever assigned it: an earlier
    /// process may have been given others. Their bytes stay until the space is needed.
    pub async fn unassign_others(&self, manifest: B256, wanted: Wanted) -> Result<(), DownloadError> {
        let cache = self.cache.clone();
        let taken_back = spawn_blocking(move || cache.unassign_others(manifest, wanted)).await;
        Ok(taken_back.map_err(|_| DownloadError::Broken)??)
    }

    /// Changes which download goes first.
    pub async fn set_priority(&self, id: DownloadId, priority: i32) -> Result<(), DownloadError> {
        self.ask(|reply| Command::Priority { id, priority, reply }).await?
    }

    /// Pauses all downloads, those added later too.
    pub async fn pause_all(&self) -> Result<(), DownloadError> {
        self.ask(|reply| Command::All { paused: true, reply }).await
    }

    /// Ends [`Self::pause_all`]; those paused one by one stay paused.
    pub async fn resume_all(&self) -> Result<(), DownloadError> {
        self.ask(|reply| Command::All { paused: false, reply }).await
    }

    /// Changes the cap on all downloads together, in bytes a second.
    pub async fn set_bandwidth(&self, cap: Option<ByteSize>) -> Result<(), DownloadError> {
        self.ask(|reply| Command::Bandwidth { cap, reply }).await
    }

    /// Changes how much space models may take. What does not fit any more is evicted when the next bytes are needed;
    /// [`Cache::make_room`] of no bytes does it at once.
    pub async fn set_budget(&self, budget: Budget) -> Result<(), DownloadError> {
        self.ask(|reply| Command::Budget { budget, reply }).await
    }

    /// Every download as it stands.
    pub fn watch(&self) -> watch::Receiver<Vec<DownloadStatus>> {
        self.list.clone()
    }

    /// Waits until a download has ended, and returns how.
    pub async fn ended(&self, id: DownloadId) -> Result<DownloadStatus, DownloadError> {
        let mut list = self.watch();
        loop {
            let here = list.borrow_and_update().iter().find(|status| status.id == id).cloned();
            match here {
                None => return Err(DownloadError::Cancelled),
                Some(status) if status.has_ended() => return Ok(status),
                Some(_) => list.changed().await.map_err(|_| DownloadError::Stopped)?,
            }
        }
    }

    /// Makes the manifest of a model from the headers on a plain host, for want of a signed one. It has no hashes: what
    /// is downloaded by it can be checked against the host's own claims at most, and is shown as unverified.
    pub async fn survey(&self, mirror: &Mirror, model: &RemoteModel) -> Result<Manifest, DownloadError> {
        survey::survey(&self.http, mirror, model).await
    }

    /// Ends everything and waits until no connection is left. Parts stay for the next time.
    pub async fn stop(&self) {
        let _ = self.inbox.send(Command::Stop).await;
        if let Some(actor) = self.actor.lock().await.take() {
            let _ = actor.await;
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, DownloadError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(command(reply)).await.map_err(|_| DownloadError::Stopped)?;
        answer.await.map_err(|_| DownloadError::Stopped)
    }
}
