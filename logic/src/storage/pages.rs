//! What a store answers when it is asked about messages and conversations.

use millrace_protocol::chat;

/// Of [`Store::page`](super::Store::page).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// In the order that was asked for.
    pub messages: Vec<chat::Message>,
    /// The range, as far as this member may see it, holds nothing beyond these.
    pub complete: bool,
}

/// Of [`Store::changes`](super::Store::changes).
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

/// Of [`Store::conversations`](super::Store::conversations).
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
