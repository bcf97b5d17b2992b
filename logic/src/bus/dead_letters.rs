//! Dead letters: records that no consumer gets beyond.
//!
//! A record that makes its consumer fail would be given to it again for ever, and hold up all behind
//! it. So a bus counts with how many subscriptions in a row a record was the first one given; beyond
//! `deliveries_max` it puts a copy on the topic [`DEAD_LETTERS_TOPIC`] and commits past it. The record
//! itself stays where it was, for as long as its topic keeps it.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{NewRecord, Record};

/// Where they are put. Its own records are never put aside.
pub const DEAD_LETTERS_TOPIC: &str = "dead_letters";

/// A record that was put aside: the JSON payload of a dead letter, whose key is the record's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its topic.
    pub topic: String,
    /// The consumer that did not get beyond it.
    pub consumer: String,
    /// Where it is.
    pub offset: u64,
    /// When it was published, milliseconds since 1970.
    pub time_ms: i64,
    /// Its key.
    pub key: String,
    /// With how many subscriptions in a row it was the first record given.
    pub deliveries: u32,
    /// Its payload, Base64; missing if there was no place for both: read it at its offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
}

/// What is published of it.
pub(super) fn dead_letter(
    topic: &str,
    consumer: &str,
    record: &Record,
    deliveries: u32,
    with_payload: bool,
) -> NewRecord {
    let letter = DeadLetter {
        topic: topic.to_owned(),
        consumer: consumer.to_owned(),
        offset: record.offset,
        time_ms: record.time_ms,
        key: record.key.clone(),
        deliveries,
        payload_base64: with_payload.then(|| BASE64_STANDARD.encode(&record.payload)),
    };
    let payload = serde_json::to_vec(&letter).expect("strings and numbers are JSON");
    NewRecord {
        topic: DEAD_LETTERS_TOPIC.to_owned(),
        key: record.key.clone(),
        payload: Bytes::from(payload),
        id: format!("dead {topic} {consumer} {}", record.offset),
    }
}
