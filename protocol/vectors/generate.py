#!/usr/bin/env python3
"""Writes the vector files beside it.

It knows nothing of the Rust code: frames, WebSocket and protobuf are encoded here from the
documents (docs/protocol.md, RFC 6455, the .proto files), so that a mistake has to be made twice
to go unseen. Run it after a change of the protocol; a vector that changes is a broken client.
With --check it writes nothing and fails if the files differ.
"""

import base64
import hashlib
import json
import pathlib
import re
import struct
import sys

HERE = pathlib.Path(__file__).parent
PROTO = HERE.parent / "proto"
CODES = {
    "bad_frame": 1, "unsupported_version": 2, "too_large": 3, "unknown_command": 8,
    "not_found": 16, "not_permitted": 17, "over_capacity": 19,
}


def write(name, document):
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv:
        (HERE / name).write_text(text, encoding="utf-8")
    elif (HERE / name).read_text(encoding="utf-8") != text:
        sys.exit(f"{name} is not what generate.py writes")


# --- frames ----------------------------------------------------------------------------------

def frame(command, request_id, body=b"", flags=0, version=1, length=None):
    length = len(body) if length is None else length
    return struct.pack(">IBBHI", length, version, flags, command, request_id) + body


def frame_value(command, request_id, body=b"", flags=0):
    return {"command": command, "flags": flags, "request_id": request_id, "body": body.hex()}


def frames():
    json_body = b'{"conversation_id":"c","sequence":"1"}'
    valid = [
        ("a heartbeat", [(0x0001, 7)]),
        ("a heartbeat that wants no reply", [(0x0001, 0)]),
        ("the reply to a heartbeat", [(0x8001, 7)]),
        ("the largest request id", [(0x0201, 0xFFFFFFFF, b"\x0a\x01x")]),
        ("a JSON body", [(0x0204, 2, json_body, 1)]),
        ("every flag", [(0x1000, 3, b"\x00\xff", 15)]),
        ("three frames in a row", [(0x0001, 1), (0x7FFF, 2, b"abc"), (0x0001, 3)]),
        ("a body at the limit", [(0x0201, 4, bytes(64))]),
    ]
    refused = [
        ("version 0", frame(1, 9, version=0), "unsupported_version", 9),
        ("version 2", frame(1, 9, version=2), "unsupported_version", 9),
        ("flag bit 4", frame(1, 9, flags=0x10), "bad_frame", 9),
        ("flag bit 7", frame(1, 9, flags=0x80), "bad_frame", 9),
        ("one byte above the limit", frame(0x0201, 9, length=65), "too_large", 9),
        ("the largest length", frame(0x0201, 9, length=0xFFFFFFFF), "too_large", 9),
        ("version before flags before length",
         frame(0x0201, 9, version=3, flags=0xFF, length=0xFFFFFFFF), "unsupported_version", 9),
        ("flags before length", frame(0x0201, 9, flags=0x40, length=0xFFFFFFFF), "bad_frame", 9),
        ("an HTTP request where a frame belongs", b"GET / HTTP/1.1\r\n", "unsupported_version",
         struct.unpack(">I", b"TP/1")[0]),
    ]
    whole = frame(0x0201, 5, b"hello")
    write("frames.json", {
        "body_bytes_max": 64,
        "valid": [{
            "name": name,
            "bytes": b"".join(frame(*parts) for parts in rows).hex(),
            "frames": [frame_value(*parts) for parts in rows],
        } for name, rows in valid],
        "refused": [{
            "name": name, "bytes": (frame(1, 1) + bad).hex(), "frames_before": [frame_value(1, 1)],
            "code": CODES[label], "label": label, "request_id": request_id,
        } for name, bad, label, request_id in refused],
        "incomplete": [
            {"name": f"the first {cut} bytes of a frame", "bytes": whole[:cut].hex()}
            for cut in (1, 4, 11, 12, 16)
        ],
    })


