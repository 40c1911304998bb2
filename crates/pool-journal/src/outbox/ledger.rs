//! What the outbox writes down: each function is one transition with its log entry, inside somebody's write.

use serde_json::json;

use super::{
    Outcome, Receipt,
    queue::wake,
    record::{IntentRow, VariantKind, VariantRow, to_row},
    verdict::Verdict,
};
use crate::{JournalError, LogKind, Timestamp, event::keep_event, journal::Writing};

/// A nonce and the first variant, together: there is no nonce without bytes that use it.
pub(super) async fn sign_first(
    writing: &mut Writing,
    intent: &IntentRow,
    variant: &VariantRow,
) -> Result<(), JournalError> {
    sqlx::query("UPDATE journal_intents SET state = 'signed', nonce = $2 WHERE key = $1")
        .bind(&intent.key)
        .bind(to_row(variant.nonce)?)
        .execute(writing.connection())
        .await?;
    sign_again(writing, intent, variant).await
}

/// A further variant of the same nonce.
pub(super) async fn sign_again(
    writing: &mut Writing,
    intent: &IntentRow,
    variant: &VariantRow,
) -> Result<(), JournalError> {
    variant.insert(writing.connection(), &intent.key).await?;
    let body = json!({
        "key": intent.key, "nonce": variant.nonce, "transaction": variant.hash, "does": variant.kind,
        "max_fee": variant.max_fee.to_string(), "priority_fee": variant.priority_fee.to_string(),
    });
    writing.log(intent.subject(), LogKind::TransactionSigned, &body).await
}

/// Writes down that a node took a variant.
pub(super) async fn was_broadcast(
    writing: &mut Writing,
    intent: &IntentRow,
    variant: &VariantRow,
) -> Result<(), JournalError> {
    let at = writing.at().to_row();
    sqlx::query("UPDATE journal_variants SET broadcast_at = $2 WHERE hash = $1")
        .bind(variant.hash.to_string())
        .bind(at)
        .execute(writing.connection())
        .await?;
    if variant.kind == VariantKind::Call {
        sqlx::query("UPDATE journal_intents SET trouble = NULL WHERE key = $1")
            .bind(&intent.key)
            .execute(writing.connection())
            .await?;
    }
    let body = json!({"key": intent.key, "nonce": variant.nonce, "transaction": variant.hash});
    writing.log(intent.subject(), LogKind::TransactionBroadcast, &body).await
}

/// Writes down why an intent does not go on, if that is new.
pub(super) async fn is_delayed(writing: &mut Writing, intent: &IntentRow, trouble: &str) -> Result<(), JournalError> {
    if intent.trouble.as_deref() == Some(trouble) {
        return Ok(());
    }
    sqlx::query("UPDATE journal_intents SET trouble = $2 WHERE key = $1")
        .bind(&intent.key)
        .bind(trouble)
        .execute(writing.connection())
        .await?;
    writing.log(intent.subject(), LogKind::TransactionDelayed, &json!({"key": intent.key, "reason": trouble})).await
}

/// Writes down what a look at the chain meant.
pub(super) async fn apply(
    writing: &mut Writing,
    intent: &IntentRow,
    variants: &[VariantRow],
    verdict: &Verdict,
) -> Result<(), JournalError> {
    match verdict {
        Verdict::Unchanged => Ok(()),
        Verdict::Included(receipt) => include(writing, intent, receipt).await,
        Verdict::Final(receipt) => {
            if intent.receipt.as_ref() != Some(receipt) {
                include(writing, intent, receipt).await?;
            }
            end(writing, intent, variants, receipt).await
        }
        Verdict::Vanished => {
            sqlx::query(
                "UPDATE journal_intents SET state = 'signed', receipt = NULL, block = NULL, reopened = reopened + 1
                 WHERE key = $1",
            )
            .bind(&intent.key)
            .execute(writing.connection())
            .await?;
            let block = intent.receipt.as_ref().map(|receipt| receipt.block);
            let body = json!({"key": intent.key, "block": block, "after_its_outcome": intent.outcome.is_some()});
            writing.log(intent.subject(), LogKind::TransactionVanished, &body).await
        }
    }
}

