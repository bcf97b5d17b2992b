#!/usr/bin/env python3
"""A cluster of real processes under faults, and the verdict on what it promised. See docs/cluster-test.md.

    .venv/bin/python tests/cluster/run.py                                 3 gateways, one logic with the embedded store, 60 s
    .venv/bin/python tests/cluster/run.py --gateways 3 --logics 3 --store postgres --registry redis --bus nats --seconds 180 --seed 7

It starts everything on a network of its own, drives it with some dozens of clients, lets faults come by a schedule that the seed makes,
heals all, and judges the history. Exit code 0: every promise was kept; 1: one was broken, or a process ended that nobody had ended.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import availability
import checker
import history
from nemesis import Nemesis
from network import Network, enter
from nodes import API_TOKEN, BINARIES, HTTP, JWT_SECRET, TCP, WEBSOCKET, Gateway, Logic, ask
from services import Nats, Postgres, Redis
from upgrade import Upgrade, steps_of

HERE = Path(__file__).resolve().parent
LEASE_S = 10.0
REGISTRY_GRACE_S = 30.0
# Where the clients' REPORTs go.
TOPIC = "cluster-test"


class Place:
    """A node at which the harness itself starts something."""

    def __init__(self, network, name):
        self.name, self.address = name, network.add(name)


class Cluster:
    """All processes of a run."""

    def __init__(self, folder, arguments):
        self.network = Network()
        self.complaints = []
        self.log_starts = {}
        self.clients = Place(self.network, "clients")
        self.services = {}
        for kind, wanted, service in (
            ("postgres", arguments.store == "postgres", Postgres), ("redis", arguments.registry == "redis", Redis), ("nats", arguments.bus == "nats", Nats),
        ):
            if wanted:
                self.services[kind] = service(self.network, folder)
        settings = {"idle_s": arguments.idle, "logic_environment": dict(arguments.logic_environment)}
        self.logics = [Logic(self.network, number, folder, self.services, settings) for number in range(1, arguments.logics + 1)]
        self.gateways = [Gateway(self.network, number, folder, self.logics, settings) for number in range(1, arguments.gateways + 1)]

    @property
    def nodes(self):
        return [*self.services.values(), *self.logics, *self.gateways]

    def of(self, what):
        return {"gateway": self.gateways, "logic": self.logics}.get(what) or [self.services[what]]

    def starting(self, node):
        """Where in its log the coming life begins."""
        size = node.log_path.stat().st_size if node.log_path.exists() else 0
        self.log_starts.setdefault(node.name, []).append((size, node.life + 1))

    @staticmethod
    def life(record, node, act):
        record.event("life", node=node.name, life=node.life, act=act, **({"silent": True} if node.is_silent else {}))

    def start(self, record):
        for tier in (list(self.services.values()), self.logics, self.gateways):
            for node in tier:
                self.starting(node)
                if isinstance(node, Logic) and node.life == 0 and node is self.logics[0]:
                    node.migrate()
                node.start()
                self.life(record, node, "start")
            for node in tier:
                if not node.wait_until_ready():
                    sys.exit(f"{node.name} did not start:\n{node.tail()}")

    def look_for_the_dead(self):
        """Complains of processes that ended although nobody had ended them, and of panics."""
        for node in self.nodes:
            if node.process is not None and node.process.poll() is not None:
                self.complaints.append(f"{node.name} ended by itself with {node.process.returncode}: {node.tail()[-500:]}")
            if node.log_path.exists() and "panicked at" in (text := node.log_path.read_text(errors="replace")):
                self.complaints.append(f"{node.name} panicked: {text[text.index('panicked at'):][:300]}")

    def kill_all(self):
        for node in self.nodes:
            node.kill()


def make_groups(cluster, users, chance):
    """Groups of eight; one user of each was taken out again before the load, and must hear nothing of it."""
    groups = []
    logic = cluster.logics[0]
    for number in range(len(users) // 6):
        members = chance.sample(users, 9)
        group_id = f"town-{number}"
        status, made = ask(logic.address, HTTP, "/v1/groups", {"group_id": group_id, "name": group_id, "members": members[:8]})
        assert status in (200, 201), (status, made)
        groups.append({"group_id": group_id, "conversation_id": made["conversation_id"], "members": members[:8]})
    return groups


class PresenceWatch(threading.Thread):
    """Asks every logic process in turn who is online, all the time."""

    def __init__(self, cluster, record, users):
        super().__init__(daemon=True)
        self.cluster, self.record, self.users = cluster, record, users
        self.stopped = threading.Event()
        self.unanswered = 0

    def run(self):
        while not self.stopped.wait(1.0):
            for logic in self.cluster.logics:
                asked = history.now()
                try:
                    online = logic.presence(self.users)
                except OSError:
                    self.unanswered += 1
                    continue
                self.record.event("presence", asked=round(asked, 4), where=logic.name, users=self.users, online=online)


class Driver:
    """The process of the clients."""

    def __init__(self, cluster, folder, plan):
        command = cluster.network.command("clients", sys.executable, str(HERE / "driver.py"))
        self.log_path = folder / "clients.log"
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(self.log_path, "w"), text=True)
        self.errors = []
        self.say(json.dumps(plan))

    def say(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def wait_for(self, word, seconds):
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                said = json.loads(line)
                if word in said:
                    return said
                self.errors.append(said.get("error", line))
        finally:
            timer.cancel()
        sys.exit(f"the clients ended before they were {word} (or took {seconds} s): {self.errors[:3]}\n{self.log_path.read_text()[-3000:]}")


class Load:
    """`millrace-loadgen chat` beside the clients, for volume; it verifies its own messages. In an upgrade it is the one before."""

    def __init__(self, cluster, folder, arguments):
        gateway, self.report, self.progress = cluster.gateways[0], folder / "load.json", folder / "load.log"
        command = cluster.network.command(
            "clients", str((arguments.previous or BINARIES) / "millrace-loadgen"), "chat", "--tcp", f"{gateway.address}:{TCP}",
            "--websocket", f"ws://{gateway.address}:{WEBSOCKET}/ws", "--http", f"http://{cluster.logics[0].address}:{HTTP}",
            "--jwt-secret", JWT_SECRET, "--api-token", API_TOKEN, "--connections", "400", "--ramp-rate", "400", "--threads", "1",
            "--single-rate", str(arguments.load), "--group-rate", str(max(1, arguments.load // 100)), "--duration", f"{int(arguments.seconds)}s",
            "--expect-faults", "--allow-late", "--json", str(self.report),
        )
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(self.progress, "w"))

    def verdict(self):
        """Waits for it; a sentence, and whether it was content."""
        try:
            status = self.process.wait(180)
        except subprocess.TimeoutExpired:
            return "millrace-loadgen does not end", False
        if not self.report.exists():
            return f"millrace-loadgen ended with {status}: {self.progress.read_text()[-500:]}", False
        found = json.loads(self.report.read_text()).get("verification") or {}
        said = f"{found.get('acked', 0):,} acknowledged, {found.get('found_deliveries', 0):,} of {found.get('expected_deliveries', 0):,} deliveries found, faults {found.get('faults')}"
        return f"millrace-loadgen: exit {status}, {said}", status == 0

    def kill(self):
        self.process.kill()
        self.process.wait()


def topic_payloads(logic):
    """Everything that a business service would read of the clients' REPORTs."""
    payloads, offset = [], 0
    while True:
        try:
            status, page = ask(logic.address, HTTP, f"/v1/topics/{TOPIC}?offset={offset}&limit=100", seconds=15.0)
        except OSError:
            return payloads
        if status != 200 or not page.get("records"):
            return payloads
        payloads += [base64.b64decode(record["payload"]).decode() for record in page["records"]]
        offset = int(page["next_offset"])


