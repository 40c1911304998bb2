//! What an operator earns on a real chain, as the interface tells it: to the wei, through a restart and a re-organisation.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{net::SocketAddr, time::Duration};

use futures::StreamExt;
use jiff::{Timestamp, tz::TimeZone};
use pool_api::{Access, EarningsView, OwnerEvent, Server, ShiftStatus, ShiftView, Sources, WalletView};
use pool_chain::calls;
use pool_node::{
    Activity,
    income::Income,
    owner::{Clock, OwnerView},
};
use pool_policy::{Memory, Moment, Settings, Signals, decide};
use pool_store::{Store, Work, YieldTimes};
use pool_testkit::LocalChain;
use pool_types::{Energy, EnergyPrice, FlowRate, Usdc, Usdcx};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_tungstenite::{connect_async, tungstenite::client::IntoClientRequest};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// A running interface over the operator's books.
struct Home {
    access: Access,
    income: Income,
    shutdown: CancellationToken,
    _show: watch::Sender<Option<OwnerView>>,
}

impl Home {
    async fn start(local: &LocalChain, operator: alloy_primitives::Address, store: &Store, time: &Time) -> Self {
        let shutdown = CancellationToken::new();
        let income = Income::follow(local.chain().clone(), operator, store.clone(), 0, shutdown.clone());
        let income = income.await.unwrap();
        let settings = Settings { electricity_price: Some(price()), ..Settings::default() };
        let signals = Signals::unavailable("this is a test");
        let clock = Clock::told(time.told.subscribe());
        let (decision, _) = decide(&settings, &Memory::default(), clock.now(), &TimeZone::UTC, &signals);
        let sentence = decision.sentence(clock.now(), &TimeZone::UTC);
        let (show, view) = watch::channel(Some(OwnerView {
            sentence: sentence.to_string(),
            row: sentence.row(),
            decision,
            settings,
            activity: Activity::Idle,
            gpus: Vec::new(),
            yields: YieldTimes::default(),
        }));
        let (asks, _) = mpsc::channel(1);
        let sources = Sources {
            view,
            asks,
            store: store.clone(),
            downloads: None,
            income: Some(income.clone()),
            clock,
            zone: TimeZone::UTC,
            log: "nowhere".into(),
        };
        let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let access = server.access().clone();
        tokio::spawn(server.serve(sources, shutdown.clone()));
        Self { access, income, shutdown, _show: show }
    }

    async fn get<T: DeserializeOwned>(&self, what: &str) -> T {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let request = client.get(format!("http://{}/v1/owner/{what}", self.access.address));
        let answer = request.bearer_auth(&self.access.token).send().await.unwrap();
        assert!(answer.status().is_success(), "{what}: {}", answer.text().await.unwrap());
        answer.json().await.unwrap()
    }

    /// Waits until the chain was read, and its books agreed, up to a time.
    async fn agrees_at(&self, at: u64) {
        let mut view = self.income.view();
        let agrees = view.wait_for(|view| view.agreed >= Some(at));
        let agrees = timeout(PATIENCE, agrees).await;
        assert!(agrees.is_ok(), "{:?} does not agree at {at}", *self.income.view().borrow());
    }
}

/// The owner's clock, which goes with the chain's.
struct Time {
    told: watch::Sender<Moment>,
}

impl Time {
    fn set(&self, at: u64) {
        let wall = Timestamp::from_second(at as i64).unwrap();
        self.told.send_replace(Moment { wall, steady: Duration::from_secs(at) });
    }
}

fn price() -> EnergyPrice {
    EnergyPrice("0.36".parse().unwrap())
}

fn wei(text: &str) -> i128 {
    let (whole, decimals) = text.split_once('.').unwrap();
    assert_eq!(decimals.len(), 18, "an amount of USDCx has all its decimals: {text}");
    format!("{whole}{decimals}").parse().unwrap()
}

