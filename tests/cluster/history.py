"""What happened in a run of the cluster test: one event a line of JSON, by one clock of one machine.

Every event has `e`, what it is, and `t`, when, in seconds of CLOCK_MONOTONIC, which all processes of the run share. The
first event is `run`, which also names the wall clock's time at its `t`. docs/cluster-test.md lists all kinds with their fields.
Several files (the clients' and the harness's) make one history; `read` puts them in order of time.

It is a record only: nothing here judges.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path


def now():
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def digest(body):
    """A message's text in the history: enough to see that it is the same."""
    return hashlib.blake2b(body.encode(), digest_size=8).hexdigest()


class Writer:
    """Appends events to a file. What the file holds after a crash of the run is whole lines but the last."""

    def __init__(self, path):
        self.file = open(path, "w", buffering=1 << 16)

    def event(self, kind, /, t=None, **fields):
        self.file.write(json.dumps({"e": kind, "t": round(now() if t is None else t, 4), **fields}, separators=(",", ":")) + "\n")

    def close(self):
        self.file.close()


def read(*paths):
    """All events of these files by time; a last line that was cut off is left out."""
    events = []
    for path in paths:
        lines = Path(path).read_text().split("\n")
        events += [json.loads(line) for line in lines[:-1] if line]
    events.sort(key=lambda event: event["t"])
    return events
