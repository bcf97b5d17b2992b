//! What can be done to a group, by whom, and what a store tells about its members.
//!
//! The acts are one kind of [`Write`](super::Write), because a group's members, its sequences and
//! the notice that tells of the act change together. Who may do what is decided by the store, in
//! the same transaction; [`Role`] and the acts' documentation say it.

use async_trait::async_trait;
use millrace_protocol::chat;
use uuid::Uuid;

use super::{Members, StoreError};

/// What a member may do; each may do what those before it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Speaks, invites where the group allows it, leaves.
    #[default]
    Member = 0,
    /// Also invites, removes and mutes members, names, announces, lets in, revokes.
    Administrator = 1,
    /// Also appoints administrators, sets the rules, hands over, dissolves. At most one.
    Owner = 2,
}

/// One act on a group. Decided and stored together with the notice that tells of it.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupChange {
    /// Which group.
    pub group_id: String,
    /// Who does it, with the rights this user has; `None`: the system, which may do everything.
    pub actor: Option<String>,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// The id under which the notice is stored, if there is one.
    pub notice_id: Uuid,
    /// What is done.
    pub act: GroupAct,
}

/// What is done to a group. Whoever is not a member is refused with `not_permitted`, a member whose
/// role does not allow it with `role_too_low`.
#[derive(Clone, Debug, PartialEq)]
pub enum GroupAct {
    /// Makes it, with the actor as owner. A removed group's id can be used again.
    Create {
        /// Shown to people.
        name: String,
        /// Shown to people.
        avatar: String,
        /// The first members, the actor besides.
        members: Vec<String>,
        /// 0 means [`GROUP_MEMBERS_MAX_DEFAULT`](super::limits::GROUP_MEMBERS_MAX_DEFAULT).
        members_max: u32,
        /// One of `JOIN_*`.
        join_rule: u32,
        /// One of `INVITE_*`.
        invite_rule: u32,
    },
    /// Changes what is `Some`. Name and avatar: administrators; the rest: the owner.
    Update {
        /// Shown to people.
        name: Option<String>,
        /// Shown to people.
        avatar: Option<String>,
        /// Not below the members there are.
        members_max: Option<u32>,
        /// One of `JOIN_*`.
        join_rule: Option<u32>,
        /// One of `INVITE_*`.
        invite_rule: Option<u32>,
    },
    /// Sets the announcement; empty takes it away. Administrators.
    Announce {
        /// The text.
        text: String,
    },
    /// The actor becomes a member (`JOIN_OPEN`), or asks to (`JOIN_BY_APPROVAL`).
    Join {
        /// Shown to those who decide.
        message: String,
    },
    /// Decides on somebody who asked. Administrators.
    AnswerJoinRequest {
        /// Who asked.
        user_id: String,
        /// Let in, or not.
        accept: bool,
    },
    /// Adds those who are not members yet. A member's invitation to a group with
    /// `JOIN_BY_APPROVAL` waits for an administrator.
    Invite {
        /// Whom.
        user_ids: Vec<String>,
    },
    /// The actor goes. The owner only as the last, which dissolves the group.
    Leave,
    /// Takes members out; of a higher role than all of them.
    Remove {
        /// Whom.
        user_ids: Vec<String>,
    },
    /// Makes a member an administrator or an administrator a member. The owner.
    SetRole {
        /// Whose role.
        user_id: String,
        /// [`Role::Member`] or [`Role::Administrator`].
        role: Role,
    },
    /// Makes somebody else the owner. The owner, who stays as a member.
    Transfer {
        /// A member.
        user_id: String,
    },
    /// Lets members not speak until a time; of a higher role than all of them.
    MuteMembers {
        /// Whom.
        user_ids: Vec<String>,
        /// In milliseconds since 1970; 0 lets them speak.
        until_ms: i64,
    },
    /// Lets nobody speak but the owner and administrators. Administrators.
    MuteGroup {
        /// On or off.
        muted: bool,
    },
    /// Ends the group. The owner.
    Dissolve,
}

/// `join_rule`: whom a member invites.
pub const JOIN_BY_INVITE: u32 = 0;
/// `join_rule`: anybody.
pub const JOIN_OPEN: u32 = 1;
/// `join_rule`: whom an administrator lets in.
pub const JOIN_BY_APPROVAL: u32 = 2;
/// `invite_rule`: every member invites.
pub const INVITE_BY_MEMBERS: u32 = 0;
/// `invite_rule`: administrators invite.
pub const INVITE_BY_ADMINISTRATORS: u32 = 1;

