#!/usr/bin/env bash
# Installs the packages of package-lock.json unless exactly these are here. One at a time on a machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/computepool"
mkdir -p "$cache"
exec 9>"$cache/npm.lock"
flock 9
wanted=$(sha256sum package-lock.json | cut -d' ' -f1)
stamp=node_modules/.computepool-packages
if [[ "$(cat "$stamp" 2>/dev/null || true)" == "$wanted" ]]; then exit 0; fi
echo 'Installing npm packages.' >&2
npm ci --no-audit --no-fund --loglevel=error >&2
printf '%s\n' "$wanted" >"$stamp"
