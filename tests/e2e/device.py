"""A device of a chat app, written from docs/protocol.md and docs/messages.md alone: what it shows is what it has put
together from what it sent, what it was pushed and what it pulled.

It keeps for each conversation the messages, the settings, who has read how far, and counts by itself what is unread.
It does not keep what is only live (rooms, typing) nor which conversations the user has taken off the list.
"""

from __future__ import annotations

import collections
import json
import time

from google.protobuf import json_format

from millrace_client import (
    DELIVER, DELIVER_ACK, ERROR, HEARTBEAT, KICK, LOGIC_UNAVAILABLE, LOGIN, NOTICE, OVER_CAPACITY, PULL_CONVERSATIONS,
    PULL_MESSAGES, RATE_LIMITED, READ, RECEIPT, REPLY, SEND_MESSAGE, TYPING, UPDATE_CONVERSATION, Closed, JsonConnection,
    Refused, TcpConnection, WebSocketConnection, chat, session,
)

REVOKE, DELETE, FORWARD, PULL_RECEIPTS = 0x0206, 0x0207, 0x0208, 0x020E
CREATE_GROUP, ANNOUNCE_TO_GROUP, INVITE_TO_GROUP, LEAVE_GROUP = 0x0110, 0x0112, 0x0115, 0x0116
REMOVE_FROM_GROUP, SET_GROUP_ROLE, MUTE_MEMBERS, DISSOLVE_GROUP = 0x0117, 0x0118, 0x011A, 0x011C
RETRANSMISSION, NO_STORE = 4, 8
NORMAL, DELETED, REVOKED, EXPIRED = 0, 1, 2, 3

REPLIES = {
    LOGIN: session.LoginReply, SEND_MESSAGE: chat.SendReply, FORWARD: chat.SendReply, READ: chat.ReadReply,
    REVOKE: chat.RevokeReply, DELETE: chat.DeleteReply, PULL_MESSAGES: chat.PullReply,
    PULL_CONVERSATIONS: chat.ConversationsReply, UPDATE_CONVERSATION: chat.UpdateReply,
    PULL_RECEIPTS: chat.PullReceiptsReply,
    **dict.fromkeys(
        (CREATE_GROUP, ANNOUNCE_TO_GROUP, INVITE_TO_GROUP, LEAVE_GROUP, REMOVE_FROM_GROUP, SET_GROUP_ROLE, MUTE_MEMBERS,
         DISSOLVE_GROUP), chat.GroupActReply),
}
PUSHES = {
    DELIVER: chat.Deliver, RECEIPT: chat.Receipt, UPDATE_CONVERSATION: chat.UpdateConversation, NOTICE: chat.Notice,
    TYPING: chat.Typing, KICK: session.Kick,
}
NAMES = {
    HEARTBEAT: "heartbeat", LOGIN: "login", KICK: "kick", ERROR: "error", NOTICE: "notice", SEND_MESSAGE: "send_message",
    DELIVER: "deliver", DELIVER_ACK: "deliver_ack", READ: "read", RECEIPT: "receipt", REVOKE: "revoke", DELETE: "delete",
    FORWARD: "forward", PULL_MESSAGES: "pull_messages", PULL_CONVERSATIONS: "pull_conversations",
    UPDATE_CONVERSATION: "update_conversation", TYPING: "typing", PULL_RECEIPTS: "pull_receipts",
    CREATE_GROUP: "create_group", ANNOUNCE_TO_GROUP: "announce_to_group", INVITE_TO_GROUP: "invite_to_group",
    LEAVE_GROUP: "leave_group", REMOVE_FROM_GROUP: "remove_from_group", SET_GROUP_ROLE: "set_group_role",
    MUTE_MEMBERS: "mute_members", DISSOLVE_GROUP: "dissolve_group",
}
NUMBERS = {name: number for number, name in NAMES.items()}


class Offline(Exception):
    """The device has no connection, and is not to make one by itself."""


# What arrived: `message` is None for bodies that this device does not look at.
Arrived = collections.namedtuple("Arrived", "command request_id is_reply message")


