#!/usr/bin/env python3
"""Holds a WebSocket echo server against RFC 6455.

    python3 tests/websocket/conformance.py 127.0.0.1:9001 [--only 6.4] [--timeout 20]

The server must echo every message of up to 16 MiB. One line a case, a verdict at the end; the exit
code is 0 if every case passed. Python's standard library is all it needs.
"""

import argparse
import sys
import time
import urllib.parse

import cases
from client import Client, ServerFault, close


class Run:
    """One case on one connection: performs steps, collects what the server sends."""

    def __init__(self, client):
        self.client = client

    def send(self, data, piece_bytes=None, pause=0.0):
        self.client.send(data, piece_bytes, pause)

    def quiet(self, seconds):
        try:
            event = self.client.read(timeout=seconds)
        except ServerFault as fault:
            if "silent" in str(fault):
                return
            raise
        raise ServerFault(f"nothing was to come, but: {show(event)}")

    def wait_for(self, event):
        self.expect(event, self.client.read())

    def expect(self, wanted, got):
        if got != wanted:
            raise ServerFault(f"{show(wanted)} was to come, but: {show(got)}")

    def send_while_not_reading(self, data, count):
        """Sends until the server stops reading, then waits: it must neither close nor lose."""
        sent = 0
        outgoing = memoryview(data * count)
        self.client.socket.setblocking(False)
        stalled_at = None
        while sent < len(outgoing):
            try:
                sent += self.client.socket.send(outgoing[sent : sent + (1 << 16)])
                stalled_at = None
            except BlockingIOError:
                stalled_at = stalled_at or time.monotonic()
                if time.monotonic() - stalled_at > 0.5:
                    break
                time.sleep(0.01)
        self.client.socket.setblocking(True)
        # The rest goes out between reads, as the server takes it.
        self.unsent = outgoing[sent:]

    def end_of_stream(self):
        self.client.socket.shutdown(1)

    unsent = b""

    def collect(self, events):
        for wanted in events:
            if self.unsent:
                self.pump()
            self.expect(wanted, self.client.read())

    def pump(self):
        """Sends a little of what is left, without waiting."""
        self.client.socket.setblocking(False)
        try:
            for _ in range(4):
                if self.unsent:
                    self.unsent = self.unsent[self.client.socket.send(self.unsent[: 1 << 16]) :]
        except BlockingIOError:
            pass
        finally:
            self.client.socket.setblocking(True)

    def finish(self, end):
        if end[0] == "ended":
            self.expect(("end",), self.client.read())
            return
        if end[0] == "open":
            self.client.send(close(1000))
        code = 1000 if end[0] == "open" else end[1]
        got = self.client.read()
        if got[0] != "close" or got[1] != code:
            raise ServerFault(f"a close frame with {code} was to come, but: {show(got)}")
        # The server ends the stream first (RFC 6455 section 7.1.1).
        self.expect(("end",), self.client.read())


def show(event):
    kind, *rest = event
    shown = [f"{len(each)} bytes {each[:24]!r}" if isinstance(each, bytes) else repr(each)
             for each in rest]
    return " ".join([kind, *shown])


def run_case(case, target, timeout):
    with Client(*target, timeout=timeout) as client:
        run = Run(client)
        for step in case.steps:
            step(run)
        run.collect(case.events)
        run.finish(case.end)


def run_upgrade(request, piece_bytes, status, target, timeout):
    with Client(*target, timeout=timeout, upgrade=False) as client:
        client.send(request(client), piece_bytes, 0.0005 if piece_bytes else 0.0)
        if status == 101:
            client.read_upgrade_answer()
            Run(client).finish(("open",))
            return
        got, headers = client.read_head()
        if got != status:
            raise ServerFault(f"status {status} was to come, but: {got}")
        if status == 426 and headers.get("sec-websocket-version") != "13":
            raise ServerFault("a 426 must name the version that is spoken")
        if status == 405 and headers.get("allow") != "GET":
            raise ServerFault("a 405 must name what is allowed")
        length = int(headers.get("content-length", "0"))
        deadline = time.monotonic() + timeout
        while client._fill(deadline):
            pass
        if len(client.buffer) != length:
            raise ServerFault(f"{length} bytes were announced, {len(client.buffer)} came")


def parse_target(address):
    url = urllib.parse.urlsplit(address if "://" in address else f"ws://{address}")
    if url.scheme != "ws" or not url.hostname or not url.port:
        raise SystemExit(f"not an address: {address}")
    return url.hostname, url.port, url.path or "/"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("address", help="HOST:PORT, or ws://HOST:PORT/path")
    parser.add_argument("--only", action="append", default=[], help="a number or its beginning")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds of silence allowed")
    arguments = parser.parse_args()
    target = parse_target(arguments.address)

    def wanted(number):
        return not arguments.only or any(
            number == only or number.startswith(only.rstrip(".") + ".") for only in arguments.only)

    jobs = [(case.number, case.title, lambda case=case: run_case(case, target, arguments.timeout))
            for case in cases.all_cases() if wanted(case.number)]
    jobs += [(number, title, lambda request=request, piece=piece, status=status:
              run_upgrade(request, piece, status, target, arguments.timeout))
             for number, title, request, piece, status in cases.upgrades() if wanted(number)]
    failed = []
    begin = time.monotonic()
    for number, title, job in jobs:
        start = time.monotonic()
        try:
            job()
            verdict = "ok"
        except (ServerFault, OSError, UnicodeDecodeError) as fault:
            verdict = f"FAILED: {fault}"
            failed.append(number)
        took_ms = (time.monotonic() - start) * 1000
        print(f"{number:8} {took_ms:8.1f} ms  {title}: {verdict}", flush=True)
    seconds = time.monotonic() - begin
    print(f"{len(jobs) - len(failed)} of {len(jobs)} cases passed in {seconds:.1f} s")
    if failed:
        print("failed: " + " ".join(failed))
    return 1 if failed or not jobs else 0


if __name__ == "__main__":
    sys.exit(main())
