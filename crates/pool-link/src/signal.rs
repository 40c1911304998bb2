use std::collections::{BTreeSet, HashMap};

use alloy_primitives::{Address, B256, Bytes, keccak256};
use alloy_sol_types::{SolStruct, sol};
use pool_coalition::Roster;
use pool_types::{CoalitionId, Epoch};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::identity::{Delegation, LinkIdentity, domain, signer_of};

/// The longest session description that is signed or read, in bytes.
pub const MAX_SDP: usize = 16 << 10;
/// A description that lives longer than this many seconds is refused, so that replay can be guarded in bounded space.
pub const MAX_DESCRIPTION_LIFETIME: u64 = 600;
/// A delegation that lives longer than this many seconds is refused: hours, not days.
pub const MAX_DELEGATION_LIFETIME: u64 = 24 * 3600;

sol! {
    struct LinkDescription {
        bytes32 coalition;
        uint64 epoch;
        address from;
        address to;
        string role;
        bytes32 nonce;
        bytes32 sdp;
        bytes32 fingerprint;
        uint64 expires;
        bytes32 delegation;
    }
}

/// Which side of the exchange a description is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DescriptionRole {
    /// The one who asks for the link.
    Offer,
    /// The one who was asked.
    Answer,
}

impl DescriptionRole {
    fn text(self) -> &'static str {
        match self {
            DescriptionRole::Offer => "offer",
            DescriptionRole::Answer => "answer",
        }
    }
}

/// One side of a link in the making: how to reach it, which certificate it will show, and who says so.
///
/// Travels through anybody's hands. Signed by the link key with EIP-712, type `LinkDescription(bytes32
/// coalition,uint64 epoch,address from,address to,string role,bytes32 nonce,bytes32 sdp,bytes32
/// fingerprint,uint64 expires,bytes32 delegation)`, where `sdp` is the Keccak-256 of its text and
/// `delegation` the hash that the wallet signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The coalition both belong to.
    pub coalition: CoalitionId,
    /// The chain of that coalition; 0 for a file roster.
    pub chain: u64,
    /// Its membership generation.
    pub epoch: Epoch,
    /// Who describes itself.
    pub from: Address,
    /// For whom.
    pub to: Address,
    /// Offer or answer.
    pub role: DescriptionRole,
    /// Random in an offer; an answer repeats it.
    pub nonce: B256,
    /// The session description (RFC 8866), with all its candidates.
    pub sdp: String,
    /// SHA-256 of the DTLS certificate (RFC 8122).
    pub fingerprint: B256,
    /// Unix seconds after which it is void.
    pub expires: u64,
    /// The wallet's word for the key that signed.
    pub delegation: Delegation,
    /// The link key's signature, 65 bytes.
    pub signature: Bytes,
}

/// What a description is checked against.
#[derive(Clone, Debug)]
pub struct VerifyContext {
    /// The wallets that may link with us: the root of trust.
    pub members: BTreeSet<Address>,
    /// Our wallet.
    pub me: Address,
    /// Our coalition.
    pub coalition: CoalitionId,
    /// Its chain; 0 for a file roster.
    pub chain: u64,
    /// Its membership generation.
    pub epoch: Epoch,
    /// Unix seconds.
    pub now: u64,
}

