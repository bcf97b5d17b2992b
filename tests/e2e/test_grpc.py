"""The administrative API over gRPC does what it does over HTTP, behind the same token."""

import grpc
import pytest

from millrace_client import SEND_MESSAGE, TcpConnection, api_messages, api_services, text_message
from processes import API_TOKEN

AUTHORIZED = [("authorization", f"Bearer {API_TOKEN}")]


@pytest.fixture
def channel(tiers):
    with grpc.insecure_channel(f"127.0.0.1:{tiers.free_port('grpc')}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


def test_groups_over_grpc_are_created_read_changed_and_removed(tiers, channel):
    groups = api_services.GroupServiceStub(channel)
    alice, bob = tiers.connect(TcpConnection, "alice"), tiers.connect(TcpConnection, "bob")
    created = groups.CreateGroup(
        api_messages.CreateGroupRequest(name="by gRPC", members=["alice"]), metadata=AUTHORIZED, timeout=5
    )
    group_id = created.group_id
    added = groups.AddMembers(
        api_messages.AddMembersRequest(group_id=group_id, user_ids=["bob", "alice"]), metadata=AUTHORIZED, timeout=5
    )
    assert (added.code, added.added) == (0, 1)
    assert alice.request(SEND_MESSAGE, text_message(group=group_id, body="hello")).conversation_id == created.conversation_id
    assert [message.body for message in bob.messages(1)] == ["hello"]
    removed = groups.RemoveMembers(
        api_messages.RemoveMembersRequest(group_id=group_id, user_ids=["bob"]), metadata=AUTHORIZED, timeout=5
    )
    assert removed.removed == 1
    got = groups.GetGroup(api_messages.GetGroupRequest(group_id=group_id), metadata=AUTHORIZED, timeout=5)
    assert (got.name, list(got.members)) == ("by gRPC", ["alice"])
    # The other door sees the same group.
    assert tiers.api().call("GET", f"/v1/groups/{group_id}")[1]["name"] == "by gRPC"
    groups.RemoveGroup(api_messages.RemoveGroupRequest(group_id=group_id), metadata=AUTHORIZED, timeout=5)
    with pytest.raises(grpc.RpcError) as refused:
        groups.GetGroup(api_messages.GetGroupRequest(group_id=group_id), metadata=AUTHORIZED, timeout=5)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_messages_presence_and_kick_over_grpc(tiers, channel):
    alice = tiers.connect(TcpConnection, "alice")
    sent = api_services.MessageServiceStub(channel).SendMessage(
        api_messages.SendMessageRequest(sender_id="bob", client_message_id="g1", user_id="alice", type=1, body="by gRPC"),
        metadata=AUTHORIZED, timeout=5,
    )
    assert (sent.code, sent.sequence) == (0, 1)
    assert [message.body for message in alice.messages(1)] == ["by gRPC"]
    users = api_services.UserServiceStub(channel)
    presence = users.GetPresence(api_messages.GetPresenceRequest(user_id="alice"), metadata=AUTHORIZED, timeout=5)
    assert presence.online and presence.sessions[0].platform == "test"
    kicked = users.KickUser(api_messages.KickUserRequest(user_id="alice", reason="tidy"), metadata=AUTHORIZED, timeout=5)
    assert kicked.sessions == 1
    alice.wait_closed()


@pytest.mark.parametrize("metadata", [[], [("authorization", "Bearer wrong")]])
def test_grpc_calls_need_the_api_token(tiers, channel, metadata):
    with pytest.raises(grpc.RpcError) as refused:
        api_services.GroupServiceStub(channel).GetGroup(
            api_messages.GetGroupRequest(group_id="x"), metadata=metadata, timeout=5
        )
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
