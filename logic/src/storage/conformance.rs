//! One suite that every [`Store`] must pass, named after the promises of [`storage`](super).
//!
//! An implementation writes a [`Bed`] and calls [`conformance_tests!`] in its tests. What only one
//! kind of store has (directories, locks, kill -9 of a process) is tested beside it.

use std::{collections::HashSet, future::Future, sync::Arc};

use millrace_protocol::{Code, chat};
use uuid::Uuid;

use super::{Outcome, Page, Store, StoreError, Target, Write, conversation_id, limits::*};

pub mod model;

/// Where stores of one kind come from: an empty one first, afterwards the same data again.
pub trait Bed: Send + Sync {
    /// The implementation under test.
    type Store: Store;

    /// Opens it. The store opened before has been closed.
    fn open(&self) -> impl Future<Output = Self::Store> + Send;
}

/// Makes one test of every property, each on a bed of its own.
macro_rules! conformance_tests {
    ($bed:expr) => {
        $crate::storage::conformance::conformance_tests! { $bed;
            sequences_are_gapless_and_messages_complete,
            a_retry_is_stored_once_in_a_commit_across_commits_and_after_reopening,
            a_refused_write_changes_nothing_and_hinders_no_other,
            limits_are_answered_not_truncated,
            pages_are_right_from_both_ends,
            pages_tell_strangers_from_nothing,
            single_chats_are_one_for_both_and_a_note_to_oneself_works,
            late_members_start_at_the_newest_sequence,
            who_quits_keeps_what_was_there,
            who_comes_back_starts_anew,
            cursors_move_forward_only_and_never_beyond_the_newest,
            unread_counts_what_others_sent_since_reading_or_sending,
            do_not_disturb_is_a_setting_of_one_member,
            undelivered_is_the_newest_of_each_conversation_up_to_as_of,
            conversation_rows_are_paged_by_version_without_losing_one,
            groups_are_created_read_changed_and_removed,
            members_are_never_outdated,
            concurrent_commits_lose_and_double_nothing,
            everything_is_there_after_reopening,
            random_writes_agree_with_the_model,
        }
    };
    ($bed:expr; $($property:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $property() {
                $crate::storage::conformance::$property(&$bed).await;
            }
        )+
    };
}
pub(crate) use conformance_tests;
pub use model::random_writes_agree_with_the_model;

// --- small words ---------------------------------------------------------------------------------

/// A counting text message to a user.
pub fn to_user(sender: &str, user: &str, id: &str) -> Write {
    message(sender, Target::User(user.into()), id)
}

/// A counting text message to a group.
pub fn to_group(sender: &str, group: &str, id: &str) -> Write {
    message(sender, Target::Group(group.into()), id)
}

fn message(sender: &str, target: Target, id: &str) -> Write {
    Write::Append {
        message_id: Uuid::now_v7(),
        sender_id: sender.into(),
        client_message_id: id.into(),
        target,
        kind: 1,
        body: format!("{sender} says {id}"),
        attachment: None,
        does_not_count: false,
        sent_at_ms: 1_700_000_000_000,
    }
}

fn silent(mut write: Write) -> Write {
    if let Write::Append { does_not_count, .. } = &mut write {
        *does_not_count = true;
    }
    write
}

fn create(group: &str, members: &[&str], members_max: u32) -> Write {
    Write::CreateGroup {
        group_id: group.into(),
        name: format!("name of {group}"),
        avatar: "https://example.org/a.png".into(),
        members: owned(members),
        members_max,
        created_at_ms: 5,
    }
}

fn add(group: &str, users: &[&str]) -> Write {
    Write::AddMembers { group_id: group.into(), user_ids: owned(users) }
}

fn remove(group: &str, users: &[&str]) -> Write {
    Write::RemoveMembers { group_id: group.into(), user_ids: owned(users) }
}

fn cursor(user: &str, conversation: &str, delivered: u64, read: u64) -> Write {
    let (user_id, conversation_id) = (user.into(), conversation.into());
    Write::MoveCursor { user_id, conversation_id, delivered, read }
}

