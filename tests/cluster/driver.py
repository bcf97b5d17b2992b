"""The clients of a run, in a process of their own: who talks to whom, how often, and the record of it. Started by run.py.

It takes one line of JSON from standard input (what is where, and how much), prints {"ready": true} when everybody is connected,
and obeys one word a line: `stop` (nothing new is said; some users leave for good), `finish` (waits for what is on its way, asks
every member for every message, and ends).
"""

from __future__ import annotations

import asyncio
import collections
import json
import random
import sys

from client import Device, Lost
from history import Writer, digest, now
from millrace_client import PULL_MESSAGES, REPORT, chat, session

BODY_BYTES = (20, 400)
REPEATS = 0.1
ARRIVAL_S = 30.0


class Town:
    """All devices, and what they share."""

    def __init__(self, plan):
        self.seed, self.plan = plan["seed"], plan
        self.gateways, self.jwt_secret = plan["gateways"], plan["jwt_secret"]
        self.websocket_share = plan.get("websocket_share", 0.3)
        self.history = Writer(plan["history"])
        self.chance = random.Random(f"{self.seed}/town")
        self.sessions = 0
        self.tasks = set()
        self.stopped = self.over = False
        self.said = 0
        self.counts = collections.Counter()
        # One user in four has two devices; strangers belong to nothing.
        self.devices = []
        for index, user in enumerate(plan["users"] + plan["strangers"]):
            numbers = (1, 2) if index % 4 == 0 else (1,)
            self.devices += [Device(self, user, number, alone=len(numbers) == 1) for number in numbers]
        self.of_user = collections.defaultdict(list)
        for device in self.devices:
            self.of_user[device.user].append(device)
        users = plan["users"]
        self.friends = {user: [users[(index + step) % len(users)] for step in (1, 2, 5)] for index, user in enumerate(users)}
        self.groups_of = collections.defaultdict(list)
        for group in plan["groups"]:
            for user in group["members"]:
                self.groups_of[user].append(group["group_id"])

    # --- the record -----------------------------------------------------------------------------

    def write(self, kind, **fields):
        self.history.event(kind, **fields)

    def messages(self, number, device, how, messages):
        rows = [[m.conversation_id, m.sequence, m.message_id, m.sender_id, m.client_message_id, digest(m.body)] for m in messages]
        if rows:
            self.write("msgs", n=number, c=device.name, user=device.user, how=how, list=rows)

    def request(self, what, intended, answered, code):
        """For availability: every request, with the moment at which it was meant to be asked."""
        took = None if answered is None else round(answered - intended, 4)
        self.counts[what, took is not None and took <= 1.0] += 1
        self.write("request", what=what, at=round(intended, 4), took=took, code=code)

    def next_session(self):
        self.sessions += 1
        return self.sessions

    def background(self, coroutine):
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task):
        self.tasks.discard(task)
        if not task.cancelled() and task.exception():
            print(json.dumps({"error": repr(task.exception())}), flush=True)

    # --- the load -------------------------------------------------------------------------------

    async def talk(self):
        """Messages at a steady rate whatever becomes of them, so that an outage is seen in full."""
        rate, at = self.plan["rate"], now()
        while not self.stopped:
            at += self.chance.expovariate(rate)
            if (wait := at - now()) > 0:
                await asyncio.sleep(wait)
            user = self.chance.choice(self.plan["users"])
            if self.groups_of[user] and self.chance.random() < 0.3:
                to = {"group": self.chance.choice(self.groups_of[user])}
            else:
                to = {"user": self.chance.choice(self.friends[user])}
            device = self.chance.choice(self.of_user[user])
            if device.gone or device.away_until > now():
                # The user has put it away; nobody waits for an answer.
                continue
            self.said += 1
            cmid = f"{self.seed}-{user}-{self.said}"
            body = f"{cmid} " + "x" * self.chance.randint(*BODY_BYTES)
            self.background(self.say(device, to, body, at, cmid))

    async def say(self, device, to, body, at, cmid):
        """One message; some are sent again though they were acknowledged, also by another device."""
        if await device.send(to, body, at, cmid) and self.chance.random() < REPEATS:
            await asyncio.sleep(self.chance.uniform(0, 6))
            if not self.stopped:
                await self.chance.choice(self.of_user[device.user]).send(to, body, now(), cmid, is_repeat=True)

    async def report(self):
        """REPORTs for a business service. They are acknowledged at the edge, before they are durable, so losses are counted, not judged."""
        number = 0
        while not self.stopped:
            await asyncio.sleep(self.chance.expovariate(self.plan["reports"]))
            opened = self.chance.choice(self.devices).session
            if opened is not None:
                number += 1
                self.background(self.report_one(opened, f"{self.seed}-report-{number}"))

    async def report_one(self, opened, payload):
        acknowledged = False
        try:
            reply = await opened.ask(REPORT, chat.Report(destination=self.plan["topic"], payload=payload.encode()))
            acknowledged = not isinstance(reply, session.Error)
        except (Lost, TimeoutError):
            pass
        self.write("report", payload=payload, acknowledged=acknowledged)

    async def churn(self):
        """Devices go away and come back, or come in elsewhere before they have left."""
        while not self.stopped:
            await asyncio.sleep(self.chance.expovariate(self.plan["churn"] * len(self.devices) / 60))
            device = self.chance.choice(self.devices)
            if self.chance.random() < 0.5:
                device.switch_now = True
            elif device.away_until < now():
                device.away_until = now() + self.chance.uniform(0.5, 8)

    # --- its phases -----------------------------------------------------------------------------

    async def begin(self):
        for device in self.devices:
            self.background(device.run())
        for device in self.devices:
            await asyncio.wait_for(device.online.wait(), 60)
        self.background(self.talk())
        self.background(self.churn())
        self.background(self.report())

    def stop(self):
        """Nothing new is said; every eighth user leaves."""
        self.stopped = True
        for index, user in enumerate(self.plan["users"]):
            if index % 8 == 3:
                for device in self.of_user[user]:
                    device.gone = True

    async def finish(self):
        rows = await self.everybody_lists()
        deadline = now() + ARRIVAL_S
        while now() < deadline and not all(
            device.gone or device.top.get(conversation, 0) >= row.max_sequence
            for device in self.devices for conversation, row in rows.get(device.user, {}).items()
        ):
            await asyncio.sleep(0.2)
        for device in self.devices:
            opened = device.session
            self.write("device_end", c=device.name, user=device.user, connected=opened is not None, n=opened and opened.number)
        for user in self.plan["users"] + self.plan["strangers"]:
            await self.read_all(user, rows.get(user, {}))
        self.over = True
        for device in self.devices:
            device.gone = True
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def everybody_lists(self):
        """User -> conversation -> its row, for all users."""
        found = {}
        for user, devices in self.of_user.items():
            if devices[0].gone:
                # They come back for this, on a device that nobody has seen.
                devices.append(guest := Device(self, user, 9, alone=False))
                self.background(guest.run())
        for user, devices in self.of_user.items():
            reply, deadline = None, now() + 20
            while reply is None and now() < deadline:
                opened = next((device.session for device in devices if device.session), None)
                reply = await Device.ask_conversations(opened, 0) if opened else None
                if reply is None:
                    await asyncio.sleep(0.2)
            if reply is not None:
                found[user] = {row.conversation_id: row for row in reply.conversations}
        return found

    async def read_all(self, user, rows):
        for conversation, row in rows.items():
            sequences, first, failures = [], 1, 0
            while failures < 20:
                opened = next((device.session for device in self.of_user[user] if device.session), None)
                reply = await self.page(opened, conversation, first) if opened else None
                if reply is None:
                    failures += 1
                    await asyncio.sleep(0.5)
                    continue
                self.messages(opened.number, opened.device, "final", reply.messages)
                sequences += [message.sequence for message in reply.messages]
                if reply.complete or not reply.messages:
                    self.write("final", user=user, conv=conversation, sequences=sequences, read=row.read_sequence)
                    break
                first = sequences[-1] + 1

    @staticmethod
    async def page(opened, conversation, first):
        try:
            reply = await opened.ask(PULL_MESSAGES, chat.PullMessages(conversation_id=conversation, from_sequence=first, limit=100))
        except Exception:  # Whatever it was, it is asked again.
            return None
        return None if isinstance(reply, session.Error) or reply.code else reply


async def main():
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    town = Town(json.loads(await lines.readline()))
    await town.begin()
    print(json.dumps({"ready": True, "devices": len(town.devices)}), flush=True)
    while word := (await lines.readline()).decode().strip():
        if word == "stop":
            town.stop()
        elif word == "finish":
            await town.finish()
            break
    town.history.close()
    print(json.dumps({"done": True, "said": town.said}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
