"""An independent Millrace client, written from PROTOCOL.md and the .proto files alone.

It shares no code with the project: plain sockets and the `websockets` package carry the frames,
protobuf classes are compiled from protocol/proto at import. It is a test client: synchronous, one
thread a connection, and strict about everything the protocol promises.
"""

from __future__ import annotations

import base64
import collections
import hashlib
import hmac
import importlib
import json
import socket
import struct
import sys
import tempfile
import time
import types
from dataclasses import dataclass
from pathlib import Path
from urllib import request as http_request
from urllib.error import HTTPError

from grpc_tools import protoc
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as websocket_connect

import openapi

ROOT = Path(__file__).resolve().parents[2]


def _compile_protos():
    """Compiles the project's .proto files into a temporary package and imports them."""
    out = tempfile.mkdtemp(prefix="millrace-proto-")
    proto_root = ROOT / "protocol" / "proto"
    files = sorted(str(path) for path in proto_root.rglob("*.proto"))
    status = protoc.main(["protoc", f"-I{proto_root}", f"--python_out={out}", f"--grpc_python_out={out}", *files])
    assert status == 0, "the .proto files do not compile with protoc"
    sys.path.insert(0, out)
    def merged(package, ending):
        """Every message or stub of a package, whichever of its files it is in."""
        names = {}
        for path in sorted((proto_root / package.replace(".", "/")).glob("*.proto")):
            names |= vars(importlib.import_module(f"{package}.{path.stem}{ending}"))
        return types.SimpleNamespace(**names)

    return (
        merged("millrace.session.v1", "_pb2"),
        merged("millrace.chat.v1", "_pb2"),
        merged("millrace.api.v1", "_pb2"),
        merged("millrace.api.v1", "_pb2_grpc"),
    )


session, chat, api_messages, api_services = _compile_protos()

HEARTBEAT, LOGIN, LOGOUT, KICK, GOAWAY, ERROR, REFRESH = 1, 2, 3, 4, 5, 6, 7
NOTICE, GROUP_BY_ID, NOTICE_ACK = 0x0100, 0x0102, 0x0103
SEND_MESSAGE, DELIVER, DELIVER_ACK, READ, RECEIPT = 0x0201, 0x0202, 0x0203, 0x0204, 0x0205
PULL_MESSAGES, PULL_CONVERSATIONS, UPDATE_CONVERSATION, TYPING = 0x0209, 0x020A, 0x020B, 0x020C
JOIN_ROOM, LEAVE_ROOM, ROOM_MESSAGE, REPORT = 0x0210, 0x0211, 0x0212, 0x0301
REPLY = 0x8000

REPLY_TYPES = {
    LOGIN: session.LoginReply,
    REFRESH: session.RefreshReply,
    GROUP_BY_ID: chat.GroupReply,
    SEND_MESSAGE: chat.SendReply,
    READ: chat.ReadReply,
    PULL_MESSAGES: chat.PullReply,
    PULL_CONVERSATIONS: chat.ConversationsReply,
    UPDATE_CONVERSATION: chat.UpdateReply,
    JOIN_ROOM: chat.RoomReply,
    LEAVE_ROOM: chat.RoomReply,
    ROOM_MESSAGE: chat.RoomReply,
}

OK, BAD_FRAME, UNSUPPORTED_VERSION, TOO_LARGE, NOT_LOGGED_IN = 0, 1, 2, 3, 4
BAD_TOKEN, TOKEN_EXPIRED, ALREADY_LOGGED_IN, UNKNOWN_COMMAND, RATE_LIMITED = 5, 6, 7, 8, 9
LOGIC_UNAVAILABLE, LOGIN_TIMEOUT, IDLE_TIMEOUT, SLOW_CONSUMER, KICKED = 10, 11, 12, 13, 14
DRAINING, NOT_FOUND, NOT_PERMITTED, BAD_REQUEST, OVER_CAPACITY = 15, 16, 17, 18, 19
REPLAYED, REPLACED = 29, 30


class Closed(Exception):
    """The server ended the connection. `code` is the WebSocket close code, or None over TCP."""

    def __init__(self, code=None, reason=""):
        super().__init__(f"closed with {code} {reason!r}")
        self.code = code
        self.reason = reason


class Refused(Exception):
    """The server answered with an ERROR frame."""

    def __init__(self, error):
        super().__init__(f"ERROR {error.code}: {error.reason}")
        self.code = error.code
        self.reason = error.reason
        self.retry_after_ms = error.retry_after_ms


@dataclass
class Frame:
    command: int
    flags: int
    request_id: int
    body: bytes

    def parse(self, message_type):
        message = message_type()
        message.ParseFromString(self.body)
        return message


def encode_frame(command, body=b"", request_id=0, flags=0, version=1, length=None):
    """One frame; `version`, `flags` and `length` can be wrong on purpose."""
    length = len(body) if length is None else length
    return struct.pack(">IBBHI", length, version, flags, command, request_id) + body


