"""What people do in the scenario: messages, files, friends, groups, coming and going. Each act is done through one of their
devices, checks its answer, and is noted in the town; it is False when it is not possible at the moment.
"""

import hashlib

from google.protobuf import json_format

from device import (
    ANNOUNCE_TO_GROUP, CREATE_GROUP, DISSOLVE_GROUP, INVITE_TO_GROUP, LEAVE_GROUP, MUTE_MEMBERS, NORMAL, NO_STORE,
    REMOVE_FROM_GROUP, SET_GROUP_ROLE, state_of,
)
from millrace_client import NOT_FOUND, NOT_PERMITTED, TYPING, api_messages, chat

NOT_FRIENDS, BLOCKED, MUTED, ROLE_TOO_LOW = 23, 24, 25, 26
TEXT, IMAGE = 1, 3
FOREVER_MS = 4_102_444_800_000
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\6\0\0\0\x1f\x15\xc4\x89"


class Sent:
    """What the server said of a message that it has stored."""

    def __init__(self, sender, body, reply):
        self.sender, self.body = sender, body
        self.conversation_id, self.sequence, self.message_id = reply.conversation_id, reply.sequence, reply.message_id


class Group:
    """A group as those who run it mean it to be."""

    def __init__(self, group_id, conversation_id, owner, members):
        self.id, self.conversation_id, self.owner = group_id, conversation_id, owner
        self.members, self.administrators, self.muted, self.gone = set(members), set(), set(), set()
        self.dissolved = False


