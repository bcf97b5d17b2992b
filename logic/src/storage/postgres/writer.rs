//! The one task of a process that commits. It gathers what waits into one transaction, and answers
//! everybody in it once that is durable; while one is on its way, the next gathers in the bounded
//! queue. So a process's commits keep their order, and many messages share one flush of the
//! database's log.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    Options,
    commit::{self, Context, Decided},
    loaded::MembersCache,
    pool::{Failure, Pool},
};
use crate::storage::{Outcome, StoreError, Write};

/// A commit that takes so long is worth a line in the log.
const SLOW: Duration = Duration::from_millis(50);

/// Writes of one caller and where their outcomes go.
pub struct Commit {
    pub writes: Vec<Write>,
    pub reply: oneshot::Sender<Result<Vec<Outcome>, StoreError>>,
}

/// What the writer shares with the readers.
pub struct Shared {
    pub version: AtomicU64,
    pub members: Mutex<MembersCache>,
}

impl Shared {
    /// The database has come to this version.
    pub fn saw(&self, version: u64) {
        self.version.fetch_max(version, Ordering::AcqRel);
    }
}

/// Runs until every sender of `commits` is gone.
pub async fn run(
    pool: Arc<Pool>,
    shared: Arc<Shared>,
    options: Options,
    mut commits: mpsc::Receiver<Commit>,
) {
    let writer_id = uuid::Uuid::new_v4();
    let begin = begin_sql(&options);
    forget_writers(&pool, &options).await;
    while let Some(first) = commits.recv().await {
        let (mut count, mut bytes) = (first.writes.len(), bytes_of(&first.writes));
        let mut group = vec![first];
        while count < options.commit_writes_max
            && bytes < options.commit_bytes_max
            && let Ok(next) = commits.try_recv()
        {
            count += next.writes.len();
            bytes += bytes_of(&next.writes);
            group.push(next);
        }
        let context =
            Context { writer_id: writer_id.as_bytes(), members: &shared.members, begin: &begin };
        let writes: Vec<&[Write]> = group.iter().map(|commit| &commit.writes[..]).collect();
        let began = Instant::now();
        let done = persist(&pool, &context, &options, &writes).await;
        let took_ms = began.elapsed().as_millis() as u64;
        if began.elapsed() >= SLOW {
            tracing::debug!(took_ms, writes = count, "a slow commit");
        }
        match done {
            Ok(Decided { outcomes, version, .. }) => {
                shared.saw(version);
                for (commit, outcomes) in group.into_iter().zip(outcomes) {
                    commit.reply.send(Ok(outcomes)).ok();
                }
            }
            Err(error) => {
                let commits = group.len();
                tracing::error!(%error, commits, took_ms, "a commit failed");
                for commit in group {
                    commit.reply.send(Err(error.again())).ok();
                }
            }
        }
    }
}

/// Removes the marks of processes that are no more. One that is taken away too early is written again
/// with the process's next commit.
async fn forget_writers(pool: &Arc<Pool>, options: &Options) {
    let forget = async {
        let session = pool.session().await?;
        session
            .run("DELETE FROM millrace.writers WHERE seen_at < now() - interval '1 day'")
            .await?;
        session.give_back();
        Ok::<_, Failure>(())
    };
    if !matches!(timeout(options.commit_timeout, forget).await, Ok(Ok(()))) {
        tracing::debug!("marks of earlier processes stay");
    }
}

/// A transaction of ours, with its bounds: a process that is stopped in the middle of one, or whose
/// network is cut, holds its locks no longer than these.
pub fn begin_sql(options: &Options) -> String {
    let statement_ms = options.statement_timeout.as_millis().max(1);
    let idle_ms = options.idle_in_transaction_timeout.as_millis().max(1);
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; \
         SET LOCAL statement_timeout = {statement_ms}; \
         SET LOCAL idle_in_transaction_session_timeout = {idle_ms}"
    )
}

/// What the bodies of some writes take, roughly.
fn bytes_of(writes: &[Write]) -> usize {
    let of = |write: &Write| match write {
        Write::Append { body, .. } => body.len(),
        Write::Forward { messages, .. } => messages.iter().map(|message| message.body.len()).sum(),
        _ => 0,
    };
    writes.iter().map(of).sum()
}

/// Commits, with a bounded number of attempts. What ended in the dark is looked up before anything is
/// done again, so that nobody is told `duplicate` of a message that was just stored.
async fn persist(
    pool: &Arc<Pool>,
    context: &Context<'_>,
    options: &Options,
    writes: &[&[Write]],
) -> Result<Decided, StoreError> {
    let mut unknown: Option<Decided> = None;
    let mut last = StoreError::Unavailable("no attempt was made".into());
    let mut pause = options.retry_pause;
    let began = Instant::now();
    for attempt in 0..options.attempts_max.max(1) {
        if attempt > 0 {
            if began.elapsed() >= options.give_up_after {
                break;
            }
            // Two processes that met do not meet again at the same moment.
            pool.counted.retry();
            sleep(pause.mul_f64(0.5 + f64::from(jitter(context, attempt)) / 512.0)).await;
            pause = (pause * 2).min(options.retry_pause_max);
        }
        let tried = timeout(options.commit_timeout, async {
            let session = pool.session().await?;
            if let Some(decided) = &unknown {
                if commit::happened(&session, context, decided).await? {
                    session.give_back();
                    return Ok(None);
                }
                unknown = None;
            }
            let decided = commit::run(&session, context, writes, &mut unknown).await?;
            session.give_back();
            Ok::<_, Failure>(Some(decided))
        });
        match tried.await {
            Ok(Ok(Some(decided))) => return Ok(decided),
            Ok(Ok(None)) => match unknown.take() {
                Some(decided) => return Ok(decided),
                None => last = StoreError::Failed("a commit got lost".into()),
            },
            Ok(Err(Failure::Again { error, .. })) => last = error,
            Ok(Err(Failure::Final(error))) => return Err(error),
            Err(_) => last = StoreError::Unavailable("a commit took too long".into()),
        }
        tracing::debug!(error = %last, attempt, "a commit did not work");
    }
    pool.counted.give_up();
    Err(last)
}

/// Something between 0 and 255, other in each process.
fn jitter(context: &Context<'_>, attempt: usize) -> u8 {
    context.writer_id.get(attempt % context.writer_id.len().max(1)).copied().unwrap_or_default()
}
