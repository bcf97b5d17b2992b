//! Who is in which room on this shard, for fan-out.
//!
//! Logic decides about memberships; this table only keeps them. A room exists while it has
//! members. A membership takes 4 bytes in the room's list and 8 with the member ([`Memberships`]).
//! Leaving is O(1) in the room: each member knows its place in the list, and the last one moves
//! into the gap.

use std::collections::BTreeMap;

use crate::{
    arena::{Arena, Record},
    slab::Slab,
};

/// A room, for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoomId((u32, u32));

/// One membership, kept by the session: which room, and the place in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    /// A slot; it needs no generation, because the room exists as long as the membership.
    room: u32,
    place: u32,
}

impl Membership {
    /// The room's slot; see [`Rooms::in_slot`].
    pub(crate) const fn room(self) -> u32 {
        self.room
    }
}

/// A member's place has changed because another one left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Whose: the connection's slot.
    pub(crate) member: u32,
    membership: Membership,
}

#[derive(Debug)]
struct Room {
    name: Box<str>,
    /// Slots of connections.
    members: Vec<u32>,
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
    /// Bytes of all lists and names.
    held_bytes: usize,
}

/// What a room takes beside its members: the tree's node, and the name twice.
const ROOM_BYTES: usize = 64;

impl Rooms {
    pub(crate) const fn new(rooms_max: u32) -> Self {
        Self { by_name: BTreeMap::new(), rooms: Slab::new(rooms_max), members: 0, held_bytes: 0 }
    }

    /// Rooms that have members.
    pub(crate) const fn len(&self) -> u32 {
        self.rooms.len()
    }

    /// Memberships of all rooms.
    pub(crate) const fn members(&self) -> u64 {
        self.members
    }

    /// Bytes of memory: names, lists and bookkeeping.
    pub(crate) fn bytes(&self) -> usize {
        self.rooms.bytes() + self.held_bytes
    }

    /// Which of `held` is the membership of the room.
    pub(crate) fn position(
        &self,
        name: &str,
        mut held: impl Iterator<Item = Membership>,
    ) -> Option<usize> {
        let (room, _) = self.by_name.get(name)?;
        held.position(|membership| membership.room == *room)
    }

    /// Adds a member that is not in the room: a connection's slot.
    pub(crate) fn join(&mut self, name: &str, member: u32) -> Result<Membership, Full> {
        let room = match self.by_name.get(name) {
            Some(room) => *room,
            None => {
                let entry = Room { name: name.into(), members: Vec::new() };
                let room = self.rooms.insert(entry).map_err(|_| Full)?;
                self.by_name.insert(name.into(), room);
                self.held_bytes += ROOM_BYTES + 2 * name.len();
                room
            }
        };
        let members = &mut self.rooms.get_mut(room.0, room.1).expect("a named room exists").members;
        if members.len() == members.capacity() {
            // A quarter, not twice as much: large rooms would waste half.
            let before = members.capacity();
            members.reserve_exact((before / 4).max(4));
            self.held_bytes += (members.capacity() - before) * size_of::<u32>();
        }
        members.push(member);
        self.members += 1;
        Ok(Membership { room: room.0, place: members.len() as u32 - 1 })
    }

