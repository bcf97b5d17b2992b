"""Every file in configs/ says what the programs understand: nothing in it has gone stale."""

import ctypes
import json
import re
import socket
import ssl
import subprocess
from urllib import request as http_request
from urllib.error import HTTPError

import pytest
import yaml
from websockets.sync.client import connect as websocket_connect

import deployments
from deployments import CONFIGS, MACHINES, UNITS, check, defaults, seconds, toml, unit
from millrace_client import (
    HEARTBEAT, ROOT, SEND_MESSAGE, TcpConnection, WebSocketConnection, decode_frames, encode_frame, mint_token, text_message,
)
from processes import API_TOKEN, BINARIES, JWT_SECRET, Process, Tiers, metric
from seccomp import allow_only

# Of every way of deploying that is there.
GATEWAYS = sorted(path for path in CONFIGS.rglob("gateway.toml") if path.parent != CONFIGS)
LOGICS = sorted(path for path in CONFIGS.rglob("logic.toml") if path.parent != CONFIGS)
ONE_MACHINE = CONFIGS / "one-machine"
# Where only the administrator's path leads.
HAPROXY = "/usr/sbin/haproxy"
# Of prctl(2).
PR_CAPBSET_DROP, PR_SET_MDWE = 24, 65


def name(path):
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", [CONFIGS / "gateway.toml", *GATEWAYS], ids=name)
def test_the_gateway_takes_its_files(path):
    done = check("millrace-gateway", path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [CONFIGS / "logic.toml", *LOGICS], ids=name)
def test_logic_takes_its_files(path):
    done = check("millrace-logic", path)
    assert done.returncode == 0, done.stderr


def test_a_file_with_a_wrong_key_would_be_noticed(tmp_path):
    for program, path in (("millrace-gateway", ONE_MACHINE / "gateway.toml"), ("millrace-logic", ONE_MACHINE / "logic.toml")):
        (tmp_path / "file.toml").write_text(path.read_text() + "\n[link]\nlisten_on = 1\n[logic]\nendpoint = 1\n")
        assert check(program, tmp_path / "file.toml").returncode == 1


# systemd


def test_units_name_programs_options_and_files_that_exist():
    for service, program in (("millrace-gateway.service", "millrace-gateway"), ("millrace-logic.service", "millrace-logic")):
        tier = program.removeprefix("millrace-")
        for command, verb in zip([*unit(service)["ExecStartPre"], *unit(service)["ExecStart"]], ("check", "run"), strict=True):
            assert command.split() == [f"/usr/local/bin/{program}", verb, "--config", f"/etc/millrace/{tier}.toml"]
        helped = subprocess.run([BINARIES / program, "run", "--help"], capture_output=True, text=True)
        assert helped.returncode == 0 and "--config" in helped.stdout
    assert toml(ONE_MACHINE / "logic.toml")["store"]["directory"] == "/var/lib/" + unit("millrace-logic.service")["StateDirectory"][0]
    example = (UNITS / "secrets.env.example").read_text()
    source = (ROOT / "logic" / "src" / "config.rs").read_text()
    for line in example.splitlines():
        if "MILLRACE_" in line:
            assert f'"{line.lstrip("#").split("=")[0]}"' in source, line


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path):
    for service in ("millrace-gateway.service", "millrace-logic.service"):
        # The programs are where they were built, and the user may not exist here.
        text = (UNITS / service).read_text().replace("/usr/local/bin/", f"{BINARIES}/").replace("=millrace\n", "=root\n", 2)
        (tmp_path / service).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *tmp_path.glob("*.service")], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "millrace" in line]
    assert done.returncode == 0 and not said, done.stderr


