"""The cases, numbered as in the Autobahn test suite for RFC 6455, and a few of our own (group 0).

A case is a list of steps and how it ends. Everything the server sends before the end must be
exactly the expected events, in order. Strict throughout: what the suite calls "non-strict" or
"informational" has one right answer here.
"""

from dataclasses import dataclass, field

from client import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close, frame

KIB, MIB = 1024, 1024 * 1024
MESSAGE_BYTES_MAX = 16 * MIB

# How a case ends.
OPEN = ("open",)  # still open: the runner closes with 1000 and wants that echoed


def FAILED(code):
    """The server sends a close frame with this code, by itself, and then its end of stream."""
    return ("failed", code)


def CLOSED(code, reason=None):
    """The steps closed; the server answers with a close frame with this code and ends the stream."""
    return ("closed", code, reason)


@dataclass
class Case:
    number: str
    title: str
    steps: list
    events: list = field(default_factory=list)
    end: tuple = OPEN


def send(data, piece_bytes=None, pause=0.0):
    return lambda run: run.send(data, piece_bytes, pause)


def octets(data):
    """One byte a segment, as far as the kernel goes along."""
    return send(data, 1, 0.0005)


def quiet(seconds=0.1):
    """Nothing must come for a while."""
    return lambda run: run.quiet(seconds)


def wait_for(event):
    """This must come before the next step."""
    return lambda run: run.wait_for(event)


def text(payload):
    return frame(TEXT, payload)


def binary(payload):
    return frame(BINARY, payload)


