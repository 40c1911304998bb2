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

use super::{
    Cache, CacheError, OBJECTS, PARTIAL, UNHASHED,
    contents::Paths,
    error::failed,
    files::{list, metadata, named, remove_if_there},
    models::unique,
};
use crate::manifest::Content;

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
    /// Something would have to go, but what may go cannot be told, or it cannot be deleted.
    #[error(
        "{needed} more are needed and nothing can be evicted: {source}; once that is mended, the download goes on by itself"
    )]
    Stuck {
        /// Bytes still missing.
        needed: ByteSize,
        /// What is in the way.
        source: CacheError,
    },
    /// The cache itself failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// How much of the disk models take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes that all contents in the cache take.
    pub used: ByteSize,
    /// Bytes free on the disk; `None` where the system does not say.
    pub free: Option<ByteSize>,
}

/// A file in the cache that may go.
struct Candidate {
    /// In which turn: lower goes first.
    class: Class,
    /// When a model that names it was last used.
    used: SystemTime,
    name: Name,
    paths: Vec<PathBuf>,
    bytes: u64,
    partial: bool,
}

/// What a content is known by: its key, and its model where no other may share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Name {
    model: Option<B256>,
    key: B256,
}

impl Name {
    fn of(model: B256, content: &Content) -> Self {
        Self { model: (!content.is_hashed()).then_some(model), key: content.key }
    }
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
    /// Never what is assigned or pinned, never anything of a model that a process has open. A tensor that several models
    /// name goes only when all of them let it. Nothing is evicted when that would not be enough. Returns the bytes
    /// evicted.
    pub fn make_room(&self, needed: u64, budget: Budget, space: &dyn Space) -> Result<u64, NoRoom> {
        let _guard = self.guard(true)?;
        let files = self.files()?;
        let used = total(&files);
        let free = self.free(space)?.unwrap_or(u64::MAX);
        // How much must go so that both bounds hold.
        let over_budget = budget.most.map_or(0, |most| used.saturating_add(needed).saturating_sub(most.0));
        let over_disk = needed.saturating_add(budget.keep_free.0).saturating_sub(free);
        let must_go = over_budget.max(over_disk);
        if must_go == 0 {
            return Ok(0);
        }
        let needed = ByteSize(needed);
        let candidates = self.candidates(files).map_err(|source| NoRoom::Stuck { needed, source })?;
        // Why it is not enough if so much goes.
        let refusal = |gone: u64| match budget.most {
            Some(most) if over_budget > gone => {
                Some(NoRoom::Budget { needed, used: ByteSize(used.saturating_sub(gone)), most })
            }
            _ if over_disk > gone => {
                let free = ByteSize(free.saturating_add(gone));
                Some(NoRoom::Disk { needed, free, keep_free: budget.keep_free })
            }
            _ => None,
        };
        if let Some(refusal) = refusal(total(&candidates)) {
            return Err(refusal);
        }
        let (mut gone, mut in_the_way) = (0u64, None);
        for candidate in candidates {
            if gone >= must_go {
                break;
            }
            match candidate.delete() {
                Ok(true) => gone = gone.saturating_add(candidate.bytes),
                Ok(false) => {}
                Err(error) => in_the_way = Some(error),
            }
        }
        match (refusal(gone), in_the_way) {
            (None, _) => Ok(gone),
            (Some(_), Some(source)) => Err(NoRoom::Stuck { needed, source }),
            (Some(refusal), None) => Err(refusal),
        }
    }

    /// Bytes that all contents take on the disk.
    pub fn used_bytes(&self) -> Result<u64, CacheError> {
        Ok(total(&self.files()?))
    }

    /// What models take of the disk, and what is left of it.
    pub fn disk_use(&self, space: &dyn Space) -> Result<DiskUse, CacheError> {
        Ok(DiskUse { used: ByteSize(self.used_bytes()?), free: self.free(space)?.map(ByteSize) })
    }

    /// What of it would stay if everything went that may go, and what would be free then: for whoever decides whether more
    /// fits, without making room.
    pub fn disk_use_kept(&self, space: &dyn Space) -> Result<DiskUse, CacheError> {
        let _guard = self.guard(true)?;
        let files = self.files()?;
        let used = total(&files);
        let may_go = total(&self.candidates(files)?);
        let free = self.free(space)?.map(|free| ByteSize(free.saturating_add(may_go)));
        Ok(DiskUse { used: ByteSize(used.saturating_sub(may_go)), free })
    }

    fn free(&self, space: &dyn Space) -> Result<Option<u64>, CacheError> {
        match space.free(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            free => free.map(Some).map_err(failed("measure the free space of", &self.root)),
        }
    }

