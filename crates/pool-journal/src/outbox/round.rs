//! One round of a signer's driver: look, raise, admit, send.
//!
//! 1. *Look*: receipts of what is under way, and of what ended lately where there is doubt (`look.rs`).
//! 2. *Raise*: the fee of the transaction that all others wait for, if it waits too long; a new variant, same nonce.
//! 3. *Admit*: queued intents whose lane is free get a nonce and a signature, written down together (`admit.rs`).
//! 4. *Send*: the newest variant of everything that no block holds, in the order of nonces.

use std::collections::HashMap;

use alloy_primitives::{B256, Bytes, U256};

use super::{
    BroadcastError, CountAt, Fees, Intent, SignedTransaction, SignerError, UnsignedTransaction,
    driver::{Memory, Rest, RoundError, SignerDriver},
    fee::Offer,
    ledger::{is_delayed, sign_again, variant, was_broadcast},
    record::{IntentRow, VariantKind, VariantRow, to_row},
};
use crate::{JournalError, journal::Writing};

/// An intent with everything that was signed for it.
pub(super) struct Signed {
    pub(super) intent: IntentRow,
    pub(super) variants: Vec<VariantRow>,
}

impl Signed {
    /// The newest variant of the nonce that it has now.
    fn newest(&self) -> Option<&VariantRow> {
        self.variants.iter().rfind(|variant| Some(variant.nonce) == self.intent.nonce)
    }

    pub(super) fn has_nonce_below(&self, count: u64) -> bool {
        self.intent.nonce.is_some_and(|nonce| nonce < count)
    }
}

/// Which intents of the signer to load.
pub(super) enum Which {
    /// Those that no block holds.
    Pending,
    /// Those without an outcome that holds.
    UnderWay,
    /// Those that ended but are not buried deep.
    Ended,
}

/// At how many broadcasts that fail the rest of a round is left for later.
const FAILURES: usize = 3;
/// How often nodes must refuse a transaction for good before its nonce is used for nothing.
const REFUSALS: u32 = 5;

impl SignerDriver {
    pub(super) async fn round(&mut self) -> Result<Rest, RoundError> {
        let under_way = self.load(Which::UnderWay).await?;
        if under_way.is_empty() && !self.any_left().await? {
            self.memory = Memory::default();
            return Ok(Rest::Idle);
        }
        let head = self.ask(self.port.head()).await?;
        let count = self.ask(self.port.transaction_count(self.signer.address(), CountAt::Latest)).await?;

        self.look(under_way, head, count).await?;

        let pending = self.load(Which::Pending).await?;
        self.forget_all_but(&pending);
        let mut fees = None;
        self.raise(&pending, count, &mut fees).await?;
        let rest = self.admit(pending.len(), count, &mut fees).await?;

        let pending = self.load(Which::Pending).await?;
        self.send(&pending).await?;
        Ok(rest)
    }

    /// The signer as it is stored.
    pub(super) fn account(&self) -> String {
        self.signer.address().to_string()
    }

    pub(super) async fn write(&self) -> Result<Writing, JournalError> {
        self.journal.write_as(self.generation).await
    }