# --- WebSocket -------------------------------------------------------------------------------

KEY = bytes([0x37, 0xFA, 0x21, 0x3D])


def ws(opcode, payload=b"", fin=1, mask=KEY, reserved=0, form=None, announced=None):
    length = len(payload) if announced is None else announced
    form = form or ("short" if length < 126 else "16" if length < 65536 else "64")
    out = bytearray([fin << 7 | reserved << 4 | opcode])
    bit = 0x80 if mask is not None else 0
    if form == "short":
        out.append(bit | length)
    elif form == "16":
        out += bytes([bit | 126]) + struct.pack(">H", length)
    else:
        out += bytes([bit | 127]) + struct.pack(">Q", length)
    if mask is not None:
        out += mask
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes(out) + payload


def close_payload(code, reason=""):
    return struct.pack(">H", code) + reason.encode()


def text(value):
    return {"kind": "text", "text": value}


def data(kind, payload):
    return {"kind": kind, "payload": payload.hex()}


def closing(code=None, reason=""):
    return {"kind": "close", "code": code, "reason": reason}


def websocket():
    hello = b"Hello"
    greek = "κόσμε".encode()
    valid = [
        ("text", "server", ws(1, hello), [text("Hello")]),
        ("text, unmasked", "client", ws(1, hello, mask=None), [text("Hello")]),
        ("an empty text", "server", ws(1), [text("")]),
        ("an empty binary", "client", ws(2, mask=None), [data("binary", b"")]),
        ("a mask of zeroes", "server", ws(1, hello, mask=bytes(4)), [text("Hello")]),
        ("fragments", "client", ws(1, b"Hel", 0, None) + ws(0, b"lo", 1, None), [text("Hello")]),
        ("a ping between fragments", "server",
         ws(1, b"Hel", 0) + ws(9, b"p") + ws(0, b"lo"), [data("ping", b"p"), text("Hello")]),
        ("empty fragments", "server", ws(2, b"", 0) + ws(0, b"", 0) + ws(0), [data("binary", b"")]),
        ("a character over two fragments", "server",
         ws(1, greek[:5], 0) + ws(0, greek[5:]), [text("κόσμε")]),
        ("125 bytes", "server", ws(2, bytes(125)), [data("binary", bytes(125))]),
        ("126 bytes", "server", ws(2, bytes(126)), [data("binary", bytes(126))]),
        ("a ping of 125 bytes", "server", ws(9, b"\xfe" * 125), [data("ping", b"\xfe" * 125)]),
        ("an unasked pong", "server", ws(10, b"x"), [data("pong", b"x")]),
        ("the largest code point", "server", ws(1, "\U0010FFFF".encode()), [text("\U0010FFFF")]),
        ("a zero character", "server", ws(1, b"\0"), [text("\0")]),
        ("a message at the limit", "server", ws(2, bytes(1000)), [data("binary", bytes(1000))]),
        ("close without a payload", "server", ws(8), [closing()]),
        ("close with a reason", "client", ws(8, close_payload(3505, "Adiós"), mask=None),
         [closing(3505, "Adiós")]),
        ("close with the longest reason", "server", ws(8, close_payload(1000, "r" * 123)),
         [closing(1000, "r" * 123)]),
    ]
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1014, 3000, 3999,
                 4000, 4999):
        valid.append((f"close code {code}", "server", ws(8, close_payload(code)), [closing(code)]))

    refused = [
        ("an unmasked client frame", "server", ws(1, hello, mask=None), 1002, "bad_frame"),
        ("a masked server frame", "client", ws(1, hello), 1002, "bad_frame"),
        ("a ping in fragments", "server", ws(9, b"", 0), 1002, "bad_frame"),
        ("a ping of 126 bytes", "server", ws(9, bytes(126)), 1002, "bad_frame"),
        ("a close of 126 bytes", "server", ws(8, close_payload(1000, "r" * 124)), 1002,
         "bad_frame"),
        ("a continuation of nothing", "server", ws(0, b"x"), 1002, "bad_frame"),
        ("a message inside a message", "server", ws(1, b"a", 0) + ws(1, b"b"), 1002, "bad_frame"),
        ("a continuation after the last fragment", "server",
         ws(1, b"a", 0) + ws(9) + ws(0, b"b") + ws(0, b"c"), 1002, "bad_frame",
         [data("ping", b""), text("ab")]),
        ("125 in 16 bits", "server", ws(2, bytes(125), form="16"), 1002, "bad_frame"),
        ("126 in 64 bits", "server", ws(2, bytes(126), form="64"), 1002, "bad_frame"),
        ("the highest bit of a 64-bit length", "server", ws(2, announced=1 << 63), 1002,
         "bad_frame"),
        ("one byte above the limit", "server", ws(2, announced=1001), 1009, "too_large"),
        ("fragments above the limit", "server", ws(2, bytes(600), 0) + ws(0, announced=401), 1009,
         "too_large"),
        ("the largest length there is", "client", ws(2, announced=(1 << 63) - 1, mask=None), 1009,
         "too_large"),
        ("a close of one byte", "server", ws(8, b"\x03"), 1002, "bad_frame"),
        ("a close reason that is not UTF-8", "server", ws(8, close_payload(1000) + b"\xff"), 1007,
         "bad_frame"),
        ("a text cut inside a character", "server", ws(1, greek[:-1]), 1007, "bad_frame"),
        ("fragments cut inside a character", "server", ws(1, greek[:3], 0) + ws(0), 1007,
         "bad_frame"),
        ("text that can no longer become valid, not complete", "server",
         ws(1, greek + b"\xf4\x90", 0), 1007, "bad_frame"),
    ]
    for bits in range(1, 8):
        refused.append((f"reserved bits {bits:03b}", "server", ws(1, hello, reserved=bits), 1002,
                        "bad_frame"))
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        refused.append((f"opcode {opcode}", "server", ws(opcode), 1002, "bad_frame"))
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
        refused.append((f"close code {code}", "server", ws(8, close_payload(code)), 1002,
                        "bad_frame"))
    for bad in ("80", "bf", "c080", "c1bf", "c3", "c328", "e08080", "e09fbf", "eda080", "edbfbf",
                "e228a1", "f0808080", "f08fbfbf", "f4908080", "f5808080", "f88080808080", "fe",
                "ff"):
        refused.append((f"text {bad}", "server", ws(1, b"a" + bytes.fromhex(bad)), 1007,
                        "bad_frame"))

    def refusal(name, role, stream, close_code, label, more_before=()):
        # A good message comes first: what is wrong must not take it back.
        before = ws(2, b"ok", mask=KEY if role == "server" else None)
        items = [data("binary", b"ok"), *more_before]
        return {"name": name, "role": role, "bytes": (before + stream).hex(),
                "messages_before": items, "close_code": close_code, "label": label,
                "code": CODES[label]}

    write("websocket.json", {
        "message_bytes_max": 1000,
        "valid": [{"name": name, "role": role, "bytes": stream.hex(), "messages": items}
                  for name, role, stream, items in valid],
        "refused": [refusal(*row) for row in refused],
        "incomplete": [
            {"name": "half a header", "role": "server", "bytes": ws(2, hello)[:3].hex()},
            {"name": "half a payload", "role": "server", "bytes": ws(2, hello)[:8].hex()},
            {"name": "a message without its last fragment", "role": "server",
             "bytes": ws(1, hello, 0).hex()},
            {"name": "text that can still become valid", "role": "server",
             "bytes": ws(1, greek + b"\xf4\x8f", 0).hex()},
        ],
        "upgrade": upgrade(),
    })


