//! One frame for many: to a list of sessions, to a room, to everybody; and how its sends are spread
//! over the turns of the loop.
//!
//! A frame is encoded once for each form and its receivers get a reference. Queueing is cheap and
//! done at once for lists and rooms; sending is not, so those sends are *deferred*: handed out after
//! all others and at most [`Settings::sends_per_turn_max`](crate::Settings) between two calls of
//! [`Engine::tick`]. So whoever else has something to say waits for a slice and never for a crowd.
//!
//! A broadcast is not even queued at once. A walk goes round over the slots of all connections, a
//! slice a turn, and gives each session the broadcasts it has not had. Every session remembers the
//! last one it got, in a byte; before logic's next word to a session, the session catches up. So each
//! broadcast is in its place for everybody, whoever logs in after it does not get it, and several of
//! them share the walk and the sends.
//!
//! Bounds: `broadcasts_max` frames, and a reference for each session of a slice. When one more
//! broadcast comes, the oldest is finished first, in that turn.

use std::collections::VecDeque;

use millrace_protocol::{frame::Flags, link::BroadcastFrame};

use super::{
    Engine,
    from_logic::{header, without_json},
    outbound::Shared,
};
use crate::{
    Dropped, Effect,
    connection::{Facts, Phase},
    effect::ConnectionId,
    link::Home,
};

/// More broadcasts than this could not be told apart by a byte.
const BROADCASTS_CEILING: usize = 100;

/// Slots that are looked at for each send of a turn: empty ones and strangers cost time, too.
const VISITS_PER_SEND: u32 = 16;

/// The fan-outs of a shard that are under way.
#[derive(Debug, Default)]
pub(super) struct FanOuts {
    /// Connections whose sends are deferred. May name some that were sent to meanwhile; at most
    /// twice as many entries as connections.
    deferred: VecDeque<ConnectionId>,
    /// What is left of this turn.
    sends_left: u32,
    visits_left: u32,
    /// In the order of their arrival.
    broadcasts: VecDeque<Broadcast>,
    /// The number of the latest broadcast.
    latest: u8,
    /// Where the walk stands: its round, and the next slot.
    at: (u64, u32),
}

#[derive(Debug)]
struct Broadcast {
    protobuf: Shared,
    json: Shared,
    /// Over when the walk is here: a round after where it stood when this one came.
    end: (u64, u32),
    /// What logic gets back when it is over, and on which stream.
    body_bytes: usize,
    stream: (Home, u64),
}

impl FanOuts {
    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.deferred.is_empty() && self.broadcasts.is_empty()
    }

    /// Bytes of memory, without what is queued.
    pub(super) fn bytes(&self) -> usize {
        let bodies: usize = self.broadcasts.iter().map(|broadcast| broadcast.body_bytes).sum();
        self.deferred.capacity() * size_of::<ConnectionId>()
            + self.broadcasts.capacity() * size_of::<Broadcast>()
            + bodies
    }

    /// The number of the latest broadcast: a new session has had them all.
    pub(super) const fn latest(&self) -> u8 {
        self.latest
    }
}

impl Engine {
    /// A turn of the loop begins: goes on with what is under way.
    pub(super) fn fan_out_on(&mut self) {
        let sends = self.settings.sends_per_turn_max.max(1);
        self.fan_outs.sends_left = sends;
        self.fan_outs.visits_left = sends.saturating_mul(VISITS_PER_SEND);
        self.walk();
    }

    /// Everybody who is logged in now.
    pub(super) fn broadcast_frame(&mut self, home: Home, frame: BroadcastFrame) {
        let body_bytes = frame.body_protobuf.len() + frame.body_json.len();
        let bytes = frame.body_protobuf.len().max(frame.body_json.len());
        let Some((command, flags)) = header(frame.command, frame.flags, bytes) else {
            self.owe(home, body_bytes);
            return self.counters.drop_one(Dropped::LinkContract);
        };
        let most = (self.settings.broadcasts_max as usize).clamp(1, BROADCASTS_CEILING);
        while self.fan_outs.broadcasts.len() >= most {
            self.visit();
        }
        let stream = self.links.get(home).map_or(0, |link| link.stream);
        let (round, slot) = self.fan_outs.at;
        self.fan_outs.latest = self.fan_outs.latest.wrapping_add(1);
        self.fan_outs.broadcasts.push_back(Broadcast {
            protobuf: Shared::new(command, without_json(flags), frame.body_protobuf),
            json: Shared::new(command, flags.with(Flags::JSON), frame.body_json),
            end: (round + 1, slot),
            body_bytes,
            stream: (home, stream),
        });
        self.walk();
    }

