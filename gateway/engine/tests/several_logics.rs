//! Several logics at once: each session is at home with one of them, a slow one slows its own sessions
//! alone, and homes change without the clients noticing. The same at random: `homes_change.rs`.

mod harness;

use std::collections::BTreeMap;

use bytes::Bytes;
use harness::{Harness, LINK, PLENTY};
use millrace_engine::{Dropped, LinkId, LinkPhase, Settings};
use millrace_protocol::{
    Code,
    command::{DELIVER, REFRESH, REPORT, ROOM_MESSAGE, SEND_MESSAGE, reply},
    link::{
        BroadcastFrame, CloseSession, Credit, Draining, LoginResult, RoomFrame, RoomMembership,
        SendFrame, gateway_event::Kind as Event, logic_event::Kind,
    },
};

const OTHER: LinkId = LinkId(2);
const THIRD: LinkId = LinkId(3);

/// As many sockets, logged in wherever the engine asks; by session, the link it is at home on.
fn logged_in(harness: &mut Harness, count: usize) -> Vec<(u64, u64, LinkId)> {
    let links: Vec<LinkId> = harness.engine.links().map(|link| link.id).collect();
    (0..count)
        .map(|number| {
            let socket = harness.tcp();
            let login = millrace_protocol::session::Login {
                user_id: format!("user-{number}"),
                ..Default::default()
            };
            for link in &links {
                harness.heard(*link);
            }
            let body = prost::Message::encode_to_vec(&login);
            harness.frame(socket, millrace_protocol::command::LOGIN, 1, &body);
            let session_id = harness.id(socket).raw();
            let asked: Vec<LinkId> = links
                .iter()
                .copied()
                .filter(|link| {
                    let heard = harness.heard(*link);
                    heard.iter().any(|event| matches!(event, Event::Login(_)))
                })
                .collect();
            assert_eq!(asked.len(), 1, "one logic decides");
            harness.says(asked[0], accepted(session_id, &login.user_id));
            assert_eq!(harness.read_one(socket).request_id, 1);
            (socket, session_id, asked[0])
        })
        .collect()
}

fn accepted(session_id: u64, user_id: &str) -> Kind {
    let state = Bytes::from_static(b"state");
    let user_id = user_id.to_owned();
    Kind::LoginResult(LoginResult { session_id, user_id, state, ..LoginResult::default() })
}

fn answer(session_id: u64, request_id: u32) -> Kind {
    Kind::SendFrame(SendFrame {
        session_ids: vec![session_id],
        command: u32::from(reply(SEND_MESSAGE)),
        request_id,
        body: Bytes::from_static(b"ok"),
        ..SendFrame::default()
    })
}

fn deliver(session_ids: Vec<u64>) -> Kind {
    Kind::SendFrame(SendFrame {
        session_ids,
        command: u32::from(DELIVER),
        body: Bytes::from_static(b"news"),
        ..SendFrame::default()
    })
}

fn membership(room_id: &str, join: Vec<u64>, leave: Vec<u64>) -> Kind {
    Kind::RoomMembership(RoomMembership {
        room_id: room_id.to_owned(),
        join_session_ids: join,
        leave_session_ids: leave,
    })
}

fn room_frame(room_id: &str) -> Kind {
    Kind::RoomFrame(RoomFrame {
        room_id: room_id.to_owned(),
        command: u32::from(ROOM_MESSAGE),
        body_protobuf: Bytes::from_static(b"room"),
        ..RoomFrame::default()
    })
}

/// Sessions at home on each link, as the engine counts them.
fn homes(harness: &Harness) -> BTreeMap<LinkId, u32> {
    harness.engine.links().map(|link| (link.id, link.sessions)).collect()
}

fn sessions(events: &[Event]) -> Vec<(u64, bool)> {
    let sessions = events.iter().filter_map(|event| match event {
        Event::Session(session) => Some((session.session_id, session.moved)),
        _ => None,
    });
    sessions.collect()
}

fn ends(events: &[Event]) -> Vec<(u64, bool)> {
    let ends = events.iter().filter_map(|event| match event {
        Event::SessionEnded(ended) => Some((ended.session_id, ended.moved)),
        _ => None,
    });
    ends.collect()
}

fn frames(events: &[Event]) -> Vec<u64> {
    let frames = events.iter().filter_map(|event| match event {
        Event::Frame(frame) => Some(frame.session_id),
        _ => None,
    });
    frames.collect()
}

