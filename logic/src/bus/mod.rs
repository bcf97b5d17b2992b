//! Topics between the chat logic and business services.
//!
//! A topic is an ordered log of records, kept for a time and up to a size, read by nobody, one or
//! many consumers. A consumer has a name and a committed offset; what it has not committed it is
//! given again: at least once, in order. Anybody may read again from any offset or time that is
//! still kept.
//!
//! - [`Bus`]: the trait, which the chat domain knows
//! - [`EmbeddedBus`]: the log on the embedded store's database
//! - `NatsBus` (feature `nats`): the log of a fleet, on NATS JetStream
//!
//! A record that its consumer fails on again and again is put aside among the dead letters
//! ([`DEAD_LETTERS_TOPIC`]).

use async_trait::async_trait;
use bytes::Bytes;

#[cfg(test)]
mod conformance;
mod dead_letters;
mod embedded;
#[cfg(feature = "nats")]
pub mod nats;
mod rows;
mod subscription;

pub use dead_letters::{DEAD_LETTERS_TOPIC, DeadLetter};
pub use embedded::{EmbeddedBus, EmbeddedBusSettings};
#[cfg(feature = "nats")]
pub use nats::{NatsBus, NatsBusSettings};

/// Longest name of a topic or a consumer, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// A record of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the topic: 1 for the first, without gaps.
    pub offset: u64,
    /// When it was put there, milliseconds since 1970; never less than the record's before it.
    pub time_ms: i64,
    /// What it belongs to: records of one key are read in the order they were published.
    pub key: String,
    /// Opaque to the bus.
    pub payload: Bytes,
}

/// A record to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecord {
    /// Where.
    pub topic: String,
    /// What it belongs to.
    pub key: String,
    /// Opaque to the bus.
    pub payload: Bytes,
    /// Which record this is: one that is published again under the same id, because the answer was
    /// lost or was `Unavailable`, is taken once. An id counts for its topic and for a time; empty:
    /// none.
    pub id: String,
}

/// Where to begin reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At this offset, or the oldest record that is kept if that is later.
    Offset(u64),
    /// At the first record of this moment or later, in milliseconds since 1970.
    TimeMs(i64),
}

/// Records that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In order; fewer than asked for when there are no more, or too many bytes.
    pub records: Vec<Record>,
    /// The oldest offset that is kept. Above the offset asked for: what was between is gone.
    pub first_offset: u64,
    /// The offset that the next published record will have.
    pub end_offset: u64,
}

/// A topic as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicStatus {
    /// Its name.
    pub topic: String,
    /// The oldest offset that is kept; equal to the end when nothing is.
    pub first_offset: u64,
    /// The offset that the next published record will have.
    pub end_offset: u64,
    /// Bytes of the records kept.
    pub bytes: u64,
    /// Its consumers and the offsets they have committed, by name.
    pub consumers: Vec<(String, u64)>,
}

/// What happened since the start, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusCounts {
    /// Records that were put among the dead letters.
    pub dead_letters: u64,
    /// Questions to a server that were asked again.
    pub again: u64,
    /// Calls that were refused because a server did not answer within patience.
    pub refused: u64,
    /// Topics that a server had lost, and that were made again.
    pub made_again: u64,
}

/// Why a bus did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The name is empty, too long, or has other characters than letters, digits, `.`, `_`, `-`.
    #[error("{0:?} is no name for a topic or consumer: 1 to 128 of A-Z a-z 0-9 . _ - are")]
    BadName(String),
    /// There are as many topics, or consumers of the topic, as there may be.
    #[error("the bus has no place for another one: {0}")]
    TooMany(String),
    /// There is no such topic, or consumer of it.
    #[error("there is no such topic or consumer")]
    NotFound,
    /// The record is larger than the bus takes. It never will.
    #[error("the record is too large: {0}")]
    TooLarge(String),
    /// No space is left; try again later.
    #[error("the bus is full: {0}")]
    Full(String),
    /// A newer subscription of the consumer has taken over.
    #[error("a newer subscription of this consumer has taken over")]
    Superseded,
    /// The bus cannot be reached, or failed; whether a record was taken is unknown.
    #[error("the bus cannot be reached: {0}")]
    Unavailable(String),
}

