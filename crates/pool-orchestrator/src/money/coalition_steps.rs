//! The code behind the coalitions' workflows. Each step may be run again at any time, and then changes nothing.

use std::sync::Arc;

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_signer::SignerSync;
use async_trait::async_trait;
use pool_chain::{Call, calls, contracts::Stage};
use pool_coalition::proposal::{Ballot, Proposal};
use pool_journal::{Action, Actions, Intent, Step, StepError, Timestamp, Wake};
use pool_types::Epoch;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Money,
    session_steps::{NotIncluded, chain_retry, read, transaction},
};

/// How long an operator may be registered by its vote.
const REGISTRATION_SECONDS: u64 = 3600;

/// Adds the coalitions' actions.
pub(super) fn register(actions: Actions, money: &Money) -> Actions {
    actions
        .with("superfluid/create-pool", Arc::new(CreatePool(money.clone())))
        .with("coalition/propose", Arc::new(Propose(money.clone())))
        .with("coalition/vote", Arc::new(CollectVotes(money.clone())))
        .with("coalition/register", Arc::new(Register(money.clone())))
        .with("coalition/activate", Arc::new(Activate(money.clone())))
        .with("coalition/drain", Arc::new(Drain(money.clone())))
        .with("coalition/dissolve", Arc::new(Dissolve(money.clone())))
}

/// What the steps of an activation are given.
#[derive(Deserialize)]
struct Input {
    proposal: Proposal,
    /// The epoch of the coalition that serves: its members are asked.
    serving: Epoch,
}

/// What the votes came to.
#[derive(Deserialize)]
struct Votes {
    /// Each operator's registration, where it is not registered.
    registrations: Vec<(Address, Bytes)>,
    deadline: u64,
    /// In the registry's order of signers.
    approvals: Vec<Bytes>,
}

/// What the steps of a dissolution are given.
#[derive(Deserialize)]
struct PoolInput {
    pool: B256,
    epoch: u64,
}

struct CreatePool(Money);
struct Propose(Money);
struct CollectVotes(Money);
struct Register(Money);
struct Activate(Money);
struct Drain(Money);
struct Dissolve(Money);

#[async_trait]
impl Action for CreatePool {
    async fn run(&self, step: &Step, _input: Value) -> Result<Value, StepError> {
        let money = &self.0;
        let created = |pool: &pool_chain::CoalitionState| json!({ "gdaPool": pool.gda_pool });
        if let Some(found) = money.0.chain.coalition(money.pool_id()).await.map_err(chain_retry)? {
            return Ok(created(&found));
        }
        let call = calls::create_pool(&money.0.config.book, money.0.wallet.address(), money.pool_label());
        money.transact(step, step.key(), &call).await?;
        let found = money.0.chain.coalition(money.pool_id()).await.map_err(chain_retry)?;
        let found = found.ok_or_else(|| StepError::retry("not_there", "the chain does not show the pool yet"))?;
        Ok(created(&found))
    }
}

#[async_trait]
impl Action for Propose {
    async fn run(&self, _step: &Step, input: Value) -> Result<Value, StepError> {
        let Input { proposal, .. } = read(&input)?;
        let time = self.0.0.chain.time().await.map_err(chain_retry)?;
        proposal.check(time).map_err(|error| StepError::failed("proposal", error.to_string()))?;
        Ok(json!({ "hash": proposal.digest(&self.0.domain()) }))
    }
}

#[async_trait]
impl Action for CollectVotes {
    async fn run(&self, _step: &Step, input: Value) -> Result<Value, StepError> {
        let money = &self.0;
        let Input { proposal, serving } = read(&input)?;
        let chain = &money.0.chain;
        let time = chain.time().await.map_err(chain_retry)?;
        let (domain, deadline) = (money.domain(), time.saturating_add(REGISTRATION_SECONDS));
        let ballot = Ballot { domain, proposal: proposal.clone(), registration_deadline: deadline };
        let (mut approvals, mut registrations) = (Vec::new(), Vec::new());
        // Those who are bound by the present coalition are members of the next one, or it has ended.
        for signer in proposal.signers(money.0.wallet.address(), &[]) {
            if signer == money.0.wallet.address() && proposal.seats.iter().all(|seat| seat.operator != signer) {
                let signature = money.0.wallet.sign_hash_sync(&proposal.digest(&domain));
                let signature = signature.map_err(|_| StepError::failed("signing", "the pool's owner cannot sign"))?;
                approvals.push(Bytes::from(signature.as_bytes()));
                continue;
            }
            let vote = money.0.control.vote(serving, signer, &ballot).await;
            let vote = vote.map_err(|failure| StepError::failed("not_voted", failure.message))?;
            if !chain.is_registered(signer).await.map_err(chain_retry)? {
                registrations.push((signer, vote.registration));
            }
            approvals.push(vote.proposal);
        }
        Ok(json!({ "registrations": registrations, "deadline": deadline, "approvals": approvals }))
    }
}