fn two_logics(settings: Settings) -> Harness {
    let mut harness = Harness::new(settings);
    harness.up(LINK, PLENTY);
    harness.up(OTHER, PLENTY);
    harness
}

#[test]
fn logins_are_spread_and_everything_of_a_session_goes_to_its_home() {
    let mut harness = two_logics(Settings::default());
    harness.up(THIRD, PLENTY);
    let all = logged_in(&mut harness, 31);
    let counts: Vec<u32> = homes(&harness).into_values().collect();
    assert!(counts.iter().all(|count| (10..=11).contains(count)), "{counts:?}");
    for (socket, session_id, home) in all {
        harness.frame(socket, SEND_MESSAGE, 7, b"x");
        harness.frame(socket, REPORT, 8, b"y");
        harness.frame(socket, REFRESH, 9, b"");
        harness.end(socket);
        for link in [LINK, OTHER, THIRD] {
            let heard = harness.heard(link);
            if link == home {
                assert_eq!(frames(&heard), [session_id; 2]);
                assert!(heard.iter().any(|event| matches!(event, Event::Refresh(_))));
                assert_eq!(ends(&heard), [(session_id, false)]);
            } else {
                assert_eq!(heard, [], "not at home there");
            }
        }
    }
    harness.finish();
}

#[test]
fn a_logic_without_credit_holds_its_own_sessions_back_and_nobody_else() {
    let mut harness = Harness::new(Settings::default());
    harness.up(LINK, Credit { frames: 1, bytes: 1_000 });
    harness.up(OTHER, PLENTY);
    let all = logged_in(&mut harness, 10);
    for round in 0..5 {
        for (socket, session_id, home) in &all {
            harness.frame(*socket, SEND_MESSAGE, 10 + round, b"x");
            if *home == OTHER {
                harness.says(OTHER, answer(*session_id, 10 + round));
                assert_eq!(harness.read_one(*socket).request_id, 10 + round);
                assert!(!harness.socket(*socket).paused, "somebody else's logic is slow");
            }
        }
    }
    let heard = harness.heard(LINK);
    assert_eq!(frames(&heard).len(), 1, "{heard:?}");
    harness.finish();
}

#[test]
fn any_logic_reaches_any_session_and_whole_rooms_and_everybody() {
    let mut harness = two_logics(Settings::default());
    let all = logged_in(&mut harness, 6);
    let everybody: Vec<u64> = all.iter().map(|(_, id, _)| *id).collect();
    for (_, session_id, home) in &all {
        harness.says(*home, membership("hall", vec![*session_id], vec![]));
    }
    let broadcast = Kind::BroadcastFrame(BroadcastFrame {
        command: u32::from(DELIVER),
        body_protobuf: Bytes::from_static(b"all"),
        ..BroadcastFrame::default()
    });
    for link in [LINK, OTHER] {
        harness.says(link, deliver(everybody.clone()));
        harness.says(link, room_frame("hall"));
        harness.says(link, broadcast.clone());
    }
    harness.wait(1_000);
    for (socket, _, _) in &all {
        let bodies: Vec<Vec<u8>> =
            harness.read(*socket).0.into_iter().map(|frame| frame.body).collect();
        assert_eq!(bodies, [&b"news"[..], b"room", b"all", b"news", b"room", b"all"]);
    }
    // Each logic gets its own credit back, for its own frames.
    let (socket, session_id, home) = all[0];
    let stranger = if home == LINK { OTHER } else { LINK };
    let close = CloseSession { session_id, code: Code::Kicked.number(), reason: String::new() };
    harness.says(stranger, Kind::CloseSession(close));
    assert_eq!(harness.read_one(socket).command, millrace_protocol::command::KICK);
    assert_eq!(ends(&harness.heard(home)), [(session_id, false)], "told at home");
    assert_eq!(ends(&harness.heard(stranger)), []);
    harness.finish();
}

#[test]
fn credit_goes_back_to_the_logic_that_used_it() {
    let mut harness = two_logics(Settings::default());
    let all = logged_in(&mut harness, 2);
    let ids: Vec<u64> = all.iter().map(|(_, id, _)| *id).collect();
    // A quarter of the window of 1000 frames goes back at once.
    for _ in 0..249 {
        harness.says(OTHER, deliver(ids.clone()));
    }
    assert!(harness.engine.take_link_batch(OTHER).is_none(), "not yet");
    harness.now.monotonic_ms += 3_400;
    harness.engine.tick(harness.now);
    let credit = |harness: &mut Harness, link| {
        harness.engine.take_link_batch(link).expect("a heartbeat").credit.map(|c| c.frames)
    };
    assert_eq!(credit(&mut harness, LINK), None);
    assert_eq!(credit(&mut harness, OTHER), Some(249));
    harness.finish();
}

