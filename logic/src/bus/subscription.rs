//! A consumer's subscription of the embedded log: where it stands, and what it has read ahead.

use std::{collections::VecDeque, sync::atomic::Ordering};

use async_trait::async_trait;

use super::{
    Bus as _, BusError, EmbeddedBus, Record, Start, Subscription,
    dead_letters::{DEAD_LETTERS_TOPIC, dead_letter},
};

/// Records, and bytes, that are read ahead in one go.
const READ_AHEAD_RECORDS_MAX: usize = 256;
const READ_AHEAD_BYTES_MAX: usize = 1 << 20;

/// See the module.
pub(super) struct EmbeddedSubscription {
    bus: EmbeddedBus,
    topic: String,
    consumer: String,
    /// Which subscription of its consumer this is; only the newest may go on.
    number: u64,
    /// Offset of the next record to be given.
    position: u64,
    ahead: VecDeque<Record>,
    /// Whether the first record given was counted.
    counted: bool,
}

impl EmbeddedSubscription {
    pub(super) fn new(
        bus: EmbeddedBus,
        topic: &str,
        consumer: &str,
        number: u64,
        position: u64,
    ) -> Self {
        let (topic, consumer) = (topic.to_owned(), consumer.to_owned());
        let counted = bus.inner.deliveries_max() == 0;
        Self { bus, topic, consumer, number, position, ahead: VecDeque::new(), counted }
    }

    /// Counts that the first record ahead is given; puts it aside if that was tried too often.
    async fn count(&mut self) -> Result<(), BusError> {
        // If this is cancelled, one delivery is not counted; better than one too many.
        while !std::mem::replace(&mut self.counted, true) {
            let Some(record) = self.ahead.front() else {
                self.counted = false;
                return Ok(());
            };
            let offset = record.offset;
            let times = self.bus.inner.begin(&self.topic, &self.consumer, offset).await;
            let deliveries_max = self.bus.inner.deliveries_max();
            match times {
                Ok(times) if times <= u64::from(deliveries_max) => return Ok(()),
                Ok(_) if self.topic == DEAD_LETTERS_TOPIC => return Ok(()),
                Ok(_) => self.counted = false,
                Err(error) => {
                    self.counted = false;
                    return Err(error);
                }
            }
            let letter = dead_letter(&self.topic, &self.consumer, record, deliveries_max, true);
            let (topic, consumer) = (&self.topic, &self.consumer);
            for outcome in self.bus.publish_all(vec![letter]).await {
                match outcome {
                    // There is no place to put it aside: it is given again.
                    Err(BusError::TooMany(_)) => return Ok(()),
                    outcome => outcome?,
                };
            }
            tracing::warn!(%topic, %consumer, offset, "a record is put among the dead letters");
            self.bus.inner.dead_letters.fetch_add(1, Ordering::Relaxed);
            self.bus.commit(topic, consumer, offset, false).await?;
            self.ahead.pop_front();
            self.position = offset + 1;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), BusError> {
        match self.bus.inner.is_newest(&self.topic, &self.consumer, self.number) {
            true => Ok(()),
            false => Err(BusError::Superseded),
        }
    }
}

#[async_trait]
impl Subscription for EmbeddedSubscription {
    async fn next_some(&mut self, records_max: usize) -> Result<Vec<Record>, BusError> {
        loop {
            self.check()?;
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
            let over = || self.check().is_err();
            self.bus.inner.wait(&self.topic, self.position, over).await?;
            let from = Start::Offset(self.position);
            let read =
                self.bus.read(&self.topic, from, READ_AHEAD_RECORDS_MAX, READ_AHEAD_BYTES_MAX);
            self.ahead = read.await?.records.into();
        }
    }

    async fn acknowledge(&mut self, offset: u64) -> Result<(), BusError> {
        self.check()?;
        let offset = offset.min(self.position - 1);
        self.bus.commit(&self.topic, &self.consumer, offset, false).await.map(drop)
    }
}
