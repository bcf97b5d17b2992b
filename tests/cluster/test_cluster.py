"""The cluster test itself: a short run with faults, the schedule that a seed makes, and cut links.

MILLRACE_SEED names another seed than CI's, `random` any; it is printed. The long runs are commands: docs/cluster-test.md.
"""

import argparse
import collections
import os
import random
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import nemesis
import upgrade
from nodes import BINARIES

HERE = Path(__file__).resolve().parent


def test_a_short_run_under_faults_keeps_every_promise():
    seed = os.environ.get("MILLRACE_SEED", "4")
    chosen = [] if seed == "random" else ["--seed", seed]
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py"), "--gateways", "2", "--seconds", "14", "--faults", "5", "--pause-max", "5", "--calm", "0", *chosen],
        capture_output=True, text=True, timeout=170,
    )
    print(done.stdout + done.stderr)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"


# Half a minute, and minutes where nothing else leaves it the machine.
@pytest.mark.timeout(420)
def test_a_rolling_upgrade_to_the_same_programs_keeps_every_promise(tmp_path):
    """What an upgrade does, without the release before, which is not there to be had: docs/upgrading.md has the command."""
    for program in ("millrace-gateway", "millrace-logic"):
        shutil.copy(BINARIES / program, tmp_path)
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py"), "--gateways", "2", "--previous", str(tmp_path), "--steps", "logic+ gateway+", "--soak", "2", "--pace", "1",
         "--users", "12", "--rate", "10", "--seed", "1"],
        capture_output=True, text=True, timeout=400,
    )
    print(done.stdout + done.stderr)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    assert "upgrade logic: logic1" in done.stdout and "3 processes are replaced" in done.stdout


def test_steps_of_an_upgrade_are_read_and_what_is_none_is_said():
    assert upgrade.steps_of("migrate+ logic- gateway=") == [("migrate", "+"), ("logic", "-"), ("gateway", "=")]
    for wrong in ("", "logic", "redis+", "migrate="):
        with pytest.raises(argparse.ArgumentTypeError, match="a step is one of"):
            upgrade.steps_of(wrong)


def test_services_start_die_and_come_back_with_what_they_should_keep():
    done = subprocess.run([sys.executable, str(HERE / "services_check.py")], capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout) == (0, "services come and go\n"), done.stdout + done.stderr


def test_nothing_runs_on_when_the_harness_is_killed(tmp_path):
    command = [sys.executable, str(HERE / "run.py"), "--gateways", "1", "--users", "9", "--seconds", "60", "--faults", "0", "--keep", str(tmp_path)]
    harness = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert any("are connected" in line for line in harness.stdout), "the run did not begin"
        assert processes_of(tmp_path), "the nodes name their folder"
    finally:
        harness.kill()
        harness.wait()
    deadline = time.monotonic() + 20
    while left := processes_of(tmp_path):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)


def processes_of(folder):
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(command.replace(b"\0", b" ").decode())
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")
def test_the_files_of_three_machines_carry_a_chat_and_one_machine_may_die():
    done = subprocess.run([sys.executable, str(HERE / "three_machines.py"), "--before", "2", "--after", "4"], capture_output=True, text=True, timeout=170)
    print(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr


def schedule(seed, bursts, network_can_cut=True):
    network = types.SimpleNamespace(has_namespaces=network_can_cut)
    cluster = types.SimpleNamespace(services={"postgres": None, "redis": None, "nats": None}, network=network)
    all_kinds, chance, bag = nemesis.kinds(cluster), random.Random(seed), []
    return all_kinds, [nemesis.burst(chance, bag, all_kinds, 4, 60.0) for _ in range(bursts)]


def test_a_seed_makes_the_same_faults_and_another_seed_others():
    assert schedule(7, 20) == schedule(7, 20)
    assert schedule(7, 20) != schedule(8, 20)


def test_every_kind_of_fault_comes_equally_often():
    all_kinds, bursts = schedule(1, 100)
    times = collections.Counter((fault.kind, fault.what) for burst in bursts for fault in burst)
    assert set(times) == set(all_kinds)
    assert max(times.values()) - min(times.values()) <= 1
    assert all(fault.lasts <= 60.0 for burst in bursts for fault in burst)


def test_without_namespaces_no_link_is_cut():
    all_kinds, _ = schedule(1, 1, network_can_cut=False)
    assert "cut" not in {kind for kind, _ in all_kinds}


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")
def test_a_cut_link_carries_nothing_and_a_healed_one_does_and_nothing_is_left():
    outside = subprocess.run(["ip", "link"], capture_output=True, text=True).stdout
    done = subprocess.run([sys.executable, str(HERE / "network_check.py")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "open\ncut: nothing came\nopen\n"), done.stdout + done.stderr
    names = lambda text: sorted(line.split(": ")[1] for line in text.splitlines() if line[:1].isdigit())
    assert names(subprocess.run(["ip", "link"], capture_output=True, text=True).stdout) == names(outside)
