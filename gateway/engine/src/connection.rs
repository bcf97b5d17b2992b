//! What is kept for one connection. How it behaves is told in `engine/`.
//!
//! The common case is a connection that is logged in and silent: it takes 104 bytes here, a
//! timer of 16, and one boxed identity. Everything else is boxed while it is needed.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv6Addr},
};

use millrace_protocol::{Code, frame::FrameReader, link};
use prost::Message as _;

use crate::{
    effect::{Now, TransportKind},
    room::Membership,
    transport::{Outbound, WebSocketInput},
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
}

/// The reader of what arrives.
#[derive(Debug)]
pub(crate) enum Input {
    Tcp(FrameReader),
    WebSocket(WebSocketInput),
}

impl Default for Input {
    fn default() -> Self {
        Self::Tcp(FrameReader::new())
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The owner's name of the socket.
    pub(crate) socket: u64,
    /// When the session's token expires; 0: never.
    pub(crate) expires_at_ms: i64,
    /// From LOGIN on: an encoded [`link::Session`], which is needed again only when the sessions
    /// are listed to logic, and is smallest like this.
    session: Option<Box<[u8]>>,
    pub(crate) input: Input,
    pub(crate) outbound: Outbound,
    busy: Option<Box<Busy>>,
    address: [u8; 16],
    /// The lower 32 bits of the moment of the last complete frame. Enough, because no timeout
    /// reaches 49 days.
    last_received_ms: u32,
    /// Thousandths of a frame that may come now; see [`Self::take_token`].
    tokens: u32,
    pub(crate) idle_timeout_ms: u32,
    /// The first request in flight; 0: none is.
    request: u32,
    facts: Facts,
    pub(crate) phase: Phase,
    /// See [`crate::Settings::refusals_max`].
    pub(crate) refusals: u8,
    /// Why it ended, once it closes.
    pub(crate) code: Code,
}

/// What a connection needs only while something is going on.
#[derive(Debug, Default)]
struct Busy {
    /// Frames that wait for credit, with what is to be acknowledged when they are taken.
    backlog: VecDeque<Waiting>,
    backlog_bytes: usize,
    /// Requests in flight beside the first.
    requests: Vec<u32>,
    rooms: Vec<Membership>,
}

/// A client's frame on its way to logic.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) frame: link::ClientFrame,
    /// The request that is answered as soon as the link has taken the frame; 0: none.
    pub(crate) acknowledge: u32,
}

