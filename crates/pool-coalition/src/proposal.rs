//! What the members of a coalition vote on: one proposal, known by one EIP-712 digest, which all of them sign.
//!
//! The form is `ICoalitionRegistry`'s (`contracts/src/interfaces/ICoalitionRegistry.sol`); the registry activates
//! nothing that anybody of [`Proposal::signers`] has not signed.

#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

use alloy_primitives::{Address, B256, Bytes, aliases::I96, keccak256};
use alloy_sol_types::{Eip712Domain, SolStruct, SolValue, eip712_domain};
use pool_types::{FlowRate, LayerRange, signer_of};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The parts of a signed message as Solidity has them.
mod typed {
    alloy_sol_types::sol! {
        struct Member {
            address operator;
            uint32 firstLayer;
            uint32 endLayer;
            uint32 units;
        }
        struct Swap {
            uint32 place;
            address standby;
        }
        struct Proposal {
            bytes32 poolId;
            uint64 epoch;
            bytes32 manifest;
            address orchestrator;
            Member[] members;
            Swap[] swaps;
            int96 rate;
            uint64 expiry;
        }
        struct Registration {
            address operator;
            uint64 deadline;
        }
    }
}

/// What the shares of all members add up to.
pub const UNITS: u32 = 1_000_000;
/// The most members of a coalition.
pub const MAX_MEMBERS: usize = 16;
/// The most swaps a proposal may name.
pub const MAX_SWAPS: usize = 32;

/// Where signatures of proposals hold: one registry on one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryDomain {
    /// The chain's id.
    pub chain: u64,
    /// The registry's address.
    pub registry: Address,
}

impl RegistryDomain {
    fn eip712(&self) -> Eip712Domain {
        eip712_domain! {
            name: "ComputePool",
            version: "1",
            chain_id: self.chain,
            verifying_contract: self.registry,
        }
    }

    /// What an operator signs so that anybody may register it: operators need no gas.
    pub fn registration_digest(&self, operator: Address, deadline: u64) -> B256 {
        typed::Registration { operator, deadline }.eip712_signing_hash(&self.eip712())
    }
}

impl fmt::Display for RegistryDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.chain, self.registry)
    }
}

/// A text that names no registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a registry is written as the chain's id and its address, like 16602:0x0123456789abcdef0123456789abcdef01234567"
)]
pub struct RegistryDomainError;

impl FromStr for RegistryDomain {
    type Err = RegistryDomainError;

    fn from_str(text: &str) -> Result<Self, RegistryDomainError> {
        let (chain, registry) = text.split_once(':').ok_or(RegistryDomainError)?;
        match (chain.parse(), registry.parse()) {
            (Ok(chain), Ok(registry)) => Ok(Self { chain, registry }),
            _ => Err(RegistryDomainError),
        }
    }
}

/// An operator's place in a coalition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seat {
    /// Who holds the layers.
    pub operator: Address,
    /// Which.
    pub layers: LayerRange,
    /// Its share of the income, of [`UNITS`].
    pub units: u32,
}

/// Leave to put `standby` in the place of whoever holds `place` then, without a new vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swap {
    /// Index into the seats.
    pub place: u32,
    /// Who takes over.
    pub standby: Address,
}

/// A coalition as it is voted on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// [`pool_id`] of the pool's owner and label.
    pub pool: B256,
    /// One more than the pool's present epoch, so that a signed proposal is activated at most once.
    pub epoch: u64,
    /// Hash of the model's manifest.
    pub manifest: B256,
    /// Who may make the swaps and announce the end.
    pub orchestrator: Address,
    /// 1 to [`MAX_MEMBERS`], ordered by layers from 0 on without gap.
    pub seats: Vec<Seat>,
    /// At most [`MAX_SWAPS`].
    pub swaps: Vec<Swap>,
    /// The most the pool charges.
    pub rate: FlowRate,
    /// Unix seconds from which on nobody is bound any more.
    pub expiry: u64,
}

