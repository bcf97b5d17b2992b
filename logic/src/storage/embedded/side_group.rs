//! Side tables for what comes often (reports, notices and their acknowledgements): several tables
//! that change together, and a writer thread of their own that commits in groups. What people do now
//! and then needs no more than a [`SideTable`](super::SideTable).
//!
//! A change is a closure. It runs on the writer's thread, alone, and reads what was written before
//! it; the changes that wait are made durable together, with one fdatasync, and then answered. What
//! a closure means is the business of its caller; nothing here knows a row.
//!
//! # Bounds
//! At most [`CHANGES_WAITING_MAX`] callers wait for the writer, the next wait before they are queued;
//! [`CHANGES_PER_COMMIT_MAX`] changes make a commit at most; [`READS_IN_FLIGHT_MAX`] questions are
//! answered at once, the next wait.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    thread::JoinHandle,
};

use fjall::{Keyspace, PersistMode, Readable as _, Snapshot};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    EmbeddedStore,
    database::{Tables, failed},
    side::{bounds, each_of},
};
use crate::storage::{
    StoreError,
    side::{Each, GroupRows, GroupWrites, RowSource, Rows},
};

/// Changes waiting for the writer.
const CHANGES_WAITING_MAX: usize = 256;

/// Changes of one commit.
const CHANGES_PER_COMMIT_MAX: usize = 256;

/// Questions answered at once.
const READS_IN_FLIGHT_MAX: u32 = 8;

