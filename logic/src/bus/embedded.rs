//! The bus of a single machine: a log in the embedded store's database, written in groups with one
//! fdatasync. What [`Bus::publish`] has answered survives `kill -9`; a disk without space refuses
//! records and takes them again when there is some.
//!
//! # What is kept
//! Each topic keeps its records for `retention_ms` and up to `topic_bytes_max`, whichever ends first,
//! whether they were read or not: a consumer that was away for longer begins at the oldest record
//! that is left, and sees the gap in the offsets. Records above the size go in the commit that
//! writes new ones; those above the age when [`EmbeddedBus::expire`] is called.
//!
//! Ids of records are remembered in memory, the newest `ids_kept_max`: whoever publishes again because
//! a commit failed does so in the same process.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{
    Bus, BusCounts, BusError, NewRecord, Page, Record, Start, Subscription, TopicStatus,
    check_name,
    rows::{
        BEGUN, CONSUMERS, RECORDS, TABLES, TOPICS, TopicRow, begun, begun_row, committed,
        committed_row, consumer_key, prefix, record, record_key, record_row,
    },
    subscription::EmbeddedSubscription,
};
use crate::storage::{
    StoreError,
    embedded::{EmbeddedStore, SideGroup},
    side::{GroupRows, GroupWrites},
};

/// Records that one change drops because of their age; the next change drops more.
const EXPIRED_PER_CHANGE_MAX: usize = 1_000;

/// Bounds of an [`EmbeddedBus`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedBusSettings {
    /// Topics. A record for one more is refused. Default 64.
    pub topics_max: usize,
    /// Consumers of one topic. One more is refused. Default 64.
    pub consumers_per_topic_max: usize,
    /// Bytes of keys and payloads that one topic keeps; above, its oldest records go. Default
    /// 256 MiB.
    pub topic_bytes_max: u64,
    /// How long a record is kept, in milliseconds. Default 7 days.
    pub retention_ms: u64,
    /// Ids of records that are remembered; the oldest are forgotten. Default 16,384.
    pub ids_kept_max: usize,
    /// With how many subscriptions in a row a record may be the first one given, and none of them get
    /// beyond it, before it is put among the dead letters. 0: any number. Default 16.
    pub deliveries_max: u32,
}

impl Default for EmbeddedBusSettings {
    fn default() -> Self {
        Self {
            topics_max: 64,
            consumers_per_topic_max: 64,
            topic_bytes_max: 256 << 20,
            retention_ms: 7 * 24 * 3_600 * 1_000,
            ids_kept_max: 16_384,
            deliveries_max: 16,
        }
    }
}

/// See the module. Cheap to clone; clones are the same bus. Close it before its store.
#[derive(Clone)]
pub struct EmbeddedBus {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    tables: SideGroup,
    settings: EmbeddedBusSettings,
    live: Mutex<Live>,
    /// Changes whenever `live` does.
    changed: watch::Sender<u64>,
    dropped: AtomicU64,
    pub(super) dead_letters: AtomicU64,
}

/// What waiters look at. Bounded by the topics and consumers there may be.
#[derive(Default)]
struct Live {
    /// The end of each topic that was published to since the start.
    ends: HashMap<String, u64>,
    /// Which subscription of a consumer is the newest.
    newest: HashMap<(String, String), u64>,
    /// Offsets of the newest records with an id, by topic and id.
    taken: HashMap<(String, String), u64>,
    /// The same in the order they came.
    taken_order: VecDeque<(String, String)>,
}

impl Live {
    fn remember(&mut self, topic_and_id: (String, String), offset: u64, ids_kept_max: usize) {
        if self.taken.insert(topic_and_id.clone(), offset).is_none() {
            self.taken_order.push_back(topic_and_id);
        }
        while self.taken_order.len() > ids_kept_max {
            if let Some(oldest) = self.taken_order.pop_front() {
                self.taken.remove(&oldest);
            }
        }
    }
}

