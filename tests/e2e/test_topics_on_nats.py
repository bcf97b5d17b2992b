"""Topics on NATS JetStream, through the real binaries: a service in another process reads what clients REPORT, while NATS
is killed and comes back, and when it has lost the stream. The figures printed (`-s`) stand in docs/operations.md."""

import base64
import threading
import time

import pytest

from millrace_client import ERROR, REPLY, REPORT, SEND_MESSAGE, TcpConnection, WebSocketConnection, chat, session, text_message
from nats import Nats
from processes import BINARIES, Process, Tiers, metric

TOPIC = "clicks"
USERS = ["alice", "bob", "carol", "dave"]
PATIENCE_S = 120.0


@pytest.fixture
def nats(tmp_path):
    nats = Nats(tmp_path)
    yield nats
    nats.stop()


@pytest.fixture
def nats_tiers(tmp_path, nats):
    tiers = Tiers(tmp_path)
    tiers.logic_settings = (
        f'[bus]\nkind = "nats"\n[bus.nats]\nservers = ["{nats.url}"]\nattempt_timeout = "1s"\npatience = "3s"\n'
    )
    try:
        tiers.start_logic()
        tiers.start_gateway()
        yield tiers
    finally:
        tiers.stop()


class Service:
    """The example consumer as a process of its own; collects the payloads it has dealt with."""

    def __init__(self, nats, folder):
        self.process = Process(
            [BINARIES / "examples" / "nats_consumer", "--nats", nats.url, "--topic", TOPIC, "--consumer", "counting",
             "--ack-wait-s", "3"],
            folder / "service.log",
        )
        self.lines = []
        self.reading = threading.Thread(target=self.read, daemon=True)
        self.reading.start()

    def read(self):
        for line in self.process.process.stdout:
            _, key, _, payload = line.rstrip("\n").split(" ", 3)
            self.lines.append((key, payload))

    def stop(self):
        self.process.kill()
        self.reading.join(10)
        self.process.process.stdout.close()


@pytest.fixture
def service(tmp_path, nats):
    service = Service(nats, tmp_path)
    yield service
    service.stop()


class Reporter:
    """A user who reports at a steady pace and notes how long each acknowledgement took."""

    def __init__(self, tiers, user_id, transport):
        self.user_id = user_id
        self.connection = tiers.connect(transport, user_id)
        self.acknowledged = []
        self.slowest_s = 0.0
        self.failure = None
        self.leaving = threading.Event()
        self.thread = threading.Thread(target=self.report, daemon=True)
        self.thread.start()

    def report(self):
        try:
            number = 0
            while not self.leaving.wait(0.01):
                payload = f"{self.user_id}-{number}"
                began = time.monotonic()
                reply = self.connection.request(
                    REPORT, chat.Report(destination=TOPIC, payload=payload.encode()), timeout=PATIENCE_S
                )
                assert reply.command == REPORT | REPLY
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.acknowledged.append(payload)
                number += 1
        except Exception as error:  # shown by whoever stops it
            self.failure = error

    def stop(self):
        self.leaving.set()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive() and self.failure is None, (self.user_id, self.failure)
        errors = [frame.parse(session.Error) for frame in self.connection.inbox if frame.command == ERROR]
        assert not errors, f"a report was refused after it was acknowledged: {errors}"
        return self.acknowledged


@pytest.fixture
def reporters(nats_tiers):
    transports = [TcpConnection, WebSocketConnection]
    reporters = [Reporter(nats_tiers, user, transports[number % 2]) for number, user in enumerate(USERS)]
    yield reporters
    for reporter in reporters:
        reporter.leaving.set()
        reporter.thread.join(10)


def until(check, what, seconds=PATIENCE_S):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.05)


def end_offset(tiers):
    status, page = tiers.api().call("GET", f"/v1/topics/{TOPIC}?limit=1")
    return int(page["end_offset"]) if status == 200 else 0


def read_all(tiers):
    """What the topic keeps: offset, key, payload."""
    kept, offset = [], 1
    while True:
        status, page = tiers.api().call("GET", f"/v1/topics/{TOPIC}?offset={offset}&limit=1000")
        assert status == 200, page
        if not page["records"]:
            return kept
        kept += [
            (int(record["offset"]), record["key"], base64.b64decode(record["payload"]).decode()) for record in page["records"]
        ]
        offset = int(page["next_offset"])


