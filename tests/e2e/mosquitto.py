"""A Mosquitto broker, as Debian packages it, on a private port."""

import os
import shutil
import socket
import subprocess
import time

from processes import port_that_no_connection_takes


class Mosquitto:
    """Without a store: what it holds is gone with it. `start` again comes back on the same port."""

    def __init__(self, folder, *lines):
        program = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin")
        assert program, "mosquitto is missing; install Debian's package mosquitto"
        self.folder = folder
        self.port = port_that_no_connection_takes()
        configuration = folder / "mosquitto.conf"
        access = () if any("allow_anonymous" in line for line in lines) else ("allow_anonymous true",)
        configuration.write_text("\n".join(["user root", f"listener {self.port} 127.0.0.1", *access, *lines]) + "\n")
        self.command = [program, "-c", str(configuration)]
        self.process = None
        self.start()

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def start(self, seconds=30.0):
        with open(self.folder / "mosquitto.log", "ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                said = (self.folder / "mosquitto.log").read_text()[-4000:]
                assert self.process.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.05)

    def kill(self):
        """SIGKILL: nobody is told."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
