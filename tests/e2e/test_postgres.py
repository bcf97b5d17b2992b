"""The same chat with everything on PostgreSQL, and what two logic processes see of each other on one database.

The tests named in `ON_POSTGRES` are those of the embedded store, run again with the fixtures of this file."""

import json
import subprocess
import threading
import time
from contextlib import ExitStack

import pytest

import test_chat
import test_friends
import test_groups
import test_messages
import test_push
import test_room_directory
import test_users
from millrace_client import (
    LOGIC_UNAVAILABLE, PULL_MESSAGES, SEND_MESSAGE, Refused, TcpConnection, WebSocketConnection, chat, mint_token, text_message,
)
from postgres_server import PostgresServer
from test_friends import BLOCKED
from test_security import issued
from processes import API_TOKEN, BINARIES, JWT_SECRET, Dev, Tiers, metric

ON_POSTGRES = {
    test_chat: [
        "test_message_is_stored_acknowledged_delivered_and_read",
        "test_both_users_share_one_conversation_and_its_sequence",
        "test_retry_with_the_same_client_message_id_is_stored_once",
        "test_offline_user_finds_the_messages_later",
        "test_messages_acknowledged_on_one_device_are_not_pushed_again",
        "test_every_device_of_both_users_sees_the_message_once",
        "test_unread_counts_only_counting_messages_of_others_after_the_read_cursor",
        "test_conversations_come_by_version_so_that_a_client_asks_for_changes_only",
        "test_group_message_reaches_members_online_and_offline",
        "test_group_rules_membership_and_history",
        "test_http_message_goes_the_same_way_and_is_deduplicated",
        "test_pulls_of_others_conversations_are_refused",
    ],
    test_messages: [
        "test_a_revoked_message_is_gone_on_every_device_online_or_not",
        "test_a_deleted_message_is_hidden_from_one_user_on_all_devices",
        "test_messages_are_forwarded_in_order_merged_and_once",
        "test_what_is_not_stored_is_live_and_what_is_over_is_hidden",
        "test_history_over_grpc_and_after_kill_9_of_logic",
    ],
    test_groups: [
        "test_a_group_run_by_its_people_tells_everybody_the_same",
        "test_services_page_through_members_conversations_and_receipts",
    ],
    test_users: [
        "test_a_user_registers_logs_in_and_the_gateway_takes_the_token",
        "test_an_id_is_taken_once_and_bad_input_is_named",
        "test_refresh_tokens_are_good_once_and_a_copy_ends_the_login",
        "test_a_new_password_ends_sessions_and_refresh_tokens",
        "test_profiles_are_seen_by_users_and_changed_by_their_owner",
        "test_search_pages_by_id_and_by_name",
        "test_users_survive_a_killed_logic_and_the_same_over_grpc",
        "test_conversations_are_called_by_the_others_name",
    ],
    test_friends: [
        "world",
        "test_a_request_is_heard_accepted_and_listed_on_both_sides",
        "test_a_device_that_was_away_finds_what_changed_by_its_version",
        "test_a_blocked_sender_is_refused_until_unblocked",
    ],
    test_push: [
        "test_every_device_gets_a_notice_and_who_was_away_gets_it_at_the_next_login_until_acknowledged",
        "test_a_notice_id_is_pushed_once_and_a_collapse_key_leaves_the_newest",
        "test_notices_states_and_acknowledgements_survive_kill_9_of_logic",
    ],
    test_room_directory: [
        "test_accounts_are_in_their_closed_room_wherever_they_log_in_and_nobody_else_is",
        "test_the_limit_of_its_maker_holds_for_accounts_of_a_closed_room_and_sessions_of_an_open_one",
    ],
}
for module, names in ON_POSTGRES.items():
    for name in names:
        globals()[name] = getattr(module, name)


def on_postgres(folder, url):
    """Tiers whose logic keeps everything in a database."""
    folder.mkdir()
    tiers = Tiers(folder)
    tiers.logic_settings = "[search]\nenabled = false\n"
    tiers.store_settings = f'kind = "postgres"\n[store.postgres]\nurl = "{url}"\nfollow_interval = "100ms"\n'
    return tiers


class AsDev:
    """Tiers with the words of `millrace dev`."""

    user, connect, token = Dev.user, Dev.connect, Dev.token

    def __init__(self, tiers):
        self.tiers = tiers
        self.ready = tiers.ready
        self.api = tiers.api()

    def metric(self, name):
        return metric(self.ready["admin"], name)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("postgres")
    server = PostgresServer(folder, durable=False)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def dev(tmp_path_factory, server):
    tiers = on_postgres(tmp_path_factory.mktemp("on-postgres") / "tiers", server.database("dev"))
    with ExitStack() as ends:
        ends.callback(tiers.stop)
        tiers.start_logic()
        tiers.start_gateway()
        yield AsDev(tiers)


