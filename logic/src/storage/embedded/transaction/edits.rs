//! What a commit does to messages that are stored already: erases their content for everybody, or
//! hides them from one user.

use millrace_protocol::{Code, chat};

use super::{Conversation, Source, Stop, Transaction, check_id, refuse};
use crate::storage::{
    Actor, Extras, Outcome, StoreError,
    conversation_id::ConversationName,
    embedded::{
        edit_rows::{DeletedRow, EditRow, Mark, SequenceRow},
        keys::{self, Table, UserRow},
        rows::{MemberRow, MessageRow, PointerRow, Row as _},
    },
    extras::{STATE_DELETED, STATE_EXPIRED, STATE_NORMAL, STATE_REVOKED, bury},
    groups::Role,
    limits::*,
};

/// Which message, and what is known of it.
struct Found {
    conversation: Conversation,
    conversation_id: String,
    sequence: u64,
    row: MessageRow,
}

impl<S: Source> Transaction<'_, S> {
    pub(super) fn revoke(
        &mut self,
        actor: &Actor,
        conversation_id: String,
        sequence: u64,
        at_ms: i64,
        limit_ms: u64,
    ) -> Result<Outcome, Stop> {
        let Found { conversation, conversation_id, sequence, row } = match actor {
            Actor::Service => self.find(conversation_id, sequence)?,
            Actor::User(user_id) => {
                let (_, member) = self.membership(user_id, &conversation_id)?;
                if member.quit_sequence.is_some() {
                    return refuse(Code::NotPermitted, "The user is no member any more.");
                }
                if sequence <= member.init_sequence {
                    return refuse(Code::NotFound, NO_MESSAGE);
                }
                self.find(conversation_id, sequence)?
            }
        };
        // It says what has happened, in the name of whoever did it; nobody can make it undone.
        if matches!(actor, Actor::User(_)) && row.extras.as_ref().is_some_and(|more| more.system) {
            return refuse(Code::NotPermitted, "What the server itself has said stays.");
        }
        if let Actor::User(user_id) = actor
            && !self.may_revoke_any(user_id, &conversation_id, &row.sender_id)?
        {
            if row.sender_id != *user_id {
                return match ConversationName::parse(&conversation_id) {
                    Some(ConversationName::Group(_)) => refuse(
                        Code::RoleTooLow,
                        "Only the sender, an owner or an administrator may revoke this message.",
                    ),
                    _ => refuse(Code::NotPermitted, "Only the sender may revoke a message."),
                };
            }
            let age_ms = at_ms.saturating_sub(row.sent_at_ms).max(0) as u64;
            // Who repeats a revocation that was in time, because its answer was lost, is not late.
            if row.state == STATE_NORMAL && (limit_ms == 0 || age_ms > limit_ms) {
                return refuse(Code::TooLate, "The time in which it could be revoked is over.");
            }
        }
        let revoked_by = match actor {
            Actor::User(user_id) => user_id.clone(),
            Actor::Service => String::new(),
        };
        let found = Found { conversation, conversation_id, sequence, row };
        Ok(self.erase(found, STATE_REVOKED, revoked_by)?)
    }

    pub(super) fn expire(
        &mut self,
        conversation_id: String,
        sequence: u64,
        at_ms: i64,
    ) -> Result<Outcome, Stop> {
        let found = self.find(conversation_id, sequence)?;
        if !(1..=at_ms).contains(&found.row.expires_at_ms()) && found.row.state == STATE_NORMAL {
            return refuse(Code::BadRequest, "The time of this message is not over.");
        }
        Ok(self.erase(found, STATE_EXPIRED, String::new())?)
    }

    pub(super) fn delete(
        &mut self,
        user_id: &str,
        conversation_id: &str,
        mut sequences: Vec<u64>,
    ) -> Result<Outcome, Stop> {
        if !(1..=DELETED_MESSAGES_MAX).contains(&sequences.len()) {
            return refuse(Code::BadRequest, "1 to 100 sequences can be deleted at once");
        }
        let (conversation, mut member) = self.membership(user_id, conversation_id)?;
        let top = member.quit_sequence.unwrap_or(conversation.row.max_sequence);
        sequences.sort_unstable();
        if sequences.iter().any(|sequence| !(member.init_sequence + 1..=top).contains(sequence)) {
            return refuse(Code::NotFound, "A message of these is not there.");
        }
        let key = keys::deleted(user_id, conversation_id);
        // Whoever came back as a new member begins anew.
        let mut deleted: DeletedRow = match member.has_deleted {
            true => self.get(Table::Edits, &key)?.unwrap_or_default(),
            false => DeletedRow::default(),
        };
        sequences.retain(|sequence| deleted.insert(*sequence));
        if deleted.ranges().len() > DELETED_RANGES_MAX && !sequences.is_empty() {
            return refuse(
                Code::OverCapacity,
                "Too many single messages of this conversation are deleted already.",
            );
        }
        let mut messages = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let mut message = self.stored(conversation_id, sequence)?;
            if message.state == STATE_NORMAL {
                bury(&mut message, STATE_DELETED);
            }
            messages.push(message);
        }
        if !messages.is_empty() {
            self.version += 1;
            member.version = self.version;
            member.has_deleted = true;
            self.put_member(user_id, conversation_id, member);
            self.put(Table::Edits, key, &deleted);
        }
        Ok(Outcome::Deleted { user_id: user_id.to_owned(), messages, version: self.version })
    }

    /// Whether this member may revoke what this sender (which may be the member) has said, at any
    /// time: the owner and the administrators of a group, their own and what those below them said.
    fn may_revoke_any(
        &mut self,
        user_id: &str,
        conversation_id: &str,
        sender_id: &str,
    ) -> Result<bool, StoreError> {
        let Some(ConversationName::Group(group_id)) = ConversationName::parse(conversation_id)
        else {
            return Ok(false);
        };
        let role = self.role(group_id, user_id)?;
        // Who has left the group is below both.
        Ok(role >= Role::Administrator
            && (user_id == sender_id || role > self.role(group_id, sender_id)?))
    }

    /// Who said what is quoted, if the user sees it.
    pub(super) fn quoted(
        &mut self,
        user_id: &str,
        conversation_id: &str,
        sequence: u64,
        at_ms: i64,
    ) -> Result<String, Stop> {
        let (conversation, member) = self.membership(user_id, conversation_id)?;
        let top = member.quit_sequence.unwrap_or(conversation.row.max_sequence);
        if !(member.init_sequence + 1..=top).contains(&sequence) {
            return refuse(Code::NotFound, "The quoted message is not there.");
        }
        let row = self.find(conversation_id.to_owned(), sequence)?.row;
        let is_over = (1..=at_ms).contains(&row.expires_at_ms());
        if row.state != STATE_NORMAL
            || is_over
            || self.has_deleted(user_id, conversation_id, &member, sequence)?
        {
            return refuse(
                Code::NotFound,
                "The quoted message was revoked or deleted, or is over.",
            );
        }
        Ok(row.sender_id)
    }

    fn has_deleted(
        &self,
        user_id: &str,
        conversation_id: &str,
        member: &MemberRow,
        sequence: u64,
    ) -> Result<bool, StoreError> {
        if !member.has_deleted {
            return Ok(false);
        }
        let row: Option<DeletedRow> =
            self.get(Table::Edits, &keys::deleted(user_id, conversation_id))?;
        Ok(row.is_some_and(|row| row.contains(sequence)))
    }

    fn find(&mut self, conversation_id: String, sequence: u64) -> Result<Found, Stop> {
        if ConversationName::parse(&conversation_id).is_none() {
            return refuse(Code::NotFound, "There is no such conversation.");
        }
        let Some(conversation) = self.conversation(&conversation_id)? else {
            return refuse(Code::NotFound, "There is no such conversation.");
        };
        match self.get(Table::Messages, &keys::message(&conversation_id, sequence))? {
            Some(row) => Ok(Found { conversation, conversation_id, sequence, row }),
            None => refuse(Code::NotFound, NO_MESSAGE),
        }
    }

    /// A message that must be there.
    pub(super) fn stored(
        &self,
        conversation_id: &str,
        sequence: u64,
    ) -> Result<chat::Message, StoreError> {
        let row: Option<MessageRow> =
            self.get(Table::Messages, &keys::message(conversation_id, sequence))?;
        let name = ConversationName::parse(conversation_id);
        let (Some(row), Some(name)) = (row, name) else {
            if self.tables.is_incomplete() {
                return Ok(chat::Message::default());
            }
            return Err(StoreError::Corrupt(format!(
                "message {sequence} of {conversation_id} is known but not there"
            )));
        };
        Ok(row.into_message(conversation_id, name.conversation_type(), sequence))
    }

    /// Takes the content out of a message, unless it is gone already.
    fn erase(
        &mut self,
        found: Found,
        state: u32,
        revoked_by: String,
    ) -> Result<Outcome, StoreError> {
        let Found { mut conversation, conversation_id, sequence, mut row } = found;
        let recipients = match ConversationName::parse(&conversation_id) {
            _ if conversation.row.removed => [].into(),
            Some(ConversationName::Group(group_id)) => {
                self.members_who_see(group_id, &conversation.members, sequence)?
            }
            _ => conversation.members.clone(),
        };
        let changed = row.state == STATE_NORMAL;
        if changed {
            self.version += 1;
            let version = self.version;
            if row.expires_at_ms() > 0 {
                let key = keys::expiry(row.expires_at_ms(), &conversation_id, sequence);
                self.changes.remove(Table::Edits, key);
            }
            row.state = state;
            row.body = String::new();
            row.attachment = None;
            row.extras = Extras { revoked_by, ..Extras::default() }.boxed();
            self.put(Table::Messages, keys::message(&conversation_id, sequence), &row);
            let edit = EditRow { version, counted: !row.does_not_count };
            self.put(Table::Edits, keys::erased(&conversation_id, sequence), &edit);
            let key = keys::change(&conversation_id, version);
            self.put(Table::Edits, key, &SequenceRow { sequence });
            conversation.row.has_edits = true;
            conversation.row.message_version = version;
            if !conversation.row.by_cursor {
                let max_sequence = conversation.row.max_sequence;
                let pointer = PointerRow { max_sequence, version }.encode();
                for user_id in conversation.members.iter() {
                    let key = keys::user(user_id, &conversation_id, UserRow::Pointer);
                    self.changes.put(Table::Users, key, pointer.clone());
                }
            }
            self.put_conversation(&conversation_id, conversation);
        }
        Ok(Outcome::Erased {
            message: self.stored(&conversation_id, sequence)?,
            changed,
            version: self.version,
            recipients,
        })
    }

    /// Remembers when a message's content is to be erased.
    pub(super) fn remember_expiry(
        &mut self,
        conversation_id: &str,
        sequence: u64,
        expires_at_ms: i64,
    ) {
        if expires_at_ms > 0 {
            let key = keys::expiry(expires_at_ms, conversation_id, sequence);
            self.put(Table::Edits, key, &Mark);
        }
    }

    /// Checks what a message carries beside its text, and fills in who is quoted.
    pub(super) fn check_extras(
        &mut self,
        sender_id: &str,
        conversation_id: &str,
        extras: &mut Extras,
        at_ms: i64,
    ) -> Result<(), Stop> {
        if let Some(mentions) = &extras.mentions {
            if mentions.user_ids.len() > MENTIONED_USERS_MAX {
                return refuse(Code::BadRequest, "A message mentions at most 100 users by name.");
            }
            for user_id in &mentions.user_ids {
                check_id(user_id, USER_ID_BYTES_MAX, "A mentioned user id is empty or too long.")?;
            }
        }
        if let Some(quote) = &mut extras.quote {
            if quote.conversation_id.is_empty() {
                quote.conversation_id = conversation_id.to_owned();
            }
            quote.sender_id =
                self.quoted(sender_id, &quote.conversation_id, quote.sequence, at_ms)?;
        }
        Ok(())
    }
}

const NO_MESSAGE: &str = "There is no such message.";
