//! Revoked and deleted messages: every device learns of it, online or not, and no sequence is missing.

use millrace_logic_sdk::Encoding;
use millrace_protocol::{
    Code,
    chat::{
        Delete, DeleteReply, Message, PullMessages, PullReply, Revoke, RevokeReply, SendMessage,
    },
    command,
};
use serde_json::json;

use crate::world::{Clients, QUIET, World, request_id, to_group, to_user};

async fn revoke(
    gateway: &mut millrace_logic_sdk::testing::FakeGateway,
    session: u64,
    conversation_id: &str,
    sequence: u64,
) -> Code {
    let revoke = Revoke { conversation_id: conversation_id.into(), sequence };
    let frame = gateway.request(session, command::REVOKE, request_id(), &revoke).await;
    assert_eq!(frame.command, command::reply(command::REVOKE), "{:?}", frame.error());
    let reply = frame.decode::<RevokeReply>();
    assert_eq!(reply.reason.is_empty(), reply.code == 0, "{reply:?}");
    Code::from_number(reply.code).expect("a known code")
}

async fn delete(
    gateway: &mut millrace_logic_sdk::testing::FakeGateway,
    session: u64,
    conversation_id: &str,
    sequences: &[u64],
) -> Code {
    let delete = Delete { conversation_id: conversation_id.into(), sequences: sequences.to_vec() };
    let frame = gateway.request(session, command::DELETE, request_id(), &delete).await;
    let reply = frame.decode::<DeleteReply>();
    assert_eq!(reply.reason.is_empty(), reply.code == 0, "{reply:?}");
    Code::from_number(reply.code).expect("a known code")
}

fn pull(conversation_id: &str) -> PullMessages {
    PullMessages { conversation_id: conversation_id.into(), ..PullMessages::default() }
}

fn states(messages: &[Message]) -> Vec<(u64, u32)> {
    messages.iter().map(|message| (message.sequence, message.state)).collect()
}

#[tokio::test]
async fn a_revocation_reaches_every_device_and_leaves_no_content() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in [(1, "alice"), (2, "alice"), (3, "bob"), (4, "bob"), (5, "carol")] {
        gateway.enter(session, user).await;
    }
    let conversation = world.create_group("team", &["alice", "bob", "dan"]).await;
    let message = SendMessage {
        attachment: Some(millrace_protocol::chat::Attachment {
            url: "https://example.org/secret".into(),
            ..Default::default()
        }),
        ..to_group("team", "secret")
    };
    assert_eq!(gateway.send_to(1, message).await.sequence, 1);
    gateway.say_to_group(1, "team", "hello").await;
    for session in [2, 3, 4] {
        gateway.delivered(session, 2).await;
    }
    gateway.acknowledge(3, &conversation, 2).await;
    assert_eq!(gateway.conversation(3, &conversation).await.unread, 2);
    let before = gateway.conversation(3, &conversation).await.version;

    assert_eq!(revoke(&mut gateway, 1, &conversation, 1).await, Code::Ok);
    for session in [2, 3, 4] {
        let told = gateway.delivered(session, 1).await.remove(0);
        assert_eq!((told.sequence, told.state, &*told.revoked_by), (1, 2, "alice"));
        assert!(told.body.is_empty() && told.attachment.is_none());
    }
    gateway.nothing_delivered(1).await;
    gateway.nothing_delivered(5).await;
    // Again: nothing happens, and nobody is told.
    assert_eq!(revoke(&mut gateway, 2, &conversation, 1).await, Code::Ok);
    gateway.nothing_delivered(3).await;
    let row = gateway.conversation(3, &conversation).await;
    assert_eq!(row.unread, 1);
    assert!(row.version > before, "a device that was away finds the row changed");
    // Dan was away all the time.
    gateway.enter(6, "dan").await;
    let told = gateway.delivered(6, 2).await;
    assert_eq!(states(&told), [(1, 2), (2, 0)]);
    assert!(told[0].body.is_empty());
    let page = gateway.pull(4, pull(&conversation)).await;
    assert_eq!(states(&page.messages), [(1, 2), (2, 0)]);
    let changed = PullMessages { changed_since_version: before, ..pull(&conversation) };
    let changes = gateway.pull(4, changed).await;
    assert_eq!((states(&changes.messages), changes.complete), (vec![(1, 2)], true));
    assert_eq!(changes.version, row.version);
    let again = PullMessages { changed_since_version: changes.version, ..pull(&conversation) };
    assert!(gateway.pull(4, again).await.messages.is_empty());
    // The last message shows it.
    assert_eq!(revoke(&mut gateway, 1, &conversation, 2).await, Code::Ok);
    let last = gateway.conversation(3, &conversation).await.last_message.expect("a message");
    assert_eq!((last.sequence, last.state, &*last.body), (2, 2, ""));
}

