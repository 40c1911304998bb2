//! The operator's key, kept in an encrypted keystore file (Web3 Secret Storage, version 3).
//!
//! The keystore's scrypt cost is the library's fixed N = 2^13, r = 8, p = 1: 8 MiB of memory and about 20 ms, so that
//! a node starts at once. It slows down guessing only a little; choose a long passphrase, and keep the directory
//! private (this module makes it mode 0700 and the files 0600).

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use alloy_primitives::hex;
use alloy_signer::k256::elliptic_curve::rand_core::OsRng;
use alloy_signer_local::{LocalSignerError, PrivateKeySigner};
use thiserror::Error;

/// The environment variable that may hold the passphrase.
pub const PASSPHRASE_VARIABLE: &str = "COMPUTEPOOL_PASSPHRASE";
/// The keystore's name inside a state directory.
pub const KEYSTORE_FILE: &str = "key.json";
const MAX_PASSPHRASE: u64 = 4096;

/// The secret that opens a keystore. Its debug form does not show it.
#[derive(Clone)]
pub struct Passphrase(String);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// Why there is no key.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file or directory cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The keystore does not open with this passphrase, or is damaged.
    #[error("the keystore {path} does not open: {source}; check the passphrase")]
    Keystore {
        /// Which one.
        path: PathBuf,
        /// What the library said.
        source: LocalSignerError,
    },
    /// Nothing says what the passphrase is.
    #[error("no passphrase: name a file that holds it, or set {PASSPHRASE_VARIABLE}")]
    NoPassphrase,
    /// An empty passphrase protects nothing.
    #[error("the passphrase in {0} is empty")]
    EmptyPassphrase(PathBuf),
}

impl Passphrase {
    /// A passphrase from elsewhere.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// From `file` when given, else from the environment ([`PASSPHRASE_VARIABLE`]).
    pub fn from_file_or_environment(file: Option<&Path>) -> Result<Self, IdentityError> {
        if let Some(path) = file {
            return Self::from_file(path);
        }
        match std::env::var(PASSPHRASE_VARIABLE) {
            Ok(secret) if !secret.is_empty() => Ok(Self(secret)),
            _ => Err(IdentityError::NoPassphrase),
        }
    }

    /// The first 4 KiB of a file without line breaks at its end.
    pub fn from_file(path: &Path) -> Result<Self, IdentityError> {
        let wrap = |source| IdentityError::File { path: path.to_owned(), source };
        let mut text = String::new();
        File::open(path).map_err(wrap)?.take(MAX_PASSPHRASE).read_to_string(&mut text).map_err(wrap)?;
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() {
            return Err(IdentityError::EmptyPassphrase(path.to_owned()));
        }
        Ok(Self(secret.to_owned()))
    }

    /// The passphrase in `path`; makes the file (mode 0600) with a random one of 256 bits when it is missing.
    pub fn from_file_or_random(path: &Path) -> Result<Self, IdentityError> {
        if path.exists() {
            return Self::from_file(path);
        }
        let secret = hex::encode(PrivateKeySigner::random().to_bytes());
        write_private(path, secret.as_bytes())?;
        Ok(Self(secret))
    }
}

/// The key in `directory`'s keystore; a fresh one when there is none yet.
pub fn open_or_create(directory: &Path, passphrase: &Passphrase) -> Result<PrivateKeySigner, IdentityError> {
    let path = directory.join(KEYSTORE_FILE);
    if path.exists() { open(&path, passphrase) } else { create(directory, &path, passphrase) }
}

fn open(path: &Path, passphrase: &Passphrase) -> Result<PrivateKeySigner, IdentityError> {
    PrivateKeySigner::decrypt_keystore(path, &passphrase.0)
        .map_err(|source| IdentityError::Keystore { path: path.to_owned(), source })
}

fn create(directory: &Path, path: &Path, passphrase: &Passphrase) -> Result<PrivateKeySigner, IdentityError> {
    make_private_directory(directory)?;
    // Written under another name first: a crash leaves no half a keystore behind.
    let unfinished = format!("{KEYSTORE_FILE}.new");
    let from = directory.join(&unfinished);
    write_private(&from, b"")?;
    let (key, _) = PrivateKeySigner::new_keystore(directory, &mut OsRng, &passphrase.0, Some(&unfinished))
        .map_err(|source| IdentityError::Keystore { path: path.to_owned(), source })?;
    let finish = || -> io::Result<()> {
        File::open(&from)?.sync_all()?;
        fs::rename(&from, path)
    };
    finish().map_err(|source| IdentityError::File { path: path.to_owned(), source })?;
    Ok(key)
}

/// Makes a directory that only its owner can enter.
pub fn make_private_directory(directory: &Path) -> Result<(), IdentityError> {
    let make = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        #[cfg(unix)]
        fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        Ok(())
    };
    make().map_err(|source| IdentityError::File { path: directory.to_owned(), source })
}

/// Writes a file (mode 0600) whole or not at all.
pub fn write_private(path: &Path, contents: &[u8]) -> Result<(), IdentityError> {
    let wrap = |source| IdentityError::File { path: path.to_owned(), source };
    let mut unfinished = path.file_name().unwrap_or(OsStr::new("file")).to_owned();
    unfinished.push(".part");
    let unfinished = path.with_file_name(unfinished);
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&unfinished)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().map_err(wrap)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_key_opens_with_its_passphrase_only_and_quickly() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("node");
        let right = Passphrase::new("right");
        let key = open_or_create(&state, &right).unwrap();
        let start = Instant::now();
        assert_eq!(open_or_create(&state, &right).unwrap().address(), key.address());
        assert!(start.elapsed() < Duration::from_millis(300), "opening took {:?}", start.elapsed());
        let error = open_or_create(&state, &Passphrase::new("wrong")).unwrap_err();
        assert!(error.to_string().contains("check the passphrase"), "{error}");
        let text = fs::read_to_string(state.join(KEYSTORE_FILE)).unwrap();
        assert!(!text.contains(&hex::encode(key.to_bytes())), "the key is not in the file in the clear");
    }

    #[cfg(unix)]
    #[test]
    fn key_and_passphrase_are_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;

        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("node");
        make_private_directory(&state).unwrap();
        let file = state.join("passphrase");
        let passphrase = Passphrase::from_file_or_random(&file).unwrap();
        open_or_create(&state, &passphrase).unwrap();
        assert_eq!(Passphrase::from_file_or_random(&file).unwrap().0, passphrase.0, "made once, then read");
        assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in fs::read_dir(&state).unwrap().flatten() {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
        }
    }

    #[test]
    fn damaged_keystores_and_missing_passphrases_are_plain_errors() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(KEYSTORE_FILE), "{\"crypto\":").unwrap();
        assert!(open_or_create(directory.path(), &Passphrase::new("x")).is_err());
        assert!(Passphrase::from_file(&directory.path().join("none")).is_err());
        let empty = directory.path().join("empty");
        fs::write(&empty, "\n").unwrap();
        assert!(matches!(Passphrase::from_file(&empty), Err(IdentityError::EmptyPassphrase(_))));
    }
}
