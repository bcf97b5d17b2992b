//! What logic says: frames for sessions and rooms, decisions, memberships, ends of sessions.
//!
//! Logic is trusted with content but not with correctness: what breaks the contract, or names a
//! session that has ended, is counted and skipped. Any logic may send to any session of the shard
//! and close it; who is in which room only the logic says that the session is at home with.

use millrace_protocol::{
    Code,
    frame::Flags,
    limits,
    link::{
        CloseSession, ConnectResponse, HelloReply, RoomFrame, RoomMembership, SendFrame,
        logic_event::Kind,
    },
};

use super::{Engine, closing::Farewell, outbound::Shared};
use crate::{Dropped, LinkId, Now, effect::ConnectionId, link::Home, room::Full};

impl Engine {
    /// A batch from logic.
    pub fn from_logic(&mut self, now: Now, link: LinkId, batch: ConnectResponse) {
        self.now = now;
        let events = batch.events.len() as u64;
        self.counters.link_events_in += events;
        let home = Home::at(link);
        let Some(active) = self.links.get_mut(home) else {
            self.counters.dropped[Dropped::LinkContract as usize] += events;
            return;
        };
        // The number of an empty batch means nothing.
        if events > 0 {
            if batch.sequence != active.sequence_expected {
                self.counters.link_sequence_gaps += 1;
            }
            active.sequence_expected = batch.sequence.saturating_add(events);
        }
        for event in batch.events {
            match event.kind {
                Some(kind) => self.logic_event(home, kind),
                None => self.counters.drop_one(Dropped::LinkContract),
            }
        }
        if let Some(credit) = batch.credit
            && let Some(active) = self.links.get_mut(home)
        {
            active.give_back(credit);
        }
        self.resume_waiting(home);
    }

    fn logic_event(&mut self, home: Home, kind: Kind) {
        let is_ready = self.links.get(home).is_some_and(|link| link.is_ready);
        if let Kind::HelloReply(reply) = kind {
            return self.hello_reply(home, &reply);
        }
        if !is_ready {
            return self.counters.drop_one(Dropped::LinkContract);
        }
        match kind {
            Kind::LoginResult(result) => self.login_result(home, result),
            Kind::RefreshResult(result) => self.refresh_result(result),
            Kind::SendFrame(frame) => self.send_frame(home, frame),
            Kind::RoomFrame(frame) => self.room_frame(home, frame),
            Kind::BroadcastFrame(frame) => self.broadcast_frame(home, frame),
            Kind::RoomMembership(change) => self.room_membership(home, &change),
            Kind::CloseSession(close) => self.close_session(&close),
            Kind::Draining(draining) => self.logic_leaves(home, &draining),
            Kind::HelloReply(_) => {}
        }
    }

    fn hello_reply(&mut self, home: Home, reply: &HelloReply) {
        match self.links.get_mut(home) {
            Some(link) if !link.is_ready => {
                link.ready(reply.window.unwrap_or_default(), reply.takes_moves);
            }
            _ => return self.counters.drop_one(Dropped::LinkContract),
        }
        self.balance();
    }

    pub(super) fn owe(&mut self, home: Home, body_bytes: usize) {
        if let Some(link) = self.links.get_mut(home) {
            link.owe(body_bytes);
        }
    }

    fn send_frame(&mut self, home: Home, frame: SendFrame) {
        self.owe(home, frame.body.len());
        let Some((command, flags)) = header(frame.command, frame.flags, frame.body.len()) else {
            return self.counters.drop_one(Dropped::LinkContract);
        };
        if let [session_id] = frame.session_ids[..] {
            let id = ConnectionId::from_raw(session_id);
            self.catch_up(id);
            if !self.is_active(id) {
                self.counters.drop_one(Dropped::SessionUnknown);
            } else if frame.request_id != 0 && !self.answer_request(id, frame.request_id) {
                self.counters.drop_one(Dropped::RequestUnknown);
            } else {
                self.delivery_probe.begin(id.raw(), 0, self.now.monotonic_ms);
                self.push_frame(id, command, flags, frame.request_id, &frame.body);
            }
            return;
        }
        if frame.request_id != 0 {
            // A reply belongs to one session.
            return self.counters.drop_one(Dropped::LinkContract);
        }
        let mut shared = Shared::new(command, flags, frame.body);
        for session_id in frame.session_ids {
            let id = ConnectionId::from_raw(session_id);
            self.catch_up(id);
            if self.is_active(id) {
                self.push_shared(id, &mut shared);
            } else {
                self.counters.drop_one(Dropped::SessionUnknown);
            }
        }
        shared.release(&mut self.works);
    }

