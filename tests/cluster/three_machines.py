#!/usr/bin/env python3
"""The files of configs/three-machines, run as they are: three machines in network namespaces, clients at each, and one machine that dies.

    .venv/bin/python tests/cluster/three_machines.py                 machine 3 loses its power
    .venv/bin/python tests/cluster/three_machines.py --dies 1        the one with PostgreSQL's primary: machine 2 is promoted after 5 s

Each machine has its address of the files, 10.0.0.11 to 10.0.0.13, and runs PostgreSQL, Redis, Sentinel, NATS, logic and a gateway with its own
files, as docs/deploy.md says; gateway and logic by the command lines of their units. All that is changed of a file is where folders are.
One user at each machine sends to the next one ten times a second and writes down what became of it. It takes root and namespaces, and
Debian's postgresql, redis-server, redis-sentinel (a name of redis-server) and nats-server. Exit code 0: whatever was acknowledged is there, once, and
everybody could send again.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from network import Network, enter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from deployments import CONFIGS, MACHINES, toml, unit
from millrace_client import DELIVER, DELIVER_ACK, PULL_MESSAGES, SEND_MESSAGE, Closed, Refused, TcpConnection, chat, mint_token, text_message
from nodes import BINARIES, ask
from services import exchange, program

PASSWORD = "a-password-of-the-test"
SECRETS = {
    "MILLRACE_LOGIN__JWT_SECRET": "a-secret-that-signs-the-tokens-of-this-test",
    "MILLRACE_API__TOKEN": "an-api-token-of-this-test",
    "MILLRACE_STORE__POSTGRES__URL": f"postgresql://millrace:{PASSWORD}@10.0.0.11,10.0.0.12,10.0.0.13/millrace?target_session_attrs=read-write&connect_timeout=1",
}
EVERY_S = 0.1
PATIENCE_S = 90.0


class Machine:
    """One machine: its processes, and its files in a folder of its own."""

    def __init__(self, network, folder, source):
        self.number = int(source.name[-1])
        self.name, self.network = source.name, network
        self.address = toml(source / "gateway.toml")["listen"]["tcp"].rsplit(":", 1)[0]
        network.add(self.name, self.address)
        self.folder = folder / self.name
        self.etc, self.var = self.folder / "etc", self.folder / "var"
        for made in (self.etc, *(self.var / name for name in ("millrace", "redis", "nats", "postgresql"))):
            made.mkdir(parents=True)
        for file in source.iterdir():
            (self.etc / file.name).write_text(file.read_text().replace("/var/lib/", f"{self.var}/").replace("/var/log/millrace/", f"{self.var}/"))
        self.postgres_bin = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))[-1]
        self.data = self.var / "postgresql" / "main"
        account = pwd.getpwnam("postgres")
        os.chown(self.var / "postgresql", account.pw_uid, account.pw_gid)
        self.processes = {}

    def start(self, name, command, environment=None):
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                self.network.command(self.name, *map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                env={**os.environ, **(environment or {})},
            )

    def run(self, *command, user=None, **environment):
        words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        done = subprocess.run(
            self.network.command(self.name, *words, *map(str, command)), capture_output=True, text=True, cwd="/", env={**os.environ, **environment}, timeout=120)
        assert done.returncode == 0, f"{self.name}: {command[0]}: {done.stdout}{done.stderr}"
        return done.stdout

    # PostgreSQL, as docs/deploy.md sets it up.

    def initialize_postgres(self):
        self.run(self.postgres_bin / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", user="postgres")
        with open(self.data / "pg_hba.conf", "a") as access:
            access.write((CONFIGS / "three-machines" / "pg_hba.conf").read_text())

    def follow(self):
        """A standby that follows whichever machine is the primary."""
        where = f"host=10.0.0.11,10.0.0.12,10.0.0.13 target_session_attrs=read-write tcp_user_timeout=3000 user=standby application_name=machine{self.number}"
        self.run(self.postgres_bin / "pg_basebackup", "-d", where, "-D", self.data, "-R", "-X", "stream", "-c", "fast", "--no-sync", user="postgres", PGPASSWORD=PASSWORD)

    def start_postgres(self):
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        settings = self.var / "postgresql" / "millrace.conf"
        # So much memory is not here three times.
        settings.write_text((CONFIGS / "three-machines" / "postgresql.conf").read_text().replace("shared_buffers = 4GB", "shared_buffers = 64MB"))
        own = self.data / "postgresql.conf"
        if "millrace.conf" not in own.read_text():
            own.write_text(f"{own.read_text()}\ninclude '{settings}'\n")
        account = pwd.getpwnam("postgres")
        for path in (settings, own):
            os.chown(path, account.pw_uid, account.pw_gid)
        self.start("postgres", ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", self.postgres_bin / "postgres", "-D", self.data,
                                "-c", f"unix_socket_directories={self.var / 'postgresql'}"])

    def sql(self, statement, **environment):
        return self.run(self.postgres_bin / "psql", "-h", self.var / "postgresql", "-U", "postgres", "-qAtc", statement, user="postgres", **environment).strip()

    # The others.

    def start_services(self):
        self.start("redis", [program("redis-server", "redis-server"), self.etc / "redis.conf"])
        self.start("sentinel", [program("redis-server", "redis-server"), self.etc / "sentinel.conf", "--sentinel"])
        self.start("nats", [program("nats-server", "nats-server"), "-c", self.etc / "nats-server.conf"])

    def start_tier(self, tier):
        """By the unit's command line."""
        for verb in ("ExecStartPre", "ExecStart"):
            (line,) = unit(f"millrace-{tier}.service")[verb]
            command = line.replace("/usr/local/bin", str(BINARIES)).replace("/etc/millrace", str(self.etc)).split()
            if verb == "ExecStartPre":
                self.run(*command, **SECRETS)
            else:
                self.start(tier, command, SECRETS)

    def lose_power(self):
        subprocess.run(["ip", "link", "set", self.name, "down"], check=True)
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()


