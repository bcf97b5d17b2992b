//! Promises about messages after they were stored: revoked, deleted, expired; and about those that
//! carry more than text: forwarded, quoting, mentioning.

use super::*;
use crate::storage::{
    Actor, Copied, Extras,
    extras::{STATE_DELETED, STATE_EXPIRED, STATE_REVOKED},
    groups::*,
};

/// A sender's own revocation, so long after sending, at a limit of 100 ms.
fn revoke(user: &str, conversation: &str, sequence: u64, age_ms: i64) -> Write {
    Write::Revoke {
        actor: Actor::User(user.into()),
        conversation_id: conversation.into(),
        sequence,
        at_ms: SENT_AT_MS + age_ms,
        limit_ms: 100,
    }
}

fn delete(user: &str, conversation: &str, sequences: &[u64]) -> Write {
    Write::Delete {
        user_id: user.into(),
        conversation_id: conversation.into(),
        sequences: sequences.to_vec(),
    }
}

fn expire(conversation: &str, sequence: u64, age_ms: i64) -> Write {
    let at_ms = SENT_AT_MS + age_ms;
    Write::Expire { conversation_id: conversation.into(), sequence, at_ms }
}

pub(super) fn forward(sender: &str, target: Target, id: &str, bodies: &[&str]) -> Write {
    let copied = |body: &&str| Copied {
        message_id: Uuid::now_v7(),
        kind: 1,
        body: (*body).to_owned(),
        attachment: None,
        extras: None,
    };
    Write::Forward {
        sender_id: sender.into(),
        client_message_id: id.into(),
        target,
        messages: bodies.iter().map(copied).collect(),
        sent_at_ms: SENT_AT_MS,
    }
}

fn with(mut write: Write, more: Extras) -> Write {
    if let Write::Append { extras, .. } = &mut write {
        *extras = more.boxed();
    }
    write
}

fn quoting(write: Write, conversation: &str, sequence: u64) -> Write {
    let quote = chat::Quote {
        conversation_id: conversation.into(),
        sequence,
        sender_id: "a forged one".into(),
    };
    with(write, Extras { quote: Some(Box::new(quote)), ..Extras::default() })
}

fn mentioning(write: Write, users: &[&str], everyone: bool) -> Write {
    let mentions = chat::Mentions { user_ids: owned(users), everyone };
    with(write, Extras { mentions: Some(Box::new(mentions)), ..Extras::default() })
}

fn expiring(write: Write, after_ms: i64) -> Write {
    with(write, Extras { expires_at_ms: SENT_AT_MS + after_ms, ..Extras::default() })
}

fn states(messages: &[chat::Message]) -> Vec<u32> {
    messages.iter().map(|message| message.state).collect()
}

