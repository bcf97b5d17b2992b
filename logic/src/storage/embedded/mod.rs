//! The store that needs no server: an LSM tree in a directory of its own, one writer thread, group
//! commit with fdatasync.
//!
//! - `database`: the directory, its lock and format, the engine
//! - `keys`, `rows`, `edit_rows`, `encoding`: what lies in the tables, byte by byte
//! - `transaction`: what a write does
//! - `writer`: the thread that commits
//! - `reader`, `group_reader`: the questions
//! - `side`: tables of matters that need not be atomic with messages, in the same database
//! - `side_group`: the same for what comes often: several tables, a writer that commits in groups
//!
//! # Fan-out
//! A message to a group writes one pointer row per member, so that a user who comes online finds
//! what is new in one range of keys. In a group of more than `fan_out_members_max` members it writes
//! none; its members look at the conversation's own row instead, one look-up for each such group. A
//! group that has once been large stays so. A single chat is like a large group: its two pointers
//! would be half of what a message writes, and a look-up for each chat at a login is cheaper.
//!
//! # Failure
//! A full disk refuses commits before the engine could trip over it ([`Options::free_bytes_min`])
//! and takes them again when there is space. After an error of the disk itself the engine takes no
//! more writes until the next start; reading goes on. A commit that failed in its fdatasync may
//! turn out to be stored at the next start; its senders were told nothing, retry, and find the
//! first attempt.
//!
//! # Duplicates
//! The ids of messages are kept for good, so a retry is recognised after any time, at about 60
//! bytes a message.

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use millrace_protocol::chat;
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::{
    database::Tables,
    side::Sides,
    writer::{Commit, MembersCache, Shared},
};
pub use self::{side::SideTable, side_group::SideGroup};
use super::{
    Changes, ConversationPage, MemberRange, Members, Outcome, Page, Store, StoreError, Write,
    conversation_id,
    groups::{GroupStore, JoinRequestPage, MemberPage, ReceiptFilter, ReceiptPage, Role},
    side as neutral,
};

pub(in crate::storage) mod database;
pub(in crate::storage) mod edit_rows;
pub(crate) mod encoding;
mod group_reader;
pub(in crate::storage) mod group_rows;
pub(in crate::storage) mod keys;
mod memtables;
pub(in crate::storage) mod reader;
pub(in crate::storage) mod rows;
mod scan;
mod side;
mod side_group;
#[cfg(test)]
pub(crate) mod tests;
pub(in crate::storage) mod transaction;
mod writer;

/// How an [`EmbeddedStore`] works. The defaults are for the product; `docs/measurements/` has the
/// figures behind them.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory, made if it is not there.
    pub directory: PathBuf,
    /// Most writes of several callers that are gathered into one commit. One caller's own commit
    /// may be larger.
    pub commit_writes_max: usize,
    /// Most callers that wait for the writer; the next wait before they are queued.
    pub commits_waiting_max: NonZeroUsize,
    /// Most questions answered at once; the next wait.
    pub reads_in_flight_max: NonZeroUsize,
    /// Members up to which a group gets a pointer row per message and member.
    pub fan_out_members_max: usize,
    /// Members that the writer, and the readers again, remember over all conversations.
    pub cached_members_max: usize,
    /// Cursor rows that the writer remembers.
    pub cached_cursors_max: usize,
    /// Bytes of the engine's cache of blocks.
    pub cache_bytes: u64,
    /// Bytes of one table in memory before it is written to a file.
    pub memtable_bytes_max: u64,
    /// Bytes of journals; also what has to be read again after a crash. At least 64 MiB.
    pub journal_bytes_max: u64,
    /// By how much the engine's threads, which write files and merge them, are nicer than the others:
    /// from 0, which is as urgent, to 19, which is what others leave.
    pub engine_nice: u8,
    /// Commits are refused while the file system has less free space than this.
    pub free_bytes_min: u64,
}