#[tokio::test]
async fn who_may_not_revoke_is_told_why() {
    let world = World::start_with(|config| {
        config.messages.revoke_limit = millrace_service::Duration::from_millis(1);
    })
    .await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in [(1, "alice"), (2, "bob"), (3, "carol")] {
        gateway.enter(session, user).await;
    }
    let group = world.create_group("team", &["alice", "bob"]).await;
    gateway.say_to_group(1, "team", "x").await;
    let single = gateway.say(1, "bob", "x").await.conversation_id;
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    for (session, conversation, sequence, code) in [
        (1, &group, 1, Code::TooLate),
        (2, &group, 1, Code::RoleTooLow),
        (2, &single, 1, Code::NotPermitted),
        (3, &group, 1, Code::NotPermitted),
        (1, &group, 7, Code::NotFound),
        (1, &"nonsense".to_owned(), 1, Code::NotFound),
    ] {
        assert_eq!(revoke(&mut gateway, session, conversation, sequence).await, code);
    }
    // A service is not bound by the limit, in its own name; in a user's it is.
    let path = format!("/v1/conversations/{group}/messages/1/revoke");
    let (status, refused) = world.http("POST", &path, json!({"actor_user_id": "alice"})).await;
    assert_eq!((status, &refused["code"]), (409, &json!(Code::TooLate.number())), "{refused}");
    let (status, revoked) = world.http("POST", &path, json!({})).await;
    assert_eq!((status, &revoked["changed"]), (200, &json!(true)), "{revoked}");
    // Everybody is told, the sender too.
    for (session, before) in [(1, 0), (2, 2)] {
        let told = gateway.delivered(session, before + 1).await.pop().expect("told");
        assert_eq!((told.sequence, told.state, &*told.revoked_by), (1, 2, ""));
    }
    let (_, again) = world.http("POST", &path, json!({})).await;
    assert_eq!(again["changed"], json!(false));
}

#[tokio::test]
async fn a_deletion_is_for_one_user_on_all_devices() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    for (session, user) in [(1, "alice"), (2, "bob"), (3, "bob")] {
        gateway.enter(session, user).await;
    }
    let mut conversation = String::new();
    for n in 1..=5 {
        conversation = gateway.say(1, "bob", &n.to_string()).await.conversation_id;
    }
    gateway.delivered(2, 5).await;
    gateway.delivered(3, 5).await;
    let before = gateway.conversation(2, &conversation).await;
    assert_eq!(delete(&mut gateway, 2, &conversation, &[2, 3, 5]).await, Code::Ok);
    let told = gateway.delivered(3, 3).await;
    assert_eq!(states(&told), [(2, 1), (3, 1), (5, 1)]);
    assert!(told.iter().all(|message| message.body.is_empty()));
    gateway.nothing_delivered(1).await;
    gateway.nothing_delivered(2).await;
    for session in [2, 3] {
        let page = gateway.pull(session, pull(&conversation)).await;
        let expected = [(1, 0), (2, 1), (3, 1), (4, 0), (5, 1)];
        assert_eq!((states(&page.messages), page.complete), (expected.to_vec(), true));
    }
    let row = gateway.conversation(2, &conversation).await;
    assert_eq!((row.unread, row.max_sequence), (2, 5));
    assert!(row.version > before.version);
    // A third device, away until now: the row has changed, and this is what.
    gateway.enter(4, "bob").await;
    let pushed = gateway.delivered(4, 5).await;
    assert_eq!(states(&pushed), [(1, 0), (2, 1), (3, 1), (4, 0), (5, 1)]);
    let changed = PullMessages { changed_since_version: before.version, ..pull(&conversation) };
    let deleted = gateway.pull(4, changed).await.deleted;
    let ranges: Vec<(u64, u64)> =
        deleted.iter().map(|range| (range.from_sequence, range.to_sequence)).collect();
    assert_eq!(ranges, [(2, 3), (5, 5)]);
    // Alice has everything.
    let page = gateway.pull(1, pull(&conversation)).await;
    assert!(page.messages.iter().all(|message| message.state == 0 && !message.body.is_empty()));
    // Again, and what is not there.
    assert_eq!(delete(&mut gateway, 3, &conversation, &[2]).await, Code::Ok);
    gateway.nothing_delivered(2).await;
    for (sequences, code) in [(&[9][..], Code::NotFound), (&[], Code::BadRequest)] {
        assert_eq!(delete(&mut gateway, 2, &conversation, sequences).await, code);
    }
    gateway.enter(5, "eve").await;
    assert_eq!(delete(&mut gateway, 5, &conversation, &[1]).await, Code::NotPermitted);
    // A service deletes in a user's name: all devices are told.
    let path = format!("/v1/conversations/{conversation}/messages/delete");
    let body = json!({"user_id": "bob", "sequences": [1, 2]});
    let (status, reply) = world.http("POST", &path, body).await;
    assert_eq!((status, &reply["deleted"]), (200, &json!(1)), "{reply}");
    for session in [2, 3, 4] {
        assert_eq!(states(&gateway.delivered(session, 1).await), [(1, 1)]);
    }
}

