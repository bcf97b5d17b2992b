//! Frames in both directions: order, encodings, answers.

use std::time::Duration;

use bytes::Bytes;
use millrace_logic_sdk::testing::{FakeGatewaySettings, login_request};
use millrace_logic_sdk::{Encoding, ServerSettings};
use millrace_protocol::frame::Flags;
use millrace_protocol::{Code, chat, command};

use crate::recorder::{ECHO, HOLD, IGNORE, PANIC, Told, WAIT, WELCOME, connect, serve, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_keep_their_order_in_both_directions() {
    const SESSIONS: u64 = 8;
    const FRAMES: u32 = 2_000;
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    for id in 1..=SESSIONS {
        gateway.login_as(id, "a", "good").await;
        assert_eq!(gateway.next_frame(id).await.expect("a welcome").command, WELCOME);
    }
    let mut expected = Vec::new();
    let mut random = fastrand::Rng::with_seed(7);
    for number in 1..=FRAMES {
        let id = random.u64(1..=SESSIONS);
        let body = Bytes::from(vec![number as u8; random.usize(..400)]);
        expected.push((id, number, body.clone()));
        gateway.send(id, ECHO, number, body).await;
    }
    for (id, number, body) in &expected {
        let reply = gateway.next_frame(*id).await.expect("the stream lives");
        assert_eq!((reply.command, reply.request_id), (command::reply(ECHO), *number));
        assert_eq!(reply.body, body);
    }
    let told = recorder.told().into_iter().filter_map(|told| match told {
        Told::Frame(address, _, number, body) => Some((address.session_id, number, body)),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn each_session_is_sent_to_in_its_own_encoding() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    let mut sessions = Vec::new();
    for (id, encoding) in [(1, Encoding::Protobuf), (2, Encoding::Json), (3, Encoding::Protobuf)] {
        gateway.login(login_request(id, &format!("{id}"), "good", "", "", encoding)).await;
        assert_eq!(gateway.next_frame(id).await.expect("a welcome").command, WELCOME);
        sessions.push((recorder.started(&format!("{id}"))[0], encoding));
    }
    let typing = chat::Typing { conversation_id: "c".to_owned(), user_id: "u".to_owned() };
    recorder.gateways().send_message(&sessions, command::TYPING, &typing);
    for (id, flags) in [(1, Flags::NONE), (2, Flags::JSON), (3, Flags::NONE)] {
        let frame = gateway.next_frame(id).await.expect("the stream lives");
        assert_eq!((frame.command, frame.flags, frame.request_id), (command::TYPING, flags, 0));
        assert_eq!(frame.decode::<chat::Typing>(), typing);
    }
    assert_eq!(recorder.gateways().counters().frames_sent, 3 + 2, "one frame per encoding");
}

#[tokio::test]
async fn a_batch_keeps_replies_and_pushes_in_order() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    assert_eq!(gateway.next_frame(1).await.expect("a welcome").command, WELCOME);
    let address = recorder.started("a")[0];
    {
        let mut batch = recorder.gateways().batch();
        for number in 0..100_u8 {
            batch.send(&[address], ECHO, Flags::NONE, Bytes::from(vec![number]));
        }
        // Nothing of a batch is under way before it is complete.
        gateway.read_for(Duration::from_millis(20)).await;
        assert_eq!(gateway.inbox(1), 0);
    }
    for number in 0..100_u8 {
        assert_eq!(gateway.next_frame(1).await.expect("the stream lives").body[..], [number]);
    }
}

#[tokio::test]
async fn a_request_the_backend_forgets_is_refused() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    assert_eq!(gateway.next_frame(1).await.expect("a welcome").command, WELCOME);
    gateway.send(1, IGNORE, 0, Bytes::new()).await;
    gateway.send(1, IGNORE, 5, Bytes::new()).await;
    let refused = gateway.next_frame(1).await.expect("the stream lives");
    assert_eq!((refused.error(), refused.request_id), (Some(Code::Internal), 5));
    assert_eq!(recorder.gateways().counters().requests_unanswered, 1);
}

#[tokio::test]
async fn a_reply_never_reaches_another_stream_than_its_request_came_on() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    gateway.send(1, HOLD, 5, Bytes::new()).await;
    recorder.wait_for("the frame", |_| recorder.held() == 1).await;
    gateway.kill();
    let listed = millrace_logic_sdk::testing::listed_session(1, "a", Encoding::Protobuf);
    let settings = FakeGatewaySettings { sessions: vec![listed], ..Default::default() };
    let mut gateway = connect(&server, settings).await;
    recorder
        .wait_for("the replay", |told| {
            told.contains(&Told::Replayed { started: vec![], kept: vec![1] })
        })
        .await;
    recorder.release();
    gateway.send(1, ECHO, 6, Bytes::new()).await;
    assert_eq!(gateway.next_frame(1).await.expect("the stream lives").request_id, 6);
}

#[tokio::test]
async fn a_backend_that_fails_costs_its_stream_but_no_session() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut bystander = connect(
        &server,
        FakeGatewaySettings { gateway_id: "bystander".to_owned(), ..Default::default() },
    )
    .await;
    bystander.login_as(1, "bystander", "good").await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    gateway.send(1, PANIC, 5, Bytes::new()).await;
    assert_eq!(within(gateway.ended()).await.code(), tonic::Code::Internal);
    bystander.send(1, ECHO, 6, Bytes::new()).await;
    assert_eq!(bystander.reply(1, 6).await.expect("the stream lives").request_id, 6);
    let listed = millrace_logic_sdk::testing::listed_session(1, "a", Encoding::Protobuf);
    let settings = FakeGatewaySettings { sessions: vec![listed], ..Default::default() };
    let mut gateway = connect(&server, settings).await;
    gateway.send(1, ECHO, 7, Bytes::new()).await;
    assert_eq!(gateway.reply(1, 7).await.expect("the stream lives").request_id, 7);
    assert!(recorder.ends("a").is_empty());
}

#[tokio::test]
async fn a_backend_that_waits_reads_nothing_more_and_loses_nothing() {
    let settings = ServerSettings { window_frames_max: 10, ..ServerSettings::default() };
    let (server, recorder) = serve(settings).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    gateway.login_as(1, "a", "good").await;
    let mut sent = 0;
    while gateway.try_send(1, WAIT, sent + 1, Bytes::new()).await {
        sent += 1;
    }
    assert_eq!(sent, 10);
    recorder
        .wait_for("the first frame", |told| told.iter().any(|t| matches!(t, Told::Frame(..))))
        .await;
    let frames = |told: &[Told]| told.iter().filter(|t| matches!(t, Told::Frame(..))).count();
    assert_eq!(frames(&recorder.told()), 1, "the others wait");
    recorder.gate.0.add_permits(10);
    for number in 1..=10 {
        assert!(gateway.reply(1, number).await.is_some());
    }
    assert_eq!(frames(&recorder.told()), 10);
}