#[test]
fn who_is_in_a_room_only_the_home_of_a_session_says() {
    let mut harness = two_logics(Settings::default());
    let all = logged_in(&mut harness, 1);
    let (_, session_id, home) = all[0];
    let stranger = if home == LINK { OTHER } else { LINK };
    harness.says(stranger, membership("hall", vec![session_id], vec![]));
    assert_eq!(harness.engine.counters().room_members, 0);
    harness.says(home, membership("hall", vec![session_id], vec![]));
    harness.says(stranger, membership("hall", vec![], vec![session_id]));
    assert_eq!(harness.engine.counters().room_members, 1);
    assert_eq!(harness.engine.counters().dropped(Dropped::NotHome), 2);
    harness.finish();
}

#[test]
fn a_lost_link_s_sessions_are_taken_in_by_the_others_with_their_rooms() {
    let mut harness = two_logics(Settings::default());
    harness.up(THIRD, PLENTY);
    let all = logged_in(&mut harness, 30);
    for (socket, session_id, home) in &all {
        harness.says(*home, membership("hall", vec![*session_id], vec![]));
        harness.frame(*socket, SEND_MESSAGE, 5, b"x");
    }
    for link in [LINK, OTHER, THIRD] {
        harness.heard(link);
    }
    harness.down(OTHER);
    let (first, third) = (harness.heard(LINK), harness.heard(THIRD));
    for heard in [&first, &third] {
        let taken_in = sessions(heard);
        assert_eq!(taken_in.len(), 5, "an even share each");
        assert!(taken_in.iter().all(|(_, moved)| *moved), "after the list they are marked");
        let members: Vec<u64> = heard
            .iter()
            .filter_map(|event| match event {
                Event::RoomMembers(room) => {
                    assert_eq!(room.room_id, "hall");
                    Some(room.session_ids.clone())
                }
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(members, taken_in.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        let Event::Session(session) = &heard[0] else { panic!("{heard:?}") };
        assert!(session.user_id.starts_with("user-"));
        assert_eq!(session.state, &b"state"[..], "with what logic attached");
    }
    for (socket, session_id, home) in &all {
        let (answers, _) = harness.read(*socket);
        if *home == OTHER {
            assert_eq!(answers.len(), 1, "what was under way is answered");
            assert_eq!(answers[0].error().code, Code::LogicUnavailable.number());
        } else {
            assert_eq!(answers, [], "the others notice nothing");
        }
        harness.frame(*socket, SEND_MESSAGE, 6, b"y");
        let asked = [LINK, THIRD].map(|link| frames(&harness.heard(link)));
        assert_eq!(asked.concat(), [*session_id], "it goes on at once");
    }
    assert_eq!(harness.engine.counters().sessions_taken_in, 10);
    harness.finish();
}

#[test]
fn a_frame_of_a_session_without_a_home_waits_for_the_next_one() {
    let mut harness = two_logics(Settings::default());
    let all = logged_in(&mut harness, 2);
    let (socket, session_id, _) = *all.iter().find(|(_, _, home)| *home == LINK).expect("one");
    // The engine is not asked for batches in between.
    harness.engine.link_down(harness.now, LINK);
    let mut bytes = Vec::new();
    let flags = millrace_protocol::frame::Flags::NONE;
    millrace_protocol::frame::write(&mut bytes, SEND_MESSAGE, flags, 5, b"x");
    let id = harness.id(socket);
    harness.engine.received(harness.now, id, &mut bytes);
    assert_eq!(harness.engine.counters().backlog_frames, 1);
    harness.settle();
    let heard = harness.heard(OTHER);
    let place = |of: &dyn Fn(&Event) -> bool| heard.iter().position(of);
    let listed = place(&|event| matches!(event, Event::Session(s) if s.session_id == session_id));
    let sent = place(&|event| matches!(event, Event::Frame(f) if f.session_id == session_id));
    assert!(listed.expect("taken in") < sent.expect("sent on"), "heard of before its frame");
    harness.says(OTHER, answer(session_id, 5));
    assert_eq!(harness.read_one(socket).request_id, 5);
    harness.finish();
}

#[test]
fn a_new_logic_gets_its_share_little_by_little_and_the_old_one_hears_first() {
    let settings = Settings { link_moves_per_second_max: 100, ..Settings::default() };
    let mut harness = Harness::new(settings);
    harness.up(LINK, PLENTY);
    let all = logged_in(&mut harness, 100);
    for (_, session_id, _) in &all[..50] {
        harness.says(LINK, membership("hall", vec![*session_id], vec![]));
    }
    // Ten have something under way, and stay as long as they do.
    for (socket, _, _) in &all[..10] {
        harness.frame(*socket, SEND_MESSAGE, 5, b"x");
    }
    harness.heard(LINK);
    harness.up(OTHER, PLENTY);
    assert!(homes(&harness)[&OTHER] < 30, "not all at once");
    harness.wait(200);
    let moved = homes(&harness)[&OTHER];
    assert!((10..=35).contains(&moved), "{moved} in 200 ms at 100 a second");
    harness.wait(2_000);
    let even = homes(&harness);
    assert!(even[&LINK].abs_diff(even[&OTHER]) <= 5, "{even:?}");
    let (left, came) = (harness.heard(LINK), harness.heard(OTHER));
    assert_eq!(ends(&left).len() as u32, even[&OTHER]);
    assert!(ends(&left).iter().all(|(_, moved)| *moved), "nobody has gone offline");
    let moved: Vec<u64> = ends(&left).iter().map(|(id, _)| *id).collect();
    assert_eq!(sessions(&came).iter().map(|(id, _)| *id).collect::<Vec<_>>(), moved);
    for (_, session_id, _) in &all[..10] {
        assert!(!moved.contains(session_id), "moved with a request in flight");
    }
    // Each one's rooms follow it.
    let expected: Vec<u64> = moved
        .iter()
        .copied()
        .filter(|id| all[..50].iter().any(|(_, member, _)| member == id))
        .collect();
    let members: Vec<u64> = came
        .iter()
        .filter_map(|event| match event {
            Event::RoomMembers(room) => Some(room.session_ids.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(members, expected);
    assert_eq!(harness.engine.counters().sessions_moved, moved.len() as u64);
    // What crosses the move from the old home still arrives, and a frame goes to the new one.
    let (socket, session_id, _) = *all.iter().find(|(_, id, _)| *id == moved[0]).expect("one");
    harness.says(LINK, deliver(vec![session_id]));
    assert_eq!(harness.read_one(socket).command, DELIVER);
    harness.frame(socket, SEND_MESSAGE, 6, b"y");
    assert_eq!(frames(&harness.heard(OTHER)), [session_id]);
    harness.end(socket);
    assert_eq!(ends(&harness.heard(OTHER)), [(session_id, false)]);
    assert_eq!(ends(&harness.heard(LINK)), [], "its end is told once, where it is at home");
    harness.finish();
}

#[test]
fn nobody_moves_when_moves_are_switched_off_but_away_from_a_logic_that_leaves() {
    let settings = Settings { link_moves_per_second_max: 0, ..Settings::default() };
    let mut harness = Harness::new(settings);
    harness.up(LINK, PLENTY);
    logged_in(&mut harness, 20);
    harness.up(OTHER, PLENTY);
    harness.wait(5_000);
    assert_eq!(homes(&harness)[&OTHER], 0);
    harness.says(LINK, Kind::Draining(Draining { reconnect_after_ms: 1_000 }));
    harness.wait(1_000);
    assert_eq!(homes(&harness)[&OTHER], 20);
    harness.finish();
}

#[test]
fn a_logic_that_leaves_is_emptied_in_its_time_and_told_so() {
    let settings = Settings { link_moves_per_second_max: 10, ..Settings::default() };
    let mut harness = Harness::new(settings);
    harness.up(LINK, PLENTY);
    harness.up(OTHER, PLENTY);
    let all = logged_in(&mut harness, 200);
    let here: Vec<_> = all.iter().filter(|(_, _, home)| *home == LINK).copied().collect();
    let (busy, busy_id, _) = here[0];
    harness.frame(busy, SEND_MESSAGE, 5, b"x");
    harness.heard(LINK);
    harness.heard(OTHER);
    harness.says(LINK, Kind::Draining(Draining { reconnect_after_ms: 2_000 }));
    let phase = |harness: &Harness| harness.engine.links().next().expect("a link").phase;
    assert_eq!(phase(&harness), LinkPhase::Leaving);
    assert!(homes(&harness)[&LINK] > 50, "not all at once");
    harness.wait(1_000);
    let left = homes(&harness)[&LINK];
    assert!((10..=60).contains(&left), "{left} after half of the time");
    let newcomers = logged_in(&mut harness, 5);
    assert!(newcomers.iter().all(|(_, _, home)| *home == OTHER), "no new login");
    harness.wait(1_000);
    assert_eq!(homes(&harness)[&LINK], 1, "all but the one that waits for its answer");
    let told = |events: &[Event]| events.iter().any(|event| matches!(event, Event::Drained(_)));
    assert!(!told(&harness.heard(LINK)), "not empty yet");
    harness.says(LINK, answer(busy_id, 5));
    harness.wait(100);
    assert_eq!(harness.read_one(busy).request_id, 5);
    let heard = harness.heard(LINK);
    assert_eq!(ends(&heard), [(busy_id, true)]);
    let drained = heard.iter().filter_map(|event| match event {
        Event::Drained(drained) => Some(drained.sessions_left),
        _ => None,
    });
    assert_eq!(drained.collect::<Vec<_>>(), [0]);
    harness.down(LINK);
    for (socket, _, _) in all.into_iter().chain(newcomers) {
        assert_eq!(harness.read(socket).0, [], "nobody notices");
    }
    harness.finish();
}

#[test]
fn a_logic_that_leaves_with_nobody_to_take_its_sessions_is_told_at_once_and_answers_on() {
    let mut harness = Harness::linked(Settings::default());
    let socket = harness.tcp();
    let session_id = harness.login(socket, "alice");
    harness.heard(LINK);
    harness.logic(Kind::Draining(Draining { reconnect_after_ms: 2_000 }));
    match &harness.heard(LINK)[..] {
        [Event::Drained(drained)] => assert_eq!(drained.sessions_left, 1),
        other => panic!("{other:?}"),
    }
    harness.frame(socket, SEND_MESSAGE, 5, b"x");
    harness.logic(answer(session_id, 5));
    assert_eq!(harness.read_one(socket).request_id, 5);
    harness.finish();
}

#[test]
fn a_logic_that_does_not_answer_gets_nobody_while_another_does() {
    let mut harness = Harness::linked(Settings::default());
    harness.up_without_reply(OTHER);
    let all = logged_in(&mut harness, 5);
    assert!(all.iter().all(|(_, _, home)| *home == LINK));
    harness.wait(1_000);
    assert_eq!(homes(&harness)[&OTHER], 0);
    // When it is the only one, it is all there is.
    harness.down(LINK);
    assert_eq!(homes(&harness)[&OTHER], 0, "its list is over");
    harness.up_without_reply(THIRD);
    assert_eq!(homes(&harness)[&THIRD], 5);
    harness.finish();
}

#[test]
fn a_logic_that_knows_no_moves_is_given_none() {
    let mut harness = Harness::linked(Settings::default());
    logged_in(&mut harness, 10);
    harness.up_without_reply(OTHER);
    let reply = millrace_protocol::link::HelloReply { window: Some(PLENTY), ..Default::default() };
    harness.says(OTHER, Kind::HelloReply(reply));
    harness.heard(OTHER);
    harness.wait(2_000);
    assert_eq!(harness.heard(OTHER), []);
    let all = logged_in(&mut harness, 5);
    assert!(all.iter().all(|(_, _, home)| *home == LINK), "those that know them come first");
    harness.finish();
}

#[test]
fn the_answer_to_a_login_counts_from_the_logic_that_was_asked() {
    let mut harness = two_logics(Settings::default());
    let socket = harness.tcp();
    harness.frame(socket, millrace_protocol::command::LOGIN, 1, b"");
    let session_id = harness.id(socket).raw();
    let is_asked = |heard: Vec<Event>| heard.iter().any(|event| matches!(event, Event::Login(_)));
    let asked = if is_asked(harness.heard(LINK)) { LINK } else { OTHER };
    let stranger = if asked == LINK { OTHER } else { LINK };
    harness.says(stranger, accepted(session_id, "mallory"));
    assert_eq!(harness.read(socket).0, []);
    harness.says(asked, accepted(session_id, "alice"));
    assert_eq!(harness.read_one(socket).request_id, 1);
    harness.finish();
}
