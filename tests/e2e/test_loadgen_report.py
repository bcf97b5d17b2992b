"""What a run of the load generator leaves behind: JSON by its schema, JUnit, .hgrm, and the page in Chromium; and what is seen meanwhile."""

import copy
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from xml.etree import ElementTree

import jsonschema
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from millrace_client import ROOT
from processes import BINARIES

LOADGEN = BINARIES / "millrace-loadgen"
SCHEMA = json.loads((ROOT / "docs" / "loadgen-report.schema.json").read_text())


def target(dev, folder):
    ready = folder / "ready.json"
    ready.write_text(json.dumps(dev.ready))
    return ["--dev-json", ready]


SCENARIO = """
name = "every part"
description = "Something in every part of a report."
connections = 60
thresholds = ["delivery_latency p50 < 60s", "acked >= 1", "loss = 0"]
[connect]
per_second = 100
hold = "2s"
[single_chat]
per_second = 100
[group_chat]
per_second = 5
group_size = 5
[room_broadcast]
per_second = 2
members = 10
[[stage]]
name = "first"
duration = "2s"
[[stage]]
name = "second"
duration = "3s"
"""


@pytest.fixture(scope="module")
def run(dev, tmp_path_factory):
    """One short run, with everything that it can write."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "scenario.toml").write_text(SCENARIO)
    command = [
        LOADGEN, "run", folder / "scenario.toml", *target(dev, folder), "--allow-late", "--observe", f"both={dev.pid}", "--user-prefix", "report",
        "--out", folder / "run", "--quiet",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "run"


def test_the_json_of_a_real_run_keeps_the_committed_schema(run):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    report = json.loads((run / "report.json").read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    assert report["passed"] is True and report["exit_code"] == 0
    assert [stage["name"] for stage in report["stages"]] == ["first", "second"] and len(report["windows"]) >= 5
    # And the schema is one: what is not in it is refused.
    for spoil in (lambda r: r.pop("latency_us"), lambda r: r.update(surprise=1), lambda r: r["latency_us"]["delivery"].update(p50="fast")):
        spoilt = copy.deepcopy(report)
        spoil(spoilt)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(SCHEMA).validate(spoilt)


def test_predicted_and_measured_stand_side_by_side(run):
    rows = {row["name"]: row for row in json.loads((run / "report.json").read_text())["predicted"]}
    for name in ("generator, processor in the load", "gateway and logic, processor in the load"):
        assert rows[name]["predicted"] > 0 and rows[name]["measured"] > 0 and rows[name]["source"], rows
    for name in ("generator, memory a connection", "gateway and logic, memory a connection", "kernel (slab), memory a connection"):
        assert rows[name]["predicted"] > 0 and rows[name]["measured"] is not None, rows


def test_junit_and_hgrm_are_what_other_tools_read(run):
    report = json.loads((run / "report.json").read_text())
    suite = ElementTree.parse(run / "junit.xml").getroot().find("testsuite")
    cases = suite.findall("testcase")
    failed = {case.get("name") for case in cases if case.find("failure") is not None}
    assert len(cases) == int(suite.get("tests")) and int(suite.get("failures")) == len(failed)
    # Whether the generator kept its schedule is the machine's to say.
    assert failed <= {"kept its own schedule"}, failed
    names = {case.get("name") for case in cases}
    assert {"delivery_latency p50 < 60s", "acked >= 1", "no lost", "kept its own schedule"} <= names, names
    lines = (run / "hgrm" / "delivery.hgrm").read_text().splitlines()
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    rows = [[float(word) for word in line.split()] for line in lines[2:] if not line.startswith("#")]
    assert rows[-1][1] == 1.0 and rows[-1][2] == report["latency_us"]["delivery"]["count"]
    at_median = next(row for row in rows if row[1] >= 0.5)
    assert at_median[0] == pytest.approx(report["latency_us"]["delivery"]["p50"] / 1000, rel=0.001)


# Text boxes that meet, text that leaves its box, and a page wider than its window.
LOOK = """
const out = [];
const wide = document.documentElement.scrollWidth - window.innerWidth;
if (wide > 0) out.push(`the page is ${wide} px wider than the window`);
const box = (element) => element.getBoundingClientRect();
const meet = (a, b) => a.left < b.right - 0.5 && b.left < a.right - 0.5 && a.top < b.bottom - 0.5 && b.top < a.bottom - 0.5;
for (const svg of document.querySelectorAll('svg')) {
  const frame = box(svg), texts = [...svg.querySelectorAll('text')].filter(t => t.textContent);
  if (!texts.length) out.push('a drawing without text');
  texts.forEach((one, index) => {
    const a = box(one);
    if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
      out.push(`leaves the drawing: ${one.textContent}`);
    for (const two of texts.slice(index + 1)) if (meet(a, box(two))) out.push(`meet: ${one.textContent} | ${two.textContent}`);
  });
}
const leaves = [...document.querySelectorAll('h1,h2,h3,p,.verdict,.tile b,.tile span,.legend span,td,th,li,pre,summary')].filter(e => e.offsetParent);
for (const element of leaves) if (element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== 'inline')
  out.push(`overflows: ${element.textContent.slice(0, 60)}`);
