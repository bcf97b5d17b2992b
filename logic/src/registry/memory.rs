//! The registry of a single process: a table in memory, in parts, so that logins of different users
//! rarely wait for each other.

use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Online, Registry, RegistryError, SessionRecord};
use crate::planted_faults::{Fault, is_planted};

/// Parts of the table.
const PARTS: usize = 64;

/// Bounds of a [`MemoryRegistry`].
#[derive(Clone, Debug)]
pub struct MemoryRegistrySettings {
    /// Sessions in all; one more is refused. Default 2,000,000.
    pub sessions_max: usize,
    /// Sessions of one user, far above what a device policy allows; one more is refused. Default
    /// 1,024.
    pub sessions_per_user_max: usize,
}

impl Default for MemoryRegistrySettings {
    fn default() -> Self {
        Self { sessions_max: 2_000_000, sessions_per_user_max: 1_024 }
    }
}

/// Invariant: no user is listed without a session, and `sessions` is the sum over all parts.
#[derive(Debug)]
pub struct MemoryRegistry {
    settings: MemoryRegistrySettings,
    hasher: RandomState,
    parts: Vec<Mutex<Part>>,
    sessions: AtomicUsize,
}

/// The users of one part, each with the sessions by login time, the oldest first.
type Part = HashMap<Arc<str>, Vec<SessionRecord>>;

impl Default for MemoryRegistry {
    fn default() -> Self {
        Self::new(MemoryRegistrySettings::default())
    }
}

impl MemoryRegistry {
    /// An empty registry.
    pub fn new(settings: MemoryRegistrySettings) -> Self {
        Self {
            settings,
            hasher: RandomState::new(),
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            sessions: AtomicUsize::new(0),
        }
    }

    fn part(&self, user_id: &str) -> MutexGuard<'_, Part> {
        let part = self.hasher.hash_one(user_id) as usize % PARTS;
        lock(&self.parts[part])
    }
}

/// What a registry of several processes needs of the one that holds what is its own.
#[cfg(feature = "redis")]
impl MemoryRegistry {
    /// A user's sessions, by login time.
    pub(super) fn of(&self, user_id: &str) -> Vec<SessionRecord> {
        self.part(user_id).get(user_id).cloned().unwrap_or_default()
    }

    /// Removes sessions of a user.
    pub(super) fn remove(&self, user_id: &str, is_over: impl Fn(&SessionRecord) -> bool) {
        let mut part = self.part(user_id);
        let Some(sessions) = part.get_mut(user_id) else { return };
        let before = sessions.len();
        sessions.retain(|session| !is_over(session));
        self.sessions.fetch_sub(before - sessions.len(), Ordering::Relaxed);
        if sessions.is_empty() {
            part.remove(user_id);
        }
    }

