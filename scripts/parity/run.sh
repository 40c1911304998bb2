#!/usr/bin/env bash
# Compares with transformers, live: that the committed fixtures are what it computes, and that the engine meets other
# weights and prompts as well. `make parity ARGS=SEED` chooses the seed of the latter (default: the time).
set -euo pipefail
cd "$(dirname "$0")/../.."

seed=${1:-$(date +%s)}
python=.venv/bin/python
[[ -x $python ]] || python3 -m venv .venv
if ! "$python" -m pip freeze --disable-pip-version-check | grep -qix "$(grep '^transformers==' scripts/parity/requirements.txt)"; then
    "$python" -m pip install --quiet --disable-pip-version-check -r scripts/parity/requirements.txt
fi

echo 'Committed fixtures against transformers:'
"$python" scripts/parity/make_fixtures.py --check
"$python" scripts/fixtures/gguf/make.py --check
echo "Fresh weights and prompts, seed $seed:"
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
"$python" scripts/parity/make_fixtures.py --seed "$seed" --out "$fresh"
cargo test -p pool-engine --locked --test parity --test gguf
POOL_PARITY_FIXTURES=$fresh cargo test -p pool-engine --locked --test parity -- --nocapture
