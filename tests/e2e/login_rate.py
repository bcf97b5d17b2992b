"""Accept, upgrade and login: how many a second, and what one costs, tier by tier. A script, see --help.

    .venv/bin/python tests/e2e/login_rate.py --connections 18000 --ramp-rate 30000

Gateway, logic with the embedded store and the load generator, each a process. The time runs from the first session that logic
knows to the last.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from processes import Tiers, metric
from single_chat import cpu_rows, show_cpu, threads_cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=18_000)
    parser.add_argument("--ramp-rate", type=int, default=30_000, help="connections opened a second, at most")
    parser.add_argument("--websocket-share", type=float, default=1.0)
    parser.add_argument("--seconds-max", type=int, default=60)
    parser.add_argument("--logic-settings", default="", help="top-level lines of logic's TOML")
    parser.add_argument("--perf", metavar="FILE", help="record a profile")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="millrace-logins-") as name:
        return run(arguments, Path(name))


def run(arguments, folder):
    tiers = Tiers(folder)
    tiers.logic_settings = arguments.logic_settings
    tiers.start_logic()
    tiers.start_gateway()
    logic_admin = f"http://127.0.0.1:{tiers.free_port('logic-admin')}"
    sessions = lambda: metric(logic_admin, "millrace_logic_sessions")
    empty = tiers.logic.resident_bytes()
    generator = subprocess.Popen(
        tiers.load_generator(
            "idle", "--connections", arguments.connections, "--websocket-share", arguments.websocket_share,
            "--ramp-rate", arguments.ramp_rate, "--duration", "4s",
        ),
        stdout=subprocess.DEVNULL, stderr=open(folder / "progress", "w"),
    )
    profile = None
    try:
        pids = {"gateway": tiers.gateway.pid, "logic": tiers.logic.pid, "generator": generator.pid}
        if arguments.perf:
            list_of_pids = ",".join(str(pid) for pid in pids.values())
            profile = subprocess.Popen(
                ["perf", "record", "-q", "-F", "499", "-o", arguments.perf, "-p", list_of_pids, "--", "sleep", "30"]
            )
        deadline = time.monotonic() + arguments.seconds_max
        while sessions() == 0:
            assert generator.poll() is None and time.monotonic() < deadline, (folder / "progress").read_text()
            time.sleep(0.02)
        began, first = time.monotonic(), sessions()
        before = {name: threads_cpu(pid) for name, pid in pids.items()}
        while (now := sessions()) < arguments.connections:
            assert time.monotonic() < deadline, f"{now} sessions: " + (folder / "progress").read_text()
            time.sleep(0.05)
        seconds = time.monotonic() - began
        after = {name: threads_cpu(pid) for name, pid in pids.items()}
        if profile:
            profile.terminate()
            profile.wait(30)
        time.sleep(2.0)
        resident = tiers.logic.resident_bytes()
        generator.wait(60)
    finally:
        if generator.poll() is None:
            generator.kill()
        tiers.stop()
    logins = now - first
    print(f"\n## {now:.0f} logins, {logins / seconds:.0f}/s over {seconds:.2f} s")
    print(f"logic resident: {empty:,} B before, {resident:,} B after: {(resident - empty) / now:.0f} B a session")
    show_cpu(cpu_rows(before, after, logins), logins, seconds, "a login")
    return 0


if __name__ == "__main__":
    sys.exit(main())
