//! Who is in which live room, so that a room's message goes only to the shards that have members.
//!
//! The gateway keeps the same membership for its own fan-out; this table is the truth. A gateway
//! forgets its memberships when it opens a stream, and is told them again for the sessions that
//! live on. This process starting again empties all rooms: clients join anew.
//!
//! Changes are announced under the table's lock, so the gateway sees them in the same order.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use millrace_protocol::{Code, link::Encoding};
use rustc_hash::FxHashMap;

use crate::backend::Refused;
use crate::session::{GatewayKey, SessionAddress};

/// A room's members on one shard.
#[derive(Default)]
struct ShardMembers {
    sessions: FxHashMap<u64, Encoding>,
    json: usize,
}

#[derive(Default)]
struct Room {
    members: u64,
    shards: FxHashMap<GatewayKey, ShardMembers>,
}

/// A shard that has members of a room, and which encodings they want.
pub(crate) struct Receiver {
    pub(crate) gateway: GatewayKey,
    pub(crate) protobuf: bool,
    pub(crate) json: bool,
}

/// The table. Its bounds come with each join.
#[derive(Default)]
pub(crate) struct Rooms {
    rooms: FxHashMap<Arc<str>, Room>,
    by_session: FxHashMap<SessionAddress, Vec<Arc<str>>>,
}

impl Rooms {
    /// Adds a member; joining twice changes nothing. Returns the members now and whether this one
    /// is new.
    pub(crate) fn join(
        &mut self,
        room_id: &str,
        session: SessionAddress,
        encoding: Encoding,
        rooms_max: usize,
        rooms_per_session_max: usize,
    ) -> Result<(u64, bool), Refused> {
        let known = self.rooms.get_key_value(room_id).map(|(name, _)| Arc::clone(name));
        if known.is_none() && self.rooms.len() >= rooms_max {
            return Err(Refused::new(Code::OverCapacity, "there are too many rooms already"));
        }
        let joined = self.by_session.get(&session).map_or(0, Vec::len);
        let name = known.unwrap_or_else(|| room_id.into());
        if self.is_member(room_id, session) {
            return Ok((self.members(room_id), false));
        }
        if joined >= rooms_per_session_max {
            let reason = format!("a session may be in {rooms_per_session_max} rooms at most");
            return Err(Refused::new(Code::OverCapacity, reason));
        }
        let room = self.rooms.entry(Arc::clone(&name)).or_default();
        let shard = room.shards.entry(session.gateway).or_default();
        shard.sessions.insert(session.session_id, encoding);
        shard.json += usize::from(encoding == Encoding::Json);
        room.members += 1;
        let members = room.members;
        self.by_session.entry(session).or_default().push(name);
        Ok((members, true))
    }

    /// Takes a member out. Returns the members now and whether it was one.
    pub(crate) fn leave(&mut self, room_id: &str, session: SessionAddress) -> (u64, bool) {
        let was = self.remove(room_id, session);
        if was && let Entry::Occupied(mut names) = self.by_session.entry(session) {
            names.get_mut().retain(|name| &**name != room_id);
            if names.get().is_empty() {
                names.remove();
            }
        }
        (self.members(room_id), was)
    }

    /// Takes a session that ended out of all its rooms; the gateway does the same by itself.
    pub(crate) fn forget(&mut self, session: SessionAddress) {
        for name in self.by_session.remove(&session).unwrap_or_default() {
            self.remove(&name, session);
        }
    }

    /// How many members a room has, on all gateways.
    pub(crate) fn members(&self, room_id: &str) -> u64 {
        self.rooms.get(room_id).map_or(0, |room| room.members)
    }

    /// The shards that a message to the room must reach.
    pub(crate) fn receivers(&self, room_id: &str) -> Vec<Receiver> {
        let Some(room) = self.rooms.get(room_id) else { return Vec::new() };
        let receiver = |(gateway, members): (&GatewayKey, &ShardMembers)| Receiver {
            gateway: *gateway,
            protobuf: members.sessions.len() > members.json,
            json: members.json > 0,
        };
        room.shards.iter().map(receiver).collect()
    }

