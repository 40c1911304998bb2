//! EIP-3009 vouchers: a payer's signed leave to move an amount of USDC to one address, once, within a time.
//!
//! [`SignedVoucher::verify`] needs no chain; [`Chain::check_voucher`](crate::Chain::check_voucher) asks it the rest.

use alloy::{
    primitives::{Address, B256, Bytes, Signature, U256},
    signers::SignerSync,
    sol_types::{Eip712Domain, SolStruct},
};
use pool_types::Usdc;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{contracts, vault::decimal};

/// The token that a voucher moves: its contract and the EIP-712 domain that its signatures are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenDomain {
    /// EIP-712 name.
    pub name: String,
    /// EIP-712 version.
    pub version: String,
    /// The chain it lives on.
    pub chain_id: u64,
    /// Its contract.
    pub token: Address,
}

impl TokenDomain {
    pub(crate) fn eip712(&self) -> Eip712Domain {
        Eip712Domain::new(
            Some(self.name.clone().into()),
            Some(self.version.clone().into()),
            Some(U256::from(self.chain_id)),
            Some(self.token),
            None,
        )
    }
}

/// What is signed: EIP-3009's `TransferWithAuthorization`, in the JSON form of x402's scheme `exact`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    /// Who pays.
    pub from: Address,
    /// Who is paid.
    pub to: Address,
    /// How much.
    pub value: Usdc,
    /// The voucher is good after this second (Unix), not in it.
    #[serde(with = "decimal")]
    pub valid_after: u64,
    /// The voucher is good before this second (Unix), not in it.
    #[serde(with = "decimal")]
    pub valid_before: u64,
    /// Random; makes the voucher good for once.
    pub nonce: B256,
}

impl Authorization {
    /// What the payer's key signs (EIP-712).
    pub fn digest(&self, token: &TokenDomain) -> B256 {
        contracts::TransferWithAuthorization {
            from: self.from,
            to: self.to,
            value: U256::from(self.value.units()),
            validAfter: U256::from(self.valid_after),
            validBefore: U256::from(self.valid_before),
            nonce: self.nonce,
        }
        .eip712_signing_hash(&token.eip712())
    }

    /// Signs with the payer's key.
    pub fn sign(self, token: &TokenDomain, payer: &impl SignerSync) -> Result<SignedVoucher, alloy::signers::Error> {
        let signature = payer.sign_hash_sync(&self.digest(token))?;
        Ok(SignedVoucher { authorization: self, signature: signature.as_bytes().into() })
    }
}

/// A voucher as it arrives: the fields, and whatever came as signature. In JSON as x402's scheme `exact` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedVoucher {
    /// What was signed.
    pub authorization: Authorization,
    /// 65 bytes `r ‖ s ‖ v` of an ordinary account; anything else is refused.
    pub signature: Bytes,
}

/// What a voucher must say to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its token, and with it its chain.
    pub token: TokenDomain,
    /// Who must have signed.
    pub payer: Address,
    /// Who must be paid: the session's vault.
    pub pay_to: Address,
    /// The exact amount.
    pub amount: Usdc,
}

