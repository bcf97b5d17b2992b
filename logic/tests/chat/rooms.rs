//! Live rooms: members hear each other, nothing is stored.

use millrace_logic_sdk::{
    Encoding,
    testing::{FakeGatewaySettings, listed_session},
};
use millrace_protocol::{
    Code,
    chat::{JoinRoom, LeaveRoom, Notice, NoticeAck, RoomMessage, RoomReply},
    command,
    link::RoomMembers,
};
use millrace_service::units::ByteSize;
use serde_json::json;

use crate::world::{Clients, QUIET, World, request_id};

fn join(room_id: &str) -> JoinRoom {
    JoinRoom { room_id: room_id.into() }
}

fn message(room_id: &str, body: &str) -> RoomMessage {
    RoomMessage { room_id: room_id.into(), r#type: 1, body: body.into(), sender_id: "x".into() }
}

#[tokio::test]
async fn members_on_every_gateway_hear_each_other_and_nobody_else_does() {
    let world = World::start().await;
    let mut one = world.gateway("a").await;
    let mut other = world.gateway("b").await;
    one.enter(1, "alice").await;
    one.enter(2, "bob").await;
    one.enter(3, "mallory").await;
    other.enter_as(1, "carol", "browser", "web", Encoding::Json).await;
    let members = |frame: millrace_logic_sdk::testing::Frame| {
        let reply: RoomReply = frame.decode();
        assert_eq!(reply.code, 0, "{}", reply.reason);
        reply.members
    };
    assert_eq!(members(one.request(1, command::JOIN_ROOM, request_id(), &join("hall")).await), 1);
    assert_eq!(members(one.request(2, command::JOIN_ROOM, request_id(), &join("hall")).await), 2);
    assert_eq!(members(other.request(1, command::JOIN_ROOM, request_id(), &join("hall")).await), 3);

    let said = message("hall", "hello hall");
    assert_eq!(members(one.request(1, command::ROOM_MESSAGE, request_id(), &said).await), 3);
    let heard: RoomMessage = one.next_of(2, command::ROOM_MESSAGE).await.decode();
    assert_eq!((&*heard.sender_id, &*heard.body), ("alice", "hello hall"));
    let heard: RoomMessage = other.next_of(1, command::ROOM_MESSAGE).await.decode();
    assert_eq!(&*heard.sender_id, "alice");

    // Who is not in the room neither hears nor speaks.
    let refused = one.request(3, command::ROOM_MESSAGE, request_id(), &said).await;
    assert_eq!(refused.decode::<RoomReply>().code, Code::NotPermitted.number());
    let leave = LeaveRoom { room_id: "hall".into() };
    assert_eq!(members(one.request(2, command::LEAVE_ROOM, request_id(), &leave).await), 2);
    one.request(1, command::ROOM_MESSAGE, request_id(), &said).await;
    one.read_for(QUIET).await;
    assert_eq!((one.inbox(1), one.inbox(2), one.inbox(3)), (0, 0, 0));

    // A session that ends leaves its rooms.
    one.end_session(1, Code::Ok).await;
    one.read_for(QUIET).await;
    let said = message("hall", "anybody here?");
    assert_eq!(members(other.request(1, command::ROOM_MESSAGE, request_id(), &said).await), 1);
}

#[tokio::test]
async fn a_room_needs_a_name_and_a_session_has_only_so_many() {
    let world = World::start_with(|config| config.limits.rooms_per_session_max = 2).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    for (room_id, code) in [
        ("", Code::BadRequest),
        (&*"r".repeat(129), Code::BadRequest),
        ("one", Code::Ok),
        ("two", Code::Ok),
        ("two", Code::Ok),
        ("three", Code::OverCapacity),
    ] {
        let reply = gateway.request(1, command::JOIN_ROOM, request_id(), &join(room_id)).await;
        assert_eq!(reply.decode::<RoomReply>().code, code.number(), "{room_id:?}");
    }
}

#[tokio::test]
async fn what_is_too_large_or_too_fast_is_refused_and_heard_by_nobody() {
    let world = World::start_with(|config| {
        config.limits.room_body_bytes_max = ByteSize::from_bytes(1_024);
        config.limits.room_messages_burst_max = 3;
        config.limits.room_messages_per_second_max = 1;
        config.limits.room_members_max = 2;
    })
    .await;
    let mut gateway = world.gateway("a").await;
    for (session_id, user_id) in [(1, "alice"), (2, "bob"), (3, "carol")] {
        gateway.enter(session_id, user_id).await;
        let join = join("hall");
        let reply = gateway.request(session_id, command::JOIN_ROOM, request_id(), &join).await;
        let code = if session_id == 3 { Code::OverCapacity } else { Code::Ok };
        assert_eq!(reply.decode::<RoomReply>().code, code.number());
    }
    let large = message("hall", &"x".repeat(1_025));
    let refused = gateway.request(1, command::ROOM_MESSAGE, request_id(), &large).await;
    assert_eq!(refused.decode::<RoomReply>().code, Code::TooLarge.number());
    // However slow this machine is: of ten messages at least one comes before the next refill,
    // unless they take ten seconds.
    let mut taken = Vec::new();
    let mut limited = 0;
    for number in 0..10 {
        let said = message("hall", &number.to_string());
        let reply = gateway.request(1, command::ROOM_MESSAGE, request_id(), &said).await;
        match reply.error() {
            None => taken.push(number.to_string()),
            Some(code) => {
                assert_eq!(code, Code::RateLimited);
                let error: millrace_protocol::session::Error = reply.decode();
                assert!((1..=1_000).contains(&error.retry_after_ms), "{}", error.retry_after_ms);
                limited += 1;
            }
        }
    }
    assert!(limited > 0 && taken.len() >= 3, "taken {taken:?}");
    let mut heard = Vec::new();
    for _ in &taken {
        let frame = gateway.next_of(2, command::ROOM_MESSAGE).await;
        heard.push(frame.decode::<RoomMessage>().body);
    }
    assert_eq!(heard, taken, "in order, and nothing that was refused");
    gateway.read_for(QUIET).await;
    assert_eq!(gateway.inbox(2), 0);
}

#[tokio::test]
async fn services_speak_in_rooms_and_to_everybody() {
    let world = World::start_with(|config| config.limits.broadcasts_burst_max = 1).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter_as(2, "bob", "browser", "web", Encoding::Json).await;
    gateway.enter(3, "carol").await;
    for session_id in [1, 2] {
        gateway.request(session_id, command::JOIN_ROOM, request_id(), &join("a/b")).await;
    }
    let body = json!({ "sender_id": "the host", "type": 2, "body": "welcome" });
    let (status, reply) = world.http("POST", "/v1/rooms/a%2Fb/messages", body).await;
    assert_eq!((status, &reply["members"]), (200, &json!("2")), "{reply}");
    for session_id in [1, 2] {
        let heard: RoomMessage = gateway.next_of(session_id, command::ROOM_MESSAGE).await.decode();
        assert_eq!((&*heard.sender_id, &*heard.body, heard.r#type), ("the host", "welcome", 2));
    }
    let (status, reply) =
        world.http("POST", "/v1/rooms/nobody/messages", json!({ "body": "?" })).await;
    assert_eq!((status, &reply["members"]), (200, &json!("0")));

    let body = json!({ "notice_id": "n1", "type": 5, "body": "for all" });
    let (status, reply) = world.http("POST", "/v1/broadcast", body.clone()).await;
    assert_eq!((status, &reply["sessions"], &reply["notice_id"]), (200, &json!("3"), &json!("n1")));
    for session_id in [1, 2, 3] {
        let heard: Notice = gateway.next_of(session_id, command::NOTICE).await.decode();
        assert_eq!((&*heard.notice_id, &*heard.body, heard.r#type), ("n1", "for all", 5));
        assert!(heard.sent_at_ms > 0);
    }
    let ack = NoticeAck { notice_id: "n1".into() };
    let reply = gateway.request(1, command::NOTICE_ACK, request_id(), &ack).await;
    assert_eq!(reply.command, command::reply(command::NOTICE_ACK));
    // The rate refills a tenth of a second later, so one of many is refused on any machine.
    let mut refused = false;
    for _ in 0..50 {
        let (status, reply) = world.http("POST", "/v1/broadcast", body.clone()).await;
        refused |= (status, &reply["code"]) == (429, &json!(Code::RateLimited.number()));
        if refused {
            break;
        }
    }
    assert!(refused);
    for (path, body, status) in [
        ("/v1/broadcast", json!({ "body": "x".repeat(16 * 1024 + 1) }), 413),
        ("/v1/rooms/r/messages", json!({ "body": "x".repeat(16 * 1024 + 1) }), 413),
        ("/v1/rooms/r/messages", json!({ "sender_id": "s".repeat(129) }), 400),
    ] {
        assert_eq!(world.http("POST", path, body).await.0, status, "{path}");
    }
}

#[tokio::test]
async fn members_hear_on_after_a_restart_of_logic() {
    let mut world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    for session_id in [1, 2] {
        gateway.request(session_id, command::JOIN_ROOM, request_id(), &join("hall")).await;
    }
    world.restart().await;
    let sessions = vec![
        listed_session(1, "alice", Encoding::Protobuf),
        listed_session(2, "bob", Encoding::Protobuf),
    ];
    let rooms = vec![RoomMembers { room_id: "hall".into(), session_ids: vec![1, 2] }];
    let settings = FakeGatewaySettings {
        gateway_id: "a".into(),
        sessions,
        rooms,
        ..FakeGatewaySettings::default()
    };
    let mut gateway = world.gateway_with(settings).await;
    let said = message("hall", "still here?");
    let reply = gateway.request(1, command::ROOM_MESSAGE, request_id(), &said).await;
    let reply: RoomReply = reply.decode();
    assert_eq!((reply.code, reply.members), (0, 2), "a member still, {}", reply.reason);
    let heard: RoomMessage = gateway.next_of(2, command::ROOM_MESSAGE).await.decode();
    assert_eq!(&*heard.body, "still here?");
}