pub async fn revoked_content_is_gone_for_everybody_and_its_place_stays<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob", "dan"], 0)).await;
    let attachment = chat::Attachment { name: "secret.png".into(), ..Default::default() };
    let mut write = mentioning(to_group("ann", "g", "1"), &["bob"], false);
    if let Write::Append { attachment: of_write, .. } = &mut write {
        *of_write = Some(attachment);
    }
    let message_id = stored(&store, write.clone()).await.message_id;
    stored(&store, to_group("ann", "g", "2")).await;
    stored(&store, silent(to_group("ann", "g", "3"))).await;
    assert_eq!(row(&store, "bob", "g:g").await.unread, 2);
    let before = store.version();

    let Outcome::Erased { message, changed: true, version, recipients } =
        one(&store, revoke("ann", "g:g", 1, 100)).await
    else {
        panic!("not revoked")
    };
    assert_eq!((version, store.version(), recipients.len()), (before + 1, before + 1, 3));
    let expected = chat::Message {
        conversation_id: "g:g".into(),
        conversation_type: 2,
        sequence: 1,
        message_id,
        client_message_id: "1".into(),
        sender_id: "ann".into(),
        r#type: 1,
        sent_at_ms: SENT_AT_MS,
        state: STATE_REVOKED,
        revoked_by: "ann".into(),
        ..chat::Message::default()
    };
    assert_eq!(message, expected);
    for user in ["ann", "bob", "dan"] {
        let messages = page(&store, user, "g:g", 0, 0).await.messages;
        assert_eq!((sequences(&messages), &messages[0]), (vec![1, 2, 3], &expected));
        let undelivered = store.undelivered(user, store.version(), 9, 9).await.unwrap();
        assert_eq!(undelivered[0], expected);
        let rows = store.conversations(user, before, 9).await.unwrap();
        assert_eq!(rows.conversations.len(), 1, "{user} finds the row changed");
        let changes = store.changes(user, "g:g", before, 9).await.unwrap();
        assert_eq!((&changes.messages[..], changes.version), (&[expected.clone()][..], version));
    }
    assert_eq!(row(&store, "bob", "g:g").await.unread, 1, "what is gone is not unread");

    // Again, even much later, changes nothing; nor does sending it again bring it back.
    for _ in 0..2 {
        let again = one(&store, revoke("ann", "g:g", 1, 1 << 40)).await;
        assert!(matches!(again, Outcome::Erased { changed: false, .. }), "{again:?}");
        let Outcome::Appended { message, duplicate: true, .. } = one(&store, write.clone()).await
        else {
            panic!("sent twice")
        };
        assert_eq!(message, expected);
    }
    assert_eq!(store.version(), version);
    // The newest and what does not count: the row shows it, the count stays right.
    one(&store, revoke("ann", "g:g", 3, 0)).await;
    let after = row(&store, "bob", "g:g").await;
    assert_eq!((after.unread, after.last_message.map(|m| m.state)), (1, Some(STATE_REVOKED)));
    one(&store, cursor("bob", "g:g", 0, 1)).await;
    assert_eq!(row(&store, "bob", "g:g").await.unread, 1);
    stored(&store, to_group("dan", "g", "4")).await;
    assert_eq!(row(&store, "bob", "g:g").await.unread, 2);
    store.close().await.unwrap();
    let store = bed.open().await;
    assert_eq!(row(&store, "bob", "g:g").await.unread, 2, "after reopening");
    store.close().await.unwrap();
}

pub async fn a_revocation_is_for_those_who_were_there_when_the_message_came<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob", "dan"], 0)).await;
    for text in ["1", "2", "3"] {
        stored(&store, to_group("ann", "g", text)).await;
    }
    let recipients =
        async |store: &B::Store, sequence| match one(store, revoke("ann", "g:g", sequence, 100))
            .await
        {
            Outcome::Erased { changed: true, recipients, .. } => {
                recipients.iter().map(|user| user.to_string()).collect::<Vec<_>>()
            }
            other => panic!("not revoked: {other:?}"),
        };
    // In the same commit as the message before, and in one of its own; who comes back is new.
    one(&store, add("g", &["eve"])).await;
    one(&store, remove("g", &["dan"])).await;
    one(&store, add("g", &["dan"])).await;
    assert_eq!(recipients(&store, 1).await, ["ann", "bob"]);
    stored(&store, to_group("ann", "g", "4")).await;
    one(&store, remove("g", &["eve"])).await;
    assert_eq!(recipients(&store, 2).await, ["ann", "bob"]);
    let newest = store.conversations("ann", 0, 9).await.unwrap().conversations[0].max_sequence;
    assert_eq!(recipients(&store, newest).await, ["ann", "bob", "dan"]);
    store.close().await.unwrap();
    let store = bed.open().await;
    assert_eq!(recipients(&store, 3).await, ["ann", "bob"], "after reopening");
    let rows = store.conversations("dan", 0, 9).await.unwrap();
    assert_eq!(rows.conversations.len(), 1);
    store.close().await.unwrap();
}

