//! The orchestrator's and the sentinel's keys, as the outbox sees them: an address and a way to sign.

use std::fmt;

use alloy::{
    consensus::{SignableTransaction, TxEip1559, TxEnvelope},
    eips::eip2718::Encodable2718,
    primitives::{Address, TxKind},
    signers::{SignerSync, local::PrivateKeySigner},
};
use async_trait::async_trait;
use pool_journal::{SignedTransaction, SignerError, TransactionSigner, UnsignedTransaction};

/// A key in this process's memory that signs EIP-1559 transactions of one chain.
pub struct LocalTransactionSigner {
    key: PrivateKeySigner,
    chain_id: u64,
}

impl LocalTransactionSigner {
    /// Signs with `key`, for `chain_id` only.
    pub fn new(key: PrivateKeySigner, chain_id: u64) -> Self {
        Self { key, chain_id }
    }
}

impl fmt::Debug for LocalTransactionSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("LocalTransactionSigner");
        shown.field("address", &self.key.address()).field("chain_id", &self.chain_id).finish_non_exhaustive()
    }
}

#[async_trait]
impl TransactionSigner for LocalTransactionSigner {
    fn address(&self) -> Address {
        self.key.address()
    }

    async fn sign(&self, transaction: &UnsignedTransaction) -> Result<SignedTransaction, SignerError> {
        if transaction.chain_id != self.chain_id {
            return Err(SignerError::Refused("it is for another chain".to_owned()));
        }
        if transaction.max_priority_fee_per_gas > transaction.max_fee_per_gas {
            return Err(SignerError::Refused("its priority fee is above its whole fee".to_owned()));
        }
        let unsigned = TxEip1559 {
            chain_id: transaction.chain_id,
            nonce: transaction.nonce,
            gas_limit: transaction.gas_limit,
            max_fee_per_gas: transaction.max_fee_per_gas,
            max_priority_fee_per_gas: transaction.max_priority_fee_per_gas,
            to: TxKind::Call(transaction.to),
            value: transaction.value,
            access_list: Default::default(),
            input: transaction.data.clone(),
        };
        let signature = self.key.sign_hash_sync(&unsigned.signature_hash());
        // The library's own words could carry what it was given.
        let signature = signature.map_err(|_| SignerError::Unavailable("signing failed".to_owned()))?;
        let envelope = TxEnvelope::from(unsigned.into_signed(signature));
        Ok(SignedTransaction { hash: *envelope.tx_hash(), raw: envelope.encoded_2718().into() })
    }
}

#[cfg(test)]
mod tests {
    use alloy::{
        consensus::Transaction,
        eips::eip2718::Decodable2718,
        primitives::{B256, U256, hex, keccak256},
    };

    use super::*;

    fn signer() -> LocalTransactionSigner {
        LocalTransactionSigner::new(PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap(), 16602)
    }

    fn transaction() -> UnsignedTransaction {
        UnsignedTransaction {
            chain_id: 16602,
            nonce: 3,
            max_fee_per_gas: 2_000_000_000,
            max_priority_fee_per_gas: 1_000_000_000,
            gas_limit: 100_000,
            to: Address::repeat_byte(5),
            value: U256::from(6),
            data: vec![1, 2, 3].into(),
        }
    }

    #[tokio::test]
    async fn what_is_signed_is_what_was_asked_and_the_hash_is_its_own() {
        let signed = signer().sign(&transaction()).await.unwrap();
        assert_eq!(keccak256(&signed.raw), signed.hash);
        let read = TxEnvelope::decode_2718(&mut signed.raw.as_ref()).unwrap();
        let by = read.signature().recover_address_from_prehash(&read.signature_hash()).unwrap();
        assert_eq!(by, signer().address());
        assert_eq!((read.nonce(), read.gas_limit(), read.chain_id()), (3, 100_000, Some(16602)));
        assert_eq!(
            (read.to(), read.value(), read.input().as_ref()),
            (Some(Address::repeat_byte(5)), U256::from(6), &[1, 2, 3][..])
        );
    }

    #[tokio::test]
    async fn nothing_is_signed_for_another_chain() {
        let elsewhere = UnsignedTransaction { chain_id: 1, ..transaction() };
        assert!(matches!(signer().sign(&elsewhere).await, Err(SignerError::Refused(_))));
        let upside_down = UnsignedTransaction { max_priority_fee_per_gas: 3_000_000_000, ..transaction() };
        assert!(matches!(signer().sign(&upside_down).await, Err(SignerError::Refused(_))));
    }

    #[test]
    fn no_output_shows_the_key() {
        let shown = format!("{:?}", signer());
        assert!(
            shown.contains("0x4a62316623ad457F02cDC5D997deD67a383EC569")
                || shown.contains("0x4a62316623ad457f02cdc5d997ded67a383ec569"),
            "{shown}"
        );
        assert!(!shown.contains(&hex::encode([7; 4])), "{shown}");
    }
}
