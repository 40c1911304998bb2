//! The disk: budgets, full disks, and what is evicted in which order.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use pool_models::{
    Budget, Cache, CacheError, DiskTotals, DownloadOptions, DownloadState, Downloads, Manifest, Model, NoRoom,
    TensorError, TensorName, Wanted,
};
use pool_types::ByteSize;

use crate::{
    assert_same, download, fetched, loads,
    models::{self, Files, manifest, shard, single},
    options, plenty,
    server::Server,
    until,
};

static NOW: AtomicU64 = AtomicU64::new(1_800_000_000);

/// A clock that only goes when told.
fn clock() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.load(Ordering::Relaxed))
}

/// A model that was made and taken over whole, and used at that time.
fn cached(cache: &Cache, seed: u64, used: u64) -> (tempfile::TempDir, Files, Manifest) {
    let files = single(seed);
    let (folder, manifest) = manifest(&files);
    NOW.store(used, Ordering::Relaxed);
    cache.import(&manifest, folder.path(), Wanted::everything(&manifest.config)).unwrap();
    (folder, files, manifest)
}

/// What is here of a model's weights: all these models have the same words and the same header.
fn here(cache: &Cache, manifest: &Manifest) -> u64 {
    let words = manifest.words.iter().map(|word| word.content.length);
    let shared: u64 = words.chain(manifest.files.iter().map(|file| file.header.length)).sum();
    cache
        .list()
        .unwrap()
        .into_iter()
        .find(|model| model.hash == manifest.hash())
        .map_or(0, |model| model.cached.0)
        .saturating_sub(shared)
}

fn most(bytes: u64) -> Budget {
    Budget { most: Some(ByteSize(bytes)), keep_free: ByteSize(0) }
}

#[test]
fn what_nobody_needs_goes_first_and_what_is_in_use_never() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open_with_clock(root.path(), clock).unwrap();
    let (_a, _, pinned) = cached(&cache, 200, 1_800_000_100);
    let (_b, _, old) = cached(&cache, 201, 1_800_000_200);
    let (_c, _, recent) = cached(&cache, 202, 1_800_000_300);
    let (_d, _, assigned) = cached(&cache, 203, 1_800_000_050);
    let (_e, _, served) = cached(&cache, 204, 1_800_000_010);
    cache.pin(pinned.hash(), true).unwrap();
    let part = shard(&assigned, 0, 1);
    cache.assign(assigned.hash(), part).unwrap();
    let shard_process = Model::open(cache.model_path(served.hash())).unwrap();
    let everything = cache.used_bytes().unwrap();
    let one = everything / 5;
    let space = plenty();
    let evict = |bytes: u64| cache.make_room(bytes, most(cache.used_bytes().unwrap()), space.as_ref());

    // An unfinished part of a model that is not assigned goes before anything whole, and before it what nobody names.
    let weights = |manifest: &Manifest| manifest.tensors.iter().map(|t| t.content.key).next().unwrap();
    let name = weights(&recent).to_string().trim_start_matches("0x").to_owned();
    let whole = root.path().join("objects").join(&name[..2]).join(&name);
    let part = root.path().join("partial").join(&name).with_extension("part");
    std::fs::rename(whole, &part).unwrap();
    let nobodys = root.path().join("objects/00").join("00".repeat(32));
    std::fs::create_dir_all(nobodys.parent().unwrap()).unwrap();
    std::fs::write(&nobodys, [1; 4096]).unwrap();
    evict(1).unwrap();
    assert!(!nobodys.exists() && part.exists(), "what no model names goes first of all");
    evict(1).unwrap();
    assert!(!part.exists(), "then what is not finished, of however recent a model");
    assert_eq!(here(&cache, &old), here(&cache, &pinned), "nothing whole has gone yet");
    let recently = here(&cache, &recent);
    evict(1).unwrap();
    assert!(here(&cache, &old) < one, "the least recently used unassigned model loses something first");
    assert_eq!(here(&cache, &recent), recently, "the more recent one has lost nothing yet");
    evict(one).unwrap();
    assert_eq!(here(&cache, &old), 0, "all of it goes before the next model is touched");
    evict(one / 2).unwrap();
    assert!(here(&cache, &recent) < one && here(&cache, &assigned) > one * 9 / 10, "then the next unassigned one");
    evict(one).unwrap();
    assert_eq!(here(&cache, &recent), 0);
    let model = Model::open(cache.model_path(assigned.hash())).unwrap();
    let gone = |layer| {
        let tensor = model.source.bytes(TensorName::Layer(layer, pool_models::LayerTensor::Down));
        matches!(tensor, Err(TensorError::NotDownloaded(_)))
    };
    let outside: Vec<bool> = (1..4).map(gone).collect();
    assert!(outside.contains(&true), "then what lies outside an assigned part, {outside:?}");
    assert!(!gone(0), "but never the part itself");
    drop(model);

    // Now only what must stay is left.
    let kept = cache.used_bytes().unwrap();
    let error = cache.make_room(everything, most(kept), space.as_ref()).unwrap_err();
    assert!(matches!(error, NoRoom::Budget { .. }), "{error}");
    assert_eq!(cache.used_bytes().unwrap(), kept, "nothing is evicted in vain");
    assert_same_as_whole(&shard_process, &served);
    let refused = cache.remove(served.hash()).unwrap_err();
    assert!(matches!(&refused, CacheError::InUse(name) if name == "Tiny"), "{refused}");

    // The shard ends: its model is the oldest of all and goes at once.
    drop(shard_process);
    cache.make_room(one / 2, most(kept), space.as_ref()).unwrap();
    assert!(here(&cache, &served) < one / 2 + one / 10, "{} of {one} left", here(&cache, &served));
    assert_eq!(cache.verify(pinned.hash()).unwrap().missing, 0, "what the owner pinned stays whole");
}

