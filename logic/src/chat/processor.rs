//! The second stage: gathers writes and makes them durable, a batch a commit.
//!
//! Several batches may be with the store at once: it takes what has come while it was busy as one
//! group, so groups grow with load, and the store never waits for this stage between two groups.
//! What comes after a silence is committed at once. Under load a batch begins at most once in
//! `commit_interval`: a commit of two writes costs nearly as much as one of twenty, here and in all
//! that follows it, and processor time is what a busy machine lacks. Cursor moves of one user in one conversation that meet in a batch
//! become one write, and a batch of nothing but silent ones waits a moment for company. It answers
//! nobody: outcomes go on to the third stage in commit order.

use std::{collections::HashMap, sync::Arc, time::Instant};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use millrace_logic_sdk::Inbound;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep_until,
};

use super::Core;
use crate::storage::{Outcome, StoreError, Write};

/// A write and who waits for its outcome.
pub(crate) struct Job {
    pub write: Write,
    pub origin: Origin,
    pub received_at: Instant,
}

/// Who waits for the outcome of a write.
pub(crate) enum Origin {
    /// A client's frame.
    Frame(Inbound),
    /// A caller of the administrative API.
    Api(oneshot::Sender<Result<Outcome, Arc<StoreError>>>),
}

impl Origin {
    /// Nobody waits for an answer.
    fn is_silent(&self) -> bool {
        matches!(self, Self::Frame(inbound) if inbound.request_id == 0)
    }
}

impl Job {
    fn is_silent_move(&self) -> bool {
        matches!(self.write, Write::MoveCursor { .. }) && self.origin.is_silent()
    }
}

/// A finished commit on its way to the third stage.
pub(crate) struct Commit {
    /// One a write, in order.
    pub origins: Vec<(Origin, Instant)>,
    /// One outcome a write, in order, or why nothing was stored.
    pub result: Result<Vec<Outcome>, StoreError>,
}

/// A batch that the store has dealt with.
struct Committed {
    origins: Vec<(Origin, Instant)>,
    writes: usize,
    began: Instant,
    result: Result<Vec<Outcome>, StoreError>,
}

type Committing = FuturesOrdered<BoxFuture<'static, Committed>>;

/// Runs until every sender of `jobs` is gone and the last batch is committed.
pub(crate) async fn run(
    core: Arc<Core>,
    mut jobs: mpsc::Receiver<Job>,
    commits: mpsc::Sender<Commit>,
) {
    let writes_max = core.settings.commit_writes_max.max(1);
    let in_flight_max = core.settings.commits_in_flight_max.max(1);
    let mut gathered: Vec<Job> = Vec::with_capacity(writes_max);
    let mut committing = Committing::new();
    // Until when what is gathered waits for company.
    let mut company_until = None;
    // When the next batch may begin. Only a batch with company sets it: somebody who waits for
    // each answer before the next request is not made to wait for nobody.
    let mut not_before: Option<tokio::time::Instant> = None;
    let mut is_over = false;
    while !(is_over && committing.is_empty()) {
        let may_begin = committing.len() < in_flight_max;
        let room = writes_max - gathered.len();
        tokio::select! {
            biased;
            Some(committed) = committing.next(), if !committing.is_empty() => {
                // While the third stage is behind, nothing more is begun.
                let Ok(slot) = commits.reserve().await else { return };
                slot.send(conclude(&core, committed));
                continue;
            }
            received = jobs.recv_many(&mut gathered, room), if may_begin && !is_over => {
                is_over = received == 0;
                let newest = gathered.len() - received;
                let company = !is_over
                    && gathered.len() < writes_max
                    && !core.settings.cursor_delay.is_zero()
                    && gathered[newest..].iter().all(Job::is_silent_move);
                let now = tokio::time::Instant::now();
                if company {
                    company_until.get_or_insert(now + core.settings.cursor_delay);
                    continue;
                }
                let is_early = not_before.is_some_and(|moment| now < moment);
                if is_early && !is_over && gathered.len() < writes_max {
                    company_until = not_before;
                    continue;
                }
            }
            // A batch of nothing but cursor moves that nobody waits for is not worth a commit of its own
            // yet: most likely a message comes along soon, and takes them with it.
            () = until(company_until), if may_begin => {}
        }
        company_until = None;
        if !gathered.is_empty() {
            let is_busy = gathered.len() > 1;
            not_before =
                is_busy.then(|| tokio::time::Instant::now() + core.settings.commit_interval);
            begin(&core, &mut gathered, &mut committing);
        }
    }
}

/// Waits until a moment; without one, for ever.
pub(crate) async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Hands what is gathered to the store.
fn begin(core: &Arc<Core>, gathered: &mut Vec<Job>, committing: &mut Committing) {
    let (writes, origins) = coalesce(gathered);
    let core = core.clone();
    committing.push_back(
        async move {
            let (count, began) = (writes.len(), Instant::now());
            let result = core.store.commit(writes).await;
            Committed { origins, writes: count, began, result }
        }
        .boxed(),
    );
}

fn conclude(core: &Core, committed: Committed) -> Commit {
    let Committed { origins, writes, began, result } = committed;
    core.metrics.commit_seconds.observe(began.elapsed().as_secs_f64());
    core.metrics.commit_writes.observe(writes as f64);
    match &result {
        Ok(outcomes) => {
            assert_eq!(outcomes.len(), writes, "a store answers every write of a commit");
            core.metrics.commits.inc();
        }
        Err(error) => {
            core.metrics.commits_failed.inc();
            tracing::error!(%error, writes, "a commit failed; nothing was stored");
        }
    }
    Commit { origins, result }
}

/// Takes the batch apart, merging cursor moves that nobody waits for into the earlier move of the
/// same cursors.
fn coalesce(gathered: &mut Vec<Job>) -> (Vec<Write>, Vec<(Origin, Instant)>) {
    let mut writes: Vec<Write> = Vec::with_capacity(gathered.len());
    let mut origins = Vec::with_capacity(gathered.len());
    let mut cursors: HashMap<(String, String), usize> = HashMap::new();
    for Job { write, origin, received_at } in gathered.drain(..) {
        if let Write::MoveCursor { user_id, conversation_id, delivered, read } = &write {
            let silent = origin.is_silent();
            let key = (user_id.clone(), conversation_id.clone());
            match cursors.get(&key) {
                Some(&index) if silent => {
                    let (more_delivered, more_read) = (*delivered, *read);
                    if let Write::MoveCursor { delivered, read, .. } = &mut writes[index] {
                        *delivered = more_delivered.max(*delivered);
                        *read = more_read.max(*read);
                    }
                    continue;
                }
                _ => cursors.insert(key, writes.len()),
            };
        }
        writes.push(write);
        origins.push((origin, received_at));
    }
    (writes, origins)
}
