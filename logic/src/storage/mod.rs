//! Where messages, conversations, cursors and groups live: the trait [`Store`], which the chat
//! domain knows, and its implementations, which it does not.
//!
//! - [`conversation_id`]: how ids of conversations are made
//! - [`limits`]: bounds of what is stored
//! - [`accounts`]: users, their passwords and logins
//! - [`attachments`]: what files there are
//! - [`relations`]: friends, requests, blocks
//! - [`groups`]: what is done to groups, and by whom
//! - [`embedded`]: the store that needs no server
//! - [`Revocations`]: which tokens are good no more
//!
//! A store decides what only it can decide in one transaction: sequences, duplicates, membership,
//! cursors. It knows no sessions, sends nothing, and never reads a clock: times come with the
//! writes.
//!
//! # Rules every store keeps
//! - **Gapless.** A conversation's sequences are 1, 2, 3, …; the counter moves in the same commit
//!   as the message.
//! - **Stored once.** A second [`Write::Append`] with the same sender and client message id, in
//!   the same commit, a later one or after a restart, changes nothing and returns the stored
//!   message with `duplicate`, even when its target or body differ.
//! - **Nothing half done.** [`Store::commit`] answers after everything of it is durable, or fails
//!   and nothing of it is there.
//! - **Cursors move forward only**, never beyond the newest message the member may see; `read`
//!   implies `delivered`. Sending moves neither cursor: own messages reach the user's other
//!   devices like anybody's, until a DELIVER_ACK passes them.
//! - **Unread** = counting messages after the largest of the member's `init_sequence`, read cursor
//!   and own last message: who sends has read.
//! - **Members** see messages after their `init_sequence`. Somebody who joins later starts at the
//!   newest sequence of that moment. Somebody who left (`quit`) keeps what was there until then;
//!   coming back is joining anew, with a new `init_sequence`.
//! - **Content that is gone leaves its place.** A revoked or expired message is erased for everybody, a
//!   deleted one is hidden from one user; each keeps its sequence as a message without content, whose
//!   `state` says which. Revoked and expired go before deleted. Neither counts as unread any more.
//! - **Versions** grow with every write that changed something. A conversation row of a user has
//!   the version of its last change that this user can see: a message, one revoked or expired while
//!   the user was a member, the own read cursor, a setting, deleting, joining, leaving. The delivered
//!   cursor is not part of the row.

