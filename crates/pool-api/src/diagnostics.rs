//! The diagnostics bundle: what somebody who helps needs to know of a node, as one text that its owner can read before
//! it is sent. No secret is in it: none is put in, and what looks like one is taken out.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use pool_store::{Store, StoreError};
use serde_json::{Map, Value, json};

use crate::wire::PastDecision;

/// The end of the log, at most.
const LOG: u64 = 1 << 20;
/// Decisions, yields and shifts, at most.
const MOST: u32 = 2000;
/// What a removed text becomes.
const REMOVED: &str = "(removed)";
/// Names of fields whose values are never shown.
const SECRET_NAMES: [&str; 8] =
    ["token", "secret", "passphrase", "password", "private", "mnemonic", "authorization", "api_key"];

/// Where a bundle's parts come from.
pub struct Diagnostics<'a> {
    /// The node's books.
    pub store: &'a Store,
    /// The node's log.
    pub log: &'a Path,
    /// The folder of the owner that every path is in; shown as `~`.
    pub home: Option<&'a Path>,
    /// What a running node says of itself: any JSON, by name.
    pub running: Map<String, Value>,
    /// Texts that must not be in it, whatever they look like.
    pub secrets: &'a [&'a str],
}

impl Diagnostics<'_> {
    /// Puts it together.
    pub async fn collect(self) -> Result<Value, StoreError> {
        let decisions: Vec<PastDecision> =
            self.store.decisions(MOST).await?.into_iter().map(PastDecision::from).collect();
        let yields = self.store.yields(MOST).await?.into_iter().map(|given| {
            json!({ "at": given.at, "reason": given.reason, "noticed_ms": given.noticed,
                    "process_gone_ms": given.process_gone, "memory_back_ms": given.memory_back })
        });
        let shifts = self.store.shifts(MOST).await?.into_iter().map(|shift| {
            json!({ "began": shift.began, "seen": shift.seen, "ended": shift.ended, "model": shift.model,
                    "layers": shift.layers, "members": shift.members, "tokens": shift.work.tokens,
                    "energy_millijoules": shift.work.energy.0, "measured_ms": shift.work.measured })
        });
        let log = match tail(self.log, LOG) {
            Ok(text) => text,
            Err(error) => format!("(the log cannot be read: {error})"),
        };
        let bundle = json!({
            "what": "ComputePool diagnostics. Times are Unix milliseconds. Read it before you send it.",
            "version": env!("CARGO_PKG_VERSION"),
            "system": { "os": std::env::consts::OS, "architecture": std::env::consts::ARCH },
            "running": self.running,
            "decisions": decisions,
            "yields": yields.collect::<Vec<_>>(),
            "shifts": shifts.collect::<Vec<_>>(),
            "log": log.lines().map(line).collect::<Vec<_>>(),
        });
        let home = self.home.map(|home| home.to_string_lossy().into_owned()).filter(|home| home.len() > 1);
        let home = home.as_deref();
        Ok(clean(bundle, &|text| {
            let mut text = self
                .secrets
                .iter()
                .filter(|secret| secret.len() >= 8)
                .fold(text.to_owned(), |text, secret| text.replace(secret, REMOVED));
            if let Some(home) = home {
                text = text.replace(home, "~");
            }
            without_secrets(&text)
        }))
    }
}

/// A line of the log as what it is.
fn line(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|_| Value::from(line))
}

/// The last so many bytes of a file, from the beginning of a line on.
fn tail(path: &Path, most: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(most);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(match text.split_once('\n') {
        Some((_, rest)) if from > 0 => rest.to_owned(),
        _ => text,
    })
}

fn clean(value: Value, scrub: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(scrub(&text)),
        Value::Array(values) => values.into_iter().map(|value| clean(value, scrub)).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| {
                let lower = name.to_lowercase();
                // A count of tokens is no token.
                let secret = SECRET_NAMES.iter().any(|secret| lower.ends_with(secret)) && !value.is_number();
                (name, if secret { Value::from(REMOVED) } else { clean(value, scrub) })
            });
            Value::Object(fields.collect())
        }
        other => other,
    }
}

/// The text without anything that looks like a key, a token, a password or what was asked of a host.
///
/// ```
/// use pool_api::without_secrets;
///
/// let told = without_secrets("GET https://ada:pw@host.example/model?token=1 with Bearer hf_aBcDeFgHiJkLmNoP");
/// assert_eq!(told, "GET https://(removed)@host.example/model?(removed) with Bearer (removed)");
/// ```
pub fn without_secrets(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut after_bearer = false;
    for piece in pieces(text) {
        let word = !piece.starts_with(|c: char| !is_part_of_word(c));
        if !word {
            clean.push_str(piece);
            continue;
        }
        clean.push_str(&if after_bearer { REMOVED.to_owned() } else { word_without_secrets(piece) });
        after_bearer = piece.eq_ignore_ascii_case("bearer");
    }
    clean
}

/// Characters of addresses, tokens and keys.
fn is_part_of_word(c: char) -> bool {
    c.is_alphanumeric() || "-_./:?&=%@+~#".contains(c)
}

/// The text in runs of such characters and runs of others.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let kind = is_part_of_word(first);
        let end = rest.find(|c| is_part_of_word(c) != kind).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

