//! The random writes, and how what a store makes of them is compared with the model.

use fastrand::Rng;

use super::*;
use crate::storage::{Copied, Extras, MemberRange};

/// An outcome in the model's words.
fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Appended { message, duplicate, version, recipients, .. } => format!(
            "appended {} {} {} {version} to {}",
            message.conversation_id,
            message.sequence,
            if *duplicate { "duplicate" } else { "new" },
            recipients.len()
        ),
        Outcome::Forwarded { messages, duplicate, version, recipients, .. } => {
            let all: Vec<String> =
                messages.iter().map(|message| message.sequence.to_string()).collect();
            format!(
                "forwarded {} {} {} {version} to {}",
                messages[0].conversation_id,
                all.join(","),
                if *duplicate { "duplicate" } else { "new" },
                recipients.len()
            )
        }
        Outcome::Erased { message, changed, version, recipients } => format!(
            "erased {} {} changed {changed} at {version} of {}",
            message.sequence,
            message.state,
            recipients.len()
        ),
        Outcome::Deleted { messages, version, .. } => {
            let all: BTreeSet<u64> = messages.iter().map(|message| message.sequence).collect();
            format!("deleted {all:?} at {version}")
        }
        Outcome::CursorMoved { delivered, read, changed, version, .. } => {
            format!("cursors {:?} changed {changed} at {version}", (delivered, read))
        }
        Outcome::GroupCreated { conversation_id, members, version, .. } => {
            format!("created {conversation_id} with {} at {version}", members.len())
        }
        Outcome::GroupRemoved { members, version, .. } => {
            format!("removed with {} at {version}", members.len())
        }
        Outcome::MembersAdded { added, members, version, .. } => {
            format!("added {added} of {} at {version}", members.len())
        }
        Outcome::MembersRemoved { removed, members, version, .. } => {
            format!("removed {removed} leaving {} at {version}", members.len())
        }
        Outcome::GroupChanged(changed) => model_groups::told_of_act(changed),
        Outcome::Updated { version } => format!("updated at {version}"),
        Outcome::Refused { code, .. } => format!("refused {code}"),
    }
}

pub const USERS: [&str; 6] = ["ann", "bob", "carol", "dan", "eve", "f"];
const GROUPS: [&str; 3] = ["g", "h", "large"];

pub fn random_write(random: &mut Rng, ids: &mut u32) -> Write {
    // Groups are changed by their people as often as by services.
    if random.u8(..8) == 0 {
        let group = GROUPS[random.usize(..GROUPS.len())].to_owned();
        let at_ms = SENT_AT_MS + random.i64(-50..50);
        return model_groups::random_act(random, group, &USERS, at_ms);
    }
    let user = |random: &mut Rng| USERS[random.usize(..USERS.len())].to_owned();
    let users = |random: &mut Rng| (0..random.usize(1..4)).map(|_| user(random)).collect();
    let group = |random: &mut Rng| GROUPS[random.usize(..GROUPS.len())].to_owned();
    let conversation_id = match random.bool() {
        true => conversation_id::group(&group(random)),
        false => conversation_id::single(&user(random), &user(random)),
    };
    let sent_at_ms = 1_700_000_000_000;
    match random.u8(..120) {
        0..60 => {
            // One in ten is a retry of something, stored or not.
            let id = if random.u8(..10) == 0 { random.u32(..*ids + 1) } else { *ids };
            *ids += 1;
            let sender = user(random);
            let target = match random.bool() {
                true => Target::User(user(random)),
                false => Target::Group(group(random)),
            };
            let write = message(&sender, target, &id.to_string());
            let mut write = if random.u8(..4) == 0 { silent(write) } else { write };
            if let (Write::Append { extras, .. }, true) = (&mut write, random.u8(..3) == 0) {
                let mut more = Extras::default();
                if random.u8(..3) == 0 {
                    let sequence = random.u64(..20);
                    more.quote = Some(Box::new(chat::Quote { sequence, ..Default::default() }));
                }
                if random.bool() {
                    let mentions =
                        chat::Mentions { user_ids: users(random), everyone: random.u8(..4) == 0 };
                    more.mentions = Some(Box::new(mentions));
                }
                if random.bool() {
                    more.expires_at_ms = sent_at_ms + random.i64(1..100);
                }
                *extras = more.boxed();
            }
            write
        }
        100..106 => {
            let limit_ms = if random.u8(..4) == 0 { 0 } else { 100 };
            let actor = match random.u8(..4) {
                0 => Actor::Service,
                _ => Actor::User(user(random)),
            };
            let at_ms = sent_at_ms + random.i64(..150);
            Write::Revoke { actor, conversation_id, sequence: random.u64(..30), at_ms, limit_ms }
        }
        106..110 => {
            let at_ms = sent_at_ms + random.i64(..100);
            Write::Expire { conversation_id, sequence: random.u64(..30), at_ms }
        }
        110..116 => Write::Delete {
            user_id: user(random),
            conversation_id,
            sequences: (0..random.usize(1..4)).map(|_| random.u64(..12)).collect(),
        },
        116.. => {
            let id = if random.u8(..5) == 0 { random.u32(..*ids + 1) } else { *ids };
            *ids += 1;
            let copied = |n: usize| Copied {
                message_id: Uuid::now_v7(),
                kind: 1,
                body: format!("copy {n}"),
                attachment: None,
                extras: None,
            };
            Write::Forward {
                sender_id: user(random),
                client_message_id: id.to_string(),
                target: match random.bool() {
                    true => Target::User(user(random)),
                    false => Target::Group(group(random)),
                },
                messages: (0..random.usize(1..4)).map(copied).collect(),
                sent_at_ms,
            }
        }
        60..82 => {
            let of = random.u64(..30);
            let (delivered, read) = if random.bool() { (of, 0) } else { (0, of) };
            Write::MoveCursor { user_id: user(random), conversation_id, delivered, read }
        }
        82 => Write::SetDoNotDisturb {
            user_id: user(random),
            conversation_id,
            do_not_disturb: random.bool(),
        },
        83..86 => {
            let mut maybe = || random.bool().then(|| random.bool());
            let (do_not_disturb, pinned, hidden) = (maybe(), maybe(), maybe());
            let user_id = user(random);
            Write::SetConversation { user_id, conversation_id, do_not_disturb, pinned, hidden }
        }
        86..90 => {
            let members: Vec<String> = users(random);
            let members: Vec<&str> = members.iter().map(|id| &id[..]).collect();
            create(&group(random), &members, 5)
        }
        90 => Write::RemoveGroup { group_id: group(random) },
        91..96 => Write::AddMembers { group_id: group(random), user_ids: users(random) },
        _ => Write::RemoveMembers { group_id: group(random), user_ids: users(random) },
    }
}