/// Why a description or delegation is refused, or could not be made.
#[derive(Debug, Error)]
pub enum SignalError {
    /// The session description is empty or longer than [`MAX_SDP`].
    #[error("a session description of {0} bytes; 1 to {MAX_SDP} are allowed")]
    SdpLength(usize),
    /// For another coalition or chain.
    #[error("the description is for another coalition")]
    Coalition,
    /// For another membership generation.
    #[error("the description is for epoch {theirs}, ours is {ours}")]
    Epoch {
        /// In the description.
        theirs: Epoch,
        /// Now.
        ours: Epoch,
    },
    /// For somebody else, or from ourselves.
    #[error("the description is not for us")]
    NotForMe,
    /// An offer where an answer belongs, or the other way round.
    #[error("the description has the wrong role")]
    Role,
    /// An answer to another offer, or of another peer.
    #[error("the answer does not belong to our offer")]
    NotTheAnswer,
    /// The sender is not in the member list.
    #[error("{0} is not a member of the coalition")]
    NotAMember(Address),
    /// Past its expiry.
    #[error("the {0} has expired")]
    Expired(&'static str),
    /// Lives longer than anything of its kind may.
    #[error("the {0} is valid for too long")]
    TooLongLived(&'static str),
    /// The wallet did not make the delegation.
    #[error("the wallet's signature of the delegation does not hold")]
    DelegationSignature,
    /// The delegation is of another wallet, coalition or chain.
    #[error("the delegation is not for this member of this coalition")]
    DelegationScope,
    /// The signer is not the key that the wallet delegated.
    #[error("the signer is not the key that the wallet delegated")]
    NotTheDelegatedKey,
    /// Not exactly one SHA-256 fingerprint in the session description, or not the signed one.
    #[error("the session description does not hold exactly the one fingerprint that was signed")]
    Fingerprint,
    /// Seen before.
    #[error("the offer was used before")]
    Replayed,
    /// Too many offers are alive at once.
    #[error("too many offers at once; try again later")]
    TooMany,
    /// The signer failed.
    #[error("signing failed: {0}")]
    Signer(#[from] alloy_signer::Error),
}

impl VerifyContext {
    /// The context of `me` in a roster's coalition.
    pub fn of_roster(roster: &Roster, me: Address, epoch: Epoch, now: u64) -> Self {
        Self {
            members: roster.members.iter().map(|member| member.address).collect(),
            me,
            coalition: roster.coalition_id(),
            chain: roster.chain,
            epoch,
            now,
        }
    }

    /// The same at another time.
    pub fn at(&self, now: u64) -> Self {
        Self { now, ..self.clone() }
    }
}

impl Description {
    /// Signs a description of ourselves for `to`. The fingerprint is read from the session description.
    pub fn sign(
        identity: &LinkIdentity,
        context: &VerifyContext,
        to: Address,
        role: DescriptionRole,
        nonce: B256,
        sdp: String,
        lifetime: u64,
    ) -> Result<Self, SignalError> {
        if sdp.is_empty() || sdp.len() > MAX_SDP {
            return Err(SignalError::SdpLength(sdp.len()));
        }
        let fingerprint = only_fingerprint(&sdp).ok_or(SignalError::Fingerprint)?;
        let mut description = Self {
            coalition: context.coalition,
            chain: context.chain,
            epoch: context.epoch,
            from: identity.wallet(),
            to,
            role,
            nonce,
            sdp,
            fingerprint,
            expires: context.now.saturating_add(lifetime.min(MAX_DESCRIPTION_LIFETIME)),
            delegation: identity.delegation().clone(),
            signature: Bytes::new(),
        };
        description.signature = identity.sign_hash(&description.hash())?;
        Ok(description)
    }

    /// The EIP-712 hash that the link key signs.
    pub fn hash(&self) -> B256 {
        LinkDescription {
            coalition: self.coalition.0,
            epoch: self.epoch.0,
            from: self.from,
            to: self.to,
            role: self.role.text().to_owned(),
            nonce: self.nonce,
            sdp: keccak256(&self.sdp),
            fingerprint: self.fingerprint,
            expires: self.expires,
            delegation: self.delegation.hash(),
        }
        .eip712_signing_hash(&domain(self.chain))
    }
}

/// Checks everything that a description claims: lengths, coalition, chain, epoch, addressee, membership, expiries,
/// the wallet's signature of the delegation, the link key's of the description, and that the session description
/// holds the signed fingerprint and no other. Pure; replay is the caller's to guard ([`ReplayGuard`]).
pub fn verify(description: &Description, context: &VerifyContext) -> Result<(), SignalError> {
    let delegation = &description.delegation;
    if description.sdp.is_empty() || description.sdp.len() > MAX_SDP {
        return Err(SignalError::SdpLength(description.sdp.len()));
    }
    if description.coalition != context.coalition || description.chain != context.chain {
        return Err(SignalError::Coalition);
    }
    if description.epoch != context.epoch {
        return Err(SignalError::Epoch { theirs: description.epoch, ours: context.epoch });
    }
    if description.to != context.me || description.from == context.me {
        return Err(SignalError::NotForMe);
    }
    if !context.members.contains(&description.from) {
        return Err(SignalError::NotAMember(description.from));
    }
    if delegation.wallet != description.from
        || delegation.coalition != context.coalition
        || delegation.chain != context.chain
    {
        return Err(SignalError::DelegationScope);
    }
    check_expiry("description", description.expires, MAX_DESCRIPTION_LIFETIME, context.now)?;
    check_expiry("delegation", delegation.expires, MAX_DELEGATION_LIFETIME, context.now)?;
    if only_fingerprint(&description.sdp) != Some(description.fingerprint) {
        return Err(SignalError::Fingerprint);
    }
    if !delegation.is_signed() {
        return Err(SignalError::DelegationSignature);
    }
    if signer_of(&description.signature, &description.hash()) != Some(delegation.link_key) {
        return Err(SignalError::NotTheDelegatedKey);
    }
    Ok(())
}

/// [`verify`] for what must be an offer.
pub fn verify_offer(offer: &Description, context: &VerifyContext) -> Result<(), SignalError> {
    if offer.role != DescriptionRole::Offer {
        return Err(SignalError::Role);
    }
    verify(offer, context)
}

/// [`verify`] for what must be `peer`'s answer to the offer with this nonce.
pub fn verify_answer(
    answer: &Description,
    peer: Address,
    nonce: B256,
    context: &VerifyContext,
) -> Result<(), SignalError> {
    if answer.role != DescriptionRole::Answer {
        return Err(SignalError::Role);
    }
    if answer.from != peer || answer.nonce != nonce {
        return Err(SignalError::NotTheAnswer);
    }
    verify(answer, context)
}

fn check_expiry(what: &'static str, expires: u64, most: u64, now: u64) -> Result<(), SignalError> {
    match expires.checked_sub(now) {
        None | Some(0) => Err(SignalError::Expired(what)),
        Some(left) if left > most => Err(SignalError::TooLongLived(what)),
        Some(_) => Ok(()),
    }
}

/// The one `a=fingerprint:sha-256` of a session description; `None` when there are none, several, or others.
pub(crate) fn only_fingerprint(sdp: &str) -> Option<B256> {
    // Any line that names a fingerprint counts, however it is spelt: a reader more lenient than we are must not
    // find a second one.
    let mut lines = sdp.split(['\r', '\n']).filter(|line| line.to_ascii_lowercase().contains("fingerprint"));
    let value = lines.next()?.strip_prefix("a=fingerprint:sha-256 ")?;
    if lines.next().is_some() {
        return None;
    }
    let mut bytes = [0; 32];
    let mut pairs = value.split(':');
    for byte in &mut bytes {
        let pair = pairs.next().filter(|pair| pair.len() == 2 && pair.bytes().all(|c| c.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    pairs.next().is_none().then_some(B256::new(bytes))
}

/// Remembers the nonces of accepted offers until they expire. Bounded: when it is full of unexpired nonces, new
/// offers are refused rather than old ones forgotten. Owned by whoever answers offers.
#[derive(Debug, Default)]
pub struct ReplayGuard {
    seen: HashMap<(Address, B256), u64>,
}

impl ReplayGuard {
    /// The most unexpired offers remembered.
    pub const CAPACITY: usize = 4096;

    /// Accepts a verified offer once. `now` is in Unix seconds.
    pub fn admit(&mut self, offer: &Description, now: u64) -> Result<(), SignalError> {
        if self.seen.len() >= Self::CAPACITY {
            self.seen.retain(|_, expires| *expires > now);
        }
        if self.seen.contains_key(&(offer.from, offer.nonce)) {
            return Err(SignalError::Replayed);
        }
        if self.seen.len() >= Self::CAPACITY {
            return Err(SignalError::TooMany);
        }
        self.seen.insert((offer.from, offer.nonce), offer.expires);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
