"""A network namespace of one's own for a measurement, with the kernel's TCP settings that a machine for many connections needs.

Settings of a namespace end with it, so that nothing of the machine is changed. Without root, or where namespaces are refused, the measurement
runs where it is, and says so. It does not measure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

INSIDE = "MILLRACE_MEASURING_NAMESPACE"
# The size of the table of connections that a new namespace gets; a setting of the namespace that makes it.
TABLE = Path("/proc/sys/net/ipv4/tcp_child_ehash_entries")
TABLE_ENTRIES_MAX = 1 << 24


def enter(sockets, congestion_control="", quick_ack=False):
    """Starts this program again in a namespace of its own, unless it is in one. `sockets`: both ends of every connection.

    The table of connections gets an entry for each, as a kernel for so many would be told to have (thash_entries=): else each packet
    walks a chain of sockets that are in no cache. `congestion_control`: of all sockets, as net.ipv4.tcp_congestion_control; empty: the machine's.
    `quick_ack`: both ends acknowledge what they receive at once (the route's `quickack`), not 40 ms later by a timer that has to fetch the socket
    into the cache again. Between machines the gateway gets such a packet either way; here it also pays for its sending.
    """
    if os.environ.get(INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        if quick_ack:
            for destination in ("127.0.0.0/8", "127.0.0.1"):
                route = ["local", destination, "dev", "lo", "proto", "kernel", "scope", "host", "src", "127.0.0.1", "quickack", "1"]
                subprocess.run(["ip", "route", "replace", "table", "local", *route], check=True)
        if congestion_control:
            Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(congestion_control)
        return
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip") or not TABLE.exists():
        print("no network namespace here (it takes root, unshare and ip): the machine's TCP settings apply", file=sys.stderr)
        return
    entries = 1 << max(sockets - 1, 1 << 18).bit_length()
    before = TABLE.read_text()
    TABLE.write_text(str(min(entries, TABLE_ENTRIES_MAX)))
    try:
        # Not exec: the machine's setting is put back when the namespace is made.
        program = subprocess.Popen(["unshare", "--net", sys.executable, *sys.argv], env={**os.environ, INSIDE: "1"})
        while program.poll() is None and os.readlink(f"/proc/{program.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            pass
    finally:
        TABLE.write_text(before)
    try:
        sys.exit(program.wait())
    except KeyboardInterrupt:
        sys.exit(program.wait())


def settings():
    """What applies, for the report."""
    read = lambda name: Path(f"/proc/sys/net/ipv4/{name}").read_text().strip()
    return {"own_namespace": bool(os.environ.get(INSIDE)), "congestion_control": read("tcp_congestion_control"), "table_entries": read("tcp_ehash_entries")}