    /// Deletes what no model names; nothing where that cannot be told. The caller holds the cache exclusively.
    pub(super) fn delete_unnamed(&self) -> Result<u64, CacheError> {
        let mut gone = 0;
        let candidates = self.candidates(self.files()?).unwrap_or_default();
        for candidate in candidates.iter().filter(|candidate| candidate.class == Class::Unnamed) {
            if candidate.delete()? {
                gone += candidate.bytes;
            }
        }
        Ok(gone)
    }

    /// Which of the files may go, in the order in which they go. An error where a model of which something must stay
    /// cannot be read: any file could be its.
    fn candidates(&self, mut files: Vec<Candidate>) -> Result<Vec<Candidate>, CacheError> {
        let mut kept: HashSet<Name> = HashSet::new();
        let mut named: HashMap<Name, (Class, SystemTime)> = HashMap::new();
        for hash in self.hashes()? {
            let (wishes, _) = self.read_use(hash)?;
            let leased = self.is_leased(hash)?;
            let manifest = match self.manifest(hash) {
                Ok(manifest) => manifest,
                Err(error) if wishes.keeps() || leased => return Err(error),
                // Without its manifest a model names nothing and cannot be used.
                Err(CacheError::Manifest { .. }) => continue,
                Err(CacheError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let contents = unique(&manifest);
            if wishes.pinned || leased {
                kept.extend(contents.iter().map(|content| Name::of(hash, content)));
            } else if !wishes.assigned.is_empty() {
                let parts = manifest.items_of_any(&wishes.assigned);
                kept.extend(parts.iter().map(|item| Name::of(hash, &item.content)));
            }
            let class =
                if wishes.assigned.is_empty() { Class::OfUnassignedModels } else { Class::OutsideAssignedParts };
            let used = self.used(hash);
            for content in contents {
                let turn = named.entry(Name::of(hash, content)).or_insert((class, used));
                *turn = (turn.0.max(class), turn.1.max(used));
            }
        }
        files.retain(|file| !kept.contains(&file.name) && !file.is_being_written());
        for file in &mut files {
            if let Some((class, used)) = named.get(&file.name) {
                file.class = if file.partial { Class::Unfinished } else { *class };
                file.used = *used;
            }
        }
        files.sort_by_key(|file| (file.class, file.used, file.name));
        Ok(files)
    }

    /// Every content in the cache, as if no model named it.
    fn files(&self) -> Result<Vec<Candidate>, CacheError> {
        let mut files = Vec::new();
        let mut add = |path: PathBuf, model: Option<B256>| -> Result<(), CacheError> {
            let partial = path.extension().is_some_and(|extension| extension == "part");
            if path.extension().is_some() && !partial {
                return Ok(()); // A record goes with its content.
            }
            // What has gone since the folder was listed takes nothing.
            let (Some(key), Some(metadata)) = (named(&path), metadata(&path)?) else { return Ok(()) };
            let paths =
                model.map_or_else(|| Paths::shared(&self.root, key), |model| Paths::own(&self.root, model, key));
            files.push(Candidate {
                class: Class::Unnamed,
                used: SystemTime::UNIX_EPOCH,
                name: Name { model, key },
                bytes: on_disk(&metadata),
                paths: vec![paths.record, path],
                partial,
            });
            Ok(())
        };
        list(&self.root.join(PARTIAL))?.into_iter().try_for_each(|path| add(path, None))?;
        for folder in list(&self.root.join(OBJECTS))?.into_iter().filter(|folder| folder.is_dir()) {
            list(&folder)?.into_iter().try_for_each(|path| add(path, None))?;
        }
        for folder in list(&self.root.join(UNHASHED))?.into_iter().filter(|folder| folder.is_dir()) {
            let Some(model) = named(&folder) else { continue };
            list(&folder)?.into_iter().try_for_each(|path| add(path, Some(model)))?;
        }
        Ok(files)
    }
}

fn total(files: &[Candidate]) -> u64 {
    files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
}

impl Candidate {
    /// Whether somebody is writing it, or that cannot be told.
    fn is_being_written(&self) -> bool {
        self.partial
            && self.paths.last().is_some_and(|path| File::open(path).is_ok_and(|file| file.try_lock().is_err()))
    }

    /// Deletes it, unless somebody is writing it.
    fn delete(&self) -> Result<bool, CacheError> {
        let lock = self.paths.last().filter(|_| self.partial).map(File::open);
        let Some(lock) = lock.transpose().ok() else { return Ok(false) };
        if lock.as_ref().is_some_and(|file| file.try_lock().is_err()) {
            return Ok(false);
        }
        self.paths.iter().try_for_each(|path| remove_if_there(path))?;
        // The folder of a model whose contents are its own goes with the last of them.
        if let (Some(_), Some(folder)) = (self.name.model, self.paths.last().and_then(|path| path.parent())) {
            let _ = fs::remove_dir(folder);
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
