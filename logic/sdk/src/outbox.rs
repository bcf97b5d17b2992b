//! The way out to one gateway shard: a bounded queue of events, drained into batches by the HTTP/2
//! connection itself, as fast as the gateway's credit and the connection allow.
//!
//! There is no writer task and no timer: a batch is whatever has gathered since the last one was
//! taken, so a quiet link answers at once and a busy one fills its batches. Events leave in the
//! order they were pushed; those that need no credit wait behind those that do, because a close
//! must not overtake the frames before it.
//!
//! Invariant: `waker` is `Some` exactly when the connection has found nothing it may send.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use millrace_protocol::link::{ConnectResponse, Credit, LogicEvent, logic_event::Kind};
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tonic::Status;

use crate::counters::{Counters, count};
use crate::hub::Hub;
use crate::settings::ServerSettings;

/// What an event costs in the outbox beyond its body: ids, names, and the entry itself.
const EVENT_BYTES: usize = 64;

/// An event on its way to a gateway.
pub(crate) struct Entry {
    event: Kind,
    /// Whether it uses credit, and how many bytes of it.
    credit: Option<u64>,
    /// What it adds to the outbox and to a batch.
    bytes: usize,
}

impl Entry {
    pub(crate) fn new(event: Kind) -> Self {
        let (credit, extra) = match &event {
            Kind::SendFrame(frame) => (Some(frame.body.len()), 8 * frame.session_ids.len()),
            Kind::RoomFrame(frame) => {
                (Some(frame.body_protobuf.len() + frame.body_json.len()), frame.room_id.len())
            }
            Kind::BroadcastFrame(frame) => {
                (Some(frame.body_protobuf.len() + frame.body_json.len()), 0)
            }
            Kind::LoginResult(result) => {
                let strings = result.reason.len() + result.user_id.len();
                (None, strings + result.resume_token.len() + result.state.len())
            }
            Kind::RoomMembership(change) => {
                let ids = change.join_session_ids.len() + change.leave_session_ids.len();
                (None, change.room_id.len() + 8 * ids)
            }
            Kind::CloseSession(close) => (None, close.reason.len()),
            Kind::RefreshResult(_) | Kind::HelloReply(_) | Kind::Draining(_) => (None, 0),
        };
        let bytes = EVENT_BYTES + extra + credit.unwrap_or(0);
        Self { event, credit: credit.map(|bytes| bytes as u64), bytes }
    }
}

/// How far a stream is in its life.
enum State {
    /// Events are taken and sent.
    Open,
    /// No event is taken any more; what is queued is still sent, then the stream ends well.
    Finishing,
    /// Over; the status is what the gateway is told, if it was not told yet.
    Ended(Option<Status>),
}

struct Outbox {
    queue: VecDeque<Entry>,
    queued_bytes: usize,
    credit: Credit,
    /// What the gateway announced; nothing larger can ever be sent.
    window_bytes: u64,
    next_sequence: u64,
    state: State,
    waker: Option<Waker>,
}

impl Outbox {
    /// Whether the event at the front may leave now.
    fn may_send(&self) -> bool {
        match self.queue.front() {
            None => false,
            Some(Entry { credit: None, .. }) => true,
            Some(Entry { credit: Some(bytes), .. }) => {
                self.credit.frames > 0 && self.credit.bytes >= *bytes
            }
        }
    }

    fn discard(&mut self) -> u64 {
        let discarded = self.queue.len() as u64;
        self.queue = VecDeque::new();
        self.queued_bytes = 0;
        discarded
    }
}

