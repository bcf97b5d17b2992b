"""A PostgreSQL of the tests' own: on a private port, with its data in a temporary folder, ended with the test."""

import os
import pwd
import subprocess
import time
from pathlib import Path

from processes import BINARIES, port_that_no_connection_takes


def program(name):
    """A program of the newest PostgreSQL that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    assert found, "this test needs PostgreSQL: apt-get install postgresql"
    return found[-1]


class PostgresServer:
    """Runs as the user of its package when the tests run as root, because it refuses root."""

    def __init__(self, folder, durable=True):
        self.folder = folder
        self.data = folder / "data"
        # Without the flush a test is faster; the kernel keeps what a killed server has written.
        self.durable = durable
        self.port = port_that_no_connection_takes()
        self.process = None
        self.user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
        if self.user:
            os.chown(folder, self.user.pw_uid, self.user.pw_gid)
            # The folders above are pytest's and closed to others.
            for above in folder.parents:
                if above.stat().st_uid == 0 and above.stat().st_mode & 0o011 == 0:
                    above.chmod(above.stat().st_mode | 0o011)
        self._run(program("initdb"), "--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "-D", self.data)
        self.start()

    @property
    def _as_servant(self):
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []} if self.user else {}

    def _run(self, *arguments):
        done = subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True, cwd="/", **self._as_servant)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self):
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    program("postgres"), "-D", self.data, "-p", str(self.port), "-h", "127.0.0.1", "-c", "max_connections=300",
                    "-c", f"fsync={'on' if self.durable else 'off'}", "-c", "unix_socket_directories=", "-c", "shared_buffers=128MB",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **self._as_servant,
            )
        deadline = time.monotonic() + 60
        while subprocess.run([program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode != 0:
            assert time.monotonic() < deadline and self.process.poll() is None, self.tail()
            time.sleep(0.02)

    def stop(self, at_once=False):
        """Ends it: in order, or as a failing machine would."""
        if self.process and self.process.poll() is None:
            # SIGQUIT: nothing is finished, nobody is told; SIGINT: open transactions are undone, everything is written.
            self.process.send_signal(3 if at_once else 2)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def tail(self):
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def database(self, name="millrace"):
        """A new, migrated database; where it is."""
        self.query("postgres", f"CREATE DATABASE {name}")
        url = self.url(name)
        done = subprocess.run(
            [BINARIES / "millrace-logic", "migrate", "--partitions", "4"], capture_output=True, text=True,
            env={**os.environ, "MILLRACE_STORE__POSTGRES__URL": url},
        )
        assert done.returncode == 0, done.stderr
        return url

    def url(self, name="millrace"):
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def query(self, name, sql):
        """What a statement answers, a line for each row."""
        return self._run(program("psql"), "-h", "127.0.0.1", "-p", self.port, "-U", "postgres", "-d", name, "-qAtc", sql).splitlines()