def reports_of(user_id, payloads):
    return [payload for payload in payloads if payload.startswith(f"{user_id}-")]


def test_nothing_acknowledged_is_lost_or_doubled_while_nats_is_killed_under_load(nats, nats_tiers, reporters, service):
    writer = nats_tiers.connect(TcpConnection, "writer")
    until(lambda: end_offset(nats_tiers) > 100, "reports reach NATS")
    slowest_message_s = 0.0
    for away_s in (0.2, 4.0):
        nats.kill()
        ends = time.monotonic() + away_s
        while time.monotonic() < ends:
            # Chat does not notice.
            began = time.monotonic()
            assert writer.request(SEND_MESSAGE, text_message(to="reader"), timeout=PATIENCE_S).code == 0
            slowest_message_s = max(slowest_message_s, time.monotonic() - began)
            time.sleep(0.02)
        nats.start()
        there = time.monotonic()
        before = sum(len(reporter.acknowledged) for reporter in reporters)
        until(lambda: end_offset(nats_tiers) > before, "what was reported meanwhile reaches NATS")
        print(f"away for {away_s} s: what had waited was on the topic {time.monotonic() - there:.1f} s after the start of NATS")
        time.sleep(0.5)
    acknowledged = [payload for reporter in reporters for payload in reporter.stop()]
    slowest_s = max(reporter.slowest_s for reporter in reporters)
    until(lambda: end_offset(nats_tiers) > len(acknowledged), lambda: f"{end_offset(nats_tiers)} of {len(acknowledged)}")
    kept = read_all(nats_tiers)
    assert [offset for offset, _, _ in kept] == list(range(1, len(acknowledged) + 1)), "no gap, and nothing more"
    for user_id in USERS:
        mine = [payload for _, key, payload in kept if key == user_id]
        assert mine == reports_of(user_id, acknowledged), "each once, in the order sent"
    until(lambda: len(set(service.lines)) >= len(acknowledged), lambda: f"{len(set(service.lines))} of {len(acknowledged)}")
    assert {payload for _, payload in service.lines} == set(acknowledged), "the service has dealt with each"
    print(
        f"{len(acknowledged)} reports, none lost, none stored twice; the service was given {len(service.lines) - len(set(service.lines))} "
        f"of them twice; slowest acknowledgement of a report {slowest_s * 1000:.0f} ms, of a message {slowest_message_s * 1000:.0f} ms"
    )


def test_a_stream_that_was_deleted_is_made_again_and_takes_with_it_only_what_lay_in_it(nats, nats_tiers, reporters, service):
    until(lambda: end_offset(nats_tiers) > 200, "reports reach NATS")
    old_end = end_offset(nats_tiers)
    nats.delete_stream(f"millrace_topic_{TOPIC}")
    deleted = time.monotonic()
    # Far above: see docs/operations.md.
    until(lambda: end_offset(nats_tiers) > 1_000_000, "the next report makes it again")
    away_s = time.monotonic() - deleted
    time.sleep(1.0)
    acknowledged = [payload for reporter in reporters for payload in reporter.stop()]

    def newest_are_kept():
        kept = {payload for _, _, payload in read_all(nats_tiers)}
        return all(reporter.acknowledged[-1] in kept for reporter in reporters)

    until(newest_are_kept, "what was reported last is there")
    kept = read_all(nats_tiers)
    offsets = [offset for offset, _, _ in kept]
    assert offsets[0] > old_end and offsets == list(range(offsets[0], offsets[0] + len(kept)))
    lost = len(acknowledged) - len(kept)
    for user_id in USERS:
        mine = [payload for _, key, payload in kept if key == user_id]
        assert mine == reports_of(user_id, acknowledged)[-len(mine):], "the newest, each once, in the order sent"
    until(lambda: {(key, payload) for _, key, payload in kept} <= set(service.lines), "the service goes on with the new stream")
    unread = len(set(acknowledged) - {payload for _, payload in service.lines})
    assert metric(f"http://127.0.0.1:{nats_tiers.free_port('logic-admin')}", "millrace_logic_bus_topics_made_again_total") == 1
    print(
        f"{len(acknowledged)} reports; {lost} lay in the stream that was deleted, of which the service had not read {unread}; "
        f"the new stream had its first record after {away_s:.1f} s; slowest acknowledgement "
        f"{max(reporter.slowest_s for reporter in reporters) * 1000:.0f} ms"
    )
