//! `computepool verify`: checks that need nobody's word.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write, stdin},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, Result};
use pool_journal::{ExportReport, LogEntry, LogKind, Timestamp, VerifyError, verify_export};
use serde_json::json;

use crate::{
    api_client::ApiClient,
    arguments::{AuditArguments, VerifyCommand},
    serving,
    when::utc,
};

/// What was checked does not hold.
const NOT_SOUND: u8 = 1;
/// No entry of a log is so long; what is longer is not counted, and refused by the check.
const LONGEST_LINE: usize = 1 << 20;

pub(crate) fn run(command: &VerifyCommand) -> Result<ExitCode> {
    match command {
        VerifyCommand::Audit(arguments) => audit(arguments),
    }
}

fn audit(arguments: &AuditArguments) -> Result<ExitCode> {
    let log = open(arguments)?;
    let (found, count) = check(BufReader::new(log), arguments.noted.as_deref());
    let report = match found {
        Ok(report) => report,
        Err(error @ VerifyError::Read(_)) => return Err(error.into()),
        Err(VerifyError::Line { line, problem }) => {
            if arguments.json {
                println!("{}", json!({ "sound": false, "line": line, "problem": problem }));
            } else {
                eprintln!("computepool: the audit log is not sound: line {line} {problem}");
            }
            return Ok(ExitCode::from(NOT_SOUND));
        }
    };
    if let Some(noted) = arguments.noted.as_ref().filter(|_| !count.holds_noted) {
        if arguments.json {
            println!("{}", json!({ "sound": false, "line": null, "problem": "does not hold the head noted earlier" }));
        } else {
            eprintln!("computepool: the audit log was written anew: no entry in it has the noted hash {noted}");
        }
        return Ok(ExitCode::from(NOT_SOUND));
    }
    if arguments.json {
        println!("{}", count.json(&report));
    } else {
        print!("{}", count.words(&report));
    }
    Ok(ExitCode::SUCCESS)
}

/// The log as it was named, or fetched.
fn open(arguments: &AuditArguments) -> Result<Box<dyn Read>> {
    if let Some(url) = &arguments.from {
        return Ok(Box::new(fetch(url, arguments.api_key.clone(), arguments.save.as_deref())?));
    }
    match &arguments.file {
        Some(file) if file.as_os_str() != "-" => {
            let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
            Ok(Box::new(opened))
        }
        _ => Ok(Box::new(stdin().lock())),
    }
}

/// Fetches an orchestrator's log into a file, which is gone at the end unless it was named.
fn fetch(url: &str, key: Option<String>, save: Option<&Path>) -> Result<File> {
    let mut file = match save {
        Some(path) => {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(true);
            options.open(path).with_context(|| format!("cannot write {}", path.display()))?
        }
        None => tempfile::tempfile().context("no temporary file")?,
    };
    let api = ApiClient::new(url, key)?;
    let mut writer = BufWriter::new(&mut file);
    serving::runtime(1)?.block_on(api.download("audit", &mut writer))?;
    writer.flush().context("cannot keep the log")?;
    drop(writer);
    file.rewind().context("cannot read what was fetched")?;
    Ok(file)
}

