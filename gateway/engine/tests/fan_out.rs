//! One frame for many: what logic publishes once reaches each receiver once, in its encoding and
//! in its place.

mod harness;

use bytes::Bytes;
use harness::Harness;
use millrace_engine::Settings;
use millrace_protocol::{
    command::NOTICE,
    link::{BroadcastFrame, logic_event::Kind},
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
