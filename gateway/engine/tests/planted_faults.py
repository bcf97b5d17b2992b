#!/usr/bin/env python3
"""Plants known faults in the engine, one at a time, and shows that the simulator finds each.

    gateway/engine/tests/planted_faults.py             all of them, some minutes
    gateway/engine/tests/planted_faults.py --list
    gateway/engine/tests/planted_faults.py NAME ...    some of them
    gateway/engine/tests/planted_faults.py --all-tests NAME ...    with every test of the engine, not the simulator's alone

A fault is a small edit of the engine's source. It is made in a copy under target/planted-faults, which also has its own
build, so the working tree is never touched. Only the simulator's tests are run: the others would find many of these faults
too, but would not say anything about the simulator. The first run is without a fault and must pass.

Ends with status 1 if a fault was not found, and with status 2 if an edit no longer fits the source: then mend it here.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PLACE = ROOT / "target" / "planted-faults"
COPY = PLACE / "source"
ENGINE = "gateway/engine/src"
TESTS = ["frames_keep_their_order", "requests_are_answered_once", "sessions_end_once", "nothing_is_left_behind", "homes_change"]
SECONDS_MAX = 300

# name: file, what stands there, what stands there instead
FAULTS = {
    "a queued frame is dropped": (
        "engine/outbound.rs",
        "        if !connection.work.is_none() && !self.fits(id, bytes, command) {",
        "        if self.counters.sessions_ended.iter().sum::<u64>() % 16 == 3 {\n            return;\n        }\n"
        "        let Some((connection, _)) = self.parts(id) else { return };\n"
        "        if !connection.work.is_none() && !self.fits(id, bytes, command) {",
    ),
    "two sends are reordered": (
        "transport/outbound.rs",
        "        self.rest.push_back(Segment::Shared(wire.clone()));",
        "        self.rest.push_front(Segment::Shared(wire.clone()));",
    ),
    "two sends are under way at once": (
        "engine/mod.rs",
        "connection.phase == Phase::Closed || connection.has(Facts::SENDING)",
        "connection.phase == Phase::Closed",
    ),
    "the first receiver of a shared frame is forgotten": (
        "engine/from_logic.rs",
        "for session_id in frame.session_ids {",
        "for session_id in frame.session_ids.into_iter().skip(1) {",
    ),
    "a request is answered twice": (
        "engine/from_logic.rs",
        "frame.request_id != 0 && !self.answer_request(id, frame.request_id)",
        "frame.request_id != 0 && !self.answer_request(id, frame.request_id) && false",
    ),
    "a lost link leaves requests unanswered": (
        "engine/to_logic.rs",
        "        for request_id in requests {\n            self.logic_unavailable(id, request_id);",
        "        for request_id in requests.into_iter().skip(1) {\n            self.logic_unavailable(id, request_id);",
    ),
    "a report is not acknowledged": (
        "engine/to_logic.rs",
        "        for (session_id, request_id) in acknowledged {",
        "        for (session_id, request_id) in acknowledged.into_iter().skip(1) {",
    ),
    "the end of a session is not told": (
        "engine/to_logic.rs",
        "        self.send_to_logic(home, Outgoing::Event(Kind::SessionEnded(ended)));",
        "        if code % 7 != 0 {\n            self.send_to_logic(home, Outgoing::Event(Kind::SessionEnded(ended)));\n        }",
    ),
    "a lost link keeps its sessions": (
        "engine/to_logic.rs",
        "                    connection.home = Home::NONE;\n                    self.counters.sessions_homeless += 1;\n",
        "",
    ),
    "a lost link takes the others' sessions with it": (
        "engine/to_logic.rs",
        "            if connection.home == home {\n",
        "            if connection.home == home || id.slot() % 8 == 3 {\n",
    ),
    "a login that was given up leaves a session of nobody": (
        "engine/login.rs",
        "            if result.code == Code::Ok.number() {\n",
        "            if result.code != Code::Ok.number() {\n",
    ),
    "a session is missing in the list": (
        "engine/homes.rs",
        "            kinds.push(Kind::Session(session));",
        "            if slot % 8 != 5 {\n                kinds.push(Kind::Session(session));\n            }",
    ),
    "a member is missing in the list of rooms": (
        "engine/to_logic.rs",
        "members[from..until].iter()",
        "members[from..until].iter().skip(1)",
    ),
    "leaving a room is ignored": (
        "engine/from_logic.rs",
        "        for session_id in &change.leave_session_ids {",
        "        for session_id in change.leave_session_ids.iter().take(0) {",
    ),
    "a member that takes over another's place is not told": (
        "engine/from_logic.rs",
        "            self.memberships.apply(connection.rooms, moved);",
        "            let _ = (moved, connection.rooms);",
    ),
    "an ended session stays in its rooms": (
        "engine/closing.rs",
        "        for last in (0..held).rev() {",
        "        for last in (1..held).rev() {",
    ),
    "the sender hears its own room message": (
        "engine/from_logic.rs",
        "            if id.raw() == frame.except_session_id {",
        "            if id.raw() == frame.except_session_id && frame.room_id.is_empty() {",
    ),
    "credit is counted twice": (
        "link.rs",
        "self.credit.frames = self.credit.frames.saturating_add(frames)",
        "self.credit.frames = self.credit.frames.saturating_add(2 * frames)",
    ),
    "a frame is sent without credit": (
        "link.rs",
        "        if self.credit.frames == 0 {\n            return false;\n        }\n",
        "        if self.credit.frames == 0 {\n            return true;\n        }\n",
    ),
    "the receive of a held-back client is never resumed": (
        "engine/forward.rs",
        "        self.effects.push_back(Effect::ResumeReceive { connection: id, socket });",
        "        let _ = Effect::ResumeReceive { connection: id, socket };",
    ),
    "a frame that waited for credit is lost": (
        "engine/forward.rs",
        "            self.counters.backlog_frames -= 1;\n            self.send_to_logic(home, Outgoing::Frame(waiting));",
        "            self.counters.backlog_frames -= 1;\n            if id.slot() % 8 != 3 {\n"
        "                self.send_to_logic(home, Outgoing::Frame(waiting));\n            }",
    ),
    "frames that waited for credit go out of turn": (
        "engine/forward.rs",
        "        if backlog_frames == 0 && self.spend_credit(home, frame.body.len()) {",
        "        if self.spend_credit(home, frame.body.len()) {",
    ),
    "what waits for credit too long is kept": (
        "engine/deadlines.rs",
        "        self.refuse_held();\n",
        "        let _ = Self::refuse_held;\n",
    ),
    "what waits for credit too long is dropped without a word": (
        "engine/forward.rs",
        "            if self.answer_request(id, request_id) {\n",
        "            if self.answer_request(id, request_id) && request_id % 2 == 0 {\n",
    ),
    "a gap in the numbers towards logic": (
        "engine/to_logic.rs",
        "        active.sequence_next += kinds.len() as u64;",
        "        active.sequence_next += kinds.len().max(2) as u64;",
    ),
    "an old id reaches the new owner of its slot": (
        "slab.rs",
        "            Entry::Used(value) if found.generation == generation => Some(value),\n            _ => None,\n        }\n    }\n\n"
        "    /// The entry in a slot, for whoever owns the slot and",
        "            Entry::Used(value) if found.generation >= generation => Some(value),\n            _ => None,\n        }\n    }\n\n"
        "    /// The entry in a slot, for whoever owns the slot and",
    ),
    "a slot is leaked": (
        "slab.rs",
        "                self.slots[self.free_last as usize].entry = Entry::Free { next: index };",
        "                let _ = Entry::<T>::Free { next: index };",
    ),
    "the wrong peer's count is kept": (
        "engine/mod.rs",
        "                if *count == 0 {\n                    self.addresses.remove(&key);",
        "                if *count == 1 {\n                    self.addresses.remove(&key);",
    ),
    "the silent are never closed": (
        "engine/deadlines.rs",
        "silence_ms >= times.idle_timeout_ms",
        "silence_ms == u32::MAX",
    ),
    "those who speak are closed as silent": (
        "engine/deadlines.rs",
        "silence_ms >= times.idle_timeout_ms",
        "silence_ms >= times.idle_timeout_ms / 512",
    ),
    "nobody has to log in": (
        "engine/deadlines.rs",
        "            Phase::AwaitingLogin | Phase::LoginPending => {\n                self.end_for(id, Code::LoginTimeout);",
        "            Phase::AwaitingLogin | Phase::LoginPending => {\n                let _ = Code::LoginTimeout;",
    ),
    "who does not close its end is kept": (
        "engine/deadlines.rs",
        "            Phase::Closing => self.emit_close(id),",
        "            Phase::Closing => {}",
    ),
    "a send is forgotten after the one before it": (
        "engine/outbound.rs",
        "            self.delivery_probe.end(id.raw(), 0, now_ms, durations);\n        }\n        self.settle(id);",
        "            self.delivery_probe.end(id.raw(), 0, now_ms, durations);\n        }\n"
        "        if self.is_open(id) {\n            return;\n        }\n        self.settle(id);",
    ),
    "a broadcast passes sessions over": (
        "engine/fan_out.rs",
        "            (round, slot + 1)\n",
        "            (round, slot + 2)\n",
    ),
    "a frame overtakes a broadcast": (
        "engine/from_logic.rs",
        "            self.catch_up(id);\n            if !self.is_active(id) {",
        "            if !self.is_active(id) {",
    ),
    "a broadcast reaches who logged in after it": (
        "engine/login.rs",
        "connection.broadcasts_seen = latest_broadcast;",
        "connection.broadcasts_seen = latest_broadcast.wrapping_sub(1);",
    ),
    "a deferred send is forgotten": (
        "engine/fan_out.rs",
        "        self.fan_outs.deferred.push_back(id);",
        "        if id.slot() % 8 != 3 {\n            self.fan_outs.deferred.push_back(id);\n        }",
    ),
    "a session moves with a request in flight": (
        "engine/homes.rs",
        "                    && connection.requests(&self.works) == 0\n",
        "",
    ),
    "a move is told as an end": (
        "engine/homes.rs",
        "                    code: 0,\n                    moved: true,\n",
        "                    code: 0,\n                    moved: id.slot() % 8 != 3,\n",
    ),
    "the old home is not told of a move": (
        "engine/homes.rs",
        "                kinds.push(Kind::SessionEnded(SessionEnded {",
        "                let mut nowhere = Vec::new();\n                nowhere.push(Kind::SessionEnded(SessionEnded {",
    ),
    "the new home is not told of a move": (
        "engine/homes.rs",
        "        self.send_to_logic(to, Outgoing::Event(Kind::Session(session)));",
        "        if id.slot() % 8 != 3 {\n            self.send_to_logic(to, Outgoing::Event(Kind::Session(session)));\n        }",
    ),
    "the rooms of a session that moves do not follow it": (
        "engine/homes.rs",
        "        for members in self.room_members(rooms) {",
        "        for members in self.room_members(rooms).into_iter().skip(1) {",
    ),
    "the rooms of a session that is taken in are forgotten": (
        "engine/homes.rs",
        "        kinds.extend(self.room_members(rooms));",
        "        kinds.extend(self.room_members(rooms).into_iter().skip(1));",
    ),
    "another logic than the home says who is in a room": (
        "engine/from_logic.rs",
        "        if connection.home != home {\n            return self.counters.drop_one(Dropped::NotHome);\n        }\n",
        "        let _ = (connection.home, home);\n",
    ),
    "a login goes to a logic that leaves": (
        "engine/homes.rs",
        "        let stays = links.filter(|link| link.leaving.is_none());",
        "        let stays = links;",
    ),
    "a logic that leaves is let go too early": (
        "engine/homes.rs",
        "        let is_empty = link.sessions == 0 &&",
        "        let is_empty = link.sessions <= 2 &&",
    ),
}


def copy_source():
    """The working tree's tracked files, with their times, so that only what changed is built again."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True)
    wanted = set()
    for name in names.stdout.decode().splitlines():
        source, copy = ROOT / name, COPY / name
        if not source.is_file():
            continue
        wanted.add(copy)
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    for copy in COPY.rglob("*.rs"):
        if copy not in wanted:
            copy.unlink()


