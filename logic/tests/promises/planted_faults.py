#!/usr/bin/env python3
"""Plants known faults in the chat logic and its store, and shows that the promises' test finds each.

    logic/tests/promises/planted_faults.py             all of them: one build, then some seconds each
    logic/tests/promises/planted_faults.py --list
    logic/tests/promises/planted_faults.py NAME ...    some of them

A fault is a small edit of the source. All of them are made in one copy under target/planted-faults-logic, which also has its own
build, so the working tree is never touched; each sleeps until MILLRACE_FAULT in the environment names it by number. Only
`--test promises` is run: other tests would find many of these faults too, but would not say anything about this one. The first run is
without a fault and must pass. Of each fault the first seed is printed that finds it, that is, how many programs it takes.

Ends with status 1 if a fault was not found, and with status 2 if an edit no longer fits the source: then mend it here.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PLACE = ROOT / "target" / "planted-faults-logic"
COPY = PLACE / "source"
LOGIC = "logic/src"
SEEDS = os.environ.get("MILLRACE_SEEDS", "300")

# Whether the fault is to be made; each edit gets its own number.
ASK = "crate::planted(NUMBER)"
ANSWER = """
/// Whether a fault is to be made.
pub(crate) fn planted(number: usize) -> bool {
    static WHICH: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    let which = || std::env::var("MILLRACE_FAULT").ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    *WHICH.get_or_init(which) == number
}
"""

# name: file, what stands there, what stands there instead
FAULTS = {
    "a message that is sent again is stored again": (
        "storage/embedded/transaction.rs",
        "            && !is_planted(Fault::Dedupe)\n",
        "            && !PLANTED\n",
    ),
    "the reply comes before the commit": (
        "chat/processor.rs",
        "    let (writes, origins) = coalesce(gathered);\n",
        "    let (writes, origins) = coalesce(gathered);\n    for (write, (origin, _)) in writes.iter().zip(&origins) {\n"
        "        if let (Write::Append { message_id, .. }, Origin::Frame(inbound), true) = (write, origin, PLANTED) {\n"
        "            let message_id = message_id.to_string();\n"
        "            let reply = millrace_protocol::chat::SendReply { message_id, sequence: 1, ..Default::default() };\n"
        "            inbound.reply_message(&reply);\n        }\n    }\n",
    ),
    "a commit is dropped while the third stage is behind": (
        "chat/processor.rs",
        "                let Ok(slot) = commits.reserve().await else { return };\n",
        "                if PLANTED {\n                    let concluded = conclude(&core, committed);\n"
        "                    let _ = commits.try_send(concluded);\n                    continue;\n                }\n"
        "                let Ok(slot) = commits.reserve().await else { return };\n",
    ),
    "a read cursor may go back": (
        "storage/embedded/transaction.rs",
        "        let read = row.read.max(read.min(top));",
        "        let read = if PLANTED && read > 0 { read.min(top) } else { row.read.max(read.min(top)) };",
    ),
    "unread counts what the user has answered": (
        "storage/embedded/reader.rs",
        "    let floor = member.init_sequence.max(member.read).max(own_last_sent);",
        "    let own_last_sent = if PLANTED { 0 } else { own_last_sent };\n"
        "    let floor = member.init_sequence.max(member.read).max(own_last_sent);",
    ),
    "a revocation is not told": (
        "chat/sync.rs",
        "                    deliveries.targets(message, *version, recipients, except, &mut receivers);\n"
        "                    newest = newest.max(*version);\n                }\n                Outcome::Deleted",
        "                    if !PLANTED {\n"
        "                        deliveries.targets(message, *version, recipients, except, &mut receivers);\n                    }\n"
        "                    newest = newest.max(*version);\n                }\n                Outcome::Deleted",
    ),
    "a revocation does not show in the list": (
        "storage/embedded/transaction/edits.rs",
        "            conversation.row.message_version = version;\n",
        "            if !PLANTED {\n                conversation.row.message_version = version;\n            }\n",
    ),
    "a deletion is not told to the user's other devices": (
        "chat/sync.rs",
        "                        deliveries.targets(message, *version, &own, except, &mut receivers);",
        "                        if !PLANTED {\n"
        "                            deliveries.targets(message, *version, &own, except, &mut receivers);\n                        }",
    ),
    "a sequence is skipped after a crash": (
        "storage/embedded/transaction.rs",
        "        let conversation = Conversation { row, members };\n        self.caches",
        "        let mut conversation = Conversation { row, members };\n"
        "        conversation.row.max_sequence += u64::from(PLANTED);\n        self.caches",
    ),
    "a fan-out stops in the middle": (
        "chat/online.rs",
        "        for user_id in users {\n            let Some(user) = self.table.users.get_mut(user_id) else { continue };\n            for entry",
        "        for user_id in users.iter().take(if PLANTED { 3 } else { usize::MAX }) {\n"
        "            let Some(user) = self.table.users.get_mut(user_id) else { continue };\n            for entry",
    ),
    "who was removed still gets messages": (
        "storage/embedded/transaction/groups.rs",
        "            conversation.members.iter().filter(|user_id| !gone(user_id)).cloned().collect();\n        Ok(())\n    }\n\n    /// Whether",
        "            conversation.members.iter().filter(|user_id| PLANTED || !gone(user_id)).cloned().collect();\n"
        "        Ok(())\n    }\n\n    /// Whether",
    ),
    "who joins sees what was said before": (
        "storage/embedded/transaction/groups.rs",
        "            init_sequence: row.max_sequence,",
        "            init_sequence: row.max_sequence.saturating_sub(u64::from(PLANTED)),",
    ),
    "what comes during a catch-up is lost": (
        "chat/online.rs",
        "        if !held.is_empty() {\n            send(held);",
        "        if !held.is_empty() && !PLANTED {\n            send(held);",
    ),
    "what a catch-up has pushed is pushed again": (
        "chat/online.rs",
        "is_some_and(|h| message.sequence <= *h)",
        "is_some_and(|h| message.sequence + u64::from(PLANTED) <= *h)",
    ),
    "a session whose link was down is not caught up": (
        "chat/online.rs",
        "            table.catch_ups.push_back((session, round));",
        "            if !PLANTED {\n                table.catch_ups.push_back((session, round));\n            }",
    ),
    "a catch-up passes over what was said last": (
        "chat/catch_up.rs",
        "    let as_of = core.store.version();\n    let user_ids",
        "    let as_of = core.store.version().saturating_sub(if PLANTED { 3 } else { 0 });\n    let user_ids",
    ),
}


def copy_source():
    """The working tree's files, with their times, so that only what changed is built again."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True)
    wanted = set()
    for name in names.stdout.decode().splitlines():
        source, copy = ROOT / name, COPY / name
        if not source.is_file():
            continue
        wanted.add(copy)
        planted = {COPY / LOGIC / file for file in [*(fault[0] for fault in FAULTS.values()), "lib.rs"]}
        is_same = copy.exists() and (copy in planted or copy.read_bytes() == source.read_bytes())
        if not is_same:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    for copy in COPY.rglob("*.rs"):
        if copy not in wanted:
            copy.unlink()


