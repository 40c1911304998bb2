//! How much space the cache may take, and what goes first when more is needed.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use alloy_primitives::B256;
use pool_types::ByteSize;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Cache, CacheError, USE, Use, failed, read_note, unique};

/// How much space models may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The most that all models together may take; `None` for no bound.
    pub most: Option<ByteSize>,
    /// How much of the disk must stay free.
    pub keep_free: ByteSize,
}

/// How much a disk can still take.
pub trait Space: Send + Sync {
    /// Bytes that may be written to the disk that holds `path`. An error of the kind
    /// [`Unsupported`](io::ErrorKind::Unsupported) says that nobody knows: then only a full disk stops a download.
    fn free(&self, path: &Path) -> io::Result<u64>;
}

impl<F: Fn(&Path) -> io::Result<u64> + Send + Sync> Space for F {
    fn free(&self, path: &Path) -> io::Result<u64> {
        self(path)
    }
}

/// What the system says.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemSpace;

impl Space for SystemSpace {
    #[cfg(unix)]
    fn free(&self, path: &Path) -> io::Result<u64> {
        let disk = nix::sys::statvfs::statvfs(path)?;
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "the width differs between systems")]
        let (blocks, size) = (u64::from(disk.blocks_available()), disk.fragment_size() as u64);
        Ok(blocks.saturating_mul(size))
    }

    #[cfg(not(unix))]
    fn free(&self, _path: &Path) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Why there is no room for a download.
#[derive(Debug, Error)]
pub enum NoRoom {
    /// The owner's budget is used up by what must stay.
    #[error(
        "{needed} more are needed, but models already take {used} of the {most} set aside for them; raise the disk budget or remove a model, and the download goes on by itself"
    )]
    Budget {
        /// Bytes still missing.
        needed: ByteSize,
        /// Bytes of what must stay.
        used: ByteSize,
        /// The budget.
        most: ByteSize,
    },
    /// The disk is too full.
    #[error(
        "{needed} more are needed, but the disk has only {free} free and {keep_free} of it must stay so; free some space, and the download goes on by itself"
    )]
    Disk {
        /// Bytes still missing.
        needed: ByteSize,
        /// Bytes free.
        free: ByteSize,
        /// Bytes that must stay free.
        keep_free: ByteSize,
    },
    /// The cache itself failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// A file in the cache that may go.
struct Candidate {
    /// In which turn: lower goes first.
    class: Class,
    /// When a model that names it was last used.
    used: SystemTime,
    key: B256,
    paths: Vec<PathBuf>,
    bytes: u64,
    partial: bool,
}

/// The order of eviction; see [`Cache::make_room`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Unnamed,
    Unfinished,
    OfUnassignedModels,
    OutsideAssignedParts,
}

impl Cache {
    /// Makes sure that `needed` more bytes fit, evicting what may go, in this order:
    ///
    /// 1. what no model names any more;
    /// 2. unfinished parts that are neither assigned nor being written;
    /// 3. tensors of models of which nothing is assigned, those of the least recently used model first;
    /// 4. tensors outside the assigned parts of the other models, in the same order.
    ///
    /// Never what is assigned or pinned, never anything of a model that a shard of any process has open or that is
    /// being downloaded. A tensor that several models name goes only when all of them let it. Nothing is evicted when
    /// that would not be enough. Returns the bytes evicted.
    pub fn make_room(&self, needed: u64, budget: Budget, space: &dyn Space) -> Result<u64, NoRoom> {
        let _guard = self.guard(true)?;
        let candidates = self.candidates()?;
        let evictable: u64 = candidates.iter().map(|candidate| candidate.bytes).sum();
        let used = self.used_bytes()?;
        let free = match space.free(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => u64::MAX,
            free => free.map_err(failed("measure the free space of", &self.root))?,
        };
        // How much must go so that both bounds hold.
        let over_budget = budget.most.map_or(0, |most| used.saturating_add(needed).saturating_sub(most.0));
        let over_disk = needed.saturating_add(budget.keep_free.0).saturating_sub(free);
        if let Some(most) = budget.most.filter(|_| over_budget > evictable) {
            let used = ByteSize(used.saturating_sub(evictable));
            return Err(NoRoom::Budget { needed: ByteSize(needed), used, most });
        }
        if over_disk > evictable {
            let free = ByteSize(free.saturating_add(evictable));
            return Err(NoRoom::Disk { needed: ByteSize(needed), free, keep_free: budget.keep_free });
        }
        let must_go = over_budget.max(over_disk);
        let mut gone = 0;
        for candidate in candidates {
            if gone >= must_go {
                break;
            }
            if candidate.delete()? {
                gone += candidate.bytes;
            }
        }
        Ok(gone)
    }

