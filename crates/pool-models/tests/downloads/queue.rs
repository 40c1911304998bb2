//! The queue outlasts the process: what was to be downloaded is, in the same order, by the next one.

use std::time::Duration;

use pool_models::{
    Cache, DownloadError, DownloadOptions, DownloadState, Downloads, DownloadsOverview, Manifest, Model, Wanted,
};
use tokio::time::timeout;

use crate::{
    assert_same, download,
    models::{manifest, shard, single},
    options, plenty,
    server::Server,
    start,
};

struct Scene {
    folder: tempfile::TempDir,
    manifest: Manifest,
    server: Server,
    root: tempfile::TempDir,
    cache: Cache,
}

async fn scene(seed: u64) -> Scene {
    let files = single(seed);
    let (folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    Scene { folder, manifest, server, root, cache }
}

impl Scene {
    /// Downloads that begin with all paused.
    fn start_paused(&self) -> Downloads {
        let options = DownloadOptions { paused: true, ..options() };
        Downloads::start(self.cache.clone(), options, plenty()).unwrap()
    }

    fn part(&self, layer: u32) -> Wanted {
        shard(&self.manifest, layer, layer + 1)
    }
}

async fn until(downloads: &Downloads, what: &str, holds: impl Fn(&DownloadsOverview) -> bool) -> DownloadsOverview {
    let mut overview = downloads.watch();
    let seen = timeout(Duration::from_secs(30), overview.wait_for(|overview| holds(overview))).await;
    let seen = seen.map(|seen| seen.unwrap().clone());
    seen.unwrap_or_else(|_| panic!("{what} within 30 seconds, but it is {:?}", downloads.watch().borrow()))
}

/// The parts in the list, with whether they are paused one by one.
fn parts(overview: &DownloadsOverview) -> Vec<(Wanted, i32)> {
    overview.downloads.iter().map(|status| (status.wanted, status.priority)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_process_goes_on_in_the_same_order_and_what_was_paused_stays_so() {
    let scene = scene(500).await;
    let downloads = scene.start_paused();
    let mut ids = Vec::new();
    for layer in 0..4 {
        ids.push(downloads.add(download(&scene.manifest, scene.part(layer), &[&scene.server])).await.unwrap());
    }
    downloads.move_to_front(ids[2]).await.unwrap();
    downloads.set_priority(ids[0], -5).await.unwrap();
    downloads.pause(ids[1]).await.unwrap();
    let before = parts(&downloads.watch().borrow());
    let order: Vec<Wanted> = before.iter().map(|(wanted, _)| *wanted).collect();
    assert_eq!(order, [2, 1, 3, 0].map(|layer| scene.part(layer)), "front, as they came, and the last one last");
    downloads.stop().await;
    assert!(scene.server.seen().is_empty(), "all were paused");
    let half_written = scene.root.path().join("queue.new4711");
    std::fs::write(&half_written, "{").unwrap();

    // The machine was switched off; nobody tells the next process anything.
    let downloads = scene.start_paused();
    let restored = until(&downloads, "the queue is there", |overview| overview.downloads.len() == 4).await;
    assert_eq!(parts(&restored), before);
    assert!(!half_written.exists(), "what a killed process was writing is tidied away");
    let total: u64 = restored.downloads.iter().map(|status| status.total.0).sum();
    assert!(
        total > 0 && restored.downloads.iter().all(|status| status.total.0 > 0 && status.hashed),
        "sizes are known"
    );
    downloads.resume_all().await.unwrap();
    let done = |overview: &DownloadsOverview| {
        overview.downloads.iter().filter(|status| status.state == DownloadState::Done).count() == 3
    };
    let ended = until(&downloads, "all but the paused one are done", done).await;
    let paused: Vec<Wanted> = (ended.downloads.iter())
        .filter(|status| status.state == DownloadState::Paused)
        .map(|status| status.wanted)
        .collect();
    assert_eq!(paused, [scene.part(1)], "what was paused one by one stays paused");
    let paused = ended.downloads.iter().find(|status| status.state == DownloadState::Paused).unwrap();
    assert_eq!((paused.done.0, ended.queue), (0, Default::default()));
    let path = ended.downloads[0].path.clone();
    let cached = Model::open(&path).unwrap();
    assert!(cached.source.bytes(pool_models::TensorName::Layer(2, pool_models::LayerTensor::Down)).is_ok());
    assert!(cached.source.bytes(pool_models::TensorName::Layer(1, pool_models::LayerTensor::Down)).is_err());

    // What was done is done after a restart too, without a question to anybody.
    let id = paused.id;
    downloads.stop().await;
    scene.server.forget();
    let downloads = start(&scene.cache);
    let again = until(&downloads, "the queue is there", |overview| overview.downloads.len() == 4).await;
    assert!(done(&again) && scene.server.seen().is_empty());
    let paused = again.downloads.iter().find(|status| status.wanted == scene.part(1)).unwrap();
    assert_eq!(paused.state, DownloadState::Paused);
    assert_ne!((paused.id, downloads.watch().borrow().downloads.len()), (id, 0));
    downloads.resume(paused.id).await.unwrap();
    assert_eq!(downloads.ended(paused.id).await.unwrap().state, DownloadState::Done);
    let all = shard(&scene.manifest, 0, 4);
    drop(cached);
    assert_same(&Model::open(scene.folder.path()).unwrap(), &Model::open(&path).unwrap(), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_in_the_list_once_and_adding_it_again_wakes_nothing_that_was_paused() {
    let scene = scene(501).await;
    let downloads = scene.start_paused();
    let empty = Server::start(&[]).await;
    let first = downloads.add(download(&scene.manifest, scene.part(0), &[&empty])).await.unwrap();
    downloads.pause(first).await.unwrap();
    downloads.resume_all().await.unwrap();
    let again = downloads.add(download(&scene.manifest, scene.part(0), &[&scene.server])).await.unwrap();
    assert_eq!(again, first);
    let list = downloads.watch().borrow().downloads.clone();
    assert_eq!(list.iter().map(|status| status.state).collect::<Vec<_>>(), [DownloadState::Paused]);
    downloads.resume(first).await.unwrap();
    assert_eq!(downloads.ended(first).await.unwrap().state, DownloadState::Done, "from the host that was named last");
    assert!(empty.seen().is_empty());

    // Cancelled once, it is nobody's any more: neither in the list, nor assigned, nor in the queue.
    downloads.cancel(first).await.unwrap();
    let [model] = scene.cache.list().unwrap().try_into().unwrap();
    assert_eq!(model.assigned, []);
    downloads.stop().await;
    let downloads = start(&scene.cache);
    let other = downloads.add(download(&scene.manifest, scene.part(1), &[&scene.server])).await.unwrap();
    assert_eq!(downloads.watch().borrow().downloads.len(), 1, "what was cancelled does not come back");
    downloads.ended(other).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_given_other_layers_forgets_the_ones_it_was_to_fetch() {
    let scene = scene(502).await;
    let downloads = scene.start_paused();
    for layer in 0..3 {
        downloads.add(download(&scene.manifest, scene.part(layer), &[&scene.server])).await.unwrap();
    }
    downloads.stop().await;
    let downloads = scene.start_paused();
    downloads.unassign_others(scene.manifest.hash(), scene.part(1)).await.unwrap();
    let left = parts(&downloads.watch().borrow());
    assert_eq!(left, [(scene.part(1), 0)]);
    let [model] = scene.cache.list().unwrap().try_into().unwrap();
    assert_eq!(model.assigned, [scene.part(1)]);
    downloads.stop().await;
    let downloads = start(&scene.cache);
    let done = |overview: &DownloadsOverview| overview.downloads.iter().all(|status| status.has_ended());
    let ended = until(&downloads, "it is done", |overview| overview.downloads.len() == 1 && done(overview)).await;
    assert_eq!(parts(&ended), left, "and the queue says so too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_queue_is_set_aside_and_said() {
    let scene = scene(503).await;
    let path = scene.root.path().join("queue.json");
    for (number, broken) in ["{", "{\"version\":9,\"downloads\":[]}"].into_iter().enumerate() {
        std::fs::write(&path, broken).unwrap();
        let downloads = start(&scene.cache);
        let overview = until(&downloads, "it is said", |overview| overview.queue.set_aside.is_some()).await;
        let aside = overview.queue.set_aside.unwrap();
        assert_eq!(std::fs::read_to_string(&aside.path).unwrap(), broken, "it is kept as it was");
        assert_eq!(aside.path, scene.root.path().join(format!("queue.broken{}.json", number + 1)));
        assert!(aside.reason.starts_with("the queue "), "{}", aside.reason);
        let id = downloads.add(download(&scene.manifest, scene.part(0), &[&scene.server])).await.unwrap();
        assert_eq!(downloads.ended(id).await.unwrap().state, DownloadState::Done);
        downloads.stop().await;
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"done\":true"), "a new one has begun");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_whose_manifest_broke_is_said_and_mended_by_adding_it_again() {
    let scene = scene(504).await;
    let downloads = scene.start_paused();
    downloads.add(download(&scene.manifest, scene.part(0), &[&scene.server])).await.unwrap();
    downloads.stop().await;
    let manifest = scene.cache.model_path(scene.manifest.hash()).join("manifest.json");
    std::fs::write(manifest, "{").unwrap();
    // Through two restarts: it is not forgotten.
    for _ in 0..2 {
        let downloads = start(&scene.cache);
        let overview = until(&downloads, "it is said", |overview| !overview.stranded.is_empty()).await;
        let [stranded] = overview.stranded.try_into().unwrap();
        assert_eq!((stranded.manifest, stranded.wanted), (scene.manifest.hash(), scene.part(0)));
        assert!(stranded.reason.contains("manifest.json"), "{}", stranded.reason);
        downloads.stop().await;
    }
    let downloads = start(&scene.cache);
    let id = downloads.add(download(&scene.manifest, scene.part(0), &[&scene.server])).await.unwrap();
    assert_eq!(downloads.ended(id).await.unwrap().state, DownloadState::Done);
    assert!(downloads.watch().borrow().stranded.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_whose_obstacle_passes_goes_on_by_itself() {
    let scene = scene(507).await;
    let downloads = scene.start_paused();
    downloads.add(download(&scene.manifest, scene.part(0), &[&scene.server])).await.unwrap();
    downloads.stop().await;
    let manifest = scene.cache.model_path(scene.manifest.hash()).join("manifest.json");
    let right = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, "{").unwrap();
    let downloads = start(&scene.cache);
    until(&downloads, "it is said", |overview| !overview.stranded.is_empty()).await;
    std::fs::write(&manifest, right).unwrap();
    let done = |overview: &DownloadsOverview| {
        overview.stranded.is_empty() && overview.downloads.iter().any(|status| status.state == DownloadState::Done)
    };
    until(&downloads, "nobody had to add it again", done).await;
    downloads.stop().await;
    let kept = std::fs::read_to_string(scene.root.path().join("queue.json")).unwrap();
    assert!(kept.contains("\"done\":true"), "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_keeps_the_queue_and_another_takes_it_over() {
    let scene = scene(505).await;
    let first = scene.start_paused();
    // The queue is written when this is answered: the first one keeps it.
    first.add(download(&scene.manifest, scene.part(0), &[&scene.server])).await.unwrap();
    let second = start(&scene.cache);
    until(&second, "it is said", |overview| overview.queue.problem.is_some()).await;
    let id = second.add(download(&scene.manifest, scene.part(1), &[&scene.server])).await.unwrap();
    assert_eq!(second.ended(id).await.unwrap().state, DownloadState::Done, "it downloads all the same");
    first.stop().await;
    let all = |overview: &DownloadsOverview| {
        overview.downloads.len() == 2 && overview.downloads.iter().all(|status| status.state == DownloadState::Done)
    };
    let overview = until(&second, "what the first one left is done", all).await;
    assert_eq!(overview.queue.problem, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owners_pause_is_kept_even_if_the_program_is_killed_right_after() {
    let scene = scene(506).await;
    let downloads = start(&scene.cache);
    scene.server.behave(|conduct| conduct.throttle = Some(100_000));
    let id = downloads.add(download(&scene.manifest, scene.part(0), &[&scene.server])).await.unwrap();
    downloads.pause(id).await.unwrap();
    // What is on the disk the moment the command is answered is all that a kill leaves.
    let kept = std::fs::read_to_string(scene.root.path().join("queue.json")).unwrap();
    assert!(kept.contains("\"paused\":true"), "{kept}");
    downloads.resume(id).await.unwrap();
    let kept = std::fs::read_to_string(scene.root.path().join("queue.json")).unwrap();
    assert!(kept.contains("\"paused\":false"), "{kept}");
    downloads.stop().await;
    assert!(matches!(downloads.pause(id).await, Err(DownloadError::Stopped)));
}
