//! The code behind the sessions' workflows. Each step may be run again at any time, and then changes nothing.

use std::sync::Arc;

use alloy_primitives::{Address, U256};
use async_trait::async_trait;
use pool_chain::{Call, ChainError, calls};
use pool_journal::{Action, Actions, Intent, Outcome, Receipt, Step, StepError};
use pool_store::{SessionState, StoreError};
use pool_types::{FlowRate, SessionId, Usdc};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Money, MoneyError, Session, receipt};
use crate::control::unix_now;

/// Adds the sessions' actions.
pub(super) fn register(actions: Actions, money: &Money) -> Actions {
    actions
        .with("session/open", Arc::new(Open(money.clone())))
        .with("superfluid/distribute-flow", Arc::new(SetRate(money.clone())))
        .with("session/close", Arc::new(Close(money.clone())))
        .with("session/refund", Arc::new(Refund(money.clone())))
        .with("session/receipt", Arc::new(MakeReceipt(money.clone())))
}

/// What every session step is given.
#[derive(Deserialize)]
struct Input {
    session: SessionId,
}

/// What a step that sets a rate is given.
#[derive(Deserialize)]
struct RateInput {
    session: SessionId,
    rate: FlowRate,
    number: u64,
}

struct Open(Money);
struct SetRate(Money);
struct Close(Money);
struct Refund(Money);
struct MakeReceipt(Money);

#[async_trait]
impl Action for Open {
    async fn run(&self, step: &Step, input: Value) -> Result<Value, StepError> {
        let money = &self.0;
        let session = money.session_of_step(&input).await?;
        let rate = if session.one_request { session.quote.rate } else { FlowRate::ZERO };
        let book = &money.0.config.book;
        let call = calls::open(book, &session.terms, &session.voucher, rate)
            .map_err(|refusal| StepError::failed(refusal.code(), refusal.to_string()))?;
        let outcome = step.transact(money.intent(step.key(), &call, vault_lane(session.vault), false)).await?;
        match money.included(&call, outcome).await? {
            Ok(receipt) => {
                money.0.store.session_moved(session.id, SessionState::Open, None, unix_now()).await.map_err(retry)?;
                let session = money.session_of_step(&input).await?;
                match session.state {
                    SessionState::Open => money.opened(&session).await.map_err(chain_retry)?,
                    // It was given up while it was opened.
                    SessionState::Closing => {
                        let started = money.start_closing(&session).await;
                        started.map_err(|error| StepError::retry("closing", error.to_string()))?;
                    }
                    SessionState::Opening | SessionState::Closed | SessionState::Failed => {}
                }
                Ok(transaction(&receipt))
            }
            Err(NotIncluded { code, message }) => {
                let moved = money.0.store.session_moved(session.id, SessionState::Failed, Some(&message), unix_now());
                moved.await.map_err(retry)?;
                Err(StepError::failed(code, message))
            }
        }
    }
}

#[async_trait]
impl Action for SetRate {
    async fn run(&self, step: &Step, input: Value) -> Result<Value, StepError> {
        let money = &self.0;
        let RateInput { session: id, rate, number } = read(&input)?;
        let session = money.session_of_step(&input).await?;
        let call = calls::set_rate(session.vault, rate);
        let intent = money.intent(step.key(), &call, vault_lane(session.vault), true);
        // Submitted in the order of their numbers: one that finds a newer one behind it has lost its turn.
        let turn = money.0.rates.lock().await;
        let submitted = money.0.journal.transaction(&intent.key).await?.is_some();
        let newest = money.0.store.rates_intended(id).await.map_err(retry)?;
        if !submitted && newest > number {
            return Ok(json!({ "dropped": true }));
        }
        let outcome = step.transact(intent).await;
        drop(turn);
        match outcome? {
            Outcome::Superseded { .. } => Ok(json!({ "dropped": true })),
            outcome => match money.included(&call, outcome).await? {
                Ok(receipt) => {
                    money.ledger().arrived(id, rate);
                    Ok(transaction(&receipt))
                }
                Err(NotIncluded { code, message }) => {
                    money.rate_failed(&session).await.map_err(chain_retry)?;
                    Err(StepError::failed(code, message))
                }
            },
        }
    }
}

