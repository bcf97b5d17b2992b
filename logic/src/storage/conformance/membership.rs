//! Promises about members: joining, quitting, cursors, unread, what is pushed and pulled, groups.

use super::*;

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
        member_count: 2,
        ..chat::Group::default()
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
