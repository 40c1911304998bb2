//! The paying side: read an offer, compute the vault's address from its terms, and only then sign.

use alloy::{
    primitives::{Address, B256},
    signers::{Signer, SignerSync},
};
use pool_types::{FlowRate, Usdc};
use thiserror::Error;
use x402_types::proto::v2::{ExtensionsJson, PaymentPayload, PaymentRequired, ResourceInfo, X402Version2};

use super::{EXACT, Extra, Offer, decode, encode};
use crate::{AddressBook, Authorization, Terms};

/// A voucher begins so many seconds before now, because the chain's clock may be behind the client's. As official
/// x402 clients do.
const BACKDATE: u64 = 600;
/// The longest time that a voucher is good for, whatever the offer asks.
const LONGEST_VOUCHER: u64 = 3600;
/// Offers in one answer that are looked at.
const MOST_OFFERS: usize = 16;

/// What a client is ready to agree to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaymentPolicy {
    /// The most to pay for one session.
    pub most: Usdc,
    /// The highest rate to agree to.
    pub highest_rate: FlowRate,
    /// How many seconds ahead a session's end may lie. Until then only payer and orchestrator can close it.
    pub longest: u64,
    /// The orchestrator to deal with, where the client knows it.
    pub orchestrator: Option<Address>,
    /// The pool to pay, where the client knows it.
    pub pool: Option<Address>,
}

/// A payment that is ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedPayment {
    /// The value of [`PAYMENT_SIGNATURE`](super::PAYMENT_SIGNATURE).
    pub header: String,
    /// The vault that is paid; computed here, not taken from the server.
    pub vault: Address,
    /// What was agreed to.
    pub terms: Terms,
    /// What is paid.
    pub amount: Usdc,
    /// When the voucher ends (Unix seconds).
    pub valid_before: u64,
}

/// Why a client does not pay.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClientRefusal {
    /// The header cannot be read.
    #[error("the server's answer holds no x402 offer that this version can read")]
    Unreadable,
    /// Nothing in it is for us.
    #[error("the server offers no payment with the scheme `exact` on {0}")]
    NoOffer(String),
    /// Another token, or another contract under its name.
    #[error("the offer asks for the token {0}, which is not the USDC of this network's address book")]
    Asset(Address),
    /// No terms: the address could be anybody's.
    #[error("the offer carries no session terms, so its address cannot be checked")]
    NoTerms,
    /// The terms give another address.
    #[error("the offer asks to pay {asked}, but its terms belong to the address {computed}: do not pay it")]
    OtherVault {
        /// Where the server wants the money.
        asked: Address,
        /// The vault of its terms.
        computed: Address,
    },
    /// Somebody else would get the refund.
    #[error("the offer's terms would refund to {0}, which is not the paying account")]
    OtherPayer(Address),
    /// Not the orchestrator that was expected.
    #[error("the offer's terms put {0} in charge, which is not the orchestrator that was expected")]
    OtherOrchestrator(Address),
    /// Not the pool that was expected.
    #[error("the offer's terms stream to the pool {0}, which is not the one that was expected")]
    OtherPool(Address),
    /// Dearer than allowed.
    #[error("the offer asks for {asked} USDC; at most {most} USDC were allowed")]
    TooDear {
        /// What the server wants.
        asked: Usdc,
        /// What was allowed.
        most: Usdc,
    },
    /// A higher rate than allowed.
    #[error("the offer's terms allow a rate of {asked} USDC; at most {most} were allowed")]
    TooFast {
        /// What the server wants.
        asked: FlowRate,
        /// What was allowed.
        most: FlowRate,
    },
    /// Over already, or bound for too long.
    #[error("the offer's session would end at {expiry} (Unix seconds), which is not within {longest} s from now")]
    Expiry {
        /// What the server wants.
        expiry: u64,
        /// What was allowed.
        longest: u64,
    },
    /// The key cannot sign.
    #[error("the account's key could not sign the voucher")]
    Key,
}