fn owned(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

async fn one<S: Store>(store: &S, write: Write) -> Outcome {
    let mut outcomes = store.commit(vec![write]).await.unwrap();
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

async fn stored<S: Store>(store: &S, write: Write) -> chat::Message {
    match one(store, write).await {
        Outcome::Appended { message, duplicate: false, .. } => message,
        other => panic!("not stored: {other:?}"),
    }
}

async fn refused<S: Store>(store: &S, write: Write) -> Code {
    let before = store.version();
    match one(store, write.clone()).await {
        Outcome::Refused { code, reason } => {
            assert!(!reason.is_empty());
            assert_eq!(store.version(), before, "{write:?}");
            code
        }
        other => panic!("{write:?} was not refused: {other:?}"),
    }
}

fn sequences(messages: &[chat::Message]) -> Vec<u64> {
    messages.iter().map(|message| message.sequence).collect()
}

async fn page<S: Store>(store: &S, user: &str, conversation: &str, from: u64, to: u64) -> Page {
    store.page(user, conversation, from, to, 100, false).await.unwrap()
}

async fn row<S: Store>(store: &S, user: &str, conversation: &str) -> chat::Conversation {
    let rows = store.conversations(user, 0, 100).await.unwrap().conversations;
    rows.into_iter().find(|row| row.conversation_id == conversation).expect("the row is there")
}

async fn pending<S: Store>(store: &S, user: &str) -> Vec<u64> {
    let all = store.undelivered(user, store.version(), 20, 100).await.unwrap();
    sequences(&all)
}

// --- the properties ------------------------------------------------------------------------------

pub async fn sequences_are_gapless_and_messages_complete<B: Bed>(bed: &B) {
    let store = bed.open().await;
    assert_eq!(store.version(), 0);
    let attachment = chat::Attachment {
        attachment_id: "7".into(),
        r#type: "image/png".into(),
        name: "sea.png".into(),
        url: "https://example.org/7".into(),
        size: 1 << 33,
    };
    let message_id = Uuid::now_v7();
    let write = Write::Append {
        message_id,
        sender_id: "ann".into(),
        client_message_id: "1".into(),
        target: Target::User("bob".into()),
        kind: 3,
        body: "look: é 海".into(),
        attachment: Some(attachment.clone()),
        does_not_count: true,
        sent_at_ms: 1_700_000_000_123,
    };
    let expected = chat::Message {
        conversation_id: conversation_id::single("ann", "bob"),
        conversation_type: 1,
        sequence: 1,
        message_id: message_id.to_string(),
        client_message_id: "1".into(),
        sender_id: "ann".into(),
        r#type: 3,
        body: "look: é 海".into(),
        attachment: Some(attachment),
        sent_at_ms: 1_700_000_000_123,
        state: 0,
        does_not_count: true,
    };
    let outcome = one(&store, write).await;
    let Outcome::Appended { message, duplicate: false, version, recipients } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(message, expected);
    assert_eq!(version, store.version());
    assert_eq!(recipients.iter().map(|id| &**id).collect::<Vec<_>>(), ["ann", "bob"]);
    assert_eq!(page(&store, "bob", &expected.conversation_id, 0, 0).await.messages, [expected]);

    let mut last_version = version;
    for round in 0..10 {
        let writes = (0..20)
            .map(|n| match n % 3 {
                0 => to_user("ann", "bob", &format!("{round}/{n}")),
                1 => to_user("bob", "ann", &format!("{round}/{n}")),
                _ => to_user("ann", "carol", &format!("{round}/{n}")),
            })
            .collect();
        for outcome in store.commit(writes).await.unwrap() {
            let Outcome::Appended { version, duplicate: false, .. } = outcome else {
                panic!("{outcome:?}")
            };
            assert!(version > last_version);
            last_version = version;
        }
        assert_eq!(store.version(), last_version);
    }
    let with_bob = conversation_id::single("ann", "bob");
    let all = store.page("ann", &with_bob, 0, 0, 1_000, false).await.unwrap();
    assert_eq!(sequences(&all.messages), (1..=141).collect::<Vec<u64>>());
    let with_carol = conversation_id::single("carol", "ann");
    let all = store.page("carol", &with_carol, 0, 0, 1_000, false).await.unwrap();
    assert_eq!(sequences(&all.messages), (1..=60).collect::<Vec<u64>>());
    store.close().await.unwrap();
}

pub async fn a_retry_is_stored_once_in_a_commit_across_commits_and_after_reopening<B: Bed>(
    bed: &B,
) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob"], 0)).await;
    let writes = vec![to_user("ann", "bob", "1"), to_user("ann", "bob", "1")];
    let outcomes = store.commit(writes).await.unwrap();
    let Outcome::Appended { message: first, duplicate: false, version, recipients } = &outcomes[0]
    else {
        panic!("{outcomes:?}")
    };
    let again = Outcome::Appended {
        message: first.clone(),
        duplicate: true,
        version: *version,
        recipients: recipients.clone(),
    };
    assert_eq!(outcomes[1], again, "within a commit");
    let before = store.version();
    assert_eq!(one(&store, to_user("ann", "bob", "1")).await, again, "across commits");
    assert_eq!(one(&store, to_group("ann", "g", "1")).await, again, "with another target");
    assert_eq!(one(&store, to_group("ann", "nowhere", "1")).await, again);
    assert_eq!(store.version(), before, "nothing changed");
    let Outcome::Appended { message, duplicate: false, .. } =
        one(&store, to_user("bob", "ann", "1")).await
    else {
        panic!("the id is the sender's own")
    };
    assert_eq!(message.sequence, 2);
    // A retry is answered even to somebody who may no longer send there.
    let in_group = stored(&store, to_group("bob", "g", "2")).await;
    one(&store, remove("g", &["bob"])).await;
    store.close().await.unwrap();

    let store = bed.open().await;
    assert_eq!(one(&store, to_user("ann", "bob", "1")).await, again, "after reopening");
    let Outcome::Appended { message, duplicate: true, .. } =
        one(&store, to_group("bob", "g", "2")).await
    else {
        panic!("stored twice")
    };
    assert_eq!(message, in_group);
    assert_eq!(refused(&store, to_group("bob", "g", "3")).await, Code::NotPermitted);
    store.close().await.unwrap();
}

pub async fn a_refused_write_changes_nothing_and_hinders_no_other<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let writes = vec![
        to_group("ann", "g", "1"),
        create("g", &["ann"], 0),
        create("g", &["bob"], 0),
        to_group("bob", "g", "2"),
        to_group("ann", "g", "1"),
        cursor("bob", "g:g", 1, 1),
        cursor("ann", "g:none", 1, 1),
    ];
    let outcomes = store.commit(writes).await.unwrap();
    let codes: Vec<Option<Code>> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Refused { code, .. } => Some(*code),
            _ => None,
        })
        .collect();
    let expected = [
        Some(Code::NotFound),
        None,
        Some(Code::AlreadyExists),
        Some(Code::NotPermitted),
        None,
        Some(Code::NotPermitted),
        Some(Code::NotFound),
    ];
    assert_eq!(codes, expected);
    assert_eq!(sequences(&page(&store, "ann", "g:g", 0, 0).await.messages), [1]);
    assert!(matches!(store.page("bob", "g:g", 0, 0, 9, false).await, Err(StoreError::NotMember)));
    store.close().await.unwrap();
}