def upgrade():
    key = base64.b64encode(b"the sample nonce").decode()
    magic = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1((key + magic).encode()).digest()).decode()
    assert key == "dGhlIHNhbXBsZSBub25jZQ==" and accept == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    usual = [("Host", "example.com"), ("Upgrade", "websocket"), ("Connection", "Upgrade"),
             ("Sec-WebSocket-Key", key), ("Sec-WebSocket-Version", "13")]

    def request(line="GET /ws HTTP/1.1", drop=(), **extra):
        lines = [line] + [f"{name}: {value}" for name, value in usual if name not in drop]
        for name, value in extra.items():
            lines.append(f"{name.replace('_', '-')}: {value}")
        return "\r\n".join(lines) + "\r\n\r\n"

    def changed(name, value):
        return request(drop=(name,), **{name.replace("-", "_"): value})

    accepted = [
        ("the usual", request(), "/ws", [], None),
        ("a query", request("GET /ws?a=b HTTP/1.1"), "/ws", [], None),
        ("an absolute target", request("GET http://example.com/ws HTTP/1.1"), "/ws", [], None),
        ("another path", request("GET /a/b HTTP/1.1"), "/a/b", [], None),
        ("tokens in a list, in any case",
         request(drop=("Upgrade", "Connection"), UPGRADE="WebSocket", connection="keep-alive, UPGRADE"),
         "/ws", [], None),
        ("subprotocols", request(Sec_WebSocket_Protocol="millrace.v1, millrace.v1.json"), "/ws",
         ["millrace.v1", "millrace.v1.json"], None),
        ("an origin", request(Origin="https://example.com"), "/ws", [], "https://example.com"),
        ("an extension on offer is ignored",
         request(Sec_WebSocket_Extensions="permessage-deflate"), "/ws", [], None),
    ]
    refused = [
        ("not HTTP", "\x16\x03\x01\x02\x00\x01", 400, "bad_frame"),
        ("POST", request("POST /ws HTTP/1.1"), 405, "bad_frame"),
        ("HTTP/1.0", request("GET /ws HTTP/1.0"), 505, "unsupported_version"),
        ("no host", request(drop=("Host",)), 400, "bad_frame"),
        ("two hosts", request(host="example.org"), 400, "bad_frame"),
        ("no upgrade", request(drop=("Upgrade",)), 426, "bad_frame"),
        ("no connection", request(drop=("Connection",)), 426, "bad_frame"),
        ("another upgrade", changed("Upgrade", "h2c"), 426, "bad_frame"),
        ("no version", request(drop=("Sec-WebSocket-Version",)), 426, "unsupported_version"),
        ("version 8", changed("Sec-WebSocket-Version", "8"), 426, "unsupported_version"),
        ("no key", request(drop=("Sec-WebSocket-Key",)), 400, "bad_frame"),
        ("a key of 15 bytes", changed("Sec-WebSocket-Key", base64.b64encode(bytes(15)).decode()),
         400, "bad_frame"),
        ("a key that is not base64", changed("Sec-WebSocket-Key", "!" * 24), 400, "bad_frame"),
        ("two keys", request(sec_websocket_key=key), 400, "bad_frame"),
        ("a body", request(Content_Length="5"), 400, "bad_frame"),
        ("a subprotocol twice", request(Sec_WebSocket_Protocol="a, a"), 400, "bad_frame"),
        ("too many headers", request(**{f"X{index}": "y" for index in range(64)}), 431,
         "too_large"),
        ("too many bytes", request(X="y" * 9000), 431, "too_large"),
        ("too many bytes, not complete", "GET /" + "a" * 9000, 431, "too_large"),
    ]
    return {
        "accepted": [{"name": name, "request": text_, "path": path, "subprotocols": subprotocols,
                      "origin": origin, "accept": accept}
                     for name, text_, path, subprotocols, origin in accepted],
        "refused": [{"name": name, "request": text_, "status": status, "label": label,
                     "code": CODES[label]} for name, text_, status, label in refused],
        "incomplete": [{"name": "nothing yet", "request": ""},
                       {"name": "half a line", "request": "GET /w"},
                       {"name": "no empty line", "request": request()[:-2]}],
    }