/// Of the groups that somebody quit, the one with the newer message comes first, whatever was
/// revoked there: the order of those who stay goes by the last change instead.
pub async fn what_was_revoked_moves_no_group_that_was_quit<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob", "dan"], 0)).await;
    one(&store, create("h", &["ann", "bob", "dan"], 0)).await;
    let first = stored(&store, to_group("ann", "g", "1")).await;
    stored(&store, to_group("ann", "h", "2")).await;
    one(&store, revoke("ann", "g:g", first.sequence, 100)).await;
    for group in ["g", "h"] {
        one(&store, remove(group, &["dan"])).await;
    }
    let groups = async |user: &str| -> Vec<String> {
        let waiting = store.undelivered(user, u64::MAX, 1, 2).await.unwrap();
        waiting.into_iter().map(|message| message.conversation_id).collect()
    };
    assert_eq!(groups("dan").await, ["g:h", "g:g"]);
    assert_eq!(groups("bob").await, ["g:g", "g:h"]);
    store.close().await.unwrap();
}

pub async fn who_may_revoke_and_until_when<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob"], 0)).await;
    stored(&store, to_group("ann", "g", "1")).await;
    one(&store, add("g", &["late"])).await;
    let with_bob = stored(&store, to_user("ann", "bob", "2")).await.conversation_id;
    let none = Write::Revoke {
        actor: Actor::User("ann".into()),
        conversation_id: "g:g".into(),
        sequence: 1,
        at_ms: SENT_AT_MS,
        limit_ms: 0,
    };
    for (write, code) in [
        (none, Code::TooLate),
        (revoke("ann", "g:g", 1, 101), Code::TooLate),
        (revoke("bob", "g:g", 1, 0), Code::RoleTooLow),
        (revoke("bob", &with_bob, 1, 0), Code::NotPermitted),
        (revoke("eve", "g:g", 1, 0), Code::NotPermitted),
        (revoke("eve", &with_bob, 1, 0), Code::NotPermitted),
        (revoke("late", "g:g", 1, 0), Code::NotFound),
        (revoke("ann", "g:g", 2, 0), Code::NotFound),
        (revoke("ann", "g:g", 0, 0), Code::NotFound),
        (revoke("ann", "g:none", 1, 0), Code::NotFound),
        (revoke("ann", "nonsense", 1, 0), Code::NotFound),
    ] {
        assert_eq!(refused(&store, write.clone()).await, code, "{write:?}");
    }
    // A clock that went back does not make anybody late.
    let early = one(&store, revoke("ann", &with_bob, 1, -5_000)).await;
    assert!(matches!(early, Outcome::Erased { changed: true, .. }));
    // Who has left may not; a service may, at any time.
    one(&store, remove("g", &["ann"])).await;
    assert_eq!(refused(&store, revoke("ann", "g:g", 1, 0)).await, Code::NotPermitted);
    let service = Write::Revoke {
        actor: Actor::Service,
        conversation_id: "g:g".into(),
        sequence: 1,
        at_ms: i64::MAX,
        limit_ms: 0,
    };
    let Outcome::Erased { message, changed: true, .. } = one(&store, service).await else {
        panic!("a service may")
    };
    assert_eq!(message.revoked_by, "");
    store.close().await.unwrap();
}

pub async fn owners_and_administrators_revoke_what_those_below_them_said<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let act = |act| {
        Write::ChangeGroup(Box::new(GroupChange {
            group_id: "g".into(),
            actor: Some("ann".into()),
            at_ms: SENT_AT_MS,
            notice_id: Uuid::now_v7(),
            act,
        }))
    };
    let create = GroupAct::Create {
        name: "the name".into(),
        avatar: String::new(),
        members: owned(&["bob", "carol", "dan"]),
        members_max: 0,
        join_rule: JOIN_BY_INVITE,
        invite_rule: INVITE_BY_MEMBERS,
    };
    one(&store, act(create)).await;
    for user_id in ["bob", "carol"] {
        let (user_id, role) = (user_id.into(), Role::Administrator);
        one(&store, act(GroupAct::SetRole { user_id, role })).await;
    }
    let mut said = std::collections::BTreeMap::new();
    for user in ["ann", "bob", "carol", "dan"] {
        said.insert(user, stored(&store, to_group(user, "g", "1")).await.sequence);
    }
    for (user, of) in [("bob", "ann"), ("bob", "carol"), ("dan", "bob"), ("dan", "ann")] {
        assert_eq!(refused(&store, revoke(user, "g:g", said[of], 0)).await, Code::RoleTooLow);
    }
    assert_eq!(refused(&store, revoke("dan", "g:g", said["dan"], 101)).await, Code::TooLate);
    // The server's own notices stay, even for the owner in whose name they are; a service may.
    for user in ["ann", "bob", "dan"] {
        assert_eq!(refused(&store, revoke(user, "g:g", 1, 0)).await, Code::NotPermitted);
    }
    let service = Write::Revoke {
        actor: Actor::Service,
        conversation_id: "g:g".into(),
        sequence: 1,
        at_ms: SENT_AT_MS,
        limit_ms: 0,
    };
    assert!(matches!(one(&store, service).await, Outcome::Erased { changed: true, .. }));
    for (user, of) in [("bob", "dan"), ("bob", "bob"), ("ann", "carol"), ("ann", "ann")] {
        let outcome = one(&store, revoke(user, "g:g", said[of], 1 << 40)).await;
        let Outcome::Erased { message, changed: true, .. } = outcome else {
            panic!("{user} may revoke what {of} said: {outcome:?}")
        };
        assert_eq!((message.state, &message.revoked_by[..]), (STATE_REVOKED, user));
    }
    store.close().await.unwrap();
}

