//! A cluster whose requests are paid on a local chain of the test's own, and customers that pay.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use alloy_primitives::{Address, B256};
use pool_chain::{
    Terms, calls,
    events::Event,
    x402::{PAYMENT_REQUIRED, PAYMENT_SIGNATURE, PaymentPolicy, SignedPayment, verify_terms_and_sign},
};
use pool_testkit::LocalChain;
use pool_types::{FlowRate, Usdc, Usdcx};
use serde_json::{Value, json};

use crate::support::{Files, PATIENCE, computepool, wait};

/// Wei of the chain's coin for the orchestrator and the sentinel.
const GAS: u128 = 1_000_000_000_000_000_000_000;

/// The chain, the cluster, and every payment that was ever signed.
pub struct Town {
    pub local: LocalChain,
    files: Files,
    port: u16,
    shards: u32,
    up: Option<Child>,
    pub payments: Arc<Mutex<Vec<SignedPayment>>>,
}

/// A session whose token the customer was told.
#[derive(Clone, Debug)]
pub struct Bought {
    pub id: String,
    pub token: String,
    pub vault: Address,
    pub payer: usize,
}

impl Town {
    /// Starts the chain and a cluster of `shards` operators on it, with a linger of a second.
    pub async fn build(shards: u32) -> Self {
        let local = LocalChain::start().await.unwrap();
        let files = Files::with(crate::support::model::Shape { layers: 6, ..Default::default() });
        // Free now; the cluster must come back to the same address after each of its deaths.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut town = Self { local, files, port, shards, up: None, payments: Arc::default() };
        town.start();
        town.fund().await;
        town.until_selling(PATIENCE).await;
        town
    }

    fn chain_file(&self) -> PathBuf {
        self.files.state().join("chain.json")
    }

    /// Starts the cluster; it need not be ready when this returns.
    pub fn start(&mut self) {
        let book = self.files.model().with_file_name("addresses.json");
        fs::write(&book, serde_json::to_vec(self.local.book()).unwrap()).unwrap();
        let config = self.local.chain_config();
        let mut command = computepool();
        command.arg("up").arg("--model").arg(self.files.model()).arg("--state").arg(self.files.state());
        command.args(["--api", &format!("127.0.0.1:{}", self.port), "--threads", "1"]);
        command.args(["--shards", &self.shards.to_string(), "--pay", "--linger", "1"]);
        command.args(["--rpc", &config.http, "--rpc-ws", &config.websocket.unwrap_or_default()]);
        command.arg("--address-book").arg(book);
        self.up = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    /// Gives the orchestrator and its sentinel the coin they need, once the cluster has said who they are.
    pub async fn fund(&self) {
        let begun = Instant::now();
        while fs::read(self.chain_file()).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the cluster says where its chain is");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for address in [self.sender("orchestrator"), self.sender("sentinel")] {
            self.local.control().fund(address, GAS, Usdc::ZERO).await.unwrap();
        }
    }

    pub fn orchestrator(&self) -> Address {
        self.sender("orchestrator")
    }

    fn sender(&self, who: &str) -> Address {
        let file: Value = serde_json::from_slice(&fs::read(self.chain_file()).unwrap()).unwrap();
        file[who].as_str().unwrap().parse().unwrap()
    }

    /// `kill -9`: the orchestrator, in this very instant. Its children end with it.
    pub fn kill(&mut self) {
        if let Some(mut up) = self.up.take() {
            let _ = up.kill();
            let _ = up.wait();
        }
    }

