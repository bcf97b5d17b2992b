"""Revoke, delete, forward, quote, mention, expiry and live messages, through the real binaries, over every door."""

import importlib
import json
import time

import grpc
import pytest

from millrace_client import (
    DELIVER, DELIVER_ACK, PULL_CONVERSATIONS, PULL_MESSAGES, SEND_MESSAGE, JsonConnection, TcpConnection,
    WebSocketConnection, BAD_REQUEST, NOT_FOUND, NOT_PERMITTED, REPLY_TYPES, chat, text_message,
)
from processes import API_TOKEN

messages_pb = importlib.import_module("millrace.chat.v1.messages_pb2")
history_pb = importlib.import_module("millrace.api.v1.history_pb2")
history_grpc = importlib.import_module("millrace.api.v1.history_pb2_grpc")

REVOKE, DELETE, FORWARD = 0x0206, 0x0207, 0x0208
NO_STORE = 8
ROLE_TOO_LOW, TOO_LATE, WORD_BLOCKED = 26, 27, 28
REPLY_TYPES.update({REVOKE: chat.RevokeReply, DELETE: chat.DeleteReply, FORWARD: chat.SendReply})
TRANSPORTS = [TcpConnection, WebSocketConnection]
AUTHORIZED = [("authorization", f"Bearer {API_TOKEN}")]


def states(messages):
    return [(message.sequence, message.state) for message in messages]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_revoked_message_is_gone_on_every_device_online_or_not(dev, two_users, transport):
    alice_id, bob_id = two_users
    alice = dev.connect(transport, alice_id, device_id="phone")
    others = [dev.connect(TcpConnection, alice_id, device_id="web"), dev.connect(transport, bob_id, device_id="phone")]
    sent = alice.request(SEND_MESSAGE, text_message(to=bob_id, body="secret"))
    alice.request(SEND_MESSAGE, text_message(to=bob_id, body="second"))
    for device in others:
        device.messages(2)
    bob = others[1]
    before = bob.request(PULL_CONVERSATIONS, chat.PullConversations())
    assert before.conversations[0].unread == 2
    revoke = chat.Revoke(conversation_id=sent.conversation_id, sequence=1)
    assert alice.request(REVOKE, revoke).code == 0
    for device in others:
        (told,) = device.messages(1)
        assert (told.sequence, told.state, told.body, told.revoked_by) == (1, 2, "", alice_id)
    assert alice.request(REVOKE, revoke).code == 0, "again is no error"
    for device in (alice, *others):
        device.no_messages(0.2)
    tablet = dev.connect(transport, bob_id, device_id="tablet")
    assert states(tablet.messages(2)) == [(1, 2), (2, 0)]
    changed = tablet.request(PULL_CONVERSATIONS, chat.PullConversations(since_version=before.version))
    assert [row.unread for row in changed.conversations] == [1]
    page = tablet.request(PULL_MESSAGES, chat.PullMessages(conversation_id=sent.conversation_id))
    assert states(page.messages) == [(1, 2), (2, 0)] and page.messages[0].body == ""
    news = chat.PullMessages(conversation_id=sent.conversation_id, changed_since_version=before.version)
    assert states(tablet.request(PULL_MESSAGES, news).messages) == [(1, 2)]


def test_who_may_not_revoke_hears_why_over_every_door(dev, two_users):
    alice_id, bob_id = two_users
    alice, bob = dev.connect(TcpConnection, alice_id), dev.connect(WebSocketConnection, bob_id)
    stranger = dev.connect(TcpConnection, dev.user())
    group_id, group = dev.api.create_group([alice_id, bob_id])
    alice.request(SEND_MESSAGE, text_message(group=group_id))
    single = alice.request(SEND_MESSAGE, text_message(to=bob_id)).conversation_id
    cases = [(bob, group, 1, ROLE_TOO_LOW), (bob, single, 1, NOT_PERMITTED), (stranger, group, 1, NOT_PERMITTED), (bob, group, 9, NOT_FOUND)]
    for connection, conversation_id, sequence, code in cases:
        reply = connection.request(REVOKE, chat.Revoke(conversation_id=conversation_id, sequence=sequence))
        assert reply.code == code and reply.reason, conversation_id
    json_bob = JsonConnection(dev.ready)
    json_bob.request("login", {"user_id": bob_id, "token": dev.token(bob_id), "device_id": "json"})
    reply = json_bob.request("revoke", {"conversation_id": single, "sequence": 1})
    assert reply["code"] == NOT_PERMITTED and reply["reason"]
    status, body = dev.api.call("POST", f"/v1/conversations/{single}/messages/1/revoke", {"actor_user_id": bob_id})
    assert (status, body["code"]) == (403, NOT_PERMITTED)


