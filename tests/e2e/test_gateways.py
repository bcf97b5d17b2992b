"""Which gateway a client should use: asked of logic, answered by load and health."""

import signal
import time

from millrace_client import TcpConnection, WebSocketConnection, mint_token
from processes import BINARIES, JWT_SECRET, Process


def until(check, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)
    return found


def gateways(tiers):
    status, reply = tiers.api().call("GET", "/v1/gateways")
    assert status == 200, reply
    return {one["gateway_id"]: one for one in reply["gateways"]}


def assign(tiers):
    return tiers.api().call("GET", "/v1/gateways/assign")


def second_gateway(tiers):
    config = tiers.folder / "second.toml"
    config.write_text(
        f'[gateway]\nid = "second"\npublic_websocket = "wss://second.example/ws"\nshards = 1\n'
        f'[listen]\nwebsocket = ""\ntcp = "127.0.0.1:{tiers.free_port("tcp2")}"\n[connections]\nconnections_max = 3\n'
        f'[admin]\nlisten = ""\n[logic]\nendpoints = ["http://127.0.0.1:{tiers.free_port("link")}"]\n[drain]\nshutdown = "5s"\n'
    )
    return Process([BINARIES / "millrace-gateway", "run", "--config", config], tiers.folder / "second.log")


def test_the_assigned_gateway_can_be_reached_and_is_neither_full_nor_draining(tiers):
    (first_id,) = until(lambda: [id for id, one in gateways(tiers).items() if one["assignable"]])
    status, reply = assign(tiers)
    assert (status, reply["gateway_id"]) == (200, first_id)
    # What is given works as it stands.
    for transport, key, address in [
        (WebSocketConnection, "websocket", reply["websocket_address"]), (TcpConnection, "tcp", reply["tcp_address"]),
    ]:
        connection = transport({key: address})
        assert connection.login("alice", mint_token(JWT_SECRET, "alice")).code == 0
        connection.close()
    second = second_gateway(tiers)
    try:
        found = until(lambda: gateways(tiers).get("second", {}).get("assignable") and gateways(tiers)["second"])
        assert found["websocket_address"] == "wss://second.example/ws", "as configured"
        assert found["tcp_address"] == f"127.0.0.1:{tiers.free_port('tcp2')}", "as it listens"
        assert found["connections_max"] == "3"
        ready = {"tcp": found["tcp_address"]}
        held = []
        for number in range(3):
            connection = TcpConnection(ready)
            assert connection.login(f"user{number}", mint_token(JWT_SECRET, f"user{number}")).code == 0
            held.append(connection)
        until(lambda: not gateways(tiers)["second"]["assignable"])
        assert all(assign(tiers)[1]["gateway_id"] == first_id for _ in range(20)), "the other one is full"
        held[0].close()
        until(lambda: gateways(tiers)["second"]["assignable"])
        # Who drains gets nobody, and the first one drains with a client that does not leave.
        stays = tiers.connect(TcpConnection, "stays")
        tiers.gateway.process.send_signal(signal.SIGTERM)
        until(lambda: not gateways(tiers).get(first_id, {"assignable": False})["assignable"])
        status, reply = assign(tiers)
        assert (status, reply["gateway_id"]) == (200, "second")
        stays.close()
        until(lambda: tiers.gateway.process.poll() is not None)
    finally:
        second.kill()
    until(lambda: assign(tiers)[0] == 503)
    status, refusal = assign(tiers)
    assert refusal["code"] == 19 and refusal["reason"]
