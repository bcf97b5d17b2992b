"""The checker itself: a good history is accepted, and for each promise a small history that breaks it is refused by its name."""

import copy

import pytest

from checker import PROMISES, check

GROUP = "g:town"
ONE = "s:alice:bob"


class Story:
    """A history, told event by event; it begins as a good one."""

    def __init__(self):
        self.events = []
        self.time = 0.0
        self.add("run", wall=1000.0, bounds={"heal_s": 15.0, "settle_s": 3.0, "gone_s": 30.0})
        self.add("life", node="logic1", life=1, act="start")
        self.add("group", conversation=GROUP, members=["alice", "bob", "carol"])

    def add(self, kind, /, **fields):
        self.time += 0.1
        self.events.append({"e": kind, "t": round(self.time, 3), **fields})
        return self.events[-1]

    def login(self, user, number, gateway="gw1", act="started"):
        self.add("login", n=number, c=f"{user}/1", user=user, device="1", gateway=gateway, sid=number, asked=self.time)
        self.session(user, number, act, gateway)

    def session(self, user, number, act, gateway="gw1", node="logic1", life=1, code=None):
        at_ms = next(round((1000.0 - 0.1 + e["t"]) * 1000) for e in self.events if e["e"] == "login" and e["n"] == number)
        self.add("session", node=node, life=life, act=act, gateway=gateway, shard=0, sid=number, at_ms=at_ms, user=user, device="1", code=code)

    def send(self, user, cmid, to):
        self.add("send", n=1, c=f"{user}/1", user=user, cmid=cmid, to=to, body="text of " + cmid, intended=self.time)

    def reply(self, user, cmid, conversation, sequence, dup=False, mid=None, code=0):
        self.add("reply", n=1, c=f"{user}/1", user=user, cmid=cmid, code=code, conv=conversation, seq=sequence, mid=mid or "m-" + cmid, dup=dup)

    def message(self, conversation, sequence, sender, cmid, mid=None, body=None):
        return [conversation, sequence, mid or "m-" + cmid, sender, cmid, body or "text of " + cmid]

    def got(self, user, number, *messages, how="push"):
        self.add("msgs", n=number, c=f"{user}/1", user=user, how=how, list=list(messages))

    def looked(self, online, users=("alice", "bob", "carol", "dave")):
        self.add("presence", where="logic1", asked=self.time, users=list(users), online=list(online))


def good():
    """Three users talk, a fault comes and goes, one leaves; dave belongs to nothing and was gone long ago."""
    story = Story()
    for number, user in enumerate(("alice", "bob", "carol"), 1):
        story.login(user, number)
    one, two, three = (story.message(ONE, 1, "alice", "a1"), story.message(GROUP, 1, "bob", "b1"), story.message(GROUP, 2, "alice", "a2"))
    story.send("alice", "a1", {"user": "bob"})
    story.reply("alice", "a1", ONE, 1)
    story.got("bob", 2, one)
    story.send("bob", "b1", {"group": "town"})
    story.reply("bob", "b1", GROUP, 1)
    story.send("alice", "a2", {"group": "town"})
    story.reply("alice", "a2", GROUP, 2)
    story.send("alice", "a2", {"group": "town"})
    story.reply("alice", "a2", GROUP, 2, dup=True)
    story.got("alice", 1, two)
    story.got("bob", 2, three)
    story.got("carol", 3, two, three)
    story.add("read", user="carol", conv=GROUP, seq=2, code=0)
    story.add("fault", id=1, kind="kill", target="gw1", begin=story.time)
    story.add("end", n=3, why="closed")
    story.session("carol", 3, "ended", code="closed")
    for user, number in (("alice", 1), ("bob", 2)):
        story.add("alive", n=number, user=user, asked=200.0)
    story.time = 100.0
    story.looked(["alice", "bob"])
    for user in ("alice", "bob"):
        story.add("device_end", c=f"{user}/1", user=user, connected=True, n={"alice": 1, "bob": 2}[user])
    story.add("device_end", c="carol/1", user="carol", connected=False, n=None)
    for user in ("alice", "bob", "carol"):
        story.got(user, 9, two, three, how="final")
        story.add("final", user=user, conv=GROUP, sequences=[1, 2], read=2 if user == "carol" else 0)
    for user in ("alice", "bob"):
        story.got(user, 9, one, how="final")
        story.add("final", user=user, conv=ONE, sequences=[1], read=None)
    return story


def verdict(story):
    return check(sorted(story.events, key=lambda event: event["t"]))


def find(story, kind, /, **fields):
    return next(e for e in story.events if e["e"] == kind and all(e.get(name) == value for name, value in fields.items()))


def before_the_end(story, act):
    """Does something to the story before its clients were asked."""
    rest = [event for event in story.events if event["t"] > 100.0]
    story.events = [event for event in story.events if event["t"] <= 100.0]
    story.time = 50.0
    act(story)
    story.events += rest


