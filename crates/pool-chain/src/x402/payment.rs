//! What a paying client sends. Everything here is hostile until it is checked.

use alloy::primitives::Address;
use pool_types::Usdc;
use thiserror::Error;
use x402_types::proto::v2::PaymentPayload;

use super::{EXACT, MAX_HEADER_BYTES, Requirements, decode};
use crate::{SignedVoucher, Terms};

/// A payment as it was read: well formed, and nothing more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// The chain it is for (CAIP-2).
    pub network: String,
    /// The token it pays with.
    pub asset: Address,
    /// Whom the client believes to pay.
    pub pay_to: Address,
    /// What the client believes to pay.
    pub amount: Usdc,
    /// The terms that the offer carried, where the client sends them back in a form that we know. Nothing vouches
    /// for them; the vault's address tells whether they are those that were offered.
    pub terms: Option<Terms>,
    /// What it signed.
    pub voucher: SignedVoucher,
}

/// Why a header is no payment that we can read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PaymentError {
    /// Longer than any payment.
    #[error("the payment header is longer than {MAX_HEADER_BYTES} bytes")]
    TooLong,
    /// Not base64.
    #[error("the payment header is not base64")]
    Base64,
    /// Not JSON of x402 version 2 with an EIP-3009 authorization. The place is named, the text is not repeated.
    #[error(
        "the payment is not of x402's version 2, scheme `exact`, with an EIP-3009 authorization (line {line}, column {column})"
    )]
    Form {
        /// Line of the JSON.
        line: usize,
        /// Column of the JSON.
        column: usize,
    },
    /// A scheme that we do not offer.
    #[error("the payment's scheme is not `exact`")]
    Scheme,
}

