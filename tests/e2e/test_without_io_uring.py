"""Where io_uring is refused, as default container profiles do, the gateway says so once and carries on over epoll.

The chat tests, an idle close and a restart of logic run again here, against gateways under a seccomp filter that lets
`io_uring_setup` fail.
"""

import errno
import re
import subprocess
from urllib import request as http_request

import pytest

from processes import BINARIES, Dev, Process, Tiers, metric
from seccomp import IO_URING_SETUP, deny

# Collected here once more, with the fixtures below.
from test_chat import *  # noqa: F401,F403
from test_idle import test_silent_connection_is_closed_between_15_and_16_s  # noqa: F401
from test_restart import test_killed_logic_comes_back_and_sessions_never_noticed  # noqa: F401
from test_session import test_heartbeat_is_answered, test_kick_tells_the_user_why_and_closes  # noqa: F401


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    """`millrace dev`, its gateway without io_uring."""
    folder = tmp_path_factory.mktemp("dev")
    process = Dev(folder / "data", folder / "log", preexec=deny(IO_URING_SETUP))
    yield process
    status = process.terminate()
    assert status == 0, f"millrace dev ended with {status}:\n{process.tail()}"


@pytest.fixture
def tiers(tmp_path):
    """Gateway and logic as processes of their own, the gateway without io_uring."""
    tiers = Tiers(tmp_path, gateway_preexec=deny(IO_URING_SETUP))
    tiers.start_logic()
    tiers.start_gateway()
    yield tiers
    tiers.stop()


def warnings(log):
    return [line for line in log.splitlines() if re.search(r'\bWARN\b|"level":"warn"', line)]


def metric_lines(admin, name):
    opener = http_request.build_opener(http_request.ProxyHandler({}))
    with opener.open(admin + "/metrics", timeout=5) as response:
        return [line for line in response.read().decode().splitlines() if line.startswith(name)]


def test_one_warning_names_the_cause_and_the_fix_and_a_metric_shows_it(tiers):
    driver = [line for line in warnings(tiers.gateway.log_path.read_text()) if "io_uring is not to be had" in line]
    assert len(driver) == 1, driver
    assert "Operation not permitted" in driver[0] and "seccomp" in driver[0] and "epoll" in driver[0]
    assert metric_lines(tiers.ready["admin"], "millrace_driver{") == ['millrace_driver{name="epoll"} 1']
    assert metric(tiers.ready["admin"], "millrace_driver_fallbacks_total") == 1


def test_a_kernel_without_io_uring_is_told_apart(tmp_path):
    tiers = Tiers(tmp_path, gateway_preexec=deny(IO_URING_SETUP, errno.ENOSYS))
    tiers.start_logic()
    tiers.start_gateway()
    try:
        assert "Function not implemented" in tiers.gateway.log_path.read_text()
        assert metric(tiers.ready["admin"], "millrace_driver_fallbacks_total") == 1
    finally:
        tiers.stop()


def test_with_io_uring_nothing_falls_back(tmp_path):
    tiers = Tiers(tmp_path)
    tiers.start_logic()
    tiers.start_gateway()
    try:
        assert metric_lines(tiers.ready["admin"], "millrace_driver{") == ['millrace_driver{name="io_uring"} 1']
        assert metric(tiers.ready["admin"], "millrace_driver_fallbacks_total") == 0
        assert not [line for line in warnings(tiers.gateway.log_path.read_text()) if "io_uring is not to be had" in line]
    finally:
        tiers.stop()


def test_io_uring_asked_for_by_name_is_not_replaced(tmp_path):
    config = tmp_path / "gateway.toml"
    config.write_text(
        '[gateway]\ndriver = "io_uring"\n[listen]\nwebsocket = "127.0.0.1:0"\ntcp = ""\n[admin]\nlisten = ""\n'
    )
    process = Process(
        [BINARIES / "millrace-gateway", "run", "--config", config], tmp_path / "log", preexec=deny(IO_URING_SETUP)
    )
    try:
        assert process.process.wait(20) == 1
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert "Operation not permitted" in process.tail()
