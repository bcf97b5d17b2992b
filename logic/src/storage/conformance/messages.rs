//! Promises about messages: sequences, duplicates, limits, pages, concurrency, reopening.

use std::collections::HashSet;

use super::*;

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
        extras: None,
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
        ..chat::Message::default()
    };
    let outcome = one(&store, write).await;
    let Outcome::Appended { message, duplicate: false, version, recipients, .. } = outcome else {
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

/// A process that hears of a message from another one knows by this that nothing is missing before it.
pub async fn a_message_says_what_it_follows<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let new = |outcome: &Outcome| match outcome {
        Outcome::Appended { duplicate: false, version, follows, .. }
        | Outcome::Forwarded { duplicate: false, version, follows, .. } => (*version, *follows),
        other => panic!("{other:?}"),
    };
    let (first, nothing) = new(&one(&store, to_user("ann", "bob", "1")).await);
    assert_eq!(nothing, 0);
    let elsewhere = one(&store, to_user("ann", "eve", "elsewhere")).await;
    assert_eq!(new(&elsewhere).1, 0, "each conversation for itself");
    let writes = vec![to_user("bob", "ann", "1"), to_user("ann", "bob", "2")];
    let outcomes = store.commit(writes).await.unwrap();
    let (second, follows) = new(&outcomes[0]);
    assert_eq!(follows, first);
    let (third, follows) = new(&outcomes[1]);
    assert_eq!(follows, second, "in one commit");
    let forwarded = one(&store, forward("ann", Target::User("bob".into()), "f", &["a", "b"])).await;
    let (last, follows) = new(&forwarded);
    assert_eq!((follows, last), (third, third + 2));
    store.close().await.unwrap();
    let store = bed.open().await;
    assert_eq!(new(&one(&store, to_user("bob", "ann", "2")).await).1, last, "after reopening");
}

pub async fn a_retry_is_stored_once_in_a_commit_across_commits_and_after_reopening<B: Bed>(
    bed: &B,
) {
    let store = bed.open().await;
    one(&store, create("g", &["ann", "bob"], 0)).await;
    let writes = vec![to_user("ann", "bob", "1"), to_user("ann", "bob", "1")];
    let outcomes = store.commit(writes).await.unwrap();
    let Outcome::Appended { message: first, duplicate: false, version, recipients, .. } =
        &outcomes[0]
    else {
        panic!("{outcomes:?}")
    };
    let again = Outcome::Appended {
        message: first.clone(),
        duplicate: true,
        version: *version,
        follows: 0,
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
