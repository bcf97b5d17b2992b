//! The tables of [`side`](crate::storage::side) in the same database as the messages: one directory,
//! one lock, one journal, one end.
//!
//! A [`SideTable`] is a sorted map of bytes. Reads see one moment; a write reads and changes in one
//! transaction, one at a time per table, and is durable (fdatasync) when it is answered. A write
//! therefore costs what a commit of messages costs and shares nothing with it, so this is for what
//! people do now and then, not for what every message does.

use std::{
    ops::Bound,
    sync::{Arc, PoisonError, RwLock},
};

use fjall::{Iter, Keyspace, Readable as _, Snapshot};
use tokio::sync::{Mutex, Semaphore};

use super::database::{Tables, failed};
use crate::storage::{
    StoreError,
    side::{Each, RowSource, SideRows, SideWrites},
};

/// Questions and changes of all side tables that run at once; the next wait.
const IN_FLIGHT_MAX: u32 = 8;

/// What the side tables of one store share.
pub(super) struct Sides {
    tables: Arc<RwLock<Option<Arc<Tables>>>>,
    in_flight: Arc<Semaphore>,
}

impl Sides {
    pub(super) fn new(tables: Arc<RwLock<Option<Arc<Tables>>>>) -> Self {
        Self { tables, in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize)) }
    }

    /// Waits for what is under way; what comes later finds the store closed.
    pub(super) async fn close(&self) {
        if let Ok(all) = self.in_flight.acquire_many(IN_FLIGHT_MAX).await {
            all.forget();
        }
        self.in_flight.close();
    }

    fn tables(&self) -> Result<Arc<Tables>, StoreError> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner).clone();
        tables.ok_or(StoreError::Closed)
    }
}

/// See the module. Cheap to clone; clones are the same table.
#[derive(Clone)]
pub struct SideTable {
    sides: Arc<Sides>,
    name: &'static str,
    writing: Arc<Mutex<()>>,
}

impl SideTable {
    pub(super) fn open(sides: &Arc<Sides>, name: &'static str) -> Result<Self, StoreError> {
        // Made now, so that a failure shows at the start and not at the first use.
        sides.tables()?.side(name)?;
        Ok(Self { sides: Arc::clone(sides), name, writing: Arc::default() })
    }

    /// Answers a question about one moment, on a thread that may block.
    ///
    /// # Errors
    /// The question's own, [`StoreError::Closed`], and what the engine refuses.
    pub async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&SideRows<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let name = self.name;
        self.run(move |tables| question(&SideRows::new(&Moment::new(tables, name)?))).await
    }

    /// Reads and changes in one transaction; durable when it is answered. When `act` fails, or
    /// changes nothing, nothing is written.
    ///
    /// # Errors
    /// The act's own, [`StoreError::Closed`], [`StoreError::Full`], and what the engine refuses.
    pub async fn write<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut SideWrites<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let writing = Arc::clone(&self.writing).lock_owned().await;
        let name = self.name;
        self.run(move |tables| {
            // Held by the thread and not by the caller, who may go away in the middle.
            let _writing = writing;
            let moment = Moment::new(tables, name)?;
            let mut writes = SideWrites::new(&moment);
            let done = act(&mut writes)?;
            let changes = writes.into_changes();
            if !changes.is_empty() {
                tables.commit_side(&moment.keyspace, changes)?;
            }
            Ok(done)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Tables) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let in_flight = Arc::clone(&self.sides.in_flight);
        let permit = in_flight.acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let tables = self.sides.tables()?;
        let done = tokio::task::spawn_blocking(move || {
            let done = act(&tables);
            // In this order: who holds all permits knows that nobody has the tables.
            drop(tables);
            drop(permit);
            done
        });
        done.await.map_err(|error| StoreError::Failed(format!("a thread ended: {error}")))?
    }
}

/// The rows of a side table at one moment.
struct Moment {
    keyspace: Keyspace,
    snapshot: Snapshot,
}

impl Moment {
    fn new(tables: &Tables, name: &str) -> Result<Self, StoreError> {
        Ok(Self { keyspace: tables.side(name)?, snapshot: tables.side_snapshot() })
    }
}

impl RowSource for Moment {
    fn get(&self, _: usize, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.snapshot.get(&self.keyspace, key).map_err(failed)?;
        Ok(found.map(|value| value.to_vec()))
    }

