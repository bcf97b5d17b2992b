//! The tables of [`side`](crate::storage::side) on PostgreSQL: the same rows under the same keys, and
//! the same rules, which run here on a thread that waits for each row it asks for.
//!
//! # A change
//! The row of its matter in `sides` is locked before it reads and until it is durable, by whichever
//! process: so changes of one matter happen one after another, as on the embedded store, and see all
//! that came before. What waits meanwhile in a process (up to [`CHANGES_PER_COMMIT_MAX`]) is one
//! transaction. A matter therefore takes about one commit after another over the whole cluster, some
//! hundreds a second, each with the changes that have gathered; that is for what people do now and
//! then, and shares nothing with messages.
//!
//! # News
//! A row carries the version of its commit, and versions of a matter become visible in their order,
//! because the lock is held to the end. So another process reads what is above the version it knows,
//! and misses nothing.
//!
//! # Failure
//! Before a change has run, a lost connection costs another attempt. After that its caller is told
//! [`StoreError::Unavailable`]: it may have happened.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, join, join_all};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
};
use tokio_postgres::types::Type;

use super::{
    BEGIN_READ, Options, end,
    loaded::{Column, lock, nth, number},
    pool::{Failure, Param, Pool, Session},
    writer::begin_sql,
};
use crate::storage::{
    StoreError,
    side::{Cursor, Each, NEWS_MAX, Place, RowSource, Rows, Written, behind},
};

/// Changes of one matter waiting for its writer; the next callers wait before they are queued.
const CHANGES_WAITING_MAX: usize = 256;

/// Changes of one commit.
const CHANGES_PER_COMMIT_MAX: usize = 256;

/// Questions about all matters that are answered at once, each on a thread; the next wait.
pub(super) const READS_IN_FLIGHT_MAX: usize = 8;

/// Rows that a range is read by at first and later.
const PAGE_ROWS_MIN: i64 = 32;
const PAGE_ROWS_MAX: i64 = 2_048;

/// Keys, or prefixes, of one statement that fetches what will be asked for.
const AHEAD_MAX: usize = 5_000;

/// Told whether what the change wrote is durable.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// A change. It is given the rows and what was changed before it in the same transaction, or why it
/// cannot run; it gives what it wants written, if anything, and who has to know.
type Change = Box<
    dyn FnOnce(Result<(&dyn RowSource, &[Rows]), StoreError>) -> Option<(Option<Vec<Rows>>, Answer)>
        + Send,
>;

/// What the matters of one store share.
pub(super) struct Doors {
    pub reads: Arc<Pool>,
    pub writes: Arc<Pool>,
    pub permits: Arc<Semaphore>,
    pub options: Options,
    /// All that were opened, to be ended with the store.
    pub opened: Mutex<Vec<Weak<Inner>>>,
}

impl Doors {
    /// Ends all matters, once what was begun is finished.
    pub async fn close(&self) {
        let opened = std::mem::take(&mut *lock(&self.opened));
        for inner in opened.iter().filter_map(Weak::upgrade) {
            // Who had one has closed it before, or leaves it to the store.
            if let Err(error) = (Side { inner }).close().await
                && !matches!(error, StoreError::Closed)
            {
                tracing::error!(%error, "a matter beside the messages did not close well");
            }
        }
        if let Ok(all) = self.permits.acquire_many(READS_IN_FLIGHT_MAX as u32).await {
            all.forget();
        }
        self.permits.close();
        self.writes.close();
    }
}

/// The tables of one matter. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Side {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    matter: Arc<Matter>,
    changes: Mutex<Option<mpsc::Sender<Change>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What a side and its writer know.
struct Matter {
    doors: Arc<Doors>,
    name: &'static str,
    tables: usize,
    sql: Sql,
}

/// The statements of one matter.
struct Sql {
    lock: String,
    get: String,
    get_all: String,
    prefixes: String,
    range: String,
    range_to_the_end: String,
    upsert: String,
    delete: String,
    mark: String,
    news: String,
}

