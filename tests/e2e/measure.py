"""The figures of record: separate tiers under the load generator, with memory and CPU by process. A script, see --help.

    .venv/bin/python tests/e2e/measure.py                     18,000 connections, 5,000 + 200 messages/s for 60 s
    .venv/bin/python tests/e2e/measure.py --kind silent       10,000 silent connections: when they end, what memory is left

Run it on a quiet machine. It prints what it saw; docs/measurements keeps what was seen.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from processes import Tiers, metric


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until(check, seconds, what):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.2)


def chat(arguments, tiers, folder):
    ready = tiers.ready
    sessions = lambda: metric(ready["admin"], "millrace_sessions")
    empty = tiers.gateway.resident_bytes()
    report = folder / "report.json"
    generator = subprocess.Popen(
        tiers.load_generator(
            "chat", "--connections", arguments.connections, "--websocket-share", 0.5,
            "--single-rate", arguments.single_rate, "--group-rate", arguments.group_rate, "--group-size", 20,
            "--duration", f"{arguments.duration}s", "--ramp-rate", 3000, "--hold", 10, "--allow-late",
            "--threshold", "delivery_p99.9<500ms", "--json", report,
        ),
        stderr=open(folder / "progress", "w"),
    )
    try:
        wait_until(lambda: sessions() == arguments.connections, 120, "the connections")
        time.sleep(5)
        idle = tiers.gateway.resident_bytes()
        print(
            f"gateway resident: {empty:,} B without connections, {idle:,} B with {arguments.connections:,} idle: "
            f"{(idle - empty) / arguments.connections:.0f} B a connection", flush=True,
        )
        time.sleep(5)
        before = {name: cpu_seconds(process.pid) for name, process in (("gateway", tiers.gateway), ("logic", tiers.logic))}
        generator.wait(arguments.duration + 120)
        after = {name: cpu_seconds(process.pid) for name, process in (("gateway", tiers.gateway), ("logic", tiers.logic))}
    finally:
        if generator.poll() is None:
            generator.kill()
    result = json.loads(report.read_text())
    messages = result["verification"]["acked"]
    for name in before:
        used = after[name] - before[name]
        print(f"{name}: {used:.1f} s CPU, {used / messages * 1e6:.0f} µs a message (heartbeats and receipts included)")
    print(f"generator: {result['generator']['cpu_seconds']:.1f} s CPU, late p99 {result['generator']['late_p99_us'] / 1000:.1f} ms")
    print(f"gateway resident after the load: {tiers.gateway.resident_bytes():,} B; logic: {tiers.logic.resident_bytes():,} B")
    return generator.returncode


def silent(arguments, tiers, folder):
    ready = tiers.ready
    empty = tiers.gateway.resident_bytes()
    report = folder / "report.json"
    generator = subprocess.Popen(
        tiers.load_generator(
            "idle", "--silent", "--connections", arguments.connections, "--ramp-rate", 3000, "--duration", "30s",
            "--json", report,
        ),
        stderr=open(folder / "progress", "w"),
    )
    sessions = lambda: metric(ready["admin"], "millrace_sessions")
    wait_until(lambda: sessions() == arguments.connections, 60, "the connections")
    full = tiers.gateway.resident_bytes()
    generator.wait(120)
    wait_until(lambda: metric(ready["admin"], "millrace_connections") == 0, 20, "the end of all connections")
    time.sleep(3)
    left = tiers.gateway.resident_bytes()
    print(f"ends: {json.dumps(json.loads(report.read_text())['endings'])}")
    print(f"gateway resident: {empty:,} B before, {full:,} B with {arguments.connections:,} silent, {left:,} B after they ended")
    second = subprocess.run(
        tiers.load_generator(
            "idle", "--connections", arguments.connections, "--ramp-rate", 3000, "--duration", "3s",
        ),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
    )
    print(f"gateway resident after as many once more: {tiers.gateway.resident_bytes():,} B (growth would be a leak)")
    return generator.returncode or second.returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["chat", "silent"], default="chat")
    parser.add_argument("--connections", type=int)
    parser.add_argument("--single-rate", type=int, default=5_000)
    parser.add_argument("--group-rate", type=int, default=200)
    parser.add_argument("--duration", type=int, default=60)
    arguments = parser.parse_args()
    arguments.connections = arguments.connections or {"chat": 18_000, "silent": 10_000}[arguments.kind]
    with tempfile.TemporaryDirectory(prefix="millrace-measure-") as name:
        folder = Path(name)
        tiers = Tiers(folder)
        tiers.start_logic()
        tiers.start_gateway()
        try:
            return {"chat": chat, "silent": silent}[arguments.kind](arguments, tiers, folder)
        finally:
            tiers.stop()


if __name__ == "__main__":
    sys.exit(main())