@pytest.fixture
def database(server, request):
    return server.database(f"test_{abs(hash(request.node.nodeid))}")


@pytest.fixture
def tiers(tmp_path, database):
    tiers = on_postgres(tmp_path / "tiers", database)
    with ExitStack() as ends:
        ends.callback(tiers.stop)
        tiers.start_logic()
        tiers.start_gateway()
        yield tiers


def test_nothing_is_kept_beside_the_database(tiers, tmp_path):
    """Another logic process, on another machine with an empty directory, finds everything."""
    api = tiers.api()
    alice = tiers.connect(TcpConnection, "alice")
    sent = alice.request(SEND_MESSAGE, text_message(to="bob", body="kept"))
    group_id, _ = api.create_group(["alice", "bob"], name="kept")
    assert api.call("POST", "/v1/users", {"user_id": "carol", "password": "a good password", "name": "Carol"})[0] == 200
    assert api.call("POST", "/v1/rooms", {"room_id": "hall", "name": "Hall", "closed": True, "user_ids": ["alice"]})[0] == 200
    assert api.call("POST", "/v1/push", {"notice_id": "n1", "type": 1, "body": "{}", "targets": {"user_ids": ["bob"]}})[0] == 200
    tiers.gateway.terminate()
    tiers.logic.kill()

    (tmp_path / "other").mkdir()
    tiers.folder = tmp_path / "other"
    tiers.start_logic()
    tiers.start_gateway()
    bob = tiers.connect(WebSocketConnection, "bob")
    pulled = bob.request(PULL_MESSAGES, chat.PullMessages(conversation_id=sent.conversation_id))
    assert [message.body for message in pulled.messages] == ["kept"]
    assert api.call("GET", f"/v1/groups/{group_id}")[1]["name"] == "kept"
    assert api.call("POST", "/v1/login", {"user_id": "carol", "password": "a good password"})[0] == 200
    assert api.call("GET", "/v1/rooms/hall")[1]["name"] == "Hall"
    assert api.call("GET", "/v1/push/n1")[1]["targets"] == "1"
    logic_admin = f"http://127.0.0.1:{tiers.free_port('logic-admin')}"
    assert metric(logic_admin, "millrace_logic_store_connections_max") > 1
    assert metric(logic_admin, "millrace_logic_store_given_up_total") == 0


def test_two_logic_processes_share_a_database_and_hear_of_each_other(tmp_path, database):
    with ExitStack() as ends:
        both = []
        for name in ("one", "two"):
            tiers = on_postgres(tmp_path / name, database)
            ends.callback(tiers.stop)
            tiers.start_logic()
            tiers.start_gateway()
            both.append(tiers)
        one, two = both
        # Messages of one conversation through both: one sequence without a gap, each stored once.
        alice, bob = one.connect(TcpConnection, "alice"), two.connect(TcpConnection, "bob")
        sequences = []
        for index in range(20):
            sender, to = (alice, "bob") if index % 2 == 0 else (bob, "alice")
            sequences.append(sender.request(SEND_MESSAGE, text_message(to=to, body=f"message {index}")).sequence)
        assert sequences == list(range(1, 21))
        # Who blocks somebody here is obeyed there, a moment later.
        call = lambda tiers, method, path, body=None, **more: tiers.api().call(method, path, body, **more)
        for user in ("alice", "bob"):
            assert call(one, "POST", "/v1/users", {"user_id": user, "password": "a good password"})[0] == 200
        assert call(two, "PUT", "/v1/users/me/blocks/alice", token=mint_token(JWT_SECRET, "bob"))[0] == 200

        def code():
            return alice.request(SEND_MESSAGE, text_message(to="bob", body="are you there?")).code

        two.until(lambda: code() == BLOCKED, None)
        # A room of one process is known to the other, also to who makes it at the same moment.
        hall = {"room_id": "hall", "closed": True, "user_ids": ["alice"]}
        assert call(one, "POST", "/v1/rooms", hall)[0] == 200
        assert call(two, "POST", "/v1/rooms", hall)[0] == 409
        two.until(lambda: call(two, "GET", "/v1/rooms/hall")[0] == 200, None)
        # Who logs out everywhere here does not get in there with the token of before.
        old = issued(JWT_SECRET, "dora", time.time() - 1)
        assert TcpConnection(two.ready).login("dora", old).code == 0
        assert call(one, "POST", "/v1/users/dora/logout", {"reason": "a lost phone"})[0] == 200
        two.until(lambda: TcpConnection(two.ready).login("dora", old).code != 0, None)


