#!/usr/bin/env bash
# Ten minutes of mixed requests with random cancels. SOAK_SECONDS, SOAK_SEED and SOAK_WORKERS change them.
set -euo pipefail
cd "$(dirname "$0")/../.."
COMPUTEPOOL_CLIENT=scripts/soak/soak.py exec scripts/clients/run.sh "$@"
