"""REPORT: what clients tell business services lies on a topic, durable and replayable, over HTTP and gRPC."""

import base64
import importlib
import subprocess
import sys
import time

import grpc
import pytest

from millrace_client import REPLY, REPORT, ROOT, JsonConnection, TcpConnection, WebSocketConnection, chat
from processes import API_TOKEN, metric

reports = importlib.import_module("millrace.api.v1.reports_pb2")
reports_grpc = importlib.import_module("millrace.api.v1.reports_pb2_grpc")

AUTHORIZED = [("authorization", f"Bearer {API_TOKEN}")]
NOT_FOUND, BAD_REQUEST, OVER_CAPACITY = 16, 18, 19


def report(connection, topic, payload):
    reply = connection.request(REPORT, chat.Report(destination=topic, payload=payload))
    assert reply.command == REPORT | REPLY


def read(api, topic, query=""):
    status, page = api.call("GET", f"/v1/topics/{topic}{query}")
    assert status == 200, page
    return page


def offsets(page):
    return [int(record["offset"]) for record in page["records"]]


def until(api, topic, end_offset):
    """Waits until logic has taken so many reports: the gateway acknowledges them a moment earlier."""
    deadline = time.monotonic() + 30
    while True:
        status, page = api.call("GET", f"/v1/topics/{topic}?limit=1")
        if status == 200 and int(page["end_offset"]) >= end_offset:
            return
        assert time.monotonic() < deadline, page
        time.sleep(0.02)


