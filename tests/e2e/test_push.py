"""Push: notices of business services reach every device, wait for who is away, and their acknowledgements come back."""

import importlib
import threading
import time

import grpc
import pytest

from millrace_client import (
    JOIN_ROOM, NOTICE, NOTICE_ACK, REPLY, JsonConnection, TcpConnection, WebSocketConnection, chat,
)
from processes import API_TOKEN

push_messages = importlib.import_module("millrace.api.v1.push_pb2")
push_services = importlib.import_module("millrace.api.v1.push_pb2_grpc")

AUTHORIZED = [("authorization", f"Bearer {API_TOKEN}")]
TOO_LARGE, NOT_FOUND, BAD_REQUEST = 3, 16, 18


def push(api, targets, **fields):
    status, reply = api.call("POST", "/v1/push", {"targets": targets, "type": 5, "body": "news", **fields})
    assert status == 200, reply
    return reply


def notice(connection, timeout=10.0):
    return connection.wait_for(lambda frame: frame.command == NOTICE, timeout).parse(chat.Notice)


def no_notice(connection, seconds=0.4):
    with pytest.raises(TimeoutError):
        connection.wait_for(lambda frame: frame.command == NOTICE, seconds)


def acknowledge(connection, notice_id):
    reply = connection.request(NOTICE_ACK, chat.NoticeAck(notice_id=notice_id))
    assert reply.command == NOTICE_ACK | REPLY


def states(api, notice_id, query=""):
    status, found = api.call("GET", f"/v1/push/{notice_id}{query}")
    assert status == 200, found
    return found


def counts(found):
    return {state: int(found[state]) for state in ("targets", "stored", "delivered", "acked", "dropped")}


