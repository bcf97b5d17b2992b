"""Each action that is refused gets its own code and its own sentence, the same over TCP, WebSocket, the JSON text form,
HTTP and gRPC.

Every refusal here can be met at every door. What has fewer doors is tested where it is: a LOGIN that was played again
(test_security.py; only the gateway takes LOGIN, and a service is known by its token), a wrong password (test_users.py;
only HTTP and gRPC take passwords), frames that make no sense (test_refusals.py), speaking in a room that one is not in
(test_rooms.py; services speak in any).
"""

import itertools
import time

import pytest

from doors import DOORS
from millrace_client import chat
from processes import Tiers

NOW_MS = int(time.time() * 1000)
RATE_BURST = 100
_ids = itertools.count()


def message(**fields):
    return chat.SendMessage(**{"client_message_id": f"m-{next(_ids)}", "type": 1, "body": "hello", **fields})


class World:
    """One server for all of the cases, with somebody for each of them."""

    def __init__(self, folder):
        words = folder / "words.txt"
        words.write_text("block forbidden\n")
        self.tiers = tiers = Tiers(folder)
        tiers.logic_settings = (
            '[friends]\nsend_policy = "friends"\n'
            # Nobody is quick enough: whatever is there is too old.
            '[messages]\nrevoke_limit = "1ms"\n'
            f'[words]\nfile = "{words}"\n[replay]\nsend = "on"\n'
            f"[limits]\nmessages_per_second_max = 1\nmessages_burst_max = {RATE_BURST}\n"
            f"[paces]\nservice_messages_per_second_max = 1\nservice_messages_burst_max = {RATE_BURST}\n"
        )
        tiers.start_logic()
        tiers.start_gateway()
        self.api = tiers.api()
        for user_id in ("ann", "ben", "eve", "owner"):
            self.ok("POST", "/v1/users", {"user_id": user_id})
        self.befriend("ann", "ben")
        self.befriend("ann", "eve")
        self.ok("PUT", "/v1/users/eve/blocks/ann")
        # In the group: the owner, ann, and mum, who is muted.
        self.ok("POST", "/v1/groups/team/create", {"name": "team", "members": ["ann", "mum"], "actor_user_id": "owner"})
        self.ok("POST", "/v1/groups/team/mute_members", {
            "user_ids": ["mum"], "until_ms": "4102444800000", "actor_user_id": "owner"})
        owners = self.ok("POST", "/v1/messages", {
            "sender_id": "owner", "client_message_id": "o", "group_id": "team", "type": 1, "body": "welcome"})
        self.group, self.welcome = owners["conversation_id"], int(owners["sequence"])
        old = self.ok("POST", "/v1/messages", {
            "sender_id": "ann", "client_message_id": "old", "user_id": "ben", "type": 1, "body": "long ago"})
        self.chat, self.old = old["conversation_id"], int(old["sequence"])
        gone = self.ok("POST", "/v1/messages", {
            "sender_id": "ann", "client_message_id": "gone", "user_id": "ben", "type": 1, "body": "a mistake"})
        self.gone = int(gone["sequence"])
        self.ok("POST", f"/v1/conversations/{self.chat}/messages/{self.gone}/revoke", {})
        self.doors = {}

    def ok(self, method, path, body=None):
        status, answer = self.api.call(method, path, body)
        assert status == 200, (method, path, status, answer)
        return answer

    def befriend(self, one, other):
        self.ok("POST", f"/v1/users/{one}/friend_requests", {"other_id": other})
        self.ok("POST", f"/v1/users/{other}/friend_requests/{one}/accept")

    def door(self, kind):
        if kind not in self.doors:
            self.doors[kind] = kind(self.tiers)
        return self.doors[kind]

    def history(self):
        """Everything that is stored in the two conversations."""
        found = []
        for conversation_id, user_id in ((self.chat, "ann"), (self.group, "owner")):
            path = f"/v1/conversations/{conversation_id}/messages?user_id={user_id}&limit=100"
            found += [(conversation_id, one["sequence"], one["state"]) for one in self.ok("GET", path)["messages"]]
        return found

    def stop(self):
        for door in self.doors.values():
            door.close()
        self.tiers.stop()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("doors"))
    yield world
    world.stop()


def forwarded(world, **fields):
    return chat.Forward(conversation_id=world.chat, client_message_id=f"f-{next(_ids)}", **fields)


def played_again(world, door):
    once = message(user_id="ben", timestamp_ms=int(time.time() * 1000), nonce=f"nonce-{door.name}")
    assert door.send("ann", once).code == 0
    again = chat.SendMessage()
    again.CopyFrom(once)
    # Even under another id.
    again.client_message_id = f"m-{next(_ids)}"
    return door.send("ann", again)


