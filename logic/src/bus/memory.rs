//! The bus of a single process: logs in memory. It forgets everything when the process ends, which
//! a bus for production must not.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use super::{Bus, BusError, Record, Subscription, check_name};

/// Bounds of a [`MemoryBus`].
#[derive(Clone, Debug)]
pub struct MemoryBusSettings {
    /// Topics at the same time. Above it the topic without groups that was used least recently goes,
    /// its records are counted as dropped; if every topic has a group, publishing to a new one is
    /// refused. Default 1,024.
    pub topics_max: usize,
    /// Records kept for one topic. What all its groups have acknowledged goes at once; a topic
    /// without a group gives its oldest record up (counted as dropped); else publishing is refused,
    /// because a group does not keep up. Default 65,536.
    pub records_max: usize,
    /// Bytes of keys and payloads over all topics. Above it topics without a group go first, the
    /// least recently used before others; else publishing is refused. Default 64 MiB.
    pub bytes_max: usize,
    /// Groups of one topic. One more is refused. Default 64.
    pub groups_max: usize,
}

impl Default for MemoryBusSettings {
    fn default() -> Self {
        Self { topics_max: 1_024, records_max: 65_536, bytes_max: 64 * 1024 * 1024, groups_max: 64 }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct MemoryBus {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: MemoryBusSettings,
    topics: Mutex<Topics>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Topics {
    topics: HashMap<String, Topic>,
    /// Of all records of all topics.
    bytes: usize,
    /// Grows with every use of a topic.
    clock: u64,
}

#[derive(Debug, Default)]
struct Topic {
    records: VecDeque<Record>,
    /// Offset of the next record; the one of `records[0]` is this less their number.
    next_offset: u64,
    groups: HashMap<String, Group>,
    used: u64,
}

#[derive(Debug)]
struct Group {
    acknowledged: u64,
    /// Which subscription is the newest.
    subscription: u64,
    changed: Arc<Notify>,
}

impl Default for MemoryBus {
    fn default() -> Self {
        Self::new(MemoryBusSettings::default())
    }
}

impl MemoryBus {
    /// A bus without topics.
    pub fn new(settings: MemoryBusSettings) -> Self {
        let (topics, dropped) = (Mutex::default(), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { settings, topics, dropped }) }
    }

    /// Records dropped because no group wanted them and there was no room.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

fn bytes_of(record: &Record) -> usize {
    record.key.len() + record.payload.len()
}

impl Topic {
    fn first_offset(&self) -> u64 {
        self.next_offset - self.records.len() as u64
    }

    /// Drops the records that every group has acknowledged; says how many bytes that were. Without
    /// a group nothing is.
    fn trim(&mut self) -> usize {
        let Some(done) = self.groups.values().map(|group| group.acknowledged).min() else {
            return 0;
        };
        let mut bytes = 0;
        while self.first_offset() <= done
            && let Some(record) = self.records.pop_front()
        {
            bytes += bytes_of(&record);
        }
        bytes
    }
}

impl Shared {
    /// Every topic is whole after each statement, so a panic elsewhere spoils nothing.
    fn lock(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the least recently used topic that has no group; `spared` stays. Says whether there
    /// was one.
    fn evict(&self, topics: &mut Topics, spared: &str) -> bool {
        let unused =
            topics.topics.iter().filter(|(name, t)| t.groups.is_empty() && *name != spared);
        let oldest = unused.min_by_key(|(_, topic)| topic.used).map(|(name, _)| name.clone());
        let Some(topic) = oldest.and_then(|name| topics.topics.remove(&name)) else { return false };
        self.dropped.fetch_add(topic.records.len() as u64, Ordering::Relaxed);
        topics.bytes -= topic.records.iter().map(bytes_of).sum::<usize>();
        true
    }

    /// Makes the topic if there is none.
    fn touch(&self, topics: &mut Topics, name: &str) -> Result<(), BusError> {
        topics.clock += 1;
        if !topics.topics.contains_key(name)
            && topics.topics.len() >= self.settings.topics_max
            && !self.evict(topics, name)
        {
            let max = self.settings.topics_max;
            return Err(BusError::Full(format!("there are {max} topics, each with a group")));
        }
        let new = || Topic { next_offset: 1, ..Topic::default() };
        topics.topics.entry(name.to_owned()).or_insert_with(new).used = topics.clock;
        Ok(())
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn publish(&self, topic: &str, key: &str, payload: Bytes) -> Result<u64, BusError> {
        check_name(topic)?;
        let (name, settings) = (topic, &self.shared.settings);
        let size = key.len() + payload.len();
        if size > settings.bytes_max {
            return Err(BusError::Full("the record is larger than the whole bus".to_owned()));
        }
        let mut topics = self.shared.lock();
        self.shared.touch(&mut topics, name)?;
        while topics.bytes + size > settings.bytes_max && self.shared.evict(&mut topics, name) {}
        let Topics { topics, bytes, .. } = &mut *topics;
        let topic = topics.get_mut(name).expect("it was made above and spared");
        while topic.groups.is_empty()
            && (topic.records.len() >= settings.records_max || *bytes + size > settings.bytes_max)
            && let Some(oldest) = topic.records.pop_front()
        {
            *bytes -= bytes_of(&oldest);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        if topic.records.len() >= settings.records_max || *bytes + size > settings.bytes_max {
            return Err(BusError::Full(format!("a group of {name} does not keep up")));
        }
        let offset = topic.next_offset;
        topic.next_offset += 1;
        *bytes += size;
        topic.records.push_back(Record { offset, key: key.to_owned(), payload });
        for group in topic.groups.values() {
            group.changed.notify_waiters();
        }
        Ok(offset)
    }

    async fn subscribe(&self, topic: &str, group: &str) -> Result<Box<dyn Subscription>, BusError> {
        check_name(topic)?;
        check_name(group)?;
        let mut topics = self.shared.lock();
        self.shared.touch(&mut topics, topic)?;
        let known = topics.topics.get_mut(topic).expect("it was made above");
        let groups_max = self.shared.settings.groups_max;
        if !known.groups.contains_key(group) && known.groups.len() >= groups_max {
            return Err(BusError::Full(format!("{topic} has {groups_max} groups already")));
        }
        let acknowledged = known.first_offset() - 1;
        let new = || Group { acknowledged, subscription: 0, changed: Arc::default() };
        let state = known.groups.entry(group.to_owned()).or_insert_with(new);
        state.subscription += 1;
        state.changed.notify_waiters();
        Ok(Box::new(MemorySubscription {
            shared: Arc::clone(&self.shared),
            topic: topic.to_owned(),
            group: group.to_owned(),
            subscription: state.subscription,
            position: state.acknowledged + 1,
            changed: Arc::clone(&state.changed),
        }))
    }
}

struct MemorySubscription {
    shared: Arc<Shared>,
    topic: String,
    group: String,
    subscription: u64,
    /// Offset of the next record.
    position: u64,
    changed: Arc<Notify>,
}

impl MemorySubscription {
    /// Runs `f` on the topic and the group while this subscription is the newest.
    fn with<T>(&self, f: impl FnOnce(&mut Topic, &mut usize, &str) -> T) -> Result<T, BusError> {
        let mut topics = self.shared.lock();
        let Topics { topics, bytes, .. } = &mut *topics;
        // A topic with a group is never evicted, and no group is ever removed.
        let topic = topics.get_mut(&self.topic).ok_or(BusError::Superseded)?;
        let group = topic.groups.get(&self.group).ok_or(BusError::Superseded)?;
        if group.subscription != self.subscription {
            return Err(BusError::Superseded);
        }
        Ok(f(topic, bytes, &self.group))
    }
}

#[async_trait]
impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Result<Record, BusError> {
        let changed = Arc::clone(&self.changed);
        loop {
            // Made before the look, so that a record published right after it is not missed.
            let notified = changed.notified();
            let position = self.position;
            let record = self.with(|topic, _, _| {
                let index = position.checked_sub(topic.first_offset())?;
                topic.records.get(usize::try_from(index).ok()?).cloned()
            })?;
            if let Some(record) = record {
                self.position = record.offset + 1;
                return Ok(record);
            }
            notified.await;
        }
    }

    async fn acknowledge(&mut self, offset: u64) -> Result<(), BusError> {
        let offset = offset.min(self.position - 1);
        self.with(|topic, bytes, group| {
            if let Some(group) = topic.groups.get_mut(group) {
                group.acknowledged = group.acknowledged.max(offset);
            }
            *bytes -= topic.trim();
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{MemoryBus, MemoryBusSettings};
    use crate::bus::{Bus, BusError, conformance};

    fn bus(topics_max: usize, records_max: usize, bytes_max: usize) -> MemoryBus {
        MemoryBus::new(MemoryBusSettings { topics_max, records_max, bytes_max, groups_max: 2 })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_keeps_the_contract_of_a_bus() {
        conformance::run(|| async { MemoryBus::default() }).await;
    }

    #[tokio::test]
    async fn a_group_that_does_not_keep_up_refuses_the_publisher_and_loses_nothing() {
        for bus in [bus(9, 3, 1_000), bus(9, 100, 30)] {
            let mut group = bus.subscribe("t", "g").await.expect("subscribed");
            let payload = Bytes::from_static(b"123456789");
            for offset in 1..=3 {
                assert_eq!(bus.publish("t", "k", payload.clone()).await, Ok(offset));
            }
            let full = bus.publish("t", "k", payload.clone()).await;
            assert!(matches!(full, Err(BusError::Full(_))), "{full:?}");
            assert_eq!(group.next().await.expect("a record").offset, 1);
            group.acknowledge(1).await.expect("acknowledged");
            assert_eq!(bus.publish("t", "k", payload).await, Ok(4));
            for offset in 2..=4 {
                assert_eq!(group.next().await.expect("a record").offset, offset);
            }
            assert_eq!(bus.dropped(), 0);
        }
    }

    #[tokio::test]
    async fn topics_nobody_reads_make_room_and_are_counted() {
        let bus = bus(3, 2, 40);
        for _ in 0..5 {
            bus.publish("unread", "", Bytes::from_static(b"12345678")).await.expect("taken");
        }
        assert_eq!(bus.dropped(), 3);
        let mut group = bus.subscribe("read", "g").await.expect("subscribed");
        for _ in 0..2 {
            let taken = bus.publish("read", "", Bytes::from_static(&[7; 16])).await;
            taken.expect("the unread topic makes room for bytes");
        }
        assert_eq!(bus.dropped(), 5);
        for topic in ["x", "y", "z"] {
            bus.publish(topic, "", Bytes::new()).await.expect("the oldest unread topic goes");
        }
        for offset in 1..=2 {
            assert_eq!(group.next().await.expect("a record").offset, offset);
        }
        bus.subscribe("z", "g").await.expect("subscribed");
        bus.subscribe("y", "g").await.expect("subscribed");
        let full = bus.publish("w", "", Bytes::new()).await;
        assert!(matches!(full, Err(BusError::Full(_))), "every topic has a group: {full:?}");
    }
}
