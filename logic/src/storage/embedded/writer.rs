//! The one thread that changes the store. It gathers what waits into one commit, makes that
//! durable, and then answers everybody in it.
//!
//! Grouping needs no timer: while one commit is on its way to the disk, the next gathers in the
//! bounded queue.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use super::{
    Options,
    database::Tables,
    transaction::{Applied, Caches, Transaction},
};
use crate::{
    cache::Cache,
    storage::{Members, Outcome, StoreError, Write},
};

/// A commit that takes so long is worth a line in the log.
const SLOW: Duration = Duration::from_millis(20);

/// Writes of one caller and where their outcomes go.
pub struct Commit {
    pub writes: Vec<Write>,
    pub reply: oneshot::Sender<Result<Vec<Outcome>, StoreError>>,
}

/// Members of conversations, for readers; the writer keeps it true.
pub struct MembersCache {
    inner: Mutex<(u64, Cache<String, Members>)>,
}

impl MembersCache {
    /// An empty cache of at most `members_max` members in all.
    pub fn new(members_max: usize) -> Self {
        let cache = Cache::new(members_max, |members: &Members| 1 + members.len());
        Self { inner: Mutex::new((0, cache)) }
    }

    /// The members, if known; else the number to give to [`MembersCache::learn`].
    pub fn get(&self, conversation_id: &str) -> Result<Members, u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = inner.0;
        inner.1.get(conversation_id).cloned().ok_or(changes)
    }

    /// Remembers what was read, unless some membership changed since: it might be outdated.
    pub fn learn(&self, conversation_id: &str, members: Members, changes: u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.0 == changes {
            inner.1.insert(conversation_id.to_owned(), members);
        }
    }

    /// Forgets conversations whose members changed.
    fn forget<'a>(&self, conversation_ids: impl Iterator<Item = &'a String>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0 += 1;
        for conversation_id in conversation_ids {
            inner.1.remove(conversation_id);
        }
    }
}

/// What the writer shares with the readers.
pub struct Shared {
    pub version: AtomicU64,
    pub members: MembersCache,
}

/// Runs until every sender of `commits` is gone, and flushes at the end.
pub fn run(
    tables: Arc<Tables>,
    shared: Arc<Shared>,
    options: &Options,
    mut commits: mpsc::Receiver<Commit>,
) -> Result<(), StoreError> {
    let mut caches = Caches {
        conversations: Cache::new(options.cached_members_max, |conversation| {
            1 + conversation.members.len()
        }),
        members: Cache::new(options.cached_cursors_max, |_| 1),
    };
    while let Some(first) = commits.blocking_recv() {
        let mut count = first.writes.len();
        let mut group = vec![first];
        while count < options.commit_writes_max
            && let Ok(next) = commits.try_recv()
        {
            count += next.writes.len();
            group.push(next);
        }
        commit(&tables, &shared, &mut caches, options.fan_out_members_max, group);
    }
    tables.flush()
}

/// Applies a group of commits as one. A caller that went away meanwhile is not told; its writes
/// stand all the same.
fn commit(
    tables: &Tables,
    shared: &Shared,
    caches: &mut Caches,
    fan_out_members_max: usize,
    group: Vec<Commit>,
) {
    let mut replies = Vec::with_capacity(group.len());
    let mut commits = Vec::with_capacity(group.len());
    for Commit { writes, reply } in group {
        commits.push(writes);
        replies.push(reply);
    }
    match apply(tables, shared, caches, fan_out_members_max, commits) {
        Ok(outcomes) => {
            for (reply, outcomes) in replies.into_iter().zip(outcomes) {
                reply.send(Ok(outcomes)).ok();
            }
        }
        Err(error) => {
            tracing::error!(%error, commits = replies.len(), "a commit failed; nothing of it was applied");
            for reply in replies {
                reply.send(Err(error.again())).ok();
            }
        }
    }
}

fn apply(
    tables: &Tables,
    shared: &Shared,
    caches: &mut Caches,
    fan_out_members_max: usize,
    commits: Vec<Vec<Write>>,
) -> Result<Vec<Vec<Outcome>>, StoreError> {
    let began = Instant::now();
    let before = shared.version.load(Ordering::Acquire);
    let mut transaction = Transaction::new(tables, caches, fan_out_members_max, before);
    let mut outcomes = Vec::with_capacity(commits.len());
    let mut membership_changed = false;
    for writes in commits {
        let mut of_commit = Vec::with_capacity(writes.len());
        for write in writes {
            let outcome = transaction.apply(write)?;
            membership_changed |= matches!(
                outcome,
                Outcome::GroupCreated { .. }
                    | Outcome::GroupRemoved { .. }
                    | Outcome::MembersAdded { .. }
                    | Outcome::MembersRemoved { .. }
                    | Outcome::GroupChanged(_)
            );
            of_commit.push(outcome);
        }
        outcomes.push(of_commit);
    }
    let decided = began.elapsed();
    let version = transaction.version();
    let (changes, Applied { conversations, members }) = transaction.finish();
    if changes.is_empty() {
        return Ok(outcomes);
    }
    tables.commit(changes, version)?;
    let took = began.elapsed();
    if took >= SLOW {
        let (decided_ms, took_ms) = (decided.as_millis() as u64, took.as_millis() as u64);
        tracing::debug!(
            took_ms,
            decided_ms,
            "a slow commit: the disk, the engine's flushes, or too little CPU"
        );
    }
    if membership_changed {
        shared.members.forget(conversations.keys());
    }
    for (conversation_id, conversation) in conversations {
        caches.conversations.insert(conversation_id, conversation);
    }
    for (key, row) in members {
        caches.members.insert(key, row);
    }
    shared.version.store(version, Ordering::Release);
    Ok(outcomes)
}