pub async fn limits_are_answered_not_truncated<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let (long_user, long_group, long_id) = (
        "u".repeat(USER_ID_BYTES_MAX),
        "g".repeat(GROUP_ID_BYTES_MAX),
        "i".repeat(CLIENT_MESSAGE_ID_BYTES_MAX),
    );
    let too = |text: &str| format!("{text}+");
    for write in [
        to_user("ann", "", "1"),
        to_user("", "ann", "1"),
        to_user("ann", "bob", ""),
        to_user("ann", &too(&long_user), "1"),
        to_user(&too(&long_user), "ann", "1"),
        to_user("ann", "bob", &too(&long_id)),
        to_group("ann", &too(&long_group), "1"),
        to_group("ann", "", "1"),
        create("", &["ann"], 0),
        create(&too(&long_group), &["ann"], 0),
        create("g", &[], 0),
        create("g", &["ann", ""], 0),
        create("g", &["ann"], GROUP_MEMBERS_MAX_CEILING + 1),
    ] {
        assert_eq!(refused(&store, write.clone()).await, Code::BadRequest, "{write:?}");
    }
    let mut large = to_user("ann", "bob", "1");
    if let Write::Append { body, .. } = &mut large {
        *body = "x".repeat(BODY_BYTES_MAX + 1);
    }
    assert_eq!(refused(&store, large).await, Code::TooLarge);
    assert_eq!(refused(&store, create("g", &["a", "b", "c"], 2)).await, Code::OverCapacity);
    one(&store, create("g", &["a", "b", "b", "a"], 2)).await;
    assert_eq!(refused(&store, add("g", &["c"])).await, Code::OverCapacity);
    assert_eq!(refused(&store, add("g", &["c", ""])).await, Code::BadRequest);

    // At the limit everything works, together.
    one(&store, create(&long_group, &[&long_user], 0)).await;
    let message = stored(&store, to_group(&long_user, &long_group, &long_id)).await;
    let conversation = conversation_id::group(&long_group);
    assert_eq!(page(&store, &long_user, &conversation, 0, 0).await.messages, [message]);
    let message = stored(&store, to_user(&long_user, &long_user, "self")).await;
    let conversation = conversation_id::single(&long_user, &long_user);
    assert_eq!(page(&store, &long_user, &conversation, 0, 0).await.messages, [message]);
    store.close().await.unwrap();
}

