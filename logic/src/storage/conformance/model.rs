//! Random writes against the simplest thing that could be right: vectors that are searched from
//! one end to the other.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::storage::{
    Actor,
    extras::{STATE_DELETED, STATE_EXPIRED, STATE_NORMAL, STATE_REVOKED, bury},
};

mod random;

pub use random::{USERS, random_write, random_writes_agree_with_the_model};

/// A conversation in the model.
#[derive(Default)]
pub struct Conversation {
    pub messages: Vec<(chat::Message, u64)>,
    /// Version and sequence of what was erased.
    edits: Vec<(u64, u64)>,
    mentioned_everyone: u64,
    pub members: BTreeSet<String>,
    pub rows: BTreeMap<String, Row>,
    /// What the last group had that used the id.
    pub name: String,
    pub avatar: String,
    pub group: Option<Group>,
}

/// A group that was not removed.
#[derive(Clone, Default)]
pub struct Group {
    pub members_max: u32,
    pub owner: String,
    pub administrators: BTreeSet<String>,
    pub join_rule: u32,
    pub announcement: String,
    pub muted: bool,
    pub waiting: BTreeSet<String>,
}

impl Group {
    /// 0 member, 1 administrator, 2 owner.
    fn power(&self, user: &str) -> u8 {
        if self.owner == user { 2 } else { u8::from(self.administrators.contains(user)) }
    }

    /// The owner and the administrators are members, or none.
    fn forget(&mut self, user: &str) {
        self.administrators.remove(user);
        if self.owner == user {
            self.owner.clear();
        }
    }
}

/// A user's row in the model.
#[derive(Clone, Default, PartialEq)]
pub struct Row {
    init: u64,
    delivered: u64,
    read: u64,
    quit: Option<u64>,
    quit_reason: u32,
    do_not_disturb: bool,
    deleted: BTreeSet<u64>,
    mentioned: u64,
    pinned: bool,
    hidden: Option<u64>,
    pub muted_until: i64,
    /// The version of the last change other than a message.
    version: u64,
}

#[derive(Default)]
pub struct Model {
    pub version: u64,
    pub conversations: BTreeMap<String, Conversation>,
}

