"""Live rooms whose members have their homes at two logic processes, behind gateways that are linked to both."""

from contextlib import ExitStack

import pytest

from millrace_client import JOIN_ROOM, LEAVE_ROOM, NOTICE, ROOM_MESSAGE, TRANSPORTS, chat
from nats import Nats
from postgres_server import PostgresServer
from processes import Tiers, metric
from redis_server import RedisServer
from test_rooms import hear, hears_nothing, join, say

USERS = [f"user-{number}" for number in range(12)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Two logic processes on one store, registry and NATS; two gateways, each with links to both."""
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as ends:
        nats = Nats(folder)
        ends.callback(nats.stop)
        redis = RedisServer(folder)
        ends.callback(redis.stop)
        postgres = PostgresServer(folder, durable=False)
        ends.callback(postgres.stop)
        url = postgres.database("fleet")
        both = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            tiers = Tiers(folder / name, gateway_section=f'id = "gateway-{name}"\nshards = 2\n')
            tiers.logic_settings = (
                f'[search]\nenabled = false\n[registry]\nkind = "redis"\n[registry.redis]\nurls = ["{redis.url}"]\n'
                f'[peers]\nkind = "nats"\n[bus.nats]\nservers = ["{nats.url}"]\n'
            )
            tiers.link_settings = f'logic_id = "logic-{name}"\n'
            tiers.store_settings = f'kind = "postgres"\n[store.postgres]\nurl = "{url}"\nfollow_interval = "100ms"\n'
            ends.callback(tiers.stop)
            tiers.start_logic()
            both.append(tiers)
        for tiers in both:
            tiers.logic_links = [other.free_port("link") for other in both]
            tiers.start_gateway()
        yield both


@pytest.fixture
def people(fleet):
    """Twelve users on two gateways by all transports, whose homes are both logics."""
    connections = {
        user: fleet[number % 2].connect(TRANSPORTS[number % len(TRANSPORTS)], user) for number, user in enumerate(USERS)
    }
    sessions = [metric(f"http://127.0.0.1:{tiers.free_port('logic-admin')}", "millrace_logic_sessions") for tiers in fleet]
    assert sum(sessions) == len(USERS) and min(sessions) > 0, sessions
    yield connections
    for connection in connections.values():
        connection.close()
    for tiers in fleet:
        tiers.until(lambda tiers=tiers: metric(tiers.ready["admin"], "millrace_sessions") == 0, None)


def test_members_hear_each_other_once_whatever_their_homes_and_are_counted_together(fleet, people):
    for connection in people.values():
        assert join(connection, "hall").code == 0
    for user, connection in people.items():
        say(connection, "hall", f"from {user}")
    for user, connection in people.items():
        heard = hear(connection, len(USERS) - 1)
        assert sorted(message.sender_id for message in heard) == sorted(set(USERS) - {user})
    for connection in people.values():
        hears_nothing(connection)
    # The number of members is that of the fleet, a moment later.
    speaker = people[USERS[0]]
    fleet[0].until(lambda: join(speaker, "hall").members == len(USERS), None)
    for tiers in fleet:
        tiers.until(lambda tiers=tiers: tiers.api().call("GET", "/v1/rooms/hall")[1]["members"] == str(len(USERS)), None)
        said = tiers.api().call("POST", "/v1/rooms/hall/messages", {"sender_id": "host", "type": 1, "body": "from a service"})
        assert (said[0], said[1]["members"]) == (200, str(len(USERS)))
        for connection in people.values():
            assert [message.body for message in hear(connection, 1)] == ["from a service"]
    for connection in people.values():
        connection.request(LEAVE_ROOM, chat.LeaveRoom(room_id="hall"))
    for tiers in fleet:
        tiers.until(lambda tiers=tiers: tiers.api().call("GET", "/v1/rooms/hall")[0] == 404, None)


def test_what_is_for_everyone_reaches_the_sessions_of_every_home_once(fleet, people):
    for tiers in fleet:
        broadcast = tiers.api().call("POST", "/v1/broadcast", {"type": 1, "body": "to all"})
        assert broadcast[0] == 200, broadcast
        for connection in people.values():
            notice = connection.wait_for(lambda frame: frame.command == NOTICE, 20).parse(chat.Notice)
            assert (notice.notice_id, notice.body) == (broadcast[1]["notice_id"], "to all")
    for connection in people.values():
        hears_nothing(connection)
        assert [frame for frame in connection.inbox if frame.command == NOTICE] == []
    counts = lambda tiers: tiers.api().call("POST", "/v1/broadcast", {"type": 1, "body": "count"})[1]["sessions"]
    for tiers in fleet:
        tiers.until(lambda tiers=tiers: counts(tiers) == str(len(USERS)), None)


def test_a_closed_room_made_at_one_home_takes_and_loses_members_of_the_other(fleet, people):
    one, two = fleet
    call = lambda tiers, method, path, body=None: tiers.api().call(method, path, body)
    for connection in people.values():
        join(connection, "club")
    accounts, others = USERS[:6], USERS[6:]
    assert call(one, "POST", "/v1/rooms", {"room_id": "club", "closed": True, "user_ids": accounts})[0] == 200
    members = lambda tiers: call(tiers, "GET", "/v1/rooms/club")[1].get("members")
    for tiers in fleet:
        tiers.until(lambda tiers=tiers: members(tiers) == "6", None)
    say(people[accounts[0]], "club", "members only")
    for user in accounts[1:]:
        assert [message.body for message in hear(people[user], 1)] == ["members only"]
    for user in others:
        hears_nothing(people[user])
    # Who is added or taken out at the other process comes or goes wherever their home is.
    assert call(two, "POST", "/v1/rooms/club/accounts", {"user_ids": others})[0] == 200
    assert call(two, "DELETE", "/v1/rooms/club/accounts", {"user_ids": accounts})[0] == 200
    # Six were members before, too, so it is asked who they are; each home names all accounts, and counts its own sessions.
    page = lambda tiers: call(tiers, "GET", "/v1/rooms/club/members")[1]["members"]
    here = lambda tiers: [member["user_id"] for member in page(tiers) if int(member["sessions"])]
    one.until(lambda: sorted(here(one) + here(two)) == sorted(others), None)
    for tiers in fleet:
        tiers.until(lambda tiers=tiers: members(tiers) == "6", None)
    say(people[others[0]], "club", "all change")
    for user in others[1:]:
        assert [message.body for message in hear(people[user], 1)] == ["all change"]
    for user in accounts:
        hears_nothing(people[user])
    assert call(two, "DELETE", "/v1/rooms/club")[0] == 200
    for tiers in fleet:
        tiers.until(lambda tiers=tiers: call(tiers, "GET", "/v1/rooms/club")[0] == 404, None)
