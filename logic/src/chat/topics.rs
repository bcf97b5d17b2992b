//! What business services ask of topics. The bus answers; here are the bounds of what is asked at
//! once, and the end of what waits when the process leaves.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{
        CommitOffsetRequest, CommitOffsetResponse, ConsumeRequest, ConsumeResponse,
        ListTopicsRequest, ListTopicsResponse, ReadTopicRequest, ReadTopicResponse, Topic,
        TopicConsumer, TopicRecord,
    },
};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{Chat, Core};
use crate::{
    api::reports::{Consumed, TopicsApi},
    bus::{BusError, Record, Start, Subscription, TopicStatus},
};

/// Records of one answer.
const RECORDS_MAX: usize = 1_000;
const RECORDS_DEFAULT: usize = 100;

/// Bytes of one answer; a single larger record still travels.
const ANSWER_BYTES_MAX: usize = 512 * 1024;

/// How long a read may wait for a record.
const WAIT_MS_MAX: u32 = 30_000;

/// Records of one message of a stream.
const CONSUMED_TOGETHER_MAX: usize = 100;

impl Core {
    fn bus_refused(&self, error: BusError) -> Refused {
        let code = match &error {
            BusError::BadName(_) => Code::BadRequest,
            BusError::NotFound => Code::NotFound,
            BusError::TooLarge(_) => Code::TooLarge,
            BusError::TooMany(_) | BusError::Full(_) => Code::OverCapacity,
            BusError::Superseded => Code::Replaced,
            BusError::Unavailable(_) => Code::Internal,
        };
        self.count_refusal(code);
        Refused::new(code, format!("{error}.")).retry_after(self.retry_after_ms_of(code))
    }

    /// A place among those who wait for records.
    pub(super) fn waiting_place(&self) -> Result<OwnedSemaphorePermit, Refused> {
        self.consumers.clone().try_acquire_owned().map_err(|_| {
            let max = self.settings.consumers_waiting_max;
            let reason = format!("{max} callers wait for records already.");
            let code = Code::OverCapacity;
            self.count_refusal(code);
            Refused::new(code, reason).retry_after(self.retry_after_ms_of(code))
        })
    }
}

fn shown(record: Record) -> TopicRecord {
    let Record { offset, time_ms, key, payload } = record;
    TopicRecord { offset, time_ms, key, payload }
}

#[async_trait]
impl TopicsApi for Chat {
    async fn list_topics(&self, _: ListTopicsRequest) -> Result<ListTopicsResponse, Refused> {
        let topics = self.core.bus.topics().await.map_err(|error| self.core.bus_refused(error))?;
        let shown = |status: TopicStatus| Topic {
            topic: status.topic,
            first_offset: status.first_offset,
            end_offset: status.end_offset,
            bytes: status.bytes,
            consumers: status
                .consumers
                .into_iter()
                .map(|(consumer, committed_offset)| TopicConsumer { consumer, committed_offset })
                .collect(),
        };
        Ok(ListTopicsResponse { topics: topics.into_iter().map(shown).collect() })
    }

    async fn read_topic(&self, request: ReadTopicRequest) -> Result<ReadTopicResponse, Refused> {
        let core = &self.core;
        let ReadTopicRequest { topic, offset, time_ms, limit, wait_ms } = request;
        let limit = match limit as usize {
            0 => RECORDS_DEFAULT,
            limit => limit.min(RECORDS_MAX),
        };
        let mut from = Start::Offset(offset);
        if time_ms > 0 {
            from = Start::TimeMs(time_ms);
        }
        let read = || core.bus.read(&topic, from, limit, ANSWER_BYTES_MAX);
        let mut page = match read().await {
            // Somebody who waits may be earlier than the first record.
            Err(BusError::NotFound) if wait_ms > 0 => Default::default(),
            page => page.map_err(|error| core.bus_refused(error))?,
        };
        if page.records.is_empty() && wait_ms > 0 {
            let _place = core.waiting_place()?;
            let wanted = offset.max(page.end_offset).max(1);
            let waiting = core.bus.wait(&topic, wanted);
            let patience = Duration::from_millis(u64::from(wait_ms.min(WAIT_MS_MAX)));
            tokio::select! {
                // Whether there is one now is seen below.
                _ = timeout(patience, waiting) => {}
                () = core.stop.said() => {}
            }
            page = read().await.map_err(|error| core.bus_refused(error))?;
        }
        let next_offset = match page.records.last() {
            Some(last) => last.offset + 1,
            None if time_ms > 0 => page.end_offset,
            None => offset.max(page.first_offset),
        };
        Ok(ReadTopicResponse {
            records: page.records.into_iter().map(shown).collect(),
            first_offset: page.first_offset,
            end_offset: page.end_offset,
            next_offset,
        })
    }

    async fn commit_offset(
        &self,
        request: CommitOffsetRequest,
    ) -> Result<CommitOffsetResponse, Refused> {
        let CommitOffsetRequest { topic, consumer, offset, rewind } = request;
        let committed = self.core.bus.commit(&topic, &consumer, offset, rewind).await;
        let committed_offset = committed.map_err(|error| self.core.bus_refused(error))?;
        Ok(CommitOffsetResponse { committed_offset })
    }

    async fn consume(&self, request: ConsumeRequest) -> Result<Consumed, Refused> {
        let core = self.core.clone();
        let place = core.waiting_place()?;
        let subscription = core.bus.subscribe(&request.topic, &request.consumer).await;
        let subscription = subscription.map_err(|error| core.bus_refused(error))?;
        let consuming = Consuming { core, subscription, _place: place };
        Ok(stream::unfold(Some(consuming), Consuming::next).boxed())
    }
}

/// A stream of records.
struct Consuming {
    core: Arc<Core>,
    subscription: Box<dyn Subscription>,
    _place: OwnedSemaphorePermit,
}

impl Consuming {
    /// The next records, or the refusal that ends the stream.
    async fn next(this: Option<Self>) -> Option<(Result<ConsumeResponse, Refused>, Option<Self>)> {
        let mut this = this?;
        let next = tokio::select! {
            next = this.subscription.next_some(CONSUMED_TOGETHER_MAX) => next,
            () = this.core.stop.said() => return None,
        };
        match next {
            Ok(records) => {
                let records = records.into_iter().map(shown).collect();
                Some((Ok(ConsumeResponse { records }), Some(this)))
            }
            Err(error) => Some((Err(this.core.bus_refused(error)), None)),
        }
    }
}
