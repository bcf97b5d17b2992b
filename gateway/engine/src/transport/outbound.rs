//! The bytes that wait to be sent on one connection.
//!
//! Frames of one receiver are written one after the other into a segment; the payload of a frame
//! with many receivers is shared, and only its reference is queued. Whether a queue may still grow
//! is its owner's decision ([`Outbound::queued_bytes`]); nothing is dropped here.
//!
//! Invariant: every segment holds whole frames, so that the queue can be discarded between two
//! sends without breaking the stream.

use std::collections::VecDeque;

use bytes::Bytes;
use millrace_protocol::websocket::{Opcode, write_header};

/// A segment that has reached this size is closed and the next frame begins a new one.
const SEGMENT_BYTES: usize = 16 * 1024;

/// A shared payload up to this size is copied: cheaper than a reference and its bookkeeping.
const COPIED_BYTES_MAX: usize = 256;

/// How a shared payload is wrapped for one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// As it is (TCP).
    Plain,
    /// In a WebSocket message of this kind.
    WebSocket(Opcode),
}

/// The queue of one connection: 8 bytes while it is empty, and no buffer.
#[derive(Debug, Default)]
pub struct Outbound {
    queue: Option<Box<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    segments: VecDeque<Segment>,
    bytes: usize,
}

#[derive(Debug)]
enum Segment {
    Owned(Vec<u8>),
    Shared { envelope: Envelope, payload: Bytes },
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

    /// Queues whole frames, written by `write` at the end of the buffer it is given.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let queue = self.queue.get_or_insert_default();
        if !matches!(queue.segments.back(), Some(Segment::Owned(s)) if s.len() < SEGMENT_BYTES) {
            queue.segments.push_back(Segment::Owned(Vec::new()));
        }
        if let Some(Segment::Owned(segment)) = queue.segments.back_mut() {
            let before = segment.len();
            write(segment);
            queue.bytes += segment.len() - before;
        }
        if queue.bytes == 0 {
            self.queue = None;
        }
    }

    /// Queues one message whose payload many connections share.
    pub fn push_shared(&mut self, envelope: Envelope, payload: &Bytes) {
        if payload.len() <= COPIED_BYTES_MAX {
            return self.push_with(|out| write_shared(out, envelope, payload));
        }
        let queue = self.queue.get_or_insert_default();
        queue.bytes += envelope.bytes(payload.len());
        queue.segments.push_back(Segment::Shared { envelope, payload: payload.clone() });
    }

    /// Moves whole frames from the front of the queue to `out`, as long as it stays within
    /// `batch_bytes_max`; a single segment may be larger. Returns whether there was anything.
    pub fn take(&mut self, out: &mut Vec<u8>, batch_bytes_max: usize) -> bool {
        let Some(queue) = &mut self.queue else { return false };
        let start = out.len();
        while let Some(segment) = queue.segments.front() {
            let bytes = segment.bytes();
            if out.len() > start && out.len() - start + bytes > batch_bytes_max {
                break;
            }
            queue.bytes -= bytes;
            match queue.segments.pop_front() {
                // A large segment changes hands instead of being copied.
                Some(Segment::Owned(segment)) if out.is_empty() && bytes >= SEGMENT_BYTES => {
                    *out = segment;
                }
                Some(Segment::Owned(segment)) => out.extend_from_slice(&segment),
                Some(Segment::Shared { envelope, payload }) => {
                    write_shared(out, envelope, &payload);
                }
                None => {}
            }
        }
        if queue.segments.is_empty() {
            self.queue = None;
        }
        true
    }

    /// Discards what waits; returns how many bytes that were.
    pub fn clear(&mut self) -> usize {
        self.queue.take().map_or(0, |queue| queue.bytes)
    }
}

impl Envelope {
    /// Bytes of a message on the wire with a payload of this length.
    pub const fn bytes(self, payload_length: usize) -> usize {
        payload_length
            + match self {
                Self::Plain => 0,
                // RFC 6455 section 5.2: the length is in the second byte, or 2 or 8 bytes follow.
                Self::WebSocket(_) => match payload_length {
                    0..=125 => 2,
                    126..=0xFFFF => 4,
                    _ => 10,
                },
            }
    }
}

impl Segment {
    fn bytes(&self) -> usize {
        match self {
            Self::Owned(segment) => segment.len(),
            Self::Shared { envelope, payload } => envelope.bytes(payload.len()),
        }
    }
}

fn write_shared(out: &mut Vec<u8>, envelope: Envelope, payload: &Bytes) {
    if let Envelope::WebSocket(opcode) = envelope {
        write_header(out, opcode, payload.len());
    }
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::{Envelope, Outbound, SEGMENT_BYTES};
    use bytes::Bytes;
    use millrace_protocol::websocket::{Opcode, write_frame};

    fn drain(outbound: &mut Outbound, batch_bytes_max: usize) -> Vec<Vec<u8>> {
        let mut batches = Vec::new();
        let mut out = Vec::new();
        while outbound.take(&mut out, batch_bytes_max) {
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
        assert_eq!(drain(&mut outbound, 100), [b"abc".to_vec()]);
        assert!(outbound.is_empty());
        outbound.push_with(|_| {});
        assert!(outbound.is_empty());
    }

    #[test]
    fn bytes_leave_in_the_order_they_came_and_are_counted_exactly() {
        let shared = Bytes::from(vec![7; 5000]);
        let small = Bytes::from_static(b"small");
        let mut outbound = Outbound::new();
        let mut expected = Vec::new();
        for round in 0..20_u8 {
            outbound.push_with(|out| out.extend_from_slice(&[round; 900]));
            expected.extend_from_slice(&[round; 900]);
            outbound.push_shared(Envelope::WebSocket(Opcode::Binary), &shared);
            write_frame(&mut expected, Opcode::Binary, true, None, &shared);
            outbound.push_shared(Envelope::Plain, &small);
            expected.extend_from_slice(&small);
            assert_eq!(outbound.queued_bytes(), expected.len());
        }
        let batches = drain(&mut outbound, 20_000);
        assert!(batches.iter().all(|batch| batch.len() <= 20_000));
        assert_eq!(batches.concat(), expected);
    }

    #[test]
    fn a_segment_above_the_batch_size_leaves_alone() {
        let mut outbound = Outbound::new();
        outbound.push_with(|out| out.extend_from_slice(b"first"));
        outbound.push_shared(Envelope::Plain, &Bytes::from(vec![1; 3 * SEGMENT_BYTES]));
        outbound.push_with(|out| out.extend_from_slice(b"last"));
        let lengths: Vec<usize> = drain(&mut outbound, 1000).iter().map(Vec::len).collect();
        assert_eq!(lengths, [5, 3 * SEGMENT_BYTES, 4]);
    }

    #[test]
    fn clearing_gives_back_what_was_counted() {
        let mut outbound = Outbound::new();
        outbound.push_shared(Envelope::WebSocket(Opcode::Text), &Bytes::from(vec![1; 70_000]));
        assert_eq!(outbound.clear(), 70_010);
        assert!(outbound.is_empty());
    }
}