pub async fn deleted_messages_are_hidden_from_one_user_alone<B: Bed>(bed: &B) {
    let store = bed.open().await;
    for n in 1..=6 {
        stored(&store, to_user("ann", "bob", &n.to_string())).await;
    }
    let id = conversation_id::single("ann", "bob");
    let before = store.version();
    let Outcome::Deleted { messages, version, .. } =
        one(&store, delete("bob", &id, &[5, 2, 6, 2])).await
    else {
        panic!()
    };
    assert_eq!((sequences(&messages), states(&messages)), (vec![2, 5, 6], vec![1, 1, 1]));
    assert!(messages.iter().all(|message| message.body.is_empty()));
    assert_eq!(version, before + 1);
    let seen = page(&store, "bob", &id, 0, 0).await;
    assert_eq!((states(&seen.messages), seen.complete), (vec![0, 1, 0, 0, 1, 1], true));
    assert_eq!(sequences(&seen.messages), [1, 2, 3, 4, 5, 6], "no gap");
    assert!(seen.messages[1].body.is_empty() && seen.messages[1].state == STATE_DELETED);
    let row_of_bob = row(&store, "bob", &id).await;
    assert_eq!((row_of_bob.unread, row_of_bob.version), (3, version));
    assert_eq!(row_of_bob.last_message.map(|message| message.state), Some(STATE_DELETED));
    assert_eq!(store.changes("bob", &id, before, 9).await.unwrap().deleted, [(2, 2), (5, 6)]);
    let undelivered = store.undelivered("bob", version, 9, 9).await.unwrap();
    assert_eq!(states(&undelivered), [0, 1, 0, 0, 1, 1]);
    let found = store.messages("bob", &id, &[6, 1, 7]).await.unwrap();
    assert_eq!((sequences(&found), states(&found)), (vec![6, 1], vec![1, 0]));

    // The other has all of it, and no news.
    assert_eq!(states(&page(&store, "ann", &id, 0, 0).await.messages), [0; 6]);
    assert_eq!(store.conversations("ann", before, 9).await.unwrap().conversations, []);
    // Again is nothing; what one does not see cannot be deleted.
    let again = one(&store, delete("bob", &id, &[2, 5])).await;
    assert_eq!(again, Outcome::Deleted { user_id: "bob".into(), messages: vec![], version });
    for (write, code) in [
        (delete("bob", &id, &[7]), Code::NotFound),
        (delete("bob", &id, &[0]), Code::NotFound),
        (delete("bob", &id, &[]), Code::BadRequest),
        (delete("bob", &id, &[1; DELETED_MESSAGES_MAX + 1]), Code::BadRequest),
        (delete("eve", &id, &[1]), Code::NotPermitted),
        (delete("eve", "g:none", &[1]), Code::NotFound),
    ] {
        assert_eq!(refused(&store, write).await, code);
    }
    // What is revoked for everybody says so to those, too, who had deleted it.
    one(&store, revoke("ann", &id, 2, 0)).await;
    one(&store, revoke("ann", &id, 3, 0)).await;
    assert_eq!(states(&page(&store, "bob", &id, 0, 0).await.messages), [0, 2, 2, 0, 1, 1]);
    assert_eq!(row(&store, "bob", &id).await.unread, 2);
    store.close().await.unwrap();
}

