"""What the last release leaves behind, in tests/e2e/last_release: a data directory that it wrote (store.tar.gz), what it answered about it
(answers.json), and configurations that name each key it had (gateway.toml, logic.toml).

    MILLRACE_BINARIES=$(scripts/previous.sh) .venv/bin/python tests/e2e/last_release.py      at a release: writes both anew

`fill` puts something of every kind into the store through the doors, `look` asks for all of it. test_last_release.py lets the programs of
today open the directory and asks the same. The full-text index is left out: it is not part of what has to be kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from device import DELETE, FORWARD, REVOKE
from millrace_client import (
    PULL_CONVERSATIONS, PULL_MESSAGES, READ, REPLY_TYPES, REPORT, SEND_MESSAGE, UPDATE_CONVERSATION, TcpConnection, chat, mint_token,
    text_message,
)
from processes import BINARIES, JWT_SECRET, Tiers
from test_attachments import PNG, attach, person
from test_offline_push import REGISTER_PUSH, push

REPLY_TYPES.update({REVOKE: chat.RevokeReply, DELETE: chat.DeleteReply, FORWARD: chat.SendReply})
FOLDER = Path(__file__).resolve().parent / "last_release"
STORE, ANSWERS = FOLDER / "store.tar.gz", FOLDER / "answers.json"
CONFIGURATIONS = {"millrace-gateway": FOLDER / "gateway.toml", "millrace-logic": FOLDER / "logic.toml"}
PASSWORD = "correct horse battery"
YEAR_2100_MS = 4_102_444_800_000
# What lies in it must not end by itself; and offline push has to be there for its tokens, though nobody listens.
SETTINGS = (
    '[bus]\nretention = "876000h"\n[notices]\nttl_max = "876000h"\n'
    f'[push]\nattempts_max = 1\n[push.webhook]\nurl = "http://127.0.0.1:9/"\nsecret = "{"a secret that nobody asks for" * 2}"\n'
)
PEOPLE = ("ann", "bob", "cid")


def tiers_in(folder):
    tiers = Tiers(Path(folder))
    tiers.logic_settings = SETTINGS
    tiers.login_settings = 'revocations_kept = "876000h"\n'
    return tiers


def ok(tiers, method, path, body=None, user=None):
    status, answer = tiers.api().call(method, path, body, token=mint_token(JWT_SECRET, user) if user else None)
    assert status in (200, 201), (method, path, status, answer)
    return answer


def ask(connection, command, message):
    reply = connection.request(command, message)
    assert reply.code == 0, reply
    return reply


def fill(tiers):
    """Something of every kind."""
    for user in PEOPLE:
        ok(tiers, "POST", "/v1/users", {"user_id": user, "password": PASSWORD, "name": f"Name of {user}", "extra": '{"likes": "engines"}'})
    ok(tiers, "POST", "/v1/users", {"user_id": "dee", "password": PASSWORD})
    ok(tiers, "POST", "/v1/users/me/friend_requests", {"other_id": "bob", "message": "hello"}, user="ann")
    ok(tiers, "POST", "/v1/users/me/friend_requests/ann/accept", user="bob")
    ok(tiers, "POST", "/v1/users/me/friend_requests", {"other_id": "ann"}, user="cid")
    ok(tiers, "PUT", "/v1/users/me/blocks/dee", user="ann")
    groups = {"group_id": "town", "name": "the town", "members": [*PEOPLE, "eve"]}
    town = ok(tiers, "POST", "/v1/groups", groups)["conversation_id"]
    ann, bob, cid = (tiers.connect(TcpConnection, user) for user in PEOPLE)
    fill_messages(tiers, ann, bob, cid, town)
    ok(tiers, "POST", "/v1/groups/town/set_role", {"user_id": "bob", "role": 1})
    ok(tiers, "POST", "/v1/groups/town/mute_members", {"user_ids": ["cid"], "until_ms": str(YEAR_2100_MS)})
    ok(tiers, "POST", "/v1/groups/town/announce", {"text": "no noise after ten"})
    ok(tiers, "DELETE", "/v1/groups/town/members", {"user_ids": ["eve"]})
    ok(tiers, "POST", "/v1/rooms", {"room_id": "hall", "name": "a hall", "closed": True, "user_ids": ["ann", "bob"]})
    ok(tiers, "POST", "/v1/rooms", {"room_id": "lawn", "members_max": 10})
    ask(cid, REGISTER_PUSH, push.RegisterPush(provider="webhook", token="a-device-of-cid"))
    for number in range(12):
        ann.request(REPORT, chat.Report(destination="clicks", payload=f"click {number}".encode()))
    deadline = time.monotonic() + 20
    while int(tiers.api().call("GET", "/v1/topics/clicks?limit=1")[1].get("end_offset", 0)) < 13:
        assert time.monotonic() < deadline, "the reports do not come"
        time.sleep(0.02)
    ok(tiers, "POST", "/v1/topics/clicks/consumers/billing", {"offset": "7"})
    for connection in (ann, bob, cid):
        connection.close()
    for user in PEOPLE:
        tiers.until(lambda: not tiers.api().call("GET", f"/v1/users/{user}/presence")[1]["online"], None)
    notice = {"notice_id": "news-1", "type": 5, "body": "news", "ttl_ms": str(50 * 365 * 86_400_000)}
    ok(tiers, "POST", "/v1/push", {"targets": {"user_ids": ["ann", "bob"]}, **notice})
    ok(tiers, "POST", "/v1/users/dee/logout", {"reason": "a lost phone"})


def fill_messages(tiers, ann, bob, cid, town):
    for number in range(8):
        single = ask(ann, SEND_MESSAGE, text_message(to="bob", body=f"to bob {number}", client_message_id=f"ann-{number}")).conversation_id
        ask(bob, SEND_MESSAGE, text_message(to="ann", body=f"to ann {number}", client_message_id=f"bob-{number}"))
    for number, sender in enumerate((ann, bob, cid, ann)):
        ask(sender, SEND_MESSAGE, text_message(group="town", body=f"to all {number}", client_message_id=f"town-{number}"))
    quote = text_message(group="town", body="@ann yes", client_message_id="quoting")
    quote.quote.sequence = 1
    quote.mentions.user_ids.append("ann")
    ask(bob, SEND_MESSAGE, quote)
    ask(ann, SEND_MESSAGE, text_message(to="cid", body="only to say", client_message_id="lonely"))
    file = person(tiers.ready, JWT_SECRET, "ann").upload(PNG + bytes(range(256)), name="picture.png", kind="image/png")
    look_at_it = text_message(to="bob", body="look", client_message_id="picture", attachment=attach(file))
    look_at_it.type = 3
    ask(ann, SEND_MESSAGE, look_at_it)
    ask(ann, REVOKE, chat.Revoke(conversation_id=single, sequence=3))
    ask(bob, DELETE, chat.Delete(conversation_id=single, sequences=[1, 5]))
    ask(ann, FORWARD, chat.Forward(conversation_id=single, sequences=[1, 5], group_id="town", client_message_id="forwarded"))
    ask(bob, READ, chat.Read(conversation_id=single, sequence=9))
    ask(cid, READ, chat.Read(conversation_id=town, sequence=3))
    ask(bob, UPDATE_CONVERSATION, chat.UpdateConversation(conversation_id=town, do_not_disturb=True, pinned=True))


def look(tiers):
    """What services and clients are answered, by question."""
    description = tiers.api().call("GET", "/v1/openapi.json")[1]
    answers = {"routes": {f"{method.upper()} {path}": True for path, methods in description["paths"].items() for method in methods}}
    paths = [
        "/v1/groups/town", "/v1/groups/town/members", "/v1/rooms/hall", "/v1/rooms/lawn", "/v1/rooms/hall/members",
        "/v1/topics", "/v1/topics/clicks", "/v1/push/news-1", "/v1/users/cid/push_tokens",
        "/v1/users/ann/relations/bob", "/v1/users/ann/attachments/usage",
    ]
    for user in (*PEOPLE, "dee", "eve"):
        paths += [f"/v1/users/{user}", f"/v1/users/{user}/relations", f"/v1/users/{user}/conversations"]
    for path in paths:
        answers[path] = tiers.api().call("GET", path)
    for user in PEOPLE:
        connection = tiers.connect(TcpConnection, user)
        rows = connection.request(PULL_CONVERSATIONS, chat.PullConversations(limit=100))
        answers[f"{user} lists conversations"] = as_json(rows)
        for row in rows.conversations:
            pull = chat.PullMessages(conversation_id=row.conversation_id, from_sequence=1, limit=100)
            answers[f"{user} pulls {row.conversation_id}"] = as_json(connection.request(PULL_MESSAGES, pull))
            answers[f"who has read {row.conversation_id}"] = tiers.api().call("GET", f"/v1/conversations/{row.conversation_id}/receipts")
        connection.close()
    return json.loads(json.dumps(answers))


def as_json(message):
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def pack(folder):
    FOLDER.mkdir(exist_ok=True)
    with tarfile.open(STORE, "w:gz", compresslevel=9) as archive:
        for part in ("data", "attachments"):
            archive.add(folder / part, part, filter=lambda member: None if member.name == "data/search" else member)


def record():
    with tempfile.TemporaryDirectory(prefix="millrace-release-") as folder:
        tiers = tiers_in(folder)
        try:
            # Another life each, so that nothing is answered from memory, and nobody is connected.
            for act in (fill, look):
                tiers.start_logic()
                tiers.start_gateway()
                answers = act(tiers)
                tiers.stop()
                if act is fill:
                    # Opening it again cuts the journal, which was 64 MB of room, to what is in it.
                    tiers.start_logic()
                    assert tiers.logic.terminate() == 0
                    pack(Path(folder))
        finally:
            for process in (tiers.gateway, tiers.logic):
                if process:
                    process.kill()
    for program, path in CONFIGURATIONS.items():
        printed = subprocess.run([BINARIES / program, "config", "default"], capture_output=True, text=True, check=True).stdout
        path.write_text("\n".join(line for line in printed.splitlines() if line and not line.startswith("#")) + "\n")
    ANSWERS.write_text(json.dumps(answers, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    print(f"{STORE.stat().st_size:,} bytes and {len(answers)} answers of {BINARIES}")


if __name__ == "__main__":
    sys.exit(record())
