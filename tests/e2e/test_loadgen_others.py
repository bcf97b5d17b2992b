"""`millrace-loadgen run` against servers of others: a real MQTT broker, also while it is killed, and a WebSocket echo."""

import json
import subprocess
import time

import pytest

from mosquitto import Mosquitto
from processes import BINARIES, JWT_SECRET, Process

HEAD = 'connections = 40\n[connect]\nper_second = 400\n'
STAGE = '[[stage]]\nduration = "2s"\n'


def command(folder, scenario, *arguments):
    path = folder / "scenario.toml"
    path.write_text(scenario)
    words = [BINARIES / "millrace-loadgen", "run", path, *arguments, "--allow-late", "--quiet", "--json", folder / "report.json"]
    return [str(word) for word in words]


def run(folder, scenario, *arguments):
    """Exit code, what it printed, and its report."""
    done = subprocess.run(command(folder, scenario, *arguments), capture_output=True, text=True, timeout=120)
    report = folder / "report.json"
    return done.returncode, done.stdout + done.stderr, json.loads(report.read_text()) if report.exists() else None


@pytest.fixture
def broker(tmp_path):
    broker = Mosquitto(tmp_path)
    yield broker
    broker.stop()


@pytest.mark.parametrize("qos", [0, 1])
def test_a_broker_delivers_every_message_once_and_in_order(broker, tmp_path, qos):
    scenario = (
        'protocol = "mqtt"\nthresholds = ["loss = 0", "duplicates = 0", "disorder = 0"]\n' + HEAD + f"[mqtt]\nqos = {qos}\n"
        'keep_alive = "1s"\n[single_chat]\nper_second = 200\n[room_broadcast]\nper_second = 10\nmembers = 21\n[heartbeat]\nper_second = 20\n'
        + STAGE
    )
    status, said, report = run(tmp_path, scenario, "--tcp", broker.address)
    assert status == 0, said
    counters = report["counters"]
    assert counters["intended"] == counters["sent"] == counters["received"] == counters["expected"] == 400, said
    assert counters["acked"] == (400 if qos else 0), said
    assert counters["room_sent"] == 20 and counters["room_received"] == 20 * 20, said
    assert counters["redelivered"] == 0 and counters["connections"] == 40, said
    # Forty extra ones of the schedule, and every connection its own within the interval of a second.
    assert counters["heartbeats"] >= 40 + 40, said
    assert report["latency_us"]["delivery_single"]["count"] == 400
    assert report["latency_us"]["delivery_room"]["count"] == 400
    assert report["latency_us"]["login"]["count"] == 40
    assert report["verification"]["found_deliveries"] == report["verification"]["expected_deliveries"] == 400
    assert sum(report["verification"]["faults"].values()) == 0, said


def test_users_who_come_and_go_miss_what_nobody_keeps_and_nothing_else(broker, tmp_path):
    scenario = (
        'protocol = "mqtt"\nthresholds = ["loss = 0", "connections_lost = 0", "recovery max < 30s"]\n' + HEAD
        + '[single_chat]\nper_second = 200\n[presence_churn]\nshare_per_minute = 6\naway_min = "100ms"\naway_max = "400ms"\n'
        '[reconnect_storm]\nshare = 0.5\nat = "1s"\nwithin = "200ms"\nback_within = "500ms"\n[[stage]]\nduration = "4s"\n'
    )
    status, said, report = run(tmp_path, scenario, "--tcp", broker.address)
    assert status == 0, said
    counters = report["counters"]
    assert counters["stormed"] >= 15 and counters["churned"] >= 5, said
    assert counters["reconnects"] == counters["stormed"] + counters["churned"], said
    assert counters["missed"] > 0, said
    # Each message arrived, or came while its recipient was away; one that crossed a break may count as both or neither.
    apart = counters["expected"] - counters["received"] - counters["missed"]
    assert abs(apart) <= counters["stormed"], said