impl Model {
    /// Applies a write and says what a store must answer, in the words of [`told`].
    fn apply(&mut self, write: &Write) -> String {
        match write {
            Write::Append { sender_id, client_message_id, target, extras, sent_at_ms, .. } => {
                if let Some(again) = self.again(sender_id, client_message_id, 1) {
                    return again;
                }
                let quote = extras.as_ref().and_then(|extras| extras.quote.as_ref());
                let mut quoted = None;
                if let Some(quote) = quote {
                    let id = match target {
                        Target::User(user) => conversation_id::single(sender_id, user),
                        Target::Group(group) => conversation_id::group(group),
                    };
                    let (conversation, row) = match self.membership(sender_id, &id) {
                        Ok(found) => found,
                        Err(code) => return format!("refused {code}"),
                    };
                    let seen = conversation.visible(&row);
                    let found = seen.iter().find(|(message, _)| message.sequence == quote.sequence);
                    match found {
                        Some((message, _)) if message.state == STATE_NORMAL => {
                            quoted = Some(message.sender_id.clone());
                        }
                        _ => return format!("refused {}", Code::NotFound),
                    }
                }
                let id = match self.open(sender_id, target, *sent_at_ms) {
                    Ok(id) => id,
                    Err(code) => return format!("refused {code}"),
                };
                self.version += 1;
                let version = self.version;
                let conversation = self.conversations.get_mut(&id).unwrap();
                let sequence = conversation.messages.len() as u64 + 1;
                let conversation_type = if id.starts_with('s') { 1 } else { 2 };
                let mut message = as_stored(write, &id, conversation_type, sequence);
                if let (Some(quote), Some(sender_id)) = (&mut message.quote, quoted) {
                    (quote.conversation_id, quote.sender_id) = (id.clone(), sender_id);
                }
                if let Some(mentions) = &message.mentions {
                    if mentions.everyone {
                        conversation.mentioned_everyone = sequence;
                    }
                    for user in mentions.user_ids.iter() {
                        if conversation.members.contains(user) {
                            conversation.rows.get_mut(user).unwrap().mentioned = sequence;
                        }
                    }
                }
                conversation.messages.push((message, version));
                let members = conversation.members.len();
                format!("appended {id} {sequence} new {version} to {members}")
            }
            Write::Forward { sender_id, client_message_id, target, messages, sent_at_ms } => {
                if let Some(again) = self.again(sender_id, client_message_id, usize::MAX) {
                    return again.replace("appended", "forwarded");
                }
                let id = match self.open(sender_id, target, *sent_at_ms) {
                    Ok(id) => id,
                    Err(code) => return format!("refused {code}"),
                };
                let conversation = self.conversations.get_mut(&id).unwrap();
                let first = conversation.messages.len() + 1;
                for copied in messages {
                    self.version += 1;
                    let message = chat::Message {
                        conversation_id: id.clone(),
                        conversation_type: if id.starts_with('s') { 1 } else { 2 },
                        sequence: conversation.messages.len() as u64 + 1,
                        message_id: copied.message_id.to_string(),
                        client_message_id: client_message_id.clone(),
                        sender_id: sender_id.clone(),
                        r#type: copied.kind,
                        body: copied.body.clone(),
                        sent_at_ms: *sent_at_ms,
                        ..chat::Message::default()
                    };
                    conversation.messages.push((message, self.version));
                }
                let (last, members) = (conversation.messages.len(), conversation.members.len());
                let version = self.version;
                let all: Vec<String> = (first..=last).map(|n| n.to_string()).collect();
                format!("forwarded {id} {} new {version} to {members}", all.join(","))
            }
            Write::Revoke { actor, conversation_id, sequence, at_ms, limit_ms } => {
                let mut revoked_by = "";
                if let Actor::User(user) = actor {
                    let (conversation, row) = match self.membership(user, conversation_id) {
                        Ok(found) => found,
                        Err(code) => return format!("refused {code}"),
                    };
                    if row.quit.is_some() {
                        return format!("refused {}", Code::NotPermitted);
                    }
                    let seen = conversation.visible(&row);
                    let found = seen.iter().find(|(message, _)| message.sequence == *sequence);
                    let Some((message, _)) = found else {
                        return format!("refused {}", Code::NotFound);
                    };
                    let stored = &conversation.messages[*sequence as usize - 1].0;
                    if stored.system {
                        return format!("refused {}", Code::NotPermitted);
                    }
                    let any = conversation.group.as_ref().is_some_and(|group| {
                        let (power, of) = (group.power(user), group.power(&message.sender_id));
                        power > 0 && (message.sender_id == *user || power > of)
                    });
                    if message.sender_id != *user && !any {
                        let single = conversation_id.starts_with('s');
                        let code = if single { Code::NotPermitted } else { Code::RoleTooLow };
                        return format!("refused {code}");
                    }
                    let late = at_ms - message.sent_at_ms > *limit_ms as i64;
                    if !any && stored.state == STATE_NORMAL && (late || *limit_ms == 0) {
                        return format!("refused {}", Code::TooLate);
                    }
                    revoked_by = user;
                }
                self.erase(conversation_id, *sequence, STATE_REVOKED, revoked_by)
            }
            Write::Expire { conversation_id, sequence, at_ms } => {
                let conversation = self.conversations.get(conversation_id);
                let found =
                    conversation.and_then(|c| c.messages.get((*sequence).wrapping_sub(1) as usize));
                if let Some((message, _)) = found
                    && message.state == STATE_NORMAL
                    && (message.expires_at_ms == 0 || message.expires_at_ms > *at_ms)
                {
                    return format!("refused {}", Code::BadRequest);
                }
                self.erase(conversation_id, *sequence, STATE_EXPIRED, "")
            }
            Write::Delete { user_id, conversation_id, sequences } => {
                let next = self.version + 1;
                let (conversation, mut row) = match self.membership(user_id, conversation_id) {
                    Ok(found) => found,
                    Err(code) => return format!("refused {code}"),
                };
                let seen: BTreeSet<u64> = conversation
                    .visible(&row)
                    .iter()
                    .map(|(message, _)| message.sequence)
                    .collect();
                if !sequences.iter().all(|sequence| seen.contains(sequence)) {
                    return format!("refused {}", Code::NotFound);
                }
                let new: BTreeSet<u64> =
                    sequences.iter().copied().filter(|n| row.deleted.insert(*n)).collect();
                if !new.is_empty() {
                    row.version = next;
                }
                self.set(user_id, conversation_id, row, !new.is_empty());
                format!("deleted {new:?} at {}", self.version)
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
                self.apply(&Write::SetConversation {
                    user_id: user_id.clone(),
                    conversation_id: conversation_id.clone(),
                    do_not_disturb: Some(*do_not_disturb),
                    pinned: None,
                    hidden: None,
                })
            }
            Write::SetConversation { user_id, conversation_id, do_not_disturb, pinned, hidden } => {
                let next = self.version + 1;
                let (conversation, row) = match self.membership(user_id, conversation_id) {
                    Ok(found) => found,
                    Err(code) => return format!("refused {code}"),
                };
                let top = row.quit.unwrap_or(conversation.messages.len() as u64);
                let mut set = row.clone();
                set.do_not_disturb = do_not_disturb.unwrap_or(row.do_not_disturb);
                set.pinned = pinned.unwrap_or(row.pinned);
                set.hidden = hidden.map_or(row.hidden, |hidden| hidden.then_some(top));
                let changed = set != row;
                if changed {
                    set.version = next;
                }
                self.set(user_id, conversation_id, set, changed);
                format!("updated at {}", self.version)
            }
            Write::ChangeGroup(change) => self.act(change),
            Write::CreateGroup { group_id, members, members_max, name, avatar, .. } => {
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
                (conversation.name, conversation.avatar) = (name.clone(), avatar.clone());
                conversation.group = Some(Group { members_max: *members_max, ..Group::default() });
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
                    conversation.leave(user, version, 3);
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
                if !new.is_empty() && count > conversation.members_max() {
                    return format!("refused {}", Code::OverCapacity);
                }
                let new: BTreeSet<String> = new.into_iter().cloned().collect();
                for user in &new {
                    let muted = conversation.rows.get(user).map_or(0, |row| row.muted_until);
                    conversation.join(user, next);
                    conversation.rows.get_mut(user).unwrap().muted_until = muted;
                    conversation.group.as_mut().unwrap().waiting.remove(user);
                }
                self.version += u64::from(!new.is_empty());
                format!("added {} of {count} at {}", new.len(), self.version)
            }
            Write::RemoveMembers { group_id, user_ids } => {
                let next = self.version + 1;
                let Some(conversation) = self.group_of(group_id) else {
                    return format!("refused {}", Code::NotFound);
                };
                let gone: BTreeSet<String> = user_ids
                    .iter()
                    .filter(|id| conversation.members.contains(*id))
                    .cloned()
                    .collect();
                for user in &gone {
                    conversation.leave(user, next, 2);
                }
                let left = conversation.members.len();
                self.version += u64::from(!gone.is_empty());
                format!("removed {} leaving {left} at {}", gone.len(), self.version)
            }
        }
    }

