"""What goes wrong in a run, when, and for how long: a schedule made from a seed, and the hands that carry it out.

Faults come in bursts, so that some overlap, with a calm after each in which presence can be judged. They are drawn from a bag that holds
each kind once, so all kinds come equally often. A node that a fault has in hand is not taken by another. Every fault is written to the
history when it is healed: a killed process runs and answers again, a paused one goes on, a cut link carries again.
"""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from dataclasses import dataclass

from history import now

BURST_S = 6.0
RESTART_S = 90.0


@dataclass(frozen=True)
class Fault:
    """`kind` of what, at which of them; `after` seconds of the burst, for `lasts` seconds."""

    kind: str
    what: str
    which: int
    other: int
    after: float
    lasts: float


def kinds(cluster, only=None):
    """Every kind of fault that this cluster can have: (act, what); or those of them that are named."""
    tiers = ["gateway", "logic"]
    services = list(cluster.services)
    found = [(act, what) for what in tiers + services for act in ("kill", "pause")]
    found += [("drain", what) for what in tiers] + [("restart", what) for what in services]
    if "redis" in services:
        found.append(("flush", "redis"))
    if "nats" in services:
        found.append(("delete streams", "nats"))
    if cluster.network.has_namespaces:
        found += [("cut", "gateway-logic"), ("cut", "clients-gateway")] + [("cut", f"logic-{service}") for service in services]
    chosen = [(act, what) for act, what in found if not only or f"{act} {what}" in only]
    assert len(chosen) == len(set(only or ())) or not only, f"of {only} this cluster has {chosen}; it has {found}"
    return chosen


def burst(chance, bag, all_kinds, count, pause_max_s, lasts_s=None):
    """The faults of one burst."""
    faults = []
    for _ in range(count):
        if not bag:
            bag.extend(all_kinds)
            chance.shuffle(bag)
        act, what = bag.pop()
        lasts = {
            "kill": lambda: chance.choice((0.0, chance.uniform(0.2, 4.0))),
            "pause": lambda: chance.uniform(2.0, 8.0) if chance.random() < 0.75 else chance.uniform(8.0, 60.0),
            "cut": lambda: chance.uniform(1.0, 8.0) if chance.random() < 0.75 else chance.uniform(8.0, 20.0),
        }.get(act, lambda: 0.0)()
        if act in ("pause", "cut"):
            lasts = min(lasts, pause_max_s) if lasts_s is None else lasts_s
        faults.append(Fault(act, what, chance.randrange(1000), chance.randrange(1000), chance.uniform(0.0, BURST_S), lasts))
    return sorted(faults, key=lambda fault: fault.after)


class Nemesis:
    # What was counted in `number`.
    named = "faults are healed"

    def __init__(self, cluster, history, seed, arguments):
        self.cluster, self.history, self.arguments = cluster, history, arguments
        self.chance = random.Random(f"{seed}/nemesis")
        self.busy, self.free = set(), threading.Condition()
        self.number = 0
        self.failures = []

    def run(self, seconds):
        """Bursts and calms until the time is over; returns when everything is healed."""
        until, bag, all_kinds = now() + seconds, [], kinds(self.cluster, self.arguments.only)
        while until - now() > BURST_S:
            longest = min(self.arguments.pause_max, max(2.0, until - now() - BURST_S))
            faults = burst(self.chance, bag, all_kinds, self.arguments.faults, longest, self.arguments.lasts)
            began, threads = now(), []
            for fault in faults:
                time.sleep(max(0.0, began + fault.after - now()))
                thread = threading.Thread(target=self.carry_out, args=(fault,))
                thread.start()
                threads.append(thread)
            for thread in threads:
                thread.join()
            if self.failures:
                return
            time.sleep(max(0.0, min(self.arguments.calm, until - now())))

    def free_nodes(self, fault):
        """What the fault is done to: what the schedule says, or the next one that no fault has in hand; None: there is none."""
        cluster = self.cluster
        ends = fault.what.split("-") if fault.kind == "cut" else [fault.what]
        choices = []
        for end, which in zip(ends, (fault.which, fault.other)):
            nodes = [cluster.clients] if end == "clients" else cluster.of(end)
            first = which % len(nodes)
            choices.append(nodes[first:] + nodes[:first])
        return next((nodes for nodes in itertools.product(*choices) if not self.names_of(fault, nodes) & self.busy), None)

    @staticmethod
    def names_of(fault, nodes):
        """A cut may be beside another fault of its ends; anything else has its node for itself."""
        return {"-".join(sorted(node.name for node in nodes))} if fault.kind == "cut" else {nodes[0].name}

    def carry_out(self, fault):
        with self.free:
            # Where all are in hand the fault waits its turn, so that every kind has its share.
            while (nodes := self.free_nodes(fault)) is None:
                self.free.wait(1.0)
            names = self.names_of(fault, nodes)
            self.busy |= names
            self.number += 1
            number = self.number
        begin = now()
        try:
            detail = getattr(self, fault.kind.replace(" ", "_"))(fault, *nodes)
        except Exception as error:  # The run is over, and says why.
            detail = None
            self.failures.append(f"{fault.kind} {'-'.join(node.name for node in nodes)}: {error}")
        finally:
            with self.free:
                self.busy -= names
                self.free.notify_all()
        self.history.event("fault", id=number, kind=fault.kind, what=fault.what, target="-".join(node.name for node in nodes),
                           begin=round(begin, 4), lasts=round(fault.lasts, 2), detail=detail)

    # --- the acts -------------------------------------------------------------------------------

    def life(self, node, act):
        self.cluster.life(self.history, node, act)

    def start_again(self, node):
        deadline = now() + RESTART_S
        while True:
            self.cluster.starting(node)
            node.start()
            self.life(node, "start")
            if node.wait_until_ready(RESTART_S):
                return
            # What it needs may be away at the moment; a supervisor would start it again as well.
            self.life(node, "died")
            node.kill()
            assert now() < deadline, f"it does not come up:\n{node.tail()}"
            time.sleep(0.3)

    def kill(self, fault, node):
        self.life(node, "kill")
        node.kill()
        time.sleep(fault.lasts)
        self.start_again(node)

    def pause(self, fault, node):
        node.pause()
        time.sleep(fault.lasts)
        node.go_on()

    def cut(self, fault, one, other):
        self.cluster.network.cut(one.name, other.name)
        time.sleep(fault.lasts)
        self.cluster.network.heal(one.name, other.name)

    def drain(self, fault, node):
        """SIGTERM, as an upgrade does it: it must end by itself, in order."""
        status = node.end(60.0)
        self.life(node, "drained")
        if status != 0:
            self.cluster.complaints.append(f"{node.name} was told to end and did so with {status}")
        self.start_again(node)

    def restart(self, fault, node):
        node.end(60.0) if node.name == "postgres" else node.end(60.0, signal.SIGTERM)
        self.start_again(node)

    def flush(self, fault, node):
        node.flush()

    def delete_streams(self, fault, node):
        return node.delete_streams()
