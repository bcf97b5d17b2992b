"""The real binaries as processes of the tests: started on free ports, stopped one by one, never by name."""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib import request as http_request

from millrace_client import ROOT, Api, mint_token

BINARIES = Path(os.environ.get("MILLRACE_BINARIES", ROOT / "target" / "release"))
_names = itertools.count()


class Process:
    """One process of ours; its standard error goes to a file that a failure can show."""

    def __init__(self, arguments, log_path, preexec=None):
        self.log_path = Path(log_path)
        self.log = open(self.log_path, "ab")
        self.process = subprocess.Popen(
            [str(argument) for argument in arguments], stdout=subprocess.PIPE, stderr=self.log, text=True,
            preexec_fn=preexec,
        )

    @property
    def pid(self):
        return self.process.pid

    def read_json_line(self, timeout=60.0):
        """The next line of standard output, decoded."""
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        assert ready, f"nothing on standard output within {timeout} s:\n{self.tail()}"
        line = self.process.stdout.readline()
        assert line, f"the process ended before it was ready:\n{self.tail()}"
        return json.loads(line)

    def tail(self):
        return self.log_path.read_text(errors="replace")[-4000:]

    def terminate(self, timeout=30.0):
        """SIGTERM, and the exit status; it must end by itself."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout)
        self.process.stdout.close()
        self.log.close()
        return status

    def kill(self):
        """SIGKILL: nothing is flushed, nobody is told."""
        self.process.kill()
        self.process.wait()

    def resident_bytes(self):
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")


class Dev(Process):
    """`millrace dev --json`: everything in one process."""

    def __init__(self, data, log_path, *extra, preexec=None):
        super().__init__(
            [
                BINARIES / "millrace", "dev", "--json", "--data", data,
                "--websocket", "127.0.0.1:0", "--tcp", "127.0.0.1:0",
                "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", *extra,
            ],
            log_path,
            preexec,
        )
        self.ready = self.read_json_line()
        assert self.ready["ready"] is True
        self.api = Api(self.ready)

    def token(self, user_id, expires_in=3600.0):
        return mint_token(self.ready["jwt_secret"], user_id, expires_in)

    def metric(self, name):
        """The sum of a metric over its labels."""
        return metric(self.ready["admin"], name)

    def user(self):
        """A user id that no other test uses."""
        return f"user-{os.getpid()}-{next(_names)}-{int(time.time())}"

    def connect(self, transport, user_id, device_id="device-1", **options):
        """A logged-in connection."""
        connection = transport(self.ready, **options)
        reply = connection.login(user_id, self.token(user_id), device_id)
        assert reply.code == 0, reply
        connection.login_reply = reply
        return connection


def metric(admin, name):
    opener = http_request.build_opener(http_request.ProxyHandler({}))
    total = 0.0
    with opener.open(admin + "/metrics", timeout=5) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(name) and line[len(name) : len(name) + 1] in ("{", " "):
                total += float(line.rsplit(" ", 1)[1])
    return total


JWT_SECRET = "a-secret-for-the-end-to-end-tests-only"
API_TOKEN = "an-api-token-for-the-end-to-end-tests"


_ports_given = set()


def port_that_no_connection_takes():
    """A free port below those that the kernel gives to outgoing connections: nobody's client has it by chance when we listen on it.

    One that was given before may be meant for a server that does not listen yet, so it is not given again until half of all have been.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = range(max(lowest // 2, 1024), lowest)
    if len(_ports_given) > len(ports) // 2:
        _ports_given.clear()
    while True:
        port = random.choice(ports)
        if port in _ports_given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _ports_given.add(port)
        return port


class Tiers:
    """Gateway and logic as separate processes, each with its TOML."""

    def __init__(self, folder, gateway_preexec=None, gateway_section="", logic_preexec=None):
        self.folder = folder
        self.gateway_preexec = gateway_preexec
        self.logic_preexec = logic_preexec
        self.gateway_section = gateway_section
        self.logic_config = folder / "logic.toml"
        self.gateway_config = folder / "gateway.toml"
        self.logic = self.gateway = None
        self.logic_settings = ""
        self.store_settings = ""
        self.link_settings = ""
        self.logic_links = None
        self.login_settings = ""
        self.gateway_connections = ""
        self.ports = {}

    def free_port(self, name):
        if name not in self.ports:
            self.ports[name] = port_that_no_connection_takes()
        return self.ports[name]

    def start_logic(self):
        self.logic_config.write_text(
            f'{self.logic_settings}\n[store]\ndirectory = "{self.folder / "data"}"\n{self.store_settings}'
            f'[link]\nlisten = "127.0.0.1:{self.free_port("link")}"\n{self.link_settings}'
            f'[http]\nlisten = "127.0.0.1:{self.free_port("http")}"\n'
            f'[grpc]\nlisten = "127.0.0.1:{self.free_port("grpc")}"\n[admin]\nlisten = "127.0.0.1:{self.free_port("logic-admin")}"\n'
            f'[api]\ntoken = "{API_TOKEN}"\n'
            f'[login]\njwt_secret = "{JWT_SECRET}"\n{self.login_settings}'
        )
        self.logic = Process([BINARIES / "millrace-logic", "run", "--config", self.logic_config], self.folder / "logic.log", self.logic_preexec)
        self.until(lambda: self.api().call("GET", "/readyz")[0] == 200, self.logic)

    def start_gateway(self):
        """Linked to the logic of these tiers, or to those at the ports of `logic_links`."""
        endpoints = [f"http://127.0.0.1:{port}" for port in self.logic_links or [self.free_port("link")]]
        self.gateway_config.write_text(
            f'[gateway]\n{self.gateway_section}[listen]\nwebsocket = "127.0.0.1:{self.free_port("websocket")}"\n'
            f'tcp = "127.0.0.1:{self.free_port("tcp")}"\n'
            f'[admin]\nlisten = "127.0.0.1:{self.free_port("admin")}"\n'
            f'[logic]\nendpoints = {json.dumps(endpoints)}\n'
            '[drain]\nshutdown = "3s"\n'
            + (f'[connections]\n{self.gateway_connections}' if self.gateway_connections else "")
        )
        self.gateway = Process(
            [BINARIES / "millrace-gateway", "run", "--config", self.gateway_config], self.folder / "gateway.log",
            self.gateway_preexec,
        )
        self.until(self.gateway_ready, self.gateway)

    def gateway_ready(self):
        opener = http_request.build_opener(http_request.ProxyHandler({}))
        return opener.open(f"{self.ready['admin']}/readyz", timeout=2).status == 200

    @staticmethod
    def until(check, process, seconds=20.0):
        deadline = time.monotonic() + seconds
        while True:
            try:
                if check():
                    return
            except OSError:
                pass
            assert process is None or process.process.poll() is None, process.tail()
            assert time.monotonic() < deadline, process.tail() if process else "not in time"
            time.sleep(0.05)

    @property
    def ready(self):
        return {
            "websocket": f"ws://127.0.0.1:{self.free_port('websocket')}/ws",
            "tcp": f"127.0.0.1:{self.free_port('tcp')}",
            "http": f"http://127.0.0.1:{self.free_port('http')}",
            "admin": f"http://127.0.0.1:{self.free_port('admin')}",
            "jwt_secret": JWT_SECRET,
            "api_token": API_TOKEN,
        }

    def api(self):
        return Api(self.ready)

    def load_generator(self, kind, *options):
        """The command line of `millrace-loadgen` against these tiers; `chat` needs the HTTP door as well."""
        ready = self.ready
        command = [
            BINARIES / "millrace-loadgen", kind, "--tcp", ready["tcp"], "--websocket", ready["websocket"],
            "--jwt-secret", JWT_SECRET,
        ]
        if kind == "chat":
            command += ["--http", ready["http"], "--api-token", API_TOKEN]
        return [*command, *(str(option) for option in options)]

    def connect(self, transport, user_id, device_id="device-1"):
        connection = transport(self.ready)
        reply = connection.login(user_id, mint_token(JWT_SECRET, user_id), device_id)
        assert reply.code == 0, reply
        return connection

    def stop(self):
        for process in (self.gateway, self.logic):
            if process and process.process.poll() is None:
                assert process.terminate() == 0, process.tail()
