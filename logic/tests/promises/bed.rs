//! The embedded store that many worlds share, each under names of its own, because opening one
//! takes longer than a run.

use std::{path::Path, sync::Arc};

use millrace_logic::{
    bus::{EmbeddedBus, EmbeddedBusSettings},
    notices::{NoticeLimits, NoticeTables},
    rooms::{RoomDirectory, RoomLimits, RoomTable},
    storage::{
        embedded::{EmbeddedStore, Options},
        side::RevocationTable,
    },
};
use tokio::runtime::{Builder, Runtime};

/// Worlds after which a store is left behind, so that none grows without end.
const WORLDS_MAX: usize = 250;

/// Everything that is in the store's directory, opened.
pub struct Opened {
    pub store: Arc<EmbeddedStore>,
    pub revocations: Arc<RevocationTable>,
    pub bus: Arc<EmbeddedBus>,
    pub notices: Arc<NoticeTables>,
    pub directory: Arc<RoomDirectory>,
}

pub struct Bed {
    fan_out_members_max: usize,
    /// Where questions that are asked outside a life of logic are answered.
    runtime: Runtime,
    opened: Option<Opened>,
    folder: tempfile::TempDir,
    worlds: usize,
}

impl Bed {
    /// A store in memory, if the machine has such a file system: kill -9 loses nothing that was
    /// written, and what a power failure loses is not asked here.
    pub fn new(fan_out_members_max: usize) -> Self {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let folder = folder();
        let opened = Some(open(&runtime, folder.path(), fan_out_members_max));
        Self { fan_out_members_max, runtime, opened, folder, worlds: 0 }
    }

    pub fn opened(&self) -> &Opened {
        self.opened.as_ref().expect("it is open but for moments")
    }

    /// A number that no other world of this store has.
    pub fn new_world(&mut self) -> usize {
        self.worlds += 1;
        if self.worlds.is_multiple_of(WORLDS_MAX) {
            self.opened = None;
            self.folder = folder();
            self.opened = Some(open(&self.runtime, self.folder.path(), self.fan_out_members_max));
        }
        self.worlds
    }

    /// Leaves the store without a word and opens what is on the disk. Nobody else may have it.
    pub fn reopen(&mut self) {
        self.opened = None;
        self.opened = Some(open(&self.runtime, self.folder.path(), self.fan_out_members_max));
    }

    /// Asks the store outside a life of logic.
    pub fn ask<T>(&self, question: impl Future<Output = T>) -> T {
        self.runtime.block_on(question)
    }
}

fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a folder")
}

fn open(runtime: &Runtime, folder: &Path, fan_out_members_max: usize) -> Opened {
    let options =
        Options { fan_out_members_max, free_bytes_min: 0, ..Options::new(folder.join("data")) };
    // The store before is gone as soon as its writer has seen that.
    let store = loop {
        match EmbeddedStore::open(options.clone()) {
            Ok(store) => break Arc::new(store),
            Err(millrace_logic::storage::StoreError::InUse(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    runtime.block_on(async {
        let revocations = RevocationTable::open(&*store).await.expect("read");
        let bus = EmbeddedBus::open(&store, EmbeddedBusSettings::default()).expect("opened");
        let notices = NoticeTables::open(&*store, NoticeLimits::default()).await.expect("opened");
        let rooms = Arc::new(RoomTable::open(&*store).await.expect("opened"));
        let directory = RoomDirectory::open(rooms, RoomLimits::default()).await.expect("read");
        let (revocations, directory) = (Arc::new(revocations), Arc::new(directory));
        let (bus, notices) = (Arc::new(bus), Arc::new(notices));
        Opened { store, revocations, bus, notices, directory }
    })
}
