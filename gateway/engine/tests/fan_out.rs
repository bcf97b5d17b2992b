//! One frame for many: what logic publishes once reaches each receiver once, in its encoding and
//! in its place.

mod harness;

use bytes::Bytes;
use harness::{Harness, LINK};
use millrace_engine::{Dropped, Settings};
use millrace_protocol::{
    Code,
    command::{DELIVER, HEARTBEAT, KICK, LOGIN, NOTICE, ROOM_MESSAGE, reply},
    link::{
        BroadcastFrame, CloseSession, LoginResult, RoomFrame, RoomMembership, SendFrame,
        logic_event::Kind,
    },
};

fn broadcast(protobuf: &'static [u8], json: &'static [u8]) -> Kind {
    Kind::BroadcastFrame(BroadcastFrame {
        command: u32::from(NOTICE),
        flags: 0,
        body_protobuf: Bytes::from_static(protobuf),
        body_json: Bytes::from_static(json),
    })
}

#[test]
fn a_broadcast_reaches_everybody_who_is_logged_in_once_and_in_their_encoding() {
    let mut harness = Harness::linked(Settings::default());
    let tcp = harness.tcp();
    let binary = harness.websocket(Some("millrace.v1"));
    let text = harness.websocket(Some("millrace.v1.json"));
    let stranger = harness.tcp();
    for socket in [tcp, binary] {
        harness.login(socket, "user");
    }
    harness.login_text(text, "user");
    harness.logic(broadcast(b"bytes", b"{\"a\":1}"));
    for socket in [tcp, binary] {
        let frame = harness.read_one(socket);
        assert_eq!(
            (frame.command, frame.body.as_slice(), frame.json),
            (NOTICE, &b"bytes"[..], false)
        );
    }
    let frame = harness.read_one(text);
    assert_eq!((frame.command, frame.body.as_slice()), (NOTICE, &b"{\"a\":1}"[..]));
    assert!(frame.json);
    assert_eq!(harness.read(stranger).0, []);
    // An empty body leaves that encoding out.
    harness.logic(broadcast(b"", b"{}"));
    assert_eq!(harness.read(tcp).0, []);
    assert_eq!(harness.read_one(text).body, b"{}");
    harness.finish();
}

fn notice(body: Vec<u8>) -> Kind {
    let body_protobuf = Bytes::from(body);
    let command = u32::from(NOTICE);
    Kind::BroadcastFrame(BroadcastFrame { command, body_protobuf, ..BroadcastFrame::default() })
}

fn deliver(session_id: u64, body: &'static [u8]) -> Kind {
    Kind::SendFrame(SendFrame {
        session_ids: vec![session_id],
        command: u32::from(DELIVER),
        body: Bytes::from_static(body),
        ..SendFrame::default()
    })
}

fn crowd(harness: &mut Harness, members: usize) -> (Vec<u64>, Vec<u64>) {
    let sockets: Vec<u64> = (0..members).map(|_| harness.tcp()).collect();
    let ids = sockets.iter().map(|socket| harness.login(*socket, "user")).collect();
    (sockets, ids)
}

/// Everything that is no answer to a heartbeat.
fn bodies(harness: &mut Harness, socket: u64) -> Vec<Vec<u8>> {
    let (frames, _) = harness.read(socket);
    let told = frames.into_iter().filter(|frame| frame.command != reply(HEARTBEAT));
    told.map(|frame| frame.body).collect()
}

