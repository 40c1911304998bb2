//! The log: one row for every change of a run, a step or a transaction, chained by hashes.
//!
//! The hash of a row is SHA-256 over the line `computepool journal log 1`, a line feed, and the canonical JSON of the
//! object with the fields `at`, `body`, `kind`, `previous`, `run`, `sequence` and `step`. `previous` is the hash of
//! the row before, in lower-case hexadecimal; that of the first row is 64 zeros. A row is written in the same
//! database transaction as the change it tells of.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{Row, SqliteConnection};

use crate::{JournalError, RunId, Timestamp, canonical::canonical, redaction::redacted};

/// What a row of the log tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogKind {
    /// A runner began to drive the journal.
    RunnerBegan,
    /// A run was started.
    RunStarted,
    /// A run ended well.
    RunCompleted,
    /// A run ended with a step that failed.
    RunFailed,
    /// An attempt of a step began.
    StepBegan,
    /// A step waits for an instant, an event or a transaction.
    StepWaits,
    /// A step that waited goes on.
    StepWoke,
    /// The program ended while a step ran; it will run again.
    StepInterrupted,
    /// A step failed and will be tried again.
    StepWillRetry,
    /// A step succeeded.
    StepCompleted,
    /// A step failed.
    StepFailed,
    /// A condition led elsewhere.
    StepSkipped,
    /// A step before failed.
    StepBlocked,
    /// An event was signalled.
    EventSignalled,
    /// A transaction is wanted.
    TransactionQueued,
    /// A newer one of its lane made it pointless.
    TransactionSuperseded,
    /// Its deadline passed before it was signed.
    TransactionExpired,
    /// A variant was signed and stored; it may be broadcast now.
    TransactionSigned,
    /// A node took a variant for the first time.
    TransactionBroadcast,
    /// A node does not take it, for a reason that may pass.
    TransactionDelayed,
    /// A block holds a variant.
    TransactionIncluded,
    /// It is under enough blocks, and succeeded.
    TransactionConfirmed,
    /// It is under enough blocks, and was reverted.
    TransactionReverted,
    /// The signer or the nodes refuse it.
    TransactionRefused,
    /// It is buried too deep to change.
    TransactionSettled,
    /// The block that held it is gone; the same bytes are broadcast again.
    TransactionVanished,
    /// After a re-organisation its outcome is another than the one that was told.
    TransactionChanged,
    /// Somebody else used the nonce with the same key; it gets another one.
    NonceTaken,
    /// The chain counts more transactions of the signer than the journal; the next nonce follows the chain.
    NonceMoved,
    /// A transfer of nothing fills a nonce that nothing else would use.
    NonceFilled,
}

impl LogKind {
    fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(Value::String(name)) => name,
            _ => String::new(),
        }
    }
}

impl fmt::Display for LogKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// One row of the log, as it is exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    /// Its number, from 1 without gaps.
    pub sequence: u64,
    /// When it was written.
    pub at: Timestamp,
    /// The run it belongs to.
    pub run: Option<String>,
    /// The node of the run.
    pub step: Option<String>,
    /// What it tells.
    pub kind: LogKind,
    /// More about it; without secrets, at most [`LogEntry::MAX_BODY_BYTES`].
    pub body: Value,
    /// The hash of the entry before.
    pub previous: String,
    /// The hash of this entry.
    pub hash: String,
}

const DOMAIN: &str = "computepool journal log 1\n";

/// What the first entry follows.
pub(crate) const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

impl LogEntry {
    /// The longest body, in bytes of its canonical form. A longer one is replaced by its length and its hash.
    pub const MAX_BODY_BYTES: usize = 16 << 10;

    /// The hash that the entry must have, or `None` if its body has no canonical form.
    pub(crate) fn computed_hash(&self) -> Option<String> {
        let LogEntry { sequence, at, run, step, kind, body, previous, hash: _ } = self;
        let content = json!({
            "at": at, "body": body, "kind": kind, "previous": previous, "run": run, "sequence": sequence, "step": step,
        });
        Some(sha256(&[DOMAIN, canonical(&content).ok()?.as_str()]))
    }
}

/// SHA-256 in lower-case hexadecimal.
pub(crate) fn sha256(parts: &[impl AsRef<[u8]>]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The end of the chain: what the next entry follows.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) sequence: u64,
    pub(crate) hash: String,
}

impl Head {
    pub(crate) async fn read(connection: &mut SqliteConnection) -> Result<Head, JournalError> {
        let row = sqlx::query("SELECT sequence, hash FROM journal_log ORDER BY sequence DESC LIMIT 1")
            .fetch_optional(connection)
            .await?;
        Ok(match row {
            None => Head { sequence: 0, hash: BEGINNING.to_owned() },
            Some(row) => Head { sequence: number(&row, "sequence")?, hash: row.try_get("hash")? },
        })
    }
}

