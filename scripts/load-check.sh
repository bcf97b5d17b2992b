#!/usr/bin/env bash
# Starts `millrace dev` and lets the load generator verify it for a short while: every acknowledged
# message delivered to every recipient, once, in order. The figures of record, at full size, are in
# docs/measurements; CONNECTIONS, RATE, GROUP_RATE and DURATION change the size, MILLRACE_BINARIES says
# where the programs are (default: target/release).
set -euo pipefail
cd "$(dirname "$0")/.."

connections="${CONNECTIONS:-2000}" rate="${RATE:-1000}" group_rate="${GROUP_RATE:-50}" duration="${DURATION:-10s}"
binaries="${MILLRACE_BINARIES:-target/release}"
folder=$(mktemp -d)
"$binaries/millrace" dev --json --data "$folder/data" --websocket 127.0.0.1:0 --tcp 127.0.0.1:0 \
    --http 127.0.0.1:0 --admin 127.0.0.1:0 >"$folder/ready" 2>"$folder/log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
for _ in $(seq 300); do
    [ -s "$folder/ready" ] && break
    kill -0 "$server" 2>/dev/null || { cat "$folder/log" >&2; exit 1; }
    sleep 0.1
done
timeout 300 "$binaries/millrace-loadgen" chat --dev-json "$folder/ready" \
    --connections "$connections" --single-rate "$rate" --group-rate "$group_rate" --group-size 20 \
    --duration "$duration" --json "$folder/report.json" \
    --threshold 'delivery_p99.9<500ms' --allow-late
