//! Requests that are paid for, with scripted accounts behind the gateway.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use pool_orchestrator::{CancelGuard, Fare, Payer, PaymentRefusal, Payments, Price, StartError, gateway::Limits};
use pool_types::{FlowRate, SessionId, Usdc};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    answers::{hello, saying, tokenizer, with},
    client::{Server, soon},
    model,
    script::{Script, Step, say},
};

const CHAT: &str = "/v1/chat/completions";
const TOKEN: &str = "cps_token";
const WALLET: &str = "0x00000000000000000000000000000000000000aa";

/// Accounts that know one session and take any payment that says `paid`.
struct Accounts {
    spent: watch::Sender<Option<&'static str>>,
    /// Requests that are charged now.
    charging: Arc<AtomicUsize>,
    boarded: Mutex<Vec<(Payer, u64)>>,
}

impl Accounts {
    fn new() -> Arc<Self> {
        Arc::new(Self { spent: watch::channel(None).0, charging: Arc::default(), boarded: Mutex::default() })
    }

    fn charging(&self) -> usize {
        self.charging.load(Ordering::SeqCst)
    }

    fn boarded(&self) -> usize {
        self.boarded.lock().unwrap().len()
    }
}

#[async_trait]
impl Payments for Accounts {
    fn session_of(&self, token: &str) -> Option<SessionId> {
        (token == TOKEN).then(SessionId::default)
    }

    fn price(&self, model: &str) -> Option<Price> {
        let per_million_tokens = Usdc::from_units(5_000_000).ok();
        (model == "small").then_some(Price {
            rate: FlowRate::from_units_per_second(100),
            linger: 5,
            per_million_tokens,
        })
    }

