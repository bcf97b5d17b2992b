"""Kills tiers under load and lets the load generator's verifier judge. Run as a script, see --help.

    .venv/bin/python tests/e2e/faults.py kill-logic --rounds 10
    .venv/bin/python tests/e2e/faults.py kill-gateway

Each round starts fresh tiers, drives them with `millrace-loadgen chat --expect-faults`, kills one with SIGKILL at a
random moment of the load and starts it again. The verdict is the generator's: its exit code and its JSON report.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from processes import Tiers, metric


def load(tiers, arguments, report):
    """Starts the load generator against the tiers."""
    return subprocess.Popen(
        tiers.load_generator(
            "chat", "--connections", arguments.connections, "--single-rate", arguments.single_rate,
            "--group-rate", arguments.group_rate, "--group-size", 20, "--duration", f"{arguments.duration}s",
            "--ramp-rate", 3000, "--expect-faults", "--allow-late", "--json", report,
        ),
        stdout=subprocess.DEVNULL if arguments.quiet else None,
        stderr=open(report.with_suffix(".progress"), "w"),
    )


def round_of(kind, number, arguments, seed):
    with tempfile.TemporaryDirectory(prefix="millrace-faults-") as name:
        folder = Path(name)
        tiers = Tiers(folder)
        tiers.start_logic()
        tiers.start_gateway()
        report = folder / "report.json"
        generator = load(tiers, arguments, report)
        try:
            chance = random.Random(seed)
            deadline = time.monotonic() + 120
            while metric(tiers.ready["admin"], "millrace_sessions") < arguments.connections:
                assert generator.poll() is None, report.with_suffix(".progress").read_text()[-3000:]
                assert time.monotonic() < deadline, "the connections did not come up"
                time.sleep(0.2)
            time.sleep(2 + chance.uniform(0.2, max(0.5, arguments.duration - 8)))
            sessions_before = metric(tiers.ready["admin"], "millrace_sessions")
            killed = time.monotonic()
            if kind == "kill-logic":
                tiers.logic.kill()
                tiers.start_logic()
            else:
                tiers.gateway.kill()
                tiers.start_gateway()
            back = time.monotonic() - killed
            generator.wait(arguments.duration + 180)
            result = json.loads(report.read_text()) if report.exists() else {}
            counters, verification = result.get("counters", {}), result.get("verification") or {}
            lost = counters.get("connections_lost", 0)
            print(
                f"round {number} (seed {seed}): exit {generator.returncode}, {kind[5:]} away {back:.2f} s, "
                f"sessions before {sessions_before:.0f}, connections lost {lost}, "
                f"acknowledged {verification.get('acked')}, "
                f"deliveries {verification.get('found_deliveries')} of {verification.get('expected_deliveries')}, "
                f"resent {counters.get('resent', counters.get('messages_resent'))}, faults {verification.get('faults')}",
                flush=True,
            )
            if generator.returncode != 0:
                print(report.with_suffix(".progress").read_text()[-3000:], file=sys.stderr)
            if kind == "kill-logic" and lost != 0:
                print("a client lost its connection although only logic was killed", file=sys.stderr)
                return False
            return generator.returncode == 0
        finally:
            if generator.poll() is None:
                generator.kill()
            tiers.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["kill-logic", "kill-gateway"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--connections", type=int, default=18_000)
    parser.add_argument("--single-rate", type=int, default=5_000)
    parser.add_argument("--group-rate", type=int, default=200)
    parser.add_argument("--duration", type=int, default=20, help="seconds of load a round")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args()
    passed = sum(round_of(arguments.kind, number, arguments, arguments.seed + number) for number in range(1, arguments.rounds + 1))
    print(f"{'PASS' if passed == arguments.rounds else 'FAIL'}: {passed} of {arguments.rounds} rounds")
    return 0 if passed == arguments.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
