//! The log as a file that anybody can check without the database.
//!
//! An export is JSON lines, each ended by a line feed: a first line that says what the file is, then the log's
//! entries in order, each in canonical form, then a last line with the number of entries and the newest hash. Every
//! byte is covered: by an entry's hash, by the canonical form, or by the fixed first and last line. Cutting the end
//! off is found because the last line is missing. Someone who can rewrite the whole file can make a new chain; to
//! find that, compare [`ExportReport::head`] with one noted earlier.

use std::io::{self, BufRead, Read as _, Write};

use serde_json::json;
use sqlx::SqlitePool;
use thiserror::Error;

use crate::{
    JournalError, LogEntry,
    canonical::canonical,
    log::{BEGINNING, read_entry},
};

const FIRST_LINE: &str = r#"{"export":"computepool journal","version":1}"#;

/// No line of an export is longer: a body, and 1,500 bytes for the rest; each byte of a name can need six.
const MAX_LINE_BYTES: usize = LogEntry::MAX_BODY_BYTES + 6 * 1024;

/// Rows read at once.
const PAGE: i64 = 500;

/// Why an export failed.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The journal could not be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The file could not be written.
    #[error("the export cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// What a sound export holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportReport {
    /// How many entries.
    pub entries: u64,
    /// The hash of the last one; it stands for all of them.
    pub head: String,
}

