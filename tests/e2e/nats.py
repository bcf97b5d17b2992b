"""A NATS server with JetStream, as Debian packages it, on a private port; and the little of its protocol that a test needs."""

import json
import os
import shutil
import socket
import subprocess
import time

from processes import port_that_no_connection_takes


class Nats:
    """Its data outlives `kill` and `start`; `stop` ends it for good."""

    def __init__(self, folder):
        program = shutil.which("nats-server", path=os.environ.get("PATH", "") + ":/usr/sbin")
        assert program, "nats-server is missing; install Debian's package nats-server"
        self.folder = folder
        self.port = port_that_no_connection_takes()
        self.command = [
            program, "--jetstream", "--addr", "127.0.0.1", "--port", str(self.port), "--store_dir", str(folder / "nats-data"),
        ]
        self.process = None
        self.start()

    @property
    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    def start(self, seconds=60.0):
        with open(self.folder / "nats.log", "ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + seconds
        while True:
            try:
                if "error" not in self.ask("$JS.API.INFO"):
                    return
            except OSError:
                pass
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "nats.log").read_text()[-4000:]
            time.sleep(0.05)

    def kill(self):
        """SIGKILL: nothing is flushed, nobody is told."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.kill()

    def ask(self, subject):
        """The JSON answer to an empty request, over a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.settimeout(5)
            connection.sendall(b'CONNECT {"verbose":false}\r\nSUB answer 1\r\nPUB ' + subject.encode() + b" answer 0\r\n\r\n")
            stream = connection.makefile("rb")
            while line := stream.readline():
                if line.startswith(b"MSG "):
                    return json.loads(stream.read(int(line.split()[-1])))
        raise ConnectionError("no answer")

    def delete_stream(self, name):
        answer = self.ask(f"$JS.API.STREAM.DELETE.{name}")
        assert answer.get("success"), answer
