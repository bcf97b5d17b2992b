//! The store on PostgreSQL: several logic processes on one database, each a writer and a reader.
//!
//! - `pool`: connections, and what went wrong on them
//! - `migrate`: the schema and its steps (`migrations/`)
//! - `columns`: which table and columns a row's key stands for
//! - `wanted`, `loaded`: what has to be fetched, and what was
//! - `commit`: one commit as one transaction
//! - `writer`: the task that gathers commits and repeats what failed on the way
//! - `reader`, `group_reader`: the questions
//! - `side`: accounts, relations, rooms and the like
//!
//! What a write does is decided by the rules of the embedded store, which run on rows that were fetched
//! under a lock; there is one set of rules, and they cannot drift apart.
//!
//! # A commit
//! Up to `commit_writes_max` writes of many callers are one transaction, in three round trips:
//! 1. begin, lock the rows of all conversations that may change, fetch what the writes will read;
//! 2. take the versions;
//! 3. write (one statement for each table), note the commit under the process's own id, commit.
//!
//! The counter of a conversation's sequences is in the row that is locked, and moves in the same
//! transaction as the messages: no gap, no number twice. Rows are locked in the order of their ids, the
//! clock after all of them, and new rows are inserted with the clock locked, so that two processes wait
//! for each other in one order and never in a circle. That a message is stored once is the key of
//! `message_ids`; whoever meets a key that another process has just taken begins again and finds it.
//!
//! # Versions
//! Readers go on from a version: "what changed after 17". With several writers a number taken from a
//! sequence becomes visible out of order: 19 is committed and read, 18 comes later and is skipped for
//! good. Here all versions come from one row (`clock`), which a commit locks when it takes its versions
//! and holds until it is durable. So versions become visible in their order, and a reader whose view
//! has the clock at 19 has everything up to 19.
//!
//! The cost: of all processes only one at a time is between taking its versions and the end of its
//! flush to the log, that is for one round trip, the writes, and one fdatasync. Locking, reading and
//! deciding overlap. A cluster commits about 1 / (that time) times a second, say 300 at 3 ms, with up
//! to 1,000 writes each; the larger the load, the larger the commits. What does not help is a longer
//! way: a synchronous standby in another region adds its distance to every commit.
//!
//! Not chosen: a version for each user (a message to a group would lock and rewrite a row for each of
//! its members), and versions that are read only below the oldest open transaction (an idle transaction
//! anywhere would stop everybody's news, and the way to see it is PostgreSQL's alone).
//!
//! # Failure
//! A lost connection, a deadlock, a serialization failure or a key just taken is tried again
//! (`attempts_max`, with growing pauses). If the end of a commit was sent and not answered, the next
//! attempt first takes the clock, which the lost transaction held, and looks whether the process's own
//! mark is there: a commit that happened is answered as what it was, not as a duplicate. After the last
//! attempt callers are told [`StoreError::Unavailable`], and may find on asking again that it happened.
//! A process that is stopped in the middle of a transaction loses its locks after
//! `idle_in_transaction_timeout`. Queues, connections and waits are bounded; see [`Options`].
//!
//! # PgBouncer, CockroachDB, YugabyteDB
//! Nothing outlives a transaction: no named statements, no `SET` without `LOCAL`, no advisory locks, no
//! `LISTEN`, no temporary tables, no cursors. That is what PgBouncer needs in transaction mode, and
//! most of what the others lack. Also avoided: `LOCK TABLE`, `MERGE`, `xmin` and `pg_snapshot`, triggers
//! and functions, `COPY`, sequences, collations (ids are `bytea`). Partitions by hash are left out by
//! `migrate` with 0 partitions, where the database spreads tables itself. There the clock's row is the
//! place where commits meet, as here.
//!
//! # Growing
//! One cluster: conversations, messages and message ids are partitioned by hash of the conversation
//! (the ids by the sender), members by the user whose list they are, groups' members by the group.
//! Partitions can be moved to other disks, and replicas can serve what is asked of the past.
//!
//! Several clusters, which is a plan and not built: conversations are spread over clusters by hash into
//! 4,096 slots; everything of a conversation, its members' rows included, lies in its cluster, so that a
//! transaction never leaves it. A user's list is asked of all clusters and merged. Each cluster has a
//! clock of its own that runs ahead to the time of day, so that versions of different clusters compare;
//! a page's version is the lowest of the clusters' clocks, by which nothing is skipped and little comes
//! twice. What becomes weaker: a message id is then unique within a cluster, so a retry with another
//! target may be stored a second time.