/// What an entry is about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    pub(crate) run: Option<String>,
    pub(crate) step: Option<String>,
}

impl Subject {
    pub(crate) fn run(run: RunId) -> Subject {
        Subject { run: Some(run.to_string()), step: None }
    }

    pub(crate) fn step(run: RunId, node: &str) -> Subject {
        Subject { run: Some(run.to_string()), step: Some(node.to_owned()) }
    }
}

/// Writes the entry that follows `head`, and moves `head` on.
pub(crate) async fn append(
    connection: &mut SqliteConnection,
    head: &mut Head,
    at: Timestamp,
    subject: Subject,
    kind: LogKind,
    body: &Value,
) -> Result<(), JournalError> {
    let mut entry = LogEntry {
        sequence: head.sequence + 1,
        at,
        run: subject.run,
        step: subject.step,
        kind,
        body: bounded(&redacted(body))?,
        previous: std::mem::take(&mut head.hash),
        hash: String::new(),
    };
    entry.hash = entry.computed_hash().ok_or(JournalError::Row { what: "log entry" })?;
    let text = canonical(&entry.body).map_err(|_| JournalError::Row { what: "log entry" })?;
    sqlx::query(
        "INSERT INTO journal_log (sequence, at, run, step, kind, body, previous, hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(entry.sequence as i64)
    .bind(entry.at.to_row())
    .bind(&entry.run)
    .bind(&entry.step)
    .bind(entry.kind.name())
    .bind(text)
    .bind(&entry.previous)
    .bind(&entry.hash)
    .execute(connection)
    .await?;
    *head = Head { sequence: entry.sequence, hash: entry.hash };
    Ok(())
}

/// A body that fits; one that does not is told by its length and hash.
fn bounded(body: &Value) -> Result<Value, JournalError> {
    let text = canonical(body).map_err(|_| JournalError::Row { what: "log entry" })?;
    if text.len() <= LogEntry::MAX_BODY_BYTES {
        return Ok(body.clone());
    }
    Ok(json!({"omitted_bytes": text.len(), "sha256": sha256(&[text])}))
}

pub(crate) fn read_entry(row: &sqlx::sqlite::SqliteRow) -> Result<LogEntry, JournalError> {
    let unreadable = JournalError::Row { what: "log entry" };
    let kind: String = row.try_get("kind")?;
    let body: String = row.try_get("body")?;
    let (Ok(kind), Ok(body)) = (serde_json::from_value(Value::from(kind)), serde_json::from_str(&body)) else {
        return Err(unreadable);
    };
    Ok(LogEntry {
        sequence: number(row, "sequence")?,
        at: Timestamp::from_row(row.try_get("at")?),
        run: row.try_get("run")?,
        step: row.try_get("step")?,
        kind,
        body,
        previous: row.try_get("previous")?,
        hash: row.try_get("hash")?,
    })
}

/// An unsigned number as SQLite keeps it.
pub(crate) fn number(row: &sqlx::sqlite::SqliteRow, column: &'static str) -> Result<u64, JournalError> {
    u64::try_from(row.try_get::<i64, _>(column)?).map_err(|_| JournalError::Row { what: column })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> LogEntry {
        LogEntry {
            sequence: 7,
            at: Timestamp(1_800_000_000_000),
            run: Some("ab".to_owned()),
            step: None,
            kind: LogKind::RunStarted,
            body: json!({"b": 1, "a": "é"}),
            previous: BEGINNING.to_owned(),
            hash: String::new(),
        }
    }

    #[test]
    fn the_hash_is_over_the_stated_form() {
        let stated = format!(
            "computepool journal log 1\n{{\"at\":1800000000000,\"body\":{{\"a\":\"é\",\"b\":1}},\"kind\":\"run-started\",\
             \"previous\":\"{BEGINNING}\",\"run\":\"ab\",\"sequence\":7,\"step\":null}}"
        );
        assert_eq!(entry().computed_hash().unwrap(), sha256(&[stated]));
        assert_eq!(sha256(&["ab", "c"]), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_long_body_is_told_by_its_length_and_hash() {
        let long = json!({"text": "x".repeat(LogEntry::MAX_BODY_BYTES)});
        let told = bounded(&long).unwrap();
        assert_eq!(told["omitted_bytes"], json!(canonical(&long).unwrap().len()));
        assert_eq!(bounded(&json!({"text": "x"})).unwrap(), json!({"text": "x"}));
    }
}
