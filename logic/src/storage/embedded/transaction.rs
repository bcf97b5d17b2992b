//! One commit in the making: applies writes in order to what is stored, seen through what the same
//! commit has changed already. It decides sequences, duplicates, membership and cursors.
//!
//! It writes nothing. The writer thread is the only one that changes the store, so what this reads
//! stays true until its changes are committed; a transaction that fails is simply dropped.
//!
//! Invariant: a write that is refused has changed nothing, so every check comes before the first
//! change.

use std::{collections::HashMap, sync::Arc};

use millrace_protocol::{Code, chat};

use super::{
    database::{Changes, Tables},
    encoding::DecodeError,
    group_rows::GroupRow,
    keys::{self, Table, UserRow},
    rows::{ConversationRow, DedupeRow, MemberRow, MessageRow, PointerRow, Row},
};
use crate::cache::Cache;
use crate::planted_faults::{Fault, is_planted};
use crate::storage::{
    Copied, Members, Outcome, StoreError, Target, Write,
    conversation_id::{self, ConversationName},
    limits::*,
};
use stop::{Refusal, Stop, check_id, check_ids, check_sender, refuse};

mod edits;
mod group_acts;
mod group_notices;
mod groups;
mod source;
mod stop;

pub use source::Source;

/// A conversation as the writer knows it.
#[derive(Clone)]
pub struct Conversation {
    pub row: ConversationRow,
    /// In byte order.
    pub members: Members,
}

/// What the writer remembers between commits.
pub struct Caches {
    pub conversations: Cache<String, Conversation>,
    /// By key in [`Table::Users`].
    pub members: Cache<Vec<u8>, MemberRow>,
}

/// The changes of one commit.
pub struct Transaction<'a, S = Tables> {
    tables: &'a S,
    caches: &'a mut Caches,
    fan_out_members_max: usize,
    version: u64,
    /// But for the rows of conversations and members, which come last.
    changes: Changes,
    conversations: HashMap<String, Conversation>,
    members: HashMap<Vec<u8>, MemberRow>,
}

/// What a commit changes in memory once it is durable.
pub struct Applied {
    pub conversations: HashMap<String, Conversation>,
    pub members: HashMap<Vec<u8>, MemberRow>,
}

impl<'a, S: Source> Transaction<'a, S> {
    /// Begins behind the commit of `version`.
    pub fn new(
        tables: &'a S,
        caches: &'a mut Caches,
        fan_out_members_max: usize,
        version: u64,
    ) -> Self {
        Self {
            tables,
            caches,
            fan_out_members_max,
            version,
            changes: Changes::default(),
            conversations: HashMap::new(),
            members: HashMap::new(),
        }
    }

