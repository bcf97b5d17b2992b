//! Who is in which room on this shard, for fan-out.
//!
//! Logic decides about memberships; this table only keeps them. A room exists while it has
//! members. Leaving is O(1): each member knows its place in the room's list.

use std::collections::BTreeMap;

use crate::{effect::ConnectionId, slab::Slab};

/// A room, for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoomId((u32, u32));

/// One membership, kept by the session: which room, and the place in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    room: (u32, u32),
    place: u32,
}

/// A member's place has changed because another one left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Who.
    pub(crate) member: ConnectionId,
    room: (u32, u32),
    place: u32,
}

#[derive(Debug)]
struct Room {
    name: Box<str>,
    members: Vec<ConnectionId>,
}

/// Why somebody could not join: the table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// All rooms of a shard.
#[derive(Debug)]
pub(crate) struct Rooms {
    /// Ordered, not hashed: names are chosen by clients, and a tree has no bad case.
    by_name: BTreeMap<Box<str>, (u32, u32)>,
    rooms: Slab<Room>,
    members: u64,
}

impl Rooms {
    pub(crate) const fn new(rooms_max: u32) -> Self {
        Self { by_name: BTreeMap::new(), rooms: Slab::new(rooms_max), members: 0 }
    }

    /// Rooms that have members.
    pub(crate) const fn len(&self) -> u32 {
        self.rooms.len()
    }

    /// Memberships of all rooms.
    pub(crate) const fn members(&self) -> u64 {
        self.members
    }

    /// Whether `held` contains a membership of the room, and which.
    pub(crate) fn position(&self, name: &str, held: &[Membership]) -> Option<usize> {
        let room = self.by_name.get(name)?;
        held.iter().position(|membership| membership.room == *room)
    }

    /// Adds a member that is not in the room.
    pub(crate) fn join(&mut self, name: &str, member: ConnectionId) -> Result<Membership, Full> {
        let room = match self.by_name.get(name) {
            Some(room) => *room,
            None => {
                let entry = Room { name: name.into(), members: Vec::new() };
                let room = self.rooms.insert(entry).map_err(|_| Full)?;
                self.by_name.insert(name.into(), room);
                room
            }
        };
        let members = &mut self.rooms.get_mut(room.0, room.1).expect("a named room exists").members;
        members.push(member);
        self.members += 1;
        Ok(Membership { room, place: members.len() as u32 - 1 })
    }

    /// Removes a member. Whoever took over its place must hear of it: [`Moved::apply`].
    pub(crate) fn leave(&mut self, membership: Membership) -> Option<Moved> {
        let (slot, generation) = membership.room;
        let room = self.rooms.get_mut(slot, generation).expect("a member's room exists");
        room.members.swap_remove(membership.place as usize);
        self.members -= 1;
        let moved = room.members.get(membership.place as usize).map(|member| Moved {
            member: *member,
            room: membership.room,
            place: membership.place,
        });
        if room.members.is_empty() {
            if let Some(room) = self.rooms.remove(slot, generation) {
                self.by_name.remove(&room.name);
            }
        } else if room.members.capacity() > 4 * room.members.len().max(4) {
            room.members.shrink_to(2 * room.members.len());
        }
        moved
    }

    /// A room that has members.
    pub(crate) fn find(&self, name: &str) -> Option<RoomId> {
        self.by_name.get(name).copied().map(RoomId)
    }

    /// One more than the highest slot that ever held a room.
    pub(crate) fn slots(&self) -> u32 {
        self.rooms.slots()
    }

    /// The room in a slot and its members.
    pub(crate) fn in_slot(&self, slot: u32) -> Option<(&str, &[ConnectionId])> {
        let room = self.rooms.get(slot, self.rooms.generation(slot)?)?;
        Some((&room.name, &room.members))
    }

    /// The members of a room, in no particular order; none if it is gone.
    ///
    /// Who may remove the member at hand while going through them goes from the last to the
    /// first: what moves into the gap has been seen then.
    pub(crate) fn members_of(&self, room: RoomId) -> &[ConnectionId] {
        self.rooms.get(room.0.0, room.0.1).map_or(&[], |room| &room.members)
    }
}

impl Moved {
    /// Corrects the place in the moved member's own list.
    pub(crate) fn apply(self, held: &mut [Membership]) {
        let found = held.iter_mut().find(|membership| membership.room == self.room);
        found.expect("a member knows its rooms").place = self.place;
    }
}

#[cfg(test)]
mod tests {
    use super::{Full, Membership, Rooms};
    use crate::effect::ConnectionId;
    use std::collections::{BTreeSet, HashMap};

    #[test]
    fn membership_agrees_with_sets_over_a_random_history() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rooms = Rooms::new(100);
        let mut model: HashMap<String, BTreeSet<ConnectionId>> = HashMap::new();
        let mut held: HashMap<ConnectionId, Vec<Membership>> = HashMap::new();
        for _ in 0..20_000 {
            let name = format!("room {}", random.u8(..20));
            let member = ConnectionId::new(1, 1, random.u32(..50));
            let mine = held.entry(member).or_default();
            match rooms.position(&name, mine) {
                None => {
                    mine.push(rooms.join(&name, member).expect("room for twenty"));
                    assert!(model.entry(name).or_default().insert(member));
                }
                Some(position) => {
                    let membership = mine.swap_remove(position);
                    if let Some(moved) = rooms.leave(membership) {
                        moved.apply(held.get_mut(&moved.member).expect("a member"));
                    }
                    assert!(model.entry(name).or_default().remove(&member));
                }
            }
            assert_eq!(rooms.members() as usize, model.values().map(BTreeSet::len).sum::<usize>());
        }
        for (name, members) in &model {
            let found: BTreeSet<_> = match rooms.find(name) {
                Some(room) => rooms.members_of(room).iter().copied().collect(),
                None => BTreeSet::new(),
            };
            assert_eq!(&found, members);
        }
        for (_, mine) in held.clone() {
            for room in mine.iter().map(|membership| membership.room) {
                // The place may have changed since the copy was made: take the live one.
                let owner = held.values_mut().find(|own| own.iter().any(|m| m.room == room));
                let own = owner.expect("somebody is in the room");
                let at = own.iter().position(|m| m.room == room).expect("found above");
                let membership = own.swap_remove(at);
                if let Some(moved) = rooms.leave(membership) {
                    moved.apply(held.get_mut(&moved.member).expect("a member"));
                }
            }
        }
        assert_eq!((rooms.len(), rooms.members()), (0, 0));
        assert!(rooms.by_name.is_empty());
    }

    #[test]
    fn a_full_table_refuses_new_rooms_only() {
        let mut rooms = Rooms::new(1);
        let member = |slot| ConnectionId::new(0, 1, slot);
        let first = rooms.join("a", member(1)).expect("room");
        rooms.join("a", member(2)).expect("room");
        assert_eq!(rooms.join("b", member(3)), Err(Full));
        rooms.leave(first);
        assert_eq!(rooms.members_of(rooms.find("a").expect("a room")), [member(2)]);
        assert_eq!(rooms.find("b"), None);
    }
}
