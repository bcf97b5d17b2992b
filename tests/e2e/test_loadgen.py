"""`millrace-loadgen run` against real gateways and logics: presets, shortened, and what their reports say."""

import json
import subprocess

import pytest

from processes import API_TOKEN, BINARIES, JWT_SECRET, Tiers


@pytest.fixture(scope="module")
def tiers(tmp_path_factory):
    tiers = Tiers(tmp_path_factory.mktemp("loadgen"))
    tiers.start_logic()
    tiers.start_gateway()
    yield tiers
    tiers.stop()


def run(tiers, folder, *arguments):
    """Exit code, what it printed, and its report."""
    ready, report = tiers.ready, folder / "report.json"
    command = [
        BINARIES / "millrace-loadgen", "run", *arguments, "--tcp", ready["tcp"], "--websocket", ready["websocket"],
        "--http", ready["http"], "--jwt-secret", JWT_SECRET, "--api-token", API_TOKEN, "--allow-late", "--quiet", "--json", report,
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr, json.loads(report.read_text()) if report.exists() else None


def without_limits(folder, preset):
    """The preset without its limits on latency: here the traffic is looked at, on whatever machine."""
    text = subprocess.run([str(BINARIES / "millrace-loadgen"), "scenario", "show", preset], capture_output=True, text=True, check=True).stdout
    lines = [line for line in text.splitlines() if "_latency p99" not in line and "recovery max" not in line]
    path = folder / f"{preset}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_smoke_drives_every_kind_of_traffic_and_verifies_all_of_it(tiers, tmp_path):
    status, said, report = run(tiers, tmp_path, without_limits(tmp_path, "smoke"), "--connections", 100, "--time", 0.4)
    assert status == 0, said
    counters = report["counters"]
    assert counters["acked"] == counters["intended"] > 200, said
    assert counters["received"] == counters["expected"], said
    assert counters["room_received"] > 0 and counters["heartbeats"] > 0, said
    assert sum(report["verification"]["faults"].values()) == 0, said
    assert report["configuration"]["websockets"] == 40
    assert [phase["name"] for phase in report["phases"]] == ["ramp", "load", "settle", "verify", "leave"]
    in_windows = sum(window["counters"].get("acked", 0) for window in report["windows"])
    assert in_windows == counters["acked"]


def test_after_a_storm_all_sessions_are_back_and_nothing_was_lost(tiers, tmp_path):
    scenario = tmp_path / "storm.toml"
    scenario.write_text(
        'connections = 100\nthresholds = ["loss = 0"]\n[connect]\nper_second = 200\n'
        '[[population]]\nname = "regulars"\nshare = 0.8\n[[population]]\nname = "visitors"\nshare = 0.2\n'
        "[single_chat]\nper_second = 50\n"
        '[reconnect_storm]\nshare = 0.5\nat = "1s"\nwithin = "500ms"\nback_within = "500ms"\n'
        '[login_storm]\npopulation = "visitors"\nper_second = 10\nstay = "500ms"\n[[stage]]\nduration = "4s"\n'
    )
    status, said, report = run(tiers, tmp_path, scenario)
    assert status == 0, said
    assert 30 <= report["counters"]["stormed"] <= 50, said
    assert report["counters"]["reconnects"] == report["counters"]["stormed"], said
    assert report["recoveries"][0]["recovered_seconds"] is not None, said
    assert report["counters"]["called"] >= 20, said


def test_frames_that_logic_does_not_know_are_refused_and_the_run_says_so(tiers, tmp_path):
    scenario = tmp_path / "custom.toml"
    scenario.write_text(
        'connections = 4\n[connect]\nper_second = 200\n[[custom]]\ncommand = 0x0777\nper_second = 20\nbody = "x"\n'
        '[[stage]]\nduration = "1s"\n'
    )
    status, said, report = run(tiers, tmp_path, scenario)
    assert status == 99, said
    assert report["counters"]["custom_refused"] == report["counters"]["custom_sent"] == 20, said
    assert "frames were refused" in said
