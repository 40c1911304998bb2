#!/usr/bin/env bash
# Our links against WebRTC stacks by others: aiortc (Python) and node-datachannel (Node). Needs the network once.
set -euo pipefail
cd "$(dirname "$0")/../.."

[[ -d .venv ]] || python3 -m venv .venv
.venv/bin/python -c 'import aiortc' 2>/dev/null || .venv/bin/pip install --quiet 'aiortc==1.16.*'
contracts/tools/packages.sh
exec cargo test --locked -p pool-link --features interop --test interop -- "$@"
