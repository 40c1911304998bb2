use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use alloy::primitives::{Address, B256, U256};
use pool_types::Usdcx;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{StreamRules, TokenDomain};

/// Where everything is on one chain: the file `contracts/addresses/<network>.json` that the deployment writes.
///
/// Networks are known by name and not by chain id alone: the local development chain and 0G Galileo share the id 16602.
/// A book that was read has been checked.
///
/// ```
/// use pool_chain::AddressBook;
///
/// let text = include_bytes!("../tests/fixtures/addresses.json");
/// let book = AddressBook::from_json(text)?;
/// assert_eq!(book.caip2(), "eip155:16602");
/// assert_ne!(book.contracts.usdc, book.contracts.usdcx);
/// # Ok::<(), pool_chain::AddressBookError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressBook {
    /// The network's name, as in the file's name.
    pub network: String,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Whether its money is worth anything. Unless a book says so, nothing that lies there is shown as money.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub real_money: bool,
    /// The block from which on our contracts have written events.
    pub start_block: u64,
    /// Superfluid's liquidation period for USDCx, in seconds: a stream locks so many seconds of its rate.
    pub liquidation_period: u64,
    /// The least that a stream locks, in wei of USDCx.
    #[serde(with = "wei")]
    pub minimum_deposit: Usdcx,
    /// Seconds of runway below which anybody may stop a session's stream.
    pub guard: u64,
    /// Seconds of Superfluid's patrician period, in which a liquidation's reward goes to the governance.
    #[serde(default)]
    pub patrician_period: u64,
    /// The EIP-712 domain of USDC, which vouchers are bound to.
    #[serde(default)]
    pub usdc_domain: UsdcDomain,
    /// The contracts.
    pub contracts: Contracts,
    /// What the code at an address must hash to, by the contract's name.
    #[serde(default)]
    pub code_hashes: BTreeMap<String, B256>,
}

/// The part of the token's EIP-712 domain that is not an address or a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsdcDomain {
    /// EIP-712 name.
    pub name: String,
    /// EIP-712 version.
    pub version: String,
}

impl Default for UsdcDomain {
    fn default() -> Self {
        Self { name: "USD Coin".to_owned(), version: "1".to_owned() }
    }
}

/// The addresses of an [`AddressBook`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contracts {
    /// Superfluid's host.
    pub host: Address,
    /// Superfluid's governance.
    pub governance: Address,
    /// Superfluid's General Distribution Agreement.
    pub gda: Address,
    /// Superfluid's Constant Flow Agreement.
    pub cfa: Address,
    /// The token that is paid with (6 decimals).
    pub usdc: Address,
    /// Its streamable wrapper (18 decimals).
    pub usdcx: Address,
    /// Makes the sessions' vaults.
    pub session_vault_factory: Address,
    /// The code that every vault runs.
    pub session_vault_implementation: Address,
    /// Coalitions, and admin of every GDA pool.
    pub coalition_registry: Address,
    /// Whatever else the deployment put on the chain, by name.
    #[serde(flatten)]
    pub others: BTreeMap<String, Address>,
}

