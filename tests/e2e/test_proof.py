"""The table of what is proven is compared with the tests; and what is wrong in it is found."""

import importlib.util
import shutil

import pytest

from millrace_client import ROOT

_spec = importlib.util.spec_from_file_location("proof", ROOT / "scripts" / "proof.py")
proof = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(proof)

PYTHON = "test_chat.py::test_rooms_are_live_and_left"
RUST = "logic/tests/chat/group.rs::only_members_speak_and_look"


@pytest.fixture
def copy(tmp_path):
    """A project with one test of each kind, and a table in which every row names one of them."""
    for file in ("tests/e2e/test_chat.py", "logic/tests/chat/group.rs"):
        (tmp_path / file).parent.mkdir(parents=True)
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "docs").mkdir()
    rows = [f"| {row} | a promise | `{PYTHON}`<br>`{RUST}` | |" for row in proof.wanted_rows()]
    (tmp_path / proof.PAGE).write_text("\n".join(rows) + "\n")
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_every_row_of_the_mission_names_tests_that_exist():
    wrong, rows, named = proof.check(ROOT)
    assert not wrong, "\n".join(wrong)
    assert len(rows) == 33 and len(named) > 100


def test_a_table_that_is_right_is_let_through(copy):
    assert proof.check(copy)[0] == []


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (proof.PAGE, f"| M3 | a promise | `{PYTHON}`<br>`{RUST}` | |\n", "", "row M3 is missing"),
        (proof.PAGE, f"| M3 | a promise | `{PYTHON}`<br>`{RUST}` | |", "| M3 | a promise | | |", "row M3 has neither"),
        (proof.PAGE, "| M3 | a promise |", "| M3 | |", "row M3 promises nothing"),
        (proof.PAGE, "| M3 |", "| M99 |", "row M99 is unknown"),
        (proof.PAGE, "| M3 |", "| M2 |", "row M2 is there twice"),
        (proof.PAGE, "| M3 | a promise |", "| M3 | a | promise |", "row M3 has 5 cells"),
        (proof.PAGE, f"`{PYTHON}`", "`test_chat.py::test_nothing`", "test_nothing does not exist"),
        (proof.PAGE, f"`{PYTHON}`", "`test_nowhere.py::test_x`", "there is no such file"),
        (proof.PAGE, f"`{PYTHON}`", "`test_chat.py::receipt`", "receipt is not a test"),
        (proof.PAGE, f"`{PYTHON}`", "it was tried by hand", "names something that is no test"),
        (proof.PAGE, f"`{RUST}`", "`logic/tests/chat/group.rs::nothing`", "nothing does not exist"),
        ("tests/e2e/test_chat.py", "def test_rooms_are", "@pytest.mark.skip\ndef test_rooms_are", "is ignored"),
        ("tests/e2e/test_chat.py", "def test_rooms_are", "@pytest.mark.xfail(reason='x')\ndef test_rooms_are", "is ignored"),
        ("tests/e2e/test_chat.py", "def test_rooms_are", "def xtest_rooms_are", "does not exist"),
        ("logic/tests/chat/group.rs", "async fn only_members_speak", "#[ignore]\nasync fn only_members_speak", "is ignored"),
        ("logic/tests/chat/group.rs", "async fn only_members_speak", "}\nasync fn only_members_speak", "is not a test"),
    ],
)
def test_what_is_wrong_in_the_table_is_found(copy, file, old, new, said):
    edit(copy / file, old, new)
    wrong = proof.check(copy)[0]
    assert any(said in line for line in wrong), wrong
