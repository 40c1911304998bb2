#!/usr/bin/env bash
# What payment costs, measured side by side: see bench.mjs. COMPUTEPOOL_BIN: the program (default: the newest build).
set -euo pipefail
cd "$(dirname "$0")/../.."
contracts/tools/packages.sh
# shellcheck source=scripts/support/server.sh
source scripts/support/server.sh
COMPUTEPOOL_BIN=$(find_program)
export COMPUTEPOOL_BIN
node scripts/payments/bench.mjs "$@"
