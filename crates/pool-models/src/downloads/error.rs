//! What can go wrong with a host, each as one sentence that says whether anything must be done.

use std::time::Duration;

use pool_types::ByteSize;
use thiserror::Error;

use crate::{
    cache::{CacheError, NoRoom},
    config::ConfigError,
    gguf::GgufError,
    manifest::ManifestError,
    open::OpenError,
    safetensors::SafetensorsError,
};

/// What a host did. Names the host and the file, never a query, a header or a token.
#[derive(Debug, Error)]
pub enum HostError {
    /// No connection, or it broke before an answer.
    #[error("{host} cannot be reached; the download goes on by itself when it is back")]
    Unreachable {
        /// The host.
        host: String,
        /// What the client said.
        source: reqwest::Error,
    },
    /// It cannot prove that it is the host it is said to be.
    #[error(
        "{host} shows a certificate that does not hold; check the date and time of this computer, or choose another host"
    )]
    Certificate {
        /// The host.
        host: String,
        /// What the client said.
        source: reqwest::Error,
    },
    /// Nothing came for too long.
    #[error("{host} has sent nothing worth mentioning for {} seconds; the download goes on by itself with a new connection", after.as_secs())]
    Stalled {
        /// The host.
        host: String,
        /// How long.
        after: Duration,
    },
    /// The connection ended in the middle of an answer.
    #[error("{host} ended the connection in the middle of {path}; the download goes on by itself where it ended")]
    Cut {
        /// The host.
        host: String,
        /// The file.
        path: String,
    },
    /// It asks for a pause.
    #[error("{host} is busy (status {status}) and wants us to wait {}; the download goes on by itself", said(*after))]
    Busy {
        /// The host.
        host: String,
        /// The answer's status.
        status: u16,
        /// How long it asks us to wait, where it does.
        after: Option<Duration>,
    },
    /// It is broken at the moment.
    #[error("{host} has a fault (status {status}); the download goes on by itself when it is mended")]
    Fault {
        /// The host.
        host: String,
        /// The answer's status.
        status: u16,
    },
    /// There is no such file.
    #[error("{host} has no file {path}; check the model's name and revision, or choose another host")]
    NotFound {
        /// The host.
        host: String,
        /// The file.
        path: String,
    },
    /// It wants to know who asks.
    #[error(
        "{host} does not give {path} to us (status {status}); accept the model's licence there and set an access token"
    )]
    Forbidden {
        /// The host.
        host: String,
        /// The file.
        path: String,
        /// The answer's status.
        status: u16,
    },
    /// An answer that fits no request of ours.
    #[error("{host} answers with status {status}, which is no way to send {path}; choose another host")]
    Status {
        /// The host.
        host: String,
        /// The file.
        path: String,
        /// The answer's status.
        status: u16,
    },
    /// It sends us round and round.
    #[error("{host} redirects too often on the way to {path}; choose another host")]
    Redirects {
        /// The host.
        host: String,
        /// The file.
        path: String,
    },
    /// It sends us somewhere we do not go.
    #[error("{host} redirects {path} to a place that is not a secure web address; choose another host")]
    Location {
        /// The host.
        host: String,
        /// The file.
        path: String,
    },
    /// The part it sends is not the part that was asked for.
    #[error("{host} sends another part of {path} than was asked for ({said}); choose another host")]
    Range {
        /// The host.
        host: String,
        /// The file.
        path: String,
        /// What it said.
        said: String,
    },
    /// The file has another length than it should.
    #[error(
        "{path} on {host} is {found} bytes long where {expected} are right; it is another version, choose another host"
    )]
    Length {
        /// The host.
        host: String,
        /// The file.
        path: String,
        /// The length it should have.
        expected: u64,
        /// The length it has.
        found: u64,
    },
    /// The file is no longer the one that the download began with.
    #[error(
        "the file {path} on {host} has changed since the download began; start the download anew, or choose another host"
    )]
    Changed {
        /// The host.
        host: String,
        /// The file.
        path: String,
    },
    /// Bytes whose hash is wrong.
    #[error(
        "{host} sends wrong bytes for `{name}`; they were thrown away, choose another host or ask the pool's owner for a new manifest"
    )]
    WrongBytes {
        /// The host.
        host: String,
        /// The tensor or file.
        name: String,
    },
    /// A header or small file beyond any bound.
    #[error("{path} on {host} is larger than the {most} that such a file may have; choose another model")]
    TooLarge {
        /// The host.
        host: String,
        /// The file.
        path: String,
        /// The most that is read.
        most: ByteSize,
    },
}

