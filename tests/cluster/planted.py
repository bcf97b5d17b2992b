#!/usr/bin/env python3
"""Shows that the cluster test finds bugs: plants one at a time in a test build of logic, and looks what the checker says.

    .venv/bin/python tests/cluster/planted.py            all of them, and a run without any
    .venv/bin/python tests/cluster/planted.py dedupe
    .venv/bin/python tests/cluster/planted.py --fleet    on three gateways and three logics with PostgreSQL, Redis and NATS

The build is `cargo build -p millrace-logic --features planted-faults` (with --release: that profile), copied away so that the next ordinary
build does not meet it. Ends with 0 if each fault was found by its name, and nothing was found where none was planted.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from nodes import API_TOKEN, JWT_SECRET

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# Fault: the promise that must be found broken.
EXPECTED = {
    "none": "",
    "dedupe": "a message is stored once",
    "counter": "sequences have no gap",
    "fencing": "nobody is wrongly offline",
}

ONE_LOGIC = "--gateways 2 --seconds 8 --faults 1 --pause-max 3 --calm 0"
FLEET = "--gateways 3 --logics 3 --store postgres --registry redis --bus nats --seconds 12 --faults 2 --pause-max 3 --calm 0"


def build(release):
    profile = "release" if release else "debug"
    command = ["cargo", "build", "-q", "--locked", "-p", "millrace-logic", "--features", "planted-faults", *(["--release"] if release else [])]
    subprocess.run(command, cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    kept = target / "planted-faults" / "millrace-logic"
    kept.parent.mkdir(exist_ok=True)
    shutil.copy(target / profile / "millrace-logic", kept)
    # What is left in its place would be taken for the ordinary program.
    (target / profile / "millrace-logic").unlink()
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(EXPECTED)}; none given: all")
    parser.add_argument("--binary", type=Path, help="a build that is there already")
    parser.add_argument("--release", action="store_true")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time, each on a network of its own")
    parser.add_argument("--fleet", action="store_true", help="three gateways, three logics, PostgreSQL, Redis and NATS; one run at a time")
    parser.add_argument("--options", help=f"for run.py; without: {ONE_LOGIC!r}, with --fleet {FLEET!r}")
    arguments = parser.parse_args()
    arguments.options = arguments.options or (FLEET if arguments.fleet else ONE_LOGIC)
    arguments.at_once = 1 if arguments.fleet else arguments.at_once
    if unknown := set(arguments.faults) - set(EXPECTED):
        parser.error(f"no such fault: {', '.join(unknown)}")
    binary = arguments.binary or build(arguments.release)
    if not refuses_by_itself(binary):
        print("a build with planted faults starts although the environment names none", file=sys.stderr)
        return 1
    with concurrent.futures.ThreadPoolExecutor(arguments.at_once) as pool:
        runs = {fault: pool.submit(run, fault, binary, arguments) for fault in arguments.faults or EXPECTED}
        found = [judge(fault, run.result()) for fault, run in runs.items()]
    return 0 if all(found) else 1


def refuses_by_itself(binary):
    """Whether nobody can run such a build by mistake."""
    environment = {name: value for name, value in os.environ.items() if name != "MILLRACE_PLANTED_FAULT"}
    with tempfile.TemporaryDirectory(prefix="millrace-planted-") as folder:
        config = Path(folder) / "logic.toml"
        config.write_text(
            f'[store]\ndirectory = "{folder}/data"\n[link]\nlisten = "127.0.0.1:0"\n[http]\nlisten = ""\n[admin]\nlisten = ""\n'
            f'[api]\ntoken = "{API_TOKEN}"\n[login]\njwt_secret = "{JWT_SECRET}"\n'
        )
        try:
            done = subprocess.run([binary, "run", "--config", config], env=environment, capture_output=True, text=True, timeout=20)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 1 and "planted faults" in done.stderr


def run(fault, binary, arguments):
    command = [sys.executable, str(HERE / "run.py"), *arguments.options.split(), "--seed", str(arguments.seed)]
    with tempfile.TemporaryDirectory(prefix=f"millrace-planted-{fault}-") as folder:
        return subprocess.run(
            [*command, "--keep", folder, "--logic-environment", f"MILLRACE_PLANTED_FAULT={fault}"],
            env={**os.environ, "MILLRACE_LOGIC": str(binary.resolve())}, capture_output=True, text=True,
        )


def judge(fault, done):
    broken = [line for line in done.stdout.splitlines() if line.startswith("BROKEN")]
    if EXPECTED[fault]:
        found = done.returncode != 0 and any(EXPECTED[fault] in line for line in broken)
    else:
        found = done.returncode == 0 and not broken
    said = "; ".join(" ".join(line.split()[1:]) for line in broken) or "every promise kept"
    print(f"{'as expected' if found else 'MISSED     '}  {fault:<8} exit {done.returncode}; {said}", flush=True)
    if not found:
        print(done.stdout[-3000:] + done.stderr[-2000:])
    return found


if __name__ == "__main__":
    sys.exit(main())
