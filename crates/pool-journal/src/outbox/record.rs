//! Intents and variants as they are stored.

use alloy_primitives::{Address, B256, Bytes, U256};
use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{Outcome, Receipt};
use crate::{
    JournalError, RunId, Timestamp,
    log::{Subject, number},
    run::{optional_json, word},
};

/// Where an intent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntentState {
    /// It has no nonce yet.
    Queued,
    /// It has a nonce and at least one signed variant, which is or will be broadcast.
    Signed,
    /// A block holds a variant; more blocks must follow.
    Included,
    /// It has ended. A re-organisation can still bring it back to `Signed`.
    Final,
    /// It has ended and is buried too deep to change.
    Settled,
    /// It ended without a nonce.
    Dropped,
}

impl IntentState {
    /// Whether the outcome can be relied upon now.
    pub fn has_ended(self) -> bool {
        matches!(self, IntentState::Final | IntentState::Settled | IntentState::Dropped)
    }
}

/// An intent as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IntentView {
    /// Its key.
    pub key: String,
    /// The chain.
    pub chain: u64,
    /// Who signs and pays.
    pub signer: Address,
    /// Its lane.
    pub lane: String,
    /// The contract or account called.
    pub to: Address,
    /// Where it stands.
    pub state: IntentState,
    /// Its nonce, once it has one.
    pub nonce: Option<u64>,
    /// The hashes of its signed variants, the oldest first.
    pub variants: Vec<B256>,
    /// What the chain says of the variant that a block holds now.
    pub receipt: Option<Receipt>,
    /// The outcome that was told last.
    pub outcome: Option<Outcome>,
    /// Why the nodes did not take it last, if they did not.
    pub trouble: Option<String>,
    /// How often a re-organisation brought it back.
    pub reopened: u64,
    /// When it was submitted.
    pub created_at: Timestamp,
}

/// An intent as the outbox works with it.
#[derive(Clone, Debug)]
pub(crate) struct IntentRow {
    pub(crate) key: String,
    run: Option<String>,
    step: Option<String>,
    pub(crate) chain: u64,
    pub(crate) signer: Address,
    pub(crate) lane: String,
    pub(crate) supersedable: bool,
    pub(crate) to: Address,
    pub(crate) value: U256,
    pub(crate) data: Bytes,
    pub(crate) gas_limit: u64,
    pub(crate) state: IntentState,
    pub(crate) nonce: Option<u64>,
    pub(crate) receipt: Option<Receipt>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) trouble: Option<String>,
    reopened: u64,
    created_at: Timestamp,
}

impl IntentRow {
    pub(crate) fn read(row: &SqliteRow) -> Result<IntentRow, JournalError> {
        Ok(IntentRow {
            key: row.try_get("key")?,
            run: row.try_get("run")?,
            step: row.try_get("step")?,
            chain: number(row, "chain")?,
            signer: parsed(row, "signer")?,
            lane: row.try_get("lane")?,
            supersedable: row.try_get("supersedable")?,
            to: parsed(row, "target")?,
            value: parsed(row, "value")?,
            data: parsed(row, "data")?,
            gas_limit: number(row, "gas_limit")?,
            state: word(row, "state")?,
            nonce: row.try_get::<Option<i64>, _>("nonce")?.map(i64::unsigned_abs),
            receipt: optional_json(row, "receipt")?,
            outcome: optional_json(row, "outcome")?,
            trouble: row.try_get("trouble")?,
            reopened: number(row, "reopened")?,
            created_at: Timestamp::from_row(row.try_get("created_at")?),
        })
    }

    pub(crate) async fn find(connection: &mut SqliteConnection, key: &str) -> Result<Option<IntentRow>, JournalError> {
        let row =
            sqlx::query("SELECT * FROM journal_intents WHERE key = $1").bind(key).fetch_optional(connection).await?;
        row.as_ref().map(IntentRow::read).transpose()
    }

    /// The run and step that want it, for the log.
    pub(crate) fn subject(&self) -> Subject {
        Subject { run: self.run.clone(), step: self.step.clone() }
    }