/// One stream of a gateway shard: its outbox, the credit to give back, and its end.
pub(crate) struct LinkStream {
    outbox: Mutex<Outbox>,
    limits: Limits,
    /// Credit for the gateway: what was dealt with since the last batch.
    returned_frames: AtomicU64,
    returned_bytes: AtomicU64,
    /// All the credit the gateway ever had on this stream.
    pub(crate) granted_frames: AtomicU64,
    pub(crate) granted_bytes: AtomicU64,
    /// Wakes the stream's reader: it ended, or shall read no more.
    pub(crate) changed: Notify,
    /// Longest silence, in milliseconds; 0 until the Hello is read.
    heartbeat_ms: AtomicU32,
    over: AtomicBool,
    reading_stopped: AtomicBool,
    /// The gateway moves sessions on this stream, and answers Draining.
    pub(crate) moves: AtomicBool,
    /// It has.
    pub(crate) drained: AtomicBool,
}

#[derive(Clone, Copy)]
struct Limits {
    frames_max: usize,
    bytes_max: usize,
    batch_bytes_max: usize,
    batch_events_max: usize,
    /// Credit goes back without an event to travel with once this much has gathered.
    return_frames: u64,
    return_bytes: u64,
}

impl LinkStream {
    pub(crate) fn new(settings: &ServerSettings) -> Self {
        Self {
            outbox: Mutex::new(Outbox {
                queue: VecDeque::new(),
                queued_bytes: 0,
                credit: Credit::default(),
                window_bytes: 0,
                next_sequence: 1,
                state: State::Open,
                waker: None,
            }),
            limits: Limits {
                frames_max: settings.outbox_frames_max,
                bytes_max: settings.outbox_bytes_max,
                batch_bytes_max: settings.batch_bytes_max,
                batch_events_max: settings.batch_events_max.max(1),
                return_frames: (settings.window_frames_max / 4).max(1),
                return_bytes: (settings.window_bytes_max / 4).max(1),
            },
            returned_frames: AtomicU64::new(0),
            returned_bytes: AtomicU64::new(0),
            granted_frames: AtomicU64::new(settings.window_frames_max),
            granted_bytes: AtomicU64::new(settings.window_bytes_max),
            changed: Notify::new(),
            heartbeat_ms: AtomicU32::new(0),
            over: AtomicBool::new(false),
            reading_stopped: AtomicBool::new(false),
            moves: AtomicBool::new(false),
            drained: AtomicBool::new(false),
        }
    }

    /// A backend that panicked elsewhere must not take the link with it: the outbox is consistent
    /// after every statement under its lock.
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the gateway allows from its Hello on, and how often it wants to hear from us.
    pub(crate) fn open_window(&self, window: Credit, heartbeat_ms: u32) {
        self.heartbeat_ms.store(heartbeat_ms, Ordering::Release);
        let mut outbox = self.outbox();
        outbox.credit = window;
        outbox.window_bytes = window.bytes;
    }

    /// Queues events, in order and without another's between them. When the outbox is full, the
    /// stream ends; when it has ended, the events are skipped.
    pub(crate) fn push(&self, entries: impl IntoIterator<Item = Entry>, counters: &Counters) {
        let mut outbox = self.outbox();
        let mut frames = 0;
        for entry in entries {
            if !matches!(outbox.state, State::Open) {
                count(&counters.events_skipped, 1);
                continue;
            }
            if entry.credit.is_some_and(|bytes| bytes > outbox.window_bytes) {
                count(&counters.frames_unsendable, 1);
                tracing::error!(bytes = entry.bytes, "a frame is larger than the gateway's window");
                continue;
            }
            if outbox.queue.len() >= self.limits.frames_max
                || outbox.queued_bytes + entry.bytes > self.limits.bytes_max
            {
                count(&counters.streams_overflowed, 1);
                count(&counters.events_skipped, 1);
                let reason = "the outbox is full: connect again and list the sessions";
                self.end_locked(&mut outbox, Some(Status::resource_exhausted(reason)), counters);
                continue;
            }
            frames += u64::from(entry.credit.is_some());
            outbox.queued_bytes += entry.bytes;
            outbox.queue.push_back(entry);
        }
        count(&counters.frames_sent, frames);
        if outbox.may_send() {
            wake(outbox);
        }
    }

