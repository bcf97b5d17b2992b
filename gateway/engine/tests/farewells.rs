//! How sessions end in good order, and how a shard leaves: everybody hears why before the socket
//! is closed, and logic hears it once.

mod harness;

use bytes::Bytes;
use harness::{Harness, LINK};
use millrace_engine::{Drain, Settings, TransportKind};
use millrace_protocol::{
    Code,
    command::{DELIVER, GOAWAY, KICK, LOGIN, LOGOUT, ROOM_MESSAGE, reply},
    link::{
        CloseSession, RoomFrame, RoomMembership, SendFrame, gateway_event::Kind as Event,
        logic_event::Kind,
    },
    session,
    websocket::{Opcode, write_close},
};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn a_logout_is_answered_and_ends_in_good_order() {
    for websocket in [false, true] {
        let mut harness = Harness::linked(Settings::default());
        let socket = if websocket { harness.websocket(None) } else { harness.tcp() };
        let session_id = harness.login(socket, "alice");
        harness.frame(socket, LOGOUT, 8, b"");
        let (frames, close) = harness.read(socket);
        assert_eq!(frames.len(), 1);
        assert_eq!((frames[0].command, frames[0].request_id), (reply(LOGOUT), 8));
        assert_eq!(close, websocket.then_some(1000));
        assert!(harness.socket(socket).write_shut && !harness.socket(socket).close_asked);
        harness.end(socket);
        assert!(harness.socket(socket).close_asked);
        assert_eq!(harness.sessions_ended(), [(session_id, 0)]);
        harness.finish();
    }
}

#[test]
fn a_websocket_close_is_answered_and_ends_in_good_order() {
    let mut harness = Harness::linked(Settings::default());
    let socket = harness.websocket(None);
    let session_id = harness.login(socket, "alice");
    let mut close = Vec::new();
    write_close(&mut close, Some(harness::KEY), 1001, "leaving");
    harness.bytes(socket, &close);
    assert_eq!(harness.read(socket), (vec![], Some(1001)));
    assert_eq!(harness.sessions_ended(), [(session_id, 0)]);
    harness.finish();
}

#[test]
fn a_kick_is_told_with_its_code_and_ends_the_session_once() {
    for websocket in [false, true] {
        for code in [Code::Kicked.number(), Code::TokenExpired.number(), 9999] {
            let mut harness = Harness::linked(Settings::default());
            let socket = if websocket { harness.websocket(None) } else { harness.tcp() };
            let session_id = harness.login(socket, "mallory");
            let close = CloseSession { session_id, code, reason: "enough".to_owned() };
            harness.logic(Kind::CloseSession(close.clone()));
            harness.logic(Kind::CloseSession(close));
            let (frames, close) = harness.read(socket);
            assert_eq!(frames.len(), 1);
            assert_eq!(frames[0].command, KICK);
            let kick = session::Kick::decode(&*frames[0].body).expect("a Kick");
            assert_eq!((kick.code, &*kick.reason), (code, "enough"));
            let known = Code::from_number(code).unwrap_or(Code::Kicked);
            assert_eq!(close, websocket.then_some(known.websocket_close_code()));
            assert_eq!(harness.sessions_ended(), [(session_id, code)]);
            harness.finish();
        }
    }
}

#[test]
fn a_peer_that_does_not_close_its_end_is_closed_after_the_linger() {
    let mut harness = Harness::linked(Settings::default());
    let socket = harness.tcp();
    harness.login(socket, "alice");
    harness.frame(socket, LOGOUT, 1, b"");
    harness.bytes(socket, &[0xFF; 100_000]);
    harness.wait(1_990);
    assert!(!harness.socket(socket).close_asked);
    harness.wait(50);
    assert!(harness.socket(socket).close_asked);
    harness.finish();
}

#[test]
fn a_peer_that_does_not_read_its_farewell_is_closed_after_the_linger() {
    let mut harness = Harness::linked(Settings::default());
    let socket = harness.tcp();
    harness.login(socket, "alice");
    harness.socket(socket).stuck = true;
    harness.frame(socket, LOGOUT, 1, b"");
    assert!(!harness.socket(socket).write_shut);
    harness.wait(2_100);
    assert!(harness.socket(socket).close_asked);
    harness.finish();
}

