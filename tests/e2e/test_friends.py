"""Friends, requests and blocks (row T3 of the mission) over HTTP and gRPC, what the devices hear of them, and who may
write to whom by which policy, with the same code through every door."""

import importlib
import itertools
import json
import time

import grpc
import pytest

from millrace_client import (
    NOTICE, SEND_MESSAGE, JsonConnection, TcpConnection, WebSocketConnection, api_messages, api_services, chat, mint_token,
    text_message,
)
from processes import API_TOKEN, JWT_SECRET, Tiers

messages = importlib.import_module("millrace.api.v1.friends_pb2")
services = importlib.import_module("millrace.api.v1.friends_pb2_grpc")
presence = importlib.import_module("millrace.chat.v1.presence_pb2")

NOT_FOUND, NOT_PERMITTED, BAD_REQUEST, ALREADY_EXISTS, NOT_FRIENDS, BLOCKED = 16, 17, 18, 22, 23, 24
_ids = itertools.count()


class Person:
    """A registered user with a token."""

    def __init__(self, world):
        self.world, self.id = world, f"{world.tag}-{next(_ids)}"
        status, body = world.api.call("POST", "/v1/users", {"user_id": self.id, "name": f"Name of {self.id}"})
        assert status == 200, body
        self.token = mint_token(world.secret, self.id)

    def call(self, method, path, body=None):
        return self.world.api.call(method, path, body, token=self.token)

    def ok(self, method, path, body=None):
        status, answer = self.call(method, path, body)
        assert status == 200, (method, path, status, answer)
        return answer

    def connect(self, transport=TcpConnection, device="device-1"):
        connection = transport(self.world.ready)
        assert connection.login(self.id, self.token, device).code == 0
        return connection

    def befriend(self, other):
        self.ok("POST", "/v1/users/me/friend_requests", {"other_id": other.id})
        other.ok("POST", f"/v1/users/me/friend_requests/{self.id}/accept")


class World:
    def __init__(self, ready, api, secret, tag):
        self.ready, self.api, self.secret, self.tag = ready, api, secret, tag

    def people(self, count):
        return [Person(self) for _ in range(count)]


@pytest.fixture
def world(dev):
    return World(dev.ready, dev.api, dev.ready["jwt_secret"], dev.user())


def notice(connection, event, timeout=5.0):
    def fits(frame):
        return frame.command == NOTICE and json.loads(frame.parse(chat.Notice).body).get("event") == event

    frame = connection.wait_for(fits, timeout)
    found = frame.parse(chat.Notice)
    return found.type, json.loads(found.body)


def test_a_request_is_heard_accepted_and_listed_on_both_sides(world):
    ada, bob = world.people(2)
    adas = [ada.connect(TcpConnection, "phone"), ada.connect(WebSocketConnection, "laptop")]
    bobs = bob.connect()
    asked = ada.ok("POST", "/v1/users/me/friend_requests", {"other_id": bob.id, "message": "it is Ada"})
    assert asked["relation"]["request_outgoing"] and asked["relation"]["user_id"] == bob.id
    kind, body = notice(bobs, "friend_requested")
    assert (kind, body["user_id"], body["by"], body["message"]) == (100, ada.id, ada.id, "it is Ada")
    for device in adas:
        assert notice(device, "friend_requested")[1]["user_id"] == bob.id
    (incoming,) = bob.ok("GET", "/v1/users/me/friend_requests")["relations"]
    assert (incoming["user_id"], incoming["message"], incoming["name"]) == (ada.id, "it is Ada", f"Name of {ada.id}")
    bob.ok("POST", f"/v1/users/me/friend_requests/{ada.id}/accept")
    for device in adas:
        kind, body = notice(device, "friend_accepted")
        assert (kind, body["user_id"], body["by"]) == (101, bob.id, bob.id)
    for one, other in ((ada, bob), (bob, ada)):
        listed = one.ok("GET", "/v1/users/me/friends")
        assert [relation["user_id"] for relation in listed["relations"]] == [other.id]
        assert listed["relations"][0]["friend"] and int(listed["relations"][0]["friends_since_ms"]) > 0
        assert one.ok("GET", "/v1/users/me/friend_requests")["relations"] == []


