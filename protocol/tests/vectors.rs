//! Every vector of `vectors/*.json`, read by this crate. The files are what other languages hold
//! their clients against; this test is what keeps the files true.

use millrace_protocol::{
    Code, chat, command,
    frame::{self, Flags, FrameReader, HEADER_BYTES},
    session, text,
    websocket::{
        Limits, Message, MessageReader, Role, UpgradeProgress, WebSocketError, read_upgrade,
        write_upgrade_refusal, write_upgrade_response,
    },
};
use serde_json::{Value, json};

fn load(name: &str) -> Value {
    let path = format!("{}/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(path).expect("the vector file is there");
    serde_json::from_str(&source).expect("the vector file is JSON")
}

/// The rows of a list, which must not be empty.
fn rows<'a>(document: &'a Value, list: &str) -> impl Iterator<Item = (&'a Value, &'a str)> {
    let rows = document[list].as_array().expect("a list");
    assert!(!rows.is_empty(), "{list} has no vectors");
    rows.iter().map(|row| (row, row["name"].as_str().expect("a name")))
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().expect("hex");
    assert_eq!(hex.len() % 2, 0);
    (0..hex.len() / 2)
        .map(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).expect("hex"))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn string(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn assert_code(code: Code, row: &Value, name: &str) {
    assert_eq!(json!(code.label()), row["label"], "{name}");
    assert_eq!(json!(code.number()), row["code"], "{name}");
}

#[test]
fn frames() {
    let document = load("frames");
    let body_bytes_max = document["body_bytes_max"].as_u64().expect("a number") as u32;
    // Whole, and byte by byte.
    let read = |stream: &[u8], step: usize| {
        let mut reader = FrameReader::new();
        let mut frames = Vec::new();
        for piece in stream.chunks(step) {
            let result = reader.read(piece, body_bytes_max, |header, body| {
                frames.push(json!({
                    "command": header.command,
                    "flags": header.flags.bits(),
                    "request_id": header.request_id,
                    "body": hex(body),
                }));
                true
            });
            if let Err(error) = result {
                return (frames, Some(error), false);
            }
        }
        (frames, None, reader.is_partial())
    };
    for step in [1, usize::MAX] {
        for (row, name) in rows(&document, "valid") {
            let (frames, error, partial) = read(&bytes(&row["bytes"]), step);
            assert_eq!(
                (json!(frames), error, partial),
                (row["frames"].clone(), None, false),
                "{name}"
            );
        }
        for (row, name) in rows(&document, "refused") {
            let (frames, error, _) = read(&bytes(&row["bytes"]), step);
            assert_eq!(json!(frames), row["frames_before"], "{name}");
            let error = error.unwrap_or_else(|| panic!("{name}: not refused"));
            assert_code(error.code(), row, name);
            assert_eq!(json!(error.request_id()), row["request_id"], "{name}");
        }
        for (row, name) in rows(&document, "incomplete") {
            assert_eq!(read(&bytes(&row["bytes"]), step), (vec![], None, true), "{name}");
        }
    }
    for (row, name) in rows(&document, "valid") {
        let mut out = Vec::new();
        for value in row["frames"].as_array().expect("a list") {
            let number = |key: &str| value[key].as_u64().expect("a number");
            let flags = Flags::from_bits(number("flags") as u8).expect("known flags");
            let body = bytes(&value["body"]);
            frame::write(
                &mut out,
                number("command") as u16,
                flags,
                number("request_id") as u32,
                &body,
            );
        }
        assert_eq!(json!(hex(&out)), row["bytes"], "{name}");
    }
}

fn websocket_item(message: Message<'_>) -> Value {
    match message {
        Message::Text(text) => json!({ "kind": "text", "text": text }),
        Message::Binary(payload) => json!({ "kind": "binary", "payload": hex(payload) }),
        Message::Ping(payload) => json!({ "kind": "ping", "payload": hex(payload) }),
        Message::Pong(payload) => json!({ "kind": "pong", "payload": hex(payload) }),
        Message::Close(None) => json!({ "kind": "close", "code": null, "reason": "" }),
        Message::Close(Some(close)) => {
            json!({ "kind": "close", "code": close.code, "reason": close.reason })
        }
    }
}

#[test]
fn websocket_streams() {
    let document = load("websocket");
    let limits = Limits {
        message_bytes_max: document["message_bytes_max"].as_u64().expect("a number") as usize,
    };
    let read = |row: &Value, step: usize| -> (Value, Option<WebSocketError>, bool) {
        let role = match string(&row["role"]) {
            "server" => Role::Server,
            "client" => Role::Client,
            other => panic!("unknown role {other}"),
        };
        let mut reader = MessageReader::new();
        let mut items = Vec::new();
        for piece in bytes(&row["bytes"]).chunks_mut(step) {
            let mut used = 0;
            loop {
                match reader.read(role, &limits, &mut piece[used..]) {
                    Err(error) => return (json!(items), Some(error), false),
                    Ok((taken, item)) => {
                        used += taken;
                        match item {
                            Some(item) => items.push(websocket_item(item)),
                            None => break,
                        }
                    }
                }
            }
        }
        (json!(items), None, reader.is_partial())
    };
    for step in [1, 7, usize::MAX] {
        for (row, name) in rows(&document, "valid") {
            assert_eq!(read(row, step), (row["messages"].clone(), None, false), "{name}");
        }
        for (row, name) in rows(&document, "refused") {
            let (items, error, _) = read(row, step);
            assert_eq!(items, row["messages_before"], "{name}");
            let error = error.unwrap_or_else(|| panic!("{name}: not refused"));
            assert_code(error.code(), row, name);
            assert_eq!(json!(error.close_code()), row["close_code"], "{name}");
        }
        for (row, name) in rows(&document, "incomplete") {
            assert_eq!(read(row, step), (json!([]), None, true), "{name}");
        }
    }
}

#[test]
fn websocket_upgrades() {
    let document = load("websocket");
    let document = &document["upgrade"];
    for (row, name) in rows(document, "accepted") {
        let request = string(&row["request"]).as_bytes();
        // Frames may follow at once.
        let followed = [request, b"\x82\x80\x00\x00\x00\x00"].concat();
        let progress = read_upgrade(&followed).expect("accepted");
        let UpgradeProgress::Complete { consumed, upgrade } = progress else {
            panic!("{name}: not complete");
        };
        assert_eq!(consumed, request.len(), "{name}");
        assert_eq!(json!(upgrade.path), row["path"], "{name}");
        assert_eq!(json!(upgrade.subprotocols), row["subprotocols"], "{name}");
        assert_eq!(json!(upgrade.origin), row["origin"], "{name}");
        let mut out = Vec::new();
        write_upgrade_response(&mut out, &upgrade, None);
        let line = format!("\r\nSec-WebSocket-Accept: {}\r\n", string(&row["accept"]));
        let response = String::from_utf8(out).expect("ASCII");
        assert!(response.starts_with("HTTP/1.1 101 ") && response.ends_with("\r\n\r\n"), "{name}");
        assert!(response.contains(&line), "{name}: {response}");
        for cut in 0..request.len() {
            assert_eq!(read_upgrade(&request[..cut]), Ok(UpgradeProgress::Incomplete), "{name}");
        }
    }
    for (row, name) in rows(document, "refused") {
        let result = read_upgrade(string(&row["request"]).as_bytes());
        let error = result.err().unwrap_or_else(|| panic!("{name}: not refused"));
        assert_code(error.code(), row, name);
        assert_eq!(json!(error.status()), row["status"], "{name}");
        let mut out = Vec::new();
        write_upgrade_refusal(&mut out, &error);
        let response = String::from_utf8(out).expect("UTF-8");
        let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with(&format!("HTTP/1.1 {} ", row["status"])), "{name}: {head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{name}: {head}");
        let body: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body, json!({ "code": row["code"], "reason": error.to_string() }), "{name}");
    }
    for (row, name) in rows(document, "incomplete") {
        let request = string(&row["request"]).as_bytes();
        assert_eq!(read_upgrade(request), Ok(UpgradeProgress::Incomplete), "{name}");
    }
}