/// What an operator is asked to sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ballot {
    /// Where the signature holds.
    pub domain: RegistryDomain,
    /// What is voted on.
    pub proposal: Proposal,
    /// Until when the operator may be registered by its signature, in Unix seconds.
    pub registration_deadline: u64,
}

/// An operator's answer: two signatures of 65 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vote {
    /// Over [`Proposal::digest`].
    pub proposal: Bytes,
    /// Over [`RegistryDomain::registration_digest`].
    pub registration: Bytes,
}

impl Ballot {
    /// Whether `vote` is `operator`'s on this ballot.
    pub fn is_voted_by(&self, operator: Address, vote: &Vote) -> bool {
        let registration = self.domain.registration_digest(operator, self.registration_deadline);
        signer_of(&vote.proposal, &self.proposal.digest(&self.domain)) == Some(operator)
            && signer_of(&vote.registration, &registration) == Some(operator)
    }
}

/// Why a proposal is not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProposalError {
    /// Nobody, or more than [`MAX_MEMBERS`].
    #[error("a coalition has 1 to {MAX_MEMBERS} members, this one {0}")]
    Members(usize),
    /// An operator holds two places, or a standby one already.
    #[error("{0} stands in the proposal twice")]
    Twice(Address),
    /// Nobody can sign for the zero address.
    #[error("the proposal holds the zero address")]
    ZeroAddress,
    /// A gap or an overlap.
    #[error("the layers of member {0} do not begin where those before end")]
    Layers(usize),
    /// A member without a share, or shares that are not the whole.
    #[error("the shares must be positive and add up to {UNITS}")]
    Units,
    /// Too many, or one that names no place.
    #[error("swap {0} is not possible")]
    Swap(usize),
    /// No rate, or more than Superfluid can stream.
    #[error("the rate cannot be streamed")]
    Rate,
    /// Its time has passed.
    #[error("the proposal has expired")]
    Expired,
    /// It is not ours to sign.
    #[error("the proposal does not give {operator} the layers {layers} that it holds")]
    NotMine {
        /// Who was asked.
        operator: Address,
        /// What it holds.
        layers: LayerRange,
    },
    /// Less than the operator asks for.
    #[error("the proposal pays this member {offered}, less than the {wanted} that its owner asks for")]
    TooLittle {
        /// The operator's share of the rate.
        offered: FlowRate,
        /// The least it takes.
        wanted: FlowRate,
    },
}

/// The id of the pool that `owner` calls `label`. It binds its owner, so nobody can take a pool of somebody else.
pub fn pool_id(owner: Address, label: B256) -> B256 {
    keccak256((owner, label).abi_encode())
}

impl Proposal {
    /// What everybody signs (EIP-712).
    pub fn digest(&self, domain: &RegistryDomain) -> B256 {
        let typed = typed::Proposal {
            poolId: self.pool,
            epoch: self.epoch,
            manifest: self.manifest,
            orchestrator: self.orchestrator,
            members: self
                .seats
                .iter()
                .map(|seat| typed::Member {
                    operator: seat.operator,
                    firstLayer: seat.layers.start(),
                    endLayer: seat.layers.end(),
                    units: seat.units,
                })
                .collect(),
            swaps: self.swaps.iter().map(|swap| typed::Swap { place: swap.place, standby: swap.standby }).collect(),
            // A rate that does not fit is refused by `check`; here it must only not pass for another.
            rate: I96::try_from(self.rate.wei_per_second()).unwrap_or(I96::MINUS_ONE),
            expiry: self.expiry,
        };
        typed.eip712_signing_hash(&domain.eip712())
    }

