//! A payer and orchestrators that do not keep their word: what the payer signs, and how it gets its money back.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod money_support;
mod support;

use std::{path::Path, sync::Arc};

use alloy_primitives::{Address, B256};
use alloy_signer_local::{MnemonicBuilder, PrivateKeySigner, coins_bip39::English};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use money_support::{Answer, Asked, FakeOrchestrator, folder, good, refused, text};
use pool_chain::{
    AddressBook, Authorization, Terms, calls,
    x402::{Offer, parse_payment},
};
use pool_testkit::{ActiveCoalition, LocalChain};
use pool_types::{FlowRate, Usdc};
use serde_json::{Value, json};

/// Account `number` of the local chain, as `--development-account` uses it.
fn development(number: u32) -> PrivateKeySigner {
    let phrase = "test test test test test test test test test test test junk";
    MnemonicBuilder::<English>::default().phrase(phrase).index(number).unwrap().build().unwrap()
}

/// Runs a command without holding up the test's own orchestrator.
async fn run(words: &[&str]) -> (Option<i32>, String, String) {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let ran = move || money_support::run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(ran).await.unwrap()
}

fn terms(payer: Address, coalition: &ActiveCoalition, expiry: u64) -> Terms {
    Terms {
        payer,
        orchestrator: coalition.proposal.orchestrator,
        pool: coalition.gda_pool,
        max_rate: FlowRate::from_units_per_second(100),
        expiry,
        session: B256::random(),
    }
}

/// A fair offer of 300 seconds for whoever asks.
fn fair(book: &AddressBook, asked: &Asked, coalition: &ActiveCoalition, expiry: u64) -> Offer {
    let payer: Address = asked.body["payer"].as_str().unwrap().parse().unwrap();
    Offer::of_session(book, terms(payer, coalition, expiry), "0.105".parse().unwrap(), 300).unwrap()
}

fn required(header: String) -> Answer {
    let body = json!({ "error": { "message": "This costs 0.105 USDC.", "type": "payment_error", "code": "payment_required" } });
    Some((402, Some(header), body))
}

