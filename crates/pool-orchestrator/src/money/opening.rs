//! From an offer to an open session: a payment is checked, stored, and only then sent to the chain.

use std::time::Duration;

use alloy_primitives::{Address, B256};
use pool_chain::{
    Terms, VoucherCheckError, VoucherRefusal,
    x402::{self, Offer, Payment, Settlement},
};
use pool_coalition::session::{Quote, QuoteError};
use pool_journal::{RunOutcome, Timestamp};
use pool_store::{SessionState, SessionStored};
use pool_types::SessionId;
use serde_json::json;
use tracing::info;

use super::{Money, MoneyError, Session, offer::Offered, token_hash};
use crate::{PaymentRefusal, control::unix_now};

/// Seconds that a client has to sign and send its payment.
const OFFER_SECONDS: u64 = 300;
/// Seconds that may pass between a payment and its block.
const INCLUSION: u64 = 15;
/// How long a client is kept waiting for the block.
const OPENING: Duration = Duration::from_secs(45);

/// What somebody wants to buy.
pub(super) struct Wish<'a> {
    pub(super) payer: Address,
    pub(super) model: &'a str,
    pub(super) seconds: u64,
    /// Whether exactly these seconds are wanted. Those that were computed from tokens change with the measured speed:
    /// whatever was offered for them may be paid.
    pub(super) exactly: bool,
    pub(super) one_request: bool,
    /// The route that is asked for, as the client sees it.
    pub(super) resource: &'a str,
}

/// A session that is open.
pub(super) struct Opened {
    pub(super) session: SessionId,
    /// The value of the header `PAYMENT-RESPONSE`.
    pub(super) settlement: String,
    /// The bearer token: told once. None for a session of one request.
    pub(super) token: Option<String>,
}

/// Why a session was not opened.
pub(super) enum NotOpened {
    Refused(PaymentRefusal),
    /// Its transaction is on its way and has taken too long to wait for; the token is good once it is there.
    Pending(SessionId, String),
}

