"""The wire is compared with the last release's; and what breaks a program or client of that release is found."""

import importlib.util
import shutil

import pytest

from millrace_client import ROOT

_spec = importlib.util.spec_from_file_location("compatible", ROOT / "scripts" / "compatible.py")
compatible = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(compatible)

MIGRATE = compatible.SCHEMA / "migrate.rs"
LINK, CHAT = (compatible.PROTO / "millrace" / name for name in ("link/v1/link.proto", "chat/v1/chat.proto"))
STEP = 'Migration {{ number: 77, name: "new", sql: include_str!("migrations/0002_sides.sql"), program_min: {least} }},'


@pytest.fixture
def copy(tmp_path):
    """The tree of today, taken for the last release."""
    shutil.copytree(ROOT / compatible.PROTO, tmp_path / compatible.PROTO)
    shutil.copytree(ROOT / compatible.SCHEMA, tmp_path / compatible.SCHEMA)
    (tmp_path / "protocol" / "src").mkdir()
    for table in (compatible.CODES, compatible.COMMANDS):
        shutil.copy(ROOT / table, tmp_path / table)
    (tmp_path / compatible.RELEASED).write_text("\n".join(compatible.words(tmp_path)[0]) + "\n")
    assert compatible.check(tmp_path)[0] == []
    return tmp_path


def test_what_the_last_release_says_still_means_the_same():
    wrong, count = compatible.check(ROOT)
    assert not wrong, "\n".join(wrong)
    assert count > 900


@pytest.mark.parametrize(("file", "old", "new", "said"), [
    (LINK, "uint64 session_id = 1;\n  // Why", "uint32 session_id = 1;\n  // Why", "1 session_id: uint64` and is `"),
    (LINK, "uint32 lease_ms = 5;", "uint32 lease_ms = 15;", "`field millrace.link.v1.Hello 5 lease_ms: uint32` is gone"),
    (LINK, "uint32 lease_ms = 5;", "uint32 lease_s = 5;", "5 lease_s: uint32"),
    (LINK, "uint32 lease_ms = 5;", "", 'must say `reserved 5; reserved "lease_ms";`'),
    (LINK, "uint32 lease_ms = 5;", "reserved 5;", 'must say `reserved 5; reserved "lease_ms";`'),
    (LINK, "uint32 lease_ms = 5;", "repeated uint32 lease_ms = 5;", "5 lease_ms: repeated uint32"),
    (LINK, "uint32 lease_ms = 5;", "optional uint32 lease_ms = 5;", "5 lease_ms: optional uint32"),
    (LINK, "TRANSPORT_WEBSOCKET = 2;", "TRANSPORT_QUIC = 2;", "2 TRANSPORT_QUIC"),
    (LINK, "rpc Connect(stream ConnectRequest)", "rpc Connect(ConnectRequest)", "LinkService/Connect: millrace"),
    (CHAT, "optional bool pinned = 3;", "bool pinned = 3;", "3 pinned: bool"),
    (compatible.CODES, '= 3, "too_large"', '= 3, "too_big"', "`code 3 too_large` and is `code 3 too_big`"),
    (compatible.COMMANDS, '0x0202, "deliver"', '0x02F2, "deliver"', "`command 0x0202 deliver` is gone"),
    (compatible.SCHEMA / "migrations" / "0001_chat.sql", "CREATE TABLE millrace.groups (", "CREATE TABLE millrace.circles (", "`step 1 chat"),
    (MIGRATE, "const MIGRATIONS: &[Migration] = &[", "const MIGRATIONS: &[Migration] = &[" + STEP.format(least=77), "and would not run"),
])
def test_what_would_break_the_last_release_is_found(copy, file, old, new, said):
    text = (copy / file).read_text()
    assert text.count(old) == 1, f"{old} is in {file} {text.count(old)} times"
    (copy / file).write_text(text.replace(old, new))
    wrong, _ = compatible.check(copy)
    assert any(said in sentence for sentence in wrong), wrong


@pytest.mark.parametrize(("file", "old", "new"), [
    (LINK, "uint32 lease_ms = 5;", "uint32 lease_ms = 5;\n  string zone = 4711;"),
    (LINK, "uint32 lease_ms = 5;", 'reserved 5;\n  reserved "lease_ms";'),
    (LINK, "TRANSPORT_WEBSOCKET = 2;", "TRANSPORT_WEBSOCKET = 2;\n  TRANSPORT_QUIC = 3;"),
    (MIGRATE, "const MIGRATIONS: &[Migration] = &[", "const MIGRATIONS: &[Migration] = &[" + STEP.format(least=1)),
])
def test_what_is_added_or_goes_in_good_order_is_not_held_against_anybody(copy, file, old, new):
    text = (copy / file).read_text()
    (copy / file).write_text(text.replace(old, new, 1))
    assert compatible.check(copy)[0] == []
