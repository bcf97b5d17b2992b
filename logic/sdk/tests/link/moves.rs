//! Several logic processes: sessions come and go between them, and a process hands its own over before
//! it leaves.

use bytes::Bytes;
use millrace_logic_sdk::testing::{FakeGateway, FakeGatewaySettings, listed_session};
use millrace_logic_sdk::{Encoding, HandedOver, ServerSettings};
use millrace_protocol::Code;
use millrace_protocol::link::{SessionEnded, gateway_event::Kind};

use crate::recorder::{ECHO, HOLD, Told, connect, serve, within};

fn mover() -> FakeGatewaySettings {
    FakeGatewaySettings { moves: true, ..FakeGatewaySettings::default() }
}

/// Without what was told of the list, which is empty.
fn of_sessions(told: &[Told]) -> Vec<Told> {
    let is_list = |told: &&Told| matches!(told, Told::Returning(_) | Told::Replayed { .. });
    told.iter().filter(|told| !is_list(told)).cloned().collect()
}

#[tokio::test]
async fn a_session_that_moves_here_is_no_login_and_its_frames_and_rooms_come_with_it() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, mover()).await;
    assert!(gateway.hello_reply().takes_moves);
    gateway.move_here(listed_session(7, "alice", Encoding::Json), &["hall", "den"]).await;
    gateway.send(7, ECHO, 1, Bytes::from_static(b"\"x\"")).await;
    assert_eq!(gateway.reply(7, 1).await.expect("an answer").body, b"\"x\""[..]);
    let told = of_sessions(&recorder.told());
    let Told::MovedHere(address, user) = &told[0] else { panic!("{told:?}") };
    assert_eq!((address.session_id, user.as_str()), (7, "alice"));
    assert!(matches!(told[1], Told::Frame(..)), "before its frames: {told:?}");
    assert!(recorder.started("alice").is_empty(), "it is not a login");
    for room in ["hall", "den"] {
        assert!(recorder.gateways().is_in_room(room, *address));
    }
    assert_eq!(server.gateways().counters().sessions_moved_here, 1);
    gateway.end_session(7, Code::IdleTimeout).await;
    assert_eq!(recorder.wait_for_end("alice").await, Code::IdleTimeout);
    assert_eq!(recorder.gateways().room_members("hall"), 0);
}

#[tokio::test]
async fn a_session_that_moves_away_has_not_ended_and_may_come_back() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, mover()).await;
    gateway.login_as(1, "bob", "good").await;
    let address = recorder.started("bob")[0];
    // Its last frame comes before the move, in one batch with it.
    gateway.send(1, HOLD, 3, Bytes::new()).await;
    gateway.move_away(1).await;
    let moved = Told::MovedAway(address, "bob".to_owned());
    recorder.wait_for("the move", |told| told.contains(&moved)).await;
    assert_eq!(recorder.held(), 1);
    assert!(recorder.ends("bob").is_empty(), "nobody has gone offline");
    assert!(recorder.gateways().session(address).is_none());
    gateway.move_here(listed_session(1, "bob", Encoding::Protobuf), &[]).await;
    let back = Told::MovedHere(address, "bob".to_owned());
    recorder.wait_for("the way back", |told| told.contains(&back)).await;
    gateway.end_session(1, Code::Ok).await;
    assert_eq!(recorder.wait_for_end("bob").await, Code::Ok);
    assert_eq!(server.gateways().counters().sessions_moved_away, 1);
}

#[tokio::test]
async fn a_session_may_arrive_speak_and_leave_in_one_batch() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, mover()).await;
    let session = millrace_protocol::link::Session {
        moved: true,
        ..listed_session(4, "carol", Encoding::Protobuf)
    };
    let frame = millrace_protocol::link::ClientFrame {
        session_id: 4,
        command: u32::from(ECHO),
        request_id: 9,
        ..Default::default()
    };
    let moved = SessionEnded { session_id: 4, code: 0, moved: true };
    gateway
        .send_events(vec![Kind::Session(session), Kind::Frame(frame), Kind::SessionEnded(moved)])
        .await;
    recorder.wait_for("the move", |told| of_sessions(told).len() == 3).await;
    let told = of_sessions(&recorder.told());
    assert!(
        matches!(&told[..], [Told::MovedHere(..), Told::Frame(..), Told::MovedAway(..)]),
        "{told:?}"
    );
}

