//! Topics as streams: made with the first record or consumer, found again, made again when lost.
//!
//! # Offsets
//! A record's offset is its sequence in the stream plus the stream's *base*, which is 0 for a topic's
//! first stream. Should an operator delete the stream, the next one gets a base beyond every offset
//! that can have been given: a million for each second since the one before was made. So offsets
//! never come twice; whoever committed one, or reads on from one, finds that what lay between is
//! gone, and goes on with the first record of the new stream. The base is in the subject of the
//! records, so a process that has not heard of the new stream cannot publish to it by mistake, and
//! none can take one stream's sequence for the other's.
//!
//! Of two logics that find no stream at the same moment the slower one gives it a base beyond the
//! other's all the same: it cannot tell a stream that is about to be made from one that has been made,
//! filled and deleted since it looked. So a topic may begin beyond offset 1.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use async_nats::jetstream::{
    ErrorCode,
    context::{CreateStreamErrorKind, GetStreamErrorKind},
    stream::{Config, DiscardPolicy, Info, Republish, StorageType},
};
use futures::TryStreamExt as _;
use tokio::time::sleep;

use super::{
    connection::{Nats, is_missing, of_jetstream, unavailable},
    names::{Names, base_of_subject},
    state::{Change, TopicRow},
};
use crate::bus::{BusError, embedded::now_ms};

/// How much more than the oldest clock's time is counted, because clocks differ.
const CLOCKS_DIFFER_MS: u64 = 10_000;

/// More records than one stream can take in a millisecond.
const OFFSETS_PER_MS: u64 = 1_000;

/// How often, and how far apart, a stream is looked for that another logic may be making just now,
/// because its row is not older than this.
const LOOKS_FOR_ANOTHERS: u32 = 20;
const LOOK_PAUSE: Duration = Duration::from_millis(100);
const MADE_JUST_NOW_MS: i64 = 30_000;

/// A topic with a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topic {
    /// What the offsets of its records begin after.
    pub base: u64,
    /// Where its records are published.
    pub subject: String,
    /// Its stream.
    pub stream: String,
}

/// What a topic has now.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub topic: Arc<Topic>,
    /// Offsets: the oldest kept, and the one of the next record.
    pub first_offset: u64,
    pub end_offset: u64,
    pub bytes: u64,
    /// Of its stream, in a cluster.
    pub copies: usize,
    /// Of the newest record.
    pub newest_ms: i64,
}

/// Topics of one fleet.
pub(super) struct Topics {
    nats: Arc<Nats>,
    pub names: Names,
    /// Those whose streams were seen. As many as there are streams.
    known: Mutex<HashMap<String, Arc<Topic>>>,
    /// One is made at a time.
    making: tokio::sync::Mutex<()>,
}

