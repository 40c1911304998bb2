//! The cache of single tensors that the shards of a machine share.
//!
//! ```text
//! objects/ab/abcd…         a tensor, a header or a small file, whole, named by its hash
//! partial/abcd….part       one that is being fetched: as long as the whole, with holes
//! partial/abcd….done       which of its pieces are there, each with its hash; only ever appended to
//! models/1234…/            a model, named by its manifest's hash: the path to give to [`crate::Model::open`]
//!     manifest.json, signature.json, use.json, lease
//! lock                     held exclusively while something is evicted or removed
//! ```
//!
//! An object appears under its name only when it is whole and on the disk, so a kill or a power loss leaves a whole
//! object or a part of one. A piece is written and synchronised before it is recorded, and every recorded piece is
//! hashed again before a download goes on after a restart. Two models, ranges or shards that share a tensor share the
//! file.
//!
//! Several processes may use one cache: whoever holds a model open, or downloads it, holds a shared lock on its `lease`,
//! whoever writes a part holds an exclusive lock on it, and nothing locked is ever deleted. Locks end with the process
//! that held them, however it ends. Every call here may block on the disk.

mod object;
mod room;
mod source;

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use alloy_primitives::{Address, B256};
use pool_types::ByteSize;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

#[cfg(feature = "downloads")]
pub(crate) use object::{Claim, Partial};
pub use room::{Budget, NoRoom, Space, SystemSpace};
pub(crate) use source::CachedTensors;

use crate::{
    manifest::{Content, Manifest, ManifestError, SignedManifest, finish},
    open::{OpenError, layout},
    plan::Wanted,
};

/// The file by which a model's folder in the cache is recognised.
pub(crate) const MANIFEST: &str = "manifest.json";
const SIGNATURE: &str = "signature.json";
const USE: &str = "use.json";
const LEASE: &str = "lease";
const LARGEST_NOTE: u64 = 1 << 20;
/// Evicting takes milliseconds; whoever waits longer for it than this is told so.
const LOCK_WAIT: Duration = Duration::from_secs(20);

/// Why the cache cannot do something.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The system refused.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No space is left, or the owner's quota is used up.
    #[error("the disk is full, so the download waits; free some space or remove a model, and it goes on by itself")]
    DiskFull(#[source] io::Error),
    /// The file system or a limit of the process forbids a file of that size.
    #[error(
        "{path} cannot grow to {size}: the disk's format or a limit on this program forbids files of that size; move the models to another disk"
    )]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// How long it should have become.
        size: ByteSize,
    },
    /// A manifest in the cache is broken.
    #[error("{path}: {source}")]
    Manifest {
        /// Where it stands.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<ManifestError>,
    },
    /// No model's folder.
    #[error("{0} is not a model in a cache")]
    NotAModel(PathBuf),
    /// Another process holds the cache.
    #[error("another program has been tidying the model cache for {}; try again", describe_seconds(*.0))]
    Busy(Duration),
    /// A shard serves it or a download fills it.
    #[error("{0} is in use; stop serving or downloading it before removing it")]
    InUse(String),
    /// Bytes that are not what the manifest says.
    #[error("the bytes of `{0}` are not those of the manifest")]
    WrongBytes(String),
    /// The files on this machine are not those of the manifest.
    #[error("the local files cannot be taken over: {0}")]
    Import(#[source] Box<OpenError>),
}

fn describe_seconds(wait: Duration) -> String {
    format!("{} seconds", wait.as_secs())
}

/// Turns what the system says into what a person can act on.
pub(crate) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CacheError::DiskFull(source),
        _ => CacheError::Io { doing, path, source },
    }
}

/// A cache in one folder of this machine; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache {
    root: Arc<PathBuf>,
    clock: fn() -> SystemTime,
}

