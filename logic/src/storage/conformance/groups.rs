//! Promises about acts on groups: roles, rules, muting, what members are told, and pages.

use super::*;
use crate::storage::{Copied, groups::*};

fn act(group: &str, actor: &str, at_ms: i64, act: GroupAct) -> Write {
    Write::ChangeGroup(Box::new(GroupChange {
        group_id: group.into(),
        actor: Some(actor.to_owned()).filter(|actor| !actor.is_empty()),
        at_ms,
        notice_id: Uuid::now_v7(),
        act,
    }))
}

fn found(group: &str, owner: &str, members: &[&str]) -> Write {
    let made = GroupAct::Create {
        name: "the name".into(),
        avatar: String::new(),
        members: owned(members),
        members_max: 0,
        join_rule: JOIN_BY_INVITE,
        invite_rule: INVITE_BY_MEMBERS,
    };
    act(group, owner, SENT_AT_MS, made)
}

fn rule(join: Option<u32>, invite: Option<u32>) -> GroupAct {
    GroupAct::Update {
        name: None,
        avatar: None,
        members_max: None,
        join_rule: join,
        invite_rule: invite,
    }
}

/// A forwarded message.
fn sent_on(sender: &str, group: &str, id: &str) -> Write {
    Write::Forward {
        sender_id: sender.into(),
        client_message_id: id.into(),
        target: Target::Group(group.into()),
        messages: vec![Copied {
            message_id: Uuid::now_v7(),
            kind: 1,
            body: "said elsewhere".into(),
            attachment: None,
            extras: None,
        }],
        sent_at_ms: SENT_AT_MS,
    }
}

async fn changed<S: Store>(store: &S, write: Write) -> GroupChanged {
    match one(store, write).await {
        Outcome::GroupChanged(changed) => {
            assert_eq!(changed.version, store.version());
            *changed
        }
        other => panic!("not done: {other:?}"),
    }
}