/// Why an address book cannot be used.
#[derive(Debug, Error)]
pub enum AddressBookError {
    /// The file cannot be read.
    #[error("the address book {path} cannot be read: {source}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Longer than any address book.
    #[error("the address book is longer than {max} bytes", max = AddressBook::MAX_FILE_BYTES)]
    TooLong,
    /// Not JSON of this form.
    #[error("the address book is not of the expected form: {0}")]
    Json(#[from] serde_json::Error),
    /// A network's name is part of file names and signatures' domains.
    #[error("a network's name has 1 to 32 lower-case letters, digits and hyphens")]
    Network,
    /// The file is another network's.
    #[error("the address book is of the network {found}, not {wanted}")]
    OtherNetwork {
        /// What it says.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// Chain id 0 is no chain.
    #[error("the address book names no chain")]
    Chain,
    /// A period that no stream can live with.
    #[error("the address book's {what} of {seconds} s is not between {least} s and {most} s")]
    Period {
        /// Which one.
        what: &'static str,
        /// What it says.
        seconds: u64,
        /// The least that makes sense.
        least: u64,
        /// The most that makes sense.
        most: u64,
    },
    /// A deposit below zero.
    #[error("the address book's minimum deposit is negative")]
    Deposit,
    /// The zero address is nobody's.
    #[error("the address book has no address for {0}")]
    Zero(String),
    /// Two contracts cannot share an address.
    #[error("the address book has the same address for {0} and {1}")]
    Same(String, String),
}

impl AddressBook {
    /// The longest file that is read.
    pub const MAX_FILE_BYTES: usize = 64 << 10;
    const DAY: u64 = 24 * 60 * 60;

    /// The book of `network` in `folder`, which is `contracts/addresses` in a checkout.
    pub fn load(folder: &Path, network: &str) -> Result<Self, AddressBookError> {
        if !Self::is_name(network) {
            return Err(AddressBookError::Network);
        }
        let book = Self::read(&folder.join(format!("{network}.json")))?;
        if book.network != network {
            return Err(AddressBookError::OtherNetwork { found: book.network, wanted: network.to_owned() });
        }
        Ok(book)
    }

    /// Reads and checks one file.
    pub fn read(path: &Path) -> Result<Self, AddressBookError> {
        let wrap = |source| AddressBookError::Read { path: path.display().to_string(), source };
        let mut json = Vec::new();
        let file = File::open(path).map_err(wrap)?;
        file.take(Self::MAX_FILE_BYTES as u64 + 1).read_to_end(&mut json).map_err(wrap)?;
        Self::from_json(&json)
    }

    /// Reads and checks the text of a file.
    pub fn from_json(json: &[u8]) -> Result<Self, AddressBookError> {
        if json.len() > Self::MAX_FILE_BYTES {
            return Err(AddressBookError::TooLong);
        }
        let book: Self = serde_json::from_slice(json)?;
        book.validate()?;
        Ok(book)
    }

    /// Checks every rule; a book that came from a file has passed.
    pub fn validate(&self) -> Result<(), AddressBookError> {
        if !Self::is_name(&self.network) {
            return Err(AddressBookError::Network);
        }
        if self.chain_id == 0 {
            return Err(AddressBookError::Chain);
        }
        let periods =
            [("liquidation period", self.liquidation_period, 30 * Self::DAY), ("guard", self.guard, Self::DAY)];
        for (what, seconds, most) in periods {
            if !(1..=most).contains(&seconds) {
                return Err(AddressBookError::Period { what, seconds, least: 1, most });
            }
        }
        if self.minimum_deposit < Usdcx::ZERO {
            return Err(AddressBookError::Deposit);
        }
        let mut seen: BTreeMap<Address, String> = BTreeMap::new();
        for (name, address) in self.contracts.all() {
            if address == Address::ZERO {
                return Err(AddressBookError::Zero(name));
            }
            if let Some(before) = seen.insert(address, name.clone()) {
                return Err(AddressBookError::Same(before, name));
            }
        }
        Ok(())
    }

    /// The chain's CAIP-2 name, as x402 writes it.
    pub fn caip2(&self) -> String {
        format!("eip155:{}", self.chain_id)
    }

    /// What a voucher's signature binds besides its fields.
    pub fn token(&self) -> TokenDomain {
        let UsdcDomain { name, version } = self.usdc_domain.clone();
        TokenDomain { name, version, chain_id: self.chain_id, token: self.contracts.usdc }
    }

    /// What streams lock and how long they must be able to go on, as the book has it.
    pub fn stream_rules(&self) -> StreamRules {
        StreamRules {
            liquidation_period: self.liquidation_period,
            minimum_deposit: self.minimum_deposit,
            guard: self.guard,
        }
    }

    fn is_name(name: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=32).contains(&name.len()) && name.bytes().all(allowed)
    }
}

impl Contracts {
    /// Every contract with its name in the file.
    pub fn all(&self) -> Vec<(String, Address)> {
        let named = [
            ("host", self.host),
            ("governance", self.governance),
            ("gda", self.gda),
            ("cfa", self.cfa),
            ("usdc", self.usdc),
            ("usdcx", self.usdcx),
            ("sessionVaultFactory", self.session_vault_factory),
            ("sessionVaultImplementation", self.session_vault_implementation),
            ("coalitionRegistry", self.coalition_registry),
        ];
        let others = self.others.iter().map(|(name, address)| (name.clone(), *address));
        named.into_iter().map(|(name, address)| (name.to_owned(), address)).chain(others).collect()
    }
}

/// Wei as a number or as a string: what JavaScript can hold it writes either way.
mod wei {
    use serde::{Deserializer, Serializer, de::Error as _};