use std::{io, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use millrace_protocol::{Code, chat};
use uuid::Uuid;

pub mod accounts;
pub mod attachments;
#[cfg(test)]
pub(crate) mod conformance;
pub mod conversation_id;
pub mod embedded;
pub mod extras;
pub mod groups;
pub mod limits;
pub mod relations;
mod revocations;

use groups::{GroupChange, GroupChanged};
pub use revocations::{KeptSession, Revocation, Revocations};

pub use extras::Extras;

/// All user ids that a conversation's messages go to.
pub type Members = Arc<[Arc<str>]>;

/// A durable store of the chat domain. See the module for the rules it keeps.
#[async_trait]
pub trait Store: groups::GroupStore + Send + Sync + 'static {
    /// Applies the writes in order as one durable commit and returns one outcome per write, in
    /// order. A write that is refused ([`Outcome::Refused`]) changes nothing and does not hinder
    /// the others. Commits that are begun one after the other are applied in this order, also when
    /// the earlier is not answered yet.
    ///
    /// # Errors
    /// When the commit could not be made durable (full disk, failed disk, closed store); then
    /// nothing was applied and nothing may be acknowledged.
    async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Outcome>, StoreError>;

    /// Messages `from..=to` of a conversation as this member may see them; 0 means no bound. At
    /// most `limit` from the oldest end in increasing sequence, or with `newest_first` from the
    /// newest end in decreasing sequence.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such conversation, [`StoreError::NotMember`] when
    /// the user never was a member, or the store's own failures.
    async fn page(
        &self,
        user_id: &str,
        conversation_id: &str,
        from: u64,
        to: u64,
        limit: usize,
        newest_first: bool,
    ) -> Result<Page, StoreError>;

    /// Those of these messages that this member may see, in the order asked for.
    ///
    /// # Errors
    /// As [`Store::page`].
    async fn messages(
        &self,
        user_id: &str,
        conversation_id: &str,
        sequences: &[u64],
    ) -> Result<Vec<chat::Message>, StoreError>;

    /// What became of messages after they were stored: those revoked or expired after
    /// `since_version`, oldest change first, at most `limit`, and all that the user has deleted.
    ///
    /// # Errors
    /// As [`Store::page`].
    async fn changes(
        &self,
        user_id: &str,
        conversation_id: &str,
        since_version: u64,
        limit: usize,
    ) -> Result<Changes, StoreError>;

    /// Messages whose `expires_at_ms` is not after `now_ms` and whose content is still there, the
    /// longest over first, at most `limit`: conversation and sequence.
    ///
    /// # Errors
    /// The store's own failures.
    async fn expired(&self, now_ms: i64, limit: usize) -> Result<Vec<(String, u64)>, StoreError>;

    /// The newest of the user's conversation rows below `before_version` (0: of all), newest change
    /// first, at most `limit`: the recent contacts. The page's `version` is what to pass to
    /// [`Store::conversations`] later, so that nothing is missed that changes from now on.
    ///
    /// # Errors
    /// The store's own failures; an unknown user has no rows.
    async fn recent_conversations(
        &self,
        user_id: &str,
        before_version: u64,
        limit: usize,
    ) -> Result<ConversationPage, StoreError>;

    /// Every conversation that the user is or was in, with what the user may see of it, in no
    /// order.
    ///
    /// # Errors
    /// The store's own failures; an unknown user has none.
    async fn member_ranges(&self, user_id: &str) -> Result<Vec<MemberRange>, StoreError>;

    /// The user's conversation rows that changed after `since_version`, oldest change first, at
    /// most `limit`.
    ///
    /// # Errors
    /// The store's own failures; an unknown user has no rows.
    async fn conversations(
        &self,
        user_id: &str,
        since_version: u64,
        limit: usize,
    ) -> Result<ConversationPage, StoreError>;

    /// What a user who comes online is sent: of each of the `conversations_max` conversations with
    /// the newest undelivered messages, the newest `per_conversation_max` messages above the
    /// user's delivered cursor, own ones included, whose [version](Outcome::Appended::version) is
    /// at most `as_of`. Newest conversation first, increasing sequence within one. Cheap when
    /// there is nothing.
    ///
    /// # Errors
    /// The store's own failures; an unknown user has no messages.
    async fn undelivered(
        &self,
        user_id: &str,
        as_of: u64,
        per_conversation_max: usize,
        conversations_max: usize,
    ) -> Result<Vec<chat::Message>, StoreError>;

    /// [`Store::undelivered`] of many users, in their order: what everybody is sent who has logged
    /// in at the same time. A store that can, reads them in one go.
    ///
    /// # Errors
    /// The store's own failures.
    async fn undelivered_of(
        &self,
        user_ids: &[&str],
        as_of: u64,
        per_conversation_max: usize,
        conversations_max: usize,
    ) -> Result<Vec<Vec<chat::Message>>, StoreError> {
        let mut found = Vec::with_capacity(user_ids.len());
        for user_id in user_ids {
            let of_one = self.undelivered(user_id, as_of, per_conversation_max, conversations_max);
            found.push(of_one.await?);
        }
        Ok(found)
    }

    /// The version of the newest durable commit; 0 in an empty store.
    fn version(&self) -> u64;

    /// A group with the first [`limits::GROUP_MEMBERS_SHOWN_MAX`] of its current members; `None`
    /// when there is none or it was removed.
    ///
    /// # Errors
    /// The store's own failures.
    async fn group(&self, group_id: &str) -> Result<Option<chat::Group>, StoreError>;

    /// Who receives what is sent to a conversation: both users of a single chat (one in a note to
    /// oneself), the current members of a group. `None` when there is no such conversation or its
    /// group was removed. Cached.
    ///
    /// # Errors
    /// The store's own failures.
    async fn members(&self, conversation_id: &str) -> Result<Option<Members>, StoreError>;

    /// Finishes what was begun, makes everything durable and ends the store; later calls fail with
    /// [`StoreError::Closed`].
    ///
    /// # Errors
    /// When the last flush failed.
    async fn close(&self) -> Result<(), StoreError>;
}

/// What a user may see of a conversation: the messages behind `after`, up to `up_to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRange {
    /// Which one.
    pub conversation_id: String,
    /// The newest message when the user came; 0: none.
    pub after: u64,
    /// The newest message when the user left; `u64::MAX`: has not.
    pub up_to: u64,
}

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
        /// At least one, at most [`limits::FORWARDED_MESSAGES_MAX`].
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
        /// At least one, at most [`limits::DELETED_MESSAGES_MAX`], each of which the user sees.
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
        /// 0 means [`limits::GROUP_MEMBERS_MAX_DEFAULT`].
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