    /// The same from a shared handle, in the middle of whatever runs; [`Town::kill`] cleans up after it.
    pub fn kill_now(&self) {
        if let Some(up) = &self.up {
            let process = nix::unistd::Pid::from_raw(up.id() as i32);
            let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// Ends the cluster in order.
    pub fn stop(&mut self) {
        if let Some(mut up) = self.up.take() {
            let process = nix::unistd::Pid::from_raw(up.id() as i32);
            nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).unwrap();
            wait(&mut up, Duration::from_secs(30));
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Waits until sessions are sold.
    pub async fn until_selling(&self, limit: Duration) {
        let begun = Instant::now();
        loop {
            let wish = json!({ "model": "noise", "payer": self.payer(0), "seconds": 60 });
            if let Ok((402, _, _)) = self.send("POST", "/v1/sessions", None, Some(&wish), None).await {
                return;
            }
            assert!(begun.elapsed() < limit, "sessions are sold within {limit:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn payer(&self, number: usize) -> Address {
        self.local.accounts().payers[number].address()
    }

    /// One request; an error where nobody answers.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
        payment: Option<&str>,
    ) -> Result<(u16, Option<String>, Value), reqwest::Error> {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let mut request = client.request(method.parse().unwrap(), self.url(path));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(payment) = payment {
            request = request.header(PAYMENT_SIGNATURE, payment);
        }
        let answer = request.send().await?;
        let offer = answer.headers().get(PAYMENT_REQUIRED).map(|value| value.to_str().unwrap().to_owned());
        let status = answer.status().as_u16();
        Ok((status, offer, answer.json().await?))
    }

    /// Buys a session, as our own client does it: the vault is computed before anything is signed.
    pub async fn buy(&self, payer: usize, seconds: u64) -> Option<Bought> {
        let wish = json!({ "model": "noise", "payer": self.payer(payer), "seconds": seconds });
        let (status, offer, _) = self.send("POST", "/v1/sessions", None, Some(&wish), None).await.ok()?;
        if status != 402 {
            return None;
        }
        let policy = PaymentPolicy {
            most: "1".parse().unwrap(),
            highest_rate: FlowRate::from_units_per_second(100),
            longest: 7 * 86_400,
            orchestrator: None,
            pool: None,
        };
        let key = &self.local.accounts().payers[payer];
        let now = self.local.chain().time().await.ok()?;
        let header = offer.unwrap();
        let paid =
            verify_terms_and_sign(header.as_bytes(), self.local.book(), &policy, key, now, B256::random()).unwrap();
        self.payments.lock().unwrap().push(paid.clone());
        let (status, _, session) =
            self.send("POST", "/v1/sessions", None, Some(&wish), Some(&paid.header)).await.ok()?;
        assert!([201, 202, 503].contains(&status), "a good payment opens a session, or waits: {status} {session}");
        let text = |field: &str| session[field].as_str().map(str::to_owned);
        Some(Bought { id: text("id")?, token: text("token")?, vault: paid.vault, payer })
    }

    /// Asks for an answer of so many tokens and hangs up after `patience`.
    pub async fn ask(&self, session: &Bought, tokens: u32, patience: Duration) -> Option<u16> {
        let body = json!({ "model": "noise", "prompt": "once upon a time", "max_tokens": tokens, "temperature": 0 });
        let asked = self.send("POST", "/v1/completions", Some(&session.token), Some(&body), None);
        Some(tokio::time::timeout(patience, asked).await.ok()?.ok()?.0)
    }

    pub async fn show(&self, session: &Bought) -> Option<Value> {
        let path = format!("/v1/sessions/{}", session.id);
        let (status, _, view) = self.send("GET", &path, Some(&session.token), None, None).await.ok()?;
        (status == 200).then_some(view)
    }

    pub async fn close(&self, session: &Bought) -> Option<Value> {
        let path = format!("/v1/sessions/{}", session.id);
        let (status, _, view) = self.send("DELETE", &path, Some(&session.token), None, None).await.ok()?;
        assert!([200, 202].contains(&status), "{status} {view}");
        Some(view)
    }

    /// Ends what is left of every payment, with the payers' own keys and nobody's help: vaults that nobody deployed
    /// hold nothing unless their voucher was settled.
    pub async fn close_what_is_left(&self) {
        for (terms, vault) in self.signed() {
            let state = self.local.chain().vault(vault).await.unwrap();
            let payers = &self.local.accounts().payers;
            let payer = payers.iter().find(|key| key.address() == terms.payer).unwrap();
            if !state.deployed {
                if state.unwrapped == Usdc::ZERO {
                    continue;
                }
                self.local.send(payer, &calls::deploy(self.local.book(), &terms)).await.unwrap();
            }
            if !state.closed {
                self.local.send(payer, &calls::close(vault)).await.unwrap();
            }
        }
    }

    pub fn signed(&self) -> Vec<(Terms, Address)> {
        self.payments.lock().unwrap().iter().map(|payment| (payment.terms, payment.vault)).collect()
    }

    /// Adds up the books of every vault and of everybody, from the chain's events and balances alone: nothing is lost,
    /// nothing is made, nobody is paid twice. Returns how many sessions were open once, and what they streamed.
    pub async fn audit(&self, purse_before: &[Usdc]) -> (usize, Usdcx) {
        let chain = self.local.chain();
        let (mut opened, mut all_streamed) = (0, Usdcx::ZERO);
        let mut spent = vec![Usdc::ZERO; purse_before.len()];
        for (terms, vault) in self.signed() {
            let state = chain.vault(vault).await.unwrap();
            let nothing = (Usdcx::ZERO, Usdc::ZERO, FlowRate::ZERO);
            assert_eq!((state.available, state.unwrapped, state.rate), nothing, "{vault} holds nothing, not even dust");
            let events = chain.history_of_vault(vault).await.unwrap();
            if events.is_empty() {
                continue;
            }
            opened += 1;
            let (mut paid, mut refunded, mut streamed) = (Usdc::ZERO, Usdc::ZERO, Usdcx::ZERO);
            let (mut running, mut closed, mut deposits) = (None::<(u64, FlowRate)>, 0, 0);
            for logged in events {
                match logged.event {
                    Event::VaultFunded { amount, .. } => {
                        (paid, deposits) = (paid.checked_add(amount).unwrap(), deposits + 1);
                    }
                    Event::VaultRefunded { amount, .. } => refunded = refunded.checked_add(amount).unwrap(),
                    Event::VaultClosed { .. } => closed += 1,
                    Event::VaultRate { rate, .. } => {
                        if let Some((from, rate)) = running.take() {
                            let amount = rate.over(logged.timestamp - from).unwrap();
                            streamed = streamed.checked_add(amount.to_usdcx()).unwrap();
                        }
                        assert!(rate <= terms.max_rate, "{vault} streams no faster than was agreed");
                        running = (rate != FlowRate::ZERO).then_some((logged.timestamp, rate));
                    }
                    _ => {}
                }
            }
            assert_eq!((closed, deposits), (1, 1), "{vault} was paid once and closed once");
            assert_eq!(running, None, "{vault} stands still");
            let out = streamed.checked_add(refunded.to_usdcx()).unwrap();
            assert_eq!(out, paid.to_usdcx(), "{vault}: paid = streamed + refunded, to the last wei");
            all_streamed = all_streamed.checked_add(streamed).unwrap();
            let payer = self.local.accounts().payers.iter().position(|key| key.address() == terms.payer).unwrap();
            spent[payer] = spent[payer].checked_add(paid.checked_sub(refunded).unwrap()).unwrap();
        }
        for (payer, before) in purse_before.iter().enumerate() {
            let now = chain.usdc(self.payer(payer)).await.unwrap();
            assert_eq!(
                now.checked_add(spent[payer]),
                Some(*before),
                "payer {payer} lost what streamed and no unit more"
            );
        }
        assert_eq!(self.received().await, all_streamed, "operators have all that streamed, and nothing else");
        (opened, all_streamed)
    }

    /// What the pool's members have received in all its life.
    async fn received(&self) -> Usdcx {
        let chain = self.local.chain();
        let Some((terms, _)) = self.signed().first().copied() else { return Usdcx::ZERO };
        let head = chain.head().await.unwrap().number;
        let roster: Value = serde_json::from_slice(&fs::read(self.files.state().join("roster.json")).unwrap()).unwrap();
        let mut sum = Usdcx::ZERO;
        for member in roster["members"].as_array().unwrap().iter().filter(|member| member["role"] == "node") {
            let address: Address = member["address"].as_str().unwrap().parse().unwrap();
            sum = sum.checked_add(chain.received(terms.pool, address, head).await.unwrap()).unwrap();
        }
        sum
    }

    /// What each payer has.
    pub async fn purses(&self) -> Vec<Usdc> {
        let mut purses = Vec::new();
        for key in &self.local.accounts().payers {
            purses.push(self.local.chain().usdc(key.address()).await.unwrap());
        }
        purses
    }

    /// The audit log: its chain of hashes holds, and no secret is in it.
    pub async fn verify_log(&self) -> u64 {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let text = client.get(self.url("/v1/audit")).send().await.unwrap().text().await.unwrap();
        let report = pool_journal::verify_export(text.as_bytes()).expect("the chain of hashes holds");
        assert!(!text.contains("cps_"), "no token is in the log");
        report.entries
    }
}

impl Drop for Town {
    fn drop(&mut self) {
        self.kill();
    }
}
