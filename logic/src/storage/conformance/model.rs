//! Random writes against the simplest thing that could be right: vectors that are searched from
//! one end to the other.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::*;

/// A conversation in the model.
#[derive(Default)]
struct Conversation {
    messages: Vec<(chat::Message, u64)>,
    members: BTreeSet<String>,
    rows: BTreeMap<String, Row>,
    group: Option<u32>,
}

/// A user's row in the model.
#[derive(Clone, Default)]
struct Row {
    init: u64,
    delivered: u64,
    read: u64,
    quit: Option<u64>,
    do_not_disturb: bool,
    /// The version of the last change other than a message.
    version: u64,
}

#[derive(Default)]
struct Model {
    version: u64,
    conversations: BTreeMap<String, Conversation>,
}

impl Model {
    /// Applies a write and says what a store must answer, in the words of [`told`].
    fn apply(&mut self, write: &Write) -> String {
        match write {
            Write::Append { sender_id, client_message_id, target, .. } => {
                for conversation in self.conversations.values() {
                    for (message, version) in &conversation.messages {
                        if (&message.sender_id, &message.client_message_id)
                            == (sender_id, client_message_id)
                        {
                            let members = conversation.members.len();
                            return format!(
                                "appended {} {} duplicate {version} to {members}",
                                message.conversation_id, message.sequence
                            );
                        }
                    }
                }
                let id = match target {
                    Target::User(user) => {
                        let id = conversation_id::single(sender_id, user);
                        let version = self.version + 1;
                        let conversation = self.conversations.entry(id.clone()).or_default();
                        for user in [sender_id, user] {
                            conversation.members.insert(user.clone());
                            let row = Row { version, ..Row::default() };
                            conversation.rows.entry(user.clone()).or_insert(row);
                        }
                        id
                    }
                    Target::Group(group) => conversation_id::group(group),
                };
                let Some(conversation) = self.living(&id, target) else {
                    return format!("refused {}", Code::NotFound);
                };
                if !conversation.members.contains(sender_id) {
                    return format!("refused {}", Code::NotPermitted);
                }
                self.version += 1;
                let version = self.version;
                let conversation = self.conversations.get_mut(&id).unwrap();
                let sequence = conversation.messages.len() as u64 + 1;
                let conversation_type = if id.starts_with('s') { 1 } else { 2 };
                let message = as_stored(write, &id, conversation_type, sequence);
                conversation.messages.push((message, version));
                let members = conversation.members.len();
                format!("appended {id} {sequence} new {version} to {members}")
            }
            Write::MoveCursor { user_id, conversation_id, delivered, read } => {
                let next = self.version + 1;
                let (conversation, mut row) = match self.membership(user_id, conversation_id) {
                    Ok(found) => found,
                    Err(code) => return format!("refused {code}"),
                };
                let top = row.quit.unwrap_or(conversation.messages.len() as u64);
                let before = (row.delivered, row.read);
                row.read = row.read.max(*read.min(&top));
                row.delivered = row.delivered.max(*delivered.min(&top)).max(row.read);
                let changed = before != (row.delivered, row.read);
                if before.1 != row.read {
                    row.version = next;
                }
                let stands = (row.delivered, row.read);
                self.set(user_id, conversation_id, row, changed);
                format!("cursors {stands:?} changed {changed} at {}", self.version)
            }
            Write::SetDoNotDisturb { user_id, conversation_id, do_not_disturb } => {
                let next = self.version + 1;
                let mut row = match self.membership(user_id, conversation_id) {
                    Ok((_, row)) => row,
                    Err(code) => return format!("refused {code}"),
                };
                let changed = row.do_not_disturb != *do_not_disturb;
                if changed {
                    (row.do_not_disturb, row.version) = (*do_not_disturb, next);
                }
                self.set(user_id, conversation_id, row, changed);
                format!("updated at {}", self.version)
            }
            Write::CreateGroup { group_id, members, members_max, .. } => {
                let id = conversation_id::group(group_id);
                let members: BTreeSet<String> = members.iter().cloned().collect();
                if members.len() > *members_max as usize {
                    return format!("refused {}", Code::OverCapacity);
                }
                let conversation = self.conversations.entry(id.clone()).or_default();
                if conversation.group.is_some() {
                    return format!("refused {}", Code::AlreadyExists);
                }
                self.version += 1;
                conversation.group = Some(*members_max);
                for user in &members {
                    conversation.join(user, self.version);
                }
                format!("created {id} with {} at {}", members.len(), self.version)
            }
            Write::RemoveGroup { group_id } => {
                let Some(conversation) = self.group_of(group_id) else {
                    return format!("refused {}", Code::NotFound);
                };
                conversation.group = None;
                let members: Vec<String> = conversation.members.iter().cloned().collect();
                self.version += 1;
                let version = self.version;
                let conversation =
                    self.conversations.get_mut(&conversation_id::group(group_id)).unwrap();
                for user in &members {
                    conversation.leave(user, version);
                }
                format!("removed with {} at {version}", members.len())
            }
            Write::AddMembers { group_id, user_ids } => {
                let next = self.version + 1;
                let Some(conversation) = self.group_of(group_id) else {
                    return format!("refused {}", Code::NotFound);
                };
                let new: BTreeSet<&String> =
                    user_ids.iter().filter(|id| !conversation.members.contains(*id)).collect();
                let count = conversation.members.len() + new.len();
                if !new.is_empty() && count > conversation.group.unwrap() as usize {
                    return format!("refused {}", Code::OverCapacity);
                }
                for user in &new {
                    conversation.join(user, next);
                }
                self.version += u64::from(!new.is_empty());
                format!("added {} of {count} at {}", new.len(), self.version)
            }
            Write::RemoveMembers { group_id, user_ids } => {
                let next = self.version + 1;
                let Some(conversation) = self.group_of(group_id) else {
                    return format!("refused {}", Code::NotFound);
                };
                let gone: BTreeSet<&String> =
                    user_ids.iter().filter(|id| conversation.members.contains(*id)).collect();
                for user in &gone {
                    conversation.leave(user, next);
                }
                let left = conversation.members.len();
                self.version += u64::from(!gone.is_empty());
                format!("removed {} leaving {left} at {}", gone.len(), self.version)
            }
        }
    }

