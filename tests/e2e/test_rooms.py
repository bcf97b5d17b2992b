"""Live rooms and broadcasts: who hears what, in which order, and what kills do to a room."""

import itertools
import os
import time
from urllib.parse import quote

import pytest

from millrace_client import (
    BAD_REQUEST, JOIN_ROOM, LEAVE_ROOM, LOGIC_UNAVAILABLE, NOT_PERMITTED, NOTICE, NOTICE_ACK, RATE_LIMITED, REPLY,
    ROOM_MESSAGE, TOO_LARGE, TRANSPORTS, JsonConnection, Refused, TcpConnection, WebSocketConnection, chat,
)

_names = itertools.count()


@pytest.fixture
def room_id():
    """A room that no other test uses."""
    return f"room/{os.getpid()} {next(_names)} ü"


def join(connection, room_id):
    return connection.request(JOIN_ROOM, chat.JoinRoom(room_id=room_id))


def say(connection, room_id, body, **fields):
    return connection.request(ROOM_MESSAGE, chat.RoomMessage(room_id=room_id, type=1, body=body, **fields), timeout=20)


def hear(connection, count, timeout=20.0):
    """The next `count` messages of rooms."""
    frames = [connection.wait_for(lambda frame: frame.command == ROOM_MESSAGE, timeout) for _ in range(count)]
    return [frame.parse(chat.RoomMessage) for frame in frames]


def hears_nothing(connection):
    """Whatever was on its way before is here when the answer is: the gateway answers after it."""
    connection.request(LEAVE_ROOM, chat.LeaveRoom(room_id="nowhere"))
    assert [frame for frame in connection.inbox if frame.command == ROOM_MESSAGE] == []


@pytest.mark.parametrize("sender_transport", TRANSPORTS)
def test_members_hear_each_other_in_order_and_the_sender_only_its_reply(dev, room_id, sender_transport):
    alice_id = dev.user()
    alice = dev.connect(sender_transport, alice_id)
    other_device = dev.connect(TcpConnection, alice_id, "device-2")
    bob, carol, outside = (dev.connect(transport, dev.user()) for transport in [*TRANSPORTS, TcpConnection])
    members = [join(connection, room_id).members for connection in (alice, other_device, bob, carol)]
    assert members == [1, 2, 3, 4]
    again = join(bob, room_id)
    assert (again.code, again.members) == (0, 4), "joining twice is joining once"
    bodies = [f"message {number}" for number in range(100)]
    for body in bodies:
        reply = say(alice, room_id, body, sender_id="somebody else")
        assert (reply.code, reply.members) == (0, 4)
    for connection in (other_device, bob, carol):
        heard = hear(connection, 100)
        assert [message.body for message in heard] == bodies
        assert {(message.sender_id, message.room_id, message.type) for message in heard} == {(alice_id, room_id, 1)}
    for connection in (alice, other_device, bob, carol, outside):
        hears_nothing(connection)


def test_who_left_ended_or_never_joined_neither_hears_nor_speaks(dev, room_id):
    alice, bob, carol = (dev.connect(TcpConnection, dev.user()) for _ in range(3))
    for connection in (alice, bob, carol):
        join(connection, room_id)
    left = bob.request(LEAVE_ROOM, chat.LeaveRoom(room_id=room_id))
    assert (left.code, left.members) == (0, 2)
    assert bob.request(LEAVE_ROOM, chat.LeaveRoom(room_id=room_id)).code == 0, "leaving twice is leaving once"
    refused = say(bob, room_id, "let me in")
    assert refused.code == NOT_PERMITTED and refused.reason
    carol.close()
    deadline = time.monotonic() + 20
    while say(alice, room_id, "who is here?").members != 1:
        assert time.monotonic() < deadline, "a session that ended is still counted"
        time.sleep(0.02)
    hears_nothing(bob)
    for wrong in ("", "x" * 129):
        assert join(alice, wrong).code == BAD_REQUEST
    assert say(alice, room_id, "x" * (16 * 1024 + 1)).code == TOO_LARGE


def test_two_hundred_members_over_both_transports_get_every_message_once_in_order(dev, room_id):
    speakers = [dev.connect(transport, dev.user()) for transport in TRANSPORTS]
    members = [dev.connect(TRANSPORTS[number % 2], dev.user()) for number in range(200)]
    for connection in [*speakers, *members]:
        last = join(connection, room_id)
    assert last.members == 202
    for number in range(20):
        for speaker in speakers:
            assert say(speaker, room_id, str(number)).members == 202
    for connection in members:
        heard = hear(connection, 40)
        by_sender = {}
        for message in heard:
            by_sender.setdefault(message.sender_id, []).append(int(message.body))
        assert list(by_sender.values()) == [list(range(20))] * 2
    for connection in [*speakers, *members]:
        connection.close()


