//! An interface and a node: what it is told, what it may ask, and who may not.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{net::SocketAddr, time::Duration};

use futures::StreamExt;
use jiff::{Timestamp, tz::TimeZone};
use pool_api::{
    Access, EarningsView, ErrorAnswer, ErrorCode, GpuState, OwnerCommand, OwnerEvent, OwnerState, PastDecision, Server,
    ServerError, ShiftStatus, ShiftView, Sources, Stage, Until,
};
use pool_node::{
    Activity,
    owner::{Ask, Clock, OwnerView, Wish},
};
use pool_policy::{Command, GpuDecision, GpuId, GpuReason, Memory, Moment, Seconds, Settings, Signals, Term, decide};
use pool_store::{DecisionRecord, Store, Work, YieldTimes};
use pool_types::{Energy, Reading, Usdcx};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

/// The interface, with a node behind it that obeys: the real policy, and a machine that nobody touches.
struct Interface {
    access: Access,
    client: Client,
    store: Store,
    obeyed: watch::Receiver<Vec<Command>>,
    shutdown: CancellationToken,
    _folder: tempfile::TempDir,
}

fn view_of(settings: &Settings, memory: &mut Memory, second: u64) -> OwnerView {
    let mut signals = Signals::unavailable("this is a test");
    signals.idle = Reading::Known(Duration::from_secs(1000));
    let now = Moment { wall: Timestamp::UNIX_EPOCH, steady: Duration::from_secs(second) };
    let (decision, next) = decide(settings, memory, now, &TimeZone::UTC, &signals);
    *memory = next;
    let sentence = decision.sentence(now, &TimeZone::UTC);
    OwnerView {
        sentence: sentence.to_string(),
        row: sentence.row(),
        decision,
        settings: settings.clone(),
        activity: Activity::Idle,
        gpus: Vec::new(),
        yields: YieldTimes { count: 3, p50: 20, p95: 80, longest: 90 },
    }
}

impl Interface {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("node.db")).await.unwrap();
        let mut settings = Settings { share_cpu: true, ..Settings::default() };
        let mut memory = Memory::default();
        let (show, view) = watch::channel(Some(view_of(&settings, &mut memory, 0)));
        let (asks, mut asked) = mpsc::channel(8);
        let (note, obeyed) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let mut second = 0;
            while let Some(ask) = asked.recv().await {
                let now = Moment { wall: Timestamp::UNIX_EPOCH, steady: Duration::from_secs(second) };
                let Ask { wish, answer } = ask;
                match wish {
                    Wish::Command(command) => {
                        memory = memory.obey(command, &settings, now, &TimeZone::UTC);
                        note.send_modify(|noted| noted.push(command));
                    }
                    Wish::Settings(wanted) => settings = *wanted,
                    Wish::Look => {}
                }
                second += 1;
                let view = view_of(&settings, &mut memory, second);
                show.send_replace(Some(view.clone()));
                let _ = answer.send(view);
            }
        });
        let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let access = server.access().clone();
        let shutdown = CancellationToken::new();
        let log = folder.path().join("log.jsonl");
        std::fs::write(&log, format!("{{\"message\":\"the token is {}\"}}\n", access.token)).unwrap();
        let (clock, zone) = (Clock::system(), TimeZone::UTC);
        let sources = Sources { view, asks, store: store.clone(), downloads: None, income: None, clock, zone, log };
        tokio::spawn(server.serve(sources, shutdown.clone()));
        let client = Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { access, client, store, obeyed, shutdown, _folder: folder }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let request = self.client.request(method, format!("http://{}{path}", self.access.address));
        let request = request.bearer_auth(&self.access.token);
        let request = if let Some(body) = body { request.json(&body) } else { request };
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }
}

#[tokio::test]
async fn the_owner_pauses_and_resumes_and_is_told_what_follows() {
    let interface = Interface::start().await;
    let (status, state) = interface.ask(Method::GET, "/v1/owner/state", None).await;
    let state: OwnerState = serde_json::from_value(state).unwrap();
    assert_eq!((status, state.stage), (StatusCode::OK, Stage::Waiting));
    assert!(state.sentence.starts_with("Waiting: "), "{}", state.sentence);
    assert_eq!((state.given_back.count, state.given_back.p95), (3, 80));
    assert!(state.unavailable.iter().any(|missing| missing.sensor == "battery"), "{:?}", state.unavailable);

    let pause = serde_json::to_value(OwnerCommand::Pause { until: Until::For { seconds: 1800 } }).unwrap();
    let (status, state) = interface.ask(Method::POST, "/v1/owner/commands", Some(pause)).await;
    assert_eq!((status, &state["stage"]), (StatusCode::OK, &json!("paused")), "{state}");
    let (_, state) = interface.ask(Method::POST, "/v1/owner/commands", Some(json!({"command": "resume"}))).await;
    assert_eq!(state["stage"], "waiting", "{state}");
    let asked = interface.obeyed.borrow().clone();
    assert_eq!(asked, [Command::Pause(Term::For(Seconds(1800))), Command::Resume]);
    let (status, error) = interface.ask(Method::POST, "/v1/owner/commands", Some(json!({"command": "mine"}))).await;
    assert_eq!((status, &error["code"]), (StatusCode::BAD_REQUEST, &json!("other")), "{error}");
    assert_eq!(interface.obeyed.borrow().len(), 2, "what is no command does nothing");
    interface.shutdown.cancel();
}

