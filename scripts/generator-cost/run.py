#!/usr/bin/env python3
"""What a load generator costs: bytes and processor per idle WebSocket connection, and processor per message, of
millrace-loadgen and of k6 in one run, against one echo server (`ws` on Node).

    scripts/generator-cost/run.py --k6 ~/go/bin/k6 --node-modules node_modules --turns 3

Every turn measures every generator once, one after the other; the table has the medians. The generator has core 0
and the server core 1. Memory and processor time are the kernel's, from /proc; how many connections, pings and
messages there were is counted by the server and not believed of the generator. --save keeps the turns in a file, and
a later call adds to it.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PING_SECONDS = 10
IDLE_SECONDS = 20
RAMP_SECONDS = 6
MESSAGE_SECONDS = 15
MESSAGE_CONNECTIONS = 500
BASELINE_CONNECTIONS = 10
TICKS = os.sysconf("SC_CLK_TCK")


class EchoServer:
    """Counts what it sees, a line a second."""

    def __init__(self, node_modules):
        environment = {**os.environ, "NODE_PATH": str(Path(node_modules).resolve())}
        self.process = subprocess.Popen(
            ["taskset", "-c", "1", "node", HERE / "echo.cjs", "0"], env=environment, stdout=subprocess.PIPE, text=True,
        )
        self.port = json.loads(self.process.stdout.readline())["port"]
        self.seen = {"connections": 0, "messages": 0, "pings": 0}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.seen = json.loads(line)

    def wait_for(self, connections, seconds=120):
        deadline = time.monotonic() + seconds
        while self.seen["connections"] < connections:
            assert time.monotonic() < deadline, f"{self.seen} instead of {connections} connections"
            time.sleep(0.2)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def usage(pid):
    """Resident bytes, and seconds of processor time."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return resident, (int(fields[11]) + int(fields[12])) / TICKS


def loadgen(arguments, url, folder, connections, stay, per_second=0):
    """The command of a run of ours."""
    chat = f"[single_chat]\nper_second = {per_second}\n" if per_second else ""
    scenario = folder / "scenario.toml"
    scenario.write_text(
        f'protocol = "websocket_echo"\nconnections = {connections}\nmessage_bytes = 100\n'
        f"[connect]\nper_second = {max(connections / RAMP_SECONDS, 100)}\n"
        f'[websocket_echo]\ntext = true\nping_interval = "{PING_SECONDS if not per_second else 0}s"\n{chat}'
        f'[[stage]]\nduration = "{stay}s"\n[generator]\nthreads = 1\n'
    )
    return [arguments.loadgen, "run", scenario, "--websocket", url, "--quiet", "--allow-late"], {}


