use std::collections::HashSet;

use alloy_primitives::{Address, keccak256};
use pool_types::CoalitionId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a member does in the coalition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RosterRole {
    /// Takes requests from clients, sends token ids in and receives sampled tokens. Holds no layers.
    Gateway,
    /// Holds layers.
    Node,
}

/// One member of a coalition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterMember {
    /// The member's wallet.
    pub address: Address,
    /// What people call it; 1 to 64 characters, none of them a control character. Carries no authority.
    pub name: String,
    /// What it does.
    pub role: RosterRole,
}

/// Who may link with whom: the root of trust of a coalition that has not been voted on chain.
///
/// `computepool up` writes it as a JSON file. A value read from JSON has been checked; one put together by
/// hand is checked by [`Roster::validate`].
///
/// ```
/// use alloy_primitives::Address;
/// use pool_coalition::{Roster, RosterMember, RosterRole};
///
/// let member = |n: u8, role| RosterMember { address: Address::repeat_byte(n), name: format!("member {n}"), role };
/// let gateway = member(1, RosterRole::Gateway);
/// let roster = Roster::new(gateway.address, vec![gateway, member(2, RosterRole::Node)], 1_767_225_600)?;
/// assert!(roster.contains(Address::repeat_byte(2)));
/// assert_eq!(Roster::from_json(roster.to_json().as_bytes())?.coalition_id(), roster.coalition_id());
/// # Ok::<(), pool_coalition::RosterError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Roster {
    /// The form of the file; [`Roster::VERSION`].
    pub version: u32,
    /// The chain that settles the coalition; 0 for a roster that is only a file.
    pub chain: u64,
    /// The wallet of the one member whose role is [`RosterRole::Gateway`].
    pub gateway: Address,
    /// Everyone, the gateway included. Their order is part of the coalition's identity.
    pub members: Vec<RosterMember>,
    /// When it was written, in seconds since the Unix epoch.
    pub created: u64,
}

/// The JSON as it stands, before its checks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    version: u32,
    chain: u64,
    gateway: Address,
    members: Vec<RosterMember>,
    created: u64,
}

/// Why a roster cannot be used.
#[derive(Debug, Error)]
pub enum RosterError {
    /// Not JSON of the expected form, or a member breaks a rule below.
    #[error("the roster cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// The file is longer than any roster can be.
    #[error("the roster is {0} bytes long; at most {max} are read", max = Roster::MAX_FILE_BYTES)]
    FileTooLong(usize),
    /// Written by another version of ComputePool.
    #[error("the roster has form {0}; this version reads form {expected}", expected = Roster::VERSION)]
    Version(u32),
    /// More members than a roster may have.
    #[error("the roster has {0} members; at most {max} are allowed", max = Roster::MAX_MEMBERS)]
    TooManyMembers(usize),
    /// Nobody owns the zero address.
    #[error("the roster holds the zero address, which nobody can sign for")]
    ZeroAddress,
    /// An address stands in the list twice.
    #[error("{0} stands in the roster twice")]
    Duplicate(Address),
    /// Empty, too long, or with control characters.
    #[error("the name of {0} must have 1 to 64 printable characters")]
    Name(Address),
    /// The gateway is not a member with the role of a gateway, or another member has that role.
    #[error("exactly one member must have the role gateway, and it must be {0}")]
    Gateway(Address),
}

impl Roster {
    /// The form this version writes and reads.
    pub const VERSION: u32 = 1;
    /// The most members a roster may have.
    pub const MAX_MEMBERS: usize = 1024;
    /// The longest file that is read, in bytes.
    pub const MAX_FILE_BYTES: usize = 512 << 10;
    const MAX_NAME_CHARS: usize = 64;

    /// A file roster (chain 0) of `members`, `gateway` among them, written at `created` (Unix seconds).
    pub fn new(gateway: Address, members: Vec<RosterMember>, created: u64) -> Result<Self, RosterError> {
        let roster = Self { version: Self::VERSION, chain: 0, gateway, members, created };
        roster.validate()?;
        Ok(roster)
    }

    /// Reads and checks the file form.
    pub fn from_json(json: &[u8]) -> Result<Self, RosterError> {
        if json.len() > Self::MAX_FILE_BYTES {
            return Err(RosterError::FileTooLong(json.len()));
        }
        let Unchecked { version, chain, gateway, members, created } = serde_json::from_slice(json)?;
        let roster = Self { version, chain, gateway, members, created };
        roster.validate()?;
        Ok(roster)
    }

    /// The file form, indented for people. [`Roster::coalition_id`] does not depend on the indentation.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Checks every rule: form, size, gateway, no zero address, no duplicate, printable names.
    pub fn validate(&self) -> Result<(), RosterError> {
        if self.version != Self::VERSION {
            return Err(RosterError::Version(self.version));
        }
        if self.members.len() > Self::MAX_MEMBERS {
            return Err(RosterError::TooManyMembers(self.members.len()));
        }
        let mut seen = HashSet::with_capacity(self.members.len());
        for member in &self.members {
            if member.address == Address::ZERO {
                return Err(RosterError::ZeroAddress);
            }
            if !seen.insert(member.address) {
                return Err(RosterError::Duplicate(member.address));
            }
            let chars = member.name.chars().count();
            if chars == 0 || chars > Self::MAX_NAME_CHARS || member.name.chars().any(char::is_control) {
                return Err(RosterError::Name(member.address));
            }
        }
        let gateways = self.members.iter().filter(|m| m.role == RosterRole::Gateway);
        if !gateways.map(|m| m.address).eq([self.gateway]) {
            return Err(RosterError::Gateway(self.gateway));
        }
        Ok(())
    }

