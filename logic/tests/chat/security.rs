//! Requests that were seen before, and users who ask too often.

use millrace_logic::config::ReplayCheck;
use millrace_logic_sdk::{
    Encoding,
    testing::{FakeGateway, login_request},
};
use millrace_protocol::{
    Code,
    chat::{PullConversations, QueryPresence, Report, SendMessage, SendReply},
    command,
    link::{LoginRequest, LoginResult},
    session,
};
use serde_json::json;

use crate::world::{Clients, World, request_id, to_user, token, unix_ms};

fn login_at(session_id: u64, timestamp_ms: i64, nonce: &str) -> LoginRequest {
    let token = token("alice", 60);
    LoginRequest {
        timestamp_ms,
        nonce: nonce.into(),
        ..login_request(session_id, "alice", &token, "", "", Encoding::Protobuf)
    }
}

async fn code(gateway: &mut FakeGateway, request: LoginRequest) -> Code {
    let LoginResult { code, reason, .. } = gateway.login(request).await;
    assert_eq!(reason.is_empty(), code == 0, "{code}: {reason}");
    Code::from_number(code).expect("a known code")
}

#[tokio::test]
async fn a_login_that_was_recorded_opens_no_second_session() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    let now_ms = unix_ms();
    assert_eq!(code(&mut gateway, login_at(1, now_ms, "n")).await, Code::Ok);
    assert_eq!(code(&mut gateway, login_at(2, now_ms, "n")).await, Code::Replayed);
    // From another gateway neither.
    let mut other = world.gateway("b").await;
    assert_eq!(code(&mut other, login_at(2, now_ms, "n")).await, Code::Replayed);
    assert_eq!(code(&mut gateway, login_at(3, now_ms, "m")).await, Code::Ok);
    let hour_ms = 3_600_000;
    for far_ms in [now_ms - hour_ms, now_ms + hour_ms, 1] {
        assert_eq!(code(&mut gateway, login_at(4, far_ms, "far")).await, Code::Replayed);
    }
    // Clients that send neither keep working.
    for session_id in 5..8 {
        assert_eq!(code(&mut gateway, login_at(session_id, 0, "")).await, Code::Ok);
    }
}

#[tokio::test]
async fn a_login_that_was_refused_for_something_else_may_be_tried_again_as_it_is() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    let good = login_at(1, unix_ms(), "n");
    let bad = LoginRequest { token: "bad".into(), ..good.clone() };
    assert_eq!(code(&mut gateway, bad).await, Code::BadToken);
    assert_eq!(code(&mut gateway, good).await, Code::Ok);
}

#[tokio::test]
async fn where_both_are_required_nobody_comes_in_without() {
    let world = World::start_with(|config| {
        config.replay.login = ReplayCheck::Required;
        config.replay.send = ReplayCheck::Required;
    })
    .await;
    let mut gateway = world.gateway("a").await;
    assert_eq!(code(&mut gateway, login_at(1, 0, "")).await, Code::BadRequest);
    assert_eq!(code(&mut gateway, login_at(1, unix_ms(), "")).await, Code::BadRequest);
    assert_eq!(code(&mut gateway, login_at(1, unix_ms(), "n")).await, Code::Ok);
    let without = gateway.send_to(1, to_user("bob", "x")).await;
    assert_eq!(without.code, Code::BadRequest.number(), "{}", without.reason);
}

