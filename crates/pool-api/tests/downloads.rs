//! An owner who looks after the downloads: pauses, hurries, verifies and removes, over the interface.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "../../computepool/tests/support/model.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod model;
#[path = "../../pool-models/tests/downloads/server.rs"]
#[allow(dead_code, reason = "shared with the tests of downloads")]
mod server;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::tz::TimeZone;
use pool_api::{Access, DownloadStage, DownloadsView, ModelView, Server, Sources};
use pool_models::{
    Budget, Cache, Download, DownloadOptions, Downloads, Manifest, ManifestOptions, Mirror, SystemSpace, Wanted,
};
use pool_node::owner::Clock;
use pool_store::Store;
use pool_types::{ByteSize, LayerRange};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

async fn host_of(folder: &Path) -> server::Server {
    let of_model = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
    server::Server::start(&of_model.map(named).collect::<Vec<_>>()).await
}

/// The interface of a node with downloads.
struct Interface {
    access: Access,
    _keep: tempfile::TempDir,
}

impl Interface {
    async fn start(downloads: Downloads) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("node.db")).await.unwrap();
        let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let access = server.access().clone();
        let sources = Sources {
            view: watch::channel(None).1,
            asks: mpsc::channel(1).0,
            store,
            downloads: Some(downloads),
            income: None,
            clock: Clock::system(),
            zone: TimeZone::UTC,
            log: folder.path().join("log.jsonl"),
        };
        tokio::spawn(server.serve(sources, CancellationToken::new()));
        Self { access, _keep: folder }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let request = client.request(method, format!("http://{}/v1/owner/{path}", self.access.address));
        let request = request.bearer_auth(&self.access.token);
        let request = if let Some(body) = body { request.json(&body) } else { request };
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    async fn list(&self) -> DownloadsView {
        serde_json::from_value(self.ask(Method::GET, "downloads", None).await.1).unwrap()
    }

    async fn command(&self, command: Value) -> DownloadsView {
        let (status, answer) = self.ask(Method::POST, "downloads/commands", Some(command)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        serde_json::from_value(answer).unwrap()
    }

    async fn models(&self) -> Vec<ModelView> {
        serde_json::from_value(self.ask(Method::GET, "models", None).await.1).unwrap()
    }

    async fn until(&self, what: &str, wanted: impl Fn(&DownloadsView) -> bool) -> DownloadsView {
        let began = Instant::now();
        loop {
            let list = self.list().await;
            if wanted(&list) {
                return list;
            }
            assert!(began.elapsed() < PATIENCE, "{what} does not come about: {list:#?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn largest_file(folder: &Path) -> PathBuf {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

#[tokio::test]
async fn downloads_are_paused_hurried_verified_and_removed_as_the_owner_likes() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("noise");
    model::write(&files, model::Shape { hidden: 128, ..model::Shape::default() });
    let host = host_of(&files).await;
    host.behave(|conduct| conduct.throttle = Some(300_000));
    let cache = Cache::open(folder.path().join("cache")).unwrap();
    let budget = Budget { most: Some(ByteSize(1 << 30)), keep_free: ByteSize(0) };
    let options = DownloadOptions { budget, ..DownloadOptions::default() };
    let downloads = Downloads::start(cache.clone(), options, Arc::new(SystemSpace)).unwrap();
    let manifest = Arc::new(Manifest::of(&files, &ManifestOptions::default()).unwrap());
    let mut ids = Vec::new();
    for layers in [LayerRange::new(0, 2).unwrap(), LayerRange::new(2, 4).unwrap()] {
        let download = Download {
            manifest: manifest.clone(),
            signature: None,
            owner: None,
            wanted: Wanted::shard(layers, &manifest.config),
            mirrors: vec![Mirror::new(&host.url()).unwrap()],
            priority: 0,
        };
        ids.push(downloads.add(download).await.unwrap().0);
    }
    let interface = Interface::start(downloads.clone()).await;
    let of = |list: &DownloadsView, id: u64| list.downloads.iter().find(|one| one.id == id).cloned().unwrap();

    let list = interface.until("bytes come", |list| of(list, ids[0]).done > 0).await;
    assert_eq!(of(&list, ids[1]).layers.as_deref(), Some("2-3"));
    assert_eq!((list.disk.budget, list.problem, list.stranded.len()), (Some(1 << 30), None, 0));
    let list = interface.command(json!({ "command": "pause", "id": ids[0] })).await;
    assert_eq!(of(&list, ids[0]).stage, DownloadStage::Paused, "the answer is what holds then");
    let list = interface.command(json!({ "command": "first", "id": ids[1] })).await;
    assert_eq!(list.downloads[0].id, ids[1]);
    host.behave(|conduct| conduct.throttle = None);
    let list = interface.until("the other one is here", |list| of(list, ids[1]).stage == DownloadStage::Done).await;
    assert_eq!(of(&list, ids[0]).stage, DownloadStage::Paused, "what is paused stays paused");
    interface.command(json!({ "command": "resume", "id": ids[0] })).await;
    interface.until("all is here", |list| list.downloads.iter().all(|one| one.stage == DownloadStage::Done)).await;
    let models = interface.models().await;
    assert_eq!((models.len(), models[0].verified, models[0].broken.as_deref()), (1, true, None));
    assert_eq!(models[0].assigned, ["0-1", "2-3"]);

    // One bit falls over on the disk. It is found, and fetched again.
    let largest = largest_file(&folder.path().join("cache/objects"));
    let mut permissions = fs::metadata(&largest).unwrap().permissions();
    #[allow(clippy::permissions_set_readonly_false, reason = "of a test's own file")]
    permissions.set_readonly(false);
    fs::set_permissions(&largest, permissions).unwrap();
    let right = fs::read(&largest).unwrap();
    let mut wrong = right.clone();
    wrong[7] ^= 1;
    fs::write(&largest, &wrong).unwrap();
    host.forget();
    let list = interface.command(json!({ "command": "verify", "model": models[0].model })).await;
    let found = list.found.unwrap();
    assert!(found.starts_with("Not right, and fetched again: 1 part. Right: "), "{found}");
    assert_eq!(list.checking, [], "it has ended");
    interface
        .until("it is whole again", |list| list.downloads.iter().all(|one| one.stage == DownloadStage::Done))
        .await;
    assert_eq!(fs::read(&largest).unwrap(), right);
    let list = interface.command(json!({ "command": "verify", "model": models[0].model })).await;
    assert!(list.found.unwrap().starts_with("All that is here is right: "));
    assert!(host.sent(".safetensors") >= right.len() as u64, "it came from the host");

    // What a shard has open stays; then it goes, and its bytes with it.
    let lease = cache.lease(models[0].model).unwrap();
    let remove = json!({ "command": "remove", "model": models[0].model });
    let (status, error) = interface.ask(Method::POST, "downloads/commands", Some(remove)).await;
    assert_eq!(status, StatusCode::CONFLICT, "{error}");
    drop(lease);
    let list = interface.command(json!({ "command": "remove", "model": models[0].model })).await;
    assert!(list.downloads.is_empty(), "{list:?}");
    assert!(list.found.unwrap().starts_with("That gave "));
    assert!(interface.models().await.is_empty());

    for (command, expected) in [
        (json!({ "command": "pause", "id": 4711 }), StatusCode::NOT_FOUND),
        (json!({ "command": "burn", "id": 1 }), StatusCode::BAD_REQUEST),
        (json!({ "command": "verify", "model": "0x12" }), StatusCode::BAD_REQUEST),
        (json!({ "command": "verify", "model": models[0].model }), StatusCode::NOT_FOUND),
        (json!({ "command": "remove", "model": models[0].model }), StatusCode::NOT_FOUND),
    ] {
        let (status, error) = interface.ask(Method::POST, "downloads/commands", Some(command)).await;
        assert_eq!(status, expected, "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.ends_with('.')), "{error}");
    }
    downloads.stop().await;
}