    fn living(&self, id: &str, target: &Target) -> Option<&Conversation> {
        let conversation = self.conversations.get(id)?;
        let lives = matches!(target, Target::User(_)) || conversation.group.is_some();
        lives.then_some(conversation)
    }

    fn group_of(&mut self, group_id: &str) -> Option<&mut Conversation> {
        let conversation = self.conversations.get_mut(&conversation_id::group(group_id))?;
        conversation.group.is_some().then_some(conversation)
    }

    fn membership(&self, user: &str, id: &str) -> Result<(&Conversation, Row), Code> {
        let conversation = self.conversations.get(id).ok_or(Code::NotFound)?;
        let row = conversation.rows.get(user).ok_or(Code::NotPermitted)?;
        Ok((conversation, row.clone()))
    }

    fn set(&mut self, user: &str, id: &str, row: Row, changed: bool) {
        self.version += u64::from(changed);
        let conversation = self.conversations.get_mut(id).unwrap();
        conversation.rows.insert(user.to_owned(), row);
    }

    /// A user's rows as PULL_CONVERSATIONS tells them, by version.
    fn conversations(&self, user: &str, since: u64) -> Vec<chat::Conversation> {
        let mut rows: Vec<chat::Conversation> = vec![];
        for (id, conversation) in &self.conversations {
            let Some(row) = conversation.rows.get(user) else { continue };
            let visible = conversation.visible(row);
            let own_last = visible.iter().rev().find(|(message, _)| message.sender_id == user);
            let floor = own_last.map_or(row.read, |(message, _)| row.read.max(message.sequence));
            let unread = visible
                .iter()
                .filter(|(message, _)| message.sequence > floor && !message.does_not_count);
            let max_sequence = row.quit.unwrap_or(conversation.messages.len() as u64);
            let version = visible.last().map_or(0, |(_, version)| *version).max(row.version);
            let name = match (conversation.members.len(), id.strip_prefix("g:")) {
                (_, Some(group)) => format!("name of {group}"),
                (1, None) => user.to_owned(),
                _ => conversation.members.iter().find(|id| *id != user).unwrap().clone(),
            };
            rows.push(chat::Conversation {
                conversation_id: id.clone(),
                r#type: if id.starts_with('s') { 1 } else { 2 },
                name,
                avatar: match id.starts_with('s') {
                    true => String::new(),
                    false => "https://example.org/a.png".into(),
                },
                last_message: visible.last().map(|(message, _)| message.clone()),
                unread: unread.count() as u64,
                init_sequence: row.init,
                max_sequence,
                read_sequence: row.read,
                do_not_disturb: row.do_not_disturb,
                quit: row.quit.is_some(),
                version,
            });
        }
        rows.retain(|row| row.version > since);
        rows.sort_by_key(|row| row.version);
        rows
    }

