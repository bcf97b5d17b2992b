//! The changes that make a commit. What they do is decided by the store, and said by
//! [`Outcome`](super::Outcome).

use millrace_protocol::chat;
use uuid::Uuid;

use super::{Extras, groups::GroupChange};

/// Whom a message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A single chat with this user; the sender itself for a note to oneself.
    User(String),
    /// A group by its group id; only members may send.
    Group(String),
}

/// Who asks for something that needs a right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A user, with the rights of a member.
    User(String),
    /// A business service, which may do anything.
    Service,
}

/// A message of [`Write::Forward`]; fields as in [`Write::Append`].
#[derive(Clone, Debug, PartialEq)]
pub struct Copied {
    /// The id under which it is stored if it is new.
    pub message_id: Uuid,
    /// `Message.type`.
    pub kind: u32,
    /// `Message.body`.
    pub body: String,
    /// `Message.attachment`.
    pub attachment: Option<chat::Attachment>,
    /// What few messages carry.
    pub extras: Option<Box<Extras>>,
}

/// One change. Several make a commit.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A message. The store gives it its sequence, or finds that it is stored already. A single
    /// chat comes into being with its first message.
    Append {
        /// The id under which it is stored if it is new.
        message_id: Uuid,
        /// The session's user.
        sender_id: String,
        /// The sender's own id of it, unique per sender.
        client_message_id: String,
        /// Where it goes.
        target: Target,
        /// `Message.type`.
        kind: u32,
        /// `Message.body`.
        body: String,
        /// `Message.attachment`.
        attachment: Option<chat::Attachment>,
        /// It does not raise anybody's unread count.
        does_not_count: bool,
        /// When logic took it, in milliseconds since 1970.
        sent_at_ms: i64,
        /// What few messages carry. A quoted message must be there for the sender.
        extras: Option<Box<Extras>>,
    },
    /// Several messages of one sender at once, under one client message id: all are stored, one
    /// after the other without another between them, or none.
    Forward {
        /// The session's user.
        sender_id: String,
        /// The sender's own id of all of them together.
        client_message_id: String,
        /// Where they go.
        target: Target,
        /// At least one, at most [`limits::FORWARDED_MESSAGES_MAX`](super::limits::FORWARDED_MESSAGES_MAX).
        messages: Vec<Copied>,
        /// When logic took it, in milliseconds since 1970.
        sent_at_ms: i64,
    },
    /// Takes a message back: its content is erased for everybody. Doing it again changes nothing.
    Revoke {
        /// Who wants it.
        actor: Actor,
        /// In which conversation.
        conversation_id: String,
        /// Which message.
        sequence: u64,
        /// Now, in milliseconds since 1970.
        at_ms: i64,
        /// How long after sending a sender may; 0: not at all. Nobody else is bound by it.
        limit_ms: u64,
    },
    /// Hides messages from one user, on all devices. Doing it again changes nothing.
    Delete {
        /// From whom.
        user_id: String,
        /// In which conversation.
        conversation_id: String,
        /// At least one, at most [`limits::DELETED_MESSAGES_MAX`](super::limits::DELETED_MESSAGES_MAX), each of which the user sees.
        sequences: Vec<u64>,
    },
    /// Erases the content of a message whose time is over; changes nothing before that.
    Expire {
        /// In which conversation.
        conversation_id: String,
        /// Which message.
        sequence: u64,
        /// Now, in milliseconds since 1970.
        at_ms: i64,
    },
    /// Moves a member's cursors forward; 0 leaves one where it stands.
    MoveCursor {
        /// Whose cursors.
        user_id: String,
        /// In which conversation.
        conversation_id: String,
        /// Everything up to it has arrived.
        delivered: u64,
        /// Everything up to it was read, so it has arrived too.
        read: u64,
    },
    /// A new group with its members; duplicates among them count once. A removed group's id can be
    /// used again: its sequences continue, and the new members see nothing of before.
    CreateGroup {
        /// The id, unique among groups.
        group_id: String,
        /// Shown to people.
        name: String,
        /// Shown to people.
        avatar: String,
        /// At least one user id.
        members: Vec<String>,
        /// 0 means [`limits::GROUP_MEMBERS_MAX_DEFAULT`](super::limits::GROUP_MEMBERS_MAX_DEFAULT).
        members_max: u32,
        /// In milliseconds since 1970.
        created_at_ms: i64,
    },
    /// Ends a group: every member quits. What was said stays readable to those who were there.
    RemoveGroup {
        /// Which one.
        group_id: String,
    },
    /// Adds those who are not members yet.
    AddMembers {
        /// To which group.
        group_id: String,
        /// Whom.
        user_ids: Vec<String>,
    },
    /// Takes those out who are members.
    RemoveMembers {
        /// From which group.
        group_id: String,
        /// Whom.
        user_ids: Vec<String>,
    },
    /// A member's setting; it changes nothing but the row.
    SetDoNotDisturb {
        /// Whose row.
        user_id: String,
        /// Which conversation.
        conversation_id: String,
        /// The new setting.
        do_not_disturb: bool,
    },
    /// A member's settings; what is `None` stays, and nothing changes but the row.
    SetConversation {
        /// Whose row.
        user_id: String,
        /// Which conversation.
        conversation_id: String,
        /// The new setting.
        do_not_disturb: Option<bool>,
        /// The new setting.
        pinned: Option<bool>,
        /// The new setting; the next message ends it.
        hidden: Option<bool>,
    },
    /// An act of somebody on a group, told to its members.
    ChangeGroup(Box<GroupChange>),
}
