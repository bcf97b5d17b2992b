//! Logging out everywhere: sessions end, and no token of before opens anything again, whatever
//! restarts in between.

use std::time::Duration;

use millrace_logic_sdk::{
    Encoding,
    testing::{FakeGateway, FakeGatewaySettings, listed_session, login_request},
};
use millrace_protocol::{
    Code,
    chat::{LogoutEverywhere, LogoutEverywhereReply},
    command,
    link::Session,
};
use serde_json::json;

use crate::world::{Clients, QUIET, World, request_id, token, token_with, unix_ms, unix_seconds};

/// A token issued at a moment, as precise as a test can tell it.
fn issued(user_id: &str, issued_at_ms: i64) -> String {
    let iat = issued_at_ms as f64 / 1_000.0;
    token_with(&json!({ "sub": user_id, "exp": unix_seconds() + 3_600, "iat": iat }))
}

async fn login(gateway: &mut FakeGateway, session_id: u64, user_id: &str, token: &str) -> Code {
    let device_id = format!("device-{session_id}");
    let request = login_request(session_id, user_id, token, &device_id, "", Encoding::Protobuf);
    Code::from_number(gateway.login(request).await.code).expect("a known code")
}

async fn leave(
    gateway: &mut FakeGateway,
    session_id: u64,
    keep_this_session: bool,
) -> LogoutEverywhereReply {
    let wanted = LogoutEverywhere { keep_this_session };
    let reply =
        gateway.request(session_id, command::LOGOUT_EVERYWHERE, request_id(), &wanted).await;
    let reply: LogoutEverywhereReply = reply.decode();
    assert_eq!(reply.code, 0, "{}", reply.reason);
    reply
}

#[tokio::test]
async fn every_session_ends_and_tokens_of_before_open_nothing_also_after_a_restart() {
    let mut world = World::start().await;
    let mut gateway = world.gateway("a").await;
    let mut other = world.gateway("b").await;
    let before = issued("alice", unix_ms() - 1_000);
    assert_eq!(login(&mut gateway, 1, "alice", &before).await, Code::Ok);
    assert_eq!(login(&mut other, 9, "alice", &before).await, Code::Ok);
    assert_eq!(login(&mut gateway, 2, "bob", &token("bob", 60)).await, Code::Ok);

    let reply = leave(&mut gateway, 1, false).await;
    assert_eq!(reply.sessions, 2);
    for (gateway, session_id) in [(&mut gateway, 1), (&mut other, 9)] {
        let close = gateway.next_close().await.expect("the stream lives");
        assert_eq!((close.session_id, close.code), (session_id, Code::Kicked.number()));
        assert!(close.reason.contains("everywhere"), "{}", close.reason);
        gateway.end_session(session_id, Code::Kicked).await;
    }

    let after = issued("alice", reply.issued_before_ms);
    for again in [false, true] {
        if again {
            drop(gateway);
            world.restart().await;
            gateway = world.gateway("a").await;
        }
        let number = 10 + 10 * u64::from(again);
        assert_eq!(login(&mut gateway, number, "alice", &before).await, Code::BadToken);
        // One that does not say when it was issued may be as old.
        let unknown = token("alice", 60);
        assert_eq!(login(&mut gateway, number + 1, "alice", &unknown).await, Code::BadToken);
        assert_eq!(login(&mut gateway, number + 2, "alice", &after).await, Code::Ok);
        // A session cannot be prolonged with it either.
        let refreshed = gateway.refresh(number + 2, &before).await.expect("an answer");
        assert_eq!(refreshed.code, Code::BadToken.number());
        let refreshed = gateway.refresh(number + 2, &after).await.expect("an answer");
        assert_eq!(refreshed.code, Code::Ok.number());
        // Nobody else is concerned.
        assert_eq!(login(&mut gateway, number + 3, "bob", &token("bob", 60)).await, Code::Ok);
        gateway.end_session(number + 2, Code::Ok).await;
    }
}

#[tokio::test]
async fn the_session_that_asks_may_stay() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    for session_id in 1..=3 {
        gateway.enter(session_id, "alice").await;
    }
    let reply = leave(&mut gateway, 2, true).await;
    assert_eq!(reply.sessions, 2);
    let mut closed = Vec::new();
    for _ in 0..2 {
        closed.push(gateway.next_close().await.expect("the stream lives").session_id);
    }
    closed.sort_unstable();
    assert_eq!(closed, [1, 3]);
    // It is served as before.
    assert_eq!(gateway.say(2, "bob", "still here").await.sequence, 1);
}