impl Sql {
    fn of(name: &str) -> Self {
        let table = format!("millrace.side_{name}");
        let keys = "unnest($1::int8[], $2::bytea[]) AS k(part, key)";
        Self {
            lock: "UPDATE millrace.sides SET version = version + 1 WHERE name = $1 \
                   RETURNING version"
                .to_owned(),
            get: format!(
                "SELECT value FROM {table} WHERE part = $1 AND key = $2 AND value IS NOT NULL"
            ),
            get_all: format!(
                "SELECT k.n, t.value FROM unnest($1::int8[], $2::bytea[]) WITH ORDINALITY \
                 AS k(part, key, n) JOIN {table} t ON t.part = k.part::int2 AND t.key = k.key \
                 WHERE t.value IS NOT NULL"
            ),
            prefixes: format!(
                "SELECT k.n, t.key, t.value FROM \
                 unnest($1::int8[], $2::bytea[], $3::bytea[]) WITH ORDINALITY \
                 AS k(part, first, behind, n) JOIN {table} t ON t.part = k.part::int2 \
                 AND t.key >= k.first AND t.key < k.behind WHERE t.value IS NOT NULL \
                 ORDER BY k.n, t.key"
            ),
            range: format!(
                "SELECT key, value FROM {table} WHERE part = $1 AND key >= $2 AND key < $3 \
                 AND value IS NOT NULL ORDER BY part, key LIMIT $4"
            ),
            range_to_the_end: format!(
                "SELECT key, value FROM {table} WHERE part = $1 AND key >= $2 \
                 AND value IS NOT NULL ORDER BY part, key LIMIT $3"
            ),
            upsert: format!(
                "INSERT INTO {table} (part, key, version, value) \
                 SELECT k.part::int2, k.key, $4, k.value \
                 FROM unnest($1::int8[], $2::bytea[], $3::bytea[]) AS k(part, key, value) \
                 ON CONFLICT (part, key) DO UPDATE SET version = excluded.version, \
                 value = excluded.value, removed_at = NULL"
            ),
            delete: format!(
                "DELETE FROM {table} WHERE (part, key) IN (SELECT k.part::int2, k.key FROM {keys})"
            ),
            mark: format!(
                "UPDATE {table} t SET version = $3, value = NULL, removed_at = now() FROM {keys} \
                 WHERE t.part = k.part::int2 AND t.key = k.key"
            ),
            news: format!(
                "SELECT version, part, key, value FROM {table} \
                 WHERE (version, part, key) > ($1, $2, $3) ORDER BY version, part, key LIMIT $4"
            ),
        }
    }
}

/// Matters whose removed rows are told of to other processes. They leave a mark for
/// [`MARKS_KEPT_HOURS`].
fn leaves_marks(name: &str) -> bool {
    name == "rooms"
}

/// How long a removed row can be heard of. A process that was cut off for longer has to be started
/// again.
pub(super) const MARKS_KEPT_HOURS: u32 = 24;

impl Side {
    /// Opens the tables of a matter, which `migrate` has made. To be called on a runtime.
    pub(super) fn open(
        doors: &Arc<Doors>,
        name: &'static str,
        tables: usize,
    ) -> Result<Self, StoreError> {
        if doors.permits.is_closed() {
            return Err(StoreError::Closed);
        }
        let (sender, receiver) = mpsc::channel(CHANGES_WAITING_MAX);
        let matter = Arc::new(Matter { doors: doors.clone(), name, tables, sql: Sql::of(name) });
        let inner = Arc::new(Inner {
            changes: Mutex::new(Some(sender)),
            writer: Mutex::new(Some(tokio::spawn(write_all(matter.clone(), receiver)))),
            matter,
        });
        let mut opened = lock(&doors.opened);
        opened.retain(|inner| inner.strong_count() > 0);
        opened.push(Arc::downgrade(&inner));
        Ok(Self { inner })
    }

    /// How many tables there are.
    pub(in crate::storage) fn tables(&self) -> usize {
        self.inner.matter.tables
    }

    /// Runs a change alone, and writes what it gives if it has ended well.
    pub(in crate::storage) async fn write<T, E>(
        &self,
        change: impl FnOnce(&dyn RowSource, &[Rows]) -> (Vec<Rows>, Result<T, E>) + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let changes = lock(&self.inner.changes).clone().ok_or(StoreError::Closed)?;
        let (reply, outcome) = oneshot::channel();
        let change: Change = Box::new(move |ground| match ground {
            Err(error) => {
                reply.send(Err(E::from(error))).ok();
                None
            }
            Ok((base, written)) => {
                let (rows, result) = change(base, written);
                let rows = result.is_ok().then_some(rows);
                let answer: Answer = Box::new(move |durable| {
                    // A caller that went away is not told; its change stands all the same.
                    reply.send(durable.map_err(E::from).and(result)).ok();
                });
                Some((rows, answer))
            }
        });
        let ended = || StoreError::Failed("the writer has ended".into());
        changes.send(change).await.map_err(|_| ended())?;
        drop(changes);
        outcome.await.map_err(|_| ended())?
    }

