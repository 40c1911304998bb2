//! The cache of single tensors that the shards of a machine share.
//!
//! ```text
//! objects/ab/abcd…         a tensor, a header or a small file, whole, named by its hash
//! partial/abcd….part       one that is being fetched: as long as the whole, with holes
//! partial/abcd….done       which of its pieces are there, each with its hash; only ever appended to
//! unhashed/1234…/abcd…     a content that no hash is known of: it belongs to the one model whose manifest names it
//!     abcd….part, abcd….pieces
//! models/1234…/            a model, named by its manifest's hash: the path to give to [`crate::Model::open`]
//!     manifest.json, signature.json, use.json, lease, hold
//! queue.json               what is to be downloaded, and `queue.lock`, held by the process that downloads it
//! lock                     held exclusively while something is noted, evicted or removed
//! ```
//!
//! An object appears under its name only when it is whole and on the disk, so a kill or a power loss leaves a whole
//! object or a part of one. A piece is written and synchronised before it is recorded, and every recorded piece is
//! hashed again before a download goes on after a restart. Two models, ranges or shards that share a tensor share the
//! file where its hash is known; what only a host's word vouches for is never taken for anything else.
//!
//! Several processes may use one cache: whoever holds a model open holds a shared lock on its `lease`, whoever downloads
//! it or has loaded what is assigned of it one on its `hold`, whoever writes a part holds an exclusive lock on it, and
//! nothing locked is ever deleted. When a model was last used is when its `lease` was modified. Locks end with the
//! process that held them, however it ends. What cannot be read counts as kept, never as free to go. Every call here may
//! block on the disk.

mod contents;
mod error;
mod files;
mod models;
mod room;
mod source;
mod tidy;
mod verify;

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use alloy_primitives::B256;

pub(crate) use contents::Contents;
#[cfg(feature = "downloads")]
pub(crate) use contents::{Claim, Partial};
pub use error::CacheError;
pub(crate) use error::failed;
#[cfg(feature = "downloads")]
pub(crate) use files::read_small;
use files::{list, make_folder, plain, read_note};
pub(crate) use files::{lock_file, replace};
pub use models::CachedModel;
pub use room::{Budget, DiskUse, NoRoom, Space, SystemSpace};
pub(crate) use source::CachedTensors;
pub(crate) use verify::StopFlag;
pub use verify::{Checking, Verified};

use crate::manifest::{Manifest, ManifestError, SignedManifest, hash_of};

/// The file by which a model's folder in the cache is recognised.
pub(crate) const MANIFEST: &str = "manifest.json";
const SIGNATURE: &str = "signature.json";
const USE: &str = "use.json";
const LEASE: &str = "lease";
const HOLD: &str = "hold";
const OBJECTS: &str = "objects";
const PARTIAL: &str = "partial";
const UNHASHED: &str = "unhashed";
const MODELS: &str = "models";
/// Evicting takes milliseconds; whoever waits longer for it than this is told so.
const LOCK_WAIT: Duration = Duration::from_secs(20);

/// A cache in one folder of this machine; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache {
    root: Arc<PathBuf>,
    clock: fn() -> SystemTime,
}

/// Held by whoever uses a model: nothing of it is evicted or removed until the last clone of it is gone.
#[derive(Clone, Debug)]
pub struct Lease {
    model: PathBuf,
    /// The lock ends when the file is closed.
    _lock: Arc<File>,
}

impl Lease {
    /// As much as somebody needs who has read what they need: the model is not removed, and of its contents only what is
    /// assigned stays for sure.
    pub fn of_assigned(self) -> Result<Self, CacheError> {
        let (cache, hash) = Cache::of_model(&self.model)?;
        cache.hold(hash)
    }
}

/// Held by whoever may not be disturbed by an eviction, or evicts.
struct Guard {
    /// The lock ends when the file is closed.
    _file: File,
}

