//! Frees the engine's tables in memory outside the engine's locks.
//!
//! The engine lets go of a table in memory, when it is in a file, under the lock that each read and
//! write of its keyspace takes. To free one, a hundred thousand rows in as many pieces, takes some 50 ms
//! of a processor, and several times that when the engine's threads have to wait for one (see
//! `engine_nice`): so long every commit would wait. So there is one more reference to each, ours. The
//! engine's release then costs nothing, and a thread of our own frees what nobody else has any more.
//!
//! It keeps no table from being written, and none in memory for longer than a look takes.

use std::{
    any::Any,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::Duration,
};

use fjall::{AbstractTree as _, Keyspace};

/// Tables on their way to the thread. Without room the engine frees the table itself, as it would
/// without us.
const WAITING_MAX: usize = 64;

/// How often it is looked whether the engine has let go of a table that takes no more rows.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A table in memory, whatever its type.
type Memtable = Arc<dyn Any + Send + Sync>;

/// References to the tables in memory of some keyspaces.
#[derive(Debug)]
pub struct Memtables {
    /// Where the table is that takes a keyspace's rows now, as far as we know. No other can be there
    /// while we have a reference to it.
    newest: Mutex<Vec<usize>>,
    freeing: SyncSender<(usize, Memtable)>,
}

impl Memtables {
    /// Starts the thread. `prepare` is called on it, to set its priority.
    pub fn start(keyspaces: usize, prepare: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (freeing, tables) = sync_channel(WAITING_MAX);
        std::thread::Builder::new().name("store-freeing".into()).spawn(move || {
            prepare();
            free(keyspaces, &tables);
        })?;
        Ok(Self { newest: Mutex::new(vec![0; keyspaces]), freeing })
    }

    /// Takes references to tables that were not there before: to be called from time to time while rows are
    /// written, always with the same keyspaces.
    pub fn look(&self, keyspaces: &[Keyspace]) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, (keyspace, newest)) in keyspaces.iter().zip(newest.iter_mut()).enumerate() {
            // The engine has no other way, and of this one its documentation says nothing.
            let table = keyspace.tree.active_memtable();
            let place = Arc::as_ptr(&table).addr();
            if *newest != place {
                *newest = place;
                let _no_room = self.freeing.try_send((index, table));
            }
        }
    }
}

/// Frees tables of which this has the last reference, until nobody sends any more.
fn free(keyspaces: usize, tables: &Receiver<(usize, Memtable)>) {
    let mut kept: Vec<Vec<Memtable>> = (0..keyspaces).map(|_| Vec::new()).collect();
    loop {
        // The last of a keyspace takes rows. Only those before it will be let go.
        let is_over = kept.iter().any(|tables| tables.len() > 1);
        let next = match is_over {
            true => tables.recv_timeout(LOOK_INTERVAL),
            false => tables.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok((keyspace, table)) => kept[keyspace].push(table),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for tables in &mut kept {
            tables.retain(|table| Arc::strong_count(table) > 1);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        slice,
        sync::{Arc, mpsc},
        time::{Duration, Instant},
    };

    use fjall::{AbstractTree as _, Database, KeyspaceCreateOptions};

    use super::Memtables;

    const LONG: Duration = Duration::from_secs(10);

    /// Says on which thread it was freed.
    struct Probe(mpsc::Sender<Option<String>>);

    impl Drop for Probe {
        fn drop(&mut self) {
            let _nobody_asks = self.0.send(std::thread::current().name().map(str::to_owned));
        }
    }

    #[test]
    fn the_last_reference_is_ours_and_freed_on_our_thread() {
        let memtables = Memtables::start(2, || ()).unwrap();
        let (freed, told) = mpsc::channel();
        let engines: Vec<Arc<Probe>> = (0..3).map(|_| Arc::new(Probe(freed.clone()))).collect();
        for (keyspace, table) in [(0, &engines[0]), (1, &engines[1]), (0, &engines[2])] {
            memtables.freeing.send((keyspace, table.clone())).unwrap();
        }
        let mut engines = engines.into_iter();
        let first = engines.next().unwrap();
        assert!(
            told.recv_timeout(Duration::from_millis(100)).is_err(),
            "the engine has all of them"
        );
        drop(first);
        assert_eq!(told.recv_timeout(LONG).unwrap().as_deref(), Some("store-freeing"));
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "two take rows still");
        // The store is closed: our references end first here, the engine's last.
        drop(memtables);
        drop(engines);
        assert!(told.recv_timeout(LONG).is_ok() && told.recv_timeout(LONG).is_ok());
    }

    #[test]
    fn a_table_that_is_in_a_file_does_not_stay_in_memory() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::builder(directory.path()).open().unwrap();
        let keyspace = database.keyspace("rows", KeyspaceCreateOptions::default).unwrap();
        let memtables = Memtables::start(1, || ()).unwrap();
        keyspace.insert("a", "b").unwrap();
        memtables.look(slice::from_ref(&keyspace));
        let first = Arc::downgrade(&keyspace.tree.active_memtable());
        assert!(first.strong_count() >= 2, "the engine's reference and ours");
        let deadline = Instant::now() + LONG;
        // The engine drops versions that nobody reads when it makes new ones.
        while first.strong_count() > 0 {
            assert!(Instant::now() < deadline, "{} references are left", first.strong_count());
            keyspace.rotate_memtable().unwrap();
            keyspace.insert("a", "b").unwrap();
            memtables.look(slice::from_ref(&keyspace));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
