#!/usr/bin/env bash
# Starts the example server `websocket-echo` and runs the RFC 6455 conformance suite against it.
# Builds the server if it is not there; stops it afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."

# Where MILLRACE_BINARIES says, or built as a release.
binary="${MILLRACE_BINARIES:-target/release}/examples/websocket-echo"
if [ ! -x "$binary" ]; then
    binary=target/release/examples/websocket-echo
    cargo build --release -p millrace-gateway --example websocket-echo
fi

folder=$(mktemp -d)
"$binary" 127.0.0.1:0 >"$folder/out" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
for _ in $(seq 100); do
    address=$(sed -n 's|^listening on ws://||p' "$folder/out")
    [ -n "$address" ] && break
    sleep 0.1
done
timeout 600 python3 tests/websocket/conformance.py "$address"