    /// By conversation, because the order among those with equal news is the store's.
    fn undelivered(&self, user: &str, as_of: u64, per: usize) -> BTreeMap<String, Vec<u64>> {
        let mut all = BTreeMap::new();
        for (id, conversation) in &self.conversations {
            let Some(row) = conversation.rows.get(user) else { continue };
            let mut waiting: Vec<u64> = conversation
                .visible(row)
                .iter()
                .filter(|(message, version)| message.sequence > row.delivered && *version <= as_of)
                .map(|(message, _)| message.sequence)
                .collect();
            waiting.drain(..waiting.len().saturating_sub(per));
            if !waiting.is_empty() {
                all.insert(id.clone(), waiting);
            }
        }
        all
    }
}

impl Conversation {
    fn visible(&self, row: &Row) -> &[(chat::Message, u64)] {
        let end = row.quit.unwrap_or(self.messages.len() as u64) as usize;
        &self.messages[row.init as usize..end]
    }

    fn join(&mut self, user: &str, version: u64) {
        self.members.insert(user.to_owned());
        let now = self.messages.len() as u64;
        let row = Row { init: now, delivered: now, read: now, version, ..Row::default() };
        self.rows.insert(user.to_owned(), row);
    }

    fn leave(&mut self, user: &str, version: u64) {
        self.members.remove(user);
        let now = self.messages.len() as u64;
        let row = self.rows.get_mut(user).unwrap();
        (row.quit, row.version) = (Some(now), version);
    }
}

fn as_stored(write: &Write, id: &str, conversation_type: u32, sequence: u64) -> chat::Message {
    let Write::Append {
        message_id,
        sender_id,
        client_message_id,
        kind,
        body,
        attachment,
        does_not_count,
        sent_at_ms,
        ..
    } = write
    else {
        unreachable!("only messages are stored as messages")
    };
    chat::Message {
        conversation_id: id.to_owned(),
        conversation_type,
        sequence,
        message_id: message_id.to_string(),
        client_message_id: client_message_id.clone(),
        sender_id: sender_id.clone(),
        r#type: *kind,
        body: body.clone(),
        attachment: attachment.clone(),
        sent_at_ms: *sent_at_ms,
        state: 0,
        does_not_count: *does_not_count,
    }
}

/// An outcome in the model's words.
fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Appended { message, duplicate, version, recipients } => format!(
            "appended {} {} {} {version} to {}",
            message.conversation_id,
            message.sequence,
            if *duplicate { "duplicate" } else { "new" },
            recipients.len()
        ),
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
        Outcome::Updated { version } => format!("updated at {version}"),
        Outcome::Refused { code, .. } => format!("refused {code}"),
    }
}

const USERS: [&str; 6] = ["ann", "bob", "carol", "dan", "eve", "f"];
const GROUPS: [&str; 3] = ["g", "h", "large"];

fn random_write(random: &mut Rng, ids: &mut u32) -> Write {
    let user = |random: &mut Rng| USERS[random.usize(..USERS.len())].to_owned();
    let users = |random: &mut Rng| (0..random.usize(1..4)).map(|_| user(random)).collect();
    let group = |random: &mut Rng| GROUPS[random.usize(..GROUPS.len())].to_owned();
    let conversation_id = match random.bool() {
        true => conversation_id::group(&group(random)),
        false => conversation_id::single(&user(random), &user(random)),
    };
    match random.u8(..100) {
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
            if random.u8(..4) == 0 { silent(write) } else { write }
        }
        60..82 => {
            let of = random.u64(..30);
            let (delivered, read) = if random.bool() { (of, 0) } else { (0, of) };
            Write::MoveCursor { user_id: user(random), conversation_id, delivered, read }
        }
        82..86 => Write::SetDoNotDisturb {
            user_id: user(random),
            conversation_id,
            do_not_disturb: random.bool(),
        },
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
                        conversation.visible(row).iter().map(|(message, _)| message).collect();
                    assert_eq!(page.messages.iter().collect::<Vec<_>>(), stored);
                    assert!(page.complete);
                }
                None => {
                    assert!(matches!(page, Err(StoreError::NotMember)), "{user} {id}: {page:?}")
                }
            }
        }
    }
    for (id, conversation) in &model.conversations {
        let members = store.members(id).await.unwrap();
        let lives = id.starts_with('s') || conversation.group.is_some();
        assert_eq!(members.is_some(), lives, "{id}");
        let members = members.unwrap_or_else(|| [].into());
        assert!(members.iter().map(|id| &**id).eq(conversation.members.iter()), "{id}");
    }
}