/// The notice of an act that changed something.
async fn told<S: Store>(store: &S, write: Write) -> (chat::GroupEvent, Vec<String>) {
    let changed = changed(store, write).await;
    let told = changed.told.expect("the members are told");
    assert_eq!((told.message.r#type, told.message.does_not_count), (NOTICE_TYPE, true));
    assert!(told.message.system, "the server says it");
    let event = serde_json::from_str(&told.message.body).expect("a GroupEvent in JSON");
    (event, told.recipients.iter().map(|id| id.to_string()).collect())
}

pub async fn acts_need_their_roles_and_are_told_to_the_members<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let (event, recipients) = told(&store, found("g", "ann", &["bob", "carol", "dan"])).await;
    assert_eq!((&event.event[..], &event.actor_id[..], event.user_count), ("created", "ann", 4));
    assert_eq!(recipients, ["ann", "bob", "carol", "dan"]);
    let at = SENT_AT_MS;
    let (event, _) = told(
        &store,
        act("g", "ann", at, GroupAct::SetRole { user_id: "bob".into(), role: Role::Administrator }),
    )
    .await;
    assert_eq!((&event.user_ids[..], event.role), (&owned(&["bob"])[..], Some(1)));

    let rename = || GroupAct::Update {
        name: Some("another".into()),
        avatar: None,
        members_max: None,
        join_rule: None,
        invite_rule: None,
    };
    let one_of = |user: &str| owned(&[user]);
    let mute = |user: &str| GroupAct::MuteMembers { user_ids: one_of(user), until_ms: i64::MAX };
    let remove = |user: &str| GroupAct::Remove { user_ids: one_of(user) };
    let role = |role| GroupAct::SetRole { user_id: "carol".into(), role };
    let announce = |text: &str| GroupAct::Announce { text: text.into() };
    // A member, an administrator and the owner, each with what is above their role.
    for (actor, forbidden) in [
        ("carol", rename()),
        ("carol", announce("x")),
        ("carol", mute("dan")),
        ("carol", remove("dan")),
        ("carol", GroupAct::MuteGroup { muted: true }),
        ("carol", GroupAct::Dissolve),
        ("carol", role(Role::Administrator)),
        ("carol", GroupAct::AnswerJoinRequest { user_id: "x".into(), accept: true }),
        ("bob", rule(Some(JOIN_OPEN), None)),
        ("bob", mute("ann")),
        ("bob", mute("bob")),
        ("bob", remove("ann")),
        ("bob", role(Role::Administrator)),
        ("bob", GroupAct::Transfer { user_id: "bob".into() }),
        ("bob", GroupAct::Dissolve),
        ("ann", remove("ann")),
    ] {
        let code = refused(&store, act("g", actor, at, forbidden.clone())).await;
        assert_eq!(code, Code::RoleTooLow, "{actor}: {forbidden:?}");
    }
    // A stranger may do nothing, and in no group there is nothing to do.
    for done in [rename(), announce("x"), mute("dan"), GroupAct::Leave, GroupAct::Dissolve] {
        let code = refused(&store, act("g", "eve", at, done.clone())).await;
        assert_eq!(code, Code::NotPermitted, "{done:?}");
        assert_eq!(refused(&store, act("h", "ann", at, done.clone())).await, Code::NotFound);
        assert_eq!(refused(&store, act("", "ann", at, done)).await, Code::BadRequest);
    }
    // What they may do they do, and are told so; what is so already is done and not told.
    for (actor, allowed, word) in [
        ("bob", rename(), "updated"),
        ("bob", announce("at five"), "announced"),
        ("bob", mute("carol"), "muted"),
        ("bob", GroupAct::MuteGroup { muted: true }, "group_muted"),
        ("ann", mute("bob"), "muted"),
        ("ann", rule(Some(JOIN_OPEN), Some(INVITE_BY_ADMINISTRATORS)), "updated"),
        ("ann", role(Role::Administrator), "role"),
        ("", GroupAct::Transfer { user_id: "dan".into() }, "transferred"),
    ] {
        let (event, recipients) = told(&store, act("g", actor, at, allowed.clone())).await;
        assert_eq!((&event.event[..], &event.actor_id[..]), (word, actor));
        assert_eq!(recipients.len(), 4);
        let again = changed(&store, act("g", actor, at, allowed)).await;
        assert_eq!((again.changed, again.told), (0, None));
    }
    let group = store.group("g").await.unwrap().expect("the group is there");
    assert_eq!((&group.name[..], &group.owner_id[..], group.muted), ("another", "dan", true));
    assert_eq!(group.administrators, ["bob", "carol"]);
    assert_eq!((group.join_rule, group.invite_rule), (JOIN_OPEN, INVITE_BY_ADMINISTRATORS));
    assert_eq!((&group.announcement[..], &group.announced_by[..]), ("at five", "bob"));
    assert_eq!(refused(&store, act("g", "ann", at, GroupAct::Dissolve)).await, Code::RoleTooLow);
    let seen = row(&store, "carol", "g:g").await;
    assert_eq!((seen.unread, seen.max_sequence), (0, 10), "notices count for nobody");
    // More than it may hold, and settings that do not exist.
    let max = |members_max| GroupAct::Update {
        name: None,
        avatar: None,
        members_max: Some(members_max),
        join_rule: None,
        invite_rule: None,
    };
    assert_eq!(refused(&store, act("g", "dan", at, max(3))).await, Code::OverCapacity);
    assert_eq!(refused(&store, act("g", "dan", at, max(0))).await, Code::BadRequest);
    assert_eq!(refused(&store, act("g", "dan", at, rule(Some(3), None))).await, Code::BadRequest);
    told(&store, act("g", "dan", at, max(4))).await;
    let invite = GroupAct::Invite { user_ids: one_of("eve") };
    assert_eq!(refused(&store, act("g", "bob", at, invite)).await, Code::OverCapacity);
    let long = GroupAct::Announce { text: "x".repeat(ANNOUNCEMENT_BYTES_MAX + 1) };
    assert_eq!(refused(&store, act("g", "dan", at, long)).await, Code::BadRequest);
    store.close().await.unwrap();
}

pub async fn who_may_come_into_a_group_is_its_rule<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let at = SENT_AT_MS;
    changed(&store, found("g", "ann", &["bob"])).await;
    let join = || GroupAct::Join { message: "please".into() };
    let invite = |user: &str| GroupAct::Invite { user_ids: owned(&[user]) };
    let answer = |user: &str, accept| GroupAct::AnswerJoinRequest { user_id: user.into(), accept };
    // By invitation: members bring others in, nobody comes alone.
    assert_eq!(refused(&store, act("g", "carol", at, join())).await, Code::NotPermitted);
    let (event, recipients) = told(&store, act("g", "bob", at, invite("carol"))).await;
    assert_eq!(
        (&event.event[..], &recipients[..]),
        ("added", &owned(&["ann", "bob", "carol"])[..])
    );
    let carol = row(&store, "carol", "g:g").await;
    assert_eq!((carol.init_sequence, carol.max_sequence), (1, 2), "who was added hears of it");
    assert_eq!(pending(&store, "carol").await, [2]);
    // By administrators' invitation only.
    told(&store, act("g", "ann", at, rule(None, Some(INVITE_BY_ADMINISTRATORS)))).await;
    assert_eq!(refused(&store, act("g", "bob", at, invite("dan"))).await, Code::RoleTooLow);
    // Open.
    told(&store, act("g", "ann", at, rule(Some(JOIN_OPEN), Some(INVITE_BY_MEMBERS)))).await;
    assert_eq!(told(&store, act("g", "dan", at, join())).await.0.event, "joined");
    assert_eq!(changed(&store, act("g", "dan", at, join())).await.changed, 0);
    // By approval: both who asks and who is brought by a member wait for an administrator.
    told(&store, act("g", "ann", at, rule(Some(JOIN_BY_APPROVAL), None))).await;
    let asked = changed(&store, act("g", "eve", 7, join())).await;
    assert_eq!((asked.changed, asked.waiting, asked.told), (0, 1, None));
    assert_eq!(asked.asked, ["ann"]);
    assert_eq!(changed(&store, act("g", "eve", 8, join())).await.waiting, 0, "once is enough");
    assert_eq!(changed(&store, act("g", "bob", 9, invite("f"))).await.waiting, 1);
    let waiting = store.join_requests("g", "", 10).await.unwrap().unwrap();
    let eve = chat::JoinRequest {
        user_id: "eve".into(),
        message: "please".into(),
        asked_at_ms: 7,
        invited_by: String::new(),
    };
    assert_eq!((&waiting.requests[0], waiting.complete), (&eve, true));
    assert_eq!(
        (&waiting.requests[1].user_id[..], &waiting.requests[1].invited_by[..]),
        ("f", "bob")
    );
    let page = store.join_requests("g", "eve", 10).await.unwrap().unwrap();
    assert_eq!(page.requests.len(), 1);
    assert_eq!(refused(&store, act("g", "bob", at, answer("eve", true))).await, Code::RoleTooLow);
    assert_eq!(refused(&store, act("g", "ann", at, answer("x", true))).await, Code::NotFound);
    assert_eq!(told(&store, act("g", "ann", at, answer("eve", true))).await.0.user_ids, ["eve"]);
    let no = changed(&store, act("g", "ann", at, answer("f", false))).await;
    assert_eq!((no.told, &no.turned_away[..]), (None, &owned(&["f"])[..]));
    assert_eq!(store.join_requests("g", "", 10).await.unwrap().unwrap().requests, []);
    assert_eq!(refused(&store, to_group("f", "g", "1")).await, Code::NotPermitted);
    stored(&store, to_group("eve", "g", "1")).await;
    // The bound of those who wait.
    for batch in 0..10 {
        let users = |n: usize| (0..n).map(|user| format!("w{batch}-{user}")).collect::<Vec<_>>();
        let many = GroupAct::Invite { user_ids: users(GROUP_JOIN_REQUESTS_MAX / 10) };
        assert_eq!(changed(&store, act("g", "bob", at, many)).await.waiting, 100);
    }
    assert_eq!(refused(&store, act("g", "x", at, join())).await, Code::OverCapacity);
    store.close().await.unwrap();
}