#[tokio::test]
async fn settings_are_taken_whole_or_not_at_all() {
    let interface = Interface::start().await;
    let (_, settings) = interface.ask(Method::GET, "/v1/owner/settings", None).await;
    assert_eq!(settings["start_after"], 300);
    let (status, error) = interface.ask(Method::PUT, "/v1/owner/settings", Some(json!({"start_after": 1}))).await;
    let error: ErrorAnswer = serde_json::from_value(error).unwrap();
    assert_eq!((status, error.code), (StatusCode::BAD_REQUEST, ErrorCode::Settings));
    assert!(error.message.contains("it must lie between 10 seconds and 24 hours"), "{}", error.message);
    let (_, settings) = interface.ask(Method::GET, "/v1/owner/settings", None).await;
    assert_eq!(settings["start_after"], 300, "nothing was changed");

    let wanted = json!({"start_after": 60, "share_cpu": true});
    let (status, _) = interface.ask(Method::PUT, "/v1/owner/settings", Some(wanted)).await;
    assert_eq!(status, StatusCode::OK);
    let (_, settings) = interface.ask(Method::GET, "/v1/owner/settings", None).await;
    assert_eq!((&settings["start_after"], &settings["share_cpu"]), (&json!(60), &json!(true)));
}

#[tokio::test]
async fn the_past_is_told_newest_first_and_events_as_they_come() {
    let interface = Interface::start().await;
    for at in 1..=3 {
        let record = DecisionRecord {
            at,
            state: "waiting".to_owned(),
            sentence: format!("Waiting: reason {at}."),
            decision: Value::Null,
            signals: Value::Null,
        };
        interface.store.decided(&record).await.unwrap();
    }
    let (_, past) = interface.ask(Method::GET, "/v1/owner/decisions?last=2", None).await;
    let past: Vec<PastDecision> = serde_json::from_value(past).unwrap();
    assert_eq!(past.iter().map(|decision| decision.at).collect::<Vec<_>>(), [3, 2]);
    let (status, list) = interface.ask(Method::GET, "/v1/owner/downloads", None).await;
    assert_eq!((status, &list["downloads"]), (StatusCode::OK, &json!([])), "a node with its own files fetches nothing");
    assert_eq!(interface.ask(Method::GET, "/v1/owner/models", None).await, (StatusCode::OK, json!([])));

    let mut request = format!("ws://{}/v1/owner/events", interface.access.address).into_client_request().unwrap();
    let token = format!("Bearer {}", interface.access.token).parse().unwrap();
    request.headers_mut().insert("authorization", token);
    let (mut events, _) = connect_async(request).await.unwrap();
    let mut next = async || {
        let message = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event comes").unwrap().unwrap();
        let Message::Text(text) = message else { panic!("{message:?}") };
        let event = serde_json::from_str::<OwnerEvent>(&text).unwrap();
        let OwnerEvent::State(state) = event else { panic!("{event:?}") };
        state
    };
    assert_eq!(next().await.stage, Stage::Waiting, "what holds now comes first");
    let pause = json!({"command": "pause", "until": {"kind": "told"}});
    interface.ask(Method::POST, "/v1/owner/commands", Some(pause)).await;
    assert_eq!(next().await.stage, Stage::Paused);
}