#[test]
fn the_text_form_carries_everything_as_envelopes() {
    let mut harness = Harness::linked(Settings::default());
    let socket = harness.websocket(Some("millrace.v1.json"));
    let login =
        br#"{"command": "login", "request_id": 3, "body": {"user_id": "bob", "token": "t"}}"#;
    harness.message(socket, Opcode::Text, login);
    let session_id = harness.id(socket).raw();
    harness.accept_login(session_id, "bob");
    let frame = harness.read_one(socket);
    assert_eq!((frame.command, frame.request_id, frame.json), (reply(LOGIN), 3, true));
    let reply: session::LoginReply = serde_json::from_slice(&frame.body).expect("JSON");
    assert_eq!((reply.code, reply.session_id), (0, session_id));
    harness.logic(Kind::SendFrame(SendFrame {
        session_ids: vec![session_id],
        command: u32::from(DELIVER),
        flags: 1,
        request_id: 0,
        body: Bytes::from_static(br#"{"messages":[]}"#),
    }));
    assert_eq!(harness.read_one(socket).body, br#"{"messages":[]}"#);
    harness.finish();
}

#[test]
fn a_room_message_reaches_each_member_in_its_own_form() {
    let mut harness = Harness::linked(Settings::default());
    let tcp = harness.tcp();
    let binary = harness.websocket(Some("millrace.v1"));
    let text = harness.websocket(Some("millrace.v1.json"));
    let outside = harness.tcp();
    let mut ids = vec![harness.login(tcp, "a"), harness.login(binary, "b")];
    harness.login(outside, "c");
    harness.message(text, Opcode::Text, br#"{"command": "login", "request_id": 1}"#);
    let text_id = harness.id(text).raw();
    harness.accept_login(text_id, "d");
    harness.read(text);
    ids.push(text_id);
    harness.logic(Kind::RoomMembership(RoomMembership {
        room_id: "r".to_owned(),
        join_session_ids: [&ids[..], &ids[..]].concat(),
        leave_session_ids: Vec::new(),
    }));
    assert_eq!(harness.engine.counters().room_members, 3, "joining twice is joining once");
    let frame = RoomFrame {
        room_id: "r".to_owned(),
        command: u32::from(ROOM_MESSAGE),
        body_protobuf: Bytes::from_static(b"protobuf"),
        body_json: Bytes::from_static(b"{\"json\":1}"),
        ..RoomFrame::default()
    };
    harness.logic(Kind::RoomFrame(frame.clone()));
    assert_eq!(harness.read_one(tcp).body, b"protobuf");
    assert_eq!(harness.read_one(binary).body, b"protobuf");
    assert_eq!(harness.read_one(text).body, b"{\"json\":1}");
    assert_eq!(harness.read(outside).0, []);
    harness.logic(Kind::RoomFrame(RoomFrame {
        except_session_id: ids[0],
        body_json: Bytes::new(),
        ..frame.clone()
    }));
    assert_eq!(harness.read(tcp).0, [], "left out");
    assert_eq!(harness.read_one(binary).body, b"protobuf");
    assert_eq!(harness.read(text).0, [], "no body in its encoding");
    harness.logic(Kind::RoomMembership(RoomMembership {
        room_id: "r".to_owned(),
        join_session_ids: Vec::new(),
        leave_session_ids: vec![ids[1], ids[1], 99],
    }));
    harness.logic(Kind::RoomFrame(frame));
    assert_eq!(harness.read(binary).0, []);
    assert_eq!(harness.read_one(tcp).body, b"protobuf");
    harness.finish();
}

#[test]
fn rooms_outlive_their_link_and_are_listed_whoever_leaves_meanwhile() {
    const MEMBERS: usize = 6_000;
    let settings =
        Settings { link_batch_events_max: 1, link_batch_bytes_max: 1, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    let sockets: Vec<u64> = (0..MEMBERS).map(|_| harness.tcp()).collect();
    let ids: Vec<u64> = sockets.iter().map(|socket| harness.login(*socket, "user")).collect();
    for (room_id, members) in [("large", &ids[..]), ("small", &ids[..2])] {
        harness.logic(Kind::RoomMembership(RoomMembership {
            room_id: room_id.to_owned(),
            join_session_ids: members.to_vec(),
            leave_session_ids: Vec::new(),
        }));
    }
    harness.link_down();
    harness.engine.link_up(harness.now, LINK);
    let mut listed: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let (mut sessions, mut parts) = (0, 0);
    while let Some(batch) = harness.engine.take_link_batch(LINK) {
        match batch.events.into_iter().next().and_then(|event| event.kind) {
            Some(Event::Session(_)) => sessions += 1,
            Some(Event::RoomMembers(room)) => {
                assert_eq!(sessions, MEMBERS, "rooms come after the sessions");
                listed.entry(room.room_id).or_default().extend(room.session_ids);
                parts += 1;
                if parts == 1 {
                    // Its place is taken by the last member, which was listed already.
                    for gone in [1, MEMBERS - 2] {
                        let id = harness.id(sockets[gone]);
                        harness.engine.receive_ended(harness.now, id);
                    }
                }
            }
            Some(Event::SessionsComplete(_)) => break,
            _ => {}
        }
    }
    assert_eq!(parts, 3, "the large room comes in parts");
    let stay = |members: &[u64]| -> BTreeSet<u64> {
        members.iter().copied().filter(|id| ![ids[1], ids[MEMBERS - 2]].contains(id)).collect()
    };
    for (room_id, members) in [("large", &ids[..]), ("small", &ids[..2])] {
        let found: BTreeSet<u64> = listed[room_id].iter().copied().collect();
        assert!(found.is_superset(&stay(members)), "{room_id}: a member was not listed");
    }
    assert_eq!(harness.engine.counters().room_members as usize, MEMBERS - 2 + 1);
    harness.finish();
}

#[test]
fn too_many_rooms_are_told_and_not_joined() {
    let settings = Settings { rooms_per_connection_max: 2, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    let socket = harness.tcp();
    let session_id = harness.login(socket, "a");
    for room_id in ["x", "y", "z"] {
        harness.logic(Kind::RoomMembership(RoomMembership {
            room_id: room_id.to_owned(),
            join_session_ids: vec![session_id],
            leave_session_ids: Vec::new(),
        }));
    }
    assert_eq!(harness.read_one(socket).error().code, Code::OverCapacity.number());
    assert_eq!(harness.engine.counters().rooms, 2);
    harness.finish();
}

#[test]
fn a_draining_shard_sends_everybody_away_over_the_spread() {
    let mut harness = Harness::linked(Settings::default());
    let sockets: Vec<u64> = (0..100)
        .map(|index| {
            let socket = if index % 2 == 0 { harness.tcp() } else { harness.websocket(None) };
            harness.login(socket, "user");
            socket
        })
        .collect();
    let upgrading = harness.connect_from(TransportKind::WebSocket, "192.0.2.1");
    harness.to_logic.clear();
    harness.engine.drain(
        harness.now,
        Drain {
            spread_ms: 2_000,
            reconnect_after_ms_min: 100,
            reconnect_after_ms_max: 1_000,
            reconnect_to: "elsewhere".to_owned(),
        },
    );
    harness.settle();
    let told = |harness: &mut Harness| {
        sockets.iter().filter(|socket| !harness.sockets[socket].received.is_empty()).count()
    };
    harness.wait(1_000);
    let half = told(&mut harness);
    assert!((45..=55).contains(&half), "{half}");
    harness.wait(1_000);
    assert_eq!(told(&mut harness), 100);
    assert!(harness.socket(upgrading).received.starts_with(b"HTTP/1.1 503 "));
    let late = harness.tcp();
    assert_eq!(harness.read_one(late).error().code, Code::Draining.number());
    let frame = harness.read_one(sockets[99]);
    assert_eq!(frame.command, GOAWAY);
    let goaway = session::GoAway::decode(&*frame.body).expect("a GoAway");
    assert_eq!((goaway.reconnect_after_ms_max, &*goaway.reconnect_to), (1_000, "elsewhere"));
    assert_eq!(harness.sessions_ended().len(), 0, "everybody has its window");
    harness.wait(2_100);
    assert_eq!(harness.sessions_ended().len(), 100);
    harness.wait(2_100);
    assert!(harness.engine.is_empty());
    harness.finish();
}