pub async fn deletions_have_a_bound_that_runs_do_not_reach<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let count = 2 * DELETED_RANGES_MAX as u64 + 10;
    for first in (1..=count).step_by(500) {
        let last = (first + 499).min(count);
        let writes = (first..=last).map(|n| to_user("ann", "bob", &n.to_string())).collect();
        store.commit(writes).await.unwrap();
    }
    let id = conversation_id::single("ann", "bob");
    let every_other: Vec<u64> = (1..=DELETED_RANGES_MAX as u64).map(|n| 2 * n).collect();
    for some in every_other.chunks(DELETED_MESSAGES_MAX) {
        assert!(matches!(one(&store, delete("bob", &id, some)).await, Outcome::Deleted { .. }));
    }
    assert_eq!(refused(&store, delete("bob", &id, &[count])).await, Code::OverCapacity);
    // Between two deleted ones there is always room, and it makes room.
    one(&store, delete("bob", &id, &[3])).await;
    assert!(matches!(one(&store, delete("bob", &id, &[count])).await, Outcome::Deleted { .. }));
    assert_eq!(row(&store, "bob", &id).await.unread, count - DELETED_RANGES_MAX as u64 - 2);
    store.close().await.unwrap();
}

pub async fn forwarded_messages_are_stored_together_and_once<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob"], 0)).await;
    stored(&store, to_group("ann", "g", "0")).await;
    let write = forward("ann", Target::Group("g".into()), "f", &["a", "b", "c"]);
    let outcomes =
        store.commit(vec![write.clone(), to_group("bob", "g", "1"), write.clone()]).await.unwrap();
    let Outcome::Forwarded { messages, duplicate: false, version, recipients, .. } = &outcomes[0]
    else {
        panic!("{outcomes:?}")
    };
    assert_eq!((sequences(messages), recipients.len()), (vec![2, 3, 4], 2));
    let bodies: Vec<&str> = messages.iter().map(|message| &message.body[..]).collect();
    assert_eq!(bodies, ["a", "b", "c"]);
    assert!(messages.iter().all(|m| m.sender_id == "ann" && m.client_message_id == "f"));
    let again = Outcome::Forwarded {
        messages: messages.clone(),
        duplicate: true,
        version: *version,
        follows: 0,
        recipients: recipients.clone(),
    };
    assert_eq!(outcomes[2], again);
    assert_eq!(one(&store, write).await, again, "across commits");
    let other = forward("ann", Target::User("eve".into()), "f", &["x"]);
    assert_eq!(one(&store, other).await, again, "the first attempt counts");
    let Outcome::Appended { message, duplicate: true, .. } =
        one(&store, to_user("ann", "bob", "f")).await
    else {
        panic!("the id is taken")
    };
    assert_eq!(Some(&message), messages.last());
    assert_eq!(sequences(&page(&store, "bob", "g:g", 0, 0).await.messages), [1, 2, 3, 4, 5]);
    let all = store.undelivered("bob", *version - 1, 9, 9).await.unwrap();
    assert_eq!(sequences(&all), [1, 2, 3], "each has a version of its own");

    let many = vec!["x"; FORWARDED_MESSAGES_MAX + 1];
    let large = "x".repeat(BODY_BYTES_MAX + 1);
    for (write, code) in [
        (forward("ann", Target::User("bob".into()), "n", &[]), Code::BadRequest),
        (forward("ann", Target::User("bob".into()), "n", &many), Code::BadRequest),
        (forward("ann", Target::User("bob".into()), "n", &["a", &large]), Code::TooLarge),
        (forward("eve", Target::Group("g".into()), "n", &["a", "b"]), Code::NotPermitted),
        (forward("ann", Target::User("bob".into()), "", &["a"]), Code::BadRequest),
    ] {
        assert_eq!(refused(&store, write).await, code);
    }
    assert_eq!(store.members(&conversation_id::single("ann", "bob")).await.unwrap(), None);
    store.close().await.unwrap();
    let store = bed.open().await;
    let write = forward("ann", Target::Group("g".into()), "f", &["a", "b", "c"]);
    assert_eq!(one(&store, write).await, again, "after reopening");
    store.close().await.unwrap();
}

