"""The gateways and logic processes of a run, each with a TOML file of its own that says where the others are."""

from __future__ import annotations

import functools
import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from urllib import request as http_request

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from processes import API_TOKEN, BINARIES, JWT_SECRET

from process import NodeProcess

LINK, HTTP, ADMIN, WEBSOCKET, TCP = 9700, 9710, 9600, 8080, 8081
# What a node's answers may take, when it is asked by the harness.
ASK_SECONDS = 2.0


def ask(address, port, path, body=None, seconds=ASK_SECONDS):
    """(status, decoded body); raises OSError when there is no answer."""
    request = http_request.Request(f"http://{address}:{port}{path}", data=None if body is None else json.dumps(body).encode())
    request.add_header("Authorization", f"Bearer {API_TOKEN}")
    if body is not None:
        request.add_header("Content-Type", "application/json")
    opener = http_request.build_opener(http_request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=seconds) as response:
            text = response.read()
            return response.status, json.loads(text or b"{}") if path.startswith("/v1") else text
    except http_request.HTTPError as error:
        return error.code, error.read()


@functools.cache
def names_sessions(program):
    """Whether a program of logic writes a line for each session into its log. Releases before several logics did not."""
    with open(program, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(b"millrace_sessions") >= 0


class Logic(NodeProcess):
    """A logic process. `services` are those that it uses, by kind."""

    def __init__(self, network, number, folder, services, settings):
        super().__init__(network, f"logic{number}", folder)
        self.services, self.settings = services, settings
        # The folder of the programs; an upgrade exchanges it.
        self.programs = None
        # Every start and end of a session is a line of the log, for check_sessions.py.
        self.environment = {"RUST_LOG": "info,millrace_sessions=debug", **settings.get("logic_environment", {})}

    @property
    def binary(self):
        return Path(self.programs / "millrace-logic" if self.programs else os.environ.get("MILLRACE_LOGIC", BINARIES / "millrace-logic"))

    @property
    def is_silent(self):
        return not names_sessions(self.binary)

    def toml(self):
        text = ""
        data = self.folder / f"{self.name}-data"
        if "postgres" in self.services:
            text += f'[store]\nkind = "postgres"\ndirectory = "{data}"\n[store.postgres]\nurl = "{self.services["postgres"].url}"\n[search]\nenabled = false\n'
        else:
            text += f'[store]\ndirectory = "{data}"\n'
        if "redis" in self.services:
            text += f'[registry]\nkind = "redis"\n[registry.redis]\nurls = ["{self.services["redis"].url}"]\n'
        if "nats" in self.services:
            text += f'[bus]\nkind = "nats"\n[bus.nats]\nservers = ["{self.services["nats"].url}"]\n'
            if "postgres" in self.services:
                text += '[peers]\nkind = "nats"\n'
        return text + (
            f'[link]\nlisten = "{self.address}:{LINK}"\nlogic_id = "{self.name}"\n[http]\nlisten = "{self.address}:{HTTP}"\n'
            f'[admin]\nlisten = "{self.address}:{ADMIN}"\n[api]\ntoken = "{API_TOKEN}"\n[login]\njwt_secret = "{JWT_SECRET}"\n'
            f'[log]\nformat = "json"\n'
        )

    def config(self):
        path = self.folder / f"{self.name}.toml"
        path.write_text(self.toml())
        return path

    def command(self):
        return [self.binary, "run", "--config", self.config()]

    def migrate(self):
        """Before the first start: the tables of a database."""
        if "postgres" in self.services:
            command = self.network.command(self.name, self.binary, "migrate", "--config", self.config())
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()
        return None

    def ready(self):
        return ask(self.address, HTTP, "/readyz")[0] == 200

    def presence(self, users):
        """Who of these is online, as this process says."""
        status, answer = ask(self.address, HTTP, "/v1/presence/query", {"user_ids": users})
        if status != 200:
            raise OSError(f"presence: {status}")
        return [user["user_id"] for user in answer.get("users", []) if user.get("online")]


class Gateway(NodeProcess):
    def __init__(self, network, number, folder, logics, settings):
        super().__init__(network, f"gw{number}", folder)
        self.logics, self.settings = logics, settings
        self.programs = None

    @property
    def binary(self):
        return (self.programs or BINARIES) / "millrace-gateway"

    def command(self):
        endpoints = ", ".join(f'"http://{logic.address}:{LINK}"' for logic in self.logics)
        path = self.folder / f"{self.name}.toml"
        path.write_text(
            f'[gateway]\nid = "{self.name}"\nshards = {self.settings.get("shards", 1)}\npin_shards = false\n'
            f'[listen]\nwebsocket = "{self.address}:{WEBSOCKET}"\ntcp = "{self.address}:{TCP}"\n'
            f'[admin]\nlisten = "{self.address}:{ADMIN}"\n[logic]\nendpoints = [{endpoints}]\n[drain]\nshutdown = "3s"\n'
            f'[connections]\nconnections_max = 4096\nheartbeat_interval = "2s"\nidle_timeout = "{self.settings["idle_s"]}s"\n'
        )
        return [self.binary, "run", "--config", path]

    def ready(self):
        return ask(self.address, ADMIN, "/readyz")[0] == 200