fn assert_same_as_whole(model: &Model, manifest: &Manifest) {
    let bytes: u64 = model.source.names().into_iter().map(|name| model.source.bytes(name).unwrap().len() as u64).sum();
    assert_eq!(bytes, manifest.tensor_bytes(), "a shard that serves loses nothing under its feet");
}

#[test]
fn what_two_models_share_stays_while_one_of_them_must() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open_with_clock(root.path(), clock).unwrap();
    let (folder, _, first) = cached(&cache, 210, 1_800_000_000);
    let mut second = first.clone();
    second.revision = "2".to_owned();
    cache.import(&second, folder.path(), Wanted::words()).unwrap();
    cache.assign(second.hash(), shard(&second, 0, 2)).unwrap();
    cache.make_room(1 << 30, most((1 << 30) + (4 << 20)), plenty().as_ref()).unwrap();
    let model = Model::open(cache.model_path(second.hash())).unwrap();
    let down = |layer| model.source.bytes(TensorName::Layer(layer, pool_models::LayerTensor::Down));
    assert!(down(0).is_ok() && down(1).is_ok(), "the second model's part is kept, though the first one's may go");
    assert!(down(3).is_err(), "the rest had to go");
}

/// A disk whose free space is set from outside.
struct Disk(AtomicU64);