use std::{
    future::Future,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use millrace_protocol::chat;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};

use self::{
    loaded::lock,
    pool::{Counted, Failure, Pool, Session},
    writer::{Commit, Shared},
};
pub use self::{
    migrate::{Migrated, PARTITIONS_MAX, migrate},
    side::Side,
};
use super::{
    Changes, ConversationPage, MemberRange, Members, Outcome, Page, Store, StoreError,
    StoreFigures, Write, conversation_id,
    groups::{GroupStore, JoinRequestPage, MemberPage, ReceiptFilter, ReceiptPage, Role},
    limits::GROUP_ID_BYTES_MAX,
    side::{SideGroup, SideTable, Sides},
};
use crate::cache::Cache;

mod columns;
mod commit;
mod group_reader;
mod loaded;
mod migrate;
mod pool;
mod reader;
mod side;
#[cfg(test)]
mod tests;
mod wanted;
mod writer;

/// Begins a question: one view of everything.
const BEGIN_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Connections of a process for changes of matters beside the messages; the next change waits.
const SIDE_CONNECTIONS_MAX: usize = 4;

/// How a [`PostgresStore`] works. It has a password in it, and so no form for logs.
#[derive(Clone, PartialEq)]
pub struct Options {
    /// `postgresql://user:password@host:port/database`, or `host=… dbname=…`. Several hosts may be given,
    /// and `target_session_attrs=read-write`.
    pub url: String,
    /// Connections of this process for questions; the next question waits. One more is the writer's,
    /// and up to four are for changes of accounts, relations, rooms and the like.
    pub connections_max: NonZeroUsize,
    /// How long a question waits for a connection, and how long connecting may take.
    pub connection_wait: Duration,
    /// How long one attempt of a question may take.
    pub read_timeout: Duration,
    /// How long one attempt of a commit may take.
    pub commit_timeout: Duration,
    /// How long the database works on one statement, and waits for a lock, before it gives up.
    pub statement_timeout: Duration,
    /// How long a transaction of a process that says nothing keeps its locks.
    pub idle_in_transaction_timeout: Duration,
    /// How often a commit or a question is tried before the caller is told.
    pub attempts_max: usize,
    /// After this long no further attempt is begun.
    pub give_up_after: Duration,
    /// How long the first pause between attempts is; each is twice the one before.
    pub retry_pause: Duration,
    /// The longest pause between attempts.
    pub retry_pause_max: Duration,
    /// Most writes of several callers that are gathered into one commit. One caller's own commit
    /// may be larger.
    pub commit_writes_max: usize,
    /// Bytes of bodies of which a commit takes no more callers in.
    pub commit_bytes_max: usize,
    /// Most callers that wait for the writer; the next wait before they are queued.
    pub commits_waiting_max: NonZeroUsize,
    /// Members that are remembered over all conversations.
    pub cached_members_max: usize,
}

impl Options {
    /// The defaults, on a database.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connections_max: NonZeroUsize::new(16).expect("not zero"),
            connection_wait: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
            commit_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(5),
            attempts_max: 8,
            give_up_after: Duration::from_secs(15),
            retry_pause: Duration::from_millis(20),
            retry_pause_max: Duration::from_secs(1),
            commit_writes_max: 1_000,
            commit_bytes_max: 16 << 20,
            commits_waiting_max: NonZeroUsize::new(64).expect("not zero"),
            cached_members_max: 1_000_000,
        }
    }
}

/// The [`Store`] on PostgreSQL. Dropping it lets the writer finish what was queued; [`Store::close`]
/// also waits for that.
pub struct PostgresStore {
    commits: Mutex<Option<mpsc::Sender<Commit>>>,
    shared: Arc<Shared>,
    reads: Arc<Pool>,
    writes: Arc<Pool>,
    options: Options,
    writer: Mutex<Option<JoinHandle<()>>>,
    sides: Arc<side::Doors>,
}

