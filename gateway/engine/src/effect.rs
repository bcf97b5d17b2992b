//! What crosses the engine's boundary: time and ids in, effects out.
//!
//! The engine never calls the world. It notes what is to be done as an [`Effect`], and its owner
//! does it after each call.

/// The moment of a call. The engine never reads a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never goes back; all deadlines are in it.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970; only for what is told to clients and for token expiry.
    pub unix_ms: i64,
}

/// A connection of one shard, and its session's id on the link: shard (8 bits), generation (32),
/// slot (24). Never 0 and never reused within one life of a gateway process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u64);

/// Most connections of one shard, refused ones included.
pub(crate) const SLOTS_MAX: u32 = 1 << 24;

impl ConnectionId {
    /// An id from its parts; generations start at 1.
    pub(crate) const fn new(shard: u8, generation: u32, slot: u32) -> Self {
        Self((shard as u64) << 56 | (generation as u64) << 24 | slot as u64)
    }

    /// The id with this number; an id that was never given is recognised as unknown later.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The number: the link's `session_id`.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Which shard it belongs to.
    pub const fn shard(self) -> u8 {
        (self.0 >> 56) as u8
    }

    pub(crate) const fn generation(self) -> u32 {
        (self.0 >> 24) as u32
    }

    pub(crate) const fn slot(self) -> u32 {
        self.0 as u32 & (SLOTS_MAX - 1)
    }
}

/// One stream to a logic process, named by its owner: the place of an endpoint, from 0 to 254. Small
/// numbers, because there is a place for each up to the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u8);

/// How a client is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// A plain stream of frames.
    Tcp,
    /// WebSocket, binary or text.
    WebSocket,
}

/// Something the engine's owner is to do to a socket. `socket` is the number given to
/// [`crate::Engine::accepted`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Bytes wait: fetch them with [`crate::Engine::take_send`], send them, and call
    /// [`crate::Engine::sent`] when they are out.
    Send {
        /// Whose bytes.
        connection: ConnectionId,
        /// On which socket.
        socket: u64,
    },
    /// Everything is sent: tell the peer that nothing follows (FIN).
    ShutdownWrite {
        /// Which connection.
        connection: ConnectionId,
        /// Which socket.
        socket: u64,
    },
    /// Close the socket and call [`crate::Engine::closed`]. The last effect of a connection.
    Close {
        /// Which connection.
        connection: ConnectionId,
        /// Which socket.
        socket: u64,
    },
    /// Stop receiving, so that TCP holds the peer back. What was received meanwhile may still be
    /// handed in.
    PauseReceive {
        /// Which connection.
        connection: ConnectionId,
        /// Which socket.
        socket: u64,
    },
    /// Receive again.
    ResumeReceive {
        /// Which connection.
        connection: ConnectionId,
        /// Which socket.
        socket: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::ConnectionId;

    #[test]
    fn an_id_keeps_its_parts() {
        let id = ConnectionId::new(255, u32::MAX, 0x00FF_FFFE);
        assert_eq!((id.shard(), id.generation(), id.slot()), (255, u32::MAX, 0x00FF_FFFE));
        assert_eq!(ConnectionId::from_raw(id.raw()), id);
    }
}
