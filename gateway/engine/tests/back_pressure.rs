//! A slow logic holds clients back through TCP, in order and without loss; a slow reader costs
//! itself only.

mod harness;

use bytes::Bytes;
use harness::{Harness, LINK};
use millrace_engine::{Dropped, Settings, SlowConsumer};
use millrace_protocol::{
    Code,
    command::{DELIVER, HEARTBEAT, REPORT, ROOM_MESSAGE, SEND_MESSAGE, TYPING, reply},
    link::{
        Credit, RoomFrame, RoomMembership, SendFrame, gateway_event::Kind as Event,
        logic_event::Kind,
    },
};

#[test]
fn without_credit_frames_wait_and_go_out_in_turn() {
    let mut harness = Harness::new(Settings::default());
    harness.link_up(Credit { frames: 2, bytes: 1000 });
    let sockets: Vec<u64> = (0..3)
        .map(|_| {
            let socket = harness.tcp();
            harness.login(socket, "user");
            socket
        })
        .collect();
    harness.to_logic.clear();
    for request_id in 1..=4 {
        for socket in &sockets {
            harness.frame(*socket, SEND_MESSAGE, request_id, b"x");
        }
    }
    for socket in &sockets {
        assert!(harness.socket(*socket).paused);
    }
    for _ in 0..10 {
        harness.credit(1, 1);
    }
    let mut seen: Vec<Vec<u32>> = vec![Vec::new(); 3];
    for event in &harness.to_logic {
        let Event::Frame(frame) = event else { panic!("{event:?}") };
        let ids: Vec<u64> = sockets.iter().map(|socket| harness.id(*socket).raw()).collect();
        let index = ids.iter().position(|id| *id == frame.session_id).expect("one of the three");
        seen[index].push(frame.request_id);
        let lengths: Vec<usize> = seen.iter().map(Vec::len).collect();
        let (least, most) = (lengths.iter().min(), lengths.iter().max());
        assert!(most <= least.map(|least| least + 2).as_ref(), "nobody is passed over");
    }
    assert!(seen.iter().all(|ids| ids == &[1, 2, 3, 4]), "{seen:?}");
    for socket in &sockets {
        assert!(!harness.socket(*socket).paused);
    }
    harness.finish();
}

#[test]
fn a_link_that_takes_nothing_is_not_asked_for_heartbeats_without_end() {
    let mut harness = Harness::linked(Settings::default());
    for _ in 0..3 {
        let due = harness.engine.next_deadline_ms().expect("a heartbeat is due");
        harness.now.monotonic_ms = due;
        harness.engine.tick(harness.now);
        // The ring of the stream is full: nothing can be taken.
        harness.engine.link_is_full(LINK);
        let next = harness.engine.next_deadline_ms().expect("a heartbeat is due");
        assert!(next >= due + 1_000, "asked again after {} ms", next - due);
    }
    let sent = harness.to_logic.len();
    harness.wait(4_000);
    assert_eq!(harness.to_logic.len(), sent, "a heartbeat has no events");
    harness.finish();
}

#[test]
fn a_backlog_is_bounded_and_what_is_beyond_is_told() {
    let settings = Settings { link_backlog_frames_max: 5, ..Settings::default() };
    let mut harness = Harness::new(settings);
    harness.link_up(Credit { frames: 0, bytes: 0 });
    let socket = harness.tcp();
    harness.login(socket, "user");
    for request_id in 1..=8 {
        harness.frame(socket, SEND_MESSAGE, request_id, b"x");
    }
    let (frames, _) = harness.read(socket);
    let told: Vec<(u32, u32)> = frames.iter().map(|f| (f.request_id, f.error().code)).collect();
    let code = Code::RateLimited.number();
    assert_eq!(told, [(6, code), (7, code), (8, code)]);
    assert_eq!(harness.engine.counters().dropped(Dropped::Backlog), 3);
    harness.finish();
}

