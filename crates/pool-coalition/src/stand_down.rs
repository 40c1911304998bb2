//! The signed word of a member that leaves: its owner came back, or asked it to stop.
//!
//! A member that says so leaves without a penalty, and the word is evidence of that: when it left, and how.

use alloy_primitives::{Address, B256, Bytes};
use alloy_sol_types::{SolStruct, eip712_domain};
use pool_types::{CoalitionId, Epoch, signer_of};
use serde::{Deserialize, Serialize};
use thiserror::Error;

mod typed {
    alloy_sol_types::sol! {
        struct StandDown {
            address operator;
            bytes32 coalition;
            uint64 epoch;
            string manner;
            uint64 at;
        }
    }
}

/// How a member leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Manner {
    /// At once: the machine is given back, and what runs ends.
    Yield,
    /// After what runs has ended; nothing new begins.
    Drain,
}

impl Manner {
    /// The word that is signed and stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Yield => "yield",
            Self::Drain => "drain",
        }
    }
}

/// A member leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandDown {
    /// Who leaves.
    pub operator: Address,
    /// The coalition that it leaves.
    pub coalition: CoalitionId,
    /// The chain of that coalition; 0 for a roster that is only a file.
    pub chain: u64,
    /// The epoch it served in; 0 when it served in none.
    pub epoch: Epoch,
    /// How.
    pub manner: Manner,
    /// When it was said, in seconds since the Unix epoch.
    pub at: u64,
}

/// [`StandDown`] with the operator's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedStandDown {
    /// What was signed.
    pub stand_down: StandDown,
    /// 65 bytes, by the operator's wallet.
    pub signature: Bytes,
}

/// Why a word does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StandDownError {
    /// Somebody else's word.
    #[error("the stand-down is of {0}, not of the node that sent it")]
    Operator(Address),
    /// About something else.
    #[error("the stand-down is for another coalition")]
    Coalition,
    /// Too old or too new to be said now.
    #[error("the stand-down was signed {0} s away from now by this machine's clock")]
    Clock(u64),
    /// Not signed by the operator.
    #[error("the stand-down is not signed by its operator")]
    Signature,
}

impl StandDown {
    /// Clocks of two machines may differ by this many seconds.
    pub const CLOCKS: u64 = 300;

    /// What the operator's wallet signs (EIP-712, domain `ComputePool` version `1` with the chain's id).
    pub fn digest(&self) -> B256 {
        let typed = typed::StandDown {
            operator: self.operator,
            coalition: self.coalition.0,
            epoch: self.epoch.0,
            manner: self.manner.as_str().to_owned(),
            at: self.at,
        };
        typed.eip712_signing_hash(&eip712_domain! { name: "ComputePool", version: "1", chain_id: self.chain, })
    }
}

impl SignedStandDown {
    /// Checks that `operator` says now, in its own name, that it leaves this coalition.
    pub fn verify(
        &self,
        operator: Address,
        coalition: CoalitionId,
        chain: u64,
        now: u64,
    ) -> Result<StandDown, StandDownError> {
        let said = self.stand_down;
        if said.operator != operator {
            return Err(StandDownError::Operator(said.operator));
        }
        if said.coalition != coalition || said.chain != chain {
            return Err(StandDownError::Coalition);
        }
        if said.at.abs_diff(now) > StandDown::CLOCKS {
            return Err(StandDownError::Clock(said.at.abs_diff(now)));
        }
        if signer_of(&self.signature, &said.digest()) != Some(operator) {
            return Err(StandDownError::Signature);
        }
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use alloy_signer::SignerSync;
    use alloy_signer_local::PrivateKeySigner;

    use super::*;

    fn key(byte: u8) -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&B256::repeat_byte(byte)).unwrap()
    }

    fn signed(stand_down: StandDown, key: &PrivateKeySigner) -> SignedStandDown {
        let signature = key.sign_hash_sync(&stand_down.digest()).unwrap();
        SignedStandDown { stand_down, signature: signature.as_bytes().into() }
    }

    #[test]
    fn only_the_operators_own_word_about_this_coalition_and_this_moment_counts() {
        let (operator, coalition) = (key(1), CoalitionId(B256::repeat_byte(7)));
        let said = StandDown {
            operator: operator.address(),
            coalition,
            chain: 16602,
            epoch: Epoch(3),
            manner: Manner::Yield,
            at: 1_000_000,
        };
        let verify = |word: &SignedStandDown, now| word.verify(operator.address(), coalition, 16602, now);
        let good = signed(said, &operator);
        assert_eq!(verify(&good, 1_000_010), Ok(said));
        assert_eq!(verify(&good, 1_000_301), Err(StandDownError::Clock(301)), "an old word is no news");
        assert_eq!(verify(&good, 999_000), Err(StandDownError::Clock(1_000)));
        assert_eq!(verify(&signed(said, &key(2)), 1_000_000), Err(StandDownError::Signature), "somebody else's");
        for changed in [
            StandDown { epoch: Epoch(4), ..said },
            StandDown { manner: Manner::Drain, ..said },
            StandDown { at: said.at + 1, ..said },
        ] {
            let forged = SignedStandDown { stand_down: changed, ..good.clone() };
            assert_eq!(verify(&forged, 1_000_000), Err(StandDownError::Signature), "every field is signed");
        }
        let elsewhere = signed(StandDown { chain: 1, ..said }, &operator);
        assert_eq!(verify(&elsewhere, 1_000_000), Err(StandDownError::Coalition));
        let other = signed(StandDown { operator: key(2).address(), ..said }, &key(2));
        assert_eq!(verify(&other, 1_000_000), Err(StandDownError::Operator(key(2).address())));
    }
}
