//! An owner's node with sensors that the test reads out: what the owner sees, asks for, and finds again after a restart.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

#[path = "../../computepool/tests/support/model.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod model;
#[path = "../../pool-models/tests/downloads/server.rs"]
#[allow(dead_code, reason = "shared with the tests of downloads")]
mod server;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use alloy_signer_local::PrivateKeySigner;
use jiff::tz::TimeZone;
use pool_coalition::{Roster, RosterMember, RosterRole};
use pool_models::{
    Cache, Download, DownloadOptions, DownloadState, Downloads, Manifest, ManifestOptions, Mirror, SystemSpace, Wanted,
};
use pool_node::{
    ModelFetch, NodeConfig, NodeModel,
    owner::{self, Ask, Clock, OwnerConfig, OwnerError, OwnerView, Wish},
};
use pool_policy::{Command, Reason, Seconds, Settings, Term};
use pool_sense::{FixedPresence, Idle, IdleSource, Power, Sensed, Snapshot};
use pool_store::Store;
use pool_types::{ByteSize, Reading};
use pool_wire::control::Capabilities;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

/// What the sensors say: nobody has touched the machine for so long, and what feeds it.
fn seen(idle: u64, on_battery: bool) -> Snapshot {
    let idle_for = Duration::from_secs(idle);
    Snapshot {
        input: Sensed::now(Reading::Known(Idle { idle_for, source: IdleSource::X11 })),
        power: Sensed::now(Reading::Known(Power { on_battery, charge_percent: None })),
        ..Snapshot::nothing()
    }
}

fn settings() -> Settings {
    Settings { share_cpu: true, notice: Seconds(0), ..Settings::default() }
}

/// A running owner's node whose orchestrator cannot be reached.
struct Home {
    presence: Arc<FixedPresence>,
    asks: mpsc::Sender<Ask>,
    view: watch::Receiver<Option<OwnerView>>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), OwnerError>>,
    store: Store,
}

impl Home {
    async fn start(folder: &Path) -> Self {
        model::write(&folder.join("model"), model::Shape::default());
        Self::start_with(folder, NodeModel::Local(folder.join("model")), settings()).await
    }

    async fn start_with(folder: &Path, model: NodeModel, settings: Settings) -> Self {
        let (wallet, gateway) = (PrivateKeySigner::random(), PrivateKeySigner::random());
        let member = |key: &PrivateKeySigner, name: &str, role| RosterMember {
            address: key.address(),
            name: name.to_owned(),
            role,
        };
        let members = vec![member(&gateway, "gateway", RosterRole::Gateway), member(&wallet, "desk", RosterRole::Node)];
        let node = NodeConfig {
            orchestrator: "ws://127.0.0.1:1".to_owned(),
            roster: Roster::new(gateway.address(), members, 0).unwrap(),
            name: String::new(),
            wallet,
            model,
            // Never started: no coalition forms.
            shard_program: Some(folder.join("no-shard")),
            capabilities: Capabilities {
                device: "cpu".to_owned(),
                memory_bytes: 1 << 30,
                bandwidth_bytes_per_second: 1 << 30,
                threads: 1,
                uplink_bytes_per_second: None,
            },
            cpus: Vec::new(),
            gpus: None,
            quantise: false,
            loopback_only: true,
            vote: None,
        };
        let store = Store::open(folder.join("node.db")).await.unwrap();
        let settings = owner::kept_settings(&store).await.unwrap().settings.unwrap_or(settings);
        let presence = Arc::new(FixedPresence::new(seen(0, false)));
        let config = OwnerConfig {
            node,
            model_name: "noise".to_owned(),
            presence: presence.clone(),
            settings,
            clock: Clock::system(),
            zone: TimeZone::UTC,
            store: store.clone(),
        };
        let ((asks, asked), (show, view)) = (mpsc::channel(4), watch::channel(None));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(owner::run(config, asked, show, shutdown.clone()));
        Self { presence, asks, view, shutdown, task, store }
    }

    async fn ask(&self, wish: Wish) -> OwnerView {
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask { wish, answer }).await.unwrap();
        timeout(PATIENCE, answered).await.expect("the node obeys at once").unwrap()
    }

    async fn becomes(&mut self, what: &str, wanted: impl Fn(&Reason) -> bool) {
        let arrives = self.view.wait_for(|view| view.as_ref().is_some_and(|view| wanted(&view.decision.reason)));
        assert!(timeout(PATIENCE, arrives).await.is_ok(), "{what} does not come about: {:?}", *self.view.borrow());
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.expect("it ends").unwrap().unwrap();
        self.store.close().await;
    }
}

