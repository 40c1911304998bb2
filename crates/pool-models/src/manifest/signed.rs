//! The pool's owner's word for a manifest.

use alloy_primitives::{Address, B256, Bytes};
use alloy_sol_types::{SolStruct, eip712_domain, sol};
use pool_types::signer_of;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Manifest, ManifestError};

sol! {
    struct ModelManifest {
        string model;
        bytes32 manifest;
    }
}

/// A manifest's signature: EIP-712, domain `ComputePool`, version `1`, the chain's id; type
/// `ModelManifest(string model,bytes32 manifest)` of the model's name and the manifest's hash.
///
/// Keys stay elsewhere: [`SignedManifest::sign`] hands the hash to a closure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedManifest {
    /// The hash of the manifest.
    pub manifest: B256,
    /// What the model is called.
    pub name: String,
    /// The chain of the pool; 0 where there is none.
    pub chain: u64,
    /// 65 bytes: r, s, v.
    pub signature: Bytes,
}

/// Why a manifest was not signed.
#[derive(Debug, Error)]
pub enum SigningError<E: std::error::Error + 'static> {
    /// It must not be.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The key's keeper refused or failed.
    #[error("the manifest could not be signed: {0}")]
    Signer(#[source] E),
}

impl SignedManifest {
    /// The EIP-712 hash that the pool's owner signs.
    pub fn signing_hash(chain: u64, name: &str, manifest: B256) -> B256 {
        let domain = eip712_domain! { name: "ComputePool", version: "1", chain_id: chain, };
        ModelManifest { model: name.to_owned(), manifest }.eip712_signing_hash(&domain)
    }

    /// Has `sign` sign a manifest that has hashes.
    pub fn sign<E: std::error::Error + 'static>(
        manifest: &Manifest,
        chain: u64,
        sign: impl FnOnce(B256) -> Result<Vec<u8>, E>,
    ) -> Result<Self, SigningError<E>> {
        if !manifest.is_hashed() {
            return Err(ManifestError::NotHashed.into());
        }
        let (hash, name) = (manifest.hash(), manifest.name.clone());
        let signature = sign(Self::signing_hash(chain, &name, hash)).map_err(SigningError::Signer)?;
        Ok(Self { manifest: hash, name, chain, signature: signature.into() })
    }

    /// Who signed.
    pub fn signer(&self) -> Result<Address, ManifestError> {
        let hash = Self::signing_hash(self.chain, &self.name, self.manifest);
        signer_of(&self.signature, &hash).ok_or(ManifestError::Signature)
    }

    /// Who signed the manifest of this hash and name. A signature over another one is none.
    pub(crate) fn signer_over(&self, manifest: B256, name: &str) -> Result<Address, ManifestError> {
        if self.manifest != manifest || self.name != name {
            return Err(ManifestError::Signature);
        }
        self.signer()
    }

    /// Whether `owner` signed exactly this manifest.
    pub fn check(&self, manifest: &Manifest, owner: Address) -> Result<(), ManifestError> {
        if !manifest.is_hashed() {
            return Err(ManifestError::NotHashed);
        }
        let found = self.signer_over(manifest.hash(), &manifest.name)?;
        if found != owner {
            return Err(ManifestError::Signer { found, expected: owner });
        }
        Ok(())
    }
}
