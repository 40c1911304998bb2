//! One runner for one file: a lock that the system takes back the moment its process ends, however it ends.
//!
//! The lock keeps a second process from driving. Should it fail, by a file system without locks or a deleted file,
//! the generation in the database does: every runner takes a new one, and only the newest may write as a runner.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::Path,
};

use crate::JournalError;

/// Held while a runner drives. Dropping it lets another one begin.
#[derive(Debug)]
pub(crate) struct RunnerLock {
    _file: File,
}

impl RunnerLock {
    /// Takes the lock, or gives `None` if another runner has it.
    pub(crate) fn take(path: &Path) -> Result<Option<RunnerLock>, JournalError> {
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).map_err(JournalError::Lock)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(RunnerLock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(JournalError::Lock(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_one_and_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db.runner-lock");
        let first = RunnerLock::take(&path).unwrap();
        assert!(first.is_some());
        assert!(RunnerLock::take(&path).unwrap().is_none(), "a second runner finds it taken");
        drop(first);
        assert!(RunnerLock::take(&path).unwrap().is_some(), "and gets it when the first has ended");
    }
}
