//! Submitting intents, and what can happen to one before it has a nonce.

use serde_json::json;
use sqlx::SqliteConnection;

use super::{
    Intent, IntentView, Outcome, Submission, SubmitError,
    record::{IntentRow, to_row, wanted_by},
};
use crate::{Journal, JournalError, LogKind, RunId, Timestamp, journal::Writing, log::sha256, run::is_good_name};

impl Journal {
    /// Submits a transaction that belongs to no step. The same intent again gives where it stands; the deadline is
    /// not part of what makes intents the same.
    ///
    /// When this returns, the intent is on disk; a runner drives it, now or after the next start.
    pub async fn submit(&self, intent: Intent) -> Result<Submission, SubmitError> {
        self.submit_for(None, intent).await
    }

    /// Submits a transaction for a step.
    pub(crate) async fn submit_for(
        &self,
        step: Option<(RunId, &str)>,
        intent: Intent,
    ) -> Result<Submission, SubmitError> {
        check(&intent)?;
        let mut connection = self.pool().acquire().await.map_err(JournalError::from)?;
        let known = IntentRow::find(&mut connection, &intent.key).await?;
        drop(connection);
        if let Some(known) = known {
            return standing(&known, &intent);
        }
        let mut writing = self.write().await?;
        if let Some(known) = IntentRow::find(writing.connection(), &intent.key).await? {
            return standing(&known, &intent);
        }
        let waiting: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM journal_intents
             WHERE chain = $1 AND signer = $2 AND state IN ('queued', 'signed', 'included')",
        )
        .bind(to_row(intent.chain)?)
        .bind(intent.signer.to_string())
        .fetch_one(writing.connection())
        .await
        .map_err(JournalError::from)?;
        if waiting >= i64::from(Intent::MAX_WAITING) {
            return Err(SubmitError::Full(intent.signer));
        }
        insert(&mut writing, step, &intent).await?;
        supersede(&mut writing, &intent).await?;
        writing.wakes_outbox();
        // The runner drops it when its deadline passes.
        writing.wakes_runner();
        writing.commit().await?;
        Ok(Submission::Pending)
    }

    /// A transaction as it may be shown, or `None` if there is none of this key.
    pub async fn transaction(&self, key: &str) -> Result<Option<IntentView>, JournalError> {
        let mut snapshot = self.pool().begin().await?;
        match IntentRow::find(&mut snapshot, key).await? {
            None => Ok(None),
            Some(row) => Ok(Some(row.into_view(&mut snapshot).await?)),
        }
    }

    /// Waits until the transaction has ended, but not beyond `deadline`; gives how it stands then, or `None` if there
    /// is none of this key.
    pub async fn wait_transaction(&self, key: &str, deadline: Timestamp) -> Result<Option<IntentView>, JournalError> {
        let mut changes = self.intents();
        loop {
            changes.borrow_and_update();
            let view = self.transaction(key).await?;
            let ended = view.as_ref().is_none_or(|view| view.state.has_ended());
            if ended || self.clock().now() >= deadline {
                return Ok(view);
            }
            let look_again = self.look_again().min(deadline);
            tokio::select! {
                // The journal holds the sender.
                _ = changes.changed() => {}
                () = self.clock().sleep_until(look_again) => {}
            }
        }
    }
}

fn check(intent: &Intent) -> Result<(), SubmitError> {
    let Intent { key, chain, lane, data, gas_limit, .. } = intent;
    let rules = [
        ("its key must have 1 to 200 bytes without control characters", is_good_name(key)),
        ("its lane must have 1 to 200 bytes without control characters", is_good_name(lane)),
        ("its data is longer than 64 KiB", data.len() <= Intent::MAX_DATA_BYTES),
        ("its gas limit is below 21,000", *gas_limit >= Intent::MIN_GAS_LIMIT),
        ("its gas limit is above 16,777,216", *gas_limit <= Intent::MAX_GAS_LIMIT),
        ("its chain id is out of range", i64::try_from(*chain).is_ok()),
        ("its key begins like those of the outbox itself", !key.starts_with(FILLER)),
    ];
    match rules.into_iter().find(|(_, kept)| !kept) {
        None => Ok(()),
        Some((reason, _)) => {
            let key = key.chars().filter(|letter| !letter.is_control()).take(Intent::MAX_NAME_BYTES).collect();
            Err(SubmitError::Invalid { key, reason })
        }
    }
}

