"""Groups through the real binaries: acts, their notices, and one code for one refusal at every door."""

import json
import time

import grpc
import pytest

from millrace_client import (
    BAD_REQUEST, NOT_FOUND, NOT_PERMITTED, SEND_MESSAGE, TRANSPORTS, JsonConnection, TcpConnection, api_messages,
    api_services, chat, text_message,
)
from processes import API_TOKEN

CREATE_GROUP, UPDATE_GROUP, INVITE_TO_GROUP, LEAVE_GROUP = 0x0110, 0x0111, 0x0115, 0x0116
REMOVE_FROM_GROUP, MUTE_MEMBERS, MUTE_GROUP, GROUP_MEMBERS = 0x0117, 0x011A, 0x011B, 0x011D
ALREADY_EXISTS, MUTED, ROLE_TOO_LOW = 22, 25, 26
FOREVER = 4_102_444_800_000


def act(connection, command, message):
    return connection.request(command, message).parse(chat.GroupActReply)


def create(connection, group_id, members, **fields):
    reply = act(connection, CREATE_GROUP, chat.CreateGroup(group_id=group_id, name=group_id, members=members, **fields))
    assert (reply.code, reply.sequence) == (0, 1), reply.reason
    return reply.conversation_id


def events(messages):
    assert all(message.type == 8 and message.does_not_count for message in messages)
    return [json.loads(message.body)["event"] for message in messages]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_group_run_by_its_people_tells_everybody_the_same(dev, transport):
    alice, bob, carol = dev.user(), dev.user(), dev.user()
    owner, member, guest = (dev.connect(transport, user) for user in (alice, bob, carol))
    group = f"team-{alice}"
    create(owner, group, [bob])
    assert act(member, INVITE_TO_GROUP, chat.InviteToGroup(group_id=group, user_ids=[carol])).changed == 1
    mute = chat.MuteMembers(group_id=group, user_ids=[carol], until_ms=FOREVER)
    assert act(member, MUTE_MEMBERS, mute).code == ROLE_TOO_LOW
    assert act(owner, MUTE_MEMBERS, mute).code == 0
    refused = guest.request(SEND_MESSAGE, text_message(group=group, body="let me"))
    assert refused.code == MUTED and refused.reason
    assert act(owner, REMOVE_FROM_GROUP, chat.RemoveFromGroup(group_id=group, user_ids=[carol])).code == 0
    assert events(member.messages(4)) == ["created", "added", "muted", "removed"]
    assert events(guest.messages(3)) == ["added", "muted", "removed"]
    assert owner.request(SEND_MESSAGE, text_message(group=group, body="we are alone")).sequence == 5
    assert [message.body for message in member.messages(1)] == ["we are alone"]
    guest.no_messages()


