"""Messages, receipts, offline sync, groups and rooms: rows M1 to M6, M9 and T1 of the mission."""

import pytest

from millrace_client import (
    BAD_REQUEST, DELIVER_ACK, GROUP_BY_ID, JOIN_ROOM, LEAVE_ROOM, NOT_FOUND, NOT_PERMITTED, PULL_CONVERSATIONS,
    PULL_MESSAGES, READ, RECEIPT, REPORT, REPLY, ROOM_MESSAGE, SEND_MESSAGE, TRANSPORTS, TYPING, UNKNOWN_COMMAND,
    UPDATE_CONVERSATION, JsonConnection, Refused, TcpConnection, WebSocketConnection, chat, text_message,
)


def receipt(connection, predicate, timeout=5.0):
    frame = connection.wait_for(
        lambda frame: frame.command == RECEIPT and predicate(frame.parse(chat.Receipt)), timeout
    )
    return frame.parse(chat.Receipt)


@pytest.mark.parametrize("from_transport", TRANSPORTS)
@pytest.mark.parametrize("to_transport", TRANSPORTS)
def test_message_is_stored_acknowledged_delivered_and_read(dev, two_users, from_transport, to_transport):
    alice_id, bob_id = two_users
    alice, bob = dev.connect(from_transport, alice_id), dev.connect(to_transport, bob_id)
    reply = alice.request(SEND_MESSAGE, text_message(to=bob_id, body="hello bob"))
    assert (reply.code, reply.sequence, reply.duplicate) == (0, 1, False)
    (message,) = bob.messages(1)
    assert (message.body, message.sender_id, message.sequence) == ("hello bob", alice_id, 1)
    assert (message.message_id, message.conversation_id) == (reply.message_id, reply.conversation_id)
    assert message.conversation_type == 1 and message.type == 1 and message.state == 0
    assert message.message_id[14] == "7", "message ids are UUIDs of version 7"

    bob.send(DELIVER_ACK, chat.DeliverAck(conversation_id=reply.conversation_id, sequence=1), request_id=0)
    delivered = receipt(alice, lambda receipt: receipt.delivered_sequence == 1)
    assert (delivered.user_id, delivered.read_sequence) == (bob_id, 0)
    assert bob.request(READ, chat.Read(conversation_id=reply.conversation_id, sequence=1)).code == 0
    assert receipt(alice, lambda receipt: receipt.read_sequence == 1).user_id == bob_id
    alice.no_messages(0.3)


def test_both_users_share_one_conversation_and_its_sequence(dev, two_users):
    alice_id, bob_id = two_users
    alice, bob = dev.connect(TcpConnection, alice_id), dev.connect(TcpConnection, bob_id)
    replies = []
    for turn in range(6):
        sender, target = ((alice, bob_id), (bob, alice_id))[turn % 2]
        replies.append(sender.request(SEND_MESSAGE, text_message(to=target, body=str(turn))))
    assert [reply.sequence for reply in replies] == [1, 2, 3, 4, 5, 6]
    assert len({reply.conversation_id for reply in replies}) == 1
    assert [message.sequence for message in alice.messages(3)] == [2, 4, 6]
    assert [message.sequence for message in bob.messages(3)] == [1, 3, 5]


def test_retry_with_the_same_client_message_id_is_stored_once(dev, two_users):
    alice_id, bob_id = two_users
    alice, bob = dev.connect(TcpConnection, alice_id), dev.connect(TcpConnection, bob_id)
    first = alice.request(SEND_MESSAGE, text_message(to=bob_id, client_message_id="once"))
    again = alice.request(SEND_MESSAGE, text_message(to=bob_id, client_message_id="once"), flags=4)
    assert again.duplicate and not first.duplicate
    assert (again.message_id, again.sequence, again.code) == (first.message_id, first.sequence, 0)
    assert len(bob.messages(1)) == 1
    bob.no_messages()
    after = alice.request(SEND_MESSAGE, text_message(to=bob_id))
    assert after.sequence == first.sequence + 1


