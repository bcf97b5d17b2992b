"""What the history says about sessions as the logic processes heard of them, from their log. See checker.py.

A line of the log names a session by gateway, shard, session id and login time. `started`, `listed` and `ended` are the calls that
logic got; a process's table dies with it, so each life of a process is looked at by itself, and what is open in a life that still runs
at the end of the history is compared with what the clients know. If one of them runs an older program that writes no such lines
(`silent`), there is nothing to compare with.
"""

from __future__ import annotations

import collections

ENDS_ONCE, KNOWN = "a session ends once", "a session's end is known"
# A process that was cut off takes its sessions for gone with their gateway, while they go on at another: that is not the session's end.
LEASE_CODES = ("peer_gone",)
# A gateway that started again gives the same session ids again; a client's session is told by its login time, which a server noted
# between the client's question and its answer. Wall and monotonic clock are compared once a run.
CLOCKS_S = 0.05


def check(events, verdict):
    run = next((event for event in events if event["e"] == "run"), {})
    bounds = run.get("bounds", {})
    gone_s = bounds.get("gone_s", 30.0)
    logs = [event for event in events if event["e"] == "session"]
    if not logs:
        for promise in (ENDS_ONCE, KNOWN):
            verdict.excuse(promise, "no logic process wrote its sessions to its log")
        return
    looked_at = looked_at_of(events)
    open_in, open_when_looked = collections.defaultdict(set), {}
    ended_for_good = collections.Counter()
    owners = {}
    for event in logs:
        life, key, act = (event["node"], event["life"]), session_key(event), event["act"]
        owners[key] = f"{event['user']}/{event['device']}"
        if event["t"] > looked_at and not open_when_looked:
            open_when_looked = {life: set(keys) for life, keys in open_in.items()}
        if act in ("started", "listed"):
            if key in open_in[life]:
                verdict.broken(ENDS_ONCE, f"{name(life)} heard of the start of {key} twice without an end")
            open_in[life].add(key)
        elif act in ("ended", "moved"):
            verdict.saw(ENDS_ONCE)
            if key not in open_in[life]:
                verdict.broken(ENDS_ONCE, f"{name(life)} heard of the end of {key} ({event.get('code')}), which it did not have or had ended")
            open_in[life].discard(key)
            if act == "ended" and event.get("code") not in LEASE_CODES:
                ended_for_good[key] += 1
                if ended_for_good[key] == 2:
                    verdict.broken(ENDS_ONCE, f"the end of {key} was heard twice in the fleet")
    living = living_lives(events, looked_at)
    silent = {(event["node"], event["life"]) for event in events if event["e"] == "life" and event.get("silent")}
    if living & silent:
        verdict.excuse(KNOWN, f"{name(min(living & silent))} writes no sessions to its log")
        return
    homes = collections.defaultdict(list)
    for life, keys in (open_when_looked or open_in).items():
        if life in living:
            for key in keys:
                homes[key].append(life)
    compare(events, run, homes, owners, (looked_at, gone_s), verdict)


def session_key(event):
    return f"{event['gateway']}/{event['shard']}/{event['sid']}@{event['at_ms']}"


def name(life):
    return f"{life[0]} (life {life[1]})"


def living_lives(events, at):
    """The processes that ran at that moment."""
    running = {}
    for event in events:
        if event["e"] == "life" and event["t"] <= at:
            running[event["node"]] = event["life"] if event["act"] == "start" else None
    return {(node, life) for node, life in running.items() if life is not None}


def compare(events, run, homes, owners, times, verdict):
    """What is open against what the clients know."""
    # All open sessions by what a client knows of them.
    by_client = collections.defaultdict(list)
    for key in homes:
        gateway, _, rest = key.split("/", 2)
        session_id, at_ms = rest.split("@")
        by_client[gateway, session_id, owners[key]].append((int(at_ms), key))
    ends = {event["n"]: event["t"] for event in events if event["e"] == "end"}
    connected = {event["n"] for event in events if event["e"] == "device_end" and event["connected"]}
    looked_at, gone_s = times
    offset = run.get("wall", 0.0) - run.get("t", 0.0)
    faults_end = max((event["t"] for event in events if event["e"] == "fault"), default=0.0)
    for login in (event for event in events if event["e"] == "login"):
        number = login["n"]
        fits = [
            key for at_ms, key in by_client[login["gateway"], str(login["sid"]), login["c"]]
            if login["asked"] + offset - CLOCKS_S <= at_ms / 1000 <= login["t"] + offset + CLOCKS_S
        ]
        if number in connected:
            verdict.saw(KNOWN)
            open_at = sum(len(homes[key]) for key in fits)
            if open_at != 1:
                verdict.broken(KNOWN, f"{login['c']} is connected to {login['gateway']} (session {login['sid']}), which is open at {open_at} logic processes")
        elif number in ends and max(ends[number], faults_end) + gone_s <= looked_at:
            verdict.saw(KNOWN)
            if fits:
                verdict.broken(KNOWN, f"the session of {login['c']} on {login['gateway']} ended at {ends[number]:.1f} s and is open at {name(homes[fits[0]][0])}")


def looked_at_of(events):
    """When the clients were asked whether they are connected; what they did later does not count."""
    return min((event["t"] for event in events if event["e"] == "device_end"), default=float("inf"))
