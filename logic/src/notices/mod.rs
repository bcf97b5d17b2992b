//! Where notices of business services are kept until their targets have acknowledged them: the trait
//! [`NoticeStore`], which the chat domain knows, and the one on side tables.
//!
//! A notice is kept once, with a state for each user it is for. One for everyone is a single row; a
//! user who acknowledges it adds one. Nothing here sends anything or reads a clock.
//!
//! # Bounds
//! See [`NoticeLimits`]. What a user has not acknowledged is bounded: the oldest makes way for a new
//! one and is marked `dropped`, as is one whose collapse key a newer one carries.

use async_trait::async_trait;
use millrace_protocol::chat;

use crate::storage::StoreError;

#[cfg(test)]
pub(crate) mod conformance;
mod rows;
mod tables;

pub use tables::NoticeTables;

/// Longest id of a notice, and longest collapse key, in bytes.
pub const NOTICE_ID_BYTES_MAX: usize = 128;

/// Bounds of a [`NoticeStore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoticeLimits {
    /// Notices of one user that are not acknowledged. For one more the oldest is dropped. Default
    /// 100.
    pub pending_per_user_max: usize,
    /// Notices that are kept, whoever they are for. One more is refused. Default 1,000,000.
    pub notices_max: usize,
    /// Notices for everyone that are kept at once; each login looks at all of them. One more is
    /// refused. Default 32.
    pub everyone_max: usize,
    /// How long after its end a notice's states can still be read, in milliseconds. Default 24
    /// hours.
    pub kept_after_ms: i64,
}

impl Default for NoticeLimits {
    fn default() -> Self {
        Self {
            pending_per_user_max: 100,
            notices_max: 1_000_000,
            everyone_max: 32,
            kept_after_ms: 24 * 3_600 * 1_000,
        }
    }
}

/// Whom a notice is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// These users, each once.
    Users(Vec<String>),
    /// Whoever is online now, or logs in while it is kept.
    Everyone,
    /// Whoever heard it live; only acknowledgements are kept.
    Live,
}

/// A notice to be kept.
#[derive(Clone, Debug, PartialEq)]
pub struct NewNotice {
    /// What clients get.
    pub notice: chat::Notice,
    /// For whom.
    pub audience: Audience,
    /// Until when, in milliseconds since 1970.
    pub expires_at_ms: i64,
    /// Takes the place of earlier ones with the same key; empty: of none.
    pub collapse_key: String,
}

/// How far a notice is with one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Kept, and not pushed to any device.
    Stored = 1,
    /// Handed to the gateway of at least one device.
    Delivered = 2,
    /// A device has acknowledged it.
    Acked = 3,
    /// A newer one took its place.
    Dropped = 4,
}

impl State {
    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Delivered => "delivered",
            Self::Acked => "acked",
            Self::Dropped => "dropped",
        }
    }
}

/// A notice's state with a user has changed, or shall change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which notice.
    pub notice_id: String,
    /// Which user.
    pub user_id: String,
    /// The new state; one behind the present state changes nothing.
    pub state: State,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

/// Of [`NoticeStore::store`].
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    /// It is kept; these notices of the targets made way for it.
    New {
        /// Marks of state `Dropped`.
        dropped: Vec<Mark>,
    },
    /// A notice with this id was kept before; nothing has changed.
    Duplicate(Summary),
    /// A bound is reached; nothing has changed. The sentence says which.
    Full(String),
}

/// A notice and how many of its targets are in which state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// `Notice.type`.
    pub kind: u32,
    /// When it was pushed.
    pub sent_at_ms: i64,
    /// Until when it is kept.
    pub expires_at_ms: i64,
    /// Users it is for; 0 for everyone, and for a live one.
    pub targets: u64,
    /// Targets by state, in the order of [`State`].
    pub counts: [u64; 4],
}

impl Summary {
    /// How many are in this state.
    pub const fn count(&self, state: State) -> u64 {
        self.counts[state as usize - 1]
    }
}

/// Of [`NoticeStore::states`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct States {
    /// The whole notice.
    pub summary: Summary,
    /// Some of its states, by user id.
    pub marks: Vec<Mark>,
    /// No more follow.
    pub complete: bool,
}

/// Keeps notices. What has been answered survives `kill -9`.
#[async_trait]
pub trait NoticeStore: Send + Sync + 'static {
    /// Keeps a notice.
    ///
    /// # Errors
    /// The store's own failures; nothing has changed then.
    async fn store(&self, new: NewNotice) -> Result<Stored, StoreError>;

    /// Moves states forward, and answers with those that changed. Marks of notices that are not
    /// kept, or of users that are not among a notice's targets, change nothing.
    ///
    /// # Errors
    /// The store's own failures; nothing has changed then.
    async fn mark(&self, marks: Vec<Mark>) -> Result<Vec<Mark>, StoreError>;

    /// What each of these users has not acknowledged and has not ended at `now_ms`, the oldest
    /// first, in the order of the users.
    ///
    /// # Errors
    /// The store's own failures.
    async fn pending(
        &self,
        user_ids: Vec<String>,
        now_ms: i64,
    ) -> Result<Vec<Vec<chat::Notice>>, StoreError>;

    /// Whether [`NoticeStore::pending`] is worth asking; from memory. False is certain for what was
    /// stored before the call.
    fn may_have_pending(&self, user_id: &str) -> bool;

    /// Whether nothing at all is kept; from memory.
    fn is_empty(&self) -> bool;

    /// A notice with the states of up to `limit` users after `after_user_id`. `None` when it is not
    /// kept.
    ///
    /// # Errors
    /// The store's own failures.
    async fn states(
        &self,
        notice_id: &str,
        after_user_id: &str,
        limit: usize,
    ) -> Result<Option<States>, StoreError>;

    /// Forgets some of what ended long enough before `now_ms`; says whether there is more.
    ///
    /// # Errors
    /// The store's own failures.
    async fn expire(&self, now_ms: i64) -> Result<bool, StoreError>;
}