async fn include(writing: &mut Writing, intent: &IntentRow, receipt: &Receipt) -> Result<(), JournalError> {
    sqlx::query("UPDATE journal_intents SET state = 'included', receipt = $2, block = $3 WHERE key = $1")
        .bind(&intent.key)
        .bind(serde_json::to_string(receipt).unwrap_or_default())
        .bind(to_row(receipt.block.number)?)
        .execute(writing.connection())
        .await?;
    let body = json!({
        "key": intent.key, "nonce": intent.nonce, "transaction": receipt.transaction, "block": receipt.block.number,
        "block_hash": receipt.block.hash, "succeeded": receipt.succeeded, "gas_used": receipt.gas_used,
    });
    writing.log(intent.subject(), LogKind::TransactionIncluded, &body).await
}

async fn end(
    writing: &mut Writing,
    intent: &IntentRow,
    variants: &[VariantRow],
    receipt: &Receipt,
) -> Result<(), JournalError> {
    let included = variants.iter().find(|variant| variant.hash == receipt.transaction);
    let receipt = receipt.clone();
    let (outcome, kind) = match included.map_or(VariantKind::Call, |variant| variant.kind) {
        VariantKind::Cancel => {
            let reason = intent.trouble.clone().unwrap_or_else(|| "no node takes the transaction".to_owned());
            (Outcome::Refused { reason }, LogKind::TransactionRefused)
        }
        VariantKind::Call if receipt.succeeded => (Outcome::Confirmed { receipt }, LogKind::TransactionConfirmed),
        VariantKind::Call => (Outcome::Reverted { receipt }, LogKind::TransactionReverted),
    };
    sqlx::query("UPDATE journal_intents SET state = 'final', outcome = $2 WHERE key = $1")
        .bind(&intent.key)
        .bind(serde_json::to_string(&outcome).unwrap_or_default())
        .execute(writing.connection())
        .await?;
    writing.log(intent.subject(), kind, &json!({"key": intent.key})).await?;
    if let Some(before) = intent.outcome.as_ref()
        && std::mem::discriminant(before) != std::mem::discriminant(&outcome)
    {
        tracing::error!(
            key = intent.key,
            "a re-organisation changed the outcome of a transaction that was told already"
        );
        let body = json!({"key": intent.key, "before": before, "after": outcome});
        writing.log(intent.subject(), LogKind::TransactionChanged, &body).await?;
        keep_event(writing, &format!("transaction-changed/{}", intent.key), &body).await?;
    }
    wake(writing, &intent.key).await
}

/// Somebody else used the nonce with the same key: back to the queue, for another nonce. A transfer that only filled
/// the nonce has done its work.
pub(super) async fn lose_nonce(writing: &mut Writing, intent: &IntentRow) -> Result<(), JournalError> {
    let state = if intent.key.starts_with(super::queue::FILLER) { "dropped" } else { "queued" };
    sqlx::query("UPDATE journal_intents SET state = $2, nonce = NULL WHERE key = $1")
        .bind(&intent.key)
        .bind(state)
        .execute(writing.connection())
        .await?;
    tracing::error!(
        key = intent.key, nonce = intent.nonce, signer = %intent.signer,
        "a transaction that is not ours used this nonce: another program holds the same key"
    );
    let body = json!({"key": intent.key, "nonce": intent.nonce, "signer": intent.signer});
    writing.log(intent.subject(), LogKind::NonceTaken, &body).await
}

/// An intent is buried too deep to change.
pub(super) async fn settle(writing: &mut Writing, intent: &IntentRow) -> Result<(), JournalError> {
    sqlx::query("UPDATE journal_intents SET state = 'settled' WHERE key = $1")
        .bind(&intent.key)
        .execute(writing.connection())
        .await?;
    let block = intent.receipt.as_ref().map(|receipt| receipt.block.number);
    writing.log(intent.subject(), LogKind::TransactionSettled, &json!({"key": intent.key, "block": block})).await
}

/// The variant that stands for an unsigned one that was just signed.
pub(super) fn variant(
    kind: VariantKind,
    unsigned: &super::UnsignedTransaction,
    signed: super::SignedTransaction,
    at: Timestamp,
) -> VariantRow {
    VariantRow {
        hash: signed.hash,
        nonce: unsigned.nonce,
        kind,
        max_fee: unsigned.max_fee_per_gas,
        priority_fee: unsigned.max_priority_fee_per_gas,
        raw: signed.raw,
        signed_at: at,
        was_broadcast: false,
    }
}