/// An answer's offers and what they are for. The value of [`PAYMENT_REQUIRED`](super::PAYMENT_REQUIRED) is bounded and
/// hostile; offers of other forms beside ours are passed over.
pub fn read_offer(header: &[u8]) -> Result<(Vec<Offer>, Option<ResourceInfo>), ClientRefusal> {
    let json = decode(header).ok_or(ClientRefusal::Unreadable)?;
    let read: PaymentRequired<serde_json::Value> =
        serde_json::from_slice(&json).map_err(|_| ClientRefusal::Unreadable)?;
    let offers = read.accepts.into_iter().take(MOST_OFFERS);
    let offers = offers.filter_map(|offer| serde_json::from_value(offer).ok().map(Offer));
    Ok((offers.collect(), read.resource))
}

/// Reads the value of [`PAYMENT_REQUIRED`](super::PAYMENT_REQUIRED), checks the offer against `book` and `policy`,
/// computes the vault's address from the terms, and signs only if it is the one to be paid.
///
/// `now` is Unix seconds; `nonce` must be random and never used before.
pub fn verify_terms_and_sign<S: Signer + SignerSync>(
    header: &[u8],
    book: &AddressBook,
    policy: &PaymentPolicy,
    payer: &S,
    now: u64,
    nonce: B256,
) -> Result<SignedPayment, ClientRefusal> {
    let (offers, resource) = read_offer(header)?;
    let ours = |offer: &Offer| offer.0.scheme == EXACT && offer.network() == book.caip2();
    let offer = offers.into_iter().find(ours).ok_or_else(|| ClientRefusal::NoOffer(book.caip2()))?;
    let terms = *offer.terms().ok_or(ClientRefusal::NoTerms)?;
    check(&offer, &terms, book, policy, payer.address(), now)?;
    let vault = terms.vault_in(book);
    let valid_before = now.saturating_add(offer.timeout().min(LONGEST_VOUCHER));
    let authorization = Authorization {
        from: payer.address(),
        to: vault,
        value: offer.amount(),
        valid_after: now.saturating_sub(BACKDATE),
        valid_before,
        nonce,
    };
    // The book's domain, not the offer's: a voucher for another contract of the same name would be worthless to us.
    let voucher = authorization.sign(&book.token(), payer).map_err(|_| ClientRefusal::Key)?;
    let amount = offer.amount();
    let payload = PaymentPayload {
        accepted: offer.0,
        payload: voucher,
        resource,
        x402_version: X402Version2,
        extensions: ExtensionsJson::new(),
    };
    Ok(SignedPayment { header: encode(&payload), vault, terms, amount, valid_before })
}