#[tokio::test]
async fn a_message_that_was_recorded_is_refused_when_that_is_looked_for() {
    let world = World::start_with(|config| config.replay.send = ReplayCheck::On).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    let message =
        SendMessage { timestamp_ms: unix_ms(), nonce: "n".into(), ..to_user("bob", "once") };
    let sent: SendReply = gateway.send_to(1, message.clone()).await;
    assert_eq!((sent.code, sent.sequence), (0, 1));
    let again = gateway.send_to(1, message.clone()).await;
    assert_eq!((again.code, again.sequence), (Code::Replayed.number(), 0), "{}", again.reason);
    assert!(!again.reason.is_empty());
    // To send it again takes a new nonce, and finds the first attempt.
    let retry = SendMessage { nonce: "m".into(), ..message };
    let found = gateway.send_to(1, retry).await;
    assert_eq!((found.code, found.sequence, found.duplicate), (0, 1, true));
    // Over HTTP as well.
    let body = json!({
        "sender_id": "carol", "user_id": "bob", "client_message_id": "c", "type": 1, "body": "x",
        "timestamp_ms": unix_ms().to_string(), "nonce": "n",
    });
    let (status, reply) = world.http("POST", "/v1/messages", body.clone()).await;
    assert_eq!(status, 200, "{reply}");
    let (status, reply) = world.http("POST", "/v1/messages", body).await;
    assert_eq!((status, &reply["code"]), (401, &json!(Code::Replayed.number())), "{reply}");
}

#[tokio::test]
async fn who_logs_in_too_often_is_told_how_long_to_wait_and_only_with_a_good_token() {
    let world = World::start_with(|config| {
        config.paces.logins_per_second_max = 1;
        config.paces.logins_burst_max = 3;
    })
    .await;
    let mut gateway = world.gateway("a").await;
    // Somebody else's attempts in alice's name cost her nothing.
    for session_id in 1..20 {
        let result = gateway.login_as(session_id, "alice", "made up").await;
        assert_eq!(result.code, Code::BadToken.number());
    }
    // One slow machine may see a token refilled between these, so more than the burst are sent.
    let mut waits = Vec::new();
    for session_id in 20..60 {
        let result = gateway.login_as(session_id, "alice", &token("alice", 60)).await;
        match result.code {
            0 => {}
            9 => waits.push(result.retry_after_ms),
            other => panic!("{other}: {}", result.reason),
        }
    }
    assert!(waits.len() >= 10, "{waits:?}");
    assert!(waits.iter().all(|wait| (1..=1_000).contains(wait)), "{waits:?}");
    assert_eq!(gateway.login_as(90, "bob", &token("bob", 60)).await.code, 0);
}

#[tokio::test]
async fn each_kind_of_request_has_its_own_rate() {
    let world = World::start_with(|config| {
        config.paces.pulls_per_second_max = 1;
        config.paces.pulls_burst_max = 2;
        config.paces.presence_per_second_max = 1;
        config.paces.presence_burst_max = 2;
        config.paces.reports_per_second_max = 1;
        config.paces.reports_burst_max = 2;
        config.paces.service_messages_per_second_max = 1;
        config.paces.service_messages_burst_max = 2;
    })
    .await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    let pull = PullConversations::default();
    let query = QueryPresence { user_ids: vec!["bob".into()] };
    let report = Report { destination: "topic".into(), payload: "x".into() };
    let mut limited = [0; 3];
    for _ in 0..20 {
        let frames = [
            gateway.request(1, command::PULL_CONVERSATIONS, request_id(), &pull).await,
            gateway.request(1, command::QUERY_PRESENCE, request_id(), &query).await,
            gateway.request(1, command::REPORT, request_id(), &report).await,
        ];
        for (frame, limited) in frames.into_iter().zip(&mut limited) {
            if frame.error() == Some(Code::RateLimited) {
                let error: session::Error = frame.decode();
                assert!((1..=1_000).contains(&error.retry_after_ms), "{error:?}");
                *limited += 1;
            }
        }
    }
    assert!(limited.iter().all(|count| (1..=18).contains(count)), "{limited:?}");
    // Messages have theirs, which is not touched.
    assert_eq!(gateway.say(1, "bob", "x").await.code, 0);
    // And what services send in somebody's name has one, too.
    let mut refused = 0;
    for number in 0..20 {
        let body = json!({
            "sender_id": "alice", "user_id": "bob", "type": 1, "client_message_id": number.to_string(),
        });
        let (status, reply) = world.http("POST", "/v1/messages", body).await;
        assert!([200, 429].contains(&status), "{reply}");
        if status == 429 {
            assert_eq!(reply["code"], json!(Code::RateLimited.number()));
            refused += 1;
        }
    }
    assert!((1..=18).contains(&refused), "{refused}");
}