def test_a_restart_of_the_database_under_load_loses_nothing_that_was_acknowledged(tmp_path):
    folder = tmp_path / "postgres"
    folder.mkdir()
    with ExitStack() as ends:
        server = PostgresServer(folder)
        ends.callback(server.stop)
        tiers = on_postgres(tmp_path / "tiers", server.database())
        ends.callback(tiers.stop)
        tiers.start_logic()
        tiers.start_gateway()
        is_over, acknowledged, waits, refusals, failures = threading.Event(), {}, [], [], []

        def send(sender):
            """Sends again what was not acknowledged, with the same id, as a client does."""
            try:
                connection, number = tiers.connect(TcpConnection, sender), 0
                while not is_over.is_set():
                    number += 1
                    message_id = f"{sender}-{number}"
                    began, message = time.monotonic(), text_message(to="sink", client_message_id=message_id, body=message_id)
                    while True:
                        try:
                            reply = connection.request(SEND_MESSAGE, message, timeout=60)
                            break
                        except Refused as refusal:
                            assert refusal.code == LOGIC_UNAVAILABLE and time.monotonic() - began < 60, refusal
                            refusals.append(refusal.code)
                            time.sleep(0.05)
                    assert reply.code == 0, reply
                    acknowledged[message_id] = reply.sequence
                    waits.append((began, time.monotonic() - began))
            except Exception as error:  # noqa: BLE001 - shown by the test
                failures.append(error)

        threads = [threading.Thread(target=send, args=(f"sender-{index}",)) for index in range(6)]
        for thread in threads:
            thread.start()
        outages = []
        for at_once in (False, True, True):
            time.sleep(1.5)
            before = len(acknowledged)
            began = time.monotonic()
            server.stop(at_once)
            away = time.monotonic()
            server.start()
            back = time.monotonic()
            tiers.until(lambda: len(acknowledged) > before + 50, None, seconds=60)
            outages.append({
                "at_once": at_once, "stopping_s": round(away - began, 2), "starting_s": round(back - away, 2),
                "longest_wait_s": round(max(wait for at, wait in waits if at >= began - 10), 2),
            })
        is_over.set()
        for thread in threads:
            thread.join()
        assert not failures, failures
        print(json.dumps({"acknowledged": len(acknowledged), "refused": len(refusals), "outages": outages}))
        # Every acknowledged message is there, once, under the sequence its sender was told.
        sink = tiers.connect(TcpConnection, "sink")
        stored = {}
        for index in range(6):
            sender, after = f"sender-{index}", 0
            conversation_id = sorted_single(sender, "sink")
            while True:
                page = sink.request(PULL_MESSAGES, chat.PullMessages(conversation_id=conversation_id, from_sequence=after + 1, limit=100))
                for message in page.messages:
                    after += 1
                    assert message.sequence == after, "a gap"
                    assert message.client_message_id not in stored, "stored twice"
                    stored[message.client_message_id] = message.sequence
                if not page.messages:
                    break
        assert stored == acknowledged


def sorted_single(one, other):
    """The id of a single chat."""
    first, second = sorted((one, other))
    return f"s:{len(first)}:{first}:{second}"


def test_a_start_that_cannot_work_says_what_is_missing(tmp_path, server):
    """Each with a sentence that names the key or the command."""
    server.query("postgres", "CREATE DATABASE bare")
    url = server.url("bare")

    def refused(*sections):
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        path = folder / "logic.toml"
        path.write_text(
            "\n".join(sections) + f'\n[link]\nlisten = "127.0.0.1:0"\n[http]\nlisten = ""\n[grpc]\nlisten = ""\n[admin]\nlisten = ""\n'
            f'[api]\ntoken = "{API_TOKEN}"\n[login]\njwt_secret = "{JWT_SECRET}"\n'
        )
        done = subprocess.run([BINARIES / "millrace-logic", "run", "--config", path], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, done.stderr
        return done.stderr

    store = lambda url, more="": f'[store]\nkind = "postgres"\ndirectory = "{tmp_path / "own"}"\n[store.postgres]\nurl = "{url}"\n{more}'
    no_search = "[search]\nenabled = false"
    assert "store.postgres.url" in refused(store(""), no_search)
    assert "millrace-logic migrate" in refused(store(url), no_search)
    away = refused(store("postgresql://postgres@127.0.0.1:1/x", 'attempts_max = 1\n'), no_search)
    assert "error connecting" in away or "refused" in away, away
    subprocess.run([BINARIES / "millrace-logic", "migrate"], check=True, env={"MILLRACE_STORE__POSTGRES__URL": url})
    assert "search.enabled" in refused(store(url))