    /// Every membership of one shard's sessions, by room.
    pub(crate) fn of_gateway(&self, gateway: GatewayKey) -> Vec<(Arc<str>, Vec<u64>)> {
        let members = |(name, room): (&Arc<str>, &Room)| {
            let shard = room.shards.get(&gateway)?;
            Some((Arc::clone(name), shard.sessions.keys().copied().collect()))
        };
        self.rooms.iter().filter_map(members).collect()
    }

    /// Whether the session is in the room.
    pub(crate) fn is_member(&self, room_id: &str, session: SessionAddress) -> bool {
        let shard = self.rooms.get(room_id).and_then(|room| room.shards.get(&session.gateway));
        shard.is_some_and(|shard| shard.sessions.contains_key(&session.session_id))
    }

    fn remove(&mut self, room_id: &str, session: SessionAddress) -> bool {
        let Some(room) = self.rooms.get_mut(room_id) else { return false };
        let Some(shard) = room.shards.get_mut(&session.gateway) else { return false };
        let Some(encoding) = shard.sessions.remove(&session.session_id) else { return false };
        shard.json -= usize::from(encoding == Encoding::Json);
        room.members -= 1;
        if shard.sessions.is_empty() {
            room.shards.remove(&session.gateway);
        }
        if room.members == 0 {
            self.rooms.remove(room_id);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::{Code, link::Encoding};

    use super::Rooms;
    use crate::session::{GatewayKey, SessionAddress};

    fn session(gateway: u32, session_id: u64) -> SessionAddress {
        SessionAddress { gateway: GatewayKey(gateway), shard: 0, session_id }
    }

    #[test]
    fn a_room_reaches_only_shards_and_encodings_that_have_members() {
        let mut rooms = Rooms::default();
        rooms.join("r", session(1, 1), Encoding::Protobuf, 9, 9).expect("joined");
        rooms.join("r", session(2, 1), Encoding::Json, 9, 9).expect("joined");
        assert_eq!(rooms.join("r", session(2, 1), Encoding::Json, 9, 9), Ok((2, false)));
        let mut receivers = rooms.receivers("r");
        receivers.sort_by_key(|receiver| receiver.gateway);
        let seen: Vec<_> = receivers.iter().map(|r| (r.gateway.0, r.protobuf, r.json)).collect();
        assert_eq!(seen, [(1, true, false), (2, false, true)]);
        assert_eq!(rooms.leave("r", session(1, 1)), (1, true));
        assert_eq!(rooms.leave("r", session(1, 1)), (1, false));
        assert_eq!(rooms.receivers("r").len(), 1);
    }

    #[test]
    fn a_session_that_ends_leaves_nothing_behind() {
        let mut rooms = Rooms::default();
        for room in ["a", "b", "c"] {
            rooms.join(room, session(1, 7), Encoding::Protobuf, 9, 9).expect("joined");
        }
        rooms.forget(session(1, 7));
        assert!(rooms.rooms.is_empty() && rooms.by_session.is_empty());
    }

    #[test]
    fn both_bounds_refuse_the_next_join() {
        let mut rooms = Rooms::default();
        rooms.join("a", session(1, 1), Encoding::Protobuf, 2, 1).expect("joined");
        let own = rooms.join("b", session(1, 1), Encoding::Protobuf, 2, 1).expect_err("full");
        rooms.join("b", session(1, 2), Encoding::Protobuf, 2, 1).expect("joined");
        let all = rooms.join("c", session(1, 3), Encoding::Protobuf, 2, 1).expect_err("full");
        assert_eq!((own.code, all.code), (Code::OverCapacity, Code::OverCapacity));
        assert_eq!(rooms.rooms.len(), 2);
    }
}
