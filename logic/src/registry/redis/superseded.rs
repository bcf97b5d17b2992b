//! Entries of others about sessions that this process has taken over.
//!
//! A gateway told this process of a session that another has stated: the session has moved here. The
//! other, if it lives, will say that it serves it no more. If it is dead, its entry would count for all of
//! the grace, even after the session's end here. So the entry is remembered until its owner's lease
//! has ended, and is then removed; or until it is clear that the owner lives and speaks for itself.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::RedisResult;

use super::{
    Shared,
    connection::Connection,
    entry::{Entry, OwnerId, bucket_of, decode},
    fleet::Standing,
    rebuild,
};

/// Entries removed in one call.
const PER_CALL: usize = 1_000;

/// See the module.
pub(super) struct Superseded {
    entries_max: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    entries: usize,
    /// The oldest first.
    by_owner: HashMap<OwnerId, VecDeque<Met>>,
}

/// When an entry was met, and the entry.
type Met = (Duration, Box<[u8]>);

impl Superseded {
    pub(super) fn new(entries_max: usize) -> Self {
        Self { entries_max, table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic elsewhere can make the count wrong by one, and spoils nothing else.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers an entry. Full: it is not, and counts until its owner has gone for good.
    pub(super) fn add(&self, entry: &Entry, now: Duration) {
        let mut table = self.table();
        if table.entries < self.entries_max {
            table.entries += 1;
            let entries = table.by_owner.entry(entry.owner).or_default();
            entries.push_back((now, entry.encode().into()));
        }
    }

    /// Takes out what is to be removed now. What was met more than `kept` ago, and whose owner lives,
    /// is forgotten.
    fn take(
        &self,
        now: Duration,
        kept: Duration,
        mut standing: impl FnMut(OwnerId) -> Standing,
    ) -> Vec<Box<[u8]>> {
        let mut taken = Vec::new();
        let mut table = self.table();
        let table = &mut *table;
        table.by_owner.retain(|owner, entries| {
            let before = entries.len();
            if standing(*owner) == Standing::Live {
                let old = entries.partition_point(|(since, _)| *since + kept < now);
                entries.drain(..old);
            } else {
                taken.extend(entries.drain(..).map(|(_, entry)| entry));
            }
            table.entries -= before - entries.len();
            !entries.is_empty()
        });
        taken
    }
}

/// Removes what may be removed by now.
pub(super) async fn remove(shared: &Shared, connection: &Connection) -> RedisResult<()> {
    let taken = {
        let mut fleet = shared.fleet();
        let (now, kept) = (fleet.clock(), shared.settings.lease * 2);
        shared.superseded.take(now, kept, |owner| fleet.standing(owner))
    };
    let mut buckets: HashMap<usize, Vec<&[u8]>> = HashMap::new();
    for entry in &taken {
        // What was written by us can be read.
        let Some(user_id) = decode(entry).map(|entry| entry.user_id) else { continue };
        buckets.entry(bucket_of(&user_id)).or_default().push(entry);
    }
    for (bucket, entries) in buckets {
        for entries in entries.chunks(PER_CALL) {
            // What is not removed counts until its owner has gone for good.
            rebuild::remove(shared, connection, bucket, entries).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Entry, OwnerId, Standing, Superseded};
    use crate::registry::conformance::record;

    #[test]
    fn an_entry_is_removed_when_its_owner_is_in_doubt_and_forgotten_when_it_lives_on() {
        let (dead, live) = (OwnerId(*b"is dead."), OwnerId(*b"it lives"));
        let superseded = Superseded::new(2);
        let entry = |owner, id| Entry::new(&record("alice", id, 1), owner, 1);
        let s = Duration::from_secs;
        superseded.add(&entry(dead, 1), s(0));
        superseded.add(&entry(live, 2), s(5));
        superseded.add(&entry(live, 3), s(5));
        assert_eq!(superseded.table().entries, 2, "it is bounded");
        assert!(superseded.take(s(20), s(20), |_| Standing::Live).is_empty());
        let standing = |owner| if owner == dead { Standing::InDoubt } else { Standing::Live };
        let taken = superseded.take(s(20), s(20), standing);
        assert_eq!(taken, [entry(dead, 1).encode().into()]);
        assert!(superseded.take(s(26), s(20), |_| Standing::Live).is_empty());
        assert!(superseded.take(s(26), s(20), |_| Standing::Gone).is_empty(), "forgotten");
        assert_eq!(superseded.table().entries, 0);
    }
}