class BinaryWire:
    """Frames over TCP or WebSocket."""

    def __init__(self, connection):
        self.connection = connection

    def post(self, command, message, request_id, flags=0):
        self.connection.send(command, message, request_id, flags)

    def take(self, seconds):
        """What has arrived; [] if nothing does within the time."""
        return [self.arrived(frame) for frame in self.connection.receive_frames(seconds)]

    @staticmethod
    def arrived(frame):
        command, is_reply = frame.command & ~REPLY, bool(frame.command & REPLY)
        kind = session.Error if command == ERROR else (REPLIES if is_reply else PUSHES).get(command)
        return Arrived(command, frame.request_id, is_reply, frame.parse(kind) if kind else None)

    def close(self):
        self.connection.close()


class TextWire:
    """The JSON form over WebSocket."""

    def __init__(self, connection):
        self.connection = connection

    def post(self, command, message, request_id, flags=0):
        body = {} if message is None else json_format.MessageToDict(message, preserving_proto_field_name=True)
        envelope = {"command": NAMES[command], "request_id": request_id, "body": body}
        if flags & RETRANSMISSION:
            envelope["retransmission"] = True
        if flags & NO_STORE:
            envelope["no_store"] = True
        self.connection.send_text(json.dumps(envelope))

    def take(self, seconds):
        text = self.connection.receive_text(seconds)
        return [] if text is None else [self.arrived(json.loads(text))]

    @staticmethod
    def arrived(envelope):
        name = envelope["command"]
        command, is_reply = NUMBERS.get(name, name), envelope.get("reply", False)
        kind = session.Error if command == ERROR else (REPLIES if is_reply else PUSHES).get(command)
        message = kind and json_format.ParseDict(envelope["body"], kind(), ignore_unknown_fields=True)
        return Arrived(command, envelope.get("request_id", 0), is_reply, message)

    def close(self):
        self.connection.close()


def open_wire(kind, ready):
    """`kind` is "tcp", "websocket" or "json"."""
    if kind == "json":
        return TextWire(JsonConnection(ready))
    return BinaryWire((TcpConnection if kind == "tcp" else WebSocketConnection)(ready))


class View:
    """One conversation as a device shows it."""

    def __init__(self):
        self.messages: dict[int, chat.Message] = {}
        # How far others have got and read: user id -> [delivered, read].
        self.cursors: dict[str, list[int]] = {}
        self.init = self.read = self.version = self.quit_reason = 0
        self.do_not_disturb = self.pinned = self.quit = False
        # What came up to here is in `quit` and `init` already.
        self.known_top = 0

    def top(self):
        """Everything up to here is there."""
        sequence = self.init
        while sequence + 1 in self.messages:
            sequence += 1
        return sequence

    def newest(self):
        return max(self.messages, default=self.init)

    def put(self, message):
        """Applies a message by its sequence; one whose content is gone is news whatever its sequence is."""
        if message.sequence <= self.init:
            return
        if message.state != NORMAL or message.sequence not in self.messages:
            self.messages[message.sequence] = message

    def bury(self, sequence, state, revoked_by=""):
        """Takes the content of a message away."""
        old = self.messages[sequence]
        self.messages[sequence] = chat.Message(
            conversation_id=old.conversation_id, conversation_type=old.conversation_type, sequence=sequence,
            message_id=old.message_id, client_message_id=old.client_message_id, sender_id=old.sender_id, type=old.type,
            sent_at_ms=old.sent_at_ms, does_not_count=old.does_not_count, state=state, revoked_by=revoked_by,
        )

    def floor(self, user_id):
        """The latest of: joining, the read cursor, the own last message."""
        own = max((sequence for sequence, message in self.messages.items() if message.sender_id == user_id), default=0)
        return max(self.init, self.read, own)

    def unread(self, user_id):
        """Counting messages after that which are still there."""
        floor = self.floor(user_id)
        return sum(
            sequence > floor and not message.does_not_count and state_of(message) == NORMAL
            for sequence, message in self.messages.items()
        )

    def mentioned(self, user_id):
        """The newest unread message that calls this user by name (0: none); None if a later one is gone that may have."""
        floor = self.floor(user_id)
        for sequence in sorted(self.messages, reverse=True):
            if sequence <= floor:
                break
            if state_of(self.messages[sequence]) != NORMAL:
                return None
            if user_id in self.messages[sequence].mentions.user_ids:
                return sequence
        return 0

    def cursor(self, user_id, delivered, read):
        known = self.cursors.setdefault(user_id, [0, 0])
        known[0], known[1] = max(known[0], delivered), max(known[1], read)


