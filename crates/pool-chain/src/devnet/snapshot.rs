//! The snapshot of a chain with everything deployed: `contracts/deploy/snapshot.mjs` makes it once for each version of
//! the contracts, in the user's cache.

use std::{
    env, fs,
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

use super::{ANVIL_VARIABLE, DevnetError, REPOSITORY_VARIABLE};

const SCRIPT: &str = "contracts/deploy/snapshot.mjs";
/// What the snapshot is made from.
const SOURCES: [&str; 5] =
    ["contracts/src", "contracts/tools", "contracts/deploy", "contracts/foundry.toml", "package-lock.json"];
/// A deployment compiles and sends some fifty transactions.
const LONGEST: Duration = Duration::from_secs(300);
/// Whoever waits for somebody else's deployment waits for that, and starts its own if that failed.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// The checkout that is meant.
pub(super) fn repository(named: Option<&Path>) -> Result<PathBuf, DevnetError> {
    let variable = env::var_os(REPOSITORY_VARIABLE).map(PathBuf::from);
    if let Some(named) = named.map(Path::to_path_buf).or(variable) {
        return if named.join(SCRIPT).is_file() { Ok(named) } else { Err(DevnetError::NoRepository) };
    }
    let here = env::current_dir()?;
    let found = here.ancestors().find(|folder| folder.join(SCRIPT).is_file());
    found.map(Path::to_path_buf).ok_or(DevnetError::NoRepository)
}

/// The native program itself, not npm's wrapper: it has to get the signals.
pub(super) fn anvil(repository: &Path) -> Result<PathBuf, DevnetError> {
    if let Some(named) = env::var_os(ANVIL_VARIABLE) {
        return Ok(named.into());
    }
    let system = match env::consts::OS {
        "macos" => "darwin",
        "windows" => "win32",
        other => other,
    };
    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let package = format!("anvil-{system}-{architecture}");
    let program = repository.join("node_modules/@foundry-rs").join(package).join("bin/anvil");
    if program.is_file() { Ok(program) } else { Err(DevnetError::NotInstalled) }
}

/// The folder with `state.json` and `addresses.json`; made if it is not there yet. One process makes it, the others
/// wait.
pub(super) async fn ensure(repository: &Path) -> Result<PathBuf, DevnetError> {
    let cache = cache()?;
    fs::create_dir_all(&cache)?;
    let memo = cache.join(format!("made-for-{}", short_hash(repository.as_os_str().as_encoded_bytes())));
    let inputs = fingerprint(repository)?;
    if let Some(folder) = recall(&memo, &inputs) {
        return Ok(folder);
    }
    let _lock = lock(&cache.join("snapshot.lock")).await?;
    if let Some(folder) = recall(&memo, &inputs) {
        return Ok(folder);
    }
    let folder = make(repository).await?;
    fs::write(&memo, format!("{inputs}\n{}\n", folder.display()))?;
    Ok(folder)
}

/// As `contracts/deploy` has it.
fn cache() -> Result<PathBuf, DevnetError> {
    let named = env::var_os("XDG_CACHE_HOME").filter(|name| !name.is_empty()).map(PathBuf::from);
    let home = || env::home_dir().map(|home| home.join(".cache"));
    let base = named.or_else(home).ok_or_else(|| io::Error::other("the user has no cache folder"))?;
    Ok(base.join("computepool").join("contracts"))
}

/// Changes whenever a source's size or time does. Asking node for the snapshot's real key takes most of a second;
/// this says for certain that nothing changed since it was asked.
fn fingerprint(repository: &Path) -> Result<String, DevnetError> {
    let mut hash = Sha256::new();
    let mut waiting: Vec<PathBuf> = SOURCES.iter().map(|source| repository.join(source)).collect();
    while let Some(path) = waiting.pop() {
        let about = fs::metadata(&path)?;
        if about.is_dir() {
            let mut inside: Vec<PathBuf> =
                fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
            inside.sort();
            waiting.extend(inside);
            continue;
        }
        let changed = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update(about.len().to_le_bytes());
        hash.update(changed.as_nanos().to_le_bytes());
    }
    Ok(alloy::primitives::hex::encode(hash.finalize()))
}

fn short_hash(bytes: &[u8]) -> String {
    alloy::primitives::hex::encode(&Sha256::digest(bytes)[..8])
}

/// The folder that was made from these very inputs, if it is still there.
fn recall(memo: &Path, inputs: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(memo).ok()?;
    let (made_from, folder) = text.trim_end().split_once('\n')?;
    let folder = PathBuf::from(folder);
    let complete = ["key", "state.json", "addresses.json"].iter().all(|name| folder.join(name).is_file());
    (made_from == inputs && complete).then_some(folder)
}

async fn lock(path: &Path) -> Result<File, DevnetError> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) if begun.elapsed() > LONGEST_WAIT => {
                return Err(DevnetError::Locked(LONGEST_WAIT));
            }
            Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn make(repository: &Path) -> Result<PathBuf, DevnetError> {
    let mut node = Command::new("node");
    node.arg(SCRIPT).current_dir(repository).stdin(Stdio::null()).kill_on_drop(true);
    let answer = timeout(LONGEST, node.output()).await;
    let answer = answer.map_err(|_| DevnetError::Snapshot(format!("no end after {} s", LONGEST.as_secs())))?;
    let answer = answer.map_err(|source| DevnetError::Program { program: "node".to_owned(), source })?;
    let said = String::from_utf8_lossy(&answer.stdout);
    match said.lines().last().map(PathBuf::from) {
        Some(folder) if answer.status.success() && folder.is_dir() => Ok(folder),
        _ => {
            let trouble = String::from_utf8_lossy(&answer.stderr);
            let first = trouble.lines().next().unwrap_or("no reason given");
            Err(DevnetError::Snapshot(first.chars().take(300).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let empty = tempfile::tempdir().unwrap();
        let nowhere = repository(Some(empty.path())).unwrap_err().to_string();
        assert!(nowhere.contains("needs a checkout"), "{nowhere}");
        let bare = anvil(empty.path()).unwrap_err().to_string();
        assert!(bare.contains("run `npm ci`"), "{bare}");
    }

    #[test]
    fn a_snapshot_is_recalled_only_for_the_sources_it_was_made_from() {
        let folder = tempfile::tempdir().unwrap();
        let memo = folder.path().join("memo");
        fs::write(&memo, format!("abc\n{}\n", folder.path().display())).unwrap();
        assert_eq!(recall(&memo, "abc"), None, "half a snapshot is none");
        for name in ["key", "state.json", "addresses.json"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(recall(&memo, "abc").as_deref(), Some(folder.path()));
        assert_eq!(recall(&memo, "abd"), None);
        assert_eq!(recall(&folder.path().join("missing"), "abc"), None);
    }

    #[test]
    fn a_changed_source_changes_the_fingerprint() {
        let checkout = tempfile::tempdir().unwrap();
        for source in SOURCES {
            let path = checkout.path().join(source);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if !source.contains('.') { fs::create_dir(&path).unwrap() } else { fs::write(&path, "x").unwrap() }
        }
        let before = fingerprint(checkout.path()).unwrap();
        assert_eq!(fingerprint(checkout.path()).unwrap(), before);
        fs::write(checkout.path().join("contracts/src/New.sol"), "contract New {}").unwrap();
        assert_ne!(fingerprint(checkout.path()).unwrap(), before);
    }
}