/// The frames that logic has got since the last look, by request id.
fn forwarded(harness: &mut Harness) -> Vec<u32> {
    let frames = harness.to_logic.drain(..).filter_map(|event| match event {
        Event::Frame(frame) => Some(frame.request_id),
        _ => None,
    });
    frames.collect()
}

#[test]
fn what_waits_for_credit_too_long_is_refused_and_the_connection_is_read_again() {
    let settings = Settings { link_credit_wait_max_ms: 4_000, ..Settings::default() };
    let mut harness = Harness::new(settings);
    harness.link_up(Credit { frames: 1, bytes: 1000 });
    let socket = harness.tcp();
    harness.login(socket, "user");
    harness.to_logic.clear();
    for (command, request_id) in
        [(SEND_MESSAGE, 1), (SEND_MESSAGE, 2), (TYPING, 0), (REPORT, 3), (TYPING, 0)]
    {
        harness.frame(socket, command, request_id, b"x");
    }
    harness.wait(3_999);
    assert!(harness.socket(socket).paused);
    assert!(harness.read(socket).0.is_empty(), "not before its time");
    harness.wait(1);
    let (frames, _) = harness.read(socket);
    let told: Vec<(u32, u32, u32)> =
        frames.iter().map(|f| (f.request_id, f.error().code, f.error().retry_after_ms)).collect();
    let code = Code::RateLimited.number();
    assert_eq!(told, [(2, code, 1_000), (3, code, 1_000), (0, code, 1_000)]);
    assert_eq!(harness.engine.counters().dropped(Dropped::CreditWait), 4);
    assert_eq!(harness.engine.counters().backlog_frames, 0);
    assert!(!harness.socket(socket).paused);
    harness.frame(socket, HEARTBEAT, 4, b"");
    assert_eq!(harness.read_one(socket).request_id, 4);
    // What was refused was never logic's; what comes after it is.
    harness.credit(1, 1000);
    harness.frame(socket, SEND_MESSAGE, 5, b"x");
    assert_eq!(forwarded(&mut harness), [1, 5]);
    harness.finish();
}

#[test]
fn each_pause_has_its_own_time_and_who_gets_credit_in_time_loses_nothing() {
    let settings = Settings { link_credit_wait_max_ms: 4_000, ..Settings::default() };
    let mut harness = Harness::new(settings);
    harness.link_up(Credit { frames: 1, bytes: 1000 });
    let (early, late) = (harness.tcp(), harness.tcp());
    harness.login(early, "early");
    harness.login(late, "late");
    harness.to_logic.clear();
    harness.frame(early, SEND_MESSAGE, 1, b"x");
    harness.frame(early, SEND_MESSAGE, 2, b"x");
    harness.wait(1_000);
    harness.frame(late, SEND_MESSAGE, 11, b"x");
    harness.wait(1_000);
    // One credit: the early one goes on, and is held again.
    harness.credit(1, 1000);
    assert!(!harness.socket(early).paused);
    harness.frame(early, SEND_MESSAGE, 3, b"x");
    assert_eq!(forwarded(&mut harness), [1, 2]);
    harness.wait(2_999);
    assert!(harness.read(early).0.is_empty() && harness.read(late).0.is_empty());
    harness.wait(1);
    assert_eq!(harness.read_one(late).request_id, 11, "held for 4 s");
    assert!(harness.read(early).0.is_empty(), "held again for 3 s only");
    // The turn of the one that was refused is not kept for it.
    harness.frame(late, SEND_MESSAGE, 12, b"x");
    harness.credit(1, 1000);
    assert_eq!(forwarded(&mut harness), [3]);
    harness.credit(1, 1000);
    assert_eq!(forwarded(&mut harness), [12]);
    harness.finish();
}

