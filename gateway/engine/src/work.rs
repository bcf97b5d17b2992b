//! What a connection needs only while something is going on: unfinished input, output that waits,
//! requests in flight, frames that wait for credit.
//!
//! A silent connection has none of it. One that waits for nothing but a single shared frame has a
//! reference to that frame and no more, so that a fan-out to idle members allocates nothing.

use std::collections::VecDeque;

use bytes::Bytes;
use millrace_protocol::{frame::FrameReader, link};

use crate::{
    connection::{Connection, Facts},
    slab::Slab,
    transport::{Queue, SendQueue, WebSocketInput},
};

/// Works that are kept to be used again, and the largest buffer one may keep.
const SPARE_WORKS_MAX: usize = 64;
const SPARE_BUFFER_BYTES_MAX: usize = 1024;

/// What a connection has going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkId(u32);

impl WorkId {
    /// Nothing.
    pub(crate) const NONE: Self = Self(u32::MAX);
    /// The rest is the number of a shared frame, which is all that waits.
    const SHARED: u32 = 1 << 31;

    /// Whether there is nothing.
    #[inline]
    pub(crate) const fn is_none(self) -> bool {
        self.0 == Self::NONE.0
    }

    #[inline]
    const fn shared(self) -> Option<SharedId> {
        if self.0 & Self::SHARED != 0 && !self.is_none() {
            Some(SharedId(self.0 & !Self::SHARED))
        } else {
            None
        }
    }

    #[inline]
    const fn work(self) -> Option<u32> {
        if self.0 & Self::SHARED == 0 { Some(self.0) } else { None }
    }
}

/// The reader of what arrives.
#[derive(Debug)]
pub(crate) enum Input {
    Tcp(FrameReader),
    WebSocket(WebSocketInput),
}

impl Input {
    /// Bytes held for what is unfinished; 0 between two frames or messages, where a reader need
    /// not be kept.
    pub(crate) fn buffered_bytes(&self) -> usize {
        match self {
            Self::Tcp(reader) => reader.buffered_bytes(),
            Self::WebSocket(reader) => reader.buffered_bytes(),
        }
    }
}

/// A client's frame on its way to logic.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) frame: link::ClientFrame,
    /// The request that is answered as soon as the link has taken the frame; 0: none.
    pub(crate) acknowledge: u32,
    /// The pause of its connection's receive in which it waits.
    pub(crate) pause: u32,
}

/// See the head of this file.
#[derive(Debug, Default)]
struct Work {
    queue: Queue,
    input: Option<Input>,
    /// Frames that wait for credit, with what is to be acknowledged when they are taken.
    backlog: VecDeque<Waiting>,
    backlog_bytes: usize,
    /// The first request in flight; 0: none is.
    request: u32,
    /// Requests in flight beside the first.
    requests: Vec<u32>,
}

impl Work {
    /// Bytes of the buffers that it has kept.
    fn buffer_bytes(&self) -> usize {
        self.queue.buffer_bytes()
            + self.backlog.capacity() * size_of::<Waiting>()
            + self.requests.capacity() * size_of::<u32>()
    }

    #[inline]
    fn is_at_rest(&self) -> bool {
        self.queue.is_empty()
            && self.input.is_none()
            && self.backlog.is_empty()
            && self.request == 0
            && self.requests.is_empty()
    }
}

/// A frame that many connections share, as it goes over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedId(u32);

#[derive(Debug)]
struct SharedFrame {
    wire: Bytes,
    users: u32,
}

/// The work of all connections of a shard.
#[derive(Debug)]
pub(crate) struct Works {
    works: Slab<Work>,
    shared: Slab<SharedFrame>,
    /// Works at rest that nobody owns; they keep their place and a small buffer, because most
    /// connections need one for the length of one answer.
    spare: Vec<u32>,
    /// Bytes held for unfinished input.
    input_bytes: usize,
}

impl Works {
    pub(crate) const fn new() -> Self {
        // Both are bounded by the connections: a work has one owner, a shared frame is let go
        // with its last user.
        Self {
            works: Slab::stack(1 << 31),
            shared: Slab::stack(1 << 31),
            spare: Vec::new(),
            input_bytes: 0,
        }
    }