    async fn board(&self, payer: &Payer, _model: &str, tokens: u64) -> Result<Fare, PaymentRefusal> {
        let mut settlement = None;
        if let Payer::Wallet { payment, resource, .. } = payer {
            assert!(resource.starts_with("http://127.0.0.1:") && resource.ends_with(CHAT), "{resource}");
            if payment.as_deref() != Some(b"paid") {
                let message = "the payment is not signed by its payer".to_owned();
                return Err(PaymentRefusal::Required { header: "terms".into(), message, code: "bad_signature" });
            }
            settlement = Some("settled".to_owned());
        }
        self.boarded.lock().unwrap().push((payer.clone(), tokens));
        self.charging.fetch_add(1, Ordering::SeqCst);
        let charging = self.charging.clone();
        let guard = CancelGuard::new(move || {
            charging.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(Fare { spent: self.spent.subscribe(), settlement, guard })
    }

    fn answered(&self, _tokens: u64, _decoding: Duration) {}
}

async fn paid_server(script: Arc<Script>, key: Option<&str>) -> (Server, Arc<Accounts>) {
    let accounts = Accounts::new();
    (Server::paid(script, key, Limits::default(), accounts.clone()).await, accounts)
}

#[tokio::test]
async fn who_does_not_pay_is_told_how_and_nothing_is_worked() {
    let script = saying("hello");
    let (server, accounts) = paid_server(script.clone(), None).await;
    let answer = server.post(CHAT, hello()).await;
    assert_eq!((answer.status, answer.error("code")), (400, "payer_missing"));
    assert!(answer.error("message").contains("/v1/sessions"), "{}", answer.json);
    let answer = server.send(Method::POST, CHAT, Some("cps_other"), Some(&hello())).await;
    assert_eq!((answer.status, answer.error("code")), (401, "invalid_api_key"), "a token of no session");
    assert_eq!((script.prompts().len(), accounts.boarded()), (0, 0));

    let listed = server.get("/v1/models").await;
    let price = json!({"per_second": "100", "linger_seconds": 5, "per_million_tokens": "5000000"});
    assert_eq!(listed.json["data"][0]["computepool"]["price"], price, "prices are for everybody to see");
}

#[tokio::test]
async fn a_session_is_charged_from_before_the_first_token_to_the_end_of_the_answer() {
    let script = saying("hello");
    let (server, accounts) = paid_server(script.clone(), Some("cp-owner")).await;
    let body = with(hello(), json!({"max_tokens": 7, "n": 2}));
    let answer = server.send(Method::POST, CHAT, Some(TOKEN), Some(&body)).await;
    assert_eq!(answer.status, 200, "{}", answer.json);
    assert!(!answer.headers.contains_key("payment-response"), "this request paid nothing of its own");
    let boarded = accounts.boarded.lock().unwrap().clone();
    assert_eq!(boarded, [(Payer::Session(SessionId::default()), 5 + 2 * 7)], "prompt and both answers at most");
    soon("the charge has ended", || accounts.charging() == 0).await;

    let owner = server.send(Method::POST, CHAT, Some("cp-owner"), Some(&hello())).await;
    assert_eq!(owner.status, 200);
    assert_eq!(accounts.boarded.lock().unwrap()[1].0, Payer::Nobody, "the owner's key pays nothing");
    let invalid = server.send(Method::POST, CHAT, Some(TOKEN), Some(&with(hello(), json!({"n": 99})))).await;
    assert_eq!((invalid.status, accounts.boarded()), (400, 2), "what cannot be answered is not charged");
}

#[tokio::test]
async fn nobody_pays_for_an_answer_that_no_coalition_can_give() {
    let mut model = model::served("small");
    model.active = false;
    let script = Script::new(vec![model], |_| Err(StartError::NoCoalition("small".to_owned())));
    let (server, accounts) = paid_server(script.clone(), Some("cp-owner")).await;
    let answer = server.send(Method::POST, CHAT, Some(TOKEN), Some(&hello())).await;
    assert_eq!((answer.status, answer.error("code")), (503, "no_coalition"), "{}", answer.json);
    let request = reqwest::Client::new().post(server.url(CHAT)).header("x-payer", WALLET).json(&hello());
    let offered = request.send().await.unwrap();
    assert_eq!(offered.status(), 503, "a wallet is not asked to pay for it either");
    assert_eq!((script.prompts().len(), accounts.boarded()), (0, 0), "no stream was started");
    let owner = server.send(Method::POST, CHAT, Some("cp-owner"), Some(&hello())).await;
    assert_eq!(owner.status, 503, "who pays nothing may wait for one to form as before");
    assert_eq!(script.prompts().len(), 1);
}

#[tokio::test]
async fn when_the_time_is_used_up_the_stream_ends_with_the_reason_and_the_shards_are_free() {
    let model = model::served("small");
    let tokenizer = tokenizer(&model);
    let script = Script::new(vec![model], move |prompt| {
        let mut steps = say(&tokenizer, prompt, "hello world");
        steps.truncate(2);
        steps.push(Step::Wait(Duration::from_secs(60)));
        Ok(steps)
    });
    let (server, accounts) = paid_server(script.clone(), None).await;
    let streamed = with(hello(), json!({"stream": true}));
    let request = reqwest::Client::new().post(server.url(CHAT)).bearer_auth(TOKEN).json(&streamed).send();
    let response = request.await.unwrap();
    soon("it runs", || script.live() == 1 && accounts.charging() == 1).await;
    accounts.spent.send_replace(Some("the session's time is used up; open another session"));
    let text = response.text().await.unwrap();
    let last = text.trim_end().rsplit("data: ").next().unwrap();
    let error: Value = serde_json::from_str(last).unwrap();
    assert_eq!(error["error"]["code"], "session_spent", "{text}");
    assert_eq!(error["error"]["message"], "The session's time is used up; open another session.");
    soon("everything is free", || script.live() == 0 && accounts.charging() == 0).await;
}

#[tokio::test]
async fn a_wallet_is_told_the_terms_pays_and_is_answered() {
    let script = saying("hello");
    let (server, accounts) = paid_server(script.clone(), None).await;
    let ask = |payment: Option<&'static str>, payer: &'static str| {
        let mut request = reqwest::Client::new().post(server.url(CHAT)).json(&hello()).header("X-Payer", payer);
        if let Some(payment) = payment {
            request = request.header("PAYMENT-SIGNATURE", payment);
        }
        request.send()
    };
    let terms = ask(None, WALLET).await.unwrap();
    assert_eq!((terms.status().as_u16(), &terms.headers()["payment-required"]), (402, &"terms".parse().unwrap()));
    let body: Value = terms.json().await.unwrap();
    assert_eq!(body["error"]["code"], "bad_signature");
    assert_eq!(script.prompts().len(), 0, "nothing is worked before it is paid");

    let paid = ask(Some("paid"), WALLET).await.unwrap();
    assert_eq!((paid.status().as_u16(), &paid.headers()["payment-response"]), (200, &"settled".parse().unwrap()));
    soon("the charge has ended", || accounts.charging() == 0).await;

    for malformed in ["", "me", "0x12", "0xzz000000000000000000000000000000000000aa"] {
        let answer = ask(None, malformed).await.unwrap();
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap();
        assert_eq!((status, body["error"]["code"].as_str()), (400, Some("payment_malformed")), "{malformed:?}");
    }
}