def session_events(cluster, offset):
    """What the logic processes wrote of sessions into their logs."""
    events = []
    for logic in cluster.logics:
        text = logic.log_path.read_bytes()
        starts = cluster.log_starts[logic.name]
        for (begin, life), end in zip(starts, [start for start, _ in starts[1:]] + [len(text)]):
            for line in text[begin:end].splitlines():
                if b"millrace_sessions" not in line:
                    continue
                try:
                    said = json.loads(line)
                except ValueError:
                    continue  # Cut off by a kill.
                at = datetime.datetime.fromisoformat(said["ts"]).timestamp() - offset
                names = ("act", "gateway", "shard", "sid", "at_ms", "user", "device", "code")
                events.append({"e": "session", "t": at, "node": logic.name, "life": life, **{name: said[name] for name in names if name in said}})
    return events


def run(arguments, folder):
    seed = arguments.seed
    chance = random.Random(f"{seed}/setup")
    record = history.Writer(folder / "harness.jsonl")
    # A registry on Redis takes a process that it does not hear for living a while longer.
    gone_s = LEASE_S + max(arguments.idle, REGISTRY_GRACE_S if arguments.registry == "redis" else 0.0) + 5.0
    wall, mono = time.time(), history.now()
    record.event("run", mono, wall=wall, seed=seed, command=sys.argv[1:], bounds={"heal_s": 15.0, "settle_s": 3.0, "gone_s": gone_s})
    cluster = Cluster(folder, arguments)
    driver = load = None
    try:
        if arguments.previous:
            Upgrade.before(cluster, arguments)
        cluster.start(record)
        users = [f"user{number:03}" for number in range(arguments.users)]
        strangers = [f"stranger{number}" for number in range(3)]
        groups = make_groups(cluster, users, chance)
        for group in groups:
            record.event("group", conversation=group["conversation_id"], members=group["members"])
        driver = Driver(cluster, folder, {
            "seed": seed, "users": users, "strangers": strangers, "groups": groups, "rate": arguments.rate, "churn": arguments.churn,
            "reports": 5.0, "topic": TOPIC,
            "jwt_secret": JWT_SECRET, "history": str(folder / "clients.jsonl"),
            "gateways": {node.name: {"tcp": f"{node.address}:{TCP}", "websocket": f"ws://{node.address}:{WEBSOCKET}/ws"} for node in cluster.gateways},
        })
        said = driver.wait_for("ready", 90)
        print(f"{said['devices']} devices are connected after {history.now() - mono:.1f} s", flush=True)
        load = Load(cluster, folder, arguments) if arguments.load else None
        watch = PresenceWatch(cluster, record, users + strangers)
        watch.start()
        nemesis = (Upgrade if arguments.previous else Nemesis)(cluster, record, seed, arguments)
        nemesis.run(arguments.seconds)
        print(f"{nemesis.number} {nemesis.named} after {history.now() - mono:.1f} s; settling", flush=True)
        driver.say("stop")
        # Those who leave take some seconds to do so; then all of them are gone for long enough to be looked at.
        time.sleep(gone_s + 8.0)
        watch.stopped.set()
        watch.join(10)
        cluster.look_for_the_dead()
        driver.say("finish")
        driver.wait_for("done", 150)
        driver.process.wait(30)
        record.event("topic", payloads=topic_payloads(cluster.logics[0]))
        if load:
            said, good = load.verdict()
            print(said)
            cluster.complaints += [] if good else [said]
        cluster.complaints += nemesis.failures + driver.errors
        record.close()
        events = history.read(folder / "harness.jsonl", folder / "clients.jsonl")
        sessions = session_events(cluster, wall - mono)
        with open(folder / "sessions.jsonl", "w") as out:
            out.writelines(json.dumps(event) + "\n" for event in sessions)
        return judge(sorted(events + sessions, key=lambda event: event["t"]), cluster.complaints, folder / "summary.json")
    finally:
        if load:
            load.kill()
        if driver:
            driver.process.kill()
            driver.process.wait()
        cluster.kill_all()


