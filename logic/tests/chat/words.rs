//! Words that are not let through, wherever text comes in; what is let through with a word in it is
//! reported to the bus.

use std::time::Duration;

use millrace_logic::chat::FINDINGS_TOPIC;
use millrace_protocol::{
    Code,
    chat::{
        AnnounceToGroup, Attachment, CreateGroup, Forward, GroupActReply, JoinGroup, JoinRoom,
        RoomMessage, RoomReply, SendMessage, SendReply, UpdateGroup,
    },
    command,
};
use serde_json::{Value, json};

use crate::world::{Clients, World, request_id, to_user};

const LIST: &str = "block forbidden\nmask damn\nflag 可疑\n";

#[tokio::test]
async fn words_are_blocked_masked_and_flagged_at_every_door() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("words");
    std::fs::write(&path, LIST).expect("written");
    let world = World::start_with_words(&path).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let bus = world.logic().bus();
    let mut findings = bus.subscribe(FINDINGS_TOPIC, "moderators").await.expect("subscribed");

    let reply = gateway.send_to(1, to_user("bob", "this is FORBIDDEN")).await;
    assert_eq!((reply.code, reply.sequence), (Code::WordBlocked.number(), 0));
    let named = SendMessage {
        r#type: 3,
        attachment: Some(Attachment {
            url: "https://x".into(),
            name: "forbidden.png".into(),
            ..Attachment::default()
        }),
        ..to_user("bob", "")
    };
    assert_eq!(gateway.send_to(1, named).await.code, Code::WordBlocked.number());
    let sent = gateway.say(1, "bob", "damn, 可疑").await;
    assert_eq!(gateway.delivered(2, 1).await[0].body, "****, 可疑");
    let found = tokio::time::timeout(Duration::from_secs(30), findings.next()).await;
    let found = found.expect("in time").expect("a record");
    let finding: Value = serde_json::from_slice(&found.payload).expect("JSON");
    assert_eq!((&finding["user_id"], &finding["target"]), (&json!("alice"), &json!("bob")));
    assert_eq!(finding["message_id"], json!(sent.message_id));
    let words = json!([{"word": "damn", "rule": "mask"}, {"word": "可疑", "rule": "flag"}]);
    assert_eq!(finding["words"], words);

    let body = json!({"sender_id": "alice", "client_message_id": "h", "user_id": "bob", "type": 1,
        "body": "forbidden"});
    let (status, refused) = world.http("POST", "/v1/messages", body).await;
    assert_eq!((status, &refused["code"]), (403, &json!(28)), "{refused}");
    for session in [1, 2] {
        let join = JoinRoom { room_id: "r".into() };
        gateway.request(session, command::JOIN_ROOM, request_id(), &join).await;
    }
    for (body, code) in [("forbidden", 28), ("Damn", 0)] {
        let message = RoomMessage { room_id: "r".into(), body: body.into(), ..Default::default() };
        let frame = gateway.request(1, command::ROOM_MESSAGE, request_id(), &message).await;
        assert_eq!(frame.decode::<RoomReply>().code, code);
    }
    let heard = gateway.next_of(2, command::ROOM_MESSAGE).await.decode::<RoomMessage>();
    assert_eq!(heard.body, "****");

    // The list grows: what was let through before is not sent on any more.
    gateway.say(1, "bob", "innocent").await;
    std::fs::write(&path, format!("{LIST}block innocent\n")).expect("written");
    for attempt in 0.. {
        let code = gateway.send_to(1, to_user("bob", "innocent")).await.code;
        if code == Code::WordBlocked.number() {
            break;
        }
        assert!(attempt < 300, "the list was not read again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let forward = Forward {
        conversation_id: sent.conversation_id,
        sequences: vec![2],
        user_id: "carol".into(),
        client_message_id: "f".into(),
        ..Forward::default()
    };
    let reply: SendReply =
        gateway.request(1, command::FORWARD, request_id(), &forward).await.decode();
    assert_eq!(reply.code, Code::WordBlocked.number());
}