# --- the text form ---------------------------------------------------------------------------

def text_form():
    def value(command, request_id=0, body="{}", reply=False, flags=1):
        return {"command": command, "reply": reply, "request_id": request_id, "flags": flags,
                "body": body}

    parsed = [
        ("by name", '{"command": "send_message", "request_id": 7, "body": {"body": "hi"}}',
         value(0x0201, 7, '{"body": "hi"}')),
        ("by number", '{"command":513,"request_id":7,"body":{}}', value(0x0201, 7)),
        ("a command without a name", '{"command":4096,"body":{"a":[1,2]}}',
         value(0x1000, 0, '{"a":[1,2]}')),
        ("without a body and an id", '{"command":"heartbeat"}', value(1)),
        ("a body that is null", '{"command":"heartbeat","body":null}', value(1)),
        ("a reply", '{"command":"send_message","reply":true,"request_id":7,"body":{"code":0}}',
         value(0x0201, 7, '{"code":0}', True)),
        ("the flags", '{"command":"send_message","retransmission":true,"no_store":true}',
         value(0x0201, flags=13)),
        ("members in another order, and one unknown",
         ' {"body":{}, "extra":[{}], "request_id":4294967295, "command":"read"} ',
         value(0x0204, 4294967295)),
        ("an escaped name", '{"command":"re\\u0061d"}', value(0x0204)),
    ]
    refused = [
        ("not JSON", "hello", "bad_frame", 0),
        ("an array", '["read", 1]', "bad_frame", 0),
        ("cut off", '{"command":"read","request_id":1', "bad_frame", 0),
        ("something after it", '{"command":"read","request_id":1}{}', "bad_frame", 0),
        ("empty", "", "bad_frame", 0),
        ("no command", '{"request_id":5}', "bad_frame", 5),
        ("an unknown name", '{"command":"fly","request_id":5}', "unknown_command", 5),
        ("a reply by number", '{"command":33281,"request_id":5}', "bad_frame", 5),
        ("a number above 16 bits", '{"command":65536,"request_id":5}', "bad_frame", 5),
        ("a command of another type", '{"command":{},"request_id":5}', "bad_frame", 5),
        ("a negative id", '{"command":"read","request_id":-1}', "bad_frame", 0),
        ("an id above 32 bits", '{"command":"read","request_id":4294967296}', "bad_frame", 0),
        ("an id in quotes", '{"command":"read","request_id":"5"}', "bad_frame", 0),
        ("a member twice", '{"command":"read","command":"read","request_id":5}', "bad_frame", 0),
        ("reply is not a boolean", '{"command":"read","reply":1,"request_id":5}', "bad_frame", 5),
    ]
    written = [
        ("a request", 0x0201, 7, '{"body":"hi"}',
         '{"command":"send_message","request_id":7,"body":{"body":"hi"}}'),
        ("a reply", 0x8201, 7, '{"code":0}',
         '{"command":"send_message","reply":true,"request_id":7,"body":{"code":0}}'),
        ("an empty body", 0x8001, 1, "", '{"command":"heartbeat","reply":true,"request_id":1,"body":{}}'),
        ("without a name", 0x1000, 0, "{}", '{"command":4096,"request_id":0,"body":{}}'),
    ]
    write("text.json", {
        "parsed": [{"name": name, "text": text_, "envelope": value_}
                   for name, text_, value_ in parsed],
        "refused": [{"name": name, "text": text_, "code": CODES[label], "label": label,
                     "request_id": request_id} for name, text_, label, request_id in refused],
        "written": [{"name": name, "command": command, "request_id": request_id, "body": body,
                     "text": text_} for name, command, request_id, body, text_ in written],
    })


