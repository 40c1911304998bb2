//! Giving queued intents a nonce.
//!
//! The driver signs first and writes down after: nonce, variant and next nonce in one transaction. If the program
//! ends in between, the bytes were never broadcast and the nonce was never given out. If an intent was dropped in
//! between, its bytes and all after it are thrown away, and the next round begins from what is still wanted.

use std::time::Duration;

use alloy_primitives::{Bytes, U256};
use serde_json::json;

use super::{
    CountAt, Fees, Intent, SignerError,
    driver::{Rest, RoundError, SignerDriver},
    fee::Offer,
    ledger::{sign_first, variant},
    nonce::{Nonces, set_next},
    queue::{FILLER, drop_queued, insert},
    record::{IntentRow, VariantKind, VariantRow, to_row},
};
use crate::{JournalError, LogKind, Outcome, Timestamp, journal::Writing, log::Subject};

/// What was signed and is to be written down.
#[derive(Default)]
struct Batch {
    /// Transfers of nothing for nonces that nothing uses.
    fillers: Vec<(Intent, VariantRow)>,
    /// Intents, in the order of their new nonces.
    signed: Vec<(IntentRow, VariantRow)>,
    /// Intents that the signer will never sign.
    refused: Vec<(IntentRow, String)>,
    /// Why signing stopped early.
    trouble: Option<SignerError>,
}

impl SignerDriver {
    /// Admits as many queued intents as may be in flight beside `pending`.
    pub(super) async fn admit(
        &mut self,
        pending: usize,
        count: u64,
        fees: &mut Option<Fees>,
    ) -> Result<Rest, RoundError> {
        let free = self.settings.in_flight.saturating_sub(pending);
        let chain = self.port.chain_id();
        let mut connection = self.journal.pool().acquire().await?;
        let nonces = Nonces::read(&mut connection, chain, &self.account(), count).await?;
        drop(connection);
        let gaps = self.old_gaps(&nonces);
        let candidates = self.candidates(free).await?;
        if candidates.is_empty() && gaps.is_empty() {
            return Ok(Rest::Watch);
        }
        if nonces.chain_is_behind {
            tracing::warn!(
                signer = %self.signer.address(), chain, count,
                "the chain does not count transactions that were buried deep: the node is behind, or the chain was reset"
            );
            return Ok(Rest::Watch);
        }
        let first = match nonces.next {
            Some(next) => next.max(count),
            // The first time: whatever this key has in the mempool is not ours to replace.
            None => count.max(self.ask(self.port.transaction_count(self.signer.address(), CountAt::Pending)).await?),
        };
        let offer = Offer::first(self.fees(fees).await?, self.settings.max_fee);
        let batch = self.sign_all(&gaps, candidates, first, offer).await?;

        let mut writing = self.write().await?;
        let whole = self.write_batch(&mut writing, &batch, nonces.next, first).await?;
        writing.commit().await?;
        self.memory.gaps.retain(|nonce, _| !gaps.contains(nonce));
        match batch.trouble {
            Some(error) => Err(error.into()),
            None if whole => Ok(Rest::Watch),
            None => Ok(Rest::Again),
        }
    }

    /// Nonces that nothing has used for a while. At once would be too soon: a block that is being brought back, or a
    /// transaction of another program with this key, may use them.
    fn old_gaps(&mut self, nonces: &Nonces) -> Vec<u64> {
        let now = self.journal.clock().now();
        self.memory.gaps.retain(|nonce, _| nonces.gaps.contains(nonce));
        let old = |since: &Timestamp| now.since(*since) >= self.settings.bump_after.max(Duration::from_millis(1));
        let mut gaps = Vec::new();
        for nonce in nonces.gaps.iter().take(self.settings.in_flight) {
            if old(self.memory.gaps.entry(*nonce).or_insert(now)) {
                gaps.push(*nonce);
            }
        }
        gaps
    }