def test_requests_are_rejected_cancelled_and_answered_by_asking_back(world):
    ada, bob, eve = world.people(3)
    devices = {person.id: person.connect() for person in (ada, bob)}
    ada.ok("POST", "/v1/users/me/friend_requests", {"other_id": bob.id})
    bob.ok("POST", f"/v1/users/me/friend_requests/{ada.id}/reject")
    assert notice(devices[ada.id], "friend_rejected")[0] == 102
    ada.ok("POST", "/v1/users/me/friend_requests", {"other_id": bob.id})
    ada.ok("DELETE", f"/v1/users/me/friend_requests/{bob.id}")
    assert notice(devices[bob.id], "friend_request_cancelled")[0] == 103
    status, body = bob.call("POST", f"/v1/users/me/friend_requests/{ada.id}/accept")
    assert (status, body["code"]) == (404, NOT_FOUND)
    ada.ok("POST", "/v1/users/me/friend_requests", {"other_id": eve.id})
    back = eve.ok("POST", "/v1/users/me/friend_requests", {"other_id": ada.id})
    assert back["relation"]["friend"], "who asks each other are friends"
    status, body = ada.call("POST", "/v1/users/me/friend_requests", {"other_id": eve.id})
    assert (status, body["code"]) == (409, ALREADY_EXISTS)
    ada.ok("DELETE", f"/v1/users/me/friends/{eve.id}")
    assert eve.ok("GET", "/v1/users/me/friends")["relations"] == []
    status, body = ada.call("DELETE", f"/v1/users/me/friends/{eve.id}")
    assert (status, body["code"]) == (404, NOT_FOUND)


def test_a_device_that_was_away_finds_what_changed_by_its_version(world):
    ada, *others = world.people(6)
    for other in others:
        ada.befriend(other)
    listed, after = [], 0
    while True:
        page = ada.ok("GET", f"/v1/users/me/relations?limit=2&after={after}")
        listed += [relation["user_id"] for relation in page["relations"]]
        after = int(page["next"])
        if not after:
            break
    assert listed == [other.id for other in others]
    version = page["version"]
    others[3].ok("DELETE", f"/v1/users/me/friends/{ada.id}")
    ada.ok("PUT", f"/v1/users/me/blocks/{others[1].id}")
    changed = ada.ok("GET", f"/v1/users/me/relations?since_version={version}")
    assert [(r["user_id"], r["friend"], r["blocked"]) for r in changed["relations"]] == [
        (others[3].id, False, False), (others[1].id, True, True),
    ]
    again = ada.ok("GET", f"/v1/users/me/relations?since_version={changed['version']}")
    assert again["relations"] == [] and not again["reset"]


def test_bad_input_and_somebody_elses_list_are_refused(world):
    ada, bob = world.people(2)
    for body, code in [
        ({"other_id": ada.id}, BAD_REQUEST), ({"other_id": ""}, BAD_REQUEST), ({"other_id": "x" * 200}, BAD_REQUEST),
        ({"other_id": "nobody-registered-this"}, NOT_FOUND), ({"other_id": bob.id, "message": "m" * 600}, 3),
    ]:
        assert ada.call("POST", "/v1/users/me/friend_requests", body)[1]["code"] == code, body
    for method, path in [
        ("GET", f"/v1/users/{bob.id}/friends"), ("PUT", f"/v1/users/{bob.id}/blocks/{ada.id}"),
        ("GET", f"/v1/users/{bob.id}/relations/{ada.id}"),
    ]:
        status, body = ada.call(method, path)
        assert (status, body["code"]) == (403, NOT_PERMITTED)
    assert ada.call("GET", "/v1/users/me/relations?filter=foes")[1]["code"] == BAD_REQUEST
    # A service may act for both.
    assert world.api.call("POST", f"/v1/users/{ada.id}/friend_requests", {"other_id": bob.id})[0] == 200
    assert world.api.call("POST", f"/v1/users/{bob.id}/friend_requests/{ada.id}/accept")[0] == 200
    assert ada.ok("GET", f"/v1/users/me/relations/{bob.id}")["friend"]


