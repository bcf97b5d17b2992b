"""Started by test_cluster.py: each service starts, is killed and comes back with what it should have kept, pauses and goes on."""

import subprocess
import tempfile
import time
from pathlib import Path

from network import Network, enter
from services import Nats, Postgres, Redis, exchange


def main():
    enter()
    with tempfile.TemporaryDirectory(prefix="millrace-services-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        network = Network()
        services = [kind(network, folder) for kind in (Postgres, Redis, Nats)]
        postgres, redis, nats = services
        try:
            for service in services:
                service.start()
            for service in services:
                assert service.wait_until_ready(), service.tail()
            query(postgres, "create table kept (number int); insert into kept values (7)")
            assert b"+OK" in command(redis, "SET gone 1")
            nats.ask('$JS.API.STREAM.CREATE.held', '{"name":"held","subjects":["held"]}')
            assert nats.streams() == ["held"]
            for service in services:
                service.kill()
                service.start()
                assert service.wait_until_ready(), service.tail()
            assert query(postgres, "select number from kept") == "7"
            assert b"$-1" in command(redis, "GET gone"), "it keeps nothing over a restart"
            assert nats.streams() == ["held"]
            assert nats.delete_streams() == ["held"] and nats.streams() == []
            command(redis, "SET gone 1")
            redis.flush()
            assert b"$-1" in command(redis, "GET gone")
            postgres.pause()
            deadline = time.monotonic() + 20
            while any(state(pid) != "T" for pid in postgres.family()):
                assert time.monotonic() < deadline, "all of its processes stand still"
                time.sleep(0.02)
            postgres.go_on()
            assert query(postgres, "select number from kept") == "7"
            assert postgres.end() == 0, "it ends in order"
            print("services come and go")
        finally:
            for service in services:
                service.kill()


def query(postgres, sql):
    done = subprocess.run(["psql", "-qtAc", sql, postgres.url], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def command(redis, line):
    return exchange((redis.address, redis.port), f"{line}\r\n".encode(), lambda heard: b"\r\n" in heard)


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


if __name__ == "__main__":
    main()