# --- protobuf --------------------------------------------------------------------------------

def schema(path):
    """The messages of a .proto file: name -> [(field, type, number, repeated, optional)]."""
    source = re.sub(r"//[^\n]*", "", path.read_text())
    messages = {}
    for name, body in re.findall(r"message (\w+) \{([^}]*)\}", source):
        fields = re.findall(r"(repeated |optional )?(\w+) (\w+) = (\d+);", body)
        messages[name] = sorted(
            ((field, kind, int(number), label == "repeated ", label == "optional ")
             for label, kind, field, number in fields),
            key=lambda row: row[2])
    return messages


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(messages, name, value):
    """proto3: fields in order of number, defaults left out but of optional fields, repeated numbers
    packed."""
    out = b""
    known = {field for field, *_ in messages[name]}
    assert set(value) <= known, f"{name} has no {set(value) - known}"
    for field, kind, number, repeated, optional in messages[name]:
        if field not in value:
            continue
        item = value[field]
        if kind in ("uint32", "uint64", "int64", "bool"):
            if repeated:
                packed = b"".join(varint(each) for each in item)
                out += varint(number << 3 | 2) + varint(len(packed)) + packed
            elif item or optional:
                out += varint(number << 3) + varint(int(item))
            continue
        if kind == "double":
            if item or optional:
                out += varint(number << 3 | 1) + struct.pack("<d", item)
            continue
        for each in item if repeated else [item]:
            if kind == "string":
                each = each.encode()
            elif kind != "bytes":
                each = encode(messages, kind, each)
            if each or repeated or optional or kind in messages:
                out += varint(number << 3 | 2) + varint(len(each)) + each
    return out


