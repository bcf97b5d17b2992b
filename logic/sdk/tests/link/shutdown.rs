//! Leaving in good order.

use bytes::Bytes;
use millrace_logic_sdk::ServerSettings;
use millrace_logic_sdk::testing::{FakeGateway, FakeGatewaySettings};

use crate::recorder::{HOLD, connect, serve, within};

#[tokio::test]
async fn what_was_read_is_answered_before_the_stream_ends() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    for number in 1..=20 {
        gateway.send(1, HOLD, number, Bytes::new()).await;
    }
    recorder.wait_for("the frames", |_| recorder.held() == 20).await;
    server.drain();
    while !gateway.is_draining() {
        assert!(gateway.receive().await, "the stream stays open while answers are due");
    }
    let late = FakeGateway::connect(server.address(), FakeGatewaySettings::default()).await;
    assert_eq!(late.expect_err("refused").code(), tonic::Code::Unavailable);
    gateway.send(1, HOLD, 21, Bytes::new()).await;
    recorder.release();
    let leaving = tokio::spawn(server.shutdown());
    for number in 1..=20 {
        assert!(gateway.reply(1, number).await.is_some(), "answer {number}");
    }
    assert_eq!(within(gateway.ended()).await.code(), tonic::Code::Ok);
    drop(gateway);
    within(leaving).await.expect("no panic");
    assert_eq!(recorder.held(), 0, "what came after the drain was not read");
    assert!(recorder.ends("a").is_empty(), "the session lives on at its gateway");
}

#[tokio::test]
async fn a_gateway_that_does_not_read_cannot_hold_the_shutdown_up() {
    let settings = ServerSettings { shutdown_ms_max: 200, ..ServerSettings::default() };
    let (server, recorder) = serve(settings).await;
    let window = millrace_protocol::link::Credit { frames: 1, bytes: 1_000 };
    let settings = FakeGatewaySettings { window, returns_credit: false, ..Default::default() };
    let mut gateway = connect(&server, settings).await;
    gateway.login_as(1, "a", "good").await;
    let address = recorder.started("a")[0];
    for _ in 0..10 {
        recorder.gateways().send(&[address], HOLD, Default::default(), Bytes::new());
    }
    within(server.shutdown()).await;
    within(gateway.ended()).await;
}
