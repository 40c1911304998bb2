//! What an owner's node remembers of itself: its decisions, and how fast it gave the machine back.

use serde_json::Value;
use sqlx::Row;

use crate::{
    Store, StoreError,
    nodes::{from_json, to_json},
};

/// A change of what a node does, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct DecisionRecord {
    /// When, in Unix milliseconds.
    pub at: u64,
    /// The state's name.
    pub state: String,
    /// What the person reads.
    pub sentence: String,
    /// The decision as JSON.
    pub decision: Value,
    /// The signals that caused it, as JSON.
    pub signals: Value,
}

/// One time that the machine was given back. Lengths are milliseconds from the event that asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YieldRecord {
    /// When that event was, in Unix milliseconds.
    pub at: u64,
    /// Why, as the person reads it.
    pub reason: String,
    /// Until the node noticed.
    pub noticed: u64,
    /// Until the shard's process was gone.
    pub process_gone: u64,
    /// Until its memory was free again, where that can be seen.
    pub memory_back: Option<u64>,
}

impl YieldRecord {
    /// Until everything was given back, as far as it can be seen.
    pub fn given_back(&self) -> u64 {
        self.memory_back.unwrap_or(0).max(self.process_gone)
    }
}

/// How long giving the machine back took, over the newest yields. Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct YieldTimes {
    /// How many yields these figures are of.
    pub count: u64,
    /// Half of them took at most this long.
    pub p50: u64,
    /// 95 of 100 took at most this long.
    pub p95: u64,
    /// The longest.
    pub longest: u64,
}

impl Store {
    /// How many yields [`Store::yield_times`] looks back.
    pub const YIELDS_LOOKED_AT: u32 = 1000;

    /// Keeps a decision.
    pub async fn decided(&self, record: &DecisionRecord) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO decisions (at, state, sentence, decision, signals) VALUES ($1, $2, $3, $4, $5)")
            .bind(record.at as i64)
            .bind(&record.state)
            .bind(&record.sentence)
            .bind(to_json("decision", &record.decision)?)
            .bind(to_json("decision", &record.signals)?)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The newest decisions, the newest first.
    pub async fn decisions(&self, limit: u32) -> Result<Vec<DecisionRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT at, state, sentence, decision, signals FROM decisions ORDER BY at DESC, id DESC LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(DecisionRecord {
                    at: row.try_get::<i64, _>("at")? as u64,
                    state: row.try_get("state")?,
                    sentence: row.try_get("sentence")?,
                    decision: from_json("decision", row.try_get("decision")?)?,
                    signals: from_json("decision", row.try_get("signals")?)?,
                })
            })
            .collect()
    }

    /// Forgets decisions from before a moment (Unix milliseconds); gives how many.
    pub async fn forget_decisions(&self, before: u64) -> Result<u64, StoreError> {
        let gone = sqlx::query("DELETE FROM decisions WHERE at < $1").bind(before as i64).execute(&self.pool).await?;
        Ok(gone.rows_affected())
    }

    /// Keeps how long giving the machine back took, and the [`Store::YIELDS_LOOKED_AT`] newest of them.
    pub async fn gave_back(&self, record: &YieldRecord) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO yields (at, reason, noticed, process_gone, memory_back) VALUES ($1, $2, $3, $4, $5)")
            .bind(record.at as i64)
            .bind(&record.reason)
            .bind(record.noticed as i64)
            .bind(record.process_gone as i64)
            .bind(record.memory_back.map(|back| back as i64))
            .execute(&self.pool)
            .await?;
        sqlx::query("DELETE FROM yields WHERE id <= (SELECT MAX(id) FROM yields) - $1")
            .bind(Self::YIELDS_LOOKED_AT)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The newest yields, the newest first.
    pub async fn yields(&self, limit: u32) -> Result<Vec<YieldRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT at, reason, noticed, process_gone, memory_back FROM yields ORDER BY at DESC, id DESC LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(YieldRecord {
                    at: row.try_get::<i64, _>("at")? as u64,
                    reason: row.try_get("reason")?,
                    noticed: row.try_get::<i64, _>("noticed")? as u64,
                    process_gone: row.try_get::<i64, _>("process_gone")? as u64,
                    memory_back: row.try_get::<Option<i64>, _>("memory_back")?.map(|back| back as u64),
                })
            })
            .collect()
    }

    /// How long giving the machine back took, over the newest [`Store::YIELDS_LOOKED_AT`] yields.
    pub async fn yield_times(&self) -> Result<YieldTimes, StoreError> {
        let mut times: Vec<u64> =
            self.yields(Self::YIELDS_LOOKED_AT).await?.iter().map(YieldRecord::given_back).collect();
        times.sort_unstable();
        let Some(&longest) = times.last() else { return Ok(YieldTimes::default()) };
        // The nearest rank: the smallest value that enough of them do not exceed.
        let rank = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
        Ok(YieldTimes { count: times.len() as u64, p50: rank(50), p95: rank(95), longest })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    async fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("state.db")).await.unwrap();
        (directory, store)
    }

    #[tokio::test]
    async fn decisions_are_kept_in_order_and_forgotten_by_age() {
        let (_directory, store) = store().await;
        for at in [3_000, 1_000, 2_000] {
            let decision = DecisionRecord {
                at,
                state: "waiting".to_owned(),
                sentence: format!("Waiting: reason {at}."),
                decision: json!({"state": "waiting"}),
                signals: json!({"idle": at}),
            };
            store.decided(&decision).await.unwrap();
        }
        let newest: Vec<u64> = store.decisions(2).await.unwrap().iter().map(|decision| decision.at).collect();
        assert_eq!(newest, [3_000, 2_000], "the newest first");
        assert_eq!(store.forget_decisions(2_000).await.unwrap(), 1);
        assert_eq!(store.decisions(10).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn yield_times_are_of_what_the_owner_waited_for() {
        let (_directory, store) = store().await;
        assert_eq!(store.yield_times().await.unwrap(), YieldTimes::default());
        for n in 1..=100 {
            let memory_back = (n % 2 == 0).then_some(10 * n + 5);
            let reason = "you are back".to_owned();
            store
                .gave_back(&YieldRecord { at: n, reason, noticed: 1, process_gone: 10 * n, memory_back })
                .await
                .unwrap();
        }
        let times = store.yield_times().await.unwrap();
        assert_eq!(times, YieldTimes { count: 100, p50: 505, p95: 950, longest: 1005 });
        assert_eq!(store.yields(1).await.unwrap()[0].memory_back, Some(1005));
    }
}