impl PostgresStore {
    /// Connects and checks the schema, which [`migrate`] makes.
    ///
    /// # Errors
    /// When the database cannot be reached, or its schema is not this program's.
    pub async fn open(options: Options) -> Result<Self, StoreError> {
        let config = migrate::config_of(&options.url)?;
        let counted = Arc::new(Counted::default());
        let pool = |connections_max| {
            Pool::new(config.clone(), connections_max, options.connection_wait, counted.clone())
        };
        let (reads, writes) = (pool(options.connections_max.get()), pool(1));
        let sides = Arc::new(side::Doors {
            reads: reads.clone(),
            writes: pool(SIDE_CONNECTIONS_MAX),
            permits: Arc::new(Semaphore::new(side::READS_IN_FLIGHT_MAX)),
            options: options.clone(),
            opened: Mutex::default(),
        });
        let weigh = |(_, members): &(i64, Members)| 1 + members.len();
        let shared = Arc::new(Shared {
            version: AtomicU64::new(0),
            members: Mutex::new(Cache::new(options.cached_members_max, weigh)),
        });
        let (sender, receiver) = mpsc::channel(options.commits_waiting_max.get());
        let mut store = Self {
            commits: Mutex::new(Some(sender)),
            shared: shared.clone(),
            reads,
            writes: writes.clone(),
            options: options.clone(),
            writer: Mutex::new(None),
            sides,
        };
        store.read(|session| async move { migrate::check(&session).await }).await?;
        store.committed_version().await?;
        let writer = tokio::spawn(writer::run(writes, shared, options, receiver));
        store.writer = Mutex::new(Some(writer));
        Ok(store)
    }

    /// Answers a question from one view, with a bounded number of attempts.
    async fn read<T, F>(&self, question: impl Fn(Arc<Session>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let options = &self.options;
        let began = Instant::now();
        let mut pause = options.retry_pause;
        let mut attempt = 1;
        loop {
            let tried = timeout(options.read_timeout, async {
                let session = Arc::new(self.reads.session().await?);
                // In one round trip with the first statement of the question.
                let (begun, answer) =
                    futures::future::join(session.run(BEGIN_READ), question(session.clone())).await;
                begun?;
                if !matches!(answer, Err(Failure::Again { .. })) {
                    end(session, options.read_timeout);
                }
                answer
            });
            let error = match tried.await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failure::Final(error))) => return Err(error),
                Ok(Err(Failure::Again { error, is_known })) => {
                    if !is_known {
                        self.reads.forget_idle();
                    }
                    error
                }
                Err(_) => {
                    self.reads.forget_idle();
                    StoreError::Unavailable("a question took too long".into())
                }
            };
            if attempt >= options.attempts_max || began.elapsed() >= options.give_up_after {
                self.reads.counted.give_up();
                return Err(error);
            }
            attempt += 1;
            self.reads.counted.retry();
            tracing::debug!(%error, attempt, "a question is asked again");
            sleep(pause).await;
            pause = (pause * 2).min(options.retry_pause_max);
        }
    }
}

/// Ends a question's transaction while its answer is on its way already.
fn end(session: Arc<Session>, wait: Duration) {
    let Some(session) = Arc::into_inner(session) else { return };
    tokio::spawn(async move {
        if let Ok(Ok(())) = timeout(wait, session.run("COMMIT")).await {
            session.give_back();
        }
    });
}

impl Sides for PostgresStore {
    fn side(&self, name: &'static str) -> Result<SideTable, StoreError> {
        Side::open(&self.sides, name, 1).map(Into::into)
    }

    fn side_group(
        &self,
        name: &'static str,
        tables: &[&'static str],
    ) -> Result<SideGroup, StoreError> {
        Side::open(&self.sides, name, tables.len()).map(Into::into)
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Outcome>, StoreError> {
        if writes.is_empty() {
            return Ok(vec![]);
        }
        let commits = lock(&self.commits).clone().ok_or(StoreError::Closed)?;
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
        self.read(|session| {
            reader::page(session, user_id, conversation_id, from, to, limit, newest_first)
        })
        .await
    }

    async fn messages(
        &self,
        user_id: &str,
        conversation_id: &str,
        sequences: &[u64],
    ) -> Result<Vec<chat::Message>, StoreError> {
        self.read(|session| reader::messages(session, user_id, conversation_id, sequences)).await
    }

    async fn changes(
        &self,
        user_id: &str,
        conversation_id: &str,
        since_version: u64,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        self.read(|session| {
            reader::changes(session, user_id, conversation_id, since_version, limit)
        })
        .await
    }

    async fn expired(&self, now_ms: i64, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        self.read(|session| reader::expired(session, now_ms, limit)).await
    }

    async fn recent_conversations(
        &self,
        user_id: &str,
        before_version: u64,
        limit: usize,
    ) -> Result<ConversationPage, StoreError> {
        let members = &self.shared.members;
        let page = self
            .read(|session| {
                reader::recent_conversations(session, members, user_id, before_version, limit)
            })
            .await?;
        self.shared.saw(page.version);
        Ok(page)
    }

    async fn member_ranges(&self, user_id: &str) -> Result<Vec<MemberRange>, StoreError> {
        self.read(|session| reader::member_ranges(session, user_id)).await
    }

    async fn conversations(
        &self,
        user_id: &str,
        since_version: u64,
        limit: usize,
    ) -> Result<ConversationPage, StoreError> {
        let members = &self.shared.members;
        self.read(|session| reader::conversations(session, members, user_id, since_version, limit))
            .await
    }

    async fn undelivered(
        &self,
        user_id: &str,
        as_of: u64,
        per_conversation_max: usize,
        conversations_max: usize,
    ) -> Result<Vec<chat::Message>, StoreError> {
        let mut found =
            self.undelivered_of(&[user_id], as_of, per_conversation_max, conversations_max).await?;
        Ok(found.pop().unwrap_or_default())
    }

    async fn undelivered_of(
        &self,
        user_ids: &[&str],
        as_of: u64,
        per_conversation_max: usize,
        conversations_max: usize,
    ) -> Result<Vec<Vec<chat::Message>>, StoreError> {
        let members = &self.shared.members;
        self.read(|session| {
            reader::undelivered_of(
                session,
                members,
                user_ids,
                as_of,
                per_conversation_max,
                conversations_max,
            )
        })
        .await
    }

    fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Acquire)
    }