pub async fn who_is_muted_is_refused_until_the_time_is_over<B: Bed>(bed: &B) {
    let store = bed.open().await;
    changed(&store, found("g", "ann", &["bob", "carol"])).await;
    let mute = |until_ms| GroupAct::MuteMembers { user_ids: owned(&["bob", "x"]), until_ms };
    let until = SENT_AT_MS + 1;
    let (event, _) = told(&store, act("g", "ann", SENT_AT_MS - 5, mute(until))).await;
    assert_eq!((&event.user_ids[..], event.until_ms), (&owned(&["bob"])[..], Some(until)));
    assert_eq!(refused(&store, to_group("bob", "g", "1")).await, Code::Muted);
    assert_eq!(refused(&store, sent_on("bob", "g", "1")).await, Code::Muted);
    assert!(!store.may_speak("g", "bob", SENT_AT_MS).await.unwrap());
    assert!(store.may_speak("g", "bob", until).await.unwrap());
    stored(&store, to_group("carol", "g", "1")).await;
    let page = store.group_members("g", "ann", 1).await.unwrap().unwrap();
    assert_eq!(page.members[0].muted_until_ms, until);
    // Going and coming back does not help.
    one(&store, act("g", "bob", SENT_AT_MS, GroupAct::Leave)).await;
    one(&store, act("g", "carol", SENT_AT_MS, GroupAct::Invite { user_ids: owned(&["bob"]) }))
        .await;
    assert_eq!(refused(&store, to_group("bob", "g", "1")).await, Code::Muted);
    // Over, by time and by word.
    let mut later = to_group("bob", "g", "2");
    if let Write::Append { sent_at_ms, .. } = &mut later {
        *sent_at_ms = until;
    }
    stored(&store, later).await;
    told(&store, act("g", "ann", SENT_AT_MS - 5, mute(0))).await;
    stored(&store, to_group("bob", "g", "1")).await;
    // A whole group: its administrators and services' messages in their names go through.
    told(&store, act("g", "ann", SENT_AT_MS, GroupAct::MuteGroup { muted: true })).await;
    assert_eq!(refused(&store, to_group("carol", "g", "2")).await, Code::Muted);
    assert_eq!(refused(&store, sent_on("carol", "g", "2")).await, Code::Muted);
    assert!(!store.may_speak("g", "carol", SENT_AT_MS).await.unwrap());
    assert!(store.may_speak("g", "ann", SENT_AT_MS).await.unwrap());
    stored(&store, to_group("ann", "g", "1")).await;
    told(&store, act("g", "ann", SENT_AT_MS, GroupAct::MuteGroup { muted: false })).await;
    stored(&store, to_group("carol", "g", "2")).await;
    // What was stored before the muting is found by a retry all the same.
    told(&store, act("g", "ann", SENT_AT_MS, mute(i64::MAX))).await;
    let again = one(&store, to_group("bob", "g", "1")).await;
    assert!(matches!(again, Outcome::Appended { duplicate: true, .. }), "{again:?}");
    store.close().await.unwrap();
}

