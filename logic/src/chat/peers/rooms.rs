//! How many members live rooms have elsewhere, and how many sessions there are.
//!
//! Each process states what has changed twice a second, and everything now and then, so that what was
//! lost is mended and who fell silent is forgotten. The numbers are for people to see, a second old and
//! after the death of a process wrong for [`FORGOTTEN_AFTER`]; nobody is sent anything by them.
//!
//! Bounds: `room_counts_max` rooms of each process; members of further ones are not counted.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use millrace_protocol::peer::{RoomCount, RoomCounts, peer_event::Kind};
use prost::Message as _;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{super::Core, Peers};

/// How often what has changed is told.
const TELL_INTERVAL: Duration = Duration::from_millis(500);

/// After how many of these everything is told.
const TELLS_TO_ALL: u64 = 10;

/// What was not stated for so long is gone.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15);

/// Processes whose numbers are kept; far more than a fleet has.
const NODES_MAX: usize = 1_024;

/// What the other processes have said.
#[derive(Default)]
pub(crate) struct Elsewhere {
    nodes: Mutex<HashMap<Arc<str>, Node>>,
}

struct Node {
    stated_at: Instant,
    sessions: u64,
    rooms: HashMap<String, (u64, Instant)>,
}

impl Elsewhere {
    fn nodes(&self) -> MutexGuard<'_, HashMap<Arc<str>, Node>> {
        // Whole after every statement, so a panic elsewhere spoils nothing.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Members of a room whose home is elsewhere.
    pub(crate) fn members(&self, room_id: &str) -> u64 {
        let nodes = self.nodes();
        nodes.values().filter_map(|node| node.rooms.get(room_id)).map(|(members, _)| members).sum()
    }

    /// Sessions whose home is elsewhere.
    pub(crate) fn sessions(&self) -> u64 {
        self.nodes().values().map(|node| node.sessions).sum()
    }

    pub(super) fn hear(&self, name: &Arc<str>, told: RoomCounts, rooms_max: usize, now: Instant) {
        let mut nodes = self.nodes();
        if nodes.len() >= NODES_MAX && !nodes.contains_key(name) {
            return;
        }
        let new = || Node { stated_at: now, sessions: 0, rooms: HashMap::new() };
        let node = nodes.entry(name.clone()).or_insert_with(new);
        node.stated_at = now;
        node.sessions = told.sessions;
        for RoomCount { room_id, members } in told.rooms {
            if members == 0 {
                node.rooms.remove(&room_id);
            } else if node.rooms.len() < rooms_max || node.rooms.contains_key(&room_id) {
                node.rooms.insert(room_id, (members, now));
            }
        }
    }

    fn forget_the_silent(&self, now: Instant) {
        let is_fresh = |stated_at: Instant| now.duration_since(stated_at) < FORGOTTEN_AFTER;
        self.nodes().retain(|_, node| {
            node.rooms.retain(|_, (_, stated_at)| is_fresh(*stated_at));
            is_fresh(node.stated_at)
        });
    }
}

/// States the numbers of this process until it leaves.
pub(crate) async fn run(core: Arc<Core>) {
    let Some(peers) = &core.peers else { return };
    let mut tick = interval(TELL_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks = 0_u64;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = core.stop.said() => return,
        }
        let changed = core.gateways.take_changed_rooms();
        let everything = ticks.is_multiple_of(TELLS_TO_ALL);
        if everything {
            peers.tell_rooms(core.gateways.rooms(), core.gateways.sessions());
        }
        // After everything as well: who has no member any more is not in it.
        if !changed.is_empty() {
            peers.tell_rooms(changed, core.gateways.sessions());
        }
        peers.elsewhere.forget_the_silent(Instant::now());
        ticks += 1;
    }
}

impl Peers {
    fn tell_rooms(&self, rooms: Vec<(Arc<str>, u64)>, sessions: u64) {
        let mut rooms = rooms.into_iter().peekable();
        loop {
            let mut bytes = 64;
            let mut part = Vec::new();
            while let Some((name, members)) = rooms.next_if(|(name, _)| {
                bytes += name.len() + 16;
                part.is_empty() || bytes <= self.settings.event_bytes_max
            }) {
                part.push(RoomCount { room_id: name.to_string(), members });
            }
            let counts = RoomCounts { rooms: part, sessions };
            debug_assert!(counts.encoded_len() <= self.settings.event_bytes_max, "by its parts");
            self.one(Kind::RoomCounts(counts));
            if rooms.peek().is_none() {
                return;
            }
        }
    }
}

impl Core {
    /// Members of a live room whose home is another process.
    pub(crate) fn members_elsewhere(&self, room_id: &str) -> u64 {
        self.peers.as_ref().map_or(0, |peers| peers.elsewhere.members(room_id))
    }

    /// Sessions whose home is another process.
    pub(crate) fn sessions_elsewhere(&self) -> u64 {
        self.peers.as_ref().map_or(0, |peers| peers.elsewhere.sessions())
    }

    /// How many members a live room has in the whole fleet.
    pub(crate) fn room_members(&self, room_id: &str) -> u64 {
        self.gateways.room_members(room_id) + self.members_elsewhere(room_id)
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, Duration, Elsewhere, FORGOTTEN_AFTER, Instant, RoomCount, RoomCounts};

    fn counts(rooms: &[(&str, u64)], sessions: u64) -> RoomCounts {
        let room = |(room_id, members): &(&str, u64)| RoomCount {
            room_id: (*room_id).to_owned(),
            members: *members,
        };
        RoomCounts { rooms: rooms.iter().map(room).collect(), sessions }
    }

    #[test]
    fn members_elsewhere_are_those_of_all_processes_that_still_state_them() {
        let elsewhere = Elsewhere::default();
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let start = Instant::now();
        elsewhere.hear(&one, counts(&[("hall", 3), ("attic", 1)], 7), 9, start);
        elsewhere.hear(&other, counts(&[("hall", 4)], 5), 9, start);
        assert_eq!((elsewhere.members("hall"), elsewhere.members("attic")), (7, 1));
        assert_eq!(elsewhere.sessions(), 12);

        elsewhere.hear(&one, counts(&[("hall", 0)], 6), 9, start);
        assert_eq!((elsewhere.members("hall"), elsewhere.sessions()), (4, 11));

        // One goes on and states its hall alone; the attic's zero was lost. The other is dead.
        let later = start + FORGOTTEN_AFTER - Duration::from_secs(1);
        elsewhere.hear(&one, counts(&[("hall", 2)], 6), 9, later);
        elsewhere.forget_the_silent(start + FORGOTTEN_AFTER);
        assert_eq!((elsewhere.members("hall"), elsewhere.members("attic")), (2, 0));
        assert_eq!(elsewhere.sessions(), 6);
    }

    #[test]
    fn rooms_above_the_bound_are_not_counted_and_known_ones_go_on() {
        let elsewhere = Elsewhere::default();
        let one: Arc<str> = "one".into();
        let now = Instant::now();
        elsewhere.hear(&one, counts(&[("a", 1), ("b", 1), ("c", 1)], 3), 2, now);
        assert_eq!((elsewhere.members("b"), elsewhere.members("c")), (1, 0));
        elsewhere.hear(&one, counts(&[("b", 5), ("a", 0), ("c", 2)], 3), 2, now);
        assert_eq!((elsewhere.members("b"), elsewhere.members("c")), (5, 2));
    }
}