impl From<PaymentRefusal> for NotOpened {
    fn from(refusal: PaymentRefusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Money {
    /// Pays for one request, whatever time its tokens may take.
    pub(super) async fn pay_for_one(
        &self,
        payer: Address,
        payment: Option<&[u8]>,
        resource: &str,
        model: &str,
        tokens: u64,
    ) -> Result<Opened, PaymentRefusal> {
        let tariff = self.tariff();
        // Twice the measured time: others may run beside it. What is not used comes back.
        let measured = self.speed().and_then(|speed| tariff.seconds_for(tokens.saturating_mul(2), speed));
        let seconds = measured.unwrap_or(60).clamp(tariff.least_seconds.max(30), tariff.most_seconds);
        let wish = Wish { payer, model, seconds, exactly: false, one_request: true, resource };
        match self.open(&wish, payment).await {
            Ok(opened) => Ok(opened),
            Err(NotOpened::Refused(refusal)) => Err(refusal),
            Err(NotOpened::Pending(..)) => Err(PaymentRefusal::Unavailable(
                "the chain did not include the payment in time; what was paid is refunded".to_owned(),
            )),
        }
    }

    /// Offers a session, or opens it where `payment` pays for an offer of ours.
    pub(super) async fn open(&self, wish: &Wish<'_>, payment: Option<&[u8]>) -> Result<Opened, NotOpened> {
        let unavailable = |message: String| PaymentRefusal::Unavailable(message);
        let pool = (*self.0.pool.borrow()).ok_or_else(|| {
            unavailable("the coalition is not active on the chain yet; try again in a moment".to_owned())
        })?;
        let quote = self.0.tariff.quote(wish.seconds).map_err(|error| match error {
            QuoteError::Seconds { .. } => PaymentRefusal::Malformed(error.to_string()),
            QuoteError::Rate => unavailable(error.to_string()),
        })?;
        let Some(header) = payment else {
            return Err(self.required(wish, pool, quote, None).await?.into());
        };
        let payment = x402::parse_payment(header).map_err(|error| PaymentRefusal::Malformed(error.to_string()))?;
        match self.accept(wish, pool, &payment).await {
            Ok(session) => self.finish_opening(wish, session).await,
            Err(Unpaid::Refused(why)) => Err(self.required(wish, pool, quote, Some(why)).await?.into()),
            Err(Unpaid::Unavailable(message)) => Err(unavailable(message).into()),
        }
    }

    /// 402 with a fresh offer.
    async fn required(
        &self,
        wish: &Wish<'_>,
        pool: Address,
        quote: Quote,
        why: Option<Refused>,
    ) -> Result<PaymentRefusal, PaymentRefusal> {
        let time = self.0.chain.time().await.map_err(|error| PaymentRefusal::Unavailable(error.to_string()))?;
        let lifetime = if wish.one_request { 3600 } else { self.0.config.lifetime };
        let expiry = time.saturating_add(lifetime).saturating_add(quote.seconds);
        let offered = offered(wish, pool, quote, expiry);
        let session = self.0.offers.session(&offered, rand::random());
        let offer = self.offer(&offered, session)?;
        let description = format!("{} seconds of {}", quote.seconds, wish.model);
        let (header, message, code) = match why {
            None => {
                let message = format!(
                    "this costs {} USDC at most, of which {} USDC always come back; pay as the header \
                     PAYMENT-REQUIRED says",
                    quote.amount, quote.returned
                );
                (offer.to_header(wish.resource, &description), message, "payment_required")
            }
            Some(Refused { code, message }) => {
                (offer.to_header_with_error(wish.resource, &description, &message), message, code)
            }
        };
        Ok(PaymentRefusal::Required { header, message, code })
    }

    fn offer(&self, offered: &Offered<'_>, session: SessionId) -> Result<Offer, PaymentRefusal> {
        let terms = self.terms(offered, session);
        Offer::of_session(&self.0.config.book, terms, offered.quote.amount, OFFER_SECONDS)
            .map_err(|error| PaymentRefusal::Unavailable(error.to_string()))
    }

    fn terms(&self, offered: &Offered<'_>, session: SessionId) -> Terms {
        Terms {
            payer: offered.payer,
            orchestrator: self.0.wallet.address(),
            pool: offered.pool,
            max_rate: offered.quote.rate,
            expiry: offered.expiry,
            session: session.0,
        }
    }

    /// Checks a payment and stores the session that it opens. Nothing has been sent when it refuses.
    async fn accept(&self, wish: &Wish<'_>, pool: Address, payment: &Payment) -> Result<Accepted, Unpaid> {
        let unknown = || {
            Unpaid::Refused(Refused {
                code: "unknown_offer",
                message: "the payment is for an offer that was not made here on these terms; this is a new offer"
                    .to_owned(),
            })
        };
        // The offer says which session; the session's id proves that we made the offer, and on which terms.
        let named = payment.terms.ok_or_else(unknown)?;
        let paid_for = self.0.tariff.seconds_left(payment.amount.to_usdcx());
        let seconds = if wish.exactly { wish.seconds } else { paid_for };
        let quote = self.0.tariff.quote(seconds).map_err(|_| unknown())?;
        let offered = offered(wish, pool, quote, named.expiry);
        let id = SessionId(named.session);
        if !self.0.offers.made(id, &offered) {
            return Err(unknown());
        }
        let offer = self.offer(&offered, id).map_err(|_| unknown())?;
        if let Err(refusal) = offer.verify(payment) {
            return Err(self.0.chain.name_refusal(&payment.voucher, refusal).await.into());
        }
        let standing = self.0.chain.check_voucher(&payment.voucher, INCLUSION).await;
        standing.map_err(|error| match error {
            VoucherCheckError::Refused(refusal) => refusal.into(),
            VoucherCheckError::Chain(error) => Unpaid::Unavailable(error.to_string()),
        })?;
        let token =
            (!wish.one_request).then(|| format!("cps_{}", alloy_primitives::hex::encode(rand::random::<[u8; 32]>())));
        let session = Session {
            id,
            model: wish.model.to_owned(),
            payer: wish.payer,
            vault: offer.pay_to(),
            terms: self.terms(&offered, id),
            quote,
            voucher: payment.voucher.clone(),
            voucher_nonce: payment.voucher.authorization.nonce,
            token_hash: token.as_deref().map(token_hash),
            one_request: wish.one_request,
            state: SessionState::Opening,
            reason: None,
            created_at: unix_now(),
            opened_at: None,
            closed_at: None,
            receipt: None,
        };
        let stored = self.0.store.session_begun(&session).await;
        match stored.map_err(|error| Unpaid::Unavailable(error.to_string()))? {
            SessionStored::New => Ok(Accepted { session, token }),
            SessionStored::Known => Err(VoucherRefusal::Replayed.into()),
        }
    }

    /// Starts the run that opens a stored session; harmless where it runs already.
    pub(super) async fn start_opening(&self, session: &Session) -> Result<pool_journal::RunId, MoneyError> {
        let rate = if session.one_request { session.quote.rate } else { Default::default() };
        let input = json!({ "session": session.id, "vault": session.vault, "rate": rate });
        let key = format!("session/{}/open", session.id);
        let started = self.0.journal.start("session-open", &key, input).await;
        started.map_err(|error| MoneyError::Workflows(error.to_string()))
    }

    /// Sends the transaction and waits for its block.
    async fn finish_opening(&self, wish: &Wish<'_>, accepted: Accepted) -> Result<Opened, NotOpened> {
        let Accepted { session, token } = accepted;
        let failed = |message: String| NotOpened::Refused(PaymentRefusal::Unavailable(message));
        let run = self.start_opening(&session).await.map_err(|error| failed(error.to_string()))?;
        let deadline = Timestamp(self.0.journal.clock().now().0).after(OPENING);
        let outcome = match self.0.journal.wait(run, deadline).await {
            Ok(outcome) => outcome,
            Err(pool_journal::WaitError::Deadline(_)) if wish.one_request => {
                // Whoever asked is gone by the time it opens: it is closed at once, which refunds it.
                let late = Some("it opened too late");
                let moved = self.0.store.session_moved(session.id, SessionState::Closing, late, unix_now()).await;
                moved.map_err(|error| failed(error.to_string()))?;
                return Err(NotOpened::Pending(session.id, String::new()));
            }
            Err(pool_journal::WaitError::Deadline(_)) => {
                return Err(NotOpened::Pending(session.id, token.unwrap_or_default()));
            }
            Err(error) => return Err(failed(error.to_string())),
        };
        let transaction = opened_by(&outcome).ok_or_else(|| {
            let why = outcome.failure.map_or_else(|| "it was refused".to_owned(), |failure| failure.failure.message);
            failed(format!("the session was not opened and nothing was charged: {why}"))
        })?;
        info!(session = %session.id, vault = %session.vault, amount = %session.quote.amount, "a session was opened");
        let settlement = Settlement {
            success: true,
            error_reason: None,
            transaction: Some(transaction),
            network: self.0.config.book.caip2(),
            payer: session.payer,
        };
        Ok(Opened { session: session.id, settlement: settlement.to_header(), token })
    }
}

fn offered<'a>(wish: &Wish<'a>, pool: Address, quote: Quote, expiry: u64) -> Offered<'a> {
    Offered { payer: wish.payer, pool, model: wish.model, quote, expiry, one_request: wish.one_request }
}

/// The transaction that opened a session, from its run's outcome.
fn opened_by(outcome: &RunOutcome) -> Option<B256> {
    outcome.outputs.get("open")?.get("transaction")?.as_str()?.parse().ok()
}

struct Accepted {
    session: Session,
    token: Option<String>,
}

/// Why a payment is not taken, in words and for programs.
struct Refused {
    code: &'static str,
    message: String,
}

enum Unpaid {
    Refused(Refused),
    Unavailable(String),
}

impl From<VoucherRefusal> for Unpaid {
    fn from(refusal: VoucherRefusal) -> Self {
        Self::Refused(Refused { code: refusal.code(), message: refusal.to_string() })
    }
}
