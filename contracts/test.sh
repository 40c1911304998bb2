#!/usr/bin/env bash
# Everything about the contracts: builds them, deploys them with the real Superfluid on a node of its own, and tests
# them there. Words for it (--update, and whatever forge test takes) and SOAK=1, SEED=<number>: see test/run.mjs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v node >/dev/null || { echo 'Node 20 or newer is needed: https://nodejs.org' >&2; exit 1; }
contracts/tools/packages.sh
exec node contracts/test/run.mjs "$@"