def state_of(message):
    """What is over is hidden by the device's own clock."""
    is_over = 0 < message.expires_at_ms <= time.time() * 1000
    return EXPIRED if message.state == NORMAL and is_over else message.state


def shown(message):
    """What a person can see of a message, to be compared."""
    state = state_of(message)
    if state == NORMAL:
        return message.SerializeToString(deterministic=True)
    by = message.revoked_by if state == REVOKED else ""
    return (message.sequence, message.message_id, message.client_message_id, message.sender_id, message.type, state, by)


class Device:
    """See the module. Every call returns when the server has answered; nothing runs by itself."""

    def __init__(self, ready, user_id, token, device_id, kind):
        self.ready, self.user_id, self.token, self.device_id, self.kind = ready, user_id, token, device_id, kind
        self.views: dict[str, View] = {}
        self.friends: set[str] = set()
        self.live: list[chat.Message] = []
        self.version = 0
        self.wire = None
        self.kicked = ""
        # Online without a break since the app was installed: nothing was pulled but gaps.
        self.unbroken = True
        self.pushed = collections.deque()
        self.answers = {}
        self.next_request_id = 1
        self.heard_at = 0.0
        self.beat_at = 0.0

    def __repr__(self):
        return f"{self.user_id}/{self.device_id}({self.kind})"

    @property
    def online(self):
        return self.wire is not None

    # --- the connection -------------------------------------------------------------------------

    def connect(self, seconds=60.0):
        """Logs in, with patience while the server behind the gateway is away, and catches up."""
        deadline = time.monotonic() + seconds
        self.kicked, self.pushed, self.answers = "", collections.deque(), {}
        while True:
            code, reason = self.try_to_connect()
            if code == 0:
                break
            assert code in (LOGIC_UNAVAILABLE, RATE_LIMITED, OVER_CAPACITY), f"{self}: login refused: {code} {reason}"
            assert time.monotonic() < deadline, f"{self}: no login within {seconds} s: {reason}"
            time.sleep(0.1)
        self.come_back()

    def come_back(self):
        """What an app does when it was away, or the server was: what changed, and how far the others are, which no
        version tells."""
        self.sync()
        for conversation_id, view in list(self.views.items()):
            if not view.quit:
                self.pull_cursors(conversation_id, view)

    def try_to_connect(self):
        """One attempt: (code, reason)."""
        self.wire = open_wire(self.kind, self.ready)
        login = session.Login(
            user_id=self.user_id, token=self.token, device_id=self.device_id, platform=self.kind,
            timestamp_ms=int(time.time() * 1000), nonce=f"{self.device_id}-{time.monotonic_ns()}",
        )
        try:
            reply = self.wait(self.post(LOGIN, login), 30)
        except Offline:
            return LOGIC_UNAVAILABLE, "the connection was closed"
        assert reply is not None, f"{self}: LOGIN was not answered"
        if reply.code:
            self.disconnect()
        self.beat_at = time.monotonic()
        return reply.code, reply.reason

    def disconnect(self):
        """The network is gone: nobody says goodbye."""
        if self.wire:
            self.wire.close()
        self.wire, self.unbroken = None, False

    def post(self, command, message=None, flags=0, wants_reply=True):
        if self.wire is None:
            raise Offline(self.kicked)
        request_id = 0
        if wants_reply:
            request_id, self.next_request_id = self.next_request_id, self.next_request_id + 1
        try:
            self.wire.post(command, message, request_id, flags)
        except (Closed, OSError) as error:
            self.hear_the_rest()
            self.disconnect()
            raise Offline(self.kicked) from error
        return request_id

    def hear_the_rest(self):
        """What the server said before it closed, which may be why."""
        try:
            while self.take(0.0):
                pass
        except Offline:
            pass

    def take(self, seconds):
        """Reads what has arrived; True if there was anything."""
        if self.wire is None:
            raise Offline(self.kicked)
        try:
            arrived = self.wire.take(seconds)
        except Closed as closed:
            self.disconnect()
            raise Offline(self.kicked) from closed
        for one in arrived:
            if one.command == KICK:
                self.kicked = one.message.reason or "kicked"
            elif one.request_id and (one.is_reply or one.command == ERROR):
                self.answers[one.request_id] = one.message
            elif one.message is not None and not one.is_reply:
                self.pushed.append(one.message)
        return bool(arrived)

    def wait(self, request_id, seconds):
        """The answer to a request, or None if there is none in time."""
        deadline = time.monotonic() + seconds
        while request_id not in self.answers:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self.take(left)
        return self.answers.pop(request_id)

    def request(self, command, message, seconds=60.0, flags=0):
        """The reply; what the server cannot do at the moment is asked again, under the same ids."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = self.wait(self.post(command, message, flags), 15)
            except Offline:
                if self.kicked:
                    raise
                self.connect()
                answer = None
            flags |= RETRANSMISSION
            wait_ms = 0
            if isinstance(answer, session.Error):
                if answer.code not in (LOGIC_UNAVAILABLE, RATE_LIMITED, OVER_CAPACITY):
                    raise Refused(answer)
                wait_ms = answer.retry_after_ms
            elif answer is not None:
                return answer
            assert time.monotonic() < deadline, f"{self}: {NAMES[command]} was not answered within {seconds} s: {answer}"
            time.sleep(min(1.0, max(0.05, wait_ms / 1000)))

    def pump(self):
        """Applies everything that has arrived; True if there was anything."""
        if self.wire is None:
            return False
        busy = False
        try:
            if time.monotonic() - self.beat_at > 4:
                self.beat_at = time.monotonic()
                self.post(HEARTBEAT, wants_reply=False)
            while self.take(0.0):
                busy = True
        except Offline:
            if not self.kicked:
                self.connect()
            return True
        while self.pushed:
            busy = True
            self.apply(self.pushed.popleft())
        return busy

    # --- what arrives ---------------------------------------------------------------------------

    def apply(self, push):
        if isinstance(push, chat.Deliver):
            self.arrive(push.messages)
        elif isinstance(push, chat.Receipt):
            view = self.views.get(push.conversation_id)
            if view and push.user_id == self.user_id:
                view.read = max(view.read, push.read_sequence)
            elif view:
                view.cursor(push.user_id, push.delivered_sequence, push.read_sequence)
        elif isinstance(push, chat.UpdateConversation):
            self.set(push)
        elif isinstance(push, chat.Notice) and 100 <= push.type <= 106:
            event = json.loads(push.body)
            if event["event"] == "friend_accepted":
                self.friends.add(event["user_id"])
            elif event["event"] == "friend_removed":
                self.friends.discard(event["user_id"])

    def arrive(self, messages):
        """Messages that were pushed: those never heard of ask for the list, those after a gap for what is between."""
        touched = {}
        for message in messages:
            if message.sequence == 0:
                self.live.append(message)
                continue
            if message.conversation_id not in self.views:
                self.sync()
            # A conversation can be left again before it was looked at.
            view = self.views.setdefault(message.conversation_id, View())
            is_new = message.sequence > view.newest()
            view.put(message)
            if message.type == 8 and message.system and message.state == NORMAL and message.sequence > view.known_top:
                self.group_event(view, message)
            if is_new:
                touched[message.conversation_id] = view
        for conversation_id, view in touched.items():
            self.repair(conversation_id, view)
            if view.messages:
                ack = chat.DeliverAck(conversation_id=conversation_id, sequence=view.top())
                self.post(DELIVER_ACK, ack, wants_reply=False)

    def group_event(self, view, message):
        """The server says what became of a group."""
        view.known_top = message.sequence
        event = json.loads(message.body)
        kind, users = event["event"], event.get("user_ids", [])
        me = self.user_id in users
        if kind == "removed" and me:
            view.quit, view.quit_reason = True, 2
        elif kind == "left" and event["actor_id"] == self.user_id:
            view.quit, view.quit_reason = True, 1
        elif kind == "dissolved":
            view.quit, view.quit_reason = True, 3
        elif kind in ("added", "joined") and (me or event["actor_id"] == self.user_id):
            # Since when, the list says; and how far the others are.
            self.sync()
            self.pull_cursors(message.conversation_id, view)

    def set(self, update):
        view = self.views.get(update.conversation_id)
        if view is None:
            return
        alone = not (update.HasField("pinned") or update.HasField("hidden"))
        if update.HasField("do_not_disturb") or alone:
            view.do_not_disturb = update.do_not_disturb
        if update.HasField("pinned"):
            view.pinned = update.pinned

    # --- what is asked for ----------------------------------------------------------------------

    def sync(self):
        """The conversations that changed since the last time, what was edited in them, and what is missing."""
        while True:
            request = chat.PullConversations(since_version=self.version, limit=20)
            reply = self.request(PULL_CONVERSATIONS, request)
            assert reply.code == 0, f"{self}: {reply}"
            for row in reply.conversations:
                self.row(row)
            assert reply.complete or reply.version > self.version, f"{self}: the list does not end"
            self.version = reply.version
            if reply.complete:
                break

    def row(self, row):
        is_new = row.conversation_id not in self.views
        view = self.views.setdefault(row.conversation_id, View())
        before, view.version = view.version, row.version
        if row.init_sequence > view.init:
            # Taken in again: what was before is not theirs any more.
            view.init = row.init_sequence
            view.messages = {sequence: one for sequence, one in view.messages.items() if sequence > view.init}
        view.read = max(view.read, row.read_sequence)
        view.do_not_disturb, view.pinned = row.do_not_disturb, row.pinned
        view.quit, view.quit_reason = row.quit, row.quit_reason
        view.known_top = max(view.known_top, row.max_sequence)
        if view.messages:
            self.pull_changes(row.conversation_id, view, max(1, before))
        missing = [s for s in range(view.init + 1, row.max_sequence + 1) if s not in view.messages]
        if missing:
            # The newest page first, as somebody looks at it; then what is older.
            self.pull(row.conversation_id, view, missing[0], row.max_sequence, newest_first=True)
            self.repair(row.conversation_id, view, row.max_sequence)
            if not row.quit:
                ack = chat.DeliverAck(conversation_id=row.conversation_id, sequence=view.top())
                self.post(DELIVER_ACK, ack, wants_reply=False)
        if is_new and not row.quit:
            self.pull_cursors(row.conversation_id, view)

    def pull(self, conversation_id, view, first, last, newest_first=False):
        request = chat.PullMessages(
            conversation_id=conversation_id, from_sequence=first, to_sequence=last, newest_first=newest_first,
            limit=0 if newest_first else 100,
        )
        reply = self.request(PULL_MESSAGES, request)
        assert reply.code == 0, f"{self}: {reply}"
        for message in reply.messages:
            view.put(message)
        return reply

    def repair(self, conversation_id, view, up_to=0):
        """Fetches what lies between what is there."""
        up_to = max(up_to, view.newest())
        while (top := view.top()) < up_to:
            reply = self.pull(conversation_id, view, top + 1, up_to)
            assert view.top() > top, f"{self}: {conversation_id} has no message {top + 1} of {up_to}: {reply}"

    def pull_changes(self, conversation_id, view, since):
        """What was revoked, expired or deleted since a version."""
        while True:
            request = chat.PullMessages(conversation_id=conversation_id, changed_since_version=since, limit=100)
            reply = self.request(PULL_MESSAGES, request)
            assert reply.code == 0, f"{self}: {reply}"
            for message in reply.messages:
                view.put(message)
            for part in reply.deleted:
                for sequence in range(part.from_sequence, part.to_sequence + 1):
                    if sequence in view.messages and view.messages[sequence].state == NORMAL:
                        view.bury(sequence, DELETED)
            if reply.complete:
                return
            assert reply.version > since, f"{self}: the changes of {conversation_id} do not end"
            since = reply.version

    def pull_cursors(self, conversation_id, view):
        after = ""
        while True:
            request = chat.PullReceipts(conversation_id=conversation_id, after_user_id=after)
            reply = self.request(PULL_RECEIPTS, request)
            if reply.code:
                # Not a member any more, a moment later.
                return
            for receipt in reply.receipts:
                if receipt.user_id != self.user_id:
                    view.cursor(receipt.user_id, receipt.delivered_sequence, receipt.read_sequence)
            if reply.complete:
                return
            after = reply.after_user_id

    # --- what a person does ---------------------------------------------------------------------

    def sent(self, send, reply):
        """Shows an own message, whose reply is all that comes."""
        if reply.conversation_id not in self.views:
            self.sync()
        view = self.views.setdefault(reply.conversation_id, View())
        message = chat.Message(
            conversation_id=reply.conversation_id, conversation_type=1 if send.user_id else 2, sequence=reply.sequence,
            message_id=reply.message_id, client_message_id=send.client_message_id, sender_id=self.user_id,
            type=send.type, body=send.body, sent_at_ms=reply.sent_at_ms, does_not_count=send.does_not_count,
            expires_at_ms=reply.sent_at_ms + send.ttl_ms if send.ttl_ms else 0,
        )
        for field in ("attachment", "quote", "mentions", "location"):
            if send.HasField(field):
                getattr(message, field).CopyFrom(getattr(send, field))
        if send.HasField("quote"):
            message.quote.conversation_id = reply.conversation_id
            message.quote.sender_id = view.messages[send.quote.sequence].sender_id
        view.put(message)
        self.repair(reply.conversation_id, view)

    def send(self, send, flags=0):
        reply = self.request(SEND_MESSAGE, send, flags=flags)
        if reply.code == 0 and not reply.not_stored:
            self.sent(send, reply)
        return reply

    def forward(self, forward):
        reply = self.request(FORWARD, forward)
        if reply.code == 0:
            if reply.conversation_id not in self.views:
                self.sync()
            view = self.views.setdefault(reply.conversation_id, View())
            # Forwarded as one, it is one message and counts none.
            first = reply.sequence - max(1, reply.count) + 1
            self.pull(reply.conversation_id, view, first, reply.sequence)
            self.repair(reply.conversation_id, view)
        return reply

    def revoke(self, conversation_id, sequence):
        reply = self.request(REVOKE, chat.Revoke(conversation_id=conversation_id, sequence=sequence))
        if reply.code == 0 and self.views[conversation_id].messages[sequence].state != REVOKED:
            self.views[conversation_id].bury(sequence, REVOKED, self.user_id)
        return reply

    def delete(self, conversation_id, sequences):
        reply = self.request(DELETE, chat.Delete(conversation_id=conversation_id, sequences=sequences))
        if reply.code == 0:
            view = self.views[conversation_id]
            for sequence in sequences:
                if view.messages[sequence].state == NORMAL:
                    view.bury(sequence, DELETED)
        return reply

    def mark_read(self, conversation_id):
        view = self.views[conversation_id]
        sequence = view.top()
        reply = self.request(READ, chat.Read(conversation_id=conversation_id, sequence=sequence))
        if reply.code == 0:
            view.read = max(view.read, sequence)
        return reply, sequence

    def update(self, conversation_id, **settings):
        update = chat.UpdateConversation(conversation_id=conversation_id, **settings)
        reply = self.request(UPDATE_CONVERSATION, update)
        if reply.code == 0:
            self.set(update)
        return reply
