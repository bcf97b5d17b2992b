#!/usr/bin/env python3
"""Many runs of the cluster test, one seed after another, and their sum.

    .venv/bin/python tests/cluster/campaign.py --seeds 1-10 -- --gateways 3 --logics 3 --store postgres --registry redis --bus nats --seconds 180

What follows `--` goes to run.py. After each run a line; in the end one table over all of them and one line for each promise. The
folder of a run that failed stays. Ends with 0 if all were kept.
"""

from __future__ import annotations

import argparse
import collections
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import availability
from checker import PROMISES

HERE = Path(__file__).resolve().parent


def seeds_of(text):
    """`1-10` or `3,5,8`."""
    if "-" in text:
        first, last = map(int, text.split("-"))
        return list(range(first, last + 1))
    return [int(word) for word in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds_of, default=list(range(1, 11)), help="1-10, or 3,5,8")
    parser.add_argument("--folder", type=Path, help="where the runs' folders are made (default: a temporary one)")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="-- and options of run.py")
    arguments = parser.parse_args()
    options = [option for option in arguments.options if option != "--"]
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="millrace-campaign-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    sums, checked, violated, failed = {}, collections.Counter(), collections.Counter(), []
    for seed in arguments.seeds:
        place = folder / f"seed-{seed}"
        done = subprocess.run([sys.executable, str(HERE / "run.py"), *options, "--seed", str(seed), "--keep", str(place)], capture_output=True, text=True)
        print((done.stdout.strip().splitlines() or ["it said nothing"])[-1], flush=True)
        summary = place / "summary.json"
        if summary.exists():
            said = json.loads(summary.read_text())
            availability.add(sums, said["figures"])
            checked.update(said["checked"])
            violated.update(said["violated"])
        if done.returncode != 0:
            failed.append(seed)
            print("\n".join((done.stdout + done.stderr).splitlines()[-40:]), flush=True)
        else:
            shutil.rmtree(place)
    if sums:
        print("\n" + "\n".join(availability.lines(sums)) + "\n")
    for promise in PROMISES:
        print(f"{promise:<34} {checked[promise]:>12,} looked at, {violated[promise]:,} violations")
    print(f"{'KEPT' if not failed else 'NOT KEPT'}: {len(arguments.seeds) - len(failed)} of {len(arguments.seeds)} seeds" + (f"; failed: {failed}, in {folder}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
