//! What coalitions sign, in the contracts' form. Proposals and their digests are `pool_coalition::proposal`'s; here they
//! meet the registry.

use alloy::primitives::{Address, Bytes};
use pool_coalition::proposal::{Proposal, RegistryDomain, Seat, Swap};
use pool_types::{LayerRange, signer_of};
use thiserror::Error;

use crate::{
    AddressBook, contracts,
    vault::{rate_of, wei_per_second},
};

/// Why a proposal of the chain cannot be read, or a signature is not one that the registry takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProposalFormError {
    /// Layers or a rate that this version has no form for.
    #[error("the chain holds a proposal that this version cannot read")]
    Unreadable,
    /// Not 65 bytes of an ordinary key with `s` in the lower half.
    #[error("the signature is not of the form that the registry takes")]
    Signature,
}

impl AddressBook {
    /// Where signatures of proposals and registrations hold.
    pub fn registry(&self) -> RegistryDomain {
        RegistryDomain { chain: self.chain_id, registry: self.contracts.coalition_registry }
    }
}

/// A signature in the only form that the registry takes: 65 bytes `r ‖ s ‖ v`, `v` 27 or 28. Some keys write 0 and 1.
pub fn registry_signature(signature: &[u8]) -> Result<Bytes, ProposalFormError> {
    let mut bytes: [u8; 65] = signature.try_into().map_err(|_| ProposalFormError::Signature)?;
    bytes[64] = match bytes[64] {
        v @ (0 | 1) => v + 27,
        v @ (27 | 28) => v,
        _ => return Err(ProposalFormError::Signature),
    };
    // Any hash tells whether `s` is in the lower half and the point is on the curve.
    signer_of(&bytes, &alloy::primitives::B256::ZERO).ok_or(ProposalFormError::Signature)?;
    Ok(bytes.into())
}

impl From<&Proposal> for contracts::Proposal {
    fn from(proposal: &Proposal) -> Self {
        let member = |seat: &Seat| contracts::Member {
            operator: seat.operator,
            firstLayer: seat.layers.start(),
            endLayer: seat.layers.end(),
            units: seat.units,
        };
        let swap = |swap: &Swap| contracts::Swap { place: swap.place, standby: swap.standby };
        Self {
            poolId: proposal.pool,
            epoch: proposal.epoch,
            manifest: proposal.manifest,
            orchestrator: proposal.orchestrator,
            members: proposal.seats.iter().map(member).collect(),
            swaps: proposal.swaps.iter().map(swap).collect(),
            rate: wei_per_second(proposal.rate),
            expiry: proposal.expiry,
        }
    }
}

impl TryFrom<contracts::Proposal> for Proposal {
    type Error = ProposalFormError;

    fn try_from(proposal: contracts::Proposal) -> Result<Self, ProposalFormError> {
        let swap = |swap: contracts::Swap| Swap { place: swap.place, standby: swap.standby };
        Ok(Self {
            pool: proposal.poolId,
            epoch: proposal.epoch,
            manifest: proposal.manifest,
            orchestrator: proposal.orchestrator,
            seats: proposal.members.into_iter().map(Seat::try_from).collect::<Result<_, _>>()?,
            swaps: proposal.swaps.into_iter().map(swap).collect(),
            rate: rate_of(proposal.rate).ok_or(ProposalFormError::Unreadable)?,
            expiry: proposal.expiry,
        })
    }
}

impl TryFrom<contracts::Member> for Seat {
    type Error = ProposalFormError;

    fn try_from(member: contracts::Member) -> Result<Self, ProposalFormError> {
        let layers = LayerRange::new(member.firstLayer, member.endLayer).map_err(|_| ProposalFormError::Unreadable)?;
        Ok(Self { operator: member.operator, layers, units: member.units })
    }
}

/// The operators who hold places, in their order.
pub(crate) fn seats_of(members: Vec<contracts::Member>) -> Result<Vec<Seat>, ProposalFormError> {
    members.into_iter().map(Seat::try_from).collect()
}

/// The addresses of all who hold places.
pub fn operators(seats: &[Seat]) -> Vec<Address> {
    seats.iter().map(|seat| seat.operator).collect()
}

#[cfg(test)]
mod tests {
    use alloy::{
        primitives::{B256, b256},
        signers::{SignerSync, local::PrivateKeySigner},
    };
    use pool_coalition::proposal::pool_id;
    use pool_types::FlowRate;

    use super::*;

    fn book() -> AddressBook {
        AddressBook::from_json(include_bytes!("../tests/fixtures/addresses.json")).unwrap()
    }

    fn proposal() -> Proposal {
        let seat = |n, from, to, units| Seat {
            operator: Address::repeat_byte(n),
            layers: LayerRange::new(from, to).unwrap(),
            units,
        };
        Proposal {
            pool: B256::repeat_byte(1),
            epoch: 1,
            manifest: B256::repeat_byte(2),
            orchestrator: Address::repeat_byte(0x22),
            seats: vec![seat(0x31, 0, 10, 600_000), seat(0x32, 10, 24, 400_000)],
            swaps: vec![Swap { place: 1, standby: Address::repeat_byte(0x41) }],
            rate: FlowRate::from_units_per_second(100),
            expiry: 1_800_000_000,
        }
    }

    #[test]
    fn digests_are_those_of_another_implementation() {
        // viem 2.57: hashTypedData over the types that ICoalitionRegistry.sol names.
        let expected = b256!("0xad769a3425ffdcd7254270cfe5c9e6cf2c50788a53a24c26c134035829ff3894");
        assert_eq!(proposal().digest(&book().registry()), expected);
        let digest = book().registry().registration_digest(Address::repeat_byte(0x31), 1_800_000_000);
        assert_eq!(digest, b256!("0x33b60fcba9079b9d22206194c19a70cf75036eae976a333e851da4c8e38bfa65"));
        let expected = b256!("0x6e98d7db341b66e9d5adc89d7de850de460198d6dbea3da9140d0584767292c7");
        assert_eq!(pool_id(Address::repeat_byte(0x21), B256::repeat_byte(3)), expected);
    }

    #[test]
    fn signatures_take_the_registrys_form_or_are_refused() {
        let key = PrivateKeySigner::from_bytes(&B256::repeat_byte(9)).unwrap();
        let good = key.sign_hash_sync(&proposal().digest(&book().registry())).unwrap().as_bytes();
        assert_eq!(registry_signature(&good), Ok(Bytes::from(good)));
        let mut zero_based = good;
        zero_based[64] -= 27;
        assert_eq!(registry_signature(&zero_based), Ok(Bytes::from(good)));
        let mut high = good;
        high[32..64].fill(0xf0);
        let mut eip155 = good;
        eip155[64] = 37;
        for wrong in [&good[..64], &[], &high, &eip155] {
            assert_eq!(registry_signature(wrong), Err(ProposalFormError::Signature));
        }
    }

    #[test]
    fn proposals_survive_the_contracts_form() {
        assert_eq!(Proposal::try_from(contracts::Proposal::from(&proposal())), Ok(proposal()));
        let mut empty_shard = contracts::Proposal::from(&proposal());
        empty_shard.members[0].endLayer = 0;
        assert_eq!(Proposal::try_from(empty_shard), Err(ProposalFormError::Unreadable));
        let mut fraction = contracts::Proposal::from(&proposal());
        fraction.rate = "1".parse().unwrap();
        assert_eq!(Proposal::try_from(fraction), Err(ProposalFormError::Unreadable));
    }
}
