//! Room for models on the disk, looked at now and then while something is to be fetched.

use std::{sync::Arc, time::Duration};

use pool_models::{DownloadState, Downloads, DownloadsOverview, SystemSpace};
use pool_policy::Disk;
use pool_types::{ByteSize, Reading};
use tokio::{sync::watch, task::spawn_blocking};

/// How often, on the node's clock.
const EVERY: Duration = Duration::from_secs(5);

/// What models keep, and what is free.
type Room = Reading<(ByteSize, ByteSize)>;

/// The disk below a node's downloads.
pub(super) struct DiskWatch {
    downloads: Downloads,
    room: watch::Receiver<Room>,
    tell: Arc<watch::Sender<Room>>,
    looked: Option<Duration>,
}

impl DiskWatch {
    pub(super) fn new(downloads: Downloads) -> Self {
        let (tell, room) = watch::channel(Reading::unavailable("it has not been measured yet"));
        Self { downloads, room, tell: Arc::new(tell), looked: None }
    }

    /// What is known; a new look is taken in the background when it is time for one.
    pub(super) fn read(&mut self, now: Duration) -> Reading<Disk> {
        let wanted = wanted(&self.downloads.watch().borrow());
        // With nothing to fetch the disk may be as full as it likes, and need not be looked at.
        let is_due = self.looked.is_none_or(|at| now.saturating_sub(at) >= EVERY);
        if is_due && wanted > ByteSize(0) {
            // What was true long ago decides nothing.
            if self.looked.is_some_and(|at| now.saturating_sub(at) >= 3 * EVERY) {
                self.tell.send_replace(Reading::unavailable("it is being measured"));
            }
            self.looked = Some(now);
            let (cache, tell) = (self.downloads.cache().clone(), self.tell.clone());
            spawn_blocking(move || {
                let room = match cache.disk_use_kept(&SystemSpace) {
                    Ok(kept) => match kept.free {
                        Some(free) => Reading::Known((kept.used, free)),
                        None => Reading::unavailable("this system does not say what is free"),
                    },
                    Err(error) => Reading::unavailable(error.to_string()),
                };
                tell.send_replace(room);
            });
        }
        self.room.borrow().clone().map(|(models, free)| Disk { models, free, wanted })
    }
}

/// What the download that is due still misses.
fn wanted(overview: &DownloadsOverview) -> ByteSize {
    let due = overview.downloads.iter().find(|download| match download.state {
        DownloadState::Done | DownloadState::Failed => false,
        // Paused together, it is due all the same.
        DownloadState::Paused => overview.all_paused,
        _ => true,
    });
    due.map_or(ByteSize(0), |download| ByteSize(download.total.0.saturating_sub(download.done.0)))
}
