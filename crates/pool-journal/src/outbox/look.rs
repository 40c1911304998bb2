//! Looking for receipts: of what is under way at every new block, of what has ended only where there is doubt.
//!
//! An outcome is doubted when
//!
//! - the program has just begun,
//! - the highest block up to which everything was looked for (the *anchor*) is no longer part of the chain,
//! - the chain counts fewer transactions of the signer than its nonce says, or
//! - it is about to be let go as buried too deep to change: it is looked for a last time.
//!
//! Nodes may be behind each other, and a question may be answered by a node that has not seen what another one told.
//! So a receipt counts only up to the head that was told before it, the anchor moves only forwards while the chain
//! holds, and a doubt stays until a node that is not behind has answered.

use std::{collections::HashMap, sync::Arc};

use alloy_primitives::B256;
use tokio::task::JoinSet;

use super::{
    BlockRef, CountAt, Receipt, Unreachable,
    driver::{RoundError, SignerDriver},
    ledger::{apply, lose_nonce, settle},
    record::{IntentRow, IntentState, to_row},
    round::{Signed, Which},
    verdict::{Verdict, judge},
};
use crate::JournalError;

/// Receipts asked for at the same time.
const QUESTIONS_AT_ONCE: usize = 8;
/// At how many heads a nonce must be seen as used without a receipt before its depth is asked for.
const HEADS_WITHOUT_RECEIPT: u32 = 3;

/// What became of the anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Continuity {
    /// It is still part of the chain.
    Holds,
    /// Another block is in its place.
    Broken,
    /// The node is behind it.
    Unknown,
}

/// What follows from a look, to be written down.
#[derive(Default)]
struct Findings {
    verdicts: Vec<(Signed, Verdict)>,
    /// Their nonces were used by somebody else.
    taken: Vec<Signed>,
    /// They are buried and still there.
    buried: Vec<Signed>,
}

impl SignerDriver {
    /// Looks for receipts and writes down what they mean.
    pub(super) async fn look(&mut self, under_way: Vec<Signed>, head: BlockRef, count: u64) -> Result<(), RoundError> {
        let first = self.memory.anchor.is_none();
        let moved = self.memory.head != Some(head);
        let continuity = self.continuity(head).await?;
        let deepest = (head.number + 1).checked_sub(self.settings.settled_after);

        let mut asked: Vec<Signed> = under_way
            .into_iter()
            .filter(|signed| match signed.intent.state {
                _ if self.memory.unanswered.contains(&signed.intent.key) => true,
                IntentState::Included => moved || continuity != Continuity::Holds,
                _ => first || signed.has_nonce_below(count) || self.memory.urgent.contains(&signed.intent.key),
            })
            .collect();
        let in_doubt = continuity == Continuity::Broken || !self.memory.doubted.is_empty();
        if in_doubt || self.any_to_doubt(count, deepest).await? {
            let ended = self.load(Which::Ended).await?;
            self.memory.doubted.retain(|key| ended.iter().any(|signed| signed.intent.key == *key));
            for signed in ended {
                let Signed { intent, .. } = &signed;
                if continuity == Continuity::Broken || !signed.has_nonce_below(count) {
                    self.memory.doubted.insert(intent.key.clone());
                }
                if self.memory.doubted.contains(&intent.key) || is_buried(intent, deepest) {
                    asked.push(signed);
                }
            }
        }

        // One question that fails must not spoil the round: what has no answer is asked for again in the next.
        let (mut answers, failure) = self.receipts(&asked).await;
        if let Some(failure) = failure.filter(|_| answers.is_empty()) {
            return Err(failure.into());
        }
        let keys = asked.iter().map(|signed| signed.intent.key.clone());
        self.memory.unanswered = keys.filter(|key| !answers.contains_key(key)).collect();
        asked.retain(|signed| answers.contains_key(&signed.intent.key));
        for answer in answers.values_mut() {
            answer.take_if(|receipt| receipt.block.number > head.number);
        }
        let findings = self.weigh(asked, &answers, head, count, deepest).await?;
        self.write_down(findings).await?;

        self.memory.head = Some(head);
        let forwards = self.memory.anchor.is_none_or(|anchor| head.number >= anchor.number);
        if continuity == Continuity::Broken || (continuity == Continuity::Holds && forwards) {
            self.memory.anchor = Some(head);
        }
        Ok(())
    }

    async fn continuity(&self, head: BlockRef) -> Result<Continuity, Unreachable> {
        match self.memory.anchor {
            // Nothing is known: everything is looked for.
            None => Ok(Continuity::Broken),
            Some(anchor) if anchor == head => Ok(Continuity::Holds),
            Some(anchor) => Ok(match self.ask(self.port.block_hash(anchor.number)).await? {
                Some(hash) if hash == anchor.hash => Continuity::Holds,
                Some(_) => Continuity::Broken,
                None => Continuity::Unknown,
            }),
        }
    }

