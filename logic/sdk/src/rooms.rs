//! Who is in which live room, so that a room's message goes only to the shards that have members.
//!
//! The gateway keeps the same membership for its own fan-out; this table is the truth while this
//! process lives. Gateways keep theirs over a break and list it when they are back: for sessions
//! known here the difference is stated, for sessions of an earlier life of logic it is taken over
//! ([`Rooms::reconcile`]). So rooms survive the restart of either end but the gateway's own, whose
//! clients have lost their connections and join anew.
//!
//! A membership costs one entry of some 24 bytes with the session; a room counts its members by
//! shard and knows none of them, so joining and leaving take the same time in every room.
//!
//! Changes are announced under the table's lock, so the gateway sees them in the same order.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use millrace_protocol::{
    Code,
    link::{Encoding, RoomMembers},
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::backend::Refused;
use crate::session::{GatewayKey, SessionAddress};

/// The bounds of the table, from the settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoomsMax {
    /// Rooms with members.
    pub(crate) rooms: usize,
    /// Members of one room.
    pub(crate) members: u64,
    /// Rooms of one session.
    pub(crate) per_session: usize,
}

/// A room's members on one shard, by encoding.
#[derive(Clone, Copy, Default)]
struct Count {
    protobuf: u32,
    json: u32,
}

impl Count {
    fn of(&mut self, json: bool) -> &mut u32 {
        if json { &mut self.json } else { &mut self.protobuf }
    }
}

struct Room {
    name: Arc<str>,
    members: u64,
    shards: FxHashMap<GatewayKey, Count>,
}

/// The rooms of one session, as places in the table. Nearly every session is in one or none.
enum Held {
    One { json: bool, room: u32 },
    Many(Box<(bool, Vec<u32>)>),
}

impl Held {
    fn rooms(&self) -> &[u32] {
        match self {
            Self::One { room, .. } => std::slice::from_ref(room),
            Self::Many(many) => &many.1,
        }
    }

    fn is_json(&self) -> bool {
        match self {
            Self::One { json, .. } => *json,
            Self::Many(many) => many.0,
        }
    }

    fn add(&mut self, added: u32) {
        match self {
            Self::One { json, room } => *self = Self::Many(Box::new((*json, vec![*room, added]))),
            Self::Many(many) => many.1.push(added),
        }
    }

    /// Takes one out; true if it was the last.
    fn remove(&mut self, removed: u32) -> bool {
        match self {
            Self::One { .. } => return true,
            Self::Many(many) => many.1.retain(|room| *room != removed),
        }
        if let [room] = self.rooms() {
            *self = Self::One { json: self.is_json(), room: *room };
        }
        false
    }
}

/// A shard that has members of a room, and which encodings they want.
pub(crate) struct Receiver {
    pub(crate) gateway: GatewayKey,
    pub(crate) protobuf: bool,
    pub(crate) json: bool,
}

/// What a gateway has to be told about one room after a break.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) join: Vec<u64>,
    pub(crate) leave: Vec<u64>,
}

/// The table. Its bounds come with each join.
#[derive(Default)]
pub(crate) struct Rooms {
    /// Names are chosen by clients, so the hash is one that they cannot aim at.
    places: HashMap<Arc<str>, u32>,
    rooms: Vec<Option<Room>>,
    free: Vec<u32>,
    sessions: FxHashMap<GatewayKey, FxHashMap<u64, Held>>,
    /// Rooms whose members have changed in number since this was taken; `None` where nobody takes it.
    changed: Option<FxHashSet<Arc<str>>>,
}

impl Rooms {
    /// A table that keeps which rooms have changed, if that is going to be taken.
    pub(crate) fn new(keeps_changed: bool) -> Self {
        Self { changed: keeps_changed.then(FxHashSet::default), ..Self::default() }
    }

    /// The rooms whose members have changed in number since the last call, with the members now.
    pub(crate) fn take_changed(&mut self) -> Vec<(Arc<str>, u64)> {
        let changed = self.changed.as_mut().map(std::mem::take).unwrap_or_default();
        changed.into_iter().map(|name| (name.clone(), self.members(&name))).collect()
    }

