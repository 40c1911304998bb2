//! Whatever is done with a cache in whatever order: what must stay stays, budgets hold, and no byte is wrong.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use pool_models::{Budget, Cache, CacheError, Manifest, ManifestOptions, Model, NoRoom, Wanted};
use pool_types::{ByteSize, LayerRange};
use proptest::prelude::*;
use support::{config, tensors, write_directory};

/// Three models; the second has the first one's weights.
struct Models {
    _folders: Vec<tempfile::TempDir>,
    models: Vec<(PathBuf, Manifest)>,
}

fn models() -> Models {
    let (mut folders, mut models) = (Vec::new(), Vec::new());
    for seed in [0u8, 1] {
        let folder = tempfile::tempdir().unwrap();
        write_directory(folder.path(), &config(), &tensors());
        let path = folder.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[header..]
            .iter_mut()
            .enumerate()
            .for_each(|(n, byte)| *byte = byte.wrapping_mul(31) ^ seed ^ (n % 251) as u8);
        std::fs::write(&path, bytes).unwrap();
        let options = ManifestOptions { piece_bytes: 4096, ..ManifestOptions::default() };
        models.push((folder.path().to_owned(), Manifest::of(folder.path(), &options).unwrap()));
        folders.push(folder);
    }
    let (path, mut twin) = models[0].clone();
    twin.revision = "twin".to_owned();
    models.insert(1, (path, twin));
    Models { _folders: folders, models }
}

#[derive(Clone, Debug)]
enum Step {
    Import(usize, u32),
    Assign(usize, u32),
    Unassign(usize, u32),
    Pin(usize, bool),
    Open(usize),
    Close(usize),
    Evict(u64),
    Remove(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (model, part) = (0..3usize, 0..3u32);
    let step = prop_oneof![
        3 => (model.clone(), part.clone()).prop_map(|(m, p)| Step::Import(m, p)),
        2 => (model.clone(), part.clone()).prop_map(|(m, p)| Step::Assign(m, p)),
        1 => (model.clone(), part).prop_map(|(m, p)| Step::Unassign(m, p)),
        1 => (model.clone(), any::<bool>()).prop_map(|(m, pinned)| Step::Pin(m, pinned)),
        1 => model.clone().prop_map(Step::Open),
        1 => model.clone().prop_map(Step::Close),
        3 => (0..400_000u64).prop_map(Step::Evict),
        1 => model.prop_map(Step::Remove),
    ];
    prop::collection::vec(step, 1..14)
}

/// One layer, the other, or all.
fn part(manifest: &Manifest, number: u32) -> Wanted {
    match number {
        2 => Wanted::everything(&manifest.config),
        layer => Wanted::shard(LayerRange::new(layer, layer + 1).unwrap(), &manifest.config),
    }
}

/// The objects that are here, by name.
fn here(root: &Path) -> BTreeSet<String> {
    let list = |path: &Path| -> Vec<PathBuf> { std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect() };
    let objects = list(&root.join("objects")).into_iter().flat_map(|folder| list(&folder));
    objects.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn names(manifest: &Manifest, wanted: Wanted) -> BTreeSet<String> {
    let key = |item: pool_models::Item| item.content.key.to_string().trim_start_matches("0x").to_owned();
    manifest.items(wanted).into_iter().map(key).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn what_must_stay_stays_in_any_order_of_things(steps in steps()) {
        let Models { models, _folders } = models();
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let mut open: [Option<Model>; 3] = [None, None, None];
        let mut assigned: [BTreeSet<u32>; 3] = Default::default();
        let mut pinned = [false; 3];
        models.iter().for_each(|(_, manifest)| drop(cache.add(manifest, None).unwrap()));
        for step in steps {
            let before = here(root.path());
            let mut must_stay = BTreeSet::new();
            for (number, (_, manifest)) in models.iter().enumerate() {
                if pinned[number] || open[number].is_some() {
                    must_stay.extend(names(manifest, Wanted::everything(&manifest.config)));
                }
                assigned[number].iter().for_each(|p| must_stay.extend(names(manifest, part(manifest, *p))));
            }
            must_stay.retain(|name| before.contains(name));
            match step {
                Step::Import(m, p) => drop(cache.import(&models[m].1, &models[m].0, part(&models[m].1, p)).unwrap()),
                Step::Assign(m, p) => {
                    cache.assign(models[m].1.hash(), part(&models[m].1, p)).unwrap();
                    assigned[m].insert(p);
                }
                Step::Unassign(m, p) => {
                    cache.unassign(models[m].1.hash(), part(&models[m].1, p)).unwrap();
                    assigned[m].remove(&p);
                }
                Step::Pin(m, pin) => {
                    cache.pin(models[m].1.hash(), pin).unwrap();
                    pinned[m] = pin;
                }
                Step::Open(m) => open[m] = Some(Model::open(cache.model_path(models[m].1.hash())).unwrap()),
                Step::Close(m) => open[m] = None,
                Step::Evict(most) => {
                    let budget = Budget { most: Some(ByteSize(most)), keep_free: ByteSize(0) };
                    match cache.make_room(0, budget, &|_: &Path| Ok(u64::MAX)) {
                        Ok(_) => prop_assert!(cache.used_bytes().unwrap() <= most, "the budget holds"),
                        Err(NoRoom::Budget { used, .. }) => {
                            prop_assert!(used.0 > most, "room is refused only where what must stay is too much");
                            prop_assert_eq!(here(root.path()), before, "and nothing is evicted in vain");
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                Step::Remove(m) => match cache.remove(models[m].1.hash()) {
                    Err(CacheError::InUse(_)) => prop_assert!(open[m].is_some(), "only what is in use cannot be removed"),
                    removed => {
                        removed.unwrap();
                        prop_assert!(open[m].is_none());
                        // Removing is the owner's own wish: what only this model named goes, pinned or not.
                        let still: BTreeSet<String> = (0..3).filter(|other| *other != m)
                            .flat_map(|other| names(&models[other].1, Wanted::everything(&models[other].1.config))).collect();
                        must_stay.retain(|name| still.contains(name));
                        assigned[m].clear();
                        pinned[m] = false;
                        cache.add(&models[m].1, None).unwrap();
                    }
                },
            }
            let after = here(root.path());
            prop_assert!(must_stay.is_subset(&after), "{:?} is gone", must_stay.difference(&after));
        }
        for (_, manifest) in &models {
            prop_assert!(cache.verify(manifest.hash()).unwrap().broken.is_empty());
        }
    }
}