def until(check, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def test_every_device_gets_a_notice_and_who_was_away_gets_it_at_the_next_login_until_acknowledged(dev):
    alice_id, bob_id = dev.user(), dev.user()
    phone, laptop = dev.connect(TcpConnection, alice_id, "phone"), dev.connect(WebSocketConnection, alice_id, "laptop")
    reply = push(dev.api, {"user_ids": [alice_id, bob_id, alice_id]}, body="for both")
    assert (reply["targets"], reply["sessions"], reply["duplicate"]) == ("2", "2", False)
    for connection in (phone, laptop):
        got = notice(connection)
        assert (got.notice_id, got.type, got.body, str(got.sent_at_ms)) == (reply["notice_id"], 5, "for both", reply["sent_at_ms"])
    until(lambda: counts(states(dev.api, reply["notice_id"]))["delivered"] == 1)
    acknowledge(phone, reply["notice_id"])
    found = states(dev.api, reply["notice_id"])
    assert counts(found) == {"targets": 2, "stored": 1, "delivered": 0, "acked": 1, "dropped": 0}
    assert {one["user_id"]: one["state"] for one in found["states"]} == {alice_id: "acked", bob_id: "stored"}
    # Acknowledged on one device is acknowledged on all.
    tablet = dev.connect(TcpConnection, alice_id, "tablet")
    no_notice(tablet)
    for number in range(2):
        bob = dev.connect(TcpConnection, bob_id, f"device-{number}")
        assert notice(bob).body == "for both", "as long as it is not acknowledged"
        until(lambda: counts(states(dev.api, reply["notice_id"]))["delivered"] == 1)
        bob.close()
    text = JsonConnection(dev.ready)
    assert text.request("login", {"user_id": bob_id, "token": dev.token(bob_id), "device_id": "browser"}).get("code", 0) == 0
    got = text.wait_for(lambda message: message["command"] == "notice")["body"]
    assert got["body"] == "for both"
    assert text.request("notice_ack", {"notice_id": got["notice_id"]}) == {}
    assert counts(states(dev.api, reply["notice_id"]))["acked"] == 2
    no_notice(dev.connect(TcpConnection, bob_id, "device-9"))


def test_a_notice_id_is_pushed_once_and_a_collapse_key_leaves_the_newest(dev):
    alice_id = dev.user()
    first = push(dev.api, {"user_ids": [alice_id]}, notice_id=f"id-{alice_id}", body="once")
    again = push(dev.api, {"user_ids": [alice_id]}, notice_id=f"id-{alice_id}", body="twice")
    assert not first["duplicate"] and again["duplicate"] and again["sent_at_ms"] == first["sent_at_ms"]
    scores = [push(dev.api, {"user_ids": [alice_id]}, body=f"{n}:0", collapse_key="score")["notice_id"] for n in range(3)]
    alice = dev.connect(TcpConnection, alice_id)
    assert [notice(alice).body for _ in range(2)] == ["once", "2:0"]
    no_notice(alice)
    assert [states(dev.api, score)["states"][0]["state"] for score in scores[:2]] == ["dropped", "dropped"]


def test_groups_rooms_and_everyone_are_targets_and_what_ends_is_not_pushed_again(dev):
    alice_id, bob_id, carol_id = dev.user(), dev.user(), dev.user()
    alice = dev.connect(TcpConnection, alice_id)
    group_id, _ = dev.api.create_group([alice_id, bob_id])
    reply = push(dev.api, {"group_ids": [group_id], "user_ids": [alice_id]}, body="group")
    assert reply["targets"] == "2" and notice(alice).body == "group"
    acknowledge(alice, reply["notice_id"])
    room_id = f"room-{alice_id}"
    alice.request(JOIN_ROOM, chat.JoinRoom(room_id=room_id))
    reply = push(dev.api, {"room_ids": [room_id]}, body="room")
    assert (reply["sessions"], reply["targets"], reply["expires_at_ms"]) == ("1", "0", "0")
    assert notice(alice).body == "room"
    acknowledge(alice, reply["notice_id"])
    assert states(dev.api, reply["notice_id"])["acked"] == "1"
    # Everyone: who is online now, and with a ttl who logs in until then, once each has acknowledged it no more.
    live = push(dev.api, {"everyone": True}, body="live")
    assert int(live["sessions"]) >= 1 and notice(alice).body == "live"
    kept = push(dev.api, {"everyone": True}, body="kept", ttl_ms="5000")
    assert notice(alice).body == "kept"
    carol = dev.connect(WebSocketConnection, carol_id)
    assert notice(carol).body == "kept", "the live one is gone"
    acknowledge(carol, kept["notice_id"])
    no_notice(dev.connect(TcpConnection, carol_id, "second"))
    until(lambda: time.time() * 1000 > int(kept["expires_at_ms"]) + 50)
    no_notice(dev.connect(TcpConnection, dev.user()))
    short = push(dev.api, {"user_ids": [carol_id + "x"]}, ttl_ms=1)
    time.sleep(0.05)
    assert states(dev.api, short["notice_id"])["states"][0]["state"] == "expired"
    no_notice(dev.connect(TcpConnection, carol_id + "x"))


@pytest.mark.parametrize(
    "body, status, code",
    [
        ({"body": "nobody"}, 400, BAD_REQUEST),
        ({"targets": {"user_ids": ["a"], "everyone": True}}, 400, BAD_REQUEST),
        ({"targets": {"user_ids": [""]}}, 400, BAD_REQUEST),
        ({"targets": {"user_ids": ["a"]}, "ttl_ms": -1}, 400, BAD_REQUEST),
        ({"targets": {"user_ids": ["a"]}, "ttl_ms": "99999999999"}, 400, BAD_REQUEST),
        ({"targets": {"user_ids": ["a"]}, "notice_id": "x" * 129}, 400, BAD_REQUEST),
        ({"targets": {"user_ids": ["a"]}, "body": "x" * (16 * 1024 + 1)}, 413, TOO_LARGE),
        ({"targets": {"user_ids": [str(n) for n in range(10_001)]}}, 413, TOO_LARGE),
        ({"targets": {"group_ids": ["no such group"]}}, 404, NOT_FOUND),
    ],
)
def test_a_push_that_makes_no_sense_is_refused_in_words(dev, body, status, code):
    found, refusal = dev.api.call("POST", "/v1/push", body)
    assert (found, refusal["code"]) == (status, code) and refusal["reason"]


def test_an_unknown_notice_is_not_found_and_a_wrong_token_sees_nothing(dev):
    found, refusal = dev.api.call("GET", "/v1/push/nothing")
    assert (found, refusal["code"]) == (404, NOT_FOUND)
    assert dev.api.call("POST", "/v1/push", {"targets": {"everyone": True}}, token="wrong")[0] == 401


def test_notices_states_and_acknowledgements_survive_kill_9_of_logic(tiers):
    alice, bob = tiers.connect(TcpConnection, "alice"), tiers.connect(TcpConnection, "bob")
    reply = push(tiers.api(), {"user_ids": ["alice", "bob", "carol"]}, notice_id="n1")
    assert notice(alice).notice_id == notice(bob).notice_id == "n1"
    acknowledge(alice, "n1")
    tiers.logic.kill()
    tiers.start_logic()
    tiers.until(tiers.gateway_ready, tiers.gateway)
    # Who has not acknowledged it is pushed it again, on the connection that never noticed.
    assert notice(bob, 20).notice_id == "n1"
    acknowledge(bob, "n1")
    assert notice(tiers.connect(TcpConnection, "carol")).notice_id == "n1"
    until(lambda: counts(states(tiers.api(), "n1")) == {"targets": 3, "stored": 0, "delivered": 1, "acked": 2, "dropped": 0})
    assert push(tiers.api(), {"user_ids": ["alice"]}, notice_id="n1")["duplicate"], "the id is known to the next life"
    no_notice(alice)
    assert reply["targets"] == "3"


def test_a_grpc_watcher_sees_what_was_and_what_comes(tiers):
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{tiers.free_port('grpc')}", options=options) as channel:
        service = push_services.PushServiceStub(channel)
        alice = tiers.connect(TcpConnection, "alice")
        request = push_messages.PushRequest(
            targets=push_messages.PushTargets(user_ids=["alice", "bob"]), body="watched", notice_id="w1"
        )
        reply = service.Push(request, metadata=AUTHORIZED, timeout=10)
        assert (reply.targets, reply.sessions) == (2, 1)
        until(lambda: service.GetPush(
            push_messages.GetPushRequest(notice_id="w1"), metadata=AUTHORIZED, timeout=10).delivered == 1)
        events, watching = [], service.WatchPush(
            push_messages.WatchPushRequest(notice_id="w1"), metadata=AUTHORIZED, timeout=60
        )

        def watch():
            try:
                for event in watching:
                    events.append((event.user_id, event.state))
            except grpc.RpcError:
                pass

        thread = threading.Thread(target=watch)
        thread.start()
        until(lambda: events == [("alice", "delivered")])
        acknowledge(alice, notice(alice).notice_id)
        until(lambda: events[1:] == [("alice", "acked")])
        bob = tiers.connect(TcpConnection, "bob")
        acknowledge(bob, notice(bob).notice_id)
        until(lambda: set(events[2:]) == {("bob", "delivered"), ("bob", "acked")})
        watching.cancel()
        thread.join(10)
        with pytest.raises(grpc.RpcError) as refused:
            service.Push(request, timeout=5)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