#[test]
fn text_envelopes() {
    let document = load("text");
    for (row, name) in rows(&document, "parsed") {
        let envelope = text::parse(string(&row["text"])).expect("parsed");
        let value = json!({
            "command": envelope.command,
            "reply": envelope.is_reply,
            "request_id": envelope.request_id,
            "flags": envelope.flags.bits(),
            "body": envelope.body,
        });
        assert_eq!(value, row["envelope"], "{name}");
    }
    for (row, name) in rows(&document, "refused") {
        let result = text::parse(string(&row["text"]));
        let error = result.err().unwrap_or_else(|| panic!("{name}: not refused"));
        assert_code(error.code(), row, name);
        assert_eq!(json!(error.request_id()), row["request_id"], "{name}");
    }
    for (row, name) in rows(&document, "written") {
        let mut out = Vec::new();
        let number = |key: &str| row[key].as_u64().expect("a number");
        let body = string(&row["body"]).as_bytes();
        text::write(&mut out, number("command") as u16, number("request_id") as u32, body);
        assert_eq!(String::from_utf8(out).expect("UTF-8"), string(&row["text"]), "{name}");
    }
}

/// A message type, as protobuf to JSON and back.
fn check_body<M>(row: &Value)
where
    M: prost::Message + Default + serde::Serialize + serde::de::DeserializeOwned,
{
    let name = string(&row["message"]);
    let body = bytes(&row["protobuf"]);
    let from_protobuf = M::decode(body.as_slice()).expect("protobuf");
    assert_eq!(serde_json::to_value(&from_protobuf).expect("JSON"), row["json"], "{name}");
    let from_json: M = serde_json::from_value(row["json"].clone()).expect("JSON");
    assert_eq!(hex(&from_json.encode_to_vec()), hex(&body), "{name}");

    let mut out = Vec::new();
    let number = row["command"].as_u64().expect("a number") as u16;
    assert!(command::name(number & !command::REPLY_BIT).is_some(), "{name}: command {number}");
    frame::write(&mut out, number, Flags::NONE, 7, &body);
    assert_eq!(json!(hex(&out)), row["frame"], "{name}");
    assert_eq!(hex(&out[HEADER_BYTES..]), hex(&body), "{name}");
}

