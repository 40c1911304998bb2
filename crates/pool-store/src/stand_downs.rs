//! What members signed when they left.

use alloy_primitives::Address;
use pool_coalition::stand_down::SignedStandDown;
use sqlx::Row;

use crate::{
    Store, StoreError,
    nodes::{from_json, to_json},
};

impl Store {
    /// Keeps a stand-down that was checked and received at `now` (Unix seconds).
    pub async fn stood_down(&self, word: &SignedStandDown, now: u64) -> Result<(), StoreError> {
        let said = &word.stand_down;
        sqlx::query(
            "INSERT INTO stand_downs (operator, epoch, manner, statement, received_at) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(said.operator.to_checksum(None))
        .bind(said.epoch.0 as i64)
        .bind(said.manner.as_str())
        .bind(to_json("stand-down", word)?)
        .bind(now as i64)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The newest stand-downs of an operator, the newest first.
    pub async fn stand_downs(&self, operator: Address, limit: u32) -> Result<Vec<SignedStandDown>, StoreError> {
        let rows = sqlx::query("SELECT statement FROM stand_downs WHERE operator = $1 ORDER BY id DESC LIMIT $2")
            .bind(operator.to_checksum(None))
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter().map(|row| from_json("stand-down", row.try_get("statement")?)).collect()
    }
}