    /// Whether an outcome is to be looked for again although the chain holds.
    async fn any_to_doubt(&self, count: u64, deepest: Option<u64>) -> Result<bool, JournalError> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT position FROM journal_intents
             WHERE chain = $1 AND signer = $2 AND state = 'final' AND (nonce >= $3 OR block <= $4) LIMIT 1",
        )
        .bind(to_row(self.port.chain_id())?)
        .bind(self.account())
        .bind(to_row(count)?)
        .bind(deepest.map(to_row).transpose()?.unwrap_or(-1))
        .fetch_optional(self.journal.pool())
        .await?;
        Ok(found.is_some())
    }

    /// Decides what the answers mean.
    async fn weigh(
        &mut self,
        asked: Vec<Signed>,
        answers: &HashMap<String, Option<Receipt>>,
        head: BlockRef,
        count: u64,
        deepest: Option<u64>,
    ) -> Result<Findings, RoundError> {
        let mut findings = Findings::default();
        for signed in asked {
            let Signed { intent, .. } = &signed;
            let receipt = answers.get(&intent.key).and_then(Option::as_ref);
            let verdict = judge(intent.state, intent.receipt.as_ref(), receipt, head, self.settings.confirmations);
            let verdict = if verdict == Verdict::Unchanged && receipt.is_none() && self.is_gone_for_long(intent) {
                Verdict::Vanished
            } else {
                verdict
            };
            if receipt.is_some() || verdict == Verdict::Vanished {
                self.memory.doubted.remove(&intent.key);
                self.memory.behind.remove(&intent.key);
                self.memory.missing.remove(&intent.key);
            }
            match verdict {
                Verdict::Unchanged if receipt.is_none() && intent.state == IntentState::Signed => {
                    if signed.has_nonce_below(count) && self.was_taken(intent, head).await? {
                        self.memory.missing.remove(&intent.key);
                        findings.taken.push(signed);
                    }
                }
                Verdict::Unchanged if receipt.is_some() && is_buried(intent, deepest) => findings.buried.push(signed),
                Verdict::Unchanged => {}
                Verdict::Vanished => {
                    self.memory.urgent.insert(intent.key.clone());
                    findings.verdicts.push((signed, Verdict::Vanished));
                }
                other => findings.verdicts.push((signed, other)),
            }
        }
        Ok(findings)
    }

    async fn write_down(&self, findings: Findings) -> Result<(), RoundError> {
        let Findings { verdicts, taken, buried } = findings;
        if verdicts.is_empty() && taken.is_empty() && buried.is_empty() {
            return Ok(());
        }
        let mut writing = self.write().await?;
        for (signed, verdict) in &verdicts {
            apply(&mut writing, &signed.intent, &signed.variants, verdict).await?;
        }
        for signed in &taken {
            lose_nonce(&mut writing, &signed.intent).await?;
        }
        for signed in &buried {
            settle(&mut writing, &signed.intent).await?;
        }
        Ok(writing.commit().await?)
    }

    /// Whether nodes have been behind the block that held an intent for so long that the block must be gone: a chain
    /// that was set back, and makes no block until it is given a transaction.
    fn is_gone_for_long(&mut self, intent: &IntentRow) -> bool {
        if intent.receipt.is_none() {
            return false;
        }
        let now = self.journal.clock().now();
        let since = *self.memory.behind.entry(intent.key.clone()).or_insert(now);
        now.since(since) >= self.settings.lag_after
    }

    /// The receipt of each intent of which a variant has one, as far as the node answers; and why it did not, if so.
    async fn receipts(&self, asked: &[Signed]) -> (HashMap<String, Option<Receipt>>, Option<Unreachable>) {
        let mut answers = HashMap::new();
        let mut failure = None;
        let mut questions = JoinSet::new();
        let mut left = asked.iter();
        loop {
            while questions.len() < QUESTIONS_AT_ONCE
                && let Some(signed) = left.next()
            {
                let hashes: Vec<B256> = signed.variants.iter().rev().map(|variant| variant.hash).collect();
                let (port, key) = (Arc::clone(&self.port), signed.intent.key.clone());
                let limit = self.settings.call_timeout;
                questions.spawn(async move {
                    let one_by_one = async {
                        for hash in hashes {
                            if let Some(receipt) = port.receipt(hash).await?.filter(|r| r.transaction == hash) {
                                return Ok(Some(receipt));
                            }
                        }
                        Ok(None)
                    };
                    let late = |_| Err(Unreachable(format!("no answer within {limit:?}")));
                    (key, tokio::time::timeout(limit, one_by_one).await.unwrap_or_else(late))
                });
            }
            match questions.join_next().await {
                None => return (answers, failure),
                Some(Ok((key, Ok(receipt)))) => drop(answers.insert(key, receipt)),
                Some(Ok((_, Err(error)))) => failure = Some(error),
                Some(Err(error)) => failure = Some(Unreachable(error.to_string())),
            }
        }
    }

    /// Whether the nonce of an intent without receipts was used by somebody else, beyond doubt.
    async fn was_taken(&mut self, intent: &IntentRow, head: BlockRef) -> Result<bool, RoundError> {
        let Some(nonce) = intent.nonce else { return Ok(false) };
        let (heads, last) = self.memory.missing.entry(intent.key.clone()).or_insert((1, head));
        if *last != head {
            (*heads, *last) = (*heads + 1, head);
        }
        if *heads < HEADS_WITHOUT_RECEIPT {
            return Ok(false);
        }
        let Some(deep) = head.number.checked_sub(self.settings.foreign_after) else { return Ok(false) };
        let count = self.ask(self.port.transaction_count(self.signer.address(), CountAt::Block(deep))).await?;
        Ok(count > nonce)
    }
}

fn is_buried(intent: &IntentRow, deepest: Option<u64>) -> bool {
    let block = intent.receipt.as_ref().map(|receipt| receipt.block.number);
    intent.state == IntentState::Final && block.is_some_and(|block| deepest.is_some_and(|deepest| block <= deepest))
}
