"""Sessions and security through the real binaries: logout everywhere, presence, anti-replay, rates, other verifiers."""

import base64
import hashlib
import hmac
import http.server
import json
import threading
import time

import grpc
import pytest

from millrace_client import (
    BAD_TOKEN, ERROR, HEARTBEAT, KICK, KICKED, LOGIC_UNAVAILABLE, LOGIN, RATE_LIMITED, REFRESH, REPLACED, REPLAYED, REPLY,
    ROOT, SEND_MESSAGE, TOKEN_EXPIRED, TRANSPORTS, JsonConnection, Refused, TcpConnection, WebSocketConnection, api_messages,
    api_services, chat, mint_token, session, text_message,
)
from processes import API_TOKEN, JWT_SECRET
from test_session import eventually

LOGOUT_EVERYWHERE, QUERY_PRESENCE, SUBSCRIBE_PRESENCE, UNSUBSCRIBE_PRESENCE, PRESENCE = 0x0220, 0x0221, 0x0222, 0x0223, 0x0224
AUTHORIZED = [("authorization", f"Bearer {API_TOKEN}")]


def issued(secret, user_id, issued_at, expires_in=3600.0):
    """A token that says when it was issued."""

    def part(value):
        return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(b"=")

    claims = {"sub": user_id, "iat": issued_at, "exp": int(time.time() + expires_in)}
    signed = part({"alg": "HS256", "typ": "JWT"}) + b"." + part(claims)
    return (signed + b"." + part(hmac.new(secret.encode(), signed, hashlib.sha256).digest())).decode()


def ask(connection, command, message, reply_type):
    return connection.request(command, message).parse(reply_type)


