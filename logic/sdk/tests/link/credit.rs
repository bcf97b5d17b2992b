//! Credits in both directions, and the bound of the outbox.

use std::time::Duration;

use bytes::Bytes;
use millrace_logic_sdk::testing::{FakeGatewaySettings, listed_session};
use millrace_logic_sdk::{Encoding, ServerSettings};
use millrace_protocol::Code;
use millrace_protocol::frame::Flags;
use millrace_protocol::link::Credit;

use crate::recorder::{ECHO, HOLD, Told, WELCOME, connect, serve, within};

#[tokio::test]
async fn a_gateway_without_credit_waits_until_frames_are_dealt_with() {
    let settings = ServerSettings { window_frames_max: 8, ..ServerSettings::default() };
    let (server, recorder) = serve(settings).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    let mut number = 0;
    for _ in 0..5 {
        let mut sent = 0;
        while gateway.try_send(1, HOLD, number + 1, Bytes::new()).await {
            sent += 1;
            number += 1;
        }
        assert_eq!(sent, 8, "the whole window, no more");
        recorder.wait_for("the frames", |_| recorder.held() == 8).await;
        gateway.read_for(Duration::from_millis(20)).await;
        assert_eq!(gateway.credit().frames, 0, "nothing was dealt with");
        recorder.release();
        while gateway.credit().frames < 8 {
            assert!(gateway.receive().await);
        }
    }
}

#[tokio::test]
async fn bytes_count_as_well_as_frames() {
    let settings = ServerSettings { window_bytes_max: 1_000, ..ServerSettings::default() };
    let (server, recorder) = serve(settings).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    assert!(gateway.try_send(1, HOLD, 1, vec![0; 600].into()).await);
    assert!(!gateway.try_send(1, HOLD, 2, vec![0; 600].into()).await);
    recorder.wait_for("the frame", |_| recorder.held() == 1).await;
    recorder.release();
    while gateway.credit().bytes < 1_000 {
        assert!(gateway.receive().await);
    }
}

#[tokio::test]
async fn credit_comes_back_alone_when_there_is_nothing_to_send() {
    let settings = ServerSettings { window_frames_max: 100, ..ServerSettings::default() };
    let (server, _recorder) = serve(settings).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    // Without request ids nothing is answered: only credit can come, and must.
    for _ in 0..1_000 {
        within(gateway.send(1, ECHO, 0, Bytes::new())).await;
    }
}

#[tokio::test]
async fn a_gateway_that_ignores_its_credit_loses_the_stream() {
    let settings = ServerSettings { window_frames_max: 8, ..ServerSettings::default() };
    let (server, recorder) = serve(settings).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    for number in 1..=9 {
        gateway.send_unchecked(1, HOLD, number, Flags::NONE, Bytes::new()).await;
    }
    assert_eq!(within(gateway.ended()).await.code(), tonic::Code::ResourceExhausted);
    assert!(recorder.held() <= 8);
}

#[tokio::test]
async fn logic_without_credit_keeps_frames_and_sends_them_in_order_later() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let window = Credit { frames: 4, bytes: 1_000 };
    let settings = FakeGatewaySettings { window, returns_credit: false, ..Default::default() };
    let mut gateway = connect(&server, settings).await;
    gateway.login_as(1, "a", "good").await;
    assert_eq!(gateway.next_frame(1).await.expect("a welcome").command, WELCOME);
    gateway.return_credit().await;
    let address = recorder.started("a")[0];
    for number in 0..40_u8 {
        let body = Bytes::from(vec![number; 1 + usize::from(number) * 10]);
        recorder.gateways().send(&[address], ECHO, Flags::NONE, body);
    }
    recorder.gateways().close(address, Code::Kicked, "after all of them");
    let mut next = 0;
    while next < 40 {
        // The fake gateway itself fails when more comes than it has granted.
        let frame = gateway.next_frame(1).await.expect("the stream lives");
        assert_eq!(frame.body[0], next);
        next += 1;
        if gateway.inbox(1) == 0 {
            gateway.read_for(Duration::from_millis(5)).await;
            if gateway.inbox(1) == 0 {
                gateway.return_credit().await;
            }
        }
    }
    let close = gateway.next_close().await.expect("the stream lives");
    assert_eq!((close.code, &*close.reason), (Code::Kicked.number(), "after all of them"));
}

#[tokio::test]
async fn an_outbox_that_is_full_ends_the_stream_and_the_sessions_return() {
    let settings = ServerSettings { outbox_frames_max: 50, ..ServerSettings::default() };
    let (server, recorder) = serve(settings).await;
    let window = Credit { frames: 4, bytes: 1_000 };
    let settings = FakeGatewaySettings { window, returns_credit: false, ..Default::default() };
    let mut gateway = connect(&server, settings).await;
    gateway.login_as(1, "a", "good").await;
    let address = recorder.started("a")[0];
    for _ in 0..200 {
        recorder.gateways().send(&[address], ECHO, Flags::NONE, Bytes::new());
    }
    assert_eq!(within(gateway.ended()).await.code(), tonic::Code::ResourceExhausted);
    assert_eq!(recorder.gateways().counters().streams_overflowed, 1);
    let sessions = vec![listed_session(1, "a", Encoding::Protobuf)];
    let mut gateway =
        connect(&server, FakeGatewaySettings { sessions, ..Default::default() }).await;
    let replayed = Told::Replayed { started: vec![], kept: vec![1] };
    recorder.wait_for("the replay", |told| told.contains(&replayed)).await;
    recorder.gateways().send(&[address], ECHO, Flags::NONE, "again".into());
    assert_eq!(gateway.next_frame(1).await.expect("the stream lives").body, "again");
    assert!(recorder.ends("a").is_empty());
}

#[tokio::test]
async fn a_frame_no_window_can_hold_is_counted_and_blocks_nobody() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let window = Credit { frames: 4, bytes: 1_000 };
    let mut gateway = connect(&server, FakeGatewaySettings { window, ..Default::default() }).await;
    gateway.login_as(1, "a", "good").await;
    assert_eq!(gateway.next_frame(1).await.expect("a welcome").command, WELCOME);
    let address = recorder.started("a")[0];
    recorder.gateways().send(&[address], ECHO, Flags::NONE, vec![0; 1_001].into());
    recorder.gateways().send(&[address], ECHO, Flags::NONE, vec![0; 1_000].into());
    assert_eq!(gateway.next_frame(1).await.expect("the stream lives").body.len(), 1_000);
    assert_eq!(recorder.gateways().counters().frames_unsendable, 1);
}