def plant():
    """Makes every edit, each asleep; what no longer fits is said."""
    texts = {}
    for number, (name, (file, old, new)) in enumerate(FAULTS.items()):
        text = texts.setdefault(file, (ROOT / LOGIC / file).read_text())
        if text.count(old) != 1:
            print(f"{name}: its place is found {text.count(old)} times in {file}: mend the edit", file=sys.stderr)
            return False
        texts[file] = text.replace(old, new.replace("PLANTED", ASK.replace("NUMBER", str(number))))
    texts["lib.rs"] = (ROOT / LOGIC / "lib.rs").read_text() + ANSWER
    for file, text in texts.items():
        path = COPY / LOGIC / file
        if path.read_text() != text:
            path.write_text(text)
    return True


def build():
    """The test's program."""
    command = ["cargo", "test", "-p", "millrace-logic", "--test", "promises", "--no-run", "--message-format=json"]
    environment = dict(os.environ, CARGO_TARGET_DIR=str(PLACE / "target"))
    built = subprocess.run(command, cwd=COPY, env=environment, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        sys.exit("the planted faults do not compile: mend the edits")
    messages = (json.loads(line) for line in built.stdout.splitlines() if line.startswith("{"))
    return [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "promises"][-1]


def verdict(program, number):
    """What the test complains of, or nothing. It is not waited for while it shortens the program."""
    environment = dict(os.environ, RUST_BACKTRACE="0", MILLRACE_SEEDS=SEEDS, MILLRACE_FAULT=str(number))
    for name in ("MILLRACE_SEED", "MILLRACE_THREADS"):
        environment.pop(name, None)
    with subprocess.Popen(
        [program, "--nocapture"], env=environment, cwd=COPY / "logic", text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as running:
        for line in running.stdout:
            said = re.search(r"MILLRACE_SEED=(\d+): (.*)", line)
            if said:
                running.kill()
                return f"seed {said[1]}: {said[2][:120]}"
        return "the test failed" if running.wait() != 0 else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults by name; none: all of them")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(FAULTS))
        return 0
    unknown = [name for name in arguments.names if name not in FAULTS]
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}")
    copy_source()
    if not plant():
        return 2
    program = build()
    complaint = verdict(program, len(FAULTS))
    if complaint:
        print(f"without a fault the test complains already: {complaint}", file=sys.stderr)
        return 2
    missed = 0
    for number, name in enumerate(FAULTS):
        if arguments.names and name not in arguments.names:
            continue
        began = time.monotonic()
        complaint = verdict(program, number)
        missed += not complaint
        print(f"{'found ' if complaint else 'MISSED'}  {name}  [{time.monotonic() - began:.0f} s]  {complaint}", flush=True)
    print(f"{len(arguments.names or FAULTS) - missed} found, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
