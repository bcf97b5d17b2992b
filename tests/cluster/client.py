"""One device of a run: an asyncio client that reconnects, repeats what was not answered, pulls its gaps, and writes down everything.

It behaves as docs/protocol.md asks of a client, and no better: a device of a user with one device learns of messages by DELIVER and by
pulling the gaps that it sees, and by nothing else, so what is never pushed to it is missing in the end. Devices of users with several
also ask PULL_CONVERSATIONS, because what one of them has acknowledged is not pushed to the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import WebSocketException

from history import digest, now
from millrace_client import (
    DELIVER, DELIVER_ACK, ERROR, GOAWAY, HEARTBEAT, KICK, LOGIN, LOGOUT, PULL_CONVERSATIONS, PULL_MESSAGES, READ, REPLY,
    REPLY_TYPES, SEND_MESSAGE, chat, decode_frames, encode_frame, mint_token, session,
)

RETRANSMISSION = 4
HEARTBEAT_EVERY_S = 2.0
# Silence after which the client takes its connection for dead, and waits of one answer.
SILENCE_S = 6.0
ANSWER_S = 3.0
CONNECT_S = 2.5
# A gap is pulled when it is still there after this.
GAP_S = 0.7
# Messages that one device has under way; at the bound the next ones are not sent, and count as not answered.
SENDS_MAX = 100
# "What is asked for again": what a refusal with one of these codes is, and all others are final.
AGAIN = {9: "rate_limited", 10: "logic_unavailable", 15: "draining", 19: "over_capacity", 20: "internal"}


class Lost(Exception):
    """The connection is gone."""


class TcpWire:
    @classmethod
    async def open(cls, address):
        self = cls()
        host, port = address["tcp"].rsplit(":", 1)
        self.reader, self.writer = await asyncio.open_connection(host, int(port))
        self.buffer = bytearray()
        return self

    def write(self, data):
        if self.writer.transport.is_closing():
            raise Lost
        self.writer.write(data)

    async def frames(self):
        data = await self.reader.read(65536)
        if not data:
            raise Lost
        self.buffer += data
        return decode_frames(self.buffer)

    def close(self):
        self.writer.close()


class WebSocketWire:
    """Writes go through a queue, because the package's are coroutines."""

    @classmethod
    async def open(cls, address):
        self = cls()
        self.socket = await websocket_connect(
            address["websocket"], subprotocols=["millrace.v1"], ping_interval=None, proxy=None, compression=None, close_timeout=1,
        )
        self.queue = asyncio.Queue()
        self.pump = asyncio.create_task(self.run())
        return self

    async def run(self):
        with contextlib.suppress(WebSocketException, OSError):
            while True:
                await self.socket.send(await self.queue.get())

    def write(self, data):
        self.queue.put_nowait(data)

    async def frames(self):
        data = await self.socket.recv()
        return decode_frames(bytearray(data))

    def close(self):
        self.pump.cancel()
        self.closing = asyncio.create_task(self.socket.close())


