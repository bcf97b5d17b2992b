"""The town of the scenario: its people, their devices, and what they have done, which is the truth that nobody asks the
server for; and how what the devices show is compared with what the server holds.
"""

import collections
import http.client
import itertools
import json
import random
import time
from urllib.parse import quote, urlsplit

from google.protobuf import json_format

from device import NORMAL, REVOKED, Device, shown, state_of
from millrace_client import api_messages, chat
from processes import API_TOKEN
from town_acts import Acts, Group, Sent


class Http:
    """Calls over one connection that is kept, made again when logic was killed."""

    def __init__(self, url):
        self.address = urlsplit(url).netloc
        self.connection = http.client.HTTPConnection(self.address, timeout=30)

    def call(self, method, path, body=None, token=API_TOKEN, content_type="application/json"):
        """(status, bytes); waits as it is told to when it was too fast."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if data is not None else {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        deadline = time.monotonic() + 60
        while True:
            try:
                self.connection.request(method, path, data, headers)
                response = self.connection.getresponse()
                content = response.read()
                if response.status != 429:
                    return response.status, content
                wait = float(response.headers.get("Retry-After", "1"))
            except (http.client.HTTPException, OSError):
                self.connection.close()
                wait = 0.05
            assert time.monotonic() < deadline, f"{method} {path} was not answered"
            time.sleep(wait)

    def ok(self, method, path, body=None, token=API_TOKEN, content_type="application/json"):
        status, content = self.call(method, path, body, token, content_type)
        assert status in (200, 201), (method, path, status, content)
        return json.loads(content or b"{}")


class Town(Acts):
    """See the module."""

    def __init__(self, tiers, people, seed):
        self.tiers, self.random, self.http = tiers, random.Random(seed), Http(tiers.ready["http"])
        self.people_max = people
        self.people, self.tokens, self.devices = [], {}, {}
        self.friends = collections.defaultdict(set)
        self.blocks = set()
        self.groups: list[Group] = []
        self.sent: dict[tuple, Sent] = {}
        self.refused: set[tuple] = set()
        self.revoked, self.deleted = set(), set()
        self.read, self.settings = collections.defaultdict(int), {}
        self.files = {}
        self.numbers = itertools.count()
        self.done = collections.Counter()
        self.log = collections.deque(maxlen=40)

    # --- the people -----------------------------------------------------------------------------

    def register(self):
        for number in range(self.people_max):
            user_id, password = f"person-{number:02}", f"the password of {number:02}"
            registered = self.http.ok(
                "POST", "/v1/users", {"user_id": user_id, "password": password, "name": f"Person {number:02}"}, token="")
            login = self.http.ok("POST", "/v1/login", {"user_id": user_id, "password": password}, token="")
            phone, laptop = registered["tokens"]["token"], login["tokens"]["token"]
            self.people.append(user_id)
            self.tokens[user_id] = phone
            # Every fifth second device is a browser that speaks the text form.
            second = "json" if number % 5 == 0 else "websocket"
            self.devices[user_id] = [
                Device(self.tiers.ready, user_id, phone, "phone", "tcp"),
                Device(self.tiers.ready, user_id, laptop, "laptop", second),
            ]

    def befriend(self, one, other):
        self.http.ok("POST", "/v1/users/me/friend_requests", {"other_id": other}, self.tokens[one])
        self.http.ok("POST", f"/v1/users/me/friend_requests/{one}/accept", {}, self.tokens[other])
        self.friends[one].add(other)
        self.friends[other].add(one)

    def all_devices(self):
        return [device for devices in self.devices.values() for device in devices]

    def online(self, user_id=None):
        devices = self.all_devices() if user_id is None else self.devices[user_id]
        return [device for device in devices if device.online]

    def pump(self):
        return sum(device.pump() for device in self.all_devices())

    def connect(self, device):
        """The app is opened: it logs in, catches up, and looks at the list of friends."""
        device.connect()
        listed = self.http.ok("GET", "/v1/users/me/friends", token=device.token)
        device.friends = {relation["user_id"] for relation in listed["relations"]}

    # --- the end ------------------------------------------------------------------------------------

    def wait_for(self, condition, what, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.01)

    def history(self, user_id):
        """What the server holds for somebody: {conversation id: (row, {sequence: message})}."""
        path = f"/v1/users/{quote(user_id)}/conversations"
        rows = json_format.ParseDict(self.http.ok("GET", path), chat.ConversationsReply())
        assert rows.complete, "more conversations than a page holds"
        found = {}
        for row in rows.conversations:
            messages, after = {}, 0
            while True:
                path = f"/v1/conversations/{quote(row.conversation_id)}/messages"
                query = f"?user_id={quote(user_id)}&from_sequence={after + 1}&limit=100"
                page = json_format.ParseDict(self.http.ok("GET", path + query), api_messages.PullMessagesResponse())
                messages |= {message.sequence: message for message in page.messages}
                after = max(messages, default=0)
                if page.complete:
                    break
            found[row.conversation_id] = (row, messages)
        return found

    def cursors(self, conversation_id):
        """{user: (delivered, read)} of the members, by the server."""
        path = f"/v1/conversations/{quote(conversation_id)}/receipts?filter=0"
        reply = json_format.ParseDict(self.http.ok("GET", path), chat.PullReceiptsReply())
        assert reply.complete
        return {one.user_id: (one.delivered_sequence, one.read_sequence) for one in reply.receipts}

    def agree(self, seconds=60):
        """Waits until every device that is online shows what the server holds; returns the histories."""
        deadline = time.monotonic() + seconds
        histories = {}
        wrong = self.people
        while True:
            while self.pump():
                pass
            for user_id in wrong:
                histories[user_id] = self.history(user_id)
            cursors = self.all_cursors(histories)
            differences = [
                f"{device}: {difference}"
                for device in self.online() for difference in differ(device, histories, cursors)
            ]
            if not differences:
                return histories
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{len(differences)} differences after {seconds} s:\n" + "\n".join(differences[:20])
                    + "\nthe last steps:\n" + "\n".join(self.log))
            wrong = self.people if len(differences) > 40 else sorted({d.split("/")[0] for d in differences})
            time.sleep(0.05)

    def all_cursors(self, histories):
        alive = {c for history in histories.values() for c, (row, _) in history.items() if not row.quit}
        return {conversation_id: self.cursors(conversation_id) for conversation_id in alive}


def differ(device, histories, cursors):
    """How a device's view is not what the server holds, in words."""
    history = histories[device.user_id]
    for conversation_id in sorted(set(device.views) ^ set(history)):
        yield f"{conversation_id} is only on one side"
    for conversation_id in sorted(set(device.views) & set(history)):
        view, (row, messages) = device.views[conversation_id], history[conversation_id]
        of = f"{conversation_id}:"
        for sequence in sorted(set(view.messages) ^ set(messages)):
            yield f"{of} message {sequence} is only {'here' if sequence in view.messages else 'there'}"
        for sequence in sorted(set(view.messages) & set(messages)):
            here, there = view.messages[sequence], messages[sequence]
            # Nobody tells those who have left what is revoked later.
            if row.quit and state_of(there) == REVOKED and here.state == NORMAL:
                continue
            if shown(here) != shown(there):
                yield f"{of} message {sequence}: here {here} there {there}".replace("\n", " ")
        for field in ("do_not_disturb", "pinned", "quit", "quit_reason"):
            if getattr(view, field) != getattr(row, field):
                yield f"{of} {field} is {getattr(view, field)} here, {getattr(row, field)} there"
        if (view.read, view.init) != (row.read_sequence, row.init_sequence):
            yield f"{of} read {view.read}, init {view.init} here, {row.read_sequence}, {row.init_sequence} there"
        if view.unread(device.user_id) != row.unread and not row.quit:
            yield f"{of} {view.unread(device.user_id)} unread here, {row.unread} there"
        mentioned = view.mentioned(device.user_id)
        if mentioned not in (None, row.mentioned_sequence) and not row.quit:
            yield f"{of} called by name in {mentioned} here, in {row.mentioned_sequence} there"
        if view.newest() != max(row.init_sequence, row.max_sequence):
            yield f"{of} ends at {view.newest()} here, {row.max_sequence} there"
        if row.quit:
            continue
        for user_id, (delivered, read) in cursors[conversation_id].items():
            if user_id == device.user_id:
                continue
            # Whoever joined later starts there, which nobody is told.
            start = histories[user_id][conversation_id][0].init_sequence
            known = view.cursors.get(user_id, [0, 0])
            if [max(start, known[0]), max(start, known[1])] != [max(start, delivered), max(start, read)]:
                yield f"{of} {user_id} has got and read {known} here, {[delivered, read]} there"