    /// Removes a member. Whoever took over its place must hear of it: [`Memberships::apply`].
    pub(crate) fn leave(&mut self, membership: Membership) -> Option<Moved> {
        let room = self.rooms.at_mut(membership.room).expect("a member's room exists");
        room.members.swap_remove(membership.place as usize);
        self.members -= 1;
        let moved = room.members.get(membership.place as usize);
        let moved = moved.map(|member| Moved { member: *member, membership });
        let before = room.members.capacity();
        if room.members.is_empty() {
            self.held_bytes -= before * size_of::<u32>();
            if let Some(room) = self.rooms.take(membership.room) {
                self.held_bytes -= ROOM_BYTES + 2 * room.name.len();
                self.by_name.remove(&room.name);
            }
        } else if before > 2 * room.members.len().max(8) {
            room.members.shrink_to(room.members.len() + room.members.len() / 4);
            self.held_bytes -= (before - room.members.capacity()) * size_of::<u32>();
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
    pub(crate) fn in_slot(&self, slot: u32) -> Option<(&str, &[u32])> {
        let room = self.rooms.at(slot)?;
        Some((&room.name, &room.members))
    }

    /// The members of a room, as slots of connections and in no particular order; none if it is
    /// gone.
    ///
    /// Who may remove the member at hand while going through them goes from the last to the
    /// first: what moves into the gap has been seen then.
    pub(crate) fn members_of(&self, room: RoomId) -> &[u32] {
        self.rooms.get(room.0.0, room.0.1).map_or(&[], |room| &room.members)
    }
}

/// The memberships of all connections: for each that is in a room a list of 8 bytes a room.
#[derive(Debug)]
pub(crate) struct Memberships(Arena);

/// Bytes of one membership in a list.
const MEMBERSHIP_BYTES: usize = 8;

impl Membership {
    fn write(self, out: &mut [u8]) {
        out[..4].copy_from_slice(&self.room.to_le_bytes());
        out[4..].copy_from_slice(&self.place.to_le_bytes());
    }

    fn read(bytes: &[u8]) -> Self {
        let number = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        Self { room: number(0), place: number(4) }
    }
}

impl Memberships {
    pub(crate) fn new() -> Self {
        Self(Arena::new())
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// A connection's list.
    pub(crate) fn of(&self, rooms: Record) -> impl ExactSizeIterator<Item = Membership> {
        let bytes = if rooms == Record::NONE { &[] } else { self.0.get(rooms) };
        bytes.chunks_exact(MEMBERSHIP_BYTES).map(Membership::read)
    }

    /// Appends to a connection's list.
    pub(crate) fn add(&mut self, rooms: &mut Record, membership: Membership) {
        let held = if *rooms == Record::NONE { &[] } else { self.0.get(*rooms) };
        let mut list = [held, &[0; MEMBERSHIP_BYTES]].concat();
        let (_, last) = list.split_at_mut(held.len());
        membership.write(last);
        self.put(rooms, &list);
    }

    /// Takes one out of a connection's list.
    pub(crate) fn remove(&mut self, rooms: &mut Record, position: usize) -> Option<Membership> {
        let membership = self.of(*rooms).nth(position)?;
        let mut list = self.0.get(*rooms).to_vec();
        let at = position * MEMBERSHIP_BYTES;
        list.drain(at..at + MEMBERSHIP_BYTES);
        self.put(rooms, &list);
        Some(membership)
    }

    /// Corrects the place in the moved member's own list.
    pub(crate) fn apply(&mut self, rooms: Record, moved: Moved) {
        let list = self.0.get_mut(rooms);
        let mut held = list.chunks_exact_mut(MEMBERSHIP_BYTES);
        let found = held.find(|held| Membership::read(held).room == moved.membership.room);
        moved.membership.write(found.expect("a member knows its rooms"));
    }

    fn put(&mut self, rooms: &mut Record, list: &[u8]) {
        if *rooms != Record::NONE {
            self.0.remove(*rooms);
        }
        *rooms = if list.is_empty() { Record::NONE } else { self.0.insert(list) };
    }
}

#[cfg(test)]
mod tests {
    use super::{Full, Memberships, Rooms};
    use crate::arena::Record;
    use std::collections::{BTreeSet, HashMap};

    #[test]
    fn membership_agrees_with_sets_over_a_random_history() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rooms = Rooms::new(100);
        let mut memberships = Memberships::new();
        let mut model: HashMap<String, BTreeSet<u32>> = HashMap::new();
        let mut held = [Record::NONE; 50];
        let leave = |rooms: &mut Rooms,
                     memberships: &mut Memberships,
                     held: &mut [Record],
                     member: u32,
                     position| {
            let list = &mut held[member as usize];
            let membership = memberships.remove(list, position).expect("a membership");
            if let Some(moved) = rooms.leave(membership) {
                memberships.apply(held[moved.member as usize], moved);
            }
        };
        for _ in 0..20_000 {
            let name = format!("room {}", random.u8(..40));
            let member = random.u32(..50);
            let mine = &mut held[member as usize];
            match rooms.position(&name, memberships.of(*mine)) {
                None => {
                    let membership = rooms.join(&name, member).expect("room for forty");
                    memberships.add(mine, membership);
                    assert!(model.entry(name).or_default().insert(member));
                }
                Some(position) => {
                    leave(&mut rooms, &mut memberships, &mut held, member, position);
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
        for member in 0..50 {
            while memberships.of(held[member as usize]).len() > 0 {
                leave(&mut rooms, &mut memberships, &mut held, member, 0);
            }
        }
        assert_eq!((rooms.len(), rooms.members(), rooms.held_bytes), (0, 0, 0));
        assert!(rooms.by_name.is_empty());
        assert_eq!(held, [Record::NONE; 50]);
    }

    #[test]
    fn a_full_table_refuses_new_rooms_only() {
        let mut rooms = Rooms::new(1);
        let first = rooms.join("a", 1).expect("room");
        rooms.join("a", 2).expect("room");
        assert_eq!(rooms.join("b", 3), Err(Full));
        rooms.leave(first);
        assert_eq!(rooms.members_of(rooms.find("a").expect("a room")), [2]);
        assert_eq!(rooms.find("b"), None);
    }

    #[test]
    fn a_member_of_one_large_room_takes_at_most_14_bytes() {
        let (mut rooms, mut memberships) = (Rooms::new(1), Memberships::new());
        let mut held = vec![Record::NONE; 100_000];
        for (member, list) in held.iter_mut().enumerate() {
            let membership = rooms.join("hall", member as u32).expect("room");
            memberships.add(list, membership);
        }
        let bytes = rooms.bytes() + memberships.bytes();
        assert!(bytes <= 14 * held.len(), "{bytes}");
    }
}