    /// Every room with its members.
    pub(crate) fn all(&self) -> Vec<(Arc<str>, u64)> {
        self.rooms.iter().flatten().map(|room| (room.name.clone(), room.members)).collect()
    }

    /// Adds a member; joining twice changes nothing. Returns the members now and whether this one
    /// is new.
    pub(crate) fn join(
        &mut self,
        room_id: &str,
        session: SessionAddress,
        encoding: Encoding,
        max: RoomsMax,
    ) -> Result<(u64, bool), Refused> {
        let full = |reason: String| Err(Refused::new(Code::OverCapacity, reason));
        let place = self.places.get(room_id).copied();
        let held = self.held(session);
        if let Some(place) = place
            && held.contains(&place)
        {
            return Ok((self.members(room_id), false));
        }
        if held.len() >= max.per_session {
            return full(format!("a session may be in {} rooms at most", max.per_session));
        }
        if self.members(room_id) >= max.members {
            return full(format!("this room has its {} members already", max.members));
        }
        if place.is_none() && self.places.len() >= max.rooms {
            return full("there are too many rooms already".to_owned());
        }
        let json = encoding == Encoding::Json;
        let place = place.unwrap_or_else(|| self.create(room_id));
        let Some(room) = self.rooms.get_mut(place as usize).and_then(Option::as_mut) else {
            return Err(Refused::from(Code::Internal));
        };
        room.members += 1;
        if let Some(changed) = &mut self.changed {
            changed.insert(room.name.clone());
        }
        *room.shards.entry(session.gateway).or_default().of(json) += 1;
        let members = room.members;
        match self.sessions.entry(session.gateway).or_default().entry(session.session_id) {
            Entry::Occupied(mut held) => held.get_mut().add(place),
            Entry::Vacant(vacant) => {
                vacant.insert(Held::One { json, room: place });
            }
        }
        Ok((members, true))
    }

    /// Takes a member out. Returns the members now and whether it was one.
    pub(crate) fn leave(&mut self, room_id: &str, session: SessionAddress) -> (u64, bool) {
        let Some(place) = self.places.get(room_id).copied() else { return (0, false) };
        let was = self.held(session).contains(&place);
        if was && let Some(shard) = self.sessions.get_mut(&session.gateway) {
            let mut json = false;
            if let Entry::Occupied(mut held) = shard.entry(session.session_id) {
                json = held.get().is_json();
                if held.get_mut().remove(place) {
                    held.remove();
                }
            }
            if shard.is_empty() {
                self.sessions.remove(&session.gateway);
            }
            self.uncount(place, session.gateway, json);
        }
        (self.members(room_id), was)
    }

    /// Takes a session that ended out of all its rooms; the gateway does the same by itself.
    pub(crate) fn forget(&mut self, session: SessionAddress) {
        let Some(shard) = self.sessions.get_mut(&session.gateway) else { return };
        let Some(held) = shard.remove(&session.session_id) else { return };
        if shard.is_empty() {
            self.sessions.remove(&session.gateway);
        }
        for place in held.rooms() {
            self.uncount(*place, session.gateway, held.is_json());
        }
    }

    /// How many members a room has, on all gateways.
    pub(crate) fn members(&self, room_id: &str) -> u64 {
        self.room(room_id).map_or(0, |room| room.members)
    }

    /// The shards that a message to the room must reach.
    pub(crate) fn receivers(&self, room_id: &str) -> Vec<Receiver> {
        let Some(room) = self.room(room_id) else { return Vec::new() };
        let receiver = |(gateway, count): (&GatewayKey, &Count)| Receiver {
            gateway: *gateway,
            protobuf: count.protobuf > 0,
            json: count.json > 0,
        };
        room.shards.iter().map(receiver).collect()
    }

