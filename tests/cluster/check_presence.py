"""What the history says about presence, against what the clients know of their own connections. See checker.py.

A look at presence counts against "wrongly offline" only when no fault was at work within `heal_s` (15 s) before it, the session had
been there for `settle_s`, and it was answered something that it asked after the look, so that it certainly lived. It counts against
"wrongly online" only when the user had nothing for `gone_s`: the lease of the gateway and the idle time of a connection, and some.
"""

from __future__ import annotations

import bisect
import collections

OFFLINE, ONLINE = "nobody is wrongly offline", "nobody is wrongly online"


def check(events, verdict):
    bounds = next((event["bounds"] for event in events if event["e"] == "run"), {})
    heal_s, settle_s, gone_s = bounds.get("heal_s", 15.0), bounds.get("settle_s", 3.0), bounds.get("gone_s", 30.0)
    faults = [(event["begin"], event["t"]) for event in events if event["e"] == "fault"]
    sessions = collections.defaultdict(list)
    alive = collections.defaultdict(float)
    # User -> every moment at which something of the user's was or may have been there.
    touched = collections.defaultdict(list)
    ends, open_sessions = {}, {}
    for event in events:
        kind = event["e"]
        if kind == "login":
            sessions[event["user"]].append((event["t"], event["n"]))
            open_sessions[event["n"]] = event["user"]
            touched[event["user"]].append(event["t"])
        elif kind == "end":
            ends[event["n"]] = event["t"]
            touched[open_sessions.pop(event["n"], "")].append(event["t"])
        elif kind == "alive":
            alive[event["n"]] = max(alive[event["n"]], event["asked"])
        elif kind == "attempt":
            # A login whose answer was lost may have made a session, which ended with its connection.
            touched[event["user"]].append(event["t"])
    for moments in touched.values():
        moments.sort()
    last_fault_end = Faults(faults)
    for look in (event for event in events if event["e"] == "presence"):
        online, asked, answered = set(look["online"]), look["asked"], look["t"]
        if not last_fault_end.calm(asked, answered, heal_s):
            continue
        for user in look["users"]:
            if not is_there(user, (asked - gone_s, answered), sessions, ends, touched):
                verdict.saw(ONLINE)
                if user in online:
                    since = gone_for(touched[user], asked)
                    verdict.broken(ONLINE, f"{user} was shown online by {look['where']} {since} after the last sign of one")
            elif (begin := living(sessions[user], ends, alive, asked - settle_s, answered)) is not None:
                verdict.saw(OFFLINE)
                if user not in online:
                    since = f"{asked - begin:.1f} s"
                    verdict.broken(OFFLINE, f"{user}, connected for {since}, was shown offline by {look['where']}")


class Faults:
    """When nothing was wrong."""

    def __init__(self, faults):
        self.faults = sorted(faults)
        self.begins = [begin for begin, _ in self.faults]
        self.latest = []
        latest = float("-inf")
        for _, end in self.faults:
            latest = max(latest, end)
            self.latest.append(latest)

    def calm(self, asked, answered, heal_s):
        index = bisect.bisect_right(self.begins, answered)
        return index == 0 or self.latest[index - 1] + heal_s <= asked


def living(sessions, ends, alive, since, until):
    """The begin of a session that was there all the time, or None."""
    for begin, number in sessions:
        if begin <= since and ends.get(number, float("inf")) > until and alive[number] > until:
            return begin
    return None


def is_there(user, span, sessions, ends, touched):
    """Whether anything of this user was or may have been there in this time."""
    since, until = span
    if any(begin <= until and ends.get(number, float("inf")) > since for begin, number in sessions[user]):
        return True
    index = bisect.bisect_left(touched[user], since)
    return index < len(touched[user]) and touched[user][index] <= until


def gone_for(moments, at):
    index = bisect.bisect_right(moments, at)
    return f"{at - moments[index - 1]:.1f} s" if index else "long"
