//! The half of a stream that gRPC reads: the batches of a shard, until the shard lets go.
//!
//! A batch that goes out wakes this thread, is a write, and wakes logic; at some thousand frames a
//! second that costs more than the frames. So while frames have company, the stream takes what the
//! shard has at most once in `batch_interval`, and the shard wakes nobody meanwhile. What comes
//! after a silence goes at once.
//!
//! Heartbeats are not made here. The engine makes them, so that they say that the shard lives and
//! not merely the thread beside it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use millrace_protocol::link::ConnectRequest;
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::Stream;

use super::{client::LinkStatus, port::OutboundBatches};

/// As many events at once are company: fewer than two in each interval go one by one.
const COMPANY_EVENTS: usize = 2;

pub(super) struct OutboundStream {
    batches: OutboundBatches,
    status: Arc<LinkStatus>,
    /// Whether logic was told on this stream that the gateway drains; nothing else of it changes.
    told: Option<bool>,
    /// The least time between two looks at the ring; zero: every batch goes at once.
    batch_interval: Duration,
    /// When the ring is looked at again, while it is not to be.
    pause: Pin<Box<Sleep>>,
    is_paused: bool,
    /// Events taken since the last pause.
    events: usize,
}

impl OutboundStream {
    /// To be called on the runtime that polls it.
    pub fn new(
        batches: OutboundBatches,
        status: Arc<LinkStatus>,
        batch_interval: Duration,
    ) -> Self {
        let pause = Box::pin(sleep(Duration::ZERO));
        Self { batches, status, told: None, batch_interval, pause, is_paused: false, events: 0 }
    }

    /// The next batch that is to go now.
    fn poll_take(&mut self, context: &mut Context<'_>) -> Poll<Option<ConnectRequest>> {
        if self.is_paused {
            if self.pause.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.is_paused = false;
        }
        let mut taken = self.batches.take();
        if taken.is_none() {
            let had_company = std::mem::take(&mut self.events) >= COMPANY_EVENTS;
            if had_company && !self.batch_interval.is_zero() {
                self.pause.as_mut().reset(Instant::now() + self.batch_interval);
                if self.pause.as_mut().poll(context).is_pending() {
                    self.is_paused = true;
                    return Poll::Pending;
                }
            }
            // From here on the shard's next batch wakes this task.
            match self.batches.poll_take(context) {
                Poll::Ready(batch) => taken = batch,
                Poll::Pending => return Poll::Pending,
            }
        }
        self.events += taken.as_ref().map_or(0, |batch| batch.events.len());
        Poll::Ready(taken)
    }
}