#[tokio::test]
async fn names_announcements_and_requests_are_screened_like_messages() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("words");
    std::fs::write(&path, LIST).expect("written");
    let world = World::start_with_words(&path).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    let bus = world.logic().bus();
    let mut findings = bus.subscribe(FINDINGS_TOPIC, "moderators").await.expect("subscribed");
    const BLOCKED: u32 = 28;
    assert_eq!(Code::WordBlocked.number(), BLOCKED);

    // Groups, by people.
    let named = |group_id: &str, name: &str| CreateGroup {
        group_id: group_id.into(),
        name: name.into(),
        ..CreateGroup::default()
    };
    for (name, code) in [("The FORBIDDEN club", BLOCKED), ("damn club 可疑", 0)] {
        let create = named("club", name);
        let frame = gateway.request(1, command::CREATE_GROUP, request_id(), &create).await;
        assert_eq!(frame.decode::<GroupActReply>().code, code, "{name}");
    }
    assert_eq!(world.http("GET", "/v1/groups/club", json!({})).await.1["name"], "**** club 可疑");
    let found = tokio::time::timeout(Duration::from_secs(30), findings.next()).await;
    let found = found.expect("in time").expect("a record");
    let finding: Value = serde_json::from_slice(&found.payload).expect("JSON");
    assert_eq!((&finding["user_id"], &finding["target"]), (&json!("alice"), &json!("club")));
    let group_id = || "club".to_owned();
    let update =
        UpdateGroup { group_id: group_id(), name: Some("forbidden".into()), ..Default::default() };
    let frame = gateway.request(1, command::UPDATE_GROUP, request_id(), &update).await;
    assert_eq!(frame.decode::<GroupActReply>().code, BLOCKED);
    let announce = AnnounceToGroup { group_id: group_id(), text: "forbidden!".into() };
    let frame = gateway.request(1, command::ANNOUNCE_TO_GROUP, request_id(), &announce).await;
    assert_eq!(frame.decode::<GroupActReply>().code, BLOCKED);
    let join = JoinGroup { group_id: group_id(), message: "forbidden?".into() };
    let frame = gateway.request(1, command::JOIN_GROUP, request_id(), &join).await;
    assert_eq!(frame.decode::<GroupActReply>().code, BLOCKED);

    // The same, users' names and what they write to be friends, by services.
    for user in ["alice", "bob"] {
        let body = json!({ "user_id": user, "name": "Somebody" });
        assert_eq!(world.http("POST", "/v1/users", body).await.0, 200, "{user}");
    }
    for (method, call, body) in [
        ("POST", "/v1/groups", json!({"name": "forbidden", "members": ["alice"]})),
        ("POST", "/v1/groups", json!({"name": "forbidden", "actor_user_id": "alice"})),
        ("POST", "/v1/groups/club/update", json!({"name": "forbidden", "actor_user_id": "alice"})),
        ("POST", "/v1/groups/club/announce", json!({"text": "forbidden"})),
        ("POST", "/v1/users", json!({"user_id": "carol", "name": "Forbidden"})),
        ("PATCH", "/v1/users/alice", json!({"name": "Forbidden"})),
        (
            "POST",
            "/v1/users/alice/friend_requests",
            json!({"other_id": "bob", "message": "a forbidden word"}),
        ),
    ] {
        let (status, refused) = world.http(method, call, body.clone()).await;
        assert_eq!((status, &refused["code"]), (403, &json!(BLOCKED)), "{call} {body}: {refused}");
    }
    assert_eq!(world.http("GET", "/v1/users/alice", json!({})).await.1["name"], "Somebody");
    let (status, renamed) =
        world.http("PATCH", "/v1/users/alice", json!({"name": "Damn Alice"})).await;
    assert_eq!((status, &renamed["name"]), (200, &json!("**** Alice")), "{renamed}");
}