/// Checks a log, and counts what is in it.
fn check(log: impl BufRead, noted: Option<&str>) -> (Result<ExportReport, VerifyError>, Count) {
    let mut counting = Counting { log, line: Vec::new(), count: Count::default(), noted };
    let found = verify_export(&mut counting);
    (found, counting.count)
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Count {
    runs: u64,
    /// Transactions that were wanted.
    transactions: u64,
    confirmed: u64,
    reverted: u64,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    holds_noted: bool,
}

impl Count {
    fn add(&mut self, entry: &LogEntry, noted: Option<&str>) {
        match entry.kind {
            LogKind::RunStarted => self.runs += 1,
            LogKind::TransactionQueued => self.transactions += 1,
            LogKind::TransactionConfirmed => self.confirmed += 1,
            LogKind::TransactionReverted => self.reverted += 1,
            _ => {}
        }
        self.first.get_or_insert(entry.at);
        self.last = Some(entry.at);
        self.holds_noted |= noted.is_some_and(|noted| noted.eq_ignore_ascii_case(&entry.hash));
    }

    fn json(&self, report: &ExportReport) -> serde_json::Value {
        json!({
            "sound": true, "entries": report.entries, "runs": self.runs, "transactions": self.transactions,
            "confirmed": self.confirmed, "reverted": self.reverted, "first": self.first, "last": self.last,
            "head": report.head,
        })
    }

    fn words(&self, report: &ExportReport) -> String {
        let time = |at: Option<Timestamp>| at.map_or("-".to_owned(), |at| utc(at.0 / 1000));
        let ExportReport { entries, head } = report;
        let Self { runs, transactions, confirmed, reverted, .. } = self;
        format!(
            "The log is sound: every entry follows the one before it, and none was changed.\n\
             entries       {entries}\n\
             runs          {runs}\n\
             transactions  {transactions} ({confirmed} confirmed, {reverted} reverted)\n\
             first         {}\n\
             last          {}\n\
             head          {head}\n",
            time(self.first),
            time(self.last),
        )
    }
}

/// Passes a log on and counts its entries on the way.
struct Counting<'a, R> {
    log: R,
    line: Vec<u8>,
    count: Count,
    noted: Option<&'a str>,
}

impl<R: BufRead> Read for Counting<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(into.len());
        into[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl<R: BufRead> BufRead for Counting<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.log.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        // What is consumed was filled before, so this reads nothing.
        if let Ok(bytes) = self.log.fill_buf() {
            for piece in bytes[..amount.min(bytes.len())].split_inclusive(|byte| *byte == b'\n') {
                if self.line.len() + piece.len() <= LONGEST_LINE {
                    self.line.extend_from_slice(piece);
                }
                if piece.ends_with(b"\n") {
                    if let Ok(entry) = serde_json::from_slice(&self.line) {
                        self.count.add(&entry, self.noted);
                    }
                    self.line.clear();
                }
            }
        }
        self.log.consume(amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sound_log_is_told_in_words() {
        let count = Count {
            runs: 6,
            transactions: 9,
            confirmed: 8,
            reverted: 1,
            first: Some(Timestamp(1_798_700_000_250)),
            last: Some(Timestamp(1_798_761_599_999)),
            holds_noted: false,
        };
        let report = ExportReport { entries: 57, head: "ab".repeat(32) };
        insta::assert_snapshot!(count.words(&report), @r"
        The log is sound: every entry follows the one before it, and none was changed.
        entries       57
        runs          6
        transactions  9 (8 confirmed, 1 reverted)
        first         2026-12-31 06:53:20 UTC
        last          2026-12-31 23:59:59 UTC
        head          abababababababababababababababababababababababababababababababab
        ");
    }

    #[test]
    fn counting_changes_nothing_of_what_is_read_however_it_arrives() {
        let text = "not an entry\n{\"neither\": 1}\nand no end".as_bytes();
        for size in 1..=text.len() {
            let log = BufReader::with_capacity(size, text);
            let mut counting = Counting { log, line: Vec::new(), count: Count::default(), noted: None };
            let mut read = Vec::new();
            counting.read_to_end(&mut read).unwrap();
            assert_eq!(read, text, "pieces of {size} bytes");
            assert_eq!(counting.count, Count::default());
        }
    }

    #[test]
    fn an_endless_line_takes_bounded_space() {
        let log = BufReader::new(io::repeat(b'x').take(3 * LONGEST_LINE as u64));
        let mut counting = Counting { log, line: Vec::new(), count: Count::default(), noted: None };
        io::copy(&mut counting, &mut io::sink()).unwrap();
        assert!(counting.line.len() <= LONGEST_LINE);
    }
}