#[tokio::test]
async fn a_service_logs_a_user_out_but_for_one_device() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    for session_id in 1..=3 {
        gateway.enter(session_id, "alice").await;
    }
    gateway.read_for(QUIET).await;
    let body = json!({ "keep_device_id": "device-3", "reason": "the password was changed" });
    let (status, reply) = world.http("POST", "/v1/users/alice/logout", body).await;
    assert_eq!((status, &reply["sessions"]), (200, &json!(2)), "{reply}");
    let mut closed = Vec::new();
    for _ in 0..2 {
        let close = gateway.next_close().await.expect("the stream lives");
        assert_eq!(close.reason, "the password was changed");
        closed.push(close.session_id);
    }
    closed.sort_unstable();
    assert_eq!(closed, [1, 2]);
    for user_id in [String::new(), "u".repeat(129)] {
        let path = format!("/v1/users/{user_id}/logout");
        let (status, reply) = world.http("POST", &path, json!({})).await;
        assert_eq!((status, &reply["code"]), (400, &json!(Code::BadRequest.number())), "{path}");
    }
}

/// Decided before the moment was stored, started after the sessions were told: whatever the order, it
/// ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_under_way_while_its_user_logs_out_does_not_survive_it() {
    const USERS: u64 = 40;
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    for round in 0..5 {
        let user_id = |number: u64| format!("user-{round}-{number}");
        let before = unix_ms() - 1_000;
        for number in 1..=USERS {
            let (user_id, session_id) = (user_id(number), round * 1_000 + number);
            let token = issued(&user_id, before);
            let request = login_request(session_id, &user_id, &token, "", "", Encoding::Protobuf);
            gateway.send_login(request).await;
        }
        let out = |number| {
            let path = format!("/v1/users/{}/logout", user_id(number));
            let world = &world;
            async move { world.http("POST", &path, json!({})).await }
        };
        for (status, reply) in futures::future::join_all((1..=USERS).map(out)).await {
            assert_eq!(status, 200, "{reply}");
        }
        let mut opened = Vec::new();
        for session_id in round * 1_000 + 1..=round * 1_000 + USERS {
            let result = gateway.login_result(session_id).await.expect("the stream lives");
            match Code::from_number(result.code) {
                Some(Code::Ok) => opened.push(session_id),
                other => assert_eq!(other, Some(Code::BadToken), "{}", result.reason),
            }
        }
        let mut closed = Vec::new();
        while closed.len() < opened.len() {
            let close = tokio::time::timeout(Duration::from_secs(60), gateway.next_close()).await;
            closed.push(close.expect("every one is told").expect("the stream lives").session_id);
        }
        closed.sort_unstable();
        assert_eq!(closed, opened);
        for session_id in opened {
            gateway.end_session(session_id, Code::Kicked).await;
        }
    }
}

/// A session of a gateway that was away while its user logged out everywhere.
#[tokio::test]
async fn a_session_that_is_listed_again_has_ended_unless_it_was_kept() {
    let mut world = World::start().await;
    let mut gateway = world.gateway("a").await;
    let early_ms = unix_ms() - 5_000;
    let old = |session_id, user_id: &str| Session {
        logged_in_at_ms: early_ms,
        device_id: format!("device-{session_id}"),
        ..listed_session(session_id, user_id, Encoding::Protobuf)
    };
    // Of this gateway's epoch, as logic has it from the list.
    let sessions = vec![old(1, "alice"), old(2, "alice"), old(3, "bob")];
    let settings = || FakeGatewaySettings {
        gateway_id: "listing".into(),
        sessions: sessions.clone(),
        ..FakeGatewaySettings::default()
    };
    let listing = world.gateway_with(settings()).await;
    gateway.read_for(QUIET).await;
    drop(listing);
    let body = json!({ "keep_device_id": "device-2" });
    let (status, reply) = world.http("POST", "/v1/users/alice/logout", body).await;
    assert_eq!(status, 200, "{reply}");

    for restarted in [false, true] {
        if restarted {
            world.restart().await;
        }
        // Whoever logged in after the moment stays, of course.
        let new = Session { logged_in_at_ms: unix_ms() + 1_000, ..old(4, "alice") };
        let mut settings = settings();
        settings.sessions.push(new);
        let mut listing = world.gateway_with(settings).await;
        let close = listing.next_close().await.expect("the stream lives");
        assert_eq!((close.session_id, close.code), (1, Code::Kicked.number()), "{restarted}");
        listing.read_for(QUIET).await;
        assert_eq!(listing.closes(), 0, "only that one has to go; after a restart: {restarted}");
        drop(listing);
    }
}