    /// Whether nobody has anything going on.
    pub(crate) const fn is_empty(&self) -> bool {
        self.works.len() as usize == self.spare.len() && self.shared.len() == 0
    }

    /// Bytes held for unfinished input.
    pub(crate) const fn input_bytes(&self) -> usize {
        self.input_bytes
    }

    /// Bytes of memory, without what is queued or unfinished.
    pub(crate) fn bytes(&self) -> usize {
        let spare = self.spare.iter().filter_map(|slot| self.works.at(*slot));
        let buffers: usize = spare.map(Work::buffer_bytes).sum();
        let list = self.spare.capacity() * size_of::<u32>();
        self.works.bytes() + self.shared.bytes() + buffers + list
    }

    /// Keeps a frame for many; the caller is its first user.
    pub(crate) fn share(&mut self, wire: Bytes) -> SharedId {
        let (slot, _) = self.shared.insert(SharedFrame { wire, users: 1 }).expect("bounded");
        SharedId(slot)
    }

    /// The bytes of a shared frame.
    pub(crate) fn wire(&self, id: SharedId) -> &Bytes {
        &self.shared.at(id.0).expect("it has users").wire
    }

    /// A user of a shared frame lets it go.
    pub(crate) fn release(&mut self, id: SharedId) {
        let frame = self.shared.at_mut(id.0).expect("it has users");
        frame.users -= 1;
        if frame.users == 0 {
            self.shared.take(id.0);
        }
    }

    fn get(&self, id: WorkId) -> Option<&Work> {
        self.works.at(id.work()?)
    }

    fn get_mut(&mut self, id: WorkId) -> Option<&mut Work> {
        self.works.at_mut(id.work()?)
    }

    /// The connection's work; makes it if there is none.
    fn open(&mut self, id: &mut WorkId) -> &mut Work {
        if id.work().is_none() {
            let slot = match self.spare.pop() {
                Some(slot) => slot,
                None => self.works.insert(Work::default()).expect("one a connection at most").0,
            };
            let shared = id.shared();
            *id = WorkId(slot);
            if let Some(shared) = shared {
                let wire = self.wire(shared).clone();
                self.release(shared);
                let work = self.works.at_mut(slot).expect("made or found above");
                work.queue.push_shared(&wire);
            }
        }
        self.get_mut(*id).expect("made above, or kept until its owner is at rest")
    }

    /// Takes the work away if nothing is left of it.
    fn rest(&mut self, id: &mut WorkId) {
        let Some(slot) = id.work() else { return };
        let Some(work) = self.works.at(slot).filter(|work| work.is_at_rest()) else { return };
        *id = WorkId::NONE;
        if self.spare.len() < SPARE_WORKS_MAX && work.buffer_bytes() <= SPARE_BUFFER_BYTES_MAX {
            self.spare.push(slot);
        } else {
            self.works.take(slot);
        }
    }
}

/// A connection's queue, made when something is put into it.
pub(crate) struct ConnectionQueue<'a> {
    pub(crate) connection: &'a mut Connection,
    pub(crate) works: &'a mut Works,
}

impl SendQueue for ConnectionQueue<'_> {
    fn queued_bytes(&self) -> usize {
        self.connection.queued_bytes(self.works)
    }

    fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.works.open(&mut self.connection.work).queue.push_with(write);
        self.works.rest(&mut self.connection.work);
    }
}

impl Connection {
    // --- what waits to be sent ------------------------------------------------------------------

    /// Bytes that wait, without a send under way.
    #[inline]
    pub(crate) fn queued_bytes(&self, works: &Works) -> usize {
        if self.work.is_none() {
            return 0;
        }
        match self.work.shared() {
            Some(shared) => works.wire(shared).len(),
            None => works.get(self.work).map_or(0, |work| work.queue.bytes()),
        }
    }

    /// Queues a frame that many connections share.
    pub(crate) fn push_shared(&mut self, works: &mut Works, shared: SharedId) {
        if self.work.is_none() {
            self.work = WorkId(WorkId::SHARED | shared.0);
            works.shared.at_mut(shared.0).expect("its fan-out uses it").users += 1;
            return;
        }
        let wire = works.wire(shared).clone();
        works.open(&mut self.work).queue.push_shared(&wire);
    }