    use super::*;

    pub(super) fn serialize<S: Serializer>(amount: &Usdcx, serializer: S) -> Result<S::Ok, S::Error> {
        amount.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Usdcx, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(U256),
        }
        let wei = match Form::deserialize(deserializer)? {
            Form::Number(number) => i128::from(number),
            Form::Text(text) => i128::try_from(text).map_err(|_| D::Error::custom("the amount is too large"))?,
        };
        Ok(Usdcx::from_wei(wei))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../tests/fixtures/addresses.json");

    fn changed(change: impl FnOnce(&mut serde_json::Value)) -> Result<AddressBook, AddressBookError> {
        let mut value: serde_json::Value = serde_json::from_str(GOOD).unwrap();
        change(&mut value);
        AddressBook::from_json(value.to_string().as_bytes())
    }

    #[test]
    fn a_good_book_survives_its_file() {
        let book = AddressBook::from_json(GOOD.as_bytes()).unwrap();
        let again = AddressBook::from_json(serde_json::to_string(&book).unwrap().as_bytes()).unwrap();
        assert_eq!(again, book);
        assert_eq!(book.stream_rules().guard, 120);
        assert!(book.contracts.others.contains_key("deterministicDeployer"), "unknown contracts are kept");
    }

    #[test]
    fn a_minimum_deposit_may_be_a_number_or_a_string() {
        for form in [serde_json::json!(7), serde_json::json!("7"), serde_json::json!("0x7")] {
            let book = changed(|book| book["minimumDeposit"] = form).unwrap();
            assert_eq!(book.minimum_deposit, Usdcx::from_wei(7));
        }
    }

    #[test]
    fn books_that_would_lose_money_are_refused() {
        type Break = fn(&mut serde_json::Value);
        let cases: [(&str, Break, &str); 9] = [
            ("a name that leaves the folder", |b| b["network"] = "../x".into(), "network's name"),
            ("no chain", |b| b["chainId"] = 0.into(), "no chain"),
            ("no guard", |b| b["guard"] = 0.into(), "guard of 0 s"),
            ("a liquidation period of a year", |b| b["liquidationPeriod"] = 31_536_000.into(), "liquidation period"),
            (
                "money sent to nobody",
                |b| b["contracts"]["usdc"] = "0x0000000000000000000000000000000000000000".into(),
                "no address for usdc",
            ),
            (
                "token and wrapper mixed up",
                |b| b["contracts"]["usdc"] = b["contracts"]["usdcx"].clone(),
                "same address for usdc",
            ),
            (
                "a contract missing",
                |b| drop(b["contracts"].as_object_mut().unwrap().remove("usdcx")),
                "missing field `usdcx`",
            ),
            ("half an address", |b| b["contracts"]["gda"] = "0x1234".into(), "expected form"),
            ("a negative deposit", |b| b["minimumDeposit"] = "-1".into(), "expected form"),
        ];
        for (why, break_it, sentence) in cases {
            let error = changed(break_it).expect_err(why).to_string();
            assert!(error.contains(sentence), "{why}: {error}");
        }
        assert!(matches!(AddressBook::from_json(&vec![b' '; 64 << 10 | 1]), Err(AddressBookError::TooLong)));
    }

    #[test]
    fn a_book_is_found_by_its_network_and_must_be_of_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("galileo.json"), GOOD).unwrap();
        std::fs::write(folder.path().join("local.json"), GOOD).unwrap();
        assert_eq!(AddressBook::load(folder.path(), "local").unwrap().network, "local");
        let other = AddressBook::load(folder.path(), "galileo").unwrap_err();
        assert_eq!(other.to_string(), "the address book is of the network local, not galileo");
        assert!(matches!(AddressBook::load(folder.path(), "../local"), Err(AddressBookError::Network)));
        let missing = AddressBook::load(folder.path(), "mainnet").unwrap_err().to_string();
        assert!(missing.contains("mainnet.json cannot be read"), "{missing}");
    }
}
