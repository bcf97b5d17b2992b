//! Who is online, and where. A registry can be lost without harm: the gateways list their sessions
//! again, and whoever holds the link fills it anew.
//!
//! Fencing: an entry is named by its address *and* its login time, so that a late end of an old
//! session never removes a newer one at the same address. Calls about one session must come in
//! order; those about different sessions may come at the same time.

use std::sync::Arc;

use async_trait::async_trait;
use millrace_logic_sdk::{Session, SessionAddress};

#[cfg(test)]
mod conformance;
mod memory;

pub use memory::{MemoryRegistry, MemoryRegistrySettings};

/// A session that is online.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// Whose it is.
    pub user_id: Arc<str>,
    /// Where it is.
    pub address: SessionAddress,
    /// The name of its gateway.
    pub gateway_id: Arc<str>,
    /// As the client named its device; may be empty.
    pub device_id: Arc<str>,
    /// As the client named its platform; may be empty.
    pub platform: Arc<str>,
    /// When it logged in, milliseconds since 1970.
    pub logged_in_at_ms: i64,
}

impl From<&Session> for SessionRecord {
    fn from(session: &Session) -> Self {
        Self {
            user_id: Arc::clone(&session.user_id),
            address: session.address,
            gateway_id: Arc::clone(&session.gateway_id),
            device_id: Arc::clone(&session.device_id),
            platform: Arc::clone(&session.platform),
            logged_in_at_ms: session.logged_in_at_ms,
        }
    }
}

impl SessionRecord {
    /// Whether both name the same session.
    pub fn is_same_session(&self, other: &Self) -> bool {
        self.address == other.address && self.logged_in_at_ms == other.logged_in_at_ms
    }
}

/// How much is online.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Online {
    /// Users with at least one session.
    pub users: usize,
    /// Sessions.
    pub sessions: usize,
}

/// Why a registry did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// A bound is reached; nothing was changed.
    #[error("the registry is full: {0}")]
    Full(String),
    /// The registry cannot be reached; whether anything was changed is unknown.
    #[error("the registry cannot be reached: {0}")]
    Unavailable(String),
}

/// Who is online, and where.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// The session is online. Returns the user's other sessions, by login time, the oldest first.
    /// Saying it twice changes nothing; a session at an address that is taken replaces the one
    /// there, unless it is the older one.
    ///
    /// # Errors
    /// [`RegistryError`].
    async fn online(&self, session: SessionRecord) -> Result<Vec<SessionRecord>, RegistryError>;

    /// The session is over. Says whether it was online; a newer session at the same address stays.
    ///
    /// # Errors
    /// [`RegistryError::Unavailable`].
    async fn offline(&self, session: &SessionRecord) -> Result<bool, RegistryError>;

    /// The sessions of many users in one look-up, in the order of the users asked for, each by login
    /// time, the oldest first.
    ///
    /// # Errors
    /// [`RegistryError::Unavailable`].
    async fn sessions_of(
        &self,
        user_ids: &[&str],
    ) -> Result<Vec<Vec<SessionRecord>>, RegistryError>;

    /// All sessions of up to `users_max` users whose ids come after `after` (empty: from the start),
    /// by user id. A page with nothing in it is the end. Users who come or go meanwhile may be
    /// missing or stale; others appear exactly once.
    ///
    /// # Errors
    /// [`RegistryError::Unavailable`].
    async fn list(
        &self,
        after: &str,
        users_max: usize,
    ) -> Result<Vec<SessionRecord>, RegistryError>;

    /// How much is online.
    ///
    /// # Errors
    /// [`RegistryError::Unavailable`].
    async fn count(&self) -> Result<Online, RegistryError>;
}