impl EmbeddedBus {
    /// Opens the log in a store's database.
    ///
    /// # Errors
    /// The store's own failures.
    pub fn open(store: &EmbeddedStore, settings: EmbeddedBusSettings) -> Result<Self, StoreError> {
        let inner = Inner {
            tables: store.side_group("bus", &TABLES)?,
            settings,
            live: Mutex::default(),
            changed: watch::Sender::new(0),
            dropped: AtomicU64::new(0),
            dead_letters: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Records that were dropped because of their age or their topic's size.
    pub fn dropped(&self) -> u64 {
        self.inner.dropped.load(Ordering::Relaxed)
    }

    /// Drops the records that are older than the retention at `now_ms`. Returns how many.
    ///
    /// # Errors
    /// [`BusError`]; what was dropped until then stays so.
    pub async fn expire(&self, now_ms: i64) -> Result<u64, BusError> {
        let retention_ms = self.inner.settings.retention_ms.min(i64::MAX as u64) as i64;
        let before_ms = now_ms.saturating_sub(retention_ms);
        let mut total = 0;
        for TopicStatus { topic, .. } in self.topics().await? {
            loop {
                let topic = topic.clone();
                let change = move |txn: &mut GroupWrites<'_>| expire(txn, &topic, before_ms);
                let dropped = self.inner.tables.write(change).await?;
                total += dropped;
                if (dropped as usize) < EXPIRED_PER_CHANGE_MAX {
                    break;
                }
            }
        }
        self.inner.dropped.fetch_add(total, Ordering::Relaxed);
        Ok(total)
    }

    /// Finishes what was begun; later calls fail.
    ///
    /// # Errors
    /// When it was closed before.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.inner.tables.close().await
    }
}

impl From<StoreError> for BusError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full(reason) => Self::Full(reason),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

pub(super) fn now_ms() -> i64 {
    // A clock before 1970 is a machine without one; 0 says so.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

impl Inner {
    fn live(&self) -> MutexGuard<'_, Live> {
        // Whole after every statement, so a panic elsewhere spoils nothing.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// Whether this subscription is still the newest of its consumer.
    pub(super) fn is_newest(&self, topic: &str, consumer: &str, number: u64) -> bool {
        let key = (topic.to_owned(), consumer.to_owned());
        self.live().newest.get(&key) == Some(&number)
    }

    /// See [`EmbeddedBusSettings::deliveries_max`].
    pub(super) fn deliveries_max(&self) -> u32 {
        self.settings.deliveries_max
    }

    /// Counts that a subscription of the consumer begins with this record. Returns how many did so in
    /// a row.
    pub(super) async fn begin(
        &self,
        topic: &str,
        consumer: &str,
        offset: u64,
    ) -> Result<u64, BusError> {
        let key = consumer_key(topic, consumer);
        let change = move |txn: &mut GroupWrites<'_>| {
            let known = txn.get(BEGUN, &key)?.map(|row| begun(&row)).transpose()?;
            let times = match known {
                Some((begun, times)) if begun == offset => times.saturating_add(1),
                _ => 1,
            };
            txn.put(BEGUN, key, begun_row(offset, times));
            Ok::<_, StoreError>(times)
        };
        Ok(self.tables.write(change).await?)
    }

    /// Waits until the topic has a record at `offset` or after it, or `over` says that nobody
    /// cares any more.
    pub(super) async fn wait(
        &self,
        topic: &str,
        offset: u64,
        over: impl Fn() -> bool,
    ) -> Result<(), BusError> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let known = self.live().ends.get(topic).copied();
            let end = match known {
                Some(end) => end,
                // Nothing was published since the start, or never.
                None => {
                    let name = topic.to_owned();
                    let row = self.tables.read(move |view| view_topic(view, &name)).await?;
                    row.map_or(1, |row| row.end_offset)
                }
            };
            if end > offset || over() {
                return Ok(());
            }
            if changed.changed().await.is_err() {
                return Err(BusError::Unavailable("it is closed".to_owned()));
            }
        }
    }
}

