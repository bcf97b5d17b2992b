//! The upgrade, both sides, against another implementation (tungstenite) and against each other.

#![expect(
    clippy::disallowed_methods,
    reason = "the other implementation blocks, so it has a thread"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use millrace_protocol::{
    Code,
    websocket::{
        Upgrade, UpgradeError, UpgradeProgress, read_upgrade, read_upgrade_response,
        write_upgrade_refusal, write_upgrade_request, write_upgrade_response,
    },
};

const KEY: [u8; 16] = *b"the sample nonce";

/// Reads from the stream until `parse` has seen a whole head.
fn read_head<T>(stream: &mut UnixStream, parse: impl Fn(&[u8]) -> Option<T>) -> T {
    let mut held = Vec::new();
    let mut buffer = [0; 100];
    loop {
        let length = stream.read(&mut buffer).expect("the other side is there");
        assert!(length > 0, "the other side hung up");
        held.extend_from_slice(&buffer[..length]);
        if let Some(value) = parse(&held) {
            return value;
        }
    }
}

fn upgrade_of(head: &[u8]) -> Option<Upgrade> {
    match read_upgrade(head).expect("a valid request") {
        UpgradeProgress::Incomplete => None,
        UpgradeProgress::Complete { upgrade, .. } => Some(upgrade),
    }
}

#[test]
fn another_client_accepts_our_answer() {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let client = std::thread::spawn(move || {
        let request = tungstenite::ClientRequestBuilder::new(
            "ws://localhost:9/ws?x=1".parse().expect("a URI"),
        )
        .with_sub_protocol("millrace.v1.json")
        .with_sub_protocol("millrace.v1");
        let (_, response) = tungstenite::client(request, theirs).expect("an upgrade");
        response.headers()["sec-websocket-protocol"].to_str().expect("ASCII").to_owned()
    });
    let upgrade = read_head(&mut ours, upgrade_of);
    assert_eq!(upgrade.path, "/ws");
    assert_eq!(upgrade.subprotocols, ["millrace.v1.json", "millrace.v1"]);
    let mut answer = Vec::new();
    write_upgrade_response(&mut answer, &upgrade, Some("millrace.v1"));
    ours.write_all(&answer).expect("the other side is there");
    assert_eq!(client.join().expect("no panic"), "millrace.v1");
}

#[test]
fn another_server_accepts_our_request() {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let server = std::thread::spawn(move || {
        tungstenite::accept(theirs).expect("an upgrade");
    });
    let mut request = Vec::new();
    write_upgrade_request(&mut request, "localhost:9", "/ws", None, &KEY);
    ours.write_all(&request).expect("the other side is there");
    let subprotocol = read_head(&mut ours, |head| {
        read_upgrade_response(head, &KEY).expect("a valid answer").map(|(_, chosen)| chosen)
    });
    assert_eq!(subprotocol, None);
    server.join().expect("no panic");
}

#[test]
fn both_of_our_sides_agree_at_every_cut() {
    let mut request = Vec::new();
    write_upgrade_request(&mut request, "localhost:9", "/ws", Some("millrace.v1"), &KEY);
    let upgrade = upgrade_of(&request).expect("whole");
    let mut answer = Vec::new();
    write_upgrade_response(&mut answer, &upgrade, Some("millrace.v1"));
    let length = answer.len();
    for cut in 0..length {
        assert_eq!(read_upgrade_response(&answer[..cut], &KEY), Ok(None));
    }
    answer.extend_from_slice(b"\x82\x00");
    let chosen = Some("millrace.v1".to_owned());
    assert_eq!(read_upgrade_response(&answer, &KEY), Ok(Some((length, chosen))));
}

#[test]
fn an_answer_that_does_not_fit_is_refused() {
    let mut request = Vec::new();
    write_upgrade_request(&mut request, "localhost:9", "/ws", None, &KEY);
    let upgrade = upgrade_of(&request).expect("whole");
    let mut answer = Vec::new();
    write_upgrade_response(&mut answer, &upgrade, None);
    let refused = |answer: &[u8]| read_upgrade_response(answer, &KEY).expect_err("refused");

    let another = read_upgrade_response(&answer, b"some other nonce");
    assert_eq!(another, Err(UpgradeError::BadAnswer));
    let text = String::from_utf8(answer).expect("ASCII");
    for (from, to) in [
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("Connection: Upgrade", "Connection: close"),
        ("Connection", "Sec-WebSocket-Extensions: x\r\nConnection"),
        ("Connection", "Sec-WebSocket-Protocol: a, b\r\nConnection"),
    ] {
        assert_eq!(refused(text.replace(from, to).as_bytes()), UpgradeError::BadAnswer, "{to}");
    }
    assert_eq!(refused(b"\x00\x01\x02"), UpgradeError::NotHttp);
    assert_eq!(refused(&[b'a'; 10_000]), UpgradeError::NotHttp);

    let mut refusal = Vec::new();
    write_upgrade_refusal(&mut refusal, &UpgradeError::Refused(Code::Draining));
    assert_eq!(refused(&refusal), UpgradeError::Status(503));
}