#[test]
fn nobody_is_held_for_more_than_a_third_of_the_idle_timeout() {
    let settings = Settings { idle_timeout_ms: 6_000, ..Settings::default() };
    let mut harness = Harness::new(settings);
    harness.link_up(Credit { frames: 0, bytes: 0 });
    let socket = harness.tcp();
    harness.login(socket, "user");
    harness.frame(socket, SEND_MESSAGE, 1, b"x");
    harness.wait(1_999);
    assert!(harness.socket(socket).paused);
    harness.wait(1);
    assert_eq!(harness.read_one(socket).request_id, 1);
    assert!(!harness.socket(socket).paused);
    harness.finish();
}

#[test]
fn without_a_limit_frames_wait_for_credit_as_long_as_it_takes() {
    let settings = Settings { link_credit_wait_max_ms: 0, ..Settings::default() };
    let mut harness = Harness::new(settings);
    harness.link_up(Credit { frames: 0, bytes: 0 });
    let socket = harness.tcp();
    harness.login(socket, "user");
    harness.frame(socket, SEND_MESSAGE, 1, b"x");
    harness.wait(60_000);
    assert!(harness.socket(socket).paused && harness.read(socket).0.is_empty());
    harness.finish();
}

#[test]
fn those_who_are_held_again_and_again_leave_nothing_behind_in_the_queues() {
    let settings = Settings {
        frames_per_second_max: 1_000_000,
        frames_burst_max: 1_000_000,
        ..Settings::default()
    };
    let mut harness = Harness::new(settings);
    harness.link_up(Credit { frames: 1, bytes: 1000 });
    let socket = harness.tcp();
    harness.login(socket, "user");
    harness.frame(socket, SEND_MESSAGE, 1, b"x");
    let mut most = 0;
    for round in 0..20_000 {
        harness.frame(socket, TYPING, 0, b"x");
        assert!(harness.socket(socket).paused);
        harness.credit(1, 1000);
        assert!(!harness.socket(socket).paused, "round {round}");
        harness.to_logic.clear();
        if round == 1_000 {
            most = harness.engine.memory().effects;
        }
    }
    assert!(harness.engine.memory().effects <= most, "the queues grow");
    harness.finish();
}