pub async fn who_goes_hears_why_and_nothing_more<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let at = SENT_AT_MS;
    changed(&store, found("g", "ann", &["bob", "carol", "dan"])).await;
    let owner_leaves = refused(&store, act("g", "ann", at, GroupAct::Leave)).await;
    assert_eq!(owner_leaves, Code::BadRequest, "the owner hands over first");
    let (left, recipients) = told(&store, act("g", "bob", at, GroupAct::Leave)).await;
    assert_eq!((&left.event[..], recipients.len()), ("left", 4));
    let removal = GroupAct::Remove { user_ids: owned(&["carol", "nobody"]) };
    let (removed, recipients) = told(&store, act("g", "ann", at, removal)).await;
    assert_eq!((&removed.user_ids[..], recipients.len()), (&owned(&["carol"])[..], 3));
    stored(&store, to_group("dan", "g", "after")).await;
    for (user, reason, newest) in [("bob", QUIT_LEFT, 2), ("carol", QUIT_REMOVED, 3)] {
        let gone = row(&store, user, "g:g").await;
        assert_eq!((gone.quit, gone.quit_reason, gone.max_sequence), (true, reason, newest));
        assert_eq!(pending(&store, user).await.last(), Some(&newest), "the notice is theirs still");
        let page = page(&store, user, "g:g", 0, 0).await;
        assert_eq!(page.messages.last().map(|message| message.sequence), Some(newest));
    }
    // An administrator who goes is none when coming back.
    let role = GroupAct::SetRole { user_id: "dan".into(), role: Role::Administrator };
    told(&store, act("g", "ann", at, role)).await;
    told(&store, act("g", "dan", at, GroupAct::Leave)).await;
    told(&store, act("g", "ann", at, GroupAct::Invite { user_ids: owned(&["dan"]) })).await;
    assert_eq!(store.group_role("g", "dan").await.unwrap(), Some(Role::Member));
    assert_eq!(store.group_role("g", "bob").await.unwrap(), None);
    // The owner, whom a service removes, leaves a group without one.
    one(&store, remove("g", &["ann"])).await;
    assert_eq!(store.group("g").await.unwrap().unwrap().owner_id, "");
    store.close().await.unwrap();
}