/// How the keys of transactions begin that only fill a nonce.
pub(super) const FILLER: &str = "filler/";

/// Where a known intent stands, if it is the same.
fn standing(known: &IntentRow, intent: &Intent) -> Result<Submission, SubmitError> {
    let same = known.chain == intent.chain
        && known.signer == intent.signer
        && known.lane == intent.lane
        && known.supersedable == intent.supersedable
        && known.to == intent.to
        && known.value == intent.value
        && known.data == intent.data
        && known.gas_limit == intent.gas_limit;
    if !same {
        return Err(SubmitError::KeyTaken(intent.key.clone()));
    }
    match &known.outcome {
        Some(outcome) if known.state.has_ended() => Ok(Submission::Ended(outcome.clone())),
        _ => Ok(Submission::Pending),
    }
}

/// Adds a row that is queued.
pub(super) async fn insert(
    writing: &mut Writing,
    step: Option<(RunId, &str)>,
    intent: &Intent,
) -> Result<(), JournalError> {
    let (run, node) = wanted_by(step);
    sqlx::query(
        "INSERT INTO journal_intents (key, position, run, step, chain, signer, lane, supersedable, target, value, data,
                                      gas_limit, deadline_at, state, created_at)
         VALUES ($1, (SELECT COALESCE(MAX(position), 0) + 1 FROM journal_intents), $2, $3, $4, $5, $6, $7, $8, $9, $10,
                 $11, $12, 'queued', $13)",
    )
    .bind(&intent.key)
    .bind(run)
    .bind(node)
    .bind(to_row(intent.chain)?)
    .bind(intent.signer.to_string())
    .bind(&intent.lane)
    .bind(intent.supersedable)
    .bind(intent.to.to_string())
    .bind(intent.value.to_string())
    .bind(intent.data.to_string())
    .bind(to_row(intent.gas_limit)?)
    .bind(intent.deadline.map(Timestamp::to_row))
    .bind(writing.at().to_row())
    .execute(writing.connection())
    .await?;
    let row = IntentRow::find(writing.connection(), &intent.key).await?.ok_or(JournalError::Row { what: "intent" })?;
    let body = json!({
        "key": intent.key, "chain": intent.chain, "signer": intent.signer, "lane": intent.lane, "to": intent.to,
        "value": intent.value.to_string(), "gas_limit": intent.gas_limit, "deadline": intent.deadline,
        // Call data can be long and may hold what was signed elsewhere; its hash proves what it was.
        "data_bytes": intent.data.len(), "data_sha256": sha256(&[&intent.data]),
    });
    writing.log(row.subject(), LogKind::TransactionQueued, &body).await
}

/// Drops what the newcomer makes pointless: whatever waits in its lane without a nonce and may be superseded.
async fn supersede(writing: &mut Writing, newcomer: &Intent) -> Result<(), JournalError> {
    let rows = sqlx::query(
        "SELECT * FROM journal_intents
         WHERE chain = $1 AND lane = $2 AND state = 'queued' AND supersedable AND key <> $3 ORDER BY position",
    )
    .bind(to_row(newcomer.chain)?)
    .bind(&newcomer.lane)
    .bind(&newcomer.key)
    .fetch_all(writing.connection())
    .await?;
    for row in &rows {
        let outcome = Outcome::Superseded { by: newcomer.key.clone() };
        drop_queued(writing, &IntentRow::read(row)?, &outcome).await?;
    }
    Ok(())
}

