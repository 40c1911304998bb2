//! All that happened in one vault, read at once, and what it adds up to.

use alloy::{
    primitives::{Address, B256},
    rpc::types::Filter,
};
use pool_types::{FlowRate, Usdc, Usdcx};
use serde::{Deserialize, Serialize};

use super::{
    Cursor, Event, Logged,
    decode::{EACH, decode},
};
use crate::{Chain, ChainError};

impl Chain {
    /// Every event of a session's vault on the node's present chain, in order: what a receipt is made of.
    pub async fn history_of_vault(&self, vault: Address) -> Result<Vec<Logged>, ChainError> {
        let operation = "read a session's history";
        let mut cursor = Cursor::at(self.book().start_block);
        cursor.listen_to(vault);
        let filter = Filter::new().from_block(self.book().start_block).address(vault).event_signature(EACH.to_vec());
        let mut logs = self.logs(&filter).await?;
        logs.sort_by_key(|log| (log.block_number, log.log_index));
        let mut events = Vec::with_capacity(logs.len());
        for log in &logs {
            let Some(event) = decode(self.book(), &cursor, log) else { continue };
            let (Some(number), Some(index)) = (log.block_number, log.log_index) else { continue };
            let Some(transaction) = log.transaction_hash else { continue };
            let block = self.block(number).await?.filter(|block| Some(block.hash) == log.block_hash);
            let timestamp = block.ok_or(ChainError::Nonsense { operation })?.timestamp;
            events.push(Logged { block: number, timestamp, index, transaction, event });
        }
        Ok(events)
    }
}

/// A stretch of time at one rate, in Unix seconds of the blocks that set it and the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// From the block that set the rate.
    pub from: u64,
    /// To the block that set the next.
    pub to: u64,
    /// The rate.
    pub rate: FlowRate,
}

/// What came into a vault and where it went, added up from the vault's own events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultBooks {
    /// What was paid in.
    pub paid: Usdc,
    /// What streamed out until the last rate was set: rates times seconds.
    pub streamed: Usdcx,
    /// What went back to the payer.
    pub refunded: Usdc,
    /// What lies in it now; less than a unit once it is closed.
    pub left: Usdcx,
    /// When which rate ran.
    pub stretches: Vec<Stretch>,
    /// Who closed it.
    pub closed_by: Option<Address>,
    /// The transactions that changed it, in order.
    pub transactions: Vec<B256>,
}

impl VaultBooks {
    /// Paid less streamed, refunded and left: nothing for a vault that stands still, or the figures do not agree.
    pub fn difference(&self) -> Option<Usdcx> {
        let accounted = self.streamed.checked_add(self.refunded.to_usdcx())?.checked_add(self.left)?;
        self.paid.to_usdcx().checked_sub(accounted)
    }

    fn book(&mut self, running: &mut Option<(u64, FlowRate)>, logged: &Logged) -> Option<()> {
        if self.transactions.last() != Some(&logged.transaction) {
            self.transactions.push(logged.transaction);
        }
        match logged.event {
            Event::VaultFunded { amount, .. } => self.paid = self.paid.checked_add(amount)?,
            Event::VaultRefunded { amount, .. } => self.refunded = self.refunded.checked_add(amount)?,
            Event::VaultClosed { by, .. } => self.closed_by = Some(by),
            Event::VaultRate { rate, .. } => {
                if let Some((from, rate)) = running.take() {
                    let stretch = Stretch { from, to: logged.timestamp, rate };
                    let amount = rate.over(stretch.to.checked_sub(from)?)?;
                    self.streamed = self.streamed.checked_add(amount.to_usdcx())?;
                    self.stretches.push(stretch);
                }
                *running = (rate != FlowRate::ZERO).then_some((logged.timestamp, rate));
            }
            _ => {}
        }
        Some(())
    }
}

impl Chain {
    /// Adds up a vault's events. Money that was refunded without ever having been wrapped counts as paid in.
    pub async fn books_of_vault(&self, vault: Address) -> Result<VaultBooks, ChainError> {
        let nonsense = || ChainError::Nonsense { operation: "add up the vault's events" };
        let (mut books, mut running) = (VaultBooks::default(), None);
        for logged in self.history_of_vault(vault).await? {
            books.book(&mut running, &logged).ok_or_else(nonsense)?;
        }
        if books.paid == Usdc::ZERO {
            books.paid = books.refunded;
        }
        let state = self.vault(vault).await?;
        books.left = state.available.checked_add(state.unwrapped.to_usdcx()).ok_or_else(nonsense)?;
        Ok(books)
    }
}
