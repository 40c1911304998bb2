//! The coalitions an orchestrator formed, and the epochs they used up.

use pool_types::{Epoch, Failure, ModelId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sqlx::Row;

use crate::{
    Store, StoreError,
    nodes::{from_json, quoted, to_json},
};

/// How far a coalition got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CoalitionState {
    /// Its members were told their layers.
    Formed,
    /// It answered requests.
    Active,
    /// It ended.
    Ended,
}

/// One coalition. `A` is its assignment, as JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct CoalitionRecord<A> {
    /// The generation of members and layers.
    pub epoch: Epoch,
    /// What it served.
    pub model: ModelId,
    /// Who held what.
    pub assignment: A,
    /// How far it got.
    pub state: CoalitionState,
    /// Why it ended.
    pub reason: Option<Failure>,
    /// Unix seconds.
    pub formed_at: u64,
    /// Unix seconds, if it ever answered.
    pub active_at: Option<u64>,
    /// Unix seconds, if it ended.
    pub ended_at: Option<u64>,
}

impl Store {
    /// The epoch of the next coalition: above every epoch this orchestrator has used, whatever restarts lie
    /// between. After a broken database was set aside nobody knows how far the old one got, so counting goes on from
    /// `now` (Unix seconds), which no count of real coalitions reaches.
    pub async fn next_epoch(&self, now: u64) -> Result<Epoch, StoreError> {
        let last: i64 =
            sqlx::query_scalar("SELECT COALESCE(MAX(epoch), 0) FROM coalitions").fetch_one(&self.pool).await?;
        let next = (last as u64) + 1;
        Ok(Epoch(if last == 0 && self.set_aside().is_some() { now.max(next) } else { next }))
    }

    /// Records that a coalition is being formed at `now`. Call it before any member hears of the epoch.
    pub async fn coalition_formed<A: Serialize>(
        &self,
        epoch: Epoch,
        model: ModelId,
        assignment: &A,
        now: u64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO coalitions (epoch, model, assignment, state, formed_at) VALUES ($1, $2, $3, 'formed', $4)",
        )
        .bind(epoch.0 as i64)
        .bind(model.to_string())
        .bind(to_json("coalition", assignment)?)
        .bind(now as i64)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Records that a coalition answers requests from `now` on.
    pub async fn coalition_active(&self, epoch: Epoch, now: u64) -> Result<(), StoreError> {
        sqlx::query("UPDATE coalitions SET state = 'active', active_at = $2 WHERE epoch = $1 AND state = 'formed'")
            .bind(epoch.0 as i64)
            .bind(now as i64)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Records why and when a coalition ended; the first reason stands.
    pub async fn coalition_ended(&self, epoch: Epoch, reason: &Failure, now: u64) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE coalitions SET state = 'ended', reason = $2, ended_at = $3 WHERE epoch = $1 AND state <> 'ended'",
        )
        .bind(epoch.0 as i64)
        .bind(to_json("coalition", reason)?)
        .bind(now as i64)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Ends every coalition that an earlier run left open (it was killed before it could say why).
    pub async fn end_left_over_coalitions(&self, reason: &Failure, now: u64) -> Result<u64, StoreError> {
        let done =
            sqlx::query("UPDATE coalitions SET state = 'ended', reason = $1, ended_at = $2 WHERE state <> 'ended'")
                .bind(to_json("coalition", reason)?)
                .bind(now as i64)
                .execute(&self.pool)
                .await?;
        Ok(done.rows_affected())
    }

    /// The latest coalitions, newest first.
    pub async fn coalitions<A: DeserializeOwned>(&self, limit: u32) -> Result<Vec<CoalitionRecord<A>>, StoreError> {
        let rows = sqlx::query("SELECT * FROM coalitions ORDER BY epoch DESC LIMIT $1")
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter()
            .map(|row| {
                let reason: Option<String> = row.try_get("reason")?;
                Ok(CoalitionRecord {
                    epoch: Epoch(row.try_get::<i64, _>("epoch")? as u64),
                    model: from_json("coalition", &quoted(row.try_get("model")?))?,
                    assignment: from_json("coalition", row.try_get("assignment")?)?,
                    state: from_json("coalition", &quoted(row.try_get("state")?))?,
                    reason: reason.map(|text| from_json("coalition", &text)).transpose()?,
                    formed_at: row.try_get::<i64, _>("formed_at")? as u64,
                    active_at: row.try_get::<Option<i64>, _>("active_at")?.map(|at| at as u64),
                    ended_at: row.try_get::<Option<i64>, _>("ended_at")?.map(|at| at as u64),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use pool_types::ReasonCode;

    use super::*;

    #[tokio::test]
    async fn epochs_grow_over_restarts_even_when_the_old_database_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let mut last = Epoch(0);
        for round in 0..3 {
            let store = Store::open(&path).await.unwrap();
            let epoch = store.next_epoch(1000).await.unwrap();
            assert!(epoch > last, "round {round}: {epoch:?} after {last:?}");
            store.coalition_formed(epoch, ModelId::default(), &"assignment", 1000).await.unwrap();
            store.close().await;
            last = epoch;
        }
        std::fs::write(&path, "broken ".repeat(1000)).unwrap();
        let store = Store::open(&path).await.unwrap();
        assert_eq!(store.next_epoch(1_800_000_000).await.unwrap(), Epoch(1_800_000_000));
    }

    #[tokio::test]
    async fn a_coalition_is_formed_serves_and_ends_once() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("state.db")).await.unwrap();
        let model = ModelId([7; 32].into());
        store.coalition_formed(Epoch(1), model, &vec![1, 2], 10).await.unwrap();
        assert!(
            store.coalition_formed(Epoch(1), model, &vec![3], 11).await.is_err(),
            "an epoch belongs to one coalition"
        );
        store.coalition_active(Epoch(1), 12).await.unwrap();
        let lost = Failure::new(ReasonCode::PeerLost, "a node fell silent");
        store.coalition_ended(Epoch(1), &lost, 20).await.unwrap();
        store.coalition_ended(Epoch(1), &Failure::new(ReasonCode::StandDown, "shut down"), 30).await.unwrap();
        store.coalition_formed(Epoch(2), model, &vec![2, 1], 31).await.unwrap();

        let records = store.coalitions::<Vec<u32>>(10).await.unwrap();
        assert_eq!(records.iter().map(|r| r.epoch).collect::<Vec<_>>(), [Epoch(2), Epoch(1)]);
        assert_eq!(records[1].reason, Some(lost), "the first reason stands");
        assert_eq!((records[1].active_at, records[1].ended_at), (Some(12), Some(20)));
        assert_eq!(records[1].model, model);

        let killed = Failure::new(ReasonCode::StandDown, "the orchestrator ended");
        assert_eq!(store.end_left_over_coalitions(&killed, 40).await.unwrap(), 1);
        assert_eq!(store.coalitions::<Vec<u32>>(1).await.unwrap()[0].state, CoalitionState::Ended);
    }
}
