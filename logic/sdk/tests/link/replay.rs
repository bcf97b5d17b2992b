//! What happens to sessions when a stream breaks and comes back.

use bytes::Bytes;
use millrace_logic_sdk::testing::{FakeGatewaySettings, listed_session};
use millrace_logic_sdk::{Encoding, ServerSettings};
use millrace_protocol::Code;
use millrace_protocol::frame::Flags;
use millrace_protocol::link::gateway_event::Kind;
use millrace_protocol::link::{SessionEnded, SessionsComplete};

use crate::recorder::{ECHO, Told, connect, serve};

fn listing(ids: &[u64]) -> FakeGatewaySettings {
    let listed = |id: &u64| listed_session(*id, &format!("user-{id}"), Encoding::Protobuf);
    FakeGatewaySettings { sessions: ids.iter().map(listed).collect(), ..Default::default() }
}

#[tokio::test]
async fn a_broken_stream_ends_no_session_and_the_list_decides() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    for id in [1, 2, 3] {
        gateway.login_as(id, &format!("user-{id}"), "good").await;
    }
    gateway.kill();
    // Session 2 ended while the link was down; 9 is one this process never heard of.
    let mut gateway = connect(&server, listing(&[1, 3, 9])).await;
    let replayed = Told::Replayed { started: vec![9], kept: vec![1, 3] };
    recorder.wait_for("the replay", |told| told.contains(&replayed)).await;
    assert_eq!(recorder.ends("user-2"), [Code::PeerGone]);
    for id in [1, 3, 9] {
        assert!(recorder.ends(&format!("user-{id}")).is_empty());
        gateway.send(id, ECHO, 5, Bytes::new()).await;
        assert!(gateway.reply(id, 5).await.is_some());
    }
    let told = recorder.told();
    let place = |wanted: &Told| told.iter().position(|told| told == wanted).expect("told");
    assert_eq!(place(&Told::Returning(vec![1, 3])) + 2, place(&replayed), "9 starts in between");
}

#[tokio::test]
async fn what_is_sent_before_the_backend_knows_of_the_return_is_not_delivered() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "user-1", "good").await;
    let address = recorder.started("user-1")[0];
    gateway.kill();
    recorder
        .wait_for("the break", |_| {
            recorder.gateways().gateways().iter().all(|gateway| !gateway.connected)
        })
        .await;
    recorder.gateways().send(&[address], ECHO, Flags::NONE, "lost".into());
    assert_eq!(recorder.gateways().counters().events_skipped, 1);
    let mut gateway = connect(&server, listing(&[1])).await;
    let replayed = Told::Replayed { started: vec![], kept: vec![1] };
    recorder.wait_for("the replay", |told| told.contains(&replayed)).await;
    // The recorder sends a welcome from within sessions_returning; it must not be the first frame.
    recorder.gateways().send(&[address], ECHO, Flags::NONE, "first".into());
    assert_eq!(gateway.next_frame(1).await.expect("the stream lives").body, "first");
}

#[tokio::test]
async fn a_logic_that_starts_again_learns_every_session() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "user-1", "good").await;
    drop(server);
    assert!(gateway.login_result(99).await.is_none(), "the stream has ended");
    assert!(recorder.ends("user-1").is_empty(), "a logic that leaves ends no session");

    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut settings = listing(&[1]);
    settings.sessions[0].state = Bytes::from_static(b"state");
    settings.sessions[0].device_id = "phone".to_owned();
    settings.sessions[0].logged_in_at_ms = 123;
    let mut gateway = connect(&server, settings).await;
    let replayed = Told::Replayed { started: vec![1], kept: vec![] };
    recorder.wait_for("the replay", |told| told.contains(&replayed)).await;
    let session =
        recorder.gateways().session(recorder.started("user-1")[0]).expect("it lives again");
    assert_eq!((&*session.device_id, session.logged_in_at_ms), ("phone", 123));
    assert_eq!(session.state, "state");
    gateway.send(1, ECHO, 5, Bytes::new()).await;
    assert!(gateway.reply(1, 5).await.is_some());
}

#[tokio::test]
async fn a_session_that_ends_while_it_is_listed_is_not_started() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "user-1", "good").await;
    gateway.kill();
    let settings = FakeGatewaySettings::default();
    let address = server.address();
    let mut gateway =
        millrace_logic_sdk::testing::FakeGateway::connect_without_list(address, settings)
            .await
            .expect("connected");
    let list =
        |id: u64| Kind::Session(listed_session(id, &format!("user-{id}"), Encoding::Protobuf));
    let end = |id| Kind::SessionEnded(SessionEnded { session_id: id, code: 12, moved: false });
    gateway.send_events(vec![list(1), list(2), list(3)]).await;
    gateway.send_events(vec![end(1), end(2)]).await;
    gateway.send_events(vec![Kind::SessionsComplete(SessionsComplete { sessions: 1 })]).await;
    let replayed = Told::Replayed { started: vec![3], kept: vec![] };
    recorder.wait_for("the replay", |told| told.contains(&replayed)).await;
    assert_eq!(recorder.ends("user-1"), [Code::IdleTimeout], "with the code it was told");
    assert!(recorder.started("user-2").is_empty() && recorder.ends("user-2").is_empty());
}

#[tokio::test]
async fn an_id_that_belongs_to_another_user_now_is_another_session() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "somebody", "good").await;
    gateway.kill();
    let _gateway = connect(&server, listing(&[1])).await;
    let replayed = Told::Replayed { started: vec![1], kept: vec![] };
    recorder.wait_for("the replay", |told| told.contains(&replayed)).await;
    assert_eq!(recorder.ends("somebody"), [Code::PeerGone]);
    assert!(recorder.ends("user-1").is_empty());
}