@pytest.fixture
def channel(tiers):
    with grpc.insecure_channel(f"127.0.0.1:{tiers.free_port('grpc')}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_logging_out_everywhere_ends_the_sessions_and_their_tokens(dev, transport):
    user, secret = dev.user(), dev.ready["jwt_secret"]
    old = issued(secret, user, time.time() - 1)
    first, second = transport(dev.ready), transport(dev.ready)
    assert first.login(user, old, "phone").code == 0
    assert second.login(user, old, "tablet").code == 0
    reply = ask(first, LOGOUT_EVERYWHERE, chat.LogoutEverywhere(keep_this_session=True), chat.LogoutEverywhereReply)
    assert (reply.code, reply.sessions) == (0, 1)
    kick = second.wait_for(lambda frame: frame.command == KICK).parse(session.Kick)
    assert kick.code == KICKED and "everywhere" in kick.reason
    assert second.wait_closed().code in (None, 3500 + KICKED)
    assert first.request(HEARTBEAT).command == HEARTBEAT | REPLY
    # The session that stayed cannot be prolonged, nor another opened, with a token of before.
    assert first.request(REFRESH, session.Refresh(token=old)).code == BAD_TOKEN
    assert transport(dev.ready).login(user, old).code == BAD_TOKEN
    assert transport(dev.ready).login(user, dev.token(user)).code == BAD_TOKEN, "it does not say when it was issued"
    new = issued(secret, user, reply.issued_before_ms / 1000)
    assert transport(dev.ready).login(user, new).code == 0
    assert first.request(REFRESH, session.Refresh(token=new)).code == 0


def test_tokens_of_before_stay_refused_when_logic_is_killed(tiers):
    old = issued(JWT_SECRET, "alice", time.time() - 1)
    connection = TcpConnection(tiers.ready)
    assert connection.login("alice", old).code == 0
    status, reply = tiers.api().call("POST", "/v1/users/alice/logout", {"reason": "a lost phone"})
    assert (status, reply["sessions"]) == (200, 1), reply
    assert connection.wait_for(lambda frame: frame.command == KICK).parse(session.Kick).reason == "a lost phone"
    tiers.logic.kill()
    tiers.start_logic()

    def refused():
        code = TcpConnection(tiers.ready).login("alice", old).code
        assert code in (BAD_TOKEN, LOGIC_UNAVAILABLE), code
        return code == BAD_TOKEN

    eventually(refused, 20)
    new = issued(JWT_SECRET, "alice", int(reply["issued_before_ms"]) / 1000)

    # Each shard has a link of its own, and this connection may be another one's.
    def accepted():
        code = TcpConnection(tiers.ready).login("alice", new).code
        assert code in (0, LOGIC_UNAVAILABLE), code
        return code == 0

    eventually(accepted, 20)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_presence_is_asked_and_told(dev, transport):
    watcher, user = transport(dev.ready), dev.user()
    me = dev.user()
    assert watcher.login(me, dev.token(me)).code == 0
    reply = ask(watcher, SUBSCRIBE_PRESENCE, chat.SubscribePresence(user_ids=[user]), chat.PresenceReply)
    assert reply.code == 0 and not reply.users[0].online and reply.subscribed_for_ms > 0
    connection = dev.connect(transport, user)
    event = watcher.wait_for(lambda frame: frame.command == PRESENCE)
    assert event.request_id == 0
    shown = event.parse(chat.Presence).users
    assert [(one.user_id, one.online, list(one.platforms)) for one in shown] == [(user, True, ["test"])]
    reply = ask(watcher, QUERY_PRESENCE, chat.QueryPresence(user_ids=["nobody", user]), chat.PresenceReply)
    assert [one.online for one in reply.users] == [False, True]
    connection.close()
    gone = watcher.wait_for(lambda frame: frame.command == PRESENCE).parse(chat.Presence).users
    assert not gone[0].online
    reply = ask(watcher, UNSUBSCRIBE_PRESENCE, chat.UnsubscribePresence(), chat.PresenceReply)
    assert reply.subscriptions == 0


def test_presence_in_the_text_form(dev):
    me, user = dev.user(), dev.user()
    browser = JsonConnection(dev.ready)
    browser.request("login", {"user_id": me, "token": dev.token(me), "device_id": "browser", "platform": "web"})
    reply = browser.request("subscribe_presence", {"user_ids": [user]})
    assert reply["users"][0]["user_id"] == user
    other = dev.connect(TcpConnection, user)
    event = browser.wait_for(lambda message: message["command"] == "presence")
    assert event["body"]["users"][0]["online"] is True
    other.close()
    reply = browser.request("logout_everywhere", {})
    assert int(reply["sessions"]) == 1
    assert browser.wait_for(lambda message: message["command"] == "kick")["body"]["code"] == KICKED


def test_presence_and_sessions_over_http_and_grpc(tiers, channel):
    alice = tiers.connect(TcpConnection, "alice", "phone")
    presence = api_services.PresenceServiceStub(channel)
    eventually(lambda: presence.QueryPresence(
        api_messages.QueryPresenceRequest(user_ids=["alice"]), metadata=AUTHORIZED, timeout=5).users[0].online)
    stream = presence.WatchPresence(api_messages.WatchPresenceRequest(user_ids=["alice", "bob"]), metadata=AUTHORIZED, timeout=30)
    first = next(stream)
    assert [(one.user_id, one.online) for one in first.users] == [("alice", True), ("bob", False)]
    bob = tiers.connect(WebSocketConnection, "bob", "laptop")
    assert [(one.user_id, one.online) for one in next(stream).users] == [("bob", True)]
    stream.cancel()
    status, reply = tiers.api().call("POST", "/v1/presence/query", {"user_ids": ["bob", "carol"]})
    assert status == 200 and [one["online"] for one in reply["users"]] == [True, False], reply
    sessions = api_services.SessionServiceStub(channel)
    listed = sessions.ListSessions(api_messages.ListSessionsRequest(), metadata=AUTHORIZED, timeout=5)
    assert [(one.user_id, one.device_id) for one in listed.sessions] == [("alice", "phone"), ("bob", "laptop")]
    status, page = tiers.api().call("GET", "/v1/sessions?limit=1&after_user_id=alice")
    assert status == 200 and page["sessions"][0]["user_id"] == "bob", page
    kicked = sessions.KickSessions(
        api_messages.KickSessionsRequest(user_id="bob", device_id="laptop", reason="one too many"), metadata=AUTHORIZED, timeout=5)
    assert kicked.sessions == 1
    assert bob.wait_for(lambda frame: frame.command == KICK).parse(session.Kick).reason == "one too many"
    out = sessions.LogoutEverywhere(api_messages.LogoutEverywhereRequest(user_id="alice"), metadata=AUTHORIZED, timeout=5)
    assert out.sessions == 1 and out.issued_before_ms > 0
    assert alice.wait_for(lambda frame: frame.command == KICK).parse(session.Kick).code == KICKED
    for call in (
        lambda: presence.QueryPresence(api_messages.QueryPresenceRequest(user_ids=["a"]), timeout=5),
        lambda: sessions.LogoutEverywhere(api_messages.LogoutEverywhereRequest(user_id="a"), timeout=5),
        lambda: next(presence.WatchPresence(api_messages.WatchPresenceRequest(user_ids=["a"]), timeout=5)),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_recorded_login_is_refused_over_every_transport(dev):
    user = dev.user()
    login = session.Login(
        user_id=user, token=dev.token(user), device_id="d", timestamp_ms=int(time.time() * 1000), nonce="recorded")
    assert TcpConnection(dev.ready).request(LOGIN, login).code == 0
    for transport in TRANSPORTS:
        connection = transport(dev.ready)
        reply = connection.request(LOGIN, login)
        assert reply.code == REPLAYED and reply.reason
        error = connection.wait_for(lambda frame: frame.command == ERROR).parse(session.Error)
        assert (error.code, error.reason) == (REPLAYED, reply.reason)
        assert connection.wait_closed().code in (None, 3500 + REPLAYED)
    text = JsonConnection(dev.ready)
    body = {"user_id": user, "token": dev.token(user), "timestamp_ms": str(login.timestamp_ms), "nonce": "recorded"}
    assert text.request("login", body)["code"] == REPLAYED
    # A client that sends neither keeps working.
    for _ in range(2):
        assert TcpConnection(dev.ready).request(LOGIN, session.Login(user_id=user, token=dev.token(user))).code == 0


def test_a_recorded_message_is_refused_over_every_door(tiers, channel):
    tiers.stop()
    tiers.logic_settings = '[replay]\nsend = "on"\n[paces]\nservice_messages_per_second_max = 1\nservice_messages_burst_max = 4'
    tiers.start_logic()
    tiers.start_gateway()
    now_ms = int(time.time() * 1000)
    for transport in TRANSPORTS:
        connection = tiers.connect(transport, "alice", transport.transport)
        message = text_message(to="bob", body="once", timestamp_ms=now_ms, nonce=transport.transport)
        assert connection.request(SEND_MESSAGE, message).code == 0
        reply = connection.request(SEND_MESSAGE, message)
        assert reply.code == REPLAYED and reply.reason
    text = JsonConnection(tiers.ready)
    text.request("login", {"user_id": "alice", "token": mint_token(JWT_SECRET, "alice"), "device_id": "browser"})
    body = {"client_message_id": "j", "user_id": "bob", "type": 1, "body": "x", "timestamp_ms": str(now_ms), "nonce": "json"}
    assert text.request("send_message", body).get("code", 0) == 0
    assert text.request("send_message", body)["code"] == REPLAYED
    body = {"sender_id": "carol", **body}
    assert tiers.api().call("POST", "/v1/messages", body)[0] == 200
    status, reply = tiers.api().call("POST", "/v1/messages", body)
    assert (status, reply["code"]) == (401, REPLAYED) and reply["reason"]
    request = api_messages.SendMessageRequest(
        sender_id="dave", client_message_id="g", user_id="bob", type=1, body="x", timestamp_ms=now_ms, nonce="grpc")
    messages = api_services.MessageServiceStub(channel)
    assert messages.SendMessage(request, metadata=AUTHORIZED, timeout=5).code == 0
    with pytest.raises(grpc.RpcError) as refused:
        messages.SendMessage(request, metadata=AUTHORIZED, timeout=5)
    assert dict(refused.value.trailing_metadata())["millrace-code"] == str(REPLAYED)
    # And who sends too often in one user's name is told to wait, over both doors.
    limited = 0
    for number in range(40):
        body = {"sender_id": "erin", "client_message_id": str(number), "user_id": "bob", "type": 1}
        status, reply = tiers.api().call("POST", "/v1/messages", body)
        assert (status, reply.get("code", 0)) in ((200, 0), (429, RATE_LIMITED)), reply
        limited += status == 429
    assert limited > 0
    with pytest.raises(grpc.RpcError) as refused:
        for number in range(40):
            messages.SendMessage(
                api_messages.SendMessageRequest(sender_id="frank", client_message_id=str(number), user_id="bob", type=1),
                metadata=AUTHORIZED, timeout=5)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and refused.value.details()
    assert dict(refused.value.trailing_metadata())["millrace-code"] == str(RATE_LIMITED)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_asks_for_presence_too_often_is_told_how_long_to_wait(dev, transport):
    connection = dev.connect(transport, dev.user())
    for _ in range(2000):
        try:
            connection.request(QUERY_PRESENCE, chat.QueryPresence(user_ids=["nobody"]))
        except Refused as refused:
            assert refused.code == RATE_LIMITED and 0 < refused.retry_after_ms <= 1000
            return
        connection.send(QUERY_PRESENCE, chat.QueryPresence(user_ids=["nobody"]), request_id=0)
    raise AssertionError("never refused")


def test_the_text_form_is_told_to_wait_too(dev):
    me = dev.user()
    browser = JsonConnection(dev.ready)
    browser.request("login", {"user_id": me, "token": dev.token(me), "device_id": "browser"})
    with pytest.raises(Refused) as refused:
        for _ in range(2000):
            browser.request("query_presence", {"user_ids": ["nobody"]})
            browser.send("query_presence", {"user_ids": ["nobody"]}, request_id=0)
    assert refused.value.code == RATE_LIMITED and refused.value.reason


def test_a_session_ends_with_kick_when_its_token_and_the_grace_are_over(tiers):
    tiers.stop()
    tiers.gateway_connections = 'token_grace = "1s"\n'
    tiers.start_logic()
    tiers.start_gateway()
    for transport in TRANSPORTS:
        ends, stays = transport(tiers.ready), transport(tiers.ready)
        started = time.monotonic()
        assert ends.login("alice", mint_token(JWT_SECRET, "alice", 3), "ends").code == 0
        assert stays.login("alice", mint_token(JWT_SECRET, "alice", 3), "stays").code == 0
        assert stays.request(REFRESH, session.Refresh(token=mint_token(JWT_SECRET, "alice", 600))).code == 0
        kick = ends.wait_for(lambda frame: frame.command == KICK, 30).parse(session.Kick)
        assert kick.code == TOKEN_EXPIRED and kick.reason
        assert time.monotonic() - started > 2, "not before the token's end and the grace"
        assert ends.wait_closed().code in (None, 3500 + TOKEN_EXPIRED)
        assert stays.request(HEARTBEAT).command == HEARTBEAT | REPLY


def test_one_phone_whatever_its_make_and_a_second_browser_is_refused(tiers):
    tiers.stop()
    tiers.logic_settings = (
        '[sessions.classes.phone]\nplatforms = ["ios", "android"]\nsessions_max = 1\n'
        '[sessions.classes.browser]\nplatforms = ["web"]\nsessions_max = 1\nwhen_full = "refuse"'
    )
    tiers.start_logic()
    tiers.start_gateway()
    token = mint_token(JWT_SECRET, "alice")

    def enter(device_id, platform):
        connection = TcpConnection(tiers.ready)
        return connection, connection.login("alice", token, device_id, platform)

    first, reply = enter("a", "ios")
    assert reply.code == 0
    _second, reply = enter("b", "android")
    assert reply.code == 0
    kick = first.wait_for(lambda frame: frame.command == KICK).parse(session.Kick)
    assert kick.code == REPLACED and kick.reason
    _third, reply = enter("c", "web")
    assert reply.code == 0
    eventually(lambda: len(tiers.api().call("GET", "/v1/users/alice/presence")[1]["sessions"]) == 2)
    assert enter("d", "web")[1].code == 19


class Verifier(http.server.BaseHTTPRequestHandler):
    """A service that knows whose tokens are whose."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.headers["authorization"] == "Bearer shared"
        status, body = 401, {"reason": "never heard of it"}
        if asked["token"].startswith("ticket-of-"):
            status, body = 200, {"user_id": asked["token"].removeprefix("ticket-of-"), "expires_at_ms": 0}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_a_service_of_ones_own_verifies_tokens(tiers):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Verifier) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/verify"
        restart_with_login(tiers, f'method = "http"\n[login.http]\nurl = "{url}"\ntoken = "shared"\n')
        connection = TcpConnection(tiers.ready)
        assert connection.login("", "ticket-of-alice").code == 0
        assert connection.request(SEND_MESSAGE, text_message(to="bob")).code == 0
        refused = TcpConnection(tiers.ready).login("", "forged")
        assert refused.code == BAD_TOKEN and "never heard of it" in refused.reason
        assert TcpConnection(tiers.ready).login("bob", "ticket-of-alice").code == BAD_TOKEN
        server.shutdown()
    away = TcpConnection(tiers.ready)
    reply = away.login("", "ticket-of-bob")
    assert reply.code == LOGIC_UNAVAILABLE
    # What was verified just now is still good.
    assert TcpConnection(tiers.ready).login("", "ticket-of-alice").code == 0


def rsa_numbers():
    """Modulus, exponent and private exponent of the tests' key, which protects nothing."""
    text = (ROOT / "logic/src/login/testdata/rsa.key").read_text()
    der = base64.b64decode("".join(line for line in text.splitlines() if not line.startswith("-")))

    def value(data):
        """The contents of the first DER value, and what follows it."""
        length, start = data[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[2:start], "big")
        return data[start : start + length], data[start + length :]

    _version, rest = value(value(der)[0])
    _algorithm, rest = value(rest)
    _version, rest = value(value(value(rest)[0])[0])
    numbers = []
    for _ in range(3):
        number, rest = value(rest)
        numbers.append(int.from_bytes(number, "big"))
    return numbers


def text_of(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed_rs256(user_id, kid=None, expires_in=600.0):
    """A token signed with the private half (RFC 8017, PKCS #1 version 1.5)."""
    modulus, _exponent, private = rsa_numbers()
    header = {"alg": "RS256", "typ": "JWT", **({"kid": kid} if kid else {})}
    claims = {"sub": user_id, "exp": int(time.time() + expires_in)}
    signed = ".".join(text_of(json.dumps(part).encode()) for part in (header, claims))
    digest = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(signed.encode()).digest()
    size = (modulus.bit_length() + 7) // 8
    padded = b"\x00\x01" + b"\xff" * (size - len(digest) - 3) + b"\x00" + digest
    signature = pow(int.from_bytes(padded, "big"), private, modulus).to_bytes(size, "big")
    return f"{signed}.{text_of(signature)}"


def restart_with_login(tiers, settings):
    tiers.stop()
    tiers.login_settings = settings
    tiers.start_logic()
    tiers.start_gateway()


def test_tokens_signed_with_a_private_key_are_verified_by_its_public_half(tiers):
    pem = ROOT / "logic/src/login/testdata/rsa.pub"
    restart_with_login(tiers, f'method = "public_key"\npublic_key_file = "{pem}"\n')
    for transport in TRANSPORTS:
        assert transport(tiers.ready).login("alice", signed_rs256("alice")).code == 0
        assert transport(tiers.ready).login("bob", signed_rs256("alice")).code == BAD_TOKEN
        assert transport(tiers.ready).login("alice", signed_rs256("alice", expires_in=-60)).code == TOKEN_EXPIRED
        # Neither the secret of the other method nor the public key as a secret opens anything.
        assert transport(tiers.ready).login("alice", mint_token(JWT_SECRET, "alice")).code == BAD_TOKEN
        assert transport(tiers.ready).login("alice", mint_token(pem.read_text(), "alice")).code == BAD_TOKEN


class KeySet(http.server.BaseHTTPRequestHandler):
    """An SSO's key set."""

    def do_GET(self):
        modulus, exponent, _private = rsa_numbers()
        number = lambda value: text_of(value.to_bytes((value.bit_length() + 7) // 8, "big"))
        key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "sso-1", "n": number(modulus), "e": number(exponent)}
        data = json.dumps({"keys": [key]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_tokens_of_an_sso_are_verified_with_its_key_set_also_while_it_is_away(tiers):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), KeySet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        restart_with_login(tiers, f'method = "jwks"\n[login.jwks]\nurl = "http://127.0.0.1:{server.server_port}/keys"\n')
        for transport in TRANSPORTS:
            assert transport(tiers.ready).login("alice", signed_rs256("alice", "sso-1")).code == 0
            assert transport(tiers.ready).login("alice", signed_rs256("alice", "unheard-of")).code == BAD_TOKEN
            assert transport(tiers.ready).login("alice", mint_token(JWT_SECRET, "alice")).code == BAD_TOKEN
        server.shutdown()
    assert TcpConnection(tiers.ready).login("bob", signed_rs256("bob", "sso-1")).code == 0
