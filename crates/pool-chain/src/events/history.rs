//! All that happened in one vault, read at once.

use alloy::rpc::types::Filter;

use super::{
    Cursor, Logged,
    decode::{EACH, decode},
};
use crate::{Chain, ChainError};
use alloy::primitives::Address;

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