impl Options {
    /// The defaults, in a directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            commit_writes_max: 1_000,
            commits_waiting_max: NonZeroUsize::new(64).expect("not zero"),
            reads_in_flight_max: NonZeroUsize::new(8).expect("not zero"),
            fan_out_members_max: 500,
            cached_members_max: 1_000_000,
            cached_cursors_max: 200_000,
            cache_bytes: 256 << 20,
            memtable_bytes_max: 16 << 20,
            journal_bytes_max: 256 << 20,
            engine_nice: 10,
            free_bytes_min: 256 << 20,
        }
    }
}

/// How long closing may take to write into files what is in memory. What is not written by then is read from
/// the journal at the next start.
const EMPTYING_MAX: Duration = Duration::from_secs(5);

/// The embedded [`Store`]. Dropping it lets the writer finish what was queued; [`Store::close`]
/// also waits for that and says how it went.
pub struct EmbeddedStore {
    commits: Mutex<Option<mpsc::Sender<Commit>>>,
    tables: Arc<RwLock<Option<Arc<Tables>>>>,
    sides: Arc<Sides>,
    shared: Arc<Shared>,
    reads: Arc<Semaphore>,
    reads_in_flight_max: u32,
    writer: Mutex<Option<JoinHandle<Result<(), StoreError>>>>,
}

impl EmbeddedStore {
    /// Opens the store, or makes a new one in an empty directory. Blocks while the journal is
    /// read: up to a second or two after a crash under full load. After [`Store::close`] it holds
    /// nothing that has to be put back.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it, [`StoreError::Format`] when the
    /// directory holds something else, and what the disk or the engine refuse.
    pub fn open(options: Options) -> Result<Self, StoreError> {
        let tables = Arc::new(Tables::open(&options)?);
        let shared = Arc::new(Shared {
            version: AtomicU64::new(tables.version()?),
            members: MembersCache::new(options.cached_members_max),
        });
        let (sender, receiver) = mpsc::channel(options.commits_waiting_max.get());
        let reads_in_flight_max = u32::try_from(options.reads_in_flight_max.get())
            .unwrap_or(u32::MAX)
            .min(Semaphore::MAX_PERMITS as u32);
        let writer = {
            let (tables, shared) = (tables.clone(), shared.clone());
            std::thread::Builder::new()
                .name("store-writer".into())
                .spawn(move || writer::run(tables, shared, &options, receiver))
                .map_err(|error| StoreError::Io("starting the writer".into(), error))?
        };
        let tables = Arc::new(RwLock::new(Some(tables)));
        Ok(Self {
            commits: Mutex::new(Some(sender)),
            sides: Arc::new(Sides::new(tables.clone())),
            tables,
            shared,
            reads: Arc::new(Semaphore::new(reads_in_flight_max as usize)),
            reads_in_flight_max,
            writer: Mutex::new(Some(writer)),
        })
    }

    /// A table of another matter in the same database, made if it is not there. It closes with the
    /// store. Names are the matter's own: one table, one owner.
    ///
    /// # Errors
    /// What the engine refuses.
    pub fn side(&self, name: &'static str) -> Result<SideTable, StoreError> {
        SideTable::open(&self.sides, name)
    }

    /// Answers a question on a thread that may block, at most `reads_in_flight_max` at once.
    async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Tables, &Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self.reads.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner).clone();
        let tables = tables.ok_or(StoreError::Closed)?;
        let shared = self.shared.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let answer = question(&tables, &shared);
            // In this order: who holds all permits knows that no reader has the tables.
            drop(tables);
            drop(permit);
            answer
        });
        answer.await.map_err(|error| StoreError::Failed(format!("a reader ended: {error}")))?
    }
}

impl neutral::Sides for EmbeddedStore {
    fn side(&self, name: &'static str) -> Result<neutral::SideTable, StoreError> {
        Self::side(self, name).map(Into::into)
    }

