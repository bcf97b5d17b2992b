//! The doors for business services and operators.

use millrace_protocol::Code;
use serde_json::json;

use crate::world::{Clients, QUIET, World, http};

#[tokio::test]
async fn a_message_over_http_is_stored_once_and_delivered_to_every_session() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let body = json!({
        "sender_id": "alice", "user_id": "bob", "client_message_id": "h1", "type": 1, "body": "hi",
    });
    let (status, reply) = world.http("POST", "/v1/messages", body.clone()).await;
    assert_eq!(
        (status, &reply["sequence"], &reply["duplicate"]),
        (200, &json!("1"), &json!(false))
    );
    assert_eq!(gateway.delivered(2, 1).await[0].body, "hi");
    // No session has sent it, so all of the sender's get it.
    assert_eq!(gateway.delivered(1, 1).await[0].sender_id, "alice");
    let (status, again) = world.http("POST", "/v1/messages", body).await;
    assert_eq!((status, &again["duplicate"]), (200, &json!(true)));
    assert_eq!(again["message_id"], reply["message_id"]);
    gateway.nothing_delivered(2).await;
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_code_and_status() {
    let world = World::start().await;
    let message = |extra: serde_json::Value| {
        let mut body = json!({ "sender_id": "alice", "client_message_id": "m", "type": 1 });
        body.as_object_mut()
            .expect("an object")
            .extend(extra.as_object().expect("an object").clone());
        body
    };
    world.create_group("team", &["bob"]).await;
    for (method, path, body, status, code) in [
        ("POST", "/v1/messages", message(json!({})), 400, Code::BadRequest),
        ("POST", "/v1/messages", json!({ "user_id": "bob" }), 400, Code::BadRequest),
        ("POST", "/v1/messages", message(json!({ "group_id": "none" })), 404, Code::NotFound),
        ("POST", "/v1/messages", message(json!({ "group_id": "team" })), 403, Code::NotPermitted),
        (
            "POST",
            "/v1/groups",
            json!({ "group_id": "team", "members": ["x"] }),
            409,
            Code::AlreadyExists,
        ),
        ("POST", "/v1/groups", json!({ "members": [] }), 400, Code::BadRequest),
        ("GET", "/v1/groups/none", json!(null), 404, Code::NotFound),
        ("DELETE", "/v1/groups/none", json!(null), 404, Code::NotFound),
    ] {
        let (got, reply) = world.http(method, path, body.clone()).await;
        assert_eq!(
            (got, &reply["code"]),
            (status, &json!(code.number())),
            "{method} {path} {body} {reply}"
        );
        assert!(reply["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    }
}

#[tokio::test]
async fn a_group_lives_from_creation_to_removal() {
    let world = World::start().await;
    let (status, made) = world
        .http("POST", "/v1/groups", json!({ "name": "Team", "members": ["alice", "bob"] }))
        .await;
    assert_eq!(status, 200, "{made}");
    let group_id = made["group_id"].as_str().expect("one was chosen").to_owned();
    assert!(!group_id.is_empty());
    let path = format!("/v1/groups/{group_id}");
    let (status, group) = world.http("GET", &path, json!(null)).await;
    assert_eq!((status, &group["name"]), (200, &json!("Team")));
    assert_eq!(group["conversation_id"], made["conversation_id"]);
    let (status, _) = world.http("DELETE", &path, json!(null)).await;
    assert_eq!(status, 200);
    let (status, _) = world.http("GET", &path, json!(null)).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn presence_says_where_a_user_is_and_a_kick_ends_every_session() {
    let world = World::start().await;
    let mut gateway = world.gateway("gateway-7").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "alice").await;
    gateway.read_for(QUIET).await;
    let (status, presence) = world.http("GET", "/v1/users/alice/presence", json!(null)).await;
    assert_eq!((status, &presence["online"]), (200, &json!(true)));
    let sessions = presence["sessions"].as_array().expect("sessions");
    assert_eq!(sessions.len(), 2);
    assert!(sessions.iter().all(|s| s["gateway_id"] == "gateway-7"));

    let (status, kicked) =
        world.http("POST", "/v1/users/alice/kick", json!({ "reason": "house rules" })).await;
    assert_eq!((status, &kicked["sessions"]), (200, &json!(2)));
    for _ in 0..2 {
        let close = gateway.next_close().await.expect("the stream lives");
        assert_eq!((close.code, &*close.reason), (Code::Kicked.number(), "house rules"));
        gateway.end_session(close.session_id, Code::Kicked).await;
    }
    gateway.read_for(QUIET).await;
    let (_, presence) = world.http("GET", "/v1/users/alice/presence", json!(null)).await;
    assert_eq!(presence["online"], json!(false));
}

#[tokio::test]
async fn a_door_needs_its_token() {
    let world = World::start().await;
    let address = world.logic().http_address().expect("open");
    for token in [None, Some("another token of some length"), Some("")] {
        let (status, _) = http(address, "GET", "/v1/users/alice/presence", token, "").await;
        assert_eq!(status, 401);
    }
}

#[tokio::test]
async fn operators_see_health_and_figures() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.say(1, "bob", "hello").await;
    let admin = world.logic().addresses().admin.expect("open");
    for (path, expected) in [("/livez", 200), ("/readyz", 200), ("/version", 200), ("/x", 404)] {
        let (status, _) = http(admin, "GET", path, None, "").await;
        assert_eq!(status, expected, "{path}");
    }
    assert_eq!(http(admin, "POST", "/metrics", None, "").await.0, 405);
    let (status, text) = http(admin, "GET", "/metrics", None, "").await;
    assert_eq!(status, 200);
    for line in [
        "millrace_logic_messages_stored_total 1",
        "millrace_logic_sessions{transport=\"tcp\"} 1",
        "millrace_logic_logins_total{code=\"ok\"} 1",
        "millrace_logic_commit_duration_seconds_count 1",
        "millrace_logic_gateway_shards 1",
        "millrace_logic_streams_opened_total 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
}