def test_a_deleted_message_is_hidden_from_one_user_on_all_devices(dev, two_users):
    alice_id, bob_id = two_users
    alice = dev.connect(TcpConnection, alice_id)
    phone, web = dev.connect(TcpConnection, bob_id, device_id="phone"), dev.connect(WebSocketConnection, bob_id, device_id="web")
    for _ in range(3):
        conversation_id = alice.request(SEND_MESSAGE, text_message(to=bob_id)).conversation_id
    phone.messages(3), web.messages(3)
    assert phone.request(DELETE, chat.Delete(conversation_id=conversation_id, sequences=[1, 3])).code == 0
    assert states(web.messages(2)) == [(1, 1), (3, 1)]
    pull = chat.PullMessages(conversation_id=conversation_id)
    for device in (phone, web):
        assert states(device.request(PULL_MESSAGES, pull).messages) == [(1, 1), (2, 0), (3, 1)]
        row = device.request(PULL_CONVERSATIONS, chat.PullConversations()).conversations[0]
        assert (row.unread, row.last_message.state, row.max_sequence) == (1, 1, 3)
    assert states(alice.request(PULL_MESSAGES, pull).messages) == [(1, 0), (2, 0), (3, 0)]
    alice.no_messages(0.2)
    changed = phone.request(PULL_MESSAGES, chat.PullMessages(conversation_id=conversation_id, changed_since_version=1))
    assert [(part.from_sequence, part.to_sequence) for part in changed.deleted] == [(1, 1), (3, 3)]
    assert phone.request(DELETE, chat.Delete(conversation_id=conversation_id, sequences=[9])).code == NOT_FOUND
    assert phone.request(DELETE, chat.Delete(conversation_id=conversation_id)).code == BAD_REQUEST


def test_messages_are_forwarded_in_order_merged_and_once(dev, two_users):
    alice_id, bob_id = two_users
    carol_id = dev.user()
    alice, carol = dev.connect(TcpConnection, alice_id), dev.connect(WebSocketConnection, carol_id)
    for body in ("one", "two", "three"):
        origin = alice.request(SEND_MESSAGE, text_message(to=bob_id, body=body)).conversation_id
    forward = chat.Forward(conversation_id=origin, sequences=[1, 2, 3], user_id=carol_id, client_message_id="f1")
    reply = alice.request(FORWARD, forward)
    assert (reply.code, reply.count, reply.sequence) == (0, 3, 3)
    got = carol.messages(3)
    assert [(message.sequence, message.body, message.forwarded.sender_id) for message in got] == [
        (1, "one", alice_id), (2, "two", alice_id), (3, "three", alice_id),
    ]
    again = alice.request(FORWARD, forward)
    assert again.duplicate and (again.message_id, again.count) == (reply.message_id, 3)
    merged = chat.Forward(
        conversation_id=origin, sequences=[1, 3], user_id=carol_id, client_message_id="f2", merged=True, title="A chat"
    )
    assert alice.request(FORWARD, merged).sequence == 4
    (card,) = carol.messages(1)
    assert (card.type, card.body, [item.excerpt for item in card.merged.items]) == (7, "A chat", ["one", "three"])
    carol.no_messages(0.2)
    stranger = dev.connect(TcpConnection, dev.user())
    refused = chat.Forward(conversation_id=origin, sequences=[1], user_id=carol_id, client_message_id="f3")
    assert stranger.request(FORWARD, refused).code == NOT_PERMITTED
    alice.request(REVOKE, chat.Revoke(conversation_id=origin, sequence=1))
    assert alice.request(FORWARD, refused).code == NOT_FOUND
    status, body = dev.api.call(
        "POST", f"/v1/conversations/{origin}/messages/forward",
        {"sender_id": bob_id, "sequences": [2, 3], "user_id": carol_id, "client_message_id": "f4"},
    )
    assert (status, body["count"]) == (200, 2)


def test_every_type_is_sent_over_the_text_form_and_what_is_incomplete_is_refused(dev, two_users):
    alice_id, bob_id = two_users
    alice, bob = JsonConnection(dev.ready), dev.connect(TcpConnection, bob_id)
    alice.request("login", {"user_id": alice_id, "token": dev.token(alice_id), "device_id": "web"})
    base = lambda kind, **more: {"client_message_id": f"t{kind}", "user_id": bob_id, "type": kind, "body": "{}", **more}
    file = {"attachment": {"url": "https://example.org/x", "name": "x", "size": "5"}}
    place = {"location": {"latitude": 52.5, "longitude": 13.4}}
    for kind, more in [(1, {}), (2, file), (3, file), (4, file), (5, place), (6, file), (7, {}), (8, {}), (99, {})]:
        assert alice.request("send_message", base(kind, **more)).get("code", 0) == 0, kind
        (message,) = bob.messages(1)
        assert message.type == kind and not message.system
        assert message.attachment.url == more.get("attachment", {}).get("url", "")
        assert message.location.latitude == more.get("location", {}).get("latitude", 0)
    for kind in (2, 3, 4, 5, 6, 50):
        refused = alice.request("send_message", base(kind, client_message_id=f"u{kind}"))
        assert refused["code"] == BAD_REQUEST and refused["reason"], kind
    quoted = alice.request("send_message", base(1, client_message_id="q", quote={"sequence": 1}, mentions={"user_ids": [bob_id]}))
    assert quoted.get("code", 0) == 0
    (message,) = bob.messages(1)
    assert (message.quote.sequence, message.quote.sender_id) == (1, alice_id)
    row = bob.request(PULL_CONVERSATIONS, chat.PullConversations()).conversations[0]
    assert row.mentioned_sequence == message.sequence


