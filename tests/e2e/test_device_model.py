"""The comparison at the end of the scenario finds what is different: each way in which a device could be wrong is planted."""

import pytest

from device import DELETED, REVOKED, Device, View
from millrace_client import chat
from town import differ

ME, OTHER, CHAT = "ann", "ben", "s:3:ann:ben"


def message(sequence, sender=OTHER, **fields):
    return chat.Message(
        conversation_id=CHAT, conversation_type=1, sequence=sequence, message_id=f"id-{sequence}", sender_id=sender, type=1,
        body=f"number {sequence}", sent_at_ms=1000 + sequence, **fields)


def history():
    """What the server holds: an own message, two to be read, of which one calls me by name, and a revoked one."""
    gone = message(3)
    gone.body, gone.state, gone.revoked_by = "", REVOKED, OTHER
    named = message(4, mentions=chat.Mentions(user_ids=[ME]))
    messages = {1: message(1, ME), 2: message(2), 3: gone, 4: named}
    row = chat.Conversation(
        conversation_id=CHAT, type=1, unread=2, max_sequence=4, read_sequence=1, do_not_disturb=True, mentioned_sequence=4)
    start = chat.Conversation(conversation_id=CHAT, type=1, max_sequence=4)
    return {ME: {CHAT: (row, messages)}, OTHER: {CHAT: (start, messages)}}


def device():
    """A device that is right, with messages of its own."""
    device, view = Device({}, ME, "", "phone", "tcp"), View()
    for sequence, one in history()[ME][CHAT][1].items():
        view.messages[sequence] = one
    view.read, view.do_not_disturb = 1, True
    view.cursor(OTHER, 3, 1)
    device.views[CHAT] = view
    return device


CURSORS = {CHAT: {ME: (4, 1), OTHER: (3, 1)}}


def test_a_device_that_is_right_differs_in_nothing():
    assert list(differ(device(), history(), CURSORS)) == []


def lost(view):
    del view.messages[2]


def invented(view):
    view.messages[5] = message(5)


def changed(view):
    view.messages[2].body = "something else"


def not_revoked(view):
    view.messages[3] = message(3)


def deleted_here_alone(view):
    view.bury(2, DELETED)


def set_here_alone(view):
    view.do_not_disturb = False


def read_here_alone(view):
    view.read = 2


def left_here_alone(view):
    view.quit, view.quit_reason = True, 1


def behind_about_the_other(view):
    view.cursors[OTHER] = [3, 0]


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lost, "message 2 is only there"), (invented, "message 5 is only here"), (changed, "message 2: here"),
        (not_revoked, "message 3: here"), (deleted_here_alone, "message 2: here"), (deleted_here_alone, "1 unread here, 2 there"),
        (set_here_alone, "do_not_disturb is False here"), (read_here_alone, "read 2, init 0 here, 1, 0 there"),
        (left_here_alone, "quit is True here"), (behind_about_the_other, "ben has got and read [3, 0] here, [3, 1] there"),
    ],
)
def test_each_way_to_be_wrong_is_found(plant, said):
    wrong = device()
    plant(wrong.views[CHAT])
    found = list(differ(wrong, history(), CURSORS))
    assert any(said in difference for difference in found), found


def test_a_conversation_on_one_side_alone_and_a_lost_call_by_name_are_found():
    wrong = device()
    wrong.views["s:3:ann:eve"] = View()
    assert any("only on one side" in difference for difference in differ(wrong, history(), CURSORS))
    server = history()
    server[ME][CHAT][0].mentioned_sequence = 0
    assert any("called by name in 4 here" in difference for difference in differ(device(), server, CURSORS))