/// What `list` says of a model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// The hash of its manifest.
    pub hash: B256,
    /// What it is called.
    pub name: String,
    /// The path to open it by.
    pub path: PathBuf,
    /// Bytes of the whole model.
    pub total: ByteSize,
    /// Bytes of it that are here, unfinished parts included.
    pub cached: ByteSize,
    /// What has been assigned to this machine.
    pub assigned: Vec<Wanted>,
    /// The owner asked to keep it.
    pub pinned: bool,
    /// A shard has it open or a download fills it.
    pub in_use: bool,
    /// When it was last opened or downloaded.
    pub used: SystemTime,
    /// Whose signature its manifest came with.
    pub signer: Option<Address>,
    /// Whether its bytes can be checked against hashes that do not come from the host.
    pub hashed: bool,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Contents that are whole and right.
    pub whole: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Those that were not, and have been removed so that the next download fetches them again.
    pub broken: Vec<String>,
    /// Those that are not here.
    pub missing: usize,
}

/// Held by whoever uses a model: nothing of it is evicted meanwhile.
#[derive(Debug)]
pub struct Lease(#[allow(dead_code, reason = "the lock ends when the file is closed")] File);

/// Held by whoever may not be disturbed by an eviction, or evicts.
struct Guard(#[allow(dead_code, reason = "the lock ends when the file is closed")] File);

/// What the owner wants with a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Use {
    pinned: bool,
    assigned: Vec<Wanted>,
}

impl Cache {
    /// Opens the cache in that folder, and makes the folder where there is none.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, CacheError> {
        Self::open_with_clock(root, SystemTime::now)
    }

    /// As [`Self::open`], with another clock for when a model was last used.
    pub fn open_with_clock(root: impl Into<PathBuf>, clock: fn() -> SystemTime) -> Result<Self, CacheError> {
        let root = root.into();
        for folder in ["objects", "partial", "models"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(failed("make the folder", &path))?;
        }
        Ok(Self { root: Arc::new(root), clock })
    }

    /// The cache and the manifest's hash that a model's folder belongs to.
    pub(crate) fn of_model(path: &Path) -> Result<(Self, B256), CacheError> {
        let not_one = || CacheError::NotAModel(path.to_owned());
        let absolute = fs::canonicalize(path).map_err(failed("open", path))?;
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
        self.root.join("models").join(plain(manifest))
    }

    /// Adds a model, without any of its bytes: its manifest, and the signature it came with. Returns its path.
    pub fn add(&self, manifest: &Manifest, signature: Option<&SignedManifest>) -> Result<PathBuf, CacheError> {
        let path = self.model_path(manifest.hash());
        let _guard = self.guard(false)?;
        fs::create_dir_all(&path).map_err(failed("make the folder", &path))?;
        if let Some(signature) = signature {
            replace(&path.join(SIGNATURE), &serde_json::to_vec(signature).unwrap_or_default())?;
        }
        if !path.join(MANIFEST).exists() {
            replace(&path.join(MANIFEST), &manifest.to_bytes())?;
        }
        Ok(path)
    }

    /// The manifest of a model that was added.
    pub fn manifest(&self, hash: B256) -> Result<Manifest, CacheError> {
        let path = self.model_path(hash).join(MANIFEST);
        let length = fs::metadata(&path).map_err(failed("open", &path))?.len();
        let broken = |source| CacheError::Manifest { path: path.clone(), source: Box::new(source) };
        if length > Manifest::MAX_BYTES as u64 {
            return Err(broken(ManifestError::TooLong(usize::try_from(length).unwrap_or(usize::MAX))));
        }
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let manifest = Manifest::parse(&bytes).map_err(broken)?;
        if manifest.hash() != hash {
            return Err(broken(ManifestError::NotCanonical));
        }
        Ok(manifest)
    }

    /// The signature a model's manifest came with.
    pub fn signature(&self, hash: B256) -> Option<SignedManifest> {
        read_note(&self.model_path(hash).join(SIGNATURE))
    }

    /// Keeps a model from being evicted until it is let go, and notes that it is used now.
    pub fn lease(&self, hash: B256) -> Result<Lease, CacheError> {
        let path = self.model_path(hash).join(LEASE);
        let _guard = self.guard(false)?;
        let file = lock_file(&path)?;
        file.try_lock_shared().map_err(|error| match error {
            TryLockError::WouldBlock => CacheError::Busy(Duration::ZERO),
            TryLockError::Error(source) => failed("lock", &path)(source),
        })?;
        file.set_modified((self.clock)()).map_err(failed("note the use of", &path))?;
        Ok(Lease(file))
    }

    /// Assigns a part of a model to this machine: it is evicted only after it has been taken back.
    pub fn assign(&self, hash: B256, wanted: Wanted) -> Result<(), CacheError> {
        self.change_use(hash, |now| {
            if !now.assigned.contains(&wanted) {
                now.assigned.push(wanted);
            }
        })
    }

    /// Takes an assigned part back. Its bytes stay until the space is needed.
    pub fn unassign(&self, hash: B256, wanted: Wanted) -> Result<(), CacheError> {
        self.change_use(hash, |now| now.assigned.retain(|other| *other != wanted))
    }

    /// Takes every assigned part of a model back but this one.
    pub fn unassign_others(&self, hash: B256, wanted: Wanted) -> Result<(), CacheError> {
        self.change_use(hash, |now| now.assigned.retain(|other| *other == wanted))
    }

    /// Keeps everything of a model, or lets it go.
    pub fn pin(&self, hash: B256, pinned: bool) -> Result<(), CacheError> {
        self.change_use(hash, |now| now.pinned = pinned)
    }

    fn change_use(&self, hash: B256, change: impl FnOnce(&mut Use)) -> Result<(), CacheError> {
        let path = self.model_path(hash).join(USE);
        let _guard = self.guard(true)?;
        let mut now: Use = read_note(&path).unwrap_or_default();
        change(&mut now);
        replace(&path, &serde_json::to_vec(&now).unwrap_or_default())
    }

    /// Every model, with what of it is here.
    pub fn list(&self) -> Result<Vec<CachedModel>, CacheError> {
        let _guard = self.guard(true)?;
        let mut models = Vec::new();
        for hash in self.hashes()? {
            let Ok(manifest) = self.manifest(hash) else { continue };
            let Use { pinned, assigned } = read_note(&self.model_path(hash).join(USE)).unwrap_or_default();
            let contents = unique(&manifest);
            models.push(CachedModel {
                hash,
                total: ByteSize(contents.iter().map(|content| content.length).sum()),
                cached: ByteSize(contents.iter().map(|content| self.bytes_here(content)).sum()),
                name: manifest.name.clone(),
                path: self.model_path(hash),
                assigned,
                pinned,
                in_use: self.is_leased(hash),
                used: self.used(hash),
                signer: self.signature(hash).and_then(|signature| signature.signer().ok()),
                hashed: manifest.is_hashed(),
            });
        }
        Ok(models)
    }

    /// Reads everything that is here of a model again, and removes what is not as it should be.
    pub fn verify(&self, hash: B256) -> Result<Verified, CacheError> {
        let _lease = self.lease(hash)?;
        let manifest = self.manifest(hash)?;
        let mut result = Verified::default();
        let named = manifest.items(Wanted::everything(&manifest.config));
        for item in named {
            match self.check_object(&item.content, manifest.piece_bytes)? {
                None => result.missing += 1,
                Some(true) => {
                    result.whole += 1;
                    result.bytes += item.content.length;
                }
                Some(false) => {
                    self.delete_object(item.content.key)?;
                    result.broken.push(item.name);
                }
            }
        }
        Ok(result)
    }

    /// Removes a model and whatever of its bytes no other model names. Returns how much space that gave.
    pub fn remove(&self, hash: B256) -> Result<ByteSize, CacheError> {
        let _guard = self.guard(true)?;
        let path = self.model_path(hash);
        let name = self.manifest(hash).map_or_else(|_| plain(hash), |manifest| manifest.name);
        if self.is_leased(hash) {
            return Err(CacheError::InUse(name));
        }
        fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
        self.delete_unnamed().map(ByteSize)
    }

    /// Takes what the manifest names over from files on this machine. Returns the bytes that were not here before.
    pub fn import(&self, manifest: &Manifest, files: &Path, wanted: Wanted) -> Result<ByteSize, CacheError> {
        let hash = manifest.hash();
        self.add(manifest, None)?;
        let _lease = self.lease(hash)?;
        let unusable = |error| CacheError::Import(Box::new(error));
        let layout = layout(files).map_err(unusable)?;
        let mut taken = 0;
        for item in manifest.items(wanted) {
            let wrong = || CacheError::WrongBytes(item.name.clone());
            let path = manifest.path(item.file);
            let weights = layout.files.iter().find(|(name, _)| name == path).map(|(_, mapping)| mapping.bytes());
            let words = layout.words.iter().find(|(name, _)| name == path).map(|(_, bytes)| bytes.as_slice());
            // A GGUF file may have been renamed: there is only the one.
            let only = layout.files.first().filter(|_| layout.files.len() == 1 && manifest.files.len() == 1);
            let file = weights.or(words).or(only.map(|(_, mapping)| mapping.bytes())).ok_or_else(wrong)?;
            let start = usize::try_from(item.offset).map_err(|_| wrong())?;
            let bytes = file.get(start..).ok_or_else(wrong)?;
            let length = usize::try_from(item.content.length).map_err(|_| wrong())?;
            let bytes = bytes.get(..length).ok_or_else(wrong)?;
            taken += self.store(&item, manifest.piece_bytes, bytes)?;
        }
        Ok(ByteSize(taken))
    }

    /// A whole content's bytes, or `None` where it is not here.
    pub(crate) fn read(&self, content: &Content) -> Result<Option<Vec<u8>>, CacheError> {
        if content.length == 0 {
            return Ok(Some(Vec::new()));
        }
        if !self.has(content) {
            return Ok(None);
        }
        let path = self.object_path(content.key);
        fs::read(&path).map(Some).map_err(failed("read", &path))
    }

    /// Whether header and tensors, put together as they lie in the file, hash to what is known of the whole file.
    /// `None` where nothing is known, or where something of it is not here.
    pub fn check_file(&self, manifest: &Manifest, file: usize) -> Result<Option<bool>, CacheError> {
        let Some((weights, expected)) = manifest.files.get(file).and_then(|f| Some((f, f.sha256?))) else {
            return Ok(None);
        };
        let tensors = manifest.tensors.iter().filter(|tensor| tensor.file as usize == file);
        let mut parts: Vec<_> = tensors.map(|tensor| (tensor.offset, &tensor.content)).collect();
        parts.push((0, &weights.header));
        parts.retain(|(_, content)| content.length > 0);
        parts.sort_by_key(|(offset, _)| *offset);
        parts.dedup_by_key(|(offset, _)| *offset);
        let mut hash = Sha256::new();
        let mut at = 0;
        let mut buffer = vec![0; 1 << 20];
        for (offset, content) in parts {
            if !self.has(content) {
                return Ok(None);
            }
            hash_zeros(&mut hash, offset.saturating_sub(at));
            let path = self.object_path(content.key);
            let mut object = File::open(&path).map_err(failed("open", &path))?;
            loop {
                let read = io::Read::read(&mut object, &mut buffer).map_err(failed("read", &path))?;
                if read == 0 {
                    break;
                }
                hash.update(&buffer[..read]);
            }
            at = offset + content.length;
        }
        hash_zeros(&mut hash, weights.length.saturating_sub(at));
        Ok(Some(finish(hash) == expected))
    }

    /// Deletes everything that is here of one file of a model.
    #[cfg(feature = "downloads")]
    pub(crate) fn discard_file(&self, manifest: &Manifest, file: usize) -> Result<(), CacheError> {
        let tensors = manifest.tensors.iter().filter(|tensor| tensor.file as usize == file);
        let contents = tensors.map(|tensor| &tensor.content).chain(manifest.files.get(file).map(|f| &f.header));
        contents.filter(|content| self.has(content)).try_for_each(|content| self.delete_object(content.key))
    }

    fn hashes(&self) -> Result<Vec<B256>, CacheError> {
        let path = self.root.join("models");
        let entries = fs::read_dir(&path).map_err(failed("list", &path))?;
        let named = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        let mut hashes: Vec<B256> = entries.flatten().filter_map(named).collect();
        hashes.sort();
        Ok(hashes)
    }

    fn used(&self, hash: B256) -> SystemTime {
        let modified = |name: &str| fs::metadata(self.model_path(hash).join(name)).ok()?.modified().ok();
        modified(LEASE).or_else(|| modified(MANIFEST)).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Whether anybody holds a lease. Only sure for whoever holds the cache exclusively.
    fn is_leased(&self, hash: B256) -> bool {
        let path = self.model_path(hash).join(LEASE);
        File::open(&path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    fn guard(&self, exclusive: bool) -> Result<Guard, CacheError> {
        let path = self.root.join("lock");
        let file = lock_file(&path)?;
        let step = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        loop {
            let locked = if exclusive { file.try_lock() } else { file.try_lock_shared() };
            match locked {
                Ok(()) => return Ok(Guard(file)),
                Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
                Err(TryLockError::WouldBlock) if waited >= LOCK_WAIT => return Err(CacheError::Busy(waited)),
                Err(TryLockError::WouldBlock) => std::thread::sleep(step),
            }
            waited += step;
        }
    }
}

/// Each content of a manifest once.
fn unique(manifest: &Manifest) -> Vec<&Content> {
    let mut seen = std::collections::HashSet::new();
    manifest.contents().filter(|content| content.length > 0 && seen.insert(content.key)).collect()
}

/// The padding between tensors.
fn hash_zeros(hash: &mut Sha256, mut count: u64) {
    const ZEROS: [u8; 4096] = [0; 4096];
    while count > 0 {
        let now = count.min(ZEROS.len() as u64);
        hash.update(&ZEROS[..now as usize]);
        count -= now;
    }
}

/// A hash as a file's name.
fn plain(hash: B256) -> String {
    alloy_primitives::hex::encode(hash)
}

fn lock_file(path: &Path) -> Result<File, CacheError> {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true).open(path).map_err(failed("open", path))
}

/// Writes a small file so that, whatever happens, the old or the new one is there.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    let beside = path.with_extension(format!("new{}", std::process::id()));
    let written = (|| {
        let mut file = File::create(&beside)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.map_err(failed("write", path))?;
    sync_folder(path.parent().unwrap_or(path))
}

/// Makes a rename inside the folder outlast a power loss.
fn sync_folder(path: &Path) -> Result<(), CacheError> {
    if cfg!(unix) {
        File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("synchronise", path))?;
    }
    Ok(())
}

/// A small JSON file of ours; one that is missing or broken counts as never written.
fn read_note<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    if fs::metadata(path).ok()?.len() > LARGEST_NOTE {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_used_up_quota_are_said_as_such() {
        for (number, name) in [(28, "ENOSPC"), (122, "EDQUOT")] {
            let error = failed("write", Path::new("models/x"))(io::Error::from_raw_os_error(number));
            assert!(matches!(error, CacheError::DiskFull(_)), "{name} gives {error}");
        }
        let other = failed("write", Path::new("models/x"))(io::Error::from_raw_os_error(5));
        assert!(other.to_string().starts_with("cannot write models/x: "), "{other}");
    }
}