@pytest.mark.parametrize("transport", [TcpConnection, WebSocketConnection])
def test_a_blocked_sender_is_refused_until_unblocked(world, transport):
    ada, bob, eve = world.people(3)
    adas, bobs, eves = ada.connect(transport), bob.connect(), eve.connect()
    assert ada is not bob and adas.request(SEND_MESSAGE, text_message(to=bob.id, body="before")).code == 0
    bob.ok("PUT", f"/v1/users/me/blocks/{ada.id}")
    refused = adas.request(SEND_MESSAGE, text_message(to=bob.id, body="blocked"))
    assert (refused.code, refused.reason) == (BLOCKED, "This user does not take messages from you.")
    status, body = ada.call("POST", "/v1/users/me/friend_requests", {"other_id": bob.id})
    assert (status, body["code"]) == (403, BLOCKED)
    assert eves.request(SEND_MESSAGE, text_message(to=bob.id, body="from eve")).code == 0
    assert bobs.request(SEND_MESSAGE, text_message(to=ada.id, body="bob may")).code == 0
    bob.ok("DELETE", f"/v1/users/me/blocks/{ada.id}")
    assert adas.request(SEND_MESSAGE, text_message(to=bob.id, body="after")).code == 0
    assert [message.body for message in bobs.messages(3)] == ["before", "from eve", "after"]


@pytest.fixture
def friends_only(tmp_path):
    tiers = Tiers(tmp_path)
    tiers.logic_settings = '[friends]\nsend_policy = "friends"\npresence_policy = "friends"\nexempt_senders = ["help-desk"]\n'
    tiers.start_logic()
    tiers.start_gateway()
    yield tiers
    tiers.stop()


def test_where_friends_alone_may_write_every_door_says_so_alike(friends_only):
    tiers = friends_only
    world = World(tiers.ready, tiers.api(), JWT_SECRET, "person")
    ada, bob, eve = world.people(3)
    ada.befriend(bob)
    eve.ok("PUT", f"/v1/users/me/blocks/{ada.id}")
    expected = {
        bob.id: (0, ""), eve.id: (BLOCKED, "This user does not take messages from you."),
        "stranger": (NOT_FRIENDS, "Only friends of this user may do this."),
    }
    channel = grpc.insecure_channel(f"127.0.0.1:{tiers.free_port('grpc')}", options=[("grpc.enable_http_proxy", 0)])
    for target, (code, reason) in expected.items():
        for transport in (TcpConnection, WebSocketConnection):
            connection = ada.connect(transport)
            reply = connection.request(SEND_MESSAGE, text_message(to=target))
            assert (reply.code, reply.reason) == (code, reason), (target, transport)
            connection.close()
        connection = JsonConnection(tiers.ready)
        connection.request("login", {"user_id": ada.id, "token": ada.token, "device_id": "json", "platform": "test"})
        body = {"client_message_id": f"json-{target}", "user_id": target, "type": 1, "body": "hello"}
        reply = connection.request("send_message", body)
        assert (int(reply.get("code", 0)), reply.get("reason", "")) == (code, reason), target
        connection.close()
        body = {"sender_id": ada.id, "client_message_id": f"http-{target}", "user_id": target, "type": 1}
        status, reply = tiers.api().call("POST", "/v1/messages", body)
        assert (status, int(reply["code"]), reply["reason"]) == (403 if code else 200, code, reason), target
        sending = api_messages.SendMessageRequest(
            sender_id=ada.id, client_message_id=f"grpc-{target}", user_id=target, type=1
        )
        stub = api_services.MessageServiceStub(channel)
        metadata = [("authorization", f"Bearer {API_TOKEN}")]
        if code == 0:
            assert stub.SendMessage(sending, metadata=metadata, timeout=5).code == 0
        else:
            with pytest.raises(grpc.RpcError) as refused:
                stub.SendMessage(sending, metadata=metadata, timeout=5)
            assert refused.value.details() == reason
            assert dict(refused.value.trailing_metadata())["millrace-code"] == str(code)
    # A note to oneself, a group and the help desk need no friendship.
    connection = ada.connect()
    assert connection.request(SEND_MESSAGE, text_message(to=ada.id)).code == 0
    group_id, _ = tiers.api().create_group([ada.id, eve.id])
    assert connection.request(SEND_MESSAGE, text_message(group=group_id)).code == 0
    body = {"sender_id": "help-desk", "client_message_id": "1", "user_id": eve.id, "type": 1}
    assert tiers.api().call("POST", "/v1/messages", body)[0] == 200
    # What was decided survives a killed logic.
    tiers.logic.kill()
    tiers.start_logic()
    body = {"sender_id": ada.id, "client_message_id": "after", "user_id": eve.id, "type": 1}
    assert tiers.api().call("POST", "/v1/messages", body)[1]["code"] == BLOCKED
    friends = services.FriendServiceStub(channel)
    mine = [("authorization", f"Bearer {ada.token}")]
    listed = friends.ListRelations(messages.ListRelationsRequest(user_id="me", filter="friends"), metadata=mine, timeout=10, wait_for_ready=True)
    assert [relation.user_id for relation in listed.relations] == [bob.id]
    removed = friends.RemoveFriend(messages.RelationRequest(user_id="me", other_id=bob.id), metadata=mine, timeout=10)
    assert not removed.relation.friend
    channel.close()
    body = {"sender_id": ada.id, "client_message_id": "last", "user_id": bob.id, "type": 1}
    assert tiers.api().call("POST", "/v1/messages", body)[1]["code"] == NOT_FRIENDS


