//! The data directory: who may use it, whose format it has, and the engine's tables inside it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable as _,
    Snapshot,
};

use super::{
    Options,
    encoding::DecodeError,
    keys::{Table, VERSION_KEY},
    memtables::Memtables,
    rows::Row,
};
use crate::storage::StoreError;

/// First line of the format file; the number changes when older programs cannot read the data.
const FORMAT: &str = "millrace embedded store 3\n";
const FORMAT_FILE: &str = "FORMAT";
const LOCK_FILE: &str = "LOCK";

/// How often it is looked whether the tables in memory are written.
const MEMTABLES_PAUSE: Duration = Duration::from_millis(2);

/// Threads of the engine. More than it would take for small machines: while some merge files, which
/// may take long, another has to write what is in memory, before that is too much.
const ENGINE_THREADS: usize = 4;

/// So much may stay in memory, and in the journal, when the store is closed.
const MEMTABLES_LEFT_BYTES_MAX: u64 = 1 << 20;

/// The changes of one commit: rows to write, or `None` to remove. Sorted, as the engine's
/// memtable likes it best.
#[derive(Default)]
pub struct Changes {
    tables: [BTreeMap<Vec<u8>, Option<Vec<u8>>>; Table::ALL.len()],
}

impl Changes {
    /// What becomes of a row, if anything: `Some(None)` is its end.
    pub fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.tables[table as usize].get(key)
    }

    /// A row to write.
    pub fn put(&mut self, table: Table, key: Vec<u8>, row: Vec<u8>) {
        self.tables[table as usize].insert(key, Some(row));
    }

    /// A row to remove.
    pub fn remove(&mut self, table: Table, key: Vec<u8>) {
        self.tables[table as usize].insert(key, None);
    }

    /// What becomes of the rows of a range of keys.
    pub fn range(
        &self,
        table: Table,
        range: RangeInclusive<Vec<u8>>,
    ) -> impl Iterator<Item = (&Vec<u8>, &Option<Vec<u8>>)> {
        self.tables[table as usize].range(range)
    }

    /// Everything that is to be done, table by table in the order of the keys.
    #[cfg(feature = "postgres")]
    pub fn rows(&self) -> impl Iterator<Item = (Table, &Vec<u8>, Option<&Vec<u8>>)> {
        Table::ALL
            .into_iter()
            .zip(&self.tables)
            .flat_map(|(table, rows)| rows.iter().map(move |(key, row)| (table, key, row.as_ref())))
    }

    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.tables.iter().all(BTreeMap::is_empty)
    }
}

/// The open engine. Dropping it ends the engine's threads and frees the directory.
pub struct Tables {
    // Before the lock: the directory is free when nobody writes in it any more.
    database: Database,
    keyspaces: Vec<Keyspace>,
    memtables: Memtables,
    directory: PathBuf,
    free_bytes_min: u64,
    memtable_bytes_max: u64,
    _lock: File,
}

