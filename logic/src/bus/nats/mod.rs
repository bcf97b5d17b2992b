//! The bus of a fleet: topics on NATS JetStream (2.9 or newer, no feature above that is needed).
//!
//! # A stream for each topic
//! A topic is a stream of its own, not a subject of a common one, because
//! - JetStream numbers the messages of a stream, not of a subject: so offsets are gapless, and need
//!   no counter of ours beside it;
//! - size and age are limits of a stream: a noisy topic cannot push out another's records;
//! - a stream that is lost takes one topic with it.
//!
//! The price is a directory and, in a cluster, a Raft group for each topic, so there are at most
//! `topics_max` of them (64 by default, some hundreds at most); topics that clients name freely should
//! be listed in `bus.topics`. Names and their escaping: [`names`]. Offsets, also of a stream that
//! was deleted: [`topics`].
//!
//! A record is an ordinary message: its payload is the report's, the header `Millrace-Key` its key. So a
//! business service can read the stream with any NATS client and a durable consumer of its own
//! (`logic/examples/nats_consumer.rs`), beside our API.
//!
//! # Publishing
//! [`Bus::publish_all`](super::Bus::publish_all) answers when JetStream has acknowledged. Records of different keys are under way
//! together, of one key after each other: whatever is lost and sent again in between, the records of
//! a key stand in their order. A record whose acknowledgement was lost is sent again with the same
//! `Nats-Msg-Id`, its [`NewRecord::id`](super::NewRecord::id), and kept once if that is within `ids_kept_ms`. What
//! cannot be stored within `patience_ms` is refused with `Unavailable`, and with it what follows it
//! in its key; the caller tries again with the same ids. What an acknowledgement is worth is NATS's
//! business: one server has handed the record to its operating system (`kill -9` loses nothing; for a
//! power cut set its `sync_interval`), a cluster has it on most of its `replicas`.
//!
//! # Consumers
//! A consumer is a row with its committed offset ([`state`]), not a consumer of JetStream. Those
//! acknowledge what they delivered, record by record, and can neither commit what was read over HTTP,
//! nor move back, nor be fenced against a second process of the same name, without being deleted and
//! made again; and they redeliver out of order. The row does all four with one conditional write, and
//! outlives the topic's stream.
//!
//! # When NATS fails
//! | what | then |
//! |---|---|
//! | away for a while | calls wait up to `patience_ms`, then are refused with `Unavailable`; reports wait in their queue, the link's credit runs out, clients are read less; nothing is lost |
//! | killed and started again | the same, for as long as it takes; records are kept once |
//! | a topic's stream deleted | it is made again with the next record; what lay in it is gone, as whoever deleted it wanted; offsets go on beyond the old ones; records under way are kept in the new one |
//! | the stream of rows deleted | consumers begin at the oldest record again (at least once); subscriptions that are open go on |
//! | no space | records are refused with `Full`, and tried again by whoever has them |

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use async_nats::{HeaderMap, header};
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use uuid::Uuid;

mod connection;
mod names;
mod reading;
mod settings;
mod state;
mod subscription;
#[cfg(test)]
mod tests;
mod topics;

pub(crate) use connection::{Echo, connect_client};
pub use settings::{NatsBusSettings, PREFIX_BYTES_MAX};

use self::{
    connection::{Nats, PutError, unavailable},
    names::{consumer_of_row, escape_key},
    reading::{KEY_HEADER, Reader},
    state::{Change, ConsumerRow, TopicRow},
    subscription::NatsSubscription,
    topics::{Kept, Topics},
};
use super::{
    Bus, BusCounts, BusError, NewRecord, Page, Start, Subscription, TopicStatus, check_name,
};

/// Rows that are read at once when topics are listed.
const ROWS_IN_FLIGHT_MAX: usize = 32;

/// See the module. Cheap to clone; clones are the same bus.
#[derive(Clone)]
pub struct NatsBus {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    nats: Arc<Nats>,
    topics: Arc<Topics>,
    reader: Reader,
}

impl NatsBus {
    /// Begins to connect. That NATS is away is no error: it is waited for, call by call.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if an address or a file of the settings cannot be used.
    pub async fn connect(settings: NatsBusSettings) -> Result<Self, BusError> {
        let nats = Arc::new(Nats::connect(settings).await?);
        let topics = Arc::new(Topics::new(nats.clone()));
        let reader = Reader { nats: nats.clone(), topics: topics.clone() };
        Ok(Self { inner: Arc::new(Inner { nats, topics, reader }) })
    }
}