pub async fn pages_are_right_from_both_ends<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let writes = (1..=300).map(|n| to_user("ann", "bob", &n.to_string())).collect();
    store.commit(writes).await.unwrap();
    let id = conversation_id::single("ann", "bob");
    for (from, to) in [(0, 0), (1, 300), (5, 5), (250, 0), (0, 9), (299, 400), (301, 400), (9, 3)] {
        let last = if to == 0 { 300 } else { to.min(300) };
        let range: Vec<u64> = (from.max(1)..=last).collect();
        for limit in [0, 1, 7, range.len(), range.len() + 1] {
            let case = format!("{from}..={to} limit {limit}");
            let ascending = store.page("bob", &id, from, to, limit, false).await.unwrap();
            let expected: Vec<u64> = range.iter().copied().take(limit).collect();
            assert_eq!(sequences(&ascending.messages), expected, "{case}");
            assert_eq!(ascending.complete, range.len() <= limit, "{case}");
            let descending = store.page("bob", &id, from, to, limit, true).await.unwrap();
            let expected: Vec<u64> = range.iter().rev().copied().take(limit).collect();
            assert_eq!(sequences(&descending.messages), expected, "{case}, newest first");
            assert_eq!(descending.complete, range.len() <= limit, "{case}, newest first");
        }
    }
    store.close().await.unwrap();
}

pub async fn pages_tell_strangers_from_nothing<B: Bed>(bed: &B) {
    let store = bed.open().await;
    stored(&store, to_user("ann", "bob", "1")).await;
    let id = conversation_id::single("ann", "bob");
    let none = store.page("carol", &id, 0, 0, 10, false).await;
    assert!(matches!(none, Err(StoreError::NotMember)), "{none:?}");
    for unknown in [&conversation_id::single("ann", "carol")[..], "g:x", "nonsense", "", "s:1:b:a"]
    {
        let none = store.page("ann", unknown, 0, 0, 10, false).await;
        assert!(matches!(none, Err(StoreError::NotFound)), "{unknown}: {none:?}");
        assert_eq!(store.members(unknown).await.unwrap(), None, "{unknown}");
    }
    assert_eq!(store.conversations("carol", 0, 10).await.unwrap().conversations, []);
    assert!(store.conversations("carol", 0, 10).await.unwrap().complete);
    assert_eq!(store.undelivered("carol", u64::MAX, 20, 20).await.unwrap(), []);
    // Whose id begins like another's gets nothing of it.
    assert_eq!(store.conversations("an", 0, 10).await.unwrap().conversations, []);
    store.close().await.unwrap();
}

pub async fn single_chats_are_one_for_both_and_a_note_to_oneself_works<B: Bed>(bed: &B) {
    let store = bed.open().await;
    stored(&store, to_user("bob", "ann", "1")).await;
    assert_eq!(stored(&store, to_user("ann", "bob", "1")).await.sequence, 2);
    let id = conversation_id::single("ann", "bob");
    assert_eq!(row(&store, "ann", &id).await.name, "bob");
    assert_eq!(row(&store, "bob", &id).await.name, "ann");
    let Outcome::Appended { recipients, message, .. } =
        one(&store, to_user("ann", "ann", "2")).await
    else {
        panic!()
    };
    assert_eq!((recipients.len(), message.sequence), (1, 1));
    let own = row(&store, "ann", &message.conversation_id).await;
    assert_eq!((own.unread, own.max_sequence, &own.name[..]), (0, 1, "ann"));
    assert_eq!(store.members(&message.conversation_id).await.unwrap(), Some(recipients));
    store.close().await.unwrap();
}

pub async fn late_members_start_at_the_newest_sequence<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann"], 0)).await;
    for n in 1..=3 {
        stored(&store, to_group("ann", "g", &n.to_string())).await;
    }
    one(&store, add("g", &["bob"])).await;
    let late = row(&store, "bob", "g:g").await;
    assert_eq!((late.init_sequence, late.max_sequence, late.unread), (3, 3, 0));
    assert_eq!(late.last_message, None, "what was said before is not for late members");
    assert!(pending(&store, "bob").await.is_empty());
    let before = page(&store, "bob", "g:g", 0, 0).await;
    assert_eq!((before.messages.len(), before.complete), (0, true));
    stored(&store, to_group("ann", "g", "4")).await;
    assert_eq!(sequences(&page(&store, "bob", "g:g", 1, 0).await.messages), [4]);
    assert_eq!(pending(&store, "bob").await, [4]);
    let late = row(&store, "bob", "g:g").await;
    assert_eq!((late.max_sequence, late.unread), (4, 1));
    assert_eq!(row(&store, "ann", "g:g").await.init_sequence, 0);
    store.close().await.unwrap();
}

