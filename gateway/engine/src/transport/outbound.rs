//! The bytes that wait to be sent on one connection.
//!
//! Frames of one receiver are written one after the other into a segment; a frame with many
//! receivers is shared as it goes over the wire, and only its reference is queued. Whether a queue
//! may still grow is its owner's decision ([`SendQueue::queued_bytes`]); nothing is dropped here.
//!
//! Invariant: every segment holds whole frames, so that the queue can be discarded between two
//! sends without breaking the stream.

use std::collections::VecDeque;

use bytes::Bytes;

/// A segment that has reached this size is closed and the next frame begins a new one.
const SEGMENT_BYTES: usize = 16 * 1024;

/// A shared frame up to this size is copied: cheaper than a reference and its bookkeeping.
const COPIED_BYTES_MAX: usize = 256;

/// Where answers to a connection are queued.
pub trait SendQueue {
    /// Bytes that wait, without those handed out.
    fn queued_bytes(&self) -> usize;

    /// Queues whole frames, written by `write` at the end of the buffer it is given.
    fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>));
}

/// The queue of one connection: 8 bytes while it is empty, and no buffer.
#[derive(Debug, Default)]
pub struct Outbound {
    queue: Option<Box<Queue>>,
}

/// A queue that holds something, or is about to.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// The first segment, which is all there is as a rule.
    first: Vec<u8>,
    rest: VecDeque<Segment>,
    bytes: usize,
}

#[derive(Debug)]
enum Segment {
    Owned(Vec<u8>),
    Shared(Bytes),
}

impl Outbound {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { queue: None }
    }

    /// Whether nothing waits.
    pub const fn is_empty(&self) -> bool {
        self.queue.is_none()
    }

    /// Bytes that wait, without those handed out by [`Self::take`].
    pub fn queued_bytes(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.bytes)
    }

    /// Moves whole frames from the front of the queue to `out`, as long as it stays within
    /// `batch_bytes_max`; a single segment may be larger. Returns whether there was anything.
    pub fn take(&mut self, out: &mut Vec<u8>, batch_bytes_max: usize) -> bool {
        let Some(queue) = &mut self.queue else { return false };
        let taken = queue.take(out, batch_bytes_max);
        if queue.is_empty() {
            self.queue = None;
        }
        taken
    }

    /// Discards what waits; returns how many bytes that were.
    pub fn clear(&mut self) -> usize {
        self.queue.take().map_or(0, |queue| queue.bytes)
    }
}

impl SendQueue for Outbound {
    fn queued_bytes(&self) -> usize {
        Self::queued_bytes(self)
    }

    fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let queue = self.queue.get_or_insert_default();
        queue.push_with(write);
        if queue.is_empty() {
            self.queue = None;
        }
    }
}

impl Queue {
    /// Whether nothing waits.
    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes that wait.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Queues whole frames, written by `write` at the end of the buffer it is given.
    pub(crate) fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.rest.is_empty() || self.first.len() >= SEGMENT_BYTES {
            return self.push_behind(write);
        }
        let before = self.first.len();
        write(&mut self.first);
        self.bytes += self.first.len() - before;
    }

    fn push_behind(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if !matches!(self.rest.back(), Some(Segment::Owned(s)) if s.len() < SEGMENT_BYTES) {
            self.rest.push_back(Segment::Owned(Vec::new()));
        }
        if let Some(Segment::Owned(segment)) = self.rest.back_mut() {
            let before = segment.len();
            write(segment);
            self.bytes += segment.len() - before;
            if segment.is_empty() {
                self.rest.pop_back();
            }
        }
    }

    /// Queues a frame that many connections share.
    pub(crate) fn push_shared(&mut self, wire: &Bytes) {
        if wire.len() <= COPIED_BYTES_MAX {
            return self.push_with(|out| out.extend_from_slice(wire));
        }
        self.bytes += wire.len();
        self.rest.push_back(Segment::Shared(wire.clone()));
    }

    /// See [`Outbound::take`].
    pub(crate) fn take(&mut self, out: &mut Vec<u8>, batch_bytes_max: usize) -> bool {
        if self.bytes == 0 {
            return false;
        }
        let start = out.len();
        if !self.first.is_empty() {
            self.bytes -= self.first.len();
            if out.is_empty() && self.first.len() >= SEGMENT_BYTES {
                // A large segment changes hands instead of being copied.
                *out = std::mem::take(&mut self.first);
            } else {
                out.extend_from_slice(&self.first);
                self.first.clear();
            }
        }
        while let Some(segment) = self.rest.front() {
            let bytes = segment.bytes();
            if out.len() > start && out.len() - start + bytes > batch_bytes_max {
                break;
            }
            self.bytes -= bytes;
            match self.rest.pop_front() {
                Some(Segment::Owned(segment)) if out.is_empty() && bytes >= SEGMENT_BYTES => {
                    *out = segment;
                }
                Some(Segment::Owned(segment)) => out.extend_from_slice(&segment),
                Some(Segment::Shared(wire)) => out.extend_from_slice(&wire),
                None => {}
            }
        }
        true
    }

    /// Discards what waits; returns how many bytes that were.
    pub(crate) fn clear(&mut self) -> usize {
        self.first.clear();
        self.rest.clear();
        std::mem::take(&mut self.bytes)
    }

    /// Bytes of the buffers that an empty queue keeps.
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.first.capacity() + self.rest.capacity() * size_of::<Segment>()
    }
}