pub async fn a_dissolved_group_is_gone_but_not_its_history<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let at = SENT_AT_MS;
    changed(&store, found("g", "ann", &["bob"])).await;
    told(&store, act("g", "ann", at, rule(Some(JOIN_BY_APPROVAL), None))).await;
    changed(&store, act("g", "eve", at, GroupAct::Join { message: String::new() })).await;
    stored(&store, to_group("ann", "g", "1")).await;
    let (event, recipients) = told(&store, act("g", "ann", at, GroupAct::Dissolve)).await;
    assert_eq!((&event.event[..], recipients.len()), ("dissolved", 2));
    assert_eq!(store.group("g").await.unwrap(), None);
    assert_eq!(store.group_members("g", "", 10).await.unwrap(), None);
    assert_eq!(refused(&store, to_group("ann", "g", "2")).await, Code::NotFound);
    let bob = row(&store, "bob", "g:g").await;
    assert_eq!((bob.quit_reason, bob.max_sequence), (QUIT_DISSOLVED, 4));
    assert_eq!(sequences(&page(&store, "bob", "g:g", 0, 0).await.messages), [1, 2, 3, 4]);
    // The id may be used again; nobody waits there any more, and sequences go on.
    let again = changed(&store, found("g", "carol", &[])).await;
    assert_eq!(again.told.expect("told").message.sequence, 5);
    assert_eq!(store.join_requests("g", "", 10).await.unwrap().unwrap().requests, []);
    // The last one who leaves ends it.
    let (event, _) = told(&store, act("g", "carol", at, GroupAct::Leave)).await;
    assert_eq!(event.event, "dissolved");
    assert_eq!(store.group("g").await.unwrap(), None);
    // So does a service that dissolves one which has nobody left.
    one(&store, create("h", &["ann"], 9)).await;
    let users = Write::RemoveMembers { group_id: "h".into(), user_ids: owned(&["ann"]) };
    one(&store, users).await;
    one(&store, act("h", "", at, GroupAct::Dissolve)).await;
    assert_eq!(store.group("h").await.unwrap(), None);
    assert_eq!(refused(&store, to_group("ann", "h", "9")).await, Code::NotFound);
    store.close().await.unwrap();
}

