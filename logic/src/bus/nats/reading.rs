//! Reading records, and waiting for them.
//!
//! Each record is asked for by its sequence, many at once, from any copy of the stream. That needs no
//! state on the server: nothing is lost, or left behind, when this process or NATS dies in between.
//! What a copy does not have is asked of the stream's leader before it counts as gone, because a copy
//! may be behind.

use std::{sync::Arc, time::Duration};

use async_nats::{
    Subscriber,
    jetstream::{
        ErrorCode,
        message::StreamMessage,
        stream::{DirectGetErrorKind, LastRawMessageErrorKind, Stream},
    },
};
use futures::{StreamExt as _, stream};
use tokio::time::sleep;

use super::{
    connection::{Nats, of_jetstream, unavailable},
    names::{base_of_subject, unescape_key},
    topics::{Kept, Topic, Topics},
};
use crate::bus::{BusError, Page, Record, Start};

/// Header of a record's key.
pub(super) const KEY_HEADER: &str = "Millrace-Key";

/// Records of one page that are asked for at once.
const GETS_IN_FLIGHT_MAX: usize = 64;

/// How long a waiter trusts that it is told, before it looks itself: a notification is lost with the
/// connection.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Reads topics.
pub(super) struct Reader {
    pub nats: Arc<Nats>,
    pub topics: Arc<Topics>,
}

impl Reader {
    /// A page of a topic, or nothing if there is no such topic.
    pub async fn page(
        &self,
        name: &str,
        from: Start,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Option<Page>, BusError> {
        self.nats.patiently(|| self.try_page(name, from, records_max, bytes_max)).await
    }

    async fn try_page(
        &self,
        name: &str,
        from: Start,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Option<Page>, BusError> {
        let Some(kept) = self.topics.kept(name).await? else { return Ok(None) };
        let stream = self.stream(&kept.topic).await?;
        let Kept { first_offset, end_offset, .. } = kept;
        let from = match from {
            Start::Offset(offset) => offset.max(first_offset),
            Start::TimeMs(time_ms) => first_since(&stream, &kept, time_ms).await?,
        };
        let copies = kept.copies;
        let gets = (from..end_offset)
            .map(|offset| get(stream.clone(), kept.topic.clone(), offset, copies));
        let mut gets = stream::iter(gets).buffered(GETS_IN_FLIGHT_MAX.min(records_max.max(1)));
        let mut records: Vec<Record> = Vec::new();
        let mut bytes = 0;
        while let Some(found) = gets.next().await {
            // Nobody else takes records out of the middle; who does it by hand leaves a hole.
            let Some(record) = found? else { continue };
            bytes += record.key.len() + record.payload.len();
            if !records.is_empty() && bytes > bytes_max {
                break;
            }
            records.push(record);
            if records.len() >= records_max.max(1) {
                break;
            }
        }
        Ok(Some(Page { records, first_offset, end_offset }))
    }

    async fn stream(&self, topic: &Topic) -> Result<Stream<()>, BusError> {
        self.nats.context.get_stream_no_info(&topic.stream).await.map_err(unavailable)
    }

    /// Waits until the topic has a record at this offset or after it. Fails only if NATS is away for
    /// longer than patience.
    pub async fn wait(&self, name: &str, offset: u64) -> Result<(), BusError> {
        loop {
            // Listening first: what is stored after the look is told.
            let mut told = self.listen(self.topics.names.told(name)).await?;
            loop {
                let kept = self.nats.patiently(|| self.topics.kept(name)).await?;
                if kept.is_some_and(|kept| kept.end_offset > offset) {
                    return Ok(());
                }
                tokio::select! {
                    one = told.next() => {
                        if one.is_none() {
                            break;
                        }
                        // However many came meanwhile, one look answers them all.
                        while let Some(Some(_)) = futures::FutureExt::now_or_never(told.next()) {}
                    }
                    () = sleep(LOOK_AGAIN) => {}
                }
            }
        }
    }

    pub async fn listen(&self, subject: String) -> Result<Subscriber, BusError> {
        self.nats
            .patiently(|| async {
                self.nats.client.subscribe(subject.clone()).await.map_err(unavailable)
            })
            .await
    }
}

/// The record of this offset, unless it is gone.
async fn get(
    stream: Stream<()>,
    topic: Arc<Topic>,
    offset: u64,
    copies: usize,
) -> Result<Option<Record>, BusError> {
    let sequence = offset - topic.base;
    let error = match stream.direct_get(sequence).await {
        Ok(found) => return record(&topic, found).map(Some),
        Err(error) => error,
    };
    if error.kind() != DirectGetErrorKind::NotFound {
        return Err(unavailable(error));
    }
    if copies == 1 {
        return Ok(None);
    }
    let error = match stream.get_raw_message(sequence).await {
        Ok(found) => return record(&topic, found).map(Some),
        Err(error) => error,
    };
    match error.kind() {
        LastRawMessageErrorKind::NoMessageFound => Ok(None),
        LastRawMessageErrorKind::JetStream(cause) => match cause.error_code() {
            ErrorCode::NO_MESSAGE_FOUND => Ok(None),
            _ => Err(of_jetstream(&cause)),
        },
        _ => Err(unavailable(error)),
    }
}

fn record(topic: &Topic, found: StreamMessage) -> Result<Record, BusError> {
    if base_of_subject(found.subject.as_str()) != Some(topic.base) {
        return Err(BusError::Unavailable("the topic's stream was made again just now".to_owned()));
    }
    let key = found.headers.get(KEY_HEADER).map(|key| unescape_key(key.as_str()));
    Ok(Record {
        offset: topic.base + found.sequence,
        time_ms: (found.time.unix_timestamp_nanos() / 1_000_000) as i64,
        key: key.unwrap_or_default(),
        payload: found.payload,
    })
}

/// The offset of the first record of this moment or later, by halving: times only grow.
async fn first_since(stream: &Stream<()>, kept: &Kept, time_ms: i64) -> Result<u64, BusError> {
    let (mut low, mut high) = (kept.first_offset, kept.end_offset);
    if low == high || kept.newest_ms < time_ms {
        return Ok(high);
    }
    while low < high {
        let middle = low + (high - low) / 2;
        let found = get(stream.clone(), kept.topic.clone(), middle, kept.copies).await?;
        if found.is_some_and(|found| found.time_ms >= time_ms) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(low)
}
