#!/usr/bin/env bash
# Fuzzes what reads strangers' bytes: scripts/fuzz/run.sh [seconds per target, default 60] [targets, default all]
#
# Starts from fuzz/seeds and keeps what it learns in fuzz/corpus. A finding lies in fuzz/findings/<target>: mend the
# defect and move the file to fuzz/seeds/<target>, where `make test` runs it from then on. To run one file:
#
#   scripts/fuzz/run.sh <target> <file>
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$repository"

# Neither cargo-fuzz nor a nightly toolchain is needed: libFuzzer comes with the crate libfuzzer-sys, and its coverage
# is what these flags of the stable compiler add. They must not reach build scripts, hence --target.
host=$(rustc -vV | sed -n 's/^host: //p')
coverage='--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks'
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    coverage+=" -Cllvm-args=-sanitizer-coverage-$option"
done
# A folder of its own: other flags, other builds.
target_dir=${CARGO_TARGET_DIR:-$repository/target}/fuzz
echo 'building the fuzz targets'
RUSTFLAGS="$coverage" CARGO_TARGET_DIR="$target_dir" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_PANIC=unwind \
    cargo build --release --locked --target "$host" -p computepool-fuzz --features libfuzzer --bin fuzz
program=$target_dir/$host/release/fuzz

# A template may take some memory by design (see pool-models' template.rs); nothing else comes near this.
limits=(-timeout=20 -rss_limit_mb=3000 -malloc_limit_mb=1500 -max_len=70000)

if [[ ${1:-} =~ ^[a-z]+$ ]]; then
    COMPUTEPOOL_FUZZ=$1 exec "$program" "${limits[@]}" "${@:2}"
fi
seconds=${1:-60}
targets=("${@:2}")
if [[ ${#targets[@]} -eq 0 ]]; then
    for folder in fuzz/seeds/*/; do targets+=("$(basename "$folder")"); done
fi

failed=()
for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target" "fuzz/findings/$target"
    log=fuzz/findings/$target/log.txt
    echo "== $target for $seconds s"
    if COMPUTEPOOL_FUZZ=$target "$program" "fuzz/corpus/$target" "fuzz/seeds/$target" "-max_total_time=$seconds" \
        "${limits[@]}" "-artifact_prefix=fuzz/findings/$target/" -print_final_stats=1 -verbosity=1 >"$log" 2>&1; then
        grep -E 'cov: .*DONE|stat::(number_of_executed_units|peak_rss_mb)' "$log" || true
    else
        failed+=("$target")
        grep -vE '^#[0-9]+' "$log" | tail -n 40
    fi
done
if [[ ${#failed[@]} -gt 0 ]]; then
    echo "findings in: ${failed[*]} (fuzz/findings/<target>)" >&2
    exit 1
fi
