//! One program for all targets: `COMPUTEPOOL_FUZZ=<target>` says which (`scripts/fuzz/run.sh` does).
#![no_main]

use std::sync::LazyLock;

use computepool_fuzz::{Target, target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("COMPUTEPOOL_FUZZ").unwrap_or_default();
    target(&name).unwrap_or_else(|| panic!("COMPUTEPOOL_FUZZ names no target: {name:?}"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
