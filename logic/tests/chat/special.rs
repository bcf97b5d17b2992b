//! Messages of every type, and messages that are not stored.

use bytes::Bytes;
use millrace_logic_sdk::testing::FakeGateway;
use millrace_protocol::{
    Code,
    chat::{Attachment, Location, PullMessages, SendMessage, SendReply, Typing},
    command,
    frame::Flags,
};
use prost::Message as _;
use serde_json::json;

use crate::world::{Clients, World, request_id, to_group, to_user};

#[tokio::test]
async fn every_type_arrives_as_it_was_sent_and_what_is_incomplete_is_refused() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let file = Attachment { url: "https://example.org/x".into(), size: 7, ..Default::default() };
    let place =
        Location { latitude: 52.5, longitude: -13.4, name: "here".into(), ..Default::default() };
    for kind in [1, 2, 3, 4, 5, 6, 7, 8, 99] {
        let message = SendMessage {
            r#type: kind,
            attachment: matches!(kind, 2..=4 | 6).then(|| file.clone()),
            location: (kind == 5).then(|| place.clone()),
            ..to_user("bob", "{\"x\":1}")
        };
        let reply = gateway.send_to(1, message.clone()).await;
        assert_eq!(reply.code, 0, "{kind}: {}", reply.reason);
        let got = gateway.delivered(2, 1).await.remove(0);
        assert_eq!((got.r#type, &got.body), (kind, &message.body));
        assert_eq!(got.attachment, message.attachment);
        assert_eq!(got.location.map(|location| *location), message.location);
        assert!(!got.system, "only the server itself says so");
    }
    for kind in [2, 3, 4, 5, 6, 9, 98, 100] {
        let reply = gateway.send_to(1, SendMessage { r#type: kind, ..to_user("bob", "x") }).await;
        assert_eq!(reply.code, Code::BadRequest.number(), "{kind}");
        assert!(!reply.reason.is_empty());
    }
    let reply = gateway.send_to(1, to_user("bob", &"x".repeat(60 * 1024 + 1))).await;
    assert_eq!(reply.code, Code::TooLarge.number());
    let body = json!({"sender_id": "alice", "client_message_id": "h", "user_id": "bob", "type": 5,
        "location": {"latitude": 1.5, "longitude": 200}});
    let (status, refused) = world.http("POST", "/v1/messages", body).await;
    assert_eq!((status, &refused["code"]), (400, &json!(18)), "{refused}");
}

async fn send_live(gateway: &mut FakeGateway, session: u64, message: SendMessage) -> SendReply {
    let (id, body) = (request_id(), Bytes::from(message.encode_to_vec()));
    gateway.send_flagged(session, command::SEND_MESSAGE, id, Flags::NO_STORE, body).await;
    gateway.reply(session, id).await.expect("an answer").decode()
}

#[tokio::test]
async fn what_is_not_stored_reaches_who_is_online_and_leaves_nothing() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in [(1, "alice"), (2, "bob"), (3, "bob"), (4, "alice"), (5, "eve")] {
        gateway.enter(session, user).await;
    }
    let first = send_live(&mut gateway, 1, to_user("bob", "psst")).await;
    assert_eq!((first.code, first.sequence, first.not_stored), (0, 0, true));
    assert!(!first.message_id.is_empty() && first.sent_at_ms > 0);
    for session in [2, 3, 4] {
        let got = gateway.delivered(session, 1).await.remove(0);
        assert_eq!((got.sequence, &*got.body, &*got.sender_id), (0, "psst", "alice"));
        assert_eq!(got.conversation_id, first.conversation_id);
    }
    gateway.nothing_delivered(1).await;
    gateway.nothing_delivered(5).await;
    let pull = PullMessages { conversation_id: first.conversation_id, ..Default::default() };
    assert_eq!(gateway.pull(2, pull).await.code, Code::NotFound.number(), "there is no chat yet");
    assert!(gateway.conversations(2, 0).await.conversations.is_empty());
    assert_eq!(gateway.say(1, "bob", "stored").await.sequence, 1, "no sequence was used up");

    world.create_group("team", &["alice", "bob"]).await;
    assert_eq!(send_live(&mut gateway, 2, to_group("team", "live")).await.code, 0);
    for (text, code) in [("team", Code::NotPermitted), ("none", Code::NotFound)] {
        let reply = send_live(&mut gateway, 5, to_group(text, "x")).await;
        assert_eq!((reply.code, reply.not_stored), (code.number(), false));
    }
    let empty = SendMessage { r#type: 3, ..to_user("bob", "x") };
    assert_eq!(send_live(&mut gateway, 1, empty).await.code, Code::BadRequest.number());
    let body = json!({"sender_id": "alice", "client_message_id": "h", "user_id": "eve", "type": 1,
        "body": "by HTTP", "no_store": true});
    let (status, sent) = world.http("POST", "/v1/messages", body).await;
    assert_eq!((status, &sent["not_stored"], &sent["sequence"]), (200, &json!(true), &json!("0")));
    assert_eq!(gateway.delivered(5, 1).await[0].body, "by HTTP");
}

#[tokio::test]
async fn typing_goes_to_the_peer_and_to_small_groups_only() {
    let world = World::start_with(|config| config.messages.typing_members_max = 2).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let small = world.create_group("small", &["alice", "bob"]).await;
    let large = world.create_group("large", &["alice", "bob", "carol"]).await;
    // The last is heard last: had the large group's gone out, it would be before it.
    for conversation_id in [&small, &large, &"s:5:alice:bob".to_owned()] {
        let typing = Typing { conversation_id: conversation_id.clone(), ..Typing::default() };
        let reply = gateway.request(1, command::TYPING, request_id(), &typing).await;
        assert_eq!(reply.error(), None);
    }
    for expected in [&*small, "s:5:alice:bob"] {
        let typing = gateway.next_of(2, command::TYPING).await.decode::<Typing>();
        assert_eq!((&*typing.conversation_id, &*typing.user_id), (expected, "alice"));
    }
}