impl Tables {
    /// Opens the directory, or makes a new store in an empty one.
    pub fn open(options: &Options) -> Result<Self, StoreError> {
        let directory = &options.directory;
        fs::create_dir_all(directory).map_err(|error| at(directory, error))?;
        let lock = lock(directory)?;
        check_format(directory)?;
        let database = open_behind(options).map_err(|error| match error {
            fjall::Error::Locked => StoreError::InUse(directory.clone()),
            error => failed(error),
        })?;
        let keyspace_options =
            || KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes_max);
        let keyspaces = Table::ALL
            .iter()
            .map(|table| database.keyspace(table.name(), keyspace_options))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let nice = options.engine_nice;
        let memtables = Memtables::start(Table::ALL.len(), move || be_nicer(nice))
            .map_err(|error| at(directory, error))?;
        Ok(Self {
            database,
            keyspaces,
            memtables,
            directory: directory.clone(),
            free_bytes_min: options.free_bytes_min,
            memtable_bytes_max: options.memtable_bytes_max,
            _lock: lock,
        })
    }

    /// The newest state of a row.
    pub fn get<R: Row>(&self, table: Table, key: &[u8]) -> Result<Option<R>, StoreError> {
        let value = self.keyspace(table).get(key).map_err(failed)?;
        value.map(|value| decode(table, &value)).transpose()
    }

    /// The version of the newest commit.
    pub fn version(&self) -> Result<u64, StoreError> {
        let value = self.keyspace(Table::Conversations).get(VERSION_KEY).map_err(failed)?;
        value.map_or(Ok(0), |value| {
            let bytes = value[..].try_into();
            bytes
                .map(u64::from_be_bytes)
                .map_err(|_| corrupt(Table::Conversations, DecodeError::Short))
        })
    }

    /// A consistent view of everything that was durable when it was made.
    pub fn view(&self) -> View<'_> {
        View { tables: self, snapshot: self.database.snapshot() }
    }

    /// Writes all changes and the new version as one batch; durable (fdatasync) on return. The
    /// changes become visible together, after that.
    pub fn commit(&self, changes: Changes, version: u64) -> Result<(), StoreError> {
        self.check_space()?;
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for (keyspace, rows) in self.keyspaces.iter().zip(changes.tables) {
            for (key, value) in rows {
                match value {
                    Some(value) => batch.insert(keyspace, key, value),
                    None => batch.remove(keyspace, key),
                }
            }
        }
        batch.insert(self.keyspace(Table::Conversations), VERSION_KEY, version.to_be_bytes());
        batch.commit().map_err(failed)?;
        self.memtables.look(&self.keyspaces);
        Ok(())
    }

    /// A table of another matter, made if it is not there; see [`side`](super::side).
    pub fn side(&self, name: &str) -> Result<Keyspace, StoreError> {
        let options =
            || KeyspaceCreateOptions::default().max_memtable_size(self.memtable_bytes_max);
        self.database.keyspace(name, options).map_err(failed)
    }

    /// A view of everything, for the tables of other matters.
    pub fn side_snapshot(&self) -> Snapshot {
        self.database.snapshot()
    }

    /// An empty batch, for several tables of another matter.
    pub fn side_batch(&self) -> OwnedWriteBatch {
        self.database.batch()
    }

    /// Writes the changes of one side table as one batch; durable (fdatasync) on return.
    pub fn commit_side(
        &self,
        keyspace: &Keyspace,
        changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    ) -> Result<(), StoreError> {
        self.check_space()?;
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(keyspace, key, value),
                None => batch.remove(keyspace, key),
            }
        }
        batch.commit().map_err(failed)
    }

    /// Makes everything durable, file sizes included.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.database.persist(PersistMode::SyncAll).map_err(failed)
    }

    /// Writes every table in memory, those of other matters as well, into a file, so that the next start
    /// puts nothing of the journal back into memory. Says whether all of them were written within
    /// `limit`; what was not is put back as after a crash. Little is left where it is: it is read in
    /// milliseconds, and a file of it would have to be merged. Nobody may write meanwhile.
    pub fn empty_memtables(&self, limit: Duration) -> Result<bool, StoreError> {
        if self.memtable_bytes() < MEMTABLES_LEFT_BYTES_MAX {
            return Ok(true);
        }
        // What is in the journal is safe; the last free space is not spent on having it twice.
        self.check_space()?;
        let deadline = Instant::now() + limit;
        let options =
            || KeyspaceCreateOptions::default().max_memtable_size(self.memtable_bytes_max);
        let names = self.database.list_keyspace_names();
        let keyspaces: Vec<Keyspace> = names
            .iter()
            .map(|name| self.database.keyspace(name, options))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        for keyspace in &keyspaces {
            // The engine has no other way, and of this one its documentation says nothing.
            keyspace.rotate_memtable().map_err(failed)?;
        }
        // A worker of the engine that has failed writes no more.
        while keyspaces.iter().any(|keyspace| keyspace.sealed_memtable_count() > 0) {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(MEMTABLES_PAUSE);
        }
        Ok(true)
    }

    /// Bytes in memory that are in no file but the journal.
    pub fn memtable_bytes(&self) -> u64 {
        self.database.write_buffer_size()
    }

    /// Refuses to write into the last free space: the engine needs room for flushing what it has
    /// in memory, and does not survive a write that fails half-way.
    pub fn check_space(&self) -> Result<(), StoreError> {
        let space = rustix::fs::statvfs(&self.directory)
            .map_err(|error| at(&self.directory, error.into()))?;
        let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
        if free_bytes < self.free_bytes_min {
            return Err(StoreError::Full(format!(
                "{} has {free_bytes} bytes left, and {} are kept free",
                self.directory.display(),
                self.free_bytes_min
            )));
        }
        Ok(())
    }

    fn keyspace(&self, table: Table) -> &Keyspace {
        &self.keyspaces[table as usize]
    }
}

/// A consistent view of the tables; later commits do not show in it.
pub struct View<'a> {
    tables: &'a Tables,
    snapshot: Snapshot,
}