#[test]
fn requests_in_flight_are_bounded() {
    let settings = Settings { requests_in_flight_max: 2, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    let socket = harness.tcp();
    harness.login(socket, "user");
    for request_id in 1..=3 {
        harness.frame(socket, SEND_MESSAGE, request_id, b"x");
    }
    let frame = harness.read_one(socket);
    assert_eq!((frame.request_id, frame.error().code), (3, Code::RateLimited.number()));
    harness.finish();
}

fn deliver(session_ids: Vec<u64>, body: Vec<u8>) -> Kind {
    let body = Bytes::from(body);
    Kind::SendFrame(SendFrame {
        session_ids,
        command: u32::from(DELIVER),
        flags: 0,
        request_id: 0,
        body,
    })
}

/// A room with one member that never reads and many that do; `flood` messages are sent to it.
fn flood(policy: SlowConsumer, flood: u32) -> (Harness, u64, Vec<u64>) {
    let settings = Settings { slow_consumer: policy, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    let mut ids = Vec::new();
    let mut sockets = Vec::new();
    for index in 0..20 {
        let socket = if index % 2 == 0 { harness.tcp() } else { harness.websocket(None) };
        ids.push(harness.login(socket, "member"));
        sockets.push(socket);
    }
    let slow = sockets.remove(7);
    harness.socket(slow).stuck = true;
    harness.to_logic.clear();
    harness.logic(Kind::RoomMembership(RoomMembership {
        room_id: "hall".to_owned(),
        join_session_ids: ids,
        leave_session_ids: Vec::new(),
    }));
    for number in 0..flood {
        let mut body = number.to_be_bytes().to_vec();
        body.resize(1000, 0);
        harness.logic(Kind::RoomFrame(RoomFrame {
            room_id: "hall".to_owned(),
            command: u32::from(ROOM_MESSAGE),
            body_protobuf: Bytes::from(body),
            ..RoomFrame::default()
        }));
        let most = harness.engine.counters().send_queue_bytes;
        assert!(most <= 256 * 1024 + 300_000, "the queue is bounded: {most}");
    }
    (harness, slow, sockets)
}

fn numbers(harness: &mut Harness, socket: u64) -> Vec<u32> {
    let (frames, _) = harness.read(socket);
    let rooms = frames.iter().filter(|frame| frame.command == ROOM_MESSAGE);
    rooms.map(|f| u32::from_be_bytes(f.body[..4].try_into().expect("four bytes"))).collect()
}

#[test]
fn a_reader_that_never_reads_is_closed_and_the_others_get_everything() {
    let (mut harness, slow, others) = flood(SlowConsumer::Close, 1000);
    for socket in others {
        assert_eq!(numbers(&mut harness, socket), (0..1000).collect::<Vec<_>>());
    }
    let id = harness.id(slow);
    assert_eq!(harness.sessions_ended(), [(id.raw(), Code::SlowConsumer.number())]);
    // It starts to read at last: what was under way is whole, then it is told why.
    harness.unstick(slow);
    let (frames, close) = harness.read(slow);
    assert_eq!(frames.last().expect("a farewell").error().code, Code::SlowConsumer.number());
    assert!(close.is_none_or(|close| close == Code::SlowConsumer.websocket_close_code()));
    harness.finish();
}

#[test]
fn a_reader_that_reads_again_after_a_drop_is_told_of_the_gap() {
    let (mut harness, slow, others) = flood(SlowConsumer::Drop, 1000);
    for socket in others {
        assert_eq!(numbers(&mut harness, socket).len(), 1000);
    }
    assert_eq!(harness.sessions_ended(), []);
    let id = harness.id(slow);
    harness.unstick(slow);
    let (frames, _) = harness.read(slow);
    let delivered = frames.iter().filter(|frame| frame.command == ROOM_MESSAGE).count() as u64;
    let dropped = harness.engine.counters().dropped(Dropped::SlowConsumer);
    assert_eq!(delivered + dropped, 1000, "every frame is delivered or counted");
    let last = frames.last().expect("the gap's mark");
    assert_eq!((last.request_id, last.error().code), (0, Code::SlowConsumer.number()));
    harness.logic(deliver(vec![id.raw()], b"after".to_vec()));
    assert_eq!(harness.read_one(slow).body, b"after");
    harness.finish();
}

#[test]
fn a_reply_that_does_not_fit_becomes_an_error_for_its_request() {
    let settings = Settings { slow_consumer: SlowConsumer::Drop, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    let socket = harness.tcp();
    let session_id = harness.login(socket, "slow");
    harness.socket(socket).stuck = true;
    harness.frame(socket, SEND_MESSAGE, 9, b"x");
    for _ in 0..10 {
        harness.logic(deliver(vec![session_id], vec![0; 60_000]));
    }
    harness.logic(Kind::SendFrame(SendFrame {
        session_ids: vec![session_id],
        command: u32::from(reply(SEND_MESSAGE)),
        flags: 0,
        request_id: 9,
        body: Bytes::from(vec![0; 60_000]),
    }));
    harness.unstick(socket);
    let (frames, _) = harness.read(socket);
    let answers: Vec<_> = frames.iter().filter(|frame| frame.request_id == 9).collect();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].error().code, Code::SlowConsumer.number());
    harness.finish();
}

#[test]
fn one_large_frame_meets_an_empty_queue() {
    let mut harness = Harness::linked(Settings::default());
    let socket = harness.websocket(None);
    let session_id = harness.login(socket, "user");
    harness.logic(deliver(vec![session_id], vec![1; 1_000_000]));
    assert_eq!(harness.read_one(socket).body.len(), 1_000_000);
    harness.finish();
}
