//! The table of rooms against what it promises, and against a model over a random history.

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::{
    Code,
    link::{Encoding, RoomMembers},
};

use super::{Difference, Rooms, RoomsMax};
use crate::session::{GatewayKey, SessionAddress};

const PLENTY: RoomsMax = RoomsMax { rooms: 99, members: 99, per_session: 9 };

fn session(gateway: u32, session_id: u64) -> SessionAddress {
    SessionAddress { gateway: GatewayKey(gateway), shard: 0, session_id }
}

#[test]
fn a_room_reaches_only_shards_and_encodings_that_have_members() {
    let mut rooms = Rooms::default();
    rooms.join("r", session(1, 1), Encoding::Protobuf, PLENTY).expect("joined");
    rooms.join("r", session(2, 1), Encoding::Json, PLENTY).expect("joined");
    assert_eq!(rooms.join("r", session(2, 1), Encoding::Json, PLENTY), Ok((2, false)));
    let mut receivers = rooms.receivers("r");
    receivers.sort_by_key(|receiver| receiver.gateway);
    let seen: Vec<_> = receivers.iter().map(|r| (r.gateway.0, r.protobuf, r.json)).collect();
    assert_eq!(seen, [(1, true, false), (2, false, true)]);
    assert_eq!(rooms.leave("r", session(1, 1)), (1, true));
    assert_eq!(rooms.leave("r", session(1, 1)), (1, false));
    assert_eq!(rooms.receivers("r").len(), 1);
}

#[test]
fn every_bound_refuses_the_next_join() {
    let max = RoomsMax { rooms: 2, members: 2, per_session: 1 };
    let mut rooms = Rooms::default();
    let mut join = |room, id| rooms.join(room, session(1, id), Encoding::Protobuf, max);
    assert_eq!(join("a", 1), Ok((1, true)));
    assert_eq!(join("b", 1).expect_err("its second room").code, Code::OverCapacity);
    assert_eq!(join("b", 2), Ok((1, true)));
    assert_eq!(join("c", 3).expect_err("the third room").code, Code::OverCapacity);
    assert_eq!(join("a", 3), Ok((2, true)));
    assert_eq!(join("a", 4).expect_err("the third member").code, Code::OverCapacity);
    assert_eq!(join("a", 3), Ok((2, false)), "who is in stays in");
    assert_eq!(rooms.members("a") + rooms.members("b") + rooms.members("c"), 3);
}

#[test]
fn members_and_receivers_agree_with_sets_over_a_random_history() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rooms = Rooms::default();
    let mut model: BTreeMap<String, BTreeSet<SessionAddress>> = BTreeMap::new();
    let encoding = |address: SessionAddress| match address.session_id % 3 {
        0 => Encoding::Json,
        _ => Encoding::Protobuf,
    };
    for _ in 0..20_000 {
        let room_id = format!("room {}", random.u8(..8));
        let member = session(random.u32(..3), random.u64(..20));
        match random.u8(..10) {
            0 => {
                rooms.forget(member);
                model.values_mut().for_each(|members| {
                    members.remove(&member);
                });
            }
            1..6 => {
                let new = model.entry(room_id.clone()).or_default().insert(member);
                let joined = rooms.join(&room_id, member, encoding(member), PLENTY);
                assert_eq!(joined, Ok((model[&room_id].len() as u64, new)));
            }
            _ => {
                let members = model.entry(room_id.clone()).or_default();
                let was = members.remove(&member);
                assert_eq!(rooms.leave(&room_id, member), (members.len() as u64, was));
            }
        }
        let members = model.entry(room_id.clone()).or_default();
        assert_eq!(rooms.is_member(&room_id, member), members.contains(&member));
        let mut expected: BTreeMap<GatewayKey, (bool, bool)> = BTreeMap::new();
        for member in members.iter() {
            let wants = expected.entry(member.gateway).or_default();
            match encoding(*member) {
                Encoding::Json => wants.1 = true,
                _ => wants.0 = true,
            }
        }
        let found = rooms.receivers(&room_id).into_iter();
        let found: BTreeMap<_, _> = found.map(|r| (r.gateway, (r.protobuf, r.json))).collect();
        assert_eq!(found, expected);
    }
    for member in model.values().flatten() {
        rooms.forget(*member);
    }
    assert!(rooms.places.is_empty() && rooms.sessions.is_empty());
    assert!(rooms.rooms.iter().all(Option::is_none));
    assert_eq!(rooms.free.len(), rooms.rooms.len());
}

