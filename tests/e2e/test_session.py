"""Login, heartbeat, logout, refresh and kick: rows C4, A1, A2, A3, P3 of the mission."""

import json
import time

import pytest

from millrace_client import (
    ALREADY_LOGGED_IN, BAD_TOKEN, HEARTBEAT, KICK, KICKED, LOGIN, LOGOUT, REFRESH, REPLACED, REPLY, TRANSPORTS,
    Closed, JsonConnection, Refused, TcpConnection, WebSocketConnection, session,
)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_login_tells_the_client_its_session_and_limits(dev, transport):
    reply = dev.connect(transport, dev.user()).login_reply
    assert reply.session_id != 0
    assert abs(reply.server_time_ms - time.time() * 1000) < 5_000
    assert 0 < reply.heartbeat_interval_ms < reply.idle_timeout_ms / 2
    assert reply.body_bytes_max == 64 * 1024


def test_ready_made_users_log_in_with_their_tokens(dev):
    assert [user["user_id"] for user in dev.ready["users"]] == ["alice", "bob"]
    for user in dev.ready["users"]:
        assert TcpConnection(dev.ready).login(user["user_id"], user["token"]).code == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_heartbeat_is_answered(dev, transport):
    connection = dev.connect(transport, dev.user())
    frame = connection.request(HEARTBEAT)
    assert frame.command == HEARTBEAT | REPLY and frame.body == b""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_logout_is_answered_and_then_the_server_closes(dev, transport):
    user = dev.user()
    connection = dev.connect(transport, user)
    assert connection.request(LOGOUT).command == LOGOUT | REPLY
    closed = connection.wait_closed()
    assert closed.code in (None, 1000)
    eventually(lambda: not dev.api.call("GET", f"/v1/users/{user}/presence")[1]["online"])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_second_login_is_refused_and_the_session_stays(dev, transport):
    user = dev.user()
    connection = dev.connect(transport, user)
    with pytest.raises(Refused) as refused:
        connection.request(LOGIN, session.Login(user_id=user, token=dev.token(user)))
    assert refused.value.code == ALREADY_LOGGED_IN
    assert connection.request(HEARTBEAT).command == HEARTBEAT | REPLY


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_refresh_takes_a_newer_token_and_refuses_somebody_elses(dev, transport):
    user = dev.user()
    connection = dev.connect(transport, user)
    reply = connection.request(REFRESH, session.Refresh(token=dev.token(user, 7200)))
    assert reply.code == 0
    assert abs(reply.expires_at_ms / 1000 - (time.time() + 7200)) < 10
    refused = connection.request(REFRESH, session.Refresh(token=dev.token("somebody-else")))
    assert refused.code == BAD_TOKEN


def test_token_of_another_user_is_refused(dev):
    connection = TcpConnection(dev.ready)
    assert connection.login("not-me", dev.token("me")).code == BAD_TOKEN


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_kick_tells_the_user_why_and_closes(dev, transport):
    user = dev.user()
    connection = dev.connect(transport, user)
    status, body = dev.api.call("POST", f"/v1/users/{user}/kick", {"reason": "spring cleaning"})
    assert status == 200, body
    kick = connection.wait_for(lambda frame: frame.command == KICK).parse(session.Kick)
    assert kick.code == KICKED and "spring cleaning" in kick.reason
    assert connection.wait_closed().code in (None, 3500 + KICKED)
    eventually(lambda: not dev.api.call("GET", f"/v1/users/{user}/presence")[1]["online"])


def test_same_device_logging_in_again_replaces_the_first_session(dev):
    user = dev.user()
    first = dev.connect(WebSocketConnection, user, device_id="phone")
    other = dev.connect(WebSocketConnection, user, device_id="tablet")
    second = dev.connect(TcpConnection, user, device_id="phone")
    kick = first.wait_for(lambda frame: frame.command == KICK).parse(session.Kick)
    assert kick.code == REPLACED and "device" in kick.reason
    assert first.wait_closed().code == 3500 + REPLACED
    for connection in (other, second):
        assert connection.request(HEARTBEAT).command == HEARTBEAT | REPLY


def test_presence_follows_login_and_disconnect(dev):
    user = dev.user()
    presence = lambda: dev.api.call("GET", f"/v1/users/{user}/presence")[1]
    assert presence()["online"] is False
    connection = dev.connect(TcpConnection, user, device_id="phone")
    eventually(lambda: presence()["online"])
    assert presence()["sessions"][0]["device_id"] == "phone"
    connection.close()
    eventually(lambda: not presence()["online"])


def test_json_text_form_logs_in_and_answers_by_name(dev):
    user = dev.user()
    connection = JsonConnection(dev.ready)
    reply = connection.request("login", {"user_id": user, "token": dev.token(user), "device_id": "browser", "platform": "web"})
    assert reply.get("code", 0) == 0 and int(reply["session_id"]) > 0
    request_id = connection.send(HEARTBEAT, {})
    answer = connection.wait_for(lambda message: message["request_id"] == request_id)
    assert answer["command"] == "heartbeat" and answer["reply"] is True


def test_text_that_is_not_an_envelope_is_refused_in_words(dev):
    connection = JsonConnection(dev.ready)
    connection.websocket.send("this is not JSON")
    refusal = connection.wait_for(lambda message: message["command"] == "error")
    assert refusal["body"]["code"] == 1 and refusal["body"]["reason"]


def test_json_flag_on_binary_frames_is_answered_in_json(dev):
    user = dev.user()
    connection = TcpConnection(dev.ready)
    body = json.dumps({"user_id": user, "token": dev.token(user), "device_id": "d"}).encode()
    from millrace_client import encode_frame

    connection.send_bytes(encode_frame(LOGIN, body, 1, flags=1))
    frame = connection.wait_for(lambda frame: frame.command == LOGIN | REPLY)
    assert frame.flags & 1 and json.loads(frame.body)["code"] == 0


def test_http_calls_need_the_api_token(dev):
    status, body = dev.api.call("GET", "/v1/users/alice/presence", token="wrong")
    assert status == 401 and body["code"] != 0 and body["reason"]


def eventually(check, seconds=5.0):
    """Asserts that `check` becomes true."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.05)
