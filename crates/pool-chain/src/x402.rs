//! x402 version 2 on the wire, scheme `exact` over EIP-3009.
//!
//! A server answers 402 with the header [`PAYMENT_REQUIRED`]; the client repeats its request with
//! [`PAYMENT_SIGNATURE`]; the server's answer carries [`PAYMENT_RESPONSE`]. Each is JSON in base64. Our requirements
//! pay to the vault of this very session, and carry its terms in `extra.terms`, so that a client can compute the
//! vault's address before it signs: [`verify_terms_and_sign`] does. A client that does not know our terms pays all
//! the same, and trusts the server's word for the address.

mod client;
mod payment;

use alloy::primitives::{Address, B256};
use base64::{Engine as _, engine::general_purpose::STANDARD};
pub use client::{ClientRefusal, PaymentPolicy, SignedPayment, read_offer, verify_terms_and_sign};
pub use payment::{Payment, PaymentError, parse_payment};
use pool_types::Usdc;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x402_types::{
    chain::ChainId,
    proto::v2::{ExtensionsJson, PaymentRequired, PaymentRequirements, ResourceInfo, X402Version2},
};

use crate::{AddressBook, Terms, TermsError, TokenDomain, VoucherRefusal, Wanted};

/// The header of a 402 answer that says what to pay.
pub const PAYMENT_REQUIRED: &str = "PAYMENT-REQUIRED";
/// The header of a repeated request that pays.
pub const PAYMENT_SIGNATURE: &str = "PAYMENT-SIGNATURE";
/// The header of the answer to a paid request.
pub const PAYMENT_RESPONSE: &str = "PAYMENT-RESPONSE";
/// The longest header that is read, in bytes of base64.
pub const MAX_HEADER_BYTES: usize = 16 << 10;
/// The only scheme we offer and take.
pub const EXACT: &str = "exact";

/// What an [`Offer`] says besides x402's own fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extra {
    /// EIP-712 name of the token.
    pub name: String,
    /// EIP-712 version of the token.
    pub version: String,
    /// The terms whose vault is paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
}

type Requirements<E = Extra> = PaymentRequirements<String, Usdc, Address, E>;

/// What a session costs and where to pay it: one x402 requirement.
///
/// ```
/// use pool_chain::{AddressBook, Terms, x402::Offer};
/// # use alloy_primitives::{Address, B256};
/// # use pool_types::FlowRate;
/// # let book = AddressBook::from_json(include_bytes!("../tests/fixtures/addresses.json"))?;
/// # let terms = Terms {
/// #     payer: Address::repeat_byte(1), orchestrator: Address::repeat_byte(2), pool: Address::repeat_byte(3),
/// #     max_rate: FlowRate::from_units_per_second(100), expiry: 1_800_000_000, session: B256::repeat_byte(4),
/// # };
/// let offer = Offer::of_session(&book, terms, "0.25".parse()?, 120)?;
/// assert_eq!(offer.pay_to(), terms.vault_in(&book));
/// let header = offer.to_header("http://127.0.0.1:8080/v1/sessions", "a session of 30 minutes");
/// # assert!(pool_chain::x402::read_offer(header.as_bytes()).is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer(Requirements);

/// Why no offer can be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OfferError {
    /// No vault can have these terms.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// Nothing to pay.
    #[error("a session cannot be offered for nothing")]
    Nothing,
}

impl Offer {
    /// An offer to open the session of `terms` for `amount`; `timeout` is how many seconds the client has to pay.
    pub fn of_session(book: &AddressBook, terms: Terms, amount: Usdc, timeout: u64) -> Result<Self, OfferError> {
        terms.validate()?;
        if amount == Usdc::ZERO {
            return Err(OfferError::Nothing);
        }
        let TokenDomain { name, version, chain_id, token } = book.token();
        Ok(Self(PaymentRequirements {
            scheme: EXACT.to_owned(),
            network: network(chain_id),
            amount,
            pay_to: terms.vault_in(book),
            max_timeout_seconds: timeout,
            asset: token,
            extra: Extra { name, version, terms: Some(terms) },
        }))
    }

    /// Where to pay.
    pub fn pay_to(&self) -> Address {
        self.0.pay_to
    }

    /// How much to pay.
    pub fn amount(&self) -> Usdc {
        self.0.amount
    }

    /// The token to pay with.
    pub fn asset(&self) -> Address {
        self.0.asset
    }

    /// The chain to pay on (CAIP-2).
    pub fn network(&self) -> String {
        self.0.network.to_string()
    }

    /// Seconds that the client has to pay.
    pub fn timeout(&self) -> u64 {
        self.0.max_timeout_seconds
    }