# What is asked; the code and the sentence; the HTTP status and the gRPC status.
CASES = {
    "not a friend": (
        lambda world, door: door.send("ann", message(user_id="stranger")),
        23, "Only friends of this user may do this.", 403, "PERMISSION_DENIED"),
    "a forward to somebody who is no friend": (
        lambda world, door: door.forward("ann", forwarded(world, sequences=[world.old], user_id="stranger")),
        23, "Only friends of this user may do this.", 403, "PERMISSION_DENIED"),
    "blocked": (
        lambda world, door: door.send("ann", message(user_id="eve")),
        24, "This user does not take messages from you.", 403, "PERMISSION_DENIED"),
    "muted": (
        lambda world, door: door.send("mum", message(group_id="team")),
        25, "You are muted in this group for a while.", 403, "PERMISSION_DENIED"),
    "not a member": (
        lambda world, door: door.send("eve", message(group_id="team")),
        17, "Only members send to a group.", 403, "PERMISSION_DENIED"),
    "no such group": (
        lambda world, door: door.send("ann", message(group_id="nowhere")),
        16, "There is no such group.", 404, "NOT_FOUND"),
    "too old to revoke": (
        lambda world, door: door.revoke("ann", world.chat, world.old),
        27, "The time in which it could be revoked is over.", 409, "FAILED_PRECONDITION"),
    "the revocation of what somebody above oneself said": (
        lambda world, door: door.revoke("ann", world.group, world.welcome),
        26, "Only the sender, an owner or an administrator may revoke this message.", 403, "PERMISSION_DENIED"),
    "the revocation of what the other one said": (
        lambda world, door: door.revoke("ben", world.chat, world.old),
        17, "Only the sender may revoke a message.", 403, "PERMISSION_DENIED"),
    "the revocation of what is not there": (
        lambda world, door: door.revoke("ann", world.chat, 999),
        16, "There is no such message.", 404, "NOT_FOUND"),
    "the revocation in a conversation of others": (
        lambda world, door: door.revoke("eve", world.chat, world.old),
        17, "The user is not a member of this conversation.", 403, "PERMISSION_DENIED"),
    "the forward of what was revoked": (
        lambda world, door: door.forward("ann", forwarded(world, sequences=[world.gone], user_id="ben")),
        16, "", 404, "NOT_FOUND"),
    "a word that is blocked": (
        lambda world, door: door.send("ann", message(user_id="ben", body="this is ForBidden")),
        28, "The message holds a word that is not allowed here.", 403, "PERMISSION_DENIED"),
    "played again": (
        played_again, 29, "", 401, "UNAUTHENTICATED"),
    "played again much later": (
        lambda world, door: door.send("ann", message(user_id="ben", timestamp_ms=NOW_MS - 3_600_000, nonce=f"n-{next(_ids)}")),
        29, "", 401, "UNAUTHENTICATED"),
    "a message that is too long": (
        lambda world, door: door.send("ann", message(user_id="ben", body="x" * (61 * 1024))),
        3, "", 413, "INVALID_ARGUMENT"),
    "a message to nobody": (
        lambda world, door: door.send("ann", message()),
        18, "", 400, "INVALID_ARGUMENT"),
    "an image without a file": (
        lambda world, door: door.send("ann", message(user_id="ben", type=3)),
        18, "", 400, "INVALID_ARGUMENT"),
}
_sentences = {}


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
@pytest.mark.parametrize("case", CASES)
def test_a_refusal_has_its_code_and_its_sentence_at_every_door(world, case, door):
    act, code, sentence, http_status, grpc_status = CASES[case]
    stored = world.history()
    answer = act(world, world.door(door))
    assert answer.code == code, answer
    assert answer.reason and (not sentence or answer.reason == sentence), answer
    # Where the sentence is not written here, the doors that came before have said it.
    assert _sentences.setdefault(case, answer.reason) == answer.reason
    expected = {"http": http_status, "grpc": grpc_status}.get(door.name)
    assert answer.status == expected, answer
    assert answer.retry_after_ms == 0, "waiting does not help"
    # What was refused is not stored, and changes nothing; the one message was let through to be played again.
    assert len(world.history()) == len(stored) + (case == "played again")


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_over_the_rate_is_the_same_refusal_with_a_delay_at_every_door(world, door):
    # Somebody for each door: a user's devices share one rate.
    user_id = f"hasty-{door.name}"
    door = world.door(door)
    for number in range(20 * RATE_BURST):
        # A note to oneself needs no friend.
        answer = door.send(user_id, message(user_id=user_id))
        if answer.code:
            break
    assert (answer.code, answer.reason) == (9, "Too many requests; slow down."), answer
    assert number >= RATE_BURST, "the burst is let through"
    # One a second: HTTP says it in whole seconds.
    assert 0 < answer.retry_after_ms <= 1_000, answer
    assert answer.status == {"http": 429, "grpc": "RESOURCE_EXHAUSTED"}.get(door.name)
    forward = chat.Forward(conversation_id="x", sequences=[1], user_id="ben", client_message_id=f"f-{next(_ids)}")
    forwarded = door.forward(user_id, forward)
    # The pause before this one may have earned it a place: then it is refused for what it is.
    assert (forwarded.code, forwarded.reason) == (9, answer.reason) or forwarded.code in (16, 17), forwarded
