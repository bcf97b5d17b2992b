//! Logins, tokens, and the multi-device policy.

use millrace_logic::config::SessionsFull;
use millrace_logic_sdk::{Encoding, testing::login_request};
use millrace_protocol::Code;
use serde_json::json;

use crate::world::{Clients, QUIET, World, token};

#[tokio::test]
async fn only_a_good_token_of_the_claimed_user_logs_in() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    let good = gateway.login_as(1, "alice", &token("alice", 60)).await;
    assert_eq!((good.code, &*good.user_id), (0, "alice"));
    assert!(good.expires_at_ms > 0);
    // No claim is needed: the token says who it is.
    let unclaimed = gateway.login_as(2, "", &token("bob", 60)).await;
    assert_eq!((unclaimed.code, &*unclaimed.user_id), (0, "bob"));
    for (session_id, claimed, shown, code) in [
        (3, "alice", token("bob", 60), Code::BadToken),
        (4, "alice", token("alice", -60), Code::TokenExpired),
        (5, "alice", "garbage".to_owned(), Code::BadToken),
        (6, "alice", String::new(), Code::BadToken),
        (7, "", token("", 60), Code::BadToken),
        (8, "", token(&"u".repeat(129), 60), Code::BadToken),
    ] {
        let refused = gateway.login_as(session_id, claimed, &shown).await;
        assert_eq!(refused.code, code.number(), "session {session_id}: {}", refused.reason);
        assert!(!refused.reason.is_empty());
    }
}

#[tokio::test]
async fn a_newer_token_prolongs_the_session_of_the_same_user_only() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    let first = gateway.login_as(1, "alice", &token("alice", 60)).await;
    let longer = gateway.refresh(1, &token("alice", 7_200)).await.expect("an answer");
    assert_eq!(longer.code, 0);
    assert!(longer.expires_at_ms > first.expires_at_ms);
    let refused = gateway.refresh(1, &token("bob", 7_200)).await.expect("an answer");
    assert_eq!(refused.code, Code::BadToken.number());
    let refused = gateway.refresh(1, &token("alice", -1)).await.expect("an answer");
    assert_eq!(refused.code, Code::TokenExpired.number());
}

#[tokio::test]
async fn the_same_device_again_replaces_its_session() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter_as(1, "alice", "phone", "ios", Encoding::Protobuf).await;
    gateway.enter_as(2, "alice", "tablet", "ios", Encoding::Protobuf).await;
    gateway.enter_as(3, "alice", "phone", "ios", Encoding::Protobuf).await;
    let close = gateway.next_close().await.expect("the stream lives");
    assert_eq!((close.session_id, close.code), (1, Code::Replaced.number()));
    assert!(!close.reason.is_empty());
    gateway.end_session(1, Code::Replaced).await;
    gateway.read_for(QUIET).await;
    let (_, presence) = world.http("GET", "/v1/users/alice/presence", json!(null)).await;
    let mut devices: Vec<_> = presence["sessions"]
        .as_array()
        .expect("sessions")
        .iter()
        .map(|s| s["device_id"].as_str().expect("a device").to_owned())
        .collect();
    devices.sort();
    assert_eq!(devices, ["phone", "tablet"]);
}

#[tokio::test]
async fn at_the_bound_the_oldest_session_leaves() {
    let world = World::start_with(|config| config.sessions.per_user_max = 2).await;
    let mut gateway = world.gateway("a").await;
    for session_id in 1..=3 {
        gateway.enter(session_id, "alice").await;
        // The login times are milliseconds; the oldest must be older than the others.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let close = gateway.next_close().await.expect("the stream lives");
    assert_eq!((close.session_id, close.code), (1, Code::Replaced.number()));
}

#[tokio::test]
async fn at_the_bound_a_login_is_refused_if_the_policy_says_so() {
    let world = World::start_with(|config| {
        config.sessions.per_user_max = 1;
        config.sessions.when_full = SessionsFull::Refuse;
    })
    .await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.read_for(QUIET).await;
    let refused = gateway
        .login(login_request(2, "alice", &token("alice", 60), "other", "", Encoding::Protobuf))
        .await;
    assert_eq!(refused.code, Code::OverCapacity.number(), "{}", refused.reason);
    // Once there is room, the login is welcome.
    gateway.end_session(1, Code::Ok).await;
    gateway.read_for(QUIET).await;
    gateway.enter(3, "alice").await;
}