pub async fn who_quits_keeps_what_was_there<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob"], 0)).await;
    stored(&store, to_group("ann", "g", "1")).await;
    stored(&store, to_group("ann", "g", "2")).await;
    let seen = store.version();
    one(&store, remove("g", &["bob"])).await;
    let rows = store.conversations("bob", seen, 10).await.unwrap().conversations;
    assert_eq!(rows.len(), 1, "leaving is a change of the row");
    stored(&store, to_group("ann", "g", "3")).await;
    let left = row(&store, "bob", "g:g").await;
    assert!(left.quit);
    assert_eq!((left.max_sequence, left.unread), (2, 2));
    assert_eq!(left.last_message.map(|message| message.sequence), Some(2));
    assert_eq!(left.version, rows[0].version, "later messages are not bob's news");
    assert_eq!(sequences(&page(&store, "bob", "g:g", 0, 0).await.messages), [1, 2]);
    assert_eq!(pending(&store, "bob").await, [1, 2]);
    let Outcome::CursorMoved { delivered, read, members, changed: true, .. } =
        one(&store, cursor("bob", "g:g", 9, 1)).await
    else {
        panic!()
    };
    assert_eq!((delivered, read, members.len(), &*members[0]), (2, 1, 1, "bob"));
    assert_eq!(row(&store, "bob", "g:g").await.unread, 1);
    assert!(pending(&store, "bob").await.is_empty());
    store.close().await.unwrap();
}

pub async fn who_comes_back_starts_anew<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob"], 0)).await;
    stored(&store, to_group("ann", "g", "1")).await;
    one(&store, remove("g", &["bob"])).await;
    stored(&store, to_group("ann", "g", "2")).await;
    one(&store, add("g", &["bob"])).await;
    stored(&store, to_group("ann", "g", "3")).await;
    let back = row(&store, "bob", "g:g").await;
    assert!(!back.quit);
    assert_eq!((back.init_sequence, back.max_sequence, back.unread), (2, 3, 1));
    assert_eq!(sequences(&page(&store, "bob", "g:g", 0, 0).await.messages), [3]);
    assert_eq!(pending(&store, "bob").await, [3]);

    // A group id that is used again goes on with its sequences, for new eyes.
    one(&store, Write::RemoveGroup { group_id: "g".into() }).await;
    one(&store, create("g", &["bob", "carol"], 0)).await;
    assert_eq!(stored(&store, to_group("carol", "g", "1")).await.sequence, 4);
    assert_eq!(sequences(&page(&store, "bob", "g:g", 0, 0).await.messages), [4]);
    assert_eq!(sequences(&page(&store, "ann", "g:g", 0, 0).await.messages), [1, 2, 3]);
    assert!(row(&store, "ann", "g:g").await.quit);
    store.close().await.unwrap();
}

pub async fn cursors_move_forward_only_and_never_beyond_the_newest<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let id = conversation_id::single("ann", "bob");
    for n in 1..=5 {
        stored(&store, to_user("ann", "bob", &n.to_string())).await;
    }
    let steps = [
        // delivered, read given; delivered, read, changed expected
        ((2, 0), (2, 0, true)),
        ((1, 0), (2, 0, false)),
        ((0, 1), (2, 1, true)),
        ((0, 4), (4, 4, true)),
        ((3, 2), (4, 4, false)),
        ((u64::MAX, 0), (5, 4, true)),
        ((0, u64::MAX), (5, 5, true)),
        ((0, 0), (5, 5, false)),
    ];
    for (given, expected) in steps {
        let version = store.version();
        let outcome = one(&store, cursor("bob", &id, given.0, given.1)).await;
        let Outcome::CursorMoved { delivered, read, changed, members, version: of, .. } = &outcome
        else {
            panic!("{outcome:?}")
        };
        assert_eq!((*delivered, *read, *changed), expected, "after {given:?}");
        assert_eq!(members.len(), 2);
        assert_eq!(*of, store.version());
        assert_eq!(store.version() > version, *changed);
    }
    // Several in one commit see each other.
    for n in 6..=9 {
        stored(&store, to_user("bob", "ann", &n.to_string())).await;
    }
    let moved = vec![cursor("ann", &id, 9, 0), cursor("ann", &id, 7, 6), cursor("ann", &id, 0, 3)];
    let outcomes = store.commit(moved).await.unwrap();
    let stands = |outcome: &Outcome| match outcome {
        Outcome::CursorMoved { delivered, read, .. } => (*delivered, *read),
        other => panic!("{other:?}"),
    };
    assert_eq!(outcomes.iter().map(stands).collect::<Vec<_>>(), [(9, 0), (9, 6), (9, 6)]);
    assert_eq!(row(&store, "ann", &id).await.read_sequence, 6);
    assert_eq!(refused(&store, cursor("carol", &id, 1, 1)).await, Code::NotPermitted);
    assert_eq!(refused(&store, cursor("ann", "s:1:x", 1, 1)).await, Code::NotFound);
    store.close().await.unwrap();
}

