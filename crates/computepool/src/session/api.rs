//! `/v1/sessions` as a payer sees it.

use alloy_primitives::Address;
use anyhow::{Context, Result, anyhow, bail};
use pool_chain::{Terms, x402};
use pool_types::{FlowRate, SessionId, Usdc, Usdcx};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::receipt::Receipt;
use crate::api_client::{ApiClient, Method, Reply};

/// How far a session got, as the orchestrator says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Opening,
    Open,
    Closing,
    Closed,
    Failed,
}

impl State {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Open => "open",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Failed => "failed",
        }
    }

    pub(crate) fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::Failed)
    }
}

/// A session as the orchestrator tells it. No debug form: it can hold the token. Written without it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct SessionView {
    pub(crate) id: SessionId,
    #[serde(default, skip_serializing)]
    pub(crate) token: Option<String>,
    pub(crate) state: State,
    pub(crate) reason: Option<String>,
    pub(crate) model: String,
    pub(crate) payer: Address,
    pub(crate) vault: Address,
    pub(crate) terms: Terms,
    pub(crate) paid: Usdc,
    /// The part of it that is never sold.
    pub(crate) returned: Usdc,
    pub(crate) rate: FlowRate,
    pub(crate) linger_seconds: u64,
    pub(crate) seconds: u64,
    pub(crate) seconds_left: u64,
    pub(crate) requests: u32,
    pub(crate) stream: Option<StreamView>,
    pub(crate) receipt: Option<Receipt>,
    pub(crate) created: u64,
}

/// What flows, at a moment of the chain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StreamView {
    pub(crate) at: u64,
    pub(crate) rate: FlowRate,
    pub(crate) streamed: Usdcx,
    pub(crate) operators: Vec<OperatorView>,
}

/// An operator's part of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OperatorView {
    pub(crate) operator: Address,
    pub(crate) units: u32,
    pub(crate) received: Usdcx,
}

/// What came of an attempt to open a session.
pub(crate) enum Attempt {
    /// The value of the header `PAYMENT-REQUIRED`, and the sentence beside it.
    Offer { header: Vec<u8>, message: String },
    /// It is open, or on its way.
    Opened { session: Box<SessionView>, settlement: Option<x402::Settlement> },
}

impl ApiClient {
    /// Asks to open a session; `payment` pays for an offer that was made before.
    pub(crate) async fn open_session(&self, wish: &Value, payment: Option<&str>) -> Result<Attempt> {
        let header = payment.map(|payment| (x402::PAYMENT_SIGNATURE, payment));
        let reply = self.send(Method::POST, "sessions", Some(wish), header).await?;
        match reply.status {
            200..=299 => {
                let settlement = reply.header(x402::PAYMENT_RESPONSE);
                let settlement = settlement.and_then(|value| x402::Settlement::from_header(&value));
                Ok(Attempt::Opened { session: Box::new(read(&reply)?), settlement })
            }
            402 => {
                let header = reply.header(x402::PAYMENT_REQUIRED);
                let header = header.context("the endpoint asks for payment without saying how (status 402)")?;
                Ok(Attempt::Offer { header, message: reply.message() })
            }
            _ => Err(reply.refusal()),
        }
    }

    /// A session now. The client's key must be the session's token.
    pub(crate) async fn session(&self, id: SessionId) -> Result<SessionView> {
        read_of(id, &self.send(Method::GET, &format!("sessions/{id}"), None, None).await?)
    }

    /// Closes a session: closed, or on its way. The client's key must be the session's token.
    pub(crate) async fn close_session(&self, id: SessionId) -> Result<SessionView> {
        read_of(id, &self.send(Method::DELETE, &format!("sessions/{id}"), None, None).await?)
    }
}

fn read_of(id: SessionId, reply: &Reply) -> Result<SessionView> {
    if !(200..300).contains(&reply.status) {
        return Err(reply.refusal());
    }
    let session = read(reply)?;
    if session.id != id {
        bail!("the endpoint answered with another session than the one that was asked for");
    }
    Ok(session)
}

fn read(reply: &Reply) -> Result<SessionView> {
    // The reason would quote the answer, and there may be a token in it.
    serde_json::from_slice(&reply.body).map_err(|_| anyhow!("the endpoint's session is not of this version's form"))
}