impl Cache {
    /// Opens the cache in that folder, and makes the folder where there is none. What dead processes left behind is
    /// tidied away.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, CacheError> {
        Self::open_with_clock(root, SystemTime::now)
    }

    /// As [`Self::open`], with another clock for when a model was last used.
    pub fn open_with_clock(root: impl Into<PathBuf>, clock: fn() -> SystemTime) -> Result<Self, CacheError> {
        let root = root.into();
        for folder in [OBJECTS, PARTIAL, UNHASHED, MODELS] {
            make_folder(&root.join(folder))?;
        }
        let cache = Self { root: Arc::new(root), clock };
        // What cannot be tidied away harms nobody.
        let _ = cache.tidy();
        Ok(cache)
    }

    /// The cache and the manifest's hash that a model's folder belongs to.
    pub(crate) fn of_model(path: &Path) -> Result<(Self, B256), CacheError> {
        let not_one = || CacheError::NotAModel(path.to_owned());
        let absolute = std::fs::canonicalize(path).map_err(failed("open", path))?;
        let name = absolute.file_name().and_then(|name| name.to_str()).ok_or_else(not_one)?;
        let hash: B256 = name.parse().map_err(|_| not_one())?;
        let root = absolute.parent().and_then(Path::parent).ok_or_else(not_one)?;
        Ok((Self { root: Arc::new(root.to_owned()), clock: SystemTime::now }, hash))
    }

    /// Where it lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a model: the path to open it by, once it has been added.
    pub fn model_path(&self, manifest: B256) -> PathBuf {
        self.root.join(MODELS).join(plain(manifest))
    }

    /// Adds a model, without any of its bytes: its manifest, and the signature it came with, which must be one over
    /// this manifest. A manifest that broke on the disk is written again. Returns its path.
    pub fn add(&self, manifest: &Manifest, signature: Option<&SignedManifest>) -> Result<PathBuf, CacheError> {
        Ok(self.model_path(self.put(manifest, signature)?))
    }

    /// As [`Self::add`]; returns the manifest's hash.
    pub(crate) fn put(&self, manifest: &Manifest, signature: Option<&SignedManifest>) -> Result<B256, CacheError> {
        let bytes = manifest.to_bytes();
        let hash = hash_of(&bytes);
        let (path, file) = (self.model_path(hash), self.model_path(hash).join(MANIFEST));
        if let Some(signature) = signature {
            let over_this = signature.signer_over(hash, &manifest.name);
            over_this
                .map_err(|source| CacheError::Manifest { path: path.join(SIGNATURE), source: Box::new(source) })?;
        }
        let _guard = self.guard(true)?;
        make_folder(&path)?;
        if let Some(signature) = signature {
            replace(&path.join(SIGNATURE), &serde_json::to_vec(signature).unwrap_or_default())?;
        }
        let as_it_should_be = files::read_small(&file, bytes.len() as u64)?.is_some_and(|found| found == bytes);
        if !as_it_should_be {
            replace(&file, &bytes)?;
        }
        Ok(hash)
    }

    /// The manifest of a model that was added.
    pub fn manifest(&self, hash: B256) -> Result<Manifest, CacheError> {
        let path = self.model_path(hash).join(MANIFEST);
        let broken = |source| CacheError::Manifest { path: path.clone(), source: Box::new(source) };
        let bytes = files::read_small(&path, Manifest::MAX_BYTES as u64)?;
        let missing = || failed("open", &path)(std::io::ErrorKind::NotFound.into());
        let bytes = bytes.ok_or_else(missing)?;
        // A manifest has one text only, so its file's hash is its own.
        if bytes.len() <= Manifest::MAX_BYTES && hash_of(&bytes) != hash {
            return Err(broken(ManifestError::NotCanonical));
        }
        Manifest::parse(&bytes).map_err(broken)
    }

    /// The signature a model's manifest came with.
    pub fn signature(&self, hash: B256) -> Result<Option<SignedManifest>, CacheError> {
        read_note(&self.model_path(hash).join(SIGNATURE))
    }

    /// The contents of a model.
    pub(crate) fn contents(&self, model: B256, piece_bytes: u32) -> Contents {
        Contents::new(self.root.clone(), model, piece_bytes)
    }

    /// Keeps a model from being evicted until it is let go, and notes that it is used now.
    pub fn lease(&self, hash: B256) -> Result<Lease, CacheError> {
        self.shared(hash, LEASE)
    }

    /// As [`Self::lease`], but of its contents only what is assigned stays for sure.
    pub(crate) fn hold(&self, hash: B256) -> Result<Lease, CacheError> {
        self.shared(hash, HOLD)
    }

    fn shared(&self, hash: B256, name: &str) -> Result<Lease, CacheError> {
        let model = self.model_path(hash);
        let path = model.join(name);
        let _guard = self.guard(false)?;
        self.must_be_here(hash)?;
        let file = lock_file(&path)?;
        file.try_lock_shared().map_err(|error| match error {
            TryLockError::WouldBlock => CacheError::Busy(Duration::ZERO),
            TryLockError::Error(source) => failed("lock", &path)(source),
        })?;
        let used = model.join(LEASE);
        lock_file(&used)?.set_modified((self.clock)()).map_err(failed("note the use of", &used))?;
        Ok(Lease { model, _lock: Arc::new(file) })
    }

    fn must_be_here(&self, hash: B256) -> Result<(), CacheError> {
        let path = self.model_path(hash);
        match path.try_exists().map_err(failed("look at", &path))? {
            true => Ok(()),
            false => Err(CacheError::NotHere(hash)),
        }
    }

    /// Whether anybody holds a lease on all of it. Only sure for whoever holds the cache exclusively.
    fn is_leased(&self, hash: B256) -> Result<bool, CacheError> {
        self.is_shared(hash, LEASE)
    }

    /// Whether anybody uses it. Only sure for whoever holds the cache exclusively.
    fn is_in_use(&self, hash: B256) -> Result<bool, CacheError> {
        Ok(self.is_shared(hash, LEASE)? || self.is_shared(hash, HOLD)?)
    }

    fn is_shared(&self, hash: B256, name: &str) -> Result<bool, CacheError> {
        let path = self.model_path(hash).join(name);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            file => file.map_err(failed("open", &path))?,
        };
        match file.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
        }
    }

    /// The hashes of all models.
    fn hashes(&self) -> Result<Vec<B256>, CacheError> {
        let mut hashes: Vec<B256> =
            list(&self.root.join(MODELS))?.iter().filter_map(|path| files::named(path)).collect();
        hashes.sort();
        Ok(hashes)
    }

    fn guard(&self, exclusive: bool) -> Result<Guard, CacheError> {
        let step = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        loop {
            if let Some(guard) = self.try_guard(exclusive)? {
                return Ok(guard);
            }
            if waited >= LOCK_WAIT {
                return Err(CacheError::Busy(waited));
            }
            std::thread::sleep(step);
            waited += step;
        }
    }

    fn try_guard(&self, exclusive: bool) -> Result<Option<Guard>, CacheError> {
        let path = self.root.join("lock");
        let file = lock_file(&path)?;
        match if exclusive { file.try_lock() } else { file.try_lock_shared() } {
            Ok(()) => Ok(Some(Guard { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
        }
    }
}