fn open<'a>(url: &'a str, rpc: &'a str, wallet: &'a Path, account: &'a str) -> Vec<&'a str> {
    let mut words = vec!["session", "open", "--api", url, "--model", "tiny", "--seconds", "300", "--rpc", rpc];
    words.extend(["--wallet", text(wallet), "--development-account", account]);
    words
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_to_another_address_is_not_signed() {
    let local = LocalChain::start().await.unwrap();
    let coalition = local.activate_coalition(1).await.unwrap();
    let (book, expiry) = (local.book().clone(), local.chain().time().await.unwrap() + 86_400);
    let thief = FakeOrchestrator::start(move |asked| {
        let offer = fair(&book, &asked, &coalition, expiry);
        let mut body = offer.to_json("http://127.0.0.1/v1/sessions", "a session", None);
        body["accepts"][0]["payTo"] = json!(Address::repeat_byte(0x66));
        std::future::ready(required(STANDARD.encode(body.to_string())))
    })
    .await;
    let (_keep, wallet) = folder();
    let rpc = local.chain_config().http;
    let (status, out, errors) = run(&open(&thief.url, &rpc, &wallet, "2")).await;
    assert_eq!((status, out.as_str()), (Some(2), ""), "{errors}");
    assert!(errors.contains("nothing was paid") && errors.contains("do not pay it"), "{errors}");
    assert_eq!(*thief.payments.lock().unwrap(), 0, "no signature left this machine");
    assert_eq!(good(&["session", "list", "--wallet", text(&wallet), "--json"]), "[]\n", "there is nothing to keep");
}

#[tokio::test(flavor = "multi_thread")]
async fn money_taken_by_an_orchestrator_that_vanishes_comes_back_without_it() {
    let local = Arc::new(LocalChain::start().await.unwrap());
    let coalition = local.activate_coalition(2).await.unwrap();
    let expiry = local.chain().time().await.unwrap() + 86_400;
    let taking = local.clone();
    let taker = FakeOrchestrator::start(move |asked: Asked| {
        let (local, coalition) = (taking.clone(), coalition.clone());
        async move {
            let Some(payment) = &asked.payment else {
                let offer = fair(local.book(), &asked, &coalition, expiry);
                return required(offer.to_header("http://127.0.0.1/v1/sessions", "a session"));
            };
            let voucher = parse_payment(payment).unwrap().voucher;
            let call = calls::settle(local.book(), &voucher).unwrap();
            local.send(&local.accounts().stranger, &call).await.unwrap();
            None
        }
    })
    .await;
    let (_keep, wallet) = folder();
    let rpc = local.chain_config().http;
    let payer = development(2).address();
    let had = local.chain().usdc(payer).await.unwrap();

    let (status, _, errors) = run(&open(&taker.url, &rpc, &wallet, "2")).await;
    assert_eq!(status, Some(2), "{errors}");
    assert!(errors.contains("computepool session close --direct 0x"), "it says what to do: {errors}");
    let paid: Usdc = "0.105".parse().unwrap();
    assert_eq!(local.chain().usdc(payer).await.unwrap(), had.checked_sub(paid).unwrap(), "the money is gone for now");

    let listed: Value = serde_json::from_str(&good(&["session", "list", "--wallet", text(&wallet), "--json"])).unwrap();
    assert_eq!(listed[0]["standing"], "paid", "{listed}");
    let id = listed[0]["session"].as_str().unwrap();
    let without_token = refused(&["session", "show", id, "--wallet", text(&wallet)]);
    assert!(without_token.contains("it has no token"), "{without_token}");
    let without_rpc = refused(&["session", "close", id, "--direct", "--wallet", text(&wallet)]);
    assert!(without_rpc.contains("name it with --rpc"), "{without_rpc}");

    let direct = ["session", "close", id, "--direct", "--rpc", &rpc, "--wallet", text(&wallet)];
    let direct = [&direct[..], &["--development-account", "2", "--json"]].concat();
    let (status, out, errors) = run(&direct).await;
    assert_eq!(status, Some(0), "{errors}");
    let closed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(closed["receipt"]["refunded"], "105000", "{closed}");
    assert_eq!(closed["sent"].as_array().unwrap().len(), 2, "the vault was deployed, and closed: {closed}");
    assert_eq!(local.chain().usdc(payer).await.unwrap(), had, "to the last unit");
    let (status, out, errors) = run(&direct).await;
    let again: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &again["sent"]), (Some(0), &json!([])), "closing again sends nothing: {errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_payment_is_told_and_its_empty_vault_needs_nothing() {
    let local = LocalChain::start().await.unwrap();
    let coalition = local.activate_coalition(1).await.unwrap();
    let (book, expiry) = (local.book().clone(), local.chain().time().await.unwrap() + 86_400);
    let refusing = FakeOrchestrator::start(move |asked: Asked| {
        let header = fair(&book, &asked, &coalition, expiry).to_header("http://127.0.0.1/v1/sessions", "a session");
        let again = json!({ "error": { "message": "The voucher was used before.", "code": "replayed" } });
        std::future::ready(match asked.payment {
            None => required(header),
            Some(_) => Some((402, Some(header), again)),
        })
    })
    .await;
    let (_keep, wallet) = folder();
    let rpc = local.chain_config().http;
    let (status, _, errors) = run(&open(&refusing.url, &rpc, &wallet, "2")).await;
    assert_eq!(status, Some(2));
    assert_eq!(errors, "computepool: the payment was refused: The voucher was used before\n");

    let listed: Value = serde_json::from_str(&good(&["session", "list", "--wallet", text(&wallet), "--json"])).unwrap();
    assert_eq!(listed[0]["standing"], "refused", "{listed}");
    let id = listed[0]["session"].as_str().unwrap();
    let close = ["session", "close", &id[..10], "--direct", "--rpc", &rpc, "--wallet", text(&wallet)];
    let close = [&close[..], &["--development-account", "2"]].concat();
    let (status, out, errors) = run(&close).await;
    assert_eq!(status, Some(0), "{errors}");
    assert!(out.contains("Nothing was paid into") && out.contains("can be settled until"), "{out}");
    local.control().advance(400).await.unwrap();
    let (_, out, _) = run(&close).await;
    assert!(!out.contains("can be settled until"), "the voucher has ended: {out}");
    let listed = good(&["session", "list", "--wallet", text(&wallet)]);
    assert!(listed.contains("closed"), "{listed}");

    let poor = good(&["devnet", "fund", "0x00000000000000000000000000000000000c0FFE", "--usdc", "0", "--rpc", &rpc]);
    assert!(poor.contains("0.000000 USDC"), "{poor}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_stopped_by_its_payer_alone_and_by_the_vaults_address() {
    let local = LocalChain::start().await.unwrap();
    let coalition = local.activate_coalition(2).await.unwrap();
    let payer = development(4);
    let expiry = local.chain().time().await.unwrap() + 86_400;
    let terms = terms(payer.address(), &coalition, expiry);
    let amount: Usdc = "0.2".parse().unwrap();
    let authorization = Authorization {
        from: payer.address(),
        to: terms.vault_in(local.book()),
        value: amount,
        valid_after: 0,
        valid_before: expiry,
        nonce: B256::random(),
    };
    let voucher = authorization.sign(&local.book().token(), &payer).unwrap();
    let had = local.chain().usdc(payer.address()).await.unwrap();
    let open = calls::open(local.book(), &terms, &voucher, terms.max_rate).unwrap();
    local.send(&local.accounts().orchestrator, &open).await.unwrap();
    local.control().advance(60).await.unwrap();

    let (_keep, wallet) = folder();
    let rpc = local.chain_config().http;
    let vault = terms.vault_in(local.book()).to_string();
    let close = |whom: &'static str, vault: String| {
        let (rpc, wallet) = (rpc.clone(), wallet.clone());
        async move {
            let words = ["session", "close", &vault, "--direct", "--rpc", &rpc, "--wallet", text(&wallet)];
            run(&[&words[..], &["--development-account", whom, "--json"]].concat()).await
        }
    };
    let (status, _, errors) = close("5", vault.clone()).await;
    assert_eq!(status, Some(2));
    assert!(errors.contains("the session's payer is") && errors.contains("--development-account"), "{errors}");
    let (status, _, errors) = close("4", Address::repeat_byte(0x66).to_string()).await;
    assert_eq!(status, Some(2));
    assert!(errors.contains("is no vault of a session on this chain"), "{errors}");
    let usdc = local.book().contracts.usdc.to_string();
    let (_, _, errors) = close("4", usdc).await;
    assert!(errors.contains("is no vault of a session on this chain"), "a contract, but no vault: {errors}");

    let (status, out, errors) = close("4", vault.clone()).await;
    assert_eq!(status, Some(0), "{errors}");
    let closed: Value = serde_json::from_str(&out).unwrap();
    let receipt = &closed["receipt"];
    let units = |name: &str| receipt[name].as_str().unwrap().parse::<u128>().unwrap();
    let seconds: u64 =
        receipt["stretches"][0]["to"].as_u64().unwrap() - receipt["stretches"][0]["from"].as_u64().unwrap();
    assert!((60..120).contains(&seconds), "{receipt}");
    assert_eq!(units("streamed"), u128::from(seconds) * 100 * 1_000_000_000_000, "rate times time: {receipt}");
    assert_eq!(units("paid") * 1_000_000_000_000, units("streamed") + units("refunded") * 1_000_000_000_000);
    assert_eq!(receipt["dust"], "0");
    assert_eq!(receipt["closed_by"], json!(payer.address()));
    let back = local.chain().usdc(payer.address()).await.unwrap();
    assert_eq!(back.units(), had.units() - 100 * u128::from(seconds), "what did not stream came back");
}
