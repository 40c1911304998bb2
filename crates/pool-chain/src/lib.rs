//! Contracts, Superfluid and x402 on any EVM chain. The one home of `alloy`.
//!
//! - [`AddressBook`] says where everything is on a chain; [`Chain`] asks the chain; [`calls`] is every transaction we
//!   send, with its fixed gas limit; [`LocalTransactionSigner`] signs it. Sending is the journal's outbox's business,
//!   which sees a chain through its own `ChainPort`.
//! - [`Terms`] and the address that follows from them, [`SignedVoucher`] and its checks, [`x402`] on the wire:
//!   how a session is paid.
//! - [`registry_signature`] and [`calls::activate`]: how a proposal that all have signed becomes a coalition.
//! - [`StreamRules`] and [`Running`]: how long money lasts. [`PoolLedger`] and [`StreamMeter`]: where it went.
//!   [`events`]: what happened, in order and once.
//! - `devnet` (on Unix): a local chain with the real contracts.
//!
//! A client checks an offer and pays; the server checks the payment, both without asking a chain:
//!
//! ```
//! use alloy_primitives::{Address, B256};
//! use alloy_signer_local::PrivateKeySigner;
//! use pool_chain::{AddressBook, Terms, x402};
//! use pool_types::FlowRate;
//!
//! let book = AddressBook::from_json(include_bytes!("../tests/fixtures/addresses.json"))?;
//! let payer = PrivateKeySigner::random();
//! let terms = Terms {
//!     payer: payer.address(),
//!     orchestrator: Address::repeat_byte(2),
//!     pool: Address::repeat_byte(3),
//!     max_rate: FlowRate::from_units_per_second(100),
//!     expiry: 1_800_000_000,
//!     session: B256::random(),
//! };
//! let rules = book.stream_rules();
//! let price = rules.price(terms.max_rate, 30 * 60).ok_or("more than there can be")?;
//! let offer = x402::Offer::of_session(&book, terms, price, 120)?;
//! let header = offer.to_header("http://127.0.0.1:8080/v1/sessions", "half an hour");
//!
//! let policy = x402::PaymentPolicy {
//!     most: "0.50".parse()?,
//!     highest_rate: FlowRate::from_units_per_second(100),
//!     longest: 86_400,
//!     orchestrator: None,
//!     pool: None,
//! };
//! let now = 1_799_990_000;
//! let paid = x402::verify_terms_and_sign(header.as_bytes(), &book, &policy, &payer, now, B256::random())?;
//!
//! let payment = x402::parse_payment(paid.header.as_bytes())?;
//! assert_eq!(offer.verify(&payment), Ok(()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address_book;
pub mod calls;
mod chain;
pub mod contracts;
// It ends its node by signals.
#[cfg(unix)]
pub mod devnet;
mod earnings;
mod errors;
pub mod events;
mod proposal;
mod reverts;
mod runway;
mod send;
mod signer;
mod vault;
mod voucher;
pub mod x402;

pub use address_book::{AddressBook, AddressBookError, Contracts, UsdcDomain};
pub use calls::Call;
pub use chain::{
    Chain, ChainConfig, CoalitionState, Head, MemberState, NewHeads, PoolState, RealtimeBalance, VaultState,
    VoucherCheckError, VoucherStanding,
};
pub use earnings::{LedgerError, PoolChange, PoolLedger, StreamMeter};
pub use errors::ChainError;
pub use proposal::{ProposalFormError, operators, registry_signature};
pub use reverts::Revert;
pub use runway::{Running, StreamRules};
pub use send::SendError;
pub use signer::LocalTransactionSigner;
pub use vault::{Terms, TermsError};
pub use voucher::{Authorization, SignedVoucher, TokenDomain, VoucherRefusal, Wanted};
