//! Hosts that misbehave, one way at a time.

use std::{path::Path, time::Duration};

use pool_models::{AccessToken, Cache, Download, DownloadState, DownloadStatus, Manifest, Model, Wanted};

use crate::{
    assert_same, download, fetch, fetched, mirrors,
    models::{self, Files, PIECE, manifest, shard, single},
    server::{Conduct, Server},
    start, until,
};

/// A model, its server, and an empty cache.
struct Scene {
    files: Files,
    folder: tempfile::TempDir,
    manifest: Manifest,
    server: Server,
    root: tempfile::TempDir,
    cache: Cache,
}

impl Scene {
    async fn new(seed: u64, change: impl FnOnce(&mut Conduct)) -> Self {
        let files = single(seed);
        let (folder, manifest) = manifest(&files);
        let server = Server::start(&files).await;
        server.behave(change);
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        Self { files, folder, manifest, server, root, cache }
    }

    fn wanted(&self) -> Wanted {
        shard(&self.manifest, 0, 2)
    }

    fn host(&self) -> String {
        self.server.address().to_string()
    }

    async fn succeeds(&self) -> DownloadStatus {
        let ended = fetched(&self.cache, &self.manifest, self.wanted(), &[&self.server]).await;
        self.is_right(&ended.path);
        ended
    }

    fn is_right(&self, path: &Path) {
        let original = Model::open(self.folder.path()).unwrap();
        assert_same(&original, &Model::open(path).unwrap(), self.wanted());
    }

    /// Fails for good, in one sentence.
    async fn fails(&self) -> String {
        let ended = fetch(&self.cache, &self.manifest, self.wanted(), &[&self.server]).await;
        assert_eq!(ended.state, DownloadState::Failed, "{ended}");
        let message = ended.message.unwrap();
        assert!(!message.contains('\n') && !message.contains("secret") && !message.contains("://"), "{message}");
        message
    }

    /// What went over the line beyond what was needed.
    fn wasted(&self) -> u64 {
        self.server.sent("").saturating_sub(needed(&self.manifest, self.wanted()))
    }
}

