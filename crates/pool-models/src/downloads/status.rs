//! What the list shows.

use std::{fmt, path::PathBuf, time::Duration};

use alloy_primitives::B256;
use pool_types::ByteSize;

use crate::{
    cache::{Budget, Checking, DiskUse},
    plan::Wanted,
};

/// A download in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DownloadId(pub u64);

/// Where a download stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownloadState {
    /// It looks at what is there already.
    Preparing,
    /// Others go first.
    Queued,
    /// Bytes are coming.
    Downloading,
    /// It waits for a host or for space and goes on by itself; the message says for what.
    Waiting,
    /// The owner paused it.
    Paused,
    /// Everything is there; whole files are being hashed.
    Verifying,
    /// Everything is there, and right.
    Done,
    /// It cannot go on without the owner; the message says why.
    Failed,
}

/// What the list shows of a download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadStatus {
    /// Which.
    pub id: DownloadId,
    /// The model's name.
    pub name: String,
    /// The hash of its manifest.
    pub manifest: B256,
    /// Which part of the model.
    pub wanted: Wanted,
    /// The path to open the model by once it is there.
    pub path: PathBuf,
    /// Where it stands.
    pub state: DownloadState,
    /// Higher goes first.
    pub priority: i32,
    /// Bytes that are there. Those of pieces in flight count, and are lost where a connection ends.
    pub done: ByteSize,
    /// Bytes wanted.
    pub total: ByteSize,
    /// Bytes a second, smoothed.
    pub speed: ByteSize,
    /// How long it will take at that speed.
    pub left: Option<Duration>,
    /// Whether every byte is checked against hashes that do not come from the host. If not, the interface must say
    /// that the model is unverified.
    pub hashed: bool,
    /// One sentence where something is the matter.
    pub message: Option<String>,
}

impl DownloadStatus {
    /// Whether it will not go on by itself.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, DownloadState::Done | DownloadState::Failed)
    }
}

impl fmt::Display for DownloadStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} of {}", self.name, self.done, self.total)?;
        match self.state {
            DownloadState::Downloading => {
                if self.speed.0 > 0 {
                    write!(f, ", {}/s", self.speed)?;
                }
                match self.left.map(|left| left.as_secs()) {
                    Some(seconds @ 0..60) => write!(f, ", {seconds} s left"),
                    Some(seconds @ 60..3600) => write!(f, ", {} min left", seconds.div_ceil(60)),
                    Some(seconds) => write!(f, ", {} h {} min left", seconds / 3600, seconds % 3600 / 60),
                    None => Ok(()),
                }?;
            }
            state => write!(f, ", {}", format!("{state:?}").to_lowercase())?,
        }
        if !self.hashed {
            f.write_str(", not verified by a manifest")?;
        }
        self.message.as_ref().map_or(Ok(()), |message| write!(f, ": {message}"))
    }
}

/// All that the interface shows of downloads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DownloadsOverview {
    /// Every download, in the order in which they get connections.
    pub downloads: Vec<DownloadStatus>,
    /// Downloads that an earlier process was to make and that cannot go on.
    pub stranded: Vec<StrandedDownload>,
    /// All are paused together.
    pub all_paused: bool,
    /// Models that are being verified.
    pub checking: Vec<Checking>,
    /// The disk.
    pub disk: DiskTotals,
    /// Whether the list outlasts this process.
    pub queue: QueueHealth,
}

/// What models take of the disk, and what they may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskTotals {
    /// What was measured last, at most some seconds ago while bytes come.
    pub measured: DiskUse,
    /// Bytes that have been promised to downloads under way and have not come yet.
    pub promised: ByteSize,
    /// How much models may take.
    pub budget: Budget,
}

/// A download of an earlier process that cannot go on. It stays in the queue, and is tried again now and
/// then; adding the same part again mends it at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrandedDownload {
    /// The hash of its manifest.
    pub manifest: B256,
    /// Which part of the model.
    pub wanted: Wanted,
    /// Why it cannot go on, as one sentence.
    pub reason: String,
}

/// Whether what is to be downloaded is kept for the next process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueHealth {
    /// A queue of an earlier process that could not be read.
    pub set_aside: Option<SetAside>,
    /// One sentence where the queue is not being kept at the moment.
    pub problem: Option<String>,
}

/// A broken queue, kept under another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}