/// Ends an intent that has no nonce.
pub(super) async fn drop_queued(
    writing: &mut Writing,
    intent: &IntentRow,
    outcome: &Outcome,
) -> Result<(), JournalError> {
    let (kind, body) = match outcome {
        Outcome::Superseded { by } => (LogKind::TransactionSuperseded, json!({"key": intent.key, "by": by})),
        Outcome::Refused { reason } => (LogKind::TransactionRefused, json!({"key": intent.key, "reason": reason})),
        _ => (LogKind::TransactionExpired, json!({"key": intent.key})),
    };
    sqlx::query("UPDATE journal_intents SET state = 'dropped', outcome = $2 WHERE key = $1")
        .bind(&intent.key)
        .bind(serde_json::to_string(outcome).unwrap_or_default())
        .execute(writing.connection())
        .await?;
    writing.log(intent.subject(), kind, &body).await?;
    wake(writing, &intent.key).await
}

/// Wakes the step that waits for the intent. Its time begins anew: while its transaction was under way it could do
/// nothing, and what follows from the outcome must not be lost to a deadline.
pub(super) async fn wake(writing: &mut Writing, key: &str) -> Result<(), JournalError> {
    let woken = sqlx::query(
        "UPDATE journal_steps
         SET due_at = $2, deadline_at = CASE WHEN deadline_at < $2 + patience THEN $2 + patience ELSE deadline_at END
         WHERE intent = $1 AND state = 'waiting'",
    )
    .bind(key)
    .bind(writing.at().to_row())
    .execute(writing.connection())
    .await?;
    if woken.rows_affected() > 0 {
        writing.wakes_runner();
    }
    // Its lane is free, and others may wait for its outcome.
    writing.wakes_outbox();
    Ok(())
}

/// Drops the intents whose deadline has passed before they had a nonce.
pub(crate) async fn expire(writing: &mut Writing) -> Result<(), JournalError> {
    let rows = sqlx::query(
        "SELECT * FROM journal_intents WHERE state = 'queued' AND deadline_at <= $1 ORDER BY position LIMIT 1000",
    )
    .bind(writing.at().to_row())
    .fetch_all(writing.connection())
    .await?;
    for row in &rows {
        drop_queued(writing, &IntentRow::read(row)?, &Outcome::Expired).await?;
    }
    Ok(())
}

/// When the next queued intent expires.
pub(crate) async fn next_expiry(writing: &mut Writing) -> Result<Option<Timestamp>, JournalError> {
    let at: Option<i64> = sqlx::query_scalar("SELECT MIN(deadline_at) FROM journal_intents WHERE state = 'queued'")
        .fetch_one(writing.connection())
        .await?;
    Ok(at.map(Timestamp::from_row))
}

/// Takes back the step's intents that have no nonce yet. Gives one that may still land, if there is one.
pub(crate) async fn withdraw(writing: &mut Writing, run: RunId, node: &str) -> Result<Option<String>, JournalError> {
    let rows = sqlx::query(
        "SELECT * FROM journal_intents
         WHERE run = $1 AND step = $2 AND state IN ('queued', 'signed', 'included') ORDER BY position",
    )
    .bind(run.to_string())
    .bind(node)
    .fetch_all(writing.connection())
    .await?;
    let mut may_land = None;
    for row in &rows {
        let intent = IntentRow::read(row)?;
        if intent.nonce.is_none() {
            drop_queued(writing, &intent, &Outcome::Expired).await?;
        } else {
            may_land.get_or_insert(intent.key);
        }
    }
    Ok(may_land)
}

/// Whether an intent has ended; `None` if there is none of this key.
pub(crate) async fn has_ended(connection: &mut SqliteConnection, key: &str) -> Result<Option<bool>, JournalError> {
    Ok(IntentRow::find(connection, key).await?.map(|intent| intent.state.has_ended()))
}

/// The transactions of a run's steps.
pub(crate) async fn views_of_run(
    connection: &mut SqliteConnection,
    run: RunId,
) -> Result<Vec<IntentView>, JournalError> {
    let rows = sqlx::query("SELECT * FROM journal_intents WHERE run = $1 ORDER BY position")
        .bind(run.to_string())
        .fetch_all(&mut *connection)
        .await?;
    let mut views = Vec::with_capacity(rows.len());
    for row in &rows {
        views.push(IntentRow::read(row)?.into_view(connection).await?);
    }
    Ok(views)
}
