//! The two bounded rings between a shard and a link task, and their wake-ups.
//!
//! Towards the shard runs one ring for the life of both: streams going up and down, and batches.
//! Towards logic every stream gets a ring of its own, handed over with [`FromLink::Up`], so a batch
//! made for an old stream can never enter a new one.
//!
//! When a ring is full: the link task stops reading its stream, and HTTP/2's window pushes back on
//! logic; the shard leaves batches in the engine, whose credits and backlogs push back on clients.
//!
//! **No wake-up is lost.** Whoever waits announces that first and then looks once more; whoever
//! changes a ring does that first and then looks for an announcement. Announcing and looking for
//! it are read-modify-write operations on one atomic ([`AtomicWaker`]'s state, or `shard_waits`),
//! so one comes before the other: either the changer sees the announcement and wakes the waiter, or
//! the waiter synchronises with the changer and its second look sees the change.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use atomic_waker::AtomicWaker;
use millrace_protocol::link::{ConnectRequest, ConnectResponse};
use rtrb::{Consumer, Producer, PushError, RingBuffer};

/// Wakes a sleeping shard; cheap, and callable from any thread.
pub(crate) type Ring = Arc<dyn Fn() + Send + Sync>;

/// What a link task tells its shard, in order.
#[derive(Debug)]
pub(crate) enum FromLink {
    /// A stream is open. What goes into the ring goes out on it; dropping the ring ends it.
    Up(Outbound),
    /// The stream that was up has ended; another `Up` may follow.
    Down,
    /// Logic sent a batch.
    Batch(ConnectResponse),
}

/// Creates both ends of the ring towards a shard, with room for `batches_max` items. `ring` is
/// called after each item.
pub(crate) fn pair(batches_max: usize, ring: Ring) -> (LinkPort, ShardPort) {
    let (producer, consumer) = RingBuffer::new(batches_max);
    let space = Arc::new(AtomicWaker::new());
    let link = LinkPort { inbound: producer, space: space.clone(), ring };
    (link, ShardPort { inbound: Some(consumer), space })
}

/// The link task's end.
pub(crate) struct LinkPort {
    inbound: Producer<FromLink>,
    space: Arc<AtomicWaker>,
    ring: Ring,
}

/// The shard has left and takes nothing more.
#[derive(Debug)]
pub(crate) struct ShardGone;