    fn side_group(
        &self,
        name: &'static str,
        tables: &[&'static str],
    ) -> Result<neutral::SideGroup, StoreError> {
        Self::side_group(self, name, tables).map(Into::into)
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Outcome>, StoreError> {
        if writes.is_empty() {
            return Ok(vec![]);
        }
        let commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let commits = commits.ok_or(StoreError::Closed)?;
        let (reply, outcomes) = oneshot::channel();
        let ended = || StoreError::Failed("the writer has ended".into());
        commits.send(Commit { writes, reply }).await.map_err(|_| ended())?;
        outcomes.await.map_err(|_| ended())?
    }

    async fn page(
        &self,
        user_id: &str,
        conversation_id: &str,
        from: u64,
        to: u64,
        limit: usize,
        newest_first: bool,
    ) -> Result<Page, StoreError> {
        let (user_id, conversation_id) = (user_id.to_owned(), conversation_id.to_owned());
        self.read(move |tables, _| {
            reader::page(tables, &user_id, &conversation_id, from, to, limit, newest_first)
        })
        .await
    }

    async fn messages(
        &self,
        user_id: &str,
        conversation_id: &str,
        sequences: &[u64],
    ) -> Result<Vec<chat::Message>, StoreError> {
        let (user_id, conversation_id) = (user_id.to_owned(), conversation_id.to_owned());
        let sequences = sequences.to_vec();
        self.read(move |tables, _| reader::messages(tables, &user_id, &conversation_id, &sequences))
            .await
    }

    async fn changes(
        &self,
        user_id: &str,
        conversation_id: &str,
        since_version: u64,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        let (user_id, conversation_id) = (user_id.to_owned(), conversation_id.to_owned());
        self.read(move |tables, shared| {
            reader::changes(tables, shared, &user_id, &conversation_id, since_version, limit)
        })
        .await
    }

    async fn expired(&self, now_ms: i64, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        self.read(move |tables, _| reader::expired(tables, now_ms, limit)).await
    }

    async fn conversations(
        &self,
        user_id: &str,
        since_version: u64,
        limit: usize,
    ) -> Result<ConversationPage, StoreError> {
        let user_id = user_id.to_owned();
        self.read(move |tables, shared| {
            reader::conversations(tables, shared, &user_id, since_version, limit)
        })
        .await
    }

    async fn undelivered(
        &self,
        user_id: &str,
        as_of: u64,
        per_conversation_max: usize,
        conversations_max: usize,
    ) -> Result<Vec<chat::Message>, StoreError> {
        let user_id = user_id.to_owned();
        self.read(move |tables, _| {
            reader::undelivered(tables, &user_id, as_of, per_conversation_max, conversations_max)
        })
        .await
    }

    async fn undelivered_of(
        &self,
        user_ids: &[&str],
        as_of: u64,
        per_conversation_max: usize,
        conversations_max: usize,
    ) -> Result<Vec<Vec<chat::Message>>, StoreError> {
        let user_ids: Vec<String> = user_ids.iter().map(|user_id| (*user_id).to_owned()).collect();
        self.read(move |tables, _| {
            let of_one = |user_id: &String| {
                reader::undelivered(tables, user_id, as_of, per_conversation_max, conversations_max)
            };
            user_ids.iter().map(of_one).collect()
        })
        .await
    }

    fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Acquire)
    }

    async fn member_ranges(&self, user_id: &str) -> Result<Vec<MemberRange>, StoreError> {
        let user_id = user_id.to_owned();
        self.read(move |tables, _| reader::member_ranges(tables, &user_id)).await
    }

    async fn recent_conversations(
        &self,
        user_id: &str,
        before_version: u64,
        limit: usize,
    ) -> Result<ConversationPage, StoreError> {
        let user_id = user_id.to_owned();
        self.read(move |tables, shared| {
            reader::recent_conversations(tables, shared, &user_id, before_version, limit)
        })
        .await
    }

    async fn group(&self, group_id: &str) -> Result<Option<chat::Group>, StoreError> {
        let Some(members) = self.members(&conversation_id::group(group_id)).await? else {
            return Ok(None);
        };
        let group_id = group_id.to_owned();
        self.read(move |tables, _| group_reader::group(tables, &group_id, &members)).await
    }

