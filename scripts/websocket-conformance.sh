#!/usr/bin/env bash
# Starts the example server `websocket-echo` and runs the RFC 6455 conformance suite against it.
# Builds the server if it is not there; stops it afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=target/release/examples/websocket-echo
[ -x "$binary" ] || cargo build --release -p millrace-gateway --example websocket-echo

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$binary" "127.0.0.1:$port" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
for _ in $(seq 100); do
    python3 -c "import socket; socket.create_connection(('127.0.0.1', $port), 1).close()" 2>/dev/null && break
    sleep 0.1
done
timeout 600 python3 tests/websocket/conformance.py "127.0.0.1:$port"