class Session:
    """One connection after its login."""

    def __init__(self, device, wire, gateway):
        self.device, self.wire, self.gateway = device, wire, gateway
        self.number = 0
        self.answers = {}
        self.next_request_id = 1
        self.heard = now()
        self.leave_at = None
        self.why = "lost"

    async def ask(self, command, message=None, seconds=ANSWER_S, flags=0):
        """The decoded reply, or an Error; raises Lost or TimeoutError."""
        request_id, self.next_request_id = self.next_request_id, self.next_request_id + 1
        future = self.answers[request_id] = asyncio.get_running_loop().create_future()
        body = b"" if message is None else message.SerializeToString()
        try:
            self.wire.write(encode_frame(command, body, request_id, flags))
            return await asyncio.wait_for(future, seconds)
        finally:
            self.answers.pop(request_id, None)

    def tell(self, command, message):
        with contextlib.suppress(Lost):
            self.wire.write(encode_frame(command, message.SerializeToString(), 0))

    async def read(self):
        """Until the connection ends."""
        try:
            while True:
                for frame in await self.wire.frames():
                    self.heard = now()
                    self.take(frame)
        except (Lost, OSError, WebSocketException, asyncio.IncompleteReadError, AssertionError):
            pass
        finally:
            for future in self.answers.values():
                if not future.done():
                    future.set_exception(Lost())

    def take(self, frame):
        if frame.request_id and (frame.command & REPLY or frame.command == ERROR):
            future = self.answers.get(frame.request_id)
            if future and not future.done():
                kind = session.Error if frame.command == ERROR else REPLY_TYPES.get(frame.command & ~REPLY)
                future.set_result(frame.parse(kind) if kind else frame)
        elif frame.command == DELIVER:
            self.device.delivered(self, frame.parse(chat.Deliver).messages)
        elif frame.command == KICK:
            self.why = f"kicked {frame.parse(session.Kick).code}"
        elif frame.command == ERROR:
            self.why = f"error {frame.parse(session.Error).code}"
        elif frame.command == GOAWAY:
            goaway = frame.parse(session.GoAway)
            window = (goaway.reconnect_after_ms_min / 1000, goaway.reconnect_after_ms_max / 1000)
            self.leave_at = now() + self.device.chance.uniform(*window)


