"""Users with a password (row T3 of the mission): registration, login, tokens, profiles, search, over HTTP and gRPC,
and that a token so got is good at the gateway."""

import importlib
import time

import grpc
import pytest

from millrace_client import (
    PULL_CONVERSATIONS, SEND_MESSAGE, Api, JsonConnection, TcpConnection, WebSocketConnection, chat, text_message,
)
from processes import API_TOKEN

messages = importlib.import_module("millrace.api.v1.users_pb2")
services = importlib.import_module("millrace.api.v1.users_pb2_grpc")

BAD_TOKEN, RATE_LIMITED, NOT_FOUND, NOT_PERMITTED, BAD_REQUEST = 5, 9, 16, 17, 18
ALREADY_EXISTS, BAD_CREDENTIALS = 22, 31
PASSWORD = "correct horse battery"


def call(ready, method, path, body=None, token=""):
    """Calls without a token unless one is given."""
    return Api(ready).call(method, path, body, token=token)


def register(dev, **fields):
    user_id = dev.user()
    status, body = call(dev.ready, "POST", "/v1/users", {"user_id": user_id, "password": PASSWORD, **fields})
    assert status == 200, (status, body)
    return user_id, body


@pytest.mark.parametrize("transport", [TcpConnection, WebSocketConnection])
def test_a_user_registers_logs_in_and_the_gateway_takes_the_token(dev, transport):
    user_id, registered = register(dev, name="Ada", avatar="https://example.org/a.png", extra='{"likes": "engines"}')
    assert registered["user"]["name"] == "Ada" and "password" not in str(registered)
    status, login = call(dev.ready, "POST", "/v1/login", {"user_id": user_id, "password": PASSWORD})
    assert status == 200 and login["user"]["user_id"] == user_id
    for tokens in (registered["tokens"], login["tokens"]):
        assert int(tokens["expires_at_ms"]) > time.time() * 1000
        connection = transport(dev.ready)
        assert connection.login(user_id, tokens["token"], f"device-{tokens['token'][-8:]}").code == 0
        assert connection.request(SEND_MESSAGE, text_message(to=user_id, body="a note")).code == 0
        connection.close()


def test_the_token_is_good_for_the_json_form_and_for_nobody_else(dev):
    user_id, registered = register(dev)
    connection = JsonConnection(dev.ready)
    body = {"user_id": user_id, "token": registered["tokens"]["token"], "device_id": "d", "platform": "test"}
    assert int(connection.request("login", body).get("code", 0)) == 0
    connection.close()
    other = TcpConnection(dev.ready)
    assert other.login("somebody-else", registered["tokens"]["token"]).code == BAD_TOKEN


def test_an_id_is_taken_once_and_bad_input_is_named(dev):
    user_id, _ = register(dev)
    status, body = call(dev.ready, "POST", "/v1/users", {"user_id": user_id, "password": PASSWORD})
    assert (status, body["code"]) == (409, ALREADY_EXISTS) and "taken" in body["reason"]
    for fields, word in [
        ({"user_id": "ab"}, "user_id"), ({"user_id": "with space"}, "user_id"), ({"user_id": "a/b/c"}, "user_id"),
        ({"user_id": "x" * 65}, "user_id"), ({"password": "short"}, "password"), ({"password": "x" * 257}, "password"),
        ({"name": "a\nb"}, "name"), ({"user_id": "same-same", "password": "same-same"}, "password"),
    ]:
        status, body = call(dev.ready, "POST", "/v1/users", {"user_id": dev.user(), "password": PASSWORD, **fields})
        assert (status, body["code"]) == (400, BAD_REQUEST), (fields, body)
        assert word in body["reason"], (fields, body)
    status, body = call(dev.ready, "POST", "/v1/users", {"password": PASSWORD, "name": "n" * 300})
    assert (status, body["code"]) == (413, 3)


def test_a_wrong_name_and_a_wrong_password_are_the_same_refusal(dev):
    user_id, _ = register(dev)
    refusals = [
        call(dev.ready, "POST", "/v1/login", {"user_id": name, "password": password})
        for name, password in [(user_id, "wrong"), ("nobody-" + user_id, PASSWORD), (user_id, ""), ("", "")]
    ]
    assert all(refusal == refusals[0] for refusal in refusals), refusals
    assert refusals[0][0] == 401 and refusals[0][1]["code"] == BAD_CREDENTIALS


def test_guessing_is_slowed_down_for_the_account_alone(dev):
    victim, _ = register(dev)
    other, _ = register(dev)
    wrong = {"user_id": victim, "password": "guess"}
    answers = [call(dev.ready, "POST", "/v1/login", wrong) for _ in range(12)]
    assert [body["code"] for _, body in answers[:10]] == [BAD_CREDENTIALS] * 10
    assert (answers[-1][0], answers[-1][1]["code"]) == (429, RATE_LIMITED)
    assert call(dev.ready, "POST", "/v1/login", {"user_id": victim, "password": PASSWORD})[0] == 429
    assert call(dev.ready, "POST", "/v1/login", {"user_id": other, "password": PASSWORD})[0] == 200


