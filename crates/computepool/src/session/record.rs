//! What a payer keeps of its sessions: one file each in its wallet's folder, for its owner alone (mode 0600).
//!
//! The file is written before the payment is sent. With the terms in it the payer can close the vault without
//! anybody's help, whatever becomes of the answer.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use alloy_primitives::Address;
use anyhow::{Context, Result, bail};
use pool_chain::Terms;
use pool_node::identity::{make_private_directory, write_private};
use pool_types::{SessionId, Usdc};
use serde::{Deserialize, Serialize};

/// A record is about a kilobyte.
const MAX_BYTES: u64 = 64 << 10;
/// Fewer digits of an id would be a guess.
const LEAST_DIGITS: usize = 4;

/// How far a session got, as far as the payer was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// The payment was sent, and no answer came.
    Paid,
    /// The payment was refused. Whoever has it can still settle it until it ends.
    Refused,
    /// It was opened.
    Open,
    /// It was closed.
    Closed,
}

impl Standing {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Paid => "paid, no answer yet",
            Self::Refused => "refused",
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

/// A session of this wallet. No debug form: it holds the token.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) session: SessionId,
    /// The endpoint that sold it.
    pub(crate) api: String,
    /// The chain's network, as its address book names it.
    pub(crate) network: String,
    pub(crate) model: String,
    pub(crate) vault: Address,
    pub(crate) terms: Terms,
    /// What the voucher is worth.
    pub(crate) amount: Usdc,
    /// When the voucher ends, Unix seconds.
    pub(crate) valid_before: u64,
    pub(crate) standing: Standing,
    /// The bearer token, once the session was opened and until it is closed.
    pub(crate) token: Option<String>,
}

impl Record {
    /// Writes the file, whole or not at all.
    pub(crate) fn save(&self, wallet: &Path) -> Result<()> {
        let folder = folder(wallet);
        make_private_directory(wallet)?;
        make_private_directory(&folder)?;
        let text = serde_json::to_string_pretty(self)?;
        Ok(write_private(&folder.join(format!("{}.json", self.session)), text.as_bytes())?)
    }

    /// The token, or why there is none.
    pub(crate) fn token(&self) -> Result<&str> {
        let missing = match self.standing {
            Standing::Open => "its token is not here",
            Standing::Closed => "it is closed",
            Standing::Refused => "its payment was refused",
            Standing::Paid => "no answer came after its payment, so it has no token",
        };
        self.token.as_deref().with_context(|| {
            let id = self.session;
            format!(
                "the session {id} cannot be used: {missing}. If money lies in its vault, `computepool session close \
                 --direct {id}` brings it back"
            )
        })
    }

    /// Keeps that it is over.
    pub(crate) fn close(&mut self, wallet: &Path) -> Result<()> {
        self.standing = Standing::Closed;
        self.token = None;
        self.save(wallet)
    }
}

fn folder(wallet: &Path) -> PathBuf {
    wallet.join("sessions")
}

/// Every session of the wallet, in the order of their ids. A file that cannot be read is named and passed over.
pub(crate) fn all(wallet: &Path) -> Result<Vec<Record>> {
    let folder = folder(wallet);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "json"));
    files.sort();
    let mut records = Vec::with_capacity(files.len());
    for file in files {
        match read(&file) {
            Ok(record) => records.push(record),
            Err(error) => eprintln!("{} is passed over: {error:#}", file.display()),
        }
    }
    Ok(records)
}

fn read(file: &Path) -> Result<Record> {
    let mut text = String::new();
    File::open(file)?.take(MAX_BYTES).read_to_string(&mut text)?;
    // The reason says where, and never what: there is a token in it.
    serde_json::from_str(&text)
        .map_err(|error| anyhow::anyhow!("line {}, column {} is not as it was written", error.line(), error.column()))
}

/// The session that `wanted` begins, by its id or its vault; `None` where this wallet has none.
pub(crate) fn find(wallet: &Path, wanted: &str) -> Result<Option<Record>> {
    let wanted = wanted.to_ascii_lowercase();
    let digits = wanted.strip_prefix("0x").unwrap_or(&wanted);
    if digits.len() < LEAST_DIGITS || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        bail!("`{wanted}` is no session's id; give at least {LEAST_DIGITS} of its digits (`computepool session list`)");
    }
    let begins = |bytes: &[u8]| alloy_primitives::hex::encode(bytes).starts_with(digits);
    let mut found =
        all(wallet)?.into_iter().filter(|record| begins(&record.session.0[..]) || begins(&record.vault[..]));
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => bail!("more than one session begins with {wanted}; give more of its digits"),
        (found, _) => Ok(found),
    }
}

