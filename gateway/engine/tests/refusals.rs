//! Whatever a client does wrong gets the answer that the protocol names, on TCP and on WebSocket,
//! and harms nobody else.

mod harness;

use harness::{Harness, KEY};
use millrace_engine::{Settings, TransportKind};
use millrace_protocol::{
    Code,
    command::{self, ERROR, HEARTBEAT, LOGIN, LOGOUT, REFRESH, SEND_MESSAGE, reply},
    frame::{self, Flags},
    link::{LoginResult, logic_event::Kind},
    session,
    websocket::{Opcode, write_frame},
};
use prost::Message as _;

/// Both transports; on WebSocket the frames travel in binary messages.
fn both(mut check: impl FnMut(&mut Harness, u64, bool)) {
    for websocket in [false, true] {
        let mut harness = Harness::linked(Settings::default());
        let neighbour = harness.tcp();
        harness.login(neighbour, "neighbour");
        let socket = if websocket { harness.websocket(None) } else { harness.tcp() };
        check(&mut harness, socket, websocket);
        harness.frame(neighbour, HEARTBEAT, 77, b"");
        assert_eq!(harness.read_one(neighbour).request_id, 77, "the neighbour was harmed");
        harness.finish();
    }
}

/// The connection was refused with one ERROR and is at its end.
#[track_caller]
fn assert_ended(harness: &mut Harness, socket: u64, websocket: bool, code: Code, request_id: u32) {
    let (frames, close) = harness.read(socket);
    let last = frames.last().expect("an ERROR");
    assert_eq!(last.error().code, code.number());
    assert_eq!(last.request_id, request_id);
    assert_eq!(close, websocket.then_some(code.websocket_close_code()));
    let state = harness.socket(socket);
    assert!(state.write_shut && !state.close_asked, "the peer may still read its farewell");
    harness.end(socket);
    assert!(harness.socket(socket).close_asked);
}

fn raw(harness: &mut Harness, socket: u64, websocket: bool, bytes: &[u8]) {
    if websocket {
        harness.message(socket, Opcode::Binary, bytes);
    } else {
        harness.bytes(socket, bytes);
    }
}

#[test]
fn headers_that_break_the_protocol_end_the_connection() {
    // Which byte of the header is spoiled, and with what.
    let cases =
        [(4, 2, Code::UnsupportedVersion), (5, 0x10, Code::BadFrame), (0, 0x7F, Code::TooLarge)];
    for (at, byte, code) in cases {
        both(|harness, socket, websocket| {
            let mut bytes = Vec::new();
            frame::write(&mut bytes, HEARTBEAT, Flags::NONE, 42, b"");
            bytes[at] = byte;
            raw(harness, socket, websocket, &bytes);
            assert_ended(harness, socket, websocket, code, 42);
        });
    }
}

#[test]
fn a_command_before_the_login_is_refused_and_the_connection_stays() {
    both(|harness, socket, _| {
        for (request_id, command) in [(5, HEARTBEAT), (6, SEND_MESSAGE), (7, LOGOUT)] {
            harness.frame(socket, command, request_id, b"");
            let frame = harness.read_one(socket);
            assert_eq!(frame.request_id, request_id);
            assert_eq!(frame.error().code, Code::NotLoggedIn.number());
        }
        harness.login(socket, "late");
    });
}

#[test]
fn refusals_without_end_close_the_connection() {
    both(|harness, socket, websocket| {
        let refusals_max = u32::from(Settings::default().refusals_max);
        for request_id in 1..=refusals_max {
            harness.frame(socket, HEARTBEAT, request_id, b"");
            assert!(!harness.socket(socket).write_shut);
        }
        harness.frame(socket, HEARTBEAT, 99, b"");
        assert_ended(harness, socket, websocket, Code::NotLoggedIn, 99);
    });
}