/// Why a voucher is not taken. Nothing was charged in any of these cases.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VoucherRefusal {
    /// It has paid for something already.
    #[error("this voucher was used before; ask for a new offer and sign that")]
    Replayed,
    /// Its time is over, or will be before the payment can be on the chain.
    #[error("this voucher has expired; ask for a new offer and sign that")]
    Expired,
    /// Its time has not come.
    #[error("this voucher is not valid yet: it begins in {seconds} s by the chain's clock")]
    NotYetValid {
        /// How long until then.
        seconds: u64,
    },
    /// Its payer took it back.
    #[error("the payer has cancelled this voucher")]
    Cancelled,
    /// For another chain.
    #[error("this voucher is for the network {found}; this offer is for {wanted}")]
    WrongNetwork {
        /// What the voucher names.
        found: String,
        /// What the offer names.
        wanted: String,
    },
    /// For another token.
    #[error("this voucher pays with the token {found}; this offer takes {wanted}")]
    WrongAsset {
        /// What the voucher names.
        found: Address,
        /// What the offer names.
        wanted: Address,
    },
    /// Not the amount that was asked for, exactly.
    #[error("this voucher is over {found} USDC; this offer asks for exactly {wanted} USDC")]
    WrongAmount {
        /// What the voucher names.
        found: Usdc,
        /// What the offer names.
        wanted: Usdc,
    },
    /// It pays another address than the session's vault.
    #[error("this voucher pays {found}; this offer is to be paid to {wanted}")]
    WrongRecipient {
        /// Whom the voucher names.
        found: Address,
        /// Whom the offer names.
        wanted: Address,
    },
    /// Somebody else pays than the session was offered to.
    #[error("this voucher is from {found}; this offer was made to {wanted}")]
    WrongPayer {
        /// Whom the voucher names.
        found: Address,
        /// Whom the offer names.
        wanted: Address,
    },
    /// The signature is not the payer's over these fields and this token.
    #[error("the voucher's signature is not its payer's")]
    BadSignature,
    /// A contract's signature (EIP-1271, EIP-6492).
    #[error("the voucher was signed by a smart wallet, which is not supported yet; pay from an ordinary account")]
    SmartWallet,
    /// The payer does not have the money.
    #[error("the payer has {has} USDC, which is less than {needs} USDC")]
    InsufficientBalance {
        /// What the payer has.
        has: Usdc,
        /// What the voucher is over.
        needs: Usdc,
    },
    /// The session that the voucher is for was closed.
    #[error("the session that this voucher is for was closed; ask for a new offer")]
    Closed,
}

impl VoucherRefusal {
    /// A short word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Replayed => "replayed",
            Self::Expired => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Cancelled => "cancelled",
            Self::WrongNetwork { .. } => "wrong_network",
            Self::WrongAsset { .. } => "wrong_asset",
            Self::WrongAmount { .. } => "wrong_amount",
            Self::WrongRecipient { .. } => "wrong_recipient",
            Self::WrongPayer { .. } => "wrong_payer",
            Self::BadSignature => "bad_signature",
            Self::SmartWallet => "smart_wallet_not_supported",
            Self::InsufficientBalance { .. } => "insufficient_balance",
            Self::Closed => "closed",
        }
    }
}

impl SignedVoucher {
    /// Checks what can be checked without a chain: payer, recipient, amount, and that the payer's key signed exactly
    /// these fields for this token on this chain. Times are the chain's business.
    pub fn verify(&self, wanted: &Wanted) -> Result<(), VoucherRefusal> {
        let Authorization { from, to, value, .. } = self.authorization;
        if from != wanted.payer {
            return Err(VoucherRefusal::WrongPayer { found: from, wanted: wanted.payer });
        }
        if to != wanted.pay_to {
            return Err(VoucherRefusal::WrongRecipient { found: to, wanted: wanted.pay_to });
        }
        if value != wanted.amount {
            return Err(VoucherRefusal::WrongAmount { found: value, wanted: wanted.amount });
        }
        let digest = self.authorization.digest(&wanted.token);
        let signer = self.parts()?.recover_address_from_prehash(&digest).map_err(|_| VoucherRefusal::BadSignature)?;
        if signer == from { Ok(()) } else { Err(VoucherRefusal::BadSignature) }
    }

    /// Checks the times against the chain's clock. `inclusion` is how many seconds may pass until the payment is in a
    /// block; a voucher that ends sooner counts as expired.
    pub fn check_times(&self, chain_time: u64, inclusion: u64) -> Result<(), VoucherRefusal> {
        let Authorization { valid_after, valid_before, .. } = self.authorization;
        if chain_time.saturating_add(inclusion) >= valid_before {
            return Err(VoucherRefusal::Expired);
        }
        if chain_time <= valid_after {
            return Err(VoucherRefusal::NotYetValid { seconds: valid_after - chain_time + 1 });
        }
        Ok(())
    }