def test_refresh_tokens_are_good_once_and_a_copy_ends_the_login(dev):
    user_id, registered = register(dev)
    first = registered["tokens"]["refresh_token"]
    status, body = call(dev.ready, "POST", "/v1/token/refresh", {"refresh_token": first})
    assert status == 200 and body["user"]["user_id"] == user_id
    second = body["tokens"]["refresh_token"]
    assert second != first
    connection = TcpConnection(dev.ready)
    assert connection.login(user_id, body["tokens"]["token"]).code == 0
    status, body = call(dev.ready, "POST", "/v1/token/refresh", {"refresh_token": second})
    assert status == 200
    third = body["tokens"]["refresh_token"]
    # The first is older than the one before the newest: unknown.
    for bad in (first, "", "x", third[:-2]):
        status, body = call(dev.ready, "POST", "/v1/token/refresh", {"refresh_token": bad})
        assert (status, body["code"]) == (401, BAD_TOKEN), bad
    assert call(dev.ready, "POST", "/v1/token/revoke", {"refresh_token": third})[0] == 200
    assert call(dev.ready, "POST", "/v1/token/refresh", {"refresh_token": third})[0] == 401


def test_a_new_password_ends_sessions_and_refresh_tokens(dev):
    user_id, registered = register(dev)
    token = registered["tokens"]["token"]
    connection = TcpConnection(dev.ready)
    assert connection.login(user_id, token).code == 0
    path = f"/v1/users/{user_id}/password"
    status, body = call(dev.ready, "POST", path, {"old_password": "wrong", "new_password": "another password"}, token)
    assert (status, body["code"]) == (401, BAD_CREDENTIALS)
    status, body = call(dev.ready, "POST", path, {"old_password": PASSWORD, "new_password": "x"}, token)
    assert (status, body["code"]) == (400, BAD_REQUEST)
    status, body = call(dev.ready, "POST", path, {"old_password": PASSWORD, "new_password": "another password"}, token)
    assert status == 200, body
    connection.wait_closed()
    # Tokens of before are good no more, at no door; the new one is.
    assert call(dev.ready, "GET", "/v1/users/me", token=token)[1]["code"] == BAD_TOKEN
    again = TcpConnection(dev.ready)
    assert again.login(user_id, token).code == BAD_TOKEN
    new = body["tokens"]["token"]
    assert call(dev.ready, "GET", "/v1/users/me", token=new)[0] == 200
    connection = TcpConnection(dev.ready)
    assert connection.login(user_id, new).code == 0
    old = registered["tokens"]["refresh_token"]
    assert call(dev.ready, "POST", "/v1/token/refresh", {"refresh_token": old})[0] == 401
    assert call(dev.ready, "POST", "/v1/token/refresh", {"refresh_token": body["tokens"]["refresh_token"]})[0] == 200
    assert call(dev.ready, "POST", "/v1/login", {"user_id": user_id, "password": PASSWORD})[0] == 401
    assert call(dev.ready, "POST", "/v1/login", {"user_id": user_id, "password": "another password"})[0] == 200
    # A service resets a forgotten one without the old.
    status, body = dev.api.call("POST", path, {"new_password": "a third password"})
    assert status == 200 and not body.get("tokens"), body
    assert call(dev.ready, "POST", "/v1/login", {"user_id": user_id, "password": "a third password"})[0] == 200


def test_profiles_are_seen_by_users_and_changed_by_their_owner(dev):
    ada, registered = register(dev, name="Ada")
    bob, bobs = register(dev, name="Bob")
    token, bobs_token = registered["tokens"]["token"], bobs["tokens"]["token"]
    status, body = call(dev.ready, "PATCH", "/v1/users/me", {"name": "Ada L."}, token)
    assert status == 200 and body["name"] == "Ada L." and body["user_id"] == ada
    status, body = call(dev.ready, "GET", f"/v1/users/{ada}", token=bobs_token)
    assert (status, body["name"]) == (200, "Ada L.")
    status, body = call(dev.ready, "PATCH", f"/v1/users/{ada}", {"name": "Eve"}, bobs_token)
    assert (status, body["code"]) == (403, NOT_PERMITTED)
    status, body = dev.api.call("PATCH", f"/v1/users/{ada}", {"extra": "by the service"})
    assert (status, body["extra"], body["name"]) == (200, "by the service", "Ada L.")
    assert call(dev.ready, "GET", "/v1/users/nobody-at-all", token=token)[1]["code"] == NOT_FOUND
    for path in ("/v1/users/me", "/v1/users?prefix=a"):
        status, body = call(dev.ready, "GET", path)
        assert (status, body["code"]) == (401, BAD_TOKEN)
        assert call(dev.ready, "GET", path, token="nonsense")[0] == 401


def test_a_users_token_opens_nothing_of_the_services(dev):
    user_id, registered = register(dev)
    token = registered["tokens"]["token"]
    for method, path, body in [
        ("POST", "/v1/groups", {"members": [user_id]}), ("POST", f"/v1/users/{user_id}/kick", {}),
        ("POST", "/v1/messages", {"sender_id": "bob", "user_id": user_id, "client_message_id": "1", "type": 1}),
    ]:
        status, answer = call(dev.ready, method, path, body, token)
        assert (status, answer["code"]) == (401, BAD_TOKEN), path


