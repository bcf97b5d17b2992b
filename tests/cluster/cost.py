#!/usr/bin/env python3
"""What a session and a message of a fleet cost PostgreSQL, Redis and NATS.

    .venv/bin/python tests/cluster/cost.py --logics 1,3 --connections 10000 --rate 1000 --duration 20

One gateway, so many logic processes, the three services and the load generator as processes of this machine on loopback addresses. First the
connections come and are quiet: that is what a session takes. Then single-chat messages among 2,000 of other users: that is what a message
takes. Bytes and counts are the same on any machine; processor time is this one's, and says something only of release builds on a quiet one
(MILLRACE_BINARIES names the folder of the programs). docs/measurements/services.md has the figures.
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
from urllib import request as http_request

from network import Network
from nodes import ADMIN, API_TOKEN, BINARIES, HTTP, JWT_SECRET, WEBSOCKET, Gateway, Logic
from services import Nats, Postgres, Redis, exchange

TICKS = os.sysconf("SC_CLK_TCK")
MONITOR = 8222


class MonitoredNats(Nats):
    def command(self):
        return [*super().command(), "-m", MONITOR]

    def seen(self):
        opener = http_request.build_opener(http_request.ProxyHandler({}))
        return json.loads(opener.open(f"http://{self.address}:{MONITOR}/varz", timeout=5).read())


class RoomyGateway(Gateway):
    def command(self):
        command = super().command()
        path = Path(command[-1])
        path.write_text(path.read_text().replace("connections_max = 4096\n", "connections_max = 0\n").replace('heartbeat_interval = "2s"', 'heartbeat_interval = "30s"'))
        return command


def cpu_seconds(node):
    """Of a process and its children, those that have ended included."""
    total = 0
    for pid in node.family():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
        if pid == node.process.pid:
            total += int(fields[13]) + int(fields[14])
    return total / TICKS


def private_bytes(pid):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024


class Fleet:
    def __init__(self, folder, logics):
        network = Network()
        network.has_namespaces = False
        self.postgres, self.redis, self.nats = Postgres(network, folder), Redis(network, folder), MonitoredNats(network, folder)
        services = {"postgres": self.postgres, "redis": self.redis, "nats": self.nats}
        self.logics = [Logic(network, number, folder, services, {}) for number in range(1, logics + 1)]
        for logic in self.logics:
            logic.environment = {"RUST_LOG": "warn"}
        self.gateway = RoomyGateway(network, 1, folder, self.logics, {"shards": 2, "idle_s": 90})
        self.nodes = [self.postgres, self.redis, self.nats, *self.logics, self.gateway]

    def start(self):
        for tier in ([self.postgres, self.redis, self.nats], self.logics, [self.gateway]):
            for node in tier:
                if node is self.logics[0]:
                    node.migrate()
                node.start()
            for node in tier:
                assert node.wait_until_ready(), node.tail()

    def end(self):
        for node in reversed(self.nodes):
            node.kill()

    def query(self, sql):
        return subprocess.run(["psql", "-qtAc", sql, self.postgres.url], capture_output=True, text=True, check=True).stdout.strip()

    def redis_says(self, section):
        heard = exchange((self.redis.address, self.redis.port), f"INFO {section}\r\n".encode(), lambda heard: heard.endswith(b"\r\n\r\n") or heard.count(b"\r\n") > 8)
        return dict(line.split(":", 1) for line in heard.decode().splitlines() if ":" in line)

    def generator(self, kind, *options):
        command = [BINARIES / "millrace-loadgen", kind, "--websocket", f"ws://{self.gateway.address}:{WEBSOCKET}/ws", "--jwt-secret", JWT_SECRET,
                   "--websocket-share", "1", "--quiet"]
        if kind == "chat":
            command += ["--http", f"http://{self.logics[0].address}:{HTTP}", "--api-token", API_TOKEN, "--allow-late"]
        return [str(word) for word in (*command, *options)]

    def look(self):
        nats = self.nats.seen()
        opener = http_request.build_opener(http_request.ProxyHandler({}))
        metrics = opener.open(f"http://{self.gateway.address}:{ADMIN}/metrics", timeout=5).read().decode()
        total = lambda name: sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(name) and line[len(name)] in "{ ")
        return {
            "at": time.monotonic(),
            "commits": int(self.query("select pg_stat_clear_snapshot(); select xact_commit from pg_stat_database where datname = 'postgres'").split()[-1]),
            "wal_bytes": int(self.query("select pg_current_wal_lsn() - '0/0'").split(".")[0]),
            "database_bytes": int(self.query("select pg_database_size('postgres')")),
            "redis_bytes": int(self.redis_says("memory")["used_memory"]),
            "redis_commands": int(self.redis_says("stats")["total_commands_processed"]),
            "nats_messages": nats["in_msgs"], "nats_bytes": nats["in_bytes"], "nats_out_bytes": nats["out_bytes"],
            "gateway_in_bytes": total("millrace_received_bytes_total"), "gateway_out_bytes": total("millrace_sent_bytes_total"),
            "gateway_bytes": private_bytes(self.gateway.process.pid),
            "logic_bytes": sum(private_bytes(logic.process.pid) for logic in self.logics),
            **{f"cpu_{kind}": sum(cpu_seconds(node) for node in nodes)
               for kind, nodes in (("postgres", [self.postgres]), ("redis", [self.redis]), ("nats", [self.nats]), ("logic", self.logics), ("gateway", [self.gateway]))},
        }


def growth(before, after):
    return {name: after[name] - before[name] for name in before}


def sessions(fleet, connections, folder):
    """What a quiet session takes, and its login."""
    before = fleet.look()
    report = folder / "idle.json"
    generator = subprocess.Popen(fleet.generator("idle", "--connections", connections, "--ramp-rate", 1500, "--duration", f"{connections // 1500 + 25}s", "--json", report))
    try:
        opener = http_request.build_opener(http_request.ProxyHandler({}))
        address = f"http://{fleet.gateway.address}:{ADMIN}/metrics"
        up = lambda: sum(float(line.rsplit(" ", 1)[1]) for line in opener.open(address, timeout=5).read().decode().splitlines() if line.startswith(("millrace_sessions{", "millrace_sessions ")))
        deadline = time.monotonic() + 200
        while up() < connections:
            assert time.monotonic() < deadline and generator.poll() is None, "they did not all log in"
            time.sleep(0.5)
        time.sleep(5)
        grown = growth(before, fleet.look())
    finally:
        generator.terminate()
        generator.wait()
    print(f"{connections:,} sessions; each of them:")
    for name, what in (("gateway_bytes", "memory of the gateway"), ("logic_bytes", "memory of all logic processes"),
                       ("redis_bytes", "memory of Redis"), ("redis_commands", "commands of Redis, a login"), ("commits", "commits of PostgreSQL, a login")):
        print(f"    {grown[name] / connections:10.2f}  {what}")
    for kind in ("gateway", "logic", "postgres", "redis", "nats"):
        print(f"    {grown[f'cpu_{kind}'] / connections * 1e6:10.0f}  µs of {kind}, a login with what follows it in 5 s")


def messages(fleet, rate, duration, folder):
    """What a single-chat message takes."""
    report = folder / "chat.json"
    generator = subprocess.Popen(
        fleet.generator("chat", "--connections", 2000, "--ramp-rate", 1000, "--hold", "8s", "--single-rate", rate, "--group-rate", 0, "--duration", f"{duration}s", "--user-prefix", "chat", "--json", report),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    # All are there and quiet.
    time.sleep(6)
    before = fleet.look()
    said, _ = generator.communicate(timeout=duration + 120)
    grown = growth(before, fleet.look())
    found = json.loads(report.read_text())
    count = found["verification"]["acked"]
    print(f"{count:,} messages of single chat, {rate} a second, exit code {generator.returncode}; each of them:")
    for name, what in (("database_bytes", "bytes of tables and indexes in PostgreSQL"), ("wal_bytes", "bytes of its log"), ("commits", "its commits"), ("nats_messages", "messages to NATS"),
                       ("nats_bytes", "bytes to NATS"), ("nats_out_bytes", "bytes from NATS"), ("redis_commands", "commands of Redis"),
                       ("gateway_in_bytes", "bytes from clients, headers of TCP and IP apart"), ("gateway_out_bytes", "bytes to clients, likewise")):
        print(f"    {grown[name] / count:10.3f}  {what}")
    for kind in ("gateway", "logic", "postgres", "redis", "nats"):
        print(f"    {grown[f'cpu_{kind}'] / count * 1e6:10.0f}  µs of {kind}")
    print("    " + "\n    ".join(line for line in said.splitlines() if line.startswith(("ack_single", "delivery_single", "verified", "latency"))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logics", default="1,3", help="numbers of logic processes, a fleet for each")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--rate", default="1000", help="messages a second, one or several with commas")
    parser.add_argument("--duration", type=int, default=20, help="seconds of each rate")
    arguments = parser.parse_args()
    for logics in arguments.logics.split(","):
        with tempfile.TemporaryDirectory(prefix="millrace-cost-") as folder:
            folder = Path(folder)
            folder.chmod(0o755)
            fleet = Fleet(folder, int(logics))
            try:
                fleet.start()
                print(f"--- 1 gateway, {logics} logic process(es)", flush=True)
                if arguments.connections:
                    sessions(fleet, arguments.connections, folder)
                for rate in arguments.rate.split(","):
                    messages(fleet, int(rate), arguments.duration, folder)
                sys.stdout.flush()
            finally:
                fleet.end()


if __name__ == "__main__":
    main()