#[async_trait]
impl Bus for EmbeddedBus {
    async fn publish_all(&self, records: Vec<NewRecord>) -> Vec<Result<u64, BusError>> {
        let count = records.len();
        let settings = self.inner.settings.clone();
        let ids_kept_max = settings.ids_kept_max;
        let now_ms = now_ms();
        let inner = self.inner.clone();
        let change = move |txn: &mut GroupWrites<'_>| {
            let mut dropped = 0;
            let mut outcomes = Vec::with_capacity(records.len());
            let mut ends = HashMap::new();
            let mut taken = HashMap::new();
            for new in records {
                let id = (!new.id.is_empty()).then(|| (new.topic.clone(), new.id.clone()));
                let known = id.as_ref().and_then(|id| {
                    taken.get(id).copied().or_else(|| inner.live().taken.get(id).copied())
                });
                if let Some(offset) = known {
                    outcomes.push(Ok(offset));
                    continue;
                }
                let outcome = append(txn, &settings, &new, now_ms, &mut dropped)?;
                if let Ok(offset) = outcome {
                    ends.insert(new.topic, offset + 1);
                    taken.extend(id.map(|id| (id, offset)));
                }
                outcomes.push(outcome);
            }
            Ok::<_, StoreError>((outcomes, ends, taken, dropped))
        };
        match self.inner.tables.write(change).await {
            Ok((outcomes, ends, taken, dropped)) => {
                self.inner.dropped.fetch_add(dropped, Ordering::Relaxed);
                {
                    let mut live = self.inner.live();
                    for (topic, end) in ends {
                        let known = live.ends.entry(topic).or_default();
                        *known = end.max(*known);
                    }
                    for (topic_and_id, offset) in taken {
                        live.remember(topic_and_id, offset, ids_kept_max);
                    }
                }
                self.inner.told();
                outcomes
            }
            Err(error) => {
                let error = BusError::from(error);
                (0..count).map(|_| Err(error.clone())).collect()
            }
        }
    }

    async fn read(
        &self,
        topic: &str,
        from: Start,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Page, BusError> {
        check_name(topic)?;
        let topic = topic.to_owned();
        let question =
            move |view: &GroupRows<'_>| read(view, &topic, from, records_max.max(1), bytes_max);
        self.inner.tables.read(question).await
    }

    async fn wait(&self, topic: &str, offset: u64) -> Result<(), BusError> {
        check_name(topic)?;
        self.inner.wait(topic, offset, || false).await
    }

    async fn commit(
        &self,
        topic: &str,
        consumer: &str,
        offset: u64,
        rewind: bool,
    ) -> Result<u64, BusError> {
        check_name(topic)?;
        check_name(consumer)?;
        let (topic, consumer) = (topic.to_owned(), consumer.to_owned());
        let consumers_max = self.inner.settings.consumers_per_topic_max;
        let topics_max = self.inner.settings.topics_max;
        let change = move |txn: &mut GroupWrites<'_>| {
            let Some(row) = topic_row(txn, &topic, topics_max)? else {
                return Err(BusError::TooMany(format!("there are {topics_max} topics")));
            };
            let key = consumer_key(&topic, &consumer);
            let known = txn.get(CONSUMERS, &key)?.map(|row| committed(&row)).transpose()?;
            if known.is_none() {
                let mut consumers = 0;
                txn.scan(CONSUMERS, &prefix(&topic), b"", |_, _| {
                    consumers += 1;
                    Ok(true)
                })?;
                if consumers >= consumers_max {
                    let reason = format!("{topic} has {consumers_max} consumers already");
                    return Err(BusError::TooMany(reason));
                }
            }
            let offset = offset.min(row.end_offset - 1);
            let offset = if rewind { offset } else { offset.max(known.unwrap_or(0)) };
            if known != Some(offset) {
                txn.put(CONSUMERS, key, committed_row(offset));
            }
            Ok(offset)
        };
        self.inner.tables.write(change).await
    }

    async fn topics(&self) -> Result<Vec<TopicStatus>, BusError> {
        let question = |view: &GroupRows<'_>| {
            let mut topics = Vec::new();
            view.scan(TOPICS, b"", b"", |key, row| {
                let TopicRow { first_offset, end_offset, bytes, .. } = TopicRow::decode(row)?;
                let topic = String::from_utf8_lossy(key).into_owned();
                let consumers = Vec::new();
                topics.push(TopicStatus { topic, first_offset, end_offset, bytes, consumers });
                Ok(true)
            })?;
            for topic in &mut topics {
                let prefix = prefix(&topic.topic);
                view.scan(CONSUMERS, &prefix, b"", |key, row| {
                    let name = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
                    topic.consumers.push((name, committed(row)?));
                    Ok(true)
                })?;
            }
            Ok(topics)
        };
        self.inner.tables.read(question).await
    }

    async fn subscribe(
        &self,
        topic: &str,
        consumer: &str,
    ) -> Result<Box<dyn Subscription>, BusError> {
        // Makes the consumer, and the topic, if they are new.
        let committed = self.commit(topic, consumer, 0, false).await?;
        let number = {
            let mut live = self.inner.live();
            let newest = live.newest.entry((topic.to_owned(), consumer.to_owned())).or_default();
            *newest += 1;
            *newest
        };
        self.inner.told();
        Ok(Box::new(EmbeddedSubscription::new(
            self.clone(),
            topic,
            consumer,
            number,
            committed + 1,
        )))
    }

    fn counts(&self) -> BusCounts {
        let dead_letters = self.inner.dead_letters.load(Ordering::Relaxed);
        BusCounts { dead_letters, ..BusCounts::default() }
    }
}

/// The row of a topic, which is made if there is room for it.
fn topic_row(
    txn: &mut GroupWrites<'_>,
    topic: &str,
    topics_max: usize,
) -> Result<Option<TopicRow>, StoreError> {
    if let Some(row) = txn.get(TOPICS, topic.as_bytes())? {
        return TopicRow::decode(&row).map(Some);
    }
    let mut topics = 0;
    txn.scan(TOPICS, b"", b"", |_, _| {
        topics += 1;
        Ok(true)
    })?;
    if topics >= topics_max {
        return Ok(None);
    }
    txn.put(TOPICS, topic.as_bytes().to_vec(), TopicRow::NEW.encode());
    Ok(Some(TopicRow::NEW))
}

