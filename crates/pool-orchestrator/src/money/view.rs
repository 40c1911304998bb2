//! A session as its payer sees it.

use alloy_primitives::Address;
use pool_chain::{ChainError, Terms};
use pool_store::SessionState;
use pool_types::{FlowRate, SessionId, Usdc, Usdcx};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Money, Session, SessionReceipt, streamed};

/// A session. Amounts are whole units as text: of 10^-6 USDC, or of 10^-18 USDCx where it says so.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Session)]
pub(crate) struct SessionView {
    /// Its id.
    #[schema(value_type = String)]
    id: SessionId,
    #[schema(example = "session")]
    object: &'static str,
    /// The bearer token for its requests: told once, when it is opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "cps_0123")]
    token: Option<String>,
    /// `opening`, `open`, `closing`, `closed` or `failed`.
    #[schema(value_type = String)]
    state: SessionState,
    /// Why it failed or was closed, where there is something to say.
    #[schema(required)]
    reason: Option<String>,
    model: String,
    /// Who pays, and whom every refund goes to.
    #[schema(value_type = String)]
    payer: Address,
    /// Where the money lies.
    #[schema(value_type = String)]
    vault: Address,
    /// What the vault's address is a function of.
    #[schema(value_type = Object)]
    terms: Terms,
    /// What was paid in.
    #[schema(value_type = String)]
    paid: Usdc,
    /// The part of it that is never sold and always comes back.
    #[schema(value_type = String)]
    returned: Usdc,
    /// Charged for each second while a request runs, and for the linger after.
    #[schema(value_type = String)]
    rate: FlowRate,
    /// Seconds that the stream goes on after the last request.
    linger_seconds: u64,
    /// Seconds of work that were bought.
    seconds: u64,
    /// Seconds of work that are left.
    seconds_left: u64,
    /// Requests that run now.
    requests: u32,
    /// What the chain says now; null while it does not answer.
    #[schema(required)]
    stream: Option<StreamView>,
    /// What it came to, once closed.
    #[schema(required)]
    receipt: Option<SessionReceipt>,
    /// Unix seconds.
    created: u64,
}

/// A session's stream at a moment of the chain.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SessionStream)]
struct StreamView {
    /// The chain's time, Unix seconds.
    at: u64,
    /// What flows now; 0 while it stands still.
    #[schema(value_type = String)]
    rate: FlowRate,
    /// What has streamed by then, in wei of 10^-18 USDCx.
    #[schema(value_type = String)]
    streamed: Usdcx,
    /// Who receives it.
    operators: Vec<OperatorView>,
}

/// An operator's part of the stream.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SessionOperator)]
struct OperatorView {
    #[schema(value_type = String)]
    operator: Address,
    /// Its share of 1,000,000.
    units: u32,
    /// What it has received from this session, in wei of 10^-18 USDCx.
    #[schema(value_type = String)]
    received: Usdcx,
}

impl Money {
    /// The session as it is now; the token only where it has just been made.
    pub(super) async fn session_view(&self, session: Session, token: Option<String>) -> SessionView {
        let stream = match session.state {
            SessionState::Open | SessionState::Closing => self.stream_view(&session).await.ok(),
            SessionState::Opening | SessionState::Closed | SessionState::Failed => None,
        };
        let (seconds_left, requests) = {
            let ledger = self.ledger();
            let live = ledger.get(session.id);
            live.map_or((0, 0), |live| (live.seconds_left(self.now()), live.running()))
        };
        SessionView {
            id: session.id,
            object: "session",
            token,
            state: session.state,
            reason: session.reason,
            model: session.model,
            payer: session.payer,
            vault: session.vault,
            terms: session.terms,
            paid: session.quote.amount,
            returned: session.quote.returned,
            rate: session.quote.rate,
            linger_seconds: if session.one_request { 0 } else { self.0.tariff.linger },
            seconds: session.quote.seconds,
            seconds_left,
            requests,
            stream,
            receipt: session.receipt,
            created: session.created_at,
        }
    }

    async fn stream_view(&self, session: &Session) -> Result<StreamView, ChainError> {
        let vault = self.0.chain.vault(session.vault).await?;
        let streamed = streamed(session.quote.amount, &vault);
        let coalition = self.0.chain.coalition(self.pool_id()).await?;
        let seats = coalition.map(|coalition| coalition.seats).unwrap_or_default();
        let operators = seats.into_iter().map(|seat| OperatorView {
            operator: seat.operator,
            units: seat.units,
            // Rates are whole units and shares are of a million: nothing is rounded.
            received: Usdcx::from_wei(streamed.wei() / 1_000_000 * i128::from(seat.units)),
        });
        Ok(StreamView { at: vault.at, rate: vault.rate, streamed, operators: operators.collect() })
    }
}