    fn range(
        &self,
        _: usize,
        start: &[u8],
        end: Option<&[u8]>,
        each: &mut Each<'_>,
    ) -> Result<(), StoreError> {
        each_of(self.snapshot.range::<&[u8], _>(&self.keyspace, bounds(start, end)), each)
    }
}

/// From a key on and before another.
pub(super) fn bounds<'a>(
    start: &'a [u8],
    end: Option<&'a [u8]>,
) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded))
}

/// Hands rows on as long as more are wanted.
pub(super) fn each_of(rows: Iter, each: &mut Each<'_>) -> Result<(), StoreError> {
    for row in rows {
        let (key, value) = row.into_inner().map_err(failed)?;
        if !each(&key, &value)? {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{EmbeddedStore, tests::options};
    use crate::storage::{Store as _, StoreError, side::SideWrites};

    async fn count(store: &EmbeddedStore) -> u64 {
        let table = store.side("counters").unwrap();
        let value = table.read(|rows| rows.get(b"n")).await.unwrap();
        value.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn writes_at_once_lose_nothing_and_survive_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(options(directory.path())).unwrap();
        let table = store.side("counters").unwrap();
        let writers: Vec<_> = (0..20)
            .map(|_| {
                let table = table.clone();
                tokio::spawn(async move {
                    let add = table.write(|rows| {
                        let n = rows
                            .get(b"n")?
                            .map_or(0, |b| u64::from_be_bytes(b.try_into().unwrap()));
                        rows.put(b"n".to_vec(), (n + 1).to_be_bytes().to_vec());
                        Ok(())
                    });
                    add.await
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap().unwrap();
        }
        let refused = table
            .write(|rows| {
                rows.remove(b"n".to_vec());
                Err::<(), _>(StoreError::NotFound)
            })
            .await;
        assert!(matches!(refused, Err(StoreError::NotFound)), "{refused:?}");
        assert_eq!(count(&store).await, 20);
        store.close().await.unwrap();
        assert!(matches!(table.read(|_| Ok(())).await, Err(StoreError::Closed)));
        assert!(matches!(table.write(|_| Ok(())).await, Err(StoreError::Closed)));
        // The table does not keep the directory from being opened again.
        let store = EmbeddedStore::open(options(directory.path())).unwrap();
        assert_eq!(count(&store).await, 20);
        store.close().await.unwrap();
    }

    #[tokio::test]
    async fn ranges_show_one_moment_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(options(directory.path())).unwrap();
        let (table, other) = (store.side("a").unwrap(), store.side("b").unwrap());
        other
            .write(|rows| {
                rows.put(b"x5".to_vec(), vec![]);
                Ok(())
            })
            .await
            .unwrap();
        let put = |rows: &mut SideWrites<'_>| {
            for n in 0..9_u8 {
                rows.put(vec![b'x', n], vec![n]);
            }
            rows.put(b"y".to_vec(), vec![]);
            rows.before().prefix(b"x", |_, _| panic!("nothing was there before"))
        };
        table.write(put).await.unwrap();
        let seen = table
            .read(|rows| {
                let (mut some, mut all) = (vec![], vec![]);
                rows.prefix(b"x", |_, value| {
                    some.push(value[0]);
                    Ok(some.len() < 3)
                })?;
                rows.range(b"x".to_vec()..=vec![b'x', 6], |_, value| {
                    all.push(value[0]);
                    Ok(true)
                })?;
                Ok((some, all))
            })
            .await
            .unwrap();
        assert_eq!(seen, (vec![0, 1, 2], vec![0, 1, 2, 3, 4, 5, 6]));
        store.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_refuses_writes_and_goes_on_reading() {
        let directory = tempfile::tempdir().unwrap();
        let full = super::super::Options { free_bytes_min: u64::MAX, ..options(directory.path()) };
        let store = EmbeddedStore::open(full).unwrap();
        let table = store.side("a").unwrap();
        let refused = table
            .write(|rows| {
                rows.put(vec![1], vec![]);
                Ok(())
            })
            .await;
        assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
        assert_eq!(table.read(|rows| rows.get(&[1])).await.unwrap(), None);
        store.close().await.unwrap();
    }
}