#[async_trait]
impl Action for Close {
    async fn run(&self, step: &Step, input: Value) -> Result<Value, StepError> {
        let money = &self.0;
        let session = money.session_of_step(&input).await?;
        let key = step.key();
        let submitted = money.0.journal.transaction(&key).await?.is_some();
        let vault = money.0.chain.vault(session.vault).await.map_err(chain_retry)?;
        let mut done = json!({ "transaction": null });
        // Its payer, or anybody after its expiry, may have closed it before.
        if submitted || !vault.closed {
            let call = calls::close(session.vault);
            let outcome = step.transact(money.intent(key, &call, vault_lane(session.vault), false)).await?;
            match money.included(&call, outcome).await? {
                Ok(receipt) => done = transaction(&receipt),
                Err(NotIncluded { code, message }) => {
                    // Somebody was faster: what counts is that it is closed.
                    let now = money.0.chain.vault(session.vault).await.map_err(chain_retry)?;
                    if !now.closed {
                        return Err(StepError::failed(code, message));
                    }
                }
            }
        }
        let vault = money.0.chain.vault(session.vault).await.map_err(chain_retry)?;
        if !vault.closed {
            return Err(StepError::retry("not_closed", "the chain does not show the session as closed yet"));
        }
        money.ledger().closed(session.id);
        done["refundDeferred"] = (has_refund(&vault)).into();
        Ok(done)
    }
}

#[async_trait]
impl Action for Refund {
    async fn run(&self, step: &Step, input: Value) -> Result<Value, StepError> {
        let money = &self.0;
        let session = money.session_of_step(&input).await?;
        let vault = money.0.chain.vault(session.vault).await.map_err(chain_retry)?;
        if !has_refund(&vault) {
            return Ok(json!({ "transaction": null }));
        }
        // Money that reached a session which was never opened: its vault is deployed and closed, which refunds it.
        let book = &money.0.config.book;
        let call = match (vault.deployed, vault.closed) {
            (false, _) => calls::deploy(book, &session.terms),
            (true, false) => calls::close(session.vault),
            (true, true) => calls::refund(session.vault),
        };
        let key = format!("{}/{}/{}", step.key(), step.attempt(), call.what.replace(' ', "-"));
        let outcome = step.transact(money.intent(key, &call, vault_lane(session.vault), false)).await?;
        match money.included(&call, outcome).await? {
            Ok(receipt) => {
                let vault = money.0.chain.vault(session.vault).await.map_err(chain_retry)?;
                if has_refund(&vault) {
                    return Err(StepError::retry("deferred", "the rest has not reached its payer yet"));
                }
                Ok(transaction(&receipt))
            }
            Err(NotIncluded { code, message }) => Err(StepError::retry(code, message)),
        }
    }
}

#[async_trait]
impl Action for MakeReceipt {
    async fn run(&self, _step: &Step, input: Value) -> Result<Value, StepError> {
        let money = &self.0;
        let session = money.session_of_step(&input).await?;
        let (receipt, difference) = receipt::read(&money.0.chain, &session).await.map_err(chain_retry)?;
        if difference.wei() != 0 {
            // Nothing may be hidden: it is kept, shown and said.
            warn!(session = %session.id, %difference, "paid is not streamed and refunded");
        }
        let receipt_value = serde_json::to_value(&receipt).unwrap_or_default();
        money.0.store.session_receipt(session.id, &receipt).await.map_err(retry)?;
        money.0.store.session_moved(session.id, SessionState::Closed, None, unix_now()).await.map_err(retry)?;
        info!(session = %session.id, paid = %receipt.paid, refunded = %receipt.refunded, "a session was closed");
        Ok(receipt_value)
    }
}

impl Money {
    async fn session_of_step(&self, input: &Value) -> Result<Session, StepError> {
        let Input { session } = read(input)?;
        let found = self.0.store.session(session).await.map_err(retry)?;
        found.ok_or_else(|| StepError::failed("unknown_session", "the session is not in the store"))
    }

