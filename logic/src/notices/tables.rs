//! Notices on a group of side tables; see [`rows`](super::rows) for what lies where.
//!
//! In memory are only a table of bits (who may have something waiting), the ids of what is kept for
//! everyone, and how many notices there are. What other processes write is taken in by [`Follow`];
//! until then a login elsewhere may pass a new notice over, and finds it at the next one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use millrace_protocol::chat;

use super::{
    Audience, Mark, NewNotice, NoticeLimits, NoticeStore, State, States, Stored,
    rows::{
        COUNTERS, ENDS, KEPT_KEY, NOTICES, NUMBER_KEY, NoticeRow, PENDING, PendingRow, STATES,
        Scope, StateRow, TABLES, end_key, number, number_row, pending_key, prefix, state_key,
        text_after,
    },
};
use crate::storage::{
    StoreError,
    side::{Cursor, Follow, GroupRows, GroupWrites, SideGroup, Sides, Written},
};
use crate::user_filter::UserFilter;

/// Rows that one change forgets; the next change forgets more.
const FORGOTTEN_PER_CHANGE_MAX: usize = 1_000;

/// See the module. Cheap to clone; clones are the same notices. Close it before its store.
#[derive(Clone)]
pub struct NoticeTables {
    inner: Arc<Inner>,
}

struct Inner {
    tables: SideGroup,
    limits: NoticeLimits,
    live: Mutex<Live>,
    /// How far what others have written was looked at.
    seen: tokio::sync::Mutex<Cursor>,
}

/// What is known without the disk.
struct Live {
    filter: UserFilter,
    /// What is kept for everyone, and until when.
    everyone: Vec<(String, i64)>,
    notices: usize,
}

/// What a change did to [`Live`], to be applied when it is durable.
#[derive(Default)]
struct Difference {
    added: Vec<String>,
    removed: u64,
}

impl NoticeTables {
    /// Opens the notices in a store's database, and reads who has something waiting.
    ///
    /// # Errors
    /// The store's own failures.
    pub async fn open(sides: &dyn Sides, limits: NoticeLimits) -> Result<Self, StoreError> {
        let tables = sides.side_group("notices", &TABLES)?;
        let seen = tokio::sync::Mutex::new(tables.cursor().await?);
        let read = tables.read(|rows| {
            let mut live = Live { filter: UserFilter::new(), everyone: Vec::new(), notices: 0 };
            rows.scan(PENDING, b"", b"", |key, _| {
                live.filter.add(user_of(key)?);
                Ok(true)
            })?;
            rows.scan(NOTICES, b"", b"", |key, row| {
                live.notices += 1;
                let row = NoticeRow::decode(row)?;
                if row.scope == Scope::Everyone {
                    let notice_id = text_after(key, 0)?.to_owned();
                    live.everyone.push((notice_id, row.summary.expires_at_ms));
                }
                Ok(true)
            })?;
            Ok::<_, StoreError>(live)
        });
        let live = Mutex::new(read.await?);
        Ok(Self { inner: Arc::new(Inner { tables, limits, live, seen }) })
    }

