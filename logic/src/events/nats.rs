//! Events of a fleet on core NATS: no stream, no acknowledgement, one hop through the server.
//!
//! A connection of its own, so that an event does not queue behind the bus's records, and to which NATS
//! gives nothing of what it has told itself. Each teller
//! numbers its events by subject; what waits for one subject goes out in one message, as soon as the
//! connection takes it. Once a pulse it says on every subject it has told on which number comes next: a
//! listener that has heard fewer knows that it missed some, also the last ones.
//!
//! An event of `subject` is a message on `<prefix>.event.<subject>`, each `.` of the subject as `=`; what is in
//! it: [`frame`](super::frame).
//!
//! # When NATS fails
//! While it is away, what is told waits in the queue, then is dropped (`events_queued_max`); what was on
//! its way is lost. The connection is tried again for ever. Every listener hears `Missed(None)` when
//! it is connected again, and `Missed` of each teller whose events did not get through.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, Message, Subscriber, connection::State};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior, interval, timeout},
};
use uuid::Uuid;

use super::{
    Event, Events, EventsCounts, EventsError, Heard, Listener, check_node, check_subject,
    frame::{self, FrameWriter},
    tellers::{Tellers, Verdict},
    telling::Telling,
};
use crate::bus::{
    BusError, NatsBusSettings,
    nats::{Echo, connect_client},
};

#[cfg(test)]
mod tests;

/// Largest event.
const EVENT_BYTES_MAX: usize = 256 << 10;

/// One message holds no more than this, or one event.
const FRAME_BYTES_MAX: usize = 64 << 10;

/// Events that are taken off the queue in one go.
const TAKEN_AT_ONCE_MAX: usize = 512;

/// Bounds of [`NatsEvents`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsEventsSettings {
    /// This node's name: what a subject may be, up to [`NODE_BYTES_MAX`](super::NODE_BYTES_MAX) bytes.
    pub node: String,
    /// How often it says what it has told, in milliseconds: so long a loss may stay unknown. Default 1 s.
    pub pulse_ms: u64,
    /// How long a teller may say nothing, in milliseconds, before its events count as missed. Some
    /// pulses of the slowest node; above `pulse_ms`. Default 5 s.
    pub silence_ms: u64,
    /// Events that wait to be told; one more is refused with [`EventsError::Full`]. Default 16,384.
    pub events_queued_max: usize,
    /// Messages of one listener that wait to be heard, each of up to 64 KiB of events; a listener that is
    /// further behind misses the newest, with notice. Default 1,024.
    pub messages_queued_max: usize,
    /// Subjects this node may tell on; one that was not used for 60 pulses makes way. Default 256.
    pub subjects_max: usize,
}

impl NatsEventsSettings {
    /// The defaults, for a node of this name.
    pub fn of(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            pulse_ms: 1_000,
            silence_ms: 5_000,
            events_queued_max: 16_384,
            messages_queued_max: 1_024,
            subjects_max: 256,
        }
    }
}

/// See the module. Cheap to clone; the last clone's end is the end of its events.
#[derive(Clone)]
pub struct NatsEvents {
    inner: Arc<Inner>,
}

struct Inner {
    settings: NatsEventsSettings,
    client: Client,
    prefix: String,
    queue: mpsc::Sender<Told>,
    telling: Mutex<Telling>,
    counters: Arc<Counters>,
    /// How long leaving may take.
    patience: Duration,
}

#[derive(Default)]
struct Counters {
    told: AtomicU64,
    dropped: AtomicU64,
    heard: AtomicU64,
    missed: AtomicU64,
}

/// What waits to be told.
enum Told {
    Event { subject: Arc<str>, number: u64, begins: bool, payload: Bytes },
    Pulse { next: Vec<(Arc<str>, u64)>, leaves: Option<oneshot::Sender<()>> },
}

