"""A million logged-in connections in one gateway process, under load, with the memory and CPU of every part. A script, see --help.

    .venv/bin/python tests/e2e/million.py                          the whole: needs about 16 GB of memory and 6 minutes
    .venv/bin/python tests/e2e/million.py --connections 100000     a tenth of it, on any machine

One gateway, one logic process with the embedded store, one load generator, on the same cores. Every connection is a WebSocket that
logs in with a signed token. All come up at --ramp-rate, are quiet for --hold (memory is read here), then for --duration: heartbeats at the
interval that login names (idle is who is silent for 4/3 of it), churn, single chat, and a live room. The generator verifies every message; this script samples memory and CPU
once a second, from /proc, and prints and writes what it saw. It exits as the generator does: 0 only if nothing was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import namespace
from processes import API_TOKEN, BINARIES, JWT_SECRET, Tiers, metric

PHASES = ("ramp", "hold", "load", "settle")
# Kernel memory: what /proc/meminfo and the slab's caches say. MemAvailable counts everything; the others say where it went.
MEMINFO = ("MemAvailable", "Slab", "SUnreclaim", "KernelStack", "PageTables")


def key_values(path, wanted):
    found = {}
    for line in Path(path).read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in wanted:
            found[name] = int(rest.split()[0]) * 1024
    return found


def sockets():
    """TCP sockets in use, and the bytes of their buffers."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            words = line.split()
            fields = dict(zip(words[1::2], map(int, words[2::2])))
            return {"in_use": fields["inuse"], "time_wait": fields["tw"], "buffer_bytes": fields["mem"] * 4096}
    return {}


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    tick = os.sysconf("SC_CLK_TCK")
    return {"user": int(fields[11]) / tick, "system": int(fields[12]) / tick}