    /// Finishes what was begun; later calls fail.
    ///
    /// # Errors
    /// When it was closed before.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.inner.tables.close().await
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // Whole after every statement, so a panic elsewhere spoils nothing.
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, difference: &Difference) {
        if difference.added.is_empty() && difference.removed == 0 {
            return;
        }
        let mut live = self.live();
        // In this order, so that the filter is not emptied in between.
        difference.added.iter().for_each(|user_id| live.filter.add(user_id));
        // Where others write, too, nobody counts how many rows wait, and the filter stays.
        if !self.inner.tables.is_shared() {
            live.filter.remove(difference.removed);
        }
    }

    /// Remembers what somebody, maybe another process, has written.
    fn take_in(&self, written: Vec<Written>) -> Result<(), StoreError> {
        let mut live = self.live();
        for Written { table, key, value } in written {
            let Some(row) = value else { continue };
            match table {
                PENDING => live.filter.add(user_of(&key)?),
                COUNTERS if key == KEPT_KEY => {
                    live.notices = usize::try_from(number(&row)?).unwrap_or(usize::MAX);
                }
                NOTICES => {
                    let row = NoticeRow::decode(&row)?;
                    if row.scope == Scope::Everyone {
                        live.everyone(text_after(&key, 0)?, row.summary.expires_at_ms);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Live {
    /// A notice is kept for everyone; it may be known already.
    fn everyone(&mut self, notice_id: &str, end_ms: i64) {
        if !self.everyone.iter().any(|(known, _)| known == notice_id) {
            self.everyone.push((notice_id.to_owned(), end_ms));
        }
    }
}

/// Whose a pending row is.
fn user_of(key: &[u8]) -> Result<&str, StoreError> {
    text_after(key.get(..key.len().saturating_sub(8)).unwrap_or_default(), 1)
}

#[async_trait]
impl Follow for NoticeTables {
    async fn follow(&self) -> Result<(), StoreError> {
        let mut seen = self.inner.seen.lock().await;
        loop {
            let written = self.inner.tables.news(&mut seen).await?;
            if written.is_empty() {
                return Ok(());
            }
            self.take_in(written)?;
        }
    }
}

#[async_trait]
impl NoticeStore for NoticeTables {
    async fn store(&self, new: NewNotice) -> Result<Stored, StoreError> {
        let limits = self.inner.limits;
        {
            let live = self.live();
            if live.notices >= limits.notices_max {
                return Ok(Stored::Full(format!("{} notices are kept already", live.notices)));
            }
            let now_ms = new.notice.sent_at_ms;
            let everyone = live.everyone.iter().filter(|(_, end_ms)| *end_ms > now_ms).count();
            if new.audience == Audience::Everyone && everyone >= limits.everyone_max {
                return Ok(Stored::Full(format!(
                    "{everyone} notices for everyone are kept already"
                )));
            }
        }
        let everyone = (new.audience == Audience::Everyone)
            .then(|| (new.notice.notice_id.clone(), new.expires_at_ms));
        let is_shared = self.inner.tables.is_shared();
        let change = move |txn: &mut GroupWrites<'_>| {
            let stored = store(txn, new, limits)?;
            if is_shared && matches!(stored.0, Stored::New { .. }) {
                count_kept(txn, 1, 0)?;
            }
            Ok::<_, StoreError>(stored)
        };
        let (stored, difference) = self.inner.tables.write(change).await?;
        if matches!(stored, Stored::New { .. }) {
            self.apply(&difference);
            let mut live = self.live();
            live.notices += 1;
            if let Some((notice_id, end_ms)) = everyone {
                live.everyone(&notice_id, end_ms);
            }
        }
        Ok(stored)
    }

    async fn mark(&self, marks: Vec<Mark>) -> Result<Vec<Mark>, StoreError> {
        let change = move |txn: &mut GroupWrites<'_>| {
            let mut changed = Vec::new();
            let mut removed = 0;
            let places = |mark: &Mark| {
                let Mark { notice_id, user_id, .. } = mark;
                let state = (STATES, state_key(notice_id, user_id));
                [(NOTICES, notice_id.clone().into_bytes()), state]
            };
            let known: Vec<_> = marks.iter().flat_map(places).collect();
            txn.prefetch(&known, &[])?;
            for mark in marks {
                if let Some(was_pending) = set(txn, &mark)? {
                    removed += u64::from(was_pending);
                    changed.push(mark);
                }
            }
            Ok::<_, StoreError>((changed, removed))
        };
        let (changed, removed) = self.inner.tables.write(change).await?;
        self.apply(&Difference { added: vec![], removed });
        Ok(changed)
    }

    async fn pending(
        &self,
        user_ids: Vec<String>,
        now_ms: i64,
    ) -> Result<Vec<Vec<chat::Notice>>, StoreError> {
        let everyone: Vec<String> = {
            let live = self.live();
            let lasting = live.everyone.iter().filter(|(_, end_ms)| *end_ms > now_ms);
            lasting.map(|(notice_id, _)| notice_id.clone()).collect()
        };
        let question = move |rows: &GroupRows<'_>| {
            let waiting: Vec<_> =
                user_ids.iter().map(|user_id| (PENDING, prefix(user_id))).collect();
            let acknowledged = |user_id: &String| {
                let state = |notice_id: &String| (STATES, state_key(notice_id, user_id));
                everyone.iter().map(state).collect::<Vec<_>>()
            };
            let states: Vec<_> = user_ids.iter().flat_map(acknowledged).collect();
            rows.prefetch(&states, &waiting)?;
            user_ids.iter().map(|user_id| pending(rows, user_id, &everyone, now_ms)).collect()
        };
        self.inner.tables.read(question).await
    }

    fn may_have_pending(&self, user_id: &str) -> bool {
        let live = self.live();
        // A filter that is shared is never emptied, but where nothing is kept nothing waits.
        !live.everyone.is_empty() || live.notices > 0 && live.filter.may_have(user_id)
    }

    fn is_empty(&self) -> bool {
        self.live().notices == 0
    }

    async fn states(
        &self,
        notice_id: &str,
        after_user_id: &str,
        limit: usize,
    ) -> Result<Option<States>, StoreError> {
        let (notice_id, after) = (notice_id.to_owned(), after_user_id.to_owned());
        self.inner.tables.read(move |rows| states(rows, &notice_id, &after, limit)).await
    }

    async fn expire(&self, now_ms: i64) -> Result<bool, StoreError> {
        let before_ms = now_ms.saturating_sub(self.inner.limits.kept_after_ms);
        let is_shared = self.inner.tables.is_shared();
        let change = move |txn: &mut GroupWrites<'_>| {
            let forgotten = forget(txn, before_ms)?;
            if is_shared && forgotten.notices > 0 {
                count_kept(txn, 0, forgotten.notices as u64)?;
            }
            Ok::<_, StoreError>(forgotten)
        };
        let Forgotten { notices, pending, more } = self.inner.tables.write(change).await?;
        self.apply(&Difference { added: vec![], removed: pending });
        let mut live = self.live();
        live.notices = live.notices.saturating_sub(notices);
        live.everyone.retain(|(_, end_ms)| *end_ms > now_ms);
        Ok(more)
    }
}

/// Counts what is kept, for the other processes; each of them keeps its own count by that.
fn count_kept(txn: &mut GroupWrites<'_>, more: u64, fewer: u64) -> Result<(), StoreError> {
    let kept = txn.get(COUNTERS, KEPT_KEY)?.map(|row| number(&row)).transpose()?.unwrap_or(0);
    txn.put(COUNTERS, KEPT_KEY.to_vec(), number_row((kept + more).saturating_sub(fewer)));
    Ok(())
}

fn notice_row(txn: &GroupWrites<'_>, notice_id: &str) -> Result<Option<NoticeRow>, StoreError> {
    txn.get(NOTICES, notice_id.as_bytes())?.map(|row| NoticeRow::decode(&row)).transpose()
}

fn store(
    txn: &mut GroupWrites<'_>,
    new: NewNotice,
    limits: NoticeLimits,
) -> Result<(Stored, Difference), StoreError> {
    let NewNotice { notice, audience, expires_at_ms, collapse_key } = new;
    let notice_id = notice.notice_id.clone();
    if let Some(known) = notice_row(txn, &notice_id)? {
        return Ok((Stored::Duplicate(known.summary), Difference::default()));
    }
    let (scope, mut user_ids) = match audience {
        Audience::Users(user_ids) => (Scope::Users, user_ids),
        Audience::Everyone => (Scope::Everyone, vec![]),
        Audience::Live => (Scope::Live, vec![]),
    };
    user_ids.sort_unstable();
    user_ids.dedup();
    let mut newest =
        txn.get(COUNTERS, NUMBER_KEY)?.map(|row| number(&row)).transpose()?.unwrap_or(0);
    let pending: Vec<_> = user_ids.iter().map(|user_id| (PENDING, prefix(user_id))).collect();
    txn.prefetch(&[], &pending)?;
    let mut difference = Difference::default();
    let mut dropped = Vec::new();
    let at_ms = notice.sent_at_ms;
    for user_id in &user_ids {
        for notice_id in in_the_way(txn, user_id, &collapse_key, at_ms, limits)? {
            let mark = Mark { notice_id, user_id: user_id.clone(), state: State::Dropped, at_ms };
            if let Some(was_pending) = set(txn, &mark)? {
                difference.removed += u64::from(was_pending);
                dropped.push(mark);
            }
        }
        newest += 1;
        let row = PendingRow {
            notice_id: notice_id.clone(),
            expires_at_ms,
            collapse_key: collapse_key.clone(),
        };
        txn.put(PENDING, pending_key(user_id, newest), row.encode());
        let state = StateRow { state: State::Stored, at_ms, number: newest };
        txn.put(STATES, state_key(&notice_id, user_id), state.encode());
    }
    let targets = user_ids.len() as u64;
    let summary = super::Summary {
        kind: notice.r#type,
        sent_at_ms: notice.sent_at_ms,
        expires_at_ms,
        targets,
        counts: [targets, 0, 0, 0],
    };
    let row = NoticeRow { scope, summary, body: notice.body };
    txn.put(NOTICES, notice_id.clone().into_bytes(), row.encode());
    txn.put(ENDS, end_key(expires_at_ms, &notice_id), vec![]);
    if targets > 0 {
        txn.put(COUNTERS, NUMBER_KEY.to_vec(), number_row(newest));
    }
    difference.added = user_ids;
    Ok((Stored::New { dropped }, difference))
}

/// The notices of a user that a new one drops: those with its collapse key, what has ended, and the
/// oldest of what is too much.
fn in_the_way(
    txn: &GroupWrites<'_>,
    user_id: &str,
    collapse_key: &str,
    now_ms: i64,
    limits: NoticeLimits,
) -> Result<Vec<String>, StoreError> {
    let mut dropped = Vec::new();
    let mut left = Vec::new();
    txn.scan(PENDING, &prefix(user_id), b"", |_, row| {
        let row = PendingRow::decode(row)?;
        let collapses = !collapse_key.is_empty() && row.collapse_key == collapse_key;
        let list = if collapses || row.expires_at_ms <= now_ms { &mut dropped } else { &mut left };
        list.push(row.notice_id);
        Ok(true)
    })?;
    let room = limits.pending_per_user_max.max(1) - 1;
    let too_many = left.len().saturating_sub(room);
    dropped.extend(left.drain(..too_many));
    Ok(dropped)
}

/// Moves a state forward. `None` when nothing has changed, else whether its pending row went.
fn set(txn: &mut GroupWrites<'_>, mark: &Mark) -> Result<Option<bool>, StoreError> {
    let Mark { notice_id, user_id, state, at_ms } = mark;
    let Some(mut notice) = notice_row(txn, notice_id)? else { return Ok(None) };
    let key = state_key(notice_id, user_id);
    let known = txn.get(STATES, &key)?.map(|row| StateRow::decode(&row)).transpose()?;
    let (from, mut number) = match known {
        Some(known) => (Some(known.state), known.number),
        // Whoever acknowledges what everyone got, or a room, gets a state by that.
        None if notice.scope != Scope::Users && *state == State::Acked => (None, 0),
        None => return Ok(None),
    };
    let forward = match from {
        None => true,
        Some(State::Acked) => false,
        Some(State::Dropped) => *state == State::Acked,
        Some(from) => *state as u8 > from as u8,
    };
    if !forward {
        return Ok(None);
    }
    let mut was_pending = false;
    if matches!(state, State::Acked | State::Dropped) && number > 0 {
        txn.remove(PENDING, pending_key(user_id, number));
        was_pending = true;
        number = 0;
    }
    txn.put(STATES, key, StateRow { state: *state, at_ms: *at_ms, number }.encode());
    notice.move_one(from, *state);
    txn.put(NOTICES, notice_id.clone().into_bytes(), notice.encode());
    Ok(Some(was_pending))
}

fn pending(
    rows: &GroupRows<'_>,
    user_id: &str,
    everyone: &[String],
    now_ms: i64,
) -> Result<Vec<chat::Notice>, StoreError> {
    let mut notice_ids = Vec::new();
    rows.scan(PENDING, &prefix(user_id), b"", |_, row| {
        let row = PendingRow::decode(row)?;
        if row.expires_at_ms > now_ms {
            notice_ids.push(row.notice_id);
        }
        Ok(true)
    })?;
    for notice_id in everyone {
        if rows.get(STATES, &state_key(notice_id, user_id))?.is_none() {
            notice_ids.push(notice_id.clone());
        }
    }
    let mut notices = Vec::with_capacity(notice_ids.len());
    for notice_id in notice_ids {
        if let Some(row) = rows.get(NOTICES, notice_id.as_bytes())? {
            notices.push(NoticeRow::decode(&row)?.notice(&notice_id));
        }
    }
    notices.sort_by_key(|notice| notice.sent_at_ms);
    Ok(notices)
}

fn states(
    rows: &GroupRows<'_>,
    notice_id: &str,
    after: &str,
    limit: usize,
) -> Result<Option<States>, StoreError> {
    let Some(row) = rows.get(NOTICES, notice_id.as_bytes())? else { return Ok(None) };
    let summary = NoticeRow::decode(&row)?.summary;
    let mut found = States { summary, marks: Vec::new(), complete: true };
    let prefix = prefix(notice_id);
    rows.scan(STATES, &prefix, &state_key(notice_id, after), |key, row| {
        let user_id = text_after(key, prefix.len())?;
        if !after.is_empty() && user_id == after {
            return Ok(true);
        }
        if found.marks.len() >= limit {
            found.complete = false;
            return Ok(false);
        }
        let StateRow { state, at_ms, .. } = StateRow::decode(row)?;
        let (notice_id, user_id) = (notice_id.to_owned(), user_id.to_owned());
        found.marks.push(Mark { notice_id, user_id, state, at_ms });
        Ok(true)
    })?;
    Ok(Some(found))
}

/// What a change has forgotten.
#[derive(Default)]
struct Forgotten {
    notices: usize,
    pending: u64,
    more: bool,
}

fn forget(txn: &mut GroupWrites<'_>, before_ms: i64) -> Result<Forgotten, StoreError> {
    let mut forgotten = Forgotten::default();
    let mut ended = None;
    txn.scan(ENDS, b"", b"", |key, _| {
        let at_ms = key.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        if at_ms <= before_ms.max(0) as u64 {
            ended = Some((key.to_vec(), text_after(key, 8)?.to_owned()));
        }
        Ok(false)
    })?;
    let Some((end_key, notice_id)) = ended else { return Ok(forgotten) };
    forgotten.more = true;
    let mut states = Vec::new();
    let prefix = prefix(&notice_id);
    txn.scan(STATES, &prefix, b"", |key, row| {
        states.push((key.to_vec(), StateRow::decode(row)?));
        Ok(states.len() < FORGOTTEN_PER_CHANGE_MAX)
    })?;
    let all = states.len() < FORGOTTEN_PER_CHANGE_MAX;
    for (key, state) in states {
        if state.number > 0 {
            txn.remove(PENDING, pending_key(text_after(&key, prefix.len())?, state.number));
            forgotten.pending += 1;
        }
        txn.remove(STATES, key);
    }
    if all {
        txn.remove(NOTICES, notice_id.into_bytes());
        txn.remove(ENDS, end_key);
        forgotten.notices = 1;
    }
    Ok(forgotten)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        notices::conformance,
        storage::{
            Store as _,
            embedded::{EmbeddedStore, Options},
        },
    };

    struct Bed {
        folder: tempfile::TempDir,
    }

    impl conformance::Bed for Bed {
        type Store = (EmbeddedStore, NoticeTables);

        async fn open(&self, limits: NoticeLimits) -> Self::Store {
            let options = Options { free_bytes_min: 0, ..Options::new(self.folder.path()) };
            let store = EmbeddedStore::open(options).expect("opened");
            let notices = NoticeTables::open(&store, limits).await.expect("opened");
            (store, notices)
        }

        async fn close(&self, (store, notices): Self::Store) {
            notices.close().await.expect("closed");
            store.close().await.expect("closed");
        }

        fn notices(store: &Self::Store) -> &dyn NoticeStore {
            &store.1
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_keeps_the_contract_of_notices() {
        conformance::run(async || Bed { folder: tempfile::tempdir().expect("a folder") }).await;
    }
}
