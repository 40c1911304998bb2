//! What a session came to, every figure read back from the chain.

use alloy_primitives::{Address, B256};
use pool_chain::{Chain, ChainError, events::VaultBooks};
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

/// Reads a closed session's receipt from its vault's own events, and how far its figures are from agreeing.
pub(super) async fn read(chain: &Chain, session: &Session) -> Result<(SessionReceipt, Usdcx), ChainError> {
    let books = chain.books_of_vault(session.vault).await?;
    let difference = books.difference().unwrap_or(Usdcx::from_wei(i128::MAX));
    let VaultBooks { paid, streamed, refunded, left, stretches, closed_by, transactions } = books;
    let stretches =
        stretches.into_iter().map(|stretch| Stretch { from: stretch.from, to: stretch.to, rate: stretch.rate });
    let receipt = SessionReceipt {
        network: chain.book().caip2(),
        vault: session.vault,
        pool: session.terms.pool,
        paid,
        streamed,
        refunded,
        dust: left,
        stretches: stretches.collect(),
        closed_by,
        transactions,
    };
    Ok((receipt, difference))
}
