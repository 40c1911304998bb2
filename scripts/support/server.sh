# shellcheck shell=bash
# Sourced by the suites of foreign clients: finds the program, starts `computepool up` in a folder of its own, and
# ends it whatever happens. Sets COMPUTEPOOL_URL (exported), $work (the folder), $state (its state folder).

# Prints the program: COMPUTEPOOL_BIN, or the newest build.
find_program() {
    local program=${COMPUTEPOOL_BIN:-} built
    if [[ -z $program ]]; then
        for built in "${CARGO_TARGET_DIR:-target}"/{debug,release}/computepool; do
            if [[ -x $built && (-z $program || $built -nt $program) ]]; then program=$built; fi
        done
    fi
    if [[ -z $program ]]; then
        echo 'There is no computepool to test: cargo build -p computepool -p pool-shard builds it.' >&2
        return 2
    fi
    printf '%s\n' "$program"
}

work=$(mktemp -d)
state=$work/state
server=

stop_server() {
    local status=$?
    if [[ -n $server ]]; then
        kill -TERM "$server" 2>/dev/null || true
        if ! timeout 30 tail --pid="$server" -f /dev/null; then
            echo 'The server did not stop within 30 s of SIGTERM.' >&2
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

# start_server <program> [arguments of up]: returns when it is ready.
start_server() {
    local program=$1 tenths
    shift
    touch "$work/ready"
    "$program" up --model "${COMPUTEPOOL_MODEL:-models/tiny}" --shards 2 --api 127.0.0.1:0 --state "$state" "$@" \
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
    export COMPUTEPOOL_URL
}