def test_the_sysctl_file_gives_the_largest_gateway_what_it_asks_for():
    lines = [line.lstrip("-").split("=") for line in (UNITS / "millrace.sysctl.conf").read_text().splitlines() if "=" in line and not line.startswith("#")]
    given = {key.strip(): [int(word) for word in value.split()] for key, value in lines}
    asked = re.findall(r"^ +(?:ok|MEND) +([a-z0-9_.]+)(?: \(pressure, pages\))? is \d+.* needed: (\d+)", check("millrace-gateway", ONE_MACHINE / "gateway.toml").stdout.replace("(needed", " needed"), re.M)
    assert {"net.core.somaxconn", "net.ipv4.tcp_mem", "kernel.io_uring_disabled"} <= {key for key, _ in asked}, "check words its findings in another way"
    for key, needed in asked:
        if key in given:
            # Of three values the second is where the kernel begins to hold back.
            value = given[key][len(given[key]) // 2]
            assert value >= int(needed) if key != "kernel.io_uring_disabled" else value <= int(needed), key
    assert set(given) - {key for key, _ in asked} <= {"net.ipv4.ip_local_port_range", "net.netfilter.nf_conntrack_max"}


OF_UNITS = [path.parent for path in GATEWAYS if path.parent.name == "one-machine" or path.parent in MACHINES]


@pytest.mark.parametrize("folder", OF_UNITS, ids=lambda folder: folder.name)
def test_units_give_the_time_to_leave(folder):
    assert int(unit("millrace-gateway.service")["TimeoutStopSec"][0]) > deployments.gateway_leaves_s(folder / "gateway.toml")
    assert int(unit("millrace-logic.service")["TimeoutStopSec"][0]) > 2 * deployments.logic_leaves_s(folder / "logic.toml")


@pytest.mark.parametrize("path", GATEWAYS, ids=name)
def test_one_lost_heartbeat_ends_nobody(path):
    connections = {**defaults("millrace-gateway")["connections"], **toml(path).get("connections", {})}
    assert seconds(connections["idle_timeout"]) >= 2 * seconds(connections["heartbeat_interval"])


def as_the_unit(service):
    """For `preexec_fn`: no capabilities, no memory that is written and run, and no other system calls than the unit allows."""
    found = unit(service)
    assert found["CapabilityBoundingSet"] == [""] and found["MemoryDenyWriteExecute"] == ["yes"]
    judge = allow_only(deployments.system_calls(found["SystemCallFilter"]))

    def become():
        prctl = ctypes.CDLL(None).prctl
        for capability in range(64):
            # Without the right to, or beyond the last one: there is nothing to take away.
            prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        prctl(PR_SET_MDWE, 1, 0, 0, 0)
        judge()

    return become


class OneMachine(Tiers):
    """The files of one machine, with the folders and ports of a test in them; started by the command lines of the units, under their filters."""

    def __init__(self, folder):
        super().__init__(folder, gateway_preexec=as_the_unit("millrace-gateway.service"), logic_preexec=as_the_unit("millrace-logic.service"))

    def start_tier(self, tier, **addresses):
        config = toml(ONE_MACHINE / f"{tier}.toml")
        for place, value in addresses.items():
            section, key = place.split("__")
            config.setdefault(section, {})[key] = value
        lines = []
        for section, keys in config.items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        path = self.folder / f"{tier}.toml"
        # The directories that systemd makes, and no others.
        service = unit(f"millrace-{tier}.service")
        text = "\n".join(lines) + "\n"
        for kind, directive in (("lib", "StateDirectory"), ("log", "LogsDirectory")):
            for name in service.get(directive, []):
                (self.folder / kind / name).mkdir(parents=True)
                text = text.replace(f"/var/{kind}/{name}", str(self.folder / kind / name))
        assert "/var/" not in text, text
        path.write_text(text)
        preexec = {"gateway": self.gateway_preexec, "logic": self.logic_preexec}[tier]
        return Process([BINARIES / f"millrace-{tier}", *service["ExecStart"][0].split()[1:-1], path], self.folder / f"{tier}.process.log", preexec)

    def start(self):
        address = lambda name: f"127.0.0.1:{self.free_port(name)}"
        self.logic = self.start_tier(
            "logic", link__listen=address("link"), http__listen=address("http"), admin__listen=address("logic-admin"), api__token=API_TOKEN, login__jwt_secret=JWT_SECRET)
        self.gateway = self.start_tier(
            "gateway", listen__websocket=address("websocket"), listen__tcp=address("tcp"), admin__listen=address("admin"), logic__endpoints=[f"http://{address('link')}"])
        self.until(self.gateway_ready, self.gateway)


def test_one_machines_files_carry_a_chat_under_the_units_filters_and_io_uring_survives(tmp_path):
    tiers = OneMachine(tmp_path)
    tiers.start()
    try:
        alice, bob = tiers.connect(TcpConnection, "alice"), tiers.connect(WebSocketConnection, "bob")
        assert alice.request(SEND_MESSAGE, text_message(to="bob", body="hello")).code == 0
        assert [message.body for message in bob.messages(1)] == ["hello"]
        assert metric(tiers.ready["admin"], 'millrace_driver{name="io_uring"}') == 1
        alice.close()
        bob.close()
    finally:
        tiers.stop()


def test_without_io_uring_in_the_filter_that_test_would_fail(tmp_path):
    calls = deployments.system_calls(unit("millrace-gateway.service")["SystemCallFilter"]) - {"io_uring_setup"}
    done = subprocess.run([BINARIES / "millrace-gateway", "check", "--config", ONE_MACHINE / "gateway.toml"], capture_output=True, text=True, preexec_fn=allow_only(calls))
    assert done.returncode == 0 and "carried by epoll" in done.stdout, done.stdout + done.stderr


# What ends TLS


@pytest.fixture
def certificate(tmp_path):
    """A file with a certificate for localhost and its key, as HAProxy wants it."""
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", tmp_path / "key.pem", "-out", tmp_path / "certificate.pem"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    whole = tmp_path / "chat.pem"
    whole.write_text((tmp_path / "certificate.pem").read_text() + (tmp_path / "key.pem").read_text())
    return whole


def test_the_proxy_leads_to_gateway_and_logic(tiers, tmp_path, certificate):
    text = (CONFIGS / "haproxy" / "haproxy.cfg").read_text()
    tunnel = int(re.search(r"timeout tunnel (\d+)s", text).group(1))
    assert tunnel > seconds(toml(ONE_MACHINE / "gateway.toml")["connections"]["idle_timeout"])
    ports = {443: tiers.free_port("proxy"), 8443: tiers.free_port("proxy-tcp")}
    # The ports of the test's own processes, and those of privileged users.
    for asked, name in ((8080, "websocket"), (8081, "tcp"), (9600, "admin"), (9710, "http"), (9701, "logic-admin")):
        text = re.sub(rf"\b{asked}\b", str(tiers.free_port(name)), text)
    for asked, port in ports.items():
        text = text.replace(f"bind :{asked} ", f"bind 127.0.0.1:{port} ")
    text = re.sub(r"^ +(user|group) haproxy\n", "", text, flags=re.M).replace("/etc/haproxy/chat.pem", str(certificate))
    path = tmp_path / "haproxy.cfg"
    # So many descriptors are not here.
    path.write_text(text.replace("maxconn 50000", "maxconn 1000"))
    judged = subprocess.run([HAPROXY, "-c", "-f", path], capture_output=True, text=True)
    assert judged.returncode == 0 and "WARNING" not in judged.stderr, judged.stderr
    proxy = Process([HAPROXY, "-db", "-f", path], tmp_path / "haproxy.log")
    try:
        trust = ssl.create_default_context(cafile=str(certificate))
        opener = http_request.build_opener(http_request.ProxyHandler({}), http_request.HTTPSHandler(context=trust))

        def answers():
            try:
                return opener.open(f"https://localhost:{ports[443]}/v1/openapi.json", timeout=5).status == 200
            except HTTPError:
                # Not yet asked whether logic is ready.
                return False

        tiers.until(answers, proxy)
        with pytest.raises(HTTPError) as refused:
            opener.open(f"https://localhost:{ports[443]}/metrics", timeout=5)
        assert refused.value.code == 404
        with websocket_connect(f"wss://localhost:{ports[443]}/ws", subprotocols=["millrace.v1.json"], ssl=trust, proxy=None) as websocket:
            websocket.send(json.dumps({"command": "login", "request_id": 1, "body": {
                "user_id": "behind-a-proxy", "token": mint_token(JWT_SECRET, "behind-a-proxy"), "device_id": "d", "platform": "web"}}))
            reply = json.loads(websocket.recv(timeout=10))
            assert reply["request_id"] == 1 and not reply["body"].get("code"), reply
        with socket.create_connection(("127.0.0.1", ports[8443]), timeout=10) as plain, trust.wrap_socket(plain, server_hostname="localhost") as secured:
            secured.sendall(encode_frame(HEARTBEAT, request_id=7))
            assert decode_frames(bytearray(secured.recv(4096)))[0].request_id == 7
    finally:
        proxy.terminate()


# Three machines


def test_the_files_of_three_machines_differ_in_the_machine_alone():
    assert len(MACHINES) == 3
    for path in MACHINES[0].iterdir():
        for number, folder in enumerate(MACHINES, 1):
            lines = [line for line in (folder / path.name).read_text().splitlines() if not line.startswith("replicaof ")]
            other = [line for line in path.read_text().splitlines() if not line.startswith("replicaof ")]
            for line, first in zip(lines, other, strict=True):
                # A line that names one machine names this one; those that name all of them are the same.
                assert line == first or line == first.replace("10.0.0.11", f"10.0.0.1{number}").replace("-1", f"-{number}").replace("gw1", f"gw{number}").replace(
                    "machine 1", f"machine {number}"), f"{folder.name}/{path.name}: {line}"
    for kind, section, key in (("gateway", "gateway", "id"), ("logic", "link", "logic_id")):
        names = [toml(folder / f"{kind}.toml")[section][key] for folder in MACHINES]
        assert len(set(names)) == 3, names
    links = [toml(folder / "logic.toml")["link"]["listen"] for folder in MACHINES]
    for folder in MACHINES:
        assert toml(folder / "gateway.toml")["logic"]["endpoints"] == [f"http://{link}" for link in links]


# Prometheus


def test_prometheus_asks_the_three_machines_where_they_answer():
    asked = {job["job_name"]: job["static_configs"][0]["targets"] for job in yaml.safe_load((CONFIGS / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]}
    for tier in ("gateway", "logic"):
        assert asked[f"millrace-{tier}"] == [toml(folder / f"{tier}.toml")["admin"]["listen"] for folder in MACHINES]


def test_alerts_ask_for_metrics_that_the_programs_have(tiers):
    there = set()
    for address in (tiers.ready["admin"], f"http://127.0.0.1:{tiers.free_port('logic-admin')}"):
        opener = http_request.build_opener(http_request.ProxyHandler({}))
        text = opener.open(f"{address}/metrics", timeout=5).read().decode()
        there |= {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    assert len(there) > 100
    for rule in deployments.alert_rules():
        for asked in deployments.metrics_of(rule["expr"]):
            # One exposition names a counter in its TYPE with `_total`, the other without.
            assert {asked, re.sub(r"_(bucket|total)$", "", asked)} & there, f"{rule['alert']}: {asked} is no metric"
        assert {"alert", "expr", "annotations"} <= set(rule) and {"summary", "description"} <= set(rule["annotations"])