    /// Answers a question about one moment.
    pub(in crate::storage) async fn read<T, E>(
        &self,
        question: impl FnOnce(&dyn RowSource) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let matter = self.inner.matter.clone();
        let doors = &self.inner.matter.doors;
        let permit = doors.permits.clone().acquire_owned().await;
        let permit: OwnedSemaphorePermit = permit.map_err(|_| StoreError::Closed)?;
        let session = again(doors, "a question", || async {
            let session = doors.reads.session().await?;
            session.run(BEGIN_READ).await?;
            Ok(session)
        })
        .await?;
        let runtime = Handle::current();
        let asked = spawn_blocking(move || {
            let rows = Fetched::new(&matter, &session, runtime);
            let answer = question(&rows);
            let broken = rows.broken.get();
            drop(permit);
            (session, answer, broken)
        });
        let (session, answer, broken) =
            asked.await.map_err(|error| StoreError::Failed(format!("a thread ended: {error}")))?;
        if !broken {
            end(Arc::new(session), doors.options.read_timeout);
        }
        answer
    }

    /// Where news go on from what is there now.
    pub(in crate::storage) async fn cursor(&self) -> Result<Cursor, StoreError> {
        let Matter { doors, name, .. } = &*self.inner.matter;
        let rows = again(doors, "a question", || async {
            let session = doors.reads.session().await?;
            let sql = "SELECT version FROM millrace.sides WHERE name = $1";
            let rows = session.rows(sql, &[(name, Type::TEXT)]).await?;
            session.give_back();
            Ok(rows)
        });
        let version: i64 =
            rows.await?.first().map(|row| row.get(0)).ok_or_else(|| missing(name))?;
        let table = i16::MAX.unsigned_abs().into();
        Ok(Cursor { version: version.unsigned_abs(), table, key: vec![] })
    }

    /// What was written behind the cursor.
    pub(in crate::storage) async fn news(
        &self,
        cursor: &mut Cursor,
    ) -> Result<Vec<Written>, StoreError> {
        let Matter { doors, sql, .. } = &*self.inner.matter;
        let version = number(cursor.version);
        let part = i16::try_from(cursor.table).unwrap_or(i16::MAX);
        let (key, limit) = (&cursor.key[..], number(NEWS_MAX as u64));
        let rows = again(doors, "a question", || async {
            let session = doors.reads.session().await?;
            let params: [Param<'_>; 4] = [
                (&version, Type::INT8),
                (&part, Type::INT2),
                (&key, Type::BYTEA),
                (&limit, Type::INT8),
            ];
            let rows = session.rows(&sql.news, &params).await?;
            session.give_back();
            Ok(rows)
        });
        let rows = rows.await?;
        let mut written = Vec::with_capacity(rows.len());
        for row in &rows {
            let table = usize::from(row.get::<_, i16>(1).unsigned_abs());
            written.push(Written { table, key: row.get(2), value: row.get(3) });
        }
        if let (Some(row), Some(last)) = (rows.last(), written.last()) {
            let version = row.get::<_, i64>(0).unsigned_abs();
            *cursor = Cursor { version, table: last.table, key: last.key.clone() };
        }
        Ok(written)
    }

    /// Finishes what was begun; later changes fail with [`StoreError::Closed`].
    pub(in crate::storage) async fn close(&self) -> Result<(), StoreError> {
        let changes = lock(&self.inner.changes).take();
        drop(changes.ok_or(StoreError::Closed)?);
        let writer = lock(&self.inner.writer).take();
        let ended_well = match writer {
            Some(writer) => writer.await.is_ok(),
            None => false,
        };
        match ended_well {
            true => Ok(()),
            false => Err(StoreError::Failed("the writer ended early".into())),
        }
    }
}

fn missing(name: &str) -> StoreError {
    StoreError::Failed(format!(
        "the database has no tables for {name}; run `millrace-logic migrate`"
    ))
}

