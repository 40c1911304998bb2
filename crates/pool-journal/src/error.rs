//! What can go wrong with the journal itself.

use thiserror::Error;

/// The journal could not read or write. Nothing was half done.
#[derive(Debug, Error)]
pub enum JournalError {
    /// SQLite refused.
    #[error("the journal's database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The journal's tables could not be brought up to date; a newer version of ComputePool may have written them.
    #[error("the journal cannot be brought to this version's form: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A row holds what this version cannot read.
    #[error("the journal holds a {what} that this version cannot read")]
    Row {
        /// Which kind of row.
        what: &'static str,
    },
    /// The newest row of the log does not carry the hash of its content.
    #[error("row {sequence} of the journal's log was changed after it was written; nothing is run on such a journal")]
    Tampered {
        /// The row.
        sequence: u64,
    },
    /// Another runner took over; this one must not write any more.
    #[error("another process drives this journal now")]
    TakenOver,
    /// The lock file beside the database cannot be used.
    #[error("the journal's lock file cannot be used: {0}")]
    Lock(std::io::Error),
}