def machine_cpu_seconds():
    """Seconds of all cores: busy in all, and of them in soft interrupts, where loopback delivers."""
    fields = [int(word) / os.sysconf("SC_CLK_TCK") for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, _ = fields
    return {"busy": user + nice + system + irq + softirq, "softirq": softirq}


class Samples(threading.Thread):
    """Reads memory and CPU once a second, and the generator's phase from its progress lines."""

    def __init__(self, processes, progress):
        super().__init__(daemon=True)
        self.processes = processes
        self.progress = progress
        self.phase = "start"
        self.started = time.monotonic()
        self.rows = []
        self.stopped = threading.Event()

    def run(self):
        line = re.compile(r"^\s*\d+s (\w+)")
        with open(self.progress) as progress:
            while not self.stopped.wait(1.0):
                for text in progress.readlines():
                    if found := line.match(text):
                        self.phase = found.group(1)
                self.rows.append(self.sample())

    def sample(self):
        row = {"seconds": round(time.monotonic() - self.started, 1), "phase": self.phase, "machine_cpu": machine_cpu_seconds()}
        row["memory"] = key_values("/proc/meminfo", MEMINFO)
        row["sockets"] = sockets()
        for name, pid in self.processes.items():
            try:
                row[name] = {"rss": key_values(f"/proc/{pid}/status", ("VmRSS",))["VmRSS"], "cpu": cpu_seconds(pid)}
            except (OSError, KeyError):
                pass  # It has ended; the rows before stand.
        return row

    def stop(self):
        self.stopped.set()
        self.join()

    def of(self, phase):
        return [row for row in self.rows if row["phase"] == phase]


def pss(pid):
    return key_values(f"/proc/{pid}/smaps_rollup", ("Pss",))["Pss"]


def cpu_between(first, last, names):
    """Core-seconds of each process and of the machine between two samples, in percent of one core."""
    span = last["seconds"] - first["seconds"]
    percent = lambda used: round(100 * used / span, 1) if span else 0.0
    used = {}
    for name in names:
        if name in first and name in last:
            used[name] = {kind: percent(last[name]["cpu"][kind] - first[name]["cpu"][kind]) for kind in ("user", "system")}
    for kind in ("busy", "softirq"):
        used[f"machine_{kind}"] = percent(last["machine_cpu"][kind] - first["machine_cpu"][kind])
    used["seconds"] = round(span, 1)
    return used


def run(arguments, folder):
    seconds = lambda text: f'"{text}s"'
    most = arguments.connections + arguments.connections // 20
    tiers = Tiers(
        folder,
        # The first line, if any, belongs to [gateway], under which the section goes.
        gateway_section=(f"shards = {arguments.shards}\n" if arguments.shards else "")
        + f"[connections]\nconnections_max = {most}\nconnections_per_address_max = 100000\n"
        f"heartbeat_interval = {seconds(arguments.heartbeat)}\nidle_timeout = {seconds(arguments.heartbeat * 4 // 3)}\n"
        'login_deadline = "30s"\n',
    )
    tiers.start_logic()
    tiers.start_gateway()
    generator = None
    try:
        empty = {"gateway": pss(tiers.gateway.pid), "logic": pss(tiers.logic.pid), **key_values("/proc/meminfo", MEMINFO)}
        report, progress = folder / "report.json", folder / "progress"
        room = ["--room-size", arguments.room_size, "--room-rate", arguments.room_rate] if arguments.room_size else []
        progress.touch()
        command = (
            scenario(arguments, tiers, report) if arguments.scenario else tiers.load_generator(
                "chat", "--connections", arguments.connections, "--websocket-share", 1, "--threads", arguments.threads,
                "--ramp-rate", arguments.ramp_rate, "--hold", f"{arguments.hold}s", "--duration", f"{arguments.duration}s",
                "--single-rate", arguments.single_rate, "--group-rate", 0, "--churn-per-minute", arguments.churn,
                *room, "--settle", "60s", "--allow-late", "--threshold", "delivery_p99.9<500ms", "--json", report,
            )
        )
        generator = subprocess.Popen(going_first(command, arguments.generator_nice), stderr=open(progress, "w"))
        pids = {"gateway": tiers.gateway.pid, "logic": tiers.logic.pid, "generator": generator.pid}
        samples = Samples(pids, progress)
        samples.start()
        idle = wait_for_idle(arguments, samples, generator, pids, tiers)
        load = threading.Thread(target=profile, args=(arguments, samples, pids), daemon=True)
        load.start()
        generator.wait()
        samples.stop()
        tail = progress.read_text().splitlines()[-3:]
        result = json.loads(report.read_text()) if report.exists() else {"passed": False, "failures": tail}
        return generator.returncode, summary(arguments, samples, empty, idle, result)
    finally:
        if generator and generator.poll() is None:
            generator.kill()
            generator.wait()
        tiers.stop()


def going_first(command, nice):
    """The command at this nice value, if it may have it: in production the clients have cores of their own, so they wait for none here."""
    allowed = nice >= 0 or os.geteuid() == 0
    if not allowed:
        print("the generator cannot go first here (it takes root): its latencies contain its wait for a core", file=sys.stderr)
    return ["nice", "-n", str(nice), *command] if allowed and nice else command


def scenario(arguments, tiers, report):
    """The command line of a scenario or preset instead, which says itself what is sent and when."""
    ready = tiers.ready
    command = [
        BINARIES / "millrace-loadgen", "run", arguments.scenario, "--connections", arguments.connections, "--tcp", ready["tcp"],
        "--websocket", ready["websocket"], "--http", ready["http"], "--jwt-secret", JWT_SECRET, "--api-token", API_TOKEN, "--json", report,
        "--observe", f"gateway={tiers.gateway.pid}", "--observe", f"logic={tiers.logic.pid}",
    ]
    if arguments.html:
        command += ["--html", arguments.html]
    return [str(word) for word in command]


def wait_for_idle(arguments, samples, generator, pids, tiers):
    """The memory of all parts at the end of the quiet time; nothing if the run did not get there."""
    while generator.poll() is None and not samples.of("hold"):
        time.sleep(0.2)
    time.sleep(max(arguments.hold - 3, 1))
    if generator.poll() is not None:
        return {}
    idle = {name: pss(pid) for name, pid in pids.items()}
    idle.update(key_values("/proc/meminfo", MEMINFO), sockets=sockets())
    idle["sessions"] = metric(tiers.ready["admin"], "millrace_sessions")
    return idle


def profile(arguments, samples, pids):
    """CPU by process, function and thread during the load, if asked for."""
    if not arguments.perf:
        return
    while not samples.of("load"):
        time.sleep(0.2)
    time.sleep(5)
    subprocess.run(
        ["perf", "record", "-F", "199", "-g", "-o", arguments.perf, "-p", ",".join(map(str, pids.values())), "--", "sleep", "20"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
    )


def summary(arguments, samples, empty, idle, result):
    names = ("gateway", "logic", "generator")
    count = arguments.connections
    cpu = {}
    for phase in PHASES:
        rows = samples.of(phase)
        if len(rows) >= 2:
            cpu[phase] = cpu_between(rows[0], rows[-1], names)
    memory = {"empty": empty, "idle": idle}
    if idle:
        user = {name: idle[name] - empty.get(name, 0) for name in names}
        memory["per_connection"] = {
            **{f"{name}_user": round(user[name] / count, 1) for name in names},
            # Both ends of every connection are on this machine.
            "kernel_both_ends": round((empty["MemAvailable"] - idle["MemAvailable"] - sum(user.values())) / count, 1),
            "slab_both_ends": round((idle["Slab"] - empty["Slab"]) / count, 1),
            "socket_buffers_both_ends": round(idle["sockets"]["buffer_bytes"] / count, 1),
        }
    memory["highest_rss"] = {name: max((row[name]["rss"] for row in samples.rows if name in row), default=0) for name in names}
    memory["lowest_available"] = min((row["memory"]["MemAvailable"] for row in samples.rows), default=0)
    return {
        "schema_version": 1,
        "command": " ".join(["tests/e2e/million.py", *sys.argv[1:]]),
        "machine": {
            "kernel": platform.release(), "cores": os.cpu_count(), "binaries": str(BINARIES.name),
            "memory_bytes": key_values("/proc/meminfo", ("MemTotal",))["MemTotal"],
            "descriptors": os.sysconf("SC_OPEN_MAX"),
        },
        "tcp": namespace.settings(),
        "connections": count,
        "heartbeat_seconds": arguments.heartbeat,
        "memory": memory,
        "cpu_percent_of_a_core": cpu,
        "generator": result,
        "samples": samples.rows,
    }


def show(report):
    mb = lambda value: f"{value / 1e6:,.0f} MB"
    result, memory = report["generator"], report["memory"]
    print(f"\n{report['connections']:,} WebSocket connections, heartbeats every {report['heartbeat_seconds']} s")
    if "ramp_seconds" in result:
        print(f"ramp: {result['ramp_seconds']:.1f} s, {result['ramp_per_second']:,.0f} accepted, upgraded and logged in a second")
    if memory["idle"]:
        each = memory["per_connection"]
        for name in ("gateway", "logic", "generator"):
            print(f"memory of {name}, idle: {mb(memory['idle'][name])} PSS, {each[name + '_user']:,.0f} B a connection")
        print(
            f"memory of the kernel, idle, both ends: {each['kernel_both_ends']:,.0f} B a connection "
            f"(slab {each['slab_both_ends']:,.0f} B); lowest available {mb(memory['lowest_available'])}"
        )
    print("highest RSS: " + ", ".join(f"{name} {mb(value)}" for name, value in memory["highest_rss"].items()))
    for phase, used in report["cpu_percent_of_a_core"].items():
        parts = [f"{name} {part['user']:.0f}+{part['system']:.0f}" for name, part in used.items() if isinstance(part, dict)]
        print(
            f"CPU in {phase} ({used['seconds']:.0f} s), % of a core, user+system: {', '.join(parts)}; "
            f"machine {used['machine_busy']:.0f} of {100 * report['machine']['cores']}, of it soft interrupts {used['machine_softirq']:.0f}"
        )
    counters = result.get("counters", {})
    if counters:
        print(f"heartbeats answered: {counters['heartbeats']:,}; connections lost: {counters['connections_lost']}, client_idle {counters['client_idle']}")
    print("PASSED" if result.get("passed") else f"FAILED: {result.get('failures')}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=1_000_000)
    parser.add_argument("--heartbeat", type=int, default=90, help="seconds between heartbeats of a connection")
    parser.add_argument("--ramp-rate", type=int, default=15_000, help="connections opened a second")
    parser.add_argument("--hold", type=int, default=65, help="quiet seconds after the ramp")
    parser.add_argument("--duration", type=int, default=60, help="seconds of load")
    parser.add_argument("--single-rate", type=int, default=5_000, help="single-chat messages a second")
    parser.add_argument("--churn", type=float, default=0.01, help="share that disconnects and comes back each minute")
    parser.add_argument("--room-size", type=int, help="members of the live room (default: a twentieth of the connections; 0: none)")
    parser.add_argument("--room-rate", type=float, default=1.0, help="messages to the room a second")
    parser.add_argument("--threads", type=int, default=1, help="threads of the generator")
    parser.add_argument("--generator-nice", type=int, default=-10, help="the generator's nice value; 0: as everybody")
    parser.add_argument("--shards", type=int, help="shards of the gateway (default: one a core)")
    parser.add_argument("--scenario", help="a scenario's file or a preset's name, as of `millrace-loadgen run`, instead of the rates here; "
                        "--hold is then to be the scenario's own")
    parser.add_argument("--html", type=Path, help="where the generator writes its page (only with --scenario)")
    parser.add_argument("--json", type=Path, help="where to write the report")
    parser.add_argument("--perf", type=Path, help="record a CPU profile of 20 s of the load to this file")
    parser.add_argument("--congestion-control", default="reno", help="of all sockets of the run; empty: the machine's own")
    parser.add_argument("--quick-ack", action=argparse.BooleanOptionalAction, default=False,
                        help="both ends acknowledge at once instead of by a timer (only in a namespace of its own)")
    arguments = parser.parse_args()
    namespace.enter(2 * arguments.connections, arguments.congestion_control, arguments.quick_ack)
    if arguments.room_size is None:
        arguments.room_size = arguments.connections // 20
    with tempfile.TemporaryDirectory(prefix="millrace-million-") as name:
        code, report = run(arguments, Path(name))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    return code


if __name__ == "__main__":
    sys.exit(main())