    /// What is told of a client message id that is taken, with its last `count` sequences.
    fn again(&self, sender: &str, client_message_id: &str, count: usize) -> Option<String> {
        for conversation in self.conversations.values() {
            let stored: Vec<_> = conversation
                .messages
                .iter()
                .filter(|(m, _)| m.sender_id == sender && m.client_message_id == client_message_id)
                .collect();
            let Some((last, version)) = stored.last() else { continue };
            let skipped = stored.len().saturating_sub(count);
            let all: Vec<String> =
                stored[skipped..].iter().map(|(message, _)| message.sequence.to_string()).collect();
            let members = conversation.members.len();
            let id = &last.conversation_id;
            return Some(format!(
                "appended {id} {} duplicate {version} to {members}",
                all.join(",")
            ));
        }
        None
    }

    /// The conversation that this sender may send to at this moment, which a single chat's first
    /// message begins.
    fn open(&mut self, sender_id: &str, target: &Target, at_ms: i64) -> Result<String, Code> {
        let id = match target {
            Target::User(user) => {
                let id = conversation_id::single(sender_id, user);
                let version = self.version + 1;
                let conversation = self.conversations.entry(id.clone()).or_default();
                for user in [sender_id, user] {
                    conversation.members.insert(user.to_owned());
                    let row = Row { version, ..Row::default() };
                    conversation.rows.entry(user.to_owned()).or_insert(row);
                }
                id
            }
            Target::Group(group) => conversation_id::group(group),
        };
        let Some(conversation) = self.living(&id, target) else { return Err(Code::NotFound) };
        if !conversation.members.contains(sender_id) {
            return Err(Code::NotPermitted);
        }
        if let Some(group) = &conversation.group {
            let muted = conversation.rows[sender_id].muted_until > at_ms;
            if muted || group.muted && group.power(sender_id) == 0 {
                return Err(Code::Muted);
            }
        }
        Ok(id)
    }

