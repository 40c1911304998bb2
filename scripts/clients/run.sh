#!/usr/bin/env bash
# The official openai client against a server of two shards. Needs the network once, for the client.
# COMPUTEPOOL_BIN: the program (default: the newest build). COMPUTEPOOL_MODEL: what it serves (default: models/tiny).
# COMPUTEPOOL_CLIENT: a script to run instead of the suite.
# COMPUTEPOOL_CLIENTS_VENV: where the clients are installed. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/../.."

clients=${COMPUTEPOOL_CLIENTS_VENV:-.venv-clients}
wanted=scripts/clients/requirements.txt
[[ -x $clients/bin/python ]] || python3 -m venv "$clients"
if ! cmp --silent "$wanted" "$clients/requirements.txt"; then
    "$clients/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$clients/requirements.txt"
fi

# shellcheck source=scripts/support/server.sh
source scripts/support/server.sh
program=$(find_program)
COMPUTEPOOL_API_KEY="cp-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
export COMPUTEPOOL_API_KEY
start_server "$program"
export PYTHONDONTWRITEBYTECODE=1
if [[ -n ${COMPUTEPOOL_CLIENT:-} ]]; then
    "$clients/bin/python" "$COMPUTEPOOL_CLIENT" "$@"
else
    "$clients/bin/python" -m pytest -q -p no:cacheprovider scripts/clients "$@"
fi