    /// Moves what waits to `out`; see [`crate::transport::Outbound::take`].
    pub(crate) fn take_queue(
        &mut self,
        works: &mut Works,
        out: &mut Vec<u8>,
        batch_bytes_max: usize,
    ) -> bool {
        if let Some(shared) = self.work.shared() {
            out.extend_from_slice(works.wire(shared));
            works.release(shared);
            self.work = WorkId::NONE;
            return true;
        }
        let Some(work) = works.get_mut(self.work) else { return false };
        let taken = work.queue.take(out, batch_bytes_max);
        works.rest(&mut self.work);
        taken
    }

    /// Discards what waits; returns how many bytes that were.
    pub(crate) fn clear_queue(&mut self, works: &mut Works) -> usize {
        if let Some(shared) = self.work.shared() {
            let bytes = works.wire(shared).len();
            works.release(shared);
            self.work = WorkId::NONE;
            return bytes;
        }
        let Some(work) = works.get_mut(self.work) else { return 0 };
        let bytes = work.queue.clear();
        works.rest(&mut self.work);
        bytes
    }

    // --- what has arrived -----------------------------------------------------------------------

    /// The reader of what arrives, out of the connection while it reads.
    pub(crate) fn take_input(&mut self, works: &mut Works) -> Input {
        if let Some(work) = works.get_mut(self.work)
            && let Some(input) = work.input.take()
        {
            works.input_bytes -= input.buffered_bytes();
            return input;
        }
        if !self.has(Facts::WEBSOCKET) {
            Input::Tcp(FrameReader::new())
        } else if self.has(Facts::UPGRADING) {
            Input::WebSocket(WebSocketInput::default())
        } else {
            Input::WebSocket(WebSocketInput::open())
        }
    }

    /// Keeps the reader if it is in the middle of something.
    pub(crate) fn keep_input(&mut self, works: &mut Works, input: Input) {
        let bytes = input.buffered_bytes();
        if bytes > 0 {
            works.input_bytes += bytes;
            works.open(&mut self.work).input = Some(input);
        } else {
            works.rest(&mut self.work);
        }
    }

    /// Discards what is unfinished.
    pub(crate) fn discard_input(&mut self, works: &mut Works) {
        if let Some(work) = works.get_mut(self.work)
            && let Some(input) = work.input.take()
        {
            works.input_bytes -= input.buffered_bytes();
            works.rest(&mut self.work);
        }
    }

    // --- requests in flight ---------------------------------------------------------------------

    /// Notes a request; the same number may be in flight more than once. 0 is none.
    pub(crate) fn note_request(&mut self, works: &mut Works, request_id: u32) {
        if request_id == 0 {
            return;
        }
        let work = works.open(&mut self.work);
        if work.request == 0 {
            work.request = request_id;
        } else {
            work.requests.push(request_id);
        }
    }

    /// Whether the request was in flight; it is not any more.
    pub(crate) fn answer_request(&mut self, works: &mut Works, request_id: u32) -> bool {
        let Some(work) = works.get_mut(self.work).filter(|_| request_id != 0) else {
            return false;
        };
        if work.request == request_id {
            work.request = work.requests.pop().unwrap_or(0);
        } else {
            let Some(at) = work.requests.iter().position(|other| *other == request_id) else {
                return false;
            };
            work.requests.swap_remove(at);
        }
        works.rest(&mut self.work);
        true
    }

    /// Requests in flight.
    pub(crate) fn requests(&self, works: &Works) -> usize {
        let work = works.get(self.work);
        work.map_or(0, |work| usize::from(work.request != 0) + work.requests.len())
    }

    /// Takes all requests in flight, the oldest first as far as that is known.
    pub(crate) fn take_requests(&mut self, works: &mut Works) -> Vec<u32> {
        let mut all = Vec::new();
        if let Some(work) = works.get_mut(self.work) {
            if work.request != 0 {
                all.push(std::mem::take(&mut work.request));
            }
            all.append(&mut work.requests);
            works.rest(&mut self.work);
        }
        all
    }

    // --- backlog --------------------------------------------------------------------------------

