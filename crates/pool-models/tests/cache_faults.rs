//! A cache whose files break: what cannot be read counts as kept, is shown with its reason, and is mended where it can be.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Barrier,
};

use alloy_primitives::B256;
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use pool_models::{
    Budget, Cache, CacheError, Content, Manifest, ManifestError, ManifestOptions, Model, NoRoom, SignedManifest, Wanted,
};
use pool_types::{ByteSize, LayerRange};
use support::{config, tensors, write_directory};

struct Scene {
    _files: tempfile::TempDir,
    root: tempfile::TempDir,
    cache: Cache,
    manifest: Manifest,
}

/// A model that is here as a whole.
fn scene() -> Scene {
    let files = tempfile::tempdir().unwrap();
    write_directory(files.path(), &config(), &tensors());
    let options = ManifestOptions { name: Some("Tiny".to_owned()), piece_bytes: 4096, ..ManifestOptions::default() };
    let manifest = Manifest::of(files.path(), &options).unwrap();
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    cache.import(&manifest, files.path(), Wanted::everything(&manifest.config)).unwrap();
    Scene { _files: files, root, cache, manifest }
}

impl Scene {
    fn hash(&self) -> B256 {
        self.manifest.hash()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cache.model_path(self.hash()).join(name)
    }

    fn part(&self) -> Wanted {
        Wanted::shard(LayerRange::new(0, 1).unwrap(), &self.manifest.config)
    }

    /// Asks for more room than there is.
    fn evict_all(&self) -> Result<u64, NoRoom> {
        let budget = Budget { most: Some(ByteSize(0)), keep_free: ByteSize(0) };
        self.cache.make_room(0, budget, &|_: &Path| Ok(u64::MAX))
    }

    fn only(&self) -> pool_models::CachedModel {
        let [model] = self.cache.list().unwrap().try_into().unwrap();
        model
    }
}

#[test]
fn a_manifest_that_broke_is_written_again_when_the_model_is_added_again() {
    let scene = scene();
    fs::write(scene.file("manifest.json"), "{").unwrap();
    assert!(matches!(scene.cache.manifest(scene.hash()), Err(CacheError::Manifest { .. })));
    scene.cache.add(&scene.manifest, None).unwrap();
    assert_eq!(scene.cache.manifest(scene.hash()).unwrap(), scene.manifest);
    Model::open(scene.cache.model_path(scene.hash())).unwrap();
}

#[test]
fn adding_a_model_waits_for_whoever_holds_the_cache() {
    let scene = scene();
    let (holder, barrier) =
        (fs::File::options().write(true).open(scene.root.path().join("lock")).unwrap(), Barrier::new(2));
    holder.lock_shared().unwrap();
    std::thread::scope(|threads| {
        let adding = threads.spawn(|| {
            barrier.wait();
            scene.cache.add(&scene.manifest, None)
        });
        barrier.wait();
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(
            !adding.is_finished(),
            "two who add at once would each leave half of it, so nobody else may be at work"
        );
        drop(holder);
        adding.join().unwrap().unwrap();
    });
}

#[test]
fn nothing_is_evicted_while_a_model_that_must_stay_cannot_be_read() {
    type Keep = fn(&Scene) -> Option<pool_models::Lease>;
    let ways: [(&str, Keep); 3] = [
        ("pinned", |scene| {
            scene.cache.pin(scene.hash(), true).unwrap();
            None
        }),
        ("assigned", |scene| {
            scene.cache.assign(scene.hash(), scene.part()).unwrap();
            None
        }),
        ("leased", |scene| Some(scene.cache.lease(scene.hash()).unwrap())),
    ];
    for (way, keep) in ways {
        let scene = scene();
        let _lease = keep(&scene);
        for broken in ["{", ""] {
            fs::write(scene.file("manifest.json"), broken).unwrap();
            let used = scene.cache.used_bytes().unwrap();
            let refused = scene.evict_all().unwrap_err();
            assert!(matches!(refused, NoRoom::Stuck { .. }), "{way}: {refused}");
            assert!(refused.to_string().contains("nothing can be evicted"), "{way}: {refused}");
            assert_eq!(scene.cache.used_bytes().unwrap(), used, "a {way} model lost bytes with its manifest");
        }
        scene.cache.add(&scene.manifest, None).unwrap();
        assert!(!matches!(scene.evict_all(), Err(NoRoom::Stuck { .. })), "{way}: mended");
        let verified = scene.cache.verify(scene.hash()).unwrap();
        assert!(verified.whole > 0 && verified.broken.is_empty(), "{way}: what must stay stayed, {verified:?}");
    }

    // A model that nobody asked to keep goes, manifest or not.
    let scene = scene();
    fs::write(scene.file("manifest.json"), "{").unwrap();
    scene.evict_all().unwrap();
    assert_eq!(scene.cache.used_bytes().unwrap(), 0);
}

