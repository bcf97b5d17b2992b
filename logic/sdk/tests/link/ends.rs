//! The end of sessions: by event, by lease, by a newer life of their gateway.

use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_logic_sdk::testing::{FakeGateway, FakeGatewaySettings, listed_session};
use millrace_logic_sdk::{Encoding, ServerSettings};
use millrace_protocol::Code;

use crate::recorder::{ECHO, Told, connect, serve, short_lease, within};

fn epoch(gateway_epoch: u64) -> FakeGatewaySettings {
    FakeGatewaySettings { gateway_epoch, ..Default::default() }
}

#[tokio::test]
async fn an_end_comes_after_the_last_frame_with_its_code() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    for _ in 0..10 {
        gateway.send(1, ECHO, 0, Bytes::new()).await;
    }
    gateway.end_session(1, Code::IdleTimeout).await;
    gateway.end_session(1, Code::PeerGone).await;
    assert_eq!(recorder.wait_for_end("a").await, Code::IdleTimeout);
    assert!(matches!(recorder.told().last(), Some(Told::Ended(..))));
    gateway.login_as(2, "b", "good").await;
    assert_eq!(recorder.ends("a").len(), 1, "the second report is of nobody");
}

#[tokio::test]
async fn a_newer_life_of_the_gateway_ends_the_sessions_of_the_older_at_once() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut shard0 = connect(&server, epoch(1)).await;
    let mut shard1 = connect(&server, FakeGatewaySettings { shard: 1, ..epoch(1) }).await;
    let other = FakeGatewaySettings { gateway_id: "other".to_owned(), ..epoch(1) };
    let mut other = connect(&server, other).await;
    shard0.login_as(1, "a", "good").await;
    shard1.login_as(1, "b", "good").await;
    other.login_as(1, "c", "good").await;
    shard1.kill();

    // The lease is ten seconds: nobody waits for it here.
    let begin = Instant::now();
    let mut newer = connect(&server, epoch(2)).await;
    newer.login_as(1, "d", "good").await;
    assert_eq!(recorder.ends("a"), [Code::PeerGone]);
    assert_eq!(recorder.ends("b"), [Code::PeerGone]);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(within(shard0.ended()).await.code(), tonic::Code::FailedPrecondition);
    let stale = FakeGateway::connect(server.address(), epoch(1)).await.expect_err("fenced");
    assert_eq!(stale.code(), tonic::Code::FailedPrecondition);
    assert!(recorder.ends("c").is_empty() && recorder.ends("d").is_empty());
    let (old, new) = (recorder.started("a")[0], recorder.started("d")[0]);
    assert_ne!(old, new, "the same shard and id in another life is another address");
}

#[tokio::test]
async fn the_lease_ends_the_sessions_of_a_gateway_that_stays_away() {
    let (server, recorder) = serve(short_lease()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    assert_eq!(gateway.hello_reply().lease_ms, 600);
    for (id, user) in [(1, "a"), (2, "b")] {
        gateway.login_as(id, user, "good").await;
    }
    let gone = Instant::now();
    gateway.kill();
    assert_eq!(recorder.wait_for_end("a").await, Code::PeerGone);
    assert!(gone.elapsed() >= Duration::from_millis(600), "{:?}", gone.elapsed());
    recorder.wait_for_end("b").await;
    assert_eq!(recorder.gateways().counters().leases_expired, 1);
    // Whoever comes back after that starts anew, at another address.
    let sessions = vec![listed_session(1, "a", Encoding::Protobuf)];
    let _gateway = connect(&server, FakeGatewaySettings { sessions, ..Default::default() }).await;
    recorder.wait_for("the return", |_| recorder.started("a").len() == 2).await;
    let started = recorder.started("a");
    assert_ne!(started[0], started[1]);
}

#[tokio::test]
async fn a_gateway_that_returns_within_the_lease_loses_nobody() {
    let (server, recorder) = serve(short_lease()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    for _ in 0..4 {
        gateway.kill();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let sessions = vec![listed_session(1, "a", Encoding::Protobuf)];
        gateway = connect(&server, FakeGatewaySettings { sessions, ..Default::default() }).await;
    }
    // All leases that were started have run out by now, and each found a newer stream.
    gateway.read_for(Duration::from_millis(1_000)).await;
    assert!(recorder.ends("a").is_empty());
    gateway.send(1, ECHO, 5, Bytes::new()).await;
    assert!(gateway.reply(1, 5).await.is_some());
}

#[tokio::test]
async fn a_silent_stream_ends_with_its_sessions() {
    let (server, recorder) = serve(short_lease()).await;
    let settings = FakeGatewaySettings { heartbeats: false, ..Default::default() };
    let mut gateway = connect(&server, settings).await;
    gateway.login_as(1, "a", "good").await;
    assert_eq!(within(gateway.ended()).await.code(), tonic::Code::DeadlineExceeded);
    assert_eq!(recorder.wait_for_end("a").await, Code::PeerGone);
    assert_eq!(recorder.gateways().counters().streams_silent, 1);
}

#[tokio::test]
async fn a_quiet_stream_that_sends_heartbeats_lives() {
    let (server, recorder) = serve(short_lease()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    gateway.read_for(Duration::from_millis(2_000)).await;
    assert!(recorder.ends("a").is_empty());
    gateway.send(1, ECHO, 5, Bytes::new()).await;
    assert!(gateway.reply(1, 5).await.is_some());
}

#[tokio::test]
async fn a_gateway_may_ask_for_a_shorter_lease_not_for_a_longer() {
    let (server, _recorder) = serve(short_lease()).await;
    for (asked, given) in [(0, 600), (10_000, 600), (300, 300), (1, 100)] {
        let settings = FakeGatewaySettings { lease_ms: asked, ..Default::default() };
        let gateway = connect(&server, settings).await;
        assert_eq!(gateway.hello_reply().lease_ms, given);
    }
}

#[tokio::test]
async fn a_newer_stream_of_the_same_shard_takes_over() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut old = connect(&server, FakeGatewaySettings::default()).await;
    old.login_as(1, "a", "good").await;
    let sessions = vec![listed_session(1, "a", Encoding::Protobuf)];
    let mut new = connect(&server, FakeGatewaySettings { sessions, ..Default::default() }).await;
    assert_eq!(within(old.ended()).await.code(), tonic::Code::Aborted);
    new.send(1, ECHO, 5, Bytes::new()).await;
    assert!(new.reply(1, 5).await.is_some());
    assert!(recorder.ends("a").is_empty());
}
