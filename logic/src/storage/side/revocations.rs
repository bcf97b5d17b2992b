//! [`Revocations`] on a side table: one row a user who logged out everywhere. The key is the user
//! id, the row the moment and what was kept.
//!
//! Which users have a row is remembered as 8 bytes each, so that a login of anybody else reads
//! nothing.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::{Cursor, Follow, SideRows, SideTable, SideWrites, Sides};
use crate::storage::{KeptSession, Revocation, Revocations, StoreError, limits::USER_ID_BYTES_MAX};

/// The table's name.
const NAME: &str = "revocations";

/// Users with a row. One more is refused ([`StoreError::Full`]) until old rows are forgotten.
pub const REVOCATIONS_MAX: usize = 4_000_000;

/// Rows forgotten in one transaction.
const FORGET_BATCH: usize = 128;

/// See the module.
pub struct RevocationTable {
    table: SideTable,
    users: Arc<Users>,
    /// How far what others have written was looked at.
    seen: Mutex<Cursor>,
}

/// The users who have a row, by hash: with a key of its own for each process, so nobody outside can
/// make two of them meet; and if two do, it costs a look-up.
struct Users {
    hasher: RandomState,
    hashes: RwLock<HashSet<u64>>,
}

impl Users {
    fn hash(&self, user_id: &[u8]) -> u64 {
        self.hasher.hash_one(user_id)
    }
}

impl RevocationTable {
    /// Reads who has a row.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn open(sides: &dyn Sides) -> Result<Self, StoreError> {
        let table = sides.side(NAME)?;
        let seen = Mutex::new(table.cursor().await?);
        let hasher = RandomState::new();
        let known = hasher.clone();
        let hashes = table.read(move |rows| {
            let mut hashes = HashSet::new();
            each(rows, Vec::new(), |user_id, _| {
                hashes.insert(known.hash_one(user_id));
                true
            })?;
            Ok(hashes)
        });
        let hashes = RwLock::new(hashes.await?);
        Ok(Self { table, users: Arc::new(Users { hasher, hashes }), seen })
    }

    fn count(&self) -> usize {
        self.users.hashes.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[async_trait]
impl Revocations for RevocationTable {
    async fn revoke(
        &self,
        user_id: &str,
        revocation: Revocation,
    ) -> Result<Revocation, StoreError> {
        if !self.may_have(user_id) && self.count() >= REVOCATIONS_MAX {
            return Err(StoreError::Full(format!("{REVOCATIONS_MAX} users have logged out")));
        }
        // Before the row is there, so that nobody finds the row and not its user.
        let hash = self.users.hash(user_id.as_bytes());
        self.users.hashes.write().unwrap_or_else(PoisonError::into_inner).insert(hash);
        let key = user_id.as_bytes().to_vec();
        let act = move |writes: &mut SideWrites<'_>| {
            if let Some(row) = writes.get(&key)? {
                let earlier = decode(&row)?;
                if earlier.issued_before_ms > revocation.issued_before_ms {
                    return Ok(earlier);
                }
            }
            writes.put(key, encode(&revocation));
            Ok(revocation)
        };
        self.table.write(act).await
    }

    async fn of(&self, user_id: &str) -> Result<Option<Revocation>, StoreError> {
        if !self.may_have(user_id) {
            return Ok(None);
        }
        let key = user_id.as_bytes().to_vec();
        self.table.read(move |rows| rows.get(&key)?.map(|row| decode(&row)).transpose()).await
    }

    fn may_have(&self, user_id: &str) -> bool {
        let hashes = self.users.hashes.read().unwrap_or_else(PoisonError::into_inner);
        !hashes.is_empty() && hashes.contains(&self.users.hash(user_id.as_bytes()))
    }

    async fn forget_before(&self, issued_before_ms: i64) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        let mut from = Vec::new();
        loop {
            let start = from.clone();
            let (old, next) = self
                .table
                .read(move |rows| {
                    let mut old: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
                    let mut next = None;
                    each(rows, start, |user_id, row| {
                        if old.len() == FORGET_BATCH {
                            next = Some(user_id.to_vec());
                            return false;
                        }
                        if decode(row).is_ok_and(|row| row.issued_before_ms < issued_before_ms) {
                            old.insert(user_id.to_vec(), row.to_vec());
                        }
                        true
                    })?;
                    Ok((old, next))
                })
                .await?;
            if !old.is_empty() {
                forgotten += old.len() as u64;
                // A user who logged out again meanwhile keeps the newer row.
                let act = move |writes: &mut SideWrites<'_>| {
                    for (user_id, row) in old {
                        if writes.get(&user_id)?.is_some_and(|found| found == row) {
                            writes.remove(user_id);
                        }
                    }
                    Ok(())
                };
                self.table.write(act).await?;
            }
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        // The hashes of those forgotten stay until the next start: each costs a look-up that finds
        // nothing, and taking it away could hide the row of a user who logs out at this moment.
        Ok(forgotten)
    }
}