def acknowledged_and_lost(story):
    before_the_end(story, lambda story: (story.send("bob", "b2", {"group": "town"}), story.reply("bob", "b2", GROUP, 3)))


def stored_twice(story):
    for user in ("alice", "bob", "carol"):
        story.got(user, 9, story.message(GROUP, 3, "alice", "a2", mid="m-other"), how="final")
        find(story, "final", user=user, conv=GROUP)["sequences"].append(3)
    for device, number in (("alice", 1), ("bob", 2)):
        before_the_end(story, lambda story: story.got(device, number, story.message(GROUP, 3, "alice", "a2", mid="m-other")))


def acknowledged_twice_as_new(story):
    find(story, "reply", cmid="a2", dup=True)["dup"] = False


def another_place_for_a_repeat(story):
    find(story, "reply", cmid="a2", dup=True)["seq"] = 3


def a_gap(story):
    find(story, "final", user="carol", conv=GROUP)["sequences"] = [2]


def two_truths(story):
    find(story, "msgs", user="carol", how="push")["list"][0][2] = "m-other"


def out_of_order(story):
    find(story, "msgs", user="carol", how="push")["list"].reverse()


def sequence_before_an_older_one(story):
    story.events.remove(find(story, "send", cmid="b1"))
    story.time = find(story, "reply", cmid="a2", dup=True)["t"]
    reply = find(story, "reply", cmid="b1")
    story.events.remove(reply)
    story.time += 0.01 - 0.1
    story.send("bob", "b1", {"group": "town"})
    story.reply("bob", "b1", GROUP, 1)


def never_arrived(story):
    story.events.remove(find(story, "msgs", user="alice", how="push"))


def shown_to_a_stranger(story):
    before_the_end(story, lambda story: (story.login("eve", 7), story.got("eve", 7, story.message(GROUP, 1, "bob", "b1")),
                                         story.add("end", n=7, why="left"), story.session("eve", 7, "ended", code="closed")))


def made_up(story):
    for user in ("alice", "bob"):
        story.got(user, 9, story.message(ONE, 2, "bob", "nobody-sent-this"), how="final")
        find(story, "final", user=user, conv=ONE)["sequences"].append(2)
        number = {"alice": 1, "bob": 2}[user]
        before_the_end(story, lambda story: story.got(user, number, story.message(ONE, 2, "bob", "nobody-sent-this")))


def another_text(story):
    find(story, "msgs", user="bob", how="push")["list"][0][5] = "another text"


def a_cursor_back(story):
    find(story, "final", user="carol", conv=GROUP)["read"] = 1


def a_cursor_too_far(story):
    before_the_end(story, lambda story: story.add("read", user="bob", conv=GROUP, seq=1, code=0))
    find(story, "final", user="bob", conv=GROUP)["read"] = 2


def offline_though_connected(story):
    find(story, "presence")["online"].remove("bob")


def online_though_gone(story):
    find(story, "presence")["online"].append("carol")


def an_end_twice(story):
    before_the_end(story, lambda story: story.session("carol", 3, "ended", code="closed"))


def an_end_twice_in_the_fleet(story):
    before_the_end(story, lambda story: (
        story.add("life", node="logic2", life=1, act="start"), story.session("carol", 3, "listed", node="logic2"),
        story.session("carol", 3, "ended", node="logic2", code="closed")))


def an_end_not_known(story):
    story.events.remove(find(story, "session", act="ended"))


def the_end_of_a_living_session(story):
    before_the_end(story, lambda story: story.session("bob", 2, "ended", code="idle_timeout"))


def two_homes(story):
    before_the_end(story, lambda story: (
        story.add("life", node="logic2", life=1, act="start"), story.session("bob", 2, "listed", node="logic2")))


BREAKS = {
    acknowledged_and_lost: "acknowledged messages are stored",
    stored_twice: "a message is stored once",
    acknowledged_twice_as_new: "a message is stored once",
    another_place_for_a_repeat: "a message is stored once",
    a_gap: "sequences have no gap",
    two_truths: "all see the same",
    sequence_before_an_older_one: "sequences follow time",
    out_of_order: "pushes are in order",
    never_arrived: "messages arrive",
    shown_to_a_stranger: "only members see",
    made_up: "nothing is made up",
    another_text: "nothing is made up",
    a_cursor_back: "cursors move forward",
    a_cursor_too_far: "cursors move forward",
    offline_though_connected: "nobody is wrongly offline",
    online_though_gone: "nobody is wrongly online",
    an_end_twice: "a session ends once",
    an_end_twice_in_the_fleet: "a session ends once",
    an_end_not_known: "a session's end is known",
    the_end_of_a_living_session: "a session's end is known",
    two_homes: "a session's end is known",
}