    /// Queued intents that may be signed: the oldest of their lane, with nothing of the lane in flight.
    async fn candidates(&self, free: usize) -> Result<Vec<IntentRow>, JournalError> {
        if free == 0 {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(
            "SELECT * FROM journal_intents AS one
             WHERE chain = $1 AND signer = $2 AND state = 'queued' AND NOT EXISTS (
                 SELECT 1 FROM journal_intents AS other
                 WHERE other.chain = one.chain AND other.lane = one.lane
                   AND (other.state IN ('signed', 'included')
                        OR (other.state = 'queued' AND other.position < one.position)))
             ORDER BY position LIMIT $3",
        )
        .bind(to_row(self.port.chain_id())?)
        .bind(self.account())
        .bind(i64::try_from(free).unwrap_or(i64::MAX))
        .fetch_all(self.journal.pool())
        .await?;
        rows.iter().map(IntentRow::read).collect()
    }

    async fn sign_all(
        &self,
        gaps: &[u64],
        candidates: Vec<IntentRow>,
        first: u64,
        offer: Offer,
    ) -> Result<Batch, RoundError> {
        let now = self.journal.clock().now();
        let mut batch = Batch::default();
        for nonce in gaps {
            let intent = self.filler(*nonce, now);
            let unsigned = super::UnsignedTransaction {
                chain_id: intent.chain,
                nonce: *nonce,
                max_fee_per_gas: offer.max_fee,
                max_priority_fee_per_gas: offer.priority_fee,
                gas_limit: intent.gas_limit,
                to: intent.to,
                value: intent.value,
                data: intent.data.clone(),
            };
            let bytes = self.sign(&unsigned).await?;
            batch.fillers.push((intent, variant(VariantKind::Call, &unsigned, bytes, now)));
        }
        let mut nonce = first;
        for intent in candidates {
            let unsigned = self.unsigned(&intent, VariantKind::Call, nonce, offer);
            match self.sign(&unsigned).await {
                Ok(bytes) => {
                    batch.signed.push((intent, variant(VariantKind::Call, &unsigned, bytes, now)));
                    nonce += 1;
                }
                Err(SignerError::Refused(reason)) => batch.refused.push((intent, reason)),
                Err(error) => {
                    batch.trouble = Some(error);
                    break;
                }
            }
        }
        Ok(batch)
    }

    fn filler(&self, nonce: u64, now: Timestamp) -> Intent {
        let (chain, signer) = (self.port.chain_id(), self.signer.address());
        Intent {
            key: format!("{FILLER}{chain}/{signer}/{nonce}/{now}"),
            chain,
            signer,
            lane: format!("{FILLER}{signer}/{nonce}"),
            supersedable: false,
            to: signer,
            value: U256::ZERO,
            data: Bytes::new(),
            gas_limit: Intent::MIN_GAS_LIMIT,
            deadline: None,
        }
    }

    /// Writes a batch down as far as it is still wanted; `false` if not all of it is.
    async fn write_batch(
        &self,
        writing: &mut Writing,
        batch: &Batch,
        known: Option<u64>,
        first: u64,
    ) -> Result<bool, JournalError> {
        let chain = self.port.chain_id();
        for (intent, variant) in &batch.fillers {
            insert(writing, None, intent).await?;
            let row = IntentRow::find(writing.connection(), &intent.key).await?;
            sign_first(writing, &row.ok_or(JournalError::Row { what: "intent" })?, variant).await?;
            let body = json!({"chain": chain, "signer": intent.signer, "nonce": variant.nonce});
            writing.log(Subject::default(), LogKind::NonceFilled, &body).await?;
        }
        for (intent, reason) in &batch.refused {
            if self.is_still_wanted(writing, intent).await? {
                drop_queued(writing, intent, &Outcome::Refused { reason: reason.clone() }).await?;
            }
        }
        let mut next = first;
        let mut whole = true;
        for (intent, variant) in &batch.signed {
            if !self.is_still_wanted(writing, intent).await? {
                whole = false;
                break;
            }
            sign_first(writing, intent, variant).await?;
            next = variant.nonce + 1;
        }
        if known != Some(next) {
            set_next(writing, chain, &self.account(), known, first, next).await?;
        }
        Ok(whole)
    }

    /// Whether an intent is queued still and its lane still free: a newer one may have come, and another signer may
    /// have taken the lane.
    async fn is_still_wanted(&self, writing: &mut Writing, intent: &IntentRow) -> Result<bool, JournalError> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT position FROM journal_intents AS one
             WHERE key = $1 AND state = 'queued' AND NOT EXISTS (
                 SELECT 1 FROM journal_intents AS other
                 WHERE other.chain = one.chain AND other.lane = one.lane AND other.state IN ('signed', 'included'))",
        )
        .bind(&intent.key)
        .fetch_optional(writing.connection())
        .await?;
        Ok(found.is_some())
    }
}