def test_offline_user_finds_the_messages_later(dev, two_users):
    alice_id, bob_id = two_users
    alice = dev.connect(TcpConnection, alice_id)
    for index in range(30):
        reply = alice.request(SEND_MESSAGE, text_message(to=bob_id, body=f"message {index}"))
    bob = dev.connect(WebSocketConnection, bob_id)
    reply_conversations = bob.request(PULL_CONVERSATIONS, chat.PullConversations())
    (conversation,) = reply_conversations.conversations
    assert (conversation.conversation_id, conversation.unread, conversation.max_sequence) == (reply.conversation_id, 30, 30)
    assert conversation.last_message.body == "message 29" and reply_conversations.complete
    newest = bob.request(
        PULL_MESSAGES, chat.PullMessages(conversation_id=conversation.conversation_id, newest_first=True)
    )
    assert [message.sequence for message in newest.messages] == list(range(30, 10, -1)) and not newest.complete
    older = bob.request(
        PULL_MESSAGES, chat.PullMessages(conversation_id=conversation.conversation_id, from_sequence=1, to_sequence=10)
    )
    assert [message.sequence for message in older.messages] == list(range(1, 11)) and older.complete
    # What nobody acknowledged is pushed at login as well: the newest page of each conversation.
    assert [message.sequence for message in bob.messages(20)] == list(range(11, 31))


def test_messages_acknowledged_on_one_device_are_not_pushed_again(dev, two_users):
    alice_id, bob_id = two_users
    alice, phone = dev.connect(TcpConnection, alice_id), dev.connect(TcpConnection, bob_id, device_id="phone")
    reply = alice.request(SEND_MESSAGE, text_message(to=bob_id))
    phone.messages(1)
    phone.send(DELIVER_ACK, chat.DeliverAck(conversation_id=reply.conversation_id, sequence=1), request_id=0)
    receipt(alice, lambda receipt: receipt.delivered_sequence == 1)
    tablet = dev.connect(WebSocketConnection, bob_id, device_id="tablet")
    tablet.no_messages()
    assert tablet.request(PULL_CONVERSATIONS, chat.PullConversations()).conversations[0].max_sequence == 1


def test_every_device_of_both_users_sees_the_message_once(dev, two_users):
    alice_id, bob_id = two_users
    phone = dev.connect(TcpConnection, alice_id, device_id="phone")
    others = [
        dev.connect(WebSocketConnection, alice_id, device_id="web"),
        dev.connect(TcpConnection, bob_id, device_id="phone"),
        dev.connect(WebSocketConnection, bob_id, device_id="web"),
    ]
    phone.request(SEND_MESSAGE, text_message(to=bob_id, body="to all devices"))
    for device in others:
        assert [message.body for message in device.messages(1)] == ["to all devices"]
    for device in (phone, *others):
        device.no_messages(0.2)


def test_unread_counts_only_counting_messages_of_others_after_the_read_cursor(dev, two_users):
    alice_id, bob_id = two_users
    alice, bob = dev.connect(TcpConnection, alice_id), dev.connect(TcpConnection, bob_id)
    unread = lambda: bob.request(PULL_CONVERSATIONS, chat.PullConversations()).conversations[0].unread
    for _ in range(3):
        reply = alice.request(SEND_MESSAGE, text_message(to=bob_id))
    alice.request(SEND_MESSAGE, text_message(to=bob_id, does_not_count=True))
    assert unread() == 3
    assert bob.request(READ, chat.Read(conversation_id=reply.conversation_id, sequence=2)).code == 0
    assert unread() == 1
    assert bob.request(READ, chat.Read(conversation_id=reply.conversation_id, sequence=1)).code == 0
    assert unread() == 1, "a read cursor moves only forward"
    assert bob.request(READ, chat.Read(conversation_id=reply.conversation_id, sequence=4)).code == 0
    assert unread() == 0


def test_conversations_come_by_version_so_that_a_client_asks_for_changes_only(dev, two_users):
    alice_id, bob_id = two_users
    alice, bob = dev.connect(TcpConnection, alice_id), dev.connect(TcpConnection, bob_id)
    alice.request(SEND_MESSAGE, text_message(to=bob_id))
    version = bob.request(PULL_CONVERSATIONS, chat.PullConversations()).version
    assert not bob.request(PULL_CONVERSATIONS, chat.PullConversations(since_version=version)).conversations
    second = alice.request(SEND_MESSAGE, text_message(to=bob_id))
    changed = bob.request(PULL_CONVERSATIONS, chat.PullConversations(since_version=version))
    assert [conversation.max_sequence for conversation in changed.conversations] == [2]
    assert bob.request(
        UPDATE_CONVERSATION, chat.UpdateConversation(conversation_id=second.conversation_id, do_not_disturb=True)
    ).code == 0
    again = bob.request(PULL_CONVERSATIONS, chat.PullConversations(since_version=changed.version))
    assert [conversation.do_not_disturb for conversation in again.conversations] == [True]


