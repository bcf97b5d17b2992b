//! Forwarding: in order, once, only what the forwarder sees; and answers that quote.

use millrace_protocol::{
    Code,
    chat::{Delete, Forward, Mentions, Quote, Revoke, SendMessage, SendReply},
    command,
};
use serde_json::json;

use crate::world::{Clients, World, request_id, to_group, to_user};

async fn forward(
    gateway: &mut millrace_logic_sdk::testing::FakeGateway,
    session: u64,
    forward: &Forward,
) -> SendReply {
    let frame = gateway.request(session, command::FORWARD, request_id(), forward).await;
    assert_eq!(frame.command, command::reply(command::FORWARD), "{:?}", frame.error());
    frame.decode()
}

fn from(conversation_id: &str, sequences: &[u64], to: &str, id: &str) -> Forward {
    Forward {
        conversation_id: conversation_id.into(),
        sequences: sequences.to_vec(),
        user_id: to.into(),
        client_message_id: id.into(),
        ..Forward::default()
    }
}

#[tokio::test]
async fn messages_are_forwarded_one_by_one_in_order_and_once() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in [(1, "alice"), (2, "bob"), (3, "carol"), (4, "bob")] {
        gateway.enter(session, user).await;
    }
    let origin = gateway.say(1, "bob", "one").await.conversation_id;
    gateway.say(2, "alice", "two").await;
    gateway.say(1, "bob", "three").await;
    gateway.delivered(4, 3).await;
    let request = from(&origin, &[1, 2, 3], "carol", "f");
    let reply = forward(&mut gateway, 2, &request).await;
    assert_eq!((reply.code, reply.sequence, reply.count, reply.duplicate), (0, 3, 3, false));
    for session in [3, 4] {
        let messages = gateway.delivered(session, 3).await;
        let bodies: Vec<&str> = messages.iter().map(|message| &*message.body).collect();
        assert_eq!(bodies, ["one", "two", "three"]);
        let said: Vec<(u64, &str, &str)> = messages
            .iter()
            .map(|m| (m.sequence, &*m.sender_id, &*m.forwarded.as_ref().expect("told").sender_id))
            .collect();
        assert_eq!(said, [(1, "bob", "alice"), (2, "bob", "bob"), (3, "bob", "alice")]);
    }
    let again = forward(&mut gateway, 2, &request).await;
    assert_eq!((again.sequence, again.count, again.duplicate), (3, 3, true));
    assert_eq!(again.message_id, reply.message_id);
    gateway.nothing_delivered(3).await;
    // Forwarded on, it still names who said it first.
    let on = forward(&mut gateway, 3, &from(&reply.conversation_id, &[1], "dan", "g")).await;
    assert_eq!((on.code, on.count), (0, 1));
    gateway.enter(5, "dan").await;
    let message = gateway.delivered(5, 1).await.remove(0);
    assert_eq!(message.forwarded.expect("told").sender_id, "alice");
}

