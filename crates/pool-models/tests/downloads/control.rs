//! What the owner can do with the list: pause, resume, cancel, order, cap.

use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use pool_models::{
    Cache, Download, DownloadError, DownloadState, Downloads, Manifest, Model, Plan, SignedManifest, Wanted,
};
use pool_types::ByteSize;

use crate::{
    assert_same, download,
    models::{manifest, shard, single},
    server::Server,
    start, until, until_kept,
};

struct Slow {
    folder: tempfile::TempDir,
    manifest: Manifest,
    server: Server,
}

async fn slow(seed: u64) -> Slow {
    let files = single(seed);
    let (folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    server.behave(|conduct| conduct.throttle = Some(500_000));
    Slow { folder, manifest, server }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_download_stands_still_and_goes_on_where_it_was() {
    let Slow { folder, manifest, server } = slow(300).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let downloads = start(&cache);
    let wanted = shard(&manifest, 0, 2);
    let id = downloads.add(download(&manifest, wanted, &[&server])).await.unwrap();
    let running = until(&downloads, "it has a speed", |s| s.speed.0 > 0 && s.left.is_some() && s.done.0 > 0).await;
    assert_eq!(running.state, DownloadState::Downloading);
    assert!(running.to_string().contains("/s, "), "{running}");
    until_kept(&cache, 0).await;
    downloads.pause(id).await.unwrap();
    let paused = until(&downloads, "it is paused", |s| s.state == DownloadState::Paused).await;
    assert!(paused.done.0 > 0 && paused.speed.0 == 0, "{paused}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (before, sent) = (server.seen().len(), server.sent(""));
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(server.seen().len(), before, "nobody asks while it is paused");
    assert!(server.sent("") - sent < 300_000, "connections were closed");
    server.behave(|conduct| conduct.throttle = None);
    server.forget();
    downloads.resume(id).await.unwrap();
    let ended = downloads.ended(id).await.unwrap();
    assert_eq!(ended.state, DownloadState::Done, "{ended}");
    assert!(server.sent("") < ended.total.0, "what was there was not fetched again");
    assert_same(&Model::open(folder.path()).unwrap(), &Model::open(&ended.path).unwrap(), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_counts_until_it_is_lost() {
    let Slow { folder: _folder, manifest, server } = slow(315).await;
    // A piece takes six seconds.
    server.behave(|conduct| conduct.throttle = Some(10_000));
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let downloads = start(&cache);
    let id = downloads.add(download(&manifest, shard(&manifest, 0, 2), &[&server])).await.unwrap();
    let kept = || cache.list().unwrap().first().map_or(0, |model| model.cached.0);
    until(&downloads, "bytes come", |status| status.done.0 > kept() + 5_000).await;
    downloads.pause(id).await.unwrap();
    let paused = until(&downloads, "it is paused", |status| status.state == DownloadState::Paused).await;
    assert_eq!(paused.done.0, kept(), "what was in flight is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_can_be_paused_at_once_and_cancelled_one_by_one() {
    let Slow { folder: _folder, manifest, server } = slow(301).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let downloads = start(&cache);
    downloads.pause_all().await.unwrap();
    let first = downloads.add(download(&manifest, shard(&manifest, 0, 1), &[&server])).await.unwrap();
    let second = downloads.add(download(&manifest, shard(&manifest, 1, 2), &[&server])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let states: Vec<DownloadState> = downloads.watch().borrow().downloads.iter().map(|status| status.state).collect();
    assert_eq!(states, [DownloadState::Paused; 2], "those that are added later too");
    assert!(server.seen().is_empty());
    downloads.cancel(first).await.unwrap();
    assert!(matches!(downloads.ended(first).await, Err(DownloadError::Cancelled)));
    assert!(matches!(downloads.pause(first).await, Err(DownloadError::Unknown)));
    let [listed] = cache.list().unwrap().try_into().unwrap();
    assert_eq!(listed.assigned, [shard(&manifest, 1, 2)], "what was cancelled is no longer assigned");
    downloads.resume_all().await.unwrap();
    assert_eq!(downloads.ended(second).await.unwrap().state, DownloadState::Done);
    downloads.stop().await;
    assert!(matches!(downloads.resume_all().await, Err(DownloadError::Stopped)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_priority_goes_first() {
    let (one, two) = (slow(302).await, slow(303).await);
    let root = tempfile::tempdir().unwrap();
    let downloads = start(&Cache::open(root.path()).unwrap());
    let wish = |slow: &Slow, priority| Download {
        priority,
        ..download(&slow.manifest, shard(&slow.manifest, 0, 2), &[&slow.server])
    };
    // So slow that a request takes a quarter of a minute, and a piece three seconds.
    one.server.behave(|conduct| conduct.throttle = Some(20_000));
    two.server.behave(|conduct| conduct.throttle = None);
    let first = downloads.add(wish(&one, 0)).await.unwrap();
    until(&downloads, "every connection is taken", |_| one.server.most_open() == 4).await;
    let began = Instant::now();
    let urgent = downloads.add(wish(&two, 5)).await.unwrap();
    let ended = downloads.ended(urgent).await.unwrap();
    assert_eq!(ended.state, DownloadState::Done);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(9), "connections are let go of after a piece, not after a request: {took:?}");
    let list = downloads.watch().borrow().downloads.clone();
    let other = list.iter().find(|status| status.id == first).unwrap();
    assert!(!other.has_ended(), "the urgent one overtook it: {other}");
    assert_eq!(list.first().map(|status| status.id), Some(urgent), "the list is in the order of priority");
    one.server.behave(|conduct| conduct.throttle = None);
    downloads.pause(first).await.unwrap();
    downloads.resume(first).await.unwrap();
    assert_eq!(downloads.ended(first).await.unwrap().state, DownloadState::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_on_bandwidth_holds_and_can_be_lifted_while_running() {
    let Slow { folder: _folder, manifest, server } = slow(304).await;
    server.behave(|conduct| conduct.throttle = None);
    let root = tempfile::tempdir().unwrap();
    let downloads = start(&Cache::open(root.path()).unwrap());
    downloads.set_bandwidth(Some(ByteSize(1 << 20))).await.unwrap();
    let began = Instant::now();
    let id = downloads.add(download(&manifest, shard(&manifest, 0, 2), &[&server])).await.unwrap();
    let ended = downloads.ended(id).await.unwrap();
    let (took, expected) = (began.elapsed().as_secs_f64(), ended.total.0 as f64 / (1 << 20) as f64);
    assert_eq!(ended.state, DownloadState::Done);
    assert!(took > expected * 0.9, "{} at 1 MiB a second took {took} seconds", ended.total);

    downloads.set_bandwidth(Some(ByteSize(20_000))).await.unwrap();
    let began = Instant::now();
    let id = downloads.add(download(&manifest, shard(&manifest, 2, 4), &[&server])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!downloads.watch().borrow().downloads.iter().any(|status| status.id == id && status.has_ended()));
    downloads.set_bandwidth(None).await.unwrap();
    assert_eq!(downloads.ended(id).await.unwrap().state, DownloadState::Done);
    assert!(began.elapsed() < Duration::from_secs(20), "3 MB at 20 KB a second would have taken minutes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_needs_somebody_to_ask() {
    let Slow { folder: _folder, manifest, server: _server } = slow(305).await;
    let root = tempfile::tempdir().unwrap();
    let downloads = start(&Cache::open(root.path()).unwrap());
    let refused = downloads.add(download(&manifest, shard(&manifest, 0, 1), &[])).await;
    assert!(matches!(refused, Err(DownloadError::NoMirror)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pools_model_needs_its_owners_signature() {
    let Slow { folder: _folder, manifest, server } = slow(306).await;
    server.behave(|conduct| conduct.throttle = None);
    let key = PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap();
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let downloads = start(&cache);
    let wish =
        |signature, owner| Download { signature, owner, ..download(&manifest, shard(&manifest, 0, 1), &[&server]) };
    let sign = |hash: B256| key.sign_hash_sync(&hash).map(|signature| signature.as_bytes().to_vec());
    let signed = SignedManifest::sign(&manifest, 16_602, sign).unwrap();
    let unsigned = downloads.add(wish(None, Some(key.address()))).await;
    assert!(matches!(unsigned, Err(DownloadError::Manifest(_))), "{unsigned:?}");
    let strangers = downloads.add(wish(Some(signed.clone()), Some(Address::repeat_byte(1)))).await;
    assert!(matches!(strangers, Err(DownloadError::Manifest(_))), "{strangers:?}");
    assert!(server.seen().is_empty() && cache.list().unwrap().is_empty(), "not a byte was fetched for either");
    let id = downloads.add(wish(Some(signed), Some(key.address()))).await.unwrap();
    assert_eq!(downloads.ended(id).await.unwrap().state, DownloadState::Done);
    let [listed] = cache.list().unwrap().try_into().unwrap();
    assert_eq!((listed.signer, listed.hashed), (Some(key.address()), true), "the list says whose word it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_shards_of_one_list_fetch_what_both_need_once() {
    let Slow { folder, manifest, server } = slow(307).await;
    server.behave(|conduct| conduct.throttle = Some(2_000_000));
    let root = tempfile::tempdir().unwrap();
    let downloads = start(&Cache::open(root.path()).unwrap());
    let (one, two) = (shard(&manifest, 0, 3), shard(&manifest, 1, 4));
    let first = downloads.add(download(&manifest, one, &[&server])).await.unwrap();
    let second = downloads.add(download(&manifest, two, &[&server])).await.unwrap();
    let ended = [downloads.ended(first).await.unwrap(), downloads.ended(second).await.unwrap()];
    assert!(ended.iter().all(|status| status.state == DownloadState::Done), "{ended:?}");
    let both = shard(&manifest, 0, 4);
    assert_same(&Model::open(folder.path()).unwrap(), &Model::open(&ended[0].path).unwrap(), both);
    let needed: u64 = manifest.items(both).iter().map(|item| item.content.length).sum();
    let served = server.sent("");
    assert!(served as f64 <= needed as f64 * 1.02, "{served} bytes came where {needed} were needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_download_has_let_go_of_the_disk_when_the_command_is_answered() {
    let Slow { folder: _folder, manifest, server } = slow(308).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let downloads = start(&cache);
    let id = downloads.add(download(&manifest, shard(&manifest, 0, 2), &[&server])).await.unwrap();
    for _ in 0..5 {
        until(&downloads, "bytes come", |status| status.state == DownloadState::Downloading).await;
        downloads.pause(id).await.unwrap();
        let parts = std::fs::read_dir(root.path().join("partial")).unwrap().map(|entry| entry.unwrap().path());
        for part in parts.filter(|path| path.extension().is_some_and(|extension| extension == "part")) {
            std::fs::File::open(&part).unwrap().try_lock().expect("nobody writes it any more");
        }
        let [model] = cache.list().unwrap().try_into().unwrap();
        assert!(!model.in_use, "nor is its model in use");
        downloads.resume(id).await.unwrap();
    }
    server.behave(|conduct| conduct.throttle = None);
    assert_eq!(downloads.ended(id).await.unwrap().state, DownloadState::Done);
    assert!(matches!(downloads.pause(id).await, Err(DownloadError::Ended)), "there is nothing left to pause");
    downloads.resume(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_moved_to_the_front_overtakes_what_came_before() {
    let (one, two) = (slow(309).await, slow(310).await);
    let root = tempfile::tempdir().unwrap();
    let downloads = start(&Cache::open(root.path()).unwrap());
    one.server.behave(|conduct| conduct.throttle = Some(30_000));
    two.server.behave(|conduct| conduct.throttle = None);
    let first = downloads.add(download(&one.manifest, shard(&one.manifest, 0, 2), &[&one.server])).await.unwrap();
    until(&downloads, "every connection is taken", |_| one.server.most_open() == 4).await;
    let second = downloads.add(download(&two.manifest, shard(&two.manifest, 0, 2), &[&two.server])).await.unwrap();
    downloads.move_to_front(second).await.unwrap();
    let order: Vec<_> = downloads.watch().borrow().downloads.iter().map(|status| status.id).collect();
    assert_eq!(order, [second, first], "the list says so when the command is answered");
    assert_eq!(downloads.ended(second).await.unwrap().state, DownloadState::Done);
    let list = downloads.watch().borrow().downloads.clone();
    assert!(!list.iter().find(|status| status.id == first).unwrap().has_ended(), "the first one still waits its turn");
    assert!(matches!(downloads.move_to_front(pool_models::DownloadId(99)).await, Err(DownloadError::Unknown)));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_served_takes_no_connection_from_anybody() {
    let one = slow(311).await;
    let two = slow(312).await;
    let root = tempfile::tempdir().unwrap();
    let downloads = start(&Cache::open(root.path()).unwrap());
    one.server.behave(|conduct| conduct.throttle = Some(300_000));
    // The urgent one's host wants to be left alone for a minute.
    two.server.behave(|conduct| conduct.refuse = Some((503, 1000, Some(60))));
    let urgent = Download { priority: 5, ..download(&two.manifest, shard(&two.manifest, 0, 2), &[&two.server]) };
    downloads.add(urgent).await.unwrap();
    until(&downloads, "the urgent one waits", |status| status.state == DownloadState::Waiting).await;
    let first = downloads.add(download(&one.manifest, shard(&one.manifest, 0, 2), &[&one.server])).await.unwrap();
    assert_eq!(downloads.ended(first).await.unwrap().state, DownloadState::Done);
    let requests = one.server.seen().len();
    let planned = Plan::new(&one.manifest, shard(&one.manifest, 0, 2), &|_, _| false).runs.len();
    assert!(
        requests <= planned + 2,
        "{requests} requests for {planned} runs: its connections were taken away again and again for nobody"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_verified_and_what_was_broken_is_fetched_again() {
    let Slow { folder, manifest, server } = slow(313).await;
    server.behave(|conduct| conduct.throttle = None);
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let downloads = start(&cache);
    let wanted = shard(&manifest, 0, 2);
    let id = downloads.add(download(&manifest, wanted, &[&server])).await.unwrap();
    downloads.ended(id).await.unwrap();
    let right = downloads.verify(manifest.hash()).await.unwrap();
    assert!(right.verified.broken.is_empty() && right.fetching.is_empty() && right.verified.whole > 0, "{right:?}");

    let tensor = manifest.tensors.iter().find(|t| t.name == "model.layers.1.mlp.down_proj.weight").unwrap();
    let name = tensor.content.key.to_string().trim_start_matches("0x").to_owned();
    let object = root.path().join("objects").join(&name[..2]).join(&name);
    let mut bytes = std::fs::read(&object).unwrap();
    bytes[70_000] ^= 1;
    std::fs::write(&object, &bytes).unwrap();
    server.forget();
    // After a restart too the list knows whom to ask.
    downloads.stop().await;
    let downloads = start(&cache);
    let check = downloads.verify(manifest.hash()).await.unwrap();
    assert_eq!(check.verified.broken, ["model.layers.1.mlp.down_proj.weight"]);
    let [id] = check.fetching.try_into().unwrap();
    assert_eq!(downloads.ended(id).await.unwrap().state, DownloadState::Done);
    assert_eq!(server.sent(""), tensor.content.length, "that tensor and no other");
    let path = cache.model_path(manifest.hash());
    assert_same(&Model::open(folder.path()).unwrap(), &Model::open(path).unwrap(), wanted);
    assert!(matches!(downloads.verify(B256::ZERO).await, Err(DownloadError::Cache(_))), "there is no such model");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_a_shard_serves_is_not_removed_and_one_that_comes_is() {
    let Slow { folder: _folder, manifest, server } = slow(314).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let downloads = start(&cache);
    let id = downloads.add(download(&manifest, shard(&manifest, 0, 2), &[&server])).await.unwrap();
    until(&downloads, "some of it comes", |status| status.done.0 > 100_000).await;
    let shard_process = Model::open(cache.model_path(manifest.hash())).unwrap();
    let refused = downloads.remove(manifest.hash()).await.unwrap_err();
    assert_eq!(refused.to_string(), "Tiny is in use; stop serving or downloading it before removing it");
    server.behave(|conduct| conduct.throttle = None);
    assert_eq!(downloads.ended(id).await.unwrap().state, DownloadState::Done, "its download went on");
    drop(shard_process);

    server.behave(|conduct| conduct.throttle = Some(200_000));
    let other = downloads.add(download(&manifest, shard(&manifest, 2, 4), &[&server])).await.unwrap();
    until(&downloads, "more of it comes", |status| status.id == other && status.state == DownloadState::Downloading)
        .await;
    let freed = downloads.remove(manifest.hash()).await.unwrap();
    assert!(freed.0 > 3_000_000, "{freed}");
    assert!(downloads.watch().borrow().downloads.is_empty(), "and its downloads have ended");
    assert!(cache.list().unwrap().is_empty());
    assert_eq!(cache.used_bytes().unwrap(), 0);
    assert!(matches!(downloads.ended(other).await, Err(DownloadError::Cancelled)));
    assert!(matches!(downloads.remove(manifest.hash()).await, Err(DownloadError::Cache(_))), "it is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_another_program_tidies_is_waited_for() {
    let Slow { folder, manifest, server } = slow(315).await;
    server.behave(|conduct| conduct.throttle = None);
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let path = cache.add(&manifest, None).unwrap();
    // Looking whether a model is in use takes its lease for a moment; this one takes its time.
    let tidier = std::fs::File::create(path.join("hold")).unwrap();
    tidier.lock().unwrap();
    let downloads = start(&cache);
    let wanted = shard(&manifest, 0, 2);
    let id = downloads.add(download(&manifest, wanted, &[&server])).await.unwrap();
    let waiting = until(&downloads, "it waits", |status| status.state == DownloadState::Waiting).await;
    assert_eq!(
        waiting.message.as_deref(),
        Some("another program is tidying the model cache; the download goes on by itself when it is done")
    );
    drop(tidier);
    let ended = downloads.ended(id).await.unwrap();
    assert_eq!(ended.state, DownloadState::Done, "it tried again by itself: {ended}");
    assert_same(&Model::open(folder.path()).unwrap(), &Model::open(&ended.path).unwrap(), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_into_the_list_is_not_assigned_either() {
    let Slow { folder: _folder, manifest, server } = slow(316).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let downloads = start(&cache);
    downloads.pause_all().await.unwrap();
    let flags = |bits: usize| [1, 2, 4, 8].map(|bit| bits & bit != 0);
    let ranges = (0..4u32).flat_map(|start| (start + 1..=4).map(move |end| (start, end)));
    let parts = ranges.flat_map(|(start, end)| {
        let layers = shard(&manifest, start, end).layers;
        (0..16).map(move |bits| {
            let [entry, exit, words, rest] = flags(bits);
            Wanted { layers, entry, exit, words, rest }
        })
    });
    let mut again = manifest.clone();
    again.revision = "2".to_owned();
    let wishes: Vec<_> = parts.flat_map(|part| [(&manifest, part), (&again, part)]).take(Downloads::MOST).collect();
    assert_eq!(wishes.len(), Downloads::MOST);
    for (manifest, part) in wishes {
        downloads.add(download(manifest, part, &[&server])).await.unwrap();
    }
    let one_more = Wanted::words();
    let refused = downloads.add(download(&manifest, one_more, &[&server])).await;
    assert!(matches!(refused, Err(DownloadError::TooMany(256))), "{refused:?}");
    let model = cache.list().unwrap().into_iter().find(|model| model.hash == manifest.hash()).unwrap();
    assert!(!model.assigned.contains(&one_more), "nothing keeps bytes that nobody fetches");
}
