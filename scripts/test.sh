#!/usr/bin/env bash
# Runs every test of the project on a Debian machine with Rust and C compilers: formatting, lints,
# unit and property tests, instruction counts, the WebSocket conformance suite, the end-to-end tests with an independent
# client and with Chromium, and the load generator's verification.
#
# It installs what is missing (Debian packages when it runs as root, Python packages into .venv),
# says what it does, stops what it starts, and ends with one line: PASS or FAIL.
#
#   scripts/test.sh            everything
#   scripts/test.sh quick      formatting, lints and cargo's tests only
set -euo pipefail
cd "$(dirname "$0")/.."

scope="${1:-all}"
started=$SECONDS
step_name="start"
declare -a finished=()

step() {
    step_name="$1"
    step_started=$SECONDS
    printf '\n==> %s\n' "$step_name"
}
done_step() { finished+=("$(printf '%5ss  %s' $((SECONDS - step_started)) "$step_name")"); }
verdict() {
    local status=$?
    printf '\n'
    printf '%s\n' "${finished[@]}"
    if [ "$status" -eq 0 ]; then
        printf 'PASS: all tests passed in %s s.\n' $((SECONDS - started))
    else
        printf 'FAIL: "%s" failed after %s s; its output is above.\n' "$step_name" $((SECONDS - started))
    fi
}
trap verdict EXIT

need_packages() {
    local missing=()
    command -v cc >/dev/null || missing+=(build-essential)
    command -v redis-server >/dev/null || missing+=(redis-server)
    # The tests of the store on PostgreSQL start servers of their own.
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
    [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
    # Where only the administrator's path leads.
    PATH="$PATH:/usr/sbin" command -v nats-server >/dev/null || missing+=(nats-server)
    if [ "$scope" = all ]; then
        [ -x /usr/bin/chromium ] || missing+=(chromium)
        [ -x /usr/bin/chromedriver ] || missing+=(chromium-driver)
        command -v valgrind >/dev/null || missing+=(valgrind)
        command -v python3 >/dev/null || missing+=(python3)
        # What configs/ is held to.
        command -v systemd-analyze >/dev/null || missing+=(systemd)
        [ -x /usr/sbin/haproxy ] || missing+=(haproxy)
        command -v openssl >/dev/null || missing+=(openssl)
        # What the load generator drives beside Millrace.
        [ -x /usr/sbin/mosquitto ] || missing+=(mosquitto)
        # The cluster test: its network, and the servers that it starts there.
        command -v ip >/dev/null || missing+=(iproute2)
        PATH="$PATH:/usr/sbin" command -v nats-server >/dev/null || missing+=(nats-server)
        python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    fi
    [ "${#missing[@]}" -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        echo "Please install as root: apt-get install ${missing[*]}" >&2
        return 1
    fi
    echo "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >/dev/null
    apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null
}

step "install what is missing"
need_packages
if [ "$scope" = all ]; then
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/e2e/requirements.txt
fi
done_step

step "formatting"
cargo fmt --all --check
done_step

step "lints (clippy, warnings are errors)"
cargo clippy --workspace --all-targets --locked -- -D warnings
done_step

step "unit, property and integration tests (cargo test)"
# All of it, whatever fails: one run then names everything that does.
cargo test --workspace --locked --no-fail-fast
done_step

step "the drivers' laws, over glommio as well (a cargo feature)"
cargo test --locked -p millrace-gateway --features glommio --test driver_conformance
done_step

step "test vectors are what their generator writes"
python3 protocol/vectors/generate.py --check
done_step

step "the table of what is proven names tests that exist"
python3 scripts/proof.py
done_step

[ "$scope" = all ] || exit 0

step "every program, as cargo's tests were built"
# With all checks that a release build leaves out, and without a second build of every dependency; only what counts
# instructions is a release build.
cargo build --locked -p millrace -p millrace-gateway -p millrace-logic -p millrace-loadgen --bins --example websocket-echo --example nats_consumer
export MILLRACE_BINARIES="$PWD/target/debug"
done_step

step "instructions of the hot paths, against the baseline (Callgrind)"
# A build of its own: what is compiled with it must not change what is counted.
scripts/instructions.py
done_step

step "WebSocket conformance (RFC 6455)"
scripts/websocket-conformance.sh
done_step

step "end to end: the real programs, an independent client, Chromium"
# The first row of the mission is one command on one machine, so that is what these tests start.
.venv/bin/python -m pytest -q --timeout=180 tests/e2e
done_step

step "a cluster of real processes under faults, and the checker of its history"
.venv/bin/python -m pytest -q --timeout=180 tests/cluster
done_step

step "load generator: every acknowledged message delivered, once, in order"
scripts/load-check.sh
done_step