#[tokio::test]
async fn a_revocation_during_a_catch_up_is_not_lost_and_the_content_does_not_come_back() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    for round in 0..20_u64 {
        let user = format!("user{round}");
        let sent = gateway.say(1, &user, "gone soon").await;
        // The device comes while the message is being revoked: whichever is first, what it has in
        // the end is no content.
        let session = 100 + round;
        let revoke = Revoke { conversation_id: sent.conversation_id.clone(), sequence: 1 };
        let id = request_id();
        let body = prost::Message::encode_to_vec(&revoke).into();
        gateway.send(1, command::REVOKE, id, body).await;
        gateway.enter(session, &user).await;
        assert_eq!(gateway.reply(1, id).await.expect("an answer").error(), None);
        let mut last = None;
        while last.as_ref().is_none_or(|message: &Message| message.state == 0) {
            last = gateway.delivered_next(session).await.pop();
        }
        assert_eq!(last.map(|message| (message.sequence, message.state)), Some((1, 2)));
        // It may be told twice, but the content never comes after it.
        gateway.read_for(QUIET).await;
        while gateway.inbox(session) > 0 {
            let frame = gateway.next_frame(session).await.expect("it is there");
            if frame.command == command::DELIVER {
                let again = frame.decode::<millrace_protocol::chat::Deliver>().messages;
                assert_eq!(states(&again), [(1, 2)]);
            }
        }
    }
}

#[tokio::test]
async fn the_text_form_says_the_same() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter_as(1, "alice", "d", "web", Encoding::Json).await;
    gateway.enter_as(2, "bob", "d", "web", Encoding::Json).await;
    let (status, sent) = world
        .http("POST", "/v1/messages", {
            json!({"sender_id": "alice", "client_message_id": "1", "user_id": "bob", "type": 1,
                "body": "x", "ttl_ms": "60000", "mentions": {"user_ids": ["bob"]}})
        })
        .await;
    assert_eq!(status, 200, "{sent}");
    let conversation = sent["conversation_id"].as_str().expect("an id");
    let frame = gateway.next_of(2, command::DELIVER).await;
    let delivered: serde_json::Value = serde_json::from_slice(&frame.body).expect("JSON");
    assert_eq!(delivered["messages"][0]["mentions"]["user_ids"], json!(["bob"]));
    let path = format!("/v1/conversations/{conversation}/messages/1/revoke");
    assert_eq!(world.http("POST", &path, json!({})).await.0, 200);
    let frame = gateway.next_of(2, command::DELIVER).await;
    let told: serde_json::Value = serde_json::from_slice(&frame.body).expect("JSON");
    assert_eq!(
        (&told["messages"][0]["state"], &told["messages"][0]["body"]),
        (&json!(2), &json!(""))
    );
    let path = format!("/v1/conversations/{conversation}/messages?user_id=bob&limit=5");
    let (status, page) = world.http("GET", &path, json!({})).await;
    assert_eq!((status, &page["messages"][0]["state"]), (200, &json!(2)), "{page}");
    let path = format!("/v1/conversations/{conversation}/messages?user_id=eve");
    assert_eq!(world.http("GET", &path, json!({})).await.0, 403);
}

#[tokio::test]
async fn a_message_is_over_at_its_time() {
    let world = World::start_with(|config| {
        config.messages.expiry_interval = millrace_service::Duration::from_millis(50);
    })
    .await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    let short = SendMessage { ttl_ms: 1, ..to_user("bob", "gone") };
    let conversation = gateway.send_to(1, short).await.conversation_id;
    let long = SendMessage { ttl_ms: 3_600_000, ..to_user("bob", "stays") };
    assert_eq!(gateway.send_to(1, long).await.sequence, 2);
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    // Over since then for everybody who asks, before anything is erased and after.
    gateway.enter(2, "bob").await;
    let told = gateway.delivered(2, 2).await;
    assert_eq!(states(&told), [(1, 3), (2, 0)]);
    assert!(told[0].body.is_empty() && told[1].expires_at_ms > told[1].sent_at_ms);
    let reply: PullReply = gateway.pull(2, pull(&conversation)).await;
    assert_eq!(states(&reply.messages), [(1, 3), (2, 0)]);
    // Erased: the unread count follows.
    for attempt in 0.. {
        if gateway.conversation(2, &conversation).await.unread == 1 {
            break;
        }
        assert!(attempt < 200, "it was not erased");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    gateway.nothing_delivered(2).await;
    let too_long = SendMessage { ttl_ms: u64::MAX, ..to_user("bob", "x") };
    assert_eq!(gateway.send_to(1, too_long).await.code, Code::BadRequest.number());
}
