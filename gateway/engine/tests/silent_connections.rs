//! Whoever says nothing whole is closed in time, and not before.

mod harness;

use harness::{Harness, KEY};
use millrace_engine::{Settings, TransportKind};
use millrace_protocol::{
    Code,
    command::{HEARTBEAT, KICK, REFRESH, SEND_MESSAGE, reply},
    frame::{self, Flags},
    link::{Credit, LoginResult, RefreshResult, gateway_event::Kind as Event, logic_event::Kind},
    session,
    websocket::{Opcode, write_frame},
};
use prost::Message as _;

/// Waits until the connection is told its end; returns how long that took.
fn time_to_end(harness: &mut Harness, socket: u64, at_most_ms: u64) -> u64 {
    let start = harness.now.monotonic_ms;
    while !harness.socket(socket).write_shut {
        assert!(harness.now.monotonic_ms - start < at_most_ms, "it is still open");
        harness.wait(1);
    }
    harness.now.monotonic_ms - start
}

#[test]
fn silence_ends_a_session_between_15_and_15_5_seconds() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..20 {
        let mut harness = Harness::linked(Settings::default());
        let socket = if round % 2 == 0 { harness.tcp() } else { harness.websocket(None) };
        let session_id = harness.login(socket, "silent");
        for _ in 0..random.u8(..5) {
            harness.wait(random.u64(..14_900));
            harness.frame(socket, HEARTBEAT, 1, b"");
        }
        harness.read(socket);
        let silence_ms = time_to_end(&mut harness, socket, 20_000);
        assert!((15_000..15_500).contains(&silence_ms), "{silence_ms}");
        let (frames, _) = harness.read(socket);
        assert_eq!(frames[0].error().code, Code::IdleTimeout.number());
        assert_eq!(harness.sessions_ended(), [(session_id, Code::IdleTimeout.number())]);
        harness.finish();
    }
}

#[test]
fn ten_thousand_silent_sessions_end_and_leave_nothing_behind() {
    let mut harness = Harness::linked(Settings::default());
    let sockets: Vec<u64> = (0..10_000)
        .map(|_| {
            let socket = harness.tcp();
            let session_id = harness.ask_login(socket, "silent").session_id;
            harness.accept_login(session_id, "silent");
            socket
        })
        .collect();
    harness.to_logic.clear();
    harness.wait(14_999);
    assert_eq!(harness.sessions_ended().len(), 0);
    harness.wait(501);
    assert_eq!(harness.sessions_ended().len(), 10_000);
    // They do not close their end either: the linger ends them.
    harness.wait(2_100);
    assert!(sockets.iter().all(|socket| harness.sockets[socket].close_asked));
    assert!(harness.engine.is_empty());
    harness.finish();
}

#[test]
fn one_byte_a_second_does_not_keep_a_connection() {
    for kind in [TransportKind::Tcp, TransportKind::WebSocket] {
        let mut harness = Harness::linked(Settings::default());
        let socket = harness.connect_from(kind, "192.0.2.1");
        let drip = if kind == TransportKind::Tcp { &[0; 100][..] } else { &[b'G'; 100][..] };
        let mut elapsed = 0;
        for byte in drip {
            if harness.socket(socket).write_shut {
                break;
            }
            harness.bytes(socket, &[*byte]);
            harness.wait(1_000);
            elapsed += 1_000;
        }
        assert!((10_000..=11_000).contains(&elapsed), "{elapsed}");
        harness.finish();
    }
    for websocket in [false, true] {
        let mut harness = Harness::linked(Settings::default());
        let socket = if websocket { harness.websocket(None) } else { harness.tcp() };
        harness.login(socket, "slow");
        let mut bytes = Vec::new();
        frame::write(&mut bytes, SEND_MESSAGE, Flags::NONE, 1, &[0; 60_000]);
        if websocket {
            let payload = std::mem::take(&mut bytes);
            write_frame(&mut bytes, Opcode::Binary, true, Some(KEY), &payload);
        }
        let mut elapsed = 0;
        for byte in &bytes[..100] {
            if harness.socket(socket).write_shut {
                break;
            }
            harness.bytes(socket, &[*byte]);
            harness.wait(1_000);
            elapsed += 1_000;
        }
        assert!((15_000..=16_000).contains(&elapsed), "{elapsed}");
        harness.finish();
    }
}