fn word_without_secrets(word: &str) -> String {
    if let Some((scheme, rest)) = word.split_once("://") {
        let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |end| rest.split_at(end));
        let authority = match authority.rsplit_once('@') {
            Some((_, host)) => format!("{REMOVED}@{host}"),
            None => authority.to_owned(),
        };
        let path = match path.find(['?', '#']) {
            Some(end) => format!("{}?{REMOVED}", &path[..end]),
            None => path.to_owned(),
        };
        // A node's address often ends with its key.
        let path: Vec<String> = path.split('/').map(part_without_secrets).collect();
        return format!("{scheme}://{authority}{}", path.join("/"));
    }
    let parts: Vec<String> = word.split_inclusive(['/', '=', ':', '&', '?']).map(part_without_secrets).collect();
    parts.concat()
}

fn part_without_secrets(part: &str) -> String {
    let (core, end) = match part.char_indices().last() {
        Some((at, '/' | '=' | ':' | '&' | '?')) => part.split_at(at),
        _ => (part, ""),
    };
    if looks_secret(core) { format!("{REMOVED}{end}") } else { part.to_owned() }
}

fn looks_secret(word: &str) -> bool {
    let hex = word.strip_prefix("0x").unwrap_or(word);
    // A private key; hashes of the same length go with it.
    let is_key = hex.len() >= 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let has_token_prefix =
        ["hf_", "sk-", "ghp_", "cps_"].iter().any(|prefix| word.starts_with(prefix) && word.len() >= 12);
    let is_jwt = word.starts_with("eyJ") && word.matches('.').count() == 2;
    // Long and of all kinds of characters: what a person never writes. A card's name for life (a UUID) is in short runs.
    let dense = word.len() >= 32
        && word.split('-').any(|run| run.len() >= 20)
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        && word.bytes().any(|byte| byte.is_ascii_digit())
        && word.bytes().any(|byte| byte.is_ascii_lowercase())
        && word.bytes().any(|byte| byte.is_ascii_uppercase())
        && !hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_key || has_token_prefix || is_jwt || dense
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";

    #[test]
    fn what_looks_like_a_secret_is_removed_and_what_helps_stays() {
        let secret = [
            KEY.to_owned(),
            format!("0x{KEY}"),
            format!("key={KEY};"),
            "hf_abcdefghijklmnop".to_owned(),
            "the session cps_zyxwvutsrqponm".to_owned(),
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig".to_owned(),
            "authorization: Bearer short".to_owned(),
            "https://rpc.example/v2/Ab3dEf6hIj9kLm2nOp5qRs8tUv1wXy4z".to_owned(),
            "wss://user:hunter2@host/x".to_owned(),
            "https://host/file?signature=abc".to_owned(),
        ];
        let words = ["4c0883", "hf_abc", "eyJ", "short", "Ab3dEf", "hunter2", "user", "abc", "zyx"];
        for text in secret {
            let told = without_secrets(&text);
            assert!(told.contains(REMOVED), "{told}");
            assert!(!words.iter().any(|word| told.contains(word)), "{told}");
        }
        for text in [
            "the shard process ended unexpectedly (signal: 9 (SIGKILL))",
            "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
            "fetching layers 0-15 of Llama-3.1-8B from https://host.example:8443/maker/model/resolve/main/a.safetensors",
            "GPU-8e5f0a51-4a3b-11ee-be56-0242ac120002 is at 83 °C",
            "Müller's computer: α + β = γ?",
            "",
        ] {
            assert_eq!(without_secrets(text), text);
        }
    }

    #[tokio::test]
    async fn a_bundle_holds_the_log_and_the_books_and_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("node.db")).await.unwrap();
        let shift = store.shift_begun(1, "tiny", "0-3", 2).await.unwrap();
        store.shift_worked(shift, 5, pool_store::Work::default(), true).await.unwrap();
        let log = folder.path().join("log.jsonl");
        let old = format!("{{\"message\":\"old\",\"padding\":\"{}\"}}\n", "x y ".repeat(300_000));
        let home = folder.path().join("ada");
        let lines = format!(
            "{old}{{\"message\":\"the key {KEY}\",\"api_key\":\"k\",\"tokens\":7,\"path\":\"{}/models\"}}\nsesame-open-now not json\n",
            home.display()
        );
        std::fs::write(&log, lines).unwrap();
        let running = json!({ "state": { "sentence": "Waiting: you are here." } }).as_object().unwrap().clone();
        let secrets = ["sesame-open-now"];
        let parts = Diagnostics { store: &store, log: &log, home: Some(&home), running, secrets: &secrets };
        let bundle = parts.collect().await.unwrap();
        let text = bundle.to_string();
        for secret in [KEY, "sesame", "ada/models"] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
        assert_eq!(bundle["log"].as_array().unwrap().len(), 2, "the end of the log, in whole lines");
        assert_eq!(bundle["log"][0]["path"], "~/models");
        assert_eq!((&bundle["log"][0]["tokens"], &bundle["log"][0]["api_key"]), (&json!(7), &json!(REMOVED)));
        assert_eq!(bundle["shifts"][0]["layers"], "0-3");
        assert_eq!(bundle["running"]["state"]["sentence"], "Waiting: you are here.");
    }
}