/// Tries something that changes nothing until it works, a bounded number of times.
async fn again<T, F>(
    doors: &Doors,
    what: &'static str,
    act: impl Fn() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, Failure>>,
{
    let Doors { options, reads, .. } = doors;
    let began = Instant::now();
    let mut pause = options.retry_pause;
    let mut attempt = 1;
    loop {
        let error = match timeout(options.commit_timeout, act()).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(Failure::Final(error))) => return Err(error),
            Ok(Err(Failure::Again { error, .. })) => error,
            Err(_) => StoreError::Unavailable(format!("{what} took too long")),
        };
        if attempt >= options.attempts_max || began.elapsed() >= options.give_up_after {
            reads.counted.give_up();
            return Err(error);
        }
        attempt += 1;
        reads.counted.retry();
        tracing::debug!(%error, attempt, "{what} is tried again");
        sleep(pause).await;
        pause = (pause * 2).min(options.retry_pause_max);
    }
}

/// Rows that are fetched when they are asked for, within a transaction. Only for threads that may
/// block.
struct Fetched<'a> {
    matter: &'a Matter,
    session: &'a Session,
    runtime: Handle,
    /// A question failed, and the transaction with it.
    broken: Cell<bool>,
    ahead: RefCell<Ahead>,
}

/// What was fetched before it is asked for.
#[derive(Default)]
struct Ahead {
    rows: HashMap<Place, Option<Vec<u8>>>,
    /// By the first key behind a prefix: the prefix, and its rows.
    prefixes: HashMap<Place, (Vec<u8>, Vec<KeyAndValue>)>,
}

type KeyAndValue = (Vec<u8>, Vec<u8>);

impl<'a> Fetched<'a> {
    fn new(matter: &'a Matter, session: &'a Session, runtime: Handle) -> Self {
        let (broken, ahead) = (Cell::new(false), RefCell::default());
        Self { matter, session, runtime, broken, ahead }
    }

    fn rows(
        &self,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<tokio_postgres::Row>, StoreError> {
        let wait = self.matter.doors.options.read_timeout;
        let asked = async { timeout(wait, self.session.rows(sql, params)).await };
        let error = match self.runtime.block_on(asked) {
            Ok(Ok(rows)) => return Ok(rows),
            Ok(Err(failure)) => failure.into_error(),
            Err(_) => StoreError::Unavailable("a question took too long".into()),
        };
        self.broken.set(true);
        Err(error)
    }
}

/// A table's place as its column.
fn part(table: usize) -> i16 {
    i16::try_from(table).unwrap_or(i16::MAX)
}

impl RowSource for Fetched<'_> {
    fn get(&self, table: usize, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(row) = self.ahead.borrow().rows.get(&(table, key.to_vec())) {
            return Ok(row.clone());
        }
        let rows =
            self.rows(&self.matter.sql.get, &[(&part(table), Type::INT2), (&key, Type::BYTEA)])?;
        let row: Option<Vec<u8>> = rows.first().map(|row| row.get(0));
        // Nobody else changes it meanwhile: the view is of one moment, or the matter is locked.
        self.ahead.borrow_mut().rows.insert((table, key.to_vec()), row.clone());
        Ok(row)
    }

    fn range(
        &self,
        table: usize,
        start: &[u8],
        end: Option<&[u8]>,
        each: &mut Each<'_>,
    ) -> Result<(), StoreError> {
        let fetched = end.and_then(|end| {
            let ahead = self.ahead.borrow();
            let (prefix, rows) = ahead.prefixes.get(&(table, end.to_vec()))?;
            (start >= &prefix[..]).then(|| rows.clone())
        });
        if let Some(rows) = fetched {
            for (key, value) in &rows {
                if key[..] >= *start && !each(key, value)? {
                    break;
                }
            }
            return Ok(());
        }
        let (part, mut start, mut limit) = (part(table), start.to_vec(), PAGE_ROWS_MIN);
        let Sql { range, range_to_the_end, .. } = &self.matter.sql;
        loop {
            let rows = {
                let mut params: Vec<Param<'_>> = vec![(&part, Type::INT2), (&start, Type::BYTEA)];
                if let Some(end) = &end {
                    params.push((end, Type::BYTEA));
                }
                params.push((&limit, Type::INT8));
                self.rows(if end.is_some() { range } else { range_to_the_end }, &params)?
            };
            for row in &rows {
                if !each(row.get(0), row.get(1))? {
                    return Ok(());
                }
            }
            match rows.last() {
                Some(last) if rows.len() as i64 == limit => {
                    // The next key after one is the same with a zero byte.
                    start = last.get(0);
                    start.push(0);
                }
                _ => return Ok(()),
            }
            limit = (limit * 4).min(PAGE_ROWS_MAX);
        }
    }