pub async fn what_is_quoted_must_be_there_for_the_sender<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob"], 0)).await;
    stored(&store, to_group("ann", "g", "1")).await;
    stored(&store, to_group("ann", "g", "2")).await;
    stored(&store, expiring(to_group("ann", "g", "3"), -1)).await;
    stored(&store, to_group("ann", "g", "4")).await;
    one(&store, add("g", &["late"])).await;
    let with_eve = stored(&store, to_user("bob", "eve", "1")).await.conversation_id;
    one(&store, revoke("ann", "g:g", 2, 0)).await;
    one(&store, delete("bob", "g:g", &[4])).await;

    let answer = stored(&store, quoting(to_group("bob", "g", "a"), "", 1)).await;
    let quote = answer.quote.expect("it is kept");
    assert_eq!((&*quote.conversation_id, quote.sequence, &*quote.sender_id), ("g:g", 1, "ann"));
    // Of another conversation, which the sender sees.
    let answer = stored(&store, quoting(to_user("bob", "dan", "b"), "g:g", 1)).await;
    assert_eq!(answer.quote.expect("it is kept").sender_id, "ann");
    for (write, code) in [
        (quoting(to_group("bob", "g", "n"), "", 9), Code::NotFound),
        (quoting(to_group("bob", "g", "n"), "", 0), Code::NotFound),
        (quoting(to_group("bob", "g", "n"), "", 2), Code::NotFound),
        (quoting(to_group("bob", "g", "n"), "", 3), Code::NotFound),
        (quoting(to_group("bob", "g", "n"), "", 4), Code::NotFound),
        (quoting(to_group("late", "g", "n"), "", 1), Code::NotFound),
        (quoting(to_group("ann", "g", "n"), &with_eve, 1), Code::NotPermitted),
        (quoting(to_user("ann", "new", "n"), "", 1), Code::NotFound),
        (quoting(to_user("ann", "new", "n"), "nonsense", 1), Code::NotFound),
    ] {
        assert_eq!(refused(&store, write.clone()).await, code, "{write:?}");
    }
    let begun = store.members(&conversation_id::single("ann", "new")).await.unwrap();
    assert_eq!(begun, None, "a refused message begins no chat");
    store.close().await.unwrap();
}

pub async fn a_row_shows_the_newest_unread_mention<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob", "dan"], 0)).await;
    async fn mentioned<S: Store>(store: &S, user: &str) -> u64 {
        row(store, user, "g:g").await.mentioned_sequence
    }
    stored(&store, mentioning(to_group("ann", "g", "1"), &["bob", "stranger"], false)).await;
    stored(&store, to_group("ann", "g", "2")).await;
    assert_eq!((mentioned(&store, "bob").await, mentioned(&store, "dan").await), (1, 0));
    stored(&store, mentioning(to_group("ann", "g", "3"), &[], true)).await;
    assert_eq!((mentioned(&store, "bob").await, mentioned(&store, "dan").await), (3, 3));
    assert_eq!(mentioned(&store, "ann").await, 0, "who says it is not called");
    one(&store, cursor("bob", "g:g", 0, 3)).await;
    assert_eq!(mentioned(&store, "bob").await, 0, "read");
    one(&store, add("g", &["late"])).await;
    assert_eq!(mentioned(&store, "late").await, 0, "from before");
    stored(&store, mentioning(to_group("ann", "g", "4"), &["bob"], false)).await;
    assert_eq!(mentioned(&store, "bob").await, 4);
    one(&store, revoke("ann", "g:g", 4, 0)).await;
    assert_eq!(mentioned(&store, "bob").await, 0, "revoked");
    one(&store, delete("dan", "g:g", &[3])).await;
    assert_eq!(mentioned(&store, "dan").await, 0, "deleted");
    let many: Vec<String> = (0..=MENTIONED_USERS_MAX).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(|id| &id[..]).collect();
    for users in [&many[..], &[""], &[&"u".repeat(USER_ID_BYTES_MAX + 1)[..]]] {
        let write = mentioning(to_group("ann", "g", "n"), users, false);
        assert_eq!(refused(&store, write).await, Code::BadRequest);
    }
    store.close().await.unwrap();
}

