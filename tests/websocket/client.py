"""A WebSocket client on a plain socket that can misbehave, written from RFC 6455.

It writes any bytes, whole or in small pieces, and reads what the server says strictly: a server
that masks, sets reserved bits, fragments a control frame, spells a length the long way or says
anything after its close frame is at fault. It answers nothing by itself.
"""

import base64
import hashlib
import os
import random
import socket
import struct
import time

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class ServerFault(Exception):
    """The server broke the protocol, or stayed silent."""


def mask_bytes(payload, key):
    """XOR with the key, repeated; by one big number, because a loop over 16 MiB takes seconds."""
    if not payload:
        return b""
    repeated = (key * (len(payload) // 4 + 1))[: len(payload)]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return number.to_bytes(len(payload), "big")


def frame(opcode, payload=b"", fin=True, reserved=0, masked=True, length=None, form=None):
    """One frame. `length` and `form` (0, 16, 64 bits) can lie; the rest can be wrong as it is."""
    length = len(payload) if length is None else length
    if form is None:
        form = 0 if length < 126 else 16 if length < 65536 else 64
    out = bytearray([(0x80 if fin else 0) | reserved << 4 | opcode])
    bit = 0x80 if masked else 0
    out += {
        0: lambda: bytes([bit | length]),
        16: lambda: bytes([bit | 126]) + struct.pack(">H", length),
        64: lambda: bytes([bit | 127]) + struct.pack(">Q", length),
    }[form]()
    if masked:
        key = random.randbytes(4)
        out += key
        payload = mask_bytes(payload, key)
    return bytes(out) + payload


def close(code=None, reason=b""):
    payload = b"" if code is None else struct.pack(">H", code) + reason
    return frame(CLOSE, payload)


class Client:
    """One connection. Events are ("text", bytes), ("binary", bytes), ("ping", bytes),
    ("pong", bytes), ("close", code or None, reason) and ("end",) for the end of the stream."""

    def __init__(self, host, port, path="/", timeout=10.0, upgrade=True):
        self.timeout = timeout
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.host, self.port, self.path = host, port, path
        self.buffer = bytearray()
        self.message_kind, self.message = None, bytearray()
        self.close_seen = False
        self.key = base64.b64encode(os.urandom(16))
        if upgrade:
            self.send(self.upgrade_request())
            self.read_upgrade_answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    # --- writing ---

    def send(self, data, piece_bytes=None, pause=0.0):
        """Sends; a server that has closed already is no error here: what it said tells more."""
        try:
            if piece_bytes is None:
                self.socket.sendall(data)
                return
            for start in range(0, len(data), piece_bytes):
                self.socket.sendall(data[start : start + piece_bytes])
                if pause:
                    time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def upgrade_request(self, **changes):
        headers = {
            "Host": f"{self.host}:{self.port}", "Upgrade": "websocket", "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": self.key.decode(),
        }
        headers.update({name.replace("_", "-"): value for name, value in changes.items()})
        lines = [f"GET {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    # --- reading ---

    def _fill(self, deadline):
        """More bytes; False at the end of the stream."""
        self.socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self.socket.recv(1 << 20)
        except socket.timeout:
            raise ServerFault("the server stayed silent") from None
        except ConnectionResetError:
            raise ServerFault("the connection was reset instead of closed") from None
        finally:
            self.socket.settimeout(self.timeout)
        self.buffer += data
        return bool(data)

    def read_head(self):
        """An HTTP head: the status and the headers (names in lower case)."""
        deadline = time.monotonic() + self.timeout
        while b"\r\n\r\n" not in self.buffer:
            if not self._fill(deadline):
                raise ServerFault("the stream ended inside the HTTP head")
        head, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        self.buffer = bytearray(rest)
        first, *lines = head.decode("ascii").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        version, status, *_ = first.split(" ", 2)
        if version != "HTTP/1.1":
            raise ServerFault(f"{version} instead of HTTP/1.1")
        return int(status), headers

    def read_upgrade_answer(self):
        status, headers = self.read_head()
        accept = base64.b64encode(hashlib.sha1(self.key + ACCEPT_SUFFIX).digest()).decode()
        if status != 101:
            raise ServerFault(f"the upgrade was answered with status {status}")
        if headers.get("sec-websocket-accept") != accept:
            raise ServerFault("Sec-WebSocket-Accept does not fit the key")
        if headers.get("upgrade", "").lower() != "websocket":
            raise ServerFault("the answer does not upgrade to websocket")
        if "upgrade" not in headers.get("connection", "").lower():
            raise ServerFault("the answer has no Connection: Upgrade")

    def _frame(self):
        """A whole frame from the buffer, or None."""
        data = self.buffer
        if len(data) < 2:
            return None
        fin, reserved, opcode = data[0] >> 7, data[0] >> 4 & 7, data[0] & 15
        if reserved:
            raise ServerFault("the server set reserved bits")
        if data[1] & 0x80:
            raise ServerFault("the server masked a frame")
        length, start = data[1] & 0x7F, 2
        if length == 126:
            if len(data) < 4:
                return None
            length, start = struct.unpack_from(">H", data, 2)[0], 4
            if length < 126:
                raise ServerFault("the server spelled a length the long way")
        elif length == 127:
            if len(data) < 10:
                return None
            length, start = struct.unpack_from(">Q", data, 2)[0], 10
            if length < 65536:
                raise ServerFault("the server spelled a length the long way")
        if opcode >= 8 and (not fin or length > 125):
            raise ServerFault("the server sent a bad control frame")
        if len(data) < start + length:
            return None
        payload = bytes(data[start : start + length])
        del data[: start + length]
        return fin, opcode, payload

    def read(self, timeout=None):
        """The next event."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            parsed = self._frame()
            if parsed is None:
                if not self._fill(deadline):
                    if self.buffer:
                        raise ServerFault("the stream ended inside a frame")
                    return ("end",)
                continue
            if self.close_seen:
                raise ServerFault("the server sent a frame after its close frame")
            event = self._event(*parsed)
            if event is not None:
                return event

    def _event(self, fin, opcode, payload):
        if opcode == CLOSE:
            self.close_seen = True
            if len(payload) == 1:
                raise ServerFault("the server sent a close frame of one byte")
            code = struct.unpack(">H", payload[:2])[0] if payload else None
            return ("close", code, payload[2:].decode("utf-8"))
        if opcode in (PING, PONG):
            return ("ping" if opcode == PING else "pong", payload)
        if opcode in (TEXT, BINARY):
            if self.message_kind is not None:
                raise ServerFault("the server began a message inside another")
            self.message_kind = "text" if opcode == TEXT else "binary"
        elif opcode != CONTINUATION or self.message_kind is None:
            raise ServerFault(f"the server sent opcode {opcode} out of place")
        self.message += payload
        if not fin:
            return None
        event = (self.message_kind, bytes(self.message))
        self.message_kind, self.message = None, bytearray()
        return event
