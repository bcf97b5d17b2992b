"""PostgreSQL, Redis and NATS for a run, from Debian's packages, each at a node of its own with its data in the run's folder.

They are set up as a careful operator would have them for the promise that is tested: PostgreSQL with fsync, NATS with JetStream on
the disk; Redis without persistence, so that every restart of it is a loss of everything.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from process import NodeProcess


def program(name, package, *folders):
    """Where a program is; ends the run with one line if it is missing."""
    found = shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if not found:
        sys.exit(f"{name} is missing; install Debian's package {package}")
    return found


def exchange(address, request, until, seconds=2.0):
    """Sends bytes and reads until something is in the answer."""
    with socket.create_connection(address, timeout=seconds) as connection:
        connection.settimeout(seconds)
        connection.sendall(request)
        heard = b""
        while not until(heard):
            data = connection.recv(65536)
            if not data:
                break
            heard += data
        return heard


class Postgres(NodeProcess):
    """A PostgreSQL server; `url` is its database."""

    port = 5432

    def __init__(self, network, folder):
        super().__init__(network, "postgres", folder)
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        self.bin = versions[-1] if versions else Path("/usr/bin")
        self.data = self.folder / "postgres"
        self.data.mkdir()
        # It refuses to run as root.
        self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        if self.as_user:
            account = pwd.getpwnam("postgres")
            os.chown(self.data, account.pw_uid, account.pw_gid)
        done = subprocess.run(
            [*self.as_user, program("initdb", "postgresql", self.bin), "-D", self.data, "-U", "millrace", "-A", "trust", "-E", "UTF8", "--no-sync"],
            capture_output=True, text=True, cwd=self.data,
        )
        assert done.returncode == 0, done.stderr
        with open(self.data / "pg_hba.conf", "a") as access:
            access.write("host all all 0.0.0.0/0 trust\n")

    @property
    def url(self):
        return f"postgresql://millrace@{self.address}:{self.port}/postgres"

    def command(self):
        settings = {"listen_addresses": self.address, "port": self.port, "unix_socket_directories": "", "max_connections": 200,
                    "shared_buffers": "128MB", "logging_collector": "off"}
        flags = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [*self.as_user, program("postgres", "postgresql", self.bin), "-D", self.data, *flags]

    def start(self):
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        super().start()

    def ready(self):
        asked = subprocess.run(["psql", "-qtAc", "select 1", self.url], capture_output=True, text=True, timeout=5)
        return asked.stdout.strip() == "1"

    def end(self, seconds=40.0, number=signal.SIGINT):
        """Without waiting for its clients."""
        return super().end(seconds, number)


class Redis(NodeProcess):
    port = 6379

    def __init__(self, network, folder):
        super().__init__(network, "redis", folder)

    @property
    def url(self):
        return f"redis://{self.address}:{self.port}"

    def command(self):
        return [program("redis-server", "redis-server"), "--port", self.port, "--bind", self.address, "--save", "", "--appendonly", "no",
                "--protected-mode", "no", "--dir", self.folder]

    def ready(self):
        return b"+PONG" in exchange((self.address, self.port), b"PING\r\n", lambda heard: b"\r\n" in heard)

    def flush(self):
        """Everything is gone."""
        answer = exchange((self.address, self.port), b"FLUSHALL\r\n", lambda heard: b"\r\n" in heard)
        assert b"+OK" in answer, answer


class Nats(NodeProcess):
    port = 4222

    def __init__(self, network, folder):
        super().__init__(network, "nats", folder)

    @property
    def url(self):
        return f"nats://{self.address}:{self.port}"

    def command(self):
        return [program("nats-server", "nats-server"), "--jetstream", "--addr", self.address, "--port", self.port,
                "--store_dir", self.folder / "nats"]

    def ready(self):
        return b"account_info_response" in self.ask("$JS.API.INFO")

    def ask(self, subject, body=""):
        heard = exchange(
            (self.address, self.port),
            f'CONNECT {{"verbose":false}}\r\nSUB answer 1\r\nPUB {subject} answer {len(body)}\r\n{body}\r\n'.encode(),
            lambda heard: b"MSG answer" in heard and heard.rstrip().endswith(b"}"),
        )
        return heard

    def streams(self):
        heard = self.ask("$JS.API.STREAM.NAMES")
        return json.loads(heard[heard.index(b'{"type"') :].decode().strip()).get("streams") or []

    def delete_streams(self):
        """Every stream is gone, with what it held; returns their names."""
        names = self.streams()
        for name in names:
            self.ask(f"$JS.API.STREAM.DELETE.{name}")
        return names