#[test]
fn a_refused_login_is_told_twice_and_ends_the_connection() {
    for code in [Code::BadToken, Code::TokenExpired, Code::OverCapacity] {
        both(|harness, socket, websocket| {
            let session_id = harness.ask_login(socket, "mallory").session_id;
            let result = LoginResult { session_id, code: code.number(), ..Default::default() };
            harness.logic(Kind::LoginResult(result));
            let received = harness.socket(socket).received.clone();
            let (frames, _) = harness.read(socket);
            assert_eq!(frames.len(), 2);
            assert_eq!(frames[0].command, reply(LOGIN));
            let login = session::LoginReply::decode(&*frames[0].body).expect("a LoginReply");
            assert_eq!(login.code, code.number());
            harness.socket(socket).received = received;
            assert_ended(harness, socket, websocket, code, 1);
            assert_eq!(harness.sessions_ended(), [], "there never was a session");
        });
    }
}

#[test]
fn a_login_while_logic_is_away_may_be_tried_again() {
    both(|harness, socket, _| {
        harness.link_down();
        let login = session::Login::default().encode_to_vec();
        harness.frame(socket, LOGIN, 9, &login);
        let (frames, _) = harness.read(socket);
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0].command, reply(LOGIN));
        assert_eq!(frames[1].error().code, Code::LogicUnavailable.number());
        assert!(frames[1].error().retry_after_ms > 0);
        assert!(!harness.socket(socket).write_shut);
        harness.link_up(harness::PLENTY);
        harness.login(socket, "patient");
    });
}

#[test]
fn a_logged_in_client_is_refused_what_it_may_not_ask() {
    both(|harness, socket, _| {
        harness.login(socket, "alice");
        let server_only = [command::KICK, command::GOAWAY, ERROR];
        for command in server_only.into_iter().chain([0x0000, 0x0042, reply(SEND_MESSAGE)]) {
            harness.frame(socket, command, 3, b"");
            let frame = harness.read_one(socket);
            assert_eq!(frame.error().code, Code::UnknownCommand.number(), "{command:#x}");
        }
        harness.frame(socket, LOGIN, 4, b"");
        assert_eq!(harness.read_one(socket).error().code, Code::AlreadyLoggedIn.number());
        harness.flagged(socket, SEND_MESSAGE, Flags::COMPRESSED, 5, b"");
        assert_eq!(harness.read_one(socket).error().code, Code::BadRequest.number());
        harness.frame(socket, REFRESH, 6, b"\xFF\xFF");
        assert_eq!(harness.read_one(socket).error().code, Code::BadRequest.number());
        harness.frame(socket, HEARTBEAT, 0, b"");
        let frame = harness.read_one(socket);
        assert_eq!((frame.command, frame.request_id, frame.body.len()), (reply(HEARTBEAT), 0, 0));
    });
}

#[test]
fn websocket_violations_are_told_and_end_the_connection() {
    let unmasked = vec![0x82, 0x01, 0x00];
    let mut not_utf8 = Vec::new();
    write_frame(&mut not_utf8, Opcode::Text, true, Some(KEY), &[0xC0, 0x80]);
    let reserved = vec![0xC2, 0x80, 0, 0, 0, 0];
    let mut half_a_frame = Vec::new();
    write_frame(&mut half_a_frame, Opcode::Binary, true, Some(KEY), &[0, 0, 0, 1, 1]);
    let mut not_json = Vec::new();
    write_frame(&mut not_json, Opcode::Text, true, Some(KEY), b"hello");
    let mut fragments = Vec::new();
    write_frame(&mut fragments, Opcode::Binary, false, Some(KEY), &[0; 60_000]);
    write_frame(&mut fragments, Opcode::Continuation, false, Some(KEY), &[0; 60_000]);
    for (bytes, code) in [
        (unmasked, Code::BadFrame),
        (not_utf8, Code::BadFrame),
        (reserved, Code::BadFrame),
        (half_a_frame, Code::BadFrame),
        (not_json, Code::BadFrame),
        (fragments, Code::TooLarge),
    ] {
        let mut harness = Harness::linked(Settings::default());
        let socket = harness.websocket(None);
        harness.login(socket, "alice");
        harness.to_logic.clear();
        harness.bytes(socket, &bytes);
        assert_ended(&mut harness, socket, true, code, 0);
        assert_eq!(harness.sessions_ended(), [(harness.id(socket).raw(), code.number())]);
        harness.finish();
    }
}

