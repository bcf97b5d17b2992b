//! Live rooms across shards, encodings and breaks.

use std::time::Duration;

use millrace_logic_sdk::testing::{
    FakeGateway, FakeGatewaySettings, listed_session, login_request,
};
use millrace_logic_sdk::{Encoding, ServerSettings};
use millrace_protocol::link::RoomMembers;
use millrace_protocol::{Code, chat, command};

use crate::recorder::{Told, WELCOME, connect, serve};

async fn login(gateway: &mut FakeGateway, id: u64, encoding: Encoding) {
    gateway.login(login_request(id, &format!("user-{id}"), "good", "", "", encoding)).await;
    assert_eq!(gateway.next_frame(id).await.expect("a welcome").command, WELCOME);
}

fn message(body: &str) -> chat::RoomMessage {
    chat::RoomMessage { room_id: "r".into(), body: body.into(), ..Default::default() }
}

#[tokio::test]
async fn a_room_message_reaches_each_member_once_and_no_other_shard() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateways = Vec::new();
    for shard in 0..3 {
        let settings = FakeGatewaySettings { shard, ..Default::default() };
        gateways.push(connect(&server, settings).await);
    }
    login(&mut gateways[0], 1, Encoding::Protobuf).await;
    login(&mut gateways[0], 2, Encoding::Json).await;
    login(&mut gateways[0], 3, Encoding::Protobuf).await;
    login(&mut gateways[1], 4, Encoding::Json).await;
    login(&mut gateways[2], 5, Encoding::Protobuf).await;
    let out = recorder.gateways();
    for (id, members) in [(1, 1), (2, 2), (4, 3)] {
        let address = recorder.started(&format!("user-{id}"))[0];
        assert_eq!(out.join_room("r", address), Ok(members));
        assert!(out.is_in_room("r", address));
    }
    let sender = recorder.started("user-1")[0];
    let sent = out.counters().frames_sent;
    out.publish_room("r", command::ROOM_MESSAGE, &message("hello"), Some(sender));
    assert_eq!(out.counters().frames_sent, sent + 2, "two shards have members");
    for (shard, id) in [(0, 2), (1, 4)] {
        let frame = gateways[shard].next_frame(id).await.expect("the stream lives");
        assert_eq!(frame.decode::<chat::RoomMessage>(), message("hello"));
    }
    out.publish_room("r", command::ROOM_MESSAGE, &message("to all"), None);
    let frame = gateways[0].next_frame(1).await.expect("the stream lives");
    assert_eq!(frame.decode::<chat::RoomMessage>().body, "to all", "not its own message before");
    gateways[2].read_for(Duration::from_millis(20)).await;
    assert_eq!((gateways[0].inbox(3), gateways[2].inbox(5)), (0, 0));
}

#[tokio::test]
async fn sessions_that_end_leave_their_rooms() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    login(&mut gateway, 1, Encoding::Protobuf).await;
    let (address, out) = (recorder.started("user-1")[0], recorder.gateways());
    assert_eq!(out.join_room("r", address), Ok(1));
    assert_eq!(out.join_room("r", address), Ok(1));
    gateway.end_session(1, Code::Ok).await;
    recorder.wait_for_end("user-1").await;
    assert_eq!(out.room_members("r"), 0);
    assert_eq!(out.join_room("r", address).expect_err("it has ended").code, Code::NotFound);
}

#[tokio::test]
async fn a_gateway_that_returns_is_told_what_changed_in_its_rooms() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateway = connect(&server, FakeGatewaySettings::default()).await;
    for id in [1, 2, 3] {
        login(&mut gateway, id, Encoding::Protobuf).await;
        recorder
            .gateways()
            .join_room("r", recorder.started(&format!("user-{id}"))[0])
            .expect("joined");
    }
    gateway.kill();
    recorder
        .wait_for("the break", |_| {
            recorder.gateways().gateways().iter().all(|gateway| !gateway.connected)
        })
        .await;
    // While the link is away 2 leaves; and session 3 does not return. The gateway knows neither.
    assert_eq!(recorder.gateways().leave_room("r", recorder.started("user-2")[0]), Ok(2));
    let sessions =
        [1, 2].map(|id| listed_session(id, &format!("user-{id}"), Encoding::Protobuf)).to_vec();
    let rooms = vec![RoomMembers { room_id: "r".into(), session_ids: vec![2] }];
    let mut gateway =
        connect(&server, FakeGatewaySettings { sessions, rooms, ..Default::default() }).await;
    let replayed = Told::Replayed { started: vec![], kept: vec![1, 2] };
    recorder.wait_for("the replay", |told| told.contains(&replayed)).await;
    recorder.gateways().publish_room("r", command::ROOM_MESSAGE, &message("hello"), None);
    let frame = gateway.next_frame(1).await.expect("the stream lives");
    assert_eq!(frame.decode::<chat::RoomMessage>().body, "hello");
    assert_eq!(gateway.room("r"), [1], "told of the one that joined and the one that left");
    assert_eq!(recorder.gateways().room_members("r"), 1);
}

#[tokio::test]
async fn a_logic_that_restarted_takes_the_rooms_over() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let sessions = [(1, Encoding::Protobuf), (2, Encoding::Json), (3, Encoding::Protobuf)]
        .map(|(id, encoding)| listed_session(id, &format!("user-{id}"), encoding))
        .to_vec();
    let room =
        |name: &str, ids: &[u64]| RoomMembers { room_id: name.into(), session_ids: ids.to_vec() };
    // 9 was listed and has ended since.
    let rooms = vec![room("r", &[1, 2]), room("r", &[9]), room("other", &[3])];
    let mut gateway =
        connect(&server, FakeGatewaySettings { sessions, rooms, ..Default::default() }).await;
    let replayed = Told::Replayed { started: vec![1, 2, 3], kept: vec![] };
    recorder.wait_for("the replay", |told| told.contains(&replayed)).await;
    let out = recorder.gateways();
    assert_eq!((out.room_members("r"), out.room_members("other")), (2, 1));
    out.publish_room("r", command::ROOM_MESSAGE, &message("still here?"), None);
    for id in [1, 2] {
        let frame = gateway.next_frame(id).await.expect("the stream lives");
        assert_eq!(frame.decode::<chat::RoomMessage>().body, "still here?");
    }
    assert_eq!(gateway.inbox(3), 0);
}

#[tokio::test]
async fn a_broadcast_reaches_every_session_once_and_is_published_once_a_shard() {
    let (server, recorder) = serve(ServerSettings::default()).await;
    let mut gateways = Vec::new();
    for shard in 0..3 {
        let settings = FakeGatewaySettings { shard, ..Default::default() };
        gateways.push(connect(&server, settings).await);
    }
    for (shard, id, encoding) in
        [(0, 1, Encoding::Protobuf), (0, 2, Encoding::Json), (1, 3, Encoding::Json)]
    {
        login(&mut gateways[shard], id, encoding).await;
    }
    let out = recorder.gateways();
    let sent = out.counters().frames_sent;
    assert_eq!(out.broadcast(command::NOTICE, &message("all")), 3);
    assert_eq!(out.counters().frames_sent, sent + 2, "the third shard has nobody");
    for (shard, id) in [(0, 1), (0, 2), (1, 3)] {
        let frame = gateways[shard].next_frame(id).await.expect("the stream lives");
        assert_eq!((frame.command, frame.decode()), (command::NOTICE, message("all")));
    }
    for gateway in &mut gateways {
        gateway.read_for(Duration::from_millis(20)).await;
        assert_eq!((1..=3).map(|id| gateway.inbox(id)).sum::<usize>(), 0);
    }
}