def to_json(messages, name, value):
    """The proto3 JSON mapping with the field names of the file and the defaults written out, but of
    optional fields, which are absent instead."""
    def one(kind, item):
        if kind in ("uint64", "int64"):
            return str(item)
        if kind == "bytes":
            return base64.b64encode(item).decode()
        return to_json(messages, kind, item) if kind in messages else item

    defaults = {"string": "", "uint32": 0, "uint64": 0, "int64": 0, "bool": False, "bytes": b"",
                "double": 0.0}
    out = {}
    for field, kind, _, repeated, optional in messages[name]:
        if repeated:
            out[field] = [one(kind, item) for item in value.get(field, [])]
        elif field in value:
            out[field] = one(kind, value[field])
        elif kind in defaults and not optional:
            out[field] = one(kind, defaults[kind])
    return out


def bodies(package, path, commands, samples, parts=()):
    """Each sample in protobuf, in JSON, and as the whole frame of request 7. `parts` are files whose
    messages travel inside others."""
    messages = schema(PROTO / path)
    inside = {name: fields for part in parts for name, fields in schema(PROTO / part).items()}
    missing = {name for _, name, _ in samples} ^ set(messages) - {
        # These travel inside others.
        "Message", "Attachment", "Conversation", "Group"}
    assert not missing, f"no sample of {missing}"
    messages |= inside
    rows = []
    for command, name, value in samples:
        number = commands[command.removesuffix(" reply")]
        number |= 0x8000 if command.endswith(" reply") else 0
        body = encode(messages, name, value)
        rows.append({"command": number, "message": f"{package}.{name}", "protobuf": body.hex(),
                     "json": to_json(messages, name, value), "frame": frame(number, 7, body).hex()})
    return {"messages": rows}