def test_a_good_history_is_accepted():
    found = verdict(good())
    assert found.kept, "\n".join(found.lines())
    assert all(found.checked[promise] for promise in PROMISES), "every promise was looked at"


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda function: function.__name__)
def test_a_history_that_breaks_a_promise_is_refused_by_its_name(break_it):
    story = copy.deepcopy(good())
    break_it(story)
    found = verdict(story)
    assert BREAKS[break_it] in found.broken_promises, "\n".join(found.lines())


def test_every_promise_has_a_history_that_breaks_it():
    assert set(BREAKS.values()) == set(PROMISES)


def test_an_empty_history_proves_nothing():
    assert not check([]).kept


def test_presence_is_not_judged_while_a_fault_is_at_work_or_shortly_after():
    story = good()
    offline_though_connected(story)
    story.events.append({"e": "fault", "t": 90.0, "id": 2, "kind": "cut", "target": "gw1", "begin": 88.0})
    found = verdict(story)
    assert not found.broken_promises and not found.checked["nobody is wrongly offline"]


def test_a_connection_that_was_not_heard_of_after_the_look_is_not_taken_for_living():
    story = good()
    offline_though_connected(story)
    find(story, "alive", user="bob")["asked"] = 99.0
    assert "nobody is wrongly offline" not in verdict(story).broken_promises


def test_a_message_that_was_never_acknowledged_may_be_stored_or_not():
    story = good()
    before_the_end(story, lambda story: story.send("bob", "b9", {"group": "town"}))
    assert verdict(story).kept
    for user in ("alice", "bob", "carol"):
        story.got(user, 9, story.message(GROUP, 3, "bob", "b9"), how="final")
        find(story, "final", user=user, conv=GROUP)["sequences"].append(3)
    for device, number in (("alice", 1), ("bob", 2)):
        before_the_end(story, lambda story: story.got(device, number, story.message(GROUP, 3, "bob", "b9")))
    found = verdict(story)
    assert found.kept, "\n".join(found.lines())


def test_what_was_pushed_before_may_be_pushed_again():
    story = good()
    again = find(story, "msgs", user="carol", how="push")
    before_the_end(story, lambda story: story.got("carol", 3, *again["list"]))
    assert verdict(story).kept


def test_what_a_device_has_sent_itself_may_be_pushed_to_it_behind_newer_messages():
    story = good()
    before_the_end(story, lambda story: (
        story.send("bob", "b3", {"group": "town"}), story.reply("bob", "b3", GROUP, 3),
        story.got("alice", 1, story.message(GROUP, 3, "bob", "b3")), story.got("carol", 3, story.message(GROUP, 3, "bob", "b3")),
        story.got("bob", 1, story.message(GROUP, 3, "bob", "b3")), story.got("alice", 1, story.message(GROUP, 2, "alice", "a2"))))
    for user in ("alice", "bob", "carol"):
        story.got(user, 9, story.message(GROUP, 3, "bob", "b3"), how="final")
        find(story, "final", user=user, conv=GROUP)["sequences"].append(3)
    found = verdict(story)
    assert found.kept, "\n".join(found.lines())


def test_a_restarted_gateway_may_give_the_same_session_id_to_the_same_device():
    story = good()
    before_the_end(story, lambda story: (
        story.login("bob", 8), story.add("end", n=8, why="lost"), story.session("bob", 8, "ended", code="peer_gone"), story.login("bob", 9)))
    for event in story.events:
        if event["e"] in ("login", "session") and event["sid"] == 9:
            event["sid"] = 8
    find(story, "device_end", c="bob/1")["n"] = 9
    story.events.append({"e": "end", "t": 45.0, "n": 2, "why": "lost"})
    old = find(story, "session", sid=2, act="started")
    story.events.append({**old, "t": 45.1, "act": "ended", "code": "peer_gone"})
    find(story, "alive", n=2)["n"] = 9
    found = verdict(story)
    assert found.kept, "\n".join(found.lines())


def test_a_process_that_was_cut_off_may_give_up_sessions_that_go_on_elsewhere():
    story = good()
    before_the_end(story, lambda story: (
        story.add("life", node="logic2", life=1, act="start"), story.session("bob", 2, "listed", node="logic2"),
        story.session("bob", 2, "ended", code="peer_gone")))
    found = verdict(story)
    assert found.kept, "\n".join(found.lines())


def test_where_an_older_program_writes_no_sessions_their_homes_are_not_judged_and_it_says_so():
    """The process ended in order, as in an upgrade, and comes back as a program that writes nothing."""
    def goes_back(story, **silent):
        story.add("life", node="logic1", life=1, act="drained")
        story.add("life", node="logic1", life=2, act="start", **silent)

    story = good()
    before_the_end(story, lambda story: goes_back(story, silent=True))
    verdict = check(story.events)
    assert verdict.state("a session's end is known") == "not looked at" and verdict.kept, list(verdict.lines())
    assert "logic1 (life 2)" in verdict.excused["a session's end is known"]
    story = good()
    before_the_end(story, goes_back)
    assert "a session's end is known" in check(story.events).broken_promises, "one that could write them has to"
