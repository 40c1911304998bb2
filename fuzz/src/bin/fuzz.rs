//! One program for all targets: `COMPUTEPOOL_FUZZ=<target>` says which (`scripts/fuzz/run.sh` does).
#![no_main]

use std::sync::LazyLock;

use computepool_fuzz::{Target, target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("COMPUTEPOOL_FUZZ").unwrap_or_default();
    let target = target(&name).unwrap_or_else(|| panic!("COMPUTEPOOL_FUZZ names no target: {name:?}"));
    // libFuzzer's own hook ends the program at every panic. The library `tokenizers` asserts what it expects of a file,
    // and pool-models catches that: such a panic is no finding.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|place| place.file().contains("/tokenizers-")) {
            report(panic);
        }
    }));
    target
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
