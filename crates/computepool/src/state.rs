//! The state folder of `up`: its lock, the keys and the roster.
//!
//! ```text
//! lock            held while `up` runs; holds what `down` needs to know
//! passphrase      random, opens the keystores below
//! roster.json     who may link with whom
//! gateway/        keystore of the gateway
//! sentinel/       keystore of the sentinel, where requests are paid
//! devnet.json     the local chain, where one was started
//! chain.json      where that chain, or another, is reached
//! node-1/ ...     keystore and log of each node
//! state.db        the orchestrator's database
//! log.jsonl       the log
//! ```

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context, Result, bail};
use pool_coalition::{Roster, RosterMember, RosterRole};
use pool_node::identity::{Passphrase, make_private_directory, open_or_create, write_private};
use serde::{Deserialize, Serialize};

/// A lock that is held for longer than this is held by a process that works with the folder.
const ASKED: Duration = Duration::from_millis(500);

/// A locked state folder. The lock ends with the process, however it ends.
pub(crate) struct StateFolder {
    path: PathBuf,
    lock: File,
}

/// Which process holds the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) process: u32,
    /// When that process started, in the kernel's ticks: a number used again belongs to another process.
    pub(crate) started: Option<u64>,
    /// Where its endpoint listens, once known.
    pub(crate) api: Option<String>,
}

/// Keys and roster of a cluster on this machine.
pub(crate) struct Keys {
    pub(crate) roster: Roster,
    pub(crate) gateway: PrivateKeySigner,
    /// Each node's own folder.
    pub(crate) nodes: Vec<PathBuf>,
}

impl Holder {
    pub(crate) fn this_process(api: Option<String>) -> Self {
        let process = std::process::id();
        Self { process, started: start_of(process), api }
    }

    /// Whether the process that wrote this still runs.
    pub(crate) fn runs(&self) -> bool {
        let now = start_of(self.process);
        now.is_some() && now == self.started
    }
}

