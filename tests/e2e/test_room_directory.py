"""Rooms that business services make: who belongs there, how many, and the audit line of each act."""

import importlib
import json
import time

import grpc
import pytest

from millrace_client import (
    JOIN_ROOM, LEAVE_ROOM, NOT_FOUND, NOT_PERMITTED, OVER_CAPACITY, ROOM_MESSAGE, TcpConnection, WebSocketConnection, chat,
)
from processes import API_TOKEN, Tiers

rooms = importlib.import_module("millrace.api.v1.rooms_pb2")
rooms_grpc = importlib.import_module("millrace.api.v1.rooms_pb2_grpc")

AUTHORIZED = [("authorization", f"Bearer {API_TOKEN}")]
ALREADY_EXISTS, BAD_REQUEST = 22, 18


def create(api, **room):
    status, reply = api.call("POST", "/v1/rooms", room)
    assert status == 200, reply
    return reply["room_id"]


def join(connection, room_id):
    return connection.request(JOIN_ROOM, chat.JoinRoom(room_id=room_id))


def say(connection, room_id, body):
    return connection.request(ROOM_MESSAGE, chat.RoomMessage(room_id=room_id, type=1, body=body))


def hear(connection):
    return connection.wait_for(lambda frame: frame.command == ROOM_MESSAGE).parse(chat.RoomMessage).body


def hears_nothing(connection, seconds=0.4):
    with pytest.raises(TimeoutError):
        connection.wait_for(lambda frame: frame.command == ROOM_MESSAGE, seconds)


def members(api, room_id, query=""):
    status, page = api.call("GET", f"/v1/rooms/{room_id}/members{query}")
    assert status == 200, page
    return [(one["user_id"], one["account"], one["sessions"]) for one in page["members"]], page["complete"]


def test_accounts_are_in_their_closed_room_wherever_they_log_in_and_nobody_else_is(dev):
    ann, bob, cid = sorted(dev.user() for _ in range(3))
    phone = dev.connect(TcpConnection, ann, "phone")
    room_id = create(dev.api, name="a circle", closed=True, user_ids=[ann, bob])
    laptop = dev.connect(WebSocketConnection, ann, "laptop")
    bobs, cids = dev.connect(TcpConnection, bob), dev.connect(TcpConnection, cid)
    refused = join(cids, room_id)
    assert refused.code == NOT_PERMITTED and refused.reason
    assert say(cids, room_id, "?").code == NOT_PERMITTED
    # Nobody had to join: the accounts' sessions are in it.
    assert say(bobs, room_id, "hello").members == 3
    assert hear(phone) == hear(laptop) == "hello"
    hears_nothing(cids)
    found = dev.api.call("GET", f"/v1/rooms/{room_id}")[1]
    assert (found["name"], found["closed"], found["accounts"], found["members"]) == ("a circle", True, "2", "3")
    assert members(dev.api, room_id) == ([(ann, True, 2), (bob, True, 1)], True)
    assert members(dev.api, room_id, "?limit=1") == ([(ann, True, 2)], False)
    assert members(dev.api, room_id, f"?limit=1&after_user_id={ann}") == ([(bob, True, 1)], True)

    assert dev.api.call("POST", f"/v1/rooms/{room_id}/accounts", {"user_ids": [cid, bob]})[1]["added"] == "1"
    assert say(cids, room_id, "thanks").members == 4
    assert hear(bobs) == "thanks"
    assert dev.api.call("DELETE", f"/v1/rooms/{room_id}/accounts", {"user_ids": [ann, "nobody"]})[1]["removed"] == "1"
    assert hear(phone) == hear(laptop) == "thanks"
    assert say(cids, room_id, "without ann").members == 2
    hears_nothing(phone), hears_nothing(laptop)
    assert join(phone, room_id).code == NOT_PERMITTED

    status, reply = dev.api.call("DELETE", f"/v1/rooms/{room_id}")
    assert (status, reply["members"]) == (200, "2")
    assert say(cids, room_id, "anybody?").code == NOT_PERMITTED, "everybody is outside"
    assert dev.api.call("GET", f"/v1/rooms/{room_id}")[0] == 404
    assert join(phone, room_id).members == 1, "an id that nobody has configured is open to all"


def test_the_limit_of_its_maker_holds_for_accounts_of_a_closed_room_and_sessions_of_an_open_one(dev):
    users = [dev.user() for _ in range(3)]
    closed = create(dev.api, closed=True, members_max="2", user_ids=users[:1])
    status, refusal = dev.api.call("POST", f"/v1/rooms/{closed}/accounts", {"user_ids": users[1:]})
    assert (status, refusal["code"]) == (503, OVER_CAPACITY) and "2 accounts" in refusal["reason"]
    assert members(dev.api, closed) == ([(users[0], True, 0)], True), "all of a call or nothing"
    open_room = create(dev.api, members_max="2")
    connections = [dev.connect(TcpConnection, user) for user in users]
    assert [join(connection, open_room).code for connection in connections] == [0, 0, OVER_CAPACITY]
    connections[0].request(LEAVE_ROOM, chat.LeaveRoom(room_id=open_room))
    assert join(connections[2], open_room).code == 0


