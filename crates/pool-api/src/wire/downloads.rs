//! Models on their way and on the disk, in the words of the interface. Sizes are bytes.

use std::time::UNIX_EPOCH;

use alloy_primitives::B256;
use pool_models::{CachedModel, Checking, DownloadState, DownloadStatus, DownloadsOverview, ModelCheck};
use pool_types::ByteSize;
use serde::{Deserialize, Serialize};
use ts_rs::TS;

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
pub enum DownloadStage {
    /// What is there is looked at.
    Preparing,
    /// Others go first.
    Queued,
    /// Bytes come.
    Downloading,
    /// It goes on by itself; the message says when.
    Waiting,
    /// Paused.
    Paused,
    /// Everything is here and is hashed.
    Verifying,
    /// Everything is here, and right.
    Done,
    /// It needs the owner; the message says why.
    Failed,
}

/// Layers of a model on their way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct DownloadView {
    /// For commands.
    #[ts(type = "number")]
    pub id: u64,
    /// The model's name.
    pub name: String,
    /// The hash of its manifest: for commands.
    #[ts(type = "string")]
    pub model: B256,
    /// Which layers, as text like `0-15`; absent where none are wanted.
    pub layers: Option<String>,
    /// Higher goes first.
    pub priority: i32,
    /// How far it is.
    pub stage: DownloadStage,
    /// Bytes that are here.
    #[ts(type = "number")]
    pub done: u64,
    /// Bytes in all.
    #[ts(type = "number")]
    pub size: u64,
    /// Bytes a second, smoothed.
    #[ts(type = "number")]
    pub speed: u64,
    /// How long it will take at that speed.
    #[ts(type = "number | null")]
    pub seconds_left: Option<u64>,
    /// Whether every byte is checked against hashes that do not come from the host.
    pub verified: bool,
    /// One sentence where something is the matter.
    pub message: Option<String>,
    /// All of it in one line.
    pub line: String,
}

impl From<&DownloadStatus> for DownloadView {
    fn from(status: &DownloadStatus) -> Self {
        Self {
            id: status.id.0,
            name: status.name.clone(),
            model: status.manifest,
            layers: status.wanted.layers.map(|layers| layers.to_string()),
            priority: status.priority,
            stage: match status.state {
                DownloadState::Preparing => DownloadStage::Preparing,
                DownloadState::Queued => DownloadStage::Queued,
                DownloadState::Downloading => DownloadStage::Downloading,
                DownloadState::Waiting => DownloadStage::Waiting,
                DownloadState::Paused => DownloadStage::Paused,
                DownloadState::Verifying => DownloadStage::Verifying,
                DownloadState::Done => DownloadStage::Done,
                DownloadState::Failed => DownloadStage::Failed,
            },
            done: status.done.0,
            size: status.total.0,
            speed: status.speed.0,
            seconds_left: status.left.map(|left| left.as_secs()),
            verified: status.hashed,
            message: status.message.clone(),
            line: status.to_string(),
        }
    }
}

/// A model that is read again, to see whether it is right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct CheckingView {
    /// The hash of its manifest.
    #[ts(type = "string")]
    pub model: B256,
    /// Its name.
    pub name: String,
    /// Bytes that are right so far.
    #[ts(type = "number")]
    pub done: u64,
    /// Bytes that are here.
    #[ts(type = "number")]
    pub size: u64,
    /// All of it in one line.
    pub line: String,
}

impl From<&Checking> for CheckingView {
    fn from(Checking { manifest, name, done, total }: &Checking) -> Self {
        let line = format!("checking {name}: {done} of {total}");
        Self { model: *manifest, name: name.clone(), done: done.0, size: total.0, line }
    }
}

/// A download of an earlier run that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct StrandedView {
    /// The hash of its model's manifest.
    #[ts(type = "string")]
    pub model: B256,
    /// Why, in one sentence.
    pub reason: String,
}

/// What models take of the disk, and what they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct DiskView {
    /// What they take.
    #[ts(type = "number")]
    pub used: u64,
    /// What has been promised to downloads under way, and has not come yet.
    #[ts(type = "number")]
    pub promised: u64,
    /// How much they may take; absent for no bound.
    #[ts(type = "number | null")]
    pub budget: Option<u64>,
    /// What is free; absent where the system does not say.
    #[ts(type = "number | null")]
    pub free: Option<u64>,
    /// What they leave free whatever the budget.
    #[ts(type = "number")]
    pub keep_free: u64,
}