impl Topics {
    pub fn new(nats: Arc<Nats>) -> Self {
        let names = Names::new(&nats.settings.prefix);
        Self { nats, names, known: Mutex::default(), making: tokio::sync::Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Topic>>> {
        // Whole after every statement, so a panic elsewhere spoils nothing.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The topic, which is made if there is none.
    pub async fn ensure(&self, name: &str) -> Result<Arc<Topic>, BusError> {
        if let Some(topic) = self.known().get(name) {
            return Ok(topic.clone());
        }
        let _alone = self.making.lock().await;
        if let Some(topic) = self.known().get(name) {
            return Ok(topic.clone());
        }
        if let Some(info) = self.info(name).await? {
            self.adapt(&info).await;
            return self.remember(name, &info);
        }
        self.make(name).await
    }

    /// The stream that was used is not there any more.
    pub fn forget(&self, name: &str, gone: &Topic) {
        let mut known = self.known();
        if known.get(name).is_some_and(|topic| **topic == *gone) {
            known.remove(name);
        }
    }

    /// What the topic has now, if it has a stream.
    pub async fn kept(&self, name: &str) -> Result<Option<Kept>, BusError> {
        let Some(info) = self.info(name).await? else { return Ok(None) };
        let topic = self.remember(name, &info)?;
        Ok(Some(kept(topic, &info)))
    }

    /// Every topic that has a stream, by name.
    pub async fn all(&self) -> Result<Vec<(String, Kept)>, BusError> {
        let mut all = Vec::new();
        let mut streams = self.nats.context.streams();
        while let Some(info) = streams.try_next().await.map_err(unavailable)? {
            let Some(name) = self.names.topic_of_stream(&info.config.name) else { continue };
            let topic = self.remember(&name, &info)?;
            all.push((name, kept(topic, &info)));
        }
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(all)
    }

    async fn info(&self, name: &str) -> Result<Option<Info>, BusError> {
        let stream = self.names.topic_stream(name);
        let error = match self.nats.context.get_stream(stream).await {
            Ok(stream) => return Ok(Some(stream.cached_info().clone())),
            Err(error) => error,
        };
        if is_missing(&error) {
            return Ok(None);
        }
        match error.kind() {
            GetStreamErrorKind::JetStream(cause) => Err(of_jetstream(&cause)),
            _ => Err(unavailable(error)),
        }
    }

    fn remember(&self, name: &str, info: &Info) -> Result<Arc<Topic>, BusError> {
        let subject = info.config.subjects.first().cloned().unwrap_or_default();
        let Some(base) = base_of_subject(&subject) else {
            let stream = &info.config.name;
            let reason =
                format!("the stream {stream} was not made by Millrace: its subject is {subject:?}");
            return Err(BusError::Unavailable(reason));
        };
        let topic = Topic { base, subject, stream: info.config.name.clone() };
        let mut known = self.known();
        match known.get(name) {
            Some(before) if **before == topic => Ok(before.clone()),
            _ => {
                let topic = Arc::new(topic);
                known.insert(name.to_owned(), topic.clone());
                Ok(topic)
            }
        }
    }

    async fn make(&self, name: &str) -> Result<Arc<Topic>, BusError> {
        let (state, all) = (self.names.state_stream(), self.names.all_state());
        let row = self.names.topic_row(name);
        let (known, _) = self.nats.row::<TopicRow>(&state, &row).await?;
        if let Some(known) = known {
            // There was a stream; or another logic is about to make it.
            let just_now = now_ms().saturating_sub(known.since_ms) < MADE_JUST_NOW_MS;
            let looks = if just_now { LOOKS_FOR_ANOTHERS } else { 0 };
            for _ in 0..looks {
                sleep(LOOK_PAUSE).await;
                if let Some(info) = self.info(name).await? {
                    return self.remember(name, &info);
                }
            }
            tracing::warn!(
                topic = name,
                "the stream of a topic is gone with its records; it is made again"
            );
            self.nats.counters.streams_made_again.fetch_add(1, Ordering::Relaxed);
        } else {
            self.check_place().await?;
        }
        let now_ms = now_ms();
        let next = move |row: Option<TopicRow>| {
            let base = row.map_or(0, |row| base_after(row, now_ms));
            Ok(Change::To(TopicRow { base, since_ms: now_ms }))
        };
        // The row first: a stream without one would lend its offsets to the stream after it.
        let made = self.nats.change_row(&state, &all, &row, next).await?;
        let error = match self.nats.context.create_stream(self.config(name, made.base)).await {
            Ok(stream) => return self.remember(name, stream.cached_info()),
            Err(error) => error,
        };
        match error.kind() {
            // Another logic was quicker.
            CreateStreamErrorKind::JetStream(cause)
                if cause.error_code() == ErrorCode::STREAM_NAME_EXIST =>
            {
                match self.info(name).await? {
                    Some(info) => self.remember(name, &info),
                    None => Err(unavailable(error)),
                }
            }
            CreateStreamErrorKind::JetStream(cause) => Err(of_jetstream(&cause)),
            _ => Err(unavailable(error)),
        }
    }

    async fn check_place(&self) -> Result<(), BusError> {
        let mut topics = 0;
        let mut streams = self.nats.context.stream_names();
        while let Some(stream) = streams.try_next().await.map_err(unavailable)? {
            topics += usize::from(self.names.topic_of_stream(&stream).is_some());
        }
        let topics_max = self.nats.settings.topics_max;
        if topics >= topics_max {
            return Err(BusError::TooMany(format!("there are {topics_max} topics")));
        }
        Ok(())
    }

    fn config(&self, name: &str, base: u64) -> Config {
        let subject = self.names.records(name, base);
        let mut config = Config {
            name: self.names.topic_stream(name),
            description: Some(format!("Millrace: records of the topic {name}")),
            republish: Some(Republish {
                source: subject.clone(),
                destination: self.names.told(name),
                headers_only: true,
            }),
            subjects: vec![subject],
            max_messages: -1,
            max_messages_per_subject: -1,
            max_consumers: -1,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            allow_direct: true,
            ..Config::default()
        };
        self.set_limits(&mut config);
        config
    }

    fn set_limits(&self, config: &mut Config) {
        let settings = &self.nats.settings;
        config.max_bytes = i64::try_from(settings.topic_bytes_max).unwrap_or(i64::MAX);
        config.max_age = Duration::from_millis(settings.retention_ms);
        // NATS refuses ids that are kept longer than the records.
        config.duplicate_window = Duration::from_millis(settings.ids_kept_ms).min(config.max_age);
        config.num_replicas = settings.replicas;
    }

    /// Gives a stream the limits that are configured now. One that cannot have them keeps its own.
    async fn adapt(&self, info: &Info) {
        let mut config = info.config.clone();
        self.set_limits(&mut config);
        if config == info.config {
            return;
        }
        let stream = &info.config.name;
        match self.nats.context.update_stream(&config).await {
            Ok(_) => tracing::info!(%stream, "a topic has the limits of the configuration now"),
            Err(error) => {
                tracing::warn!(%stream, %error, "a topic keeps its old limits: NATS refuses ours");
            }
        }
    }
}

/// The base of the stream after this one: beyond every offset it can have given.
fn base_after(row: TopicRow, now_ms: i64) -> u64 {
    let ms = u64::try_from(now_ms.saturating_sub(row.since_ms)).unwrap_or(0) + CLOCKS_DIFFER_MS;
    row.base.saturating_add(ms.saturating_mul(OFFSETS_PER_MS))
}

fn kept(topic: Arc<Topic>, info: &Info) -> Kept {
    let state = &info.state;
    let end = state.last_sequence + 1;
    let first = match state.messages {
        0 => end,
        _ => state.first_sequence.clamp(1, end),
    };
    Kept {
        first_offset: topic.base + first,
        end_offset: topic.base + end,
        topic,
        bytes: state.bytes,
        copies: info.config.num_replicas,
        newest_ms: (state.last_timestamp.unix_timestamp_nanos() / 1_000_000) as i64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offsets_of_a_stream_that_is_made_again_begin_beyond_all_of_the_one_before() {
        let row = TopicRow { base: 70, since_ms: 1_000_000 };
        // A clock that is 5 s behind, and a stream that took a record each microsecond.
        assert!(base_after(row, 1_000_000 - 5_000) >= 70 + 5_000_000);
        let hour_later = base_after(row, 1_000_000 + 3_600_000);
        assert!(hour_later >= 70 + 3_600_000_000);
        let next = TopicRow { base: hour_later, since_ms: 4_600_000 };
        assert!(base_after(next, 4_600_001) > hour_later);
        // For three centuries they fit a JSON number.
        let centuries = 300 * 365 * 24 * 3_600 * 1_000;
        assert!(base_after(row, row.since_ms + centuries) < 1 << 53 | 1 << 52);
    }
}
