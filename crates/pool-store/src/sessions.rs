//! The sessions that payers opened, and how far each got.

use alloy_primitives::{Address, B256};
use pool_types::SessionId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sqlx::{Row, sqlite::SqliteRow};

use crate::{
    Store, StoreError,
    nodes::{from_json, quoted, to_json},
};

/// How far a session got. It only moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Its voucher was accepted; the transaction that opens it is on its way.
    Opening,
    /// The chain holds its vault: it may be served.
    Open,
    /// It takes no more requests; the transaction that closes it is on its way.
    Closing,
    /// Everything not streamed was refunded.
    Closed,
    /// It never opened, and nothing was charged.
    Failed,
}

impl SessionState {
    fn text(self) -> &'static str {
        match self {
            SessionState::Opening => "opening",
            SessionState::Open => "open",
            SessionState::Closing => "closing",
            SessionState::Closed => "closed",
            SessionState::Failed => "failed",
        }
    }
}

/// A session as it is stored. Terms, quote, voucher and receipt are the caller's own, kept as JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRecord<Terms, Quote, Voucher, Receipt> {
    /// Which session.
    pub id: SessionId,
    /// The model it is for.
    pub model: String,
    /// Who pays.
    pub payer: Address,
    /// Where the money lies.
    pub vault: Address,
    /// What the vault's address is a function of.
    pub terms: Terms,
    /// What was sold.
    pub quote: Quote,
    /// The signed authorization.
    pub voucher: Voucher,
    /// Its nonce: with the payer, what makes it one of a kind.
    pub voucher_nonce: B256,
    /// SHA-256 of the bearer token; none for a session of one request.
    pub token_hash: Option<B256>,
    /// Whether it ends with its first request.
    pub one_request: bool,
    /// How far it got.
    pub state: SessionState,
    /// Why it failed, or was closed by somebody else.
    pub reason: Option<String>,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds, once open.
    pub opened_at: Option<u64>,
    /// Unix seconds, once closed.
    pub closed_at: Option<u64>,
    /// What it came to, once closed.
    pub receipt: Option<Receipt>,
}

/// Whether a session was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionStored {
    /// It is new.
    New,
    /// This session, or this voucher, was presented before.
    Known,
}

impl Store {
    /// Stores a new session with its voucher, unless one of them is known. Call it before anything is sent.
    pub async fn session_begun<T: Serialize, Q: Serialize, V: Serialize, R>(
        &self,
        session: &SessionRecord<T, Q, V, R>,
    ) -> Result<SessionStored, StoreError> {
        let done = sqlx::query(
            "INSERT INTO sessions (id, model, payer, vault, terms, quote, voucher, voucher_nonce, token_hash, \
             one_request, state, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
             ON CONFLICT DO NOTHING",
        )
        .bind(session.id.to_string())
        .bind(&session.model)
        .bind(session.payer.to_string())
        .bind(session.vault.to_string())
        .bind(to_json("session", &session.terms)?)
        .bind(to_json("session", &session.quote)?)
        .bind(to_json("session", &session.voucher)?)
        .bind(session.voucher_nonce.to_string())
        .bind(session.token_hash.map(|hash| hash.to_string()))
        .bind(session.one_request)
        .bind(session.state.text())
        .bind(session.created_at as i64)
        .execute(&self.pool)
        .await?;
        Ok(if done.rows_affected() == 1 { SessionStored::New } else { SessionStored::Known })
    }

