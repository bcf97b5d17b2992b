//! What has to be fetched, and what writes will surely ask for: fetched in one go, nearly every
//! commit needs no second one.

use std::collections::BTreeSet;

use crate::storage::{
    Actor, Extras, Target, Write,
    conversation_id::{self, ConversationName},
    embedded::keys::{self, Table, UserRow},
    groups::{GroupAct, GroupChange},
    limits::*,
};

/// Rows that are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Single rows.
    pub rows: BTreeSet<(Table, Vec<u8>)>,
    /// The members of these conversations.
    pub members: BTreeSet<String>,
    /// Who waits to join these groups.
    pub waiting: BTreeSet<String>,
    /// Who joined these groups when a message was there.
    pub joined: BTreeSet<(String, u64)>,
    /// How many messages of a conversation counted before they were erased.
    pub erased: BTreeSet<(String, u64, u64)>,
    /// The rows of all members of these groups.
    pub rows_of_members: BTreeSet<String>,
}

impl Wanted {
    /// There is nothing to fetch.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Also what others want.
    pub fn rows_and_erased(&mut self, more: Self) {
        self.rows.extend(more.rows);
        self.erased.extend(more.erased);
    }

    /// A conversation's row.
    pub fn conversation(&mut self, conversation_id: &str) {
        self.rows.insert((Table::Conversations, keys::conversation(conversation_id)));
    }

    /// A message.
    pub fn message(&mut self, conversation_id: &str, sequence: u64) {
        self.rows.insert((Table::Messages, keys::message(conversation_id, sequence)));
    }

    /// A member's row.
    pub fn member(&mut self, user_id: &str, conversation_id: &str) {
        if is_user(user_id) {
            let key = keys::user(user_id, conversation_id, UserRow::Member);
            self.rows.insert((Table::Users, key));
        }
    }

    /// What a user has deleted in a conversation.
    pub fn deletions(&mut self, user_id: &str, conversation_id: &str) {
        self.rows.insert((Table::Edits, keys::deleted(user_id, conversation_id)));
    }

    /// A group's row.
    pub fn group(&mut self, group_id: &str) {
        self.rows.insert((Table::Groups, keys::group(group_id)));
    }

    fn request(&mut self, group_id: &str, user_id: &str) {
        if is_user(user_id) {
            self.rows.insert((Table::Groups, keys::join_request(group_id, user_id)));
        }
    }
}

fn is_user(user_id: &str) -> bool {
    (1..=USER_ID_BYTES_MAX).contains(&user_id.len())
}

fn is_group(group_id: &str) -> bool {
    (1..=GROUP_ID_BYTES_MAX).contains(&group_id.len())
}

/// Whom a commit changes, and what it reads.
#[derive(Debug, Default)]
pub struct Needs {
    /// Conversations whose rows are locked: everything that a commit changes, but for message ids,
    /// belongs to one of these.
    pub locks: BTreeSet<String>,
    pub wanted: Wanted,
}