def test_what_makes_no_sense_is_refused_in_words(dev):
    room_id = create(dev.api, name="once")
    for method, path, body, status, code in [
        ("POST", "/v1/rooms", {"room_id": room_id}, 409, ALREADY_EXISTS),
        ("POST", "/v1/rooms", {"room_id": "x" * 129}, 400, BAD_REQUEST),
        ("POST", "/v1/rooms", {"user_ids": [""]}, 400, BAD_REQUEST),
        ("GET", "/v1/rooms/nothing", None, 404, NOT_FOUND),
        ("DELETE", "/v1/rooms/nothing", None, 404, NOT_FOUND),
        ("GET", "/v1/rooms/nothing/members", None, 404, NOT_FOUND),
        ("POST", "/v1/rooms/nothing/accounts", {"user_ids": ["a"]}, 404, NOT_FOUND),
        ("PUT", f"/v1/rooms/{room_id}", {}, 405, BAD_REQUEST),
    ]:
        found, refusal = dev.api.call(method, path, body)
        assert (found, refusal["code"]) == (status, code) and refusal["reason"], (method, path)
    assert dev.api.call("GET", f"/v1/rooms/{room_id}", token="wrong")[0] == 401


def test_rooms_accounts_and_memberships_survive_kill_9_and_each_act_left_a_line(tmp_path):
    tiers = Tiers(tmp_path)
    tiers.logic_settings = f'[audit]\nfile = "{tmp_path / "audit.jsonl"}"\n'
    tiers.start_logic()
    tiers.start_gateway()
    try:
        alice = tiers.connect(TcpConnection, "alice")
        with grpc.insecure_channel(
            f"127.0.0.1:{tiers.free_port('grpc')}", options=[("grpc.enable_http_proxy", 0)]
        ) as channel:
            service = rooms_grpc.RoomDirectoryServiceStub(channel)
            request = rooms.CreateRoomRequest(room_id="board", name="secret words", closed=True, user_ids=["alice", "bob"])
            actor = [*AUTHORIZED, ("x-millrace-actor", "carol of support")]
            assert service.CreateRoom(request, metadata=actor, timeout=5).room_id == "board"
            with pytest.raises(grpc.RpcError) as refused:
                service.CreateRoom(request, metadata=AUTHORIZED, timeout=5)
            assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
            added = rooms.AddAccount2RoomRequest(room_id="board", user_ids=["dan"])
            assert service.AddAccount2Room(added, metadata=AUTHORIZED, timeout=5).added == 1
            removed = rooms.RmAccountFromRoomRequest(room_id="board", user_ids=["bob"])
            assert service.RmAccountFromRoom(removed, metadata=AUTHORIZED, timeout=5).removed == 1
            assert service.GetRoom(rooms.GetRoomRequest(room_id="board"), metadata=AUTHORIZED, timeout=5).accounts == 2
        assert tiers.api().call("POST", "/v1/users/nobody/kick", {"reason": "secret words"})[0] == 200
        tiers.logic.kill()
        tiers.start_logic()
        tiers.until(tiers.gateway_ready, tiers.gateway)
        deadline = time.monotonic() + 20
        while members(tiers.api(), "board") != ([("alice", True, 1), ("dan", True, 0)], True):
            assert time.monotonic() < deadline, members(tiers.api(), "board")
            time.sleep(0.05)
        bob = tiers.connect(TcpConnection, "bob")
        assert join(bob, "board").code == NOT_PERMITTED
        text = (tmp_path / "audit.jsonl").read_text()
        assert "secret words" not in text, "ids alone"
        lines = [json.loads(line) for line in text.splitlines()]
        assert [(line["door"], line["actor"], line["act"], line["result"]) for line in lines] == [
            ("grpc", "carol of support", "CreateRoom", "ok"),
            ("grpc", "api", "CreateRoom", "already_exists"),
            ("grpc", "api", "AddAccount2Room", "ok"),
            ("grpc", "api", "RmAccountFromRoom", "ok"),
            ("http", "api", "KickUser", "ok"),
        ]
        assert lines[0]["target"] == {"room_id": "board", "user_ids": ["alice", "bob"]}
        assert lines[4]["target"]["path"] == "/v1/users/nobody/kick"
        assert all(abs(line["time_ms"] / 1000 - time.time()) < 600 for line in lines)
        alice.close()
    finally:
        tiers.stop()
