//! Downloads: a list of models, or parts of models, that are fetched from hosts into the [`Cache`].
//!
//! One actor owns the list; [`Downloads`] is its handle. It fetches with a few connections, those of the highest
//! priority first, each asking one host for one run of neighbouring pieces. Every piece is hashed before it is written,
//! so what a kill costs is the pieces in flight, and a host that sends wrong bytes costs those bytes.
//!
//! - **Owner and end.** Whoever calls [`Downloads::start`] owns it; it ends with [`Downloads::stop`] or with its last
//!   handle.
//! - **The queue.** What was added is kept in the cache's `queue.json`, with its order and what was paused; the next
//!   process that starts downloads on the cache goes on with it. Tokens are not kept, see
//!   [`Downloads::start_with_tokens`]. One process at a time keeps the queue; another one's downloads end with it, until
//!   it can take the queue over.
//! - **Inbox.** 64 commands. At most [`Downloads::MOST`] downloads are in the list, each part of a model once. A command
//!   is answered once it holds: a paused download has let go of its connections and of the disk, and the queue is
//!   written.
//! - **Out.** A [`watch`] of all of it, renewed four times a second and at each change of state.
//! - **Hosts.** Several may have the model; the one with the fewest failures is asked. A host that is down or busy is
//!   asked again after a growing pause; one that lies about lengths, sends another file or wrong bytes is asked no
//!   more for that file or piece. Only when no host is left does the download fail, with one sentence.
//! - **Space.** Before fetching, and again whenever the disk is full, [`Cache::make_room`] is asked, for one download at
//!   a time and for all that has been promised to the others; without room the download waits and goes on by itself when
//!   there is some.

mod actor;
mod bandwidth;
mod commands;
mod error;
mod host;
mod job;
mod leash;
mod progress;
mod queue;
mod status;
mod survey;
mod work;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use alloy_primitives::{Address, B256};
use pool_types::ByteSize;
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    task::{JoinHandle, spawn_blocking},
};

pub use error::{DownloadError, HostError, Unusable};
pub use host::{AccessToken, Mirror};
pub use status::{
    DiskTotals, DownloadId, DownloadState, DownloadStatus, DownloadsOverview, QueueHealth, SetAside, StrandedDownload,
};
pub use survey::RemoteModel;

use self::{actor::Actor, commands::Command, host::Http, job::Facts};
use crate::{
    cache::{Budget, Cache, CacheError, Space, StopFlag, Verified},
    manifest::{Manifest, ManifestError, SignedManifest},
    plan::Wanted,
};

const INBOX: usize = 64;
/// How often it is told how far a verification is.
const TELL: Duration = Duration::from_millis(500);

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
    /// Begins with everything paused, what an earlier process left in the queue too, until [`Downloads::resume_all`].
    pub paused: bool,
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
            paused: false,
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

/// What became of a model that was to be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCheck {
    /// What was found.
    pub verified: Verified,
    /// The downloads that fetch again what was broken. Empty where nothing was, or where no download in the list is of
    /// this model, so that nobody knows a host to ask.
    pub fetching: Vec<DownloadId>,
}

/// The handle to all downloads; cheap to clone.
#[derive(Clone)]
pub struct Downloads {
    cache: Cache,
    http: Http,
    inbox: mpsc::Sender<Command>,
    overview: watch::Receiver<DownloadsOverview>,
    actor: Arc<Mutex<Option<JoinHandle<()>>>>,
    /// Held while a part is added or taken back, so that list and assignments say the same.
    changing: Arc<Mutex<()>>,
    /// Ends verifications.
    stop: StopFlag,
}