/// What became of a [`Write`].
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Of [`Write::Append`].
    Appended {
        /// As stored; of a duplicate, the one stored first.
        message: chat::Message,
        /// It was stored before this write.
        duplicate: bool,
        /// The version of the write that stored it, as [`Store::undelivered`]'s `as_of` means it.
        version: u64,
        /// All members including the sender.
        recipients: Members,
    },
    /// Of [`Write::Forward`].
    Forwarded {
        /// As stored, in order; of a duplicate, those stored first.
        messages: Vec<chat::Message>,
        /// They were stored before this write.
        duplicate: bool,
        /// The version of the last of them; each has one more than the one before.
        version: u64,
        /// All members including the sender.
        recipients: Members,
    },
    /// Of [`Write::Revoke`] and [`Write::Expire`].
    Erased {
        /// What is left of it.
        message: chat::Message,
        /// Its content was still there before this write.
        changed: bool,
        /// The version of this write, or of the commit before when nothing changed.
        version: u64,
        /// The members now.
        recipients: Members,
    },
    /// Of [`Write::Delete`].
    Deleted {
        /// From whom.
        user_id: String,
        /// What the user now sees of them, in increasing sequence; without those that the user had
        /// deleted before.
        messages: Vec<chat::Message>,
        /// The version of this write, or of the commit before when nothing changed.
        version: u64,
    },
    /// Of [`Write::MoveCursor`].
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
    /// Of [`Write::CreateGroup`].
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
    /// Of [`Write::RemoveGroup`].
    GroupRemoved {
        /// Its conversation.
        conversation_id: String,
        /// Who was in it.
        members: Members,
        /// The version of this write.
        version: u64,
    },
    /// Of [`Write::AddMembers`].
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
    /// Of [`Write::RemoveMembers`].
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
    /// Of [`Write::SetDoNotDisturb`] and [`Write::SetConversation`].
    Updated {
        /// The version of this write, or of the commit before when nothing changed.
        version: u64,
    },
    /// Of [`Write::ChangeGroup`].
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

/// Of [`Store::page`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// In the order that was asked for.
    pub messages: Vec<chat::Message>,
    /// The range, as far as this member may see it, holds nothing beyond these.
    pub complete: bool,
}

/// Of [`Store::changes`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// What is left of them, oldest change first.
    pub messages: Vec<chat::Message>,
    /// What to pass as `since_version` the next time.
    pub version: u64,
    /// False: more follow.
    pub complete: bool,
    /// What the user has deleted: sequences, both ends included, in order, without two that touch.
    pub deleted: Vec<(u64, u64)>,
}

/// Of [`Store::conversations`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConversationPage {
    /// By increasing version.
    pub conversations: Vec<chat::Conversation>,
    /// What to pass as `since_version` the next time. Nothing is missed by it, and what a commit
    /// changes while this page is read may come again.
    pub version: u64,
    /// False: more rows follow.
    pub complete: bool,
}

/// Why a store could not do its work. [`StoreError::code`] is what a client is told.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// [`Store::page`]: no such conversation.
    #[error("there is no such conversation")]
    NotFound,
    /// [`Store::page`]: the user never was a member.
    #[error("the user is not a member of this conversation")]
    NotMember,
    /// No space is left for writing. Reading goes on, and writing too once there is space.
    #[error("no space is left for the store: {0}")]
    Full(String),
    /// The disk or the engine failed. Nothing of the commit was applied.
    #[error("the store failed: {0}")]
    Failed(String),
    /// Stored bytes do not say what they should.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Another process has the data directory.
    #[error("the data directory {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The data directory was written by another version, or by something else.
    #[error("the data directory {}: {reason}", .directory.display())]
    Format {
        /// Which directory.
        directory: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

impl StoreError {
    /// The code for the client whose request this broke.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound => Code::NotFound,
            Self::NotMember => Code::NotPermitted,
            Self::Full(_) => Code::OverCapacity,
            _ => Code::Internal,
        }
    }

    /// The same error for another of those whom it hit.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::NotFound => Self::NotFound,
            Self::NotMember => Self::NotMember,
            Self::Full(reason) => Self::Full(reason.clone()),
            Self::Corrupt(reason) => Self::Corrupt(reason.clone()),
            Self::Closed => Self::Closed,
            Self::InUse(directory) => Self::InUse(directory.clone()),
            other => Self::Failed(other.to_string()),
        }
    }
}