/// Why an export is not sound. Lines are counted from 1.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The file cannot be read.
    #[error("the export cannot be read: {0}")]
    Read(#[from] io::Error),
    /// A line is not as it was written.
    #[error("line {line} of the export {problem}")]
    Line {
        /// Which line.
        line: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The end line's text.
fn last_line(report: &ExportReport) -> String {
    let ExportReport { entries, head } = report;
    canonical(&json!({"end": {"entries": entries, "head": head}})).unwrap_or_default()
}

pub(crate) async fn export(pool: &SqlitePool, writer: &mut (impl Write + Send)) -> Result<ExportReport, ExportError> {
    // One read transaction: what is appended meanwhile is not part of the export.
    let mut snapshot = pool.begin().await.map_err(JournalError::from)?;
    writeln!(writer, "{FIRST_LINE}")?;
    let mut report = ExportReport { entries: 0, head: BEGINNING.to_owned() };
    loop {
        let rows = sqlx::query("SELECT * FROM journal_log WHERE sequence > $1 ORDER BY sequence LIMIT $2")
            .bind(report.entries as i64)
            .bind(PAGE)
            .fetch_all(&mut *snapshot)
            .await
            .map_err(JournalError::from)?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            let entry = read_entry(row)?;
            let line = serde_json::to_value(&entry).ok().and_then(|value| canonical(&value).ok());
            let line = line.ok_or(JournalError::Row { what: "log entry" })?;
            writeln!(writer, "{line}")?;
            report = ExportReport { entries: entry.sequence, head: entry.hash };
        }
    }
    writeln!(writer, "{}", last_line(&report))?;
    writer.flush()?;
    Ok(report)
}

/// Checks an export: every byte, every hash, every link from entry to entry. Needs no database; memory is bounded by
/// one line.
///
/// ```
/// use pool_journal::{VerifyError, verify_export};
///
/// let cut_off = r#"{"export":"computepool journal","version":1}"#;
/// assert!(matches!(verify_export(cut_off.as_bytes()), Err(VerifyError::Line { line: 1, .. })));
/// ```
pub fn verify_export(reader: impl BufRead) -> Result<ExportReport, VerifyError> {
    let mut lines = Lines { reader, number: 0 };
    let wrong = |line, problem| Err(VerifyError::Line { line, problem });
    if lines.next()?.as_deref() != Some(FIRST_LINE) {
        return wrong(1, "does not say that this is a journal's export of version 1");
    }
    let mut report = ExportReport { entries: 0, head: BEGINNING.to_owned() };
    loop {
        let Some(text) = lines.next()? else {
            return wrong(lines.number + 1, "is missing: the export was cut off");
        };
        let number = lines.number;
        if text == last_line(&report) {
            break;
        }
        let Ok(entry) = serde_json::from_str::<LogEntry>(&text) else {
            return wrong(number, "is not an entry of the log, nor the end that belongs to the entries before");
        };
        let rewritten = serde_json::to_value(&entry).ok().and_then(|value| canonical(&value).ok());
        if rewritten.as_ref() != Some(&text) {
            return wrong(number, "is not written in the canonical form");
        }
        if entry.sequence != report.entries + 1 {
            return wrong(number, "does not follow the number of the line before");
        }
        if entry.previous != report.head {
            return wrong(number, "does not follow the hash of the line before");
        }
        if entry.computed_hash().as_ref() != Some(&entry.hash) {
            return wrong(number, "was changed: its hash is not that of its content");
        }
        report = ExportReport { entries: entry.sequence, head: entry.hash };
    }
    match lines.next()? {
        None => Ok(report),
        Some(_) => wrong(lines.number, "stands after the end"),
    }
}

struct Lines<R> {
    reader: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// The next line without its line feed.
    fn next(&mut self) -> Result<Option<String>, VerifyError> {
        let mut line = Vec::new();
        self.reader.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        let wrong = |problem| VerifyError::Line { line: self.number, problem };
        if line.pop() != Some(b'\n') {
            return Err(wrong(if line.len() >= MAX_LINE_BYTES { "is too long" } else { "does not end" }));
        }
        String::from_utf8(line).map(Some).map_err(|_| wrong("is not text"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{LogKind, Timestamp};

    fn sound_export() -> String {
        let mut text = format!("{FIRST_LINE}\n");
        let mut report = ExportReport { entries: 0, head: BEGINNING.to_owned() };
        let bodies = [json!({"workflow": "session-open"}), json!(null), json!({"a": [1, "é\n", {"b": false}]})];
        for (body, kind) in bodies.into_iter().zip([LogKind::RunStarted, LogKind::StepBegan, LogKind::RunFailed]) {
            let mut entry = LogEntry {
                sequence: report.entries + 1,
                at: Timestamp(5),
                run: Some("0f".to_owned()),
                step: None,
                kind,
                body,
                previous: report.head,
                hash: String::new(),
            };
            entry.hash = entry.computed_hash().unwrap();
            text += &canonical(&serde_json::to_value(&entry).unwrap()).unwrap();
            text.push('\n');
            report = ExportReport { entries: entry.sequence, head: entry.hash };
        }
        text + &last_line(&report) + "\n"
    }

    #[test]
    fn a_sound_export_is_reported() {
        let report = verify_export(sound_export().as_bytes()).unwrap();
        assert_eq!(report.entries, 3);
        assert!(sound_export().contains(&report.head));
    }

    /// Not a sample: each byte of the file, changed to each of several others.
    #[test]
    fn any_changed_byte_is_found() {
        let sound = sound_export().into_bytes();
        for place in 0..sound.len() {
            for change in [1u8, 0x20, 0x80, 0x0a ^ sound[place].max(1)] {
                let mut changed = sound.clone();
                changed[place] ^= change;
                if changed != sound {
                    assert!(verify_export(&changed[..]).is_err(), "byte {place} of the export, changed by {change:#x}");
                }
            }
        }
    }

    #[test]
    fn lines_that_are_missing_doubled_swapped_or_added_are_found() {
        let sound = sound_export();
        let lines: Vec<&str> = sound.lines().collect();
        let joined = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        for drop in 0..lines.len() {
            let mut changed = lines.clone();
            changed.remove(drop);
            assert!(verify_export(joined(&changed).as_bytes()).is_err(), "line {drop} is missing");
            let mut changed = lines.clone();
            changed.insert(drop, lines[drop]);
            assert!(verify_export(joined(&changed).as_bytes()).is_err(), "line {drop} is there twice");
        }
        let swapped = joined(&[lines[0], lines[2], lines[1], lines[3], lines[4]]);
        let error = verify_export(swapped.as_bytes()).unwrap_err();
        assert!(matches!(error, VerifyError::Line { line: 2, .. }), "the first wrong line is named: {error}");
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..900) {
            prop_assert!(verify_export(&bytes[..]).is_err());
            let sound = sound_export().into_bytes();
            let cut = cut.min(sound.len() - 1);
            prop_assert!(verify_export(&sound[..cut]).is_err());
        }
    }
}