    fn erase(&mut self, id: &str, sequence: u64, state: u32, revoked_by: &str) -> String {
        let next = self.version + 1;
        let Some(conversation) = self.conversations.get_mut(id) else {
            return format!("refused {}", Code::NotFound);
        };
        let index = sequence.wrapping_sub(1) as usize;
        let Some((message, _)) = conversation.messages.get_mut(index) else {
            return format!("refused {}", Code::NotFound);
        };
        let changed = message.state == STATE_NORMAL;
        if changed {
            message.revoked_by = revoked_by.to_owned();
            bury(message, state);
            conversation.edits.push((next, sequence));
            self.version = next;
        }
        let state = message.state;
        let rows = &conversation.rows;
        let there = |user: &&String| rows.get(*user).is_none_or(|row| row.init < sequence);
        let members = conversation.members.iter().filter(there).count();
        format!("erased {sequence} {state} changed {changed} at {} of {members}", self.version)
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
                .filter(|(message, _)| message.sequence > floor && message.state == STATE_NORMAL)
                .filter(|(message, _)| !message.does_not_count);
            let max_sequence = row.quit.unwrap_or(conversation.messages.len() as u64);
            let edited = conversation.edits.last().filter(|_| row.quit.is_none());
            let version = visible.last().map_or(0, |(_, version)| *version).max(row.version);
            let version = version.max(edited.map_or(0, |(version, _)| *version));
            let mentioned = row.mentioned.max(conversation.mentioned_everyone);
            let mentions = visible.iter().any(|(message, _)| {
                message.sequence == mentioned && mentioned > floor && message.state == STATE_NORMAL
            });
            let peer = match (conversation.members.len(), id.strip_prefix("g:")) {
                (_, Some(_)) => String::new(),
                (1, None) => user.to_owned(),
                _ => conversation.members.iter().find(|id| *id != user).unwrap().clone(),
            };
            let is_single = id.starts_with('s');
            let name = if is_single { peer.clone() } else { conversation.name.clone() };
            rows.push(chat::Conversation {
                conversation_id: id.clone(),
                r#type: if is_single { 1 } else { 2 },
                user_id: peer,
                name,
                avatar: match is_single {
                    true => String::new(),
                    false => conversation.avatar.clone(),
                },
                last_message: visible.last().map(|(message, _)| message.clone()),
                unread: unread.count() as u64,
                init_sequence: row.init,
                max_sequence,
                read_sequence: row.read,
                do_not_disturb: row.do_not_disturb,
                quit: row.quit.is_some(),
                version,
                quit_reason: row.quit_reason,
                mentioned_sequence: if mentions { mentioned } else { 0 },
                pinned: row.pinned,
                hidden: row.hidden.is_some_and(|hidden| hidden >= max_sequence),
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
    /// As this member sees them.
    fn visible(&self, row: &Row) -> Vec<(chat::Message, u64)> {
        let end = row.quit.unwrap_or(self.messages.len() as u64) as usize;
        let mut messages = self.messages[row.init as usize..end].to_vec();
        for (message, _) in &mut messages {
            if message.state == STATE_NORMAL && row.deleted.contains(&message.sequence) {
                bury(message, STATE_DELETED);
            }
        }
        messages
    }

    fn members_max(&self) -> usize {
        self.group.as_ref().map_or(0, |group| group.members_max as usize)
    }

    pub fn join(&mut self, user: &str, version: u64) {
        self.members.insert(user.to_owned());
        let now = self.messages.len() as u64;
        let row = Row { init: now, delivered: now, read: now, version, ..Row::default() };
        self.rows.insert(user.to_owned(), row);
    }

    pub fn leave(&mut self, user: &str, version: u64, reason: u32) {
        self.members.remove(user);
        if let Some(group) = &mut self.group {
            group.forget(user);
        }
        let now = self.messages.len() as u64;
        let row = self.rows.get_mut(user).unwrap();
        (row.quit, row.version, row.quit_reason) = (Some(now), version, reason);
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
        extras,
        ..
    } = write
    else {
        unreachable!("only messages are stored as messages")
    };
    let mut message = chat::Message {
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
        ..chat::Message::default()
    };
    if let Some(extras) = extras {
        extras.as_ref().clone().put_into(&mut message);
    }
    message
}