    async fn committed_version(&self) -> Result<u64, StoreError> {
        let version =
            self.read(|session| async move { commit::read_clock(&session).await }).await?;
        self.shared.saw(version);
        Ok(version)
    }

    async fn group(&self, group_id: &str) -> Result<Option<chat::Group>, StoreError> {
        let Some(members) = self.members(&conversation_id::group(group_id)).await? else {
            return Ok(None);
        };
        self.read(|session| group_reader::group(session, group_id, &members)).await
    }

    async fn members(&self, conversation_id: &str) -> Result<Option<Members>, StoreError> {
        let cache = &self.shared.members;
        // A single chat never ends and never changes; of a group it has to be asked whether what is
        // remembered is true still.
        if conversation_id.starts_with("s:")
            && self.reads.is_open()
            && let Some((_, members)) = lock(cache).get(conversation_id)
        {
            return Ok(Some(members.clone()));
        }
        self.read(|session| reader::members(session, cache, conversation_id)).await
    }

    fn figures(&self) -> Option<StoreFigures> {
        Some(Pool::figures(&[&self.reads, &self.writes, &self.sides.writes]))
    }

    async fn close(&self) -> Result<(), StoreError> {
        // Who waits in `commit` has a sender of its own, so the writer ends after all of those.
        drop(lock(&self.commits).take().ok_or(StoreError::Closed)?);
        let writer = lock(&self.writer).take();
        let ended = match writer {
            Some(writer) => writer.await.map_err(|_| ()),
            None => Err(()),
        };
        self.sides.close().await;
        self.reads.close();
        self.writes.close();
        ended.map_err(|()| StoreError::Failed("the writer ended early".into()))
    }
}

/// Whether a group may have this id.
fn is_group(group_id: &str) -> bool {
    (1..=GROUP_ID_BYTES_MAX).contains(&group_id.len())
}

#[async_trait]
impl GroupStore for PostgresStore {
    async fn group_members(
        &self,
        group_id: &str,
        after: &str,
        limit: usize,
    ) -> Result<Option<MemberPage>, StoreError> {
        let Some(members) = self.members(&conversation_id::group(group_id)).await? else {
            return Ok(None);
        };
        let count = members.len() as u32;
        self.read(|session| group_reader::group_members(session, group_id, after, limit, count))
            .await
    }

    async fn join_requests(
        &self,
        group_id: &str,
        after: &str,
        limit: usize,
    ) -> Result<Option<JoinRequestPage>, StoreError> {
        if !is_group(group_id) {
            return Ok(None);
        }
        self.read(|session| group_reader::join_requests(session, group_id, after, limit)).await
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
        let members = &members;
        self.read(|session| {
            group_reader::receipts(
                session,
                conversation_id,
                members,
                sequence,
                filter,
                after,
                limit,
                look_max,
            )
        })
        .await
    }

    async fn group_role(&self, group_id: &str, user_id: &str) -> Result<Option<Role>, StoreError> {
        self.read(|session| group_reader::group_role(session, group_id, user_id)).await
    }

    async fn may_speak(
        &self,
        group_id: &str,
        user_id: &str,
        at_ms: i64,
    ) -> Result<bool, StoreError> {
        if !is_group(group_id) {
            return Ok(false);
        }
        self.read(|session| group_reader::may_speak(session, group_id, user_id, at_ms)).await
    }
}
