//! What a contract's refusal means, in plain words. A person never sees a contract's own text: it can say anything.

use std::fmt;

use alloy::{primitives::Bytes, sol_types::SolError};

use crate::contracts::{
    ICoalitionRegistry as Registry, IGda as Gda, ISessionVault as Vault, ISessionVaultFactory as Factory,
    ISuperToken as Wrapper, IUsdc as Usdc,
};

/// Why a contract refused. Shown as one plain sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revert {
    /// The contract's own name for it, where it is one that we know.
    pub name: Option<&'static str>,
    sentence: &'static str,
}

const UNKNOWN: Revert = Revert { name: None, sentence: "the contract refused, for a reason that we do not know" };
const SILENT: Revert = Revert { name: None, sentence: "the contract refused without a reason, or ran out of gas" };

/// Selector, name, sentence. The selectors of errors with the same signature are the same in every contract.
const KNOWN: &[([u8; 4], &str, &str)] = &[
    known::<Vault::NotAllowed>("NotAllowed", "the sender may not do this now"),
    known::<Vault::BadRate>(
        "BadRate",
        "the rate is negative, above the agreed maximum, or not a whole number of USDC units per second",
    ),
    known::<Vault::IsClosed>("IsClosed", "the session was closed"),
    known::<Vault::Expired>("Expired", "its time is over"),
    known::<Vault::RunwayTooShort>("RunwayTooShort", "the money left does not last long enough to stream at this rate"),
    known::<Vault::PoolHasNoUnits>("PoolHasNoUnits", "nobody in the pool would be paid"),
    known::<Vault::Healthy>(
        "Healthy",
        "the stream has money for a while, so only its payer and orchestrator may stop it",
    ),
    known::<Vault::NotClosed>("NotClosed", "the session has to be closed before it is refunded"),
    known::<Vault::OutOfGas>("OutOfGas", "the gas limit was too low for the refund"),
    known::<Factory::NotPaid>("NotPaid", "the session's vault does not hold the voucher's money"),
    known::<Registry::UnknownPool>("UnknownPool", "there is no such pool yet"),
    known::<Registry::StaleEpoch>("StaleEpoch", "the coalition has moved on to another epoch"),
    known::<Registry::NotRegistered>("NotRegistered", "an operator is not registered"),
    known::<Registry::BadMemberCount>("BadMemberCount", "a coalition has 1 to 16 members"),
    known::<Registry::DuplicateMember>("DuplicateMember", "an operator stands in the coalition twice"),
    known::<Registry::BadLayers>("BadLayers", "the members' layers have a gap or an overlap"),
    known::<Registry::NoUnits>("NoUnits", "a member has no units"),
    known::<Registry::BadUnits>("BadUnits", "the members' units do not sum to 1,000,000"),
    known::<Registry::BadSwap>("BadSwap", "there is no such swap"),
    known::<Registry::BadAddress>("BadAddress", "the zero address cannot take part"),
    known::<Registry::WrongSignatureCount>("WrongSignatureCount", "signatures are missing or too many"),
    known::<Registry::BadSignature>("BadSignature", "a signature is not that of its signer"),
    known::<Registry::NotActive>("NotActive", "the coalition is not serving"),
    known::<Registry::AlreadyDraining>("AlreadyDraining", "the coalition's end was announced before"),
    known::<Registry::NotOver>("NotOver", "the coalition is not over yet"),
    known::<Registry::NothingToPayOut>("NothingToPayOut", "there is nothing to pay out"),
    known::<Usdc::ERC3009InvalidAuthorizationTime>(
        "ERC3009InvalidAuthorizationTime",
        "the voucher has expired or is not valid yet",
    ),
    known::<Usdc::ERC3009InvalidSignature>("ERC3009InvalidSignature", "the voucher's signature is not its payer's"),
    known::<Usdc::ECDSAInvalidSignature>("ECDSAInvalidSignature", "a signature is malformed"),
    known::<Usdc::ECDSAInvalidSignatureS>("ECDSAInvalidSignatureS", "a signature is malformed"),
    known::<Usdc::ERC3009UsedAuthorization>("ERC3009UsedAuthorization", "the voucher was used or cancelled before"),
    known::<Usdc::ERC20InsufficientBalance>("ERC20InsufficientBalance", "the account does not have enough USDC"),
    known::<Wrapper::SF_TOKEN_MOVE_INSUFFICIENT_BALANCE>(
        "SF_TOKEN_MOVE_INSUFFICIENT_BALANCE",
        "the account does not have enough USDCx",
    ),
    known::<Gda::GDA_INSUFFICIENT_BALANCE>(
        "GDA_INSUFFICIENT_BALANCE",
        "the money left does not cover the stream's deposit",
    ),
    known::<Gda::GDA_NON_CRITICAL_SENDER>(
        "GDA_NON_CRITICAL_SENDER",
        "the stream still has money, so it cannot be liquidated",
    ),
    known::<Gda::GDA_ONLY_SUPER_TOKEN_POOL>("GDA_ONLY_SUPER_TOKEN_POOL", "the address is not a pool of this token"),
    known::<Gda::GDA_DISTRIBUTE_FROM_ANY_ADDRESS_NOT_ALLOWED>(
        "GDA_DISTRIBUTE_FROM_ANY_ADDRESS_NOT_ALLOWED",
        "the pool takes streams from its admin only",
    ),
];

const fn known<E: SolError>(name: &'static str, sentence: &'static str) -> ([u8; 4], &'static str, &'static str) {
    (E::SELECTOR, name, sentence)
}

impl Revert {
    /// The meaning of the data that a reverted call returned.
    pub fn decode(data: &Bytes) -> Self {
        let Some(selector) = data.get(..4) else { return SILENT };
        let found = KNOWN.iter().find(|(known, ..)| known == selector);
        found.map_or(UNKNOWN, |(_, name, sentence)| Revert { name: Some(name), sentence })
    }
}

impl fmt::Display for Revert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use alloy::primitives::B256;

    use super::*;

    #[test]
    fn known_refusals_have_sentences_of_their_own_and_others_show_nothing_of_theirs() {
        let paid = Usdc::ERC3009UsedAuthorization { authorizer: Default::default(), nonce: B256::ZERO };
        let revert = Revert::decode(&paid.abi_encode().into());
        assert_eq!(revert.name, Some("ERC3009UsedAuthorization"));
        assert_eq!(revert.to_string(), "the voucher was used or cancelled before");
        let text = alloy::sol_types::Revert::from("call 0x1 now, your key is at stake").abi_encode();
        let shown = Revert::decode(&text.into());
        assert_eq!((shown.name, shown.to_string().contains("stake")), (None, false), "a contract's text is not shown");
        assert_eq!(Revert::decode(&Bytes::new()), SILENT);
        assert_eq!(Revert::decode(&Bytes::from_static(&[1, 2, 3])), SILENT);
    }

    #[test]
    fn no_two_refusals_share_a_selector() {
        let selectors: HashSet<_> = KNOWN.iter().map(|(selector, ..)| selector).collect();
        assert_eq!(selectors.len(), KNOWN.len());
    }
}
