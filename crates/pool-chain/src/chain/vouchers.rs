//! What only the chain knows about a voucher.

use alloy::{rpc::types::Filter, sol_types::SolEvent as _};
use pool_types::Usdcx;
use thiserror::Error;

use super::Chain;
use crate::{ChainError, SignedVoucher, VoucherRefusal, contracts::IUsdc};

/// A voucher that can open its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoucherStanding {
    /// Nobody has used it; `open` settles it.
    Unused,
    /// It was settled already, and its vault holds the money: somebody submitted it straight to the token, or `open`
    /// went through. Whoever keeps the sessions knows whether this one is open.
    Settled,
}

/// Why a voucher was not found good.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VoucherCheckError {
    /// It is not taken.
    #[error(transparent)]
    Refused(#[from] VoucherRefusal),
    /// The chain could not be asked. This says nothing about the voucher.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

impl Chain {
    /// Checks a voucher whose fields and signature hold ([`SignedVoucher::verify`]) against the chain: its time by the
    /// chain's clock, whether it was used or cancelled, whether the payer has the money, whether the vault was closed.
    ///
    /// `inclusion` is how many seconds may pass until `open` is in a block. The payer can still cancel the voucher or
    /// spend the money until then: nothing is served before the receipt of `open`.
    pub async fn check_voucher(
        &self,
        voucher: &SignedVoucher,
        inclusion: u64,
    ) -> Result<VoucherStanding, VoucherCheckError> {
        let payment = voucher.authorization;
        let (time, used, vault) = tokio::try_join!(
            self.time(),
            self.authorization_used(payment.from, payment.nonce),
            self.vault(payment.to),
        )?;
        if vault.closed {
            let refusal = if used { VoucherRefusal::Replayed } else { VoucherRefusal::Closed };
            return Err(refusal.into());
        }
        if used {
            if self.was_cancelled(voucher).await? {
                return Err(VoucherRefusal::Cancelled.into());
            }
            let there = vault.available.checked_add(vault.unwrapped.to_usdcx()).unwrap_or(Usdcx::ZERO);
            if there < payment.value.to_usdcx() {
                return Err(VoucherRefusal::Replayed.into());
            }
            return Ok(VoucherStanding::Settled);
        }
        voucher.check_times(time, inclusion)?;
        let has = self.usdc(payment.from).await?;
        if has < payment.value {
            return Err(VoucherRefusal::InsufficientBalance { has, needs: payment.value }.into());
        }
        Ok(VoucherStanding::Unused)
    }

    /// A used nonce and a cancelled one look the same in the token's storage; its events tell them apart.
    async fn was_cancelled(&self, voucher: &SignedVoucher) -> Result<bool, ChainError> {
        let payment = voucher.authorization;
        let filter = Filter::new()
            .address(self.book().contracts.usdc)
            .event_signature(IUsdc::AuthorizationCanceled::SIGNATURE_HASH)
            .topic1(payment.from.into_word())
            .topic2(payment.nonce)
            .from_block(self.book().start_block);
        match self.logs(&filter).await {
            Ok(logs) => Ok(!logs.is_empty()),
            // Nodes that keep no old logs refuse; then it counts as used, which is as final.
            Err(error) if error.is_transient() => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Whether a contract lives at the payer's address, so that a signature that is not the account's own may be the
    /// contract's (EIP-1271). Turns [`VoucherRefusal::BadSignature`] into what it is.
    pub async fn name_refusal(&self, voucher: &SignedVoucher, refusal: VoucherRefusal) -> VoucherRefusal {
        if refusal != VoucherRefusal::BadSignature {
            return refusal;
        }
        match self.code(voucher.authorization.from).await {
            Ok(code) if !code.is_empty() => VoucherRefusal::SmartWallet,
            _ => VoucherRefusal::BadSignature,
        }
    }
}
