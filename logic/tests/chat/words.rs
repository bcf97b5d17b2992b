//! Words that are not let through, wherever text comes in; what is let through with a word in it is
//! reported to the bus.

use std::time::Duration;

use millrace_logic::chat::FINDINGS_TOPIC;
use millrace_protocol::{
    Code,
    chat::{Attachment, Forward, JoinRoom, RoomMessage, RoomReply, SendMessage, SendReply},
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
