//! The engine: its state, and the calls its owner makes.
//!
//! The order of calls in a turn of the owner's loop: whatever happened first, then [`Engine::tick`],
//! [`Engine::poll_effect`] until it is empty, and [`Engine::take_link_batch`] while there is room
//! towards logic. The next turn is due at [`Engine::next_deadline_ms`]. No call is wrong at any time: one for a connection that is gone
//! is counted and ignored.
//!
//! Invariants: a session is in the phase `Active` and is reported ended exactly when it leaves
//! it. A connection emits `Close` once, and nothing after it. Every gauge of [`Counters`] is zero
//! when there are no connections and no link.

mod closing;
mod deadlines;
mod draining;
mod fan_out;
mod forward;
mod from_logic;
mod homes;
mod inbound;
mod inspection;
mod login;
mod memory;
mod outbound;
mod session;
mod to_logic;

use std::{collections::VecDeque, net::IpAddr};

use millrace_protocol::{Code, frame::HEADER_BYTES};
use rustc_hash::FxHashMap;

use crate::{
    Counters, Effect, GatewayIdentity, Now, Settings, TransportKind,
    arena::Arena,
    connection::{Connection, Facts, Phase},
    durations::Probe,
    effect::{ConnectionId, SLOTS_MAX},
    identity::Identity,
    link::{Held, Home, Links},
    room::{Memberships, Rooms},
    slab::Slab,
    timer_wheel::TimerWheel,
    transport::WebSocketSettings,
    work::Works,
};
pub use inspection::{ConnectionInfo, LinkInfo, LinkPhase};
pub use memory::Memory;

use closing::Farewell;
use draining::Draining;
use fan_out::FanOuts;
use homes::Moves;

/// What the JSON envelope adds to a body, generously.
const TEXT_ENVELOPE_BYTES_MAX: usize = 256;

/// One shard's connections, sessions, rooms and its streams to logic.
pub struct Engine {
    settings: Settings,
    websocket: WebSocketSettings,
    shard: u8,
    identity: GatewayIdentity,
    now: Now,
    connections: Slab<Connection>,
    /// An [`Identity`] of each connection.
    identities: Arena,
    /// What the connections have going on.
    works: Works,
    timers: TimerWheel,
    rooms: Rooms,
    memberships: Memberships,
    /// Connections of each address: IPv4, or the /64 of IPv6. Empty where their number cannot
    /// reach its limit before the number of all connections reaches its own.
    addresses: FxHashMap<u64, u32>,
    effects: VecDeque<Effect>,
    fan_outs: FanOuts,
    counters: Counters,
    login_probe: Probe,
    request_probe: Probe,
    delivery_probe: Probe,
    links: Links,
    /// Streams that were begun.
    streams: u64,
    /// The slot at which the search for them goes on.
    homeless_at: u32,
    moves: Moves,
    /// Connections with a backlog, in the order in which they were held. May name some that are
    /// gone; at most twice as many entries as connections.
    held: VecDeque<Held>,
    /// Logins that logic is deciding about while the client is gone already: why it is gone, and
    /// which logic.
    abandoned_logins: FxHashMap<ConnectionId, (u32, Home)>,
    draining: Option<Draining>,
    /// Reused for encoding bodies.
    scratch: Vec<u8>,
}

impl Engine {
    /// An engine without connections.
    pub fn new(settings: Settings, shard: u8, identity: GatewayIdentity, now: Now) -> Self {
        let websocket = WebSocketSettings {
            message_bytes_max: settings.body_bytes_max as usize
                + TEXT_ENVELOPE_BYTES_MAX.max(HEADER_BYTES),
            pong_queue_bytes_max: settings.send_queue_bytes_max,
        };
        Self {
            websocket,
            shard,
            identity,
            now,
            connections: Slab::new(SLOTS_MAX),
            identities: Arena::new(),
            works: Works::new(),
            timers: TimerWheel::new(now.monotonic_ms),
            rooms: Rooms::new(settings.rooms_max),
            memberships: Memberships::new(),
            addresses: FxHashMap::default(),
            effects: VecDeque::new(),
            fan_outs: FanOuts::default(),
            counters: Counters::default(),
            login_probe: Probe::default(),
            request_probe: Probe::default(),
            delivery_probe: Probe::default(),
            links: Links::default(),
            streams: 0,
            homeless_at: 0,
            moves: Moves::new(now),
            held: VecDeque::new(),
            abandoned_logins: FxHashMap::default(),
            draining: None,
            scratch: Vec::new(),
            settings,
        }
    }

    /// A connection was accepted. Over a limit, or while the shard drains, it is told so and
    /// closed through effects.
    pub fn accepted(
        &mut self,
        now: Now,
        socket: u64,
        transport: TransportKind,
        peer: IpAddr,
    ) -> ConnectionId {
        self.now = now;
        let traffic = self.counters.traffic_mut(transport);
        traffic.opened += 1;
        traffic.connections += 1;
        let burst = self.settings.frames_burst_max;
        self.scratch.clear();
        Identity { peer, claims: None }.write(&mut self.scratch);
        let identity = self.identities.insert(&self.scratch);
        let connection = Connection::new(now, socket, transport, identity, burst);
        let full = self.connections.len() >= self.settings.connections_max;
        let Ok((slot, generation)) = self.connections.insert(connection) else {
            // The table of all ids is full: nothing can be kept that could be told anything.
            self.identities.remove(identity);
            let traffic = self.counters.traffic_mut(transport);
            traffic.connections -= 1;
            traffic.closed[Code::OverCapacity as usize] += 1;
            let connection = ConnectionId::new(self.shard, 0, SLOTS_MAX - 1);
            self.effects.push_back(Effect::Close { connection, socket });
            return connection;
        };
        let id = ConnectionId::new(self.shard, generation, slot);
        let mut from_address = 0;
        if self.counts_addresses() {
            let count = self.addresses.entry(address_key(peer)).or_default();
            *count += 1;
            from_address = *count;
        }
        let refusal = if self.draining.is_some() {
            Some(Code::Draining)
        } else if full {
            Some(Code::OverCapacity)
        } else if from_address > self.settings.connections_per_address_max {
            Some(Code::RateLimited)
        } else {
            None
        };
        match refusal {
            Some(code) => self.close(id, code.number(), Farewell::error(0, code.sentence())),
            None => {
                let deadline = now.monotonic_ms + u64::from(self.settings.login_deadline_ms);
                self.timers.arm(slot, deadline);
            }
        }
        id
    }