fn said(after: Option<Duration>) -> String {
    match after.map(|after| after.as_secs()) {
        None => "a while".to_owned(),
        Some(1) => "a second".to_owned(),
        Some(seconds) => format!("{seconds} seconds"),
    }
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Ask this host again after a while, or after the time it named.
    Later(Option<Duration>),
    /// Ask this host for this file no more.
    NeverThisFile,
    /// Ask another host for this piece, and this one only if there is none.
    AnotherForThisPiece,
}

impl HostError {
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Unreachable { .. } | Self::Stalled { .. } | Self::Cut { .. } | Self::Fault { .. } => {
                Verdict::Later(None)
            }
            Self::Busy { after, .. } => Verdict::Later(*after),
            Self::WrongBytes { .. } => Verdict::AnotherForThisPiece,
            Self::Certificate { .. }
            | Self::NotFound { .. }
            | Self::Forbidden { .. }
            | Self::Status { .. }
            | Self::Redirects { .. }
            | Self::Location { .. }
            | Self::Range { .. }
            | Self::Length { .. }
            | Self::Changed { .. }
            | Self::TooLarge { .. } => Verdict::NeverThisFile,
        }
    }
}

/// Why a download cannot be begun or has ended.
#[derive(Debug, Error)]
pub enum DownloadError {
    /// An address that is not a host's.
    #[error("`{0}` is not the address of a host; write it like https://huggingface.co/owner/model/resolve/main")]
    Address(String),
    /// A text that is no token.
    #[error(
        "the access token is not one: it is a single word of letters, digits and signs; copy it again from the host"
    )]
    Token,
    /// Nobody to ask.
    #[error("no host is named that has the model; name at least one")]
    NoMirror,
    /// More downloads than anybody has.
    #[error("{0} downloads are in the list already; remove some that have ended")]
    TooMany(usize),
    /// No download of that number.
    #[error("there is no such download; it has been removed from the list")]
    Unknown,
    /// It has ended, so there is nothing to pause.
    #[error("the download has ended already; there is nothing to pause")]
    Ended,
    /// The manifest is not the pool's owner's.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The program is ending.
    #[error("downloads have been stopped; start the program again")]
    Stopped,
    /// It was taken out of the list.
    #[error("the download was cancelled")]
    Cancelled,
    /// The client could not be made.
    #[error("secure connections cannot be set up: {0}")]
    Client(#[source] reqwest::Error),
    /// A host failed for good.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// There is no room.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The files that were put together are not the ones that were published.
    #[error(
        "{path} does not have the hash that was published for it; its parts were thrown away, start the download anew or choose another host"
    )]
    WrongFile {
        /// The file.
        path: String,
    },
    /// What a host's headers describe cannot be used.
    #[error("the model on {host} cannot be used: {source}")]
    Unusable {
        /// The host.
        host: String,
        /// What is wrong with it.
        source: Box<Unusable>,
    },
    /// Part of the program broke off.
    #[error("the download broke off because of a fault in this program; resume it")]
    Broken,
}

/// What is wrong with a model that a host has.
#[derive(Debug, Error)]
pub enum Unusable {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its GGUF header.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A safetensors header.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// Its index or its parts.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// All of it together.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// One of its JSON files.
    #[error("{path} is not valid JSON: {source}")]
    Json {
        /// The file.
        path: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}