pub async fn pages_of_members_and_receipts_are_bounded_and_whole<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let users: Vec<String> =
        (0..GROUP_MEMBERS_SHOWN_MAX + 30).map(|n| format!("u{n:04}")).collect();
    let names: Vec<&str> = users.iter().map(|user| &user[..]).collect();
    one(&store, create("g", &names, 1_000)).await;
    let group = store.group("g").await.unwrap().expect("the group is there");
    assert_eq!(group.members.len(), GROUP_MEMBERS_SHOWN_MAX);
    assert_eq!(group.member_count as usize, users.len());
    stored(&store, to_group("u0000", "g", "1")).await;
    let readers = ["u0003", "u0100", "u0529"];
    for reader in readers {
        one(&store, cursor(reader, "g:g", 0, 1)).await;
    }
    let (mut members, mut after) = (vec![], String::new());
    loop {
        let page = store.group_members("g", &after, 64).await.unwrap().unwrap();
        assert!(page.members.len() <= 64 && page.member_count as usize == users.len());
        members.extend(page.members.iter().map(|member| member.user_id.clone()));
        after = members.last().cloned().unwrap_or_default();
        if page.complete {
            break;
        }
        assert_eq!(page.members.len(), 64);
    }
    assert_eq!(members, users);
    for (filter, expected) in [
        (ReceiptFilter::Everybody, users.len()),
        (ReceiptFilter::Read, 3),
        (ReceiptFilter::Unread, users.len() - 3),
    ] {
        let (mut found, mut after, mut pages) = (vec![], String::new(), 0);
        loop {
            let page = store.receipts("g:g", 1, filter, &after, 40, 100).await.unwrap();
            assert!(page.receipts.len() <= 40 && page.member_count as usize == users.len());
            assert!(page.after_user_id > after, "each page goes on");
            pages += 1;
            after = page.after_user_id;
            found.extend(page.receipts);
            if page.complete {
                break;
            }
        }
        assert_eq!(found.len(), expected, "{filter:?}");
        assert!(pages >= 6, "a page looks at 100 members: {pages}");
        for receipt in &found {
            let read = readers.contains(&&receipt.user_id[..]);
            assert_eq!(receipt.read_sequence, u64::from(read), "{receipt:?}");
            assert_eq!(receipt.delivered_sequence, u64::from(read));
        }
        assert!(found.is_sorted_by(|one, next| one.user_id < next.user_id));
    }
    let none = store.receipts("g:x", 1, ReceiptFilter::Read, "", 40, 100).await;
    assert!(matches!(none, Err(StoreError::NotFound)));
    store.close().await.unwrap();
}

pub async fn a_hidden_conversation_comes_back_with_the_next_message<B: Bed>(bed: &B) {
    let store = bed.open().await;
    let id = conversation_id::single("ann", "bob");
    stored(&store, to_user("ann", "bob", "1")).await;
    let set = |pinned: Option<bool>, hidden: Option<bool>| Write::SetConversation {
        user_id: "bob".into(),
        conversation_id: id.clone(),
        do_not_disturb: None,
        pinned,
        hidden,
    };
    one(&store, set(Some(true), Some(true))).await;
    let bob = row(&store, "bob", &id).await;
    assert_eq!((bob.pinned, bob.hidden, bob.do_not_disturb), (true, true, false));
    assert!(!row(&store, "ann", &id).await.hidden);
    let before = store.version();
    one(&store, set(Some(true), None)).await;
    assert_eq!(store.version(), before, "nothing changed");
    stored(&store, to_user("ann", "bob", "2")).await;
    let bob = row(&store, "bob", &id).await;
    assert_eq!((bob.pinned, bob.hidden), (true, false));
    one(&store, set(Some(false), Some(true))).await;
    one(&store, set(None, Some(false))).await;
    let bob = row(&store, "bob", &id).await;
    assert_eq!((bob.pinned, bob.hidden), (false, false));
    store.close().await.unwrap();
}
