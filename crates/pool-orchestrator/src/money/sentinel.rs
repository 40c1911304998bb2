//! The sentinel: a task with an unprivileged key of its own that stops streams which run short.
//!
//! The driver stops every stream in time. Should it not (a stuck nonce, a chain that takes nothing from the
//! orchestrator), anybody may stop a stream whose runway is below the guard, and this task does, before Superfluid's
//! liquidators could take the buffer.

use std::{collections::HashMap, time::Duration};

use alloy_primitives::{Address, U256};
use pool_chain::calls;
use pool_journal::Intent;
use pool_types::{FlowRate, SessionId};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::Money;

/// How often every running stream is looked at, at least.
const LOOK: Duration = Duration::from_secs(5);
/// A session that was closed without us is noticed within a block.
const LEAST_PAUSE: Duration = Duration::from_millis(500);
/// A stream that should run and stands still for so long was stopped by its payer. Shorter than that, a re-organisation
/// may have taken its start out, which is then sent again.
const STOPPED: Duration = Duration::from_secs(5);

/// Runs until the shutdown.
pub(super) async fn run(money: Money) {
    let mut heads = money.0.chain.new_heads();
    let mut still = HashMap::new();
    loop {
        let streaming = money.ledger().streaming();
        for (session, vault) in streaming {
            if money.0.shutdown.is_cancelled() {
                return;
            }
            look(&money, session, vault, &mut still).await;
        }
        still.retain(|session, _| money.ledger().should_stream(*session));
        tokio::select! {
            () = async { tokio::time::sleep(LEAST_PAUSE).await; heads.changed().await } => {}
            () = tokio::time::sleep(LOOK) => {}
            () = money.0.shutdown.cancelled() => return,
        }
    }
}

/// Looks at one stream: stops it where it runs short, and tells the ledger where somebody else ended it.
async fn look(money: &Money, session: SessionId, vault: Address, still: &mut HashMap<SessionId, Instant>) {
    let state = match money.0.chain.vault(vault).await {
        Ok(state) => state,
        Err(error) => {
            debug!(%session, %error, "a stream could not be looked at");
            return;
        }
    };
    if state.closed {
        money.ledger().close(session, money.now(), "its payer closed it");
        money.0.wake.notify_one();
        return;
    }
    let guard = money.0.tariff.allowance.guard;
    if state.rate == FlowRate::ZERO && money.ledger().should_stream(session) {
        if still.entry(session).or_insert_with(Instant::now).elapsed() >= STOPPED {
            money.ledger().close(session, money.now(), "its payer stopped the stream");
            money.0.wake.notify_one();
        }
        return;
    }
    still.remove(&session);
    if state.running().is_short(guard) {
        warn!(%session, "a stream has run short and is stopped by the sentinel");
        let call = calls::stop(vault);
        let intent = Intent {
            // One for each time that it runs short: a vault that was stopped can be started again with more money.
            key: format!("sentinel/{session}/{}", state.at / 60),
            chain: money.0.config.book.chain_id,
            signer: money.0.config.sentinel.address(),
            lane: format!("sentinel/{vault}"),
            supersedable: false,
            to: call.to,
            value: U256::ZERO,
            data: call.data,
            gas_limit: call.gas_limit,
            deadline: None,
        };
        if let Err(error) = money.0.journal.submit(intent).await {
            warn!(%session, %error, "the sentinel could not store its transaction");
        }
    }
}