impl Inner {
    /// Stores a record and returns its offset.
    async fn publish(&self, record: NewRecord) -> Result<u64, BusError> {
        check_name(&record.topic)?;
        // Tried again within this call, it must be kept once, too.
        let id = match record.id.is_empty() {
            true => Uuid::new_v4().simple().to_string(),
            false => escape_key(&record.id),
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, id);
        if !record.key.is_empty() {
            headers.insert(KEY_HEADER, escape_key(&record.key));
        }
        let (name, headers, payload) = (&record.topic, &headers, &record.payload);
        let attempt = || async move {
            let topic = self.topics.ensure(name).await?;
            match self.nats.put(topic.subject.clone(), headers.clone(), payload.clone()).await {
                Ok(sequence) => Ok(topic.base + sequence),
                Err(PutError::NoStream) => {
                    self.topics.forget(name, &topic);
                    Err(BusError::Unavailable("no stream takes the topic's records".to_owned()))
                }
                Err(PutError::Outrun) => Err(BusError::Unavailable("NATS refused it".to_owned())),
                Err(PutError::Bus(error)) => {
                    // Somebody else who listens to the subject keeps NATS from saying that no stream
                    // does; so it is looked at again.
                    if matches!(error, BusError::Unavailable(_)) {
                        self.topics.forget(name, &topic);
                    }
                    Err(error)
                }
            }
        };
        self.nats.patiently(attempt).await
    }

    /// Stores records of one key after each other; when one is not stored, none after it is.
    async fn publish_chain(
        &self,
        chain: Vec<(usize, NewRecord)>,
    ) -> Vec<(usize, Result<u64, BusError>)> {
        let mut outcomes = Vec::with_capacity(chain.len());
        let mut failed: Option<BusError> = None;
        for (place, record) in chain {
            let outcome = match &failed {
                Some(error) => Err(error.clone()),
                None => self.publish(record).await,
            };
            match &outcome {
                // What will never be stored holds up nothing.
                Ok(_)
                | Err(BusError::BadName(_) | BusError::TooMany(_) | BusError::TooLarge(_)) => {}
                Err(error) => failed = Some(error.clone()),
            }
            outcomes.push((place, outcome));
        }
        outcomes
    }

    /// The topic, made if it is new, and what it has.
    async fn ensured(&self, topic: &str) -> Result<Kept, BusError> {
        self.nats
            .patiently(|| async move {
                let known = self.topics.ensure(topic).await?;
                let kept = self.topics.kept(topic).await?;
                kept.ok_or_else(|| {
                    self.topics.forget(topic, &known);
                    BusError::Unavailable("the topic's stream is gone".to_owned())
                })
            })
            .await
    }

    async fn consumer_row(
        &self,
        topic: &str,
        consumer: &str,
    ) -> Result<Option<ConsumerRow>, BusError> {
        let names = &self.topics.names;
        let (stream, subject) = (&names.state_stream(), &names.consumer_row(topic, consumer));
        self.nats
            .patiently(|| async move {
                let (row, _) = self.nats.row(stream, subject).await?;
                Ok(row)
            })
            .await
    }

    async fn change_consumer(
        &self,
        topic: &str,
        consumer: &str,
        change: impl Fn(Option<ConsumerRow>) -> Result<Change<ConsumerRow>, BusError>,
    ) -> Result<ConsumerRow, BusError> {
        let names = &self.topics.names;
        let (stream, all) = (&names.state_stream(), &names.all_state());
        let (subject, change) = (&names.consumer_row(topic, consumer), &change);
        self.nats.patiently(|| self.nats.change_row(stream, all, subject, change)).await
    }

    /// Refuses a consumer that would be one too many.
    async fn check_consumer(&self, topic: &str, consumer: &str) -> Result<(), BusError> {
        if self.consumer_row(topic, consumer).await?.is_some() {
            return Ok(());
        }
        let consumers_max = self.nats.settings.consumers_per_topic_max;
        let known = self.nats.patiently(|| self.consumer_subjects(topic)).await?.len();
        if known >= consumers_max {
            let reason = format!("{topic} has {consumers_max} consumers already");
            return Err(BusError::TooMany(reason));
        }
        Ok(())
    }

    /// The subjects of the rows of a topic's consumers.
    async fn consumer_subjects(&self, topic: &str) -> Result<Vec<String>, BusError> {
        let names = &self.topics.names;
        let (state, row) = (names.state_stream(), names.topic_row(topic));
        // A stream that answers is whole; one that is being made must not be asked what follows.
        if self.nats.find_row::<TopicRow>(&state, &row).await?.is_none() {
            // No row was ever written, or all are gone.
            return Ok(Vec::new());
        }
        let stream = self.nats.context.get_stream_no_info(state).await.map_err(unavailable)?;
        let listed = stream.info_with_subjects(names.consumer_rows(topic)).await;
        let listed = listed.map_err(unavailable)?.map_ok(|(subject, _)| subject);
        let mut subjects: Vec<String> = listed.try_collect().await.map_err(unavailable)?;
        subjects.sort();
        Ok(subjects)
    }