pub async fn unread_counts_what_others_sent_since_reading_or_sending<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob", "carol"], 0)).await;
    let single = conversation_id::single("ann", "bob");
    type Words = fn(&str, &str, &str) -> Write;
    let targets: [(&str, &str, Words); 2] = [(&single, "bob", to_user), ("g:g", "g", to_group)];
    for (id, target, to) in targets {
        let word = |n: u32| to("ann", target, &format!("{target} {n}"));
        stored(&store, word(1)).await;
        stored(&store, silent(word(2))).await;
        stored(&store, word(3)).await;
        assert_eq!(row(&store, "bob", id).await.unread, 2, "one does not count");
        assert_eq!(row(&store, "ann", id).await.unread, 0, "own messages are read");
        one(&store, cursor("bob", id, 0, 1)).await;
        assert_eq!(row(&store, "bob", id).await.unread, 1);
        let back =
            if id == "g:g" { to_group("bob", "g", "b1") } else { to_user("bob", "ann", "b2") };
        stored(&store, back).await;
        let bob = row(&store, "bob", id).await;
        assert_eq!((bob.unread, bob.read_sequence), (0, 1), "who sends has read; no cursor moves");
        assert_eq!(row(&store, "ann", id).await.unread, 1);
        stored(&store, silent(word(5))).await;
        assert_eq!(row(&store, "bob", id).await.unread, 0);
        stored(&store, word(6)).await;
        assert_eq!(row(&store, "bob", id).await.unread, 1);
        assert_eq!(pending(&store, "bob").await.len(), 5, "delivery has cursors of its own");
        one(&store, cursor("bob", id, 0, 6)).await;
        assert_eq!(row(&store, "bob", id).await.unread, 0);
        assert_eq!(pending(&store, "bob").await.len(), 0);
    }
    assert_eq!(row(&store, "carol", "g:g").await.unread, 4);
    store.close().await.unwrap();
}

pub async fn do_not_disturb_is_a_setting_of_one_member<B: Bed>(bed: &B) {
    let store = bed.open().await;
    stored(&store, to_user("ann", "bob", "1")).await;
    let id = conversation_id::single("ann", "bob");
    let set = |user: &str, id: &str, on| Write::SetDoNotDisturb {
        user_id: user.into(),
        conversation_id: id.into(),
        do_not_disturb: on,
    };
    let seen = store.version();
    let Outcome::Updated { version } = one(&store, set("bob", &id, true)).await else { panic!() };
    assert_eq!(version, seen + 1);
    assert!(row(&store, "bob", &id).await.do_not_disturb);
    assert!(!row(&store, "ann", &id).await.do_not_disturb);
    assert_eq!(store.conversations("bob", seen, 10).await.unwrap().conversations.len(), 1);
    assert_eq!(store.conversations("ann", seen, 10).await.unwrap().conversations.len(), 0);
    let Outcome::Updated { version } = one(&store, set("bob", &id, true)).await else { panic!() };
    assert_eq!(version, seen + 1, "nothing changed");
    stored(&store, to_user("ann", "bob", "2")).await;
    assert!(row(&store, "bob", &id).await.do_not_disturb, "messages leave the setting alone");
    assert_eq!(refused(&store, set("carol", &id, true)).await, Code::NotPermitted);
    assert_eq!(refused(&store, set("ann", "g:x", true)).await, Code::NotFound);
    store.close().await.unwrap();
}

pub async fn undelivered_is_the_newest_of_each_conversation_up_to_as_of<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["bob", "dan"], 0)).await;
    for n in 1..=30 {
        stored(&store, to_user("ann", "bob", &format!("a{n}"))).await;
    }
    for n in 1..=5 {
        stored(&store, to_group("dan", "g", &format!("g{n}"))).await;
    }
    let as_of = store.version();
    stored(&store, to_user("carol", "bob", "c1")).await;
    stored(&store, to_group("bob", "g", "own")).await;
    let (ann, carol) =
        (conversation_id::single("ann", "bob"), conversation_id::single("bob", "carol"));

    let got = |messages: Vec<chat::Message>| -> Vec<(String, u64)> {
        messages.into_iter().map(|m| (m.conversation_id, m.sequence)).collect()
    };
    let expect = |parts: &[(&str, std::ops::RangeInclusive<u64>)]| -> Vec<(String, u64)> {
        let flat = parts
            .iter()
            .flat_map(|(id, range)| range.clone().map(|sequence| ((*id).to_owned(), sequence)));
        flat.collect()
    };
    let ask = |as_of, per, most| store.undelivered("bob", as_of, per, most);
    let all = got(ask(u64::MAX, 20, 100).await.unwrap());
    assert_eq!(all, expect(&[("g:g", 1..=6), (&carol, 1..=1), (&ann, 11..=30)]));
    let before = got(ask(as_of, 20, 100).await.unwrap());
    assert_eq!(before, expect(&[("g:g", 1..=5), (&ann, 11..=30)]), "as of then");
    let two = got(ask(u64::MAX, 2, 2).await.unwrap());
    assert_eq!(two, expect(&[("g:g", 5..=6), (&carol, 1..=1)]), "newest conversations first");
    assert_eq!(got(ask(0, 20, 100).await.unwrap()), []);
    assert_eq!(got(ask(u64::MAX, 0, 100).await.unwrap()), []);
    assert_eq!(got(ask(u64::MAX, 20, 0).await.unwrap()), []);

    one(&store, cursor("bob", &ann, 28, 0)).await;
    one(&store, cursor("bob", &carol, 0, 1)).await;
    let rest = got(ask(u64::MAX, 20, 100).await.unwrap());
    assert_eq!(rest, expect(&[("g:g", 1..=6), (&ann, 29..=30)]), "read implies delivered");
    one(&store, cursor("bob", &ann, 30, 0)).await;
    one(&store, cursor("bob", "g:g", 6, 0)).await;
    assert_eq!(got(ask(u64::MAX, 20, 100).await.unwrap()), []);
    store.close().await.unwrap();
}