#[test]
fn a_note_of_what_must_stay_that_broke_keeps_everything() {
    let scene = scene();
    scene.cache.assign(scene.hash(), scene.part()).unwrap();
    fs::write(scene.file("use.json"), "{\"pinned\":fal").unwrap();
    assert!(matches!(scene.evict_all(), Err(NoRoom::Budget { .. })), "all of it might have been pinned");
    assert_eq!(scene.cache.verify(scene.hash()).unwrap().missing, 0);
    let model = scene.only();
    assert!(model.pinned && model.broken.is_some_and(|reason| reason.contains("use.json is broken")));

    // The next change mends the note, and forgets nothing that might have been wanted.
    scene.cache.assign(scene.hash(), scene.part()).unwrap();
    let model = scene.only();
    assert_eq!((model.pinned, model.assigned, model.broken), (true, vec![scene.part()], None));
    scene.cache.pin(scene.hash(), false).unwrap();
    assert!(!scene.only().pinned);
}

#[test]
fn broken_models_are_listed_with_their_reason_and_can_be_removed() {
    let scene = scene();
    let whole = scene.only();
    assert_eq!((whole.broken, whole.cached, whole.name.as_str()), (None, whole.total, "Tiny"));
    fs::write(scene.file("manifest.json"), "{").unwrap();
    let model = scene.only();
    assert!(model.broken.unwrap().ends_with("its hash cannot be trusted; ask the pool's owner for the original file"));
    assert_eq!(model.hash, scene.hash());
    scene.cache.remove(scene.hash()).unwrap();
    assert!(scene.cache.list().unwrap().is_empty());
    assert_eq!(scene.cache.used_bytes().unwrap(), 0, "and what only it named is gone");
}

#[test]
fn only_a_signature_over_this_manifest_is_kept_and_shown() {
    let scene = scene();
    let key = PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap();
    let sign = |hash: B256| key.sign_hash_sync(&hash).map(|signature| signature.as_bytes().to_vec());
    let ours = SignedManifest::sign(&scene.manifest, 0, sign).unwrap();
    let mut other = scene.manifest.clone();
    other.revision = "2".to_owned();
    let anothers = SignedManifest::sign(&other, 0, sign).unwrap();
    let refused = scene.cache.add(&scene.manifest, Some(&anothers)).unwrap_err();
    assert!(matches!(&refused, CacheError::Manifest { source, .. } if matches!(**source, ManifestError::Signature)));
    assert_eq!(scene.cache.signature(scene.hash()).unwrap(), None, "it was not kept");
    scene.cache.add(&scene.manifest, Some(&ours)).unwrap();
    assert_eq!(scene.only().signer, Some(key.address()));

    // Somebody puts another model's signature there.
    fs::write(scene.file("signature.json"), serde_json::to_vec(&anothers).unwrap()).unwrap();
    let model = scene.only();
    assert_eq!(model.signer, None, "the owner never signed this one");
    assert_eq!(model.broken.as_deref(), Some("the manifest's signature is not one"));
}

/// The scene's manifest as a host without hashes would give it, with other models' names for its contents.
fn without_hashes(manifest: &Manifest) -> Manifest {
    let mut manifest = manifest.clone();
    let strip = |content: &mut Content| content.pieces.clear();
    manifest.files.iter_mut().for_each(|file| strip(&mut file.header));
    manifest.tensors.iter_mut().for_each(|tensor| strip(&mut tensor.content));
    manifest.words.iter_mut().for_each(|word| strip(&mut word.content));
    manifest.validate().unwrap();
    manifest
}