#[test]
fn after_a_break_the_gateway_is_told_the_difference_and_a_younger_logic_learns() {
    let mut rooms = Rooms::default();
    for id in [1, 2] {
        rooms.join("r", session(1, id), Encoding::Protobuf, PLENTY).expect("joined");
    }
    let room = |ids: &[u64]| RoomMembers { room_id: "r".into(), session_ids: ids.to_vec() };
    // 2 joined and 3 left while the link was away; 4 is of an earlier life of logic.
    let told = rooms.reconcile(
        GatewayKey(1),
        vec![room(&[1, 3]), room(&[4, 4])],
        |id| session(1, id),
        |id| (id == 4).then_some(Encoding::Json),
        PLENTY,
    );
    let difference = Difference { join: vec![2], leave: vec![3] };
    assert_eq!(told.into_iter().collect::<Vec<_>>(), [("r".to_owned(), difference)]);
    assert_eq!(rooms.members("r"), 3);
    assert!(rooms.receivers("r")[0].json && rooms.is_member("r", session(1, 4)));
}

#[test]
fn what_the_bounds_do_not_allow_is_not_taken_over_but_told() {
    let mut rooms = Rooms::default();
    let max = RoomsMax { members: 2, ..PLENTY };
    let listed = vec![RoomMembers { room_id: "r".into(), session_ids: vec![1, 2, 3] }];
    let adopt = |_| Some(Encoding::Protobuf);
    let told = rooms.reconcile(GatewayKey(1), listed, |id| session(1, id), adopt, max);
    assert_eq!(told["r"], Difference { join: vec![], leave: vec![3] });
    assert_eq!(rooms.members("r"), 2);
}

#[test]
fn a_membership_stays_small_and_joining_a_large_room_looks_at_nobody_else() {
    assert_eq!(size_of::<(u64, super::Held)>(), 24);
    let max = RoomsMax { rooms: 9, members: 100_000, per_session: 9 };
    let mut rooms = Rooms::default();
    for id in 0..100_000 {
        let joined = rooms.join("large", session(1, id), Encoding::Protobuf, max);
        assert_eq!(joined, Ok((id + 1, true)));
    }
    // All that a room knows of its members is how many they are on which shard.
    assert_eq!(rooms.room("large").expect("it has members").shards.len(), 1);
    assert_eq!(rooms.receivers("large").len(), 1);
    for id in 0..100_000 {
        assert_eq!(rooms.leave("large", session(1, id)), (99_999 - id, true));
    }
    assert!(rooms.places.is_empty());
}

#[test]
fn rooms_that_have_changed_are_told_once_with_what_they_have_now() {
    let mut rooms = Rooms::new(true);
    rooms.join("a", session(1, 1), Encoding::Protobuf, PLENTY).expect("joined");
    rooms.join("a", session(1, 2), Encoding::Protobuf, PLENTY).expect("joined");
    rooms.join("b", session(1, 1), Encoding::Protobuf, PLENTY).expect("joined");
    let mut told = rooms.take_changed();
    told.sort();
    assert_eq!(told, [("a".into(), 2), ("b".into(), 1)]);
    assert_eq!(rooms.take_changed(), []);
    rooms.forget(session(1, 1));
    let mut told = rooms.take_changed();
    told.sort();
    assert_eq!(told, [("a".into(), 1), ("b".into(), 0)], "one is gone, the other is empty");
    assert_eq!(rooms.all(), [("a".into(), 1)]);

    let mut alone = Rooms::default();
    alone.join("a", session(1, 1), Encoding::Protobuf, PLENTY).expect("joined");
    assert_eq!(alone.take_changed(), [], "nobody takes it, so nothing is kept");
}