fn sensor(disk: &Arc<Disk>) -> Arc<dyn pool_models::Space> {
    let disk = disk.clone();
    Arc::new(move |_: &Path| Ok(disk.0.load(Ordering::Relaxed)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for_and_the_download_goes_on_by_itself() {
    let files = single(220);
    let (folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let disk = Arc::new(Disk(AtomicU64::new(3 << 20)));
    let budget = Budget { most: None, keep_free: ByteSize(2 << 20) };
    let options = DownloadOptions { budget, ..options() };
    let downloads = Downloads::start(cache.clone(), options, sensor(&disk)).unwrap();
    let wanted = shard(&manifest, 0, 2);
    let id = downloads.add(download(&manifest, wanted, &[&server])).await.unwrap();
    let waiting = until(&downloads, "it waits", |status| status.state == DownloadState::Waiting).await;
    assert_eq!(
        waiting.message.as_deref(),
        Some(
            "3.0 MiB more are needed, but the disk has only 3.0 MiB free and 2.0 MiB of it must stay so; free some space, and the download goes on by itself"
        )
    );
    assert_eq!(server.seen().len(), 0, "nothing is fetched that has no place");
    disk.0.store(1 << 30, Ordering::Relaxed);
    let ended = downloads.ended(id).await.unwrap();
    assert_eq!(ended.state, DownloadState::Done, "{ended}");
    assert_same(&Model::open(folder.path()).unwrap(), &Model::open(&ended.path).unwrap(), wanted);

    // Somebody else fills the disk in the middle of a download.
    server.behave(|conduct| conduct.throttle = Some(200_000));
    let id = downloads.add(download(&manifest, shard(&manifest, 2, 4), &[&server])).await.unwrap();
    until(&downloads, "it downloads", |status| status.id == id && status.done.0 > 100_000).await;
    disk.0.store(1 << 20, Ordering::Relaxed);
    let waiting = until(&downloads, "it waits", |status| status.state == DownloadState::Waiting).await;
    assert!(waiting.message.unwrap().contains("must stay so"));
    assert!(waiting.done < waiting.total, "it did not fill the disk up first");
    server.behave(|conduct| conduct.throttle = None);
    disk.0.store(1 << 30, Ordering::Relaxed);
    assert_eq!(downloads.ended(id).await.unwrap().state, DownloadState::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_makes_room_by_itself_and_says_when_it_cannot() {
    let (first, second) = (single(221), single(222));
    let (_one, first_manifest) = manifest(&first);
    let (_two, second_manifest) = manifest(&second);
    let server = Server::start(&first).await;
    let other = Server::start(&second).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    fetched(&cache, &first_manifest, shard(&first_manifest, 0, 3), &[&server]).await;
    let used = cache.used_bytes().unwrap();
    let options = DownloadOptions { budget: most(used + (1 << 20)), ..options() };
    let downloads = Downloads::start(cache.clone(), options, plenty()).unwrap();
    let wanted = shard(&second_manifest, 0, 2);
    let id = downloads.add(download(&second_manifest, wanted, &[&other])).await.unwrap();
    let waiting = until(&downloads, "it waits", |status| status.state == DownloadState::Waiting).await;
    let message = waiting.message.unwrap();
    assert!(message.contains("set aside for them; raise the disk budget or remove a model"), "{message}");

    // The first model is no longer assigned to this machine: it makes room for the second.
    cache.unassign(first_manifest.hash(), shard(&first_manifest, 0, 3)).unwrap();
    let ended = downloads.ended(id).await.unwrap();
    assert_eq!(ended.state, DownloadState::Done, "{ended}");
    assert!(cache.used_bytes().unwrap() <= used + (1 << 20), "the budget held");

    // Or the owner raises the budget.
    let id = downloads.add(download(&first_manifest, shard(&first_manifest, 0, 4), &[&server])).await.unwrap();
    until(&downloads, "it waits", |status| status.id == id && status.state == DownloadState::Waiting).await;
    downloads.set_budget(Budget::default()).await.unwrap();
    assert_eq!(downloads.ended(id).await.unwrap().state, DownloadState::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_downloads_at_once_are_not_promised_the_same_room() {
    let (first, second) = (single(225), single(226));
    let ((_one, first_manifest), (_two, second_manifest)) = (manifest(&first), manifest(&second));
    let (one, other) = (Server::start(&first).await, Server::start(&second).await);
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let wanted = shard(&first_manifest, 0, 2);
    let needed: u64 = first_manifest.items(wanted).iter().map(|item| item.content.length).sum();
    // Room for one and a half of them.
    let budget = most(needed * 3 / 2);
    let options = DownloadOptions { budget, paused: true, ..options() };
    let downloads = Downloads::start(cache.clone(), options, plenty()).unwrap();
    let first = downloads.add(download(&first_manifest, wanted, &[&one])).await.unwrap();
    let second = downloads.add(download(&second_manifest, wanted, &[&other])).await.unwrap();
    // Slow, so that both are under way together for as long as they can be.
    one.behave(|conduct| conduct.throttle = Some(500_000));
    other.behave(|conduct| conduct.throttle = Some(500_000));
    downloads.resume_all().await.unwrap();
    let waiting = until(&downloads, "one waits", |status| status.state == DownloadState::Waiting).await;
    assert_eq!(waiting.id, second, "the first one has been promised its room");
    let message = waiting.message.unwrap();
    assert!(message.contains("set aside for them; raise the disk budget or remove a model"), "{message}");
    assert_eq!(downloads.ended(first).await.unwrap().state, DownloadState::Done);
    assert!(cache.used_bytes().unwrap() <= needed * 3 / 2, "the budget held");
    assert_eq!(other.seen().len(), 0, "not a byte was asked for that has no place");
    downloads.set_budget(most(needed * 3)).await.unwrap();
    assert_eq!(downloads.ended(second).await.unwrap().state, DownloadState::Done);
    let disk = until_disk(&downloads, |disk| disk.measured.used.0 >= needed * 2).await;
    assert_eq!((disk.promised, disk.budget), (ByteSize(0), most(needed * 3)), "nothing is on its way any more");
    assert!(disk.measured.free.is_some());
}

/// Waits until the disk is shown so.
async fn until_disk(downloads: &Downloads, holds: impl Fn(&DiskTotals) -> bool) -> DiskTotals {
    let mut overview = downloads.watch();
    let seen = overview.wait_for(|overview| holds(&overview.disk));
    tokio::time::timeout(Duration::from_secs(10), seen).await.expect("it is measured").unwrap().disk
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_already_needs_no_room() {
    let files = single(224);
    let (folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let wanted = shard(&manifest, 0, 2);
    cache.import(&manifest, folder.path(), wanted).unwrap();
    let options = DownloadOptions { budget: most(1000), ..options() };
    let downloads = Downloads::start(cache, options, plenty()).unwrap();
    let id = downloads.add(download(&manifest, wanted, &[&server])).await.unwrap();
    let ended = downloads.ended(id).await.unwrap();
    assert_eq!(ended.state, DownloadState::Done, "{ended}");
}

#[cfg(target_os = "linux")]
#[test]
fn the_system_says_how_much_space_there_is() {
    use pool_models::{Space, SystemSpace};
    let folder = tempfile::tempdir().unwrap();
    let ours = SystemSpace.free(folder.path()).unwrap();
    let df = std::process::Command::new("df").args(["--output=avail", "-B1"]).arg(folder.path()).output().unwrap();
    let said = String::from_utf8(df.stdout).unwrap();
    let theirs: u64 = said.lines().last().unwrap().trim().parse().unwrap();
    // Others write to the disk in between.
    assert!(ours.abs_diff(theirs) < 1 << 30, "{ours} bytes are free where df says {theirs}");
    let missing = SystemSpace.free(&folder.path().join("not there"));
    assert!(missing.is_err(), "nobody knows how much is free where there is nothing: {missing:?}");
}

#[test]
fn a_model_is_opened_while_the_cache_is_being_tidied() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let files = single(223);
    let (folder, manifest) = manifest(&files);
    cache.import(&manifest, &models::write(folder.path(), &files), Wanted::everything(&manifest.config)).unwrap();
    cache.pin(manifest.hash(), true).unwrap();
    let path = cache.model_path(manifest.hash());
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| (0..20).for_each(|_| drop(Model::open(&path).unwrap())));
        }
        for _ in 0..40 {
            cache.make_room(1, Budget::default(), plenty().as_ref()).unwrap();
            cache.list().unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn other_layers_of_a_model_take_the_place_of_those_that_are_no_longer_wanted() {
    let files = single(216);
    let (folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let (before, after) = (shard(&manifest, 0, 2), shard(&manifest, 2, 4));
    let length =
        |wanted: Wanted| manifest.items(wanted).iter().map(|item| item.content.length.next_multiple_of(4096)).sum();
    let needed: u64 = u64::max(length(before), length(after));
    let options = DownloadOptions { budget: most(needed * 5 / 4), ..options() };
    let downloads = Downloads::start(cache.clone(), options, plenty()).unwrap();
    let id = downloads.add(download(&manifest, before, &[&server])).await.unwrap();
    let ended = downloads.ended(id).await.unwrap();
    assert_eq!(ended.state, DownloadState::Done, "{ended}");
    assert_eq!(cache.layers_here(&manifest).unwrap(), [models::layers(0, 2)]);
    // As a shard holds it: its layers are in memory, and what it is told next may be others.
    let model = Model::open(&ended.path).unwrap();
    let held = model.lease.unwrap().of_assigned().unwrap();
    // The files are let go of, as by a shard that has read them.
    drop(model.source);

    let id = downloads.add(download(&manifest, after, &[&server])).await.unwrap();
    downloads.unassign_others(manifest.hash(), after).await.unwrap();
    let ended = downloads.ended(id).await.unwrap();
    assert_eq!(ended.state, DownloadState::Done, "{ended}");
    let (original, model) = (Model::open(folder.path()).unwrap(), Model::open(&ended.path).unwrap());
    for name in original.source.names().into_iter().filter(|name| loads(after, *name)) {
        assert!(model.source.bytes(name).unwrap() == original.source.bytes(name).unwrap(), "{name:?}");
    }
    drop(model);
    let here = cache.layers_here(&manifest).unwrap();
    assert!([2, 3].iter().all(|layer| here.iter().any(|range| range.contains(*layer))), "{here:?}");
    assert_ne!(here, [models::layers(0, 4)], "the first ones are no longer whole");
    assert!(cache.used_bytes().unwrap() <= needed * 5 / 4);
    assert!(matches!(cache.remove(manifest.hash()), Err(CacheError::InUse(_))), "the shard still runs");
    drop(held);
    cache.remove(manifest.hash()).unwrap();
}
