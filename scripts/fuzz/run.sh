#!/usr/bin/env bash
# Fuzzes what reads bytes of strangers: scripts/fuzz/run.sh [seconds per target, default 60] [targets, default all]
#
# Starts from fuzz/seeds and keeps what it learns in fuzz/corpus. A finding lies in fuzz/artifacts/<target>; run it
# again with: scripts/fuzz/run.sh <target> <file>
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$repository/fuzz"

# The layout is cargo-fuzz's, but neither it nor a nightly toolchain is needed: libFuzzer comes with the crate
# libfuzzer-sys, and its coverage is what these flags of the stable compiler add. They must not reach build scripts,
# hence the target.
host=$(rustc -vV | sed -n 's/^host: //p')
coverage='--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1'
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    coverage+=" -Cllvm-args=-sanitizer-coverage-$option"
done
# The test runner's target folder holds other flags' builds.
export CARGO_TARGET_DIR=${COMPUTEPOOL_FUZZ_TARGET_DIR:-target}
echo 'building the fuzz targets'
RUSTFLAGS="$coverage" RUSTC_BOOTSTRAP=1 cargo build --release --locked --target "$host" --bins

program() { echo "$CARGO_TARGET_DIR/$host/release/$1"; }

if [[ ${1:-} =~ ^[a-z]+$ ]]; then
    exec "$(program "$1")" "${@:2}"
fi
seconds=${1:-60}
targets=("${@:2}")
if [[ ${#targets[@]} -eq 0 ]]; then
    for file in fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

failed=()
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "seeds/$target" "artifacts/$target"
    log="artifacts/$target/log.txt"
    echo "== $target for $seconds s"
    # A template may take some memory by design (see pool-models' template.rs); nothing else should come near this.
    if "$(program "$target")" "corpus/$target" "seeds/$target" "-max_total_time=$seconds" -timeout=20 \
        -rss_limit_mb=3000 -malloc_limit_mb=1500 -max_len=70000 "-artifact_prefix=artifacts/$target/" \
        -print_final_stats=1 -verbosity=1 >"$log" 2>&1; then
        grep -E 'stat::(number_of_executed_units|peak_rss_mb)|^Done' "$log" || true
    else
        failed+=("$target")
        grep -vE '^#[0-9]+' "$log" | tail -n 40
    fi
done
if [[ ${#failed[@]} -gt 0 ]]; then
    echo "findings in: ${failed[*]} (fuzz/artifacts/<target>)" >&2
    exit 1
fi