/// All downloads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct DownloadsView {
    /// In the order in which they get connections.
    pub downloads: Vec<DownloadView>,
    /// Those of an earlier run that cannot go on.
    pub stranded: Vec<StrandedView>,
    /// All wait together: the policy says so, and the state why.
    pub all_paused: bool,
    /// Models that are being verified.
    pub checking: Vec<CheckingView>,
    /// What a command has found, in one sentence; absent but in a command's answer.
    pub found: Option<String>,
    /// The disk.
    pub disk: DiskView,
    /// One sentence where the list of downloads could not be read or is not kept.
    pub problem: Option<String>,
}

impl From<&DownloadsOverview> for DownloadsView {
    fn from(overview: &DownloadsOverview) -> Self {
        let stranded = overview.stranded.iter();
        let aside = overview.queue.set_aside.as_ref();
        let aside = aside.map(|aside| {
            format!(
                "The list of downloads could not be read ({}); it was kept as {}.",
                aside.reason,
                aside.path.display()
            )
        });
        let disk = &overview.disk;
        Self {
            downloads: overview.downloads.iter().map(DownloadView::from).collect(),
            stranded: stranded
                .map(|stranded| StrandedView { model: stranded.manifest, reason: stranded.reason.clone() })
                .collect(),
            all_paused: overview.all_paused,
            checking: overview.checking.iter().map(CheckingView::from).collect(),
            found: None,
            disk: DiskView {
                used: disk.measured.used.0,
                promised: disk.promised.0,
                budget: disk.budget.most.map(|most| most.0),
                free: disk.measured.free.map(|free| free.0),
                keep_free: disk.budget.keep_free.0,
            },
            problem: overview.queue.problem.clone().or(aside),
        }
    }
}

/// A model of which something is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct ModelView {
    /// The hash of its manifest: for commands.
    #[ts(type = "string")]
    pub model: B256,
    /// Its name.
    pub name: String,
    /// Bytes of the whole model.
    #[ts(type = "number")]
    pub total: u64,
    /// Bytes of it that are here.
    #[ts(type = "number")]
    pub cached: u64,
    /// The layers that this machine was assigned, as texts like `0-15`.
    pub assigned: Vec<String>,
    /// A shard has it open, or a download fills it.
    pub in_use: bool,
    /// Whether its bytes are checked against hashes that do not come from the host.
    pub verified: bool,
    /// Whose signature over its manifest it came with.
    pub signer: Option<String>,
    /// When it was last used, in Unix seconds.
    #[ts(type = "number")]
    pub used_at: u64,
    /// One sentence where something of it cannot be read.
    pub broken: Option<String>,
}

impl From<&CachedModel> for ModelView {
    fn from(model: &CachedModel) -> Self {
        let assigned = model.assigned.iter().filter_map(|wanted| wanted.layers);
        Self {
            model: model.hash,
            name: model.name.clone(),
            total: model.total.0,
            cached: model.cached.0,
            assigned: assigned.map(|layers| layers.to_string()).collect(),
            in_use: model.in_use,
            verified: model.hashed,
            signer: model.signer.map(|signer| signer.to_string()),
            used_at: model.used.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            broken: model.broken.clone(),
        }
    }
}

/// What the owner wants with a download, or with a model on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum DownloadCommand {
    /// Let it wait until it is resumed.
    Pause {
        /// Which download.
        #[ts(type = "number")]
        id: u64,
    },
    /// Let it go on; one that failed tries again.
    Resume {
        /// Which download.
        #[ts(type = "number")]
        id: u64,
    },
    /// Before all others.
    First {
        /// Which download.
        #[ts(type = "number")]
        id: u64,
    },
    /// Higher goes first.
    Priority {
        /// Which download.
        #[ts(type = "number")]
        id: u64,
        /// At first 0.
        priority: i32,
    },
    /// Take it out of the list; what is here stays until the space is needed.
    Cancel {
        /// Which download.
        #[ts(type = "number")]
        id: u64,
    },
    /// Read everything of a model again; what is broken is fetched again. Answered when it has been read.
    Verify {
        /// The hash of its manifest.
        #[ts(type = "string")]
        model: B256,
    },
    /// Delete it from the disk; refused while a shard has it open.
    Remove {
        /// The hash of its manifest.
        #[ts(type = "string")]
        model: B256,
    },
}

/// What a verification found, in one sentence.
pub(crate) fn found(ModelCheck { verified, fetching }: &ModelCheck) -> String {
    let parts = |count: usize| if count == 1 { "1 part".to_owned() } else { format!("{count} parts") };
    let right = format!("{} in {}", ByteSize(verified.bytes), parts(verified.whole));
    match (verified.broken.len(), fetching.is_empty()) {
        (0, _) => format!("All that is here is right: {right}."),
        (broken, false) => format!("Not right, and fetched again: {}. Right: {right}.", parts(broken)),
        (broken, true) => {
            format!("Not right, and removed until the model is fetched again: {}. Right: {right}.", parts(broken))
        }
    }
}