    async fn members(&self, conversation_id: &str) -> Result<Option<Members>, StoreError> {
        let changes = match self.shared.members.get(conversation_id) {
            Ok(members) => return Ok(Some(members)),
            Err(changes) => changes,
        };
        let conversation_id = conversation_id.to_owned();
        self.read(move |tables, shared| {
            let members = reader::members(tables, &conversation_id)?;
            if let Some(members) = &members {
                shared.members.learn(&conversation_id, members.clone(), changes);
            }
            Ok(members)
        })
        .await
    }

    async fn close(&self) -> Result<(), StoreError> {
        // Who waits in `commit` has a sender of its own, so the writer ends after all of those.
        let commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(commits.ok_or(StoreError::Closed)?);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ended = tokio::task::spawn_blocking(move || writer.map(JoinHandle::join)).await;
        if let Ok(all) = self.reads.acquire_many(self.reads_in_flight_max).await {
            all.forget();
        }
        self.reads.close();
        self.sides.close().await;
        let tables = self.tables.write().unwrap_or_else(PoisonError::into_inner).take();
        // The last owner: the engine's threads end here, and the directory is free.
        let emptied = tokio::task::spawn_blocking(move || empty(tables)).await;
        if let Err(error) = emptied {
            tracing::error!(%error, "closing the store's engine ended early");
        }
        match ended {
            Ok(Some(Ok(result))) => result,
            _ => Err(StoreError::Failed("the writer ended early".into())),
        }
    }
}

/// Writes what is in memory into files, before the tables are closed. All of it is in the journal already, so
/// what fails here costs the next start its time, and nothing else.
fn empty(tables: Option<Arc<Tables>>) {
    let Some(tables) = tables else { return };
    let began = Instant::now();
    match tables.empty_memtables(EMPTYING_MAX) {
        Ok(all) => {
            let seconds = began.elapsed().as_secs_f64();
            tracing::info!(all, seconds, "what the store had in memory was written into files");
        }
        Err(error) => tracing::warn!(
            %error,
            "what the store has in memory stays in the journal, and is read from it at the next start"
        ),
    }
}

#[async_trait]
impl GroupStore for EmbeddedStore {
    async fn group_members(
        &self,
        group_id: &str,
        after: &str,
        limit: usize,
    ) -> Result<Option<MemberPage>, StoreError> {
        let Some(members) = self.members(&conversation_id::group(group_id)).await? else {
            return Ok(None);
        };
        let (group_id, after, count) = (group_id.to_owned(), after.to_owned(), members.len());
        self.read(move |tables, _| {
            group_reader::group_members(tables, &group_id, &after, limit, count as u32)
        })
        .await
    }

    async fn join_requests(
        &self,
        group_id: &str,
        after: &str,
        limit: usize,
    ) -> Result<Option<JoinRequestPage>, StoreError> {
        let (group_id, after) = (group_id.to_owned(), after.to_owned());
        self.read(move |tables, _| group_reader::join_requests(tables, &group_id, &after, limit))
            .await
    }

    async fn receipts(
        &self,
        conversation_id: &str,
        sequence: u64,
        filter: ReceiptFilter,
        after: &str,
        limit: usize,
        look_max: usize,
    ) -> Result<ReceiptPage, StoreError> {
        let members = self.members(conversation_id).await?.ok_or(StoreError::NotFound)?;
        let (conversation_id, after) = (conversation_id.to_owned(), after.to_owned());
        self.read(move |tables, _| {
            group_reader::receipts(
                tables,
                &conversation_id,
                &members,
                sequence,
                filter,
                &after,
                limit,
                look_max,
            )
        })
        .await
    }

    async fn group_role(&self, group_id: &str, user_id: &str) -> Result<Option<Role>, StoreError> {
        let (group_id, user_id) = (group_id.to_owned(), user_id.to_owned());
        self.read(move |tables, _| group_reader::group_role(tables, &group_id, &user_id)).await
    }

    async fn may_speak(
        &self,
        group_id: &str,
        user_id: &str,
        at_ms: i64,
    ) -> Result<bool, StoreError> {
        let (group_id, user_id) = (group_id.to_owned(), user_id.to_owned());
        self.read(move |tables, _| group_reader::may_speak(tables, &group_id, &user_id, at_ms))
            .await
    }
}