    /// Moves a session on to `state` at `now`, with the reason where there is one. A session never moves back: the
    /// answer tells whether it moved.
    pub async fn session_moved(
        &self,
        id: SessionId,
        state: SessionState,
        reason: Option<&str>,
        now: u64,
    ) -> Result<bool, StoreError> {
        let from = match state {
            SessionState::Opening => ["", "", ""],
            SessionState::Open | SessionState::Failed => ["opening", "", ""],
            SessionState::Closing => ["opening", "open", ""],
            SessionState::Closed => ["opening", "open", "closing"],
        };
        let done = sqlx::query(
            "UPDATE sessions SET state = $2, reason = COALESCE($3, reason), \
             opened_at = CASE WHEN $2 = 'open' THEN $4 ELSE opened_at END, \
             closed_at = CASE WHEN $2 IN ('closed', 'failed') THEN $4 ELSE closed_at END \
             WHERE id = $1 AND state IN ($5, $6, $7)",
        )
        .bind(id.to_string())
        .bind(state.text())
        .bind(reason)
        .bind(now as i64)
        .bind(from[0])
        .bind(from[1])
        .bind(from[2])
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The number of the next rate that is intended for a session: 1, 2, ... Each number is given once.
    pub async fn next_rate_number(&self, id: SessionId) -> Result<u64, StoreError> {
        let number: i64 = sqlx::query_scalar("UPDATE sessions SET rates = rates + 1 WHERE id = $1 RETURNING rates")
            .bind(id.to_string())
            .fetch_one(&self.pool)
            .await?;
        Ok(number as u64)
    }

    /// How many rates were intended for a session: the newest one's number.
    pub async fn rates_intended(&self, id: SessionId) -> Result<u64, StoreError> {
        let number: Option<i64> = sqlx::query_scalar("SELECT rates FROM sessions WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        Ok(number.unwrap_or_default() as u64)
    }

    /// Keeps what a closed session came to; the first receipt stands.
    pub async fn session_receipt<R: Serialize>(&self, id: SessionId, receipt: &R) -> Result<(), StoreError> {
        sqlx::query("UPDATE sessions SET receipt = $2 WHERE id = $1 AND receipt IS NULL")
            .bind(id.to_string())
            .bind(to_json("session", receipt)?)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// One session.
    pub async fn session<T, Q, V, R>(&self, id: SessionId) -> Result<Option<SessionRecord<T, Q, V, R>>, StoreError>
    where
        T: DeserializeOwned,
        Q: DeserializeOwned,
        V: DeserializeOwned,
        R: DeserializeOwned,
    {
        let row =
            sqlx::query("SELECT * FROM sessions WHERE id = $1").bind(id.to_string()).fetch_optional(&self.pool).await?;
        row.as_ref().map(read).transpose()
    }

    /// Every session that is not over, oldest first.
    pub async fn live_sessions<T, Q, V, R>(&self) -> Result<Vec<SessionRecord<T, Q, V, R>>, StoreError>
    where
        T: DeserializeOwned,
        Q: DeserializeOwned,
        V: DeserializeOwned,
        R: DeserializeOwned,
    {
        let rows =
            sqlx::query("SELECT * FROM sessions WHERE state IN ('opening', 'open', 'closing') ORDER BY created_at, id")
                .fetch_all(&self.pool)
                .await?;
        rows.iter().map(read).collect()
    }
}

fn read<T, Q, V, R>(row: &SqliteRow) -> Result<SessionRecord<T, Q, V, R>, StoreError>
where
    T: DeserializeOwned,
    Q: DeserializeOwned,
    V: DeserializeOwned,
    R: DeserializeOwned,
{
    let text = |column: &str| row.try_get::<String, _>(column);
    let optional = |column: &str| row.try_get::<Option<String>, _>(column);
    let time = |column: &str| row.try_get::<Option<i64>, _>(column).map(|time| time.map(|time| time as u64));
    Ok(SessionRecord {
        id: from_json("session", &quoted(&text("id")?))?,
        model: text("model")?,
        payer: from_json("session", &quoted(&text("payer")?))?,
        vault: from_json("session", &quoted(&text("vault")?))?,
        terms: from_json("session", &text("terms")?)?,
        quote: from_json("session", &text("quote")?)?,
        voucher: from_json("session", &text("voucher")?)?,
        voucher_nonce: from_json("session", &quoted(&text("voucher_nonce")?))?,
        token_hash: optional("token_hash")?.map(|hash| from_json("session", &quoted(&hash))).transpose()?,
        one_request: row.try_get("one_request")?,
        state: from_json("session", &quoted(&text("state")?))?,
        reason: optional("reason")?,
        created_at: time("created_at")?.unwrap_or_default(),
        opened_at: time("opened_at")?,
        closed_at: time("closed_at")?,
        receipt: optional("receipt")?.map(|receipt| from_json("session", &receipt)).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Plain = SessionRecord<String, u64, String, u64>;

    fn session(byte: u8) -> Plain {
        SessionRecord {
            id: SessionId(B256::repeat_byte(byte)),
            model: "tiny".to_owned(),
            payer: Address::repeat_byte(1),
            vault: Address::repeat_byte(byte),
            terms: "terms".to_owned(),
            quote: 300,
            voucher: "signed".to_owned(),
            voucher_nonce: B256::repeat_byte(byte),
            token_hash: Some(B256::repeat_byte(byte)),
            one_request: false,
            state: SessionState::Opening,
            reason: None,
            created_at: 10 + u64::from(byte),
            opened_at: None,
            closed_at: None,
            receipt: None,
        }
    }

    async fn store(folder: &tempfile::TempDir) -> Store {
        Store::open(folder.path().join("state.db")).await.unwrap()
    }

    #[tokio::test]
    async fn a_session_is_remembered_through_its_life_and_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let first = store(&folder).await;
        assert_eq!(first.session_begun(&session(1)).await.unwrap(), SessionStored::New);
        assert!(first.session_moved(session(1).id, SessionState::Open, None, 20).await.unwrap());
        assert_eq!(first.next_rate_number(session(1).id).await.unwrap(), 1);
        first.close().await;

        let again = store(&folder).await;
        assert_eq!(again.next_rate_number(session(1).id).await.unwrap(), 2, "a number is never given twice");
        let live: Vec<Plain> = again.live_sessions().await.unwrap();
        let open = Plain { state: SessionState::Open, opened_at: Some(20), ..session(1) };
        assert_eq!(live, std::slice::from_ref(&open));
        again.session_moved(open.id, SessionState::Closing, Some("the payer asked"), 30).await.unwrap();
        again.session_moved(open.id, SessionState::Closed, None, 31).await.unwrap();
        again.session_receipt(open.id, &7_u64).await.unwrap();
        again.session_receipt(open.id, &8_u64).await.unwrap();
        let closed = again.session(open.id).await.unwrap();
        let reason = Some("the payer asked".to_owned());
        assert_eq!(
            closed,
            Some(Plain { state: SessionState::Closed, reason, closed_at: Some(31), receipt: Some(7), ..open }),
            "the first receipt stands"
        );
        assert_eq!(again.live_sessions::<String, u64, String, u64>().await.unwrap(), []);
        again.close().await;
    }

    #[tokio::test]
    async fn a_voucher_opens_one_session_and_a_session_never_moves_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        store.session_begun(&session(1)).await.unwrap();
        assert_eq!(store.session_begun(&session(1)).await.unwrap(), SessionStored::Known);
        let replayed = Plain { voucher_nonce: session(1).voucher_nonce, ..session(2) };
        assert_eq!(store.session_begun(&replayed).await.unwrap(), SessionStored::Known, "the voucher was used");
        let same_vault = Plain { vault: session(1).vault, ..session(3) };
        assert_eq!(store.session_begun(&same_vault).await.unwrap(), SessionStored::Known, "the vault is taken");

        let id = session(1).id;
        assert!(store.session_moved(id, SessionState::Closed, None, 5).await.unwrap());
        for back in [SessionState::Opening, SessionState::Open, SessionState::Closing, SessionState::Failed] {
            assert!(!store.session_moved(id, back, None, 6).await.unwrap(), "{back:?} after the end");
        }
        let kept: Plain = store.session(id).await.unwrap().unwrap();
        assert_eq!((kept.state, kept.closed_at), (SessionState::Closed, Some(5)));
        store.close().await;
    }
}