    /// Gives broadcasts to the next sessions, as far as this turn allows.
    fn walk(&mut self) {
        while !self.fan_outs.broadcasts.is_empty()
            && self.fan_outs.visits_left > 0
            && self.fan_outs.deferred.len() < self.fan_outs.sends_left as usize
        {
            self.fan_outs.visits_left -= 1;
            self.visit();
        }
    }

    /// One step of the walk.
    fn visit(&mut self) {
        let (round, slot) = self.fan_outs.at;
        self.fan_outs.at = if slot < self.connections.slots() {
            if let Some(id) = self.id_in_slot(slot) {
                self.catch_up(id);
            }
            (round, slot + 1)
        } else {
            (round + 1, 0)
        };
        while let Some(oldest) = self.fan_outs.broadcasts.front()
            && self.fan_outs.at >= oldest.end
            && let Some(done) = self.fan_outs.broadcasts.pop_front()
        {
            done.protobuf.release(&mut self.works);
            done.json.release(&mut self.works);
            let (home, stream) = done.stream;
            if self.links.get(home).is_some_and(|link| link.stream == stream) {
                self.owe(home, done.body_bytes);
            }
        }
    }

    /// Gives a session the broadcasts that came before what it is to get now.
    #[inline]
    pub(super) fn catch_up(&mut self, id: ConnectionId) {
        if !self.fan_outs.broadcasts.is_empty() {
            self.give_missing(id);
        }
    }

    fn give_missing(&mut self, id: ConnectionId) {
        let under_way = self.fan_outs.broadcasts.len();
        let latest = self.fan_outs.latest;
        let Some(connection) = self.get_mut(id).filter(|connection| connection.is_active()) else {
            return;
        };
        // Those that are over, everybody has had.
        let missing = usize::from(latest.wrapping_sub(connection.broadcasts_seen)).min(under_way);
        connection.broadcasts_seen = latest;
        for place in under_way - missing..under_way {
            let Some(connection) = self.connections.get(id.slot(), id.generation()) else { return };
            if !connection.is_active() {
                // It was too slow for the one before.
                return;
            }
            let broadcast = &mut self.fan_outs.broadcasts[place];
            let shared = match connection.has(Facts::JSON) {
                true => &mut broadcast.json,
                false => &mut broadcast.protobuf,
            };
            if shared.is_empty() {
                continue;
            }
            let command = shared.command();
            match shared.wire_for(connection, &mut self.works) {
                Some(wire) => self.push_wire(id, wire, command),
                None => self.cannot_carry(id, 0),
            }
        }
    }

    /// Asks for a connection's send after all others.
    pub(super) fn defer_send(&mut self, id: ConnectionId) {
        let Some(connection) = self.get_mut(id) else { return };
        let is_asked_for = connection.has(Facts::SENDING)
            || connection.has(Facts::SEND_SCHEDULED)
            || connection.has(Facts::SEND_DEFERRED);
        if is_asked_for || connection.phase == Phase::Closed {
            return;
        }
        connection.set(Facts::SEND_DEFERRED, true);
        self.fan_outs.deferred.push_back(id);
        if self.fan_outs.deferred.len() > 64 + 2 * self.connections.len() as usize {
            self.forget_sent();
        }
    }

    /// Takes those out of the deferred that were sent to meanwhile, or are named twice.
    fn forget_sent(&mut self) {
        let mut deferred = std::mem::take(&mut self.fan_outs.deferred);
        deferred.retain(|id| {
            let connection = self.get_mut(*id);
            connection.is_some_and(|connection| connection.take(Facts::SEND_DEFERRED))
        });
        for id in &deferred {
            if let Some(connection) = self.get_mut(*id) {
                connection.set(Facts::SEND_DEFERRED, true);
            }
        }
        self.fan_outs.deferred = deferred;
    }

    /// The next deferred send, if this turn has one left.
    pub(super) fn next_deferred(&mut self) -> Option<Effect> {
        while self.fan_outs.sends_left > 0 {
            let Some(id) = self.fan_outs.deferred.pop_front() else {
                // A crowd's list is not kept.
                if self.fan_outs.deferred.capacity() > 4096 {
                    self.fan_outs.deferred = VecDeque::new();
                }
                return None;
            };
            let Some(connection) = self.get_mut(id) else { continue };
            if !connection.take(Facts::SEND_DEFERRED) || connection.phase == Phase::Closed {
                continue;
            }
            connection.set(Facts::SEND_SCHEDULED, true);
            let socket = connection.socket();
            self.fan_outs.sends_left -= 1;
            return Some(Effect::Send { connection: id, socket });
        }
        None
    }
}
