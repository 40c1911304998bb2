//! Small files, locks and folders, each step of which outlasts a power loss.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use alloy_primitives::B256;
use serde::Deserialize;
use serde::de::Error as _;

use super::error::{CacheError, failed};

const LARGEST_NOTE: u64 = 1 << 20;
/// What a file that is not yet in its place is called, before a number.
const NEW: &str = "new";

/// A hash as a file's name.
pub(super) fn plain(hash: B256) -> String {
    alloy_primitives::hex::encode(hash)
}

/// Opens a file for its lock, and makes it where there is none.
pub(crate) fn lock_file(path: &Path) -> Result<File, CacheError> {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true).open(path).map_err(failed("open", path))
}

/// Writes a small file so that, whatever happens, the old or the new one is there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    let beside = path.with_extension(format!("{NEW}{}", std::process::id()));
    let written = (|| {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.map_err(failed("write", path))?;
    sync_folder(path.parent().unwrap_or(path))
}

/// Whether a file was left behind by a process that died in [`replace`].
pub(super) fn is_left_over(path: &Path) -> bool {
    let digits = path.extension().and_then(|extension| extension.to_str()?.strip_prefix(NEW));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Makes a folder, and its name outlast a power loss.
pub(super) fn make_folder(path: &Path) -> Result<(), CacheError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(failed("make the folder", path))?;
    sync_folder(path.parent().unwrap_or(path))
}

/// Makes names inside the folder outlast a power loss.
pub(super) fn sync_folder(path: &Path) -> Result<(), CacheError> {
    if cfg!(unix) {
        File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("synchronise", path))?;
    }
    Ok(())
}

/// A file's bytes, `None` where there is none. One longer than `most` is read one byte further and no more.
pub(crate) fn read_small(path: &Path, most: u64) -> Result<Option<Vec<u8>>, CacheError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed("open", path))?,
    };
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed("read", path))?;
    Ok(Some(bytes))
}

/// A small JSON file of ours, `None` where it was never written.
pub(super) fn read_note<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, CacheError> {
    let Some(bytes) = read_small(path, LARGEST_NOTE)? else { return Ok(None) };
    let read = if bytes.len() as u64 > LARGEST_NOTE {
        Err(serde_json::Error::custom("it is too long"))
    } else {
        serde_json::from_slice(&bytes)
    };
    read.map(Some).map_err(|source| CacheError::Note { path: path.to_owned(), source })
}

/// A file's length and the like, `None` where there is none.
pub(super) fn metadata(path: &Path) -> Result<Option<fs::Metadata>, CacheError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        metadata => metadata.map(Some).map_err(failed("look at", path)),
    }
}

pub(super) fn remove_if_there(path: &Path) -> Result<(), CacheError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Everything in a folder; nothing where there is none.
pub(super) fn list(path: &Path) -> Result<Vec<PathBuf>, CacheError> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list", path))?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed("list", path))).collect()
}

/// The hash that a file is named by.
pub(super) fn named(path: &Path) -> Option<B256> {
    path.file_stem()?.to_str()?.parse().ok()
}
