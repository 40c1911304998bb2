//! Named values.

use sqlx::{Executor, Sqlite};

use crate::{Store, StoreError};

impl Store {
    /// The value of a setting, if it was ever set.
    pub async fn setting(&self, key: &str) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar("SELECT value FROM settings WHERE key = $1").bind(key).fetch_optional(&self.pool).await?)
    }

    /// Sets a value, replacing the one before.
    pub async fn set_setting(&self, key: &str, value: &str) -> Result<(), StoreError> {
        Self::put_setting(&self.pool, key, value).await
    }

    pub(crate) async fn put_setting<'a>(
        executor: impl Executor<'a, Database = Sqlite>,
        key: &str,
        value: &str,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO settings (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )
        .bind(key)
        .bind(value)
        .execute(executor)
        .await?;
        Ok(())
    }
}
