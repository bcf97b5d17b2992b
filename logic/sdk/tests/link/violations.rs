//! A gateway that breaks the contract is told what is wrong, and nobody else notices.

use bytes::Bytes;
use millrace_logic_sdk::testing::{FakeGateway, FakeGatewaySettings, listed_session};
use millrace_logic_sdk::{Encoding, ServerSettings};
use millrace_protocol::frame::Flags;
use millrace_protocol::link::gateway_event::Kind;
use millrace_protocol::link::{ClientFrame, Credit, Hello, RefreshRequest, SessionsComplete};

use crate::recorder::{ECHO, WELCOME, connect, serve, within};

#[tokio::test]
async fn a_hello_without_a_name_or_a_window_is_refused() {
    let (server, _recorder) = serve(ServerSettings::default()).await;
    let nameless = FakeGatewaySettings { gateway_id: String::new(), ..Default::default() };
    let window = Credit { frames: 0, bytes: 1 };
    let windowless = FakeGatewaySettings { window, ..Default::default() };
    let shard = FakeGatewaySettings { shard: 65_536, ..Default::default() };
    for settings in [nameless, windowless, shard] {
        let status = FakeGateway::connect(server.address(), settings).await.expect_err("refused");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }
}

#[tokio::test]
async fn events_against_the_contract_end_the_stream_and_no_other() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let other = FakeGatewaySettings { gateway_id: "other".to_owned(), ..Default::default() };
    let mut other = connect(&server, other).await;
    other.login_as(1, "other", "good").await;
    let frame = || ClientFrame { session_id: 1, command: 0x1000, ..Default::default() };
    let complete = || Kind::SessionsComplete(SessionsComplete { sessions: 0 });
    let refresh = RefreshRequest { session_id: 1, ..Default::default() };
    let session = || Kind::Session(listed_session(1, "a", Encoding::Protobuf));
    for events in [
        vec![Kind::Frame(frame())],
        vec![Kind::Refresh(refresh)],
        vec![Kind::Hello(Hello::default())],
        vec![complete(), complete()],
        vec![complete(), session()],
    ] {
        let settings = FakeGatewaySettings::default();
        let gateway = FakeGateway::connect_without_list(server.address(), settings).await;
        let mut gateway = gateway.expect("connected");
        gateway.send_events(events).await;
        assert_eq!(within(gateway.ended()).await.code(), tonic::Code::InvalidArgument);
    }
    assert_eq!(recorder.gateways().counters().streams_violated, 5);
    other.send(1, ECHO, 5, Bytes::new()).await;
    assert!(other.reply(1, 5).await.is_some());
}

#[tokio::test]
async fn an_event_that_is_missing_ends_the_stream() {
    let (server, _recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.skip_events(1);
    gateway.end_session(1, millrace_protocol::Code::Ok).await;
    assert_eq!(within(gateway.ended()).await.code(), tonic::Code::DataLoss);
}

#[tokio::test]
async fn frames_that_make_no_sense_are_counted_and_their_credit_returns() {
    let settings = ServerSettings { window_frames_max: 4, ..ServerSettings::default() };
    let (server, recorder) = serve(settings).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    assert_eq!(gateway.next_frame(1).await.expect("a welcome").command, WELCOME);
    for _ in 0..20 {
        within(gateway.send(77, ECHO, 1, Bytes::new())).await;
    }
    let strange = ClientFrame { session_id: 1, command: 0x1_0000, ..Default::default() };
    let flags = ClientFrame { session_id: 1, flags: 0x10, ..Default::default() };
    while gateway.credit().frames < 3 {
        assert!(gateway.receive().await);
    }
    gateway.send_events(vec![Kind::Frame(strange), Kind::Frame(flags)]).await;
    gateway.send_unchecked(1, ECHO, 5, Flags::NONE, Bytes::new()).await;
    assert!(gateway.reply(1, 5).await.is_some());
    let counters = recorder.gateways().counters();
    assert_eq!((counters.frames_of_unknown_sessions, counters.frames_malformed), (20, 2));
}