    /// The form that the factory's `open` takes.
    pub(crate) fn for_contract(&self) -> Result<contracts::Voucher, VoucherRefusal> {
        let signature = self.parts()?;
        let Authorization { value, valid_after, valid_before, nonce, .. } = self.authorization;
        Ok(contracts::Voucher {
            value: U256::from(value.units()),
            validAfter: U256::from(valid_after),
            validBefore: U256::from(valid_before),
            nonce,
            v: 27 + u8::from(signature.v()),
            r: signature.r().into(),
            s: signature.s().into(),
        })
    }

    /// The signature's parts: 65 bytes, `s` in the lower half (EIP-2), `v` 27 or 28 (or 0 or 1, as some devices write).
    fn parts(&self) -> Result<Signature, VoucherRefusal> {
        // Contracts' signatures have any length; EIP-6492 wraps them and ends in a marker. Ours never do.
        let bytes: &[u8; 65] = match self.signature.as_ref().try_into() {
            Ok(bytes) => bytes,
            Err(_) if self.signature.len() < 65 => return Err(VoucherRefusal::BadSignature),
            Err(_) => return Err(VoucherRefusal::SmartWallet),
        };
        let odd = match bytes[64] {
            0 | 27 => false,
            1 | 28 => true,
            _ => return Err(VoucherRefusal::BadSignature),
        };
        let signature = Signature::from_bytes_and_parity(&bytes[..64], odd);
        if signature.normalize_s().is_some() { Err(VoucherRefusal::BadSignature) } else { Ok(signature) }
    }
}

#[cfg(test)]
mod tests {
    use alloy::{
        primitives::{b256, hex},
        signers::local::PrivateKeySigner,
    };
    use proptest::prelude::*;

    use super::*;

