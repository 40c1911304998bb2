//! Keeps the coalition on the chain equal to the one that serves.
//!
//! Whenever a coalition becomes active here, it is proposed to its members, voted and activated at the registry, unless
//! the registry has exactly it. Sessions are sold only while both are the same: who serves is who is paid.

use std::{sync::Arc, time::Duration};

use pool_chain::{CoalitionState, contracts::Stage as ChainStage};
use pool_coalition::proposal::{Proposal, Seat, shares};
use pool_journal::{RunOutcome, Timestamp};
use pool_wire::{Prompt, control::Member};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::Money;
use crate::control::{CoalitionView, Stage};

/// After something went wrong.
const AGAIN: Duration = Duration::from_secs(2);
/// How often the registry is looked at although nothing happened here.
const LOOK: Duration = Duration::from_secs(60);
/// How long a proposal binds its members.
const TERM_SECONDS: u64 = 30 * 24 * 3600;
/// A coalition that ends sooner than this is voted again.
const RENEW_SECONDS: u64 = 3 * 24 * 3600;
/// How long a workflow may take before it is looked at again.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Tokens of the request that measures the speed.
const CANARY_TOKENS: u32 = 32;
const CANARY: Duration = Duration::from_secs(60);

/// Runs until the shutdown.
pub(super) async fn run(money: Money) {
    let mut views = money.0.control.view();
    let shutdown = money.0.shutdown.clone();
    let work = async {
        loop {
            let view = views.borrow_and_update().clone();
            let wait = match money.settle(&view).await {
                Ok(()) => LOOK,
                Err(error) => {
                    warn!(%error, "the coalition on the chain is not the one that serves");
                    AGAIN
                }
            };
            tokio::select! {
                changed = views.wait_for(|now| now.state != view.state || now.epoch != view.epoch) => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep(wait) => {}
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}

impl Money {
    /// Makes the registry's coalition the one that serves, and says so to those who sell sessions.
    async fn settle(&self, view: &Arc<CoalitionView>) -> Result<(), anyhow::Error> {
        let (Stage::Active, Some(epoch)) = (&view.state, view.epoch) else {
            // Sessions that are open go on when the same members are back; new ones are not sold meanwhile.
            self.0.pool.send_replace(None);
            return Ok(());
        };
        let members: Vec<Member> =
            view.members.iter().map(|member| Member { address: member.address, layers: member.layers }).collect();
        let manifest = view.model_id.0;
        let found = self.0.chain.coalition(self.pool_id()).await?;
        let time = self.0.chain.time().await?;
        if let Some(found) = &found
            && self.is_settled(found, &members, time)
        {
            self.serve(found);
            return Ok(());
        }
        self.0.pool.send_replace(None);
        if let Some(found) = &found
            && matches!(found.stage, ChainStage::Active | ChainStage::Draining)
            && !found.seats.iter().all(|seat| members.iter().any(|member| member.address == seat.operator))
        {
            // Those who left cannot agree to anything: their coalition must end before another begins.
            self.run_to_end(
                "coalition-dissolve",
                &format!("coalition/{}/{}/dissolve", self.pool_id(), found.epoch),
                json!({
                    "pool": self.pool_id(),
                    "epoch": found.epoch,
                }),
            )
            .await?;
        }
        let next = found.as_ref().map_or(1, |found| found.epoch + 1);
        let proposal = self.proposal(next, manifest, &members, time);
        let digest = proposal.digest(&self.domain());
        let input = json!({ "pool": proposal.pool, "epoch": next, "serving": epoch, "proposal": proposal });
        self.run_to_end("coalition-activate", &format!("coalition/{}/{next}/{digest}", proposal.pool), input).await?;
        let found = self.0.chain.coalition(self.pool_id()).await?;
        match found.filter(|found| self.is_settled(found, &members, time)) {
            Some(found) => {
                info!(pool = %found.gda_pool, epoch = %found.epoch, "the coalition is active on the chain");
                self.serve(&found);
                Ok(())
            }
            None => anyhow::bail!("the registry does not hold the coalition that was activated"),
        }
    }

    /// Sells sessions of this coalition at once, and measures its speed beside it.
    fn serve(&self, found: &CoalitionState) {
        self.0.pool.send_replace(Some(found.gda_pool));
        if self.speed().is_none() {
            let money = self.clone();
            tokio::spawn(async move { money.measure_speed().await });
        }
    }

    fn is_settled(&self, found: &CoalitionState, members: &[Member], time: u64) -> bool {
        let seats = found.seats.iter().map(|seat| (seat.operator, seat.layers));
        found.stage == ChainStage::Active
            && found.expiry > time.saturating_add(RENEW_SECONDS)
            && found.orchestrator == self.0.wallet.address()
            && found.rate == self.0.tariff.rate
            && seats.eq(members.iter().map(|member| (member.address, member.layers)))
    }

    fn proposal(&self, epoch: u64, manifest: alloy_primitives::B256, members: &[Member], time: u64) -> Proposal {
        let weights: Vec<u64> = members.iter().map(|member| u64::from(member.layers.len())).collect();
        let seats = members.iter().zip(shares(&weights));
        Proposal {
            pool: self.pool_id(),
            epoch,
            manifest,
            orchestrator: self.0.wallet.address(),
            seats: seats
                .map(|(member, units)| Seat { operator: member.address, layers: member.layers, units })
                .collect(),
            swaps: Vec::new(),
            rate: self.0.tariff.rate,
            // A proposal that is tried again within the hour is the same one.
            expiry: (time / 3600 * 3600).saturating_add(TERM_SECONDS),
        }
    }

    async fn run_to_end(
        &self,
        workflow: &str,
        key: &str,
        input: serde_json::Value,
    ) -> Result<RunOutcome, anyhow::Error> {
        // A run that failed stays failed: the next attempt is another run.
        for attempt in 0_u32.. {
            let key = format!("{key}/{attempt}");
            let run = self.0.journal.start(workflow, &key, input.clone()).await;
            let run = match run {
                Ok(run) => run,
                Err(pool_journal::StartError::KeyTaken(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            let known = self.0.journal.outcome(run).await?;
            if known.is_some_and(|outcome| outcome.failure.is_some()) {
                continue;
            }
            let deadline: Timestamp = self.0.journal.clock().now().after(PATIENCE);
            let outcome = self.0.journal.wait(run, deadline).await?;
            return match &outcome.failure {
                None => Ok(outcome),
                Some(failure) => anyhow::bail!("{workflow}: {}", failure.failure.message),
            };
        }
        anyhow::bail!("{workflow} failed too often")
    }

    /// Asks the coalition something short, so that tokens have a price before anybody pays for one.
    async fn measure_speed(&self) {
        let measured = timeout(CANARY, async {
            let prompt = Prompt {
                tokens: vec![0; 4],
                sampling: pool_types::Sampling::default(),
                max_new_tokens: CANARY_TOKENS,
                stop_tokens: Vec::new(),
            };
            let mut completion = self.0.completions.start(&self.0.model, prompt).await.ok()?;
            completion.tokens.recv().await?.ok()?;
            let (first, mut more) = (Instant::now(), 0_u32);
            while let Some(token) = completion.tokens.recv().await {
                let token = token.ok()?;
                more += 1;
                if token.finish.is_some() {
                    break;
                }
            }
            Some(f64::from(more) / first.elapsed().as_secs_f64())
        });
        match measured.await {
            Ok(Some(speed)) => {
                info!(tokens_per_second = speed, "the coalition's speed was measured");
                self.measured(speed);
            }
            Ok(None) | Err(_) => warn!("the coalition's speed could not be measured; tokens have no price yet"),
        }
    }
}
