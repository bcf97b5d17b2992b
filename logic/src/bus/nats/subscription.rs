//! A consumer's subscription: where it stands, what it has read ahead, and whether it is the newest.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use async_nats::{Message, Subscriber};
use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _};

use super::{
    Inner,
    state::{Change, ConsumerRow},
};
use crate::bus::{
    BusError, Record, Start, Subscription,
    dead_letters::{DEAD_LETTERS_TOPIC, dead_letter},
};

/// Records, and bytes, that are read ahead in one go.
const READ_AHEAD_RECORDS_MAX: usize = 256;
const READ_AHEAD_BYTES_MAX: usize = 1 << 20;

/// See the module.
pub(super) struct NatsSubscription {
    bus: Arc<Inner>,
    topic: String,
    consumer: String,
    /// Which subscription of its consumer this is; only the newest may go on.
    epoch: u64,
    /// Writes to the consumer's row, as they come: a newer subscription writes there.
    row_told: Subscriber,
    over: bool,
    /// Offset of the next record to be given.
    position: u64,
    ahead: VecDeque<Record>,
    /// Whether the first record given was counted.
    counted: bool,
}

impl NatsSubscription {
    pub fn new(
        bus: Arc<Inner>,
        topic: &str,
        consumer: &str,
        row_told: Subscriber,
        epoch: u64,
        position: u64,
    ) -> Self {
        let (topic, consumer) = (topic.to_owned(), consumer.to_owned());
        let ahead = VecDeque::new();
        let (over, counted) = (false, bus.nats.settings.deliveries_max == 0);
        Self { bus, topic, consumer, epoch, row_told, over, position, ahead, counted }
    }

    /// Looks at the row if somebody wrote to it.
    async fn check(&mut self) -> Result<(), BusError> {
        let mut newer = false;
        while let Some(Some(told)) = self.row_told.next().now_or_never() {
            newer |= self.is_newer(&told);
        }
        if newer { self.check_row().await } else { self.verdict() }
    }

    /// Whether this write comes of a newer subscription. It may have been refused, so the row is
    /// asked; our own writes, which are most, need no question.
    fn is_newer(&self, told: &Message) -> bool {
        let row: Option<ConsumerRow> = serde_json::from_slice(&told.payload).ok();
        row.is_none_or(|row| row.epoch > self.epoch)
    }

    async fn check_row(&mut self) -> Result<(), BusError> {
        let row = self.bus.consumer_row(&self.topic, &self.consumer).await?;
        self.over |= row.is_some_and(|row| row.epoch > self.epoch);
        self.verdict()
    }

    fn verdict(&self) -> Result<(), BusError> {
        if self.over { Err(BusError::Superseded) } else { Ok(()) }
    }

    /// Changes the consumer's row, if this is still its newest subscription.
    async fn change(
        &mut self,
        change: impl Fn(ConsumerRow) -> Change<ConsumerRow>,
    ) -> Result<ConsumerRow, BusError> {
        let epoch = self.epoch;
        let fenced = |row: Option<ConsumerRow>| match row {
            Some(row) if row.epoch > epoch => Err(BusError::Superseded),
            // A row that was lost is this subscription's again.
            row => Ok(change(ConsumerRow { epoch, ..row.unwrap_or_default() })),
        };
        let changed = self.bus.change_consumer(&self.topic, &self.consumer, fenced).await;
        self.over |= changed == Err(BusError::Superseded);
        changed
    }

    /// Counts that the first record ahead is given; puts it aside if that was tried too often.
    async fn count(&mut self) -> Result<(), BusError> {
        // If this is cancelled, one delivery is not counted; better than one too many.
        while !std::mem::replace(&mut self.counted, true) {
            let Some(offset) = self.ahead.front().map(|record| record.offset) else {
                self.counted = false;
                return Ok(());
            };
            let again = |row: ConsumerRow| {
                let times = if row.begun == offset { row.times.saturating_add(1) } else { 1 };
                Change::To(ConsumerRow { begun: offset, times, ..row })
            };
            let row = match self.change(again).await {
                Ok(row) => row,
                Err(error) => {
                    self.counted = false;
                    return Err(error);
                }
            };
            let deliveries_max = self.bus.nats.settings.deliveries_max;
            if row.times <= deliveries_max || self.topic == DEAD_LETTERS_TOPIC {
                return Ok(());
            }
            self.counted = false;
            self.put_aside(deliveries_max).await?;
        }
        Ok(())
    }

    async fn put_aside(&mut self, deliveries: u32) -> Result<(), BusError> {
        let Some(record) = self.ahead.front() else { return Ok(()) };
        let offset = record.offset;
        let letter = |whole| dead_letter(&self.topic, &self.consumer, record, deliveries, whole);
        match self.bus.publish(letter(true)).await {
            Err(BusError::TooLarge(_)) => self.bus.publish(letter(false)).await?,
            // There is no place to put it aside: it is given again.
            Err(BusError::TooMany(_)) => {
                self.counted = true;
                return Ok(());
            }
            published => published?,
        };
        let (topic, consumer) = (&self.topic, &self.consumer);
        tracing::warn!(%topic, %consumer, offset, deliveries, "a record is put among the dead letters");
        self.bus.nats.counters.dead_letters.fetch_add(1, Ordering::Relaxed);
        self.commit(offset).await?;
        self.ahead.pop_front();
        self.position = offset + 1;
        Ok(())
    }

    async fn commit(&mut self, offset: u64) -> Result<(), BusError> {
        let forward = |row: ConsumerRow| match offset > row.committed {
            true => Change::To(ConsumerRow { committed: offset, ..row }),
            false => Change::None(row),
        };
        self.change(forward).await.map(drop)
    }
}

#[async_trait]
impl Subscription for NatsSubscription {
    async fn next_some(&mut self, records_max: usize) -> Result<Vec<Record>, BusError> {
        loop {
            self.check().await?;
            if !self.ahead.is_empty() {
                self.count().await?;
            }
            if !self.ahead.is_empty() {
                let count = records_max.max(1).min(self.ahead.len());
                let taken: Vec<Record> = self.ahead.drain(..count).collect();
                if let Some(last) = taken.last() {
                    self.position = last.offset + 1;
                }
                return Ok(taken);
            }
            let from = Start::Offset(self.position);
            let (bus, topic) = (self.bus.clone(), self.topic.clone());
            let read = bus.reader.page(&topic, from, READ_AHEAD_RECORDS_MAX, READ_AHEAD_BYTES_MAX);
            self.ahead = read.await?.unwrap_or_default().records.into();
            if !self.ahead.is_empty() {
                continue;
            }
            tokio::select! {
                biased;
                told = self.row_told.next() => {
                    let Some(told) = told else {
                        return Err(BusError::Unavailable("it is closed".to_owned()));
                    };
                    if self.is_newer(&told) {
                        self.check_row().await?;
                    }
                }
                waited = bus.reader.wait(&topic, self.position) => {
                    waited?;
                    // What was told while NATS was away was not heard.
                    self.check_row().await?;
                }
            }
        }
    }

    async fn acknowledge(&mut self, offset: u64) -> Result<(), BusError> {
        self.check().await?;
        let offset = offset.min(self.position - 1);
        self.commit(offset).await
    }
}