def test_group_message_reaches_members_online_and_offline(dev):
    users = [dev.user() for _ in range(5)]
    online = [dev.connect(transport, user) for transport, user in zip(TRANSPORTS * 2, users[:4])]
    group_id, conversation_id = dev.api.create_group(users)
    reply = online[0].request(SEND_MESSAGE, text_message(group=group_id, body="to the group"))
    assert (reply.code, reply.sequence, reply.conversation_id) == (0, 1, conversation_id)
    for member in online[1:]:
        (message,) = member.messages(1)
        assert (message.body, message.conversation_type, message.sequence) == ("to the group", 2, 1)
        member.send(DELIVER_ACK, chat.DeliverAck(conversation_id=conversation_id, sequence=1), request_id=0)
    seen = {receipt(online[0], lambda receipt: receipt.delivered_sequence == 1).user_id for _ in range(3)}
    assert seen == set(users[1:4])
    late = dev.connect(TcpConnection, users[4])
    assert [message.body for message in late.messages(1)] == ["to the group"]


def test_group_rules_membership_and_history(dev):
    alice_id, bob_id, carol_id = dev.user(), dev.user(), dev.user()
    alice, bob, carol = (dev.connect(TcpConnection, user) for user in (alice_id, bob_id, carol_id))
    group_id, conversation_id = dev.api.create_group([alice_id, bob_id], name="the two")
    assert alice.request(SEND_MESSAGE, text_message(group=group_id, body="before carol")).code == 0
    assert carol.request(SEND_MESSAGE, text_message(group=group_id)).code == NOT_PERMITTED
    assert carol.request(SEND_MESSAGE, text_message(group="no-such-group")).code == NOT_FOUND

    status, body = dev.api.call("POST", f"/v1/groups/{group_id}/members", {"user_ids": [carol_id]})
    assert (status, body["added"]) == (200, 1)
    assert alice.request(SEND_MESSAGE, text_message(group=group_id, body="hello carol")).sequence == 2
    assert [message.body for message in carol.messages(1)] == ["hello carol"]
    pulled = carol.request(PULL_MESSAGES, chat.PullMessages(conversation_id=conversation_id))
    assert [message.body for message in pulled.messages] == ["hello carol"], "history before joining is not hers"

    group = carol.request(GROUP_BY_ID, chat.GroupById(group_id=group_id))
    assert group.group.name == "the two" and sorted(group.group.members) == sorted([alice_id, bob_id, carol_id])
    status, body = dev.api.call("DELETE", f"/v1/groups/{group_id}/members", {"user_ids": [bob_id]})
    assert (status, body["removed"]) == (200, 1)
    assert bob.request(SEND_MESSAGE, text_message(group=group_id)).code == NOT_PERMITTED
    assert alice.request(SEND_MESSAGE, text_message(group=group_id, body="bob is gone")).code == 0
    assert [message.body for message in bob.messages(2)] == ["before carol", "hello carol"]
    bob.no_messages(0.3)
    assert bob.request(PULL_CONVERSATIONS, chat.PullConversations()).conversations[0].quit

    assert dev.api.call("GET", f"/v1/groups/{group_id}")[1]["name"] == "the two"
    assert dev.api.call("DELETE", f"/v1/groups/{group_id}")[0] == 200
    assert dev.api.call("GET", f"/v1/groups/{group_id}")[0] == 404
    assert alice.request(SEND_MESSAGE, text_message(group=group_id)).code == NOT_FOUND


def test_http_message_goes_the_same_way_and_is_deduplicated(dev, two_users):
    alice_id, bob_id = two_users
    alice, bob = dev.connect(TcpConnection, alice_id), dev.connect(TcpConnection, bob_id)
    body = {"sender_id": alice_id, "client_message_id": "over-http", "user_id": bob_id, "type": 1, "body": "by HTTP"}
    status, first = dev.api.call("POST", "/v1/messages", body)
    assert status == 200 and int(first["sequence"]) == 1, first
    _, again = dev.api.call("POST", "/v1/messages", body)
    assert again["duplicate"] is True and again["message_id"] == first["message_id"]
    for connection in (alice, bob):
        assert [message.body for message in connection.messages(1)] == ["by HTTP"]
        connection.no_messages(0.2)


