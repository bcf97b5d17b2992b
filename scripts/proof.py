#!/usr/bin/env python3
"""Compares docs/proof.md with the tests that there are.

Every row of the mission must be in its table, with tests or with what is not there yet; every test that the page names must
exist, must be a test, and must not be ignored. Prints what is wrong and ends with 1, or says what it has checked.
It does not run the tests: that is the rest of scripts/test.sh.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path("docs/proof.md")
# The rows that must be there: letter and how many; and single ones.
ROWS = {"A": 6, "M": 11, "S": 2, "T": 4, "B": 4, "G": 4}
MORE_ROWS = ["C8", "C9"]
# What is named without a folder.
PYTHON_TESTS = Path("tests/e2e")
NAME = re.compile(r"`([^`\s]+\.(?:py|rs))::(\w+)`")


def wanted_rows():
    return [f"{letter}{number}" for letter, count in ROWS.items() for number in range(1, count + 1)] + MORE_ROWS


def table_rows(text):
    """{row: (promise, tests, not yet)} of all tables, and what is wrong with their form."""
    rows, wrong = {}, []
    for number, line in enumerate(text.splitlines(), 1):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|") or not re.fullmatch(r"[A-Z]\d+", cells[0]):
            continue
        if len(cells) != 4:
            wrong.append(f"{PAGE}:{number}: row {cells[0]} has {len(cells)} cells, not 4")
        elif cells[0] in rows:
            wrong.append(f"{PAGE}:{number}: row {cells[0]} is there twice")
        else:
            rows[cells[0]] = tuple(cells[1:])
    return rows, wrong


def python_test(path, name):
    """What is wrong with a test in Python, or None."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            if not name.startswith("test_"):
                return "is not a test"
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            ignored = [mark for mark in marks if re.search(r"\bmark\.(skip|skipif|xfail)\b", mark)]
            return f"is ignored: {ignored[0]}" if ignored else None
    return "does not exist"


def rust_test(path, name):
    """What is wrong with a test in Rust, or None."""
    lines = path.read_text().splitlines()
    reason = "does not exist"
    for number, line in enumerate(lines):
        if not re.match(rf"\s*(pub(\(\w+\))? )?(async )?fn {name}\b", line):
            continue
        attributes = []
        for above in reversed(lines[:number]):
            above = above.strip()
            if not above.startswith(("#[", "//")):
                break
            attributes.append(above)
        if not any(re.match(r"#\[(\w+::)?test\b", attribute) for attribute in attributes):
            reason = "is not a test"
            continue
        ignored = any(attribute.startswith("#[ignore") for attribute in attributes)
        return "is ignored" if ignored else None
    return reason


def check(root):
    """(what is wrong, rows, tests named)."""
    text = (root / PAGE).read_text()
    rows, wrong = table_rows(text)
    for row in wanted_rows():
        if row not in rows:
            wrong.append(f"{PAGE}: row {row} is missing")
            continue
        promise, tests, not_yet = rows[row]
        if not promise:
            wrong.append(f"{PAGE}: row {row} promises nothing")
        if not NAME.search(tests) and not not_yet:
            wrong.append(f"{PAGE}: row {row} has neither a test nor what is not there yet")
        left_over = re.sub(r"<br>|\s", "", NAME.sub("", tests))
        if left_over:
            wrong.append(f"{PAGE}: row {row} names something that is no test: {left_over}")
    for row in sorted(set(rows) - set(wanted_rows())):
        wrong.append(f"{PAGE}: row {row} is unknown")
    named = sorted(set(NAME.findall(text)))
    for file, name in named:
        path = root / (file if "/" in file else PYTHON_TESTS / file)
        if not path.is_file():
            wrong.append(f"{PAGE}: {file}::{name}: there is no such file")
        elif reason := (python_test if file.endswith(".py") else rust_test)(path, name):
            wrong.append(f"{PAGE}: {file}::{name} {reason}")
    return wrong, rows, named


def main():
    wrong, rows, named = check(ROOT)
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        print(f"{len(wrong)} things in {PAGE} are not so.", file=sys.stderr)
        return 1
    gaps = sum(bool(not_yet) for _, _, not_yet in rows.values())
    print(f"{PAGE}: {len(rows)} rows, {len(named)} tests, all there; {gaps} rows name something that is not there yet.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