    /// Credit came back from the gateway.
    pub(crate) fn add_credit(&self, credit: Credit) {
        let mut outbox = self.outbox();
        outbox.credit.frames = outbox.credit.frames.saturating_add(credit.frames);
        outbox.credit.bytes = outbox.credit.bytes.saturating_add(credit.bytes);
        if outbox.may_send() {
            wake(outbox);
        }
    }

    /// One frame of `bytes` was dealt with; its credit goes back with the next batch, or alone once
    /// a quarter of the window has gathered.
    pub(crate) fn return_credit(&self, frames: u64, bytes: u64) {
        let frames_before = self.returned_frames.fetch_add(frames, Ordering::AcqRel);
        let bytes_before = self.returned_bytes.fetch_add(bytes, Ordering::AcqRel);
        let crossed =
            |before: u64, by: u64, at: u64| before < at && before.saturating_add(by) >= at;
        if crossed(frames_before, frames, self.limits.return_frames)
            || crossed(bytes_before, bytes, self.limits.return_bytes)
        {
            wake(self.outbox());
        }
    }

    /// Ends the stream at once; what is queued is discarded. The gateway is told `status`, or sees
    /// a good end if there is none. A second end changes nothing.
    pub(crate) fn end(&self, status: Option<Status>, counters: &Counters) {
        let mut outbox = self.outbox();
        self.end_locked(&mut outbox, status, counters);
        wake(outbox);
    }

