"""What the faults of a run cost, for each kind: the share of requests answered within a second, connections lost, the longest wait.

A request counts from the moment at which it was meant to be asked, whether there was a connection then or not. It belongs to a fault if
that moment lies between the fault's begin and its end, and to its aftermath in the 15 s after; where faults overlap it belongs to each.
The figures of several runs can be added.
"""

from __future__ import annotations

import bisect
import collections

WITHIN_S = 1.0
AFTERMATH_S = 15.0
# Attempts to log in are not among them: one that fails at a dead gateway is made again at another.
COUNTED = ("send", "heartbeat", "list")
# Ends of connections that the client wanted, or had brought about by coming in elsewhere (kicked: replaced).
WANTED = ("logged out", "left", "not needed", "kicked 30")
WHOLE = "the whole run"


class Requests:
    def __init__(self, events):
        found = sorted((e["at"], e["took"]) if e["took"] is not None else (e["at"], float("inf")) for e in events if e["e"] == "request" and e["what"] in COUNTED)
        self.times = [at for at, _ in found]
        self.took = [took for _, took in found]
        self.good = [0]
        for _, took in found:
            self.good.append(self.good[-1] + (took <= WITHIN_S))

    def between(self, begin, end):
        """(asked, answered in time, the longest that an answer took)."""
        first, last = bisect.bisect_left(self.times, begin), bisect.bisect_left(self.times, end)
        longest = max((took for took in self.took[first:last] if took != float("inf")), default=0.0)
        return last - first, self.good[last] - self.good[first], longest


def figures(events):
    """For each kind of fault, and for the whole run: numbers to be added up over runs."""
    requests = Requests(events)
    until = min((e["t"] for e in events if e["e"] == "device_end"), default=float("inf"))
    lost = sorted(e["t"] for e in events if e["e"] == "end" and e["why"] not in WANTED and e["t"] < until)
    found = collections.defaultdict(lambda: dict.fromkeys(
        ("times", "seconds", "asked", "good", "asked_after", "good_after", "cost", "lost", "longest"), 0))
    lost_between = lambda begin, end: bisect.bisect_left(lost, end) - bisect.bisect_left(lost, begin)
    for fault in (e for e in events if e["e"] == "fault"):
        row = found[f"{fault['kind']} {fault['what']}"]
        begin, end = fault["begin"], max(fault["t"], fault["begin"] + WITHIN_S)
        row["times"] += 1
        row["seconds"] += fault["t"] - fault["begin"]
        row["lost"] += lost_between(begin, end + AFTERMATH_S)
        for span, asked_name, good_name in (((begin, end), "asked", "good"), ((end, end + AFTERMATH_S), "asked_after", "good_after")):
            asked, good, longest = requests.between(*span)
            row[asked_name] += asked
            row[good_name] += good
            row["longest"] = max(row["longest"], longest)
            row["cost"] += (span[1] - span[0]) * (1 - good / asked) if asked else 0.0
    asked, good, longest = requests.between(float("-inf"), float("inf"))
    found[WHOLE].update(times=sum(row["times"] for row in found.values()), asked=asked, good=good, longest=longest, lost=len(lost))
    return dict(found)


def add(sums, figures_of_a_run):
    for kind, row in figures_of_a_run.items():
        known = sums.setdefault(kind, dict.fromkeys(row, 0))
        for name, value in row.items():
            known[name] = max(known[name], value) if name == "longest" else known[name] + value


def lines(sums):
    yield f"{'fault':<24}{'times':>6}{'s each':>8}{'answered in 1 s':>17}{'15 s after':>12}{'cost, s each':>14}{'connections lost each':>23}{'longest wait, s':>17}"
    for kind, row in sorted((kind, row) for kind, row in sums.items() if kind != WHOLE):
        times = row["times"]
        yield (
            f"{kind:<24}{times:>6}{row['seconds'] / times:>8.1f}{share(row['asked'], row['good']):>17}"
            f"{share(row['asked_after'], row['good_after']):>12}{row['cost'] / times:>14.2f}{row['lost'] / times:>23.1f}{row['longest']:>17.1f}"
        )
    row = sums[WHOLE]
    yield f"{WHOLE:<24}{row['times']:>6}{'':>8}{share(row['asked'], row['good']):>17}   of {row['asked']:,} requests; {row['lost']:,} connections lost"


def share(asked, good):
    return f"{100 * good / asked:.2f} %" if asked else "-"
