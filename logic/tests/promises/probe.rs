//! The store as logic sees it: the embedded one, with a hand on when things happen and an eye on
//! what does.
//!
//! Every question and every commit is dealt with in one go, on the thread that asks, so that a run
//! is the same every time. Around it are waits of some turns, in which other tasks go on, and the
//! points at which logic can be made to die.

use std::{
    future::{Future, pending},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use fastrand::Rng;
use millrace_logic::storage::{
    Changes, ConversationPage, MemberRange, Members, Outcome, Page, Store, StoreError, Write,
    embedded::EmbeddedStore,
    groups::{GroupStore, JoinRequestPage, MemberPage, ReceiptFilter, ReceiptPage, Role},
};
use millrace_protocol::chat;
use tokio::task::{unconstrained, yield_now};

use crate::{history::History, program::Point};

/// What outlives the lives of logic.
#[derive(Default)]
pub struct Probe {
    history: Mutex<History>,
    broken: Mutex<Option<String>>,
    armed: Mutex<Option<(Point, u32)>>,
    hit: AtomicBool,
    /// Calls of the store so far: while they grow, something goes on.
    calls: AtomicU64,
    /// Calls that are not answered.
    open: AtomicUsize,
}

impl Probe {
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found wrong with a commit.
    pub fn broken(&self) -> Option<String> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logic is to stand still at this point for ever, the `after`th time after this.
    pub fn arm(&self, point: Option<(Point, u32)>) {
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = point;
        self.hit.store(false, Ordering::Relaxed);
    }

    /// It stands there.
    pub fn is_hit(&self) -> bool {
        self.hit.load(Ordering::Relaxed)
    }

    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub fn is_idle(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    /// Whether this is where logic is to die.
    fn reach(&self, point: Point) -> bool {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *armed {
            Some((wanted, after)) if *wanted == point && *after > 0 => {
                *after -= 1;
                false
            }
            Some((wanted, _)) if *wanted == point => {
                *armed = None;
                self.hit.store(true, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }

    async fn pass(&self, point: Point) {
        if self.reach(point) {
            pending().await
        }
    }
}

/// Counts a call while it is not answered.
struct Open<'a>(&'a Probe);

impl<'a> Open<'a> {
    fn new(probe: &'a Probe) -> Self {
        probe.calls.fetch_add(1, Ordering::Relaxed);
        probe.open.fetch_add(1, Ordering::Relaxed);
        Self(probe)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The store of one life of logic.
pub struct Watched {
    inner: Arc<EmbeddedStore>,
    probe: Arc<Probe>,
    random: Mutex<Rng>,
    /// Commits are applied in the order in which they were begun.
    tickets: AtomicU64,
    turn: AtomicU64,
}

impl Watched {
    pub fn new(inner: Arc<EmbeddedStore>, probe: Arc<Probe>, seed: u64) -> Self {
        let random = Mutex::new(Rng::with_seed(seed));
        Self { inner, probe, random, tickets: AtomicU64::new(0), turn: AtomicU64::new(0) }
    }

    /// Lets others go on for some turns.
    async fn linger(&self) {
        let turns = {
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            if random.bool() { 0 } else { random.u8(..6) }
        };
        for _ in 0..turns {
            yield_now().await;
        }
    }

    async fn ask<T>(&self, question: impl Future<Output = T>) -> T {
        let _open = Open::new(&self.probe);
        self.linger().await;
        let answer = at_once(question);
        self.linger().await;
        answer
    }
}

/// Waits without letting anybody else run. The store works on threads of its own.
pub fn at_once<T>(work: impl Future<Output = T>) -> T {
    futures::executor::block_on(unconstrained(work))
}

#[async_trait]
impl Store for Watched {
    async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Outcome>, StoreError> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let _open = Open::new(&self.probe);
        self.probe.pass(Point::Accepted).await;
        self.linger().await;
        while self.turn.load(Ordering::Relaxed) != ticket {
            yield_now().await;
        }
        let result = at_once(self.inner.commit(writes.clone()));
        match &result {
            Ok(outcomes) => {
                let mut history = self.probe.history();
                for (write, outcome) in writes.iter().zip(outcomes) {
                    if let Err(wrong) = history.add(write, outcome) {
                        let mut broken =
                            self.probe.broken.lock().unwrap_or_else(PoisonError::into_inner);
                        broken.get_or_insert(wrong);
                    }
                }
            }
            Err(error) => panic!("the store fails: {error}"),
        }
        self.turn.store(ticket + 1, Ordering::Relaxed);
        self.probe.pass(Point::Stored).await;
        self.linger().await;
        // The processor hears of it in this very turn, and everything else comes later.
        self.probe.reach(Point::Answered);
        result
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
        let page = self.inner.page(user_id, conversation_id, from, to, limit, newest_first);
        let page = self.ask(page).await;
        self.probe.pass(Point::PageRead).await;
        page
    }

    async fn messages(
        &self,
        user_id: &str,
        conversation_id: &str,
        sequences: &[u64],
    ) -> Result<Vec<chat::Message>, StoreError> {
        self.ask(self.inner.messages(user_id, conversation_id, sequences)).await
    }

    async fn changes(
        &self,
        user_id: &str,
        conversation_id: &str,
        since_version: u64,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        self.ask(self.inner.changes(user_id, conversation_id, since_version, limit)).await
    }

    async fn expired(&self, now_ms: i64, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        at_once(self.inner.expired(now_ms, limit))
    }

    async fn member_ranges(&self, user_id: &str) -> Result<Vec<MemberRange>, StoreError> {
        self.ask(self.inner.member_ranges(user_id)).await
    }

    async fn conversations(
        &self,
        user_id: &str,
        since_version: u64,
        limit: usize,
    ) -> Result<ConversationPage, StoreError> {
        let page = self.ask(self.inner.conversations(user_id, since_version, limit)).await;
        self.probe.pass(Point::PageRead).await;
        page
    }

    async fn recent_conversations(
        &self,
        user_id: &str,
        before_version: u64,
        limit: usize,
    ) -> Result<ConversationPage, StoreError> {
        self.ask(self.inner.recent_conversations(user_id, before_version, limit)).await
    }

    async fn undelivered(
        &self,
        user_id: &str,
        as_of: u64,
        per_conversation_max: usize,
        conversations_max: usize,
    ) -> Result<Vec<chat::Message>, StoreError> {
        self.probe.pass(Point::CatchUp).await;
        let found = self.inner.undelivered(user_id, as_of, per_conversation_max, conversations_max);
        let found = self.ask(found).await;
        self.probe.pass(Point::CaughtUp).await;
        found
    }

    async fn undelivered_of(
        &self,
        user_ids: &[&str],
        as_of: u64,
        per_conversation_max: usize,
        conversations_max: usize,
    ) -> Result<Vec<Vec<chat::Message>>, StoreError> {
        self.probe.pass(Point::CatchUp).await;
        let found =
            self.inner.undelivered_of(user_ids, as_of, per_conversation_max, conversations_max);
        let found = self.ask(found).await;
        self.probe.pass(Point::CaughtUp).await;
        found
    }

    fn version(&self) -> u64 {
        self.inner.version()
    }

    async fn group(&self, group_id: &str) -> Result<Option<chat::Group>, StoreError> {
        self.ask(self.inner.group(group_id)).await
    }

    async fn members(&self, conversation_id: &str) -> Result<Option<Members>, StoreError> {
        self.ask(self.inner.members(conversation_id)).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }
}

#[async_trait]
impl GroupStore for Watched {
    async fn group_members(
        &self,
        group_id: &str,
        after: &str,
        limit: usize,
    ) -> Result<Option<MemberPage>, StoreError> {
        self.ask(self.inner.group_members(group_id, after, limit)).await
    }

    async fn join_requests(
        &self,
        group_id: &str,
        after: &str,
        limit: usize,
    ) -> Result<Option<JoinRequestPage>, StoreError> {
        self.ask(self.inner.join_requests(group_id, after, limit)).await
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
        self.ask(self.inner.receipts(conversation_id, sequence, filter, after, limit, look_max))
            .await
    }

    async fn group_role(&self, group_id: &str, user_id: &str) -> Result<Option<Role>, StoreError> {
        self.ask(self.inner.group_role(group_id, user_id)).await
    }

    async fn may_speak(
        &self,
        group_id: &str,
        user_id: &str,
        at_ms: i64,
    ) -> Result<bool, StoreError> {
        self.ask(self.inner.may_speak(group_id, user_id, at_ms)).await
    }
}