def test_a_room_that_is_spoken_in_too_fast_tells_when_to_go_on(dev, room_id):
    alice, bob = dev.connect(TcpConnection, dev.user()), dev.connect(TcpConnection, dev.user())
    join(alice, room_id), join(bob, room_id)
    taken, limited = [], 0
    # Few enough requests at a time for the gateway, and faster than a room may speak; a machine that is too slow for that
    # takes them all, so there is time to become faster.
    for first in range(0, 3_000, 30):
        requests = {
            alice.send(ROOM_MESSAGE, chat.RoomMessage(room_id=room_id, type=1, body=str(number))): number
            for number in range(first, first + 30)
        }
        for request_id, number in requests.items():
            try:
                alice.reply_to(request_id, ROOM_MESSAGE, timeout=20)
                taken.append(number)
            except Refused as refusal:
                assert refusal.code == RATE_LIMITED and refusal.retry_after_ms > 0
                limited += 1
        if limited:
            break
    assert limited > 0 and len(taken) >= 100
    assert [int(message.body) for message in hear(bob, len(taken))] == taken
    hears_nothing(bob)


def test_services_speak_in_rooms_and_tell_everybody_once(dev, room_id):
    tcp, websocket = (dev.connect(transport, dev.user()) for transport in TRANSPORTS)
    text = JsonConnection(dev.ready)
    user_id = dev.user()
    login = {"user_id": user_id, "token": dev.token(user_id)}
    assert text.request("login", login).get("code", 0) == 0
    join(tcp, room_id), join(websocket, room_id)
    assert text.request("join_room", {"room_id": room_id})["members"] == "3"

    path = f"/v1/rooms/{quote(room_id, safe='')}/messages"
    status, reply = dev.api.call("POST", path, {"sender_id": "host", "type": 7, "body": "wel\ncome"})
    assert (status, reply["members"]) == (200, "3"), reply
    for connection in (tcp, websocket):
        (message,) = hear(connection, 1)
        assert (message.sender_id, message.type, message.body, message.room_id) == ("host", 7, "wel\ncome", room_id)
    heard = text.wait_for(lambda message: message["command"] == "room_message")["body"]
    assert (heard["sender_id"], heard["type"], heard["body"]) == ("host", 7, "wel\ncome")

    status, reply = dev.api.call("POST", "/v1/broadcast", {"type": 2, "body": "for all"})
    assert status == 200 and int(reply["sessions"]) >= 3 and reply["notice_id"], reply
    for connection in (tcp, websocket):
        notice = connection.wait_for(lambda frame: frame.command == NOTICE).parse(chat.Notice)
        assert (notice.notice_id, notice.type, notice.body) == (reply["notice_id"], 2, "for all")
        assert abs(notice.sent_at_ms - time.time() * 1000) < 600_000
        acknowledged = connection.request(NOTICE_ACK, chat.NoticeAck(notice_id=notice.notice_id))
        assert acknowledged.command == NOTICE_ACK | REPLY
        hears_nothing(connection)
        assert not [frame for frame in connection.inbox if frame.command == NOTICE], "once"
    notice = text.wait_for(lambda message: message["command"] == "notice")["body"]
    assert notice["notice_id"] == reply["notice_id"]
    assert dev.api.call("POST", "/v1/broadcast", {"body": "x"}, token="wrong")[0] == 401
    for connection in (tcp, websocket, text):
        connection.close()


def test_members_hear_on_after_logic_was_killed(tiers, room_id):
    alice, bob = tiers.connect(TcpConnection, "alice"), tiers.connect(WebSocketConnection, "bob")
    carol = tiers.connect(TcpConnection, "carol")
    for connection in (alice, bob, carol):
        join(connection, room_id)
    carol.request(LEAVE_ROOM, chat.LeaveRoom(room_id=room_id))
    assert say(alice, room_id, "before").members == 2
    assert hear(bob, 1)[0].body == "before"
    tiers.logic.kill()
    tiers.start_logic()
    # Every shard has a link of its own.
    tiers.until(tiers.gateway_ready, tiers.gateway)
    deadline = time.monotonic() + 20
    while True:
        try:
            reply = say(alice, room_id, "after")
            break
        except Refused as refusal:
            assert refusal.code == LOGIC_UNAVAILABLE and time.monotonic() < deadline
            time.sleep(0.05)
    assert (reply.code, reply.members) == (0, 2), "nobody had to join again"
    assert hear(bob, 1)[0].body == "after"
    hears_nothing(carol)
    assert say(carol, room_id, "me too").code == NOT_PERMITTED


def test_after_the_gateway_was_killed_members_join_again(tiers, room_id):
    alice, bob = tiers.connect(TcpConnection, "alice"), tiers.connect(WebSocketConnection, "bob")
    join(alice, room_id), join(bob, room_id)
    tiers.gateway.kill()
    alice.wait_closed(20), bob.wait_closed(20)
    tiers.start_gateway()
    alice = tiers.connect(TcpConnection, "alice")
    assert say(alice, room_id, "am I in?").code == NOT_PERMITTED, "the connection is another one"
    # What the dead gateway held is not counted: its new life ended it.
    assert join(alice, room_id).members == 1
    bob = tiers.connect(WebSocketConnection, "bob")
    assert join(bob, room_id).members == 2
    assert say(alice, room_id, "again").members == 2
    assert hear(bob, 1)[0].body == "again"
