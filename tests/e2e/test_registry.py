"""Presence in a Redis that goes away, loses everything or stands still, and that two logic processes share: nobody is disconnected, nothing is
lost, nobody is shown as offline who is not."""

import json
import subprocess
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from millrace_client import DELIVER_ACK, SEND_MESSAGE, TRANSPORTS, TcpConnection, chat, text_message
from processes import Tiers, metric
from redis_server import RedisServer

OUTAGE_S = 30


@pytest.fixture
def start(tmp_path):
    """Starts servers and tiers; all of them end with the test."""
    with ExitStack() as ends:

        def redis():
            folder = tmp_path / f"redis-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            server = RedisServer(folder)
            ends.callback(server.stop)
            return server

        def tiers(server, more=""):
            folder = tmp_path / f"tiers-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            both = Tiers(folder)
            both.gateway_section = f'id = "{folder.name}"\n'
            both.logic_settings = f'[registry]\nkind = "redis"\n[registry.redis]\nurls = ["{server.url}"]\n{more}'
            ends.callback(both.stop)
            both.start_logic()
            both.start_gateway()
            both.until(lambda: logic_metric(both, "millrace_logic_registry_connected") == 1, both.logic)
            return both

        yield SimpleNamespace(redis=redis, tiers=tiers)


def logic_metric(tiers, name):
    return metric(f"http://127.0.0.1:{tiers.free_port('logic-admin')}", name)


def online(tiers, user):
    return tiers.api().call("GET", f"/v1/users/{user}/presence")[1]["online"]


def sessions_online(tiers):
    return int(tiers.api().call("GET", "/v1/sessions")[1].get("sessions_online", 0))


class Pair:
    """Alice and Bob, who exchange messages, and the load beside them."""

    def __init__(self, tiers):
        self.tiers = tiers
        self.alice, self.bob = tiers.connect(TcpConnection, "alice"), tiers.connect(TRANSPORTS[1], "bob")
        self.number = 0
        self.waits = []

    def exchange(self):
        """One message there, acknowledged."""
        self.number += 1
        began = time.monotonic()
        reply = self.alice.request(SEND_MESSAGE, text_message(to="bob", body=f"message {self.number}"))
        self.waits.append(time.monotonic() - began)
        assert (reply.code, reply.sequence) == (0, self.number)
        message = self.bob.messages(1)[0]
        assert (message.sequence, message.body) == (self.number, f"message {self.number}")
        self.bob.send(DELIVER_ACK, chat.DeliverAck(conversation_id=reply.conversation_id, sequence=self.number), request_id=0)

    def come_and_go(self):
        """Who comes and goes does so, and is seen."""
        guest = self.tiers.connect(TcpConnection, f"guest-{self.number}")
        self.tiers.until(lambda: online(self.tiers, f"guest-{self.number}"), self.tiers.logic)
        guest.close()
        self.tiers.until(lambda: not online(self.tiers, f"guest-{self.number}"), self.tiers.logic)