impl Segment {
    fn bytes(&self) -> usize {
        match self {
            Self::Owned(segment) => segment.len(),
            Self::Shared(wire) => wire.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Outbound, Queue, SEGMENT_BYTES, SendQueue};
    use bytes::Bytes;

    fn drain(queue: &mut Queue, batch_bytes_max: usize) -> Vec<Vec<u8>> {
        let mut batches = Vec::new();
        let mut out = Vec::new();
        while queue.take(&mut out, batch_bytes_max) {
            batches.push(std::mem::take(&mut out));
        }
        batches
    }

    #[test]
    fn an_idle_queue_owns_no_buffer() {
        let mut outbound = Outbound::new();
        assert_eq!(size_of::<Outbound>(), 8);
        outbound.push_with(|out| out.extend_from_slice(b"abc"));
        assert_eq!(outbound.queued_bytes(), 3);
        let mut out = Vec::new();
        assert!(outbound.take(&mut out, 100));
        assert_eq!(out, b"abc");
        assert!(outbound.is_empty());
        outbound.push_with(|_| {});
        assert!(outbound.is_empty());
    }

    #[test]
    fn bytes_leave_in_the_order_they_came_and_are_counted_exactly() {
        let shared = Bytes::from(vec![7; 5000]);
        let small = Bytes::from_static(b"small");
        let mut queue = Queue::default();
        let mut expected = Vec::new();
        for round in 0..20_u8 {
            queue.push_with(|out| out.extend_from_slice(&[round; 900]));
            expected.extend_from_slice(&[round; 900]);
            queue.push_shared(&shared);
            expected.extend_from_slice(&shared);
            queue.push_shared(&small);
            expected.extend_from_slice(&small);
            assert_eq!(queue.bytes(), expected.len());
        }
        let batches = drain(&mut queue, 20_000);
        assert!(batches.iter().all(|batch| batch.len() <= 20_000));
        assert_eq!(batches.concat(), expected);
        assert!(queue.is_empty());
    }

    #[test]
    fn what_comes_while_the_queue_is_taken_in_parts_goes_to_its_end() {
        let shared = Bytes::from(vec![7; 5000]);
        let mut queue = Queue::default();
        let mut out = Vec::new();
        queue.push_with(|out| out.push(1));
        queue.push_shared(&shared);
        assert!(queue.take(&mut out, 100));
        assert_eq!(out, [1]);
        queue.push_with(|out| out.push(2));
        out.clear();
        assert!(queue.take(&mut out, 10_000));
        assert_eq!((out.len(), out[0], out[5000]), (5001, 7, 2));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_segment_above_the_batch_size_leaves_alone() {
        let mut queue = Queue::default();
        queue.push_with(|out| out.extend_from_slice(b"first"));
        queue.push_shared(&Bytes::from(vec![1; 3 * SEGMENT_BYTES]));
        queue.push_with(|out| out.extend_from_slice(b"last"));
        let lengths: Vec<usize> = drain(&mut queue, 1000).iter().map(Vec::len).collect();
        assert_eq!(lengths, [5, 3 * SEGMENT_BYTES, 4]);
    }

    #[test]
    fn clearing_gives_back_what_was_counted() {
        let mut queue = Queue::default();
        queue.push_shared(&Bytes::from(vec![1; 70_000]));
        assert_eq!(queue.clear(), 70_000);
        assert!(queue.is_empty());
    }
}
