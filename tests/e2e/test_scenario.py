"""A product's day, through the real binaries: 50 people register, befriend, write to each other and in groups with two
devices each, send files, are offline now and then, revoke, delete, forward, mute, block and kick; logic is killed in the
middle. At the end every device shows what the server's history holds, and that is what was done.

What is done is drawn at random from a seed, which is printed: MILLRACE_SEED=… repeats it, MILLRACE_SEED=random draws one.
Each thing is done at least once. Nothing waits for a time; what is expected is waited for.
"""

import collections
import os
import random
import time

import pytest

from device import DELETED, EXPIRED, NORMAL, REVOKE, REVOKED, Device, Offline, state_of
from millrace_client import LOGIC_UNAVAILABLE, RATE_LIMITED, READ, SEND_MESSAGE, chat, session
from processes import Tiers
from town import Town

PEOPLE, GROUPS = 50, 6
STEPS_BEFORE, STEPS_AFTER = 300, 120

KINDS = {
    "write": 60, "write_without_counting": 4, "answer": 10, "write_and_repeat": 4, "write_what_expires": 4, "write_live": 3,
    "send_a_file": 12, "open_a_file": 6, "look": 25, "revoke": 8, "revoke_what_another_said": 4, "delete": 8, "forward": 6,
    "forward_as_one": 3, "set_do_not_disturb": 4, "pin": 3, "type_something": 2, "write_to_a_stranger": 2,
    "write_to_a_group_of_others": 2, "block": 5, "end_a_friendship": 2, "found_a_group": 2, "mute": 5, "remove": 3,
    "leave": 3, "invite": 5, "announce": 2, "appoint": 2, "dissolve": 1, "go_offline": 12, "come_online": 16, "kick": 2,
    "a_service_writes": 3,
}


def live_a_while(town, steps):
    """Everything once, in random order, and then as it comes."""
    kinds = list(KINDS)
    town.random.shuffle(kinds)
    # Some need others to have been done: they come round again, while life goes on.
    for _ in range(100):
        kinds = [kind for kind in kinds if not town.step(kind, tries=20)]
        if not kinds:
            break
        town.step(town.random.choices(list(KINDS), KINDS.values())[0])
    assert not kinds, f"never possible: {kinds}"
    for number in range(steps):
        town.step(town.random.choices(list(KINDS), KINDS.values())[0])
        if number % 10 == 0:
            town.pump()


def kill_logic_under_way(town):
    """Logic dies with messages, revocations and reads under way; what was not answered is done again."""
    tiers, chance = town.tiers, town.random
    under_way = []

    def begin(device, command, message):
        under_way.append((device, command, message, device.post(command, message)))

    def write(devices):
        for device in devices:
            device.pump()
            target = device.online and town.target(device)
            if target:
                begin(device, SEND_MESSAGE, town.new_send(body="while it dies", **target))

    writers = chance.sample(town.online(), 24)
    write(writers[:12])
    # Once the first answer is there, some of it is stored and some is not; and of this nothing may be:
    device, _, _, request_id = under_way[0]
    first = device.wait(request_id, 30)
    write(writers[12:])
    for device in writers[:4]:
        found = town.some_message(device, lambda message: message.sender_id == device.user_id)
        if found:
            begin(device, REVOKE, chat.Revoke(conversation_id=found[0], sequence=found[1].sequence))
    for device in writers[4:8]:
        views = [c for c, view in device.views.items() if not view.quit and view.messages and town.is_open(device, c)]
        if views:
            begin(device, READ, chat.Read(conversation_id=chance.choice(views), sequence=1))
    tiers.logic.kill()
    # Meanwhile some go away, and one who comes is told to try again.
    idle = [device for device in town.online() if device not in writers]
    for gone in chance.sample(idle, 6):
        gone.disconnect()
    away = chance.choice([device for device in town.all_devices() if not device.online])
    code, reason = away.try_to_connect()
    if code:
        assert code == LOGIC_UNAVAILABLE and reason
    away.disconnect()
    tiers.start_logic()
    for number, (device, command, message, request_id) in enumerate(under_way):
        try:
            answer = first if number == 0 else device.wait(request_id, 10)
        except Offline:
            answer = None
        if answer is None or isinstance(answer, session.Error):
            assert answer is None or answer.code in (LOGIC_UNAVAILABLE, RATE_LIMITED), f"{device}: {answer}"
            town.done["asked again"] += 1
            answer = device.request(command, message, flags=4)
        assert answer.code == 0, f"{device}: {message}: {answer}"
        if command == SEND_MESSAGE:
            town.note(device.user_id, message, answer)
            device.sent(message, answer)
        elif command == REVOKE:
            town.revoked.add((message.conversation_id, message.sequence))
        else:
            key = (device.user_id, message.conversation_id)
            town.read[key] = max(town.read[key], 1)
    town.done["logic was killed"] += 1
    # The link came back; an app in the foreground looks at its list then, since logic may have died before it
    # told what was revoked, read or set a moment before.
    for device in town.online():
        device.come_back()


