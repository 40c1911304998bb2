//! What processes that died left behind.

use std::{fs, path::Path};

use super::{
    Cache, CacheError, MODELS, PARTIAL, UNHASHED,
    error::failed,
    files::{is_left_over, list, lock_file, remove_if_there},
};

/// The ending of a model's folder on its way out.
pub(super) const REMOVED: &str = "removed";

impl Cache {
    /// Removes files that nobody will finish: texts that were never put in their place, folders that were being
    /// removed, records without a part. Leaves it to the next time where another process has the cache.
    pub(super) fn tidy(&self) -> Result<(), CacheError> {
        let Some(_guard) = self.try_guard(true)? else { return Ok(()) };
        for model in list(&self.root.join(MODELS))?.into_iter().filter(|path| path.is_dir()) {
            for path in list(&model)?.iter().filter(|path| is_left_over(path)) {
                remove_if_there(path)?;
            }
        }
        for path in list(&self.root.join(PARTIAL))? {
            if path.extension().is_some_and(|extension| extension == REMOVED) {
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            } else if is_left_over(&path) || is_lone_record(&path) {
                remove_unless_written(&path)?;
            }
        }
        for model in list(&self.root.join(UNHASHED))?.into_iter().filter(|path| path.is_dir()) {
            for path in list(&model)?.iter().filter(|path| is_left_over(path)) {
                remove_unless_written(path)?;
            }
        }
        Ok(())
    }

    /// Removes what dead processes left beside the queue. The caller holds the queue.
    #[cfg(feature = "downloads")]
    pub(crate) fn tidy_queue(&self) -> Result<(), CacheError> {
        let entries = list(&self.root)?;
        entries.iter().filter(|path| is_left_over(path)).try_for_each(|path| remove_if_there(path))
    }
}

fn is_lone_record(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "done") && !path.with_extension("part").exists()
}

/// Removes a file beside a part, for which the part is locked as its writer would.
fn remove_unless_written(path: &Path) -> Result<(), CacheError> {
    let part = path.with_extension("part");
    let was_there = part.exists();
    let file = lock_file(&part)?;
    if file.try_lock().is_err() {
        return Ok(());
    }
    remove_if_there(path)?;
    if was_there { Ok(()) } else { remove_if_there(&part) }
}