def test_each_refusal_has_the_same_code_at_every_door(tiers):
    connections = {user: tiers.connect(TcpConnection, user) for user in ("alice", "bob", "mallory")}
    create(connections["alice"], "team", ["bob"])
    act(connections["alice"], MUTE_GROUP, chat.MuteGroup(group_id="team", muted=True))
    api = tiers.api()
    with grpc.insecure_channel(
        f"127.0.0.1:{tiers.free_port('grpc')}", options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        groups = api_services.GroupActServiceStub(channel)
        # Who, which act, how it is called over HTTP and gRPC, and the code.
        for user, command, name, field, message, code in [
            ("bob", UPDATE_GROUP, "update", "update", chat.UpdateGroup(group_id="team", name="x"), ROLE_TOO_LOW),
            ("mallory", UPDATE_GROUP, "update", "update", chat.UpdateGroup(group_id="team", name="x"), NOT_PERMITTED),
            ("alice", LEAVE_GROUP, "leave", "leave", chat.LeaveGroup(group_id="team"), BAD_REQUEST),
            ("mallory", CREATE_GROUP, "create", "create", chat.CreateGroup(group_id="team"), ALREADY_EXISTS),
        ]:
            over_tcp = act(connections[user], command, message)
            assert over_tcp.code == code and over_tcp.reason, (user, name)
            body = {"actor_user_id": user} | ({"name": "x"} if name == "update" else {})
            status, over_http = api.call("POST", f"/v1/groups/team/{name}", body)
            assert status >= 400 and over_http == {"code": code, "reason": over_tcp.reason}, (user, name)
            request = api_messages.ChangeGroupRequest(group_id="team", actor_user_id=user)
            getattr(request, field).CopyFrom(message)
            with pytest.raises(grpc.RpcError) as refused:
                groups.ChangeGroup(request, metadata=[("authorization", f"Bearer {API_TOKEN}")], timeout=5)
            metadata = dict(refused.value.trailing_metadata())
            assert metadata["millrace-code"] == str(code), (user, name)
            assert refused.value.details() == over_tcp.reason
    # A muted group refuses messages alike, and the service may speak in an administrator's name.
    over_tcp = connections["bob"].request(SEND_MESSAGE, text_message(group="team"))
    assert over_tcp.code == MUTED
    body = {"sender_id": "bob", "group_id": "team", "client_message_id": "1", "type": 1, "body": "x"}
    status, over_http = api.call("POST", "/v1/messages", body)
    assert (status, over_http["code"], over_http["reason"]) == (403, MUTED, over_tcp.reason)
    assert api.call("POST", "/v1/messages", body | {"sender_id": "alice"})[0] == 200
    assert api.call("POST", "/v1/groups/team/explode", {})[1]["code"] == NOT_FOUND


def test_the_text_form_creates_groups_and_pages_through_members(dev):
    alice, bob = dev.user(), dev.user()
    connection = JsonConnection(dev.ready)
    connection.request(
        "login", {"user_id": alice, "token": dev.token(alice), "device_id": "d", "timestamp_ms": int(time.time() * 1000)}
    )
    group = f"json-{alice}"
    reply = connection.request("create_group", {"group_id": group, "name": "by JSON", "members": [bob]})
    assert (reply["code"], reply["changed"]) == (0, 2)
    page = connection.request("group_members", {"group_id": group})
    roles = {member["user_id"]: member["role"] for member in page["members"]}
    assert roles == {alice: 2, bob: 0} and page["complete"] is True
    refused = connection.request("update_group", {"group_id": "nobody-has-this", "name": "x"})
    assert refused["code"] == NOT_FOUND and refused["reason"]


def test_services_page_through_members_conversations_and_receipts(tiers):
    api = tiers.api()
    group, conversation = api.create_group([f"u{n:03}" for n in range(150)], group_id="many")
    names, after = [], ""
    while True:
        status, page = api.call("GET", f"/v1/groups/many/members?after_user_id={after}&limit=64")
        assert status == 200 and page["member_count"] == 150
        names += [member["user_id"] for member in page["members"]]
        after = names[-1]
        if page["complete"]:
            break
    assert names == [f"u{n:03}" for n in range(150)]
    reader = tiers.connect(TcpConnection, "u007")
    sent = api.call("POST", "/v1/messages", {
        "sender_id": "u000", "group_id": "many", "client_message_id": "1", "type": 1, "body": "read me",
    })[1]
    reader.messages(1)
    assert reader.request(0x0204, chat.Read(conversation_id=conversation, sequence=1)).code == 0
    status, receipts = api.call("GET", f"/v1/conversations/{conversation}/receipts?sequence=1&filter=1")
    assert [receipt["user_id"] for receipt in receipts["receipts"]] == ["u007"], (status, receipts)
    status, rows = api.call("GET", "/v1/users/u009/conversations?newest_first=true&limit=5")
    assert [(row["conversation_id"], row["unread"]) for row in rows["conversations"]] == [(conversation, "1")]
    status, pulled = api.call("GET", f"/v1/conversations/{conversation}/messages?user_id=u009&newest_first=true")
    assert [message["message_id"] for message in pulled["messages"]] == [sent["message_id"]]
    assert api.call("GET", f"/v1/conversations/{conversation}/messages?user_id=mallory")[0] == 403
    assert api.call("GET", "/v1/groups/many/members?limit=x")[0] == 400


def test_all_who_are_online_of_100_000_members_get_a_message_once(tiers):
    api, members, online, batch = tiers.api(), 100_000, 500, 10_000
    everybody = [f"m{number:06}" for number in range(members)]
    group = {"group_id": "big", "name": "big", "members": everybody[:batch], "members_max": members}
    assert api.call("POST", "/v1/groups", group)[0] in (200, 201)
    for first in range(batch, members, batch):
        status, reply = api.call("POST", "/v1/groups/big/members", {"user_ids": everybody[first : first + batch]})
        assert (status, reply["added"]) == (200, batch), reply
    connections = [tiers.connect(TcpConnection, user) for user in everybody[:: members // online]]
    bodies = ["first", "second", "third"]
    for body in bodies:
        assert connections[0].request(SEND_MESSAGE, text_message(group="big", body=body)).code == 0
    for connection in connections[1:]:
        assert [message.body for message in connection.messages(len(bodies))] == bodies
    connections[-1].no_messages()
    # Who was away finds the same.
    away = tiers.connect(TcpConnection, everybody[1])
    assert [message.body for message in away.messages(len(bodies))] == bodies