    /// The sessions in a room. Takes as long as there are sessions in any room.
    pub(crate) fn sessions(&self, room_id: &str) -> Vec<(GatewayKey, u64)> {
        let Some(place) = self.places.get(room_id) else { return Vec::new() };
        let of_shard = |(gateway, sessions): (&GatewayKey, &FxHashMap<u64, Held>)| {
            let inside = sessions.iter().filter(|(_, held)| held.rooms().contains(place));
            inside.map(|(session_id, _)| (*gateway, *session_id)).collect::<Vec<_>>()
        };
        self.sessions.iter().flat_map(of_shard).collect()
    }

    /// Whether the session is in the room.
    pub(crate) fn is_member(&self, room_id: &str, session: SessionAddress) -> bool {
        self.places.get(room_id).is_some_and(|place| self.held(session).contains(place))
    }

    /// Compares what a shard listed with this table and returns what it must be told.
    ///
    /// `adopt` gives the encoding of a session that this process has just met: its memberships are
    /// taken over as far as the bounds allow. Of all other sessions this table is right, and what
    /// is listed of a session that ended is passed over: the gateway has forgotten it too.
    pub(crate) fn reconcile(
        &mut self,
        gateway: GatewayKey,
        listed: Vec<RoomMembers>,
        address: impl Fn(u64) -> SessionAddress,
        adopt: impl Fn(u64) -> Option<Encoding>,
        max: RoomsMax,
    ) -> HashMap<String, Difference> {
        let mut differences: HashMap<String, Difference> = HashMap::new();
        let mut there: HashMap<String, FxHashSet<u64>> = HashMap::new();
        for RoomMembers { room_id, session_ids } in listed {
            for session_id in &session_ids {
                let session = address(*session_id);
                let is_in = match adopt(*session_id) {
                    Some(encoding) => self.join(&room_id, session, encoding, max).is_ok(),
                    None => self.is_member(&room_id, session),
                };
                if !is_in {
                    differences.entry(room_id.clone()).or_default().leave.push(*session_id);
                }
            }
            there.entry(room_id).or_default().extend(session_ids);
        }
        for (session_id, held) in self.sessions.get(&gateway).into_iter().flatten() {
            for place in held.rooms() {
                let Some(room) = self.rooms.get(*place as usize).and_then(Option::as_ref) else {
                    continue;
                };
                if !there.get(&*room.name).is_some_and(|members| members.contains(session_id)) {
                    let room_id = room.name.as_ref().to_owned();
                    differences.entry(room_id).or_default().join.push(*session_id);
                }
            }
        }
        differences
    }

    fn room(&self, room_id: &str) -> Option<&Room> {
        let place = self.places.get(room_id)?;
        self.rooms.get(*place as usize)?.as_ref()
    }

    fn held(&self, session: SessionAddress) -> &[u32] {
        let shard = self.sessions.get(&session.gateway);
        shard.and_then(|shard| shard.get(&session.session_id)).map_or(&[], Held::rooms)
    }

    fn create(&mut self, room_id: &str) -> u32 {
        let name: Arc<str> = room_id.into();
        let room = Room { name: Arc::clone(&name), members: 0, shards: FxHashMap::default() };
        let place = match self.free.pop() {
            Some(place) => {
                self.rooms[place as usize] = Some(room);
                place
            }
            None => {
                self.rooms.push(Some(room));
                self.rooms.len() as u32 - 1
            }
        };
        self.places.insert(name, place);
        place
    }

    fn uncount(&mut self, place: u32, gateway: GatewayKey, json: bool) {
        let Some(entry) = self.rooms.get_mut(place as usize) else { return };
        let Some(room) = entry else { return };
        room.members -= 1;
        if let Some(changed) = &mut self.changed {
            changed.insert(room.name.clone());
        }
        if let Entry::Occupied(mut shard) = room.shards.entry(gateway) {
            *shard.get_mut().of(json) -= 1;
            if shard.get().protobuf + shard.get().json == 0 {
                shard.remove();
            }
        }
        if room.members == 0 {
            self.places.remove(&room.name);
            *entry = None;
            self.free.push(place);
        }
    }
}

#[cfg(test)]
mod tests;