def check_what_was_done(town, histories):
    """The server's histories hold what people did: all of it, once, and nothing else."""
    places = {}
    for (sender, client_message_id), sent in town.sent.items():
        place = (sent.conversation_id, sent.sequence)
        assert places.setdefault(place, sent) is sent, f"two messages at {place}"
    now_ms = time.time() * 1000
    seen = collections.defaultdict(dict)
    for user_id, history in histories.items():
        for conversation_id, (row, messages) in history.items():
            expected = range(row.init_sequence + 1, max(row.init_sequence, row.max_sequence) + 1)
            assert sorted(messages) == list(expected), f"{user_id}: {conversation_id} has gaps"
            for sequence, message in messages.items():
                place = (conversation_id, sequence)
                if message.state == NORMAL:
                    other = seen[place].setdefault("message", message)
                    assert other == message, f"{place} is not the same for everybody"
                if message.system:
                    continue
                assert (message.sender_id, message.client_message_id) not in town.refused, f"{place} was refused"
                if message.state == REVOKED and place not in places:
                    raise AssertionError(f"{place} was never sent")
                sent = places[place]
                assert (sent.sender, sent.message_id) == (message.sender_id, message.message_id), place
                revoked = place in town.revoked
                deleted = (user_id, *place) in town.deleted
                wanted = REVOKED if revoked else DELETED if deleted else NORMAL
                is_over = message.state == EXPIRED and wanted in (NORMAL, DELETED)
                assert message.state == wanted or is_over, f"{user_id}: {place} is {message.state}, not {wanted}"
                assert message.state != NORMAL or message.body == sent.body, place
                assert not 0 < message.expires_at_ms < now_ms - 5_000, f"{place} should be over"
    for (sender, client_message_id), sent in town.sent.items():
        row, messages = histories[sender][sent.conversation_id]
        # Those who left and came back see only what came after.
        if sent.sequence > row.init_sequence:
            assert messages[sent.sequence].message_id == sent.message_id, f"{client_message_id} of {sender} is lost"
    for (user_id, conversation_id), sequence in town.read.items():
        row, _ = histories[user_id][conversation_id]
        assert row.read_sequence >= sequence or row.init_sequence >= sequence, f"{user_id}: {conversation_id} was read"
    for (user_id, conversation_id, setting), value in town.settings.items():
        assert getattr(histories[user_id][conversation_id][0], setting) == value, (user_id, conversation_id, setting)
    for group in town.groups:
        for user_id in group.members | group.gone:
            row, _ = histories[user_id][group.conversation_id]
            assert row.quit == (user_id in group.gone), f"{user_id} in {group.id}"


@pytest.fixture
def tiers(tmp_path):
    tiers = Tiers(tmp_path)
    # Half of the groups are above the bound of the write fan-out. Passwords cost little here: what they cost is
    # shown elsewhere, and this is a build without optimisation in CI.
    tiers.logic_settings = (
        '[friends]\nsend_policy = "friends"\n[messages]\nrevoke_limit = "1h"\nexpiry_interval = "100ms"\n'
        '[users]\nargon2_memory = "64KiB"\nargon2_iterations = 1\n'
        'registrations_per_address_burst_max = 1000\ncalls_per_second_max = 1000\ncalls_burst_max = 2000\n'
    )
    tiers.store_settings = "fan_out_members_max = 10\n"
    tiers.gateway_connections = 'idle_timeout = "60s"\nheartbeat_interval = "5s"\n'
    tiers.start_logic()
    tiers.start_gateway()
    yield tiers
    tiers.stop()


def seed():
    given = os.environ.get("MILLRACE_SEED", "20261121")
    return random.randrange(1 << 32) if given == "random" else int(given)


@pytest.mark.timeout(600)
def test_every_device_shows_the_servers_history_after_a_products_day(tiers):
    number = seed()
    print(f"MILLRACE_SEED={number}")
    started = time.monotonic()
    town = Town(tiers, PEOPLE, number)
    town.register()
    pairs = {tuple(sorted((one, (one + step) % PEOPLE))) for one in range(PEOPLE) for step in (1, 7)}
    for one, other in sorted(pairs):
        town.befriend(town.people[one], town.people[other])
    for device in town.all_devices():
        town.connect(device)
    for index in range(GROUPS):
        owner = town.devices[town.people[index]][0]
        assert town.found_a_group(owner, size=6 if index % 2 else 16)
    print(f"{time.monotonic() - started:.1f} s: everybody is there")

    live_a_while(town, STEPS_BEFORE)
    # Who was never away has pulled nothing but gaps: what is pushed is enough.
    assert any(device.unbroken for device in town.online())
    town.agree()
    print(f"{time.monotonic() - started:.1f} s: those who are online agree, {sum(d.unbroken for d in town.online())} by pushes alone")

    kill_logic_under_way(town)
    for _ in range(STEPS_AFTER):
        town.step(town.random.choices(list(KINDS), KINDS.values())[0])
    for device in town.all_devices():
        if not device.online:
            town.connect(device)
    histories = town.agree()
    check_what_was_done(town, histories)
    for user_id, (phone, laptop) in town.devices.items():
        assert phone.friends == laptop.friends == town.friends[user_id], f"the friends of {user_id}"
        for view in phone.views.values():
            for message in view.messages.values():
                if state_of(message) == NORMAL and message.HasField("attachment"):
                    town.download(phone, message.attachment)
    # An app that is installed now finds the same.
    for user_id in town.random.sample(town.people, 5):
        fresh = Device(tiers.ready, user_id, town.tokens[user_id], "new", "tcp")
        fresh.connect()
        town.devices[user_id].append(fresh)
    town.agree()
    print(f"{time.monotonic() - started:.1f} s: {len(town.sent)} messages; {dict(town.done)}")
