//! The seam between the gateway (HTTP) and whoever keeps the accounts: who pays for a request, and for how long.

use std::time::Duration;

use alloy_primitives::Address;
use async_trait::async_trait;
use pool_types::{FlowRate, SessionId, Usdc};
use thiserror::Error;
use tokio::sync::watch;

use crate::CancelGuard;

/// Who pays for a request, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payer {
    /// Nobody needs to.
    Nobody,
    /// A session that was opened before; its bearer token was shown.
    Session(SessionId),
    /// A wallet, for this one request.
    Wallet {
        /// The wallet.
        address: Address,
        /// The value of the header `PAYMENT-SIGNATURE`, once it pays.
        payment: Option<Vec<u8>>,
        /// What is asked for: the route, as the client sees it.
        resource: String,
    },
}

/// What a model costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// While a request of a session runs.
    pub rate: FlowRate,
    /// Seconds that the stream goes on after the last request.
    pub linger: u64,
    /// A million tokens of answer at the measured speed, one request at a time; none before any was measured.
    pub per_million_tokens: Option<Usdc>,
}

/// Leave to work for a request until it is spent. Dropping it ends the charge.
pub struct Fare {
    /// Holds the reason once there is no more time to be paid for.
    pub spent: watch::Receiver<Option<&'static str>>,
    /// The value of the answer's header `PAYMENT-RESPONSE`, where this request paid.
    pub settlement: Option<String>,
    /// Ends the charge on drop.
    pub guard: CancelGuard,
}

/// Why a request is not worked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PaymentRefusal {
    /// 400: nobody pays.
    #[error(
        "this model is paid for: open a session with POST /v1/sessions and send its token as a bearer token, or name \
         the paying wallet in the header X-Payer"
    )]
    NoPayer,
    /// 400: a header that cannot be read.
    #[error("{0}")]
    Malformed(String),
    /// 402: this is what it costs, and why what was presented does not pay for it.
    #[error("{message}")]
    Required {
        /// The value of the header `PAYMENT-REQUIRED`.
        header: String,
        /// One sentence.
        message: String,
        /// A short word that programs act on.
        code: &'static str,
    },
    /// 402: the session has nothing left, or is over.
    #[error("{message}")]
    Over {
        /// One sentence.
        message: &'static str,
        /// A short word that programs act on.
        code: &'static str,
    },
    /// 429: the session runs as many requests as it may.
    #[error("{0}")]
    Busy(&'static str),
    /// 503: the chain does not answer, or not in time.
    #[error("{0}")]
    Unavailable(String),
}

/// Whoever keeps the accounts.
#[async_trait]
pub trait Payments: Send + Sync + 'static {
    /// The session whose bearer token this is.
    fn session_of(&self, token: &str) -> Option<SessionId>;

    /// What a model costs.
    fn price(&self, model: &str) -> Option<Price>;

    /// Begins to charge `payer` for a request for `model` that may take so many tokens. Nothing may be worked before
    /// it returns.
    async fn board(&self, payer: &Payer, model: &str, tokens: u64) -> Result<Fare, PaymentRefusal>;

    /// An answer of so many tokens has ended; they took so long from the first to the last.
    fn answered(&self, tokens: u64, decoding: Duration);
}