#[test]
fn a_model_without_hashes_never_passes_its_bytes_on_to_one_with() {
    let scene = scene();
    // A model of the same contents by name, but with other bytes: as a lying host would make it.
    let lies = tempfile::tempdir().unwrap();
    write_directory(lies.path(), &config(), &tensors());
    let weights = lies.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    bytes.iter_mut().rev().take(10_000).for_each(|byte| *byte ^= 1);
    fs::write(&weights, bytes).unwrap();
    let liar = without_hashes(&scene.manifest);
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let everything = Wanted::everything(&liar.config);
    cache.import(&liar, lies.path(), everything).unwrap();
    cache.add(&scene.manifest, None).unwrap();
    let verified = cache.verify(scene.hash()).unwrap();
    assert_eq!((verified.whole, verified.broken.len()), (0, 0), "not a byte of it is there: {verified:?}");
    let liar_there = cache.verify(liar.hash()).unwrap();
    assert_eq!((liar_there.missing, liar_there.broken.len()), (0, 0), "its own bytes are its own: {liar_there:?}");
    cache.import(&scene.manifest, scene._files.path(), everything).unwrap();
    let ours = Model::open(cache.model_path(scene.hash())).unwrap();
    let original = Model::open(scene._files.path()).unwrap();
    for name in original.source.names() {
        assert!(ours.source.bytes(name).unwrap() == original.source.bytes(name).unwrap(), "{name:?}");
    }
    drop(ours);
    cache.remove(liar.hash()).unwrap();
    assert_eq!(fs::read_dir(root.path().join("unhashed")).unwrap().count(), 0, "nothing of it is left");
    assert_eq!(cache.verify(scene.hash()).unwrap().missing, 0);
}

#[test]
fn what_dead_processes_left_behind_is_tidied_away() {
    let scene = scene();
    let name = "ab".repeat(32);
    let [record, text, gone] =
        ["done", "new123", "removed"].map(|end| scene.root.path().join(format!("partial/{name}.{end}")));
    let note = scene.file("use.new77");
    for path in [&record, &text, &note] {
        fs::write(path, "x").unwrap();
    }
    fs::create_dir(&gone).unwrap();
    fs::write(gone.join("manifest.json"), "x").unwrap();
    let before = fs::read(scene.file("manifest.json")).unwrap();
    Cache::open(scene.root.path()).unwrap();
    for path in [&record, &text, &note, &gone] {
        assert!(!path.exists(), "{} is still there", path.display());
    }
    assert_eq!(fs::read_dir(scene.root.path().join("partial")).unwrap().count(), 0, "and nothing was put there");
    assert_eq!(fs::read(scene.file("manifest.json")).unwrap(), before);

    // A part that somebody writes keeps its record.
    let part = scene.root.path().join(format!("partial/{name}.part"));
    fs::write(&part, "x").unwrap();
    fs::write(&record, "x").unwrap();
    Cache::open(scene.root.path()).unwrap();
    assert!(part.exists() && record.exists());
}

#[test]
fn a_part_that_somebody_writes_is_no_room() {
    let scene = scene();
    let part = scene.root.path().join(format!("partial/{}.part", "cd".repeat(32)));
    fs::write(&part, vec![1; 1 << 20]).unwrap();
    let writer = fs::File::open(&part).unwrap();
    writer.lock().unwrap();
    scene.cache.pin(scene.hash(), true).unwrap();
    let nobodys = scene.root.path().join("objects/00").join("00".repeat(32));
    fs::create_dir_all(nobodys.parent().unwrap()).unwrap();
    fs::write(&nobodys, [1; 4096]).unwrap();
    let used = scene.cache.used_bytes().unwrap();
    let budget = Budget { most: Some(ByteSize(used)), keep_free: ByteSize(0) };
    let make_room = || scene.cache.make_room(100_000, budget, &|_: &Path| Ok(u64::MAX));
    let refused = make_room().unwrap_err();
    assert!(matches!(refused, NoRoom::Budget { .. }), "{refused}");
    assert!(nobodys.exists(), "what could go is not enough, so it does not go in vain");
    drop(writer);
    assert!(make_room().unwrap() >= 1 << 20, "once it is let go of");
}

/// A folder where a content should be cannot be deleted as one, whoever tries.
#[cfg(unix)]
#[test]
fn what_cannot_be_deleted_is_said_and_is_no_room() {
    use std::os::unix::fs::MetadataExt;
    let scene = scene();
    let stuck = scene.root.path().join("objects/ef").join("ef".repeat(32));
    fs::create_dir_all(&stuck).unwrap();
    // A folder takes nothing on some file systems: a thousand files give it a size on all others.
    (0..1000).for_each(|number| fs::write(stuck.join(format!("a file with a long name {number}")), "").unwrap());
    let takes = fs::metadata(&stuck).unwrap().blocks() * 512;
    let outcome = scene.evict_all();
    assert_eq!(scene.cache.used_bytes().unwrap(), takes, "everything else has gone");
    match outcome {
        Ok(_) => assert_eq!(takes, 0, "what is still there was counted as gone"),
        Err(refused) => assert!(refused.to_string().contains("nothing can be evicted: cannot remove "), "{refused}"),
    }
}
