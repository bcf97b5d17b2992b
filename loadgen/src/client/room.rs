//! The client in the run's room: joining after every login, publishing, and judging what arrives.

use millrace_protocol::{Code, chat, command, frame::Flags};
use prost::Message;

use super::{Client, Context, NS_PER_MS, Pending, Request, Text};
use crate::{
    log::{FaultKind, Key, RoomGap},
    record::{Counter, Metric},
    room::Arrival,
};

/// Text messages (type 1).
const TYPE_TEXT: u32 = 1;
/// A refused join is asked for again after this, and a random part of as much again.
const JOIN_AGAIN_NS: u64 = 1_000 * NS_PER_MS;

impl Client {
    /// Asks to join, if this user is a member. After every login, since a session that ended has
    /// left its rooms.
    pub(super) fn join_room(&mut self, now_ns: u64, cx: &mut Context) {
        if !cx.population.is_room_member(self.user) {
            return;
        }
        self.seat = Some(Box::default());
        let join = chat::JoinRoom { room_id: cx.population.room_id() };
        let request_id = self.write(cx, command::JOIN_ROOM, Flags::NONE, &join.encode_to_vec());
        self.await_reply(request_id, now_ns, Request::Join);
    }

    pub(super) fn leave_room(&mut self, cx: &mut Context) {
        if self.seat.take().is_some_and(|seat| seat.is_joined()) {
            cx.seats -= 1;
        }
    }

    /// Publishes the next message of the schedule. Live messages do not wait: without a session it
    /// is counted as unsent.
    pub fn publish(&mut self, now_ns: u64, cx: &mut Context, intended_ns: u64) {
        let is_joined = self.seat.as_ref().is_some_and(|seat| seat.is_joined());
        if !self.is_ready() || !is_joined || !self.may_write() {
            cx.record.counters.add(Counter::RoomUnsent);
            return;
        }
        let number = cx.board.next();
        let text = Text { key: Key::new(self.user, number), intended_ns, written_ns: now_ns };
        let message = chat::RoomMessage {
            room_id: cx.population.room_id(),
            r#type: TYPE_TEXT,
            body: text.write(cx.settings.message_bytes),
            sender_id: String::new(),
        };
        cx.record.counters.add(Counter::RoomSent);
        let body = message.encode_to_vec();
        let request_id = self.write(cx, command::ROOM_MESSAGE, Flags::NONE, &body);
        self.await_reply(request_id, now_ns, Request::Publish { number, intended_ns });
    }

    /// The reply to a join or to a message. Answers whether it made sense.
    pub(super) fn room_reply(
        &mut self,
        now_ns: u64,
        cx: &mut Context,
        request_id: u32,
        body: &[u8],
    ) -> bool {
        let Ok(reply) = chat::RoomReply::decode(body) else { return false };
        let Some(pending) = self.take_pending(request_id) else { return false };
        if !matches!(pending.what, Request::Join | Request::Publish { .. }) {
            return false;
        }
        if reply.code != Code::Ok.number() {
            cx.record.counters.add_code(reply.code);
            self.room_refused(now_ns, cx, pending);
            return true;
        }
        match pending.what {
            Request::Join if self.seat.as_mut().is_some_and(|seat| seat.join(&cx.board)) => {
                cx.seats += 1;
                cx.record.counters.add(Counter::RoomJoins);
                cx.record.record(Metric::Join, now_ns - pending.sent_ns);
            }
            Request::Publish { intended_ns, .. } => {
                cx.record.counters.add(Counter::RoomAcked);
                cx.record.record(Metric::AckRoom, now_ns.saturating_sub(intended_ns));
            }
            _ => {}
        }
        true
    }

    pub(super) fn room_refused(&mut self, now_ns: u64, cx: &mut Context, pending: Pending) {
        match pending.what {
            Request::Join => {
                let wait_ns = JOIN_AGAIN_NS + cx.random.u64(0..JOIN_AGAIN_NS);
                self.busy().join_due_ns = now_ns + wait_ns;
            }
            Request::Publish { number, .. } => {
                cx.record.counters.add(Counter::RoomRefused);
                cx.board.doubt(number);
            }
            _ => {}
        }
    }

    pub(super) fn tick_room(&mut self, now_ns: u64, cx: &mut Context) {
        if let Some(busy) = &mut self.busy
            && now_ns >= busy.join_due_ns
        {
            busy.join_due_ns = u64::MAX;
            self.join_room(now_ns, cx);
        }
    }

    /// A message in a room. Answers whether it made sense.
    pub(super) fn room_message(&mut self, now_ns: u64, cx: &mut Context, body: &[u8]) -> bool {
        let Ok(message) = chat::RoomMessage::decode(body) else { return false };
        let user = self.user;
        let text = Text::parse(&message.body).filter(|text| {
            cx.population.is_publisher(text.key.sender())
                && text.key.counter() > 0
                && cx.population.user_index(&message.sender_id) == Some(text.key.sender())
                && cx.population.is_room(&message.room_id)
        });
        // What crosses our LOGOUT, and an echo to the publisher, are nobody's fault.
        let is_excused = !self.is_ready() || cx.population.is_publisher(user);
        if text.is_some() && is_excused {
            return true;
        }
        let (Some(text), Some(seat)) = (text, &mut self.seat) else {
            cx.log.faults.add(FaultKind::RoomWrong, || {
                let (room, sender) = (&message.room_id, &message.sender_id);
                format!("user {user}, room {room}: sender {sender}, {:.40}", message.body)
            });
            return true;
        };
        let number = text.key.counter();
        match seat.arrived(number) {
            Arrival::InOrder => {}
            Arrival::AfterHole(from, to) => cx.log.room_gaps.push(RoomGap { user, from, to }),
            Arrival::Again => {
                cx.log.faults.add(FaultKind::RoomDuplicated, || {
                    format!("user {user}: room message {number} twice")
                });
                return true;
            }
            Arrival::Late => {
                cx.log.arrived_late(user, number);
                cx.log.faults.add(FaultKind::RoomOutOfOrder, || {
                    format!("user {user}: room message {number} after a later one")
                });
                return true;
            }
        }
        cx.record.counters.add(Counter::RoomReceived);
        cx.record.record(Metric::DeliveryRoom, now_ns.saturating_sub(text.intended_ns));
        true
    }

    /// Room messages up to `written` that must still arrive here.
    pub fn owed_by_room(&self, cx: &Context, written: u32) -> Option<RoomGap> {
        // The publisher does not hear itself.
        let seat = self.seat.as_ref().filter(|_| !cx.population.is_publisher(self.user))?;
        let (from, to) = seat.owed(written)?;
        Some(RoomGap { user: self.user, from, to })
    }
}
