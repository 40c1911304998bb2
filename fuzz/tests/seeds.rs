//! Seeds and earlier findings, through every target on every machine.

use std::{fs, panic::catch_unwind, path::Path};

use computepool_fuzz::TARGETS;

#[test]
fn every_seed_and_every_earlier_finding_passes() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let mut failed = Vec::new();
    for target in TARGETS {
        let folder = seeds.join(target.name);
        let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut count = 0;
        for file in files {
            let path = file.expect("the folder is readable").path();
            let bytes = fs::read(&path).expect("a seed is readable");
            count += 1;
            // Whole, and cut where a stranger may break off.
            for length in [bytes.len(), bytes.len() / 2, bytes.len() / 3, bytes.len().min(7), 0] {
                if catch_unwind(|| (target.run)(&bytes[..length])).is_err() {
                    failed.push(format!("{} of {length} bytes", path.display()));
                }
            }
        }
        assert!(count > 0, "{} has no seed", target.name);
    }
    assert!(failed.is_empty(), "these make their target panic: {failed:?}");
}

#[test]
fn every_folder_of_seeds_belongs_to_a_target() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for folder in fs::read_dir(seeds).expect("the seeds are there") {
        let name = folder.expect("the folder is readable").file_name();
        let known = TARGETS.iter().any(|target| name == target.name);
        assert!(known, "no target is called {name:?}");
    }
}