def test_a_broker_that_is_killed_fails_the_run_and_the_report_says_how(broker, tmp_path):
    scenario = 'protocol = "mqtt"\nthresholds = ["loss = 0"]\n' + HEAD + '[single_chat]\nper_second = 200\n[[stage]]\nduration = "6s"\n'
    generator = subprocess.Popen(
        command(tmp_path, scenario, "--tcp", broker.address), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    time.sleep(3)
    broker.kill()
    time.sleep(1)
    broker.start()
    said, _ = generator.communicate(timeout=120)
    assert generator.returncode == 99, said
    assert "connections_lost: 40 (sessions ended that should not have)" in said, said
    report = json.loads((tmp_path / "report.json").read_text())
    counters = report["counters"]
    assert counters["connections_lost"] == counters["reconnects"] == 40, said
    assert report["endings"]["count"] == 40 and any("refused" in error for error in report["errors"]), said
    # Everything that was acknowledged to users who stayed is accounted for, and all was written in the end.
    assert sum(report["verification"]["faults"].values()) == 0, said
    assert counters["acked"] == counters["intended"] == 1200 and counters["unanswered"] == 0, said


def test_a_broker_that_is_killed_is_no_failure_where_faults_are_expected_and_none_at_all_is_one(broker, tmp_path):
    scenario = 'protocol = "mqtt"\nthresholds = ["loss = 0"]\n' + HEAD + '[single_chat]\nper_second = 200\n[[stage]]\nduration = "4s"\n'
    generator = subprocess.Popen(
        command(tmp_path, scenario, "--tcp", broker.address, "--expect-faults"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    time.sleep(2)
    broker.kill()
    broker.start()
    said, _ = generator.communicate(timeout=120)
    assert generator.returncode == 0, said
    broker.stop()
    status, said, _ = run(tmp_path, scenario, "--tcp", broker.address)
    assert status == 121 and "cannot be reached" in said, said


def test_a_broker_that_wants_names_and_passwords_gets_them_or_is_quoted(tmp_path):
    passwords = tmp_path / "passwords"
    users = "\n".join(f"load-{number}:right" for number in range(4)) + "\n"
    passwords.write_text(users)
    subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True, timeout=60)
    passwords.chmod(0o644)
    broker = Mosquitto(tmp_path, "allow_anonymous false", f"password_file {passwords}")
    try:
        scenario = (
            'protocol = "mqtt"\nconnections = 4\n[connect]\nper_second = 400\n[mqtt]\nusername = "{user}"\npassword = "right"\n'
            "[single_chat]\nper_second = 20\n" + STAGE
        )
        status, said, _ = run(tmp_path, scenario, "--tcp", broker.address)
        assert status == 0, said
        status, said, _ = run(tmp_path, scenario.replace('"right"', '"{token}"'), "--tcp", broker.address, "--jwt-secret", JWT_SECRET)
        assert status == 105, said
        assert "only 0 of 4 users are logged in" in said and "CONNACK 5: not authorized" in said, said
    finally:
        broker.stop()


def test_who_says_nothing_is_ended_after_the_time_that_mqtt_allows(broker, tmp_path):
    scenario = (
        'protocol = "mqtt"\nconnections = 4\n[connect]\nper_second = 400\n[mqtt]\nkeep_alive = "2s"\n'
        '[[population]]\nname = "silent"\nheartbeats = false\nreconnects = false\n'
        '[verdict]\nclosed_between = ["2500ms", "9s"]\n[[stage]]\nduration = "10s"\n'
    )
    status, said, report = run(tmp_path, scenario, "--tcp", broker.address)
    assert status == 0, said
    assert report["endings"]["count"] == 4, said


def test_our_own_echo_server_is_driven_like_any_other(tmp_path):
    server = Process([BINARIES / "examples" / "websocket-echo", "127.0.0.1:0"], tmp_path / "echo.log")
    try:
        line = server.process.stdout.readline()
        url = line.split("listening on ")[1].strip()
        scenario = (
            'protocol = "websocket_echo"\nthresholds = ["loss = 0", "duplicates = 0", "disorder = 0"]\n' + HEAD
            + '[websocket_echo]\nping_interval = "500ms"\n[single_chat]\nper_second = 300\n' + STAGE
        )
        status, said, report = run(tmp_path, scenario, "--websocket", url)
        assert status == 0, said
        assert report["counters"]["received"] == report["counters"]["intended"] == 600, said
        assert report["counters"]["heartbeats"] >= 100, said
        assert report["latency_us"]["upgrade"]["count"] == 40
    finally:
        server.terminate()