    fn end_locked(&self, outbox: &mut Outbox, status: Option<Status>, counters: &Counters) {
        if matches!(outbox.state, State::Ended(_)) {
            return;
        }
        outbox.state = State::Ended(status);
        count(&counters.events_skipped, outbox.discard());
        if let Some(waker) = outbox.waker.take() {
            waker.wake();
        }
        self.over.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// Takes no further event, sends what is queued, then ends the stream well.
    pub(crate) fn finish(&self) {
        let mut outbox = self.outbox();
        if matches!(outbox.state, State::Open) {
            outbox.state = State::Finishing;
        }
        wake(outbox);
    }

    /// The reader shall take no further batch.
    pub(crate) fn stop_reading(&self) {
        self.reading_stopped.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(crate) fn is_reading_stopped(&self) -> bool {
        self.reading_stopped.load(Ordering::Acquire)
    }

    /// Whether sessions on this stream are still to be moved.
    pub(crate) fn is_to_be_drained(&self) -> bool {
        self.moves.load(Ordering::Acquire)
            && !self.drained.load(Ordering::Acquire)
            && !self.is_over()
    }

    /// Events and bytes that wait.
    pub(crate) fn queued(&self) -> (usize, usize) {
        let outbox = self.outbox();
        (outbox.queue.len(), outbox.queued_bytes)
    }

    /// The next batch, or `None` with `waker` kept for when there is one.
    fn take_batch(&self, heartbeat: bool, hub: &Hub, context: &mut Context<'_>) -> Taken {
        let mut outbox = self.outbox();
        if let State::Ended(status) = &mut outbox.state {
            return Taken::End(status.take());
        }
        let mut events = Vec::with_capacity(outbox.queue.len().min(self.limits.batch_events_max));
        let mut bytes = 0;
        while events.len() < self.limits.batch_events_max && outbox.may_send() {
            let fits = outbox
                .queue
                .front()
                .is_some_and(|entry| bytes + entry.bytes <= self.limits.batch_bytes_max);
            if !fits && !events.is_empty() {
                break;
            }
            let Some(entry) = outbox.queue.pop_front() else { break };
            outbox.queued_bytes -= entry.bytes;
            bytes += entry.bytes;
            if let Some(used) = entry.credit {
                outbox.credit.frames -= 1;
                outbox.credit.bytes -= used;
            }
            events.push(LogicEvent { kind: Some(entry.event) });
        }
        if outbox.queue.is_empty() && outbox.queue.capacity() > 4_096 {
            // A burst must not keep its memory for ever.
            outbox.queue = VecDeque::new();
        }
        let credit_is_due = self.returned_frames.load(Ordering::Acquire)
            >= self.limits.return_frames
            || self.returned_bytes.load(Ordering::Acquire) >= self.limits.return_bytes;
        if events.is_empty() && !credit_is_due && !heartbeat {
            if matches!(outbox.state, State::Finishing) && outbox.queue.is_empty() {
                self.end_locked(&mut outbox, None, &hub.counters);
                return Taken::End(None);
            }
            outbox.waker = Some(context.waker().clone());
            return Taken::Nothing;
        }
        let sequence = outbox.next_sequence;
        outbox.next_sequence += events.len() as u64;
        drop(outbox);
        let credit = Credit {
            frames: self.returned_frames.swap(0, Ordering::AcqRel),
            bytes: self.returned_bytes.swap(0, Ordering::AcqRel),
        };
        self.granted_frames.fetch_add(credit.frames, Ordering::AcqRel);
        self.granted_bytes.fetch_add(credit.bytes, Ordering::AcqRel);
        let given = (credit != Credit::default()).then_some(credit);
        Taken::Batch(ConnectResponse { sequence, credit: given, events })
    }
}

/// Wakes the connection, after the lock is gone so that it does not run into it.
fn wake(mut outbox: MutexGuard<'_, Outbox>) {
    let waker = outbox.waker.take();
    drop(outbox);
    if let Some(waker) = waker {
        waker.wake();
    }
}

enum Taken {
    Batch(ConnectResponse),
    Nothing,
    End(Option<Status>),
}

/// The response stream of one Connect call: batches, and an empty one when nothing was sent for a
/// third of the lease, so that the gateway knows this process lives.
pub(crate) struct Batches {
    link: Arc<LinkStream>,
    hub: Arc<Hub>,
    /// Runs once the Hello told how often.
    heartbeat: Option<Interval>,
    sent_since_tick: bool,
    ended: bool,
}

impl Batches {
    pub(crate) fn new(link: Arc<LinkStream>, hub: Arc<Hub>) -> Self {
        Self { link, hub, heartbeat: None, sent_since_tick: false, ended: false }
    }

    /// Starts the heartbeat with the first batch, which holds the HelloReply. A tick only asks
    /// whether anything was sent since the last one, so that a batch costs no timer; two ticks in
    /// the time of a heartbeat keep every silence below it.
    fn start_heartbeat(&mut self) {
        let heartbeat_ms = u64::from(self.link.heartbeat_ms.load(Ordering::Acquire));
        if heartbeat_ms > 0 {
            let period = Duration::from_millis(heartbeat_ms.div_ceil(2));
            let mut heartbeat = tokio::time::interval_at(Instant::now() + period, period);
            heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            self.heartbeat = Some(heartbeat);
        }
    }
}

impl futures::Stream for Batches {
    type Item = Result<ConnectResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut heartbeat = false;
        loop {
            match self.link.take_batch(heartbeat, &self.hub, context) {
                Taken::Batch(batch) => {
                    self.sent_since_tick = true;
                    if self.heartbeat.is_none() {
                        self.start_heartbeat();
                    }
                    return Poll::Ready(Some(Ok(batch)));
                }
                Taken::End(status) => {
                    self.ended = true;
                    return Poll::Ready(status.map(Err));
                }
                Taken::Nothing => {}
            }
            let Some(interval) = &mut self.heartbeat else { return Poll::Pending };
            match interval.poll_tick(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(_) => {
                    heartbeat = !self.sent_since_tick;
                    self.sent_since_tick = false;
                }
            }
        }
    }
}

impl Drop for Batches {
    /// The connection is gone: the reader learns of it even if its own half still waits.
    fn drop(&mut self) {
        self.link.end(None, &self.hub.counters);
    }
}