const blocks = leaves.filter(e => e.textContent.trim() && !e.matches('li'));
blocks.forEach((one, index) => { for (const two of blocks.slice(index + 1))
  if (!one.contains(two) && !two.contains(one) && meet(box(one), box(two))) out.push(`meet: ${one.textContent.slice(0, 40)} | ${two.textContent.slice(0, 40)}`); });
const dim = [];
const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = (c) => { const [r, g, b] = c.map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const back = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$|transparent/.test(c)) return rgb(c); } return [255, 255, 255]; };
const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((m, n) => n - m); return (x + 0.05) / (y + 0.05); };
for (const element of leaves) { const c = contrast(rgb(getComputedStyle(element).color), back(element)); if (c < 4.5) dim.push(`${c.toFixed(1)}: ${element.textContent.slice(0, 30)}`); }
for (const text of document.querySelectorAll('svg text')) { const c = contrast(rgb(getComputedStyle(text).fill), back(text)); if (c < 4.5) dim.push(`${c.toFixed(1)}: ${text.textContent}`); }
for (const line of document.querySelectorAll('svg .line')) { const c = contrast(rgb(getComputedStyle(line).stroke), back(line)); if (c < 3) dim.push(`line ${c.toFixed(1)}: ${line.textContent}`); }
return {faults: out.slice(0, 20), dim: dim.slice(0, 20), drawings: document.querySelectorAll('svg').length, loaded: performance.getEntriesByType('resource').length,
        dark: matchMedia('(prefers-color-scheme: dark)').matches, width: window.innerWidth};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = Options()
    options.binary_location = shutil.which("chromium") or "/usr/bin/chromium"
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--window-size=1280,900", f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or "/usr/bin/chromedriver"))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def look_at(browser, page, views):
    """The page as wide as a desk's or a hand's screen, in light and dark."""
    for width, scheme in views:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
        browser.get(page.as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        seen = browser.execute_script(LOOK)
        where = f"{page.name}, {width} px, {scheme}"
        assert (seen["width"], seen["dark"]) == (width, scheme == "dark"), seen
        assert seen["faults"] == [], f"{where}: {seen['faults']}"
        assert seen["dim"] == [], f"{where}: {seen['dim']}"
        assert seen["loaded"] == 0, f"{where}: the page loads something"
        assert seen["drawings"] >= 1, where


def test_on_the_page_no_text_meets_another_and_nothing_overflows_in_light_and_dark(browser, run):
    look_at(browser, run / "report.html", [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")])


def hard(report):
    """The same run made as long, crowded and badly named as can be."""
    report = copy.deepcopy(report)
    latency = report["latency_us"]["delivery"]
    for name in ("delivery_single", "delivery_group", "delivery_room", "delivery_offline", "ack_single", "ack_group", "ack_room", "service"):
        report["latency_us"][name] = latency
    report["passed"], report["exit_code"] = False, 99
    report["failures"] = ["threshold " + "very_long_name_without_a_space" * 8 + " missed", "lost: 12"]
    report["errors"] = ["x" * 400, "<script>alert(1)</script>"]
    report["scenario"] = {"name": "a-scenario-with-a-name-" + "long" * 30, "description": "words " * 80, "source": "file", "text": "key = 1\n" * 60}
    report["started_at_unix_ms"] = 1_795_325_477_000
    report["stages"] = [
        {"name": f"stage number {number}", "kind": "step", "start_seconds": 10 + number * 270.0, "seconds": 270.0, "from_per_second": 1e6, "to_per_second": 2e6,
         "rates": {"acked": 1e6}, "latency_us": {"delivery": latency}, "thresholds": [], "passed": number % 2 == 0} for number in range(40)
    ]
    report["windows"] = [
        {"start_seconds": float(second), "seconds": 1.0, "phase": "load", "target_per_second": 2e6 if second % 900 < 450 else 1.0, "connections": 10_000_000,
         "counters": {"intended": 1_999_999, "acked": second * 137 % 2_000_000, "received": 1, "room_received": 7, "logins": 5}, "errors": second % 1000,
         "latency_us": {"delivery": {key: latency[key] + second * second % 400_000_000 for key in ("p50", "p90", "p99", "p99.9", "max")} | {"count": 5}},
         "late_p99_us": 50 + second, "late_max_us": 500_000_000, "cpu_percent": 1600.0} for second in range(10_810)
    ]
    return report


def test_a_long_crowded_and_badly_named_run_is_as_legible(browser, run, tmp_path):
    report = hard(json.loads((run / "report.json").read_text()))
    (tmp_path / "hard.json").write_text(json.dumps(report))
    subprocess.run([LOADGEN, "report", tmp_path / "hard.json", "--html", tmp_path / "hard.html"], check=True, timeout=60)
    assert (tmp_path / "hard.html").stat().st_size < 1_500_000
    look_at(browser, tmp_path / "hard.html", [(1280, "light"), (400, "dark")])


def in_terminal(command, seconds, typed=b"", rows=30, columns=100):
    """Runs a command in a terminal of its own; what it wrote, and its exit status."""
    pid, master = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(command[0], [str(word) for word in command])
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    os.kill(pid, signal.SIGWINCH)
    written, until, is_typed = b"", time.monotonic() + seconds, not typed
    try:
        while time.monotonic() < until:
            if not select.select([master], [], [], 0.2)[0]:
                continue
            try:
                more = os.read(master, 65536)
            except OSError:  # The other end is closed.
                break
            if not more:
                break
            written += more
            if not is_typed and b"Latency" in written:
                os.write(master, typed)
                is_typed = True
        else:
            raise AssertionError(f"still running after {seconds} s:\n{written[-2000:]}")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        status = os.waitpid(pid, 0)[1]
        os.close(master)
    return written.decode(errors="replace"), os.waitstatus_to_exitcode(status)


def chat(dev, folder, *more):
    return [
        str(LOADGEN), "chat", *target(dev, folder), "--connections", "20", "--single-rate", "50", "--group-rate", "0", "--allow-late",
        "--user-prefix", f"live-{folder.name}", *more,
    ]


def screen_of(written):
    """What stands on the screen after that: only the cells that change are written, so the places count."""
    cells, row, column = {}, 0, 0
    for move_row, move_column, other, character in re.findall(r"\x1b\[(\d+);(\d+)H|(\x1b\[[0-9;?]*[A-Za-z])|([^\x1b])", written):
        if move_row:
            row, column = int(move_row), int(move_column)
        elif character:
            cells[row, column] = character
            column += 1
    rows = max(row for row, _ in cells)
    return "\n".join("".join(cells.get((row, column), " ") for column in range(1, 121)).rstrip() for row in range(1, rows + 1))


ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


def test_a_terminal_shows_the_view_and_gets_its_screen_back_before_the_result(dev, tmp_path):
    written, status = in_terminal(chat(dev, tmp_path, "--duration", "4s"), 90)
    assert status == 0, written[-2000:]
    assert ENTER in written and LEAVE in written
    view, after = written[written.index(ENTER) :].rsplit(LEAVE, 1)
    screen = screen_of(view)
    for word in ("Connections", "Rates, a second", "Latency of this second", "Generator", "Errors"):
        assert word in screen, f"{word}\n{screen}"
    assert re.search(r"up 20 +away 0", screen), screen
    assert re.search(r"late p99 \S+ [µm]?s", screen), screen
    assert "PASSED" in after and "PASSED" not in view


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_a_key_ends_the_run_and_gives_the_terminal_back(dev, tmp_path, key):
    written, status = in_terminal(chat(dev, tmp_path, "--duration", "10m"), 60, typed=key)
    assert status == 105, written[-2000:]
    assert written.count(ENTER) == 1 and LEAVE in written
    assert "interrupted" in written.rsplit(LEAVE, 1)[1]


def test_plain_lines_where_there_is_no_terminal_or_they_are_asked_for(dev, tmp_path):
    written, status = in_terminal(chat(dev, tmp_path, "--duration", "2s", "--plain"), 90)
    assert status == 0 and "\x1b" not in written, written[-2000:]
    assert re.search(r"load +up +20", written), written
    result = subprocess.run(chat(dev, tmp_path, "--duration", "2s"), capture_output=True, text=True, timeout=90)
    assert result.returncode == 0 and "\x1b" not in result.stdout + result.stderr
    assert re.search(r"load +up +20", result.stderr), result.stderr