class User(threading.Thread):
    """One user: sends to another, a message each tenth of a second whatever becomes of it, and takes what comes."""

    def __init__(self, number, machines, to):
        super().__init__(daemon=True)
        self.name, self.to, self.machines = f"user-{number}", to, machines
        self.at = number - 1
        self.waited, self.heard, self.logins = {}, {}, []
        self.conversation = None
        self.over, self.connection = threading.Event(), None

    def connect(self):
        while True:
            address = self.machines[self.at % 3].address
            try:
                connection = TcpConnection({"tcp": f"{address}:8081"})
                reply = connection.login(self.name, mint_token(SECRETS["MILLRACE_LOGIN__JWT_SECRET"], self.name))
                if reply.code != 0:
                    raise TimeoutError(reply.reason)
                self.logins.append((self.at % 3 + 1, time.monotonic()))
                self.connection = connection
                return
            except (OSError, Closed, Refused, TimeoutError):
                # The next machine, as a client that is told of several goes.
                self.at += 1
                time.sleep(0.2)

    def take(self):
        for frame in [frame for frame in self.connection.inbox if frame.command == DELIVER]:
            self.connection.inbox.remove(frame)
            for message in frame.parse(chat.Deliver).messages:
                self.heard.setdefault(message.body, time.monotonic())
                self.connection.send(DELIVER_ACK, chat.DeliverAck(conversation_id=message.conversation_id, sequence=message.sequence), request_id=0)

    def send(self, text, intended):
        while True:
            try:
                if self.connection is None:
                    self.connect()
                reply = self.connection.request(SEND_MESSAGE, text_message(to=self.to, body=text, client_message_id=text), timeout=3.0)
                self.conversation = reply.conversation_id
                self.waited[text] = time.monotonic() - intended
                return self.take()
            except Refused:
                time.sleep(0.2)
            except (OSError, Closed, TimeoutError):
                self.connection.close()
                self.connection = None
                self.at += 1

    def run(self):
        number, began = 0, time.monotonic()
        while not self.over.is_set():
            intended = began + number * EVERY_S
            time.sleep(max(0.0, intended - time.monotonic()))
            self.send(f"{self.name}: {number}", intended)
            number += 1

    def hears(self, text, seconds=PATIENCE_S):
        """Whether a message is pushed to this user's one device, now or soon."""
        deadline = time.monotonic() + seconds
        while text not in self.heard and time.monotonic() < deadline:
            self.connection.inbox.extend(self.connection.receive_frames(0.1))
            self.take()
        return text in self.heard

    def all_of(self, conversation):
        """Everything that is stored in it."""
        found, after = [], 0
        while True:
            reply = self.connection.request(PULL_MESSAGES, chat.PullMessages(conversation_id=conversation, from_sequence=after + 1, limit=100))
            if not reply.messages:
                return found
            found += [(message.sequence, message.body) for message in reply.messages]
            after = found[-1][0]