    fn prefetch(&self, keys: &[Place], prefixes: &[Place]) -> Result<(), StoreError> {
        for keys in keys.chunks(AHEAD_MAX) {
            self.fetch_rows(keys)?;
        }
        for prefixes in prefixes.chunks(AHEAD_MAX) {
            self.fetch_prefixes(prefixes)?;
        }
        Ok(())
    }
}

impl Fetched<'_> {
    fn fetch_rows(&self, keys: &[Place]) -> Result<(), StoreError> {
        let parts: Vec<i64> = keys.iter().map(|(table, _)| part(*table).into()).collect();
        let wanted: Vec<&[u8]> = keys.iter().map(|(_, key)| &key[..]).collect();
        let found = self.rows(
            &self.matter.sql.get_all,
            &[(&parts, Type::INT8_ARRAY), (&wanted, Type::BYTEA_ARRAY)],
        )?;
        let mut values: Vec<Option<Vec<u8>>> = vec![None; keys.len()];
        for row in found {
            if let Some(value) = nth(&mut values, row.get(0)) {
                *value = Some(row.get(1));
            }
        }
        self.ahead.borrow_mut().rows.extend(keys.iter().cloned().zip(values));
        Ok(())
    }

    fn fetch_prefixes(&self, prefixes: &[Place]) -> Result<(), StoreError> {
        // What no key is behind is left to the time when it is asked for.
        let bounded: Vec<(i64, &[u8], Vec<u8>)> = prefixes
            .iter()
            .filter_map(|(table, first)| Some((part(*table).into(), &first[..], behind(first)?)))
            .collect();
        let parts: Vec<i64> = bounded.iter().map(|(part, ..)| *part).collect();
        let first: Vec<&[u8]> = bounded.iter().map(|(_, first, _)| *first).collect();
        let behind: Vec<&[u8]> = bounded.iter().map(|(.., behind)| &behind[..]).collect();
        let found = self.rows(
            &self.matter.sql.prefixes,
            &[
                (&parts, Type::INT8_ARRAY),
                (&first, Type::BYTEA_ARRAY),
                (&behind, Type::BYTEA_ARRAY),
            ],
        )?;
        let mut rows: Vec<Vec<KeyAndValue>> = vec![vec![]; bounded.len()];
        for row in found {
            if let Some(rows) = nth(&mut rows, row.get(0)) {
                rows.push((row.get(1), row.get(2)));
            }
        }
        let mut ahead = self.ahead.borrow_mut();
        for ((part, first, behind), rows) in bounded.into_iter().zip(rows) {
            let table = usize::try_from(part).unwrap_or_default();
            ahead.prefixes.insert((table, behind), (first.to_vec(), rows));
        }
        Ok(())
    }
}

/// Runs until every sender is gone.
async fn write_all(matter: Arc<Matter>, mut changes: mpsc::Receiver<Change>) {
    forget_marks(&matter).await;
    while let Some(first) = changes.recv().await {
        let mut group = vec![first];
        while group.len() < CHANGES_PER_COMMIT_MAX
            && let Ok(next) = changes.try_recv()
        {
            group.push(next);
        }
        let (session, version) = match begin(&matter).await {
            Ok(begun) => begun,
            Err(error) => {
                tracing::error!(%error, side = matter.name, "changes were not stored");
                for change in group {
                    change(Err(error.again()));
                }
                continue;
            }
        };
        let (runtime, of) = (Handle::current(), matter.clone());
        let changed = spawn_blocking(move || {
            let mut written: Vec<Rows> = (0..of.tables).map(|_| Rows::new()).collect();
            let mut answers = Vec::new();
            let rows = Fetched::new(&of, &session, runtime);
            for change in group {
                let Some((own, answer)) = change(Ok((&rows, &written))) else { continue };
                for (table, rows) in written.iter_mut().zip(own.unwrap_or_default()) {
                    table.extend(rows);
                }
                answers.push(answer);
            }
            (session, written, answers)
        });
        let Ok((session, written, answers)) = changed.await else {
            // A change panicked: its connection is closed, so that nothing of it is written, and its
            // callers see that nobody answers.
            tracing::error!(side = matter.name, "a change ended early");
            continue;
        };
        let durable = finish(&matter, session, version, written).await;
        if let Err(error) = &durable {
            tracing::error!(%error, side = matter.name, changes = answers.len(), "changes were lost");
        }
        for answer in answers {
            answer(durable.as_ref().map(|_| ()).map_err(|error| error.again()));
        }
    }
}

