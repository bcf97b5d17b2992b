//! The engine's side of the streams to logic: what is to go out on each, in which order, and how much
//! may.
//!
//! A stream begins with Hello, the lists of sessions and rooms, and SessionsComplete; they are made while
//! batches are taken, never stored. After it the outbox follows. Which session is at home on which
//! stream is told in `engine/homes.rs`; transport, reconnecting and waking are done elsewhere.

use std::collections::VecDeque;

use millrace_protocol::link::{ClientFrame, Credit, gateway_event};

use crate::{
    effect::{ConnectionId, LinkId},
    work::Waiting,
};

/// The link that a session is at home on; kept with the connection, so a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home(u8);

impl Home {
    /// None: before a login, and while no link has taken a session.
    pub(crate) const NONE: Self = Self(u8::MAX);

    pub(crate) const fn at(link: LinkId) -> Self {
        Self(link.0)
    }

    pub(crate) const fn link(self) -> Option<LinkId> {
        if self.0 == Self::NONE.0 { None } else { Some(LinkId(self.0)) }
    }
}

/// A connection whose receive is paused, since when, and in which of its pauses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) since_ms: u64,
    pub(crate) pause: u32,
    pub(crate) id: ConnectionId,
}

/// All links that are up, in the places of their ids.
#[derive(Debug, Default)]
pub(crate) struct Links {
    places: Vec<Option<Link>>,
}

impl Links {
    #[inline]
    pub(crate) fn get(&self, home: Home) -> Option<&Link> {
        self.places.get(usize::from(home.0))?.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, home: Home) -> Option<&mut Link> {
        self.places.get_mut(usize::from(home.0))?.as_mut()
    }

    pub(crate) fn put(&mut self, link: Link) {
        let place = usize::from(link.id.0);
        if self.places.len() <= place {
            self.places.resize_with(place + 1, || None);
        }
        self.places[place] = Some(link);
    }

    pub(crate) fn take(&mut self, home: Home) -> Option<Link> {
        self.places.get_mut(usize::from(home.0))?.take()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.places.iter().flatten()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The places of links, of those that are down too.
    pub(crate) const fn places(&self) -> usize {
        self.places.len()
    }

    /// The link in a place.
    pub(crate) fn in_place(&self, place: usize) -> Option<&Link> {
        self.places.get(place)?.as_ref()
    }
}

/// How far the stream's beginning has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// Nothing was sent.
    Hello,
    /// Sessions that have no home are taken in and listed.
    Sessions {
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

/// Logic has said that it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaving {
    pub(crate) since_ms: u64,
    /// By when its sessions should have moved.
    pub(crate) within_ms: u64,
    /// Its sessions then, and how many of them have moved.
    pub(crate) sessions: u32,
    pub(crate) moved: u32,
    /// Drained was said.
    pub(crate) is_told: bool,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    /// Which of all the streams that there were.
    pub(crate) stream: u64,
    pub(crate) opening: Opening,
    /// HelloReply has arrived.
    pub(crate) is_ready: bool,
    /// HelloReply said that sessions may come and go after the list.
    pub(crate) takes_moves: bool,
    /// The owner had no room for a batch; until it asks for one again.
    pub(crate) is_full: bool,
    pub(crate) leaving: Option<Leaving>,
    /// Sessions that are at home here, logins under way included.
    pub(crate) sessions: u32,
    /// Connections of this link with a backlog, in the order in which they get credit. May name some
    /// that are gone; at most twice as many entries as connections.
    pub(crate) waiting_for_credit: VecDeque<Held>,
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
    pub(crate) fn new(
        id: LinkId,
        stream: u64,
        heartbeat_at_ms: u64,
        window_of_logic: Credit,
    ) -> Self {
        Self {
            id,
            stream,
            opening: Opening::Hello,
            is_ready: false,
            takes_moves: false,
            is_full: false,
            leaving: None,
            sessions: 0,
            waiting_for_credit: VecDeque::new(),
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

    pub(crate) const fn home(&self) -> Home {
        Home::at(self.id)
    }

    /// HelloReply: the initial credit, and whether sessions may move.
    pub(crate) const fn ready(&mut self, window: Credit, takes_moves: bool) {
        self.is_ready = true;
        self.takes_moves = takes_moves;
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
        self.outbox.capacity() * size_of::<Outgoing>()
            + self.outbox_bytes
            + self.waiting_for_credit.capacity() * size_of::<Held>()
    }

    /// Whether the lists are through and sessions may come and go.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_ready && self.takes_moves && self.opening == Opening::Complete
    }

    /// Whether a session without a home may find one here, now or soon.
    pub(crate) const fn may_take_in(&self) -> bool {
        let lists = matches!(self.opening, Opening::Hello | Opening::Sessions { .. });
        self.leaving.is_none() && (lists || !self.is_ready || self.takes_moves)
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
        let mut link = Link::new(LinkId(0), 1, 0, Credit { frames: 8, bytes: 800 });
        assert!(!link.spend(0), "no credit before HelloReply");
        link.ready(Credit { frames: 3, bytes: 100 }, true);
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
        let mut link = Link::new(LinkId(0), 1, 0, Credit { frames: 8, bytes: 800 });
        link.owe(10);
        assert!(!link.owes_much());
        link.owe(190);
        assert!(link.owes_much());
        assert_eq!(link.take_owed(), Some(Credit { frames: 2, bytes: 200 }));
        assert_eq!(link.take_owed(), None);
        assert!(!link.owes_much());
    }
}
