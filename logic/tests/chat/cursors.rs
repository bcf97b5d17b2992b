//! Cursors: delivered and read, only forward, told to the others and to the own devices; unread
//! counts and the settings of a conversation.

use millrace_logic_sdk::testing::FakeGateway;
use millrace_protocol::{
    Code,
    chat::{
        DeliverAck, PullConversations, PullMessages, Read, ReadReply, Receipt, UpdateConversation,
        UpdateReply,
    },
    command,
};

use crate::world::{Clients, QUIET, World, request_id, to_user};

async fn read(gateway: &mut FakeGateway, session_id: u64, conversation_id: &str, sequence: u64) {
    let read = Read { conversation_id: conversation_id.into(), sequence };
    let reply = gateway.request(session_id, command::READ, request_id(), &read).await;
    assert_eq!(reply.decode::<ReadReply>().code, 0);
}

async fn receipt(gateway: &mut FakeGateway, session_id: u64) -> Receipt {
    gateway.next_of(session_id, command::RECEIPT).await.decode()
}

#[tokio::test]
async fn delivered_and_read_reach_the_sender_and_the_own_other_devices() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    gateway.enter(3, "bob").await;
    let conversation_id = gateway.say(1, "bob", "hello").await.conversation_id;
    gateway.delivered(2, 1).await;
    gateway.acknowledge(2, &conversation_id, 1).await;
    for session_id in [1, 3] {
        let receipt = receipt(&mut gateway, session_id).await;
        assert_eq!((&*receipt.user_id, &*receipt.conversation_id), ("bob", &*conversation_id));
        assert_eq!((receipt.delivered_sequence, receipt.read_sequence), (1, 0));
    }
    read(&mut gateway, 3, &conversation_id, 1).await;
    for session_id in [1, 2] {
        let receipt = receipt(&mut gateway, session_id).await;
        assert_eq!((receipt.delivered_sequence, receipt.read_sequence), (1, 1));
    }
    // The session that moved the cursor is told nothing it does not know.
    gateway.read_for(QUIET).await;
    while gateway.inbox(3) > 0 {
        let frame = gateway.next_frame(3).await.expect("it is there");
        assert_ne!(frame.command, command::RECEIPT);
    }
}

#[tokio::test]
async fn a_burst_of_acknowledgements_becomes_one_receipt_with_the_newest() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let mut conversation_id = String::new();
    for _ in 0..20 {
        conversation_id = gateway.say(1, "bob", "x").await.conversation_id;
    }
    gateway.delivered(2, 20).await;
    for sequence in 1..=20 {
        let ack = DeliverAck { conversation_id: conversation_id.clone(), sequence };
        gateway.send_message(2, command::DELIVER_ACK, 0, &ack).await;
    }
    gateway.read_for(QUIET * 2).await;
    let mut receipts = Vec::new();
    while gateway.inbox(1) > 0 {
        let frame = gateway.next_frame(1).await.expect("it is there");
        if frame.command == command::RECEIPT {
            receipts.push(frame.decode::<Receipt>().delivered_sequence);
        }
    }
    // The burst takes far less than one interval; two receipts allow for a slow machine.
    assert!(receipts.len() <= 2 && receipts.last() == Some(&20), "{receipts:?}");
}

#[tokio::test]
async fn cursors_never_move_back_nor_beyond_the_newest_message() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let mut conversation_id = String::new();
    for _ in 0..3 {
        conversation_id = gateway.say(1, "bob", "x").await.conversation_id;
    }
    read(&mut gateway, 2, &conversation_id, 2).await;
    read(&mut gateway, 2, &conversation_id, 1).await;
    let row = gateway.conversation(2, &conversation_id).await;
    assert_eq!((row.read_sequence, row.unread, row.max_sequence), (2, 1, 3));
    read(&mut gateway, 2, &conversation_id, 1_000).await;
    let row = gateway.conversation(2, &conversation_id).await;
    assert_eq!((row.read_sequence, row.unread), (3, 0));
}

#[tokio::test]
async fn large_groups_get_no_receipts_of_others_but_own_devices_do() {
    let world = World::start_with(|config| config.receipts.members_max = 2).await;
    let conversation_id = world.create_group("crowd", &["alice", "bob", "carol"]).await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    gateway.enter(3, "bob").await;
    gateway.say_to_group(1, "crowd", "hello").await;
    gateway.delivered(2, 1).await;
    gateway.acknowledge(2, &conversation_id, 1).await;
    assert_eq!(receipt(&mut gateway, 3).await.delivered_sequence, 1);
    gateway.read_for(QUIET).await;
    assert_eq!(gateway.inbox(1), 0);
}