    /// Applies one write.
    pub fn apply(&mut self, write: Write) -> Result<Outcome, StoreError> {
        let result = match write {
            Write::Append {
                message_id,
                sender_id,
                client_message_id,
                target,
                kind,
                body,
                attachment,
                does_not_count,
                sent_at_ms,
                extras,
            } => {
                let message = MessageRow {
                    version: 0,
                    counting: 0,
                    message_id,
                    sender_id,
                    client_message_id,
                    kind,
                    body,
                    attachment,
                    sent_at_ms,
                    state: 0,
                    does_not_count,
                    extras,
                };
                self.append(message, &target)
            }
            Write::Forward { sender_id, client_message_id, target, messages, sent_at_ms } => {
                self.forward(&sender_id, &client_message_id, &target, messages, sent_at_ms)
            }
            Write::Revoke { actor, conversation_id, sequence, at_ms, limit_ms } => {
                self.revoke(&actor, conversation_id, sequence, at_ms, limit_ms)
            }
            Write::Delete { user_id, conversation_id, sequences } => {
                self.delete(&user_id, &conversation_id, sequences)
            }
            Write::Expire { conversation_id, sequence, at_ms } => {
                self.expire(conversation_id, sequence, at_ms)
            }
            Write::MoveCursor { user_id, conversation_id, delivered, read } => {
                self.move_cursor(user_id, conversation_id, delivered, read)
            }
            Write::CreateGroup { group_id, name, avatar, members, members_max, created_at_ms } => {
                let members_max =
                    if members_max == 0 { GROUP_MEMBERS_MAX_DEFAULT } else { members_max };
                let group =
                    GroupRow { name, avatar, members_max, created_at_ms, ..GroupRow::default() };
                self.create_group(group_id, group, members)
            }
            Write::RemoveGroup { group_id } => self.remove_group(&group_id),
            Write::AddMembers { group_id, user_ids } => self.add_members(&group_id, user_ids),
            Write::RemoveMembers { group_id, user_ids } => self.remove_members(&group_id, user_ids),
            Write::SetDoNotDisturb { user_id, conversation_id, do_not_disturb } => {
                let on = Some(do_not_disturb);
                self.set_conversation(&user_id, &conversation_id, on, None, None)
            }
            Write::SetConversation { user_id, conversation_id, do_not_disturb, pinned, hidden } => {
                self.set_conversation(&user_id, &conversation_id, do_not_disturb, pinned, hidden)
            }
            Write::ChangeGroup(change) => self.change_group(*change),
        };
        match result {
            Ok(outcome) => Ok(outcome),
            Err(Stop::Refused(Refusal(code, reason))) => {
                Ok(Outcome::Refused { code, reason: reason.to_owned() })
            }
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    /// The version after the writes so far; the one it began with when nothing changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What to write, and what to remember once that is durable.
    pub fn finish(mut self) -> (Changes, Applied) {
        // A busy conversation is changed many times in a commit, and written once.
        for (conversation_id, conversation) in &self.conversations {
            let key = keys::conversation(conversation_id);
            self.changes.put(Table::Conversations, key, conversation.row.encode());
        }
        for (key, row) in &self.members {
            self.changes.put(Table::Users, key.clone(), row.encode());
        }
        (self.changes, Applied { conversations: self.conversations, members: self.members })
    }

    // --- messages -------------------------------------------------------------------------------

    fn append(&mut self, message: MessageRow, target: &Target) -> Result<Outcome, Stop> {
        check_sender(&message.sender_id, &message.client_message_id)?;
        let dedupe_key = keys::dedupe(&message.sender_id, &message.client_message_id);
        if let Some(stored) = self.get::<DedupeRow>(Table::Dedupe, &dedupe_key)?
            && !is_planted(Fault::Dedupe)
        {
            let (mut messages, version, recipients) = self.duplicate(&stored)?;
            let last = messages.pop();
            let message = last.ok_or_else(|| StoreError::Corrupt("no message".into()))?;
            return Ok(Outcome::Appended {
                message,
                duplicate: true,
                version,
                follows: 0,
                recipients,
            });
        }
        let mut message = message;
        self.check(&mut message, target)?;
        let (conversation_id, mut conversation) =
            self.open(&message.sender_id, target, message.sent_at_ms)?;
        let follows = conversation.row.message_version;
        let message = self.store(&conversation_id, &mut conversation, message)?;
        let dedupe = DedupeRow {
            conversation_id: conversation_id.clone(),
            sequence: message.sequence,
            count: 1,
        };
        self.put(Table::Dedupe, dedupe_key, &dedupe);
        let recipients = conversation.members.clone();
        self.put_conversation(&conversation_id, conversation);
        let version = self.version;
        Ok(Outcome::Appended { message, duplicate: false, version, follows, recipients })
    }

    fn forward(
        &mut self,
        sender_id: &str,
        client_message_id: &str,
        target: &Target,
        copied: Vec<Copied>,
        sent_at_ms: i64,
    ) -> Result<Outcome, Stop> {
        check_sender(sender_id, client_message_id)?;
        let dedupe_key = keys::dedupe(sender_id, client_message_id);
        if let Some(stored) = self.get::<DedupeRow>(Table::Dedupe, &dedupe_key)? {
            let (messages, version, recipients) = self.duplicate(&stored)?;
            return Ok(Outcome::Forwarded {
                messages,
                duplicate: true,
                version,
                follows: 0,
                recipients,
            });
        }
        if !(1..=FORWARDED_MESSAGES_MAX).contains(&copied.len()) {
            return refuse(Code::BadRequest, "1 to 100 messages can be forwarded at once");
        }
        let mut rows = Vec::with_capacity(copied.len());
        for Copied { message_id, kind, body, attachment, extras } in copied {
            let mut row = MessageRow {
                version: 0,
                counting: 0,
                message_id,
                sender_id: sender_id.to_owned(),
                client_message_id: client_message_id.to_owned(),
                kind,
                body,
                attachment,
                sent_at_ms,
                state: 0,
                does_not_count: false,
                extras,
            };
            self.check(&mut row, target)?;
            rows.push(row);
        }
        let (conversation_id, mut conversation) = self.open(sender_id, target, sent_at_ms)?;
        let follows = conversation.row.message_version;
        let mut messages = Vec::with_capacity(rows.len());
        for row in rows {
            messages.push(self.store(&conversation_id, &mut conversation, row)?);
        }
        let dedupe = DedupeRow {
            conversation_id: conversation_id.clone(),
            sequence: conversation.row.max_sequence,
            count: messages.len() as u32,
        };
        self.put(Table::Dedupe, dedupe_key, &dedupe);
        let recipients = conversation.members.clone();
        self.put_conversation(&conversation_id, conversation);
        let version = self.version;
        Ok(Outcome::Forwarded { messages, duplicate: false, version, follows, recipients })
    }

    /// Whether a message may be stored as it is; fills in what only the store knows.
    fn check(&mut self, message: &mut MessageRow, target: &Target) -> Result<(), Stop> {
        if message.body.len() > BODY_BYTES_MAX {
            return refuse(Code::TooLarge, "The body is too large.");
        }
        if let Some(attachment) = &message.attachment {
            let chat::Attachment { attachment_id, r#type, name, url, size: _ } = attachment;
            if [attachment_id, r#type, name, url].iter().any(|text| text.len() > TEXT_BYTES_MAX) {
                return refuse(Code::BadRequest, "A text of the attachment is too long.");
            }
        }
        if let Some(extras) = &mut message.extras {
            let conversation_id = match target {
                Target::User(user_id) => conversation_id::single(&message.sender_id, user_id),
                Target::Group(group_id) => conversation_id::group(group_id),
            };
            self.check_extras(&message.sender_id, &conversation_id, extras, message.sent_at_ms)?;
        }
        Ok(())
    }

    /// The conversation that this sender may send to at this moment.
    fn open(
        &mut self,
        sender_id: &str,
        target: &Target,
        at_ms: i64,
    ) -> Result<(String, Conversation), Stop> {
        match target {
            Target::User(user_id) => {
                check_id(user_id, USER_ID_BYTES_MAX, "user_id is empty or too long.")?;
                self.single(sender_id, user_id)
            }
            Target::Group(group_id) => {
                check_id(group_id, GROUP_ID_BYTES_MAX, "group_id is empty or too long.")?;
                let conversation_id = conversation_id::group(group_id);
                let conversation = self.living_group(&conversation_id)?;
                if !is_member(&conversation.members, sender_id) {
                    return refuse(Code::NotPermitted, "Only members send to a group.");
                }
                let own = self.member_or_default(sender_id, &conversation_id)?;
                self.may_speak(group_id, &conversation, &own, sender_id, at_ms)?;
                Ok((conversation_id, conversation))
            }
        }
    }

    /// Stores one message as the newest of its conversation.
    fn store(
        &mut self,
        conversation_id: &str,
        conversation: &mut Conversation,
        mut message: MessageRow,
    ) -> Result<chat::Message, StoreError> {
        self.version += 1;
        let row = &mut conversation.row;
        if is_planted(Fault::Counter) && message.message_id.as_u128().is_multiple_of(16) {
            row.max_sequence += 1;
        }
        row.max_sequence += 1;
        row.counting += u64::from(!message.does_not_count);
        row.message_version = self.version;
        let sequence = row.max_sequence;
        message.version = self.version;
        message.counting = row.counting;
        let conversation_type = if conversation_id.starts_with("s:") {
            for (place, member) in [0, conversation.members.len() - 1].into_iter().zip([0, 1]) {
                if *conversation.members[place] == *message.sender_id {
                    row.sent[member] = sequence;
                }
            }
            conversation_id::CONVERSATION_TYPE_SINGLE
        } else {
            let mut own = self.member_or_default(&message.sender_id, conversation_id)?;
            own.own_last_sent = sequence;
            self.put_member(&message.sender_id, conversation_id, own);
            conversation_id::CONVERSATION_TYPE_GROUP
        };
        if let Some(extras) = &message.extras {
            self.remember_expiry(conversation_id, sequence, extras.expires_at_ms);
            if let Some(mentions) = &extras.mentions {
                if mentions.everyone {
                    conversation.row.mentioned_everyone = sequence;
                }
                for user_id in &mentions.user_ids {
                    if is_member(&conversation.members, user_id) {
                        let mut row = self.member_or_default(user_id, conversation_id)?;
                        row.mentioned = sequence;
                        self.put_member(user_id, conversation_id, row);
                    }
                }
            }
        }
        if !conversation.row.by_cursor {
            let pointer = PointerRow { max_sequence: sequence, version: self.version }.encode();
            for user_id in conversation.members.iter() {
                let key = keys::user(user_id, conversation_id, UserRow::Pointer);
                self.changes.put(Table::Users, key, pointer.clone());
            }
        }
        self.put(Table::Messages, keys::message(conversation_id, sequence), &message);
        Ok(message.into_message(conversation_id, conversation_type, sequence))
    }

    /// The messages of a client message id that was stored before, the version of the last, and the
    /// members.
    fn duplicate(
        &mut self,
        stored: &DedupeRow,
    ) -> Result<(Vec<chat::Message>, u64, Members), StoreError> {
        let DedupeRow { conversation_id, sequence, count } = stored;
        let first = (sequence + 1).saturating_sub(u64::from(*count));
        let messages = (first..=*sequence)
            .map(|sequence| self.stored(conversation_id, sequence))
            .collect::<Result<_, _>>()?;
        let last: Option<MessageRow> =
            self.get(Table::Messages, &keys::message(conversation_id, *sequence))?;
        let (Some(last), Some(conversation)) = (last, self.conversation(conversation_id)?) else {
            return Err(StoreError::Corrupt(format!("{conversation_id} is known but not there")));
        };
        Ok((messages, last.version, conversation.members))
    }

    /// The single chat of two users, which its first message begins.
    fn single(&mut self, sender_id: &str, user_id: &str) -> Result<(String, Conversation), Stop> {
        let conversation_id = conversation_id::single(sender_id, user_id);
        if let Some(conversation) = self.conversation(&conversation_id)? {
            return Ok((conversation_id, conversation));
        }
        let members = single_members(sender_id, user_id);
        for user_id in members.iter() {
            // The version is that of the message, which is about to be stored.
            let version = self.version + 1;
            let row = MemberRow { version, by_cursor: true, ..MemberRow::default() };
            self.put_member(user_id, &conversation_id, row);
        }
        // A pointer for each of the two would be half of what a message writes, and tell them only
        // what the conversation's own row says as well.
        let row = ConversationRow { by_cursor: true, ..ConversationRow::default() };
        Ok((conversation_id, Conversation { row, members }))
    }

    // --- a member's own row -----------------------------------------------------------------------

    fn move_cursor(
        &mut self,
        user_id: String,
        conversation_id: String,
        delivered: u64,
        read: u64,
    ) -> Result<Outcome, Stop> {
        let (conversation, mut row) = self.membership(&user_id, &conversation_id)?;
        let top = row.quit_sequence.unwrap_or(conversation.row.max_sequence);
        let read = row.read.max(read.min(top));
        let delivered = row.delivered.max(delivered.min(top)).max(read);
        let changed = (row.delivered, row.read) != (delivered, read);
        let members = match row.quit_sequence {
            Some(_) => [Arc::from(&user_id[..])].into(),
            None => conversation.members,
        };
        if changed {
            self.version += 1;
            if row.read != read {
                row.version = self.version;
            }
            (row.delivered, row.read) = (delivered, read);
            self.put_member(&user_id, &conversation_id, row);
        }
        let conversation_type =
            ConversationName::parse(&conversation_id).map_or(0, |name| name.conversation_type());
        Ok(Outcome::CursorMoved {
            conversation_id,
            conversation_type,
            user_id,
            delivered,
            read,
            changed,
            members,
            version: self.version,
        })
    }

    fn set_conversation(
        &mut self,
        user_id: &str,
        conversation_id: &str,
        do_not_disturb: Option<bool>,
        pinned: Option<bool>,
        hidden: Option<bool>,
    ) -> Result<Outcome, Stop> {
        let (conversation, row) = self.membership(user_id, conversation_id)?;
        let top = row.quit_sequence.unwrap_or(conversation.row.max_sequence);
        let mut set = row.clone();
        set.do_not_disturb = do_not_disturb.unwrap_or(row.do_not_disturb);
        set.pinned = pinned.unwrap_or(row.pinned);
        if let Some(hidden) = hidden {
            set.hidden_sequence = hidden.then_some(top);
        }
        if set != row {
            self.version += 1;
            set.version = self.version;
            self.put_member(user_id, conversation_id, set);
        }
        Ok(Outcome::Updated { version: self.version })
    }

    /// A conversation and the row of somebody who is or was in it.
    fn membership(
        &mut self,
        user_id: &str,
        conversation_id: &str,
    ) -> Result<(Conversation, MemberRow), Stop> {
        check_id(user_id, USER_ID_BYTES_MAX, "The user id is empty or too long.")?;
        if ConversationName::parse(conversation_id).is_none() {
            return refuse(Code::NotFound, "There is no such conversation.");
        }
        let Some(conversation) = self.conversation(conversation_id)? else {
            return refuse(Code::NotFound, "There is no such conversation.");
        };
        match self.member(user_id, conversation_id)? {
            Some(row) => Ok((conversation, row)),
            None => refuse(Code::NotPermitted, "The user is not a member of this conversation."),
        }
    }

    // --- rows, seen through this commit ---------------------------------------------------------

    fn get<R: Row>(&self, table: Table, key: &[u8]) -> Result<Option<R>, StoreError> {
        match self.changes.get(table, key) {
            Some(Some(value)) => super::database::decode(table, value).map(Some),
            Some(None) => Ok(None),
            None => self.tables.get(table, key),
        }
    }

    fn put<R: Row>(&mut self, table: Table, key: Vec<u8>, row: &R) {
        self.changes.put(table, key, row.encode());
    }

    fn conversation(&mut self, conversation_id: &str) -> Result<Option<Conversation>, StoreError> {
        if let Some(conversation) = self.conversations.get(conversation_id) {
            return Ok(Some(conversation.clone()));
        }
        if let Some(conversation) = self.caches.conversations.get(conversation_id) {
            return Ok(Some(conversation.clone()));
        }
        let key = keys::conversation(conversation_id);
        let Some(row) = self.tables.get::<ConversationRow>(Table::Conversations, &key)? else {
            return Ok(None);
        };
        let members = self.tables.members(conversation_id)?;
        let conversation = Conversation { row, members };
        self.caches.conversations.insert(conversation_id.to_owned(), conversation.clone());
        Ok(Some(conversation))
    }

    fn put_conversation(&mut self, conversation_id: &str, conversation: Conversation) {
        self.conversations.insert(conversation_id.to_owned(), conversation);
    }

    fn member(
        &mut self,
        user_id: &str,
        conversation_id: &str,
    ) -> Result<Option<MemberRow>, StoreError> {
        let key = keys::user(user_id, conversation_id, UserRow::Member);
        if let Some(row) = self.members.get(&key) {
            return Ok(Some(row.clone()));
        }
        if let Some(row) = self.caches.members.get(&key) {
            return Ok(Some(row.clone()));
        }
        let row: Option<MemberRow> = self.tables.get(Table::Users, &key)?;
        if let Some(row) = &row {
            self.caches.members.insert(key, row.clone());
        }
        Ok(row)
    }

    /// The row of somebody who is a member, so that it must be there.
    fn member_or_default(
        &mut self,
        user_id: &str,
        conversation_id: &str,
    ) -> Result<MemberRow, StoreError> {
        match self.member(user_id, conversation_id)? {
            Some(row) => Ok(row),
            // What comes out is dropped, and what is missing is known the sooner.
            None if self.tables.is_incomplete() => Ok(MemberRow::default()),
            None => {
                Err(StoreError::Corrupt(format!("a member of {conversation_id} has no row there")))
            }
        }
    }

    fn put_member(&mut self, user_id: &str, conversation_id: &str, row: MemberRow) {
        let key = keys::user(user_id, conversation_id, UserRow::Member);
        self.members.insert(key, row);
    }
}

/// The members of a conversation that exists: named by a single chat's id, listed for a group.
pub fn stored_members(tables: &Tables, conversation_id: &str) -> Result<Members, StoreError> {
    match ConversationName::parse(conversation_id) {
        Some(ConversationName::Single(first, second)) => Ok(single_members(first, second)),
        Some(ConversationName::Group(group_id)) => {
            let prefix = keys::group_members_prefix(group_id);
            let mut members: Vec<Arc<str>> = vec![];
            tables.view().prefix(Table::Groups, &prefix, |key, _| {
                let user_id = std::str::from_utf8(&key[prefix.len()..])
                    .map_err(|_| super::database::corrupt(Table::Groups, DecodeError::Text))?;
                members.push(user_id.into());
                Ok(())
            })?;
            Ok(members.into())
        }
        None => Ok([].into()),
    }
}

/// Both users in byte order, or the one of a note to oneself.
pub fn single_members(one: &str, other: &str) -> Members {
    match one.cmp(other) {
        std::cmp::Ordering::Less => [one.into(), other.into()].into(),
        std::cmp::Ordering::Equal => [one.into()].into(),
        std::cmp::Ordering::Greater => [other.into(), one.into()].into(),
    }
}

fn is_member(members: &Members, user_id: &str) -> bool {
    members.binary_search_by(|member| (**member).cmp(user_id)).is_ok()
}