/// Reads the value of [`PAYMENT_SIGNATURE`](super::PAYMENT_SIGNATURE). Pure; never panics, and allocates no more than
/// a few times the header's bounded length.
pub fn parse_payment(header: &[u8]) -> Result<Payment, PaymentError> {
    if header.len() > MAX_HEADER_BYTES {
        return Err(PaymentError::TooLong);
    }
    let json = decode(header).ok_or(PaymentError::Base64)?;
    let form = |error: serde_json::Error| PaymentError::Form { line: error.line(), column: error.column() };
    let read: PaymentPayload<Requirements<serde_json::Value>, SignedVoucher> =
        serde_json::from_slice(&json).map_err(form)?;
    if read.accepted.scheme != EXACT {
        return Err(PaymentError::Scheme);
    }
    let terms = read.accepted.extra.get("terms").cloned();
    Ok(Payment {
        network: read.accepted.network.to_string(),
        asset: read.accepted.asset,
        pay_to: read.accepted.pay_to,
        amount: read.accepted.amount,
        terms: terms.and_then(|terms| serde_json::from_value(terms).ok()),
        voucher: read.payload,
    })
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// What @x402/fetch 2.27 sends, its fields in its order.
    fn official() -> Value {
        json!({
            "x402Version": 2,
            "payload": {
                "authorization": {
                    "from": "0x4a62316623ad457F02cDC5D997deD67a383EC569",
                    "to": "0x5555555555555555555555555555555555555555",
                    "value": "2500000",
                    "validAfter": "1700000000",
                    "validBefore": "1800000000",
                    "nonce": format!("0x{}", "66".repeat(32)),
                },
                "signature": format!("0x{}1b", "11".repeat(64)),
            },
            "resource": { "url": "http://127.0.0.1/v1/sessions", "description": "session", "mimeType": "application/json" },
            "accepted": {
                "scheme": "exact",
                "network": "eip155:16602",
                "amount": "2500000",
                "asset": "0x0505050505050505050505050505050505050505",
                "payTo": "0x5555555555555555555555555555555555555555",
                "maxTimeoutSeconds": 120,
                "extra": { "name": "USD Coin", "version": "1", "terms": { "anything": [1, 2, 3] } },
            },
        })
    }

    fn header(value: &Value) -> Vec<u8> {
        STANDARD.encode(value.to_string()).into_bytes()
    }

    #[test]
    fn the_official_clients_payment_is_read() {
        let payment = parse_payment(&header(&official())).unwrap();
        assert_eq!(payment.network, "eip155:16602");
        assert_eq!(payment.amount, "2.5".parse().unwrap());
        assert_eq!(payment.voucher.authorization.valid_before, 1_800_000_000);
        assert_eq!(payment.voucher.signature.len(), 65);
        assert_eq!(payment.terms, None, "terms of another form are no terms");
    }

    #[test]
    fn what_is_not_a_payment_is_refused_with_the_reason() {
        type Break = fn(&mut Value);
        let cases: [(Break, &str); 12] = [
            (|p| p["x402Version"] = 1.into(), "version 2"),
            (|p| p["accepted"]["scheme"] = "upto".into(), "scheme is not"),
            (|p| p["accepted"]["network"] = "base".into(), "version 2"),
            (|p| p["accepted"]["amount"] = (-1).into(), "version 2"),
            (|p| p["accepted"]["payTo"] = "0x12".into(), "version 2"),
            (|p| p["payload"]["authorization"]["value"] = "1e6".into(), "version 2"),
            (|p| p["payload"]["authorization"]["validBefore"] = 1_800_000_000.into(), "version 2"),
            (|p| p["payload"]["authorization"]["nonce"] = "0x66".into(), "version 2"),
            (|p| p["payload"]["signature"] = "0xzz".into(), "version 2"),
            (|p| p["payload"]["signature"] = "0x1".into(), "version 2"),
            (|p| p["payload"] = json!({ "signature": "0x", "permit2Authorization": {} }), "EIP-3009"),
            (|p| *p = json!([]), "version 2"),
        ];
        for (break_it, sentence) in cases {
            let mut bad = official();
            break_it(&mut bad);
            let error = parse_payment(&header(&bad)).expect_err(sentence).to_string();
            assert!(error.contains(sentence), "{bad}: {error}");
        }
        assert_eq!(parse_payment(b"{}"), Err(PaymentError::Base64));
        assert_eq!(parse_payment(&[b'A'; MAX_HEADER_BYTES + 1]), Err(PaymentError::TooLong));
        let deep = STANDARD.encode("[".repeat(12_000));
        assert!(matches!(parse_payment(deep.as_bytes()), Err(PaymentError::Form { .. })), "depth is bounded");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = parse_payment(&bytes);
            let _ = parse_payment(STANDARD.encode(&bytes).as_bytes());
        }

        /// Whatever is changed in a good payment's text, the parser answers.
        #[test]
        fn no_mutation_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut text = official().to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            let _ = parse_payment(STANDARD.encode(&text).as_bytes());
            text.truncate(cut.index(text.len()));
            prop_assert!(parse_payment(STANDARD.encode(&text).as_bytes()).is_err(), "half a payment is none");
        }

        #[test]
        fn any_json_in_any_field_is_answered(field in 0..14_usize, value in prop_oneof![
            Just(json!(null)), Just(json!(u64::MAX)), Just(json!(-0.5)), Just(json!({})), Just(json!([[]])),
            "\\PC{0,80}".prop_map(Value::from), "0x[0-9a-f]{0,140}".prop_map(Value::from), "[0-9]{0,90}".prop_map(Value::from),
        ]) {
            let mut payment = official();
            let pointers = [
                "/x402Version", "/payload", "/payload/authorization", "/payload/authorization/from",
                "/payload/authorization/value", "/payload/authorization/validAfter", "/payload/authorization/nonce",
                "/payload/signature", "/resource", "/accepted", "/accepted/network", "/accepted/amount", "/accepted/asset",
                "/accepted/extra",
            ];
            *payment.pointer_mut(pointers[field]).unwrap() = value;
            let _ = parse_payment(&header(&payment));
        }
    }
}