#[tokio::test]
async fn messages_are_forwarded_as_one_with_their_beginnings() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "carol").await;
    let origin = gateway.say(1, "bob", &"海".repeat(200)).await.conversation_id;
    gateway.say(1, "bob", "short").await;
    world.create_group("team", &["alice", "carol"]).await;
    let request = Forward {
        user_id: String::new(),
        group_id: "team".into(),
        merged: true,
        title: "Alice and Bob".into(),
        ..from(&origin, &[1, 2], "", "m")
    };
    let reply = forward(&mut gateway, 1, &request).await;
    assert_eq!((reply.code, reply.sequence), (0, 1));
    let message = gateway.delivered(2, 1).await.remove(0);
    assert_eq!((message.r#type, &*message.body), (7, "Alice and Bob"));
    let merged = message.merged.expect("the excerpts");
    assert_eq!((&*merged.title, merged.items.len()), ("Alice and Bob", 2));
    assert_eq!(
        (&*merged.items[0].excerpt, &*merged.items[1].excerpt),
        (&*"海".repeat(85), "short")
    );
    assert!(merged.items.iter().all(|item| item.sender_id == "alice" && item.sent_at_ms > 0));
    assert!(forward(&mut gateway, 1, &request).await.duplicate);
}

#[tokio::test]
async fn only_what_the_forwarder_sees_is_forwarded() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in [(1, "alice"), (2, "bob"), (3, "eve")] {
        gateway.enter(session, user).await;
    }
    let origin = gateway.say(1, "bob", "one").await.conversation_id;
    for text in ["revoked", "deleted", "four"] {
        gateway.say(1, "bob", text).await;
    }
    let short = SendMessage { ttl_ms: 1, ..to_user("bob", "over") };
    gateway.send_to(1, short).await;
    let revoke = Revoke { conversation_id: origin.clone(), sequence: 2 };
    gateway.request(1, command::REVOKE, request_id(), &revoke).await;
    let delete = Delete { conversation_id: origin.clone(), sequences: vec![3] };
    gateway.request(2, command::DELETE, request_id(), &delete).await;
    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    let many: Vec<u64> = (1..=101).collect();
    let target_of_group =
        Forward { user_id: String::new(), group_id: "none".into(), ..from(&origin, &[1], "", "n") };
    for (session, request, code) in [
        (3, from(&origin, &[1], "alice", "n"), Code::NotPermitted),
        (2, from("s:1:a:b", &[1], "alice", "n"), Code::NotFound),
        (2, from(&origin, &[1, 2], "alice", "n"), Code::NotFound),
        (2, from(&origin, &[3], "alice", "n"), Code::NotFound),
        (2, from(&origin, &[5], "alice", "n"), Code::NotFound),
        (2, from(&origin, &[9], "alice", "n"), Code::NotFound),
        (2, from(&origin, &[], "alice", "n"), Code::BadRequest),
        (2, from(&origin, &[4, 1], "alice", "n"), Code::BadRequest),
        (2, from(&origin, &[1, 1], "alice", "n"), Code::BadRequest),
        (2, from(&origin, &many, "alice", "n"), Code::BadRequest),
        (2, from(&origin, &[1], "", "n"), Code::BadRequest),
        (2, from(&origin, &[1], "alice", ""), Code::BadRequest),
        (2, Forward { title: "x".into(), ..from(&origin, &[1], "alice", "n") }, Code::BadRequest),
        (2, target_of_group, Code::NotFound),
    ] {
        let reply = forward(&mut gateway, session, &request).await;
        assert_eq!(reply.code, code.number(), "{request:?}: {}", reply.reason);
        assert!(!reply.reason.is_empty() && reply.sequence == 0);
    }
    // Alice deleted nothing: to her the third is there.
    assert_eq!(forward(&mut gateway, 1, &from(&origin, &[3, 4], "eve", "y")).await.code, 0);
    let path = format!("/v1/conversations/{origin}/messages/forward");
    let body = json!({"sender_id": "bob", "sequences": [1, 4], "user_id": "eve",
        "client_message_id": "h"});
    let (status, sent) = world.http("POST", &path, body).await;
    assert_eq!(
        (status, &sent["count"], &sent["sequence"]),
        (200, &json!(2), &json!("2")),
        "{sent}"
    );
    let body = json!({"sender_id": "bob", "sequences": [2], "user_id": "eve",
        "client_message_id": "i"});
    let (status, refused) = world.http("POST", &path, body).await;
    assert_eq!((status, &refused["code"]), (404, &json!(16)), "{refused}");
}

#[tokio::test]
async fn answers_quote_and_call_by_name() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let group = world.create_group("team", &["alice", "bob", "carol"]).await;
    gateway.say_to_group(1, "team", "question").await;
    gateway.delivered(2, 1).await;
    let answer = SendMessage {
        quote: Some(Quote { sequence: 1, sender_id: "mallory".into(), ..Quote::default() }),
        mentions: Some(Mentions {
            user_ids: vec!["alice".into(), "carol".into()],
            everyone: false,
        }),
        ..to_group("team", "answer")
    };
    assert_eq!(gateway.send_to(2, answer).await.code, 0);
    let message = gateway.delivered(1, 1).await.remove(0);
    let quote = message.quote.expect("the quote");
    assert_eq!((&*quote.conversation_id, quote.sequence, &*quote.sender_id), (&*group, 1, "alice"));
    assert_eq!(message.mentions.expect("the names").user_ids, ["alice", "carol"]);
    assert_eq!(gateway.conversation(1, &group).await.mentioned_sequence, 2);
    gateway.enter(3, "carol").await;
    assert_eq!(gateway.conversation(3, &group).await.mentioned_sequence, 2);
    let nothing = SendMessage {
        quote: Some(Quote { sequence: 99, ..Quote::default() }),
        ..to_group("team", "x")
    };
    assert_eq!(gateway.send_to(2, nothing).await.code, Code::NotFound.number());
}