#[test]
fn a_broadcast_is_spread_over_turns_keeps_its_place_and_holds_nobody_up() {
    let settings = Settings { sends_per_turn_max: 2, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    let (sockets, ids) = crowd(&mut harness, 20);
    let last = sockets[19];
    harness.turn();
    harness.tell(vec![notice(vec![1]), deliver(ids[19], b"direct"), notice(vec![2])]);
    let mut heard = vec![Vec::new(); sockets.len()];
    let mut turns = 0;
    while harness.engine.is_fanning_out() {
        turns += 1;
        let id = harness.id(last);
        let mut heartbeat = Vec::new();
        millrace_protocol::frame::write(
            &mut heartbeat,
            HEARTBEAT,
            millrace_protocol::frame::Flags::NONE,
            turns,
            b"",
        );
        harness.engine.received(harness.now, id, &mut heartbeat);
        harness.turn();
        let (frames, _) = harness.read(last);
        let beats = frames.iter().filter(|frame| frame.command == reply(HEARTBEAT));
        assert_eq!(beats.map(|frame| frame.request_id).collect::<Vec<_>>(), [turns]);
        let told = frames.into_iter().filter(|frame| frame.command != reply(HEARTBEAT));
        heard[19].extend(told.map(|frame| frame.body));
        let mut reached = 0;
        for (place, socket) in sockets.iter().enumerate().take(19) {
            let frames = bodies(&mut harness, *socket);
            reached += usize::from(!frames.is_empty());
            heard[place].extend(frames);
        }
        assert!(reached <= 2, "a turn reaches no more than it may");
    }
    assert!(turns >= 10, "{turns}");
    for bodies in &heard[..19] {
        assert_eq!(bodies, &[vec![1], vec![2]]);
    }
    assert_eq!(heard[19], [vec![1], b"direct".to_vec(), vec![2]]);
    harness.finish();
}

#[test]
fn a_room_s_sends_are_spread_too_and_wait_behind_everything_else() {
    let settings = Settings { sends_per_turn_max: 5, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    let (sockets, ids) = crowd(&mut harness, 50);
    harness.logic(Kind::RoomMembership(RoomMembership {
        room_id: "hall".to_owned(),
        join_session_ids: ids.clone(),
        leave_session_ids: Vec::new(),
    }));
    harness.turn();
    let room = |body: &'static [u8]| {
        Kind::RoomFrame(RoomFrame {
            room_id: "hall".to_owned(),
            command: u32::from(ROOM_MESSAGE),
            body_protobuf: Bytes::from_static(body),
            ..RoomFrame::default()
        })
    };
    harness.tell(vec![room(b"a"), room(b"b"), deliver(ids[0], b"direct")]);
    harness.turn();
    assert_eq!(
        bodies(&mut harness, sockets[0]),
        [b"a".to_vec(), b"b".to_vec(), b"direct".to_vec()]
    );
    let reached = |harness: &mut Harness| {
        let bodies = sockets[1..].iter().map(|socket| bodies(harness, *socket));
        bodies.filter(|bodies| !bodies.is_empty()).inspect(|b| assert_eq!(b.len(), 2)).count()
    };
    let mut all = reached(&mut harness);
    assert!(all <= 5);
    while harness.engine.is_fanning_out() {
        harness.turn();
        let some = reached(&mut harness);
        assert!(some <= 5);
        all += some;
    }
    assert_eq!(all, 49);
    harness.finish();
}

#[test]
fn a_broadcast_reaches_who_is_sent_away_after_it_and_not_who_logs_in_after_it() {
    let settings = Settings { sends_per_turn_max: 1, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    let (sockets, ids) = crowd(&mut harness, 10);
    let newcomer = harness.tcp();
    let session_id = harness.ask_login(newcomer, "new").session_id;
    harness.tell(vec![
        notice(vec![1]),
        Kind::LoginResult(LoginResult { session_id, ..LoginResult::default() }),
        Kind::CloseSession(CloseSession {
            session_id: ids[9],
            code: Code::Kicked.number(),
            reason: String::new(),
        }),
    ]);
    harness.settle();
    let (frames, _) = harness.read(newcomer);
    assert_eq!(frames.iter().map(|frame| frame.command).collect::<Vec<_>>(), [reply(LOGIN)]);
    let (frames, _) = harness.read(sockets[9]);
    assert_eq!(frames.iter().map(|frame| frame.command).collect::<Vec<_>>(), [NOTICE, KICK]);
    harness.logic(notice(vec![2]));
    assert_eq!(bodies(&mut harness, newcomer), [[2]]);
    harness.finish();
}

#[test]
fn credit_for_a_broadcast_comes_back_when_everybody_has_it() {
    let settings = Settings { sends_per_turn_max: 1, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    crowd(&mut harness, 5);
    harness.turn();
    harness.tell(vec![notice(vec![1; 900_000])]);
    let mut turns = 0;
    while harness.engine.is_fanning_out() {
        assert_eq!(harness.engine.take_link_batch(LINK), None, "not before it is over");
        harness.turn();
        turns += 1;
    }
    assert!(turns >= 4, "{turns}");
    let batch = harness.engine.take_link_batch(LINK).expect("credit goes back");
    let credit = batch.credit.expect("credit");
    assert_eq!((credit.frames, credit.bytes), (1, 900_000));
    harness.finish();
}

#[test]
fn more_broadcasts_than_may_be_under_way_all_arrive_in_order() {
    let settings = Settings { sends_per_turn_max: 1, broadcasts_max: 2, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    let (sockets, _) = crowd(&mut harness, 10);
    harness.tell((0..7).map(|number| notice(vec![number])).collect());
    harness.settle();
    for socket in sockets {
        let expected: Vec<Vec<u8>> = (0..7).map(|number| vec![number]).collect();
        assert_eq!(bodies(&mut harness, socket), expected);
    }
    harness.finish();
}

#[test]
fn who_does_not_read_broadcasts_costs_only_itself() {
    let mut harness = Harness::linked(Settings::default());
    let (mut sockets, _) = crowd(&mut harness, 10);
    let slow = sockets.remove(4);
    harness.socket(slow).stuck = true;
    for number in 0..200_u8 {
        harness.logic(notice(vec![number; 4_000]));
    }
    for socket in sockets {
        let first: Vec<u8> = bodies(&mut harness, socket).iter().map(|body| body[0]).collect();
        assert_eq!(first, (0..200).collect::<Vec<u8>>());
    }
    assert!(harness.engine.counters().dropped(Dropped::SlowConsumer) > 0);
    assert_eq!(harness.engine.counters().sessions, 9);
    harness.unstick(slow);
    harness.finish();
}