impl Connection {
    pub(crate) fn new(
        now: Now,
        socket: u64,
        transport: TransportKind,
        peer: IpAddr,
        frames_burst_max: u32,
    ) -> Self {
        let (input, facts) = match transport {
            TransportKind::Tcp => (Input::default(), Facts::default()),
            TransportKind::WebSocket => (
                Input::WebSocket(WebSocketInput::default()),
                Facts(Facts::WEBSOCKET.0 | Facts::UPGRADING.0),
            ),
        };
        let address = match peer {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        Self {
            socket,
            expires_at_ms: 0,
            session: None,
            input,
            outbound: Outbound::new(),
            busy: None,
            address: address.octets(),
            last_received_ms: now.monotonic_ms as u32,
            tokens: frames_burst_max.saturating_mul(1000),
            idle_timeout_ms: 0,
            request: 0,
            facts,
            phase: Phase::AwaitingLogin,
            refusals: 0,
            code: Code::Ok,
        }
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

    /// Where the peer is.
    pub(crate) fn peer(&self) -> IpAddr {
        Ipv6Addr::from(self.address).to_canonical()
    }

    // --- activity and rate ----------------------------------------------------------------------

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

    // --- identity -------------------------------------------------------------------------------

    pub(crate) fn set_session(&mut self, session: Option<&link::Session>) {
        self.session = session.map(|session| session.encode_to_vec().into_boxed_slice());
    }

    pub(crate) fn session(&self) -> Option<link::Session> {
        let encoded = self.session.as_deref()?;
        Some(link::Session::decode(encoded).expect("encoded by set_session"))
    }

    // --- requests in flight ---------------------------------------------------------------------

    /// Notes a request; the same number may be in flight more than once. 0 is none.
    pub(crate) fn note_request(&mut self, request_id: u32) {
        if self.request == 0 {
            self.request = request_id;
        } else if request_id != 0 {
            self.busy.get_or_insert_default().requests.push(request_id);
        }
    }

    /// Whether the request was in flight; it is not any more.
    pub(crate) fn answer_request(&mut self, request_id: u32) -> bool {
        if request_id == 0 {
            return false;
        }
        let Some(busy) = &mut self.busy else {
            let found = self.request == request_id;
            if found {
                self.request = 0;
            }
            return found;
        };
        if self.request == request_id {
            self.request = busy.requests.pop().unwrap_or(0);
        } else {
            let Some(at) = busy.requests.iter().position(|other| *other == request_id) else {
                return false;
            };
            busy.requests.swap_remove(at);
        }
        self.rest();
        true
    }

    /// Requests in flight.
    pub(crate) fn requests(&self) -> usize {
        usize::from(self.request != 0) + self.busy.as_ref().map_or(0, |busy| busy.requests.len())
    }

    /// Takes all requests in flight, the oldest first as far as that is known.
    pub(crate) fn take_requests(&mut self) -> Vec<u32> {
        let mut all = Vec::new();
        if self.request != 0 {
            all.push(std::mem::take(&mut self.request));
        }
        if let Some(busy) = &mut self.busy {
            all.append(&mut busy.requests);
            self.rest();
        }
        all
    }

    // --- backlog --------------------------------------------------------------------------------

    pub(crate) fn backlog_frames(&self) -> usize {
        self.busy.as_ref().map_or(0, |busy| busy.backlog.len())
    }

    pub(crate) fn backlog_bytes(&self) -> usize {
        self.busy.as_ref().map_or(0, |busy| busy.backlog_bytes)
    }

    pub(crate) fn push_backlog(&mut self, waiting: Waiting) {
        let busy = self.busy.get_or_insert_default();
        busy.backlog_bytes += waiting.frame.body.len();
        busy.backlog.push_back(waiting);
    }

    /// Body bytes of the frame that is next.
    pub(crate) fn backlog_next_bytes(&self) -> Option<usize> {
        Some(self.busy.as_ref()?.backlog.front()?.frame.body.len())
    }

    pub(crate) fn pop_backlog(&mut self) -> Option<Waiting> {
        let busy = self.busy.as_mut()?;
        let waiting = busy.backlog.pop_front()?;
        busy.backlog_bytes -= waiting.frame.body.len();
        self.rest();
        Some(waiting)
    }

    // --- rooms ----------------------------------------------------------------------------------

    pub(crate) fn rooms(&self) -> &[Membership] {
        self.busy.as_ref().map_or(&[], |busy| &busy.rooms)
    }

    pub(crate) fn rooms_mut(&mut self) -> &mut [Membership] {
        self.busy.as_mut().map_or(&mut [], |busy| &mut busy.rooms)
    }

    pub(crate) fn add_room(&mut self, membership: Membership) {
        self.busy.get_or_insert_default().rooms.push(membership);
    }

    pub(crate) fn remove_room(&mut self, position: usize) -> Option<Membership> {
        let busy = self.busy.as_mut()?;
        let membership = busy.rooms.swap_remove(position);
        self.rest();
        Some(membership)
    }

    /// Gives the box back when nothing is going on any more.
    fn rest(&mut self) {
        if let Some(busy) = &self.busy
            && busy.backlog.is_empty()
            && busy.requests.is_empty()
            && busy.rooms.is_empty()
        {
            self.busy = None;
        }
    }

    /// Whether nothing is going on: no box, no buffer.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.busy.is_none() && self.outbound.is_empty() && self.request == 0
    }
}

#[cfg(test)]
mod tests {
    use super::Connection;
    use crate::{
        effect::{Now, TransportKind},
        slab::slot_bytes,
    };
    use std::net::{IpAddr, Ipv4Addr};

    fn connection(now: Now) -> Connection {
        let peer = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        Connection::new(now, 7, TransportKind::Tcp, peer, 10)
    }

    const START: Now = Now { monotonic_ms: u32::MAX as u64 - 500, unix_ms: 0 };

    #[test]
    fn an_idle_connection_takes_no_more_than_128_bytes_with_its_timer() {
        assert_eq!(size_of::<Connection>(), 104);
        assert!(slot_bytes::<Connection>() + 16 <= 128, "{}", slot_bytes::<Connection>());
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

    #[test]
    fn each_request_is_answered_once_even_under_the_same_number() {
        let mut connection = connection(START);
        for request_id in [0, 5, 6, 5, 7] {
            connection.note_request(request_id);
        }
        assert_eq!(connection.requests(), 4);
        assert!(connection.answer_request(5));
        assert!(connection.answer_request(5));
        assert!(!connection.answer_request(5));
        assert!(!connection.answer_request(0));
        let mut rest = connection.take_requests();
        rest.sort_unstable();
        assert_eq!(rest, [6, 7]);
        assert!(connection.is_at_rest());
    }

    #[test]
    fn the_peer_address_is_kept() {
        let connection = connection(START);
        assert_eq!(connection.peer().to_string(), "192.0.2.1");
    }
}