    /// The Keccak-256 of the canonical JSON: no white space, fields and members in their order here,
    /// addresses in lower-case hexadecimal. Two rosters that differ in anything are two coalitions.
    pub fn coalition_id(&self) -> CoalitionId {
        CoalitionId(keccak256(serde_json::to_vec(self).unwrap_or_default()))
    }

    /// The member with this wallet.
    pub fn member(&self, address: Address) -> Option<&RosterMember> {
        self.members.iter().find(|member| member.address == address)
    }

    /// Whether this wallet belongs to the coalition.
    pub fn contains(&self, address: Address) -> bool {
        self.member(address).is_some()
    }

    /// What this wallet does in the coalition; `None` for a stranger.
    pub fn role(&self, address: Address) -> Option<RosterRole> {
        self.member(address).map(|member| member.role)
    }
}

impl TryFrom<Unchecked> for Roster {
    type Error = RosterError;

    fn try_from(unchecked: Unchecked) -> Result<Self, RosterError> {
        let Unchecked { version, chain, gateway, members, created } = unchecked;
        let roster = Self { version, chain, gateway, members, created };
        roster.validate()?;
        Ok(roster)
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::b256;

    use super::*;

    fn member(n: u8, role: RosterRole) -> RosterMember {
        RosterMember { address: Address::repeat_byte(n), name: format!("member {n}"), role }
    }

    fn roster() -> Roster {
        let members = vec![member(1, RosterRole::Gateway), member(2, RosterRole::Node), member(3, RosterRole::Node)];
        Roster::new(Address::repeat_byte(1), members, 1_767_225_600).unwrap()
    }

    #[test]
    fn a_roster_names_its_members_and_survives_its_file() {
        let roster = roster();
        let read = Roster::from_json(roster.to_json().as_bytes()).unwrap();
        assert_eq!(read, roster);
        assert_eq!(read.coalition_id(), roster.coalition_id(), "indentation must not change the coalition");
        assert_eq!(read.role(Address::repeat_byte(1)), Some(RosterRole::Gateway));
        assert_eq!(read.role(Address::repeat_byte(3)), Some(RosterRole::Node));
        assert_eq!(read.role(Address::repeat_byte(4)), None);
        assert!(!read.contains(Address::ZERO));
    }

    #[test]
    fn the_canonical_form_never_changes_unnoticed() {
        // Every delegation and description signs this hash: a change locks out running members.
        let expected = b256!("0xa2678ff7e2d4fff2074ef10373eb024a2170b3361c2827d1c28f3fd113d6e91a");
        assert_eq!(roster().coalition_id(), CoalitionId(expected));
    }

    #[test]
    fn any_difference_is_another_coalition() {
        let base = roster();
        let mut others = vec![base.clone(); 4];
        others[0].created += 1;
        others[1].members.swap(1, 2);
        others[2].members[1].name.push('x');
        others[3].members.pop();
        for other in others {
            other.validate().unwrap();
            assert_ne!(other.coalition_id(), base.coalition_id(), "{other:?}");
        }
    }

    #[test]
    fn rosters_that_could_mislead_are_refused() {
        type Break = fn(&mut Roster);
        let cases: [(&str, Break); 9] = [
            ("another form", |r| r.version = 2),
            ("zero address", |r| r.members[1].address = Address::ZERO),
            ("duplicate", |r| r.members[2].address = r.members[1].address),
            ("nameless", |r| r.members[1].name.clear()),
            ("terminal escape in a name", |r| r.members[1].name = "\u{1b}[2J".into()),
            ("endless name", |r| r.members[1].name = "n".repeat(65)),
            ("gateway not a member", |r| r.gateway = Address::repeat_byte(9)),
            ("second gateway", |r| r.members[1].role = RosterRole::Gateway),
            ("crowd", |r| {
                r.members.extend((0..Roster::MAX_MEMBERS).map(|n| RosterMember {
                    address: Address::left_padding_from(&(n as u32 + 1).to_be_bytes()),
                    name: "m".into(),
                    role: RosterRole::Node,
                }));
            }),
        ];
        for (why, break_it) in cases {
            let mut bad = roster();
            break_it(&mut bad);
            assert!(bad.validate().is_err(), "{why} must be refused");
            assert!(Roster::from_json(bad.to_json().as_bytes()).is_err(), "{why} must be refused from a file");
            assert!(serde_json::from_str::<Roster>(&bad.to_json()).is_err(), "{why} must be refused inside a message");
        }
    }

    #[test]
    fn files_with_unknown_or_missing_fields_or_garbage_are_refused() {
        let good = roster().to_json();
        let unknown = good.replacen("\"version\"", "\"extra\": 1, \"version\"", 1);
        let in_member = good.replacen("\"name\"", "\"rank\": 1, \"name\"", 1);
        let missing = good.replacen("\"created\"", "\"made\"", 1);
        let long = format!("{good}{}", " ".repeat(Roster::MAX_FILE_BYTES));
        for bad in [unknown.as_str(), &in_member, &missing, &long, "", "[]", "{\"version\":1", "\u{0}\u{1}"] {
            assert!(Roster::from_json(bad.as_bytes()).is_err(), "{:.80} must be refused", bad);
        }
    }
}
