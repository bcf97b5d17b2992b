//! What is kept for one connection. How it behaves is told in `engine/`.
//!
//! The common case is a connection that is logged in and silent: it takes 40 bytes here with the
//! table's bookkeeping, a timer of 12, and its packed identity. Everything else exists while it is
//! needed: see `work`.

use millrace_protocol::Code;

use crate::{
    arena::Record,
    effect::{Now, TransportKind},
    link::Home,
    work::WorkId,
};

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No LOGIN yet, or one that may be tried again. The timer is the login deadline.
    AwaitingLogin,
    /// Logic is deciding about a LOGIN. The timer is still the login deadline.
    LoginPending,
    /// Logged in. The timer is the next moment at which idleness or expiry is possible.
    Active,
    /// Told why it ends; the rest of the queue is being sent and input is discarded. The timer is
    /// the end of the linger.
    Closing,
    /// The owner was asked to close the socket. No timer.
    Closed,
}

/// One-bit facts about a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts(u16);

impl Facts {
    /// The transport is WebSocket.
    pub(crate) const WEBSOCKET: Self = Self(1);
    /// The WebSocket upgrade is not complete.
    pub(crate) const UPGRADING: Self = Self(1 << 1);
    /// The latest message came in the text form.
    pub(crate) const TEXT: Self = Self(1 << 2);
    /// Subprotocol `millrace.v1.json`: binary messages are refused.
    pub(crate) const TEXT_ONLY: Self = Self(1 << 3);
    /// Subprotocol `millrace.v1`: text messages are refused.
    pub(crate) const BINARY_ONLY: Self = Self(1 << 4);
    /// The client wants JSON bodies: said by LOGIN, before it by the latest message.
    pub(crate) const JSON: Self = Self(1 << 5);
    /// [`crate::Effect::Send`] was emitted, and nothing was taken yet.
    pub(crate) const SEND_SCHEDULED: Self = Self(1 << 6);
    /// A send is under way.
    pub(crate) const SENDING: Self = Self(1 << 7);
    /// The write side was shut down.
    pub(crate) const WRITE_SHUT: Self = Self(1 << 8);
    /// Nothing more will be received.
    pub(crate) const RECEIVE_ENDED: Self = Self(1 << 9);
    /// Receiving is paused for want of credit.
    pub(crate) const PAUSED: Self = Self(1 << 10);
    /// Frames were dropped and the client has not been told yet.
    pub(crate) const GAP: Self = Self(1 << 11);
    /// The send waits for its turn behind those that are not part of a fan-out.
    pub(crate) const SEND_DEFERRED: Self = Self(1 << 12);
    /// It moves to a logic that has not been handed its Session yet.
    pub(crate) const ARRIVING: Self = Self(1 << 13);
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The owner's name of the socket, in two halves so that nothing is lost to alignment.
    socket: [u32; 2],
    /// An [`crate::identity::Identity`].
    pub(crate) identity: Record,
    /// The rooms it is in; see [`crate::room::Memberships`].
    pub(crate) rooms: Record,
    /// What is going on.
    pub(crate) work: WorkId,
    /// The lower 32 bits of the moment of the last complete frame. Enough, because no timeout
    /// reaches 49 days.
    last_received_ms: u32,
    /// Thousandths of a frame that may come now; see [`Self::take_token`].
    tokens: u32,
    facts: Facts,
    pub(crate) phase: Phase,
    /// See [`crate::Settings::refusals_max`].
    pub(crate) refusals: u8,
    /// Why it ended, once it closes.
    pub(crate) code: Code,
    /// The number of the last broadcast it got.
    pub(crate) broadcasts_seen: u8,
    /// Where its login is decided, and then its session is at home.
    pub(crate) home: Home,
}

