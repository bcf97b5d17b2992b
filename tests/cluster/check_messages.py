"""What the history says about messages: stored, once, without gaps, in order, to members alone. See checker.py.

The check is that of list-append: a conversation is a list, SEND_MESSAGE appends, PULL_MESSAGES reads, and every read, push and
reply must fit one list. What was sent and never acknowledged may be in it or not, but in one place only.
"""

from __future__ import annotations

import collections

STORED, ONCE = "acknowledged messages are stored", "a message is stored once"
GAPLESS, SAME, TIME = "sequences have no gap", "all see the same", "sequences follow time"
ORDER, ARRIVE, MEMBERS = "pushes are in order", "messages arrive", "only members see"
MADE_UP, CURSORS = "nothing is made up", "cursors move forward"


def check(events, verdict):
    Messages(verdict).go(events)


class Messages:
    def __init__(self, verdict):
        self.verdict = verdict
        # Conversation id -> user ids; a single chat is learnt from the first reply about it.
        self.members = {}
        self.conversation_of = {}
        # (sender, client message id) -> what was sent.
        self.sent = {}
        # The devices that did.
        self.sent_from = collections.defaultdict(set)
        # The same -> (conversation, sequence, message id) of its first good reply, and whether one was no duplicate.
        self.acknowledged = {}
        self.first_replies = collections.Counter()
        # (conversation, sequence) -> (message id, sender, client message id, text), and who said so first.
        self.places = {}
        # (sender, client message id) -> where it was seen.
        self.seen_at = {}
        # Conversation -> highest acknowledged sequence; (sender, client message id) -> that when it was first sent.
        self.highest = collections.Counter()
        self.floors = {}
        # Session -> conversation -> [highest pushed, seen at all on this session].
        self.pushed = collections.defaultdict(dict)
        self.session_owner = {}
        # Device -> conversation -> sequences.
        self.device_has = collections.defaultdict(lambda: collections.defaultdict(set))
        # (user, conversation) -> sequences of the last read; highest READ that was answered, and asked for.
        self.final_reads = {}
        self.read_answered = collections.Counter()
        self.read_asked = collections.Counter()
        self.final_cursors = {}
        self.connected = {}
        self.repeats = 0
        self.refused = collections.Counter()
        self.reports, self.topic = {}, None

    def go(self, events):
        for event in events:
            handler = getattr(self, "on_" + event["e"], None)
            if handler:
                handler(event)
        self.at_the_end()

    # --- one event after another ----------------------------------------------------------------

    def on_group(self, event):
        self.members[event["conversation"]] = set(event["members"])

    def on_login(self, event):
        self.session_owner[event["n"]] = (event["c"], event["user"])

    def on_send(self, event):
        key = (event["user"], event["cmid"])
        self.sent_from[key].add(event["c"])
        if key not in self.sent:
            self.sent[key] = event
            if (conversation := self.conversation_of.get(self.target(event))) is not None:
                self.floors[key] = self.highest[conversation]

    @staticmethod
    def target(event):
        to = event["to"]
        return ("group", to["group"]) if "group" in to else ("single", *sorted((event["user"], to["user"])))

    def on_reply(self, event):
        user = event["user"]
        key = (user, event["cmid"])
        if event["code"] != 0:
            self.refused[event["code"]] += 1
            return
        place = (event["conv"], event["seq"], event["mid"])
        sent = self.sent.get(key)
        if sent is None:
            self.verdict.broken(MADE_UP, f"{user} got a reply to {key[1]}, which was never sent")
            return
        target = self.target(sent)
        known = self.conversation_of.setdefault(target, event["conv"])
        if known != event["conv"]:
            self.verdict.broken(SAME, f"{target} was conversation {known} and then {event['conv']}")
        if target[0] == "single":
            self.members.setdefault(event["conv"], {target[1], target[2]})
        first = self.acknowledged.setdefault(key, place)
        self.verdict.saw(ONCE)
        if first != place:
            self.verdict.broken(ONCE, f"{user}'s {key[1]} was acknowledged as {first} and then as {place}")
        if not event["dup"]:
            self.first_replies[key] += 1
            if self.first_replies[key] > 1:
                self.verdict.broken(ONCE, f"{user}'s {key[1]} was acknowledged twice as new, at {first[:2]} and {place[:2]}")
        self.note(event["conv"], event["seq"], event["mid"], user, event["cmid"], sent["body"], f"the reply to {user}")
        self.device_has[event["c"]][event["conv"]].add(event["seq"])
        self.highest[event["conv"]] = max(self.highest[event["conv"]], event["seq"])
        if key in self.floors:
            self.verdict.saw(TIME)
            floor = self.floors.pop(key)
            if event["seq"] <= floor:
                self.verdict.broken(TIME, f"{key[1]} got {place[:2]} although {floor} was acknowledged before it was sent")

    def on_msgs(self, event):
        device, user, how = event["c"], event["user"], event["how"]
        for conversation, sequence, message_id, sender, cmid, body in event["list"]:
            self.verdict.saw(MEMBERS)
            if user not in self.members.get(conversation, (user,)) or conversation not in self.members:
                # A single chat whose sender never got a reply is known by what was sent.
                if not self.learn(conversation, sender, cmid) or user not in self.members[conversation]:
                    self.verdict.broken(MEMBERS, f"{user} got {conversation} {sequence} ({how})")
            self.note(conversation, sequence, message_id, sender, cmid, body, f"{device} ({how})")
            is_own = event["c"] in self.sent_from[sender, cmid]
            self.device_has_it(event, conversation, sequence, is_own)

    def device_has_it(self, event, conversation, sequence, is_own):
        if event["how"] == "final":
            return
        self.device_has[event["c"]][conversation].add(sequence)
        highest, seen = self.pushed[event["n"]].setdefault(conversation, [0, set()])
        if event["how"] == "push":
            self.verdict.saw(ORDER)
            if sequence in seen:
                self.repeats += 1
            elif sequence < highest and not is_own:
                # What a device has sent comes to it by the reply; if that was lost, a later catch-up pushes it.
                self.verdict.broken(ORDER, f"{event['c']} got {conversation} {sequence} after {highest}")
            self.pushed[event["n"]][conversation][0] = max(highest, sequence)
        seen.add(sequence)

    def learn(self, conversation, sender, cmid):
        sent = self.sent.get((sender, cmid))
        if sent is None or "group" in sent["to"]:
            return False
        target = self.target(sent)
        if self.conversation_of.setdefault(target, conversation) != conversation:
            return False
        self.members.setdefault(conversation, {target[1], target[2]})
        return True

    def note(self, conversation, sequence, message_id, sender, cmid, body, who):
        """Somebody has seen this message at this place."""
        self.verdict.saw(SAME)
        message = (message_id, sender, cmid, body)
        known, by = self.places.setdefault((conversation, sequence), (message, who))
        if known != message:
            self.verdict.broken(SAME, f"{conversation} {sequence} is {known[:3]} for {by} and {message[:3]} for {who}")
        self.verdict.saw(MADE_UP)
        sent = self.sent.get((sender, cmid))
        if sent is None:
            self.verdict.broken(MADE_UP, f"{who} saw {cmid or 'a message'} of {sender or 'nobody'} at {conversation} {sequence}, which nobody sent")
            return
        if sent["body"] != body:
            self.verdict.broken(MADE_UP, f"{who} saw another text in {cmid} of {sender} than was sent")
        place = (conversation, sequence, message_id)
        first = self.seen_at.setdefault((sender, cmid), place)
        if first != place:
            self.verdict.broken(ONCE, f"{sender}'s {cmid} is at {first} and at {place}")

    def on_read(self, event):
        key = (event["user"], event["conv"])
        self.read_asked[key] = max(self.read_asked[key], event["seq"])
        if event["code"] == 0:
            self.read_answered[key] = max(self.read_answered[key], event["seq"])

    def on_final(self, event):
        """What a member pulls when all is over."""
        key = (event["user"], event["conv"])
        self.final_reads[key] = event["sequences"]
        self.final_cursors[key] = event["read"]

    def on_report(self, event):
        self.reports[event["payload"]] = event["acknowledged"]

    def on_topic(self, event):
        self.topic = collections.Counter(event["payloads"])

    def on_device_end(self, event):
        self.connected[event["c"]] = event["user"] if event["connected"] else None

    # --- when all is known ----------------------------------------------------------------------

    def at_the_end(self):
        self.check_reads()
        self.check_acknowledged()
        self.check_arrivals()
        self.check_cursors()
        notes = self.verdict.notes
        notes["messages"] = (
            f"{len(self.sent):,} sent, {len(self.acknowledged):,} acknowledged, "
            f"{len(self.seen_at.keys() - self.acknowledged.keys()):,} stored without the sender knowing, "
            f"{self.repeats:,} pushed again on the same connection"
        )
        if self.topic is not None:
            acknowledged = {payload for payload, is_acknowledged in self.reports.items() if is_acknowledged}
            notes["reports"] = (
                f"{len(acknowledged):,} acknowledged at the edge, of them {len(acknowledged - self.topic.keys()):,} not on the topic; "
                f"{sum(self.topic.values()) - len(self.topic):,} there twice"
            )
            if made_up := self.topic.keys() - self.reports.keys():
                self.verdict.broken(MADE_UP, f"the topic has reports that nobody sent: {sorted(made_up)[:3]}")
        if self.refused:
            notes["sends refused, by code"] = dict(sorted(self.refused.items()))

    def check_reads(self):
        for conversation, members in sorted(self.members.items()):
            for user in sorted(members):
                sequences = self.final_reads.get((user, conversation))
                top = self.top(conversation)
                if sequences is None:
                    if top:
                        self.verdict.broken(GAPLESS, f"{user} could not read {conversation} in the end, which has {top} messages")
                    continue
                self.verdict.saw(GAPLESS, len(sequences))
                missing = sorted(set(range(1, top + 1)) - set(sequences))
                if missing:
                    self.verdict.broken(GAPLESS, f"{user} reads no {shorten(missing)} in {conversation}, whose newest is {top}")
                if len(set(sequences)) != len(sequences):
                    self.verdict.broken(ONCE, f"{user} reads a sequence of {conversation} twice")

    def top(self, conversation):
        """The newest message that any member reads in the end."""
        users = self.members[conversation]
        return max((max(self.final_reads.get((user, conversation)) or [0]) for user in users), default=0)

    def check_acknowledged(self):
        stored = collections.defaultdict(set)
        for (_, conversation), sequences in self.final_reads.items():
            stored[conversation].update(sequences)
        for (user, cmid), (conversation, sequence, _) in self.acknowledged.items():
            self.verdict.saw(STORED)
            # That it is this message which stands there is looked at under "all see the same".
            if sequence not in stored[conversation]:
                self.verdict.broken(STORED, f"{user}'s {cmid} was acknowledged as {conversation} {sequence} and is not there")

    def check_arrivals(self):
        of_user = collections.defaultdict(list)
        for conversation, members in self.members.items():
            for user in members:
                of_user[user].append(conversation)
        for device, user in self.connected.items():
            for conversation in of_user.get(user, ()):
                sequences = self.final_reads.get((user, conversation)) or []
                self.verdict.saw(ARRIVE, len(sequences))
                missing = sorted(set(sequences) - self.device_has[device][conversation])
                if missing:
                    self.verdict.broken(ARRIVE, f"{device}, connected, never got {shorten(missing)} of {conversation}")

    def check_cursors(self):
        for (user, conversation), read in self.final_cursors.items():
            if read is None:
                continue
            key = (user, conversation)
            if not self.read_asked[key] and not read:
                continue
            self.verdict.saw(CURSORS)
            if read < self.read_answered[key]:
                self.verdict.broken(CURSORS, f"{user} had read {conversation} up to {self.read_answered[key]}, and it stands at {read}")
            if read > self.read_asked[key]:
                self.verdict.broken(CURSORS, f"{user} asked for {self.read_asked[key]} at most in {conversation}, and it stands at {read}")


def shorten(numbers):
    """A few of many numbers."""
    text = ", ".join(map(str, numbers[:5]))
    return text if len(numbers) <= 5 else f"{text} … ({len(numbers)} in all)"