fn check(
    offer: &Offer,
    terms: &Terms,
    book: &AddressBook,
    policy: &PaymentPolicy,
    payer: Address,
    now: u64,
) -> Result<(), ClientRefusal> {
    let token = book.token();
    let Extra { name, version, .. } = &offer.0.extra;
    if offer.asset() != token.token || *name != token.name || *version != token.version {
        return Err(ClientRefusal::Asset(offer.asset()));
    }
    let computed = terms.vault_in(book);
    if computed != offer.pay_to() {
        return Err(ClientRefusal::OtherVault { asked: offer.pay_to(), computed });
    }
    if terms.payer != payer {
        return Err(ClientRefusal::OtherPayer(terms.payer));
    }
    if policy.orchestrator.is_some_and(|expected| expected != terms.orchestrator) {
        return Err(ClientRefusal::OtherOrchestrator(terms.orchestrator));
    }
    if policy.pool.is_some_and(|expected| expected != terms.pool) {
        return Err(ClientRefusal::OtherPool(terms.pool));
    }
    if offer.amount() > policy.most {
        return Err(ClientRefusal::TooDear { asked: offer.amount(), most: policy.most });
    }
    if terms.max_rate > policy.highest_rate {
        return Err(ClientRefusal::TooFast { asked: terms.max_rate, most: policy.highest_rate });
    }
    if terms.expiry <= now || terms.expiry > now.saturating_add(policy.longest) {
        return Err(ClientRefusal::Expiry { expiry: terms.expiry, longest: policy.longest });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloy::signers::local::PrivateKeySigner;
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use proptest::prelude::*;

    use super::*;
    use crate::x402::{Settlement, parse_payment};

    const NOW: u64 = 1_790_000_000;

    fn payer() -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap()
    }

    fn book() -> AddressBook {
        AddressBook::from_json(include_bytes!("../../tests/fixtures/addresses.json")).unwrap()
    }

    fn terms() -> Terms {
        Terms {
            payer: payer().address(),
            orchestrator: Address::repeat_byte(2),
            pool: Address::repeat_byte(3),
            max_rate: FlowRate::from_units_per_second(100),
            expiry: NOW + 3600,
            session: B256::repeat_byte(4),
        }
    }

    fn policy() -> PaymentPolicy {
        PaymentPolicy {
            most: "1".parse().unwrap(),
            highest_rate: FlowRate::from_units_per_second(100),
            longest: 86_400,
            orchestrator: Some(Address::repeat_byte(2)),
            pool: Some(Address::repeat_byte(3)),
        }
    }

    fn offer() -> Offer {
        Offer::of_session(&book(), terms(), "0.25".parse().unwrap(), 120).unwrap()
    }

    fn pay(header: &str, policy: &PaymentPolicy) -> Result<SignedPayment, ClientRefusal> {
        verify_terms_and_sign(header.as_bytes(), &book(), policy, &payer(), NOW, B256::repeat_byte(9))
    }

    /// The header of an offer whose JSON was changed.
    fn changed(change: impl FnOnce(&mut serde_json::Value)) -> String {
        let mut body = offer().to_json("http://127.0.0.1/v1/sessions", "session", None);
        change(&mut body);
        STANDARD.encode(body.to_string())
    }

    #[test]
    fn a_client_pays_an_offer_that_holds_and_the_server_takes_it() {
        let paid = pay(&offer().to_header("http://127.0.0.1/v1/sessions", "session"), &policy()).unwrap();
        assert_eq!(paid.vault, terms().vault_in(&book()));
        assert_eq!(paid.valid_before, NOW + 120);
        let payment = parse_payment(paid.header.as_bytes()).unwrap();
        assert_eq!(offer().verify(&payment), Ok(()));
        assert_eq!(payment.terms, Some(terms()));
        assert_eq!(payment.voucher.check_times(NOW - 300, 0), Ok(()), "the chain's clock may be behind");
    }

    #[test]
    fn what_the_official_client_sent_for_our_offer_is_taken() {
        // Recorded from @x402/fetch 2.27.0 with the key 0x07…07, which was answered with exactly this offer.
        let header = include_bytes!("../../tests/fixtures/official-payment.txt");
        let offered = Terms { expiry: 1_800_000_000, ..terms() };
        let offer = Offer::of_session(&book(), offered, "0.25".parse().unwrap(), 120).unwrap();
        let payment = parse_payment(header).unwrap();
        assert_eq!(payment.terms, Some(offered), "it sends the terms back");
        assert_eq!(offer.verify(&payment), Ok(()));
        assert_eq!(payment.voucher.check_times(1_795_616_900, 15), Ok(()));
    }

    #[test]
    fn a_server_that_lies_about_the_address_gets_no_signature() {
        // An address that is the server's own, with the terms of an honest session.
        let thief = changed(|body| body["accepts"][0]["payTo"] = Address::repeat_byte(0xee).to_string().into());
        assert!(matches!(pay(&thief, &policy()), Err(ClientRefusal::OtherVault { .. })));
        // Honest address, but the shown terms are nicer than those behind it.
        let nicer = changed(|body| body["accepts"][0]["extra"]["terms"]["maxRate"] = "1000000000000".into());
        assert!(matches!(pay(&nicer, &policy()), Err(ClientRefusal::OtherVault { .. })));
        let no_terms = changed(|body| drop(body["accepts"][0]["extra"].as_object_mut().unwrap().remove("terms")));
        assert_eq!(pay(&no_terms, &policy()), Err(ClientRefusal::NoTerms));
    }

    #[test]
    fn terms_against_the_clients_wishes_get_no_signature() {
        let with = |terms: Terms, amount: &str| {
            let offer = Offer::of_session(&book(), terms, amount.parse().unwrap(), 120).unwrap();
            pay(&offer.to_header("http://127.0.0.1", "session"), &policy()).expect_err("it is against the policy")
        };
        let other = Address::repeat_byte(0xee);
        assert_eq!(with(Terms { payer: other, ..terms() }, "0.25"), ClientRefusal::OtherPayer(other));
        assert_eq!(with(Terms { orchestrator: other, ..terms() }, "0.25"), ClientRefusal::OtherOrchestrator(other));
        assert_eq!(with(Terms { pool: other, ..terms() }, "0.25"), ClientRefusal::OtherPool(other));
        assert!(matches!(with(terms(), "1.000001"), ClientRefusal::TooDear { .. }));
        let fast = Terms { max_rate: FlowRate::from_units_per_second(101), ..terms() };
        assert!(matches!(with(fast, "0.25"), ClientRefusal::TooFast { .. }));
        for expiry in [0, NOW, NOW + 86_401, u64::MAX] {
            assert!(matches!(with(Terms { expiry, ..terms() }, "0.25"), ClientRefusal::Expiry { .. }));
        }
    }

    #[test]
    fn offers_of_other_kinds_are_passed_over_or_refused() {
        let other_chain = changed(|body| body["accepts"][0]["network"] = "eip155:1".into());
        assert_eq!(pay(&other_chain, &policy()), Err(ClientRefusal::NoOffer("eip155:16602".into())));
        let other_token = changed(|body| body["accepts"][0]["asset"] = Address::repeat_byte(6).to_string().into());
        assert_eq!(pay(&other_token, &policy()), Err(ClientRefusal::Asset(Address::repeat_byte(6))));
        let other_name = changed(|body| body["accepts"][0]["extra"]["name"] = "USDC".into());
        assert!(matches!(pay(&other_name, &policy()), Err(ClientRefusal::Asset(_))));
        let beside = changed(|body| {
            let ours = body["accepts"][0].clone();
            body["accepts"] = serde_json::json!([{ "scheme": "upto", "network": "solana:x" }, ours]);
        });
        assert!(pay(&beside, &policy()).is_ok(), "ours is found beside one that we cannot read");
        for nonsense in ["", "e30=", "not base64", "W10="] {
            assert_eq!(pay(nonsense, &policy()), Err(ClientRefusal::Unreadable), "{nonsense}");
        }
    }

    #[test]
    fn the_server_names_what_is_not_as_offered() {
        let paid = pay(&offer().to_header("http://127.0.0.1", "session"), &policy()).unwrap();
        let good = parse_payment(paid.header.as_bytes()).unwrap();
        let refused = |change: fn(&mut crate::x402::Payment)| {
            let mut payment = good.clone();
            change(&mut payment);
            offer().verify(&payment).expect_err("it is not what was offered").code()
        };
        assert_eq!(refused(|p| p.network = "eip155:1".into()), "wrong_network");
        assert_eq!(refused(|p| p.asset = Address::repeat_byte(6)), "wrong_asset");
        assert_eq!(refused(|p| p.pay_to = Address::repeat_byte(6)), "wrong_recipient");
        assert_eq!(refused(|p| p.amount = "0.24".parse().unwrap()), "wrong_amount");
        assert_eq!(refused(|p| p.voucher.authorization.to = Address::repeat_byte(6)), "wrong_recipient");
        assert_eq!(refused(|p| p.voucher.authorization.value = "0.24".parse().unwrap()), "wrong_amount");
        assert_eq!(refused(|p| p.voucher.authorization.from = Address::repeat_byte(6)), "wrong_payer");
        assert_eq!(refused(|p| p.voucher.authorization.nonce = B256::ZERO), "bad_signature");
        assert_eq!(refused(|p| p.voucher.signature = [0; 66].into()), "smart_wallet_not_supported");
    }

    #[test]
    fn a_settlement_survives_its_header() {
        let network = book().caip2();
        let transaction = Some(B256::repeat_byte(1));
        let done = Settlement { success: true, error_reason: None, transaction, network, payer: payer().address() };
        assert_eq!(Settlement::from_header(done.to_header().as_bytes()), Some(done.clone()));
        let failed = Settlement { success: false, error_reason: Some("expired".into()), transaction: None, ..done };
        assert_eq!(Settlement::from_header(failed.to_header().as_bytes()), Some(failed));
        assert_eq!(Settlement::from_header(b"***"), None);
    }

    proptest! {
        #[test]
        fn no_servers_answer_panics_a_client(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = pay(&STANDARD.encode(&bytes), &policy());
            let _ = read_offer(&bytes);
        }

        #[test]
        fn no_mutated_offer_is_paid_elsewhere(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut text = offer().to_json("http://127.0.0.1", "session", None).to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            if let Ok(paid) = pay(&STANDARD.encode(&text), &policy()) {
                prop_assert_eq!(paid.vault, paid.terms.vault_in(&book()));
                prop_assert!(paid.amount <= policy().most);
                prop_assert_eq!(paid.terms.payer, payer().address());
            }
        }
    }
}
