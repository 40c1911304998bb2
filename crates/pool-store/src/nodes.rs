//! The nodes an orchestrator has met.

use alloy_primitives::Address;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::Row;

use crate::{Store, StoreError};

/// A node that has registered at least once. `C` is what it measured of itself, as JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRecord<C> {
    /// The operator's address.
    pub address: Address,
    /// The name it gave itself.
    pub name: String,
    /// What it said it can do, when last seen.
    pub capabilities: C,
    /// When it first registered, Unix seconds.
    pub first_seen: u64,
    /// When it last registered, Unix seconds.
    pub last_seen: u64,
}

impl Store {
    /// Remembers a registration at `now` (Unix seconds).
    pub async fn node_seen<C: Serialize>(
        &self,
        address: Address,
        name: &str,
        capabilities: &C,
        now: u64,
    ) -> Result<(), StoreError> {
        let capabilities = to_json("node", capabilities)?;
        sqlx::query(
            "INSERT INTO nodes (address, name, capabilities, first_seen, last_seen) VALUES ($1, $2, $3, $4, $4)
             ON CONFLICT (address) DO UPDATE
             SET name = excluded.name, capabilities = excluded.capabilities, last_seen = excluded.last_seen",
        )
        .bind(address.to_checksum(None))
        .bind(name)
        .bind(capabilities)
        .bind(now as i64)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Every node ever met, the most recent first.
    pub async fn nodes<C: DeserializeOwned>(&self) -> Result<Vec<NodeRecord<C>>, StoreError> {
        let rows = sqlx::query(
            "SELECT address, name, capabilities, first_seen, last_seen FROM nodes ORDER BY last_seen DESC, address",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(NodeRecord {
                    address: from_json("node", &quoted(row.try_get("address")?))?,
                    name: row.try_get("name")?,
                    capabilities: from_json("node", row.try_get("capabilities")?)?,
                    first_seen: row.try_get::<i64, _>("first_seen")? as u64,
                    last_seen: row.try_get::<i64, _>("last_seen")? as u64,
                })
            })
            .collect()
    }
}

pub(crate) fn to_json<T: Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Row { what, source })
}

pub(crate) fn from_json<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Row { what, source })
}

/// A plain word as JSON.
pub(crate) fn quoted(word: &str) -> String {
    serde_json::Value::from(word).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_keeps_its_first_day_and_shows_its_latest_face() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("state.db")).await.unwrap();
        let (alice, bob) = (Address::repeat_byte(1), Address::repeat_byte(2));
        store.node_seen(alice, "alice", &4u32, 100).await.unwrap();
        store.node_seen(bob, "bob", &8u32, 150).await.unwrap();
        store.node_seen(alice, "alice's desk", &6u32, 200).await.unwrap();
        let nodes = store.nodes::<u32>().await.unwrap();
        assert_eq!(nodes.len(), 2);
        assert_eq!(
            nodes[0],
            NodeRecord {
                address: alice,
                name: "alice's desk".to_owned(),
                capabilities: 6,
                first_seen: 100,
                last_seen: 200
            }
        );
    }
}