#[test]
fn pings_are_activity() {
    let mut harness = Harness::linked(Settings::default());
    let socket = harness.websocket(None);
    harness.login(socket, "browser");
    for _ in 0..10 {
        harness.wait(10_000);
        harness.message(socket, Opcode::Ping, b"");
    }
    assert!(!harness.socket(socket).write_shut);
    harness.finish();
}

#[test]
fn no_login_within_the_deadline_ends_the_connection() {
    for ask in [false, true] {
        let mut harness = Harness::linked(Settings::default());
        let socket = harness.tcp();
        if ask {
            harness.ask_login(socket, "waiting");
        }
        let waited = time_to_end(&mut harness, socket, 12_000);
        assert!((10_000..10_500).contains(&waited), "{waited}");
        assert_eq!(harness.read_one(socket).error().code, Code::LoginTimeout.number());
        if ask {
            // Logic decides too late: it must not be left with a session of nobody.
            let session_id = harness.id(socket).raw();
            harness.accept_login(session_id, "waiting");
            let code = Code::LoginTimeout.number();
            assert_eq!(harness.sessions_ended(), [(session_id, code)]);
        }
        harness.finish();
    }
}

#[test]
fn a_session_ends_a_grace_after_its_token_unless_it_is_refreshed() {
    for refresh in [false, true] {
        // The token ends after 35 s, the grace five seconds later.
        let settings = Settings { token_grace_ms: 5_000, ..Settings::default() };
        let mut harness = Harness::linked(settings);
        let socket = harness.tcp();
        let session_id = harness.ask_login(socket, "mortal").session_id;
        let expires_at_ms = harness.now.unix_ms + 35_000;
        let user_id = "mortal".to_owned();
        let result = LoginResult { session_id, user_id, expires_at_ms, ..Default::default() };
        harness.logic(Kind::LoginResult(result));
        for _ in 0..39 {
            harness.frame(socket, HEARTBEAT, 1, b"");
            harness.wait(1_000);
        }
        harness.read(socket);
        if refresh {
            harness.to_logic.clear();
            let body = session::Refresh { token: "newer".to_owned() }.encode_to_vec();
            harness.frame(socket, REFRESH, 5, &body);
            assert!(matches!(&harness.to_logic[..], [Event::Refresh(r)] if r.token == "newer"));
            let expires_at_ms = expires_at_ms + 3_600_000;
            let result =
                RefreshResult { session_id, request_id: 5, expires_at_ms, ..Default::default() };
            harness.logic(Kind::RefreshResult(result));
            let frame = harness.read_one(socket);
            assert_eq!((frame.command, frame.request_id), (reply(REFRESH), 5));
            let body = session::RefreshReply::decode(&*frame.body).expect("a RefreshReply");
            assert_eq!(body.expires_at_ms, expires_at_ms);
            harness.wait(5_000);
            assert!(!harness.socket(socket).write_shut);
        } else {
            let left = time_to_end(&mut harness, socket, 2_000);
            assert!((1_000..1_100).contains(&left), "{left}");
            let code = Code::TokenExpired.number();
            let frame = harness.read_one(socket);
            assert_eq!(frame.command, KICK);
            let kick = session::Kick::decode(&*frame.body).expect("a Kick");
            assert_eq!((kick.code, &*kick.reason), (code, Code::TokenExpired.sentence()));
            assert_eq!(harness.sessions_ended(), [(session_id, code)]);
        }
        harness.finish();
    }
}

#[test]
fn a_connection_that_is_not_listened_to_is_not_idle() {
    let settings = Settings { link_credit_wait_max_ms: 0, ..Settings::default() };
    let mut harness = Harness::new(settings);
    harness.link_up(Credit { frames: 1, bytes: 1000 });
    let socket = harness.tcp();
    harness.login(socket, "held back");
    harness.frame(socket, SEND_MESSAGE, 1, b"a");
    harness.frame(socket, SEND_MESSAGE, 2, b"b");
    assert!(harness.socket(socket).paused);
    harness.wait(100_000);
    assert!(!harness.socket(socket).write_shut);
    harness.credit(1, 1);
    assert!(!harness.socket(socket).paused);
    let silence_ms = time_to_end(&mut harness, socket, 20_000);
    assert!((15_000..15_500).contains(&silence_ms), "{silence_ms}");
    harness.finish();
}
