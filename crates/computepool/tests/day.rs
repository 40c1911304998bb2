//! A day in the life of an owner's machine: the real actor, downloads, orchestrator and shard, while the day goes by as
//! fast as it can be told, and the node is killed in the middle of everything.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

#[path = "../../pool-models/tests/downloads/server.rs"]
#[allow(dead_code, reason = "shared with the tests of downloads")]
mod server;
mod support;

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use alloy_signer_local::PrivateKeySigner;
use jiff::{Timestamp, civil::date, tz::TimeZone};
use pool_coalition::{Roster, RosterRole};
use pool_models::{
    Budget, Cache, CacheError, DownloadError, DownloadOptions, Downloads, Manifest, ManifestOptions, Mirror,
    SystemSpace, Wanted,
};
use pool_node::{
    Activity, ModelFetch, NodeConfig, NodeModel,
    owner::{self, Ask, Clock, OwnerConfig, OwnerError, OwnerView, Wish},
};
use pool_orchestrator::Orchestrator;
use pool_policy::{Moment, Reason, Settings, State};
use pool_sense::{
    FixedPresence, Gpu, GpuLoad, Gpus, Idle, IdleSource, Metered, MeteredEnergy, Power, Sensed, Snapshot,
};
use pool_store::Store;
use pool_types::{ByteSize, Energy, LayerRange, Reading};
use server::Server;
use support::{Files, PATIENCE, ask, descendants, member, model, node_config, orchestrator_config, request, runs};
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// The day passes in steps of this: no longer than what the policy believes to have seen.
const STEP: u64 = 5;
/// What the card draws, in watts.
const DRAW: u64 = 200;
/// One machine at a time: a shard is known by whose child it is, and all tests may be threads of one process.
static TURN: Mutex<()> = Mutex::const_new(());

/// What the machine's memory of the shard shows on its card.
const HELD: ByteSize = ByteSize(3 << 30);

/// What the sensors see.
#[derive(Clone, Debug)]
struct Seen {
    /// Seconds since somebody touched the machine.
    idle: u64,
    full_screen: bool,
    on_battery: bool,
    /// Other programs' load of the card, in percent.
    load: u8,
    celsius: u32,
    /// Seconds since the card was first looked at.
    card: u64,
    /// Whether there is a second card, which nobody else uses.
    second: bool,
}

impl Seen {
    fn snapshot(&self) -> Snapshot {
        let idle_for = Duration::from_secs(self.idle);
        let energy = MeteredEnergy {
            used: Energy(1000 * DRAW * self.card),
            measured: Duration::from_secs(self.card),
            not_measured: Duration::ZERO,
        };
        let card = |index: u32, load: u8| Gpu {
            index,
            uuid: Reading::Known(format!("GPU-{}", index + 1)),
            name: Reading::Known("RTX 4090".to_owned()),
            memory_total: Reading::Known(24 << 30),
            memory_used: Reading::Known(1 << 30),
            memory_ours: Reading::Known(0),
            memory_others: Reading::Known(1 << 30),
            load: Reading::Known(GpuLoad::Others(load)),
            temperature: Reading::Known(self.celsius),
            power_milliwatts: Reading::Known(u32::try_from(1000 * DRAW).unwrap()),
            energy: Reading::Known(energy),
        };
        let cards = std::iter::once(card(0, self.load)).chain(self.second.then(|| card(1, 0))).collect();
        Snapshot {
            input: Sensed::now(Reading::Known(Idle { idle_for, source: IdleSource::X11 })),
            full_screen: Sensed::now(Reading::Known(self.full_screen)),
            kept_awake: Sensed::now(Reading::Known(false)),
            power: Sensed::now(Reading::Known(Power { on_battery: self.on_battery, charge_percent: None })),
            metered: Sensed::now(Reading::Known(Metered { metered: false, stated: true })),
            gpus: Sensed::now(Reading::Known(Gpus { driver_version: "580".to_owned(), cards })),
            ..Snapshot::nothing()
        }
    }
}

/// One run of the owner's node.
struct Node {
    asks: mpsc::Sender<Ask>,
    task: JoinHandle<Result<(), OwnerError>>,
    store: Store,
    fetch: ModelFetch,
    began: u64,
}

