//! What is to be downloaded, kept in the cache for the next process: `queue.json`, written whole at each change.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
};

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};

use super::{
    AccessToken, Download, DownloadError, Mirror, SetAside, StrandedDownload,
    job::{Facts, Job, Phase},
};
use crate::{
    cache::{Cache, CacheError, failed, lock_file, read_small, replace},
    manifest::ManifestError,
    plan::Wanted,
};

const FILE: &str = "queue.json";
const LOCK: &str = "queue.lock";
const VERSION: u32 = 1;
/// 256 downloads of some hosts each take a tenth of this.
const LARGEST: u64 = 4 << 20;
/// So many broken queues are kept beside each other.
const MOST_SET_ASIDE: u32 = 1000;

/// The file's form. The downloads stand in the order in which they get connections.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    downloads: Vec<Entry>,
}

/// A download as the file has it: everything but secrets, and the manifest, which is in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    manifest: B256,
    wanted: Wanted,
    owner: Option<Address>,
    mirrors: Vec<String>,
    priority: i32,
    paused: bool,
    done: bool,
}

impl Entry {
    pub(super) fn of(job: &Job) -> Self {
        let Download { wanted, owner, priority, ref mirrors, .. } = job.download;
        let mirrors = mirrors.iter().map(|mirror| mirror.address().to_owned()).collect();
        let done = job.phase == Phase::Done;
        Self { manifest: job.facts.hash, wanted, owner, mirrors, priority, paused: job.paused, done }
    }

    pub(super) fn hash(&self) -> B256 {
        self.manifest
    }

    pub(super) fn is_of(&self, hash: B256, wanted: Wanted) -> bool {
        self.manifest == hash && self.wanted == wanted
    }
}

/// A download of an earlier process that goes on.
pub(super) struct Restored {
    pub(super) download: Download,
    pub(super) facts: Facts,
    pub(super) paused: bool,
    pub(super) done: bool,
}

/// One that cannot go on, but stays in the file.
pub(super) struct Stranded {
    pub(super) entry: Entry,
    reason: String,
}

impl Stranded {
    pub(super) fn shown(&self) -> StrandedDownload {
        let Entry { manifest, wanted, .. } = self.entry;
        StrandedDownload { manifest, wanted, reason: self.reason.clone() }
    }
}

/// What an earlier process left.
pub(super) struct Left {
    pub(super) queue: Queue,
    pub(super) restored: Vec<Restored>,
    pub(super) stranded: Vec<Stranded>,
    pub(super) set_aside: Option<SetAside>,
}

/// The file, which is this process's as long as this is held.
pub(super) struct Queue {
    path: PathBuf,
    _lock: File,
}

impl Queue {
    /// Takes the queue over and reads it; `None` where another process keeps it. Blocks on the disk.
    pub(super) fn take(cache: &Cache, tokens: &BTreeMap<String, AccessToken>) -> Result<Option<Left>, CacheError> {
        let lock_path = cache.root().join(LOCK);
        let lock = lock_file(&lock_path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(failed("lock", &lock_path)(source)),
        }
        cache.tidy_queue()?;
        let queue = Self { path: cache.root().join(FILE), _lock: lock };
        let mut left = Left { queue, restored: Vec::new(), stranded: Vec::new(), set_aside: None };
        let Some(bytes) = read_small(&left.queue.path, LARGEST)? else { return Ok(Some(left)) };
        match parse(&bytes) {
            Err(reason) => left.set_aside = Some(set_aside(&left.queue.path, reason)?),
            Ok(entries) => (left.restored, left.stranded) = restore_all(cache, entries, tokens),
        }
        Ok(Some(left))
    }

    /// Blocks on the disk.
    pub(super) fn write(&self, downloads: Vec<Entry>) -> Result<(), CacheError> {
        let text = Text { version: VERSION, downloads };
        // Nothing in it can fail to become JSON.
        replace(&self.path, &serde_json::to_vec(&text).unwrap_or_default())
    }
}

/// What of it goes on, and what cannot. Blocks on the disk.
pub(super) fn restore_all(
    cache: &Cache,
    entries: Vec<Entry>,
    tokens: &BTreeMap<String, AccessToken>,
) -> (Vec<Restored>, Vec<Stranded>) {
    let (mut going, mut stranded) = (Vec::new(), Vec::new());
    for entry in entries {
        match restore(cache, &entry, tokens) {
            Ok(Some(restored)) => going.push(restored),
            Ok(None) => {}
            Err(error) => stranded.push(Stranded { entry, reason: error.to_string() }),
        }
    }
    (going, stranded)
}

fn parse(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    if bytes.len() as u64 > LARGEST {
        return Err(format!("the queue is longer than {LARGEST} bytes"));
    }
    let text: Text = serde_json::from_slice(bytes).map_err(|error| format!("the queue cannot be read: {error}"))?;
    if text.version != VERSION {
        return Err(format!("the queue has form {}; this version reads form {VERSION}", text.version));
    }
    Ok(text.downloads)
}

/// Gives a broken queue a name that nothing else has.
fn set_aside(path: &Path, reason: String) -> Result<SetAside, CacheError> {
    let names = (1..=MOST_SET_ASIDE).map(|number| path.with_extension(format!("broken{number}.json")));
    let mut free = names.filter(|name| !name.exists());
    let none = || failed("set aside", path)(std::io::ErrorKind::AlreadyExists.into());
    let aside = free.next().ok_or_else(none)?;
    fs::rename(path, &aside).map_err(failed("set aside", path))?;
    Ok(SetAside { path: aside, reason })
}

/// What an entry is about; `None` where its model has been removed.
fn restore(
    cache: &Cache,
    entry: &Entry,
    tokens: &BTreeMap<String, AccessToken>,
) -> Result<Option<Restored>, DownloadError> {
    let &Entry { manifest: hash, wanted, owner, priority, paused, done, .. } = entry;
    let manifest = match cache.manifest(hash) {
        Err(CacheError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound && !cache.model_path(hash).exists() =>
        {
            return Ok(None);
        }
        manifest => Arc::new(manifest?),
    };
    let signature = cache.signature(hash)?;
    if let Some(owner) = owner {
        signature.as_ref().ok_or(ManifestError::Signature)?.check(&manifest, owner)?;
    }
    let mirror = |address: &String| {
        let mirror = Mirror::new(address)?;
        Ok(match tokens.get(&mirror.host()) {
            Some(token) => mirror.with_token(token.clone()),
            None => mirror,
        })
    };
    let mirrors = entry.mirrors.iter().map(mirror).collect::<Result<Vec<_>, DownloadError>>()?;
    if mirrors.is_empty() {
        return Err(DownloadError::NoMirror);
    }
    cache.assign(hash, wanted)?;
    let facts = Facts::of(cache, &manifest, hash, wanted)?;
    let download = Download { manifest, signature, owner, wanted, mirrors, priority };
    Ok(Some(Restored { download, facts, paused, done: done && facts.whole }))
}
