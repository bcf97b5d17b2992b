"""Starts the real binaries for the end-to-end tests, and stops exactly what it started."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from urllib import request as http_request

import pytest

from millrace_client import ROOT, Api, mint_token

BINARIES = Path(os.environ.get("MILLRACE_BINARIES", ROOT / "target" / "release"))
_names = itertools.count()


class Process:
    """One process of ours; its standard error goes to a file that a failure can show."""

    def __init__(self, arguments, log_path):
        self.log_path = Path(log_path)
        self.log = open(self.log_path, "ab")
        self.process = subprocess.Popen(
            [str(argument) for argument in arguments], stdout=subprocess.PIPE, stderr=self.log, text=True
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

    def __init__(self, data, log_path, *extra):
        super().__init__(
            [
                BINARIES / "millrace", "dev", "--json", "--data", data,
                "--websocket", "127.0.0.1:0", "--tcp", "127.0.0.1:0",
                "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", *extra,
            ],
            log_path,
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


@pytest.fixture(scope="session")
def dev(tmp_path_factory):
    """One `millrace dev` for all tests that do not restart it."""
    folder = tmp_path_factory.mktemp("dev")
    process = Dev(folder / "data", folder / "log")
    yield process
    status = process.terminate()
    assert status == 0, f"millrace dev ended with {status}:\n{process.tail()}"


@pytest.fixture
def two_users(dev):
    """Two fresh user ids."""
    return dev.user(), dev.user()
