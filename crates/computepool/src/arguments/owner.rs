//! What an owner may ask of a node.

use std::path::PathBuf;

use alloy_primitives::B256;
use clap::Args;

#[derive(Clone, Debug, Args)]
pub(crate) struct OwnerStateArguments {
    /// The state folder of `node --policy`
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct OwnerPauseArguments {
    /// The state folder of `node --policy`
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// For so many minutes [default: until you resume]
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u32).range(1..=10080))]
    pub(crate) minutes: Option<u32>,
    /// Until tomorrow, 8:00
    #[arg(long, conflicts_with = "minutes")]
    pub(crate) until_tomorrow: bool,
    /// Let what runs come to its end, then pause until you resume
    #[arg(long, conflicts_with_all = ["minutes", "until_tomorrow"])]
    pub(crate) finish: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct OwnerResumeArguments {
    /// The state folder of `node --policy`
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// Share now, even while you use the machine, until you pause or resume
    #[arg(long)]
    pub(crate) now: bool,
    /// With --now: for so many minutes
    #[arg(long, value_name = "MINUTES", requires = "now", value_parser = clap::value_parser!(u32).range(1..=10080))]
    pub(crate) minutes: Option<u32>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct OwnerLogArguments {
    /// The state folder of `node --policy`
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// Only so many of the newest decisions
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) last: u32,
    /// One JSON object per decision, with the signals that caused it
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct OwnerEarningsArguments {
    /// The state folder of `node --policy`
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// Only so many of the newest shifts
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) last: u32,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct OwnerDiagnosticsArguments {
    /// The state folder of `node --policy`
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// Where to write it; never over a file that is there
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct OwnerDownloadsArguments {
    /// The state folder of `node --policy`
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    #[command(flatten)]
    pub(crate) change: DownloadChange,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to change before the list is shown.
#[derive(Clone, Debug, Args)]
#[group(multiple = false)]
pub(crate) struct DownloadChange {
    /// Let this download wait until it is resumed
    #[arg(long, value_name = "ID")]
    pub(crate) pause: Option<u64>,
    /// Let this download go on; one that failed tries again
    #[arg(long, value_name = "ID")]
    pub(crate) resume: Option<u64>,
    /// Put this download before all others
    #[arg(long, value_name = "ID")]
    pub(crate) first: Option<u64>,
    /// Take this download out of the list; what is here stays until the space is needed
    #[arg(long, value_name = "ID")]
    pub(crate) cancel: Option<u64>,
    /// Read everything of this model again; what is broken is fetched again
    #[arg(long, value_name = "MODEL")]
    pub(crate) verify: Option<B256>,
    /// Delete this model from the disk
    #[arg(long, value_name = "MODEL")]
    pub(crate) remove: Option<B256>,
}
