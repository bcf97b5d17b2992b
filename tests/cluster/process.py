"""One process of a run, at its node of the network: started, killed, paused, continued, ended; its output goes to a file.

Signals go to this process, and where it has children of its own (PostgreSQL) to them as well.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import time
from pathlib import Path

import network as networks

# The kernel takes the end of the thread that started a process for the end of its parent, so one thread starts them all.
SPAWNER = concurrent.futures.ThreadPoolExecutor(max_workers=1)


class NodeProcess:
    def __init__(self, network, name, folder):
        self.network, self.name, self.folder = network, name, Path(folder)
        self.address = network.add(name)
        self.process = None
        self.life = 0
        self.paused = False

    # What a kind of node says of itself.
    def command(self):
        raise NotImplementedError

    def ready(self):
        """Whether it answers; may raise OSError while it does not."""
        raise NotImplementedError

    user = None
    environment = {}
    # Whether what it does cannot be read in its log.
    is_silent = False

    @property
    def log_path(self):
        return self.folder / f"{self.name}.log"

    def start(self):
        """Starts it and does not wait."""
        assert self.process is None, f"{self.name} runs"
        self.life += 1
        command = [str(word) for word in self.network.command(self.name, *self.command())]
        with open(self.log_path, "ab") as log:
            self.process = SPAWNER.submit(
                subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self.environment},
                preexec_fn=None if self.network.has_namespaces else networks.ends_with_us, cwd=self.folder,
            ).result()

    def wait_until_ready(self, seconds=60.0):
        """False: it ended instead."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self.ready():
                    return True
            except OSError:
                pass
            if self.process is None or self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"{self.name} does not answer:\n{self.tail()}"
            time.sleep(0.03)

    def tail(self):
        return self.log_path.read_text(errors="replace")[-3000:] if self.log_path.exists() else ""

    def family(self):
        """The ids of the process and of what it has started."""
        children = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                except (OSError, IndexError):
                    continue
                children.setdefault(parent, []).append(int(entry.name))
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            todo += children.get(pid, [])
        return found

    def signal_all(self, number):
        for pid in self.family():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def kill(self):
        """As a power switch does."""
        if self.process:
            self.signal_all(signal.SIGKILL)
            self.process.wait()
            self.process, self.paused = None, False

    def pause(self):
        self.signal_all(signal.SIGSTOP)
        self.paused = True

    def go_on(self):
        if self.process:
            self.signal_all(signal.SIGCONT)
        self.paused = False

    def end(self, seconds=40.0, number=signal.SIGTERM):
        """Asks it to end, and waits for it; returns its status, None if it had to be killed."""
        if not self.process:
            return 0
        self.process.send_signal(number)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        self.process = None
        return status