impl Needs {
    /// What these writes need, as far as they tell.
    pub fn of<'a>(writes: impl Iterator<Item = &'a Write>) -> Self {
        let mut needs = Self::default();
        for write in writes {
            needs.add(write);
        }
        needs
    }

    fn add(&mut self, write: &Write) {
        match write {
            Write::Append { sender_id, client_message_id, target, extras, .. } => {
                self.send(sender_id, client_message_id, target, extras.as_deref());
            }
            Write::Forward { sender_id, client_message_id, target, messages, .. } => {
                self.send(sender_id, client_message_id, target, None);
                for extras in messages.iter().filter_map(|message| message.extras.as_deref()) {
                    self.send(sender_id, client_message_id, target, Some(extras));
                }
            }
            Write::Revoke { actor, conversation_id, sequence, .. } => {
                if self.conversation(conversation_id) {
                    if let Actor::User(user_id) = actor {
                        self.wanted.member(user_id, conversation_id);
                    }
                    self.erase(conversation_id, *sequence);
                }
            }
            Write::Expire { conversation_id, sequence, .. } => {
                if self.conversation(conversation_id) {
                    self.erase(conversation_id, *sequence);
                }
            }
            Write::Delete { user_id, conversation_id, sequences } => {
                if self.conversation(conversation_id) && is_user(user_id) {
                    self.wanted.member(user_id, conversation_id);
                    self.wanted.deletions(user_id, conversation_id);
                    for sequence in sequences.iter().take(DELETED_MESSAGES_MAX) {
                        self.wanted.message(conversation_id, *sequence);
                    }
                }
            }
            Write::MoveCursor { user_id, conversation_id, .. }
            | Write::SetDoNotDisturb { user_id, conversation_id, .. }
            | Write::SetConversation { user_id, conversation_id, .. } => {
                if self.conversation(conversation_id) {
                    self.wanted.member(user_id, conversation_id);
                }
            }
            Write::CreateGroup { group_id, .. } => drop(self.group(group_id)),
            Write::RemoveGroup { group_id } => self.dissolve(group_id),
            Write::AddMembers { group_id, user_ids }
            | Write::RemoveMembers { group_id, user_ids } => {
                self.users(group_id, user_ids);
            }
            Write::ChangeGroup(change) => self.change(change),
        }
    }

    fn send(
        &mut self,
        sender_id: &str,
        client_message_id: &str,
        target: &Target,
        extras: Option<&Extras>,
    ) {
        if !is_user(sender_id)
            || !(1..=CLIENT_MESSAGE_ID_BYTES_MAX).contains(&client_message_id.len())
        {
            return;
        }
        let key = keys::dedupe(sender_id, client_message_id);
        self.wanted.rows.insert((Table::Dedupe, key));
        let conversation_id = match target {
            Target::User(user_id) if is_user(user_id) => {
                conversation_id::single(sender_id, user_id)
            }
            Target::Group(group_id) if is_group(group_id) => conversation_id::group(group_id),
            _ => return,
        };
        self.conversation(&conversation_id);
        if let Target::Group(group_id) = target {
            self.wanted.member(sender_id, &conversation_id);
            self.wanted.group(group_id);
        }
        let Some(extras) = extras else { return };
        if let Some(quote) = &extras.quote {
            let quoted = match &quote.conversation_id[..] {
                "" => &conversation_id,
                other => other,
            };
            if ConversationName::parse(quoted).is_some() {
                self.wanted.conversation(quoted);
                self.wanted.member(sender_id, quoted);
                self.wanted.message(quoted, quote.sequence);
            }
        }
        if let Some(mentions) = &extras.mentions {
            for user_id in mentions.user_ids.iter().take(MENTIONED_USERS_MAX) {
                self.wanted.member(user_id, &conversation_id);
            }
        }
    }

    /// A conversation that may change. False if there cannot be such a one.
    fn conversation(&mut self, conversation_id: &str) -> bool {
        match ConversationName::parse(conversation_id) {
            Some(ConversationName::Single(..)) => {
                self.locks.insert(conversation_id.to_owned());
                true
            }
            Some(ConversationName::Group(_)) => {
                self.locks.insert(conversation_id.to_owned());
                self.wanted.members.insert(conversation_id.to_owned());
                true
            }
            None => false,
        }
    }

    fn erase(&mut self, conversation_id: &str, sequence: u64) {
        self.wanted.message(conversation_id, sequence);
        if let Some(ConversationName::Group(group_id)) = ConversationName::parse(conversation_id) {
            self.wanted.group(group_id);
            self.wanted.joined.insert((group_id.to_owned(), sequence));
        }
    }

    /// A group that may change, and its conversation; `None` if there cannot be such a one.
    fn group(&mut self, group_id: &str) -> Option<String> {
        let conversation_id = is_group(group_id).then(|| conversation_id::group(group_id))?;
        self.conversation(&conversation_id);
        self.wanted.group(group_id);
        Some(conversation_id)
    }

    fn users(&mut self, group_id: &str, user_ids: &[String]) {
        let Some(conversation_id) = self.group(group_id) else { return };
        for user_id in user_ids.iter().take(GROUP_MEMBERS_MAX_CEILING as usize) {
            self.wanted.member(user_id, &conversation_id);
            self.wanted.request(group_id, user_id);
        }
    }

    fn dissolve(&mut self, group_id: &str) {
        if self.group(group_id).is_some() {
            self.wanted.waiting.insert(group_id.to_owned());
            self.wanted.rows_of_members.insert(group_id.to_owned());
        }
    }

    fn change(&mut self, change: &GroupChange) {
        let GroupChange { group_id, actor, act, .. } = change;
        let Some(conversation_id) = self.group(group_id) else { return };
        if let Some(actor) = actor {
            self.wanted.member(actor, &conversation_id);
        }
        match act {
            GroupAct::Join { .. } => {
                self.wanted.waiting.insert(group_id.clone());
                let actor = actor.iter().cloned().collect::<Vec<_>>();
                self.users(group_id, &actor);
            }
            GroupAct::Invite { user_ids } => {
                self.wanted.waiting.insert(group_id.clone());
                self.users(group_id, user_ids);
            }
            GroupAct::Remove { user_ids } | GroupAct::MuteMembers { user_ids, .. } => {
                self.users(group_id, user_ids);
            }
            GroupAct::AnswerJoinRequest { user_id, .. } => {
                self.users(group_id, std::slice::from_ref(user_id));
            }
            GroupAct::Dissolve => self.dissolve(group_id),
            _ => {}
        }
    }
}