def k6(each):
    """The command of a run of k6 with so many connections in a virtual user."""

    def command(arguments, url, _, connections, stay, per_second=0):
        environment = {
            "URL": url, "VUS": max(1, connections // each), "EACH": min(each, connections), "RAMP_MS": RAMP_SECONDS * 1000,
            "STAY_MS": stay * 1000, "PING_MS": PING_SECONDS * 1000,
        }
        if per_second:
            environment["EVERY_MS"] = connections * 1000 // per_second
        words = [arguments.k6, "run", "--quiet", "--no-usage-report", HERE / ("messages.js" if per_second else "idle.js")]
        return words, {name: str(value) for name, value in environment.items()}

    return command


def observe(arguments, make, connections, window, per_second=0):
    """Runs a generator against a fresh server: its memory, and its processor time over a window of the steady state."""
    server = EchoServer(arguments.node_modules)
    with tempfile.TemporaryDirectory() as folder:
        url = f"ws://127.0.0.1:{server.port}/"
        words, more = make(arguments, url, Path(folder), connections, window + 30, per_second)
        words = ["taskset", "-c", "0", *[str(word) for word in words]]
        generator = subprocess.Popen(words, env={**os.environ, **more}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            server.wait_for(connections)
            # Until everybody is there everywhere, and the counts of the last second are in.
            time.sleep(4)
            before, (_, cpu_before), began = dict(server.seen), usage(generator.pid), time.monotonic()
            time.sleep(window)
            after, (resident, cpu_after), ended = dict(server.seen), usage(generator.pid), time.monotonic()
            assert after["connections"] == connections, after
        finally:
            generator.kill()
            generator.wait()
            server.stop()
    return {
        "resident": resident,
        "cpu": cpu_after - cpu_before,
        "seconds": ended - began,
        "pings": after["pings"] - before["pings"],
        "messages": after["messages"] - before["messages"],
    }


def turn(arguments, make, connections):
    baseline = observe(arguments, make, BASELINE_CONNECTIONS, 1)
    idle = observe(arguments, make, connections, IDLE_SECONDS)
    busy = observe(arguments, make, MESSAGE_CONNECTIONS, MESSAGE_SECONDS, arguments.rate)
    grown = (idle["resident"] - baseline["resident"]) / (connections - BASELINE_CONNECTIONS)
    return {
        "connections": connections,
        "resident_mb": idle["resident"] / 1e6,
        "bytes_per_connection": grown,
        "cpu_us_per_connection_minute": idle["cpu"] * 1e6 / connections * 60 / idle["seconds"],
        "pings_per_connection_minute": idle["pings"] / connections * 60 / idle["seconds"],
        "cpu_us_per_message": busy["cpu"] * 1e6 / max(1, busy["messages"]),
        "messages_per_second": busy["messages"] / busy["seconds"],
        "cpu_percent": 100 * busy["cpu"] / busy["seconds"],
    }


COLUMNS = [
    ("connections", "connections", "{:,.0f}"),
    ("resident_mb", "resident, MB", "{:,.1f}"),
    ("bytes_per_connection", "bytes a connection", "{:,.0f}"),
    ("pings_per_connection_minute", "pings a connection and minute", "{:.1f}"),
    ("cpu_us_per_connection_minute", "CPU µs a connection and minute", "{:,.0f}"),
    ("messages_per_second", "messages/s seen by the server", "{:,.0f}"),
    ("cpu_us_per_message", "CPU µs a message", "{:,.1f}"),
    ("cpu_percent", "CPU % of a core at that", "{:,.0f}"),
]


def table(turns):
    lines = ["| generator | turns | " + " | ".join(title for _, title, _ in COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in dict.fromkeys(one["generator"] for one in turns):
        mine = [one for one in turns if one["generator"] == name]
        cells = [form.format(statistics.median(one[key] for one in mine)) for key, _, form in COLUMNS]
        lines.append(f"| {name} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def version(*words):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loadgen", default=ROOT / "target/release/millrace-loadgen", help="a release build of ours")
    parser.add_argument("--k6", default=shutil.which("k6"), help="the program; go install go.k6.io/k6@latest")
    parser.add_argument("--node-modules", default="node_modules", help="where npm install ws put it")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--vu-connections", type=int, default=1_000, help="of k6 with a virtual user for each")
    parser.add_argument("--rate", type=int, default=5_000, help="messages a second")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--save", type=Path, help="a JSON file that keeps the turns")
    arguments = parser.parse_args()
    generators = [("millrace-loadgen", loadgen, arguments.connections)]
    if arguments.k6:
        generators += [
            ("k6, 100 connections a virtual user", k6(100), arguments.connections),
            ("k6, a virtual user for each", k6(1), arguments.vu_connections),
        ]
    turns = json.loads(arguments.save.read_text()) if arguments.save and arguments.save.exists() else []
    for number in range(arguments.turns):
        for name, make, connections in generators:
            turns.append({"generator": name, **turn(arguments, make, connections)})
            print(json.dumps(turns[-1]), flush=True)
            if arguments.save:
                arguments.save.write_text(json.dumps(turns, indent=1))
    ws = json.loads((Path(arguments.node_modules) / "ws/package.json").read_text())["version"]
    print(f"\n{platform.release()}; {version(arguments.loadgen, '--version')}; Node {version('node', '--version')}, ws {ws}", end="")
    print(f"; {version(arguments.k6, 'version')}" if arguments.k6 else "")
    print(table(turns))


if __name__ == "__main__":
    main()