#[tokio::test]
async fn a_node_that_follows_no_chain_says_so_and_counts_its_work() {
    let interface = Interface::start().await;
    let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap();
    let shift = interface.store.shift_begun(now - 60_000, "tiny", "0-3", 2).await.unwrap();
    let work = Work { served: 60_000, measured: 30_000, tokens: 9, energy: Energy(7_200_000), cost: Usdcx::ZERO };
    interface.store.shift_worked(shift, now, work, true).await.unwrap();
    let (_, earnings) = interface.ask(Method::GET, "/v1/owner/earnings", None).await;
    let earnings: EarningsView = serde_json::from_value(earnings).unwrap();
    assert_eq!((earnings.network, earnings.test_money, earnings.trouble), (None, true, None));
    let week = earnings.week;
    assert_eq!((week.served, week.measured, week.tokens, week.watt_hours), (60, 30, 9, 2));
    assert_eq!((week.cost, week.net), (None, None), "without a price of electricity no net is made up");
    let (_, shifts) = interface.ask(Method::GET, "/v1/owner/shifts", None).await;
    let shifts: Vec<ShiftView> = serde_json::from_value(shifts).unwrap();
    assert_eq!((shifts.len(), shifts[0].status), (1, ShiftStatus::Unpaid));
    let (status, error) = interface.ask(Method::GET, "/v1/owner/wallet", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(error["message"].as_str().unwrap().contains("follows no chain"), "{error}");
}

#[tokio::test]
async fn the_diagnostics_say_what_the_node_does_and_not_how_to_get_in() {
    let interface = Interface::start().await;
    let (status, bundle) = interface.ask(Method::GET, "/v1/owner/diagnostics", None).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(bundle["running"]["state"]["stage"], "waiting");
    assert_eq!(bundle["running"]["settings"]["share_cpu"], true);
    assert_eq!(bundle["log"][0]["message"], "the token is (removed)");
    assert!(!bundle.to_string().contains(&interface.access.token));
}

#[tokio::test]
async fn nobody_without_the_token_and_no_page_of_a_browser_gets_in() {
    let interface = Interface::start().await;
    let url = format!("http://{}/v1/owner/state", interface.access.address);
    for token in ["", "wrong", &interface.access.token[1..]] {
        let answer = interface.client.get(&url).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{token:?}");
        assert_eq!(answer.json::<ErrorAnswer>().await.unwrap().code, ErrorCode::Token);
    }
    // A name that an attacker points at this machine.
    let rebound = interface.client.get(&url).bearer_auth(&interface.access.token).header("host", "evil.example");
    assert_eq!(rebound.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let answer =
        interface.client.get(&url).bearer_auth(&interface.access.token).header("origin", "https://evil.example");
    let answer = answer.send().await.unwrap();
    assert!(!answer.headers().contains_key("access-control-allow-origin"), "no other origin may read it");
    let huge = vec![b' '; 100 << 10];
    let request = interface.client.put(format!("http://{}/v1/owner/settings", interface.access.address));
    let answer = request.bearer_auth(&interface.access.token).body(huge).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer.json::<ErrorAnswer>().await.unwrap().code, ErrorCode::Other, "every error has one form");
    for (method, path) in [(Method::DELETE, "state"), (Method::GET, "decisions?last=many"), (Method::GET, "events")] {
        let (status, error) = interface.ask(method, &format!("/v1/owner/{path}"), None).await;
        assert!(status.is_client_error() && error["code"] == "other", "{path}: {status} {error}");
    }

    let open = Server::bind(SocketAddr::from(([0, 0, 0, 0], 0))).await;
    assert!(matches!(open, Err(ServerError::NotLoopback(_))), "it never listens where others reach it");
}

#[test]
fn the_way_in_lies_in_a_file_for_its_owner_alone_and_is_not_logged() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Access::read(folder.path()).unwrap_err().to_string().starts_with("no node runs with the state folder"));
    let access = Access::new(SocketAddr::from(([127, 0, 0, 1], 4321)));
    access.write(folder.path()).unwrap();
    access.write(folder.path()).unwrap();
    assert_eq!(Access::read(folder.path()).unwrap(), access);
    assert!(!format!("{access:?}").contains(&access.token));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(Access::path(folder.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    Access::remove(folder.path());
    assert!(Access::read(folder.path()).is_err());
}

#[test]
fn each_card_says_whether_it_works_and_what_speaks_against_it() {
    let mut view = view_of(&Settings::default(), &mut Memory::default(), 0);
    let card = |id: &str, may_use, because| GpuDecision {
        id: GpuId(id.to_owned()),
        name: format!("RTX {id}"),
        may_use,
        because,
    };
    let rests = GpuReason::Rests { remaining: Seconds(40) };
    view.decision.gpus = vec![
        card("1", true, None),
        card("2", false, Some(GpuReason::Busy)),
        card("3", true, None),
        card("4", false, Some(rests)),
    ];
    view.gpus = vec![GpuId("1".to_owned())];
    let told: Vec<_> = OwnerState::from(&view).gpus;
    let told: Vec<_> = told
        .iter()
        .map(|GpuState { id, may_use, in_use, because, .. }| (id.as_str(), *may_use, *in_use, because.as_deref()))
        .collect();
    assert_eq!(
        told,
        [
            ("1", true, true, None),
            ("2", false, false, Some("another program is using it")),
            ("3", true, false, None),
            ("4", false, false, Some("given back a moment ago; shared again in 40 seconds")),
        ]
    );
}
