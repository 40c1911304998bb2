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

program=${COMPUTEPOOL_BIN:-}
if [[ -z $program ]]; then
    for built in "${CARGO_TARGET_DIR:-target}"/{debug,release}/computepool; do
        if [[ -x $built && (-z $program || $built -nt $program) ]]; then program=$built; fi
    done
fi
if [[ -z $program ]]; then
    echo 'There is no computepool to test: cargo build -p computepool -p pool-shard builds it.' >&2
    exit 2
fi

work=$(mktemp -d)
server=
stop_server() {
    local status=$?
    if [[ -n $server ]]; then
        kill -TERM "$server" 2>/dev/null || true
        if ! timeout 20 tail --pid="$server" -f /dev/null; then
            echo 'The server did not stop within 20 s of SIGTERM.' >&2
            kill -KILL "$server" 2>/dev/null || true
            status=1
        elif ! wait "$server"; then
            echo 'The server ended with an error.' >&2
            status=1
        fi
    fi
    if [[ $status -ne 0 && -s $work/errors ]]; then
        echo 'The end of the server'"'"'s log:' >&2
        tail -n 30 "$work/errors" >&2
    fi
    rm -rf "$work"
    exit "$status"
}
trap stop_server EXIT

COMPUTEPOOL_API_KEY="cp-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
export COMPUTEPOOL_API_KEY
touch "$work/ready"
"$program" up --model "${COMPUTEPOOL_MODEL:-models/tiny}" --shards 2 --api 127.0.0.1:0 --state "$work/state" \
    >"$work/ready" 2>"$work/errors" &
server=$!
for ((tenths = 0; tenths < 1200; tenths++)); do
    COMPUTEPOOL_URL=$(sed -n 's/^ready //p' "$work/ready")
    [[ -z $COMPUTEPOOL_URL ]] || break
    if ! kill -0 "$server" 2>/dev/null; then
        echo 'The server ended before it was ready.' >&2
        exit 1
    fi
    sleep 0.1
done
if [[ -z $COMPUTEPOOL_URL ]]; then
    echo 'The server was not ready within 120 s.' >&2
    exit 1
fi
export COMPUTEPOOL_URL PYTHONDONTWRITEBYTECODE=1
if [[ -n ${COMPUTEPOOL_CLIENT:-} ]]; then
    "$clients/bin/python" "$COMPUTEPOOL_CLIENT" "$@"
else
    "$clients/bin/python" -m pytest -q -p no:cacheprovider scripts/clients "$@"
fi