#[tokio::test]
async fn what_streams_is_counted_to_the_wei_and_agrees_with_the_chain() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let coalition = local.activate_coalition(2).await?;
    let (operator, orchestrator) = (coalition.operators[0].address(), &local.accounts().orchestrator);
    let share = i128::try_from(local.chain().member(coalition.gda_pool, operator).await?.units)?;
    let folder = tempfile::tempdir()?;
    let store = Store::open(folder.path().join("node.db")).await?;
    let started = local.chain().time().await?;
    let time = Time {
        told: watch::channel(Moment { wall: Timestamp::from_second(started as i64)?, steady: Duration::ZERO }).0,
    };
    let home = Home::start(&local, operator, &store, &time).await;
    let mut request = format!("ws://{}/v1/owner/events", home.access.address).into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {}", home.access.token).parse()?);
    let (mut events, _) = connect_async(request).await?;

    // A shift of 300 s; its stream runs from second 10 until second 320 at 100 units a second.
    let rate = FlowRate::from_units_per_second(100);
    let session = local.open_session(&coalition, 0, "1".parse()?, rate).await?;
    local.send(orchestrator, &calls::set_rate(session.vault, FlowRate::ZERO)).await?;
    let began = local.chain().time().await? + 100;
    let shift = store.shift_begun(began * 1000, "tiny", "0-3", 2).await?;
    let set = async |second: u64, rate: FlowRate| {
        local.control().next_block_at(began + second).await?;
        local.send(orchestrator, &calls::set_rate(session.vault, rate)).await
    };
    set(10, rate).await?;
    home.agrees_at(began + 10).await;
    time.set(began + 110);
    let before = home.get::<EarningsView>("earnings").await;
    // Of 1,000,000 units those of this operator; wei a second.
    let per_second = i128::try_from(rate.wei_per_second())? * share / 1_000_000;
    assert_eq!(wei(&before.rate), per_second);
    let opened = wei(&before.earned) - 100 * per_second;
    assert!((0..60 * per_second).contains(&opened), "what flowed while the session was opened: {opened}");
    assert!(before.test_money && before.network.as_deref() == Some("local"), "play money is told as such");
    let running = home.get::<Vec<ShiftView>>("shifts").await;
    assert_eq!((running[0].status, running[0].ended), (ShiftStatus::Streaming, None));
    assert_eq!(wei(&running[0].books.gross), 100 * per_second, "between two blocks money streams as well");

    let energy = Energy(1_800_000_000);
    let work = Work { served: 300_000, measured: 300_000, tokens: 77, energy, cost: price().of(energy) };
    store.shift_worked(shift, (began + 300) * 1000, work, true).await?;
    set(320, FlowRate::ZERO).await?;
    home.agrees_at(began + 320).await;
    time.set(began + 400);
    let shifts = home.get::<Vec<ShiftView>>("shifts").await;
    assert_eq!(wei(&shifts[0].books.gross), 310 * per_second);
    assert_eq!((shifts[0].status, shifts[0].stream_ran_on), (ShiftStatus::Reconciled, Some(20)));
    let books = &shifts[0].books;
    assert_eq!(books.cost.as_deref().map(wei), Some(180_000_000_000_000_000), "half a kilowatt hour at 0.36");
    assert_eq!(books.net.as_deref().map(wei), Some(310 * per_second - 180_000_000_000_000_000));
    let after = home.get::<EarningsView>("earnings").await;
    let head = local.chain().head().await?.number;
    let on_chain = local.chain().received(coalition.gda_pool, operator, head).await?;
    assert_eq!(wei(&after.earned), on_chain.wei(), "what is told is what the chain says");
    assert_eq!((after.reconciled_until, after.differs), (Some(began + 320), None));
    assert_eq!(after.month.watt_hours, 500);
    let wallet = home.get::<WalletView>("wallet").await;
    assert_eq!(wei(&wallet.usdcx) + wei(&wallet.claimable), on_chain.wei(), "nobody has withdrawn: {wallet:?}");
    assert_eq!((wallet.address, wallet.usdc), (operator.to_string(), Usdc::ZERO.to_string()));

    // Whoever listens was told of each rate.
    let mut rates = Vec::new();
    while !rates.ends_with(&[per_second, 0]) {
        let message = timeout(PATIENCE, events.next()).await?.expect("the events go on")?;
        if let OwnerEvent::Earnings(earnings) = serde_json::from_str(message.to_text()?)? {
            let rate = wei(&earnings.rate);
            if rates.last() != Some(&rate) {
                rates.push(rate);
            }
        }
    }

    // A restart goes on where it stood; another operator's books are its own.
    home.shutdown.cancel();
    let read = store.setting("owner.income").await?;
    let again = Home::start(&local, operator, &store, &time).await;
    let kept = again.get::<EarningsView>("earnings").await;
    assert_eq!(kept.earned, after.earned);
    assert!(store.setting("owner.income").await? == read, "nothing was read again");

    // What the chain takes back is taken back.
    set(500, rate).await?;
    again.agrees_at(began + 500).await;
    local.control().reorganise(1, Vec::new()).await?;
    local.control().next_block_at(began + 700).await?;
    local.control().mine(10).await?;
    again.agrees_at(began + 700).await;
    time.set(began + 800);
    let back = again.get::<EarningsView>("earnings").await;
    assert_eq!((wei(&back.earned), back.rate), (on_chain.wei(), Usdcx::ZERO.to_string()));
    again.shutdown.cancel();

    let stranger = Home::start(&local, local.accounts().stranger.address(), &store, &time).await;
    stranger.agrees_at(began + 700).await;
    assert_eq!(
        wei(&stranger.get::<EarningsView>("earnings").await.earned),
        0,
        "another operator's money is not counted"
    );
    Ok(())
}

#[tokio::test]
async fn a_chain_that_is_away_is_told_and_nothing_is_guessed_meanwhile() -> anyhow::Result<()> {
    let mut local = LocalChain::start().await?;
    let coalition = local.activate_coalition(1).await?;
    let operator = coalition.operators[0].address();
    let rate = FlowRate::from_units_per_second(100);
    let session = local.open_session(&coalition, 0, "1".parse()?, rate).await?;
    local.send(&local.accounts().orchestrator, &calls::set_rate(session.vault, rate)).await?;
    let at = local.chain().time().await?;
    let folder = tempfile::tempdir()?;
    let store = Store::open(folder.path().join("node.db")).await?;
    let time =
        Time { told: watch::channel(Moment { wall: Timestamp::from_second(at as i64)?, steady: Duration::ZERO }).0 };
    let home = Home::start(&local, operator, &store, &time).await;
    home.agrees_at(at).await;
    local.devnet().stop().await?;
    let mut view = home.income.view();
    timeout(PATIENCE, view.wait_for(|view| view.trouble.is_some())).await??;
    time.set(at + 1000);
    let away = home.get::<EarningsView>("earnings").await;
    assert!(away.trouble.unwrap().contains("reached"), "the reason is told");
    assert!(away.at < at + 1000, "what has streamed since is not known");
    local.devnet().restart().await?;
    timeout(PATIENCE, view.wait_for(|view| view.trouble.is_none())).await??;
    Ok(())
}