def test_what_is_not_stored_is_live_and_what_is_over_is_hidden(dev, two_users):
    alice_id, bob_id = two_users
    alice, bob = JsonConnection(dev.ready), dev.connect(TcpConnection, bob_id)
    alice.request("login", {"user_id": alice_id, "token": dev.token(alice_id), "device_id": "web"})
    status, body = dev.api.call("POST", "/v1/messages", {
        "sender_id": alice_id, "client_message_id": "live", "user_id": bob_id, "type": 1, "body": "live", "no_store": True})
    assert (status, body["not_stored"], body["sequence"]) == (200, True, "0")
    (message,) = bob.messages(1)
    assert (message.body, message.sequence) == ("live", 0)
    phone = dev.connect(TcpConnection, alice_id, device_id="phone")
    reply = phone.request(SEND_MESSAGE, text_message(to=bob_id, body="by flag"), flags=NO_STORE)
    assert (reply.code, reply.sequence, reply.not_stored) == (0, 0, True)
    alice.websocket.send(json.dumps({
        "command": "send_message", "request_id": 99, "no_store": True,
        "body": {"client_message_id": "x", "user_id": bob_id, "type": 1, "body": "by text"}}))
    assert alice.wait_for(lambda message: message.get("request_id") == 99)["body"]["not_stored"] is True
    assert [message.body for message in bob.messages(2)] == ["by flag", "by text"]
    assert not bob.request(PULL_CONVERSATIONS, chat.PullConversations()).conversations
    reply = alice.request("send_message", {"client_message_id": "e", "user_id": bob_id, "type": 1, "body": "short", "ttl_ms": 50})
    bob.messages(1)
    time.sleep(0.2)
    page = bob.request(PULL_MESSAGES, chat.PullMessages(conversation_id=reply["conversation_id"]))
    assert states(page.messages) == [(1, 3)] and page.messages[0].body == ""
    deadline = time.monotonic() + 30
    while bob.request(PULL_CONVERSATIONS, chat.PullConversations()).conversations[0].unread:
        assert time.monotonic() < deadline, "what is over is not unread"
        time.sleep(0.1)


def test_history_over_grpc_and_after_kill_9_of_logic(tiers):
    alice, bob = tiers.connect(TcpConnection, "alice"), tiers.connect(TcpConnection, "bob")
    for body in ("one", "two", "three"):
        conversation_id = alice.request(SEND_MESSAGE, text_message(to="bob", body=body)).conversation_id
    bob.messages(3)
    with grpc.insecure_channel(f"127.0.0.1:{tiers.free_port('grpc')}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        history = history_grpc.HistoryServiceStub(channel)
        call = dict(metadata=AUTHORIZED, timeout=5)
        revoked = history.RevokeMessage(history_pb.RevokeMessageRequest(conversation_id=conversation_id, sequence=1), **call)
        assert revoked.changed
        assert states(alice.messages(1)) == [(1, 2)]
        deleted = history.DeleteMessages(
            history_pb.DeleteMessagesRequest(conversation_id=conversation_id, user_id="bob", sequences=[2]), **call
        )
        assert deleted.deleted == 1
        sent = history.ForwardMessages(
            history_pb.ForwardMessagesRequest(
                conversation_id=conversation_id, sender_id="bob", sequences=[3], user_id="carol", client_message_id="g"
            ), **call,
        )
        assert sent.count == 1
        with pytest.raises(grpc.RpcError) as refused:
            history.RevokeMessage(history_pb.RevokeMessageRequest(
                conversation_id=conversation_id, sequence=3, actor_user_id="bob"), **call)
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    tiers.logic.kill()
    tiers.start_logic()
    with grpc.insecure_channel(f"127.0.0.1:{tiers.free_port('grpc')}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        history = history_grpc.HistoryServiceStub(channel)
        page = history.PullMessages(
            history_pb.PullMessagesRequest(conversation_id=conversation_id, user_id="bob"),
            metadata=AUTHORIZED, timeout=20, wait_for_ready=True,
        )
        assert states(page.messages) == [(1, 2), (2, 1), (3, 0)] and page.complete