/// Told whether what the change wrote is durable.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// A change, and whether it wants to be applied.
type Change = Box<dyn FnOnce(&mut GroupWrites<'_>) -> (bool, Answer) + Send>;

/// See the module. Close it before the store that it came from.
pub struct SideGroup {
    changes: Mutex<Option<mpsc::Sender<Change>>>,
    room: RwLock<Option<Arc<Room>>>,
    reads: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// The keyspaces, and what keeps the database open. Fields are dropped in this order.
struct Room {
    keyspaces: Vec<Keyspace>,
    tables: Arc<Tables>,
}

impl EmbeddedStore {
    /// Opens a group of tables, made if they are not there. `name` is the thread's.
    ///
    /// # Errors
    /// When the store is closed, or the engine refuses.
    pub fn side_group(&self, name: &str, tables: &[&str]) -> Result<SideGroup, StoreError> {
        let chat = self.tables.read().unwrap_or_else(PoisonError::into_inner).clone();
        let chat = chat.ok_or(StoreError::Closed)?;
        let keyspaces = tables
            .iter()
            .map(|table| chat.side(&format!("{name}_{table}")))
            .collect::<Result<_, _>>()?;
        let room = Arc::new(Room { keyspaces, tables: chat });
        let (sender, receiver) = mpsc::channel(CHANGES_WAITING_MAX);
        let writer = {
            let room = room.clone();
            std::thread::Builder::new()
                .name(format!("{name}-writer"))
                .spawn(move || write_all(&room, receiver))
                .map_err(|error| StoreError::Io(format!("starting the writer of {name}"), error))?
        };
        Ok(SideGroup {
            changes: Mutex::new(Some(sender)),
            room: RwLock::new(Some(room)),
            reads: Arc::new(Semaphore::new(READS_IN_FLIGHT_MAX as usize)),
            writer: Mutex::new(Some(writer)),
        })
    }
}

impl SideGroup {
    /// Runs a change. What it wrote is durable when this returns Ok; if the change itself fails, or
    /// the commit does, nothing of it is applied.
    ///
    /// # Errors
    /// The change's own, or the store's.
    pub async fn write<T, E>(
        &self,
        change: impl FnOnce(&mut GroupWrites<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let changes = changes.ok_or(StoreError::Closed)?;
        let (reply, outcome) = oneshot::channel();
        let change: Change = Box::new(move |transaction| {
            let result = change(transaction);
            let apply = result.is_ok();
            let answer: Answer = Box::new(move |durable| {
                // A caller that went away is not told; its change stands all the same.
                reply.send(durable.map_err(E::from).and(result)).ok();
            });
            (apply, answer)
        });
        let ended = || StoreError::Failed("the writer has ended".into());
        changes.send(change).await.map_err(|_| ended())?;
        drop(changes);
        outcome.await.map_err(|_| ended())?
    }

    /// Answers a question on a thread that may block, over one consistent view of what is durable.
    ///
    /// # Errors
    /// The question's own, or the store's.
    pub async fn read<T, E>(
        &self,
        question: impl FnOnce(&GroupRows<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let permit = self.reads.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let room = self.room.read().unwrap_or_else(PoisonError::into_inner).clone();
        let room = room.ok_or(StoreError::Closed)?;
        let answer = tokio::task::spawn_blocking(move || {
            let view = Moment { room: &room, snapshot: room.tables.side_snapshot() };
            let answer = question(&GroupRows::new(&view));
            drop(view);
            // In this order: who holds all permits knows that no reader has the tables.
            drop(room);
            drop(permit);
            answer
        });
        answer.await.map_err(|error| StoreError::Failed(format!("a reader ended: {error}")))?
    }

    /// Finishes what was begun and lets go of the database; later calls fail with
    /// [`StoreError::Closed`].
    ///
    /// # Errors
    /// When it was closed before, or its writer had ended.
    pub async fn close(&self) -> Result<(), StoreError> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(changes.ok_or(StoreError::Closed)?);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ended = tokio::task::spawn_blocking(move || writer.map(JoinHandle::join)).await;
        if let Ok(all) = self.reads.acquire_many(READS_IN_FLIGHT_MAX).await {
            all.forget();
        }
        self.reads.close();
        drop(self.room.write().unwrap_or_else(PoisonError::into_inner).take());
        match ended {
            Ok(Some(Ok(()))) => Ok(()),
            _ => Err(StoreError::Failed("the writer ended early".into())),
        }
    }
}

/// Runs until every sender is gone.
fn write_all(room: &Room, mut changes: mpsc::Receiver<Change>) {
    while let Some(first) = changes.blocking_recv() {
        let mut written: Vec<Rows> = room.keyspaces.iter().map(|_| Rows::new()).collect();
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some(change) = next.take() {
            let mut transaction = GroupWrites::new(room, &written, written.len());
            let (apply, answer) = change(&mut transaction);
            let own = transaction.into_changes();
            if apply {
                for (table, rows) in written.iter_mut().zip(own) {
                    table.extend(rows);
                }
            }
            answers.push(answer);
            if answers.len() < CHANGES_PER_COMMIT_MAX {
                next = changes.try_recv().ok();
            }
        }
        match commit(room, written) {
            Ok(()) => answers.into_iter().for_each(|answer| answer(Ok(()))),
            Err(error) => {
                tracing::error!(%error, changes = answers.len(), "changes were not stored");
                answers.into_iter().for_each(|answer| answer(Err(error.again())));
            }
        }
    }
}

fn commit(room: &Room, written: Vec<Rows>) -> Result<(), StoreError> {
    if written.iter().all(BTreeMap::is_empty) {
        return Ok(());
    }
    room.tables.check_space()?;
    let mut batch = room.tables.side_batch().durability(Some(PersistMode::SyncData));
    for (keyspace, rows) in room.keyspaces.iter().zip(written) {
        for (key, value) in rows {
            match value {
                Some(value) => batch.insert(keyspace, key, value),
                None => batch.remove(keyspace, key),
            }
        }
    }
    batch.commit().map_err(failed)
}

/// What is durable, for the one writer.
impl RowSource for Room {
    fn get(&self, table: usize, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.keyspaces[table].get(key).map_err(failed)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn range(
        &self,
        table: usize,
        start: &[u8],
        end: Option<&[u8]>,
        each: &mut Each<'_>,
    ) -> Result<(), StoreError> {
        each_of(self.keyspaces[table].range::<&[u8], _>(bounds(start, end)), each)
    }
}

/// A consistent view of what is durable.
struct Moment<'a> {
    room: &'a Room,
    snapshot: Snapshot,
}

impl RowSource for Moment<'_> {
    fn get(&self, table: usize, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.snapshot.get(&self.room.keyspaces[table], key).map_err(failed)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn range(
        &self,
        table: usize,
        start: &[u8],
        end: Option<&[u8]>,
        each: &mut Each<'_>,
    ) -> Result<(), StoreError> {
        let keyspace = &self.room.keyspaces[table];
        each_of(self.snapshot.range::<&[u8], _>(keyspace, bounds(start, end)), each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Store as _, embedded::Options};

    fn keys(transaction: &GroupWrites<'_>, prefix: &[u8], from: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        transaction
            .scan(0, prefix, from, |key, value| {
                found.push(String::from_utf8_lossy(&[key, b"=", value].concat()).into_owned());
                Ok(true)
            })
            .expect("read");
        found
    }

    #[tokio::test]
    async fn a_change_sees_what_came_before_it_and_a_refused_one_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || {
            let options = Options { free_bytes_min: 0, ..Options::new(folder.path()) };
            let store = EmbeddedStore::open(options).expect("opened");
            let group = store.side_group("test", &["one", "two"]).expect("opened");
            (store, group)
        };
        let (store, group) = open();
        let put = |pairs: &'static [(&str, &str)]| {
            move |transaction: &mut GroupWrites<'_>| {
                for (key, value) in pairs {
                    transaction.put(0, key.as_bytes().to_vec(), value.as_bytes().to_vec());
                }
                Ok::<_, StoreError>(())
            }
        };
        group
            .write(put(&[("a1", "x"), ("a3", "x"), ("a5", "x"), ("b1", "x")]))
            .await
            .expect("stored");
        let seen = group.write(move |transaction| {
            put(&[("a2", "y"), ("a3", "y"), ("a9", "y")])(transaction)?;
            transaction.remove(0, b"a5".to_vec());
            Ok::<_, StoreError>((keys(transaction, b"a", b""), keys(transaction, b"a", b"a3")))
        });
        let (all, later) = seen.await.expect("stored");
        assert_eq!(all, ["a1=x", "a2=y", "a3=y", "a9=y"]);
        assert_eq!(later, ["a3=y", "a9=y"]);
        let refused = group
            .write(move |transaction| {
                put(&[("a4", "z")])(transaction)?;
                Err::<(), _>(StoreError::NotFound)
            })
            .await;
        assert!(matches!(refused, Err(StoreError::NotFound)));
        group.close().await.expect("closed");
        assert!(matches!(group.write(put(&[])).await, Err(StoreError::Closed)));
        store.close().await.expect("closed");
        let (_store, group) = open();
        let read = group.read(|view| {
            let mut found = Vec::new();
            view.scan(0, b"a", b"", |key, _| {
                found.push(String::from_utf8_lossy(key).into_owned());
                Ok(found.len() < 3)
            })?;
            Ok::<_, StoreError>((found, view.get(0, b"a3")?, view.get(1, b"a3")?))
        });
        let (found, changed, other) = read.await.expect("read");
        assert_eq!(found, ["a1", "a2", "a3"]);
        assert_eq!((changed.as_deref(), other), (Some(&b"y"[..]), None));
    }

    #[tokio::test]
    async fn a_full_disk_refuses_a_change_and_applies_nothing_of_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let options = Options { free_bytes_min: u64::MAX, ..Options::new(folder.path()) };
        let store = EmbeddedStore::open(options).expect("opened");
        let group = store.side_group("test", &["one"]).expect("opened");
        let change = |transaction: &mut GroupWrites<'_>| {
            transaction.put(0, b"k".to_vec(), b"v".to_vec());
            Ok::<_, StoreError>(())
        };
        assert!(matches!(group.write(change).await, Err(StoreError::Full(_))));
        let found = group.read(|view| view.get(0, b"k")).await.expect("read");
        assert_eq!(found, None);
    }
}