/// When a process started, from `/proc`; `None` when it does not run.
pub(crate) fn start_of(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field, the program's name in brackets, may hold anything; what follows is plain.
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl StateFolder {
    /// Makes the folder where needed and takes its lock.
    pub(crate) fn lock(path: &Path) -> Result<Self> {
        make_private_directory(path)?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut lock = open_lock(&path)?;
        let began = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                // Perhaps somebody only asks who holds it, which takes a moment.
                Err(TryLockError::WouldBlock) if began.elapsed() < ASKED => thread::sleep(ASKED / 50),
                Err(TryLockError::WouldBlock) => {
                    let process = read_holder(&mut lock).map(|holder| format!(" (process {})", holder.process));
                    bail!(
                        "{} is in use by another computepool{}; stop that one first, or choose another --state",
                        path.display(),
                        process.unwrap_or_default()
                    );
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
        let mut folder = Self { path, lock };
        folder.write_holder(None)?;
        Ok(folder)
    }

    /// The process that holds the lock of this folder, if any does.
    pub(crate) fn holder(path: &Path) -> Result<Option<Holder>> {
        if !path.join("lock").exists() {
            return Ok(None);
        }
        let mut lock = open_lock(path)?;
        // Shared: two who ask at once do not take each other for the holder.
        match lock.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => match read_holder(&mut lock) {
                Some(holder) => Ok(Some(holder)),
                None => bail!("{} is in use, but does not say by which process", path.display()),
            },
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Says which address is served.
    pub(crate) fn write_holder(&mut self, api: Option<String>) -> Result<()> {
        let text = serde_json::to_string(&Holder::this_process(api))?;
        let mut write = || {
            self.lock.set_len(0)?;
            self.lock.rewind()?;
            self.lock.write_all(text.as_bytes())
        };
        write().with_context(|| format!("cannot write {}", self.path.join("lock").display()))
    }

    /// The gateway's key.
    pub(crate) fn gateway(&self) -> Result<PrivateKeySigner> {
        self.key("gateway")
    }

    /// The key that may stop streams which run short, and nothing else.
    pub(crate) fn sentinel(&self) -> Result<PrivateKeySigner> {
        self.key("sentinel")
    }

    fn key(&self, name: &str) -> Result<PrivateKeySigner> {
        let passphrase = Passphrase::from_file_or_random(&self.passphrase())?;
        Ok(open_or_create(&self.path.join(name), &passphrase)?)
    }

    /// Keys and roster for `nodes` nodes: those that are here when they fit together, else new ones.
    pub(crate) fn keys(&self, nodes: u32) -> Result<Keys> {
        let passphrase = Passphrase::from_file_or_random(&self.passphrase())?;
        let gateway = self.gateway()?;
        let folders: Vec<PathBuf> = (1..=nodes).map(|n| self.path.join(format!("node-{n}"))).collect();
        let mut members =
            vec![RosterMember { address: gateway.address(), name: "gateway".to_owned(), role: RosterRole::Gateway }];
        for (folder, number) in folders.iter().zip(1..) {
            let address = open_or_create(folder, &passphrase)?.address();
            members.push(RosterMember { address, name: format!("node-{number}"), role: RosterRole::Node });
        }
        let file = self.roster();
        if let Ok(json) = fs::read(&file)
            && let Ok(roster) = Roster::from_json(&json)
            && roster.gateway == gateway.address()
            && roster.members == members
        {
            return Ok(Keys { roster, gateway, nodes: folders });
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let roster = Roster::new(gateway.address(), members, now.as_secs())?;
        write_private(&file, roster.to_json().as_bytes())?;
        Ok(Keys { roster, gateway, nodes: folders })
    }

    pub(crate) fn passphrase(&self) -> PathBuf {
        self.path.join("passphrase")
    }

    pub(crate) fn roster(&self) -> PathBuf {
        self.path.join("roster.json")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path.join("state.db")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log.jsonl")
    }
}

fn open_lock(path: &Path) -> Result<File> {
    let file = path.join("lock");
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(&file).with_context(|| format!("cannot open {}", file.display()))
}

fn read_holder(lock: &mut File) -> Option<Holder> {
    let mut text = String::new();
    lock.rewind().ok()?;
    lock.take(4096).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Reads a roster file.
pub(crate) fn read_roster(file: &Path) -> Result<Roster> {
    let json = fs::read(file).with_context(|| format!("cannot read the roster {}", file.display()))?;
    Roster::from_json(&json).with_context(|| format!("{} is not usable", file.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn keys_and_roster_are_used_again_and_made_anew_only_where_they_must() {
        let directory = tempfile::tempdir().unwrap();
        let folder = StateFolder::lock(&directory.path().join("state")).unwrap();
        let first = folder.keys(2).unwrap();
        let again = folder.keys(2).unwrap();
        assert_eq!(first.roster, again.roster, "a restart is the same coalition");
        let three = folder.keys(3).unwrap();
        assert_eq!(three.roster.members[..3], first.roster.members[..], "old members keep their keys");
        assert_ne!(three.roster.coalition_id(), first.roster.coalition_id());
        fs::write(folder.roster(), "{").unwrap();
        assert_eq!(folder.keys(3).unwrap().roster.members, three.roster.members, "a broken roster is written again");
    }

    #[test]
    fn a_folder_is_used_by_one_process_at_a_time_and_says_by_which() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(StateFolder::holder(directory.path()).unwrap(), None, "nothing runs in an empty folder");
        let mut folder = StateFolder::lock(directory.path()).unwrap();
        folder.write_holder(Some("127.0.0.1:8080".to_owned())).unwrap();
        let error = StateFolder::lock(directory.path()).err().expect("it is taken").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        let holder = StateFolder::holder(directory.path()).unwrap().expect("somebody holds it");
        assert!(holder.runs());
        assert_eq!(holder.api.as_deref(), Some("127.0.0.1:8080"));
        let impostor = Holder { started: holder.started.map(|at| at + 1), ..holder };
        assert!(!impostor.runs(), "the same number at another time is another process");
        drop(folder);
        assert_eq!(StateFolder::holder(directory.path()).unwrap(), None);
    }

    #[test]
    fn whoever_asks_who_holds_a_folder_keeps_nobody_from_starting_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        drop(StateFolder::lock(path).unwrap());
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let ask = || {
                while !over.load(Ordering::Relaxed) {
                    // At a start the lock is held before its holder is written.
                    let _ = StateFolder::holder(path);
                }
            };
            scope.spawn(ask);
            scope.spawn(ask);
            let starts = (0..300).map(|_| StateFolder::lock(path).err()).find_map(|error| error);
            over.store(true, Ordering::Relaxed);
            assert!(starts.is_none(), "{starts:?}");
        });
    }
}