impl Connection {
    pub(crate) fn new(
        now: Now,
        socket: u64,
        transport: TransportKind,
        identity: Record,
        frames_burst_max: u32,
    ) -> Self {
        let facts = match transport {
            TransportKind::Tcp => Facts::default(),
            TransportKind::WebSocket => Facts(Facts::WEBSOCKET.0 | Facts::UPGRADING.0),
        };
        Self {
            socket: [socket as u32, (socket >> 32) as u32],
            identity,
            rooms: Record::NONE,
            work: WorkId::NONE,
            last_received_ms: now.monotonic_ms as u32,
            tokens: frames_burst_max.saturating_mul(1000),
            facts,
            phase: Phase::AwaitingLogin,
            refusals: 0,
            code: Code::Ok,
            broadcasts_seen: 0,
            home: Home::NONE,
        }
    }

    /// The owner's name of the socket.
    pub(crate) const fn socket(&self) -> u64 {
        self.socket[0] as u64 | (self.socket[1] as u64) << 32
    }

    /// Whether it is at home with this logic, and its Session has been handed over.
    pub(crate) fn is_announced_to(&self, home: Home) -> bool {
        self.home == home && !self.has(Facts::ARRIVING)
    }

    pub(crate) const fn has(&self, fact: Facts) -> bool {
        self.facts.0 & fact.0 != 0
    }

    pub(crate) const fn set(&mut self, fact: Facts, value: bool) {
        if value {
            self.facts.0 |= fact.0;
        } else {
            self.facts.0 &= !fact.0;
        }
    }

    /// Takes a fact back; says whether it was one.
    pub(crate) const fn take(&mut self, fact: Facts) -> bool {
        let was = self.has(fact);
        self.set(fact, false);
        was
    }

    pub(crate) const fn transport(&self) -> TransportKind {
        if self.has(Facts::WEBSOCKET) { TransportKind::WebSocket } else { TransportKind::Tcp }
    }

    /// Whether it has not been told that it ends.
    pub(crate) const fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Closing | Phase::Closed)
    }

    pub(crate) const fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active)
    }

    /// Takes the right to send one frame from a token bucket; says whether there was one. The
    /// bucket fills since [`Self::note_received`], so that is to be called after it.
    pub(crate) fn take_token(&mut self, now: Now, per_second: u32, burst: u32) -> bool {
        let filled = self.silence_ms(now).saturating_mul(per_second);
        self.tokens = self.tokens.saturating_add(filled).min(burst.saturating_mul(1000));
        match self.tokens.checked_sub(1000) {
            Some(rest) => {
                self.tokens = rest;
                true
            }
            None => false,
        }
    }

    /// A complete frame has arrived.
    pub(crate) const fn note_received(&mut self, now: Now) {
        self.last_received_ms = now.monotonic_ms as u32;
    }

    /// Milliseconds since the last complete frame.
    pub(crate) const fn silence_ms(&self, now: Now) -> u32 {
        (now.monotonic_ms as u32).wrapping_sub(self.last_received_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::Connection;
    use crate::{
        arena::Record,
        effect::{Now, TransportKind},
        slab::slot_bytes,
    };

    fn connection(now: Now) -> Connection {
        Connection::new(now, u64::MAX - 7, TransportKind::Tcp, Record::NONE, 10)
    }

    const START: Now = Now { monotonic_ms: u32::MAX as u64 - 500, unix_ms: 0 };

    #[test]
    fn a_connection_takes_40_bytes_with_its_bookkeeping() {
        assert_eq!(size_of::<Connection>(), 36);
        assert_eq!(slot_bytes::<Connection>(), 40);
        assert_eq!(connection(START).socket(), u64::MAX - 7);
    }

    #[test]
    fn the_rate_is_held_and_the_clock_may_wrap() {
        let mut connection = connection(START);
        let mut now = START;
        let mut passed = 0;
        for _ in 0..10_000 {
            passed += u32::from(connection.take_token(now, 100, 10));
            connection.note_received(now);
            now.monotonic_ms += 1;
        }
        // 10 of the burst, and 100 a second over 10 seconds.
        assert!((1005..=1010).contains(&passed), "{passed}");
        assert_eq!(connection.silence_ms(now), 1);
    }
}
