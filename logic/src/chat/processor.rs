//! The second stage: gathers writes and makes them durable, a batch a commit.
//!
//! While one commit is under way the next batch gathers in the queue, so batches grow with load
//! and a quiet system commits at once. Cursor moves of one user in one conversation that meet in a
//! batch become one write, and a batch of nothing but silent ones waits a moment for company. It answers nobody: outcomes go on to the third stage in commit order.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_logic_sdk::Inbound;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout_at,
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

/// Runs until every sender of `jobs` is gone and the last batch is committed.
pub(crate) async fn run(
    core: Arc<Core>,
    mut jobs: mpsc::Receiver<Job>,
    commits: mpsc::Sender<Commit>,
) {
    let writes_max = core.settings.commit_writes_max.max(1);
    let mut gathered = Vec::with_capacity(writes_max);
    loop {
        // The slot first: while the third stage is behind, the batch goes on growing.
        let Ok(slot) = commits.reserve().await else { return };
        if jobs.recv_many(&mut gathered, writes_max).await == 0 {
            return;
        }
        wait_for_company(&mut gathered, &mut jobs, writes_max, core.settings.cursor_delay).await;
        let (writes, origins) = coalesce(&mut gathered);
        let count = writes.len();
        let began = Instant::now();
        let result = core.store.commit(writes).await;
        core.metrics.commit_seconds.observe(began.elapsed().as_secs_f64());
        core.metrics.commit_writes.observe(count as f64);
        match &result {
            Ok(outcomes) => {
                assert_eq!(outcomes.len(), count, "a store answers every write of a commit");
                core.metrics.commits.inc();
            }
            Err(error) => {
                core.metrics.commits_failed.inc();
                tracing::error!(%error, writes = count, "a commit failed; nothing was stored");
            }
        }
        slot.send(Commit { origins, result });
    }
}

/// A batch of nothing but cursor moves that nobody waits for is not worth a commit of its own yet:
/// most likely a message comes along soon, and takes them with it.
async fn wait_for_company(
    gathered: &mut Vec<Job>,
    jobs: &mut mpsc::Receiver<Job>,
    writes_max: usize,
    delay: Duration,
) {
    if delay.is_zero() {
        return;
    }
    let until = tokio::time::Instant::now() + delay;
    let mut looked_at = 0;
    while gathered.len() < writes_max && gathered[looked_at..].iter().all(Job::is_silent_move) {
        looked_at = gathered.len();
        let room = writes_max - gathered.len();
        match timeout_at(until, jobs.recv_many(gathered, room)).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
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