class Device:
    def __init__(self, town, user, number, alone):
        self.town, self.user, self.number, self.alone = town, user, number, alone
        self.name = f"{user}/{number}"
        self.chance = random.Random(f"{town.seed}/{self.name}")
        self.wire = WebSocketWire if self.chance.random() < town.websocket_share else TcpWire
        self.session = None
        self.online = asyncio.Event()
        # Conversation -> everything up to here is there, and what is there above it.
        self.top, self.above = {}, {}
        self.gaps = set()
        self.version = 0
        self.sends = 0
        # Set: the device stays away.
        self.away_until = 0.0
        self.gone = False
        self.switch_now = False

    # --- the connection -------------------------------------------------------------------------

    async def run(self):
        attempt = 0
        while not self.gone:
            if (wait := self.away_until - now()) > 0 or self.session is not None:
                # Away, or a switch has brought another connection.
                await asyncio.sleep(min(0.2, wait) if wait > 0 else 0.05)
                continue
            opened = await self.open()
            if opened is None:
                attempt += 1
                await asyncio.sleep(self.chance.uniform(0, min(3.0, 0.3 * 2 ** min(attempt, 5))))
                continue
            attempt = 0
            await self.live(*opened)

    async def open(self, not_this=None):
        """Connects and logs in: (session, reader), or None."""
        gateways = [gateway for gateway in self.town.gateways if gateway != not_this] or list(self.town.gateways)
        gateway = self.chance.choice(gateways)
        began, wire, reader = now(), None, None
        try:
            wire = await asyncio.wait_for(self.wire.open(self.town.gateways[gateway]), CONNECT_S)
            opened = Session(self, wire, gateway)
            opened.number = self.town.next_session()
            reader = asyncio.create_task(opened.read())
            login = session.Login(
                user_id=self.user, token=mint_token(self.town.jwt_secret, self.user, 7200), device_id=str(self.number), platform="test",
                timestamp_ms=int(time.time() * 1000), nonce=f"{self.name}-{opened.number}-{self.chance.random()}",
            )
            reply = await opened.ask(LOGIN, login)
            code = reply.code
        except (Lost, OSError, WebSocketException, TimeoutError, EOFError) as error:
            code, reply = f"{type(error).__name__}", None
        self.town.request("login", began, now() if code == 0 else None, code)
        if code == 0:
            self.town.write("login", n=opened.number, c=self.name, user=self.user, device=str(self.number), gateway=gateway,
                            sid=reply.session_id, asked=round(began, 4))
            return opened, reader
        self.town.write("attempt", user=self.user, c=self.name, gateway=gateway, code=code)
        if reader:
            reader.cancel()
        if wire:
            wire.close()
        return None

    async def live(self, opened, reader):
        """As long as the connection lasts; a switch to another one begins while it is still open."""
        self.session = opened
        self.online.set()
        helpers = [asyncio.create_task(self.beat(opened)), asyncio.create_task(self.list_conversations(opened))]
        try:
            await asyncio.wait({reader, *helpers[:1]}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self.session is opened:
                self.session = None
                self.online.clear()
            for task in (*helpers, reader):
                task.cancel()
            self.town.write("end", n=opened.number, why=opened.why)
            opened.wire.close()

    async def beat(self, opened):
        """Heartbeats; returns when the connection is to be given up."""
        while True:
            asked = now()
            try:
                await opened.ask(HEARTBEAT, seconds=SILENCE_S)
                self.town.request("heartbeat", asked, now(), 0)
                self.town.write("alive", n=opened.number, asked=round(asked, 4))
            except TimeoutError:
                self.town.request("heartbeat", asked, None, "silent")
                if now() - opened.heard >= SILENCE_S - 0.5:
                    opened.why = "silent"
                    return
            except Lost:
                self.town.request("heartbeat", asked, None, "lost")
                return
            until = asked + HEARTBEAT_EVERY_S * self.chance.uniform(0.8, 1.1)
            while now() < until:
                await asyncio.sleep(min(0.2, max(0.01, until - now())))
                if opened.leave_at and now() >= opened.leave_at:
                    opened.why = "told to leave"
                    return
                if self.switch_now and self.session is opened:
                    self.switch_now = False
                    await self.switch(opened)
                if self.away_until > now() or self.gone:
                    await self.leave(opened)
                    return

    async def leave(self, opened):
        """Goes away: half of the time it says so."""
        if self.chance.random() < 0.5:
            opened.why = "logged out"
            with contextlib.suppress(Lost, TimeoutError):
                await opened.ask(LOGOUT, seconds=1.0)
        else:
            opened.why = "left"

    async def switch(self, old):
        """Another network: the device comes in elsewhere while its old connection still seems to live, until it is told otherwise."""
        opened = await self.open(not_this=old.gateway)
        if opened is None or self.session is not old:
            if opened:
                opened[1].cancel()
                self.town.write("end", n=opened[0].number, why="not needed")
                opened[0].wire.close()
            return
        self.town.background(self.live(*opened))
        old.leave_at = now() + 5.0
        while self.session is old:
            await asyncio.sleep(0.01)

    # --- messages -------------------------------------------------------------------------------

    async def send(self, to, body, intended, cmid, is_repeat=False):
        """Sends until it is acknowledged, or the run is over."""
        if self.sends >= SENDS_MAX and not is_repeat:
            self.town.request("send", intended, None, "too many under way")
            return False
        self.sends += 1
        message = chat.SendMessage(client_message_id=cmid, type=1, body=body, **{f"{kind}_id": name for kind, name in to.items()})
        tries, pause = int(is_repeat), 0.1
        try:
            while not self.town.over:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.online.wait(), 1.0)
                if (opened := self.session) is None:
                    if self.gone:
                        break
                    continue
                self.town.write("send", n=opened.number, c=self.name, user=self.user, cmid=cmid, to=to, body=digest(body),
                                intended=round(intended, 4), repeat=is_repeat)
                try:
                    reply = await opened.ask(SEND_MESSAGE, message, flags=RETRANSMISSION if tries else 0)
                except (Lost, TimeoutError):
                    reply = None
                tries += 1
                wait = pause
                if isinstance(reply, session.Error) or (reply is not None and reply.code != 0):
                    self.town.write("refused", n=opened.number, c=self.name, cmid=cmid, code=reply.code)
                    if reply.code not in AGAIN:
                        self.town.request("send", intended, None, reply.code)
                        self.town.write("reply", n=opened.number, c=self.name, user=self.user, cmid=cmid, code=reply.code,
                                        conv="", seq=0, mid="", dup=False)
                        return False
                    wait = max(pause, getattr(reply, "retry_after_ms", 0) / 1000)
                elif reply is not None:
                    self.town.write("reply", n=opened.number, c=self.name, user=self.user, cmid=cmid, code=0, conv=reply.conversation_id,
                                    seq=reply.sequence, mid=reply.message_id, dup=reply.duplicate)
                    if not is_repeat:
                        self.town.request("send", intended, now(), 0)
                    self.has(reply.conversation_id, reply.sequence)
                    return True
                await asyncio.sleep(wait * self.chance.uniform(0.5, 1.5))
                pause = min(2.0, pause * 2)
            if not is_repeat:
                self.town.request("send", intended, None, "never")
            return False
        finally:
            self.sends -= 1

    def delivered(self, opened, messages):
        """A DELIVER has come."""
        self.town.messages(opened.number, self, "push", messages)
        for message in messages:
            self.has(message.conversation_id, message.sequence)
        for conversation in {message.conversation_id for message in messages}:
            self.acknowledge(opened, conversation)
            if self.above.get(conversation) and conversation not in self.gaps:
                self.gaps.add(conversation)
                self.town.background(self.fill(conversation))
            if self.chance.random() < 0.03:
                self.town.background(self.read_up_to(opened, conversation, self.top[conversation]))

    def acknowledge(self, opened, conversation):
        if sequence := self.top.get(conversation, 0):
            opened.tell(DELIVER_ACK, chat.DeliverAck(conversation_id=conversation, sequence=sequence))
            self.town.write("ack", n=opened.number, conv=conversation, seq=sequence)

    def has(self, conversation, sequence):
        top, above = self.top.setdefault(conversation, 0), self.above.setdefault(conversation, set())
        if sequence > top:
            above.add(sequence)
            while top + 1 in above:
                top += 1
                above.discard(top)
            self.top[conversation] = top

    async def fill(self, conversation):
        """Pulls what is missing below what has come."""
        try:
            await asyncio.sleep(GAP_S)
            while self.above[conversation] and not self.gone and not self.town.over:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.online.wait(), 1.0)
                # It may have closed while there was no connection.
                missing_below = min(self.above[conversation], default=0)
                if missing_below and (opened := self.session) and await self.pull(opened, conversation, missing_below - 1) is None:
                    await asyncio.sleep(0.3)
        finally:
            self.gaps.discard(conversation)

    async def pull(self, opened, conversation, upto):
        """Pulls from what is there up to a sequence; None if that failed."""
        first = self.top.get(conversation, 0) + 1
        request = chat.PullMessages(conversation_id=conversation, from_sequence=first, to_sequence=upto, limit=100)
        try:
            reply = await opened.ask(PULL_MESSAGES, request)
        except (Lost, TimeoutError):
            return None
        if isinstance(reply, session.Error) or reply.code:
            return None
        self.town.messages(opened.number, self, "pull", reply.messages)
        for message in reply.messages:
            self.has(conversation, message.sequence)
        self.acknowledge(opened, conversation)
        return reply.messages or None

    async def read_up_to(self, opened, conversation, sequence):
        code = None
        try:
            reply = await opened.ask(READ, chat.Read(conversation_id=conversation, sequence=sequence))
            code = reply.code
        except (Lost, TimeoutError):
            pass
        finally:
            self.town.write("read", user=self.user, c=self.name, conv=conversation, seq=sequence, code=code)

    async def list_conversations(self, opened):
        """Asks now and then what has changed: a request that reads, and for one device of several its way to catch up."""
        await asyncio.sleep(0 if not self.alone else self.chance.uniform(0, 5))
        while True:
            asked = now()
            reply = await self.ask_conversations(opened, self.version)
            self.town.request("list", asked, None if reply is None else now(), 0 if reply else "failed")
            if reply is not None:
                version = reply.version
                if not self.alone:
                    for row in reply.conversations:
                        while self.top.get(row.conversation_id, 0) < row.max_sequence:
                            if await self.pull(opened, row.conversation_id, row.max_sequence) is None:
                                version = 0
                                break
                # Only now: where the connection ends amid the pulls, the next one has to hear of these rows again.
                self.version = version
            await asyncio.sleep(self.chance.uniform(3, 7))

    @staticmethod
    async def ask_conversations(opened, since):
        try:
            reply = await opened.ask(PULL_CONVERSATIONS, chat.PullConversations(since_version=since, limit=100))
        except (Lost, TimeoutError):
            return None
        return None if isinstance(reply, session.Error) or reply.code else reply