    fn payer() -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap()
    }

    fn token() -> TokenDomain {
        TokenDomain {
            name: "USD Coin".to_owned(),
            version: "1".to_owned(),
            chain_id: 16602,
            token: Address::repeat_byte(5),
        }
    }

    fn authorization() -> Authorization {
        Authorization {
            from: payer().address(),
            to: Address::repeat_byte(0x55),
            value: "2.5".parse().unwrap(),
            valid_after: 1_700_000_000,
            valid_before: 1_800_000_000,
            nonce: B256::repeat_byte(0x66),
        }
    }

    fn wanted() -> Wanted {
        let Authorization { from, to, value, .. } = authorization();
        Wanted { token: token(), payer: from, pay_to: to, amount: value }
    }

    #[test]
    fn digest_and_signature_are_those_of_another_implementation() {
        // viem 2.57: hashTypedData and signTypedData of the same fields and key.
        let digest = b256!("0xfc64439957309e56208e10cad063c7530c6307018166bd28651910ea02cfd45a");
        assert_eq!(authorization().digest(&token()), digest);
        let voucher = authorization().sign(&token(), &payer()).unwrap();
        let expected = hex!(
            "68cc959d4ff8fb0a5dad0283383d5f381786cdde77e10d1726de26c90f5d42d462bf926ff5791df80a7e1734e95bd79042b6e35fe51beda9ecb727b17986cc321b"
        );
        assert_eq!(voucher.signature.as_ref(), expected);
        assert_eq!(voucher.verify(&wanted()), Ok(()));
    }

    #[test]
    fn each_field_that_is_not_as_offered_is_named() {
        let good = authorization().sign(&token(), &payer()).unwrap();
        let check = |change: fn(&mut Wanted)| {
            let mut other = wanted();
            change(&mut other);
            good.verify(&other).expect_err("something is not as offered").code()
        };
        assert_eq!(check(|w| w.payer = Address::repeat_byte(1)), "wrong_payer");
        assert_eq!(check(|w| w.pay_to = Address::repeat_byte(1)), "wrong_recipient");
        assert_eq!(check(|w| w.amount = "2.500001".parse().unwrap()), "wrong_amount");
        assert_eq!(check(|w| w.token.chain_id = 1), "bad_signature", "signed for another chain");
        assert_eq!(check(|w| w.token.token = Address::repeat_byte(6)), "bad_signature", "signed for another token");
        assert_eq!(check(|w| w.token.version = "2".into()), "bad_signature");
    }

    #[test]
    fn signatures_of_other_forms_are_refused() {
        let good = authorization().sign(&token(), &payer()).unwrap();
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut voucher = good.clone();
            let mut bytes = voucher.signature.to_vec();
            change(&mut bytes);
            voucher.signature = bytes.into();
            voucher.verify(&wanted()).map_err(|refusal| refusal.code())
        };
        assert_eq!(with(&|s| s.truncate(64)), Err("bad_signature"));
        assert_eq!(with(&Vec::clear), Err("bad_signature"));
        assert_eq!(with(&|s| s[64] = 29), Err("bad_signature"));
        assert_eq!(with(&|s| s[64] ^= 7), Err("bad_signature"), "the other point of the curve is another signer");
        assert_eq!(with(&|s| s[..64].fill(0)), Err("bad_signature"));
        assert_eq!(with(&|s| s[64] -= 27), Ok(()), "some devices write 0 and 1");
        assert_eq!(with(&|s| s.extend([0x64, 0x92].repeat(16))), Err("smart_wallet_not_supported"));
        // The malleable twin: (r, n - s) with the other v recovers to the same key, and USDC refuses it.
        let order = U256::from_be_bytes(hex!("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"));
        let twin = |s: &mut Vec<u8>| {
            let high = order - U256::from_be_slice(&s[32..64]);
            s[32..64].copy_from_slice(&high.to_be_bytes::<32>());
            s[64] = 27 + 28 - s[64];
        };
        assert_eq!(with(&twin), Err("bad_signature"));
    }

    #[test]
    fn times_are_open_intervals_by_the_chains_clock() {
        let voucher = authorization().sign(&token(), &payer()).unwrap();
        let check = |time, inclusion| voucher.check_times(time, inclusion).map_err(|refusal| refusal.code());
        assert_eq!(check(1_700_000_000, 0), Err("not_yet_valid"), "EIP-3009: now > validAfter");
        assert_eq!(check(1_700_000_001, 0), Ok(()));
        assert_eq!(check(1_799_999_999, 0), Ok(()));
        assert_eq!(check(1_800_000_000, 0), Err("expired"), "EIP-3009: now < validBefore");
        assert_eq!(check(1_799_999_990, 10), Err("expired"), "it would end before it is included");
        assert_eq!(check(u64::MAX, u64::MAX), Err("expired"));
        let early = voucher.check_times(1_699_999_990, 0).unwrap_err();
        assert_eq!(early.to_string(), "this voucher is not valid yet: it begins in 11 s by the chain's clock");
    }

    proptest! {
        #[test]
        fn any_change_of_a_signed_field_breaks_the_signature(
            value in 0_u128..1 << 80, after in any::<u64>(), before in any::<u64>(), nonce in any::<[u8; 32]>(), which in 0..4,
        ) {
            let value = Usdc::from_units(value).unwrap();
            let base = Authorization { value, valid_after: after, valid_before: before, ..authorization() };
            let base = Authorization { nonce: nonce.into(), ..base };
            let mut voucher = base.sign(&token(), &payer()).unwrap();
            let wanted = Wanted { amount: value, ..wanted() };
            prop_assert_eq!(voucher.verify(&wanted), Ok(()));
            let field = &mut voucher.authorization;
            match which {
                0 => field.valid_after ^= 1,
                1 => field.valid_before ^= 1 << 63,
                2 => field.nonce[31] ^= 1,
                _ => field.nonce[0] ^= 0x80,
            }
            prop_assert_eq!(voucher.verify(&wanted), Err(VoucherRefusal::BadSignature));
        }

        #[test]
        fn no_bytes_make_a_signature_by_chance_and_none_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let voucher = SignedVoucher { authorization: authorization(), signature: bytes.into() };
            prop_assert!(voucher.verify(&wanted()).is_err());
            let _ = voucher.for_contract();
        }
    }
}
