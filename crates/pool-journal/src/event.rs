//! Events: something happened outside that a step may wait for. Told once, kept for ever.

use serde_json::{Value, json};
use thiserror::Error;

use crate::{
    CanonicalError, Journal, JournalError, LogKind,
    canonical::canonical_within,
    journal::Writing,
    log::Subject,
    run::{MAX_VALUE_BYTES, is_good_name},
};

/// Why an event was not kept.
#[derive(Debug, Error)]
pub enum SignalError {
    /// Names have 1 to 200 bytes and no control characters.
    #[error("the name of an event must have 1 to 200 bytes without control characters")]
    Name,
    /// The body has no canonical form or is too long.
    #[error("the body of the event cannot be kept: {0}")]
    Body(#[from] CanonicalError),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Journal {
    /// Keeps an event and wakes the steps that wait for it. The first body under a name stands; `false` says that
    /// there was one before.
    pub async fn signal(&self, name: &str, body: Value) -> Result<bool, SignalError> {
        if !is_good_name(name) {
            return Err(SignalError::Name);
        }
        canonical_within(&body, MAX_VALUE_BYTES)?;
        let mut writing = self.write().await?;
        let is_new = keep_event(&mut writing, name, &body).await?;
        if is_new {
            writing.commit().await?;
        }
        Ok(is_new)
    }

    /// The body of an event, if it was signalled.
    pub async fn event(&self, name: &str) -> Result<Option<Value>, JournalError> {
        let text: Option<String> = sqlx::query_scalar("SELECT body FROM journal_events WHERE name = $1")
            .bind(name)
            .fetch_optional(self.pool())
            .await?;
        text.map(|text| serde_json::from_str(&text).map_err(|_| JournalError::Row { what: "event" })).transpose()
    }
}

/// Keeps an event inside a write; `false` if there was one of this name.
pub(crate) async fn keep_event(writing: &mut Writing, name: &str, body: &Value) -> Result<bool, JournalError> {
    let at = writing.at().to_row();
    let added =
        sqlx::query("INSERT INTO journal_events (name, body, at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING")
            .bind(name)
            .bind(body.to_string())
            .bind(at)
            .execute(writing.connection())
            .await?;
    if added.rows_affected() == 0 {
        return Ok(false);
    }
    writing.log(Subject::default(), LogKind::EventSignalled, &json!({"name": name, "body": body})).await?;
    let woken = sqlx::query("UPDATE journal_steps SET due_at = $2 WHERE event = $1 AND state = 'waiting'")
        .bind(name)
        .bind(at)
        .execute(writing.connection())
        .await?;
    if woken.rows_affected() > 0 {
        writing.wakes_runner();
    }
    Ok(true)
}