#[test]
fn a_negotiated_subprotocol_admits_its_own_messages_only() {
    let mut harness = Harness::linked(Settings::default());
    let text = harness.websocket(Some("millrace.v1.json"));
    let mut heartbeat = Vec::new();
    frame::write(&mut heartbeat, HEARTBEAT, Flags::NONE, 1, b"");
    harness.message(text, Opcode::Binary, &heartbeat);
    assert_ended(&mut harness, text, true, Code::BadFrame, 0);
    let binary = harness.websocket(Some("millrace.v1"));
    harness.message(binary, Opcode::Text, br#"{"command": "heartbeat", "request_id": 1}"#);
    assert_ended(&mut harness, binary, true, Code::BadFrame, 0);
    let mixed = harness.websocket(None);
    harness.message(mixed, Opcode::Text, br#"{"command": "heartbeat", "request_id": 1}"#);
    assert!(harness.read_one(mixed).json);
    harness.message(mixed, Opcode::Binary, &heartbeat);
    assert!(!harness.read_one(mixed).json);
    harness.finish();
}

#[test]
fn an_upgrade_elsewhere_or_from_a_foreign_page_is_refused_in_http() {
    let settings =
        Settings { allowed_origins: vec!["https://chat.example".to_owned()], ..Default::default() };
    let mut harness = Harness::linked(settings);
    let status = |harness: &mut Harness, socket: u64| {
        let received = std::mem::take(&mut harness.socket(socket).received);
        assert!(harness.socket(socket).write_shut);
        String::from_utf8_lossy(&received[9..12]).into_owned()
    };
    let elsewhere = harness.connect_from(TransportKind::WebSocket, "192.0.2.1");
    harness.upgrade(elsewhere, "/other", None);
    assert_eq!(status(&mut harness, elsewhere), "404");

    let foreign = harness.connect_from(TransportKind::WebSocket, "192.0.2.1");
    let request = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Origin: https://elsewhere.example\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    harness.bytes(foreign, request.as_bytes());
    assert_eq!(status(&mut harness, foreign), "403");

    let garbage = harness.connect_from(TransportKind::WebSocket, "192.0.2.1");
    harness.bytes(garbage, b"\x16\x03\x01\x02\x00\x01\x00\x01");
    assert_eq!(status(&mut harness, garbage), "400");
    harness.finish();
}

#[test]
fn connections_over_a_limit_are_told_so() {
    let settings =
        Settings { connections_max: 3, connections_per_address_max: 2, ..Settings::default() };
    let mut harness = Harness::linked(settings);
    harness.connect_from(TransportKind::Tcp, "2001:db8::1");
    harness.connect_from(TransportKind::Tcp, "2001:db8::2");
    let third = harness.connect_from(TransportKind::Tcp, "2001:db8::3");
    assert_ended(&mut harness, third, false, Code::RateLimited, 0);
    harness.connect_from(TransportKind::Tcp, "192.0.2.9");
    let fourth = harness.connect_from(TransportKind::WebSocket, "192.0.2.10");
    assert!(harness.socket(fourth).received.starts_with(b"HTTP/1.1 503 "));
    harness.end(fourth);
    let fifth = harness.connect_from(TransportKind::Tcp, "192.0.2.10");
    assert_ended(&mut harness, fifth, false, Code::OverCapacity, 0);
    harness.finish();
}

#[test]
fn a_flood_is_held_to_the_rate() {
    both(|harness, socket, websocket| {
        harness.login(socket, "eager");
        let burst = Settings::default().frames_burst_max;
        let mut refused = 0;
        for request_id in 1..=burst + 10 {
            harness.frame(socket, HEARTBEAT, request_id, b"");
            let frame = harness.read_one(socket);
            assert_eq!(frame.request_id, request_id);
            if frame.command == ERROR {
                assert_eq!(frame.error().code, Code::RateLimited.number());
                assert!(frame.error().retry_after_ms > 0);
                refused += 1;
            }
        }
        // One token of the burst went to LOGIN.
        assert_eq!(refused, 11, "websocket: {websocket}");
        harness.wait(1_000);
        harness.frame(socket, HEARTBEAT, 1, b"");
        assert_eq!(harness.read_one(socket).command, reply(HEARTBEAT));
    });
}