impl View<'_> {
    /// One row.
    pub fn get<R: Row>(&self, table: Table, key: &[u8]) -> Result<Option<R>, StoreError> {
        let value = self.snapshot.get(self.tables.keyspace(table), key).map_err(failed)?;
        value.map(|value| decode(table, &value)).transpose()
    }

    /// The rows of a range of keys, in either direction, as long as `each` wants more.
    pub fn range<R: Row>(
        &self,
        table: Table,
        range: RangeInclusive<Vec<u8>>,
        backwards: bool,
        mut each: impl FnMut(&[u8], R) -> bool,
    ) -> Result<(), StoreError> {
        let mut rows = self.snapshot.range(self.tables.keyspace(table), range);
        while let Some(row) = if backwards { rows.next_back() } else { rows.next() } {
            let (key, value) = row.into_inner().map_err(failed)?;
            if !each(&key, decode(table, &value)?) {
                break;
            }
        }
        Ok(())
    }

    /// Keys and values of a range, undecoded, as long as `each` wants more.
    pub fn raw_range(
        &self,
        table: Table,
        range: RangeInclusive<Vec<u8>>,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        for row in self.snapshot.range(self.tables.keyspace(table), range) {
            let (key, value) = row.into_inner().map_err(failed)?;
            if !each(&key, &value)? {
                break;
            }
        }
        Ok(())
    }

    /// All keys and values that begin with a prefix, undecoded.
    pub fn prefix(
        &self,
        table: Table,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for row in self.snapshot.prefix(self.tables.keyspace(table), prefix) {
            let (key, value) = row.into_inner().map_err(failed)?;
            each(&key, &value)?;
        }
        Ok(())
    }
}

/// Reads a row of a table.
pub fn decode<R: Row>(table: Table, bytes: &[u8]) -> Result<R, StoreError> {
    R::decode(bytes).map_err(|error| corrupt(table, error))
}

/// What a row says cannot be true.
pub fn corrupt(table: Table, error: DecodeError) -> StoreError {
    StoreError::Corrupt(format!("a row of table {}: {error}", table.name()))
}

/// The engine's failure, as callers see it.
pub fn failed(error: fjall::Error) -> StoreError {
    match error {
        fjall::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => {
            StoreError::Full(error.to_string())
        }
        fjall::Error::Poisoned => StoreError::Failed(
            "an earlier write or flush failed; mend the disk and start again".into(),
        ),
        error => StoreError::Failed(error.to_string()),
    }
}

fn at(path: &Path, error: io::Error) -> StoreError {
    StoreError::Io(path.display().to_string(), error)
}

/// Opens the engine such that its own threads, which write tables from memory into files and merge
/// those, come after ours. A merge is seconds of work for a processor, and nobody waits for it; with
/// the same right to the processors as everybody, on a busy machine, everybody waits for it.
fn open_behind(options: &Options) -> fjall::Result<Database> {
    let builder = Database::builder(options.directory.join("data"))
        .cache_size(options.cache_bytes)
        .max_journaling_size(options.journal_bytes_max)
        .worker_threads(ENGINE_THREADS);
    let nice = options.engine_nice;
    // Threads inherit how nice their maker is, and nobody becomes less nice again.
    let opener = std::thread::Builder::new().name("store-opener".into()).spawn(move || {
        be_nicer(nice);
        builder.open()
    });
    match opener.map(std::thread::JoinHandle::join) {
        Ok(Ok(opened)) => opened,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => Err(error.into()),
    }
}

/// Makes the calling thread nicer by so much.
fn be_nicer(nice: u8) {
    // A process that may not ask its priority runs as it would have without this.
    if let Ok(ours) = rustix::process::getpriority_process(None) {
        let nice = (ours + i32::from(nice)).min(19);
        let _refused = rustix::process::setpriority_process(None, nice);
    }
}

/// One process at a time; the operating system frees the lock when it ends, however it ends.
fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join(LOCK_FILE);
    let mut options = File::options();
    options.create(true).write(true).truncate(false);
    let file = options.open(&path).map_err(|error| at(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::InUse(directory.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(at(&path, error)),
    }
}

/// Marks an empty directory as ours; refuses one that is not.
fn check_format(directory: &Path) -> Result<(), StoreError> {
    let refuse =
        |reason: String| Err(StoreError::Format { directory: directory.to_owned(), reason });
    let path = directory.join(FORMAT_FILE);
    match fs::read_to_string(&path) {
        Ok(format) if format == FORMAT => return Ok(()),
        Ok(format) => {
            return refuse(format!(
                "its format is {:?}, and this program reads {:?} only",
                format.trim_end(),
                FORMAT.trim_end()
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(&path, error)),
    }
    let entries = fs::read_dir(directory).map_err(|error| at(directory, error))?;
    for entry in entries {
        let name = entry.map_err(|error| at(directory, error))?.file_name();
        if name != LOCK_FILE && name != "FORMAT.new" {
            return refuse(format!("it holds {name:?} but no store; give an empty directory"));
        }
    }
    // Written aside and renamed, so that a crash leaves either no file or a whole one.
    let new = directory.join("FORMAT.new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(FORMAT.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| at(&path, error))
}