class Acts:
    """See the module. Mixed into [`Town`], which holds what is noted."""

    def step(self, kind, tries=1):
        """Lets a random device that is online do this; True if it was done by one of so many."""
        candidates = self.online()
        for device in self.random.sample(candidates, min(tries, len(candidates))):
            device.pump()
            if device.online and getattr(self, kind)(device):
                self.done[kind] += 1
                self.log.append(f"{kind} by {device}")
                return True
        return False

    def new_send(self, **fields):
        return chat.SendMessage(client_message_id=f"c-{next(self.numbers)}", **{"type": TEXT, **fields})

    def friend_of(self, device):
        """A friend who takes messages from this user."""
        me = device.user_id
        friends = sorted(other for other in self.friends[me] if (other, me) not in self.blocks)
        return self.random.choice(friends) if friends else None

    def group_of(self, user_id, may_speak=True):
        groups = [g for g in self.groups if user_id in g.members and not (may_speak and user_id in g.muted)]
        return self.random.choice(groups) if groups else None

    def target(self, device):
        """{"user_id": …} or {"group_id": …}, where this user may speak."""
        if self.random.random() < 0.5 and (group := self.group_of(device.user_id)):
            return {"group_id": group.id}
        friend = self.friend_of(device)
        return {"user_id": friend} if friend else None

    def say(self, device, **fields):
        """Sends something that is allowed and notes that it was stored."""
        send = self.new_send(**fields)
        reply = device.send(send)
        assert reply.code == 0, f"{device}: {reply}"
        self.note(device.user_id, send, reply)
        return send, reply

    def note(self, sender, send, reply):
        key = (sender, send.client_message_id)
        assert key not in self.sent, f"{key} was stored twice"
        self.sent[key] = Sent(sender, send.body, reply)

    def write(self, device):
        target = self.target(device)
        if target is None:
            return False
        self.say(device, body=f"hello {next(self.numbers)}", **target)
        return True

    def write_without_counting(self, device):
        target = self.target(device)
        if target is None:
            return False
        self.say(device, body="by the way", does_not_count=True, **target)
        return True

    def answer(self, device):
        """A reply to something, which calls its author by name."""
        found = self.some_message(device, lambda message: message.type == TEXT and message.conversation_type == 2)
        if not found:
            return False
        conversation_id, message = found
        group = next(g for g in self.groups if g.conversation_id == conversation_id)
        if device.user_id in group.muted:
            return False
        send = self.new_send(
            group_id=group.id, body=f"@{message.sender_id} yes", quote=chat.Quote(sequence=message.sequence),
            mentions=chat.Mentions(user_ids=[message.sender_id]))
        reply = device.send(send)
        if reply.code == NOT_FOUND and self.is_gone(device, conversation_id, [message.sequence]):
            self.refused.add((device.user_id, send.client_message_id))
            return False
        assert reply.code == 0, f"{device}: {reply}"
        self.note(device.user_id, send, reply)
        return True

    def is_gone(self, device, conversation_id, sequences):
        """Whether one of these was revoked or deleted, which the device need not have heard yet."""
        return any(
            (conversation_id, sequence) in self.revoked or (device.user_id, conversation_id, sequence) in self.deleted
            for sequence in sequences)

    def write_and_repeat(self, device):
        """The answer was lost, so the app sends again."""
        target = self.target(device)
        if target is None:
            return False
        send, reply = self.say(device, body="once", **target)
        again = device.send(send, flags=4)
        assert again.duplicate and (again.message_id, again.sequence) == (reply.message_id, reply.sequence)
        return True

    def write_what_expires(self, device):
        target = self.target(device)
        if target is None:
            return False
        self.say(device, body="not for long", ttl_ms=self.random.choice([500, 1_500, 3_600_000]), **target)
        return True

    def write_live(self, device):
        friend = self.friend_of(device)
        if friend is None:
            return False
        reply = device.send(self.new_send(user_id=friend, body="live"), flags=NO_STORE)
        assert reply.code == 0 and reply.not_stored, reply
        return True

    def send_a_file(self, device):
        target = self.target(device)
        if target is None:
            return False
        content = PNG + self.random.randbytes(self.random.randrange(1, 40_000))
        name = f"picture-{next(self.numbers)}.png"
        info = self.http.ok("POST", f"/v1/upload?name={name}", content, device.token, "image/png")
        self.files[info["attachment_id"]] = hashlib.sha256(content).hexdigest()
        file = chat.Attachment(
            attachment_id=info["attachment_id"], type=info["type"], name=info["name"], url=info["url"], size=int(info["size"]))
        self.say(device, type=IMAGE, attachment=file, **target)
        return True

    def open_a_file(self, device):
        found = self.some_message(device, lambda message: message.type == IMAGE)
        if not found:
            return False
        self.download(device, found[1].attachment)
        return True

    def download(self, device, file):
        status, content = self.http.call("GET", file.url, token=device.token)
        assert status == 200 and len(content) == file.size, (device, status, file)
        assert hashlib.sha256(content).hexdigest() == self.files[file.attachment_id]

    def some_message(self, device, fits=lambda message: True):
        """A message that this device shows, in a conversation that it may still write in."""
        found = [
            (conversation_id, message)
            for conversation_id, view in device.views.items() if not view.quit and self.is_open(device, conversation_id)
            for message in view.messages.values()
            if state_of(message) == NORMAL and not message.system and not message.expires_at_ms and fits(message)
        ]
        return self.random.choice(found) if found else None

    def is_open(self, device, conversation_id):
        """The device may be a moment behind what others have done."""
        groups = [g for g in self.groups if g.conversation_id == conversation_id]
        return all(device.user_id in g.members for g in groups)

    def look(self, device):
        """Reads what is unread."""
        unread = [c for c, view in device.views.items() if not view.quit and view.messages and self.is_open(device, c)]
        if not unread:
            return False
        conversation_id = self.random.choice(unread)
        reply, sequence = device.mark_read(conversation_id)
        assert reply.code == 0, f"{device}: {reply}"
        key = (device.user_id, conversation_id)
        self.read[key] = max(self.read[key], sequence)
        return True

    def revoke(self, device):
        found = self.some_message(device, lambda message: message.sender_id == device.user_id)
        if not found:
            return False
        conversation_id, message = found
        reply = device.revoke(conversation_id, message.sequence)
        assert reply.code == 0, f"{device}: {reply}"
        self.revoked.add((conversation_id, message.sequence))
        return True

    def revoke_what_another_said(self, device):
        """The owner of a group may; a member may not."""
        others = lambda message: message.conversation_type == 2 and message.sender_id != device.user_id
        found = self.some_message(device, others)
        if not found:
            return False
        conversation_id, message = found
        group = next(g for g in self.groups if g.conversation_id == conversation_id)
        if device.user_id in group.administrators:
            return False
        reply = device.revoke(conversation_id, message.sequence)
        if group.owner != device.user_id:
            assert (reply.code, bool(reply.reason)) == (ROLE_TOO_LOW, True), f"{device}: {reply}"
            return False
        assert reply.code == 0, f"{device}: {reply}"
        self.revoked.add((conversation_id, message.sequence))
        return True

    def delete(self, device):
        found = self.some_message(device)
        if not found:
            return False
        conversation_id, message = found
        assert device.delete(conversation_id, [message.sequence]).code == 0
        self.deleted.add((device.user_id, conversation_id, message.sequence))
        return True

    def forward(self, device, merged=False):
        found = self.some_message(device)
        target = self.target(device)
        if not found or target is None:
            return False
        conversation_id, message = found
        view = device.views[conversation_id]
        more = [
            sequence for sequence, one in sorted(view.messages.items())
            if sequence > message.sequence and state_of(one) == NORMAL and not one.system and not one.expires_at_ms
        ][:2]
        forward = chat.Forward(
            conversation_id=conversation_id, sequences=[message.sequence, *more], merged=merged,
            client_message_id=f"f-{next(self.numbers)}", title="What was said" if merged else "", **target)
        reply = device.forward(forward)
        if reply.code == NOT_FOUND and self.is_gone(device, conversation_id, forward.sequences):
            return False
        assert (reply.code, reply.count) == (0, 0 if merged else 1 + len(more)), f"{device}: {reply}"
        for sequence in range(reply.sequence - max(1, reply.count) + 1, reply.sequence + 1):
            one = device.views[reply.conversation_id].messages[sequence]
            stored = Sent(device.user_id, one.body, one)
            self.sent[(device.user_id, f"{forward.client_message_id}/{sequence}")] = stored
        return True

    def forward_as_one(self, device):
        return self.forward(device, merged=True)

    def set_do_not_disturb(self, device):
        return self.change_settings(device, "do_not_disturb")

    def pin(self, device):
        return self.change_settings(device, "pinned")

    def change_settings(self, device, setting):
        views = [c for c, view in device.views.items() if view.messages and not view.quit and self.is_open(device, c)]
        if not views:
            return False
        conversation_id = self.random.choice(views)
        value = not getattr(device.views[conversation_id], setting)
        assert device.update(conversation_id, **{setting: value}).code == 0
        self.settings[(device.user_id, conversation_id, setting)] = value
        return True

    def type_something(self, device):
        friend = self.friend_of(device)
        views = [c for c, view in device.views.items() if view.messages and c.startswith("s:")]
        if friend is None or not views:
            return False
        device.post(TYPING, chat.Typing(conversation_id=self.random.choice(views)), wants_reply=False)
        return True

    def refuse(self, device, code, **fields):
        send = self.new_send(body="not to be heard", **fields)
        reply = device.send(send)
        assert (reply.code, bool(reply.reason)) == (code, True), f"{device}: {reply}"
        self.refused.add((device.user_id, send.client_message_id))

    def write_to_a_stranger(self, device):
        others = sorted(set(self.people) - self.friends[device.user_id] - {device.user_id})
        other = self.random.choice(others)
        code = BLOCKED if (other, device.user_id) in self.blocks else NOT_FRIENDS
        self.refuse(device, code, user_id=other)
        return True

    def write_to_a_group_of_others(self, device):
        groups = [g for g in self.groups if device.user_id not in g.members and not g.dissolved]
        if not groups:
            return False
        self.refuse(device, NOT_PERMITTED, group_id=self.random.choice(groups).id)
        return True

    def block(self, device):
        """Blocks a friend, who is refused from then on; or takes a block back."""
        mine = sorted(pair for pair in self.blocks if pair[0] == device.user_id)
        if mine and self.random.random() < 0.5:
            _, other = self.random.choice(mine)
            self.http.ok("DELETE", f"/v1/users/me/blocks/{other}", token=device.token)
            self.blocks.discard((device.user_id, other))
            return True
        others = sorted(o for o in self.friends[device.user_id] if (device.user_id, o) not in self.blocks and self.online(o))
        if not others:
            return False
        other = self.random.choice(others)
        self.http.ok("PUT", f"/v1/users/me/blocks/{other}", {}, device.token)
        self.blocks.add((device.user_id, other))
        self.refuse(self.random.choice(self.online(other)), BLOCKED, user_id=device.user_id)
        return True

    def end_a_friendship(self, device):
        friends = sorted(self.friends[device.user_id])
        if len(friends) < 3:
            return False
        other = self.random.choice(friends)
        self.http.ok("DELETE", f"/v1/users/me/friends/{other}", token=device.token)
        self.friends[device.user_id].discard(other)
        self.friends[other].discard(device.user_id)
        return True

    # --- groups -----------------------------------------------------------------------------------

    def act(self, device, command, message):
        reply = device.request(command, message)
        assert reply.code == 0 and reply.changed, f"{device}: {message}: {reply}"
        return reply

    def found_a_group(self, device, size=None):
        if size is None and len(self.groups) >= 12:
            return False
        size = size or self.random.randrange(3, 9)
        others = self.random.sample(sorted(set(self.people) - {device.user_id}), size - 1)
        group_id = f"group-{next(self.numbers)}"
        create = chat.CreateGroup(group_id=group_id, name=f"The {group_id}", members=others)
        reply = self.act(device, CREATE_GROUP, create)
        self.groups.append(Group(group_id, reply.conversation_id, device.user_id, {device.user_id, *others}))
        return True

    def own_group(self, device):
        groups = [g for g in self.groups if g.owner == device.user_id and not g.dissolved]
        return self.random.choice(groups) if groups else None

    def mute(self, device):
        """Silences a member, who is refused from then on; or lets them speak again."""
        group = self.own_group(device)
        if not group:
            return False
        if group.muted and self.random.random() < 0.5:
            other = self.random.choice(sorted(group.muted))
            # Whoever left meanwhile is not muted by name.
            if other not in group.members:
                return False
            self.act(device, MUTE_MEMBERS, chat.MuteMembers(group_id=group.id, user_ids=[other]))
            group.muted.discard(other)
            return True
        others = sorted(o for o in group.members - group.muted - {group.owner} if self.online(o))
        if not others:
            return False
        other = self.random.choice(others)
        self.act(device, MUTE_MEMBERS, chat.MuteMembers(group_id=group.id, user_ids=[other], until_ms=FOREVER_MS))
        group.muted.add(other)
        self.refuse(self.random.choice(self.online(other)), MUTED, group_id=group.id)
        return True

    def remove(self, device):
        """Kicks a member out of a group, who is refused from then on."""
        group = self.own_group(device)
        others = sorted(o for o in group.members - {group.owner} if self.online(o)) if group else []
        if len(others) < 2:
            return False
        other = self.random.choice(others)
        self.act(device, REMOVE_FROM_GROUP, chat.RemoveFromGroup(group_id=group.id, user_ids=[other]))
        group.members.discard(other)
        group.administrators.discard(other)
        group.gone.add(other)
        self.refuse(self.random.choice(self.online(other)), NOT_PERMITTED, group_id=group.id)
        return True

    def leave(self, device):
        groups = [g for g in self.groups if device.user_id in g.members and g.owner != device.user_id and len(g.members) > 4]
        if not groups:
            return False
        group = self.random.choice(groups)
        self.act(device, LEAVE_GROUP, chat.LeaveGroup(group_id=group.id))
        group.members.discard(device.user_id)
        group.administrators.discard(device.user_id)
        group.gone.add(device.user_id)
        return True

    def invite(self, device):
        group = self.group_of(device.user_id, may_speak=False)
        if not group or group.dissolved:
            return False
        # Whoever was there before comes back more often than somebody new.
        new = sorted(group.gone) or sorted(set(self.people) - group.members)
        if not new:
            return False
        other = self.random.choice(new)
        self.act(device, INVITE_TO_GROUP, chat.InviteToGroup(group_id=group.id, user_ids=[other]))
        group.members.add(other)
        group.gone.discard(other)
        # Who comes back starts anew.
        for setting in ("do_not_disturb", "pinned"):
            self.settings.pop((other, group.conversation_id, setting), None)
        return True

    def announce(self, device):
        group = self.own_group(device)
        if not group:
            return False
        announcement = chat.AnnounceToGroup(group_id=group.id, text=f"News {next(self.numbers)}")
        self.act(device, ANNOUNCE_TO_GROUP, announcement)
        return True

    def appoint(self, device):
        group = self.own_group(device)
        others = sorted(group.members - group.administrators - group.muted - {group.owner}) if group else []
        if not others:
            return False
        other = self.random.choice(others)
        self.act(device, SET_GROUP_ROLE, chat.SetGroupRole(group_id=group.id, user_id=other, role=1))
        group.administrators.add(other)
        return True

    def dissolve(self, device):
        group = self.own_group(device)
        if not group or sum(not g.dissolved for g in self.groups) <= 6:
            return False
        self.act(device, DISSOLVE_GROUP, chat.DissolveGroup(group_id=group.id))
        group.dissolved, group.gone = True, group.gone | group.members
        group.members = set()
        return True

    # --- coming and going -------------------------------------------------------------------------

    def go_offline(self, device):
        if len(self.online()) < len(self.all_devices()) // 2:
            return False
        device.disconnect()
        return True

    def come_online(self, _device):
        away = [device for device in self.all_devices() if not device.online]
        if not away:
            return False
        self.connect(self.random.choice(away))
        return True

    def kick(self, device):
        """An administrator ends the sessions of somebody, whose devices wait for a person."""
        if len(self.online()) < len(self.all_devices()) // 2:
            return False
        devices = self.online(device.user_id)
        self.http.ok("POST", f"/v1/users/{device.user_id}/kick", {"reason": "a tidy house"})
        for one in devices:
            self.wait_for(lambda: one.pump() is not None and not one.online, f"{one} hears that it was kicked")
            assert one.kicked == "a tidy house", f"{one}: {one.kicked!r}"
        return True

    def a_service_writes(self, device):
        """A business service in somebody's name: all of their devices see it."""
        friend = self.friend_of(device)
        if friend is None:
            return False
        send = self.new_send(user_id=friend, body="on your behalf")
        body = json_format.MessageToDict(send, preserving_proto_field_name=True)
        answer = self.http.ok("POST", "/v1/messages", {"sender_id": device.user_id, **body})
        reply = json_format.ParseDict(answer, api_messages.SendMessageResponse())
        self.note(device.user_id, send, reply)
        return True