    async fn consumers(&self, topic: &str) -> Result<Vec<(String, u64)>, BusError> {
        let state = self.topics.names.state_stream();
        let rows = self.consumer_subjects(topic).await?.into_iter().map(|subject| {
            let (nats, state) = (self.nats.clone(), state.clone());
            async move {
                let (row, _) = nats.row::<ConsumerRow>(&state, &subject).await?;
                let name = consumer_of_row(&subject);
                Ok::<_, BusError>(name.zip(row.map(|row| row.committed)))
            }
        });
        let rows = stream::iter(rows).buffered(ROWS_IN_FLIGHT_MAX);
        let mut consumers: Vec<(String, u64)> =
            rows.try_filter_map(|row| async move { Ok(row) }).try_collect().await?;
        consumers.sort();
        Ok(consumers)
    }

    async fn list(&self) -> Result<Vec<TopicStatus>, BusError> {
        let mut topics = Vec::new();
        for (topic, kept) in self.topics.all().await? {
            let consumers = self.consumers(&topic).await?;
            let Kept { first_offset, end_offset, bytes, .. } = kept;
            topics.push(TopicStatus { topic, first_offset, end_offset, bytes, consumers });
        }
        Ok(topics)
    }
}

#[async_trait]
impl Bus for NatsBus {
    async fn publish_all(&self, records: Vec<NewRecord>) -> Vec<Result<u64, BusError>> {
        let count = records.len();
        // In the order of their first record, so that a topic has them about in the order given.
        let mut places: HashMap<(String, String), usize> = HashMap::new();
        let mut chains: Vec<Vec<(usize, NewRecord)>> = Vec::new();
        for (place, record) in records.into_iter().enumerate() {
            let key = (record.topic.clone(), record.key.clone());
            let chain = *places.entry(key).or_insert(chains.len());
            if chain == chains.len() {
                chains.push(Vec::new());
            }
            chains[chain].push((place, record));
        }
        let inner = &self.inner;
        let stored = join_all(chains.into_iter().map(|chain| inner.publish_chain(chain))).await;
        let unanswered = || Err(BusError::Unavailable("it gave no answer".to_owned()));
        let mut outcomes: Vec<_> = (0..count).map(|_| unanswered()).collect();
        for (place, outcome) in stored.into_iter().flatten() {
            outcomes[place] = outcome;
        }
        outcomes
    }

    async fn read(
        &self,
        topic: &str,
        from: Start,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Page, BusError> {
        check_name(topic)?;
        let page = self.inner.reader.page(topic, from, records_max, bytes_max).await?;
        page.ok_or(BusError::NotFound)
    }

    async fn wait(&self, topic: &str, offset: u64) -> Result<(), BusError> {
        check_name(topic)?;
        self.inner.reader.wait(topic, offset).await
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
        let kept = self.inner.ensured(topic).await?;
        self.inner.check_consumer(topic, consumer).await?;
        let offset = offset.min(kept.end_offset - 1);
        let change = |row: Option<ConsumerRow>| {
            let known = row.unwrap_or_default();
            let moved = ConsumerRow {
                committed: if rewind { offset } else { offset.max(known.committed) },
                ..known
            };
            Ok(if row == Some(moved) { Change::None(moved) } else { Change::To(moved) })
        };
        let row = self.inner.change_consumer(topic, consumer, change).await?;
        Ok(row.committed)
    }

    async fn topics(&self) -> Result<Vec<TopicStatus>, BusError> {
        self.inner.nats.patiently(|| self.inner.list()).await
    }

    async fn subscribe(
        &self,
        topic: &str,
        consumer: &str,
    ) -> Result<Box<dyn Subscription>, BusError> {
        check_name(topic)?;
        check_name(consumer)?;
        let kept = self.inner.ensured(topic).await?;
        self.inner.check_consumer(topic, consumer).await?;
        let newer = |row: Option<ConsumerRow>| {
            let row = row.unwrap_or_default();
            Ok(Change::To(ConsumerRow { epoch: row.epoch + 1, ..row }))
        };
        // Listening first, so that whoever takes over from this one is heard.
        let told = self.inner.reader.listen(self.inner.topics.names.consumer_row(topic, consumer));
        let told = told.await?;
        let row = self.inner.change_consumer(topic, consumer, newer).await?;
        // A commit beyond the end is of records that are gone: a restored backup, say.
        let position = (row.committed + 1).min(kept.end_offset);
        let inner = self.inner.clone();
        let subscription = NatsSubscription::new(inner, topic, consumer, told, row.epoch, position);
        Ok(Box::new(subscription))
    }

    fn counts(&self) -> BusCounts {
        let counters = &self.inner.nats.counters;
        BusCounts {
            dead_letters: counters.dead_letters.load(Ordering::Relaxed),
            again: counters.again.load(Ordering::Relaxed),
            refused: counters.refused.load(Ordering::Relaxed),
            made_again: counters.streams_made_again.load(Ordering::Relaxed),
        }
    }
}