pub async fn conversation_rows_are_paged_by_version_without_losing_one<B: Bed>(bed: &B) {
    let store = bed.open().await;
    for n in 0..25 {
        stored(&store, to_user("ann", &format!("peer {n:02}"), &n.to_string())).await;
    }
    let (mut since, mut rows, mut pages) = (0, vec![], 0);
    loop {
        let page = store.conversations("ann", since, 10).await.unwrap();
        assert!(page.conversations.len() <= 10);
        assert!(page.version >= since);
        rows.extend(page.conversations);
        (since, pages) = (page.version, pages + 1);
        if page.complete {
            break;
        }
    }
    assert_eq!((pages, rows.len()), (3, 25));
    assert_eq!(since, store.version());
    assert!(rows.is_sorted_by(|a, b| a.version < b.version), "oldest change first");
    assert!(rows.iter().all(|row| row.max_sequence == 1 && row.last_message.is_some()));

    // Only what changes is sent again, once, with its newest state.
    let id = conversation_id::single("ann", "peer 07");
    stored(&store, to_user("peer 07", "ann", "a")).await;
    stored(&store, to_user("peer 07", "ann", "b")).await;
    let page = store.conversations("ann", since, 10).await.unwrap();
    assert_eq!(page.conversations.len(), 1);
    assert_eq!((page.conversations[0].max_sequence, page.conversations[0].unread), (3, 2));
    assert_eq!(page.conversations[0].conversation_id, id);
    let since = page.version;
    assert_eq!(store.conversations("ann", since, 10).await.unwrap().conversations, []);
    // The delivered cursor is not in the row, the read cursor is.
    one(&store, cursor("ann", &id, 3, 0)).await;
    assert_eq!(store.conversations("ann", since, 10).await.unwrap().conversations, []);
    one(&store, cursor("ann", &id, 0, 2)).await;
    assert_eq!(store.conversations("ann", since, 10).await.unwrap().conversations.len(), 1);
    let nothing = store.conversations("ann", 0, 0).await.unwrap();
    assert_eq!((nothing.complete, nothing.version), (false, 0));
    store.close().await.unwrap();
}

