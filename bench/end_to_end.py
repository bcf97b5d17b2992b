"""What gateway, logic with the embedded store, and load generator cost together, at growing numbers of connections.

    .venv/bin/python bench/end_to_end.py --connections 1000,10000,100000 --json target/report/end-to-end.json

Three processes on this machine. Half of the clients speak TCP, half WebSocket; each is logged in with a signed token and
sends a heartbeat every minute. First all are idle for a while, for memory and for what idling costs; then single-chat
messages are sent on a schedule, and every acknowledged one must arrive. Each number of connections is one entry of the
JSON, added to those that are there, so that it can be measured on its own. A million wants 20 GB of memory.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from processes import BINARIES, Process, Tiers, metric  # noqa: E402

HEARTBEAT_SECONDS = 60
PHASES = ("idle", "load")


class MeasuredTiers(Tiers):
    """A gateway that asks for a heartbeat a minute: what two cores carry at a million."""

    def start_gateway(self):
        self.gateway_config.write_text(
            f'[listen]\nwebsocket = "127.0.0.1:{self.free_port("websocket")}"\n'
            f'tcp = "127.0.0.1:{self.free_port("tcp")}"\n'
            f'[admin]\nlisten = "127.0.0.1:{self.free_port("admin")}"\n'
            f'[connections]\nheartbeat_interval = "{HEARTBEAT_SECONDS}s"\nidle_timeout = "{3 * HEARTBEAT_SECONDS}s"\n'
            f'[logic]\nendpoints = ["http://127.0.0.1:{self.free_port("link")}"]\n'
            '[drain]\nshutdown = "3s"\n'
        )
        self.gateway = Process(
            [BINARIES / "millrace-gateway", "run", "--config", self.gateway_config], self.folder / "gateway.log"
        )
        self.until(self.gateway_ready, self.gateway)


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} is gone")


def available_bytes():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no MemAvailable")


def until(check, seconds, what, process):
    deadline = time.monotonic() + seconds
    while not check():
        if process.poll() is not None:
            raise SystemExit(f"the load generator ended before {what}")
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds} s")
        time.sleep(0.2)


def measure(arguments, connections, folder):
    tiers = MeasuredTiers(folder)
    tiers.start_logic()
    tiers.start_gateway()
    generator = None
    try:
        before = {"gateway": tiers.gateway.resident_bytes(), "logic": tiers.logic.resident_bytes()}
        available = available_bytes()
        hold = arguments.idle_seconds + 5
        report = folder / "generator.json"
        generator = subprocess.Popen(
            [
                str(part) for part in tiers.load_generator(
                    "chat", "--connections", connections, "--websocket-share", 0.5, "--single-rate", arguments.rate,
                    "--group-rate", 0, "--duration", f"{arguments.duration}s", "--ramp-rate", arguments.ramp_rate,
                    "--hold", f"{hold}s", "--allow-late", "--json", report,
                )
            ],
            stdout=subprocess.DEVNULL, stderr=open(folder / "generator.log", "wb"),
        )
        pids = {"gateway": tiers.gateway.pid, "logic": tiers.logic.pid, "generator": generator.pid}
        sessions = lambda: metric(tiers.ready["admin"], "millrace_sessions")
        until(lambda: sessions() >= connections, 60 + 4 * connections / arguments.ramp_rate, "everybody is logged in", generator)
        time.sleep(3)
        idle_before, idle_begin = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
        time.sleep(arguments.idle_seconds - 2)
        idle_seconds = time.monotonic() - idle_begin
        load_before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        resident = {name: resident_bytes(pid) for name, pid in pids.items()}
        used = available - available_bytes()
        load_begin = time.monotonic()
        # The generator's processor time is in its own report: it is gone before it can be asked.
        after = dict(load_before)
        while generator.poll() is None:
            if time.monotonic() - load_begin > arguments.duration + 180:
                raise SystemExit("the load generator does not end")
            after = {name: cpu_seconds(pids[name]) for name in ("gateway", "logic")}
            if time.monotonic() - load_begin > arguments.duration + 2 + 3:
                break
            time.sleep(0.1)
        load_seconds = time.monotonic() - load_begin
        generator.wait(180)
        result = json.loads(report.read_text())
        messages = result["verification"]["acked"]
        idle = {name: (load_before[name] - idle_before[name]) / idle_seconds for name in pids}
        load = {name: after[name] - load_before[name] - idle[name] * load_seconds for name in ("gateway", "logic")}
        load["generator"] = result["generator"]["cpu_seconds"] - idle["generator"] * result["load_seconds"]
        return {
            "connections": connections,
            "messages_per_second": arguments.rate,
            "duration_seconds": arguments.duration,
            "heartbeat_seconds": HEARTBEAT_SECONDS,
            "passed": result["passed"],
            "failures": result["failures"],
            "messages_acknowledged": messages,
            "deliveries": [result["verification"]["found_deliveries"], result["verification"]["expected_deliveries"]],
            "connections_lost": result["counters"].get("connections_lost", 0),
            "ramp_per_second": result.get("ramp_per_second"),
            "latency_us": {
                name: result["latency_us"][name] for name in ("login", "heartbeat", "ack", "delivery", "late")
                if result["latency_us"].get(name, {}).get("count")
            },
            "cpu_us_per_message": {name: 1e6 * seconds / max(messages, 1) for name, seconds in load.items()},
            "idle_cores": idle,
            "resident_bytes_per_connection": {
                **{name: (resident[name] - before[name]) / connections for name in before},
                "generator": resident["generator"] / connections,
            },
            # Both ends of every connection are on this machine.
            "kernel_bytes_per_connection": (
                used - sum(resident.values()) + sum(before.values())
            ) / connections,
        }
    finally:
        if generator and generator.poll() is None:
            generator.kill()
            generator.wait()
        tiers.stop()


def machine():
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ", 1)[1] for line in cpus if line.startswith("model name")), "unknown")
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    limit = next(line for line in Path("/proc/self/limits").read_text().splitlines() if line.startswith("Max open files"))
    run = lambda *command: subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "processor": f"{os.cpu_count()} × {model}", "memory_bytes": int(total.split()[1]) * 1024,
        "kernel": os.uname().release, "descriptors_max": int(limit.split()[4]), "rustc": run("rustc", "--version"),
    }, run("git", "rev-parse", "--short", "HEAD") + ("+" if run("git", "status", "--porcelain", "--untracked-files=no") else "")


def add(path, figure):
    """The same file format as the other measurements; an entry with as many connections is replaced."""
    here, commit = machine()
    command = " ".join(["end_to_end.py", *sys.argv[1:]])
    known = json.loads(path.read_text()) if path.exists() else None
    if known is None or known["machine"] != here:
        known = {"machine": here, "commits": [], "commands": [], "figures": []}
    for name, item in (("commits", commit), ("commands", command)):
        if item not in known[name]:
            known[name].append(item)
    others = [other for other in known["figures"] if other["connections"] != figure["connections"]]
    known["figures"] = sorted([*others, figure], key=lambda one: one["connections"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", default="1000,10000,100000", help="comma-separated")
    parser.add_argument("--rate", type=int, default=2_000, help="messages a second")
    parser.add_argument("--duration", type=int, default=20, help="seconds of load")
    parser.add_argument("--idle-seconds", type=int, default=10, help="seconds without load before it")
    parser.add_argument("--ramp-rate", type=int, default=8_000, help="connections opened a second")
    parser.add_argument("--json", type=Path, default=ROOT / "target" / "report" / "end-to-end.json")
    arguments = parser.parse_args()
    if arguments.idle_seconds < 4:
        parser.error("--idle-seconds must be at least 4")
    for connections in map(int, arguments.connections.split(",")):
        with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name:
            figure = measure(arguments, connections, Path(name))
        add(arguments.json, figure)
        delivery = figure["latency_us"]["delivery"]
        cost, memory = figure["cpu_us_per_message"], figure["resident_bytes_per_connection"]
        print(
            f"{connections:>9,} connections: delivery p50 {delivery['p50'] / 1000:.1f} ms, p99.9 {delivery['p99.9'] / 1000:.1f} ms; "
            f"a message costs gateway {cost['gateway']:.0f} µs, logic {cost['logic']:.0f} µs; "
            f"a connection {memory['gateway']:.0f} B in the gateway, {memory['logic']:.0f} B in logic, "
            f"{figure['kernel_bytes_per_connection']:.0f} B in the kernel; {'passed' if figure['passed'] else figure['failures']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
