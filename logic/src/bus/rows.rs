//! Keys and rows of the embedded log, byte by byte.
//!
//! | table | key | row |
//! |---|---|---|
//! | topics | topic | [`TopicRow`] |
//! | records | length of the topic, topic, offset (big-endian) | time, key, payload |
//! | consumers | length of the topic, topic, consumer | the committed offset |
//! | begun | length of the topic, topic, consumer | the offset that subscriptions began with, how many in a row |

use bytes::Bytes;

use super::Record;
use crate::storage::{
    StoreError,
    embedded::encoding::{DecodeError, Reader, put_number, put_text},
};

/// Places of the tables in the list they are opened with.
pub const TOPICS: usize = 0;
pub const RECORDS: usize = 1;
pub const CONSUMERS: usize = 2;
pub const BEGUN: usize = 3;

/// Their names.
pub const TABLES: [&str; 4] = ["topics", "records", "consumers", "begun"];

/// First byte of every row.
const VERSION: u8 = 1;

/// What is known of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicRow {
    /// The oldest offset that is kept.
    pub first_offset: u64,
    /// Offset of the next record.
    pub end_offset: u64,
    /// Bytes of the records kept.
    pub bytes: u64,
    /// Time of the newest record, so that no later one is older.
    pub newest_ms: i64,
}

impl TopicRow {
    /// A topic without records.
    pub const NEW: Self = Self { first_offset: 1, end_offset: 1, bytes: 0, newest_ms: 0 };

    pub fn encode(self) -> Vec<u8> {
        let mut row = vec![VERSION];
        for number in [self.first_offset, self.end_offset, self.bytes, self.newest_ms as u64] {
            put_number(&mut row, number);
        }
        row
    }

    pub fn decode(row: &[u8]) -> Result<Self, StoreError> {
        let read = || {
            let mut reader = Reader::of_version(row, VERSION)?;
            let row = Self {
                first_offset: reader.number()?,
                end_offset: reader.number()?,
                bytes: reader.number()?,
                newest_ms: reader.number()? as i64,
            };
            reader.finish()?;
            Ok(row)
        };
        read().map_err(corrupt)
    }
}

/// What the keys of a topic's records, or of its consumers, begin with.
pub fn prefix(topic: &str) -> Vec<u8> {
    debug_assert!(topic.len() <= 255, "names are checked before keys are made");
    let mut key = Vec::with_capacity(topic.len() + 9);
    key.push(topic.len() as u8);
    key.extend_from_slice(topic.as_bytes());
    key
}

/// A record's key.
pub fn record_key(topic: &str, offset: u64) -> Vec<u8> {
    let mut key = prefix(topic);
    key.extend_from_slice(&offset.to_be_bytes());
    key
}

/// A consumer's key.
pub fn consumer_key(topic: &str, consumer: &str) -> Vec<u8> {
    let mut key = prefix(topic);
    key.extend_from_slice(consumer.as_bytes());
    key
}

/// A record's row.
pub fn record_row(time_ms: i64, key: &str, payload: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(16 + key.len() + payload.len());
    row.push(VERSION);
    put_number(&mut row, time_ms as u64);
    put_text(&mut row, key);
    row.extend_from_slice(payload);
    row
}

/// Reads a record; the payload is what is left of the row.
pub fn record(offset: u64, row: &[u8]) -> Result<Record, StoreError> {
    let read = || {
        let mut reader = Reader::of_version(row, VERSION)?;
        let time_ms = reader.number()? as i64;
        let key = reader.text()?.to_owned();
        Ok(Record { offset, time_ms, key, payload: Bytes::copy_from_slice(reader.rest()) })
    };
    read().map_err(corrupt)
}

/// A committed offset's row.
pub fn committed_row(offset: u64) -> Vec<u8> {
    let mut row = vec![VERSION];
    put_number(&mut row, offset);
    row
}

/// Reads it.
pub fn committed(row: &[u8]) -> Result<u64, StoreError> {
    let read = || {
        let mut reader = Reader::of_version(row, VERSION)?;
        let offset = reader.number()?;
        reader.finish()?;
        Ok(offset)
    };
    read().map_err(corrupt)
}

/// The row of what a consumer's subscriptions began with.
pub fn begun_row(offset: u64, times: u64) -> Vec<u8> {
    let mut row = vec![VERSION];
    put_number(&mut row, offset);
    put_number(&mut row, times);
    row
}

/// Reads it.
pub fn begun(row: &[u8]) -> Result<(u64, u64), StoreError> {
    let read = || {
        let mut reader = Reader::of_version(row, VERSION)?;
        let row = (reader.number()?, reader.number()?);
        reader.finish()?;
        Ok(row)
    };
    read().map_err(corrupt)
}

fn corrupt(error: DecodeError) -> StoreError {
    StoreError::Corrupt(format!("a row of the bus: {error}"))
}
