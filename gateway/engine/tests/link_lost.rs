//! While logic is away sessions stay and requests are answered; when it is back it learns which
//! sessions live, and of each end once.

mod harness;

use bytes::Bytes;
use harness::{Harness, LINK, PLENTY};
use millrace_engine::Settings;
use millrace_protocol::{
    Code,
    command::{HEARTBEAT, LOGIN, REPORT, SEND_MESSAGE, TYPING, reply},
    frame::{self, Flags},
    link::{
        Credit, HelloReply, LoginResult, SendFrame, gateway_event::Kind as Event, logic_event::Kind,
    },
};

fn send_reply(session_id: u64, request_id: u32) -> Kind {
    Kind::SendFrame(SendFrame {
        session_ids: vec![session_id],
        command: u32::from(reply(SEND_MESSAGE)),
        flags: 0,
        request_id,
        body: Bytes::from_static(b"ok"),
    })
}

#[test]
fn requests_in_flight_and_new_ones_are_answered_and_sessions_stay() {
    let mut harness = Harness::new(Settings::default());
    harness.link_up(Credit { frames: 3, bytes: 1000 });
    let socket = harness.tcp();
    let session_id = harness.login(socket, "alice");
    for request_id in 10..16 {
        harness.frame(socket, SEND_MESSAGE, request_id, b"x");
    }
    harness.frame(socket, TYPING, 0, b"");
    harness.logic(send_reply(session_id, 11));
    assert_eq!(harness.read_one(socket).request_id, 11);
    assert!(harness.socket(socket).paused);

    harness.link_down();
    assert!(!harness.socket(socket).paused, "nothing waits for credit any more");
    let (frames, _) = harness.read(socket);
    let mut answered: Vec<u32> = frames.iter().map(|frame| frame.request_id).collect();
    answered.sort_unstable();
    assert_eq!(answered, [0, 10, 12, 13, 14, 15], "each once; 0 stands for the typing");
    for frame in frames {
        assert_eq!(frame.error().code, Code::LogicUnavailable.number());
        assert!(frame.error().retry_after_ms > 0);
    }

    harness.frame(socket, SEND_MESSAGE, 20, b"x");
    assert_eq!(harness.read_one(socket).error().code, Code::LogicUnavailable.number());
    harness.frame(socket, HEARTBEAT, 21, b"");
    assert_eq!(harness.read_one(socket).command, reply(HEARTBEAT));

    harness.to_logic.clear();
    harness.link_up(PLENTY);
    match &harness.to_logic[..] {
        [Event::Hello(hello), Event::Session(session), Event::SessionsComplete(complete)] => {
            assert_eq!((hello.gateway_epoch, hello.shard), (7, 3));
            assert_eq!((session.session_id, &*session.user_id), (session_id, "alice"));
            assert_eq!((&*session.device_id, &*session.state), ("device", &b"state"[..]));
            assert_eq!(session.logged_in_at_ms, 1_700_000_000_000);
            assert_eq!(complete.sessions, 1);
        }
        other => panic!("{other:?}"),
    }
    harness.frame(socket, SEND_MESSAGE, 30, b"x");
    harness.logic(send_reply(session_id, 30));
    assert_eq!(harness.read_one(socket).command, reply(SEND_MESSAGE));
    harness.logic(send_reply(session_id, 30));
    harness.logic(send_reply(session_id, 12));
    assert_eq!(harness.read(socket).0, [], "answered once");
    harness.finish();
}

#[test]
fn an_end_while_the_link_is_away_is_told_by_the_list() {
    let mut harness = Harness::linked(Settings::default());
    let gone = harness.tcp();
    harness.login(gone, "gone");
    let stays = harness.tcp();
    let stays_id = harness.login(stays, "stays");
    harness.link_down();
    harness.end(gone);
    harness.to_logic.clear();
    harness.link_up(PLENTY);
    let listed: Vec<u64> = harness
        .to_logic
        .iter()
        .filter_map(|event| match event {
            Event::Session(session) => Some(session.session_id),
            _ => None,
        })
        .collect();
    assert_eq!(listed, [stays_id]);
    assert_eq!(harness.sessions_ended(), []);
    harness.end(stays);
    assert_eq!(harness.sessions_ended(), [(stays_id, Code::PeerGone.number())]);
    harness.finish();
}