def session():
    commands = {"login": 2, "kick": 4, "goaway": 5, "error": 6, "refresh": 7}
    samples = [
        ("login", "Login", {
            "user_id": "alice", "token": "t.o.k", "device_id": "d1", "platform": "web",
            "client_version": "1.2.3", "timestamp_ms": 1750000000123, "nonce": "n",
            "resume_token": "r"}),
        ("login", "Login", {}),
        ("login", "Login", {"user_id": "ålice", "timestamp_ms": -1}),
        ("login reply", "LoginReply", {
            "session_id": 0x0102030405060708, "server_time_ms": 1750000000456,
            "heartbeat_interval_ms": 5000, "idle_timeout_ms": 15000, "body_bytes_max": 65536,
            "resume_token": "r2"}),
        ("login reply", "LoginReply", {"code": 5, "reason": "The token is not valid."}),
        ("login reply", "LoginReply", {"session_id": (1 << 64) - 1}),
        ("kick", "Kick", {"code": 14, "reason": "another device"}),
        ("goaway", "GoAway", {
            "code": 15, "reason": "restart", "reconnect_after_ms_min": 1000,
            "reconnect_after_ms_max": 30000, "reconnect_to": "wss://b.example/ws"}),
        ("error", "Error", {"code": 10, "reason": "away", "retry_after_ms": 1000}),
        ("refresh", "Refresh", {"token": "t2"}),
        ("refresh reply", "RefreshReply", {"expires_at_ms": 1750003600000}),
    ]
    write("session.json", bodies("millrace.session.v1", "millrace/session/v1/session.proto",
                                 commands, samples))