pub async fn groups_are_created_read_changed_and_removed<B: Bed>(bed: &B) {
    let store = bed.open().await;
    assert_eq!(store.group("g").await.unwrap(), None);
    let outcome = one(&store, create("g", &["bob", "ann", "bob"], 0)).await;
    let Outcome::GroupCreated { conversation_id, members, version, .. } = &outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((&conversation_id[..], members.len(), *version), ("g:g", 2, store.version()));
    let expected = chat::Group {
        group_id: "g".into(),
        conversation_id: "g:g".into(),
        name: "name of g".into(),
        avatar: "https://example.org/a.png".into(),
        members: owned(&["ann", "bob"]),
        members_max: GROUP_MEMBERS_MAX_DEFAULT,
        created_at_ms: 5,
    };
    assert_eq!(store.group("g").await.unwrap(), Some(expected.clone()));
    let created = row(&store, "ann", "g:g").await;
    assert_eq!((&created.name[..], created.r#type, created.max_sequence), ("name of g", 2, 0));

    let Outcome::MembersAdded { added: 1, members, .. } =
        one(&store, add("g", &["bob", "dan", "dan"])).await
    else {
        panic!()
    };
    assert_eq!(members.len(), 3);
    let before = store.version();
    let Outcome::MembersAdded { added: 0, version, .. } = one(&store, add("g", &["bob"])).await
    else {
        panic!()
    };
    assert_eq!((version, store.version()), (before, before));
    let Outcome::MembersRemoved { removed: 1, members, .. } =
        one(&store, remove("g", &["bob", "nobody"])).await
    else {
        panic!()
    };
    assert_eq!(members.len(), 2);
    let members = owned(&["ann", "dan"]);
    assert_eq!(store.group("g").await.unwrap(), Some(chat::Group { members, ..expected }));

    let Outcome::GroupRemoved { members, .. } =
        one(&store, Write::RemoveGroup { group_id: "g".into() }).await
    else {
        panic!()
    };
    assert_eq!(members.len(), 2);
    assert_eq!(store.group("g").await.unwrap(), None);
    assert_eq!(store.members("g:g").await.unwrap(), None);
    for write in [
        to_group("ann", "g", "1"),
        add("g", &["x"]),
        remove("g", &["ann"]),
        Write::RemoveGroup { group_id: "g".into() },
    ] {
        assert_eq!(refused(&store, write).await, Code::NotFound);
    }
    assert!(row(&store, "ann", "g:g").await.quit);
    assert_eq!(row(&store, "ann", "g:g").await.name, "name of g");
    store.close().await.unwrap();
}

pub async fn members_are_never_outdated<B: Bed>(bed: &B) {
    let store = Arc::new(bed.open().await);
    one(&*store, create("g", &["ann"], 0)).await;
    // Readers fill caches all the time while members come and go.
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (store, stop) = (store.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    store.members("g:g").await.unwrap().expect("the group is there");
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for _ in 0..100 {
        one(&*store, add("g", &["bob"])).await;
        assert_eq!(store.members("g:g").await.unwrap().unwrap().len(), 2);
        one(&*store, remove("g", &["bob"])).await;
        assert_eq!(store.members("g:g").await.unwrap().unwrap().len(), 1);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    store.close().await.unwrap();
}

pub async fn concurrent_commits_lose_and_double_nothing<B: Bed>(bed: &B) {
    let store = Arc::new(bed.open().await);
    let users: Vec<String> = (0..8).map(|n| format!("user {n}")).collect();
    let members: Vec<&str> = users.iter().map(|user| &user[..]).collect();
    one(&*store, create("g", &members, 0)).await;
    let senders: Vec<_> = users
        .iter()
        .cloned()
        .map(|user| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut last = 0;
                let mut own = vec![];
                for n in 0..100 {
                    // Each is sent twice at once, as a nervous client does.
                    let write = to_group(&user, "g", &n.to_string());
                    let (one, two) =
                        tokio::join!(store.commit(vec![write.clone()]), store.commit(vec![write]));
                    let of = |outcomes: Result<Vec<Outcome>, StoreError>| match outcomes
                        .unwrap()
                        .remove(0)
                    {
                        Outcome::Appended { message, duplicate, .. } => (message, duplicate),
                        other => panic!("{other:?}"),
                    };
                    let ((first, a), (second, b)) = (of(one), of(two));
                    assert_eq!(first, second);
                    assert!(a != b, "exactly one of them is the duplicate");
                    assert!(first.sequence > last, "a sender's own order");
                    last = first.sequence;
                    own.push(first.sequence);
                }
                own
            })
        })
        .collect();
    let mut taken = HashSet::new();
    for sender in senders {
        for sequence in sender.await.unwrap() {
            assert!(taken.insert(sequence), "{sequence} was given twice");
        }
    }
    assert_eq!(taken.len(), 800);
    let all = store.page("user 0", "g:g", 0, 0, 1_000, false).await.unwrap();
    assert_eq!(sequences(&all.messages), (1..=800).collect::<Vec<u64>>());
    store.close().await.unwrap();
}

pub async fn everything_is_there_after_reopening<B: Bed>(bed: &B) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob", "dan"], 77)).await;
    for n in 0..50 {
        stored(&store, to_group("ann", "g", &format!("g{n}"))).await;
        stored(&store, to_user("ann", "bob", &format!("u{n}"))).await;
    }
    one(&store, cursor("bob", "g:g", 30, 20)).await;
    one(&store, remove("g", &["dan"])).await;
    async fn snapshot<S: Store>(store: &S) -> Vec<String> {
        let mut all = vec![format!("{}", store.version())];
        for user in ["ann", "bob", "dan"] {
            all.push(format!("{:?}", store.conversations(user, 0, 100).await.unwrap()));
            all.push(format!("{:?}", store.undelivered(user, u64::MAX, 20, 9).await.unwrap()));
            all.push(format!("{:?}", store.page(user, "g:g", 0, 0, 100, true).await.unwrap()));
        }
        all.push(format!("{:?}", store.group("g").await.unwrap()));
        all
    }
    let before = snapshot(&store).await;
    store.close().await.unwrap();
    let store = bed.open().await;
    assert_eq!(snapshot(&store).await, before);
    assert_eq!(stored(&store, to_group("ann", "g", "next")).await.sequence, 51);
    store.close().await.unwrap();
}
