"""A rolling upgrade under load, in place of faults: one process after another is told to end, and started again from other programs.

What an operator does, and nothing more: SIGTERM, wait for the end, start the other program with the same configuration, wait until it is
ready, then the next one. Clients live on: those on a gateway that leaves are told when to come back. Every replacement is a line of the
history like a fault, so that the table says what it cost, and presence is judged once 15 s have passed.

Steps are words such as `logic+`: a tier (`logic`, `gateway`), or `migrate` for the schema of a database, and `+` for the new programs, `-`
for those before, `=` for those that it runs (a restart). A tier whose first step of `+` and `-` is `+` starts with the programs before, all
others start with the new ones.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from history import now
from nemesis import Nemesis

TIERS = ("migrate", "logic", "gateway")
# How the table calls them.
KINDS = {"+": "upgrade", "-": "go back", "=": "restart"}


def steps_of(text):
    """[(tier, where to)] of `logic+ gateway-`."""
    wrong = [word for word in text.split() if word[:-1] not in TIERS or word[-1] not in KINDS or word == "migrate="]
    if wrong or not text.split():
        raise argparse.ArgumentTypeError(f"a step is one of {', '.join(TIERS)} followed by +, - or =, and not {' '.join(wrong) or 'nothing'}")
    return [(word[:-1], word[-1]) for word in text.split()]


class Upgrade(Nemesis):
    named = "processes are replaced"

    @staticmethod
    def before(cluster, arguments):
        """Which programs each tier starts with."""
        for tier in TIERS[1:]:
            first = next((to for what, to in arguments.steps if what == tier and to != "="), "-")
            for node in cluster.of(tier):
                node.programs = arguments.previous.resolve() if first == "+" else None

    def run(self, _seconds):
        time.sleep(self.arguments.soak)
        for what, to in self.arguments.steps:
            began = now()
            if what == "migrate":
                try:
                    said = self.migrate(to)
                except AssertionError as error:
                    self.failures.append(f"{KINDS[to]} migrate: {error}")
                    return
            else:
                nodes = list(self.cluster.of(what))
                self.chance.shuffle(nodes)
                for number, node in enumerate(nodes):
                    time.sleep(self.arguments.pace if number else 0.0)
                    self.replace(what, node, to)
                    if self.failures:
                        return
                said = ", ".join(node.name for node in nodes)
            if said:
                print(f"  {KINDS[to]} {what}: {said} ({now() - began:.1f} s)", flush=True)
                time.sleep(self.arguments.soak)

    def migrate(self, to):
        """While all others run. None: there is no database."""
        logic = self.cluster.logics[0]
        before, logic.programs = logic.programs, self.programs(logic, to)
        try:
            return logic.migrate()
        finally:
            logic.programs = before

    def programs(self, node, to):
        return {"+": None, "-": self.arguments.previous.resolve(), "=": node.programs}[to]

    def replace(self, what, node, to):
        self.number += 1
        number, begin = self.number, now()
        try:
            status = node.end(60.0)
            self.life(node, "drained")
            if status != 0:
                self.cluster.complaints.append(f"{node.name} was told to end and did so with {status}")
            ended = now()
            node.programs = self.programs(node, to)
            self.start_again(node)
            runs = Path(os.readlink(f"/proc/{node.process.pid}/exe"))
            assert runs == Path(node.binary).resolve(), f"it runs {runs}"
        except Exception as error:  # The run is over, and says why.
            self.failures.append(f"{KINDS[to]} {node.name}: {error!r}")
            return
        self.history.event("fault", id=number, kind=KINDS[to], what=what, target=node.name, begin=round(begin, 4),
                           lasts=round(ended - begin, 2), detail=None)
