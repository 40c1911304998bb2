//! What a session came to, every figure read back from the chain.

use alloy_primitives::{Address, B256};
use pool_chain::{Chain, ChainError, events::Event};
use pool_types::{FlowRate, Usdc, Usdcx};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Session;

/// A stretch of time at one rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stretch {
    /// Unix seconds of the block that set the rate.
    pub from: u64,
    /// Unix seconds of the block that set the next.
    pub to: u64,
    /// Units of 10^-6 USDC a second.
    #[schema(value_type = String)]
    pub rate: FlowRate,
}

/// What a session came to: `paid = streamed + refunded`, to the last unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionReceipt {
    /// The chain (CAIP-2).
    pub network: String,
    /// The session's vault.
    #[schema(value_type = String)]
    pub vault: Address,
    /// The pool that was streamed to.
    #[schema(value_type = String)]
    pub pool: Address,
    /// What reached the vault, in units of 10^-6 USDC.
    #[schema(value_type = String)]
    pub paid: Usdc,
    /// What streamed to the operators, in wei of 10^-18 USDCx: the rates below times their seconds.
    #[schema(value_type = String)]
    pub streamed: Usdcx,
    /// What went back to the payer, in units of 10^-6 USDC.
    #[schema(value_type = String)]
    pub refunded: Usdc,
    /// What is left in the vault, in wei of 10^-18 USDCx: less than a unit.
    #[schema(value_type = String)]
    pub dust: Usdcx,
    /// When which rate ran.
    pub stretches: Vec<Stretch>,
    /// Who closed the session.
    #[schema(value_type = Option<String>)]
    pub closed_by: Option<Address>,
    /// The transactions that changed it, in order.
    #[schema(value_type = Vec<String>)]
    pub transactions: Vec<B256>,
}

impl SessionReceipt {
    /// Paid less streamed, refunded and dust: nothing, or the figures do not agree.
    pub fn difference(&self) -> Usdcx {
        let accounted = self.streamed.checked_add(self.refunded.to_usdcx()).and_then(|sum| sum.checked_add(self.dust));
        accounted
            .and_then(|accounted| self.paid.to_usdcx().checked_sub(accounted))
            .unwrap_or(Usdcx::from_wei(i128::MAX))
    }
}

/// Reads a closed session's receipt from its vault's own events.
pub(super) async fn read(chain: &Chain, session: &Session) -> Result<SessionReceipt, ChainError> {
    let events = chain.history_of_vault(session.vault).await?;
    let mut receipt = SessionReceipt {
        network: chain.book().caip2(),
        vault: session.vault,
        pool: session.terms.pool,
        paid: Usdc::ZERO,
        streamed: Usdcx::ZERO,
        refunded: Usdc::ZERO,
        dust: Usdcx::ZERO,
        stretches: Vec::new(),
        closed_by: None,
        transactions: Vec::new(),
    };
    let nonsense = || ChainError::Nonsense { operation: "add up the session's events" };
    let mut running: Option<(u64, FlowRate)> = None;
    for logged in events {
        if receipt.transactions.last() != Some(&logged.transaction) {
            receipt.transactions.push(logged.transaction);
        }
        match logged.event {
            Event::VaultFunded { amount, .. } => {
                receipt.paid = receipt.paid.checked_add(amount).ok_or_else(nonsense)?;
            }
            Event::VaultRate { rate, .. } => {
                if let Some((from, rate)) = running.take() {
                    let stretch = Stretch { from, to: logged.timestamp, rate };
                    let amount = rate.over(stretch.to.saturating_sub(from)).ok_or_else(nonsense)?;
                    receipt.streamed = receipt.streamed.checked_add(amount.to_usdcx()).ok_or_else(nonsense)?;
                    receipt.stretches.push(stretch);
                }
                running = (rate != FlowRate::ZERO).then_some((logged.timestamp, rate));
            }
            Event::VaultClosed { by, .. } => receipt.closed_by = Some(by),
            Event::VaultRefunded { amount, .. } => {
                receipt.refunded = receipt.refunded.checked_add(amount).ok_or_else(nonsense)?;
            }
            _ => {}
        }
    }
    let vault = chain.vault(session.vault).await?;
    receipt.dust = vault.available.checked_add(vault.unwrapped.to_usdcx()).ok_or_else(nonsense)?;
    Ok(receipt)
}