    /// The driver has freed the connection's socket: nothing more happens to it.
    pub fn closed(&mut self, now: Now, id: ConnectionId) {
        self.now = now;
        // A socket that the driver closed on its own account.
        self.close(id, Code::PeerGone.number(), Farewell::Nothing);
        let Some(mut connection) = self.connections.remove(id.slot(), id.generation()) else {
            self.counters.stale_calls += 1;
            return;
        };
        self.timers.cancel(id.slot());
        self.counters.send_queue_bytes -= connection.clear_queue(&mut self.works) as u64;
        debug_assert!(connection.work.is_none(), "all else was given up when it was closed");
        let traffic = self.counters.traffic_mut(connection.transport());
        traffic.connections -= 1;
        traffic.closed[connection.code as usize] += 1;
        if self.counts_addresses() {
            let key = address_key(Identity::peer(self.identities.get(connection.identity)));
            if let Some(count) = self.addresses.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.addresses.remove(&key);
                }
            }
        }
        self.identities.remove(connection.identity);
    }

    /// Whether one address could have too many connections before the shard has.
    const fn counts_addresses(&self) -> bool {
        self.settings.connections_per_address_max < self.settings.connections_max
    }

    /// Whether there is no connection.
    pub const fn is_empty(&self) -> bool {
        self.connections.len() == 0
    }

    /// The next thing to do. Effects of one connection are in order. Of the sends of a fan-out it
    /// gives at most [`Settings::sends_per_turn_max`] between two calls of [`Self::tick`].
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front().or_else(|| self.next_deferred())
    }

    /// What happened so far and what is held now.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether nothing is held beyond settings and counters: for tests, and as a check that a
    /// drained shard has leaked nothing.
    pub fn is_at_rest(&self) -> bool {
        self.is_empty()
            && self.timers.armed() == 0
            && self.rooms.len() == 0
            && self.works.is_empty()
            && self.addresses.is_empty()
            && self.effects.is_empty()
            && self.fan_outs.is_empty()
            && self.abandoned_logins.is_empty()
            && self.links.is_empty()
            && self.counters.sessions_homeless == 0
    }

    // --- helpers of all rooms -------------------------------------------------------------------

    #[inline]
    fn get(&self, id: ConnectionId) -> Option<&Connection> {
        if id.shard() != self.shard {
            return None;
        }
        self.connections.get(id.slot(), id.generation())
    }

    #[inline]
    fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        if id.shard() != self.shard {
            return None;
        }
        self.connections.get_mut(id.slot(), id.generation())
    }

    /// A connection, and where its work is.
    #[inline]
    fn parts(&mut self, id: ConnectionId) -> Option<(&mut Connection, &mut Works)> {
        if id.shard() != self.shard {
            return None;
        }
        let connection = self.connections.get_mut(id.slot(), id.generation())?;
        Some((connection, &mut self.works))
    }

    fn is_open(&self, id: ConnectionId) -> bool {
        self.get(id).is_some_and(Connection::is_open)
    }

    fn is_active(&self, id: ConnectionId) -> bool {
        self.get(id).is_some_and(Connection::is_active)
    }

    /// The connection that lives in a slot.
    fn id_in_slot(&self, slot: u32) -> Option<ConnectionId> {
        self.connections
            .generation(slot)
            .map(|generation| ConnectionId::new(self.shard, generation, slot))
    }

    /// Asks for whatever the connection's state calls for: a send, the end of the write side, or
    /// the close.
    fn settle(&mut self, id: ConnectionId) {
        let Some((connection, works)) = self.parts(id) else { return };
        let socket = connection.socket();
        if connection.phase == Phase::Closed || connection.has(Facts::SENDING) {
            return;
        }
        if connection.queued_bytes(works) > 0 {
            if !connection.has(Facts::SEND_SCHEDULED) {
                connection.set(Facts::SEND_SCHEDULED, true);
                connection.set(Facts::SEND_DEFERRED, false);
                self.effects.push_back(Effect::Send { connection: id, socket });
            }
        } else if connection.phase == Phase::Closing {
            if connection.has(Facts::RECEIVE_ENDED) {
                self.emit_close(id);
            } else if !connection.has(Facts::WRITE_SHUT) {
                connection.set(Facts::WRITE_SHUT, true);
                self.effects.push_back(Effect::ShutdownWrite { connection: id, socket });
            }
        }
    }
}

/// What counts as one address: whoever has one IPv6 address has the whole /64 behind it.
fn address_key(peer: IpAddr) -> u64 {
    match peer {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => u64::from(address.to_bits()),
            // Never an IPv4 key: those have zeros where global addresses have their prefix.
            None => (address.to_bits() >> 64) as u64,
        },
    }
}
