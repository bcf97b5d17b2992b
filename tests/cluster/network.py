"""A network of our own: each process of a run in its own network namespace, and links between any two that can be cut.

The harness runs itself again in new namespaces (network, processes, mounts). There it is the router between the nodes: every
node has one address on a virtual cable to it, so a link is cut by two routing rules that swallow what one sends to the other, and
packets are lost in silence, as in a real network. Nothing of this is seen outside, and nothing of it is left over: when the harness
ends, however it ends, the kernel ends every process of its process namespace and takes the networks apart.

It takes root, and `ip` and `unshare` (Debian's iproute2 and util-linux). Where namespaces are not to be had, all nodes are on loopback
addresses of this machine, and links cannot be cut; the run says so.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

INSIDE = "MILLRACE_CLUSTER_NAMESPACE"
RULES_FROM = 1000
PR_SET_PDEATHSIG = 1


def enter():
    """Runs this script again in namespaces of its own, and ends with its status; returns inside of them, or where there are none."""
    if os.environ.get(INSIDE) or os.geteuid() != 0:
        return
    for program, package in (("unshare", "util-linux"), ("ip", "iproute2"), ("nsenter", "util-linux")):
        if not shutil.which(program):
            sys.exit(f"{program} is missing; install Debian's package {package}")
    apart = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    may = subprocess.run([*apart, "ip", "link", "add", "probe", "type", "veth"], capture_output=True, text=True)
    if may.returncode != 0:
        print(f"no namespaces here ({may.stderr.strip()}): on loopback addresses, and no link is cut", flush=True)
        return
    os.execvpe("unshare", [*apart, sys.executable, str(Path(__file__)), *sys.argv], {**os.environ, INSIDE: "1"})


def first_process():
    """The first process of the namespace: runs the harness and takes in the orphans, until it ends; then the kernel ends the rest."""
    harness = subprocess.Popen([sys.executable, *sys.argv[1:]])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: harness.send_signal(number))
    while True:
        process, status = os.wait()
        if process == harness.pid:
            os._exit(os.waitstatus_to_exitcode(status) & 0x7F)


class Network:
    """Nodes with an address each; `cut` and `heal` what is between two of them."""

    def __init__(self):
        self.has_namespaces = bool(os.environ.get(INSIDE))
        self.addresses = {}
        self.cuts = {}
        self.next_rule = RULES_FROM
        if self.has_namespaces:
            # `ip netns` names namespaces by files; in this mount namespace alone.
            Path("/run/netns").mkdir(exist_ok=True)
            run("mount", "-t", "tmpfs", "none", "/run/netns")
            run("ip", "link", "set", "lo", "up")
            run("ip", "address", "add", "10.77.0.1/32", "dev", "lo")
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def add(self, name, address=None):
        """A node, at an address that it asks for or the next one; returns the address."""
        number = len(self.addresses) + 1
        if not self.has_namespaces:
            self.addresses[name] = f"127.77.{os.getpid() % 250 + 1}.{number}"
            return self.addresses[name]
        address = self.addresses[name] = address or f"10.77.1.{number}"
        inside = ("ip", "-netns", name)
        run("ip", "netns", "add", name)
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "uplink", "netns", name)
        run("ip", "link", "set", name, "up")
        run("ip", "route", "add", f"{address}/32", "dev", name, "src", "10.77.0.1")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "address", "add", f"{address}/32", "dev", "uplink")
        run(*inside, "link", "set", "uplink", "up")
        run(*inside, "route", "add", "10.77.0.1/32", "dev", "uplink")
        run(*inside, "route", "add", "default", "via", "10.77.0.1")
        return address

    def command(self, name, *arguments):
        """The command line that runs a program at a node; the process is the program itself."""
        return ["nsenter", f"--net=/run/netns/{name}", "--", *arguments] if self.has_namespaces else list(arguments)

    def cut(self, one, other):
        """From now on nothing that one of them sends arrives at the other. Cutting twice is cutting once."""
        assert self.has_namespaces, "links cannot be cut without namespaces"
        pair = frozenset((one, other))
        if pair in self.cuts:
            return
        self.cuts[pair] = self.next_rule
        self.next_rule += 1
        for sender, receiver in ((one, other), (other, one)):
            self.rule("add", self.cuts[pair], self.addresses[sender], self.addresses[receiver])

    def heal(self, one, other):
        priority = self.cuts.pop(frozenset((one, other)), None)
        if priority is not None:
            for sender, receiver in ((one, other), (other, one)):
                self.rule("del", priority, self.addresses[sender], self.addresses[receiver])

    @staticmethod
    def rule(act, priority, sender, receiver):
        run("ip", "rule", act, "priority", str(priority), "from", sender, "to", receiver, "type", "blackhole")


def ends_with_us():
    """For a child without namespaces: the kernel ends it when the harness dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


if __name__ == "__main__":
    first_process()
