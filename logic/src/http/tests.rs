//! The door through a real socket, because what a client of the door sees is bytes.

use std::net::SocketAddr;
use std::sync::Arc;

use millrace_protocol::Code;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{HttpSettings, router, status_of};
use crate::api::testing::EchoApi;
use crate::api::{Api, Guard};

const TOKEN: &str = "the api token";

async fn serve(api: impl Api, calls_in_flight_max: usize) -> SocketAddr {
    let settings =
        HttpSettings { body_bytes_max: 1_000, body_ms_max: 50, ..HttpSettings::default() };
    let guard = Guard::new(TOKEN, calls_in_flight_max);
    let router = router(Arc::new(api), guard, settings).into_router();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Sends a request as it is and reads status, head and body until the server closes.
async fn raw(address: SocketAddr, request: &[u8]) -> (u16, String, Value) {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(request).await.expect("written");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("read");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, head.to_ascii_lowercase(), serde_json::from_str(body).expect("JSON"))
}

fn request(line: &str, authorization: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let authorization = if authorization.is_empty() {
        String::new()
    } else {
        format!("Authorization: {authorization}\r\n")
    };
    format!(
        "{line} HTTP/1.1\r\nHost: x\r\n{authorization}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

async fn call(address: SocketAddr, line: &str, body: &str) -> (u16, Value) {
    let (status, _, body) = raw(address, &request(line, &format!("Bearer {TOKEN}"), body)).await;
    (status, body)
}

#[tokio::test]
async fn every_call_reaches_its_method_with_path_and_body() {
    let address = serve(EchoApi, 8).await;
    let group = r#"{"group_id": "g", "name": "n", "members": ["a", "b"]}"#;
    let created = json!({"group_id": "g", "conversation_id": "n:a,b"});
    assert_eq!(call(address, "POST /v1/groups", group).await, (200, created));
    let (status, found) = call(address, "GET /v1/groups/team%2F1", "").await;
    assert_eq!((status, &found["group_id"]), (200, &json!("team/1")));
    assert_eq!(found["created_at_ms"], json!("1700000000000"), "64 bits travel as text");
    assert_eq!(found["members"], json!([]), "defaults are emitted");
    assert_eq!(call(address, "DELETE /v1/groups/team%2F1", "").await.0, 200);
    let users = r#"{"user_ids": ["a", "b"], "group_id": "another"}"#;
    let (status, added) = call(address, "POST /v1/groups/team%2F1/members", users).await;
    assert_eq!((status, &added["added"]), (200, &json!(2)), "the path decides the group");
    let (status, removed) = call(address, "DELETE /v1/groups/team%2F1/members", users).await;
    assert_eq!((status, &removed["removed"]), (200, &json!(2)));
    let message = r#"{"sender_id": "a", "user_id": "b", "client_message_id": "1", "type": 1}"#;
    let (status, sent) = call(address, "POST /v1/messages", message).await;
    assert_eq!((status, &sent["message_id"], &sent["sequence"]), (200, &json!("a>b"), &json!("7")));
    let history = "/v1/conversations/s:1:a:b/messages";
    let line = format!("GET {history}?user_id=a&from_sequence=3&newest_first=true");
    let (status, page) = call(address, &line, "").await;
    assert_eq!((status, &page["complete"]), (200, &json!(true)));
    assert_eq!(page["messages"][0]["conversation_id"], json!("s:1:a:b"));
    assert_eq!(page["messages"][0]["sequence"], json!("3"));
    let line = format!("POST {history}/7/revoke");
    let (status, revoked) = call(address, &line, r#"{"actor_user_id": "a"}"#).await;
    assert_eq!((status, &revoked["reason"]), (200, &json!("s:1:a:b 7 a")));
    let sequences = r#"{"user_id": "a", "sender_id": "c", "sequences": [1, "2"]}"#;
    let (status, deleted) = call(address, &format!("POST {history}/delete"), sequences).await;
    assert_eq!((status, &deleted["deleted"]), (200, &json!(2)));
    let (status, sent) = call(address, &format!("POST {history}/forward"), sequences).await;
    assert_eq!(
        (status, &sent["message_id"], &sent["count"]),
        (200, &json!("s:1:a:b c"), &json!(2))
    );
    for (line, body) in [
        (format!("GET {history}?user=a"), ""),
        (format!("GET {history}?limit=1&limit=2"), ""),
        (format!("GET {history}?from_sequence=-1"), ""),
        (format!("POST {history}/x/revoke"), "{}"),
    ] {
        let (status, refused) = call(address, &line, body).await;
        assert_eq!((status, &refused["code"]), (400, &json!(18)), "{line}");
    }
    for (body, reason) in [(r#"{"reason": "why"}"#, "\u{e4}: why"), ("", "\u{e4}: ")] {
        let (status, kicked) = call(address, "POST /v1/users/%C3%A4/kick", body).await;
        assert_eq!((status, &kicked["reason"]), (200, &json!(reason)));
    }
    let (status, presence) = call(address, "GET /v1/users/x/presence", "").await;
    assert_eq!((status, &presence["online"]), (200, &json!(true)));
    assert_eq!(presence["sessions"][0]["device_id"], json!("x"));
}

#[tokio::test]
async fn without_the_token_nothing_is_done() {
    let address = serve(EchoApi, 8).await;
    for authorization in
        ["", TOKEN, "Basic abc", "Bearer", "Bearer ", "Bearer the api toke", "Bearer THE API TOKEN"]
    {
        for line in ["POST /v1/groups", "GET /v1/groups/x", "GET /v1/users/x/presence"] {
            let (status, head, body) = raw(address, &request(line, authorization, "{}")).await;
            assert_eq!((status, &body["code"]), (401, &json!(5)), "{line} {authorization}");
            assert!(body["reason"].is_string() && head.contains("www-authenticate: bearer"));
        }
    }
    let spelled =
        raw(address, &request("GET /v1/users/x/presence", "bearer the api token ", "")).await;
    assert_eq!(spelled.0, 200, "the scheme is not case-sensitive (RFC 9110 section 11.1)");
}

#[tokio::test]
async fn an_empty_token_lets_nobody_in() {
    let guard = Guard::new("", 8);
    for shown in [None, Some(&b"Bearer "[..]), Some(b"Bearer x")] {
        assert_eq!(guard.admit(shown).expect_err("refused").code, Code::BadToken);
    }
}

#[tokio::test]
async fn every_refusal_has_code_reason_and_a_fitting_status() {
    let address = serve(EchoApi, 8).await;
    for (code, expected) in [
        (Code::NotFound, 404),
        (Code::NotPermitted, 403),
        (Code::BadRequest, 400),
        (Code::AlreadyExists, 409),
        (Code::RateLimited, 429),
        (Code::OverCapacity, 503),
        (Code::LogicUnavailable, 503),
        (Code::Internal, 500),
    ] {
        let body = format!(r#"{{"client_message_id": "{}"}}"#, code.label());
        let call = request("POST /v1/messages", &format!("Bearer {TOKEN}"), &body);
        let (status, head, body) = raw(address, &call).await;
        assert_eq!(status, expected, "{code}");
        assert_eq!(body, json!({"code": code.number(), "reason": "as wanted"}));
        assert!(head.contains("retry-after: 2"), "{head}");
    }
}

#[tokio::test]
async fn each_refusal_has_its_own_code_and_sentence() {
    let address = serve(EchoApi, 8).await;
    for code in Code::ALL.iter().filter(|code| **code != Code::Ok) {
        let body = format!(r#"{{"client_message_id": "{}"}}"#, code.label());
        let (status, body) = call(address, "POST /v1/messages", &body).await;
        assert_eq!(status, status_of(*code).as_u16(), "{code}");
        assert!(status >= 400, "{code}: {status}");
        assert_eq!(body, json!({"code": code.number(), "reason": "as wanted"}));
    }
}

#[tokio::test]
async fn what_is_not_a_call_is_refused_in_json() {
    let address = serve(EchoApi, 8).await;
    for (line, body, status, code) in [
        ("GET /", "", 404, 16),
        ("GET /v2/groups", "", 404, 16),
        ("GET /v1/groups/", "", 404, 16),
        ("PUT /v1/groups", "{}", 405, 18),
        ("GET /v1/messages", "", 405, 18),
        ("POST /v1/groups", "{", 400, 18),
        ("POST /v1/groups", "[]", 400, 18),
        ("POST /v1/groups", r#"{"members": "a"}"#, 400, 18),
        ("POST /v1/groups", "\u{0}", 400, 18),
        ("GET /v1/groups/%FF", "", 400, 18),
        ("GET /v1/groups/unknown", "", 404, 16),
        ("GET /v1/groups/unknown?x=1", "", 400, 18),
        ("POST /v1/groups", &format!(r#"{{"name": "{}"}}"#, "x".repeat(1_000)), 413, 3),
    ] {
        let (found, body) = call(address, line, body).await;
        assert_eq!((found, &body["code"]), (status, &json!(code)), "{line}: {body}");
        assert!(body["reason"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up() {
    let address = serve(EchoApi, 8).await;
    let head = format!(
        "POST /v1/groups HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{{"
    );
    let (status, _, body) = raw(address, head.as_bytes()).await;
    assert_eq!((status, &body["code"]), (408, &json!(18)));
}

#[tokio::test]
async fn one_call_too_many_is_told_to_wait() {
    let address = serve(EchoApi, 0).await;
    let call = request("GET /v1/users/x/presence", &format!("Bearer {TOKEN}"), "");
    let (status, head, body) = raw(address, &call).await;
    assert_eq!((status, &body["code"]), (503, &json!(19)));
    assert!(head.contains("retry-after: 1"));
}

#[tokio::test]
async fn health_needs_no_token() {
    let address = serve(EchoApi, 0).await;
    for (path, state) in [("/livez", "live"), ("/readyz", "ready")] {
        let (status, _, body) = raw(address, &request(&format!("GET {path}"), "", "")).await;
        assert_eq!((status, body), (200, json!({"status": state})));
    }
}