    /// A transaction of the orchestrator.
    pub(super) fn intent(&self, key: String, call: &Call, lane: String, supersedable: bool) -> Intent {
        Intent {
            key,
            chain: self.0.config.book.chain_id,
            signer: self.0.wallet.address(),
            lane,
            supersedable,
            to: call.to,
            value: U256::ZERO,
            data: call.data.clone(),
            gas_limit: call.gas_limit,
            deadline: None,
        }
    }

    /// What became of a transaction; with the reason where it did nothing.
    pub(super) async fn included(
        &self,
        call: &Call,
        outcome: Outcome,
    ) -> Result<Result<Receipt, NotIncluded>, StepError> {
        let (code, message) = match outcome {
            Outcome::Confirmed { receipt } => return Ok(Ok(receipt)),
            Outcome::Reverted { receipt } => {
                let from = self.0.wallet.address();
                let why = self.0.chain.why_reverted(from, call, receipt.block.number).await;
                let (name, sentence) = match why {
                    Ok(Some(revert)) => (revert.name.unwrap_or("reverted"), revert.to_string()),
                    Ok(None) => ("reverted", "another transaction was in its way".to_owned()),
                    Err(error) if error.is_transient() => return Err(chain_retry(error)),
                    Err(_) => ("reverted", "the contract refused".to_owned()),
                };
                (name.to_owned(), format!("the chain refused to {}: {sentence}", call.what))
            }
            Outcome::Superseded { .. } => ("superseded".to_owned(), "a newer transaction took its place".to_owned()),
            Outcome::Expired => ("expired".to_owned(), "it was not sent in time".to_owned()),
            Outcome::Refused { reason } => ("refused".to_owned(), reason),
        };
        Ok(Err(NotIncluded { code, message }))
    }

    /// A rate could not be set: the ledger is told what flows, so that it wants again what is missing.
    async fn rate_failed(&self, session: &Session) -> Result<(), ChainError> {
        let vault = self.0.chain.vault(session.vault).await?;
        let mut ledger = self.ledger();
        if vault.closed {
            ledger.close(session.id, self.now(), "its payer closed it");
        } else {
            // The vault does not let it start: there is nothing left to be served for.
            ledger.not_sent(session.id, vault.rate);
            ledger.close(session.id, self.now(), "its stream could not be set");
        }
        drop(ledger);
        self.0.wake.notify_one();
        Ok(())
    }

    /// Starts the run that closes a session; harmless where it runs already.
    pub(super) async fn start_closing(&self, session: &Session) -> Result<(), MoneyError> {
        self.0.store.session_moved(session.id, SessionState::Closing, None, unix_now()).await?;
        let key = format!("session/{}/close", session.id);
        let input = json!({ "session": session.id, "vault": session.vault });
        let started = self.0.journal.start("session-close", &key, input).await;
        started.map(|_| ()).map_err(|error| MoneyError::Workflows(error.to_string()))
    }
}

/// Why a transaction has no effect.
pub(super) struct NotIncluded {
    pub(super) code: String,
    pub(super) message: String,
}

/// Whether a vault holds a whole unit that could go back.
fn has_refund(vault: &pool_chain::VaultState) -> bool {
    vault.unwrapped > Usdc::ZERO || vault.available.whole_usdc() > Usdc::ZERO
}

fn vault_lane(vault: Address) -> String {
    format!("vault/{vault}")
}

/// What later nodes and the audit may know of a transaction.
pub(super) fn transaction(receipt: &Receipt) -> Value {
    json!({
        "transaction": receipt.transaction,
        "block": receipt.block.number,
        "gasUsed": receipt.gas_used,
    })
}

pub(super) fn read<T: serde::de::DeserializeOwned>(input: &Value) -> Result<T, StepError> {
    T::deserialize(input)
        .map_err(|error| StepError::failed("input", format!("the step's input is not usable: {error}")))
}

pub(super) fn retry(error: StoreError) -> StepError {
    StepError::retry("store", error.to_string())
}

pub(super) fn chain_retry(error: ChainError) -> StepError {
    if error.is_transient() {
        StepError::retry("chain", error.to_string())
    } else {
        StepError::failed("chain", error.to_string())
    }
}