impl fmt::Debug for Downloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Downloads").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Downloads {
    /// The most downloads in the list.
    pub const MOST: usize = 256;

    /// Starts with what an earlier process left in the cache's queue. Must be called inside a tokio runtime.
    pub fn start(cache: Cache, options: DownloadOptions, space: Arc<dyn Space>) -> Result<Self, DownloadError> {
        Self::start_with_tokens(cache, options, space, BTreeMap::new())
    }

    /// As [`Self::start`]; the queue knows no secrets, so the tokens of its hosts come along, by [`Mirror::host`].
    pub fn start_with_tokens(
        cache: Cache,
        options: DownloadOptions,
        space: Arc<dyn Space>,
        tokens: BTreeMap<String, AccessToken>,
    ) -> Result<Self, DownloadError> {
        let http = Http::new(options.stall, options.connections.max(1))?;
        let (inbox, commands) = mpsc::channel(INBOX);
        let (out, overview) = watch::channel(DownloadsOverview::default());
        let actor = Actor::new(cache.clone(), http.clone(), options, space, tokens, out);
        let actor = Arc::new(Mutex::new(Some(tokio::spawn(actor.run(commands)))));
        let (changing, stop) = (Arc::default(), StopFlag::default());
        Ok(Self { cache, http, inbox, overview, actor, changing, stop })
    }

    /// Adds a download, assigns what it wants to this machine, and begins. What is there already, whole or in part,
    /// is not fetched again.
    ///
    /// A part that is in the list already stays there once, and keeps its place and its pause; it is asked of these hosts
    /// from now on, and tries again where it had failed.
    pub async fn add(&self, download: Download) -> Result<DownloadId, DownloadError> {
        if download.mirrors.is_empty() {
            return Err(DownloadError::NoMirror);
        }
        let _changing = self.changing.lock().await;
        let (cache, added) = (self.cache.clone(), download.clone());
        let (facts, new) = on_disk(move || {
            if let Some(owner) = added.owner {
                let signature = added.signature.as_ref().ok_or(ManifestError::Signature)?;
                signature.check(&added.manifest, owner)?;
            }
            let hash = cache.put(&added.manifest, added.signature.as_ref())?;
            let facts = Facts::of(&cache, &added.manifest, hash, added.wanted)?;
            let new = cache.assign(hash, added.wanted)?;
            Ok((facts, new))
        })
        .await?;
        let (hash, wanted) = (facts.hash, download.wanted);
        let added = self.ask(|reply| Command::Add { download: Box::new(download), facts, reply }).await;
        let added = added.and_then(|added| added);
        if added.is_err() && new {
            self.unassign(hash, wanted).await?;
        }
        added
    }

    /// Pauses a download; what is in flight is thrown away. One that is paused stays so.
    pub async fn pause(&self, id: DownloadId) -> Result<(), DownloadError> {
        self.ask(|reply| Command::Pause { id, reply }).await?
    }

    /// Lets a paused download go on, or one that failed try again with all its hosts. One that goes on goes on.
    pub async fn resume(&self, id: DownloadId) -> Result<(), DownloadError> {
        self.ask(|reply| Command::Resume { id, reply }).await?
    }

    /// Takes a download out of the list and its part from this machine's assignments. What has been fetched stays
    /// until the space is needed.
    pub async fn cancel(&self, id: DownloadId) -> Result<(), DownloadError> {
        let _changing = self.changing.lock().await;
        let (hash, wanted) = self.ask(|reply| Command::Cancel { id, reply }).await??;
        self.unassign(hash, wanted).await
    }

    async fn unassign(&self, hash: B256, wanted: Wanted) -> Result<(), DownloadError> {
        let cache = self.cache.clone();
        on_disk(move || Ok(cache.unassign(hash, wanted)?)).await
    }

    /// Takes every part of a model back from this machine's assignments but this one, and its downloads out of the list,
    /// whoever assigned it: an earlier process may have been given others. Their bytes stay until the space is needed.
    pub async fn unassign_others(&self, manifest: B256, wanted: Wanted) -> Result<(), DownloadError> {
        let _changing = self.changing.lock().await;
        self.ask(|reply| Command::CancelOthers { hash: manifest, wanted, reply }).await?;
        let cache = self.cache.clone();
        on_disk(move || Ok(cache.unassign_others(manifest, wanted)?)).await
    }

    /// Changes which download goes first.
    pub async fn set_priority(&self, id: DownloadId, priority: i32) -> Result<(), DownloadError> {
        self.ask(|reply| Command::Priority { id, priority, reply }).await?
    }

    /// Puts a download before all others: those let go of their connections, if it can use them.
    pub async fn move_to_front(&self, id: DownloadId) -> Result<(), DownloadError> {
        self.ask(|reply| Command::Front { id, reply }).await?
    }

    /// Reads everything that is here of a model again. What is broken is removed, and fetched again by the downloads of
    /// this model that are in the list.
    pub async fn verify(&self, manifest: B256) -> Result<ModelCheck, DownloadError> {
        let this = self.clone();
        // To its end, even if nobody waits for it any more: what is removed must come again.
        tokio::spawn(async move { this.check(manifest).await }).await.map_err(|_| DownloadError::Broken)?
    }

    async fn check(&self, manifest: B256) -> Result<ModelCheck, DownloadError> {
        let (cache, stop) = (self.cache.clone(), self.stop.clone());
        let (tell, told) = watch::channel(None);
        let verified = on_disk(move || {
            let tell = |progress| drop(tell.send_replace(Some(progress)));
            Ok(cache.verify_until(manifest, &stop, tell)?)
        });
        let mut verified = std::pin::pin!(verified);
        let verified = loop {
            tokio::select! {
                verified = &mut verified => break verified,
                () = tokio::time::sleep(TELL) => {
                    let progress = told.borrow().clone();
                    self.ask(|reply| Command::Checking { hash: manifest, progress, reply }).await?;
                }
            }
        };
        self.ask(|reply| Command::Checking { hash: manifest, progress: None, reply }).await?;
        let verified = verified.map_err(|error| match error {
            DownloadError::Cache(CacheError::Stopped) => DownloadError::Stopped,
            error => error,
        })?;
        let fetching = match verified.broken.is_empty() {
            true => Vec::new(),
            false => self.ask(|reply| Command::LookAgain { hash: manifest, reply }).await?,
        };
        Ok(ModelCheck { verified, fetching })
    }

    /// Removes a model: its downloads, its assignments, and whatever of its bytes no other model names. Refused while a
    /// shard of any process has it open; its downloads go on then. Returns how much space that gave.
    pub async fn remove(&self, manifest: B256) -> Result<ByteSize, DownloadError> {
        let this = self.clone();
        // To its end, even if nobody waits for it any more: downloads that were held must be let go of.
        let removed = tokio::spawn(async move {
            let _changing = this.changing.lock().await;
            this.ask(|reply| Command::Hold { hash: manifest, reply }).await?;
            let cache = this.cache.clone();
            let removed = on_disk(move || Ok(cache.remove(manifest)?)).await;
            this.ask(|reply| Command::LetGo { hash: manifest, removed: removed.is_ok(), reply }).await?;
            removed
        });
        removed.await.map_err(|_| DownloadError::Broken)?
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

    /// Where everything is kept.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Everything as it stands.
    pub fn watch(&self) -> watch::Receiver<DownloadsOverview> {
        self.overview.clone()
    }

    /// Waits until a download has ended, and returns how.
    pub async fn ended(&self, id: DownloadId) -> Result<DownloadStatus, DownloadError> {
        let mut overview = self.watch();
        loop {
            let here = overview.borrow_and_update().downloads.iter().find(|status| status.id == id).cloned();
            match here {
                None => return Err(DownloadError::Cancelled),
                Some(status) if status.has_ended() => return Ok(status),
                Some(_) => overview.changed().await.map_err(|_| DownloadError::Stopped)?,
            }
        }
    }

    /// Makes the manifest of a model from the headers on a plain host, for want of a signed one. It has no hashes: what
    /// is downloaded by it can be checked against the host's own claims at most, and is shown as unverified.
    pub async fn survey(&self, mirror: &Mirror, model: &RemoteModel) -> Result<Manifest, DownloadError> {
        survey::survey(&self.http, mirror, model).await
    }

    /// Ends everything and waits until no connection is left and nothing is written any more. Parts and the queue stay
    /// for the next time.
    pub async fn stop(&self) {
        self.stop.stop();
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

/// Does what blocks on the disk where it holds up nobody.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DownloadError> + Send + 'static,
) -> Result<T, DownloadError> {
    spawn_blocking(work).await.map_err(|_| DownloadError::Broken)?
}