    /// The terms whose vault is paid.
    pub fn terms(&self) -> Option<&Terms> {
        self.0.extra.terms.as_ref()
    }

    /// The token's signature domain as the offer names it; `None` where the network is no EVM chain.
    pub fn token(&self) -> Option<TokenDomain> {
        let Extra { name, version, .. } = self.0.extra.clone();
        Some(TokenDomain { name, version, chain_id: chain_of(&self.0.network)?, token: self.0.asset })
    }

    /// Checks that a payment is for this offer and signed by its payer. What only the chain knows is
    /// [`Chain::check_voucher`](crate::Chain::check_voucher)'s part.
    pub fn verify(&self, payment: &Payment) -> Result<(), VoucherRefusal> {
        let refuse_network = || VoucherRefusal::WrongNetwork { found: payment.network.clone(), wanted: self.network() };
        let token = self.token().filter(|_| payment.network == self.network()).ok_or_else(refuse_network)?;
        if payment.asset != self.0.asset {
            return Err(VoucherRefusal::WrongAsset { found: payment.asset, wanted: self.0.asset });
        }
        if payment.pay_to != self.0.pay_to {
            return Err(VoucherRefusal::WrongRecipient { found: payment.pay_to, wanted: self.0.pay_to });
        }
        if payment.amount != self.0.amount {
            return Err(VoucherRefusal::WrongAmount { found: payment.amount, wanted: self.0.amount });
        }
        let payer = self.terms().map_or(payment.voucher.authorization.from, |terms| terms.payer);
        payment.voucher.verify(&Wanted { token, payer, pay_to: self.0.pay_to, amount: self.0.amount })
    }

    /// The value of [`PAYMENT_REQUIRED`], for the resource at `url`.
    pub fn to_header(&self, url: &str, description: &str) -> String {
        encode(&self.to_body(url, description, None))
    }

    /// The same with the reason why a payment was not taken.
    pub fn to_header_with_error(&self, url: &str, description: &str, error: &str) -> String {
        encode(&self.to_body(url, description, Some(error)))
    }

    /// The JSON inside the header, for the answer's body.
    pub fn to_json(&self, url: &str, description: &str, error: Option<&str>) -> serde_json::Value {
        serde_json::to_value(self.to_body(url, description, error)).unwrap_or_default()
    }

    fn to_body(&self, url: &str, description: &str, error: Option<&str>) -> PaymentRequired<Requirements> {
        PaymentRequired {
            x402_version: X402Version2,
            error: Some(error.unwrap_or("payment required").to_owned()),
            resource: Some(ResourceInfo {
                url: url.to_owned(),
                description: Some(description.to_owned()),
                mime_type: Some("application/json".to_owned()),
            }),
            accepts: vec![self.0.clone()],
            extensions: ExtensionsJson::new(),
        }
    }
}

/// What became of a payment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settlement {
    /// Whether the money is where it was to go.
    pub success: bool,
    /// Why not, as a short word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    /// The transaction that did it; empty where there is none.
    #[serde(with = "hash_or_empty")]
    pub transaction: Option<B256>,
    /// The chain (CAIP-2).
    pub network: String,
    /// Who paid.
    pub payer: Address,
}

impl Settlement {
    /// The value of [`PAYMENT_RESPONSE`].
    pub fn to_header(&self) -> String {
        encode(self)
    }

    /// Reads a header's value; `None` where it is none.
    pub fn from_header(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(&decode(value)?).ok()
    }
}

/// x402 has no null here: a settlement that failed names the empty transaction.
mod hash_or_empty {
    use serde::{Deserializer, Serializer, de::Error as _};

    use super::*;

    pub(super) fn serialize<S: Serializer>(hash: &Option<B256>, serializer: S) -> Result<S::Ok, S::Error> {
        match hash {
            Some(hash) => hash.serialize(serializer),
            None => serializer.serialize_str(""),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<B256>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
    }
}

fn network(chain_id: u64) -> ChainId {
    ChainId::new("eip155", chain_id.to_string())
}

/// The EVM chain id of a CAIP-2 name.
fn chain_of(network: &ChainId) -> Option<u64> {
    let id: u64 = (network.namespace == "eip155").then(|| network.reference.parse().ok())??;
    (network.reference == id.to_string()).then_some(id)
}

fn encode(value: &impl Serialize) -> String {
    STANDARD.encode(serde_json::to_vec(value).unwrap_or_default())
}

/// The bytes inside a header of at most [`MAX_HEADER_BYTES`].
fn decode(header: &[u8]) -> Option<Vec<u8>> {
    if header.len() > MAX_HEADER_BYTES { None } else { STANDARD.decode(header.trim_ascii()).ok() }
}