def test_where_friends_alone_may_see_who_is_online_others_are_hidden(friends_only):
    tiers = friends_only
    world = World(tiers.ready, tiers.api(), JWT_SECRET, "viewer")
    ada, bob, eve = world.people(3)
    ada.befriend(bob)
    bobs, eves = bob.connect(), eve.connect()
    viewer = ada.connect()

    def seen():
        request = presence.QueryPresence(user_ids=[ada.id, bob.id, eve.id])
        reply = viewer.reply_to(viewer.send(0x0221, request), 0x0221).parse(presence.PresenceReply)
        return [(user.user_id, user.online) for user in reply.users], list(reply.hidden)

    # Presence follows a login in a moment.
    deadline = time.monotonic() + 20
    while seen() != ([(ada.id, True), (bob.id, True)], [eve.id]):
        assert time.monotonic() < deadline, seen()
        time.sleep(0.05)
    bob.ok("PUT", f"/v1/users/me/blocks/{ada.id}")
    assert seen() == ([(ada.id, True)], [bob.id, eve.id])
    bobs.close()
    eves.close()


def test_every_act_over_grpc_is_refused_with_its_code(tiers):
    with grpc.insecure_channel(f"127.0.0.1:{tiers.free_port('grpc')}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        friends = services.FriendServiceStub(channel)
        service = [("authorization", f"Bearer {API_TOKEN}")]
        pair = messages.RelationRequest(user_id="ada", other_id="bob")
        for call, request, code in [
            (friends.AcceptFriend, pair, NOT_FOUND), (friends.RejectFriend, pair, NOT_FOUND),
            (friends.CancelFriendRequest, pair, NOT_FOUND), (friends.RemoveFriend, pair, NOT_FOUND),
            (friends.BlockUser, pair, NOT_FOUND), (friends.UnblockUser, messages.RelationRequest(user_id="a"), BAD_REQUEST),
            (friends.RequestFriend, messages.RequestFriendRequest(user_id="ada", other_id="ada"), BAD_REQUEST),
        ]:
            with pytest.raises(grpc.RpcError) as refused:
                call(request, metadata=service, timeout=5)
            assert dict(refused.value.trailing_metadata())["millrace-code"] == str(code), call
        with pytest.raises(grpc.RpcError) as refused:
            friends.GetRelation(pair, timeout=5)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