def chat():
    commands = {
        "notice": 0x100, "group_by_id": 0x102, "notice_ack": 0x103, "send_message": 0x201,
        "deliver": 0x202, "deliver_ack": 0x203, "read": 0x204, "receipt": 0x205, "revoke": 0x206,
        "delete": 0x207, "forward": 0x208, "pull_messages": 0x209, "pull_conversations": 0x20A,
        "update_conversation": 0x20B, "typing": 0x20C, "join_room": 0x210, "leave_room": 0x211,
        "room_message": 0x212, "report": 0x301}
    attachment = {"attachment_id": "a1", "type": "image/png", "name": "ü.png",
                  "url": "https://example.com/a1", "size": 1 << 40}
    message = {
        "conversation_id": "s:alice:bob", "conversation_type": 1, "sequence": 1,
        "message_id": "01977e5e-0000-7000-8000-000000000001", "client_message_id": "c1",
        "sender_id": "alice", "type": 1, "body": "hello 👋", "sent_at_ms": 1750000000789}
    revoked = {**message, "sequence": (1 << 53) + 1, "body": "", "state": 2, "revoked_by": "alice"}
    rich = {
        **message, "type": 5, "quote": {"conversation_id": "g:g1", "sequence": 9, "sender_id": "bob"},
        "mentions": {"user_ids": ["bob", "carol"], "everyone": True},
        "location": {"latitude": 52.5, "longitude": -13.25, "name": "Berlin", "address": "x"},
        "expires_at_ms": 1750000060789, "forwarded": {"sender_id": "dan", "sent_at_ms": 5},
        "merged": {"title": "t", "items": [{
            "sender_id": "eve", "type": 3, "excerpt": "e", "sent_at_ms": 6, "attachment_name": "n",
            "attachment_type": "image/png"}]},
        "system": True}
    samples = [
        ("send_message", "SendMessage", {
            "client_message_id": "c1", "user_id": "bob", "type": 1, "body": "hello 👋"}),
        ("send_message", "SendMessage", {
            "client_message_id": "c2", "group_id": "g1", "type": 3, "attachment": attachment,
            "does_not_count": True}),
        ("send_message", "SendMessage", {"attachment": {}}),
        ("send_message", "SendMessage", {
            "client_message_id": "c4", "user_id": "bob", "type": 5, "quote": {"sequence": 7},
            "mentions": {"user_ids": ["bob"]}, "location": {"latitude": -0.5, "longitude": 180.0},
            "ttl_ms": 60000}),
        ("send_message reply", "SendReply", {
            "message_id": message["message_id"], "conversation_id": "s:alice:bob", "sequence": 1,
            "sent_at_ms": 1750000000789, "duplicate": True}),
        ("send_message reply", "SendReply", {"code": 17, "reason": "This is not permitted."}),
        ("send_message reply", "SendReply", {"message_id": "m", "not_stored": True}),
        ("forward reply", "SendReply", {"sequence": 9, "count": 3}),
        ("deliver", "Deliver", {"messages": [message, revoked]}),
        ("deliver", "Deliver", {"messages": [rich]}),
        ("deliver", "Deliver", {"messages": [{}]}),
        ("deliver_ack", "DeliverAck", {"conversation_id": "s:alice:bob", "sequence": 2}),
        ("read", "Read", {"conversation_id": "s:alice:bob", "sequence": 300}),
        ("read reply", "ReadReply", {}),
        ("receipt", "Receipt", {"conversation_id": "s:alice:bob", "user_id": "bob",
                                "delivered_sequence": 2, "read_sequence": 1}),
        ("revoke", "Revoke", {"conversation_id": "s:alice:bob", "sequence": 2}),
        ("revoke reply", "RevokeReply", {"code": 16, "reason": "There is no such object."}),
        ("delete", "Delete", {"conversation_id": "s:alice:bob", "sequences": [1, 127, 128, 300]}),
        ("delete reply", "DeleteReply", {}),
        ("forward", "Forward", {"conversation_id": "s:alice:bob", "sequences": [1],
                                "group_id": "g1", "client_message_id": "c3"}),
        ("forward", "Forward", {"conversation_id": "s:alice:bob", "sequences": [1, 3],
                                "user_id": "eve", "client_message_id": "c5", "merged": True,
                                "title": "t"}),
        ("pull_messages", "PullMessages", {
            "conversation_id": "s:alice:bob", "from_sequence": 1, "to_sequence": 50, "limit": 100,
            "newest_first": True}),
        ("pull_messages", "PullMessages", {
            "conversation_id": "s:alice:bob", "changed_since_version": 11}),
        ("pull_messages reply", "PullReply", {"messages": [message], "complete": True}),
        ("pull_messages reply", "PullReply", {
            "messages": [revoked], "version": 12,
            "deleted": [{"from_sequence": 2, "to_sequence": 4}]}),
        ("pull_conversations", "PullConversations", {"since_version": 9, "limit": 10}),
        ("pull_conversations reply", "ConversationsReply", {
            "conversations": [{
                "conversation_id": "g:g1", "type": 2, "name": "Group", "avatar": "x",
                "last_message": message, "unread": 3, "init_sequence": 1, "max_sequence": 7,
                "read_sequence": 4, "do_not_disturb": True, "quit": True, "version": 12,
                "mentioned_sequence": 6}],
            "version": 12, "complete": True}),
        ("update_conversation", "UpdateConversation", {
            "conversation_id": "g:g1", "do_not_disturb": True, "pinned": False}),
        ("update_conversation reply", "UpdateReply", {}),
        ("typing", "Typing", {"conversation_id": "s:alice:bob", "user_id": "bob"}),
        ("group_by_id", "GroupById", {"group_id": "g1"}),
        ("group_by_id reply", "GroupReply", {"group": {
            "group_id": "g1", "conversation_id": "g:g1", "name": "Group", "avatar": "x",
            "members": ["alice", "bob", ""], "members_max": 500, "created_at_ms": 1}}),
        ("notice", "Notice", {"notice_id": "n1", "type": 4, "body": "b", "sent_at_ms": 5}),
        ("notice_ack", "NoticeAck", {"notice_id": "n1"}),
        ("join_room", "JoinRoom", {"room_id": "r1"}),
        ("leave_room", "LeaveRoom", {"room_id": "r1"}),
        ("join_room reply", "RoomReply", {"members": 2}),
        ("room_message", "RoomMessage", {"room_id": "r1", "type": 1, "body": "hi",
                                         "sender_id": "alice"}),
        ("report", "Report", {"destination": "billing", "payload": b"\x00\xff\x10"}),
    ]
    write("chat.json", bodies("millrace.chat.v1", "millrace/chat/v1/chat.proto", commands, samples,
                               parts=["millrace/chat/v1/messages.proto"]))


if __name__ == "__main__":
    frames()
    websocket()
    text_form()
    session()
    chat()
