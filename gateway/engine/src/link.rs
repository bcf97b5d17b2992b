//! The engine's side of one stream to logic: what is to go out, in which order, and how much may.
//!
//! A stream begins with Hello, the lists of sessions and rooms, and SessionsComplete; they are made while
//! batches are taken, never stored. After it the outbox follows. Transport, reconnecting and
//! waking are done elsewhere.

use std::collections::VecDeque;

use millrace_protocol::link::{ClientFrame, Credit, gateway_event};

use crate::{effect::LinkId, work::Waiting};

/// How far the stream's beginning has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// Nothing was sent.
    Hello,
    /// Sessions are being listed in order of their slots.
    Sessions {
        /// The slot to look at next.
        slot: u32,
        /// Sessions listed so far.
        listed: u64,
    },
    /// Rooms are being listed in order of their slots, each from its last member to its first.
    Rooms {
        /// The room to look at next.
        slot: u32,
        /// Its members before this place are still to be listed.
        before: usize,
        /// Sessions listed.
        listed: u64,
    },
    /// SessionsComplete was sent.
    Complete,
}

/// Something that waits for the stream.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Event(gateway_event::Kind),
    Frame(Waiting),
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) opening: Opening,
    /// HelloReply has arrived.
    pub(crate) is_ready: bool,
    /// Bounded by credit (frames), by `logins_in_flight_max`, by `link_outbox_events_max`
    /// (refreshes) and by the number of sessions (their ends).
    outbox: VecDeque<Outgoing>,
    /// Body bytes in the outbox.
    outbox_bytes: usize,
    /// The number of the next event that goes out; events are numbered from 1.
    pub(crate) sequence_next: u64,
    /// The number that logic's next event should have.
    pub(crate) sequence_expected: u64,
    /// When an empty batch is due.
    pub(crate) heartbeat_at_ms: u64,
    window: Credit,
    credit: Credit,
    /// What is to be given back to logic.
    owed: Credit,
    /// A credit of this much is not kept until something else goes out.
    owed_max: Credit,
}

impl Link {
    pub(crate) fn new(id: LinkId, heartbeat_at_ms: u64, window_of_logic: Credit) -> Self {
        Self {
            id,
            opening: Opening::Hello,
            is_ready: false,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            sequence_next: 1,
            sequence_expected: 1,
            heartbeat_at_ms,
            window: Credit::default(),
            credit: Credit::default(),
            owed: Credit::default(),
            owed_max: Credit {
                frames: window_of_logic.frames.div_ceil(4),
                bytes: window_of_logic.bytes.div_ceil(4),
            },
        }
    }

    /// HelloReply: the initial credit.
    pub(crate) fn ready(&mut self, window: Credit) {
        self.is_ready = true;
        self.window = window;
        self.credit = window;
    }

    /// Events that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Puts an event at the end of what waits.
    pub(crate) fn push(&mut self, outgoing: Outgoing) {
        self.outbox_bytes += outgoing.bytes();
        self.outbox.push_back(outgoing);
    }

    /// Takes the event that waits longest.
    pub(crate) fn pop(&mut self) -> Option<Outgoing> {
        let outgoing = self.outbox.pop_front()?;
        self.outbox_bytes -= outgoing.bytes();
        Some(outgoing)
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        self.outbox.capacity() * size_of::<Outgoing>() + self.outbox_bytes
    }

    /// Whether logic has heard of a session in this slot on this stream.
    pub(crate) const fn knows(&self, session_slot: u32) -> bool {
        match self.opening {
            Opening::Hello => false,
            Opening::Sessions { slot, .. } => session_slot < slot,
            Opening::Rooms { .. } | Opening::Complete => true,
        }
    }

    /// Takes credit for a frame, if there is enough. A body larger than the whole window goes
    /// when nothing else is under way, because it could never go otherwise.
    pub(crate) const fn spend(&mut self, body_bytes: usize) -> bool {
        let bytes = body_bytes as u64;
        if self.credit.frames == 0 {
            return false;
        }
        if self.credit.bytes < bytes && self.credit.bytes < self.window.bytes {
            return false;
        }
        self.credit.frames -= 1;
        self.credit.bytes = self.credit.bytes.saturating_sub(bytes);
        true
    }

    /// Logic gives credit back; never more than the window.
    pub(crate) fn give_back(&mut self, credit: Credit) {
        let Credit { frames, bytes } = credit;
        self.credit.frames = self.credit.frames.saturating_add(frames).min(self.window.frames);
        self.credit.bytes = self.credit.bytes.saturating_add(bytes).min(self.window.bytes);
    }

    /// A frame from logic has been dealt with.
    pub(crate) const fn owe(&mut self, body_bytes: usize) {
        self.owed.frames += 1;
        self.owed.bytes += body_bytes as u64;
    }

    /// Whether so much is owed that it goes out on its own.
    pub(crate) const fn owes_much(&self) -> bool {
        self.owed.frames > 0
            && (self.owed.frames >= self.owed_max.frames || self.owed.bytes >= self.owed_max.bytes)
    }

    /// Takes what is owed, for the batch that goes out.
    pub(crate) fn take_owed(&mut self) -> Option<Credit> {
        let owed = std::mem::take(&mut self.owed);
        (owed.frames > 0).then_some(owed)
    }
}

impl Outgoing {
    /// Body bytes, for the size of a batch.
    pub(crate) const fn bytes(&self) -> usize {
        match self {
            Self::Event(_) => 0,
            Self::Frame(Waiting { frame: ClientFrame { body, .. }, .. }) => body.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Link;
    use crate::effect::LinkId;
    use millrace_protocol::link::Credit;

    #[test]
    fn credit_is_never_overdrawn_and_never_exceeds_the_window() {
        let mut link = Link::new(LinkId(0), 0, Credit { frames: 8, bytes: 800 });
        assert!(!link.spend(0), "no credit before HelloReply");
        link.ready(Credit { frames: 3, bytes: 100 });
        assert!(link.spend(60));
        assert!(!link.spend(60));
        assert!(link.spend(40));
        link.give_back(Credit { frames: 1, bytes: 60 });
        assert!(!link.spend(200), "too large while something is under way");
        link.give_back(Credit { frames: 1000, bytes: 1000 });
        assert!(link.spend(200), "larger than the window, but alone");
        assert!(!link.spend(1));
        link.give_back(Credit { frames: 1, bytes: 200 });
        assert!(link.spend(100));
        assert!(link.spend(0));
        assert!(link.spend(0));
        assert!(!link.spend(0), "frames are bounded too");
    }

    #[test]
    fn a_quarter_of_the_window_is_given_back_at_once() {
        let mut link = Link::new(LinkId(0), 0, Credit { frames: 8, bytes: 800 });
        link.owe(10);
        assert!(!link.owes_much());
        link.owe(190);
        assert!(link.owes_much());
        assert_eq!(link.take_owed(), Some(Credit { frames: 2, bytes: 200 }));
        assert_eq!(link.take_owed(), None);
        assert!(!link.owes_much());
    }
}