impl Stream for OutboundStream {
    type Item = ConnectRequest;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<ConnectRequest>> {
        let mut taken = self.poll_take(context);
        if let Poll::Ready(Some(batch)) = &mut taken {
            self.status.sent(batch);
            // A heartbeat has room for it; a busy stream carries it when it has changed.
            let draining = self.status.is_draining();
            if batch.events.is_empty() || self.told != Some(draining) {
                self.told = Some(draining);
                batch.state = Some(self.status.state());
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use millrace_protocol::link::{ConnectRequest, GatewayEvent};
    use tokio::time::Instant;
    use tokio_stream::{Stream as _, StreamExt as _};

    use super::{LinkStatus, OutboundStream};
    use crate::link::port::{LinkPort, Outbound, ShardPort, pair};

    const INTERVAL: Duration = Duration::from_millis(10);

    /// A shard's end and the stream of it; the ports only have to stay.
    fn stream(
        batch_interval: Duration,
        ring_batches_max: usize,
    ) -> (Outbound, OutboundStream, (LinkPort, ShardPort)) {
        let ports = pair(1, Arc::new(|| {}));
        let (outbound, batches) = ports.0.stream(ring_batches_max);
        let status = Arc::new(LinkStatus::new(0, 0));
        (outbound, OutboundStream::new(batches, status, batch_interval), ports)
    }

    fn batch(sequence: u64, events: usize) -> ConnectRequest {
        let events = vec![GatewayEvent::default(); events];
        ConnectRequest { sequence, events, ..Default::default() }
    }

    fn push(outbound: &mut Outbound, sequence: u64, events: usize) {
        outbound.push(batch(sequence, events)).expect("there is room");
        outbound.flush();
    }

    /// Whether the stream has a batch now, without waiting.
    async fn now(stream: &mut OutboundStream) -> Option<u64> {
        std::future::poll_fn(|context| {
            let next = std::pin::Pin::new(&mut *stream).poll_next(context);
            std::task::Poll::Ready(match next {
                std::task::Poll::Ready(batch) => Some(batch.expect("the shard is there").sequence),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn what_comes_after_a_silence_goes_at_once_and_frames_one_by_one_always_do() {
        let (mut outbound, mut stream, _ports) = stream(INTERVAL, 8);
        for sequence in 1..100 {
            assert_eq!(now(&mut stream).await, None);
            push(&mut outbound, sequence, 1);
            assert_eq!(now(&mut stream).await, Some(sequence));
        }
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn frames_with_company_go_together_once_in_an_interval() {
        let (mut outbound, mut stream, _ports) = stream(INTERVAL, 8);
        push(&mut outbound, 1, 2);
        assert_eq!(now(&mut stream).await, Some(1));
        assert_eq!(now(&mut stream).await, None);
        push(&mut outbound, 2, 1);
        push(&mut outbound, 3, 1);
        assert_eq!(now(&mut stream).await, None);
        let began = Instant::now();
        assert_eq!(stream.next().await.map(|batch| batch.sequence), Some(2));
        assert!(began.elapsed() >= INTERVAL, "{:?}", began.elapsed());
        // What waited goes in one go, and was company again.
        assert_eq!(now(&mut stream).await, Some(3));
        assert_eq!(now(&mut stream).await, None);
        push(&mut outbound, 4, 1);
        assert_eq!(now(&mut stream).await, None);
        assert_eq!(stream.next().await.map(|batch| batch.sequence), Some(4));
        // One alone was none.
        assert_eq!(now(&mut stream).await, None);
        push(&mut outbound, 5, 1);
        assert_eq!(now(&mut stream).await, Some(5));
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn an_interval_of_zero_never_waits() {
        let (mut outbound, mut stream, _ports) = stream(Duration::ZERO, 8);
        for sequence in 1..100 {
            push(&mut outbound, sequence, 50);
            assert_eq!(now(&mut stream).await, Some(sequence));
            assert_eq!(now(&mut stream).await, None);
        }
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn what_a_shard_leaves_behind_goes_out_before_the_stream_ends() {
        let (mut outbound, mut stream, _ports) = stream(INTERVAL, 8);
        push(&mut outbound, 1, 50);
        assert_eq!(now(&mut stream).await, Some(1));
        assert_eq!(now(&mut stream).await, None);
        push(&mut outbound, 2, 1);
        drop(outbound);
        assert_eq!(stream.next().await.map(|batch| batch.sequence), Some(2));
        assert_eq!(stream.next().await, None);
    }

    #[test]
    fn no_batch_is_left_behind_however_small_the_ring_and_whoever_sleeps() {
        const BATCHES: u64 = 20_000;
        /// Longer than any scheduler's hiccup; only a lost wake-up lasts as long.
        const LOST: Duration = Duration::from_secs(20);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("runtime");
        let _entered = runtime.enter();
        for ring_batches_max in [1, 3, 64] {
            let shard = std::thread::current();
            let ports = pair(1, Arc::new(move || shard.unpark()));
            let (mut outbound, batches) = ports.0.stream(ring_batches_max);
            let status = Arc::new(LinkStatus::new(0, 0));
            let mut stream = OutboundStream::new(batches, status, Duration::from_micros(50));
            std::thread::scope(|scope| {
                let taken = scope.spawn(|| {
                    runtime.block_on(async {
                        let mut expected = 1;
                        while let Ok(Some(batch)) = tokio::time::timeout(LOST, stream.next()).await
                        {
                            assert_eq!(batch.sequence, expected);
                            expected += 1;
                        }
                        expected - 1
                    })
                });
                let mut random = fastrand::Rng::with_seed(ring_batches_max as u64);
                for sequence in 1..=BATCHES {
                    while !outbound.has_room() {
                        outbound.flush();
                        std::thread::park_timeout(LOST);
                    }
                    let events = random.usize(0..3);
                    outbound.push(batch(sequence, events)).expect("there is room");
                    if random.u8(0..3) == 0 {
                        outbound.flush();
                    }
                    if random.u8(0..200) == 0 {
                        outbound.flush();
                        std::thread::sleep(Duration::from_micros(300));
                    }
                }
                drop(outbound);
                assert_eq!(taken.join().expect("no panic"), BATCHES);
            });
        }
    }
}
