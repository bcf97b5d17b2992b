//! What became of the changes of a commit.

use millrace_protocol::{Code, chat};

use super::{Members, groups::GroupChanged};

/// What became of a [`Write`](super::Write).
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Of [`Write::Append`](super::Write::Append).
    Appended {
        /// As stored; of a duplicate, the one stored first.
        message: chat::Message,
        /// It was stored before this write.
        duplicate: bool,
        /// The version of the write that stored it, as [`Store::undelivered`](super::Store::undelivered)'s `as_of` means it.
        version: u64,
        /// The version of what was stored last in the conversation before this; 0: nothing, or a
        /// duplicate.
        follows: u64,
        /// All members including the sender.
        recipients: Members,
    },
    /// Of [`Write::Forward`](super::Write::Forward).
    Forwarded {
        /// As stored, in order; of a duplicate, those stored first.
        messages: Vec<chat::Message>,
        /// They were stored before this write.
        duplicate: bool,
        /// The version of the last of them; each has one more than the one before.
        version: u64,
        /// The version of what was stored last in the conversation before this; 0: nothing, or a
        /// duplicate.
        follows: u64,
        /// All members including the sender.
        recipients: Members,
    },
    /// Of [`Write::Revoke`](super::Write::Revoke) and [`Write::Expire`](super::Write::Expire).
    Erased {
        /// What is left of it.
        message: chat::Message,
        /// Its content was still there before this write.
        changed: bool,
        /// The version of this write, or of the commit before when nothing changed.
        version: u64,
        /// The members now, without those who joined after the message.
        recipients: Members,
    },
    /// Of [`Write::Delete`](super::Write::Delete).
    Deleted {
        /// From whom.
        user_id: String,
        /// What the user now sees of them, in increasing sequence; without those that the user had
        /// deleted before.
        messages: Vec<chat::Message>,
        /// The version of this write, or of the commit before when nothing changed.
        version: u64,
    },
    /// Of [`Write::MoveCursor`](super::Write::MoveCursor).
    CursorMoved {
        /// Which conversation.
        conversation_id: String,
        /// 1 single, 2 group.
        conversation_type: u32,
        /// Whose cursors.
        user_id: String,
        /// Where the delivered cursor stands now.
        delivered: u64,
        /// Where the read cursor stands now.
        read: u64,
        /// At least one of them moved.
        changed: bool,
        /// Everybody in the conversation; of somebody who quit, only that user.
        members: Members,
        /// The version of this write, or of the commit before when nothing changed.
        version: u64,
    },
    /// Of [`Write::CreateGroup`](super::Write::CreateGroup).
    GroupCreated {
        /// The group.
        group_id: String,
        /// Its conversation.
        conversation_id: String,
        /// The first members.
        members: Members,
        /// The version of this write.
        version: u64,
    },
    /// Of [`Write::RemoveGroup`](super::Write::RemoveGroup).
    GroupRemoved {
        /// Its conversation.
        conversation_id: String,
        /// Who was in it.
        members: Members,
        /// The version of this write.
        version: u64,
    },
    /// Of [`Write::AddMembers`](super::Write::AddMembers).
    MembersAdded {
        /// The group's conversation.
        conversation_id: String,
        /// How many were not members before.
        added: u32,
        /// The members now.
        members: Members,
        /// The version of this write, or of the commit before when nothing changed.
        version: u64,
    },
    /// Of [`Write::RemoveMembers`](super::Write::RemoveMembers).
    MembersRemoved {
        /// The group's conversation.
        conversation_id: String,
        /// How many were members before.
        removed: u32,
        /// The members now.
        members: Members,
        /// The version of this write, or of the commit before when nothing changed.
        version: u64,
    },
    /// Of [`Write::SetDoNotDisturb`](super::Write::SetDoNotDisturb) and [`Write::SetConversation`](super::Write::SetConversation).
    Updated {
        /// The version of this write, or of the commit before when nothing changed.
        version: u64,
    },
    /// Of [`Write::ChangeGroup`](super::Write::ChangeGroup).
    GroupChanged(Box<GroupChanged>),
    /// The write does not fit the state, or breaks a limit; nothing of it was applied.
    Refused {
        /// `not_found`, `not_permitted`, `role_too_low`, `muted`, `bad_request`, `already_exists`,
        /// `over_capacity`, `too_large` or `too_late`.
        code: Code,
        /// A sentence for a person.
        reason: String,
    },
}