pub async fn random_writes_agree_with_the_model<B: Bed>(bed: &B) {
    let seed = std::env::var("MILLRACE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLRACE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let mut model = Model::default();
    let mut store = bed.open().await;
    let mut ids = 0;
    for round in 0..150 {
        let count = random.usize(1..25);
        let writes: Vec<Write> = (0..count).map(|_| random_write(&mut random, &mut ids)).collect();
        let expected: Vec<String> = writes.iter().map(|write| model.apply(write)).collect();
        let outcomes = store.commit(writes.clone()).await.unwrap();
        for ((write, outcome), expected) in writes.iter().zip(&outcomes).zip(&expected) {
            assert_eq!(&told(outcome), expected, "round {round}: {write:?}");
        }
        assert_eq!(store.version(), model.version);
        assert_eq!(store.committed_version().await.unwrap(), model.version);
        if round % 10 == 9 {
            let since = random.u64(..model.version + 1);
            agree(&store, &model, since, &mut random).await;
        }
        if round % 50 == 49 {
            store.close().await.unwrap();
            store = bed.open().await;
        }
    }
    agree(&store, &model, 0, &mut random).await;
    store.close().await.unwrap();
}

/// Every question, for every user, has the model's answer.
async fn agree<S: Store>(store: &S, model: &Model, since: u64, random: &mut Rng) {
    for user in USERS {
        let rows = store.conversations(user, since, 1_000).await.unwrap();
        assert_eq!(rows.conversations, model.conversations(user, since), "{user} since {since}");
        let mut ranges = store.member_ranges(user).await.unwrap();
        ranges.sort_by(|one, other| one.conversation_id.cmp(&other.conversation_id));
        let seen = |row: chat::Conversation| MemberRange {
            up_to: if row.quit { row.max_sequence } else { u64::MAX },
            after: row.init_sequence,
            conversation_id: row.conversation_id,
        };
        let mut known: Vec<_> = model.conversations(user, 0).into_iter().map(seen).collect();
        known.sort_by(|one, other| one.conversation_id.cmp(&other.conversation_id));
        assert_eq!(ranges, known, "what {user} may see");
        let recent = store.recent_conversations(user, 0, 1_000).await.unwrap();
        let mut newest_first = model.conversations(user, 0);
        newest_first.sort_by(|one, other| {
            let by_id = || one.conversation_id.cmp(&other.conversation_id);
            other.version.cmp(&one.version).then_with(by_id)
        });
        assert_eq!(recent.conversations, newest_first, "the contacts of {user}");
        let per = random.usize(1..30);
        let mut undelivered: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for message in store.undelivered(user, since, per, 1_000).await.unwrap() {
            undelivered.entry(message.conversation_id).or_default().push(message.sequence);
        }
        assert_eq!(undelivered, model.undelivered(user, since, per), "{user} as of {since}");
        for (id, conversation) in &model.conversations {
            let page = store.page(user, id, 0, 0, 10_000, false).await;
            match conversation.rows.get(user) {
                Some(row) => {
                    let page = page.unwrap();
                    let stored: Vec<_> =
                        conversation.visible(row).into_iter().map(|(message, _)| message).collect();
                    assert_eq!(page.messages, stored);
                    assert!(page.complete);
                    let sequences: Vec<u64> = (0..stored.len() as u64 + 5).collect();
                    assert_eq!(
                        store.messages(user, id, &sequences).await.unwrap().len(),
                        sequences
                            .iter()
                            .filter(|n| stored.iter().any(|message| message.sequence == **n))
                            .count()
                    );
                    let changes = store.changes(user, id, since, 1_000).await.unwrap();
                    let erased = |of: &chat::Message| {
                        let edit = conversation.edits.iter().find(|(_, n)| *n == of.sequence);
                        edit.map(|(version, _)| *version).filter(|version| *version > since)
                    };
                    let mut expected: Vec<_> =
                        stored.iter().filter(|message| erased(message).is_some()).collect();
                    expected.sort_by_key(|message| erased(message));
                    assert_eq!(changes.messages.iter().collect::<Vec<_>>(), expected);
                    assert!(changes.complete);
                    let deleted: BTreeSet<u64> =
                        changes.deleted.iter().flat_map(|(from, to)| *from..=*to).collect();
                    assert_eq!(deleted, row.deleted);
                }
                None => {
                    assert!(matches!(page, Err(StoreError::NotMember)), "{user} {id}: {page:?}")
                }
            }
        }
    }
    let now_ms = 1_700_000_000_050;
    let over: BTreeSet<(String, u64)> = model
        .conversations
        .iter()
        .flat_map(|(id, conversation)| conversation.messages.iter().map(move |(m, _)| (id, m)))
        .filter(|(_, message)| (1..=now_ms).contains(&message.expires_at_ms))
        .map(|(id, message)| (id.clone(), message.sequence))
        .collect();
    let found: BTreeSet<(String, u64)> =
        store.expired(now_ms, 10_000).await.unwrap().into_iter().collect();
    assert_eq!(found, over);
    for (id, conversation) in &model.conversations {
        let members = store.members(id).await.unwrap();
        let lives = id.starts_with('s') || conversation.group.is_some();
        assert_eq!(members.is_some(), lives, "{id}");
        let members = members.unwrap_or_else(|| [].into());
        assert!(members.iter().map(|id| &**id).eq(conversation.members.iter()), "{id}");
        if let Some(group_id) = id.strip_prefix("g:") {
            agree_on_group(store, group_id, conversation).await;
        }
    }
}

/// A group, its members with their roles, and who waits, are those of the model.
async fn agree_on_group<S: Store>(store: &S, group_id: &str, conversation: &Conversation) {
    let found = store.group(group_id).await.unwrap();
    let page = store.group_members(group_id, "", 100).await.unwrap();
    let waiting = store.join_requests(group_id, "", 100).await.unwrap();
    let Some(group) = &conversation.group else {
        assert!(found.is_none() && page.is_none() && waiting.is_none(), "{group_id}");
        return;
    };
    let found = found.expect("a living group is found");
    let told = (&found.name, &found.avatar, &found.owner_id, &found.announcement, found.muted);
    let expected =
        (&conversation.name, &conversation.avatar, &group.owner, &group.announcement, group.muted);
    assert_eq!(told, expected, "{group_id}");
    assert!(found.administrators.iter().eq(&group.administrators), "{group_id}");
    assert_eq!((found.join_rule, found.members_max), (group.join_rule, group.members_max));
    assert_eq!(found.member_count as usize, conversation.members.len());
    let members = conversation.members.iter().map(|user| chat::GroupMember {
        user_id: user.clone(),
        role: match () {
            () if group.owner == *user => 2,
            () => u32::from(group.administrators.contains(user)),
        },
        muted_until_ms: conversation.rows[user].muted_until,
    });
    assert!(page.expect("a living group has pages").members.into_iter().eq(members), "{group_id}");
    let waiting = waiting.expect("a living group has requests").requests;
    assert!(waiting.iter().map(|request| &request.user_id).eq(&group.waiting), "{group_id}");
}