/// Begins a transaction, and waits for the turn of this process.
async fn begin(matter: &Matter) -> Result<(Session, i64), StoreError> {
    let Matter { doors, name, sql, .. } = matter;
    let begin = begin_sql(&doors.options);
    again(doors, "a change", || async {
        let session = doors.writes.session().await?;
        let params: [Param<'_>; 1] = [(name, Type::TEXT)];
        let (begun, locked) = join(session.run(&begin), session.rows(&sql.lock, &params)).await;
        begun?;
        let version = locked?.first().map(|row| row.get(0)).ok_or_else(|| missing(name))?;
        Ok((session, version))
    })
    .await
}

/// Writes everything and ends the transaction.
async fn finish(
    matter: &Matter,
    session: Session,
    version: i64,
    written: Vec<Rows>,
) -> Result<(), StoreError> {
    let wait = matter.doors.options.commit_timeout;
    let late = || StoreError::Unavailable("a commit took too long, and may have happened".into());
    if written.iter().all(Rows::is_empty) {
        // A connection on which this fails is not used again, and nothing else is lost by that.
        if let Ok(Ok(())) = timeout(wait, session.run("ROLLBACK")).await {
            session.give_back();
        }
        return Ok(());
    }
    let (mut put, mut removed) = ((vec![], vec![], vec![]), (vec![], vec![]));
    for (table, rows) in written.into_iter().enumerate() {
        for (key, value) in rows {
            match value {
                Some(value) => {
                    put.0.push(part(table).into());
                    put.1.push(key);
                    put.2.push(value);
                }
                None => {
                    removed.0.push(part(table).into());
                    removed.1.push(key);
                }
            }
        }
    }
    let put = [Column::Numbers(put.0), Column::Bytes(put.1), Column::Bytes(put.2)];
    let removed = [Column::Numbers(removed.0), Column::Bytes(removed.1)];
    let is_empty =
        |columns: &[Column]| matches!(&columns[0], Column::Numbers(all) if all.is_empty());
    let marks = leaves_marks(matter.name);
    let mut statements: Vec<(&str, Vec<Param<'_>>)> = vec![];
    if !is_empty(&removed) {
        let mut params: Vec<Param<'_>> = removed.iter().map(Column::param).collect();
        if marks {
            params.push((&version, Type::INT8));
        }
        let sql: &str = if marks { &matter.sql.mark } else { &matter.sql.delete };
        statements.push((sql, params));
    }
    if !is_empty(&put) {
        let mut params: Vec<Param<'_>> = put.iter().map(Column::param).collect();
        params.push((&version, Type::INT8));
        statements.push((&matter.sql.upsert, params));
    }
    // All of it is sent before the first answer is waited for.
    let on = &session;
    let mut work: Vec<BoxFuture<'_, Result<(), Failure>>> = vec![];
    for (sql, params) in &statements {
        work.push(Box::pin(async move { on.rows(sql, params).await.map(drop) }));
    }
    work.push(Box::pin(on.run("COMMIT")));
    let done = timeout(wait, join_all(work)).await.map_err(|_| late())?;
    // Of several failures the first says why; and after one the end of a transaction is no commit.
    done.into_iter().collect::<Result<(), _>>().map_err(Failure::into_error)?;
    session.give_back();
    Ok(())
}

/// Removes marks that everybody has seen.
async fn forget_marks(matter: &Matter) {
    if !leaves_marks(matter.name) {
        return;
    }
    let sql = format!(
        "DELETE FROM millrace.side_{} WHERE removed_at < now() - interval '{MARKS_KEPT_HOURS} hours'",
        matter.name
    );
    let forget = async {
        let session = matter.doors.writes.session().await?;
        session.run(&sql).await?;
        session.give_back();
        Ok::<_, Failure>(())
    };
    if !matches!(timeout(Duration::from_secs(10), forget).await, Ok(Ok(()))) {
        tracing::debug!(side = matter.name, "marks of removed rows stay");
    }
}

#[cfg(test)]
mod tests;