#[tokio::test]
async fn what_a_gateway_lists_no_more_is_lost_and_may_live_on_elsewhere() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, mover()).await;
    gateway.login_as(1, "dave", "good").await;
    gateway.kill();
    let _gateway = connect(&server, mover()).await;
    assert_eq!(recorder.wait_for_end("dave").await, Code::PeerGone);
}

#[tokio::test]
async fn a_room_that_a_newcomer_cannot_keep_is_left_at_the_gateway_too() {
    let settings = ServerSettings { rooms_per_session_max: 1, ..ServerSettings::default() };
    let (server, recorder) = serve(settings).await;
    let mut gateway = connect(&server, mover()).await;
    gateway.move_here(listed_session(5, "erin", Encoding::Protobuf), &["one", "two"]).await;
    within(async {
        while gateway.room("two") == [5] {
            assert!(gateway.receive().await, "the stream lives");
        }
    })
    .await;
    assert_eq!(gateway.room("one"), [5]);
    assert_eq!(recorder.gateways().room_members("one"), 1);
}

#[tokio::test]
async fn a_hand_over_serves_on_until_every_gateway_has_let_go() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, mover()).await;
    for (id, user) in [(1, "a"), (2, "b")] {
        gateway.login_as(id, user, "good").await;
    }
    let handing_over = tokio::spawn(async move {
        let handed_over = server.hand_over().await;
        (handed_over, server)
    });
    while !gateway.is_draining() {
        assert!(gateway.receive().await, "the stream stays open");
    }
    gateway.send(1, ECHO, 1, Bytes::from_static(b"on")).await;
    assert_eq!(gateway.reply(1, 1).await.expect("it is served on").body, b"on"[..]);
    gateway.move_away(2).await;
    assert!(!handing_over.is_finished(), "one is still here");
    gateway.move_away(1).await;
    gateway.say_drained(0).await;
    let (handed_over, server) = within(handing_over).await.expect("no panic");
    assert_eq!(handed_over, HandedOver { sessions_moved: 2, sessions_left: 0, in_time: true });
    let late = FakeGateway::connect(server.address(), mover()).await;
    assert_eq!(late.expect_err("refused").code(), tonic::Code::Unavailable);
    within(server.shutdown()).await;
    assert!(recorder.ends("a").is_empty() && recorder.ends("b").is_empty());
}

#[tokio::test]
async fn a_hand_over_waits_for_no_gateway_that_cannot_move_or_is_gone_and_not_for_ever() {
    let settings = ServerSettings { hand_over_ms_max: 300, ..ServerSettings::default() };
    let (server, recorder) = serve(settings).await;
    let mut old = connect(&server, FakeGatewaySettings::default()).await;
    old.login_as(1, "a", "good").await;
    // One that knows no moves keeps what it has, and is not waited for.
    let handed_over = within(server.hand_over()).await;
    assert_eq!(handed_over, HandedOver { sessions_moved: 0, sessions_left: 1, in_time: true });
    assert!(!old.is_draining());
    assert!(recorder.ends("a").is_empty());
    drop(server);

    let (server, _recorder) =
        serve(ServerSettings { hand_over_ms_max: 300, ..Default::default() }).await;
    let mut silent = connect(&server, mover()).await;
    silent.login_as(1, "a", "good").await;
    let handed_over = within(server.hand_over()).await;
    assert_eq!(handed_over, HandedOver { sessions_moved: 0, sessions_left: 1, in_time: false });
}