fn needed(manifest: &Manifest, wanted: Wanted) -> u64 {
    manifest.items(wanted).iter().map(|item| item.content.length).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_in_the_middle_of_a_piece_cost_that_piece() {
    let scene = Scene::new(30, |conduct| conduct.cut = Some((u64::from(PIECE) * 5 / 2, 5))).await;
    scene.succeeds().await;
    let wasted = scene.wasted();
    assert!(wasted > 0, "the server did cut");
    assert!(wasted <= 5 * u64::from(PIECE), "{wasted} bytes came twice after five cuts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_falls_silent_is_given_up_and_another_one_goes_on() {
    let scene = Scene::new(31, |conduct| conduct.stall = Some((100_000, 2))).await;
    let began = std::time::Instant::now();
    scene.succeeds().await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(700), "it was waited for, {took:?}");
    assert!(scene.wasted() <= 2 * u64::from(PIECE), "a stall costs the piece it stalled in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_host_is_no_broken_host() {
    let scene = Scene::new(32, |conduct| conduct.throttle = Some(600_000)).await;
    scene.succeeds().await;
    assert_eq!(scene.wasted(), 0, "nobody hung up on it");
    assert!(scene.server.most_open() <= 4, "{} answers were under way at once", scene.server.most_open());
    assert!(scene.server.most_open() >= 2, "one connection alone would be slow");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_range_than_was_asked_for_is_refused() {
    let scene = Scene::new(33, |conduct| conduct.wrong_start = 512).await;
    let message = scene.fails().await;
    let begins = format!("{} sends another part of model.safetensors than was asked for (bytes ", scene.host());
    assert!(message.starts_with(&begins) && message.ends_with("); choose another host"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_length_is_refused() {
    let scene = Scene::new(34, |conduct| conduct.wrong_total = 1000).await;
    let length = scene.manifest.files[0].length;
    let expected = format!(
        "model.safetensors on {} is {} bytes long where {length} are right; it is another version, choose another host",
        scene.host(),
        length + 1000
    );
    assert_eq!(scene.fails().await, expected);
    assert_eq!(scene.server.seen().len(), 1, "once is enough to know");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_sends_less_than_asked_and_says_so_is_asked_for_the_rest() {
    let scene = Scene::new(35, |conduct| conduct.most = Some(100_000)).await;
    scene.succeeds().await;

    let scene = Scene::new(50, |conduct| conduct.most = Some(1000)).await;
    let message = scene.fails().await;
    assert!(message.contains("(only 1000 bytes)"), "a piece never comes that way: {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_ignores_ranges_sends_its_file_once() {
    let scene = Scene::new(36, |conduct| conduct.ignore_ranges = true).await;
    scene.succeeds().await;
    let file = scene.manifest.files[0].length;
    let sent = scene.server.sent("model.safetensors");
    assert!(sent <= file, "{sent} bytes of a file of {file} came");

    // Where another host can do better, it is asked.
    let better = Server::start(&scene.files).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    scene.server.forget();
    fetched(&cache, &scene.manifest, shard(&scene.manifest, 2, 3), &[&better, &scene.server]).await;
    assert!(better.sent("") > 0, "the better host is asked");
    let asked = scene.server.seen().len();
    assert!(asked <= 1, "a host that was seen to ignore ranges is asked no more: {asked} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_followed_without_the_token() {
    let scene = Scene::new(37, |_| ()).await;
    let other = Server::start(&scene.files).await;
    scene.server.behave(|conduct| conduct.redirect = Some(other.url()));
    let downloads = start(&scene.cache);
    let mut wish = download(&scene.manifest, scene.wanted(), &[&scene.server]);
    wish.mirrors = wish.mirrors.into_iter().map(|m| m.with_token(AccessToken::new("hf_secret").unwrap())).collect();
    let id = downloads.add(wish).await.unwrap();
    let ended = downloads.ended(id).await.unwrap();
    assert_eq!(ended.state, DownloadState::Done, "{ended}");
    scene.is_right(&ended.path);
    let asked = scene.server.seen();
    assert!(asked.iter().all(|seen| seen.authorization.as_deref() == Some("Bearer hf_secret")), "{asked:?}");
    let led_to = other.seen();
    assert!(!led_to.is_empty() && led_to.iter().all(|seen| seen.authorization.is_none()), "{led_to:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_without_end_are_not_followed_without_end() {
    let scene = Scene::new(38, |conduct| conduct.redirect_loop = true).await;
    let expected = format!("{} redirects too often on the way to model.safetensors; choose another host", scene.host());
    assert_eq!(scene.fails().await, expected);
    assert!(scene.server.seen().len() <= 6 * 4, "{} requests", scene.server.seen().len());

    let scene = Scene::new(39, |conduct| conduct.redirect = Some("ftp://elsewhere".to_owned())).await;
    let message = scene.fails().await;
    assert!(
        message
            .ends_with("redirects model.safetensors to a place that is not a secure web address; choose another host"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_between_pieces_is_noticed_and_said() {
    let scene = Scene::new(40, |conduct| {
        conduct.change_after = Some(2);
        conduct.cut = Some((u64::from(PIECE) * 3, 20));
    })
    .await;
    let expected = format!(
        "the file model.safetensors on {} has changed since the download began; start the download anew, or choose another host",
        scene.host()
    );
    assert_eq!(scene.fails().await, expected);

    // What came before is kept, and another host has the rest.
    let other = Server::start(&scene.files).await;
    let ended = fetched(&scene.cache, &scene.manifest, scene.wanted(), &[&scene.server, &other]).await;
    scene.is_right(&ended.path);
    let rest = other.sent("");
    assert!(rest < needed(&scene.manifest, scene.wanted()), "{rest} bytes came from the other host");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_without_a_tag_is_caught_by_its_hashes() {
    let scene = Scene::new(41, |conduct| {
        conduct.no_etag = true;
        conduct.change_after = Some(0);
    })
    .await;
    let message = scene.fails().await;
    let begins = format!("{} sends wrong bytes for `", scene.host());
    assert!(message.starts_with(&begins), "{message}");
}

/// A byte in the middle of the second layer's largest tensor.
fn bad_byte(manifest: &Manifest) -> (String, std::ops::Range<u64>) {
    let tensor = manifest.tensors.iter().find(|t| t.name == "model.layers.1.mlp.down_proj.weight").unwrap();
    let at = tensor.offset + tensor.content.length / 2;
    ("model.safetensors".to_owned(), at..at + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_from_one_host_are_fetched_from_another() {
    let scene = Scene::new(42, |_| ()).await;
    let whole = ("model.safetensors".to_owned(), 0..scene.manifest.files[0].length);
    scene.server.behave(|conduct| conduct.corrupt = Some(whole));
    let honest = Server::start(&scene.files).await;
    let ended = fetched(&scene.cache, &scene.manifest, scene.wanted(), &[&scene.server, &honest]).await;
    scene.is_right(&ended.path);
    assert!(scene.server.sent("") > 0, "the lying host was asked");
    assert!(honest.sent("") >= needed(&scene.manifest, scene.wanted()), "and everything came from the honest one");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_once_may_be_the_lines_fault_and_twice_are_the_hosts() {
    let scene = Scene::new(43, |_| ()).await;
    scene.server.behave(|conduct| {
        conduct.corrupt = Some(bad_byte(&scene.manifest));
        conduct.corrupt_times = Some(1);
    });
    scene.succeeds().await;

    let scene = Scene::new(44, |_| ()).await;
    scene.server.behave(|conduct| conduct.corrupt = Some(bad_byte(&scene.manifest)));
    let expected = format!(
        "{} sends wrong bytes for `model.layers.1.mlp.down_proj.weight`; they were thrown away, choose another host or ask the pool's owner for a new manifest",
        scene.host()
    );
    assert_eq!(scene.fails().await, expected);
    let verified = scene.cache.verify(scene.manifest.hash()).unwrap();
    assert!(verified.broken.is_empty(), "no wrong byte reached the disk: {verified:?}");

    // The host is mended: the same download goes on where it was.
    scene.server.behave(|conduct| conduct.corrupt = None);
    scene.server.forget();
    scene.succeeds().await;
    assert!(scene.server.sent("") < needed(&scene.manifest, scene.wanted()) / 2, "most was there already");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_the_file_is_left_for_one_that_has_it() {
    let scene = Scene::new(45, |_| ()).await;
    let empty = Server::start(&[]).await;
    let ended = fetched(&scene.cache, &scene.manifest, scene.wanted(), &[&empty, &scene.server]).await;
    scene.is_right(&ended.path);

    let root = tempfile::tempdir().unwrap();
    let ended = fetch(&Cache::open(root.path()).unwrap(), &scene.manifest, scene.wanted(), &[&empty]).await;
    let expected = format!(
        "{} has no file model.safetensors; check the model's name and revision, or choose another host",
        empty.address()
    );
    assert_eq!((ended.state, ended.message), (DownloadState::Failed, Some(expected)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_licence_that_was_not_accepted_is_said() {
    let scene = Scene::new(46, |conduct| conduct.refuse = Some((403, 100, None))).await;
    let expected = format!(
        "{} does not give model.safetensors to us (status 403); accept the model's licence there and set an access token",
        scene.host()
    );
    assert_eq!(scene.fails().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_host_is_left_alone_for_as_long_as_it_asks() {
    for status in [429, 503] {
        let scene = Scene::new(47, |conduct| conduct.refuse = Some((status, 1, Some(1)))).await;
        let began = std::time::Instant::now();
        let downloads = start(&scene.cache);
        let id = downloads.add(download(&scene.manifest, scene.wanted(), &[&scene.server])).await.unwrap();
        let waiting = until(&downloads, "it waits", |status| status.state == DownloadState::Waiting).await;
        let expected = format!(
            "{} is busy (status {status}) and wants us to wait a second; the download goes on by itself",
            scene.host()
        );
        assert_eq!(waiting.message, Some(expected));
        let ended = downloads.ended(id).await.unwrap();
        assert_eq!(ended.state, DownloadState::Done, "{ended}");
        assert!(began.elapsed() >= Duration::from_secs(1), "it asked for a second");
        scene.is_right(&ended.path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_down_is_waited_for() {
    let scene = Scene::new(48, |_| ()).await;
    let (address, host) = (scene.server.address(), scene.host());
    let wish: Download =
        Download { mirrors: mirrors(&[&scene.server]), ..download(&scene.manifest, scene.wanted(), &[]) };
    let Scene { files, folder, manifest, server, root: _root, cache } = scene;
    drop(server);
    let downloads = start(&cache);
    let id = downloads.add(wish).await.unwrap();
    let waiting = until(&downloads, "it waits", |status| status.state == DownloadState::Waiting).await;
    let expected = format!("{host} cannot be reached; the download goes on by itself when it is back");
    assert_eq!(waiting.message, Some(expected));
    let back = Server::start_at(address, &files).await;
    let ended = downloads.ended(id).await.unwrap();
    assert_eq!(ended.state, DownloadState::Done, "{ended}");
    assert!(back.sent("") > 0);
    let original = Model::open(models::write(folder.path(), &files)).unwrap();
    assert_same(&original, &Model::open(&ended.path).unwrap(), shard(&manifest, 0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_a_host_pass() {
    let scene = Scene::new(49, |conduct| conduct.refuse = Some((500, 3, None))).await;
    scene.succeeds().await;
    let nothing = scene.server.seen().iter().filter(|seen| seen.sent == 0).count();
    assert_eq!(nothing, 3, "three requests met a fault, and what they asked for was asked for again");
    assert_eq!(scene.wasted(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_asks_for_no_pause_gets_one_all_the_same() {
    let scene = Scene::new(51, |conduct| conduct.refuse = Some((503, 1_000_000, Some(0)))).await;
    let downloads = start(&scene.cache);
    downloads.add(download(&scene.manifest, scene.wanted(), &[&scene.server])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Pauses grow from 20 ms to 200 ms, so two seconds have room for some fourteen.
    let asked = scene.server.seen().len();
    assert!((4..=20).contains(&asked), "it was asked {asked} times in two seconds");
    downloads.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cuts_every_answer_after_some_pieces_is_no_failing_host() {
    let scene = Scene::new(52, |conduct| conduct.cut = Some((u64::from(PIECE) * 5 / 4, 1000))).await;
    let long = Duration::from_secs(30);
    let options =
        pool_models::DownloadOptions { pause: Duration::from_millis(50), longest_pause: long, ..crate::options() };
    let downloads = pool_models::Downloads::start(scene.cache.clone(), options, crate::plenty()).unwrap();
    let began = std::time::Instant::now();
    let id = downloads.add(download(&scene.manifest, scene.wanted(), &[&scene.server])).await.unwrap();
    let ended = downloads.ended(id).await.unwrap();
    assert_eq!(ended.state, DownloadState::Done, "{ended}");
    scene.is_right(&ended.path);
    let (took, cuts) = (began.elapsed(), scene.server.seen().len());
    assert!(cuts > 20, "it was cut {cuts} times");
    assert!(took < Duration::from_secs(25), "each answer brought something, so no pause grew: {took:?}");
}
