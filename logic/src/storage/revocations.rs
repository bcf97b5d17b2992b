//! Which tokens are good no more: the trait [`Revocations`]. A user who logs out everywhere leaves
//! one moment behind; what was issued before it opens nothing again.
//!
//! This is apart from [`Store`](super::Store): it changes when people ask for it, and need not be
//! atomic with messages. It is asked at every login, so [`Revocations::may_have`] must be cheap.

use async_trait::async_trait;

use super::StoreError;

/// What a user who logged out everywhere left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Tokens issued before this are good no more, milliseconds since 1970.
    pub issued_before_ms: i64,
    /// The session that stayed, if one did.
    pub kept: Option<KeptSession>,
}

/// A session that logging out everywhere left alone, as its gateway lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSession {
    /// The gateway's name.
    pub gateway_id: String,
    /// The gateway's id of the session.
    pub session_id: u64,
    /// When it logged in, milliseconds since 1970.
    pub logged_in_at_ms: i64,
}

/// The moments before which users' tokens are good no more.
#[async_trait]
pub trait Revocations: Send + Sync + 'static {
    /// Sets a user's moment; durable when it is answered. It moves forward only: of two, the later
    /// stays, with what it kept. Returns what is in force now.
    ///
    /// # Errors
    /// [`StoreError::Full`] when there are too many, and what the store refuses.
    async fn revoke(&self, user_id: &str, revocation: Revocation)
    -> Result<Revocation, StoreError>;

    /// A user's moment, if there is one.
    ///
    /// # Errors
    /// What the store refuses.
    async fn of(&self, user_id: &str) -> Result<Option<Revocation>, StoreError>;

    /// False if this user certainly has none. Does not wait.
    fn may_have(&self, user_id: &str) -> bool;

    /// Forgets what is older than this moment, because no token lives so long. Returns how many
    /// that were.
    ///
    /// # Errors
    /// What the store refuses.
    async fn forget_before(&self, issued_before_ms: i64) -> Result<u64, StoreError>;
}
