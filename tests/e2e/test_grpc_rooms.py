"""Rooms and broadcasts over gRPC: the members hear what a business service says, as they do over HTTP."""

import itertools
import os

import grpc
import pytest

from millrace_client import (
    JOIN_ROOM, LEAVE_ROOM, NOTICE, ROOM_MESSAGE, JsonConnection, TcpConnection, WebSocketConnection,
    api_messages, api_services, chat, mint_token,
)
from processes import API_TOKEN, JWT_SECRET

AUTHORIZED = [("authorization", f"Bearer {API_TOKEN}")]
_names = itertools.count()


@pytest.fixture
def channel(tiers):
    with grpc.insecure_channel(f"127.0.0.1:{tiers.free_port('grpc')}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


@pytest.fixture
def room_id():
    """A room that no other test uses."""
    return f"room/{os.getpid()} {next(_names)} ü"


def publish(channel, room_id, metadata=AUTHORIZED, **fields):
    request = api_messages.PublishRoomMessageRequest(room_id=room_id, type=7, **fields)
    return api_services.RoomServiceStub(channel).PublishRoomMessage(request, metadata=metadata, timeout=20)


def hear(connection):
    return connection.wait_for(lambda frame: frame.command == ROOM_MESSAGE).parse(chat.RoomMessage)


def hears_nothing(connection):
    """Whatever was on its way before is here when the answer is: the gateway answers after it."""
    connection.request(LEAVE_ROOM, chat.LeaveRoom(room_id="nowhere"))
    assert [frame for frame in connection.inbox if frame.command == ROOM_MESSAGE] == []


def test_members_of_every_form_hear_what_is_published_over_grpc_in_order(tiers, channel, room_id):
    members = [tiers.connect(TcpConnection, "alice"), tiers.connect(WebSocketConnection, "bob")]
    outside = tiers.connect(TcpConnection, "carol")
    for connection in members:
        connection.request(JOIN_ROOM, chat.JoinRoom(room_id=room_id))
    text = JsonConnection(tiers.ready)
    assert text.request("login", {"user_id": "dave", "token": mint_token(JWT_SECRET, "dave")}).get("code", 0) == 0
    text.request("join_room", {"room_id": room_id})
    bodies = [f"wel\ncome {number}" for number in range(20)]
    for body in bodies:
        reply = publish(channel, room_id, sender_id="host", body=body)
        assert (reply.code, reply.members) == (0, 3)
    for connection in members:
        heard = [hear(connection) for _ in bodies]
        assert [message.body for message in heard] == bodies
        assert {(message.sender_id, message.type, message.room_id) for message in heard} == {("host", 7, room_id)}
    heard = [text.wait_for(lambda message: message["command"] == "room_message")["body"] for _ in bodies]
    assert [message["body"] for message in heard] == bodies
    hears_nothing(outside)


def test_a_room_without_members_is_no_error_and_who_left_hears_nothing(tiers, channel, room_id):
    assert publish(channel, room_id, body="is anybody there?").members == 0
    alice = tiers.connect(TcpConnection, "alice")
    alice.request(JOIN_ROOM, chat.JoinRoom(room_id=room_id))
    assert publish(channel, room_id, body="now").members == 1
    assert hear(alice).body == "now"
    alice.request(LEAVE_ROOM, chat.LeaveRoom(room_id=room_id))
    assert publish(channel, room_id, body="gone?").members == 0
    hears_nothing(alice)


@pytest.mark.parametrize("room", ["", "x" * 1000])
def test_a_bad_room_message_is_refused_over_grpc_with_a_sentence(tiers, channel, room):
    with pytest.raises(grpc.RpcError) as refused:
        publish(channel, room, body="let me in")
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "room_id" in refused.value.details()


@pytest.mark.parametrize("metadata", [[], [("authorization", "Bearer wrong")]])
def test_rooms_and_broadcasts_need_the_api_token(tiers, channel, room_id, metadata):
    alice = tiers.connect(TcpConnection, "alice")
    alice.request(JOIN_ROOM, chat.JoinRoom(room_id=room_id))
    with pytest.raises(grpc.RpcError) as refused:
        publish(channel, room_id, metadata=metadata, body="let me in")
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as refused:
        api_services.BroadcastServiceStub(channel).Broadcast(
            api_messages.BroadcastRequest(body="all of you"), metadata=metadata, timeout=5
        )
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    hears_nothing(alice)
    assert [frame for frame in alice.inbox if frame.command == NOTICE] == []


def test_everybody_who_is_online_hears_a_broadcast_over_grpc_once(tiers, channel):
    connections = [tiers.connect(TcpConnection, "alice"), tiers.connect(WebSocketConnection, "bob")]
    reply = api_services.BroadcastServiceStub(channel).Broadcast(
        api_messages.BroadcastRequest(type=2, body="for all"), metadata=AUTHORIZED, timeout=5
    )
    assert (reply.code, reply.sessions) == (0, 2) and reply.notice_id
    for connection in connections:
        notice = connection.wait_for(lambda frame: frame.command == NOTICE).parse(chat.Notice)
        assert (notice.notice_id, notice.type, notice.body) == (reply.notice_id, 2, "for all")
        hears_nothing(connection)
        assert not [frame for frame in connection.inbox if frame.command == NOTICE], "once"
