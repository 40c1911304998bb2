use alloy_primitives::{Address, B256, Bytes, Signature};
use alloy_signer::{Signer, SignerSync};
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::{Eip712Domain, SolStruct, eip712_domain, sol};
use pool_types::CoalitionId;
use serde::{Deserialize, Serialize};

use crate::signal::SignalError;

/// What a delegated link key may do. It is part of what the wallet signs, so that the signature is good for
/// nothing else.
const SCOPE: &str = "links and receipts";

sol! {
    struct LinkDelegation {
        string scope;
        address wallet;
        address linkKey;
        bytes32 coalition;
        uint64 expires;
    }
}

/// The EIP-712 domain of everything that ComputePool signs off chain.
pub(crate) fn domain(chain: u64) -> Eip712Domain {
    eip712_domain! { name: "ComputePool", version: "1", chain_id: chain, }
}

/// The key that made `signature` over `hash`; `None` for a malformed signature.
pub(crate) fn signer_of(signature: &Bytes, hash: &B256) -> Option<Address> {
    let bytes: &[u8; 65] = signature.as_ref().try_into().ok()?;
    let signature = Signature::from_raw_array(bytes).ok()?;
    // A signature and its mirror image in the curve's upper half recover the same key; only one is ours.
    if signature.normalize_s().is_some() {
        return None;
    }
    signature.recover_address_from_prehash(hash).ok()
}

/// A wallet's word that a link key speaks for it in one coalition, for hours at most.
///
/// Signed with EIP-712: domain `ComputePool`, version `1`, the chain's id; type
/// `LinkDelegation(string scope,address wallet,address linkKey,bytes32 coalition,uint64 expires)`, scope
/// `links and receipts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delegation {
    /// The member that delegates.
    pub wallet: Address,
    /// The key that may sign for it.
    pub link_key: Address,
    /// The coalition it holds for.
    pub coalition: CoalitionId,
    /// The chain of that coalition; 0 for a file roster.
    pub chain: u64,
    /// Unix seconds after which it is void.
    pub expires: u64,
    /// The wallet's signature, 65 bytes.
    pub signature: Bytes,
}

impl Delegation {
    /// Signs a delegation with `wallet`.
    pub async fn sign(
        wallet: &(impl Signer + ?Sized),
        link_key: Address,
        coalition: CoalitionId,
        chain: u64,
        expires: u64,
    ) -> Result<Self, SignalError> {
        let mut delegation =
            Self { wallet: wallet.address(), link_key, coalition, chain, expires, signature: Bytes::new() };
        let signature = wallet.sign_hash(&delegation.hash()).await?;
        delegation.signature = Bytes::copy_from_slice(&signature.as_bytes());
        Ok(delegation)
    }

    /// The EIP-712 hash that the wallet signs.
    pub fn hash(&self) -> B256 {
        let Self { wallet, link_key, coalition, chain, expires, signature: _ } = self;
        LinkDelegation {
            scope: SCOPE.to_owned(),
            wallet: *wallet,
            linkKey: *link_key,
            coalition: coalition.0,
            expires: *expires,
        }
        .eip712_signing_hash(&domain(*chain))
    }

    /// Whether the wallet named here made the signature.
    pub fn is_signed(&self) -> bool {
        signer_of(&self.signature, &self.hash()) == Some(self.wallet)
    }
}

/// A fresh link key that no wallet has vouched for yet. The key is wiped from memory when dropped.
#[derive(Debug)]
pub struct LinkKey(PrivateKeySigner);

impl LinkKey {
    /// The address to delegate to.
    pub fn address(&self) -> Address {
        self.0.address()
    }

    /// Becomes an identity with the wallet's delegation of this key.
    pub fn with_delegation(self, delegation: Delegation) -> Result<LinkIdentity, SignalError> {
        if delegation.link_key != self.address() {
            return Err(SignalError::NotTheDelegatedKey);
        }
        if !delegation.is_signed() {
            return Err(SignalError::DelegationSignature);
        }
        Ok(LinkIdentity { key: self.0, delegation })
    }
}

/// Who we are on links: a short-lived key and the wallet's word for it. The key is wiped from memory when dropped.
#[derive(Debug)]
pub struct LinkIdentity {
    key: PrivateKeySigner,
    delegation: Delegation,
}

impl LinkIdentity {
    /// A fresh random key, to be delegated by the wallet.
    pub fn new_key() -> LinkKey {
        LinkKey(PrivateKeySigner::random())
    }

    /// The same link key with a new delegation of it: another coalition, or a later expiry.
    pub fn renewed(&self, delegation: Delegation) -> Result<Self, SignalError> {
        LinkKey(self.key.clone()).with_delegation(delegation)
    }

    /// The wallet we speak for.
    pub fn wallet(&self) -> Address {
        self.delegation.wallet
    }

    /// The wallet's word for our key.
    pub fn delegation(&self) -> &Delegation {
        &self.delegation
    }

    /// Signs a hash with the link key: 65 bytes.
    pub fn sign_hash(&self, hash: &B256) -> Result<Bytes, SignalError> {
        Ok(Bytes::copy_from_slice(&self.key.sign_hash_sync(hash)?.as_bytes()))
    }
}
