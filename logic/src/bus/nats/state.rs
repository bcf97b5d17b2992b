//! Rows: what is known of topics and consumers beside their records, in a stream of its own that
//! keeps the newest message of each subject. JSON, so that `nats stream get` shows an operator what
//! there is.
//!
//! A row is changed by whoever has read it last: NATS refuses a write that does not name the
//! sequence of the row it replaces. That is what keeps committed offsets moving forward, and the
//! older of two subscriptions out, over any number of logic processes.

use std::{sync::atomic::Ordering, time::Duration};

use async_nats::{
    HeaderMap, HeaderValue, header,
    jetstream::{
        ErrorCode,
        context::CreateStreamErrorKind,
        stream::{Config, DirectGetErrorKind, DiscardPolicy, StorageType},
    },
};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::connection::{Nats, PutError, is_missing, of_jetstream, unavailable};
use crate::bus::BusError;

/// How often a row that others change at the same time is read again.
const CHANGES_TRIED_MAX: u32 = 64;

/// A topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TopicRow {
    /// What the offsets of its stream's records begin after.
    pub base: u64,
    /// When that stream was made, milliseconds since 1970.
    pub since_ms: i64,
}

/// A consumer of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ConsumerRow {
    /// It is done with everything up to here.
    pub committed: u64,
    /// Which subscription is the newest.
    pub epoch: u64,
    /// The record that the newest subscriptions began with,
    pub begun: u64,
    /// and how many of them in a row.
    pub times: u32,
}

/// A row, and the sequence that a change of it has to name; 0 for none.
pub(super) type Found<T> = (Option<T>, u64);

/// What a change makes of a row: another one, or the same, which is not written.
pub(super) enum Change<T> {
    To(T),
    None(T),
}

impl Nats {
    /// The row of a subject.
    pub async fn row<T: DeserializeOwned>(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Found<T>, BusError> {
        Ok(self.find_row(stream, subject).await?.unwrap_or((None, 0)))
    }

    /// The same; nothing if there is no stream of rows.
    pub async fn find_row<T: DeserializeOwned>(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Option<Found<T>>, BusError> {
        // NATS 2.9 says nothing at all for a stream that is not there, so that is asked first.
        if !self.rows_seen.load(Ordering::Relaxed) && !self.look_for_rows(stream).await? {
            return Ok(None);
        }
        // Answered by any copy, which may be behind; then a write is refused. And answered by the
        // stream itself: the question to JetStream would end a NATS 2.9 if another logic makes the
        // stream at this moment.
        let rows = self.context.get_stream_no_info(stream).await.map_err(unavailable)?;
        let error = match rows.direct_get_last_for_subject(subject).await {
            Ok(found) => {
                // A row that is none was written by a hand; it counts as missing.
                let row = serde_json::from_slice(&found.payload).ok();
                if row.is_none() {
                    tracing::warn!(subject, "a row of the bus cannot be read, and is made anew");
                }
                return Ok(Some((row, found.sequence)));
            }
            Err(error) => error,
        };
        match error.kind() {
            DirectGetErrorKind::NotFound => Ok(Some((None, 0))),
            // Is it gone?
            DirectGetErrorKind::ErrorResponse(..) | DirectGetErrorKind::TimedOut => {
                match self.look_for_rows(stream).await? {
                    true => Err(unavailable(error)),
                    false => Ok(None),
                }
            }
            _ => Err(unavailable(error)),
        }
    }

    /// Whether there is a stream of rows.
    async fn look_for_rows(&self, stream: &str) -> Result<bool, BusError> {
        let seen = match self.context.get_stream(stream).await {
            Ok(_) => true,
            Err(error) if is_missing(&error) => false,
            Err(error) => return Err(unavailable(error)),
        };
        self.rows_seen.store(seen, Ordering::Relaxed);
        Ok(seen)
    }

    /// Writes a row in the place of the one of this sequence; false if somebody was quicker.
    async fn put_row<T: Serialize>(
        &self,
        stream: &str,
        all: &str,
        subject: &str,
        row: &T,
        replaces: u64,
    ) -> Result<bool, BusError> {
        let payload = serde_json::to_vec(row).map_err(unavailable)?;
        let mut headers = HeaderMap::new();
        let replaces = HeaderValue::from(replaces);
        headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, replaces);
        match self.put(subject.to_owned(), headers, Bytes::from(payload)).await {
            Ok(_) => Ok(true),
            Err(PutError::Outrun) => Ok(false),
            Err(PutError::NoStream) => {
                self.make_state_stream(stream, all).await?;
                Err(BusError::Unavailable("the stream of rows was missing".to_owned()))
            }
            Err(PutError::Bus(error)) => Err(error),
        }
    }

    /// Changes a row. Without the stream of rows it is made first: a write would not tell that it is
    /// missing, because subscriptions listen to the subjects of rows, too, and NATS takes each for one
    /// who might answer.
    pub async fn change_row<T>(
        &self,
        stream: &str,
        all: &str,
        subject: &str,
        change: impl Fn(Option<T>) -> Result<Change<T>, BusError>,
    ) -> Result<T, BusError>
    where
        T: Serialize + DeserializeOwned + Clone,
    {
        for _ in 0..CHANGES_TRIED_MAX {
            let found = self.find_row::<T>(stream, subject).await?;
            let missing = found.is_none();
            let (row, sequence) = found.unwrap_or((None, 0));
            match change(row)? {
                Change::None(row) => return Ok(row),
                Change::To(row) => {
                    if missing {
                        self.make_state_stream(stream, all).await?;
                    }
                    if self.put_row(stream, all, subject, &row, sequence).await? {
                        return Ok(row);
                    }
                }
            }
        }
        Err(BusError::Unavailable("others change the same row all the time".to_owned()))
    }

    async fn make_state_stream(&self, stream: &str, all: &str) -> Result<(), BusError> {
        let config = Config {
            name: stream.to_owned(),
            description: Some("Millrace: topics and consumers; the newest row of each".to_owned()),
            subjects: vec![all.to_owned()],
            max_messages_per_subject: 1,
            max_messages: -1,
            max_bytes: -1,
            max_consumers: -1,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            allow_direct: true,
            num_replicas: self.settings.replicas,
            // Rows carry no ids; the shortest that NATS takes.
            duplicate_window: Duration::from_secs(1),
            ..Config::default()
        };
        match self.context.create_stream(config).await {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                // Another logic was quicker, with other replicas.
                CreateStreamErrorKind::JetStream(cause)
                    if cause.error_code() == ErrorCode::STREAM_NAME_EXIST =>
                {
                    Ok(())
                }
                CreateStreamErrorKind::JetStream(cause) => Err(of_jetstream(&cause)),
                _ => Err(unavailable(error)),
            },
        }
    }
}