    /// Whether the signer has intents that are queued or that a re-organisation could still bring back.
    async fn any_left(&self) -> Result<bool, JournalError> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT position FROM journal_intents
             WHERE chain = $1 AND signer = $2 AND state IN ('queued', 'final') LIMIT 1",
        )
        .bind(to_row(self.port.chain_id())?)
        .bind(self.account())
        .fetch_optional(self.journal.pool())
        .await?;
        Ok(found.is_some())
    }

    /// Intents in the order of nonces.
    pub(super) async fn load(&self, which: Which) -> Result<Vec<Signed>, JournalError> {
        let query = match which {
            Which::Pending => {
                "SELECT * FROM journal_intents WHERE chain = $1 AND signer = $2 AND state = 'signed' ORDER BY nonce"
            }
            Which::UnderWay => {
                "SELECT * FROM journal_intents
                 WHERE chain = $1 AND signer = $2 AND state IN ('signed', 'included') ORDER BY nonce"
            }
            Which::Ended => {
                "SELECT * FROM journal_intents WHERE chain = $1 AND signer = $2 AND state = 'final' ORDER BY nonce"
            }
        };
        let mut connection = self.journal.pool().acquire().await?;
        let rows = sqlx::query(query)
            .bind(to_row(self.port.chain_id())?)
            .bind(self.account())
            .fetch_all(&mut *connection)
            .await?;
        let mut intents = Vec::with_capacity(rows.len());
        for row in &rows {
            let intent = IntentRow::read(row)?;
            let variants = VariantRow::all_of(&mut connection, &intent.key).await?;
            intents.push(Signed { intent, variants });
        }
        Ok(intents)
    }

    fn forget_all_but(&mut self, pending: &[Signed]) {
        let Memory { sent, waits_since, urgent, underpriced, refusals, missing, .. } = &mut self.memory;
        let keys: HashMap<&str, &Signed> = pending.iter().map(|signed| (signed.intent.key.as_str(), signed)).collect();
        let hashes: Vec<B256> = pending.iter().filter_map(Signed::newest).map(|variant| variant.hash).collect();
        sent.retain(|hash, _| hashes.contains(hash));
        waits_since.retain(|hash, _| hashes.contains(hash));
        urgent.retain(|key| keys.contains_key(key.as_str()));
        underpriced.retain(|key| keys.contains_key(key.as_str()));
        refusals.retain(|key, _| keys.contains_key(key.as_str()));
        missing.retain(|key, _| keys.contains_key(key.as_str()));
    }

    /// What gas costs, asked for once in a round.
    pub(super) async fn fees(&self, known: &mut Option<Fees>) -> Result<Fees, RoundError> {
        match known {
            Some(fees) => Ok(*fees),
            None => Ok(*known.insert(self.ask(self.port.fees()).await?)),
        }
    }

    /// Signs, but does not wait for ever.
    pub(super) async fn sign(&self, unsigned: &UnsignedTransaction) -> Result<SignedTransaction, SignerError> {
        let limit = self.settings.call_timeout;
        let late = |_| Err(SignerError::Unavailable(format!("no answer within {limit:?}")));
        tokio::time::timeout(limit, self.signer.sign(unsigned)).await.unwrap_or_else(late)
    }

    /// The fields of a variant of an intent.
    pub(super) fn unsigned(
        &self,
        intent: &IntentRow,
        kind: VariantKind,
        nonce: u64,
        offer: Offer,
    ) -> UnsignedTransaction {
        let (gas_limit, to, value, data) = match kind {
            VariantKind::Call => (intent.gas_limit, intent.to, intent.value, intent.data.clone()),
            VariantKind::Cancel => (Intent::MIN_GAS_LIMIT, intent.signer, U256::ZERO, Bytes::new()),
        };
        UnsignedTransaction {
            chain_id: intent.chain,
            nonce,
            max_fee_per_gas: offer.max_fee,
            max_priority_fee_per_gas: offer.priority_fee,
            gas_limit,
            to,
            value,
            data,
        }
    }

    /// Signs new variants of what was found too cheap, waits too long at the front, or is refused for good.
    async fn raise(&mut self, pending: &[Signed], count: u64, fees: &mut Option<Fees>) -> Result<(), RoundError> {
        let now = self.journal.clock().now();
        let mut raised = Vec::new();
        for signed in pending {
            let (Signed { intent, variants }, Some(newest)) = (signed, signed.newest()) else { continue };
            let is_next = newest.nonce == count;
            let refused = self.memory.refusals.get(&intent.key).is_some_and(|refusals| *refusals >= REFUSALS);
            let kind = if refused && is_next { VariantKind::Cancel } else { newest.kind };
            let too_cheap = self.memory.underpriced.remove(&intent.key);
            let since = self.memory.waits_since.get(&newest.hash);
            let too_long = is_next && since.is_some_and(|since| now.since(*since) >= self.settings.bump_after);
            let has_room = variants.len() < self.settings.variants;
            if kind == newest.kind && !((too_cheap || too_long) && has_room) {
                continue;
            }
            let fees = self.fees(fees).await?;
            let Some(offer) = Offer::above(newest, fees, self.settings.max_fee) else {
                raised
                    .push((signed, Err("the fee is at its ceiling; the transaction waits for gas to become cheaper")));
                continue;
            };
            let unsigned = self.unsigned(intent, kind, newest.nonce, offer);
            match self.sign(&unsigned).await {
                Ok(bytes) => raised.push((signed, Ok(variant(kind, &unsigned, bytes, now)))),
                Err(SignerError::Refused(_)) => raised.push((signed, Err("the signer refuses to raise the fee"))),
                Err(error) => return Err(error.into()),
            }
        }
        if raised.is_empty() {
            return Ok(());
        }
        let mut writing = self.write().await?;
        for (Signed { intent, .. }, result) in &raised {
            match result {
                Ok(variant) => sign_again(&mut writing, intent, variant).await?,
                Err(trouble) => is_delayed(&mut writing, intent, trouble).await?,
            }
        }
        writing.commit().await?;
        for (Signed { intent, .. }, result) in &raised {
            if result.is_ok() {
                self.memory.refusals.remove(&intent.key);
            }
        }
        Ok(())
    }

    /// Broadcasts what is due, and writes down what the node said that is new.
    async fn send(&mut self, pending: &[Signed]) -> Result<(), RoundError> {
        let mut taken = Vec::new();
        let mut troubles: Vec<(&IntentRow, String)> = Vec::new();
        let mut unreachable = Vec::new();
        for signed in pending {
            let (Signed { intent, .. }, Some(newest)) = (signed, signed.newest()) else { continue };
            let now = self.journal.clock().now();
            let last = self.memory.sent.get(&newest.hash);
            let due = last.is_none_or(|last| now.since(*last) >= self.settings.rebroadcast_after);
            if !due && !self.memory.urgent.contains(&intent.key) {
                continue;
            }
            let answer = self.ask(self.port.broadcast(&newest.raw)).await;
            self.memory.urgent.remove(&intent.key);
            if !matches!(answer, Err(BroadcastError::Unreachable(_))) {
                self.memory.sent.insert(newest.hash, now);
                self.memory.waits_since.entry(newest.hash).or_insert(now);
            }
            match answer {
                Ok(()) | Err(BroadcastError::AlreadyKnown) => {
                    // What is cancelled keeps its trouble: it will be the reason.
                    if !newest.was_broadcast || (intent.trouble.is_some() && newest.kind == VariantKind::Call) {
                        taken.push((intent, newest));
                    }
                }
                // A receipt of one of its variants, or somebody else's transaction: the next look tells.
                Err(BroadcastError::NonceTooLow) => drop(self.memory.urgent.insert(intent.key.clone())),
                Err(error @ BroadcastError::Underpriced) => {
                    self.memory.underpriced.insert(intent.key.clone());
                    troubles.push((intent, error.to_string()));
                }
                Err(error @ BroadcastError::InsufficientFunds) => {
                    tracing::warn!(signer = %self.signer.address(), chain = self.port.chain_id(), "outbox: {error}");
                    troubles.push((intent, error.to_string()));
                    // Those after it cost as much.
                    break;
                }
                Err(error @ BroadcastError::Refused(_)) => {
                    *self.memory.refusals.entry(intent.key.clone()).or_default() += 1;
                    troubles.push((intent, error.to_string()));
                }
                Err(BroadcastError::Unreachable(error)) => {
                    unreachable.push(error);
                    if unreachable.len() >= FAILURES {
                        break;
                    }
                }
            }
        }
        troubles.retain(|(intent, trouble)| intent.trouble.as_ref() != Some(trouble));
        if !taken.is_empty() || !troubles.is_empty() {
            let mut writing = self.write().await?;
            for (intent, variant) in taken {
                was_broadcast(&mut writing, intent, variant).await?;
            }
            for (intent, trouble) in troubles {
                is_delayed(&mut writing, intent, &trouble).await?;
            }
            writing.commit().await?;
        }
        match unreachable.pop() {
            Some(error) if unreachable.len() + 1 >= FAILURES => Err(error.into()),
            // What was not sent is due in the next round.
            _ => Ok(()),
        }
    }
}