#[test]
fn an_end_during_the_list_is_told_exactly_once() {
    // Batches of two events, so that the list takes several.
    let settings = Settings { link_batch_events_max: 2, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    let sockets: Vec<u64> = (0..6)
        .map(|_| {
            let socket = harness.tcp();
            harness.login(socket, "user");
            socket
        })
        .collect();
    harness.link_down();
    harness.engine.link_up(harness.now, LINK);
    let first = harness.engine.take_link_batch(LINK).expect("Hello");
    assert_eq!(first.events.len(), 2);
    // The first session was listed, the last was not.
    let (first_id, last_id) = (harness.id(sockets[0]), harness.id(sockets[5]));
    harness.engine.receive_ended(harness.now, first_id);
    harness.engine.receive_ended(harness.now, last_id);
    harness.to_logic.clear();
    harness.settle();
    let listed = harness.to_logic.iter().filter(|event| matches!(event, Event::Session(_)));
    assert_eq!(listed.count(), 4);
    let complete = harness.to_logic.iter().position(|e| matches!(e, Event::SessionsComplete(_)));
    assert_eq!(complete, Some(4), "ends of sessions come after the list");
    assert_eq!(harness.sessions_ended(), [(first_id.raw(), Code::PeerGone.number())]);
    harness.finish();
}

#[test]
fn a_frame_sent_during_the_list_waits_for_it_and_goes_with_a_session_that_ends_unlisted() {
    let settings = Settings { link_batch_events_max: 2, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    let sockets: Vec<u64> = (0..6)
        .map(|_| {
            let socket = harness.tcp();
            harness.login(socket, "user");
            socket
        })
        .collect();
    harness.link_down();
    harness.engine.link_up(harness.now, LINK);
    let first = harness.engine.take_link_batch(LINK).expect("Hello");
    assert_eq!(first.events.len(), 2);
    let reply = HelloReply { window: Some(PLENTY), ..HelloReply::default() };
    harness.tell_first(vec![Kind::HelloReply(reply)]);
    // None of the last two was listed; one of them ends before its turn.
    let (stays, ends) = (harness.id(sockets[4]), harness.id(sockets[5]));
    for (id, body) in [(stays, b"stays"), (ends, b"goes!")] {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, SEND_MESSAGE, Flags::NONE, 9, body);
        harness.engine.received(harness.now, id, &mut bytes);
    }
    harness.engine.receive_ended(harness.now, ends);
    harness.to_logic.clear();
    harness.settle();
    let place = |of: &dyn Fn(&Event) -> bool| harness.to_logic.iter().position(of);
    let complete = place(&|event| matches!(event, Event::SessionsComplete(_))).expect("listed");
    let sent = place(&|event| matches!(event, Event::Frame(_))).expect("one was sent");
    assert!(sent > complete, "a frame before the list's end");
    let frames = harness.to_logic.iter().filter_map(|event| match event {
        Event::Frame(frame) => Some(frame.session_id),
        _ => None,
    });
    assert_eq!(frames.collect::<Vec<_>>(), [stays.raw()], "of the one that logic knows");
    harness.finish();
}

#[test]
fn a_pending_login_fails_with_the_link_and_may_be_tried_again() {
    let mut harness = Harness::linked(Settings::default());
    let socket = harness.tcp();
    harness.ask_login(socket, "alice");
    harness.link_down();
    let (frames, _) = harness.read(socket);
    assert_eq!(frames.len(), 2);
    assert_eq!((frames[0].command, frames[0].request_id), (reply(LOGIN), 1));
    assert_eq!(frames[1].error().code, Code::LogicUnavailable.number());
    harness.link_up(PLENTY);
    harness.login(socket, "alice");
    harness.finish();
}

#[test]
fn a_login_whose_client_left_becomes_an_ended_session() {
    let mut harness = Harness::linked(Settings::default());
    for code in [Code::Ok, Code::BadToken] {
        let socket = harness.tcp();
        let session_id = harness.ask_login(socket, "hasty").session_id;
        harness.end(socket);
        assert!(harness.socket(socket).close_asked);
        harness.to_logic.clear();
        let result = LoginResult { session_id, code: code.number(), ..Default::default() };
        harness.logic(Kind::LoginResult(result.clone()));
        harness.logic(Kind::LoginResult(result));
        let expected: &[(u64, u32)] = match code {
            Code::Ok => &[(session_id, Code::PeerGone.number())],
            _ => &[],
        };
        assert_eq!(harness.sessions_ended(), expected);
    }
    harness.finish();
}

#[test]
fn a_report_is_acknowledged_when_the_link_has_taken_it() {
    let mut harness = Harness::new(Settings::default());
    harness.link_up(Credit { frames: 1, bytes: 1000 });
    let socket = harness.tcp();
    harness.login(socket, "sensor");
    harness.to_logic.clear();
    harness.frame(socket, REPORT, 5, b"first");
    let frame = harness.read_one(socket);
    assert_eq!((frame.command, frame.request_id), (reply(REPORT), 5));
    assert!(matches!(
        &harness.to_logic[..],
        [Event::Frame(frame)] if frame.request_id == 0 && &*frame.body == b"first"
    ));
    harness.frame(socket, REPORT, 6, b"second");
    assert_eq!(harness.read(socket).0, [], "no credit: not taken");
    harness.credit(1, 5);
    assert_eq!(harness.read_one(socket).request_id, 6);
    harness.frame(socket, REPORT, 7, b"third");
    harness.link_down();
    let frame = harness.read_one(socket);
    assert_eq!((frame.request_id, frame.error().code), (7, Code::LogicUnavailable.number()));
    harness.finish();
}

#[test]
fn an_idle_link_is_kept_alive_by_empty_batches() {
    let mut harness = Harness::linked(Settings::default());
    let mut heartbeats = 0;
    for _ in 0..100 {
        harness.now.monotonic_ms += 100;
        harness.engine.tick(harness.now);
        if let Some(batch) = harness.engine.take_link_batch(LINK) {
            assert!(batch.events.is_empty());
            heartbeats += 1;
        }
    }
    assert_eq!(heartbeats, 2, "a third of the lease of ten seconds");
    harness.finish();
}
