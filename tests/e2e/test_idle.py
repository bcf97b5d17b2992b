"""Idle detection: a silent connection ends between 15 and 16 s, a heartbeat keeps it."""

import threading
import time

import pytest

from millrace_client import HEARTBEAT, IDLE_TIMEOUT, TRANSPORTS


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_silent_connection_is_closed_between_15_and_16_s(dev, transport):
    # The silence begins with the client's last frame, its LOGIN, which is sent after this moment.
    started = time.monotonic()
    silent = dev.connect(transport, dev.user())
    assert silent.error(timeout=20).code == IDLE_TIMEOUT
    elapsed = time.monotonic() - started
    assert 15.0 <= elapsed <= 16.0, f"closed after {elapsed:.2f} s"
    assert silent.wait_closed().code in (None, 3000 + IDLE_TIMEOUT)


def test_heartbeats_keep_a_quiet_connection(dev):
    quiet = [dev.connect(transport, dev.user()) for transport in TRANSPORTS]
    until = time.monotonic() + 18
    while time.monotonic() < until:
        time.sleep(5)
        for connection in quiet:
            connection.request(HEARTBEAT)


def test_many_silent_connections_end_and_their_slots_return(dev):
    before = dev.metric("millrace_connections")
    connections = [dev.connect(TRANSPORTS[index % 2], dev.user()) for index in range(200)]
    ends = []

    def watch(connection, started):
        connection.wait_closed(timeout=20)
        ends.append(time.monotonic() - started)

    threads = [threading.Thread(target=watch, args=(connection, time.monotonic())) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == len(connections)
    deadline = time.monotonic() + 5
    while dev.metric("millrace_connections") > before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert dev.metric("millrace_connections") <= before