/// `Conversation.quit_reason`: the member left.
pub const QUIT_LEFT: u32 = 1;
/// `Conversation.quit_reason`: somebody removed the member.
pub const QUIT_REMOVED: u32 = 2;
/// `Conversation.quit_reason`: the group was dissolved.
pub const QUIT_DISSOLVED: u32 = 3;

/// `Message.type` of the notice that tells of an act.
pub const NOTICE_TYPE: u32 = 8;

/// What an act did.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupChanged {
    /// The group.
    pub group_id: String,
    /// Its conversation.
    pub conversation_id: String,
    /// How many members or settings changed; 0: it was so already.
    pub changed: u32,
    /// How many of them wait for an administrator.
    pub waiting: u32,
    /// The version of this write, or of the commit before when nothing changed.
    pub version: u64,
    /// The notice to the members.
    pub told: Option<Told>,
    /// Who has to hear of a request: the owner and the administrators. Empty: nobody.
    pub asked: Vec<String>,
    /// Whose request was turned down.
    pub turned_away: Vec<String>,
}

/// A notice that was stored with an act.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// As stored.
    pub message: chat::Message,
    /// The version of what was stored last in the conversation before it; 0: nothing.
    pub follows: u64,
    /// Everybody who is a member after the act, and those who were before it.
    pub recipients: Members,
}

/// Of [`GroupStore::group_members`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemberPage {
    /// In byte order of the ids.
    pub members: Vec<chat::GroupMember>,
    /// Nobody comes after these.
    pub complete: bool,
    /// How many the group has.
    pub member_count: u32,
}

/// Of [`GroupStore::join_requests`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JoinRequestPage {
    /// In byte order of the ids.
    pub requests: Vec<chat::JoinRequest>,
    /// Nobody comes after these.
    pub complete: bool,
}

/// Whose cursors [`GroupStore::receipts`] shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReceiptFilter {
    /// Everybody's.
    #[default]
    Everybody,
    /// Of those who have read the message.
    Read,
    /// Of those who have not.
    Unread,
}

/// Of [`GroupStore::receipts`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReceiptPage {
    /// In byte order of the ids.
    pub receipts: Vec<chat::MemberReceipt>,
    /// The last member looked at, where the next page goes on.
    pub after_user_id: String,
    /// Nobody comes after that member.
    pub complete: bool,
    /// How many members there are.
    pub member_count: u32,
}

/// What a store tells about groups, in pages whose cost does not grow with the group.
#[async_trait]
pub trait GroupStore {
    /// Members of a group with their roles, behind `after` in byte order, at most `limit`. `None`
    /// when there is no such group.
    ///
    /// # Errors
    /// The store's own failures.
    async fn group_members(
        &self,
        group_id: &str,
        after: &str,
        limit: usize,
    ) -> Result<Option<MemberPage>, StoreError>;

    /// Who wants to come in, behind `after` in byte order, at most `limit`. `None` when there is no
    /// such group.
    ///
    /// # Errors
    /// The store's own failures.
    async fn join_requests(
        &self,
        group_id: &str,
        after: &str,
        limit: usize,
    ) -> Result<Option<JoinRequestPage>, StoreError>;

    /// Cursors of a conversation's members behind `after` in byte order, at most `limit`, of those
    /// whom `filter` takes with regard to the message `sequence`. Looks at no more than `look_max`
    /// members.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such conversation, or the store's own failures.
    async fn receipts(
        &self,
        conversation_id: &str,
        sequence: u64,
        filter: ReceiptFilter,
        after: &str,
        limit: usize,
        look_max: usize,
    ) -> Result<ReceiptPage, StoreError>;

    /// The role of a user in a group; `None` for somebody who is no member, or no such group.
    ///
    /// # Errors
    /// The store's own failures.
    async fn group_role(&self, group_id: &str, user_id: &str) -> Result<Option<Role>, StoreError>;

    /// Whether a member may speak at this moment, as [`Write::Append`](super::Write::Append) would
    /// decide it: nobody has muted the member, and the group is not muted, or the member's role is
    /// above it. For what is not stored; membership is not asked for.
    ///
    /// # Errors
    /// The store's own failures.
    async fn may_speak(
        &self,
        group_id: &str,
        user_id: &str,
        at_ms: i64,
    ) -> Result<bool, StoreError>;
}