@pytest.fixture
def channel(tiers):
    with grpc.insecure_channel(f"127.0.0.1:{tiers.free_port('grpc')}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


def test_reports_of_every_transport_are_read_again_from_any_offset_and_time(dev):
    topic = f"clicks-{time.time_ns()}"
    alice_id, bob_id, carol_id = dev.user(), dev.user(), dev.user()
    alice, bob = dev.connect(TcpConnection, alice_id), dev.connect(WebSocketConnection, bob_id)
    carol = JsonConnection(dev.ready)
    assert carol.request("login", {"user_id": carol_id, "token": dev.token(carol_id)}).get("code", 0) == 0
    for number in range(10):
        report(alice, topic, bytes([number, 255]))
    until(dev.api, topic, 11)
    report(bob, topic, b"")
    carol.request("report", {"destination": topic, "payload": base64.b64encode(b"by text").decode()})
    until(dev.api, topic, 13)
    page = read(dev.api, topic)
    assert offsets(page) == list(range(1, 13)) and (page["first_offset"], page["next_offset"]) == ("1", "13")
    mine = [base64.b64decode(record["payload"]) for record in page["records"] if record["key"] == alice_id]
    assert mine == [bytes([number, 255]) for number in range(10)], "whole, and in the order sent"
    others = {record["key"]: base64.b64decode(record["payload"]) for record in page["records"][10:]}
    assert others == {bob_id: b"", carol_id: b"by text"}
    times = [int(record["time_ms"]) for record in page["records"]]
    assert times == sorted(times)
    assert offsets(read(dev.api, topic, "?offset=5&limit=3")) == [5, 6, 7]
    since = read(dev.api, topic, f"?time_ms={times[-1]}")
    assert offsets(since)[-1] == 12 and {int(record["time_ms"]) for record in since["records"]} == {times[-1]}
    began = time.monotonic()
    assert read(dev.api, topic, "?offset=13&wait_ms=300")["records"] == [] and time.monotonic() - began >= 0.29
    for path, status, code in [
        (f"/v1/topics/{topic}?offset=x", 400, BAD_REQUEST), (f"/v1/topics/{topic}?ofset=1", 400, BAD_REQUEST),
        ("/v1/topics/never-heard-of", 404, NOT_FOUND), ("/v1/topics/a%20b", 400, BAD_REQUEST),
    ]:
        found, refusal = dev.api.call("GET", path)
        assert (found, refusal["code"]) == (status, code) and refusal["reason"], path
    assert dev.api.call("GET", "/v1/topics", token="wrong")[0] == 401


def test_every_report_that_logic_took_survives_kill_9_and_consumers_go_on_where_they_were(tiers):
    alice = tiers.connect(TcpConnection, "alice")
    for number in range(200):
        report(alice, "audit", str(number).encode())
    until(tiers.api(), "audit", 201)
    status, reply = tiers.api().call("POST", "/v1/topics/audit/consumers/billing", {"offset": "150"})
    assert (status, reply["committed_offset"]) == (200, "150")
    # While more are under way: what is counted as taken is there afterwards, without a gap or a double.
    for number in range(200, 400):
        alice.send(REPORT, chat.Report(destination="audit", payload=str(number).encode()))
    taken = int(metric(f"http://127.0.0.1:{tiers.free_port('logic-admin')}", "millrace_logic_reports_published_total"))
    tiers.logic.kill()
    tiers.start_logic()
    page = read(tiers.api(), "audit", "?limit=1000")
    kept = [base64.b64decode(record["payload"]).decode() for record in page["records"]]
    assert len(kept) >= max(taken, 200) and kept == [str(number) for number in range(len(kept))]
    topics = tiers.api().call("GET", "/v1/topics")[1]["topics"]
    assert [(topic["topic"], topic["consumers"]) for topic in topics] == [
        ("audit", [{"consumer": "billing", "committed_offset": "150"}])
    ]


def test_the_example_consumer_reads_commits_and_continues(tiers):
    alice = tiers.connect(TcpConnection, "alice")
    for number in range(5):
        report(alice, "orders", f"order {number}".encode())
    until(tiers.api(), "orders", 6)

    def consume():
        command = [
            sys.executable, ROOT / "examples" / "topic_consumer.py", tiers.ready["http"], API_TOKEN, "orders", "shop", "--once",
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()

    assert consume() == [f"{number + 1} alice b'order {number}'" for number in range(5)]
    assert consume() == [], "what is committed does not come again"
    report(alice, "orders", b"one more")
    until(tiers.api(), "orders", 7)
    assert consume() == ["6 alice b'one more'"]


def test_a_grpc_consumer_gets_records_as_they_come_and_what_it_did_not_commit_again(tiers, channel):
    alice = tiers.connect(TcpConnection, "alice")
    service = reports_grpc.TopicServiceStub(channel)
    for number in range(3):
        report(alice, "live", str(number).encode())
    until(tiers.api(), "live", 4)

    def records(stream, count):
        found = []
        while len(found) < count:
            found.extend(next(stream).records)
        assert len(found) == count
        return [(record.offset, record.key, record.payload) for record in found]

    request = reports.ConsumeRequest(topic="live", consumer="c")
    first = service.Consume(request, metadata=AUTHORIZED, timeout=60)
    assert records(first, 3) == [(1, "alice", b"0"), (2, "alice", b"1"), (3, "alice", b"2")]
    report(alice, "live", b"3")
    assert records(first, 1) == [(4, "alice", b"3")]
    commit = reports.CommitOffsetRequest(topic="live", consumer="c", offset=2)
    assert service.CommitOffset(commit, metadata=AUTHORIZED, timeout=5).committed_offset == 2
    second = service.Consume(request, metadata=AUTHORIZED, timeout=60)
    assert records(second, 2) == [(3, "alice", b"2"), (4, "alice", b"3")]
    with pytest.raises(grpc.RpcError) as ended:
        next(first)
    assert ended.value.code() == grpc.StatusCode.ABORTED, "the newer stream has taken over"
    back = reports.CommitOffsetRequest(topic="live", consumer="c", offset=0, rewind=True)
    assert service.CommitOffset(back, metadata=AUTHORIZED, timeout=5).committed_offset == 0
    third = service.Consume(request, metadata=AUTHORIZED, timeout=60)
    assert [record[0] for record in records(third, 4)] == [1, 2, 3, 4]
    third.cancel()
    read = service.ReadTopic(reports.ReadTopicRequest(topic="live", offset=4), metadata=AUTHORIZED, timeout=5)
    assert [record.payload for record in read.records] == [b"3"]
    with pytest.raises(grpc.RpcError) as refused:
        service.ListTopics(reports.ListTopicsRequest(), timeout=5)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