@pytest.mark.parametrize(
    "message",
    [
        chat.SendMessage(client_message_id="x", type=1, body="to nobody"),
        chat.SendMessage(client_message_id="x", type=1, user_id="a", group_id="b"),
        chat.SendMessage(type=1, user_id="somebody", body="no client_message_id"),
        chat.SendMessage(client_message_id="x" * 1000, type=1, user_id="somebody"),
    ],
)
def test_sends_that_make_no_sense_are_refused_in_words(dev, message):
    reply = dev.connect(TcpConnection, dev.user()).request(SEND_MESSAGE, message)
    assert reply.code == BAD_REQUEST and reply.reason and reply.sequence == 0


def test_pulls_of_others_conversations_are_refused(dev, two_users):
    alice_id, bob_id = two_users
    alice, stranger = dev.connect(TcpConnection, alice_id), dev.connect(TcpConnection, dev.user())
    conversation_id = alice.request(SEND_MESSAGE, text_message(to=bob_id)).conversation_id
    reply = stranger.request(PULL_MESSAGES, chat.PullMessages(conversation_id=conversation_id))
    assert reply.code in (NOT_PERMITTED, NOT_FOUND) and not reply.messages
    assert stranger.request(READ, chat.Read(conversation_id=conversation_id, sequence=1)).code in (NOT_PERMITTED, NOT_FOUND)


def test_typing_reaches_the_other_user_and_nobody_stores_it(dev, two_users):
    alice_id, bob_id = two_users
    alice, bob = dev.connect(TcpConnection, alice_id), dev.connect(WebSocketConnection, bob_id)
    conversation_id = alice.request(SEND_MESSAGE, text_message(to=bob_id)).conversation_id
    alice.send(TYPING, chat.Typing(conversation_id=conversation_id), request_id=0)
    typing = bob.wait_for(lambda frame: frame.command == TYPING).parse(chat.Typing)
    assert typing.user_id == alice_id


def test_rooms_are_live_and_left(dev):
    users = [dev.user() for _ in range(3)]
    alice, bob, carol = (dev.connect(transport, user) for transport, user in zip(TRANSPORTS + [TcpConnection], users))
    room = f"room-{users[0]}"
    for count, member in enumerate((alice, bob, carol), start=1):
        reply = member.request(JOIN_ROOM, chat.JoinRoom(room_id=room))
        assert (reply.code, reply.members) == (0, count)
    assert alice.request(ROOM_MESSAGE, chat.RoomMessage(room_id=room, type=1, body="live")).code == 0
    for member in (bob, carol):
        frame = member.wait_for(lambda frame: frame.command == ROOM_MESSAGE)
        message = frame.parse(chat.RoomMessage)
        assert (message.room_id, message.body, message.sender_id) == (room, "live", users[0])
    assert carol.request(LEAVE_ROOM, chat.LeaveRoom(room_id=room)).members == 2
    assert carol.request(ROOM_MESSAGE, chat.RoomMessage(room_id=room, type=1, body="x")).code == NOT_PERMITTED


def test_report_is_acknowledged_by_the_gateway(dev):
    connection = dev.connect(TcpConnection, dev.user())
    frame = connection.request(REPORT, chat.Report(destination="telemetry", payload=b"\x00\x01"))
    assert frame.command == REPORT | REPLY and frame.body == b""


def test_unknown_commands_are_refused_and_the_connection_stays(dev):
    connection = dev.connect(TcpConnection, dev.user())
    for command in (0x0050, 0x0999, 0x7000):
        with pytest.raises(Refused) as refused:
            connection.request(command)
        assert refused.value.code == UNKNOWN_COMMAND
    connection.request(1)


def test_text_form_and_binary_form_talk_to_each_other(dev, two_users):
    alice_id, bob_id = two_users
    alice, bob = JsonConnection(dev.ready), dev.connect(TcpConnection, bob_id)
    assert alice.request("login", {"user_id": alice_id, "token": dev.token(alice_id), "device_id": "web"}).get("code", 0) == 0
    reply = alice.request("send_message", {"client_message_id": "j1", "user_id": bob_id, "type": 1, "body": "grüße"})
    assert int(reply["sequence"]) == 1
    assert [message.body for message in bob.messages(1)] == ["grüße"]
    bob.request(SEND_MESSAGE, text_message(to=alice_id, body="und zurück"))
    deliver = alice.wait_for(lambda message: message["command"] == "deliver")
    assert deliver["body"]["messages"][0]["body"] == "und zurück" and "reply" not in deliver