def judge(events, complaints, summary):
    figures = availability.figures(events)
    print("\n".join(availability.lines(figures)))
    verdict = checker.check(events)
    summary.write_text(json.dumps({
        "figures": figures, "checked": verdict.checked, "violated": verdict.violated, "notes": verdict.notes, "complaints": complaints,
    }, indent=1) + "\n")
    print("\n" + "\n".join(verdict.lines()))
    for complaint in complaints:
        print(f"COMPLAINT      {complaint}")
    return verdict.kept and not complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateways", type=int, default=3)
    parser.add_argument("--logics", type=int, default=1)
    parser.add_argument("--store", choices=["embedded", "postgres"], default="embedded")
    parser.add_argument("--registry", choices=["memory", "redis"], default="memory")
    parser.add_argument("--bus", choices=["embedded", "nats"], default="embedded")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults come, and --load lasts; start and settling come on top")
    parser.add_argument("--seed", type=int, help="of the schedule and of the clients (default: a new one, printed)")
    parser.add_argument("--users", type=int, default=48, help="users; every fourth has two devices")
    parser.add_argument("--rate", type=float, default=40.0, help="messages a second, over all users")
    parser.add_argument("--load", type=int, default=0, help="messages a second of millrace-loadgen, beside, through the first gateway; its verdict counts")
    parser.add_argument("--churn", type=float, default=1.0, help="how often a minute each device goes away or changes its gateway")
    parser.add_argument("--faults", type=int, default=4, help="faults of one burst of 6 s")
    parser.add_argument("--calm", type=float, default=20.0, help="seconds after a burst; presence is judged from the 15th on")
    parser.add_argument("--only", action="append", metavar="FAULT", help="only this kind, as in the table: `pause gateway`; repeatable")
    parser.add_argument("--lasts", type=float, help="seconds of every pause and cut, instead of some by chance")
    parser.add_argument("--pause-max", type=float, default=60.0, help="the longest pause or cut, in seconds")
    parser.add_argument("--idle", type=int, default=6, help="idle_timeout of the gateways, in seconds")
    parser.add_argument("--previous", type=Path, metavar="FOLDER", help="programs of another release: no faults come, but a rolling upgrade from these, and back")
    parser.add_argument("--steps", type=steps_of, default="migrate+ logic+ gateway+ logic- gateway-",
                        help="of the upgrade, each a tier and + (to the new programs), - (back) or = (restart); default: %(default)s")
    parser.add_argument("--pace", type=float, default=2.0, help="seconds between two processes of a tier in an upgrade")
    parser.add_argument("--soak", type=float, default=22.0, help="seconds after each of its steps; presence is judged from the 15th on")
    parser.add_argument("--network", choices=["namespaces", "loopback"], default="namespaces", help="loopback: on addresses of this machine, no link is cut")
    parser.add_argument("--keep", type=Path, help="where to leave the history and all logs (default: only after a failure, in a temporary folder)")
    parser.add_argument("--logic-environment", type=lambda text: text.split("=", 1), action="append", default=[], metavar="NAME=VALUE",
                        help="for the logic processes, repeatable")
    arguments = parser.parse_args()
    if arguments.logics > 1 and (arguments.store, arguments.registry, arguments.bus) != ("postgres", "redis", "nats"):
        parser.error("several logics share their messages, sessions and events: --store postgres --registry redis --bus nats")
    if arguments.load and not ((arguments.previous or BINARIES) / "millrace-loadgen").exists():
        parser.error(f"--load takes millrace-loadgen beside the other programs, in {arguments.previous or BINARIES}")
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(1_000_000)
        sys.argv += ["--seed", str(arguments.seed)]
    if arguments.previous and (missing := [name for name in ("millrace-gateway", "millrace-logic") if not (arguments.previous / name).exists()]):
        parser.error(f"{arguments.previous} has no {' and no '.join(missing)}; scripts/previous.sh builds them")
    if arguments.network == "namespaces":
        enter()
    print(f"seed {arguments.seed}: {arguments.gateways} gateways, {arguments.logics} logics, store {arguments.store}, registry {arguments.registry}, bus {arguments.bus}", flush=True)
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="millrace-cluster-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    folder = folder.resolve()
    began = time.monotonic()
    kept = run(arguments, folder)
    print(f"{'KEPT' if kept else 'NOT KEPT'}: seed {arguments.seed}, {time.monotonic() - began:.0f} s" + ("" if kept else f"; everything is in {folder}"))
    if kept and not arguments.keep:
        shutil.rmtree(folder)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