pub async fn expired_content_is_found_and_erased_once<B: Bed>(bed: &B) {
    let store = bed.open().await;
    for (id, after_ms) in [("1", 300), ("2", 100), ("3", 0), ("4", 200)] {
        let write = to_user("ann", "bob", id);
        stored(&store, if after_ms > 0 { expiring(write, after_ms) } else { write }).await;
    }
    let id = conversation_id::single("ann", "bob");
    let over = async |store: &B::Store, age_ms: i64, limit: usize| {
        let found = store.expired(SENT_AT_MS + age_ms, limit).await.unwrap();
        assert!(found.iter().all(|(conversation, _)| *conversation == id));
        found.into_iter().map(|(_, sequence)| sequence).collect::<Vec<_>>()
    };
    assert_eq!(over(&store, 99, 9).await, [0; 0]);
    assert_eq!(over(&store, 100, 9).await, [2]);
    assert_eq!(over(&store, 300, 9).await, [2, 4, 1], "the longest over first");
    assert_eq!(over(&store, 300, 2).await, [2, 4]);
    assert_eq!(refused(&store, expire(&id, 2, 99)).await, Code::BadRequest);
    assert_eq!(refused(&store, expire(&id, 3, 1 << 40)).await, Code::BadRequest, "never");
    assert_eq!(refused(&store, expire(&id, 9, 1 << 40)).await, Code::NotFound);
    assert_eq!(row(&store, "bob", &id).await.unread, 4);
    let version = store.version();
    let Outcome::Erased { message, changed: true, .. } = one(&store, expire(&id, 2, 100)).await
    else {
        panic!()
    };
    assert_eq!((message.state, &*message.body), (STATE_EXPIRED, ""));
    let again = one(&store, expire(&id, 2, 100)).await;
    assert!(matches!(again, Outcome::Erased { changed: false, .. }));
    assert_eq!(row(&store, "bob", &id).await.unread, 3);
    let changes = store.changes("bob", &id, version, 9).await.unwrap();
    assert_eq!(sequences(&changes.messages), [2]);
    // What is revoked needs not expire.
    one(&store, revoke("ann", &id, 4, 0)).await;
    assert_eq!(over(&store, 300, 9).await, [1]);
    store.close().await.unwrap();
    let store = bed.open().await;
    assert_eq!(over(&store, 300, 9).await, [1], "after reopening");
    store.close().await.unwrap();
}

pub async fn changes_are_paged_by_version_without_losing_one<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob"], 0)).await;
    for n in 1..=30 {
        stored(&store, to_group("ann", "g", &n.to_string())).await;
        if n == 10 {
            one(&store, add("g", &["late"])).await;
        }
    }
    let mut order: Vec<u64> = (1..=30).collect();
    order.reverse();
    for sequence in &order {
        one(&store, revoke("ann", "g:g", *sequence, 0)).await;
    }
    for (user, expected) in [("bob", &order[..]), ("late", &order[..20])] {
        let (mut since, mut found) = (0, vec![]);
        loop {
            let changes = store.changes(user, "g:g", since, 7).await.unwrap();
            found.extend(sequences(&changes.messages));
            assert!(changes.complete || changes.messages.len() == 7);
            assert!(changes.version > since || changes.messages.is_empty());
            since = changes.version;
            if changes.complete {
                break;
            }
        }
        assert_eq!(found, expected, "{user}");
        assert_eq!(since, store.version());
    }
    let none = store.changes("eve", "g:g", 0, 9).await;
    assert!(matches!(none, Err(StoreError::NotMember)), "{none:?}");
    let none = store.changes("bob", "g:none", 0, 9).await;
    assert!(matches!(none, Err(StoreError::NotFound)), "{none:?}");
    store.close().await.unwrap();
}
