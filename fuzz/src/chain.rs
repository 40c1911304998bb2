//! Vouchers of payers, exported logs, workflow files.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use pool_chain::{TokenDomain, Wanted, x402::parse_payment};
use pool_journal::{ACTIONS, Graph, verify_export};

/// An x402 payment header: as base64, and as the JSON inside it, which is where a fuzzer gets further.
pub(crate) fn voucher(bytes: &[u8]) {
    let _ = parse_payment(bytes);
    let Ok(payment) = parse_payment(STANDARD.encode(bytes).as_bytes()) else { return };
    let wanted = Wanted {
        token: TokenDomain {
            name: "USD Coin".to_owned(),
            version: "1".to_owned(),
            chain_id: 16602,
            token: payment.asset,
        },
        payer: payment.voucher.authorization.from,
        pay_to: payment.pay_to,
        amount: payment.amount,
    };
    if payment.voucher.verify(&wanted).is_ok() {
        let other = Wanted { token: TokenDomain { chain_id: 1, ..wanted.token.clone() }, ..wanted };
        assert!(payment.voucher.verify(&other).is_err(), "a signature counts on one chain only");
    }
    if let Some(terms) = payment.terms.filter(|terms| terms.validate().is_ok()) {
        assert_eq!(terms.encode().len(), 192, "terms have one length");
    }
}

/// A journal's export.
pub(crate) fn audit(bytes: &[u8]) {
    if let Ok(report) = verify_export(bytes) {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        assert_eq!(report.entries + 2, lines, "every line but the first and the last is an entry");
    }
}

/// A workflow's graph.
pub(crate) fn workflow(bytes: &[u8]) {
    let Ok(json) = std::str::from_utf8(bytes) else { return };
    let _ = Graph::parse(json, &ACTIONS);
}