/// The same, where there must be one.
pub(crate) fn get(wallet: &Path, wanted: &str) -> Result<Record> {
    find(wallet, wanted)?.with_context(|| {
        format!(
            "{} holds no session {wanted}; `computepool session list` shows those it holds, and --wallet names another \
             folder",
            wallet.display()
        )
    })
}

#[cfg(test)]
pub(super) mod tests {
    use alloy_primitives::B256;
    use pool_types::FlowRate;

    use super::*;

    pub(crate) fn record(number: u8) -> Record {
        let terms = Terms {
            payer: Address::repeat_byte(0xaa),
            orchestrator: Address::repeat_byte(0xbb),
            pool: Address::repeat_byte(0xcc),
            max_rate: FlowRate::from_units_per_second(100),
            expiry: 1_800_000_000,
            session: B256::repeat_byte(number),
        };
        Record {
            session: SessionId(terms.session),
            api: "http://127.0.0.1:8080/v1".to_owned(),
            network: "local".to_owned(),
            model: "tiny".to_owned(),
            vault: Address::repeat_byte(number ^ 0xff),
            terms,
            amount: "0.25".parse().unwrap(),
            valid_before: 1_790_000_000,
            standing: Standing::Open,
            token: Some("cps_secret".to_owned()),
        }
    }

    #[test]
    fn a_session_is_found_by_the_digits_it_begins_with_or_by_its_vault() {
        let wallet = tempfile::tempdir().unwrap();
        for number in [0x11, 0x12, 0x21] {
            record(number).save(wallet.path()).unwrap();
        }
        let found = |wanted: &str| find(wallet.path(), wanted).map(|found| found.map(|record| record.session.0[0]));
        assert_eq!(found("0x1111").unwrap(), Some(0x11));
        assert_eq!(found("2121").unwrap(), Some(0x21));
        assert_eq!(found(&record(0x12).vault.to_string()).unwrap(), Some(0x12), "by its vault, as it is printed");
        assert_eq!(found("0x9999").unwrap(), None);
        let short = found("0x1").unwrap_err().to_string();
        assert!(short.contains("at least 4 of its digits"), "{short}");
        assert!(get(wallet.path(), "zz99").is_err(), "not a number at all");
    }

    #[test]
    fn what_begins_like_two_sessions_is_neither() {
        let wallet = tempfile::tempdir().unwrap();
        let mut twin = record(0x11);
        twin.session.0[31] = 0;
        twin.save(wallet.path()).unwrap();
        record(0x11).save(wallet.path()).unwrap();
        let both = find(wallet.path(), "0x1111").err().unwrap().to_string();
        assert!(both.contains("more than one session"), "{both}");
    }

    #[cfg(unix)]
    #[test]
    fn a_token_is_for_its_owner_alone_and_gone_once_the_session_is_closed() {
        use std::os::unix::fs::PermissionsExt as _;

        let wallet = tempfile::tempdir().unwrap();
        let mut open = record(0x11);
        open.save(wallet.path()).unwrap();
        let file = wallet.path().join("sessions").join(format!("{}.json", open.session));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(wallet.path().join("sessions")).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(get(wallet.path(), "1111").unwrap().token().unwrap(), "cps_secret");
        open.close(wallet.path()).unwrap();
        assert!(!fs::read_to_string(&file).unwrap().contains("cps_secret"));
        let refused = get(wallet.path(), "1111").unwrap().token().unwrap_err().to_string();
        assert!(refused.contains("it is closed"), "{refused}");
    }

    #[test]
    fn a_damaged_file_hides_neither_the_others_nor_shows_what_is_in_it() {
        let wallet = tempfile::tempdir().unwrap();
        record(0x11).save(wallet.path()).unwrap();
        let damaged = wallet.path().join("sessions").join("0x22.json");
        fs::write(&damaged, "{\"token\": \"cps_secret\", \"session\": cps_secret}").unwrap();
        let error = read(&damaged).err().unwrap().to_string();
        assert!(error.contains("line 1") && !error.contains("cps_secret"), "{error}");
        assert_eq!(all(wallet.path()).unwrap().len(), 1);
    }
}
