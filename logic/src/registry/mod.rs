//! Who is online, and where. A registry can be lost without harm: the gateways list their sessions
//! again, and whoever holds the link fills it anew.
//!
//! Fencing: an entry is named by its address *and* its login time, so that a late end of an old
//! session never removes a newer one at the same address. Calls about one session must come in
//! order; those about different sessions may come at the same time.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use millrace_logic_sdk::{Session, SessionAddress};

#[cfg(test)]
mod conformance;
mod memory;
#[cfg(feature = "redis")]
pub mod redis;

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

/// One life of a logic process, as others name it: new with each start. Shown as 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HomeId(pub u64);

impl HomeId {
    /// Of a process that shares nothing.
    pub const ALONE: Self = Self(0);
}

impl fmt::Display for HomeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
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

/// How a registry that is shared by several processes fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegistryStatus {
    /// Whether what the others say is known.
    pub connected: bool,
    /// Logic processes that say something, this one included.
    pub processes: usize,
    /// Users of this process whose sessions have changed and are still to be stated.
    pub users_waiting: usize,
    /// Answers given from what this process knows alone.
    pub degraded: u64,
    /// Calls that failed.
    pub calls_failed: u64,
    /// How often presence was stated anew, because it was lost.
    pub rebuilds: u64,
    /// Sessions refused because their gateway has a newer life.
    pub fenced: u64,
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

    /// Which processes serve sessions of these users, in one look-up, in the order of the users asked
    /// for; this process first. While a session moves, and after its process has died, both are named
    /// for a while: one too many, never one too few of those whose statement is known.
    ///
    /// # Errors
    /// [`RegistryError::Unavailable`]: who else serves them is not known.
    async fn homes_of(&self, user_ids: &[&str]) -> Result<Vec<Vec<HomeId>>, RegistryError> {
        let homes = |sessions: Vec<SessionRecord>| match sessions.is_empty() {
            true => Vec::new(),
            false => vec![self.home()],
        };
        Ok(self.sessions_of(user_ids).await?.into_iter().map(homes).collect())
    }

    /// How others name this process.
    fn home(&self) -> HomeId {
        HomeId::ALONE
    }

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

    /// Calls of [`Registry::online`] and [`Registry::offline`] worth making at the same time, each of
    /// another user. 1 where they wait for nothing.
    fn in_flight_max(&self) -> usize {
        1
    }

    /// This process leaves: what it has stated is to be doubted from now on, as its gateways list their
    /// sessions to another. Nothing is stated after it.
    async fn close(&self) {}

    /// How it fares; `None` where nothing can go wrong.
    fn status(&self) -> Option<RegistryStatus> {
        None
    }
}
