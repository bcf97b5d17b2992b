"""What the gateway costs over each of its drivers, in one run on one machine. A script, see --help.

    cargo build --release -p millrace-gateway --features glommio --bins --example websocket-echo
    cargo build --release -p millrace-logic -p millrace-loadgen
    .venv/bin/python tests/e2e/drivers.py --rounds 3

One core for the server, one for everything else. For each driver: the WebSocket echo of the example server in a closed
loop; the heartbeat of the whole gateway (logged in through logic) in a closed loop; and what an idle logged-in
connection costs the gateway in resident memory. The drivers take turns in each round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import cpu_seconds, wait_until
from processes import BINARIES, Tiers, metric

SERVER_CORE, OTHER_CORE = 0, 1


def on_core(core):
    return lambda: os.sched_setaffinity(0, {core})


def generator(command, report):
    """Runs the load generator on the other core; its report, whatever its verdict."""
    finished = subprocess.run(
        [*(str(word) for word in command), "--json", str(report), "--quiet", "--allow-late"],
        preexec_fn=on_core(OTHER_CORE), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120,
    )
    assert report.exists(), finished.stderr[-2000:]
    return json.loads(report.read_text())


def echo(driver, connections, seconds, folder):
    """Echoes a second, and CPU of the server for each of them in µs."""
    server = subprocess.Popen(
        [BINARIES / "examples" / "websocket-echo", "127.0.0.1:0", "--driver", driver],
        preexec_fn=on_core(SERVER_CORE), stdout=subprocess.PIPE, text=True,
    )
    try:
        address = server.stdout.readline().split()[-1]
        before = cpu_seconds(server.pid)
        result = generator(
            [
                BINARIES / "millrace-loadgen", "echo", f"{address}/", "--connections", connections, "--rate", 0,
                "--duration", f"{seconds}s", "--ramp-rate", 20_000,
            ],
            folder / f"echo-{driver}-{connections}.json",
        )
        echoes = result["counters"]["echoes"]
        return echoes / seconds, (cpu_seconds(server.pid) - before) / echoes * 1e6
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def heartbeats(driver, flat_out, arguments, folder):
    """Heartbeats a second of the whole gateway, CPU of it for each in µs, bytes of an idle connection."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    tiers = Tiers(folder, gateway_preexec=on_core(SERVER_CORE), gateway_section=f'driver = "{driver}"\nshards = 1\n')
    tiers.start_logic()
    os.sched_setaffinity(tiers.logic.pid, {OTHER_CORE})
    tiers.start_gateway()
    try:
        empty = tiers.gateway.resident_bytes()
        report = folder / "report.json"
        running = subprocess.Popen(
            [
                *(str(word) for word in tiers.load_generator("idle")), "--connections", str(arguments.connections),
                "--websocket-share", "1", "--threads", "1", "--ramp-rate", "8000", "--flat-out", str(flat_out),
                "--duration", f"{arguments.seconds}s", "--json", str(report), "--quiet",
            ],
            preexec_fn=on_core(OTHER_CORE), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        wait_until(lambda: metric(tiers.ready["admin"], "millrace_sessions") >= arguments.connections, 60, "the connections")
        bytes_each = (tiers.gateway.resident_bytes() - empty) / arguments.connections
        time.sleep(arguments.seconds * 0.2)
        before, started = cpu_seconds(tiers.gateway.pid), time.monotonic()
        time.sleep(arguments.seconds * 0.6)
        share = (cpu_seconds(tiers.gateway.pid) - before) / (time.monotonic() - started)
        running.communicate(timeout=60)
        rate = json.loads(report.read_text())["rates"]["flat_out"]
        return rate, share / rate * 1e6, bytes_each
    finally:
        # Nothing of these processes is looked at any more.
        tiers.gateway.kill()
        tiers.logic.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drivers", default="io_uring,monoio_io_uring,epoll,glommio")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=3, help="of each point")
    parser.add_argument("--connections", type=int, default=10_000, help="logged in for the heartbeats")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    drivers = arguments.drivers.split(",")
    seen = {driver: {} for driver in drivers}
    with tempfile.TemporaryDirectory(prefix="millrace-drivers-") as name:
        folder = Path(name)
        for _ in range(arguments.rounds):
            for driver in drivers:
                note = lambda key, value: seen[driver].setdefault(key, []).append(value)
                for connections in (100, 1_000):
                    rate, cost = echo(driver, connections, arguments.seconds, folder)
                    note(f"echo {connections}/s", rate)
                    note(f"echo {connections} µs", cost)
                for flat_out in (100, 1_000):
                    rate, cost, bytes_each = heartbeats(driver, flat_out, arguments, folder)
                    note(f"heartbeat {flat_out}/s", rate)
                    note(f"heartbeat {flat_out} µs", cost)
                    note("bytes idle", bytes_each)
                print(driver, {key: round(values[-1], 1) for key, values in seen[driver].items()}, file=sys.stderr, flush=True)
    keys = list(seen[drivers[0]])
    print("| driver | " + " | ".join(keys) + " |\n|---" * 1 + "|---" * len(keys) + "|")
    for driver in drivers:
        cells = [f"{statistics.median(seen[driver][key]):,.1f}" for key in keys]
        print(f"| {driver} | " + " | ".join(cells) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(seen, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