    /// Bytes that all contents take on the disk.
    pub fn used_bytes(&self) -> Result<u64, CacheError> {
        Ok(self.files()?.iter().map(|file| file.bytes).sum())
    }

    /// Deletes what no model names. The caller holds the cache exclusively.
    pub(super) fn delete_unnamed(&self) -> Result<u64, CacheError> {
        let mut gone = 0;
        for candidate in self.candidates()?.iter().filter(|candidate| candidate.class == Class::Unnamed) {
            if candidate.delete()? {
                gone += candidate.bytes;
            }
        }
        Ok(gone)
    }

    fn candidates(&self) -> Result<Vec<Candidate>, CacheError> {
        let mut kept: HashSet<B256> = HashSet::new();
        let mut named: HashMap<B256, (Class, SystemTime)> = HashMap::new();
        for hash in self.hashes()? {
            let manifest = match self.manifest(hash) {
                Ok(manifest) => manifest,
                // Without its manifest a model names nothing and cannot be used.
                Err(CacheError::Manifest { .. }) => continue,
                Err(CacheError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let Use { pinned, assigned } = read_note(&self.model_path(hash).join(USE)).unwrap_or_default();
            let whole = pinned || self.is_leased(hash);
            kept.extend(unique(&manifest).into_iter().filter(|_| whole).map(|content| content.key));
            for part in &assigned {
                kept.extend(manifest.items(*part).into_iter().map(|item| item.content.key));
            }
            let class = if assigned.is_empty() { Class::OfUnassignedModels } else { Class::OutsideAssignedParts };
            let used = self.used(hash);
            for content in unique(&manifest) {
                let turn = named.entry(content.key).or_insert((class, used));
                *turn = (turn.0.max(class), turn.1.max(used));
            }
        }
        let mut candidates = self.files()?;
        candidates.retain(|file| !kept.contains(&file.key));
        for candidate in &mut candidates {
            if let Some((class, used)) = named.get(&candidate.key) {
                candidate.class = if candidate.partial { Class::Unfinished } else { *class };
                candidate.used = *used;
            }
        }
        candidates.sort_by_key(|candidate| (candidate.class, candidate.used, candidate.key));
        Ok(candidates)
    }

    /// Every content in the cache, as if no model named it.
    fn files(&self) -> Result<Vec<Candidate>, CacheError> {
        let list = |path: &Path| -> Result<Vec<fs::DirEntry>, CacheError> {
            fs::read_dir(path).map_err(failed("list", path)).map(|entries| entries.flatten().collect())
        };
        let mut entries = list(&self.root.join("partial"))?;
        for folder in list(&self.root.join("objects"))? {
            if folder.file_type().is_ok_and(|kind| kind.is_dir()) {
                entries.extend(list(&folder.path())?);
            }
        }
        let mut files = Vec::new();
        for path in entries.into_iter().map(|entry| entry.path()) {
            let partial = path.extension().is_some_and(|extension| extension == "part");
            if path.extension().is_some() && !partial {
                continue; // A record goes with its content.
            }
            let key = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            let (Some(key), Ok(metadata)) = (key, fs::metadata(&path)) else { continue };
            let record = if partial { self.record_path(key) } else { path.with_extension("pieces") };
            files.push(Candidate {
                class: Class::Unnamed,
                used: SystemTime::UNIX_EPOCH,
                key,
                bytes: on_disk(&metadata),
                paths: vec![record, path],
                partial,
            });
        }
        Ok(files)
    }
}

impl Candidate {
    /// Deletes it, unless somebody is writing it.
    fn delete(&self) -> Result<bool, CacheError> {
        let lock = self.paths.last().filter(|_| self.partial).map(File::open);
        let Some(lock) = lock.transpose().ok() else { return Ok(false) };
        if lock.as_ref().is_some_and(|file| file.try_lock().is_err()) {
            return Ok(false);
        }
        for path in &self.paths {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", path)(error)),
                _ => {}
            }
        }
        Ok(true)
    }
}

/// What a file takes on the disk: one with holes takes less than its length.
#[cfg(unix)]
pub(super) fn on_disk(metadata: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    metadata.blocks().saturating_mul(512)
}

#[cfg(not(unix))]
pub(super) fn on_disk(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}
