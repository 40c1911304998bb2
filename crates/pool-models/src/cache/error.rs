//! What can go wrong with a cache, each as one sentence with what to do.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use alloy_primitives::B256;
use pool_types::ByteSize;
use thiserror::Error;

use crate::{manifest::ManifestError, open::OpenError};

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
    /// A small file of the cache's own is broken.
    #[error("{path} is broken: {source}")]
    Note {
        /// Where it stands.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// No model's folder.
    #[error("{0} is not a model in a cache")]
    NotAModel(PathBuf),
    /// No model of that hash.
    #[error("there is no model {0} here")]
    NotHere(B256),
    /// Another process holds the cache.
    #[error("another program has been tidying the model cache for {} seconds; try again", .0.as_secs())]
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
    /// It was told to stop before it was done.
    #[error("the work on the model cache was stopped")]
    Stopped,
}

/// Turns what the system says into what a person can act on.
pub(crate) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CacheError::DiskFull(source),
        _ => CacheError::Io { doing, path, source },
    }
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
