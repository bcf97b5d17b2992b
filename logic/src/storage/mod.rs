//! Where messages, conversations, cursors and groups live: the trait [`Store`], which the chat
//! domain knows, and its implementations, which it does not.
//!
//! - [`conversation_id`]: how ids of conversations are made
//! - [`limits`]: bounds of what is stored
//! - [`accounts`]: users, their passwords and logins
//! - [`attachments`]: what files there are
//! - [`relations`]: friends, requests, blocks
//! - [`groups`]: what is done to groups, and by whom
//! - [`side`]: how accounts, relations, rooms and the like are kept, whatever on
//! - [`embedded`]: the store that needs no server
//! - `postgres` (with the feature of this name): the store on PostgreSQL
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

use std::sync::Arc;

use async_trait::async_trait;
use millrace_protocol::chat;

pub mod accounts;
pub mod attachments;
#[cfg(test)]
pub(crate) mod conformance;
pub mod conversation_id;
pub mod embedded;
mod error;
pub mod extras;
pub mod groups;
pub mod limits;
mod outcome;
mod pages;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod relations;
mod revocations;
pub mod side;
mod write;

pub use revocations::{KeptSession, Revocation, Revocations};

pub use error::StoreError;
pub use extras::Extras;
pub use outcome::Outcome;
pub use pages::{Changes, ConversationPage, MemberRange, Page};
pub use write::{Actor, Copied, Target, Write};

/// Of [`Store::figures`]. What is counted is counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreFigures {
    /// Connections that serve somebody at this moment.
    pub connections_in_use: usize,
    /// Connections at most.
    pub connections_max: usize,
    /// Times that somebody wanted a connection and all were in use.
    pub connection_waits: u64,
    /// Connections that were not made.
    pub connects_failed: u64,
    /// Attempts after the first.
    pub retries: u64,
    /// Calls that were given up.
    pub given_up: u64,
}

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

    /// The version of the newest durable commit that this process knows of; 0 in an empty store.
    fn version(&self) -> u64;

    /// What a store on a server says of itself to operators; `None` of one that has no server.
    fn figures(&self) -> Option<StoreFigures> {
        None
    }

    /// The version of the newest durable commit of all processes that share the store: what is read
    /// after this holds everything up to it.
    ///
    /// # Errors
    /// The store's own failures.
    async fn committed_version(&self) -> Result<u64, StoreError> {
        Ok(self.version())
    }

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