def wait(what, check, seconds=PATIENCE_S):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
        except (OSError, AssertionError, subprocess.SubprocessError):
            pass
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


def start(machines):
    """In the order of docs/deploy.md."""
    first, others = machines[0], machines[1:]
    first.initialize_postgres()
    first.start_postgres()
    wait("PostgreSQL", lambda: first.sql("select 1") == "1")
    # Nothing is durable on two machines yet, so these do not wait for it.
    for statement in (f"create role standby replication login password '{PASSWORD}'", f"create role millrace login password '{PASSWORD}'",
                      "create database millrace owner millrace"):
        first.sql(statement, PGOPTIONS="-c synchronous_commit=local")
    for machine in machines:
        machine.start_services()
    for machine in others:
        machine.follow()
        machine.start_postgres()
    wait("standbys", lambda: first.sql("select count(*) from pg_stat_replication where sync_state = 'quorum'") == "2")
    for machine in machines:
        hello = lambda port, word, answer: answer in exchange((machine.address, port), word, lambda heard: b"\n" in heard)
        wait("Redis", lambda: hello(6379, b"PING\r\n", b"PONG"))
        wait("NATS", lambda: b"account_info" in exchange((machine.address, 4222), b'CONNECT {"verbose":false}\r\nSUB answer 1\r\nPUB $JS.API.INFO answer 0\r\n\r\n',
             lambda heard: b"MSG answer" in heard and heard.rstrip().endswith(b"}")))
        wait("Sentinel", lambda: b"10.0.0.11" in exchange((machine.address, 26379), b"SENTINEL GET-MASTER-ADDR-BY-NAME millrace\r\n", lambda heard: heard.count(b"\r\n") > 4))
    first.run(BINARIES / "millrace-logic", "migrate", "--config", first.etc / "logic.toml", **SECRETS)
    for tier, port in (("logic", 9701), ("gateway", 9600)):
        for machine in machines:
            machine.start_tier(tier)
        for machine in machines:
            wait(f"{tier} of {machine.name}", lambda: ask(machine.address, port, "/readyz")[0] == 200)


def links_up(machine):
    lines = [line for line in ask(machine.address, 9600, "/metrics")[1].decode().splitlines() if line.startswith("millrace_link_up{")]
    return sum(line.endswith(" 1") for line in lines), len(lines)


