"""A `redis-server` of a test's own, on a private port and without persistence."""

import shutil
import signal
import socket
import subprocess
import time

from processes import port_that_no_connection_takes


class RedisServer:
    """Ended by `stop`; a test that needs it fails where Debian's package redis-server is not there."""

    def __init__(self, folder):
        assert shutil.which("redis-server"), "this test needs redis-server: apt-get install redis-server"
        self.folder = folder
        self.port = port_that_no_connection_takes()
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "",
             "--appendonly", "no", "--daemonize", "no"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while self.say("PING") != "+PONG":
            assert self.process.poll() is None and time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.05)

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def say(self, command):
        """The first line of the reply, or nothing."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
                connection.sendall(command.encode() + b"\r\n")
                return connection.recv(65536).decode(errors="replace").split("\r\n")[0]
        except OSError:
            return ""

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        """SIGKILL, which a paused one obeys too."""
        self.process.kill()
        self.process.wait()
