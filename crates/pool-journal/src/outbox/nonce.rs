//! The nonces of a signer: the chain's count, what the journal gave out, and what lies between.

use std::collections::BTreeSet;

use serde_json::json;
use sqlx::{Row, SqliteConnection};

use super::record::to_row;
use crate::{
    JournalError, LogKind,
    journal::Writing,
    log::{Subject, number},
};

/// More nonces than this are never under way; a larger difference is another chain or a lost one.
const MOST_UNDER_WAY: u64 = 5000;

/// How the journal's nonces of a signer compare with the chain's count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nonces {
    /// The next nonce by the journal's book; `None` before the first.
    pub(super) next: Option<u64>,
    /// Nonces from the chain's count up to `next` that no transaction of the journal uses. Until something uses
    /// them, nothing after them can be included.
    pub(super) gaps: Vec<u64>,
    /// The chain does not count transactions that were buried deep: the node is far behind, or the chain was reset.
    pub(super) chain_is_behind: bool,
}

impl Nonces {
    pub(super) async fn read(
        connection: &mut SqliteConnection,
        chain: u64,
        signer: &str,
        count: u64,
    ) -> Result<Nonces, JournalError> {
        let next: Option<i64> = sqlx::query_scalar("SELECT next FROM journal_nonces WHERE chain = $1 AND signer = $2")
            .bind(to_row(chain)?)
            .bind(signer)
            .fetch_optional(&mut *connection)
            .await?;
        let next = next.map(i64::unsigned_abs);
        let held = sqlx::query(
            "SELECT nonce, state FROM journal_intents WHERE chain = $1 AND signer = $2 AND nonce >= $3 LIMIT $4",
        )
        .bind(to_row(chain)?)
        .bind(signer)
        .bind(to_row(count)?)
        .bind(to_row(MOST_UNDER_WAY)?)
        .fetch_all(connection)
        .await?;
        let mut used = BTreeSet::new();
        let mut settled = false;
        for row in &held {
            used.insert(number(row, "nonce")?);
            settled |= row.try_get::<String, _>("state")? == "settled";
        }
        let end = next.unwrap_or(count);
        let chain_is_behind = settled || end.saturating_sub(count) >= MOST_UNDER_WAY;
        let gaps = if chain_is_behind { Vec::new() } else { (count..end).filter(|n| !used.contains(n)).collect() };
        Ok(Nonces { next, gaps, chain_is_behind })
    }
}

/// Writes down the next nonce. A step over nonces that the journal did not give out is said.
pub(super) async fn set_next(
    writing: &mut Writing,
    chain: u64,
    signer: &str,
    known: Option<u64>,
    first: u64,
    next: u64,
) -> Result<(), JournalError> {
    if let Some(known) = known.filter(|known| *known < first) {
        tracing::warn!(signer, known, count = first, "the chain counts transactions of this key that are not ours");
        let body = json!({"chain": chain, "signer": signer, "expected": known, "chain_counts": first});
        writing.log(Subject::default(), LogKind::NonceMoved, &body).await?;
    }
    sqlx::query(
        "INSERT INTO journal_nonces (chain, signer, next) VALUES ($1, $2, $3)
         ON CONFLICT (chain, signer) DO UPDATE SET next = excluded.next",
    )
    .bind(to_row(chain)?)
    .bind(signer)
    .bind(to_row(next)?)
    .execute(writing.connection())
    .await?;
    Ok(())
}
