//! Logins and refreshes.

use millrace_logic_sdk::testing::{FakeGatewaySettings, login_request};
use millrace_logic_sdk::{Encoding, ServerSettings};
use millrace_protocol::Code;

use crate::recorder::{ECHO, Told, WELCOME, connect, serve};

#[tokio::test]
async fn the_answer_to_a_login_comes_before_the_first_push() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    // The fake gateway fails when a frame comes before its session's LoginResult.
    for id in 1..=200 {
        let request = login_request(id, &format!("user-{id}"), "good", "", "", Encoding::Protobuf);
        gateway.send_login(request).await;
    }
    for id in 1..=200 {
        let result = gateway.login_result(id).await.expect("the stream lives");
        assert_eq!((result.code, &*result.user_id), (0, &*format!("user-{id}")));
        assert_eq!((result.expires_at_ms, &result.state[..]), (5, &b"state"[..]));
        assert_eq!(gateway.next_frame(id).await.expect("a welcome").command, WELCOME);
    }
    let started = |told: &&Told| matches!(told, Told::Started(..));
    assert_eq!(recorder.told().iter().filter(started).count(), 200);
}

#[tokio::test]
async fn a_refused_login_is_answered_and_starts_nothing() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    let result = gateway.login_as(1, "a", "bad").await;
    assert_eq!((result.code, &*result.reason), (Code::BadToken.number(), "a bad token"));
    assert_eq!(result.retry_after_ms, 7);
    assert_eq!(gateway.login_as(1, "a", "good").await.code, 0, "the id is free for another try");
    let again = gateway.login_as(1, "b", "good").await;
    assert_eq!(again.code, Code::AlreadyLoggedIn.number());
    assert_eq!(recorder.started("a").len(), 1);
    assert_eq!(recorder.started("b").len(), 0);
}

#[tokio::test]
async fn a_slow_login_holds_nobody_up_and_too_many_are_refused() {
    let settings = ServerSettings { logins_max: 2, ..ServerSettings::default() };
    let (server, recorder) = serve(settings).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "quick", "good").await;
    for id in [2, 3] {
        let slow = login_request(id, "slow", "slow", "", "", Encoding::Protobuf);
        gateway.send_login(slow).await;
    }
    let busy = gateway.login_as(4, "late", "good").await;
    assert_eq!(busy.code, Code::OverCapacity.number());
    assert!(busy.retry_after_ms > 0);
    gateway.send(1, ECHO, 9, "hello".into()).await;
    assert_eq!(gateway.reply(1, 9).await.expect("the stream lives").body, "hello");
    recorder.gate.0.add_permits(2);
    for id in [2, 3] {
        assert_eq!(gateway.login_result(id).await.expect("the stream lives").code, 0);
    }
}

#[tokio::test]
async fn quick_logins_are_never_refused_for_coming_together() {
    let settings = ServerSettings { logins_max: 2, ..ServerSettings::default() };
    let (server, _recorder) = serve(settings).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    let logins = (1..=100).map(|id| login_request(id, "a", "good", "", "", Encoding::Protobuf));
    let events = logins.map(millrace_protocol::link::gateway_event::Kind::Login).collect();
    gateway.send_events(events).await;
    for id in 1..=100 {
        assert_eq!(gateway.login_result(id).await.expect("the stream lives").code, 0);
    }
}

#[tokio::test]
async fn a_refresh_moves_the_end_of_the_session() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    let address = recorder.started("a")[0];
    let expires = || recorder.gateways().session(address).expect("it lives").expires_at_ms;
    let refused = gateway.refresh(1, "x").await.expect("the stream lives");
    assert_eq!((refused.code, expires()), (Code::BadToken.number(), 5));
    let renewed = gateway.refresh(1, "77").await.expect("the stream lives");
    assert_eq!((renewed.code, renewed.expires_at_ms, expires()), (0, 77, 77));
    let unknown = gateway.refresh(2, "77").await.expect("the stream lives");
    assert_eq!(unknown.code, Code::NotLoggedIn.number());
    gateway.end_session(1, Code::Ok).await;
    recorder.wait_for_end("a").await;
    assert!(recorder.gateways().session(address).is_none());
    assert!(matches!(recorder.told().last(), Some(Told::Ended(_, _, Code::Ok))));
}

#[tokio::test]
async fn a_stream_that_ends_takes_its_undecided_logins_with_it() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.send_login(login_request(1, "a", "slow", "", "", Encoding::Protobuf)).await;
    gateway.login_as(2, "b", "good").await;
    gateway.kill();
    let out = recorder.gateways();
    recorder.wait_for("the break", |_| out.gateways().iter().all(|g| !g.connected)).await;
    recorder.gate.0.add_permits(1);
    let settings = FakeGatewaySettings::default();
    let mut gateway = connect(&server, settings).await;
    gateway.login_as(1, "c", "good").await;
    recorder.wait_for("the other's end", |_| recorder.ends("b").len() == 1).await;
    assert!(recorder.started("a").is_empty(), "its login was never answered");
    assert_eq!(recorder.started("c").len(), 1);
}
