#!/usr/bin/env bash
# The official x402 and openai clients (npm) against a server whose requests are paid, on a local chain with the real
# Superfluid. COMPUTEPOOL_BIN: the program (default: the newest build). Arguments go to node --test.
set -euo pipefail
cd "$(dirname "$0")/../.."
contracts/tools/packages.sh
# shellcheck source=scripts/support/server.sh
source scripts/support/server.sh
program=$(find_program)
start_server "$program" --pay --linger 2
COMPUTEPOOL_CHAIN=$state/chain.json COMPUTEPOOL_BIN=$program node --test --test-reporter=spec "$@" scripts/payments/*.test.mjs