def cargo(*arguments, timeout=None):
    environment = dict(os.environ, CARGO_TARGET_DIR=str(PLACE / "target"), CARGO_INCREMENTAL="1", RUST_BACKTRACE="0")
    # The tests run optimised, but build quickly.
    for key, value in {"OPT_LEVEL": "1", "DEBUG": "0"}.items():
        environment[f"CARGO_PROFILE_DEV_{key}"] = value
    command = ["cargo", *arguments, "-q", "-p", "millrace-engine", *(word for test in TESTS for word in ("--test", test))]
    return subprocess.run(command, cwd=COPY, env=environment, capture_output=True, text=True, timeout=timeout, errors="replace")


def verdict():
    """(whether the simulator is content, its complaint)."""
    built = cargo("test", "--no-run")
    if built.returncode != 0:
        print(built.stderr[-3000:], file=sys.stderr)
        sys.exit("the planted fault does not compile: mend the edit")
    try:
        ran = cargo("test", timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return False, "the world never ends"
    if ran.returncode == 0:
        return True, ""
    lines = (ran.stdout + ran.stderr).splitlines()
    where = next((index for index, line in enumerate(lines) if "panicked at" in line), None)
    if where is None:
        return False, "a test failed"
    complaint = next((line for line in lines[where + 1 :] if line.strip()), "")
    return False, complaint.strip()[:110]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults by name; none: all of them")
    parser.add_argument("--all-tests", action="store_true", help="run the engine's other tests, too")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(FAULTS))
        return 0
    if arguments.all_tests:
        TESTS.clear()
    unknown = [name for name in arguments.names if name not in FAULTS]
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}")
    copy_source()
    for name, (file, old, _) in FAULTS.items():
        found = (COPY / ENGINE / file).read_text().count(old)
        if found != 1:
            print(f"{name}: its place is found {found} times in {file}: mend the edit", file=sys.stderr)
            return 2
    passes, complaint = verdict()
    if not passes:
        print(f"without a fault the simulator complains already: {complaint}", file=sys.stderr)
        return 2
    missed = []
    for name in arguments.names or FAULTS:
        file, old, new = FAULTS[name]
        path = COPY / ENGINE / file
        clean = path.read_text()
        began = time.monotonic()
        path.write_text(clean.replace(old, new))
        try:
            passes, complaint = verdict()
        finally:
            path.write_text(clean)
        print(f"{'MISSED' if passes else 'found '}  {name}  [{time.monotonic() - began:.0f} s]  {complaint}", flush=True)
        if passes:
            missed.append(name)
    print(f"{len(arguments.names or FAULTS) - len(missed)} found, {len(missed)} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