fn view_topic(view: &GroupRows<'_>, topic: &str) -> Result<Option<TopicRow>, BusError> {
    let row = view.get(TOPICS, topic.as_bytes())?;
    Ok(row.map(|row| TopicRow::decode(&row)).transpose()?)
}

/// Appends one record; the outer error is the store's, and the end of the whole change.
fn append(
    txn: &mut GroupWrites<'_>,
    settings: &EmbeddedBusSettings,
    new: &NewRecord,
    now_ms: i64,
    dropped: &mut u64,
) -> Result<Result<u64, BusError>, StoreError> {
    if let Err(error) = check_name(&new.topic) {
        return Ok(Err(error));
    }
    let Some(mut row) = topic_row(txn, &new.topic, settings.topics_max)? else {
        let reason = format!("there are {} topics already", settings.topics_max);
        return Ok(Err(BusError::TooMany(reason)));
    };
    row.newest_ms = now_ms.max(row.newest_ms);
    let value = record_row(row.newest_ms, &new.key, &new.payload);
    let offset = row.end_offset;
    row.end_offset += 1;
    row.bytes += value.len() as u64;
    txn.put(RECORDS, record_key(&new.topic, offset), value);
    // The newest stays, however large it is.
    while row.bytes > settings.topic_bytes_max && row.first_offset < offset {
        *dropped += u64::from(drop_oldest(txn, &new.topic, &mut row)?);
    }
    txn.put(TOPICS, new.topic.as_bytes().to_vec(), row.encode());
    Ok(Ok(offset))
}

/// Drops the oldest record of a topic that has one; says whether it was there.
fn drop_oldest(
    txn: &mut GroupWrites<'_>,
    topic: &str,
    row: &mut TopicRow,
) -> Result<bool, StoreError> {
    let key = record_key(topic, row.first_offset);
    let found = txn.get(RECORDS, &key)?;
    row.first_offset += 1;
    let Some(found) = found else { return Ok(false) };
    row.bytes = row.bytes.saturating_sub(found.len() as u64);
    txn.remove(RECORDS, key);
    Ok(true)
}

fn expire(txn: &mut GroupWrites<'_>, topic: &str, before_ms: i64) -> Result<u64, StoreError> {
    let Some(row) = txn.get(TOPICS, topic.as_bytes())? else { return Ok(0) };
    let mut row = TopicRow::decode(&row)?;
    let mut dropped = 0;
    while row.first_offset < row.end_offset && (dropped as usize) < EXPIRED_PER_CHANGE_MAX {
        let found = txn.get(RECORDS, &record_key(topic, row.first_offset))?;
        let oldest = found.map(|found| record(row.first_offset, &found)).transpose()?;
        if oldest.is_some_and(|oldest| oldest.time_ms >= before_ms) {
            break;
        }
        dropped += u64::from(drop_oldest(txn, topic, &mut row)?);
    }
    if dropped > 0 {
        txn.put(TOPICS, topic.as_bytes().to_vec(), row.encode());
    }
    Ok(dropped)
}

fn read(
    view: &GroupRows<'_>,
    topic: &str,
    from: Start,
    records_max: usize,
    bytes_max: usize,
) -> Result<Page, BusError> {
    let Some(row) = view_topic(view, topic)? else { return Err(BusError::NotFound) };
    let TopicRow { first_offset, end_offset, .. } = row;
    let from = match from {
        Start::Offset(offset) => offset.max(first_offset),
        Start::TimeMs(time_ms) => first_since(view, topic, row, time_ms)?,
    };
    let mut records: Vec<Record> = Vec::new();
    let mut bytes = 0;
    let prefix = prefix(topic);
    view.scan(RECORDS, &prefix, &record_key(topic, from), |key, row| {
        let offset = key.last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        bytes += row.len();
        if !records.is_empty() && bytes > bytes_max {
            return Ok(false);
        }
        records.push(record(offset, row)?);
        Ok(records.len() < records_max)
    })?;
    Ok(Page { records, first_offset, end_offset })
}

/// The offset of the first record of this moment or later, by halving: times only grow.
fn first_since(
    view: &GroupRows<'_>,
    topic: &str,
    row: TopicRow,
    time_ms: i64,
) -> Result<u64, StoreError> {
    let (mut low, mut high) = (row.first_offset, row.end_offset);
    while low < high {
        let middle = low + (high - low) / 2;
        let found = view.get(RECORDS, &record_key(topic, middle))?;
        let found = found.map(|found| record(middle, &found)).transpose()?;
        if found.is_some_and(|found| found.time_ms >= time_ms) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests;
