"""Who misses a message on every device is told by a webhook, signed; APNs and FCM are tested in logic/tests/offline_push."""

import hashlib
import hmac
import importlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from millrace_client import (
    READ, REPLY_TYPES, SEND_MESSAGE, UPDATE_CONVERSATION, JsonConnection, TcpConnection, WebSocketConnection, chat, mint_token,
    text_message,
)
from processes import JWT_SECRET, Tiers

push = importlib.import_module("millrace.chat.v1.push_pb2")

REGISTER_PUSH, UNREGISTER_PUSH = 0x0310, 0x0311
REPLY_TYPES[REGISTER_PUSH], REPLY_TYPES[UNREGISTER_PUSH] = push.RegisterPushReply, push.UnregisterPushReply
SECRET = "a secret of the webhook, long enough to sign"


class Webhook:
    """A business service that is told; it checks the signature as one should."""

    def __init__(self):
        self.notes, self.forged, self.answers = [], 0, {}
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                fields = dict(part.split("=", 1) for part in self.headers["x-millrace-signature"].split(","))
                signed = hmac.new(SECRET.encode(), fields["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
                fresh = abs(time.time() - int(fields["t"]) / 1000) < 600
                note = json.loads(body)
                answers = hook.answers.get(note["token"], [])
                status = answers.pop(0) if answers else 204
                if not hmac.compare_digest(signed, fields["v1"]) or not fresh:
                    hook.forged += 1
                elif status == 204:
                    hook.notes.append(note)
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}/told"

    def until(self, check, seconds=30.0):
        deadline = time.monotonic() + seconds
        while not check(self.notes):
            assert time.monotonic() < deadline, self.notes
            time.sleep(0.02)
        assert self.forged == 0
        return self.notes


@pytest.fixture
def hook():
    hook = Webhook()
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


@pytest.fixture
def world(tmp_path, hook):
    tiers = Tiers(tmp_path)
    tiers.logic_settings = (
        f'[push]\ndelay = "200ms"\nretry_min = "50ms"\n[push.webhook]\nurl = "{hook.url}"\nsecret = "{SECRET}"\n'
    )
    tiers.start_logic()
    tiers.start_gateway()
    yield tiers
    tiers.stop()


def register(connection, token):
    reply = connection.request(REGISTER_PUSH, push.RegisterPush(provider="webhook", token=token))
    assert reply.code == 0, reply


def leave(tiers, connection, user_id):
    connection.close()
    tiers.until(lambda: not tiers.api().call("GET", f"/v1/users/{user_id}/presence")[1]["online"], None)


def test_the_last_device_gone_a_missed_message_is_told_with_badge_and_survives_kill_9(world, hook):
    alice, pad = world.connect(TcpConnection, "alice", "phone"), world.connect(WebSocketConnection, "alice", "pad")
    register(alice, "alices-phone")
    text = JsonConnection(world.ready)
    login = {"user_id": "bob", "token": mint_token(JWT_SECRET, "bob"), "device_id": "browser"}
    assert text.request("login", login).get("code", 0) == 0
    assert text.request("register_push", {"provider": "webhook", "token": "bobs-browser"})["code"] == 0
    bob = world.connect(TcpConnection, "bob", "laptop")
    leave(world, alice, "nobody")
    bob.request(SEND_MESSAGE, text_message(to="alice", body="seen on the pad"))
    assert pad.messages(1)[0].body == "seen on the pad"
    leave(world, pad, "alice")
    sent = bob.request(SEND_MESSAGE, text_message(to="alice", body="a secret word"))
    (note,) = hook.until(lambda notes: len(notes) == 1)
    assert (note["user_id"], note["device_id"], note["token"]) == ("alice", "phone", "alices-phone")
    assert (note["sequence"], note["conversation_id"]) == ("2", sent.conversation_id)
    assert (note["badge"], note["sender_id"], note["body"]) == (2, "bob", "New message"), "no word of the message itself"
    # What is registered outlives logic.
    world.logic.kill()
    world.start_logic()
    world.until(world.gateway_ready, world.gateway)
    sent = bob.request(SEND_MESSAGE, text_message(to="alice", body="after"))
    assert sent.code == 0
    assert hook.until(lambda notes: len(notes) == 2)[1]["badge"] == 3
    # Quiet is quiet, and what was read does not count.
    alice = world.connect(TcpConnection, "alice", "phone")
    alice.request(READ, chat.Read(conversation_id=sent.conversation_id, sequence=3))
    alice.request(UPDATE_CONVERSATION, chat.UpdateConversation(conversation_id=sent.conversation_id, do_not_disturb=True))
    leave(world, alice, "alice")
    bob.request(SEND_MESSAGE, text_message(to="alice", body="quiet"))
    carol = world.connect(TcpConnection, "carol")
    carol.request(SEND_MESSAGE, text_message(to="alice", body="loud"))
    notes = hook.until(lambda notes: len(notes) == 3)
    assert (notes[2]["sender_id"], notes[2]["badge"]) == ("carol", 1)
    time.sleep(0.5)
    assert len(hook.notes) == 3
    # Registered no more: told no more.
    alice = world.connect(TcpConnection, "alice", "phone")
    assert alice.request(UNREGISTER_PUSH, push.UnregisterPush()).code == 0
    leave(world, alice, "alice")
    carol.request(SEND_MESSAGE, text_message(to="alice", body="nobody is told"))
    time.sleep(0.8)
    assert len(hook.notes) == 3
    text.close()


def test_a_busy_webhook_is_tried_again_and_one_that_knows_the_token_no_more_ends_it(world, hook):
    for user_id, answers in [("busy", [503, 429]), ("gone", [410])]:
        hook.answers[user_id] = answers
        device = world.connect(TcpConnection, user_id)
        register(device, user_id)
        leave(world, device, user_id)
    bob = world.connect(TcpConnection, "bob")
    bob.request(SEND_MESSAGE, text_message(to="busy"))
    bob.request(SEND_MESSAGE, text_message(to="gone"))
    assert hook.until(lambda notes: len(notes) == 1)[0]["user_id"] == "busy"
    world.until(lambda: world.api().call("GET", "/v1/users/gone/push_tokens")[1]["tokens"] == [], None)
    assert len(world.api().call("GET", "/v1/users/busy/push_tokens")[1]["tokens"]) == 1


def test_without_a_provider_nothing_can_be_registered(dev):
    connection = dev.connect(TcpConnection, dev.user())
    reply = connection.request(REGISTER_PUSH, push.RegisterPush(provider="apns", token="abc"))
    assert reply.code == 16 and reply.reason
