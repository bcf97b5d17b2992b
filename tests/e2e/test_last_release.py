"""The embedded store of the last release, opened by the programs of today: everything is there, and goes on. And its configuration.

last_release.py wrote the directory with the binaries of that release, through their doors.
"""

import json
import os
import subprocess
import tarfile

import pytest

from last_release import ANSWERS, CONFIGURATIONS, PASSWORD, STORE, ask, look, tiers_in
from millrace_client import NOTICE, SEND_MESSAGE, TcpConnection, chat, mint_token, text_message
from processes import API_TOKEN, BINARIES, JWT_SECRET
from test_attachments import PNG, person
from test_security import issued

BAD_TOKEN = 5


@pytest.fixture
def tiers(tmp_path):
    with tarfile.open(STORE) as archive:
        archive.extractall(tmp_path, filter="data")
    tiers = tiers_in(tmp_path)
    tiers.start_logic()
    tiers.start_gateway()
    yield tiers
    tiers.stop()


def missing(then, now, where=""):
    """What was answered then and is not now; whatever was added is nobody's concern."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [found for key in then for found in missing(then[key], now.get(key, "nothing"), f"{where}/{key}")]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [found for index, pair in enumerate(zip(then, now)) for found in missing(*pair, f"{where}/{index}")]
    return [] if then == now else [f"{where}: {then!r} is {now!r}"]


def test_everything_is_answered_as_the_last_release_answered_it(tiers):
    then, now = json.loads(ANSWERS.read_text()), look(tiers)
    assert len(then) > 30
    assert not missing(then, now), "\n".join(missing(then, now)[:20])
    assert missing({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3, "c": 4}]}) == ["/a/1/b: 2 is 3"], "it finds what differs"


def test_what_the_last_release_kept_holds_and_goes_on(tiers):
    # A message that is sent again is known; the next one follows without a gap.
    ann = tiers.connect(TcpConnection, "ann", "another phone")
    again = ask(ann, SEND_MESSAGE, text_message(to="bob", body="to bob 7", client_message_id="ann-7"))
    assert again.duplicate and again.sequence == 15
    single, before = again.conversation_id, 17
    assert ask(ann, SEND_MESSAGE, text_message(to="bob", body="of today")).sequence == before + 1
    # What waited for who was away, and files, passwords and logouts.
    assert ann.wait_for(lambda frame: frame.command == NOTICE).parse(chat.Notice).body == "news"
    bob = tiers.connect(TcpConnection, "bob")
    bodies = []
    while not bodies or bodies[-1] != "of today":
        bodies += [message.body for message in bob.messages(1, timeout=10) if message.conversation_id == single]
    assert len(bodies) == 9 and "to bob 7" in bodies, "what bob has not acknowledged"
    (shown,) = [m for m in json.loads(ANSWERS.read_text())[f"ann pulls {single}"]["messages"] if m["client_message_id"] == "picture"]
    status, _, content = person(tiers.ready, JWT_SECRET, "bob").request("GET", shown["attachment"]["url"])
    assert (status, content) == (200, PNG + bytes(range(256)))
    status, login = tiers.api().call("POST", "/v1/login", {"user_id": "ann", "password": PASSWORD}, token="")
    assert status == 200 and TcpConnection(tiers.ready).login("ann", login["tokens"]["token"], "third").code == 0
    assert TcpConnection(tiers.ready).login("dee", issued(JWT_SECRET, "dee", 1_700_000_000)).code == BAD_TOKEN, "logged out everywhere"
    assert tiers.api().call("GET", "/v1/users/ann/relations/dee")[1]["blocked"]
    # The index is made anew from the store.
    search = lambda: tiers.api().call("POST", "/v1/users/cid/search", {"text": "say"})[1]["messages"]
    tiers.until(lambda: [message["client_message_id"] for message in search()] == ["lonely"], None)
    for connection in (ann, bob):
        connection.close()


def test_the_store_is_still_one_after_kill_9_of_the_new_program(tiers):
    ann = tiers.connect(TcpConnection, "ann", "another phone")
    sequence = ask(ann, SEND_MESSAGE, text_message(to="bob", body="of today", client_message_id="of-today")).sequence
    ann.close()
    tiers.logic.kill()
    tiers.start_logic()
    # A shard whose link is still on its way would say that logic is away.
    tiers.until(tiers.gateway_ready, tiers.gateway)
    again = ask(tiers.connect(TcpConnection, "ann", "another phone"), SEND_MESSAGE, text_message(to="bob", body="of today", client_message_id="of-today"))
    assert (again.sequence, again.duplicate) == (sequence, True)


@pytest.mark.parametrize("program", CONFIGURATIONS)
def test_every_key_of_the_last_release_is_still_understood(program):
    secrets = {"MILLRACE_LOGIN__JWT_SECRET": JWT_SECRET, "MILLRACE_API__TOKEN": API_TOKEN}
    done = subprocess.run([BINARIES / program, "check", "--config", CONFIGURATIONS[program]], env={**os.environ, **secrets}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
