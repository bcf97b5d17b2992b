//! Live rooms: members hear each other, nothing is stored.

use millrace_logic_sdk::Encoding;
use millrace_protocol::{
    Code,
    chat::{JoinRoom, LeaveRoom, RoomMessage, RoomReply},
    command,
};

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