def decode_frames(buffer: bytearray):
    """Takes the whole frames off the front of `buffer`."""
    frames = []
    while len(buffer) >= 12:
        length, version, flags, command, request_id = struct.unpack_from(">IBBHI", buffer)
        assert version == 1 and flags & 0xF0 == 0, "the server broke the header's rules"
        if len(buffer) < 12 + length:
            break
        frames.append(Frame(command, flags, request_id, bytes(buffer[12 : 12 + length])))
        del buffer[: 12 + length]
    return frames


def mint_token(secret: str, user_id: str, expires_in=3600.0) -> str:
    """A development token: JWT, HS256, claims sub and exp."""

    def part(value):
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    signed = part({"alg": "HS256", "typ": "JWT"}) + b"." + part({"sub": user_id, "exp": int(time.time() + expires_in)})
    return (signed + b"." + part(hmac.new(secret.encode(), signed, hashlib.sha256).digest())).decode()


class Connection:
    """What both transports share: requests, replies and the inbox of pushed frames."""

    def __init__(self):
        self.inbox = collections.deque()
        self.next_request_id = 1
        self.closed = None

    # the transports implement these two
    def send_bytes(self, data: bytes):
        raise NotImplementedError

    def receive_frames(self, timeout: float):
        """At least one frame, [] on time-out, or raises Closed."""
        raise NotImplementedError

    def send(self, command, message=None, request_id=None, flags=0):
        """Sends one frame; returns its request id."""
        if request_id is None:
            request_id = self.next_request_id
            self.next_request_id += 1
        body = b"" if message is None else message.SerializeToString()
        self.send_bytes(encode_frame(command, body, request_id, flags))
        return request_id

    def wait_for(self, predicate, timeout=5.0):
        """The first frame, old or new, that satisfies `predicate`; the others stay in the inbox."""
        for frame in self.inbox:
            if predicate(frame):
                self.inbox.remove(frame)
                return frame
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            frames = self.receive_frames(left)
            self.inbox.extend(frames)
            for frame in frames:
                if predicate(frame):
                    self.inbox.remove(frame)
                    return frame
        raise TimeoutError("no such frame arrived in time")

    def reply_to(self, request_id, command, timeout=5.0):
        """The reply to a request; raises Refused if it is an ERROR."""
        frame = self.wait_for(
            lambda frame: frame.request_id == request_id and (frame.command == ERROR or frame.command == command | REPLY),
            timeout,
        )
        if frame.command == ERROR:
            raise Refused(frame.parse(session.Error))
        reply_type = REPLY_TYPES.get(command)
        return frame.parse(reply_type) if reply_type else frame

    def request(self, command, message=None, timeout=5.0, flags=0):
        return self.reply_to(self.send(command, message, flags=flags), command, timeout)

    def login(self, user_id, token, device_id="device-1", platform="test"):
        login = session.Login(
            user_id=user_id,
            token=token,
            device_id=device_id,
            platform=platform,
            client_version="e2e/1",
            timestamp_ms=int(time.time() * 1000),
            nonce=base64.b64encode(hashlib.sha256(str(time.monotonic_ns()).encode()).digest()).decode(),
        )
        return self.request(LOGIN, login)

    def error(self, timeout=5.0):
        """The next ERROR frame's body."""
        return self.wait_for(lambda frame: frame.command == ERROR, timeout).parse(session.Error)

    def messages(self, count, timeout=5.0):
        """The next `count` messages of DELIVER frames, in the order of arrival."""
        messages = []
        deadline = time.monotonic() + timeout
        while len(messages) < count:
            frame = self.wait_for(lambda frame: frame.command == DELIVER, max(0.001, deadline - time.monotonic()))
            messages.extend(frame.parse(chat.Deliver).messages)
        return messages

    def no_messages(self, seconds=0.5):
        """Asserts that no DELIVER arrives for a while."""
        try:
            frame = self.wait_for(lambda frame: frame.command == DELIVER, seconds)
        except TimeoutError:
            return
        raise AssertionError(f"an unexpected DELIVER arrived: {frame.parse(chat.Deliver)}")

    def wait_closed(self, timeout=5.0):
        """Waits for the end of the connection; returns the Closed."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                self.inbox.extend(self.receive_frames(left))
            except Closed as closed:
                return closed
        raise TimeoutError("the connection was not closed in time")


class TcpConnection(Connection):
    transport = "tcp"

    def __init__(self, ready, receive_buffer_bytes=None):
        super().__init__()
        host, port = ready["tcp"].rsplit(":", 1)
        self.socket = socket.socket()
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()

    def send_bytes(self, data):
        self.socket.sendall(data)

    def receive_frames(self, timeout):
        self.socket.settimeout(max(0.001, timeout))
        try:
            data = self.socket.recv(65536)
        except (TimeoutError, socket.timeout):
            return []
        except OSError as error:
            raise Closed(None, str(error)) from error
        if not data:
            raise Closed(None, "FIN")
        self.buffer += data
        return decode_frames(self.buffer)

    def close(self):
        self.socket.close()


class WebSocketConnection(Connection):
    transport = "websocket"

    def __init__(self, ready, subprotocol="millrace.v1"):
        super().__init__()
        self.websocket = websocket_connect(
            ready["websocket"], subprotocols=[subprotocol], max_size=64 << 20, ping_interval=None, proxy=None
        )
        assert self.websocket.subprotocol == subprotocol

    def send_bytes(self, data):
        try:
            self.websocket.send(data)
        except ConnectionClosed as error:
            raise closed_of(error) from error

    def receive_frames(self, timeout):
        try:
            data = self.websocket.recv(timeout=max(0.001, timeout))
        except TimeoutError:
            return []
        except ConnectionClosed as error:
            raise closed_of(error) from error
        buffer = bytearray(data)
        frames = decode_frames(buffer)
        assert not buffer, "a binary message must hold whole frames"
        return frames

    def close(self):
        self.websocket.close()


def closed_of(error: ConnectionClosed) -> Closed:
    received = error.rcvd
    return Closed(received.code if received else 1006, received.reason if received else "")


TRANSPORTS = [TcpConnection, WebSocketConnection]


class JsonConnection:
    """The text form: one JSON object a WebSocket text message."""

    def __init__(self, ready):
        self.websocket = websocket_connect(
            ready["websocket"], subprotocols=["millrace.v1.json"], ping_interval=None, proxy=None
        )
        self.inbox = collections.deque()
        self.next_request_id = 1

    def send(self, command, body, request_id=None):
        if request_id is None:
            request_id = self.next_request_id
            self.next_request_id += 1
        self.send_text(json.dumps({"command": command, "request_id": request_id, "body": body}))
        return request_id

    def send_text(self, text):
        try:
            self.websocket.send(text)
        except ConnectionClosed as error:
            raise closed_of(error) from error

    def receive_text(self, timeout):
        """The next message, or None if none comes in time; raises Closed."""
        try:
            text = self.websocket.recv(timeout=max(0.001, timeout))
        except TimeoutError:
            return None
        except ConnectionClosed as error:
            raise closed_of(error) from error
        assert isinstance(text, str), "the text form answers in text messages"
        return text

    def wait_for(self, predicate, timeout=5.0):
        for message in self.inbox:
            if predicate(message):
                self.inbox.remove(message)
                return message
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            text = self.receive_text(left)
            if text is None:
                break
            message = json.loads(text)
            if predicate(message):
                return message
            self.inbox.append(message)
        raise TimeoutError("no such message arrived in time")

    def request(self, command, body, timeout=5.0):
        request_id = self.send(command, body)
        message = self.wait_for(
            lambda message: message.get("request_id") == request_id
            and (message.get("reply") is True or message["command"] == "error"),
            timeout,
        )
        if message["command"] == "error":
            body = message["body"]
            raise Refused(session.Error(
                code=int(body["code"]), reason=body.get("reason", ""), retry_after_ms=int(body.get("retry_after_ms", 0))))
        return message["body"]

    def close(self):
        self.websocket.close()


class Api:
    """The logic tier's HTTP door."""

    def __init__(self, ready):
        self.base = ready["http"]
        self.token = ready["api_token"]

    def call(self, method, path, body=None, token=None):
        """Returns (status, decoded JSON), which is held against the description that the process serves. An empty
        token is not shown at all."""
        status, answer = self._call(method, path, body, self.token if token is None else token)
        openapi.check(self.base, method, path, status, answer)
        return status, answer

    def _call(self, method, path, body, token):
        data = None if body is None else json.dumps(body).encode()
        request = http_request.Request(self.base + path, data=data, method=method)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        if data is not None:
            request.add_header("Content-Type", "application/json")
        opener = http_request.build_opener(http_request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as response:
                return response.status, json.loads(response.read() or b"{}")
        except HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def create_group(self, members, name="a group", group_id=""):
        status, body = self.call("POST", "/v1/groups", {"group_id": group_id, "name": name, "members": members})
        assert status in (200, 201), (status, body)
        return body["group_id"], body["conversation_id"]


def text_message(to=None, group=None, body="hello", client_message_id=None, **fields):
    """A SEND_MESSAGE body of type 1 (text)."""
    if client_message_id is None:
        client_message_id = base64.b32encode(hashlib.sha256(str(time.monotonic_ns()).encode()).digest())[:26].decode()
    target = {"user_id": to} if to else {"group_id": group}
    return chat.SendMessage(client_message_id=client_message_id, type=1, body=body, **target, **fields)
