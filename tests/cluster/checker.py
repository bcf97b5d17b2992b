#!/usr/bin/env python3
"""Proves or refutes the promises of docs/protocol.md from a history alone. A script, too, see --help.

    .venv/bin/python tests/cluster/checker.py run/clients.jsonl run/harness.jsonl

Each promise has a name, a count of what was looked at, and the violations. A promise of which nothing was looked at is not kept:
the verdict is then `nothing was checked`, because an empty history proves nothing. What the checks are: messages in check_messages.py,
presence in check_presence.py, sessions as logic hears of them in check_sessions.py.
"""

from __future__ import annotations

import argparse
import collections
import sys
from dataclasses import dataclass, field
from pathlib import Path

EXAMPLES_MAX = 3

# Name: what is promised. The order is that of the report.
PROMISES = {
    "acknowledged messages are stored": "a SendReply with code 0 means that the message is there in the end, where the reply said",
    "a message is stored once": "one client_message_id of one sender has one message_id and one place, and a second reply says duplicate",
    "sequences have no gap": "in the end every member pulls 1, 2, 3 … of each conversation",
    "all see the same": "whoever sees a sequence of a conversation, pushed, pulled or acknowledged, sees the same message",
    "sequences follow time": "what was sent after another message of the conversation was acknowledged comes after it",
    "pushes are in order": "on one connection new messages of a conversation come in increasing sequence",
    "messages arrive": "a device that is connected in the end has every message of its conversations",
    "only members see": "nobody gets a message of a conversation that the user is not in",
    "nothing is made up": "every message was sent by its sender with this text",
    "cursors move forward": "a read cursor stands where READ was answered, or later, never beyond what was asked",
    "nobody is wrongly offline": "15 s after a fault healed nobody who is connected is shown offline",
    "nobody is wrongly online": "nor is anybody shown online once the lease of the gateway and of the connection is over",
    "a session ends once": "a logic process hears of each session's end once, and of none that it did not know",
    "a session's end is known": "sessions that ended for their client are open nowhere, those that live are open at one logic",
}


@dataclass
class Verdict:
    checked: collections.Counter = field(default_factory=collections.Counter)
    violated: collections.Counter = field(default_factory=collections.Counter)
    examples: dict = field(default_factory=lambda: collections.defaultdict(list))
    notes: dict = field(default_factory=dict)
    # Promises that this history cannot speak about, with the reason.
    excused: dict = field(default_factory=dict)

    def saw(self, promise, count=1):
        assert promise in PROMISES, promise
        self.checked[promise] += count

    def broken(self, promise, sentence):
        assert promise in PROMISES, promise
        self.violated[promise] += 1
        if len(self.examples[promise]) < EXAMPLES_MAX:
            self.examples[promise].append(sentence)

    def excuse(self, promise, reason):
        self.excused[promise] = reason

    def state(self, promise):
        if self.violated[promise]:
            return "BROKEN"
        if not self.checked[promise]:
            return "not looked at" if promise in self.excused else "NOTHING WAS CHECKED"
        return "kept"

    @property
    def broken_promises(self):
        return [promise for promise in PROMISES if self.violated[promise]]

    @property
    def kept(self):
        return all(self.state(promise) in ("kept", "not looked at") for promise in PROMISES)

    def lines(self):
        for promise in PROMISES:
            line = f"{self.state(promise):<14} {promise:<34} {self.checked[promise]:>9,} looked at, {self.violated[promise]:,} violations"
            yield line + (f" ({self.excused[promise]})" if self.state(promise) == "not looked at" else "")
            for example in self.examples[promise]:
                yield f"                 {example}"
        for name, value in self.notes.items():
            yield f"{name}: {value}"


def check(events):
    """The verdict over a history in order of time."""
    import check_messages
    import check_presence
    import check_sessions

    verdict = Verdict()
    check_messages.check(events, verdict)
    check_presence.check(events, verdict)
    check_sessions.check(events, verdict)
    return verdict


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="the files of one history")
    arguments = parser.parse_args()
    import history

    verdict = check(history.read(*arguments.files))
    print("\n".join(verdict.lines()))
    print("KEPT: every promise" if verdict.kept else "NOT KEPT")
    return 0 if verdict.kept else 1


if __name__ == "__main__":
    sys.exit(main())