    /// Into how many parts the users are divided.
    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The users of one part, in no order.
    pub(super) fn users_of_part(&self, part: usize) -> Vec<Arc<str>> {
        lock(&self.parts[part]).keys().cloned().collect()
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn online(&self, session: SessionRecord) -> Result<Vec<SessionRecord>, RegistryError> {
        let mut part = self.part(&session.user_id);
        let known = part.get(&session.user_id).map_or(&[][..], Vec::as_slice);
        let same_address = known.iter().find(|other| other.address == session.address);
        let is_newcomer = same_address.is_none();
        if let Some(other) = same_address
            && other.logged_in_at_ms > session.logged_in_at_ms
        {
            return Ok(others(known, &session));
        }
        if is_newcomer {
            if known.len() >= self.settings.sessions_per_user_max {
                let max = self.settings.sessions_per_user_max;
                return Err(RegistryError::Full(format!("a user may have {max} sessions")));
            }
            let taken = self.sessions.fetch_add(1, Ordering::Relaxed);
            if taken >= self.settings.sessions_max {
                self.sessions.fetch_sub(1, Ordering::Relaxed);
                let max = self.settings.sessions_max;
                return Err(RegistryError::Full(format!("it may hold {max} sessions")));
            }
        }
        // Room for one: hardly anybody has more, and a vector makes room for four by itself.
        let sessions =
            part.entry(Arc::clone(&session.user_id)).or_insert_with(|| Vec::with_capacity(1));
        sessions.retain(|other| other.address != session.address);
        let later = |other: &SessionRecord| other.logged_in_at_ms <= session.logged_in_at_ms;
        sessions.insert(sessions.partition_point(later), session.clone());
        Ok(others(sessions, &session))
    }

    async fn offline(&self, session: &SessionRecord) -> Result<bool, RegistryError> {
        let mut part = self.part(&session.user_id);
        let Some(sessions) = part.get_mut(&session.user_id) else { return Ok(false) };
        if is_planted(Fault::Fencing) {
            let before = sessions.len();
            sessions.retain(|other| other.device_id != session.device_id);
            self.sessions.fetch_sub(before - sessions.len(), Ordering::Relaxed);
            if sessions.is_empty() {
                part.remove(&session.user_id);
            }
            return Ok(true);
        }
        let Some(index) = sessions.iter().position(|other| other.is_same_session(session)) else {
            return Ok(false);
        };
        sessions.remove(index);
        if sessions.is_empty() {
            part.remove(&session.user_id);
        }
        self.sessions.fetch_sub(1, Ordering::Relaxed);
        Ok(true)
    }

    async fn sessions_of(
        &self,
        user_ids: &[&str],
    ) -> Result<Vec<Vec<SessionRecord>>, RegistryError> {
        let sessions = |user_id: &&str| self.part(user_id).get(*user_id).cloned();
        Ok(user_ids.iter().map(|user_id| sessions(user_id).unwrap_or_default()).collect())
    }

    async fn list(
        &self,
        after: &str,
        users_max: usize,
    ) -> Result<Vec<SessionRecord>, RegistryError> {
        // The smallest `users_max` ids after `after`: the heap keeps the largest on top, to drop.
        let mut page: BinaryHeap<Arc<str>> = BinaryHeap::new();
        for part in &self.parts {
            for user_id in lock(part).keys().filter(|user_id| &***user_id > after) {
                if page.len() < users_max {
                    page.push(Arc::clone(user_id));
                } else if page.peek().is_some_and(|largest| user_id < largest) {
                    page.pop();
                    page.push(Arc::clone(user_id));
                }
            }
        }
        let sessions = |user_id: Arc<str>| self.part(&user_id).get(&user_id).cloned();
        Ok(page.into_sorted_vec().into_iter().filter_map(sessions).flatten().collect())
    }

    async fn count(&self) -> Result<Online, RegistryError> {
        let users = self.parts.iter().map(|part| lock(part).len()).sum();
        Ok(Online { users, sessions: self.sessions.load(Ordering::Relaxed) })
    }
}

fn others(sessions: &[SessionRecord], session: &SessionRecord) -> Vec<SessionRecord> {
    sessions.iter().filter(|other| other.address != session.address).cloned().collect()
}

/// Every part is whole after each statement, so a panic elsewhere spoils nothing.
fn lock(part: &Mutex<Part>) -> MutexGuard<'_, Part> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{MemoryRegistry, MemoryRegistrySettings};
    use crate::registry::conformance::{self, record};
    use crate::registry::{Online, Registry, RegistryError};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_keeps_the_contract_of_a_registry() {
        conformance::run(|| async { MemoryRegistry::default() }).await;
    }

    #[tokio::test]
    async fn a_full_registry_refuses_and_changes_nothing() {
        let settings = MemoryRegistrySettings { sessions_max: 2, sessions_per_user_max: 1 };
        let registry = MemoryRegistry::new(settings);
        registry.online(record("a", 1, 1)).await.expect("there is room");
        let second = registry.online(record("a", 2, 2)).await;
        assert!(matches!(second, Err(RegistryError::Full(_))), "{second:?}");
        registry.online(record("b", 3, 3)).await.expect("there is room");
        let third = registry.online(record("c", 4, 4)).await;
        assert!(matches!(third, Err(RegistryError::Full(_))), "{third:?}");
        assert_eq!(registry.count().await, Ok(Online { users: 2, sessions: 2 }));
        assert_eq!(registry.offline(&record("a", 1, 1)).await, Ok(true));
        registry.online(record("c", 4, 4)).await.expect("there is room again");
    }
}