impl NatsEvents {
    /// Begins to connect, to the servers of a bus and under its prefix.
    ///
    /// # Errors
    /// [`BusError`] if an address, a file or the node's name cannot be used.
    pub async fn connect(
        nats: &NatsBusSettings,
        settings: NatsEventsSettings,
    ) -> Result<Self, BusError> {
        check_node(&settings.node)?;
        let client =
            connect_client(nats, settings.messages_queued_max.max(1), Echo::Unwanted).await?;
        let (queue, told) = mpsc::channel(settings.events_queued_max.max(1));
        let carrier = Carrier {
            client: client.clone(),
            prefix: nats.prefix.clone(),
            node: settings.node.clone(),
            life: Uuid::new_v4().as_u128(),
            subjects: HashMap::new(),
        };
        let inner = Arc::new(Inner {
            prefix: nats.prefix.clone(),
            client,
            queue,
            telling: Mutex::new(Telling::new(settings.subjects_max)),
            counters: Arc::default(),
            patience: Duration::from_millis(nats.attempt_timeout_ms),
            settings,
        });
        // Ends when the last clone is gone, and with it the queue.
        let _carrying: JoinHandle<()> = tokio::spawn(carrier.run(told));
        let (pulsing, pulse_ms) = (Arc::downgrade(&inner), inner.settings.pulse_ms.max(1));
        let _pulsing: JoinHandle<()> = tokio::spawn(async move {
            let mut pulse = interval(Duration::from_millis(pulse_ms));
            pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                pulse.tick().await;
                let Some(inner) = pulsing.upgrade() else { return };
                let mut telling = inner.telling();
                if telling.closed {
                    return;
                }
                // Behind the events that it counts, in one queue with them. Without a place the next
                // one does.
                let next = telling.pulse();
                let _left_out = inner.queue.try_send(Told::Pulse { next, leaves: None });
            }
        });
        Ok(Self { inner })
    }
}

impl Inner {
    fn telling(&self) -> MutexGuard<'_, Telling> {
        // Whole after every statement, so a panic elsewhere spoils nothing.
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn event_subject(prefix: &str, subject: &str) -> async_nats::Subject {
    format!("{prefix}.event.{}", subject.replace('.', "=")).into()
}

/// Gives NATS what is told.
struct Carrier {
    client: Client,
    prefix: String,
    node: String,
    life: u128,
    /// Subjects of this node as NATS names them. As many as were told on; forgotten all at once.
    subjects: HashMap<Arc<str>, async_nats::Subject>,
}

impl Carrier {
    async fn run(mut self, mut told: mpsc::Receiver<Told>) {
        let mut taken = Vec::with_capacity(TAKEN_AT_ONCE_MAX);
        while told.recv_many(&mut taken, TAKEN_AT_ONCE_MAX).await > 0 {
            // One frame of each subject is open at a time.
            let mut open: HashMap<Arc<str>, FrameWriter> = HashMap::new();
            for told in taken.drain(..) {
                match told {
                    Told::Event { subject, number, begins, payload } => {
                        let frame = open.get_mut(&subject).filter(|_| !begins);
                        if frame.is_some_and(|f| f.add(number, &payload, FRAME_BYTES_MAX, false)) {
                            continue;
                        }
                        let mut frame = self.frame(number, begins, false);
                        let _always = frame.add(number, &payload, FRAME_BYTES_MAX, true);
                        if let Some(full) = open.insert(subject.clone(), frame) {
                            self.publish(&subject, full).await;
                        }
                    }
                    Told::Pulse { next, leaves } => {
                        self.publish_all(&mut open).await;
                        for (subject, next) in next {
                            let pulse = self.frame(next, false, leaves.is_some());
                            self.publish(&subject, pulse).await;
                        }
                        if let Some(done) = leaves {
                            let _if_asked = self.client.flush().await;
                            // Whoever asked may have lost patience.
                            let _listens = done.send(());
                            return;
                        }
                    }
                }
            }
            self.publish_all(&mut open).await;
        }
    }

    fn frame(&self, first: u64, begins: bool, leaves: bool) -> FrameWriter {
        FrameWriter::new(self.life, &self.node, first, begins, leaves)
    }

    async fn publish_all(&mut self, open: &mut HashMap<Arc<str>, FrameWriter>) {
        for (subject, frame) in open.drain() {
            self.publish(&subject, frame).await;
        }
    }

    async fn publish(&mut self, subject: &Arc<str>, frame: FrameWriter) {
        const NAMES_KEPT_MAX: usize = 1_024;
        if !self.subjects.contains_key(subject) && self.subjects.len() >= NAMES_KEPT_MAX {
            self.subjects.clear();
        }
        let prefix = &self.prefix;
        let named = self.subjects.entry(subject.clone());
        let named = named.or_insert_with(|| event_subject(prefix, subject)).clone();
        if let Err(error) = self.client.publish(named, frame.finish()).await {
            tracing::debug!(%error, "events were not told");
        }
    }
}

#[async_trait]
impl Events for NatsEvents {
    fn node(&self) -> &str {
        &self.inner.settings.node
    }

