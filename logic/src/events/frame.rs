//! What goes over the wire: events of one teller on one subject that follow each other, as many as
//! waited, in one message. No I/O.
//!
//! ```text
//! version u8 = 1 | flags u8 | life 16 bytes | first u64 | node's length u8 | node | { length u32 | payload } …
//! ```
//! Numbers are big-endian. A frame without events is a pulse: `first` is the number that the next
//! event will have.

use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

const VERSION: u8 = 1;

/// The teller knows of nothing that it told here before.
const BEGINS: u8 = 1;

/// The teller leaves; nothing follows.
const LEAVES: u8 = 2;

const HEADER_BYTES: usize = 1 + 1 + 16 + 8 + 1;

/// A frame that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Which life of which node.
    pub life: u128,
    pub node: Arc<str>,
    /// Number of the first event.
    pub first: u64,
    pub begins: bool,
    pub leaves: bool,
    pub events: Vec<Bytes>,
}

/// A frame that is written.
pub(super) struct FrameWriter {
    bytes: BytesMut,
    /// Number of the event that may be added.
    next: u64,
}

impl FrameWriter {
    pub fn new(life: u128, node: &str, first: u64, begins: bool, leaves: bool) -> Self {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + node.len() + 256);
        bytes.put_u8(VERSION);
        let flags = (u8::from(begins) * BEGINS) | (u8::from(leaves) * LEAVES);
        bytes.put_u8(flags);
        bytes.put_u128(life);
        bytes.put_u64(first);
        // Checked when the events were opened: a name is no longer than 128 bytes.
        bytes.put_u8(u8::try_from(node.len()).expect("a short name"));
        bytes.put_slice(node.as_bytes());
        Self { bytes, next: first }
    }

    /// Adds the event of this number if it follows, and the frame does not become larger than
    /// `bytes_max`; the first one is always added.
    pub fn add(&mut self, number: u64, payload: &[u8], bytes_max: usize, first: bool) -> bool {
        let fits = first || self.bytes.len() + 4 + payload.len() <= bytes_max;
        if number != self.next || !fits {
            return false;
        }
        self.bytes.put_u32(u32::try_from(payload.len()).expect("bounded when it was told"));
        self.bytes.put_slice(payload);
        self.next += 1;
        true
    }

    pub fn finish(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// Reads a frame; nothing if it is none of ours.
pub(super) fn read(mut bytes: Bytes) -> Option<Frame> {
    if bytes.len() < HEADER_BYTES || bytes.get_u8() != VERSION {
        return None;
    }
    let flags = bytes.get_u8();
    let life = bytes.get_u128();
    let first = bytes.get_u64();
    let node_bytes = usize::from(bytes.get_u8());
    if bytes.len() < node_bytes {
        return None;
    }
    let node = Arc::from(std::str::from_utf8(&bytes.split_to(node_bytes)).ok()?);
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
        if bytes.len() < length {
            return None;
        }
        events.push(bytes.split_to(length));
    }
    // A number that cannot be is of no teller of ours.
    first.checked_add(events.len() as u64)?;
    Some(Frame {
        life,
        node,
        first,
        begins: flags & BEGINS > 0,
        leaves: flags & LEAVES > 0,
        events,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut frame = FrameWriter::new(7, "one", 41, true, false);
        assert!(frame.add(41, b"a", 10, true));
        assert!(!frame.add(43, b"b", 1_000, false), "42 is missing");
        assert!(!frame.add(42, &[0; 100], 100, false), "too large together");
        assert!(frame.add(42, b"", 1_000, false));
        let read = read(frame.finish()).expect("a frame");
        assert_eq!((read.life, &*read.node, read.first), (7, "one", 41));
        assert_eq!((read.begins, read.leaves), (true, false));
        assert_eq!(read.events, [Bytes::from_static(b"a"), Bytes::new()]);
        let pulse = super::read(FrameWriter::new(7, "one", 43, false, true).finish());
        let pulse = pulse.expect("a frame");
        assert!(pulse.leaves && pulse.events.is_empty());
    }

    #[test]
    fn whatever_else_comes_is_no_frame_and_no_panic() {
        let mut whole = FrameWriter::new(1, "node", 1, false, false);
        assert!(whole.add(1, b"payload", 1_000, true));
        let whole = whole.finish();
        for length in 0..whole.len() {
            let read = read(whole.slice(..length));
            // Cut between events it is a frame with fewer of them.
            assert!(read.is_none_or(|frame| frame.events.is_empty()), "{length}");
        }
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..10_000 {
            let mut bytes = whole.to_vec();
            let (place, value) = (random.usize(..bytes.len()), random.u8(..));
            bytes[place] = value;
            let _any = read(Bytes::from(bytes));
        }
        let mut last = FrameWriter::new(1, "node", u64::MAX, false, false);
        last.bytes.put_u32(0);
        assert_eq!(read(last.finish()), None);
    }
}
