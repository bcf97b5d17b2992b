"""Searching in messages through the real binaries: every door, what must not be found, crashes, and words in names."""

import shutil
import time

import grpc
import pytest

from millrace_client import (
    BAD_REQUEST, LOGIC_UNAVAILABLE, NOT_PERMITTED, RATE_LIMITED, REPLY_TYPES, SEND_MESSAGE, TRANSPORTS, JsonConnection, Refused,
    TcpConnection, api_messages, api_services, chat, mint_token, text_message,
)
from processes import API_TOKEN, JWT_SECRET, metric

SEARCH_MESSAGES, REVOKE, DELETE, CREATE_GROUP, REMOVE_FROM_GROUP = 0x020D, 0x0206, 0x0207, 0x0110, 0x0117
REPLY_TYPES.update({SEARCH_MESSAGES: chat.SearchReply, REVOKE: chat.RevokeReply, DELETE: chat.DeleteReply})
PATIENCE_S = 60


def ask(connection, text="", **fields):
    return connection.request(SEARCH_MESSAGES, chat.SearchMessages(text=text, **fields))


def found(connection, expected, text="", **fields):
    """Asks until exactly these bodies are found: the index follows a moment later."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        bodies = None
        try:
            reply = ask(connection, text, **fields)
            assert reply.code == 0, reply.reason
            bodies = [message.body for message in reply.messages]
            if bodies == expected and not reply.behind:
                return reply
        except Refused as refused:
            assert refused.code in (LOGIC_UNAVAILABLE, RATE_LIMITED), refused.reason
        assert time.monotonic() < deadline, f"{text!r}: {bodies} instead of {expected}"
        time.sleep(0.1)


def say(connection, body, **where):
    reply = connection.request(SEND_MESSAGE, text_message(body=body, **where))
    assert reply.code == 0, reply.reason
    return reply


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_text_sender_type_and_time_are_searched_over_what_the_user_sees(dev, transport):
    alice, bob, carol = dev.user(), dev.user(), dev.user()
    at_alices, at_bobs, at_carols = (dev.connect(transport, user) for user in (alice, bob, carol))
    first = say(at_alices, "明天下午在北京大学开会", to=bob)
    time.sleep(0.01)  # another millisecond, so that times tell them apart
    say(at_bobs, "The Meeting is in 北京 then", to=alice)
    say(at_bobs, "I told nobody about 北京", to=carol)
    both = ["The Meeting is in 北京 then", "明天下午在北京大学开会"]
    reply = found(at_alices, both, "北京")
    assert reply.complete and [message.sequence for message in reply.messages] == [2, 1]
    found(at_alices, both[:1], "meeti")
    found(at_alices, both[1:], "大学开会")
    found(at_alices, [], "京大会")
    found(at_carols, ["I told nobody about 北京"], "北京")
    found(at_bobs, ["I told nobody about 北京", *both], "北京")
    found(at_bobs, both[1:], sender_id=alice)
    found(at_bobs, both[1:], "北京", to_ms=reply.messages[0].sent_at_ms, conversation_id=first.conversation_id)
    found(at_alices, both[:1], from_ms=reply.messages[0].sent_at_ms)
    found(at_alices, [], types=[3])
    # Pages.
    page = found(at_bobs, ["I told nobody about 北京"], "北京", limit=1)
    assert not page.complete
    found(at_bobs, both, "北京", limit=2, before=page.next)
    for question, code in [
        ({"text": "?!"}, BAD_REQUEST), ({"text": "x" * 257}, BAD_REQUEST), ({"types": range(17)}, BAD_REQUEST),
        ({"from_ms": 2, "to_ms": 1}, BAD_REQUEST), ({"conversation_id": "g:none"}, NOT_PERMITTED),
        ({"conversation_id": first.conversation_id}, NOT_PERMITTED),
    ]:
        reply = ask(at_carols, **question)
        assert (reply.code, bool(reply.reason)) == (code, True), question


def test_what_is_revoked_deleted_or_not_the_users_is_never_found(dev):
    alice, bob, late = dev.user(), dev.user(), dev.user()
    at_alices, at_bobs, at_lates = (dev.connect(TcpConnection, user) for user in (alice, bob, late))
    group = f"search-{alice}"
    created = at_alices.request(CREATE_GROUP, chat.CreateGroup(group_id=group, name="search", members=[bob])).parse(
        chat.GroupActReply
    )
    here = {"conversation_id": created.conversation_id}
    sent = [say(at_alices, f"needle {name}", group=group) for name in ("one", "two", "three")]
    found(at_bobs, ["needle three", "needle two", "needle one"], "needle", **here)
    revoke = chat.Revoke(conversation_id=created.conversation_id, sequence=sent[0].sequence)
    assert at_alices.request(REVOKE, revoke).code == 0
    # At once: the index is only asked for candidates.
    assert "needle one" not in [message.body for message in ask(at_bobs, "needle", **here).messages]
    delete = chat.Delete(conversation_id=created.conversation_id, sequences=[sent[1].sequence])
    assert at_bobs.request(DELETE, delete).code == 0
    assert [message.body for message in ask(at_bobs, "needle", **here).messages] == ["needle three"]
    found(at_alices, ["needle three", "needle two"], "needle", **here)
    # Who comes later finds what is said from then on, who goes what was said until then.
    assert dev.api.call("POST", f"/v1/groups/{group}/members", {"user_ids": [late]})[0] == 200
    say(at_alices, "needle four", group=group)
    found(at_lates, ["needle four"], "needle", **here)
    remove = chat.RemoveFromGroup(group_id=group, user_ids=[late])
    assert at_alices.request(REMOVE_FROM_GROUP, remove).parse(chat.GroupActReply).code == 0
    say(at_alices, "needle five", group=group)
    found(at_alices, ["needle five", "needle four", "needle three", "needle two"], "needle", **here)
    found(at_lates, ["needle four"], "needle", **here)
    found(at_lates, ["needle four"], "needle")


def test_every_door_answers_alike(tiers):
    at_alices = tiers.connect(TcpConnection, "alice")
    say(at_alices, "a word with you", to="bob")
    over_tcp = found(at_alices, ["a word with you"], "word")
    at_json = JsonConnection(tiers.ready)
    at_json.request("login", {"user_id": "alice", "token": mint_token(JWT_SECRET, "alice"), "device_id": "web"})
    over_json = at_json.request("search_messages", {"text": "word"})
    assert over_json["messages"][0]["body"] == "a word with you"
    api = tiers.api()
    assert metric(f"http://127.0.0.1:{tiers.free_port('logic-admin')}", "millrace_logic_search_messages") == 1
    status, over_http = api.call("POST", "/v1/users/alice/search", {"text": "word"})
    assert status == 200 and over_http["messages"][0]["message_id"] == over_tcp.messages[0].message_id
    status, refused = api.call("POST", "/v1/users/alice/search", {"text": "word", "conversation_id": "g:x"})
    assert (status, refused["code"]) == (403, NOT_PERMITTED)
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{tiers.free_port('grpc')}", options=options) as channel:
        service = api_services.SearchServiceStub(channel)
        metadata = [("authorization", f"Bearer {API_TOKEN}")]
        request = api_messages.SearchMessagesRequest(user_id="alice", search=chat.SearchMessages(text="word"))
        reply = service.SearchMessages(request, metadata=metadata, timeout=10)
        assert [message.body for message in reply.messages] == ["a word with you"]
        with pytest.raises(grpc.RpcError) as without_token:
            service.SearchMessages(request, timeout=10)
        assert without_token.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_killed_logic_and_a_lost_index_find_everything_again(tiers):
    at_alices = tiers.connect(TcpConnection, "alice")
    say(at_alices, "stored before the first search", to="bob")
    found(at_alices, ["stored before the first search"], "stored")
    for number in range(20):
        say(at_alices, f"stored {number}", to="bob")
    # Nothing of the last moments was committed to the index.
    tiers.logic.kill()
    tiers.start_logic()
    expected = [f"stored {number}" for number in reversed(range(20))] + ["stored before the first search"]
    tiers.until(lambda: tiers.api().call("GET", "/v1/users/alice/presence")[1].get("online"), tiers.logic)
    found(at_alices, expected, "stored", limit=50)
    tiers.logic.kill()
    (index,) = [path for path in tiers.folder.rglob("search") if (path / "meta.json").exists()]
    shutil.rmtree(index)
    tiers.start_logic()
    tiers.until(lambda: tiers.api().call("GET", "/v1/users/alice/presence")[1].get("online"), tiers.logic)
    found(at_alices, expected, "stored", limit=50)