    fn room_frame(&mut self, home: Home, frame: RoomFrame) {
        self.owe(home, frame.body_protobuf.len() + frame.body_json.len());
        let bytes = frame.body_protobuf.len().max(frame.body_json.len());
        let Some((command, flags)) = header(frame.command, frame.flags, bytes) else {
            return self.counters.drop_one(Dropped::LinkContract);
        };
        let Some(room) = self.rooms.find(&frame.room_id) else { return };
        let mut protobuf = Shared::new(command, without_json(flags), frame.body_protobuf);
        let mut json = Shared::new(command, flags.with(Flags::JSON), frame.body_json);
        // From the last to the first, because a slow consumer is removed on the way.
        for index in (0..self.rooms.members_of(room).len()).rev() {
            let Some(slot) = self.rooms.members_of(room).get(index).copied() else { continue };
            let Some(id) = self.id_in_slot(slot) else { continue };
            if id.raw() == frame.except_session_id {
                continue;
            }
            self.catch_up(id);
            let shared = if self.encoding_is_json(id) { &mut json } else { &mut protobuf };
            if !shared.is_empty() {
                self.push_shared(id, shared);
            }
        }
        protobuf.release(&mut self.works);
        json.release(&mut self.works);
    }

    /// Of sessions that are at home with this logic alone: the rooms of one that has moved were listed
    /// to its new home, and what crossed that would never be heard there. That holds for one that is on
    /// its way back to this logic, too, as long as it has not been announced.
    fn room_membership(&mut self, home: Home, change: &RoomMembership) {
        for session_id in &change.join_session_ids {
            self.join_room(home, ConnectionId::from_raw(*session_id), &change.room_id);
        }
        for session_id in &change.leave_session_ids {
            let id = ConnectionId::from_raw(*session_id);
            let Some(connection) = self.get(id).filter(|connection| connection.is_active()) else {
                continue;
            };
            if !connection.is_announced_to(home) {
                self.counters.drop_one(Dropped::NotHome);
                continue;
            }
            let held = self.memberships.of(connection.rooms);
            if let Some(position) = self.rooms.position(&change.room_id, held) {
                self.leave_room_at(id, position);
            }
        }
    }

    fn join_room(&mut self, home: Home, id: ConnectionId, room_id: &str) {
        let Some(connection) = self.get(id).filter(|connection| connection.is_active()) else {
            return self.counters.drop_one(Dropped::SessionUnknown);
        };
        if !connection.is_announced_to(home) {
            return self.counters.drop_one(Dropped::NotHome);
        }
        let held = self.memberships.of(connection.rooms);
        let has_room = held.len() < self.settings.rooms_per_connection_max as usize;
        if self.rooms.position(room_id, held).is_some() {
            return;
        }
        let joined = if has_room { self.rooms.join(room_id, id.slot()) } else { Err(Full) };
        match joined {
            Ok(membership) => {
                let connection = self.connections.at_mut(id.slot()).expect("found above");
                self.memberships.add(&mut connection.rooms, membership);
            }
            Err(Full) => {
                self.counters.drop_one(Dropped::RoomLimit);
                let reason = "too many rooms; this one was not joined";
                self.error(id, 0, Code::OverCapacity, reason, 0);
            }
        }
        self.count_rooms();
    }

    /// Removes the session from the room at this position of its own list.
    pub(super) fn leave_room_at(&mut self, id: ConnectionId, position: usize) {
        let Some(connection) = self.connections.get_mut(id.slot(), id.generation()) else { return };
        let Some(left) = self.memberships.remove(&mut connection.rooms, position) else { return };
        if let Some(moved) = self.rooms.leave(left)
            && let Some(connection) = self.connections.at(moved.member)
        {
            self.memberships.apply(connection.rooms, moved);
        }
        self.count_rooms();
    }

    fn count_rooms(&mut self) {
        self.counters.rooms = u64::from(self.rooms.len());
        self.counters.room_members = self.rooms.members();
    }

    fn close_session(&mut self, close: &CloseSession) {
        let id = ConnectionId::from_raw(close.session_id);
        if !self.is_active(id) {
            return self.counters.drop_one(Dropped::SessionUnknown);
        }
        self.catch_up(id);
        let known = Code::from_number(close.code).unwrap_or(Code::Kicked);
        let reason = if close.reason.is_empty() { known.sentence() } else { &close.reason };
        self.close(id, close.code, Farewell::Kick { reason });
    }
}

pub(super) fn without_json(flags: Flags) -> Flags {
    Flags::from_bits(flags.bits() & !Flags::JSON.bits()).unwrap_or(Flags::NONE)
}

/// The header's command and flags, if they can be written.
pub(super) fn header(command: u32, flags: u32, body_bytes: usize) -> Option<(u16, Flags)> {
    if body_bytes > limits::BODY_BYTES_MAX_CEILING as usize {
        return None;
    }
    let flags = Flags::from_bits(u8::try_from(flags).ok()?)?;
    Some((u16::try_from(command).ok()?, flags))
}