    pub(crate) fn backlog_frames(&self, works: &Works) -> usize {
        works.get(self.work).map_or(0, |work| work.backlog.len())
    }

    pub(crate) fn backlog_bytes(&self, works: &Works) -> usize {
        works.get(self.work).map_or(0, |work| work.backlog_bytes)
    }

    pub(crate) fn push_backlog(&mut self, works: &mut Works, waiting: Waiting) {
        let work = works.open(&mut self.work);
        work.backlog_bytes += waiting.frame.body.len();
        work.backlog.push_back(waiting);
    }

    /// The pause in which the connection's frames wait for credit, if any do.
    pub(crate) fn pause(&self, works: &Works) -> Option<u32> {
        Some(works.get(self.work)?.backlog.front()?.pause)
    }

    /// Body bytes of the frame that is next.
    pub(crate) fn backlog_next_bytes(&self, works: &Works) -> Option<usize> {
        Some(works.get(self.work)?.backlog.front()?.frame.body.len())
    }

    pub(crate) fn pop_backlog(&mut self, works: &mut Works) -> Option<Waiting> {
        let work = works.get_mut(self.work)?;
        let waiting = work.backlog.pop_front()?;
        work.backlog_bytes -= waiting.frame.body.len();
        works.rest(&mut self.work);
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::{ConnectionQueue, Works};
    use crate::{
        arena::Record,
        connection::Connection,
        effect::{Now, TransportKind},
        transport::SendQueue,
    };
    use bytes::Bytes;

    fn connection() -> Connection {
        let now = Now { monotonic_ms: 0, unix_ms: 0 };
        Connection::new(now, 7, TransportKind::Tcp, Record::NONE, 10)
    }

    #[test]
    fn each_request_is_answered_once_even_under_the_same_number() {
        let (mut connection, mut works) = (connection(), Works::new());
        for request_id in [0, 5, 6, 5, 7] {
            connection.note_request(&mut works, request_id);
        }
        assert_eq!(connection.requests(&works), 4);
        assert!(connection.answer_request(&mut works, 5));
        assert!(connection.answer_request(&mut works, 5));
        assert!(!connection.answer_request(&mut works, 5));
        assert!(!connection.answer_request(&mut works, 0));
        let mut rest = connection.take_requests(&mut works);
        rest.sort_unstable();
        assert_eq!(rest, [6, 7]);
        assert!(connection.work.is_none() && works.is_empty());
    }

    #[test]
    fn a_shared_frame_lives_as_long_as_somebody_waits_for_it() {
        let mut works = Works::new();
        for length in [10, 1000] {
            let (mut idle, mut busy) = (connection(), connection());
            let shared = works.share(Bytes::from(vec![1; length]));
            idle.push_shared(&mut works, shared);
            assert_eq!(works.works.len() as usize, works.spare.len(), "it costs a reference");
            busy.push_shared(&mut works, shared);
            works.release(shared);
            let mut queue = ConnectionQueue { connection: &mut busy, works: &mut works };
            queue.push_with(|out| out.push(2));
            assert_eq!(queue.queued_bytes(), length + 1);
            busy.push_shared(&mut works, shared);
            let mut out = Vec::new();
            assert!(idle.take_queue(&mut works, &mut out, 100));
            assert_eq!(out, vec![1; length]);
            out.clear();
            while busy.take_queue(&mut works, &mut out, 100_000) {}
            assert_eq!(out, [vec![1; length], vec![2], vec![1; length]].concat());
            assert!(idle.work.is_none() && busy.work.is_none() && works.is_empty());
        }
    }

    #[test]
    fn works_are_used_again_and_the_reserve_is_bounded() {
        let mut works = Works::new();
        let mut many: Vec<Connection> = (0..1000).map(|_| connection()).collect();
        for connection in &mut many {
            let mut queue = ConnectionQueue { connection, works: &mut works };
            queue.push_with(|out| out.extend_from_slice(&[1; 100]));
        }
        for connection in &mut many {
            assert!(connection.take_queue(&mut works, &mut Vec::new(), 1000));
        }
        assert!(works.is_empty());
        assert_eq!(works.spare.len(), super::SPARE_WORKS_MAX);
        assert_eq!(works.works.len() as usize, super::SPARE_WORKS_MAX);
    }
}