class Load:
    """The load generator, which verifies that every acknowledged message is delivered, once, in order."""

    CONNECTIONS = 200

    def __init__(self, tiers, seconds):
        self.report = tiers.folder / "report.json"
        self.progress = tiers.folder / "loadgen.log"
        command = tiers.load_generator(
            "chat", "--connections", self.CONNECTIONS, "--single-rate", 50, "--group-rate", 2, "--group-size", 10,
            "--duration", f"{seconds}s", "--allow-late", "--json", self.report,
        )
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(self.progress, "wb"))
        try:
            tiers.until(lambda: sessions_online(tiers) >= self.CONNECTIONS, tiers.logic, seconds=60)
        except BaseException:
            self.end()
            raise

    def verdict(self):
        try:
            status = self.process.wait(120)
        finally:
            self.end()
        report = json.loads(self.report.read_text()) if self.report.exists() else {}
        assert status == 0, self.progress.read_text(errors="replace")[-4000:]
        assert report["counters"].get("connections_lost", 0) == 0
        assert report["verification"]["acked"] > 0
        return report["verification"]

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def test_an_outage_of_30_s_disconnects_nobody_and_loses_nothing(start):
    """Two fleets of their own at the same time: the Redis of one stands still, that of the other is killed."""
    servers = {"stands still": start.redis(), "is killed": start.redis()}
    pairs = {how: Pair(start.tiers(server)) for how, server in servers.items()}
    for pair in pairs.values():
        pair.exchange()
        pair.tiers.until(lambda: online(pair.tiers, "alice") and online(pair.tiers, "bob"), pair.tiers.logic)
    loads = {}
    try:
        for how, pair in pairs.items():
            loads[how] = Load(pair.tiers, OUTAGE_S - 5)
        servers["stands still"].pause()
        servers["is killed"].stop()
        began = time.monotonic()
        while time.monotonic() < began + OUTAGE_S:
            for pair in pairs.values():
                pair.exchange()
                if pair.number % 30 == 0:
                    pair.come_and_go()
                    assert online(pair.tiers, "alice") and online(pair.tiers, "bob")
            time.sleep(0.1)
        verified = {how: load.verdict() for how, load in loads.items()}
    finally:
        for load in loads.values():
            load.end()
    for how, pair in pairs.items():
        tiers = pair.tiers
        assert logic_metric(tiers, "millrace_logic_registry_connected") == 0
        staying = tiers.connect(TcpConnection, "came-meanwhile")
        print(
            f"{how}: {pair.number} messages and {verified[how]['acked']} of the load in the outage, 0 lost, 0 disconnected; "
            f"the slowest answer {max(pair.waits) * 1000:.0f} ms"
        )
        servers[how].go_on() if how == "stands still" else servers[how].start()
        tiers.until(lambda: logic_metric(tiers, "millrace_logic_registry_connected") == 1, tiers.logic)
        tiers.until(lambda: sessions_online(tiers) == 3, tiers.logic)
        pair.exchange()
        assert all(online(tiers, user) for user in ("alice", "bob", "came-meanwhile"))
        assert not online(tiers, "guest-30")
        assert logic_metric(tiers, "millrace_logic_presence_failed_total") == 0
        staying.close()


def test_flushall_under_load_takes_nobody_offline(start):
    server = start.redis()
    tiers = start.tiers(server)
    users = [f"user-{number}" for number in range(20)]
    connections = [tiers.connect(TRANSPORTS[number % 2], user) for number, user in enumerate(users)]
    load = Load(tiers, 8)
    try:
        tiers.until(lambda: all(online(tiers, user) for user in users), tiers.logic)
        for _ in range(5):
            assert server.say("FLUSHALL") == "+OK"
            assert all(online(tiers, user) for user in users)
        began = time.monotonic()
        everybody = len(users) + Load.CONNECTIONS
        tiers.until(lambda: sessions_online(tiers) == everybody, tiers.logic)
        print(f"{everybody} sessions are told again within {time.monotonic() - began:.2f} s")
        load.verdict()
    finally:
        load.end()
    assert logic_metric(tiers, "millrace_logic_registry_rebuilds_total") >= 1
    for connection in connections:
        connection.close()
    tiers.until(lambda: sessions_online(tiers) == 0, tiers.logic)


def test_a_logic_that_is_killed_takes_nobody_offline_for_the_others_and_leaves_nobody_online(start):
    server = start.redis()
    short = 'lease = "3s"\nbeat_interval = "500ms"\ngrace = "10m"\n'
    one, other = start.tiers(server, short), start.tiers(server, short)
    alice, bob = one.connect(TcpConnection, "alice"), other.connect(TcpConnection, "bob")
    # Each is seen from either side.
    for tiers in (one, other):
        tiers.until(lambda: online(tiers, "alice") and online(tiers, "bob"), tiers.logic)
    one.logic.kill()
    began = time.monotonic()
    # Until after the lease, nobody serves her; she is connected all the time.
    while time.monotonic() < began + 6:
        assert online(other, "alice"), f"after {time.monotonic() - began:.1f} s"
        time.sleep(0.1)
    one.start_logic()
    one.until(lambda: sessions_online(one) == 2, one.logic)
    for _ in range(20):
        assert online(other, "alice") and online(one, "alice")
        time.sleep(0.05)
    # What the dead process had stated does not outlive her.
    alice.close()
    for tiers in (one, other):
        tiers.until(lambda: not online(tiers, "alice"), tiers.logic)
    assert online(one, "bob")
    bob.close()
    one.until(lambda: sessions_online(one) == 0, one.logic)
