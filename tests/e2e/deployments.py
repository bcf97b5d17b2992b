"""What the files in `configs/` say, for the tests that hold them to the programs: units of systemd, Kubernetes' manifests, alert rules.

It reads files and asks the programs; it starts nothing that stays.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import yaml

from millrace_client import ROOT
from processes import BINARIES

CONFIGS = ROOT / "configs"
UNITS = CONFIGS / "systemd"
KUBERNETES = CONFIGS / "kubernetes"
MACHINES = sorted((CONFIGS / "three-machines").glob("machine-*"))
# Secrets as an operator would give them, so that a file is judged as where it runs.
SECRETS = {
    "MILLRACE_LOGIN__JWT_SECRET": "a-secret-that-signs-the-tokens-of-these-tests",
    "MILLRACE_API__TOKEN": "an-api-token-of-these-tests",
    "MILLRACE_STORE__POSTGRES__URL": "postgresql://millrace:secret@10.0.0.11,10.0.0.12,10.0.0.13/millrace?target_session_attrs=read-write&connect_timeout=1",
}


def defaults(program):
    """What a program takes for whatever a file does not say."""
    return tomllib.loads(subprocess.run([BINARIES / program, "config", "default"], capture_output=True, text=True, check=True).stdout)


def check(program, path):
    """What the program says of a file with the operator's secrets around it."""
    return subprocess.run([BINARIES / program, "check", "--config", path], capture_output=True, text=True, env={**os.environ, **SECRETS})


def unit(name):
    """{directive: [values]} of a unit, over its sections: no directive is in two of them."""
    directives = {}
    for line in (UNITS / name).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, value = line.split("=", 1)
            directives.setdefault(key, []).append(value)
    return directives


def system_calls(filters):
    """The names that a SystemCallFilter= allows, its groups as this machine's systemd knows them."""
    allowed, todo = set(), " ".join(filters).split()
    while todo:
        name = todo.pop()
        if name.startswith("@"):
            lines = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True).stdout.splitlines()
            todo += [line.strip() for line in lines[1:] if line.strip() and not line.strip().startswith("#")]
        else:
            allowed.add(name)
    return allowed


def manifests():
    """Every object of the manifests, as kustomize would send it but for generated names."""
    objects = []
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            objects += [(path.name, found) for found in yaml.safe_load_all(path.read_text()) if found]
    return objects


def pods():
    """{name of the workload: (object, pod's spec)} of whatever starts pods."""
    found = {}
    for _, one in manifests():
        spec = one.get("spec", {}).get("template", {}).get("spec")
        if spec:
            found[one["metadata"].get("name") or one["metadata"]["generateName"]] = (one, spec)
    return found


def toml(path):
    return tomllib.loads(Path(path).read_text())


def seconds(text):
    """Of a duration as our configuration writes it."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def gateway_leaves_s(path):
    """Seconds from SIGTERM to the end: the window, the second after it, farewells, and the last events to logic."""
    config, default = toml(path), defaults("millrace-gateway")
    value = lambda section, key: seconds(config.get(section, {}).get(key, default[section][key]))
    return value("drain", "shutdown") + 1 + value("connections", "linger") + value("drain", "grace")


def logic_leaves_s(path):
    """Likewise: handing over, then answering and storing, then 5 s at most for the embedded store to empty its memory into files."""
    config, default = toml(path), defaults("millrace-logic")
    hand_over = config.get("link", {}).get("hand_over_max", default["link"]["hand_over_max"])
    return seconds(hand_over) + seconds(config.get("shutdown_timeout", default["shutdown_timeout"])) + 5


def port(address):
    return int(address.rsplit(":", 1)[1])


def alert_rules():
    document = yaml.safe_load((CONFIGS / "prometheus" / "rules.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def metrics_of(expression):
    """The names of metrics in an expression of Prometheus."""
    return set(re.findall(r"\b(?:millrace|process)_[a-z_]+", expression))