/// Checks every row of a file against the type it names.
macro_rules! check_bodies {
    ($file:literal, $module:ident, $($message:ident)+) => {
        let document = load($file);
        let rows = document["messages"].as_array().expect("a list");
        let mut seen = std::collections::BTreeSet::new();
        for row in rows {
            let name = string(&row["message"]);
            let prefix = concat!("millrace.", stringify!($module), ".v1.");
            let short = name.strip_prefix(prefix).expect("the package's prefix");
            seen.insert(short.to_owned());
            match short {
                $(stringify!($message) => check_body::<$module::$message>(row),)+
                other => panic!("a vector of an unknown message {other}"),
            }
        }
        let all = [$(stringify!($message)),+];
        assert_eq!(seen.len(), all.len(), "a message of {all:?} has no vector");
    };
}

#[test]
fn session_bodies() {
    check_bodies!("session", session, Login LoginReply Kick GoAway Error Refresh RefreshReply);
}

#[test]
fn chat_bodies() {
    check_bodies!("chat", chat,
        SendMessage SendReply Deliver DeliverAck Read ReadReply Receipt Revoke RevokeReply Delete
        DeleteReply Forward PullMessages PullReply PullConversations ConversationsReply
        UpdateConversation UpdateReply Typing GroupById GroupReply Notice NoticeAck JoinRoom
        LeaveRoom RoomReply RoomMessage Report);
}