def filler(length):
    """ASCII that never repeats in a way that could hide a lost or moved piece."""
    block = b"".join(b"%08x" % number for number in range(min(length // 8 + 1, 1 << 21)))
    return block[:length]


def fragments(opcode, pieces):
    """A message in these fragments, as a list of frames."""
    last = len(pieces) - 1
    return [frame(opcode if index == 0 else CONTINUATION, piece, fin=index == last)
            for index, piece in enumerate(pieces)]


def cut(payload, length):
    return [payload[start : start + length] for start in range(0, len(payload), length)] or [b""]


# --- 1: framing ------------------------------------------------------------------------------

def group_1():
    sizes = [0, 125, 126, 127, 128, 65535, 65536]
    for part, (kind, opcode) in enumerate([("text", TEXT), ("binary", BINARY)], 1):
        byte = b"*" if kind == "text" else b"\xfe"
        for index, size in enumerate(sizes, 1):
            payload = byte * size
            yield Case(f"1.{part}.{index}", f"{kind} of {size} bytes",
                       [send(frame(opcode, payload))], [(kind, payload)])
        payload = byte * 65536
        yield Case(f"1.{part}.8", f"{kind} of 65536 bytes in pieces of 997",
                   [send(frame(opcode, payload), 997)], [(kind, payload)])


# --- 2: pings and pongs ----------------------------------------------------------------------

def group_2():
    odd = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
    yield Case("2.1", "ping without payload", [send(frame(PING))], [("pong", b"")])
    yield Case("2.2", "ping with text", [send(frame(PING, b"Hello, world!"))],
               [("pong", b"Hello, world!")])
    yield Case("2.3", "ping with bytes that are not UTF-8", [send(frame(PING, odd))],
               [("pong", odd)])
    yield Case("2.4", "ping of 125 bytes", [send(frame(PING, b"\xfe" * 125))],
               [("pong", b"\xfe" * 125)])
    yield Case("2.5", "ping of 126 bytes", [send(frame(PING, b"\xfe" * 126))], end=FAILED(1002))
    yield Case("2.6", "ping of 125 bytes, octet by octet", [octets(frame(PING, b"\xfe" * 125))],
               [("pong", b"\xfe" * 125)])
    yield Case("2.7", "unasked pong without payload", [send(frame(PONG)), quiet()])
    yield Case("2.8", "unasked pong with payload", [send(frame(PONG, b"unasked")), quiet()])
    yield Case("2.9", "unasked pong, then ping",
               [send(frame(PONG, b"unasked")), send(frame(PING, b"asked"))], [("pong", b"asked")])
    payloads = [b"payload-%d" % index for index in range(10)]
    pings = [frame(PING, payload) for payload in payloads]
    pongs = [("pong", payload) for payload in payloads]
    yield Case("2.10", "ten pings", [send(ping) for ping in pings], pongs)
    yield Case("2.11", "ten pings, octet by octet", [octets(ping) for ping in pings], pongs)


# --- 3: reserved bits ------------------------------------------------------------------------

def group_3():
    hello = b"Hello, world!"
    echo = [("text", hello)]

    def after_text(reserved):
        return text(hello), frame(TEXT, hello, reserved=reserved), frame(PING)

    yield Case("3.1", "text with RSV 1", [send(frame(TEXT, hello, reserved=1))], end=FAILED(1002))
    yield Case("3.2", "text, text with RSV 2, ping", [send(b"".join(after_text(2)))], echo,
               FAILED(1002))
    yield Case("3.3", "text, text with RSV 3, ping, frame by frame",
               [send(part) for part in after_text(3)], echo, FAILED(1002))
    yield Case("3.4", "text, text with RSV 4, ping, octet by octet",
               [octets(part) for part in after_text(4)], echo, FAILED(1002))
    yield Case("3.5", "binary with RSV 5", [send(frame(BINARY, b"\x00\xff", reserved=5))],
               end=FAILED(1002))
    yield Case("3.6", "ping with RSV 6", [send(frame(PING, hello, reserved=6))], end=FAILED(1002))
    yield Case("3.7", "close with RSV 7", [send(frame(CLOSE, reserved=7))], end=FAILED(1002))


# --- 4: opcodes ------------------------------------------------------------------------------

def group_4():
    hello = b"Hello, world!"
    echo = [("text", hello)]
    for part, opcodes in enumerate([range(3, 8), range(11, 16)], 1):
        for index, opcode in enumerate(opcodes, 1):
            payload = b"" if index in (1, 3) else b"reserved"
            bad = frame(opcode, payload)
            title = f"opcode {opcode}{' with payload' if payload else ''}"
            number = f"4.{part}.{index}"
            if index <= 2:
                yield Case(number, title, [send(bad)], end=FAILED(1002))
            else:
                step = octets if index == 5 else send
                yield Case(number, f"text, {title}, ping",
                           [step(text(hello)), step(bad), step(frame(PING))], echo, FAILED(1002))


# --- 5: fragmentation ------------------------------------------------------------------------

def group_5():
    two = fragments(TEXT, [b"fragment1", b"fragment2"])
    whole = [("text", b"fragment1fragment2")]
    ping, pong = frame(PING, b"ping payload"), ("pong", b"ping payload")

    yield Case("5.1", "ping in two fragments", [send(b"".join(fragments(PING, [b"a", b"b"])))],
               end=FAILED(1002))
    yield Case("5.2", "pong in two fragments", [send(b"".join(fragments(PONG, [b"a", b"b"])))],
               end=FAILED(1002))
    yield Case("5.3", "text in two fragments", [send(b"".join(two))], whole)
    yield Case("5.4", "text in two fragments, frame by frame", [send(part) for part in two], whole)
    yield Case("5.5", "text in two fragments, octet by octet", [octets(part) for part in two],
               whole)
    with_ping = [two[0], ping, two[1]]
    yield Case("5.6", "a ping between the fragments", [send(b"".join(with_ping))], [pong, *whole])
    yield Case("5.7", "a ping between the fragments, frame by frame",
               [send(with_ping[0]), send(with_ping[1]), wait_for(pong), send(with_ping[2])], whole)
    yield Case("5.8", "a ping between the fragments, octet by octet",
               [octets(part) for part in with_ping], [pong, *whole])

    number = 9
    for fin in (True, False):
        bad = [frame(CONTINUATION, b"non-continuation payload", fin=fin), text(b"Hello, world!")]
        name = f"a continuation (FIN {fin}) of nothing, then text"
        yield Case(f"5.{number}", name, [send(b"".join(bad))], end=FAILED(1002))
        yield Case(f"5.{number + 1}", f"{name}, frame by frame", [send(part) for part in bad],
                   end=FAILED(1002))
        yield Case(f"5.{number + 2}", f"{name}, octet by octet", [octets(part) for part in bad],
                   end=FAILED(1002))
        number += 3
    bad = [*two, frame(CONTINUATION, b"fragment3", fin=False), text(b"fragment4")]
    yield Case("5.15", "a continuation after the last fragment", [send(b"".join(bad))], whole,
               FAILED(1002))
    for number, fin in ((16, False), (17, True)):
        bad = [frame(CONTINUATION, b"fragment1", fin=fin), frame(TEXT, b"fragment2", fin=True)] * 2
        yield Case(f"5.{number}", f"twice a continuation (FIN {fin}) of nothing, then text",
                   [send(b"".join(bad))], end=FAILED(1002))
    yield Case("5.18", "a second fragment with opcode text",
               [send(frame(TEXT, b"fragment1", fin=False) + frame(TEXT, b"fragment2"))],
               end=FAILED(1002))
    pieces = [b"fragment%d" % index for index in range(1, 6)]
    five = fragments(TEXT, pieces)
    ping_1, ping_2 = frame(PING, b"pongme 1!"), frame(PING, b"pongme 2!")
    pong_1, pong_2 = ("pong", b"pongme 1!"), ("pong", b"pongme 2!")
    message = ("text", b"".join(pieces))
    yield Case("5.19", "five fragments, two pings, with pauses",
               [send(five[0] + five[1] + ping_1), wait_for(pong_1), quiet(0.5),
                send(five[2] + five[3] + ping_2), wait_for(pong_2), send(five[4])], [message])
    yield Case("5.20", "five fragments, two pings, frame by frame",
               [send(part) for part in (five[0], five[1], ping_1)]
               + [wait_for(pong_1), quiet(0.5)]
               + [send(part) for part in (five[2], five[3], ping_2, five[4])], [pong_2, message])


# --- 6: UTF-8 --------------------------------------------------------------------------------

# "kosme" in Greek; its o is U+1F79, three bytes long.
GREEK = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5"

VALID_OR_NOT = {
    # Some valid sequences.
    5: [(True, b"hello\x24world"), (True, b"hello\xc2\xa2world"), (True, b"hello\xe2\x82\xacworld"),
        (True, b"hello\xf0\xa4\xad\xa2world"), (True, GREEK)],
    # All prefixes of a valid sequence.
    6: [(length in (2, 5, 7, 9, 11), GREEK[:length]) for length in range(1, 12)],
    # The first sequence of each length.
    7: [(True, bytes.fromhex(each)) for each in ("00", "c280", "e0a080", "f0908080")],
    8: [(False, bytes.fromhex(each)) for each in ("f888808080", "fc8480808080")],
    # The last sequence of each length.
    9: [(True, bytes.fromhex(each)) for each in ("7f", "dfbf", "efbfbf", "f48fbfbf")],
    10: [(False, bytes.fromhex(each)) for each in ("f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf")],
    # Other boundaries.
    11: [(True, bytes.fromhex(each)) for each in ("ed9fbf", "ee8080", "efbfbd", "f48fbfbf")]
        + [(False, bytes.fromhex("f4908080"))],
    # Unexpected continuation bytes.
    12: [(False, bytes.fromhex(each)) for each in
         ("80", "bf", "80bf", "80bf80", "80bf80bf", "80bf80bf80", "80bf80bf80bf")]
        + [(False, bytes(range(0x80, 0xC0)))],
    # Lonely first bytes, each before a space.
    13: [(False, b"".join(bytes([first]) + b" " for first in range(low, high + 1)))
         for low, high in ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD))],
    # The last continuation byte is missing.
    14: [(False, bytes.fromhex(each)) for each in
         ("c0", "e080", "f08080", "f8808080", "fc80808080", "df", "efbf", "f7bfbf", "fbbfbfbf",
          "fdbfbfbfbf")],
    15: [(False, bytes.fromhex("c0e080f08080f8808080fc80808080dfefbff7bfbffbbfbfbffdbfbfbfbf"))],
    # Impossible bytes.
    16: [(False, bytes.fromhex(each)) for each in ("fe", "ff", "fefeffff")],
    # Overlong forms.
    17: [(False, bytes.fromhex(each)) for each in
         ("c0af", "e080af", "f08080af", "f8808080af", "fc80808080af")],
    18: [(False, bytes.fromhex(each)) for each in
         ("c1bf", "e09fbf", "f08fbfbf", "f887bfbfbf", "fc83bfbfbfbf")],
    19: [(False, bytes.fromhex(each)) for each in
         ("c080", "e08080", "f0808080", "f880808080", "fc8080808080")],
    # Surrogates, alone and in pairs.
    20: [(False, bytes.fromhex(each)) for each in
         ("eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf")],
    21: [(False, bytes.fromhex(high + low)) for high in ("eda080", "edadbf", "edae80", "edafbf")
         for low in ("edb080", "edbfbf")],
    # Code points that are no characters, but valid.
    22: [(True, chr(plane << 16 | low).encode()) for plane in range(17) for low in
         (0xFFFE, 0xFFFF)],
    23: [(True, chr(point).encode()) for point in range(0xFFF9, 0x10000)],
}


def group_6():
    yield Case("6.1.1", "empty text", [send(text(b""))], [("text", b"")])
    yield Case("6.1.2", "three empty fragments",
               [send(b"".join(fragments(TEXT, [b"", b"", b""])))], [("text", b"")])
    yield Case("6.1.3", "the middle fragment is not empty",
               [send(b"".join(fragments(TEXT, [b"", b"middle", b""])))], [("text", b"middle")])
    umlauts = "Hello-µ@ßöäüàá-UTF-8!!".encode()
    whole = [("text", umlauts)]
    yield Case("6.2.1", "valid text", [send(text(umlauts))], whole)
    edge = len("Hello-µ@ßöä".encode())
    yield Case("6.2.2", "valid text in two fragments, cut between characters",
               [send(b"".join(fragments(TEXT, [umlauts[:edge], umlauts[edge:]])))], whole)
    yield Case("6.2.3", "valid text in fragments of one octet",
               [send(b"".join(fragments(TEXT, cut(umlauts, 1))))], whole)
    yield Case("6.2.4", "valid Greek in fragments of one octet",
               [send(b"".join(fragments(TEXT, cut(GREEK, 1))))], [("text", GREEK)])
    bad = GREEK + b"\xed\xa0\x80" + b"edited"
    yield Case("6.3.1", "invalid text", [send(text(bad))], end=FAILED(1007))
    yield Case("6.3.2", "invalid text in fragments of one octet",
               [send(b"".join(fragments(TEXT, cut(bad, 1))))], end=FAILED(1007))
    # The message never becomes complete here: it must be refused at the byte that is wrong.
    first, second = frame(TEXT, GREEK, fin=False), frame(CONTINUATION, b"\xf4\x90\x80\x80",
                                                         fin=False)
    yield Case("6.4.1", "refused early: in the second fragment",
               [send(first), quiet(), send(second)], end=FAILED(1007))
    first = frame(TEXT, GREEK + b"\xf4", fin=False)
    second = frame(CONTINUATION, b"\x90", fin=False)
    yield Case("6.4.2", "refused early: a character over two fragments",
               [send(first), quiet(), send(second)], end=FAILED(1007))
    whole_frame = text(GREEK + b"\xf4\x90\x80\x80" + b"edited")
    at = len(whole_frame) - 10
    yield Case("6.4.3", "refused early: inside a frame",
               [send(whole_frame[:at]), quiet(), send(whole_frame[at : at + 4])],
               end=FAILED(1007))
    yield Case("6.4.4", "refused early: inside a character inside a frame",
               [send(whole_frame[: at + 1]), quiet(), send(whole_frame[at + 1 : at + 2])],
               end=FAILED(1007))
    for part, rows in VALID_OR_NOT.items():
        for index, (valid, payload) in enumerate(rows, 1):
            shown = payload.hex() if len(payload) <= 16 else payload[:16].hex() + "…"
            if valid:
                yield Case(f"6.{part}.{index}", f"valid {shown}", [send(text(payload))],
                           [("text", payload)])
            else:
                yield Case(f"6.{part}.{index}", f"invalid {shown}", [send(text(payload))],
                           end=FAILED(1007))


# --- 7: closing ------------------------------------------------------------------------------

def group_7():
    hello = text(b"Hello, world!")
    echo = [("text", b"Hello, world!")]
    yield Case("7.1.1", "text, then close", [send(hello + close(1000))], echo, CLOSED(1000))
    yield Case("7.1.2", "close twice", [send(close(1000) + close(1000))], end=CLOSED(1000))
    yield Case("7.1.3", "no pong after close", [send(close(1000) + frame(PING))],
               end=CLOSED(1000))
    yield Case("7.1.4", "no echo after close", [send(close(1000) + hello)], end=CLOSED(1000))
    half, rest = fragments(TEXT, [b"fragment1", b"fragment2"])
    yield Case("7.1.5", "close between fragments", [send(half + close(1000) + rest)],
               end=CLOSED(1000))
    big = b"BAsd7&jh23" * (256 * KIB // 10)
    yield Case("7.1.6", "256 KiB, close, ping",
               [send(text(big)), send(close(1000)), send(frame(PING))], [("text", big)],
               CLOSED(1000))
    yield Case("7.3.1", "close without payload", [send(close())], end=CLOSED(None))
    yield Case("7.3.2", "close of one byte", [send(frame(CLOSE, b"\x03"))], end=FAILED(1002))
    yield Case("7.3.3", "close with a code", [send(close(1000))], end=CLOSED(1000))
    yield Case("7.3.4", "close with code and reason", [send(close(1000, b"Hello World!"))],
               end=CLOSED(1000))
    yield Case("7.3.5", "close with the longest reason", [send(close(1000, b"*" * 123))],
               end=CLOSED(1000))
    yield Case("7.3.6", "close with a reason too long", [send(close(1000, b"*" * 124))],
               end=FAILED(1002))
    yield Case("7.5.1", "close with a reason that is not UTF-8",
               [send(close(1000, GREEK + b"\xed\xa0\x80edited"))], end=FAILED(1007))
    good = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    for index, code in enumerate(good, 1):
        yield Case(f"7.7.{index}", f"close code {code}", [send(close(code))], end=CLOSED(code))
    for index, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1):
        yield Case(f"7.9.{index}", f"close code {code} is invalid", [send(close(code))],
                   end=FAILED(1002))
    for index, code in enumerate((5000, 65535), 1):
        yield Case(f"7.13.{index}", f"close code {code} is out of range", [send(close(code))],
                   end=FAILED(1002))


# --- 9: limits and performance ---------------------------------------------------------------

def round_trips(kind, opcode, size, count):
    """Each message is sent when the one before it has come back."""
    def steps(run):
        payload = (b"*" if kind == "text" else b"\xfe") * size
        for _ in range(count):
            run.send(frame(opcode, payload))
            run.wait_for((kind, payload))
    return [steps]


def group_9():
    kinds = [("text", TEXT), ("binary", BINARY)]
    sizes = [64 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB, 16 * MIB]
    for part, (kind, opcode) in enumerate(kinds, 1):
        for index, size in enumerate(sizes, 1):
            payload = filler(size)
            yield Case(f"9.{part}.{index}", f"{kind} of {size // KIB} KiB",
                       [send(frame(opcode, payload))], [(kind, payload)])
    lengths = [64, 256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB]
    for part, (kind, opcode) in enumerate(kinds, 3):
        payload = filler(4 * MIB)
        for index, length in enumerate(lengths, 1):
            data = b"".join(fragments(opcode, cut(payload, length)))
            yield Case(f"9.{part}.{index}", f"{kind} of 4 MiB in fragments of {length}",
                       [send(data)], [(kind, payload)])
    for part, (kind, opcode) in enumerate(kinds, 5):
        payload = filler(MIB)
        for index, length in enumerate((64, 128, 256, 512, 1024, 2048), 1):
            yield Case(f"9.{part}.{index}", f"{kind} of 1 MiB in pieces of {length}",
                       [send(frame(opcode, payload), length)], [(kind, payload)])
    for part, (kind, opcode) in enumerate(kinds, 7):
        for index, size in enumerate((0, 16, 64, 256, 1024, 4096), 1):
            yield Case(f"9.{part}.{index}", f"1000 round trips of {kind}, {size} bytes",
                       round_trips(kind, opcode, size, 1000))


# --- 10: automatic fragmentation -------------------------------------------------------------

def group_10():
    payload = b"*" * 65536
    yield Case("10.1.1", "65536 bytes in fragments of 1300",
               [send(b"".join(fragments(TEXT, cut(payload, 1300))))], [("text", payload)])


# --- 0: our own ------------------------------------------------------------------------------

def group_0():
    """What RFC 6455 demands and the public suite leaves out, and this server's own limit."""
    hello = b"Hello, world!"
    yield Case("0.1", "an unmasked frame", [send(frame(TEXT, hello, masked=False))],
               end=FAILED(1002))
    yield Case("0.2", "a short length in 16 bits", [send(frame(BINARY, hello, form=16))],
               end=FAILED(1002))
    yield Case("0.3", "a short length in 64 bits", [send(frame(BINARY, hello, form=64))],
               end=FAILED(1002))
    yield Case("0.4", "a length with the highest bit", [send(frame(BINARY, length=1 << 63))],
               end=FAILED(1002))
    yield Case("0.5", "an announced length above the limit: refused before a byte of it",
               [send(frame(BINARY, length=MESSAGE_BYTES_MAX + 1))], end=FAILED(1009))
    half = fragments(BINARY, [bytes(MESSAGE_BYTES_MAX // 2)] * 2)[0]
    yield Case("0.6", "fragments above the limit together",
               [send(half), send(frame(CONTINUATION, length=MESSAGE_BYTES_MAX // 2 + 1))],
               end=FAILED(1009))
    yield Case("0.7", "a message at the limit, in two fragments",
               [send(half + frame(CONTINUATION, bytes(MESSAGE_BYTES_MAX // 2)))],
               [("binary", bytes(MESSAGE_BYTES_MAX))])
    many = [b"message %d" % index for index in range(2000)]
    yield Case("0.8", "2,000 messages in one go come back in order",
               [send(b"".join(text(each) for each in many))], [("text", each) for each in many])
    yield Case("0.9", "a peer that reads late gets everything",
               [lambda run: run.send_while_not_reading(frame(BINARY, filler(64 * KIB)), 100)],
               [("binary", filler(64 * KIB))] * 100)
    yield Case("0.10", "the stream's end in the middle of a frame",
               [send(binary(hello)[:-1]), lambda run: run.end_of_stream()], end=("ended",))
    yield Case("0.11", "the stream's end without a close frame",
               [send(text(hello)), lambda run: run.end_of_stream()], [("text", hello)], ("ended",))


def upgrades():
    """Cases of the opening handshake: what is sent, and the status that must come."""
    return [
        ("0.20", "upgrade octet by octet", lambda client: client.upgrade_request(), 1, 101),
        ("0.21", "tokens in lists and other case", lambda client: client.upgrade_request(
            Upgrade="h2c, WebSocket", Connection="keep-alive, upgrade"), None, 101),
        ("0.22", "garbage", lambda _: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", None, 400),
        ("0.23", "version 8", lambda client: client.upgrade_request(
            Sec_WebSocket_Version="8"), None, 426),
        ("0.24", "no upgrade", lambda client: client.upgrade_request(Upgrade=None), None, 426),
        ("0.25", "no key", lambda client: client.upgrade_request(
            Sec_WebSocket_Key=None), None, 400),
        ("0.26", "POST", lambda client: client.upgrade_request().replace(b"GET", b"POST"), None,
         405),
        ("0.27", "a head too large", lambda client: client.upgrade_request(X="y" * 9000), None,
         431),
    ]


def all_cases():
    for group in (group_1, group_2, group_3, group_4, group_5, group_6, group_7, group_9, group_10,
                  group_0):
        yield from group()
