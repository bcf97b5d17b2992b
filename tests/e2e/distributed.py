"""The distributed stores beside the embedded one, in one run: what a message costs, by process. A script, see --help.

    .venv/bin/python tests/e2e/distributed.py --rates 500,2000,20000

Each row is a layout of real processes on this machine, one after another, each with empty stores; a layout is a gateway and a logic process
count, and what logic stands on. A rate above what a layout carries shows what it carries: what is stored a second. One generator for each
gateway verifies every message. CPU is counted from a second after the first stored message to a second before the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from nats import Nats
from postgres_server import PostgresServer
from processes import Tiers, metric
from redis_server import RedisServer

TICKS = os.sysconf("SC_CLK_TCK")

# Name: gateways, logics, what logic stands on.
LAYOUTS = {
    "embedded": (1, 1, ()),
    "postgres": (1, 1, ("postgres",)),
    "postgres, redis, nats": (1, 1, ("postgres", "redis", "nats")),
    "2 logics": (1, 2, ("postgres", "redis", "nats")),
    "3 logics": (1, 3, ("postgres", "redis", "nats")),
    "2 gateways, 3 logics": (2, 3, ("postgres", "redis", "nats")),
    "3 gateways, 3 logics": (3, 3, ("postgres", "redis", "nats")),
}


def family(pid):
    """A process and all that it has started."""
    children = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        children += [int(child) for child in (task / "children").read_text().split()]
    return [pid, *(found for child in children for found in family(child))]


def cpu_seconds(pids):
    used = 0
    for pid in {found for pid in pids for found in family(pid)}:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except FileNotFoundError:
            continue
        # With what ended children had used: PostgreSQL's workers come and go.
        used += sum(int(field) for field in fields[11:15])
    return used / TICKS


class Layout:
    def __init__(self, folder, gateways, logics, services, ends):
        self.services = {}
        settings = "[search]\nenabled = false\n"
        store = ""
        if "nats" in services:
            nats = Nats(folder)
            ends.callback(nats.stop)
            self.services["nats"] = nats.process.pid
            settings += f'[bus]\nkind = "nats"\n[bus.nats]\nservers = ["{nats.url}"]\n[peers]\nkind = "nats"\n'
        if "redis" in services:
            redis = RedisServer(folder)
            ends.callback(redis.stop)
            self.services["redis"] = redis.process.pid
            settings += f'[registry]\nkind = "redis"\n[registry.redis]\nurls = ["{redis.url}"]\n'
        if "postgres" in services:
            place = folder / "postgres"
            place.mkdir()
            postgres = PostgresServer(place)
            ends.callback(postgres.stop)
            self.services["postgres"] = postgres.process.pid
            store = f'kind = "postgres"\n[store.postgres]\nurl = "{postgres.database("load")}"\n'
        self.tiers = []
        for number in range(max(gateways, logics)):
            place = folder / f"tier-{number}"
            place.mkdir()
            tiers = Tiers(place, gateway_section=f'id = "gateway-{number}"\n')
            tiers.logic_settings, tiers.store_settings = settings, store
            tiers.link_settings = f'logic_id = "logic-{number}"\n'
            ends.callback(tiers.stop)
            self.tiers.append(tiers)
        self.logics, self.gateways = self.tiers[:logics], self.tiers[:gateways]
        for tiers in self.logics:
            tiers.start_logic()
        for tiers in self.gateways:
            tiers.logic_links = [logic.free_port("link") for logic in self.logics]
            tiers.start_gateway()

    def stored(self):
        return sum(metric(f"http://127.0.0.1:{t.free_port('logic-admin')}", "millrace_logic_messages_stored_total") for t in self.logics)

    def cpu(self, generators):
        groups = {
            "gateways": [tiers.gateway.pid for tiers in self.gateways], "logics": [tiers.logic.pid for tiers in self.logics],
            **{name: [pid] for name, pid in self.services.items()}, "generators": [process.pid for process in generators],
        }
        return {name: cpu_seconds(pids) for name, pids in groups.items()}


def run(arguments, name, rate, folder):
    gateways, logics, services = LAYOUTS[name]
    with ExitStack() as ends:
        layout = Layout(folder, gateways, logics, services, ends)
        generators, reports = [], []
        for number, tiers in enumerate(layout.gateways):
            tiers.ports["http"] = layout.logics[0].free_port("http")
            reports.append(folder / f"report-{number}.json")
            generators.append(subprocess.Popen(
                tiers.load_generator(
                    "chat", "--connections", arguments.connections // gateways, "--websocket-share", 0.5, "--single-rate", rate / gateways,
                    "--group-rate", 0, "--duration", f"{arguments.duration}s", "--ramp-rate", 2000, "--hold", "1s", "--threads", 1,
                    "--user-prefix", f"load{number}", "--settle", "60s", "--allow-late", "--json", reports[-1],
                ),
                stdout=subprocess.DEVNULL, stderr=open(folder / f"progress-{number}", "w"),
            ))
            ends.callback(generators[-1].kill)
        deadline = time.monotonic() + 90
        while layout.stored() == 0:
            assert all(process.poll() is None for process in generators), (folder / "progress-0").read_text()
            assert time.monotonic() < deadline, "nothing was stored"
            time.sleep(0.1)
        time.sleep(1.0)
        began, messages, before = time.monotonic(), layout.stored(), layout.cpu(generators)
        time.sleep(arguments.duration - 2.5)
        messages, after = layout.stored() - messages, layout.cpu(generators)
        seconds = time.monotonic() - began
        codes = [process.wait(180) for process in generators]
        results = [json.loads(report.read_text()) for report in reports]
    show(name, rate, messages, seconds, before, after, results, codes)
    return max(codes)


def show(name, rate, messages, seconds, before, after, results, codes):
    # Of several generators the worst.
    worst = lambda percentile: max(result["latency_us"]["delivery_single"][percentile] for result in results) / 1000
    each = 1e6 / max(1.0, messages)
    used = {tier: (after[tier] - before[tier]) * each for tier in after}
    faults = sum(sum(result["verification"]["faults"].values()) for result in results)
    busy = sum(after.values()) - sum(before.values())
    cells = [
        f"{name:22}", f"{rate:6}", f"{messages / seconds:8.0f}", f"{worst('p50'):8.1f}", f"{worst('p99'):8.1f}", f"{worst('p99.9'):8.1f}",
        *(f"{used[tier]:8.0f}" if tier in used else f"{'':8}" for tier in ("gateways", "logics", "postgres", "redis", "nats", "generators")),
        f"{busy * each:8.0f}", f"{100 * busy / seconds:5.0f} %", f"{faults:6}",
    ]
    print("| " + " | ".join(cells) + " |" + ("" if max(codes) == 0 else f"   exit {codes}"), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="500,2000,20000", help="messages a second over all gateways, one run each")
    parser.add_argument("--layouts", default="; ".join(LAYOUTS), help="some of these, parted by semicolons")
    parser.add_argument("--connections", type=int, default=1_200)
    parser.add_argument("--duration", type=int, default=10, help="of each run, in seconds")
    arguments = parser.parse_args()
    titles = ["layout", "asked", "stored/s", "p50 ms", "p99 ms", "p99.9 ms", "gateways", "logics", "postgres", "redis", "nats", "generat.", "all µs", "CPU", "faults"]
    widths = [22, 6, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7, 6]
    print("| " + " | ".join(f"{title:>{width}}" for title, width in zip(titles, widths)) + " |")
    print("|" + "|".join("-" * (width + 2) for width in widths) + "|", flush=True)
    worst = 0
    for rate in arguments.rates.split(","):
        for name in (layout.strip() for layout in arguments.layouts.split(";")):
            with tempfile.TemporaryDirectory(prefix="millrace-distributed-") as folder:
                Path(folder).chmod(0o755)
                worst = max(worst, run(arguments, name, int(rate), Path(folder)))
    return worst


if __name__ == "__main__":
    sys.exit(main())
