#!/usr/bin/env python3
"""Counts the instructions of the gateway's hot paths with Callgrind and compares them with the baseline.

    scripts/instructions.py              count and compare: exit 1 if a path has grown by more than the tolerance
    scripts/instructions.py --accept     count and write the baseline anew: commit it, with the reason
    scripts/instructions.py NAME ...     only these paths

Counts do not depend on how fast or busy the machine is. Each path is run twice, with different numbers of turns; the
difference is what the turns cost, without the start of the program. The build is the release profile without LTO.
Another compiler writes other instructions, and another C library or a processor without AVX2 copies memory with others,
so where one of these is not the baseline's, the comparison only warns.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "bench" / "hot_paths" / "baseline.json"
TOLERANCE_PERCENT = 3.0
# Turns for about this many items of a path; the measured difference is twice of it.
ITEMS = 1_000


def build():
    subprocess.run(
        ["cargo", "build", "--release", "--locked", "--quiet", "-p", "millrace-hot-paths", "--bins"], cwd=ROOT, check=True
    )
    metadata = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--no-deps", "--offline"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )
    return Path(json.loads(metadata.stdout)["target_directory"]) / "release" / "hot-paths"


def collected(binary, name, turns):
    """Instructions of one run, from start to end."""
    run = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", binary, name, str(turns)],
        capture_output=True, text=True, env={"LC_ALL": "C"},
    )
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode != 0 or not found:
        raise SystemExit(f"valgrind could not run {name}:\n{run.stderr}")
    return int(found.group(1))


def count(binary, name, items):
    """Instructions for one item of a path."""
    turns = max(ITEMS // items, 2)
    few, many = collected(binary, name, turns), collected(binary, name, 3 * turns)
    return (many - few) / (2 * turns * items)


def made_with():
    """What decides about the instructions besides our own code."""
    rustc = subprocess.run(["rustc", "--version"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    copies = "with AVX2" if flags and "avx2" in flags.group(1).split() else "without AVX2"
    return f"{rustc}, {' '.join(platform.libc_ver())}, {platform.machine()} {copies}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accept", action="store_true", help="write the baseline anew")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was counted")
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    if not shutil.which("valgrind"):
        raise SystemExit("valgrind is missing: apt-get install valgrind")
    binary = build()
    listed = subprocess.run([binary], check=True, capture_output=True, text=True).stdout.splitlines()
    paths = [line.split("\t") for line in listed]
    if unknown := set(arguments.names) - {name for name, _, _ in paths}:
        raise SystemExit(f"no such path: {', '.join(sorted(unknown))}; there are {', '.join(name for name, _, _ in paths)}")
    paths = [path for path in paths if not arguments.names or path[0] in arguments.names]
    with ThreadPoolExecutor() as pool:
        counts = dict(zip(
            (name for name, _, _ in paths), pool.map(lambda path: count(binary, path[0], int(path[1])), paths)
        ))
    here = made_with()
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"made_with": here, "instructions": {}}
    baseline = known["instructions"]

    grown, missing, shrunk = [], [], []
    print(f"{'path':<20}{'instructions':>13}{'baseline':>10}{'change':>9}  one of it is")
    for name, _, what in paths:
        now, before = counts[name], baseline.get(name)
        change = "new" if before is None else f"{100 * (now / before - 1):+.1f} %"
        print(f"{name:<20}{now:>13.1f}{before if before is not None else '-':>10}{change:>9}  {what}")
        if before is None:
            missing.append(name)
        elif now > before * (1 + TOLERANCE_PERCENT / 100):
            grown.append(name)
        elif now < before * (1 - TOLERANCE_PERCENT / 100):
            shrunk.append(name)

    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        counted = [{"name": name, "what": what, "instructions": round(counts[name], 1)} for name, _, what in paths]
        arguments.json.write_text(json.dumps({"made_with": here, "paths": counted}, indent=2, ensure_ascii=False) + "\n")
    if arguments.accept:
        merged = {**baseline, **{name: round(value, 1) for name, value in counts.items()}}
        if not arguments.names:
            merged = {name: merged[name] for name, _, _ in paths}
        BASELINE.write_text(json.dumps({"made_with": here, "instructions": merged}, indent=2) + "\n")
        print(f"written: {BASELINE.relative_to(ROOT)}; commit it and say in the message why the counts changed")
        return 0
    if known["made_with"] != here:
        print(
            f"warning: the baseline was counted with {known['made_with']}, this is {here}: nothing is judged. "
            "scripts/instructions.py --accept makes a baseline for it"
        )
        return 0
    if shrunk:
        print(f"better than the baseline: {', '.join(shrunk)}. Keep it with scripts/instructions.py --accept")
    if missing:
        print(f"not in the baseline: {', '.join(missing)}. Add them with scripts/instructions.py --accept")
    if grown:
        print(
            f"more than {TOLERANCE_PERCENT:g} % above the baseline: {', '.join(grown)}. Where they go: valgrind "
            f"--tool=callgrind {binary.relative_to(ROOT) if binary.is_relative_to(ROOT) else binary} {grown[0]} 10000, "
            "then callgrind_annotate. If the growth buys something, scripts/instructions.py --accept and commit the "
            "baseline, with the reason in the message"
        )
    return 1 if grown or missing else 0


if __name__ == "__main__":
    sys.exit(main())