#[tokio::test]
async fn unread_counts_what_others_said_and_counts() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    gateway.enter(2, "bob").await;
    let conversation_id = gateway.say(1, "bob", "one").await.conversation_id;
    let mut quiet = to_user("bob", "typing indicator of old times");
    quiet.does_not_count = true;
    assert_eq!(gateway.send_to(1, quiet).await.code, 0);
    gateway.say(1, "bob", "two").await;
    let row = gateway.conversation(2, &conversation_id).await;
    assert_eq!((row.unread, row.max_sequence), (2, 3));
    assert_eq!(row.last_message.expect("a last message").body, "two");
    assert_eq!(gateway.conversation(1, &conversation_id).await.unread, 0);
    // Who answers has read.
    gateway.say(2, "alice", "three").await;
    assert_eq!(gateway.conversation(2, &conversation_id).await.unread, 0);
    assert_eq!(gateway.conversation(1, &conversation_id).await.unread, 1);
}

#[tokio::test]
async fn conversations_are_pulled_by_what_changed_since() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    let with_bob = gateway.say(1, "bob", "hello").await.conversation_id;
    let with_carol = gateway.say(1, "carol", "hello").await.conversation_id;
    let all = gateway.conversations(1, 0).await;
    let ids: Vec<_> = all.conversations.iter().map(|c| c.conversation_id.clone()).collect();
    assert_eq!(ids, [with_bob.clone(), with_carol]);
    assert!(all.complete);
    assert!(gateway.conversations(1, all.version).await.conversations.is_empty());

    let update = UpdateConversation {
        conversation_id: with_bob.clone(),
        do_not_disturb: Some(true),
        ..UpdateConversation::default()
    };
    let reply = gateway.request(1, command::UPDATE_CONVERSATION, request_id(), &update).await;
    assert_eq!(reply.decode::<UpdateReply>().code, 0);
    let changed = gateway.conversations(1, all.version).await;
    assert_eq!(changed.conversations.len(), 1);
    assert_eq!(changed.conversations[0].conversation_id, with_bob);
    assert!(changed.conversations[0].do_not_disturb);

    // Page by page, everything comes once.
    let pull = PullConversations { limit: 1, ..PullConversations::default() };
    let frame = gateway.request(1, command::PULL_CONVERSATIONS, request_id(), &pull).await;
    let page: millrace_protocol::chat::ConversationsReply = frame.decode();
    assert_eq!((page.conversations.len(), page.complete), (1, false));
    let rest = gateway.conversations(1, page.version).await;
    assert_eq!((rest.conversations.len(), rest.complete), (1, true));
}

#[tokio::test]
async fn pages_come_from_either_end_and_within_their_bounds() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    let mut conversation_id = String::new();
    for n in 1..=130 {
        conversation_id = gateway.say(1, "bob", &format!("{n}")).await.conversation_id;
    }
    let ask = |from_sequence, to_sequence, limit, newest_first| PullMessages {
        conversation_id: conversation_id.clone(),
        from_sequence,
        to_sequence,
        limit,
        newest_first,
        ..PullMessages::default()
    };
    let sequences = |reply: &millrace_protocol::chat::PullReply| {
        reply.messages.iter().map(|m| m.sequence).collect::<Vec<_>>()
    };
    let page = gateway.pull(1, ask(0, 0, 0, false)).await;
    assert_eq!((sequences(&page), page.complete), ((1..=20).collect(), false));
    let page = gateway.pull(1, ask(0, 0, 0, true)).await;
    assert_eq!((sequences(&page), page.complete), ((111..=130).rev().collect(), false));
    let page = gateway.pull(1, ask(5, 7, 50, false)).await;
    assert_eq!((sequences(&page), page.complete), (vec![5, 6, 7], true));
    let page = gateway.pull(1, ask(0, 0, 1_000, false)).await;
    assert_eq!((sequences(&page), page.complete), ((1..=100).collect(), false));
    let unknown = PullMessages { conversation_id: "s:1:a:b".into(), ..Default::default() };
    assert_eq!(gateway.pull(1, unknown).await.code, Code::NotFound.number());
}