/// An owner's machine, and the orchestrator that it serves for.
struct Home {
    files: Files,
    host: Server,
    manifest: Manifest,
    config: NodeConfig,
    url: String,
    presence: Arc<FixedPresence>,
    seen: Seen,
    /// Unix seconds.
    time: u64,
    moments: watch::Sender<Moment>,
    node: Option<Node>,
    server: JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Home {
    async fn start() -> Self {
        let files = Files::with(model::Shape { hidden: 128, ..model::Shape::default() });
        fs::create_dir_all(files.state()).unwrap();
        let of_model = fs::read_dir(files.model()).unwrap().map(|entry| entry.unwrap().path());
        let named = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
        let host = Server::start(&of_model.map(named).collect::<Vec<_>>()).await;
        let manifest = Manifest::of(&files.model(), &ManifestOptions::default()).unwrap();
        let (gateway, wallet) = (PrivateKeySigner::random(), PrivateKeySigner::random());
        let members = vec![
            member(gateway.address(), "gateway", RosterRole::Gateway),
            member(wallet.address(), "desk", RosterRole::Node),
        ];
        let roster = Roster::new(gateway.address(), members, 0).unwrap();
        let orchestrator = Orchestrator::bind(orchestrator_config(&files, gateway, &roster, 1)).await.unwrap();
        let address = orchestrator.address();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let server = tokio::spawn(async move { orchestrator.serve(stop).await.unwrap() });
        let config = node_config(address, &roster, wallet, PathBuf::new());
        // A Wednesday, nine in the morning in Berlin.
        let time = date(2026, 11, 25).at(9, 0, 0, 0).to_zoned(zone()).unwrap().timestamp().as_second() as u64;
        let seen =
            Seen { idle: 0, full_screen: false, on_battery: false, load: 0, celsius: 50, card: 0, second: false };
        let presence = Arc::new(FixedPresence::new(seen.snapshot()));
        let now = Moment { wall: Timestamp::from_second(time as i64).unwrap(), steady: Duration::ZERO };
        let mut home = Self {
            files,
            host,
            manifest,
            config,
            url: format!("http://{address}/v1"),
            presence,
            seen,
            time,
            moments: watch::channel(now).0,
            node: None,
            server,
            shutdown,
        };
        home.begin().await;
        home
    }

    async fn begin(&mut self) {
        let state = self.files.state();
        let cache = Cache::open(state.join("models")).unwrap();
        let options = DownloadOptions {
            budget: Budget { most: None, keep_free: ByteSize(0) },
            paused: true,
            ..DownloadOptions::default()
        };
        let downloads = Downloads::start(cache, options, Arc::new(SystemSpace)).unwrap();
        let mirrors = vec![Mirror::new(&self.host.url()).unwrap()];
        let fetch = ModelFetch::new(self.manifest.clone(), None, None, mirrors, downloads);
        let store = Store::open(state.join("node.db")).await.unwrap();
        let settings = Settings {
            disk_reserve: ByteSize(0),
            electricity_price: Some(pool_types::EnergyPrice("0.36".parse().unwrap())),
            ..Settings::default()
        };
        let settings = owner::kept_settings(&store).await.unwrap().settings.unwrap_or(settings);
        let config = OwnerConfig {
            node: NodeConfig { model: NodeModel::Fetched(Box::new(fetch.clone())), ..self.config.clone() },
            model_name: "noise".to_owned(),
            presence: self.presence.clone(),
            settings,
            clock: Clock::told(self.moments.subscribe()),
            zone: zone(),
            store: store.clone(),
        };
        let (asks, asked) = mpsc::channel(4);
        let task = tokio::spawn(owner::run(config, asked, watch::channel(None).0, CancellationToken::new()));
        self.node = Some(Node { asks, task, store, fetch, began: self.time });
        self.tell_time();
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn tell_time(&self) {
        let wall = Timestamp::from_second(self.time as i64).unwrap();
        // A clock of its own for each run, as a process has it.
        let steady = Duration::from_secs(self.time - self.node().began);
        self.moments.send_replace(Moment { wall, steady });
    }

    /// Kills the node, as a power cut does, and starts it again.
    async fn restart(&mut self) {
        let Node { task, store, fetch, .. } = self.node.take().unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        fetch.downloads().stop().await;
        drop(fetch);
        store.close().await;
        self.no_shard("a node that is gone leaves none behind").await;
        self.begin().await;
    }

    async fn wish(&self, wish: Wish) -> OwnerView {
        let (answer, answered) = oneshot::channel();
        self.node().asks.send(Ask { wish, answer }).await.unwrap();
        timeout(PATIENCE, answered).await.expect("the node obeys").unwrap()
    }

    /// Lets so many seconds pass with what is seen now; while `idle` nobody touches the machine.
    async fn pass(&mut self, seconds: u64, idle: bool) -> OwnerView {
        let mut view = None;
        for _ in 0..seconds.div_ceil(STEP).max(1) {
            self.time += STEP;
            self.seen.card += STEP;
            self.seen.idle = if idle { self.seen.idle + STEP } else { 0 };
            self.presence.set(self.seen.snapshot());
            if !idle {
                self.presence.touch(Instant::now());
            }
            self.tell_time();
            view = Some(self.wish(Wish::Look).await);
        }
        view.unwrap()
    }

    /// The machine sleeps until this time of the owner's day, and wakes up.
    async fn sleep_until(&mut self, hour: i8, minute: i8) -> OwnerView {
        let now = Timestamp::from_second(self.time as i64).unwrap().to_zoned(zone());
        let mut then = now.date().at(hour, minute, 0, 0).to_zoned(zone()).unwrap();
        if then <= now {
            then = now.date().tomorrow().unwrap().at(hour, minute, 0, 0).to_zoned(zone()).unwrap();
        }
        let slept = then.timestamp().as_second() as u64 - self.time;
        (self.time, self.seen.idle) = (self.time + slept, self.seen.idle + slept);
        // The steady clock stands still while the machine sleeps.
        self.node.as_mut().unwrap().began += slept;
        self.presence.set(self.seen.snapshot());
        self.tell_time();
        self.wish(Wish::Look).await
    }

    fn shard(&self) -> Option<u32> {
        let below = descendants(std::process::id());
        below.into_iter().find(|(process, line)| line.contains("pool-shard") && runs(*process)).map(|(shard, _)| shard)
    }

    async fn no_shard(&self, why: &str) {
        let began = Instant::now();
        while let Some(shard) = self.shard() {
            assert!(began.elapsed() < Duration::from_millis(1500), "process {shard} still runs: {why}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits, while the day stands still, until the node is in this state.
    async fn becomes(&self, what: &str, wanted: impl Fn(&OwnerView) -> bool) -> OwnerView {
        let began = Instant::now();
        loop {
            let view = self.wish(Wish::Look).await;
            if wanted(&view) {
                return view;
            }
            assert!(began.elapsed() < PATIENCE, "{what} does not come about: {} {:?}", view.sentence, view.activity);
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Nobody touches the machine for ten minutes, and it serves: a client is answered.
    async fn serves(&mut self, why: &str) {
        self.pass(600, true).await;
        self.becomes(why, |view| view.decision.state == State::Earning).await;
        let began = Instant::now();
        loop {
            let (status, answer) = ask(&self.url, &request("how is the day?", 8, false)).await;
            if status == 200 {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{why}: {status} {answer}");
            sleep(Duration::from_millis(50)).await;
        }
        // What the card shows of it, as a driver would.
        self.presence.set_gpu_memory_of(self.shard().expect("a shard serves"), Reading::Known(HELD));
        self.pass(30, true).await;
    }

    /// It waits for this reason: at once, with nothing running, and still after a restart.
    async fn waits(&mut self, what: &str, idle: bool, wanted: impl Fn(&Reason) -> bool) {
        let view = self.pass(10, idle).await;
        assert!(wanted(&view.decision.reason), "{what}: {} ({:?})", view.sentence, view.decision.reason);
        assert_eq!(view.decision.state, State::Waiting, "{}", view.sentence);
        self.becomes("nothing runs", |view| view.activity == Activity::Idle).await;
        self.no_shard(what).await;
        self.restart().await;
        let view = self.pass(10, idle).await;
        assert!(wanted(&view.decision.reason), "after a restart, {what}: {}", view.sentence);
        assert!(self.shard().is_none());
    }
}

fn zone() -> TimeZone {
    TimeZone::get("Europe/Berlin").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_goes_by_and_the_machine_is_its_owners_whenever_they_need_it() {
    let _turn = TURN.lock().await;
    let mut home = Home::start().await;

    // Nine o'clock: somebody works.
    home.waits("the owner works", false, |reason| *reason == Reason::OwnerHere).await;

    // They go for lunch. The layers come, and the node is killed among them.
    home.host.behave(|conduct| conduct.throttle = Some(500_000));
    home.pass(310, true).await;
    let fetching =
        |view: &OwnerView| matches!(view.activity, Activity::Fetching { done, size, .. } if done > 0 && done < size);
    let view = home.becomes("the layers are on their way", fetching).await;
    assert!(matches!(view.decision.reason, Reason::Downloading { .. }), "{}", view.sentence);
    // Somebody wants the line for a moment.
    let downloads = home.node().fetch.downloads().clone();
    let id = downloads.watch().borrow().downloads[0].id;
    downloads.pause(id).await.unwrap();
    let waits = |view: &OwnerView| matches!(view.decision.reason, Reason::DownloadWaits { .. });
    let view = home.becomes("the download waits", waits).await;
    assert!(view.sentence.ends_with(" %: you paused it; resume it in the list of downloads."), "{}", view.sentence);
    // They are done with it, but now the host has no time.
    home.host.behave(|conduct| conduct.refuse = Some((503, u32::MAX, None)));
    downloads.resume(id).await.unwrap();
    drop(downloads);
    let fault = |view: &OwnerView| waits(view) && view.sentence.contains("is busy (status 503)");
    let view = home.becomes("the host is waited for", fault).await;
    assert!(view.sentence.ends_with("the download goes on by itself."), "{}", view.sentence);
    home.host.behave(|conduct| conduct.refuse = None);
    home.becomes("the layers are on their way again", |view| !waits(view) && fetching(view)).await;
    home.restart().await;
    home.host.behave(|conduct| conduct.throttle = None);
    home.serves("the layers are here").await;
    let layers = LayerRange::new(0, home.manifest.config.layers).unwrap();
    let items = home.manifest.items(Wanted::shard(layers, &home.manifest.config));
    let whole: u64 = items.iter().map(|item| item.content.length).sum();
    let sent = home.host.sent(".safetensors");
    println!("{sent} bytes were sent for a model of {whole}");
    // What was in flight when it was killed is sent again: one part for each connection.
    assert!(sent >= whole && sent < whole * 3 / 2, "{sent} bytes for {whole}");

    // What serves is not taken away from under it.
    let refused = home.node().fetch.downloads().remove(home.manifest.hash()).await;
    assert!(matches!(refused, Err(DownloadError::Cache(CacheError::InUse(_)))), "{refused:?}");

    // Killed while it serves, it serves again, and fetches nothing.
    home.host.forget();
    home.restart().await;
    home.serves("a node that was killed comes back").await;
    assert_eq!(home.host.sent(".safetensors"), 0, "everything is there");

    // A film plays, drawn by the card.
    home.seen.load = 40;
    home.waits("a film plays", true, |reason| matches!(reason, Reason::GpuBusy { .. })).await;
    home.seen.load = 0;
    home.serves("the film is over").await;

    // A game, full screen.
    home.seen.full_screen = true;
    home.waits("a game is played", false, |reason| matches!(reason, Reason::OwnerHere | Reason::FullScreen)).await;
    home.waits("the game waits for its player", true, |reason| *reason == Reason::FullScreen).await;
    home.seen.full_screen = false;
    home.serves("the game is over").await;

    // The mains fail.
    home.seen.on_battery = true;
    home.waits("on battery", true, |reason| *reason == Reason::OnBattery).await;
    home.seen.on_battery = false;
    home.serves("the mains are back").await;

    // From now on only at night.
    let view = home.wish(Wish::Look).await;
    let schedule = Some("Mon-Sun 22:00-06:00".parse().unwrap());
    home.wish(Wish::Settings(Box::new(Settings { schedule, ..view.settings }))).await;
    home.waits("it is evening", true, |reason| *reason == Reason::OutsideSchedule).await;
    home.sleep_until(21, 55).await;
    home.serves("night begins at ten").await;
    home.sleep_until(1, 30).await;
    home.serves("midnight is in the middle of the night").await;

    // The card is hot, and not yet cool again.
    home.seen.celsius = 84;
    home.waits("the card is hot", true, |reason| matches!(reason, Reason::GpuHot { .. })).await;
    home.seen.celsius = 80;
    home.waits("the card is not cool yet", true, |reason| matches!(reason, Reason::GpuHot { .. })).await;
    home.seen.celsius = 74;
    home.serves("the card is cool").await;

    // The owner cannot sleep, and presses a key: the machine, and the card's memory, are theirs.
    let shard = home.shard().unwrap();
    let presence = home.presence.clone();
    let freed = tokio::spawn(async move {
        while runs(shard) {
            sleep(Duration::from_millis(1)).await;
        }
        sleep(Duration::from_millis(120)).await;
        presence.set_gpu_memory_of(shard, Reading::Known(ByteSize(0)));
    });
    // A running shard's memory is looked at every two seconds, whatever happens; only then can its return be seen.
    sleep(Duration::from_secs(3)).await;
    home.waits_for_key().await;
    freed.await.unwrap();
    let yields = home.node().store.yields(100).await.unwrap();
    let last = &yields[0];
    let back = last.memory_back.expect("the card's memory was looked at");
    assert!(back >= last.process_gone + 100 && back < 1500, "{last:?}");

    // What the day was, as it is kept.
    let told: Vec<String> =
        home.node().store.decisions(1000).await.unwrap().into_iter().map(|past| past.sentence).collect();
    for reason in [
        "you are using",
        "another program is using the RTX 4090",
        "full-screen",
        "battery",
        "not the hours you chose",
        "°C",
        "downloading",
        "earning",
    ] {
        let known = told.iter().any(|sentence| sentence.to_lowercase().contains(&reason.to_lowercase()));
        assert!(known, "{reason} is not in {told:#?}");
    }
    // What was on the disk already was not said to be downloaded again.
    let downloads = told.iter().filter(|sentence| sentence.contains("downloading")).count();
    assert!(downloads <= 3, "{told:#?}");
    let shifts = home.node().store.shifts(100).await.unwrap();
    assert!(
        shifts.len() == 7 && shifts.iter().all(|shift| shift.ended),
        "each spell of serving has its end: {shifts:#?}"
    );
    let night = shifts.iter().map(|shift| shift.work.served).max().unwrap();
    let watts = |work: pool_store::Work| work.energy.0 / work.measured.max(1);
    let measured: Vec<u64> =
        shifts.iter().filter(|shift| shift.work.measured > 0).map(|shift| watts(shift.work)).collect();
    assert!(!measured.is_empty() && measured.iter().all(|watts| *watts == DRAW), "{measured:?}");
    assert!(shifts.iter().all(|shift| shift.work.measured == 0 || shift.work.cost > pool_types::Usdcx::ZERO));
    // A shard says once a second what it worked on; the last one had so long.
    assert!(shifts[0].work.tokens > 8, "a prompt and eight tokens: {:?}", shifts[0]);
    assert!(night < 3_600_000, "what the machine slept through was not served: {night} ms");

    home.end().await;
}

/// The cards that a shard may see.
fn cards_of(shard: u32) -> Option<String> {
    let environment = fs::read(format!("/proc/{shard}/environ")).unwrap_or_default();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    environment.split('\0').find_map(|pair| pair.strip_prefix("CUDA_VISIBLE_DEVICES=").map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_card_that_somebody_needs_is_left_and_the_other_one_goes_on() {
    let _turn = TURN.lock().await;
    let mut home = Home::start().await;
    home.seen.second = true;
    home.serves("both cards are free").await;
    let first = home.shard().unwrap();
    assert_eq!(cards_of(first).as_deref(), Some("GPU-1,GPU-2"));
    // Somebody draws on the first card. Serving goes on, on the other one.
    home.seen.load = 40;
    home.pass(10, true).await;
    let began = Instant::now();
    while runs(first) {
        assert!(began.elapsed() < Duration::from_millis(1500), "the card is given back at once");
        sleep(Duration::from_millis(5)).await;
    }
    home.serves("the other card is free").await;
    let second = home.shard().unwrap();
    assert_eq!(cards_of(second).as_deref(), Some("GPU-2"));
    let yields = home.node().store.yields(9).await.unwrap();
    let reason = "The RTX 4090 is not shared any more: another program is using it";
    assert!(yields.len() == 1 && yields[0].reason == reason, "{yields:?}");
    // They stop. The card joins again once that has lasted, at a moment when nobody asks for anything.
    home.seen.load = 0;
    let view = home.pass(480, true).await;
    assert!(view.decision.gpus.iter().all(|gpu| gpu.may_use), "{:?}", view.decision.gpus);
    assert_eq!((view.gpus.len(), home.shard()), (1, Some(second)), "a coalition is not disturbed for a moment's rest");
    home.pass(300, true).await;
    let began = Instant::now();
    while runs(second) {
        assert!(began.elapsed() < PATIENCE, "the card joins");
        sleep(Duration::from_millis(20)).await;
    }
    home.serves("both cards are free again").await;
    assert_eq!(cards_of(home.shard().unwrap()).as_deref(), Some("GPU-1,GPU-2"));
    assert_eq!(home.node().store.yields(9).await.unwrap().len(), 1, "nobody was waiting for it");
    home.end().await;
}

impl Home {
    async fn end(mut self) {
        self.shutdown.cancel();
        let node = self.node.take().unwrap();
        node.task.abort();
        let _ = node.task.await;
        timeout(PATIENCE, self.server).await.unwrap().unwrap();
    }

    async fn waits_for_key(&mut self) {
        self.seen.idle = 0;
        self.presence.set(self.seen.snapshot());
        self.presence.touch(Instant::now());
        let view = self.wish(Wish::Look).await;
        assert_eq!(view.decision.reason, Reason::OwnerHere, "{}", view.sentence);
        self.no_shard("the owner is back").await;
        self.becomes("the machine is given back", |view| view.activity == Activity::Idle && view.yields.count > 0)
            .await;
    }
}