    pub(crate) async fn into_view(self, connection: &mut SqliteConnection) -> Result<IntentView, JournalError> {
        let variants = VariantRow::all_of(connection, &self.key).await?;
        Ok(IntentView {
            variants: variants.into_iter().map(|variant| variant.hash).collect(),
            key: self.key,
            chain: self.chain,
            signer: self.signer,
            lane: self.lane,
            to: self.to,
            state: self.state,
            nonce: self.nonce,
            receipt: self.receipt,
            outcome: self.outcome,
            trouble: self.trouble,
            reopened: self.reopened,
            created_at: self.created_at,
        })
    }
}

/// What a variant does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VariantKind {
    /// What was wanted.
    Call,
    /// Nothing: it only uses the nonce, because no node takes what was wanted.
    Cancel,
}

impl VariantKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            VariantKind::Call => "call",
            VariantKind::Cancel => "cancel",
        }
    }
}

/// A signed form of an intent.
#[derive(Clone, Debug)]
pub(crate) struct VariantRow {
    pub(crate) hash: B256,
    pub(crate) nonce: u64,
    pub(crate) kind: VariantKind,
    pub(crate) max_fee: u128,
    pub(crate) priority_fee: u128,
    pub(crate) raw: Bytes,
    pub(crate) signed_at: Timestamp,
    pub(crate) was_broadcast: bool,
}

impl VariantRow {
    /// All variants of an intent, of its present nonce and of any before it lost to somebody else; oldest first.
    pub(crate) async fn all_of(connection: &mut SqliteConnection, key: &str) -> Result<Vec<VariantRow>, JournalError> {
        let rows = sqlx::query("SELECT * FROM journal_variants WHERE intent = $1 ORDER BY position")
            .bind(key)
            .fetch_all(connection)
            .await?;
        rows.iter().map(VariantRow::read).collect()
    }

    fn read(row: &SqliteRow) -> Result<VariantRow, JournalError> {
        Ok(VariantRow {
            hash: parsed(row, "hash")?,
            nonce: number(row, "nonce")?,
            kind: word(row, "kind")?,
            max_fee: parsed(row, "max_fee")?,
            priority_fee: parsed(row, "priority_fee")?,
            raw: parsed(row, "raw")?,
            signed_at: Timestamp::from_row(row.try_get("signed_at")?),
            was_broadcast: row.try_get::<Option<i64>, _>("broadcast_at")?.is_some(),
        })
    }

    pub(crate) async fn insert(&self, connection: &mut SqliteConnection, intent: &str) -> Result<(), JournalError> {
        sqlx::query(
            "INSERT INTO journal_variants (hash, intent, position, nonce, kind, max_fee, priority_fee, raw, signed_at)
             VALUES ($1, $2, (SELECT COUNT(*) FROM journal_variants WHERE intent = $2), $3, $4, $5, $6, $7, $8)",
        )
        .bind(self.hash.to_string())
        .bind(intent)
        .bind(to_row(self.nonce)?)
        .bind(self.kind.name())
        .bind(self.max_fee.to_string())
        .bind(self.priority_fee.to_string())
        .bind(self.raw.to_string())
        .bind(self.signed_at.to_row())
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// A column whose text a type can read.
fn parsed<T: std::str::FromStr>(row: &SqliteRow, column: &'static str) -> Result<T, JournalError> {
    row.try_get::<String, _>(column)?.parse().map_err(|_| JournalError::Row { what: column })
}

/// A chain id, nonce or block number as SQLite keeps it.
pub(crate) fn to_row(value: u64) -> Result<i64, JournalError> {
    i64::try_from(value).map_err(|_| JournalError::Row { what: "number of a transaction" })
}

/// The runs' own column forms of the step that wants an intent.
pub(crate) fn wanted_by(step: Option<(RunId, &str)>) -> (Option<String>, Option<String>) {
    step.map(|(run, node)| (run.to_string(), node.to_owned())).unzip()
}
