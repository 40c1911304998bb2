#!/usr/bin/env bash
# What of the Windows build can be checked on Linux: node and shard compile, and the tests of the crates that need no
# window and no WebRTC pass under wine.
#
# Needs gcc-mingw-w64-x86-64, wine64 and the Rust target; with YES=1 they are installed, otherwise the line is printed.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$repository"
target=x86_64-pc-windows-gnu
tested=(pool-types pool-wire pool-policy pool-coalition pool-models pool-engine pool-sense pool-store pool-journal)
compiled=(pool-link pool-shard pool-node pool-api)

# Runs a line that installs something, or says it.
install() {
    if [[ ${YES:-} == 1 ]]; then
        echo "windows: $*"
        "$@"
    else
        printf 'This is missing; install it with this line, or run make again with YES=1:\n  %s\n' "$*" >&2
        exit 1
    fi
}
as_root() { if [[ $EUID -eq 0 ]]; then "$@"; else sudo "$@"; fi; }
wine=$(command -v wine64 || command -v wine || true)
if ! command -v x86_64-w64-mingw32-gcc >/dev/null || [[ -z $wine ]]; then
    install as_root apt-get install -y -qq --no-install-recommends gcc-mingw-w64-x86-64 g++-mingw-w64-x86-64 wine64 wine
    wine=$(command -v wine64 || command -v wine)
fi
if ! rustup target list --installed 2>/dev/null | grep -qx "$target"; then install rustup target add "$target"; fi

target_dir=${CARGO_TARGET_DIR:-$repository/target}
export CC_x86_64_pc_windows_gnu=x86_64-w64-mingw32-gcc CXX_x86_64_pc_windows_gnu=x86_64-w64-mingw32-g++
export AR_x86_64_pc_windows_gnu=x86_64-w64-mingw32-ar
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=$wine WINEDEBUG=-all
WINEPREFIX=${WINEPREFIX:-$target_dir/$target/wine}
export WINEPREFIX

packages() { printf -- '-p %s ' "$@"; }
# shellcheck disable=SC2046 # the options are words on purpose
cargo check --locked --target "$target" $(packages "${compiled[@]}")
# Debian's wine lacks a library that every Rust program asks for random bytes.
mkdir -p "$target_dir/$target/debug/deps"
x86_64-w64-mingw32-gcc -shared -O2 -o "$target_dir/$target/debug/deps/bcryptprimitives.dll" scripts/windows/bcryptprimitives.c -ladvapi32
# shellcheck disable=SC2046
cargo test --locked --target "$target" --no-fail-fast --lib --tests $(packages "${tested[@]}")
