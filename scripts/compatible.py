#!/usr/bin/env python3
"""Compares the wire of this tree with that of the last release: what a program or client of that release says must mean the same now.

    .venv/bin/python scripts/compatible.py                   says what is broken and ends with 1, or what it has compared
    .venv/bin/python scripts/compatible.py --record REV      at a release: writes protocol/released.txt from a revision

protocol/released.txt is a line for each field, enum value and call of the .proto files, for each code and command, and for each step of
PostgreSQL's schema. A line that was released stays as it is: number, name (JSON speaks names), type, SQL. A field or value may go only if
the message or enum reserves both its number and its name. A new step of the schema must let the programs of the release work on. What else is
new is nobody's concern here. It compares words, not behaviour; docs/upgrading.md says what else has to hold.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
RELEASED = Path("protocol/released.txt")
PROTO, CODES, COMMANDS = Path("protocol/proto"), Path("protocol/src/code.rs"), Path("protocol/src/command.rs")
SCHEMA = Path("logic/src/storage/postgres")
Field = descriptor_pb2.FieldDescriptorProto


def descriptors(proto):
    """The files of a tree of .proto files, compiled."""
    files = sorted(str(path) for path in proto.rglob("*.proto"))
    with tempfile.TemporaryDirectory(prefix="millrace-descriptors-") as folder:
        out = Path(folder) / "set"
        status = protoc.main(["protoc", f"-I{proto}", f"--descriptor_set_out={out}", *files])
        if status != 0 or not files:
            sys.exit(f"{proto} cannot be compiled")
        return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file


def field_type(field, message):
    kind = field.type_name.lstrip(".") or Field.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == Field.LABEL_REPEATED:
        return f"repeated {kind}"
    if field.proto3_optional:
        return f"optional {kind}"
    return f"{kind} of {message.oneof_decl[field.oneof_index].name}" if field.HasField("oneof_index") else kind


def words_of_messages(prefix, messages, enums):
    """(lines, {message or enum: (reserved numbers as ranges, reserved names)})."""
    lines, reserved = [], {}
    for message in messages:
        name = f"{prefix}.{message.name}"
        lines += [f"field {name} {field.number} {field.name}: {field_type(field, message)}" for field in message.field]
        reserved[name] = ([range(each.start, each.end) for each in message.reserved_range], set(message.reserved_name))
        inner, inner_reserved = words_of_messages(name, message.nested_type, message.enum_type)
        lines += inner
        reserved |= inner_reserved
    for enum in enums:
        name = f"{prefix}.{enum.name}"
        lines += [f"value {name} {value.number} {value.name}" for value in enum.value]
        reserved[name] = ([range(each.start, each.end + 1) for each in enum.reserved_range], set(enum.reserved_name))
    return lines, reserved


def words(root):
    """Everything that is said on the wire of the project in this folder, and what is reserved."""
    lines, reserved = [], {}
    for file in descriptors(root / PROTO):
        more, more_reserved = words_of_messages(file.package, file.message_type, file.enum_type)
        lines += more
        reserved |= more_reserved
        for service in file.service:
            for call in service.method:
                ends = [("stream " if streams else "") + kind.lstrip(".") for kind, streams in
                        ((call.input_type, call.client_streaming), (call.output_type, call.server_streaming))]
                lines.append(f"call {file.package}.{service.name}/{call.name}: {ends[0]} -> {ends[1]}")
    codes = re.findall(r'^ {4}\w+ = (\d+), "(\w+)"', (root / CODES).read_text(), re.M)
    commands = re.findall(r'^ {4}\w+ = (0x[0-9A-F]{4}), "(\w+)"', (root / COMMANDS).read_text(), re.M)
    if not codes or not commands:
        sys.exit("the tables of codes and commands are not where they were")
    lines += [f"code {number} {label}" for number, label in codes] + [f"command {number} {label}" for number, label in commands]
    return lines + [f"step {number} {name} {digest}" for number, name, digest, _ in steps(root)], reserved


def steps(root):
    """[(number, name, what its SQL is, the oldest program that works on it)] of PostgreSQL's schema; none where there is none yet."""
    if not (root / SCHEMA / "migrate.rs").exists():
        return []
    pattern = r'Migration \{\s*number: (\d+),\s*name: "(\w+)",\s*sql: include_str!\("(.+?)"\),\s*program_min: (\d+),?\s*\}'
    found = re.findall(pattern, (root / SCHEMA / "migrate.rs").read_text())
    if not found:
        sys.exit("the steps of the schema are not where they were")
    return [(int(number), name, hashlib.sha256((root / SCHEMA / file).read_bytes()).hexdigest()[:16], int(least)) for number, name, file, least in found]


def number_of(line):
    """What of a line must stay unique: the same number of the same thing."""
    kind, rest = line.split(" ", 1)
    return (kind, *rest.split(" ")[:2]) if kind in ("field", "value") else (kind, re.split(r"[ :]", rest)[0])


def check(root):
    """(what is broken, how many lines of the release were compared)."""
    released = [line for line in (root / RELEASED).read_text().splitlines() if line and line.split(" ")[0] not in ("#", "revision")]
    now, reserved = words(root)
    known, by_number, wrong = set(now), {number_of(line): line for line in now}, []
    newest = max((int(line.split(" ")[1]) for line in released if line.startswith("step ")), default=0)
    for number, name, _, program_min in steps(root):
        if newest and number > newest and program_min > newest:
            wrong.append(f"step {number} {name} asks for programs that know step {program_min}; those of the last release know {newest} and would not run")
    for line in released:
        if line in known:
            continue
        other = by_number.get(number_of(line))
        kind, thing, *rest = line.split(" ")
        if other:
            wrong.append(f"it was `{line}` and is `{other}`")
        elif kind not in ("field", "value"):
            wrong.append(f"`{line}` is gone")
        elif thing not in reserved:
            wrong.append(f"`{line}` is gone with all of {thing}")
        else:
            number, name = int(rest[0]), rest[1].rstrip(":")
            numbers, names = reserved[thing]
            if not any(number in each for each in numbers) or name not in names:
                wrong.append(f"`{line}` is gone; {thing} must say `reserved {number}; reserved \"{name}\";`")
    return wrong, len(released)


def record(revision):
    """Writes what a revision says."""
    git = lambda *arguments: subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True)
    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}").stdout.decode().strip()
    there = git("ls-tree", "--name-only", commit, *map(str, (PROTO, CODES, COMMANDS, SCHEMA))).stdout.decode().split()
    with tempfile.TemporaryDirectory(prefix="millrace-release-") as folder:
        subprocess.run(["tar", "-x", "-C", folder], input=git("archive", commit, *there).stdout, check=True)
        lines, _ = words(Path(folder))
    head = ["# What the last release says on the wire; scripts/compatible.py writes and compares it, scripts/previous.sh builds that revision.", f"revision {commit}"]
    (ROOT / RELEASED).write_text("\n".join(head + sorted(lines)) + "\n")
    print(f"{RELEASED}: {len(lines)} lines of {commit[:12]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", metavar="REV", help="write protocol/released.txt from this revision")
    arguments = parser.parse_args()
    if arguments.record:
        return record(arguments.record)
    wrong, count = check(ROOT)
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    if not wrong:
        print(f"all {count} fields, values, calls, codes, commands and steps of the last release are as they were")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