def judge(machines, users, died_at):
    """Everything acknowledged is there once, and who was sent something knows of it; prints what was seen and returns what is wrong."""
    wrong = []
    for user in users:
        stored = user.all_of(user.conversation)
        bodies = [body for _, body in stored if body.startswith(user.name)]
        lost = set(user.waited) - set(bodies)
        wrong += [f"{user.name}: {len(lost)} acknowledged messages are not there"] if lost else []
        wrong += [f"{user.name}: something is stored twice"] if len(bodies) != len(set(bodies)) else []
        wrong += [f"{user.name}: a gap in the sequences"] if [sequence for sequence, _ in stored] != list(range(1, len(stored) + 1)) else []
        other = next(other for other in users if other.name == user.to)
        # A client that has the newest knows of all before it, and pulls what it has not: a login pushes the newest twenty.
        newest = max(user.waited, key=lambda text: int(text.split(": ")[1]))
        wrong += [] if other.hears(newest) else [f"{other.name} was not told of the newest message of {user.name}"]
        pushed = len(set(user.waited) & set(other.heard))
        waits = sorted(user.waited.values())
        places = ", ".join(f"machine {number}{f' {at - died_at:+.1f} s' if at > died_at else ''}" for number, at in user.logins)
        print(f"{user.name}: {len(waits)} messages acknowledged, {len(lost)} of them lost, {pushed} pushed to {other.name}; p50 {waits[len(waits) // 2] * 1000:.0f} ms, "
              f"longest {waits[-1]:.2f} s, above 1 s: {sum(wait > 1 for wait in waits)}; logged in at {places}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dies", type=int, choices=(0, 1, 2, 3), default=3, help="the machine that loses its power; 0: none")
    parser.add_argument("--before", type=float, default=3.0, help="seconds of quiet talk before it")
    parser.add_argument("--after", type=float, default=6.0, help="seconds of talk after it")
    parser.add_argument("--operator", type=float, default=5.0, help="with --dies 1: seconds until the operator promotes machine 2")
    parser.add_argument("--keep", type=Path, help="a folder for all files and logs, which stays")
    arguments = parser.parse_args()
    enter()
    network = Network()
    if not network.has_namespaces:
        sys.exit("this takes root and network namespaces")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="millrace-three-", ignore_cleanup_errors=True) as folder:
        folder = arguments.keep or Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        machines = [Machine(network, folder, source) for source in MACHINES]
        start(machines)
        print(f"three machines are up after {time.monotonic() - began:.1f} s; links up of each gateway: " + ", ".join("{} of {}".format(*links_up(machine)) for machine in machines), flush=True)
        users = [User(number, machines, f"user-{number % 3 + 1}") for number in (1, 2, 3)]
        for user in users:
            user.connect()
        for user in users:
            user.start()
        time.sleep(arguments.before)
        died_at = time.monotonic()
        if arguments.dies:
            machines[arguments.dies - 1].lose_power()
            print(f"machine {arguments.dies} lost its power", flush=True)
        if arguments.dies == 1:
            time.sleep(arguments.operator)
            # The operator's part: the standby that has the most.
            alive = machines[1:]
            chosen = max(alive, key=lambda machine: int(machine.sql("select pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')").split(".")[0]))
            chosen.sql("select pg_promote()")
            print(f"{chosen.name} was promoted", flush=True)
        time.sleep(arguments.after)
        deadline = time.monotonic() + PATIENCE_S
        for user in users:
            user.over.set()
        for user in users:
            user.join(max(0.1, deadline - time.monotonic()))
        wrong = [f"{user.name} cannot send any more" for user in users if user.is_alive()]
        if not wrong:
            wrong = judge(machines, users, died_at)
        for user in users:
            if user.connection:
                user.connection.close()
        alive = [machine for machine in machines if machine.number != arguments.dies]
        for machine in alive:
            ended = [name for name, process in machine.processes.items() if process.poll() is not None]
            wrong += [f"{name} of {machine.name} ended by itself" for name in ended]
        # In good order, as their units would.
        for tier in ("gateway", "logic"):
            for machine in alive:
                machine.processes[tier].terminate()
            for machine in alive:
                status = machine.processes[tier].wait(90)
                wrong += [f"{tier} of {machine.name} ended with {status}"] if status else []
        for machine in alive:
            for process in machine.processes.values():
                if process.poll() is None:
                    process.kill()
                process.wait()
        print("\n".join(wrong) or f"as promised, in {time.monotonic() - began:.1f} s")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
