"""One load from several machines, each of them a network namespace: a gateway, a logic, two agents of the load generator and its
coordinator. Started by test_agents.py; also a command:

    sudo .venv/bin/python tests/cluster/agents.py

It compares the figures of two agents with those of one process on the same load, kills an agent, cuts the link to another one, and kills the
coordinator, and looks at the gateway whether the load has ended. It says what it sees, a line each, and ends with status 0 if all was as it
should be.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import jsonschema

from network import Network, enter
from nodes import ADMIN, HTTP, TCP, WEBSOCKET, Gateway, Logic
from process import NodeProcess

from processes import API_TOKEN, BINARIES, JWT_SECRET, metric

PORT = 7000
LOADGEN = BINARIES / "millrace-loadgen"
TOKEN = "a-token-for-the-tests-of-agents-only"
SETTINGS = {"idle_s": 15}
SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs" / "loadgen-report.schema.json").read_text())
# A load that a small machine holds beside everything else: what is looked at is who does what, and not how fast.
CONNECTIONS, RATE, SECONDS = 80, 100, 6
SCENARIO = """
name = "agents"
connections = {connections}
thresholds = ["loss = 0", "duplicates = 0", "disorder = 0"]
[connect]
per_second = 100
[[population]]
name = "phones"
share = 0.5
transport = "tcp"
[[population]]
name = "browsers"
share = 0.5
transport = "websocket"
[single_chat]
per_second = {rate}
[group_chat]
per_second = 6
group_size = 5
[room_broadcast]
per_second = 2
members = 20
[[stage]]
name = "steady"
duration = "{seconds}s"
[generator]
threads = 1
allow_saturated = true
"""


class Agent(NodeProcess):
    def __init__(self, network, number, folder):
        super().__init__(network, f"agent{number}", folder)
        self.token = folder / "agents.token"

    def command(self):
        return [LOADGEN, "agent", "--listen", f"{self.address}:{PORT}", "--token-file", self.token]

    def ready(self):
        return "listening on" in self.log_path.read_text()

    @property
    def place(self):
        return f"{self.address}:{PORT}"


class Run(NodeProcess):
    """A run of the load generator, with or without agents."""

    count = 0

    def __init__(self, network, folder, gateway, logic, node, seconds=SECONDS, agents=(), more=()):
        # Its node is there already.
        self.network, self.name, self.folder, self.address = network, node, folder, network.addresses[node]
        self.process, self.life, self.paused = None, 0, False
        Run.count += 1
        self.scenario = folder / f"scenario-{Run.count}.toml"
        self.scenario.write_text(SCENARIO.format(connections=CONNECTIONS, rate=RATE, seconds=seconds))
        self.json = folder / f"report-{Run.count}.json"
        self.words = [
            "run", self.scenario, "--tcp", f"{gateway.address}:{TCP}", "--websocket", f"ws://{gateway.address}:{WEBSOCKET}/ws",
            "--http", f"http://{logic.address}:{HTTP}", "--jwt-secret", JWT_SECRET, "--api-token", API_TOKEN, "--quiet",
            "--user-prefix", f"run{Run.count}", "--json", self.json, *more,
        ]
        if agents:
            self.words += ["--agents", ",".join(agent.place for agent in agents), "--agents-token-file", agents[0].token]

    @property
    def log_path(self):
        return self.folder / f"{self.scenario.stem}.log"

    def command(self):
        return [LOADGEN, *self.words]

    def finish(self, seconds=90):
        """Exit code and report."""
        status = self.process.wait(seconds)
        self.process = None
        return status, json.loads(self.json.read_text()) if self.json.exists() else None


def until(what, check, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder for logs and reports; by default a temporary one")
    arguments = parser.parse_args()
    enter()
    network = Network()
    if not network.has_namespaces:
        sys.exit("it takes network namespaces: run it as root")
    folder = (arguments.keep or Path(tempfile.mkdtemp(prefix="millrace-agents-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "agents.token").write_text(TOKEN)

    logic = Logic(network, 1, folder, {}, SETTINGS)
    gateway = Gateway(network, 1, folder, [logic], SETTINGS)
    agents = [Agent(network, number, folder) for number in (1, 2)]
    network.add("coordinator")
    for node in (logic, gateway, *agents):
        node.start()
        assert node.wait_until_ready(), node.tail()

    sessions = lambda: metric(f"http://{gateway.address}:{ADMIN}", "millrace_sessions")
    run = lambda **options: Run(network, folder, gateway, logic, "coordinator", **options)

    def finished(run, wanted):
        status, report = run.finish()
        assert status == wanted, f"exit {status} instead of {wanted}:\n{run.tail()}"
        jsonschema.Draft202012Validator(SCHEMA).validate(report)
        return report

    # The same load by one process and by two.
    began = time.monotonic()
    one = run()
    one.start()
    one = finished(one, 0)
    one_seconds = time.monotonic() - began
    began = time.monotonic()
    two = run(agents=agents)
    two.start()
    until("a session from an agent", lambda: sessions() > 0)
    two = finished(two, 0)
    two_seconds = time.monotonic() - began
    for counter in ("intended", "acked", "logins", "room_sent"):
        counts = one["counters"][counter], two["counters"][counter]
        print(f"{counter}: one process {counts[0]}, two agents {counts[1]}")
        # A schedule is rounded to whole messages once for each agent, behaviour and stage.
        assert abs(counts[0] - counts[1]) <= 2, counts
    for report in (one, two):
        verification = report["verification"]
        assert verification["acked"] == report["counters"]["acked"] and sum(verification["faults"].values()) == 0, verification
    for name in ("ack", "delivery", "delivery_room", "login"):
        for percentile in ("p50", "p99"):
            alone, together = (report["latency_us"][name][percentile] for report in (one, two))
            print(f"{name} {percentile}: one process {alone / 1000:.2f} ms, two agents {together / 1000:.2f} ms")
    # How long they took is the machine's, in each run anew, and so is not judged here: buckets that are equal one by one are loadgen's own
    # tests, and loadgen/tests/agents.rs compares against a server whose latency is known. What the machine cannot change is that each answer
    # was measured once, by whichever agent, and that nothing takes longer than the run that measured it.
    for report, longest in ((one, one_seconds), (two, two_seconds)):
        for name, counter in (("ack", "acked"), ("login", "logins")):
            measured = report["latency_us"][name]
            assert measured["count"] == report["counters"][counter], (name, measured, report["counters"][counter])
            assert 0 < measured["p50"] <= measured["p99"] <= measured["max"] <= longest * 1e6, (name, measured, longest)
    for agent, said in zip(agents, two["agents"]):
        print(f"{said['address']}: {said['connections']} connections, clock {said['clock_offset_us']:.0f} ± {said['clock_uncertainty_us']:.0f} µs, "
              f"drift {said['clock_drift_us']:.0f} µs")
        assert said["address"] == agent.place and said["connections"] == CONNECTIONS // 2 and said["lost"] is None
        # All nodes read this machine's clock, so the truth is 0.
        assert abs(said["clock_offset_us"]) <= said["clock_uncertainty_us"] + 50, said

    def lost(what, act, words, more=(), expected_seconds=20):
        """A long load, in which something happens to the second agent."""
        long = run(seconds=60, agents=agents, more=more)
        long.start()
        until("the load", lambda: sessions() >= CONNECTIONS)
        time.sleep(3)
        began = time.monotonic()
        act()
        report = finished(long, 105)
        took = time.monotonic() - began
        [failure] = [text for text in report["failures"] if "was lost" in text]
        print(f"{what}: {failure} (after {took:.1f} s)")
        assert agents[1].place in failure and words in failure, failure
        assert report["agents"][0]["lost"] is None and report["agents"][1]["lost"], report["agents"]
        assert took < expected_seconds and report["latency_us"]["ack"]["count"] > 100, report["latency_us"].get("ack")
        until("all sessions are gone, of the other agent, too", lambda: sessions() == 0)

    lost("an agent is killed", agents[1].kill, "")
    agents[1].start()
    assert agents[1].wait_until_ready(), agents[1].tail()
    lost("a link is cut", lambda: network.cut("coordinator", "agent2"), "nothing was heard", ["--agent-silence-max", "3s"])
    network.heal("coordinator", "agent2")

    long = run(seconds=60, agents=agents)
    long.start()
    until("the load", lambda: sessions() >= CONNECTIONS)
    long.kill()
    until("all sessions are gone", lambda: sessions() == 0)
    print("the coordinator was killed: the agents ended their sessions")

    last = run(seconds=2, agents=agents)
    last.start()
    finished(last, 0)
    print("and took another run")
    for node in (*agents, gateway, logic):
        assert node.end(number=signal.SIGTERM) == 0, f"{node.name}:\n{node.tail()}"
    print("all ended in order")


if __name__ == "__main__":
    main()