def test_search_pages_by_id_and_by_name(dev):
    tag = f"s{time.time_ns() % 10**9}"
    for index in range(5):
        status, _ = dev.api.call("POST", "/v1/users", {"user_id": f"{tag}-{index}", "name": f"Name {index}"})
        assert status == 200
    status, _ = dev.api.call("POST", "/v1/users", {"user_id": f"z-{tag}", "name": tag.upper() + " by name"})
    assert status == 200
    _, registered = register(dev)
    token = registered["tokens"]["token"]
    found, after = [], ""
    while True:
        status, page = call(dev.ready, "GET", f"/v1/users?prefix={tag}&limit=2&after={after}", token=token)
        assert status == 200 and len(page["users"]) <= 2, page
        found += [user["user_id"] for user in page["users"]]
        after = page["next"]
        if not after:
            break
    assert found == [f"{tag}-{index}" for index in range(5)] + [f"z-{tag}"]
    assert call(dev.ready, "GET", "/v1/users?prefix=", token=token)[1]["code"] == BAD_REQUEST
    assert call(dev.ready, "GET", "/v1/users?prefix=a&limit=x", token=token)[1]["code"] == BAD_REQUEST


def test_users_survive_a_killed_logic_and_the_same_over_grpc(tiers):
    with grpc.insecure_channel(f"127.0.0.1:{tiers.free_port('grpc')}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        accounts = services.AccountServiceStub(channel)
        registered = accounts.RegisterUser(
            messages.RegisterUserRequest(user_id="grace", password=PASSWORD, name="Grace"), timeout=10
        )
        assert registered.user.name == "Grace" and registered.tokens.token
        with pytest.raises(grpc.RpcError) as refused:
            accounts.LoginUser(messages.LoginUserRequest(user_id="grace", password="wrong"), timeout=10)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert dict(refused.value.trailing_metadata())["millrace-code"] == str(BAD_CREDENTIALS)
        mine = [("authorization", f"Bearer {registered.tokens.token}")]
        updated = accounts.UpdateUser(messages.UpdateUserRequest(user_id="me", name="Grace H."), metadata=mine, timeout=5)
        assert (updated.user_id, updated.name) == ("grace", "Grace H.")
        service = [("authorization", f"Bearer {API_TOKEN}")]
        found = accounts.SearchUsers(messages.SearchUsersRequest(prefix="GRA"), metadata=service, timeout=5)
        assert [user.name for user in found.users] == ["Grace H."]
    tiers.logic.kill()
    tiers.start_logic()
    status, login = call(tiers.ready, "POST", "/v1/login", {"user_id": "grace", "password": PASSWORD})
    assert (status, login["user"]["name"]) == (200, "Grace H.")
    status, body = call(tiers.ready, "POST", "/v1/token/refresh", {"refresh_token": registered.tokens.refresh_token})
    assert status == 200, body


def test_closed_registration_leaves_it_to_services(tmp_path):
    from processes import Tiers

    tiers = Tiers(tmp_path)
    tiers.logic_settings = '[users]\nregistration = "closed"\n'
    tiers.start_logic()
    try:
        body = {"user_id": "linus", "password": PASSWORD}
        status, answer = call(tiers.ready, "POST", "/v1/users", body)
        assert (status, answer["code"]) == (403, NOT_PERMITTED)
        assert tiers.api().call("POST", "/v1/users", body)[0] == 200
        assert call(tiers.ready, "POST", "/v1/login", body)[0] == 200
    finally:
        tiers.stop()


def test_conversations_are_called_by_the_others_name(dev):
    ada, registered = register(dev, name="Ada", avatar="https://example.org/ada.png")
    stranger = dev.user()
    bob, _ = register(dev)
    connection = dev.connect(TcpConnection, bob)
    for other in (ada, stranger):
        assert connection.request(SEND_MESSAGE, text_message(to=other)).code == 0

    def names():
        rows = connection.request(PULL_CONVERSATIONS, chat.PullConversations()).conversations
        return [(row.user_id, row.name, row.avatar) for row in rows]

    assert names() == [(ada, "Ada", "https://example.org/ada.png"), (stranger, stranger, "")]
    assert call(dev.ready, "PATCH", "/v1/users/me", {"name": "Ada L."}, registered["tokens"]["token"])[0] == 200
    assert names()[0][:2] == (ada, "Ada L.")


def test_what_is_not_a_call_is_refused_in_json(dev):
    for method, path, status, code in [
        ("DELETE", "/v1/login", 405, BAD_REQUEST), ("PUT", "/v1/users/x/friends", 405, BAD_REQUEST),
        ("PATCH", "/v1/upload", 405, BAD_REQUEST), ("GET", "/v1/user", 404, NOT_FOUND),
    ]:
        found, body = call(dev.ready, method, path)
        assert (found, body["code"]) == (status, code), (method, path)
    status, body = call(dev.ready, "POST", "/v1/login", [1])
    assert (status, body["code"]) == (400, BAD_REQUEST)
