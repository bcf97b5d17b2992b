"""Restarts, clean and not: data found again, sessions kept, nothing stored twice."""

import subprocess
import threading
import time

import pytest

from millrace_client import (
    DELIVER_ACK, DRAINING, GOAWAY, HEARTBEAT, LOGIC_UNAVAILABLE, PULL_MESSAGES, REPLY, SEND_MESSAGE, TRANSPORTS,
    Refused, TcpConnection, WebSocketConnection, chat, mint_token, session, text_message,
)
from processes import BINARIES, JWT_SECRET, Dev


def test_sigterm_ends_cleanly_and_the_next_start_finds_the_data(tmp_path):
    first = Dev(tmp_path / "data", tmp_path / "log")
    alice = first.connect(TcpConnection, "alice")
    sent = [alice.request(SEND_MESSAGE, text_message(to="bob", body=f"kept {index}")) for index in range(3)]
    group_id, _ = first.api.create_group(["alice", "bob"], name="kept")
    assert first.terminate() == 0
    assert alice.wait_for(lambda frame: frame.command == GOAWAY).parse(session.GoAway).code == DRAINING
    alice.wait_closed()

    second = Dev(tmp_path / "data", tmp_path / "log")
    try:
        bob = second.connect(WebSocketConnection, "bob")
        pulled = bob.request(PULL_MESSAGES, chat.PullMessages(conversation_id=sent[0].conversation_id))
        assert [(message.body, message.sequence) for message in pulled.messages] == [("kept 0", 1), ("kept 1", 2), ("kept 2", 3)]
        assert second.api.call("GET", f"/v1/groups/{group_id}")[1]["name"] == "kept"
        # The old token still works: the secret is part of the data.
        assert TcpConnection(second.ready).login("alice", first.token("alice")).code == 0
    finally:
        assert second.terminate() == 0


def test_killed_logic_comes_back_and_sessions_never_noticed(tiers):
    alice, bob = tiers.connect(TcpConnection, "alice"), tiers.connect(WebSocketConnection, "bob")
    before = alice.request(SEND_MESSAGE, text_message(to="bob", body="before"))
    assert bob.messages(1)[0].body == "before"
    bob.send(DELIVER_ACK, chat.DeliverAck(conversation_id=before.conversation_id, sequence=1), request_id=0)
    time.sleep(0.3)
    tiers.logic.kill()

    def refused():
        try:
            alice.request(SEND_MESSAGE, text_message(to="bob", client_message_id="during"))
            return False
        except Refused as refusal:
            assert refusal.code == LOGIC_UNAVAILABLE and refusal.retry_after_ms > 0
            return True

    assert refused(), "while logic is away a request is refused, not lost"
    assert alice.request(HEARTBEAT).command == HEARTBEAT | REPLY
    tiers.start_logic()
    deadline = time.monotonic() + 10
    while True:
        try:
            during = alice.request(SEND_MESSAGE, text_message(to="bob", client_message_id="during", body="during"), flags=4)
            break
        except Refused as refusal:
            assert refusal.code == LOGIC_UNAVAILABLE and time.monotonic() < deadline
            time.sleep(0.1)
    assert (during.code, during.sequence) == (0, 2)
    assert [message.sequence for message in bob.messages(1)] == [2]
    bob.no_messages(0.3)
    assert tiers.api().call("GET", "/v1/users/alice/presence")[1]["online"]


def test_login_while_logic_is_away_is_told_to_try_again(tiers):
    tiers.logic.kill()
    connection = TcpConnection(tiers.ready)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        reply = connection.login("alice", mint_token(JWT_SECRET, "alice"))
        if reply.code == LOGIC_UNAVAILABLE:
            break
    assert reply.code == LOGIC_UNAVAILABLE
    tiers.start_logic()
    tiers.until(lambda: connection.login("alice", mint_token(JWT_SECRET, "alice")).code == 0, tiers.logic)


def test_logic_knows_within_15_s_who_was_on_a_killed_gateway(tiers):
    users = [f"user-{index}" for index in range(20)]
    connections = [tiers.connect(TRANSPORTS[index % 2], user) for index, user in enumerate(users)]
    online = lambda: [user for user in users if tiers.api().call("GET", f"/v1/users/{user}/presence")[1]["online"]]
    assert online() == users
    killed = time.monotonic()
    tiers.gateway.kill()
    while online():
        assert time.monotonic() - killed < 15, f"still online: {online()}"
        time.sleep(0.2)
    tiers.start_gateway()
    back = tiers.connect(TcpConnection, users[0])
    assert back.request(HEARTBEAT).command == HEARTBEAT | REPLY
    assert online() == users[:1]
    del connections


def test_a_gateway_that_returns_at_once_ends_the_old_sessions_at_once(tiers):
    connection = tiers.connect(TcpConnection, "alice")
    tiers.gateway.kill()
    tiers.start_gateway()
    assert connection.wait_closed().code is None
    tiers.until(lambda: not tiers.api().call("GET", "/v1/users/alice/presence")[1]["online"], None, seconds=3)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_sigterm_of_the_gateway_sends_goaway_with_a_spread_and_closes(tiers, transport):
    connections = [tiers.connect(transport, f"user-{index}") for index in range(10)]
    ended = []
    thread = threading.Thread(target=lambda: ended.append(tiers.gateway.terminate(60)))
    thread.start()
    for connection in connections:
        goaway = connection.wait_for(lambda frame: frame.command == GOAWAY, 20).parse(session.GoAway)
        assert goaway.code == DRAINING and goaway.reconnect_after_ms_min < goaway.reconnect_after_ms_max
        assert connection.wait_closed(20).code in (None, 3000 + DRAINING)
    thread.join()
    assert ended == [0]


def test_configuration_mistakes_name_file_line_and_the_key_that_was_meant(tmp_path):
    for binary, text in (("millrace-gateway", '[connections]\nidle_timeuot = "15s"\n'), ("millrace-logic", '[link]\nlistne = "x"\n')):
        path = tmp_path / f"{binary}.toml"
        path.write_text(text)
        result = subprocess.run([BINARIES / binary, "check", "--config", path], capture_output=True, text=True, timeout=20)
        assert result.returncode == 1
        assert f"{path}:2" in result.stderr, result.stderr


@pytest.mark.parametrize("binary", ["millrace-gateway", "millrace-logic"])
def test_the_printed_default_configuration_is_valid(tmp_path, binary):
    default = subprocess.run([BINARIES / binary, "config", "default"], capture_output=True, text=True, timeout=20, check=True)
    path = tmp_path / "default.toml"
    path.write_text(default.stdout)
    result = subprocess.run([BINARIES / binary, "check", "--config", path], capture_output=True, text=True, timeout=20)
    assert result.returncode == 0 or "secret" in result.stderr, result.stderr