#[async_trait]
impl Action for Register {
    async fn run(&self, step: &Step, input: Value) -> Result<Value, StepError> {
        let money = &self.0;
        let Votes { registrations, deadline, .. } = votes(&input)?;
        let mut waits = None;
        // Submitted together, so that they share a block.
        for (operator, signature) in registrations {
            if money.0.chain.is_registered(operator).await.map_err(chain_retry)? {
                continue;
            }
            let call = calls::register_for(&money.0.config.book, operator, deadline, &signature).map_err(malformed)?;
            match money.transact(step, format!("{}/{operator}", step.key()), &call).await {
                Ok(_) => {}
                Err(StepError::Waiting(wake)) => waits = Some(wake),
                Err(error) => return Err(error),
            }
        }
        waits.map_or_else(|| Ok(json!({})), |wake| Err(StepError::Waiting(wake)))
    }
}

#[async_trait]
impl Action for Activate {
    async fn run(&self, step: &Step, input: Value) -> Result<Value, StepError> {
        let money = &self.0;
        let Input { proposal, .. } = read(&input)?;
        let Votes { approvals, .. } = votes(&input)?;
        let call = calls::activate(&money.0.config.book, &proposal, &approvals).map_err(malformed)?;
        money.transact(step, step.key(), &call).await
    }
}

#[async_trait]
impl Action for Drain {
    async fn run(&self, step: &Step, input: Value) -> Result<Value, StepError> {
        let money = &self.0;
        let PoolInput { pool, epoch } = read(&input)?;
        let found = money.present(pool, epoch).await?;
        if found.stage != Stage::Active {
            return Ok(json!({ "transaction": null }));
        }
        let call = calls::drain(&money.0.config.book, pool, epoch);
        money.transact(step, step.key(), &call).await
    }
}

#[async_trait]
impl Action for Dissolve {
    async fn run(&self, step: &Step, input: Value) -> Result<Value, StepError> {
        let money = &self.0;
        let PoolInput { pool, epoch } = read(&input)?;
        let found = money.present(pool, epoch).await?;
        if matches!(found.stage, Stage::Active | Stage::Draining) {
            // The members have notice; the chain's clock decides when it is over.
            let soon = step.now().after(std::time::Duration::from_secs(5));
            return Err(StepError::Waiting(Wake::At(Timestamp(soon.0))));
        }
        let call = calls::dissolve(&money.0.config.book, pool, epoch);
        money.transact(step, step.key(), &call).await
    }
}

impl Money {
    /// Sends a transaction of the pool's lane, and gives what became of it.
    async fn transact(&self, step: &Step, key: String, call: &Call) -> Result<Value, StepError> {
        let intent = Intent { value: U256::ZERO, ..self.intent(key, call, format!("pool/{}", self.pool_id()), false) };
        let outcome = step.transact(intent).await?;
        match self.included(call, outcome).await? {
            Ok(receipt) => Ok(transaction(&receipt)),
            Err(NotIncluded { code, message }) => Err(StepError::failed(code, message)),
        }
    }

    /// The coalition that is to end, as the chain has it.
    async fn present(&self, pool: B256, epoch: u64) -> Result<pool_chain::CoalitionState, StepError> {
        let found = self.0.chain.coalition(pool).await.map_err(chain_retry)?;
        let found = found.filter(|found| found.epoch == epoch);
        found.ok_or_else(|| StepError::failed("stale", "the coalition is not the present one any more"))
    }
}

fn malformed(error: pool_chain::ProposalFormError) -> StepError {
    StepError::failed("malformed", error.to_string())
}

fn votes(input: &Value) -> Result<Votes, StepError> {
    read(input.get("votes").unwrap_or(&Value::Null))
}
