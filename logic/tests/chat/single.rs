//! Single chat: stored, acknowledged, delivered to every session but the one that sent it.

use millrace_logic_sdk::Encoding;
use millrace_protocol::{chat::Deliver, command};

use crate::world::{Clients, World, to_user};

#[tokio::test]
async fn two_users_talk_both_ways() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;

    let first = gateway.say(1, "bob", "hello").await;
    assert_eq!((first.sequence, first.duplicate), (1, false));
    assert!(!first.message_id.is_empty() && first.sent_at_ms > 0);
    let got = gateway.delivered(2, 1).await.remove(0);
    assert_eq!(got.body, "hello");
    assert_eq!(got.sender_id, "alice");
    assert_eq!(got.message_id, first.message_id);
    assert_eq!(got.conversation_id, first.conversation_id);
    assert_eq!((got.sequence, got.conversation_type, got.r#type), (1, 1, 1));

    let second = gateway.say(2, "alice", "hello yourself").await;
    assert_eq!((second.conversation_id, second.sequence), (first.conversation_id, 2));
    assert_eq!(gateway.delivered(1, 1).await[0].body, "hello yourself");
    // Nobody is pushed what they sent from that very session.
    gateway.nothing_delivered(1).await;
    gateway.nothing_delivered(2).await;
}

#[tokio::test]
async fn users_on_two_gateways_and_in_two_encodings_talk() {
    let world = World::start().await;
    let mut one = world.gateway("a").await;
    let mut other = world.gateway("b").await;
    one.enter(7, "alice").await;
    other.enter_as(7, "bob", "browser", "web", Encoding::Json).await;

    one.say(7, "bob", "binary to text").await;
    let frame = other.next_of(7, command::DELIVER).await;
    let value: serde_json::Value = serde_json::from_slice(&frame.body).expect("JSON");
    assert_eq!(value["messages"][0]["body"], "binary to text");
    assert_eq!(value["messages"][0]["sequence"], "1");

    let reply = other.say(7, "alice", "text to binary").await;
    assert_eq!(reply.sequence, 2);
    let frame = one.next_of(7, command::DELIVER).await;
    assert_eq!(frame.decode::<Deliver>().messages[0].body, "text to binary");
}

#[tokio::test]
async fn the_senders_other_devices_get_the_message_too() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "alice").await;
    gateway.enter(3, "bob").await;
    gateway.say(1, "bob", "from the phone").await;
    assert_eq!(gateway.delivered(2, 1).await[0].sender_id, "alice");
    assert_eq!(gateway.delivered(3, 1).await[0].body, "from the phone");
    gateway.nothing_delivered(1).await;
}

#[tokio::test]
async fn a_note_to_oneself_reaches_the_other_devices_only() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "alice").await;
    assert_eq!(gateway.say(1, "alice", "remember the milk").await.sequence, 1);
    assert_eq!(gateway.delivered(2, 1).await[0].body, "remember the milk");
    gateway.nothing_delivered(1).await;
}

#[tokio::test]
async fn a_retried_message_is_stored_and_delivered_once() {
    let mut world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let message = to_user("bob", "once");
    let first = gateway.send_to(1, message.clone()).await;
    let again = gateway.send_to(1, message.clone()).await;
    assert!(!first.duplicate && again.duplicate);
    assert_eq!((&first.message_id, first.sequence), (&again.message_id, again.sequence));
    assert_eq!(gateway.delivered(2, 1).await[0].message_id, first.message_id);
    gateway.nothing_delivered(2).await;

    // Still so after a restart, and from another session of the same user.
    world.restart().await;
    let mut gateway = world.gateway("b").await;
    gateway.enter(9, "alice").await;
    let later = gateway.send_to(9, message).await;
    assert!(later.duplicate);
    assert_eq!((&first.message_id, first.sequence), (&later.message_id, later.sequence));
    assert_eq!(gateway.say(9, "bob", "twice").await.sequence, 2);
}

#[tokio::test]
async fn who_is_offline_gets_it_at_the_next_login_and_acknowledged_messages_never_again() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    let mut conversation_id = String::new();
    for n in 1..=5 {
        conversation_id = gateway.say(1, "bob", &format!("message {n}")).await.conversation_id;
    }
    gateway.enter(2, "bob").await;
    let got = gateway.delivered(2, 5).await;
    assert!(got.iter().map(|m| m.sequence).eq(1..=5), "{got:?}");
    // Not acknowledged: a second device of the same user gets them as well.
    gateway.enter(3, "bob").await;
    gateway.delivered(3, 5).await;

    gateway.acknowledge(2, &conversation_id, 3).await;
    gateway.enter(4, "bob").await;
    let rest = gateway.delivered(4, 2).await;
    assert!(rest.iter().map(|m| m.sequence).eq(4..=5));
    gateway.acknowledge(4, &conversation_id, 5).await;
    gateway.enter(5, "bob").await;
    gateway.nothing_delivered(5).await;
}