impl LinkPort {
    /// Hands an item to the shard, waiting for room.
    pub async fn deliver(&mut self, item: FromLink) -> Result<(), ShardGone> {
        let mut item = Some(item);
        poll_fn(|context| {
            for look in 0..2 {
                if self.inbound.is_abandoned() {
                    return Poll::Ready(Err(ShardGone));
                }
                if let Some(taken) = item.take() {
                    match self.inbound.push(taken) {
                        Ok(()) => {
                            (self.ring)();
                            return Poll::Ready(Ok(()));
                        }
                        Err(PushError::Full(back)) => item = Some(back),
                    }
                }
                if look == 0 {
                    self.space.register(context.waker());
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Completes when the shard has left.
    pub async fn abandoned(&mut self) {
        poll_fn(|context| {
            self.space.register(context.waker());
            if self.inbound.is_abandoned() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Creates the ring of a new stream.
    pub fn stream(&self, batches_max: usize) -> (Outbound, OutboundBatches) {
        let (producer, consumer) = RingBuffer::new(batches_max);
        let shared = Arc::new(Shared { data: AtomicWaker::new(), shard_waits: false.into() });
        let batches =
            OutboundBatches { batches: consumer, shared: shared.clone(), ring: self.ring.clone() };
        (Outbound { batches: Some(producer), shared }, batches)
    }
}

/// The shard's end. Dropping it tells the link task to end.
#[derive(Debug)]
pub(crate) struct ShardPort {
    /// Present until the drop.
    inbound: Option<Consumer<FromLink>>,
    space: Arc<AtomicWaker>,
}

impl ShardPort {
    /// The next item, if there is one. Call [`Self::released`] after taking some.
    pub fn take(&mut self) -> Option<FromLink> {
        self.inbound.as_mut()?.pop().ok()
    }

    /// Whether items wait.
    pub fn is_empty(&self) -> bool {
        self.inbound.as_ref().is_none_or(Consumer::is_empty)
    }

    /// Wakes the link task if it waits for room.
    pub fn released(&self) {
        self.space.wake();
    }
}

impl Drop for ShardPort {
    fn drop(&mut self) {
        // The ring is let go before the wake-up, else the task could look too early.
        self.inbound = None;
        self.space.wake();
    }
}

#[derive(Debug)]
struct Shared {
    /// Woken when there are batches, or when the shard has let go of the ring.
    data: AtomicWaker,
    /// The shard found the ring full and wants to be rung when it is not.
    shard_waits: AtomicBool,
}

/// The shard's end of one stream's ring.
#[derive(Debug)]
pub(crate) struct Outbound {
    /// Present until the drop.
    batches: Option<Producer<ConnectRequest>>,
    shared: Arc<Shared>,
}

impl Outbound {
    /// Whether a batch fits. If not, the shard is rung as soon as one does.
    pub fn has_room(&mut self) -> bool {
        let Some(batches) = &self.batches else { return false };
        if !batches.is_full() {
            return true;
        }
        self.shared.shard_waits.swap(true, Ordering::AcqRel);
        !batches.is_full()
    }

    /// Puts a batch into the ring; the stream is told by [`Self::flush`].
    ///
    /// # Errors
    /// Gives the batch back when the ring is full.
    pub fn push(&mut self, batch: ConnectRequest) -> Result<(), ConnectRequest> {
        let Some(batches) = &mut self.batches else { return Err(batch) };
        batches.push(batch).map_err(|PushError::Full(batch)| batch)
    }

    /// Wakes the stream, once for any number of batches.
    pub fn flush(&self) {
        self.shared.data.wake();
    }

    /// Whether the stream has taken everything, or is gone and never will.
    pub fn is_flushed(&self) -> bool {
        self.batches.as_ref().is_none_or(|batches| {
            batches.is_abandoned() || batches.slots() == batches.buffer().capacity()
        })
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        self.batches = None;
        self.shared.data.wake();
    }
}

/// The stream's end of its ring.
pub(crate) struct OutboundBatches {
    batches: Consumer<ConnectRequest>,
    shared: Arc<Shared>,
    ring: Ring,
}

impl OutboundBatches {
    /// Waits for the first batch without taking it. Returns whether there is one; if not, the
    /// shard has let go.
    pub async fn wait(&mut self) -> bool {
        poll_fn(|context| {
            for look in 0..2 {
                let abandoned = self.batches.is_abandoned();
                if !self.batches.is_empty() {
                    return Poll::Ready(true);
                }
                if abandoned {
                    return Poll::Ready(false);
                }
                if look == 0 {
                    self.shared.data.register(context.waker());
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The next batch, if there is one. Asks for no wake-up: whoever pushes the next wakes nobody.
    pub fn take(&mut self) -> Option<ConnectRequest> {
        let batch = self.batches.pop().ok()?;
        if self.shared.shard_waits.swap(false, Ordering::AcqRel) {
            (self.ring)();
        }
        Some(batch)
    }

    /// The next batch; `None` when the shard has let go and nothing is left.
    pub fn poll_take(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<ConnectRequest>> {
        for look in 0..2 {
            // Asked before the ring is looked at: what was pushed before it was let go is seen.
            let abandoned = self.batches.is_abandoned();
            if let Some(batch) = self.take() {
                return Poll::Ready(Some(batch));
            }
            if abandoned {
                return Poll::Ready(None);
            }
            if look == 0 {
                self.shared.data.register(context.waker());
            }
        }
        Poll::Pending
    }
}

impl Drop for OutboundBatches {
    fn drop(&mut self) {
        // A shard that waits for room or for the flush would otherwise never look again.
        (self.ring)();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
            mpsc,
        },
        thread,
        time::Duration,
    };

    use millrace_protocol::link::{ConnectRequest, ConnectResponse};

    use super::{FromLink, pair};

    /// Longer than any scheduler's hiccup; only a lost wake-up lasts as long.
    const LOST: Duration = Duration::from_secs(20);

    /// A shard that sleeps until it is rung, as the real one does on its driver.
    fn bell() -> (super::Ring, mpsc::Receiver<()>) {
        let (sender, receiver) = mpsc::sync_channel(1);
        // A full channel means that a ring is pending already.
        let ring = Arc::new(move || {
            let _pending = sender.try_send(());
        });
        (ring, receiver)
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
    }

    #[test]
    fn no_wake_up_towards_the_shard_is_lost_however_small_the_ring() {
        const BATCHES: u64 = 200_000;
        let (ring, rung) = bell();
        let (mut link, mut shard) = pair(1, ring);
        let sender = thread::spawn(move || {
            runtime().block_on(async move {
                for sequence in 1..=BATCHES {
                    let batch = ConnectResponse { sequence, ..Default::default() };
                    let delivered = link.deliver(FromLink::Batch(batch));
                    let delivered = tokio::time::timeout(LOST, delivered).await;
                    delivered.expect("the link task was woken").expect("the shard is there");
                }
            });
        });
        let mut expected = 1;
        while expected <= BATCHES {
            while let Some(FromLink::Batch(batch)) = shard.take() {
                assert_eq!(batch.sequence, expected);
                expected += 1;
            }
            shard.released();
            if shard.is_empty() && expected <= BATCHES {
                rung.recv_timeout(LOST).expect("the shard was woken");
            }
        }
        sender.join().expect("sent everything");
    }

    #[test]
    fn no_wake_up_towards_logic_is_lost_however_small_the_ring() {
        const BATCHES: u64 = 200_000;
        let (ring, rung) = bell();
        let (link, _shard) = pair(1, ring);
        let (mut outbound, mut batches) = link.stream(1);
        let taken = Arc::new(AtomicU64::new(0));
        let counter = taken.clone();
        let receiver = thread::spawn(move || {
            runtime().block_on(async move {
                loop {
                    let next = poll_fn(|context| batches.poll_take(context));
                    let next = tokio::time::timeout(LOST, next).await;
                    match next.expect("the stream was woken") {
                        Some(batch) => {
                            let before = counter.fetch_add(1, Ordering::Relaxed);
                            assert_eq!(batch.sequence, before + 1);
                        }
                        None => break,
                    }
                }
            });
        });
        for sequence in 1..=BATCHES {
            while !outbound.has_room() {
                outbound.flush();
                rung.recv_timeout(LOST).expect("the shard was woken");
            }
            let batch = ConnectRequest { sequence, ..Default::default() };
            outbound.push(batch).expect("there is room");
            if sequence % 3 == 0 {
                outbound.flush();
            }
        }
        drop(outbound);
        receiver.join().expect("took everything");
        assert_eq!(taken.load(Ordering::Relaxed), BATCHES);
    }

    #[test]
    fn whoever_leaves_is_noticed_by_the_other_side() {
        let (ring, rung) = bell();
        let (mut link, shard) = pair(1, ring);
        let (outbound, batches) = link.stream(1);
        let task = thread::spawn(move || {
            runtime().block_on(async move {
                tokio::time::timeout(LOST, link.abandoned()).await.expect("the drop was noticed");
                assert!(link.deliver(FromLink::Down).await.is_err());
            });
        });
        drop(shard);
        task.join().expect("ended");
        assert!(outbound.is_flushed());
        drop(batches);
        rung.recv_timeout(LOST).expect("the shard was rung");
    }
}
