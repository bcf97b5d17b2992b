//! Full-text search of stored messages: the trait [`SearchIndex`], which the chat domain knows, and
//! what an index is fed from, [`SearchSource`], which a store is.
//!
//! - [`terms`]: how texts become terms, for indexing and for asking
//! - [`notes`]: the queue of what an index is told
//! - `full_text`: the index, on the disk (feature `search`)
//!
//! An index finds candidates and decides nothing: what it finds is read from the store again, as
//! the user who asks may see it, so that what was revoked, has expired or belongs to others never
//! comes out of it, whatever the index still holds.
//!
//! # How it keeps up
//! Each message that was stored and each that was erased is noted, without waiting. A note that
//! finds the queue full is dropped, and the index reads what it missed from the store; so it does
//! at a start, from the version that its last commit holds. Messages are searched a moment after
//! they were stored; a send never waits for any of this.

use async_trait::async_trait;
use millrace_protocol::chat;

use crate::storage::{MemberRange, StoreError};

#[cfg(feature = "search")]
pub mod full_text;
pub mod notes;
pub mod terms;

#[cfg(test)]
mod tests;

/// Which messages are looked for: all that fit everything given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// Where to look. Only a single one is narrowed down to its range.
    pub conversations: Vec<MemberRange>,
    /// What the text has to hold; empty: anything.
    pub text: String,
    /// Who sent it; empty: anybody.
    pub sender_id: String,
    /// `Message.type`; empty: any.
    pub types: Vec<u32>,
    /// Sent at or after, in milliseconds since 1970; 0: no bound.
    pub from_ms: i64,
    /// Sent before, in milliseconds since 1970; 0: no bound.
    pub to_ms: i64,
    /// Only what is older than this [`Hit::order`]; 0: everything.
    pub before: u64,
    /// At most so many.
    pub limit: usize,
}

/// A candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Where the message is.
    pub conversation_id: String,
    /// Which one it is there.
    pub sequence: u64,
    /// Grows with time; different for any two messages of a store.
    pub order: u64,
}

/// Why nothing could be found out.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// More searches at once than are allowed.
    #[error("too many searches at the same time")]
    Busy,
    /// The index failed.
    #[error("the search index failed: {0}")]
    Failed(String),
}

/// How an index is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SearchStatus {
    /// Messages that can be found.
    pub messages: u64,
    /// Its files, in bytes.
    pub bytes: u64,
    /// Notes that wait for it.
    pub waiting: usize,
    /// Notes that found no room and were read from the store instead.
    pub dropped: u64,
    /// For how long the oldest message that cannot be found yet has waited, in milliseconds.
    pub lag_ms: u64,
}

/// An index of messages.
#[async_trait]
pub trait SearchIndex: Send + Sync + 'static {
    /// A message was stored by the write of this version. Never waits.
    fn stored(&self, message: &chat::Message, version: u64);

    /// A message was erased by the write of this version. Never waits.
    fn erased(&self, conversation_id: &str, sequence: u64, version: u64);

    /// Candidates, newest first; fewer than `limit` of the query only when there are no others.
    ///
    /// # Errors
    /// [`SearchError`].
    async fn search(&self, query: Query) -> Result<Vec<Hit>, SearchError>;

    /// Whether messages stored before the last moments may be missing.
    fn is_behind(&self) -> bool;

    /// For the metrics.
    fn status(&self) -> SearchStatus;

    /// Commits what was noted and ends. Later calls of `search` go on with what there is.
    async fn close(&self);
}

/// What of a message is searched: its body and the name of its attachment. Notices and what passes
/// through are for programs to read.
pub fn searched_text(message: &chat::Message) -> String {
    let attachment = message.attachment.as_ref().map_or("", |attachment| &attachment.name);
    match message.r#type {
        8 | 99 => String::new(),
        _ if attachment.is_empty() => message.body.clone(),
        _ => format!("{}\n{attachment}", message.body),
    }
}

/// A conversation with news, of [`SearchSource::news`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Which one.
    pub conversation_id: String,
    /// Its newest message.
    pub max_sequence: u64,
    /// Messages of it were erased, at some time.
    pub has_erased: bool,
}

/// What an index is built from.
#[async_trait]
pub trait SearchSource: Send + Sync + 'static {
    /// The version of the newest durable commit.
    fn newest_version(&self) -> u64;

    /// Conversations in which a message was stored or erased by a write after `since_version`,
    /// behind the place where an earlier page ended (empty: from the beginning), and where this
    /// page ends (`None`: there are no others). Looks at no more than `look_max` conversations.
    ///
    /// # Errors
    /// The store's own failures.
    async fn news(
        &self,
        since_version: u64,
        after: Vec<u8>,
        look_max: usize,
    ) -> Result<(Vec<News>, Option<Vec<u8>>), StoreError>;

    /// Messages of a conversation, erased ones too, from `up_to` downwards, at most `limit`, each
    /// with the version that stored it.
    ///
    /// # Errors
    /// The store's own failures.
    async fn messages(
        &self,
        conversation_id: &str,
        up_to: u64,
        limit: usize,
    ) -> Result<Vec<(chat::Message, u64)>, StoreError>;

    /// Messages of a conversation that a write after `since_version` erased, oldest change first,
    /// at most `limit`: sequence, and the version that erased it.
    ///
    /// # Errors
    /// The store's own failures.
    async fn erased(
        &self,
        conversation_id: &str,
        since_version: u64,
        limit: usize,
    ) -> Result<Vec<(u64, u64)>, StoreError>;
}
