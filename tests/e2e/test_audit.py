"""The audit line: each act of a service leaves one, over HTTP and gRPC alike, and what users do for themselves none."""

import importlib
import json

import grpc

from millrace_client import mint_token
from processes import API_TOKEN, JWT_SECRET, Tiers

AUTHORIZED = [("authorization", f"Bearer {API_TOKEN}"), ("x-millrace-actor", "carol")]


def test_acts_of_services_through_every_door_leave_a_line_and_those_of_users_none(tmp_path):
    group_messages = importlib.import_module("millrace.api.v1.groups_pb2")
    group_services = importlib.import_module("millrace.api.v1.groups_pb2_grpc")
    friend_messages = importlib.import_module("millrace.api.v1.friends_pb2")
    friend_services = importlib.import_module("millrace.api.v1.friends_pb2_grpc")
    user_messages = importlib.import_module("millrace.api.v1.users_pb2")
    user_services = importlib.import_module("millrace.api.v1.users_pb2_grpc")
    chat_groups = importlib.import_module("millrace.chat.v1.groups_pb2")
    tiers = Tiers(tmp_path)
    tiers.logic_settings = f'[audit]\nfile = "{tmp_path / "audit.jsonl"}"\n'
    tiers.start_logic()
    try:
        api = tiers.api()
        assert api.call("POST", "/v1/groups", {"group_id": "g", "members": ["ada"]})[0] == 200
        assert api.call("POST", "/v1/groups/g/announce", {"text": "secret words"})[0] == 200
        assert api.call("POST", "/v1/users", {"user_id": "ada", "name": "secret words"})[0] == 200
        assert api.call("POST", "/v1/users", {"user_id": "bob"})[0] == 200
        assert api.call("PUT", "/v1/users/ada/blocks/bob")[0] == 200
        # Reading leaves none, also where the request is the same message.
        assert api.call("GET", "/v1/users/ada/relations/bob")[0] == 200
        assert api.call("GET", "/v1/groups/g")[0] == 200
        own = mint_token(JWT_SECRET, "ada")
        assert api.call("PATCH", "/v1/users/me", {"name": "Ada"}, token=own)[0] == 200
        address = f"127.0.0.1:{tiers.free_port('grpc')}"
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            announce = chat_groups.AnnounceToGroup(text="secret words")
            change = group_messages.ChangeGroupRequest(group_id="g", announce=announce)
            group_services.GroupActServiceStub(channel).ChangeGroup(change, metadata=AUTHORIZED, timeout=5)
            accounts = user_services.AccountServiceStub(channel)
            update = user_messages.UpdateUserRequest(user_id="ada", name="secret words")
            accounts.UpdateUser(update, metadata=AUTHORIZED, timeout=5)
            friends = friend_services.FriendServiceStub(channel)
            relation = friend_messages.RelationRequest(user_id="ada", other_id="bob")
            friends.UnblockUser(relation, metadata=AUTHORIZED, timeout=5)
            friends.GetRelation(relation, metadata=AUTHORIZED, timeout=5)
            accounts.GetUser(user_messages.GetUserRequest(user_id="ada"), metadata=AUTHORIZED, timeout=5)
            mine = [("authorization", f"Bearer {own}")]
            accounts.UpdateUser(update, metadata=mine, timeout=5)
        text = (tmp_path / "audit.jsonl").read_text()
        assert "secret words" not in text, "ids alone"
        lines = [json.loads(line) for line in text.splitlines()]
        assert [(line["door"], line["actor"], line["act"], line["result"]) for line in lines] == [
            ("http", "api", "CreateGroup", "ok"),
            ("http", "api", "ChangeGroup", "ok"),
            ("http", "api", "RegisterUser", "ok"),
            ("http", "api", "RegisterUser", "ok"),
            ("http", "api", "BlockUser", "ok"),
            ("grpc", "carol", "ChangeGroup", "ok"),
            ("grpc", "carol", "UpdateUser", "ok"),
            ("grpc", "carol", "UnblockUser", "ok"),
        ]
        assert lines[1]["target"] == {"group_id": "g", "announce": {}, "path": "/v1/groups/g/announce"}
        assert (lines[4]["target"]["user_id"], lines[4]["target"]["other_id"]) == ("ada", "bob")
        assert lines[5]["target"] == {"group_id": "g", "announce": {}}
    finally:
        tiers.logic.terminate()