    fn tell(&self, subject: &str, payload: Bytes) -> Result<(), EventsError> {
        check_subject(subject)?;
        if payload.len() > EVENT_BYTES_MAX {
            return Err(EventsError::TooLarge(payload.len()));
        }
        let inner = &self.inner;
        let mut telling = inner.telling();
        if telling.closed {
            return Err(EventsError::Closed);
        }
        // Numbered even if it is dropped, so that listeners see the gap; and queued under the lock, in
        // the order of the numbers.
        let Some(number) = telling.tell(subject) else {
            return Err(EventsError::TooManySubjects(inner.settings.subjects_max));
        };
        let super::telling::Number { subject, number, begins } = number;
        let told = inner.queue.try_send(Told::Event { subject, number, begins, payload });
        drop(telling);
        match told {
            Ok(()) => {
                inner.counters.told.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                inner.counters.dropped.fetch_add(1, Ordering::Relaxed);
                Err(EventsError::Full)
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(EventsError::Closed),
        }
    }

    async fn listen(&self, subject: &str) -> Result<Box<dyn Listener>, EventsError> {
        check_subject(subject)?;
        let Inner { client, prefix, settings, .. } = &*self.inner;
        let frames = client.subscribe(event_subject(prefix, subject)).await;
        let frames = frames.map_err(|_| EventsError::Closed)?;
        // Nobody answers this; that NATS says so shows that it has the subscription. If it is away,
        // what is told meanwhile is missed, and the connection that follows says so.
        let _nobody = client.request(format!("{prefix}.nobody"), Bytes::new()).await;
        let connects = connects(client);
        let mut looks = interval(Duration::from_millis(settings.pulse_ms.max(1)));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Box::new(NatsListener {
            connects,
            client: client.clone(),
            silence: Duration::from_millis(settings.silence_ms.max(settings.pulse_ms)),
            frames,
            tellers: Tellers::default(),
            waiting: VecDeque::new(),
            looks,
            counters: self.inner.counters.clone(),
        }))
    }

    fn counts(&self) -> EventsCounts {
        let Counters { told, dropped, heard, missed } = &*self.inner.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EventsCounts {
            told: load(told),
            dropped: load(dropped),
            heard: load(heard),
            missed: load(missed),
        }
    }

    async fn close(&self) {
        let (done, left) = oneshot::channel();
        let next = {
            let mut telling = self.inner.telling();
            if std::mem::replace(&mut telling.closed, true) {
                return;
            }
            telling.pulse()
        };
        let leaving = async {
            if self.inner.queue.send(Told::Pulse { next, leaves: Some(done) }).await.is_ok() {
                // Sent, or there is nobody to send it.
                let _sent = left.await;
            }
        };
        if timeout(self.inner.patience, leaving).await.is_err() {
            tracing::info!("NATS is away; the other logics hear of this one's end by its silence");
        }
    }
}

fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

struct NatsListener {
    client: Client,
    /// How long a teller may say nothing.
    silence: Duration,
    frames: Subscriber,
    tellers: Tellers,
    /// Of the last frame, what was not given yet.
    waiting: VecDeque<Heard>,
    /// How often the connection was made.
    connects: u64,
    /// When silence and connection are looked at.
    looks: Interval,
    counters: Arc<Counters>,
}

impl NatsListener {
    fn frame(&mut self, message: &Message) {
        self.check_connection();
        // What is not of a teller of ours is nothing to us.
        let Some(frame) = frame::read(message.payload.clone()) else { return };
        let Verdict { missed, old, node } = self.tellers.hear(&frame, Instant::now());
        if missed {
            self.waiting.push_back(Heard::Missed(Some(node.clone())));
        }
        let events = frame.events.into_iter().skip(old);
        let events = events.map(|payload| Event { node: node.clone(), payload });
        self.waiting.extend(events.map(Heard::Event));
    }

    /// Whoever told its last while we were away, and is gone, has no pulse.
    fn check_connection(&mut self) {
        let connects = connects(&self.client);
        if connects != std::mem::replace(&mut self.connects, connects) {
            self.waiting.push_back(Heard::Missed(None));
        }
    }

    fn look(&mut self) {
        self.check_connection();
        // While we are away ourselves, the silence is ours.
        if self.client.connection_state() == State::Connected {
            let silent = self.tellers.fell_silent(self.silence, Instant::now());
            self.waiting.extend(silent.into_iter().map(|node| Heard::Missed(Some(node))));
        }
    }
}

#[async_trait]
impl Listener for NatsListener {
    async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(heard) = self.waiting.pop_front() {
                let counter = match heard {
                    Heard::Event(_) => &self.counters.heard,
                    Heard::Missed(_) => &self.counters.missed,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                return Some(heard);
            }
            tokio::select! {
                biased;
                message = self.frames.next() => self.frame(&message?),
                _ = self.looks.tick() => self.look(),
            }
        }
    }
}
