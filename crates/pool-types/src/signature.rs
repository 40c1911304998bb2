//! Who signed.

use alloy_primitives::{Address, B256, Signature};

/// The address whose key made `signature` (65 bytes: r, s, v) over `hash`; `None` for anything malformed.
///
/// A signature and its mirror image in the curve's upper half recover the same key. Only the lower is taken (EIP-2),
/// so that nobody can make a second signature out of one that was seen.
pub fn signer_of(signature: &[u8], hash: &B256) -> Option<Address> {
    let bytes: &[u8; 65] = signature.try_into().ok()?;
    let signature = Signature::from_raw_array(bytes).ok()?;
    if signature.normalize_s().is_some() {
        return None;
    }
    signature.recover_address_from_prehash(hash).ok()
}