#[async_trait]
impl Follow for RevocationTable {
    async fn follow(&self) -> Result<(), StoreError> {
        let mut seen = self.seen.lock().await;
        loop {
            let written = self.table.news(&mut seen).await?;
            if written.is_empty() {
                return Ok(());
            }
            let mut hashes = self.users.hashes.write().unwrap_or_else(PoisonError::into_inner);
            hashes.extend(written.iter().map(|row| self.users.hash(&row.key)));
        }
    }
}

/// All rows from a user on, in order, as long as more are wanted.
fn each(
    rows: &SideRows<'_>,
    from: Vec<u8>,
    mut more: impl FnMut(&[u8], &[u8]) -> bool,
) -> Result<(), StoreError> {
    let last = vec![0xff; USER_ID_BYTES_MAX + 1];
    rows.range(from..=last, |user_id, row| Ok(more(user_id, row)))
}

/// The moment; then, if a session was kept, its two numbers and its gateway.
fn encode(revocation: &Revocation) -> Vec<u8> {
    let mut row = revocation.issued_before_ms.to_be_bytes().to_vec();
    if let Some(kept) = &revocation.kept {
        row.extend_from_slice(&kept.session_id.to_be_bytes());
        row.extend_from_slice(&kept.logged_in_at_ms.to_be_bytes());
        row.extend_from_slice(kept.gateway_id.as_bytes());
    }
    row
}

fn decode(row: &[u8]) -> Result<Revocation, StoreError> {
    let corrupt = || StoreError::Corrupt("a row of table revocations: it is too short".to_owned());
    let (moment, rest) = row.split_first_chunk().ok_or_else(corrupt)?;
    let issued_before_ms = i64::from_be_bytes(*moment);
    if rest.is_empty() {
        return Ok(Revocation { issued_before_ms, kept: None });
    }
    let (session_id, rest) = rest.split_first_chunk().ok_or_else(corrupt)?;
    let (logged_in_at, gateway_id) = rest.split_first_chunk().ok_or_else(corrupt)?;
    let kept = KeptSession {
        gateway_id: String::from_utf8_lossy(gateway_id).into_owned(),
        session_id: u64::from_be_bytes(*session_id),
        logged_in_at_ms: i64::from_be_bytes(*logged_in_at),
    };
    Ok(Revocation { issued_before_ms, kept: Some(kept) })
}

#[cfg(test)]
mod tests {
    use super::RevocationTable;
    use crate::storage::{
        Revocations as _, Store as _, StoreError,
        conformance::revocations::{self, revocation},
        embedded::{EmbeddedStore, tests::options},
    };

    async fn open(directory: &std::path::Path) -> (EmbeddedStore, RevocationTable) {
        let store = EmbeddedStore::open(options(directory)).expect("opened");
        let revocations = RevocationTable::open(&store).await.expect("read");
        (store, revocations)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_keeps_the_contract_of_revocations() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, revocations) = open(folder.path()).await;
        revocations::run(&revocations).await;
        store.close().await.expect("closed");
        assert!(matches!(revocations.of("alice").await, Err(StoreError::Closed)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_restart_forgets_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, revocations) = open(folder.path()).await;
        let kept = revocation(7, Some(3));
        revocations.revoke("alice", kept.clone()).await.expect("stored");
        revocations.revoke("bob", revocation(9, None)).await.expect("stored");
        store.close().await.expect("closed");
        drop((store, revocations));
        let (_store, revocations) = open(folder.path()).await;
        assert_eq!(revocations.of("alice").await.expect("read"), Some(kept));
        assert!(revocations.may_have("bob"));
        assert!(!revocations.may_have("carol"));
    }
}
