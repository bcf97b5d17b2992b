//! What is refused is refused with a code and a sentence, and harms nobody else.

use bytes::Bytes;
use millrace_protocol::{
    Code,
    chat::{Revoke, SendMessage, Typing},
    command,
};

use crate::world::{Clients, World, request_id, to_user};

#[tokio::test]
async fn messages_that_make_no_sense_are_refused_in_their_reply() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let good = || to_user("bob", "x");
    let cases = [
        SendMessage { client_message_id: String::new(), ..good() },
        SendMessage { client_message_id: "i".repeat(129), ..good() },
        SendMessage { user_id: String::new(), ..good() },
        SendMessage { group_id: "team".into(), ..good() },
        SendMessage { user_id: "u".repeat(129), ..good() },
        SendMessage { user_id: String::new(), group_id: "g".repeat(129), ..good() },
    ];
    for case in cases {
        let reply = gateway.send_to(1, case.clone()).await;
        assert_eq!(reply.code, Code::BadRequest.number(), "{case:?}");
        assert!(!reply.reason.is_empty() && reply.sequence == 0);
    }
    assert_eq!(gateway.say(1, "bob", "still served").await.sequence, 1);
    assert_eq!(gateway.delivered(2, 1).await[0].body, "still served");
}

#[tokio::test]
async fn garbage_and_unknown_commands_get_an_error() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    let garbage = Bytes::from_static(&[0xff; 40]);
    gateway.send(1, command::SEND_MESSAGE, 70_001, garbage).await;
    let reply = gateway.reply(1, 70_001).await.expect("an answer");
    assert_eq!(reply.error(), Some(Code::BadRequest));
    let revoke = Revoke { conversation_id: "s:5:alice:bob".into(), sequence: 1 };
    for command in [0x0ABC, 0x7001] {
        let reply = gateway.request(1, command, request_id(), &revoke).await;
        assert_eq!(reply.error(), Some(Code::UnknownCommand), "{command:#06x}");
    }
}

#[tokio::test]
async fn who_sends_too_fast_is_told_how_long_to_wait_and_others_are_not() {
    let world = World::start_with(|config| {
        config.limits.messages_per_second_max = 1;
        config.limits.messages_burst_max = 3;
    })
    .await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    for _ in 0..3 {
        gateway.say(1, "bob", "x").await;
    }
    let message = to_user("bob", "too fast");
    let reply = gateway.request(1, command::SEND_MESSAGE, request_id(), &message).await;
    let error: millrace_protocol::session::Error = reply.decode();
    assert_eq!(reply.error(), Some(Code::RateLimited));
    assert!((1..=1_000).contains(&error.retry_after_ms), "{error:?}");
    // Another user is not concerned, and neither are this one's other commands.
    assert_eq!(gateway.say(2, "alice", "slow").await.code, 0);
    assert_eq!(gateway.conversations(1, 0).await.conversations.len(), 1);
}

#[tokio::test]
async fn typing_is_relayed_to_the_others_and_to_members_only() {
    let world = World::start().await;
    let group = world.create_group("team", &["alice", "bob"]).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    gateway.enter(3, "mallory").await;
    for conversation_id in ["s:5:alice:bob".to_owned(), group] {
        // Who types is who is logged in, whatever the frame says.
        let typing = Typing { conversation_id: conversation_id.clone(), user_id: "bob".into() };
        gateway.send_message(1, command::TYPING, 0, &typing).await;
        let got: Typing = gateway.next_of(2, command::TYPING).await.decode();
        assert_eq!((got.conversation_id, &*got.user_id), (conversation_id, "alice"));
        let reply = gateway.request(3, command::TYPING, request_id(), &typing).await;
        assert_eq!(reply.error(), Some(Code::NotPermitted));
    }
    assert_eq!((gateway.inbox(1), gateway.inbox(2)), (0, 0));
}
