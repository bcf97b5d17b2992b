"""Single chat at speed: what it costs, tier by tier. A script, see --help.

    .venv/bin/python tests/e2e/single_chat.py --rates 5000,20000         CPU a message by thread, latencies
    .venv/bin/python tests/e2e/single_chat.py --rates 20000 --perf DIR   and a profile by symbol
    .venv/bin/python tests/e2e/single_chat.py --rates 20000 --json FILE  the same for the report of scripts/bench.sh

Gateway, logic with the embedded store and the load generator, each a process; one run a rate, each with an empty store. The
CPU is counted from a second after the first stored message to a second before the end of the schedule.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from processes import Tiers, metric

TICKS = os.sysconf("SC_CLK_TCK")


def threads_cpu(process):
    """{thread's name: (user seconds, kernel seconds, seconds ready without a core, turns on a core)}, threads of one kind together."""
    used = collections.defaultdict(lambda: [0.0, 0.0, 0.0, 0])
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            before, after = (task / "stat").read_text().rsplit(")", 1)
            _, waited_ns, turns = (task / "schedstat").read_text().split()
        except FileNotFoundError:
            continue
        fields = after.split()
        name = re.sub(r"[-_]?\d+$", "", before.split("(", 1)[1])
        used[name][0] += int(fields[11]) / TICKS
        used[name][1] += int(fields[12]) / TICKS
        used[name][2] += int(waited_ns) / 1e9
        used[name][3] += int(turns)
    return used


def link_batches(admin):
    """How many events the gateway and logic put into a batch."""
    events = {way: metric(admin, f"millrace_link_{way}_events_total") for way in ("sent", "received")}
    batches = {way: metric(admin, f"millrace_link_{way}_batches_total") for way in ("sent", "received")}
    return ", ".join(f"{events[way] / max(1, batches[way]):.1f} events a batch {way}" for way in events)


def run(arguments, rate, folder):
    tiers = Tiers(folder)
    tiers.logic_settings = arguments.logic_settings
    tiers.start_logic()
    tiers.start_gateway()
    logic_admin = f"http://127.0.0.1:{tiers.free_port('logic-admin')}"
    stored = lambda: metric(logic_admin, "millrace_logic_messages_stored_total")
    report = folder / "report.json"
    generator = subprocess.Popen(
        tiers.load_generator(
            "chat", "--connections", arguments.connections, "--websocket-share", 0.5, "--single-rate", rate,
            "--group-rate", 0, "--duration", f"{arguments.duration}s", "--ramp-rate", arguments.ramp_rate,
            "--hold", "1s", "--allow-late", "--json", report,
        ),
        stdout=subprocess.DEVNULL, stderr=open(folder / "progress", "w"),
    )
    profile = None
    try:
        deadline = time.monotonic() + 60
        while stored() == 0:
            assert generator.poll() is None and time.monotonic() < deadline, (folder / "progress").read_text()
            time.sleep(0.1)
        time.sleep(1.0)
        pids = {"gateway": tiers.gateway.pid, "logic": tiers.logic.pid, "generator": generator.pid}
        span = arguments.duration - 2.5
        if arguments.perf:
            output = Path(arguments.perf) / f"perf-{rate}.data"
            output.parent.mkdir(parents=True, exist_ok=True)
            profile = subprocess.Popen(
                ["perf", "record", "-q", "-F", "299", *arguments.perf_options.split(), "-o", output, "-p",
                 ",".join(str(pid) for pid in pids.values()), "--", "sleep", str(span)],
            )
        began, messages = time.monotonic(), stored()
        before = {name: threads_cpu(pid) for name, pid in pids.items()}
        time.sleep(max(0.0, span - (time.monotonic() - began)))
        messages = stored() - messages
        after = {name: threads_cpu(pid) for name, pid in pids.items()}
        seconds = time.monotonic() - began
        if profile:
            profile.wait(30)
        generator.wait(120)
        links = link_batches(tiers.ready["admin"])
        slow = [line for line in tiers.logic.tail().splitlines() if "a slow commit" in line]
        sums = {
            name: metric(logic_admin, f"millrace_logic_{name}") for name in
            ("commit_duration_seconds_sum", "commit_duration_seconds_count", "commit_writes_sum", "frames_received_total",
             "receipts_total", "deliveries_total")
        }
    finally:
        if generator.poll() is None:
            generator.kill()
        tiers.stop()
    result = json.loads(report.read_text())
    rows = cpu_rows(before, after, messages)
    show(rate, result, rows, messages, seconds, sums)
    print("link             " + links)
    profiled = samples_by_tier(output) if profile else None
    if profiled:
        show_profile(profiled)
    for line in slow[-12:]:
        print(line)
    figures = {
        "rate": rate, "stored_per_second": messages / seconds, "passed": generator.returncode == 0,
        "latency_us": {name: result["latency_us"][name] for name in ("ack_single", "delivery_single", "late")},
        "verification": {key: result["verification"][key] for key in ("acked", "expected_deliveries", "found_deliveries")},
        "cores": os.cpu_count(), "seconds": seconds, "cpu": rows,
        "profile": profiled and [{"whose": whose, "share": of / profiled.total()} for whose, of in whose_work(profiled).most_common()],
    }
    return generator.returncode, figures


# Whose work a sample is, by its symbol; the first that fits.
TIERS = [
    (r"fjall|lsm_tree|crossbeam_skiplist|byteview|xxhash|lz4", "store: engine (fjall)"),
    (r"millrace_logic::storage", "store: ours"),
    (r"h2::|tonic|hyper|http::|http_body|tower|prost|millrace_protocol", "link and messages (h2, tonic, prost)"),
    (r"millrace_logic_sdk", "link (sdk)"),
    (r"millrace_logic", "logic"),
    (r"millrace_engine", "gateway engine"),
    (r"millrace_uring|io_uring", "io_uring driver"),
    (r"millrace_gateway", "gateway"),
    (r"millrace_loadgen", "generator"),
    (r"tokio|futures|mio", "runtime (tokio)"),
    (r"mi_|alloc|free", "allocator"),
    (r"mem(cmp|cpy|move|set)", "memory functions"),
    (r"hash|sip", "hashing"),
]


def samples_by_tier(path):
    """How many samples of a recorded profile each kind of thread has in whose work: {(thread, tier): samples}."""
    script = ["perf", "script", "-i", path, "-F", "comm,ip,sym,dso"]
    samples = collections.Counter()
    for line in subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines():
        found = re.match(r"\s*(.*?)\s+[0-9a-f]+ (.*) \((.*)\)$", line)
        if not found:
            continue
        thread, symbol, binary = found.groups()
        fits = (tier for pattern, tier in TIERS if re.search(pattern, symbol))
        tier = "kernel" if "kernel" in binary else next(fits, "other")
        samples[re.sub(r"-?\d+$", "", thread), tier] += 1
    return samples


def whose_work(samples):
    """The samples by tier alone, the kernel's by the process that called it: {tier: samples}."""
    callers = {"generator": "kernel: generator's sockets", "shard": "kernel: gateway's sockets"}
    whose = collections.Counter()
    for (thread, tier), of in samples.items():
        whose[callers.get(thread, "kernel: link, logic, disk") if tier == "kernel" else tier] += of
    return whose


def show_profile(samples):
    """The shares of a profile, by kind of thread and by whose work it was."""
    count = samples.total()
    print(f"profile, {count} samples")
    for (thread, tier), of in samples.most_common():
        if of * 200 >= count:
            print(f"{of * 100 / count:6.1f} %  {thread:14} {tier}")


def show(rate, result, rows, messages, seconds, sums):
    print(f"\n## {rate} messages/s asked, {messages / seconds:.0f}/s stored over {seconds:.1f} s")
    print(f"latency, ms      {'count':>8} {'p50':>8} {'p90':>8} {'p99':>8} {'p99.9':>8} {'max':>8}")
    for name in ("ack_single", "delivery_single", "late"):
        of = result["latency_us"][name]
        values = " ".join(f"{of[key] / 1000:8.1f}" for key in ("p50", "p90", "p99", "p99.9", "max"))
        print(f"{name:16} {of['count']:8} {values}")
    verdict = result["verification"]
    print(f"verification     {verdict['acked']} acknowledged, faults {verdict['faults']}")
    commits = max(1.0, sums["commit_duration_seconds_count"])
    print(
        f"commits          {commits:.0f}, {sums['commit_duration_seconds_sum'] / commits * 1000:.2f} ms and "
        f"{sums['commit_writes_sum'] / commits:.1f} writes each; frames received {sums['frames_received_total']:.0f}, "
        f"deliveries {sums['deliveries_total']:.0f}, receipts {sums['receipts_total']:.0f}"
    )
    show_cpu(rows, messages, seconds, "a message")


def cpu_rows(before, after, count):
    """The CPU that each kind of thread used between two looks, and how long it was ready but had no core: microseconds, and turns on a core, for
    each thing that was counted."""
    rows, each = [], 1e6 / max(1.0, count)
    for process, threads in after.items():
        for thread, of in sorted(threads.items(), key=lambda item: -sum(item[1][:2])):
            user, kernel, waited, turns = (now - then for now, then in zip(of, before[process].get(thread, (0, 0, 0, 0))))
            rows.append({
                "process": process, "thread": thread, "user_us": user * each, "kernel_us": kernel * each, "no_core_us": waited * each,
                "turns": turns * each / 1e6,
            })
    return rows


def show_cpu(rows, count, seconds, what):
    """Prints what `cpu_rows` found, for each of `count` things in so many seconds."""
    print(f"{'process/thread':26} {'user':>8} {'kernel':>8} {'sum':>8} {'no core':>8} {'turns':>8}   µs {what}")
    for row in rows:
        label, user, kernel = f"{row['process']}/{row['thread']}", row["user_us"], row["kernel_us"]
        if user + kernel >= 0.5:
            print(f"{label:26} {user:8.1f} {kernel:8.1f} {user + kernel:8.1f} {row['no_core_us']:8.1f} {row['turns']:8.3f}")
    used = sum(row["user_us"] + row["kernel_us"] for row in rows)
    cores = os.cpu_count() * seconds
    print(f"{'all':26} {'':17} {used:8.1f}   ({used * count / 1e6:.1f} of {cores:.1f} core-seconds)", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="5000,10000,20000", help="messages a second, one run each")
    parser.add_argument("--connections", type=int, default=2_000)
    parser.add_argument("--ramp-rate", type=int, default=4_000)
    parser.add_argument("--duration", type=int, default=10, help="of each run, in seconds")
    parser.add_argument("--logic-settings", default="", help="top-level lines of logic's TOML, such as 'threads = 1'")
    parser.add_argument("--perf", metavar="DIR", help="record profiles into this directory")
    parser.add_argument("--perf-options", default="", help="more options of perf record, such as -g")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    worst, runs = 0, []
    for rate in arguments.rates.split(","):
        with tempfile.TemporaryDirectory(prefix="millrace-single-") as name:
            code, figures = run(arguments, int(rate), Path(name))
            worst = max(worst, code)
            runs.append(figures)
    if arguments.json:
        command = " ".join(["tests/e2e/single_chat.py", *sys.argv[1:]])
        arguments.json.write_text(json.dumps({"schema_version": 1, "command": command, "runs": runs}, indent=1) + "\n")
    return worst


if __name__ == "__main__":
    sys.exit(main())