/// Topics, published to and read by consumers.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Appends records, and answers for each with its offset, or why it was not taken. What has an
    /// offset is durable. Records of one key stand in the order given; when one of them was not taken
    /// for now (`Full`, `Unavailable`), none of the key that follow it was, so that all can be
    /// published again in order.
    async fn publish_all(&self, records: Vec<NewRecord>) -> Vec<Result<u64, BusError>>;

    /// Appends one record and returns its offset.
    ///
    /// # Errors
    /// [`BusError`]; the record was not taken, except that after `Unavailable` it may have been.
    async fn publish(&self, topic: &str, key: &str, payload: Bytes) -> Result<u64, BusError> {
        let (topic, key) = (topic.to_owned(), key.to_owned());
        let record = NewRecord { topic, key, payload, id: String::new() };
        let unanswered = || Err(BusError::Unavailable("it gave no answer".to_owned()));
        self.publish_all(vec![record]).await.pop().unwrap_or_else(unanswered)
    }

    /// Reads up to `records_max` records, and about `bytes_max` bytes, at least one if there is one.
    ///
    /// # Errors
    /// [`BusError::NotFound`] for a topic that nothing was ever published to, or the bus's own.
    async fn read(
        &self,
        topic: &str,
        from: Start,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Page, BusError>;

    /// Waits until the topic has a record at this offset or after it.
    ///
    /// # Errors
    /// [`BusError`].
    async fn wait(&self, topic: &str, offset: u64) -> Result<(), BusError>;

    /// The consumer is done with every record up to and including `offset`; a consumer that was
    /// never seen is made. An offset below an earlier one changes nothing, unless `rewind` asks for
    /// it; one beyond the end counts as the newest record. Returns what is committed now.
    ///
    /// # Errors
    /// [`BusError`].
    async fn commit(
        &self,
        topic: &str,
        consumer: &str,
        offset: u64,
        rewind: bool,
    ) -> Result<u64, BusError>;

    /// Every topic.
    ///
    /// # Errors
    /// [`BusError`].
    async fn topics(&self) -> Result<Vec<TopicStatus>, BusError>;

    /// Reads a topic as a consumer, from the first record it has not committed. A consumer that was
    /// never seen begins at the oldest record that is kept. The subscription of the consumer before
    /// this one ends with [`BusError::Superseded`], because two could not keep the order.
    ///
    /// A record with which as many subscriptions in a row began as the settings allow, and none got
    /// beyond it, is put among the dead letters ([`DEAD_LETTERS_TOPIC`]) and passed over.
    ///
    /// # Errors
    /// [`BusError`].
    async fn subscribe(
        &self,
        topic: &str,
        consumer: &str,
    ) -> Result<Box<dyn Subscription>, BusError>;

    /// What happened since the start.
    fn counts(&self) -> BusCounts;
}

/// A consumer's place in a topic. Dropping it gives back what was not acknowledged.
#[async_trait]
pub trait Subscription: Send {
    /// Waits for the next records, at least one and at most `records_max`. May be cancelled without
    /// losing one.
    ///
    /// # Errors
    /// `Superseded` or `Unavailable`.
    async fn next_some(&mut self, records_max: usize) -> Result<Vec<Record>, BusError>;

    /// Waits for the next record. May be cancelled without losing one.
    ///
    /// # Errors
    /// `Superseded` or `Unavailable`.
    async fn next(&mut self) -> Result<Record, BusError> {
        let gave_none = || BusError::Unavailable("it gave no record".to_owned());
        self.next_some(1).await?.pop().ok_or_else(gave_none)
    }

    /// The consumer is done with every record up to and including `offset`. An offset below an
    /// earlier one changes nothing; one that was not read yet counts as the last that was.
    ///
    /// # Errors
    /// `Superseded` or `Unavailable`.
    async fn acknowledge(&mut self, offset: u64) -> Result<(), BusError>;
}

/// Checks the name of a topic or a consumer.
///
/// # Errors
/// [`BusError::BadName`].
pub fn check_name(name: &str) -> Result<(), BusError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(fits) {
        let shown = name.chars().take(NAME_BYTES_MAX).collect();
        return Err(BusError::BadName(shown));
    }
    Ok(())
}
