#!/usr/bin/env bash
# Measures and writes the report: target/report/report.md with its plots, from JSON beside it.
#
#   scripts/bench.sh quick             everything once and briefly, up to 10,000 connections: about five minutes
#   scripts/bench.sh full              three rounds, up to 1,000,000 connections (20 GiB of memory): about fifty minutes
#   scripts/bench.sh part NAME ...     only these parts, added to what is in target/report
#   scripts/bench.sh report            only draw the report from what is in target/report
#   scripts/bench.sh publish           draw it into docs/measurements/report, to be committed
#
# Parts: runtimes, fan-out, instructions, criterion, single-chat, million, and end-to-end or end-to-end=N,N for these numbers of
# connections.
# Run it on a machine with nothing else to do; two cores at least. BENCH_ROUNDS overrides the number of rounds.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=target/report
peers_target=target/peers
mode="${1:-quick}"
[ $# -gt 0 ] && shift

say() { printf '\n==> %s\n' "$*"; }

usage() {
    sed -n '2,12p' "$0" | sed 's/^# \{0,1\}//'
    exit 2
}

build() {
    say "build, release"
    cargo build --release --locked -p millrace-bench-edge -p millrace-gateway -p millrace-logic -p millrace-loadgen \
        --bins --example websocket-echo --features millrace-gateway/glommio
}

build_peers() {
    say "build the servers of others (bench/runtimes)"
    CARGO_TARGET_DIR="$peers_target" cargo build --release --locked --manifest-path bench/runtimes/Cargo.toml
}

python() {
    # tests/e2e has the helpers that start the tiers; it needs the packages of its requirements.txt.
    if [ ! -x .venv/bin/python ]; then
        python3 -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/e2e/requirements.txt
    fi
    .venv/bin/python "$@"
}

part() {
    case "$1" in
    runtimes)
        build_peers
        say "the same echo on several runtimes, 100 connections"
        target/release/runtimes --rounds "$rounds"
        say "the same with 15,000 connections, 1,000 of them talking"
        target/release/runtimes --rounds "$rounds" --connections 15000 --active 1000
        ;;
    fan-out)
        say "fan-out to one room"
        target/release/fan-out --rounds "$rounds"
        ;;
    instructions)
        say "instructions of the hot paths"
        # A growth is the tests' business; here it is only written down.
        scripts/instructions.py --json "$folder/instructions.json" || true
        ;;
    single-chat)
        say "single chat, and where its time goes"
        python tests/e2e/single_chat.py --rates 5000,20000 --duration 20 --json "$folder/single-chat.json" || true
        if command -v perf >/dev/null; then
            python tests/e2e/single_chat.py --rates 20000 --duration 10 --perf "$folder/perf" --json "$folder/single-chat-profile.json" || true
            rm -rf "$folder/perf"
        else
            echo "no perf here (Debian: linux-perf): the report will have no profile"
        fi
        ;;
    million)
        say "a million connections with everything at once"
        python tests/e2e/million.py --scenario million --heartbeat 300 --hold 60 --json "$folder/million.json" || true
        ;;
    criterion)
        say "criterion"
        cargo bench --locked -p millrace-hot-paths
        cargo bench --locked -p millrace-bench --bench store
        ;;
    end-to-end | end-to-end=*)
        local connections="${1#end-to-end}"
        connections="${connections#=}"
        for count in $(tr , ' ' <<<"${connections:-$end_to_end}"); do
            say "gateway, logic and generator with $count connections"
            # The same work at every number of connections. A run that fails its verification says so in the report.
            python tests/e2e/million.py --connections "$count" --heartbeat 90 --hold 20 --duration 30 --single-rate 2000 \
                --churn 0 --room-size 0 --json "$folder/end-to-end-$count.json" || true
        done
        ;;
    *)
        echo "there is no part \"$1\"" >&2
        usage
        ;;
    esac
}

rounds="${BENCH_ROUNDS:-3}"
end_to_end=1000,10000,100000
case "$mode" in
quick | full)
    if [ "$mode" = quick ]; then
        rounds="${BENCH_ROUNDS:-1}"
        end_to_end=1000,10000
    else
        end_to_end=1000,10000,100000,1000000
    fi
    rm -rf "$folder"
    build
    for name in instructions runtimes fan-out end-to-end single-chat; do part "$name"; done
    if [ "$mode" = full ]; then
        for name in million criterion; do part "$name"; done
    fi
    ;;
part)
    [ $# -gt 0 ] || usage
    build
    for name in "$@"; do part "$name"; done
    ;;
report) ;;
publish)
    rm -rf docs/measurements/report
    target/release/report --from "$folder" --to docs/measurements/report
    exit
    ;;
*) usage ;;
esac
say "report"
target/release/report --from "$folder" --to "$folder"