#[tokio::test]
async fn what_happens_is_decided_at_once_and_kept_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut home = Home::start(folder.path()).await;
    home.becomes("the owner is there", |reason| *reason == Reason::OwnerHere).await;
    home.presence.set(seen(1_000, false));
    home.becomes("it looks for a coalition", |reason| *reason == Reason::NoCoalition).await;
    home.presence.set(seen(1_000, true));
    home.becomes("the mains fail", |reason| *reason == Reason::OnBattery).await;
    home.presence.set(seen(0, false));
    home.presence.touch(Instant::now());
    home.becomes("the owner is back", |reason| *reason == Reason::OwnerHere).await;
    let told: Vec<String> =
        home.store.decisions(10).await.unwrap().into_iter().rev().map(|past| past.sentence).collect();
    let starts =
        ["Waiting: you are using this computer", "Waiting: no coalition", "Waiting: this computer", "Waiting: you"];
    assert_eq!(told.len(), starts.len(), "each change once: {told:#?}");
    for (told, start) in told.iter().zip(starts) {
        assert!(told.starts_with(start), "{told} should start with {start}");
    }
    home.stop().await;
}

#[tokio::test]
async fn what_the_owner_says_holds_at_once_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::start(folder.path()).await;
    let view = home.ask(Wish::Command(Command::Pause(Term::UntilTold))).await;
    assert_eq!(view.decision.reason, Reason::OwnerPaused { until: None });
    let asked = Instant::now();
    home.ask(Wish::Command(Command::Pause(Term::UntilTold))).await;
    assert!(asked.elapsed() < Duration::from_secs(1), "who pauses twice does not wait for a change that never comes");
    let settings =
        Settings { wait_for_programs: vec!["blender".to_owned()], ..home.view.borrow().clone().unwrap().settings };
    let view = home.ask(Wish::Settings(Box::new(settings.clone()))).await;
    assert_eq!(view.settings, settings);
    assert_eq!(home.presence.programs(), ["blender"], "the sensors look for what is on the list now");
    home.stop().await;

    let mut home = Home::start(folder.path()).await;
    home.becomes("still paused", |reason| *reason == Reason::OwnerPaused { until: None }).await;
    assert_eq!(home.presence.programs(), ["blender"]);
    assert_eq!(home.ask(Wish::Command(Command::Resume)).await.decision.reason, Reason::OwnerHere);
    home.stop().await;
}

#[tokio::test]
async fn books_that_cannot_be_kept_end_the_node_and_leave_nothing_running() {
    let folder = tempfile::tempdir().unwrap();
    let mut home = Home::start(folder.path()).await;
    home.presence.set(seen(1_000, false));
    home.becomes("it looks for a coalition", |reason| *reason == Reason::NoCoalition).await;
    home.store.clone().close().await;
    home.presence.set(seen(1_000, true));
    let ended = timeout(PATIENCE, home.task).await.expect("it does not go on without its books").unwrap();
    assert!(matches!(ended, Err(OwnerError::Store(_))), "{ended:?}");
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_waited_for_and_comes_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("model");
    model::write(&files, model::Shape { hidden: 128, ..model::Shape::default() });
    let of_model = fs::read_dir(&files).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
    let host = server::Server::start(&of_model.map(named).collect::<Vec<_>>()).await;
    let manifest = Manifest::of(&files, &ManifestOptions::default()).unwrap();
    let (cache, state) = (Cache::open(folder.path().join("cache")).unwrap(), folder.path().join("state"));
    fs::create_dir_all(&state).unwrap();
    let downloads = Downloads::start(cache, DownloadOptions::default(), Arc::new(SystemSpace)).unwrap();
    let mirrors = vec![Mirror::new(&host.url()).unwrap()];
    let wanted = Wanted::everything(&manifest.config);
    let fetch = ModelFetch::new(manifest.clone(), None, None, mirrors.clone(), downloads.clone());
    // By hand, smaller than anybody can set it.
    let settings = Settings { disk_budget: ByteSize(1 << 20), disk_reserve: ByteSize(0), ..settings() };
    let mut home = Home::start_with(&state, NodeModel::Fetched(Box::new(fetch)), settings.clone()).await;
    home.presence.set(seen(1_000, false));
    home.becomes("it looks for a coalition", |reason| *reason == Reason::NoCoalition).await;
    let manifest = Arc::new(manifest);
    let download = Download { manifest, signature: None, owner: None, wanted, mirrors, priority: 0 };
    let id = downloads.add(download).await.unwrap();
    home.becomes("there is no room", |reason| matches!(reason, Reason::DiskFull { .. })).await;
    let sentence = home.view.borrow().clone().unwrap().sentence;
    assert!(sentence.starts_with("Waiting: ") && sentence.contains("disk"), "{sentence}");
    home.ask(Wish::Settings(Box::new(Settings { disk_budget: ByteSize(1 << 30), ..settings }))).await;
    home.becomes("there is room", |reason| !matches!(reason, Reason::DiskFull { .. })).await;
    let ended = timeout(PATIENCE, downloads.ended(id)).await.expect("it comes").unwrap();
    assert_eq!(ended.state, DownloadState::Done, "{ended}");
    home.stop().await;
    downloads.stop().await;
}