    /// Checks every rule that the registry will, at the Unix second `now`.
    pub fn check(&self, now: u64) -> Result<(), ProposalError> {
        if !(1..=MAX_MEMBERS).contains(&self.seats.len()) {
            return Err(ProposalError::Members(self.seats.len()));
        }
        let mut next_layer = 0;
        for (place, seat) in self.seats.iter().enumerate() {
            if seat.layers.start() != next_layer {
                return Err(ProposalError::Layers(place));
            }
            next_layer = seat.layers.end();
            if seat.operator == Address::ZERO {
                return Err(ProposalError::ZeroAddress);
            }
            if self.seats[..place].iter().any(|other| other.operator == seat.operator) {
                return Err(ProposalError::Twice(seat.operator));
            }
        }
        let units: u64 = self.seats.iter().map(|seat| u64::from(seat.units)).sum();
        if units != u64::from(UNITS) || self.seats.iter().any(|seat| seat.units == 0) {
            return Err(ProposalError::Units);
        }
        for (index, swap) in self.swaps.iter().enumerate() {
            if index >= MAX_SWAPS || swap.place as usize >= self.seats.len() {
                return Err(ProposalError::Swap(index));
            }
            if swap.standby == Address::ZERO {
                return Err(ProposalError::ZeroAddress);
            }
            if self.seats.iter().any(|seat| seat.operator == swap.standby) {
                return Err(ProposalError::Twice(swap.standby));
            }
        }
        if self.orchestrator == Address::ZERO {
            return Err(ProposalError::ZeroAddress);
        }
        if self.rate == FlowRate::ZERO || !self.rate.fits_superfluid() {
            return Err(ProposalError::Rate);
        }
        if now >= self.expiry {
            return Err(ProposalError::Expired);
        }
        Ok(())
    }

    /// Whether `operator`, which holds `layers` and takes no less than `least`, should sign.
    pub fn acceptable_to(
        &self,
        operator: Address,
        layers: LayerRange,
        least: FlowRate,
        now: u64,
    ) -> Result<(), ProposalError> {
        self.check(now)?;
        let seat = self.seats.iter().find(|seat| seat.operator == operator && seat.layers == layers);
        let seat = seat.ok_or(ProposalError::NotMine { operator, layers })?;
        let offered = self.income_of(seat);
        if offered < least { Err(ProposalError::TooLittle { offered, wanted: least }) } else { Ok(()) }
    }

    /// A seat's share of the whole rate, rounded down to a unit a second.
    pub fn income_of(&self, seat: &Seat) -> FlowRate {
        let share = u128::from(self.rate.units_per_second()) * u128::from(seat.units) / u128::from(UNITS);
        FlowRate::from_units_per_second(u64::try_from(share).unwrap_or(u64::MAX))
    }

    /// Whose signatures the registry wants, in its order, each once: the pool's owner, the members, the standbys, and
    /// while a coalition is bound (`present`) its members.
    pub fn signers(&self, owner: Address, present: &[Address]) -> Vec<Address> {
        let mut signers = vec![owner];
        let seats = self.seats.iter().map(|seat| seat.operator);
        let standbys = self.swaps.iter().map(|swap| swap.standby);
        for signer in seats.chain(standbys).chain(present.iter().copied()) {
            if !signers.contains(&signer) {
                signers.push(signer);
            }
        }
        signers
    }
}

/// Shares in proportion to `weights` (layers times measured speed), each at least 1, that add up to [`UNITS`]. What
/// rounding leaves goes to those who lost most by it, the earlier first. Nothing where there is nothing to weigh.
pub fn shares(weights: &[u64]) -> Vec<u32> {
    if weights.is_empty() || weights.len() > UNITS as usize {
        return Vec::new();
    }
    // Everybody has one unit; the rest is shared out, so that no member works for nothing.
    let total: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    let to_share = u128::from(UNITS) - weights.len() as u128;
    let exact = |weight: u64| match total {
        0 => (to_share / weights.len() as u128, 0),
        total => (u128::from(weight) * to_share / total, u128::from(weight) * to_share % total),
    };
    let mut shares: Vec<u32> = weights.iter().map(|&weight| 1 + exact(weight).0 as u32).collect();
    let mut by_loss: Vec<usize> = (0..weights.len()).collect();
    by_loss.sort_by_key(|&place| std::cmp::Reverse(exact(weights[place]).1));
    let left = UNITS - shares.iter().sum::<u32>();
    for &place in by_loss.iter().cycle().take(left as usize) {
        shares[place] += 1;
    }
    shares
}
