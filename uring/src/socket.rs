//! The table of sockets: 32 bytes each, by value, found by generation-checked ids.

/// Names a socket of a driver for as long as it lives; never names a later one (before 2^32 sockets
/// have used the same table slot).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SocketId(u64);

impl SocketId {
    pub(crate) fn new(slot: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(slot))
    }

    /// An id made of its parts, for drivers that keep a table of their own: the slot in the lower
    /// half, the generation in the upper one.
    #[must_use]
    pub fn from_parts(slot: u32, generation: u32) -> Self {
        Self::new(slot, generation)
    }

    /// The id as a number, never 0.
    #[must_use]
    pub fn raw(self) -> u64 {
        self.0
    }

    /// The id that [`raw`](Self::raw) was taken from. Any other number names no socket.
    #[must_use]
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The table slot.
    #[must_use]
    pub fn slot(self) -> u32 {
        self.0 as u32
    }

    /// How often the slot was used, this time included.
    #[must_use]
    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Says "none" where an index is kept in 32 bits.
pub(crate) const NONE: u32 = u32::MAX;

/// Where a socket is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// The slot is free; `link` is the next free one.
    Free,
    /// Accepted, its peer's address was asked for; `link` is the room for it. Not yet announced.
    Naming,
    /// Being connected; `link` is the connecting state.
    Connecting,
    /// The connection failed; the owner knows and has to close it.
    Failed,
    /// In use.
    Open,
    /// `close` was called; waits for the last completions. `link` as before if still connecting.
    Closing,
    /// The close itself is in the kernel; nothing else is.
    Leaving,
}

/// What the kernel does about receiving on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Receiving {
    /// Nothing.
    Off,
    /// A receive is in the kernel.
    Armed,
    /// A receive is in the kernel and its cancellation was submitted.
    Cancelling,
    /// Nothing; the socket stands in the line for a buffer.
    Parked,
    /// Nothing, and never again: end of stream or failure was reported.
    Ended,
}

/// One socket.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) context: u64,
    pub(crate) generation: u32,
    /// Entry of the ring's descriptor table, or [`NONE`].
    pub(crate) descriptor: u32,
    /// Index of the send in flight, or [`NONE`].
    pub(crate) send: u32,
    /// Depends on the stage.
    pub(crate) link: u32,
    pub(crate) stage: Stage,
    pub(crate) receiving: Receiving,
    /// The listener that accepted it; of no meaning for a connected one.
    pub(crate) listener: u8,
    /// The owner wants to receive.
    pub(crate) wants_receive: bool,
    /// FIN is to follow the send in flight.
    pub(crate) wants_shutdown: bool,
    /// A shutdown is in the kernel.
    pub(crate) shutting_down: bool,
    /// The owner knows the id.
    pub(crate) announced: bool,
    /// The ring in whose table it is and to which all its operations go.
    pub(crate) ring: u8,
}

const _: () = assert!(size_of::<Socket>() == 32);

impl Socket {
    /// Whether an operation of this socket may still complete, the close not counted.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.receiving, Receiving::Armed | Receiving::Cancelling)
            || self.send != NONE
            || self.shutting_down
            || self.link != NONE
    }
}

/// All sockets of a driver, by slot.
#[derive(Debug)]
pub(crate) struct SocketTable {
    sockets: Vec<Socket>,
    first_free: u32,
    live: u32,
}

impl SocketTable {
    pub(crate) const fn new() -> Self {
        Self { sockets: Vec::new(), first_free: NONE, live: 0 }
    }

    /// How many slots are taken.
    pub(crate) fn live(&self) -> u32 {
        self.live
    }

    /// Takes a slot. The caller keeps the number of live sockets of a ring within its table.
    pub(crate) fn insert(&mut self, ring: u8, stage: Stage, context: u64) -> SocketId {
        self.live += 1;
        let slot = if self.first_free == NONE {
            let slot = u32::try_from(self.sockets.len()).expect("bounded by the descriptor tables");
            assert!(slot < 1 << 24, "a slot has 24 bits");
            self.sockets.push(Socket {
                context: 0,
                generation: 1,
                descriptor: NONE,
                send: NONE,
                link: NONE,
                stage: Stage::Free,
                receiving: Receiving::Off,
                listener: 0,
                wants_receive: false,
                wants_shutdown: false,
                shutting_down: false,
                announced: false,
                ring,
            });
            slot
        } else {
            let slot = self.first_free;
            self.first_free = self.sockets[slot as usize].link;
            slot
        };
        let socket = &mut self.sockets[slot as usize];
        debug_assert_eq!(socket.stage, Stage::Free);
        socket.ring = ring;
        socket.context = context;
        socket.stage = stage;
        socket.link = NONE;
        socket.wants_receive = true;
        SocketId::new(slot, socket.generation)
    }

    /// Frees a slot; its ids name nothing from now on.
    pub(crate) fn remove(&mut self, slot: u32) {
        let socket = &mut self.sockets[slot as usize];
        debug_assert!(socket.stage == Stage::Leaving && !socket.is_busy());
        // The number 0 is left out, so that no id is 0.
        let generation = socket.generation.wrapping_add(1).max(1);
        *socket = Socket {
            context: 0,
            generation,
            descriptor: NONE,
            send: NONE,
            link: self.first_free,
            stage: Stage::Free,
            receiving: Receiving::Off,
            listener: 0,
            wants_receive: false,
            wants_shutdown: false,
            shutting_down: false,
            announced: false,
            ring: 0,
        };
        self.first_free = slot;
        self.live -= 1;
    }

    /// The socket in a slot, if it is of that generation and not free.
    pub(crate) fn find(&mut self, slot: u32, generation: u32) -> Option<&mut Socket> {
        self.sockets
            .get_mut(slot as usize)
            .filter(|socket| socket.generation == generation && socket.stage != Stage::Free)
    }

    /// The socket of an id.
    pub(crate) fn get(&self, id: SocketId) -> Option<&Socket> {
        self.sockets
            .get(id.slot() as usize)
            .filter(|socket| socket.generation == id.generation() && socket.stage != Stage::Free)
    }

    /// The socket of an id.
    pub(crate) fn get_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.find(id.slot(), id.generation())
    }

    /// The ids of all sockets that are not free.
    pub(crate) fn ids(&self) -> Vec<SocketId> {
        let live = |(slot, socket): (usize, &Socket)| {
            let slot = u32::try_from(slot).expect("a slot has 24 bits");
            (socket.stage != Stage::Free).then(|| SocketId::new(slot, socket.generation))
        };
        self.sockets.iter().enumerate().filter_map(live).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn leave(table: &mut SocketTable, id: SocketId) {
        table.get_mut(id).unwrap().stage = Stage::Leaving;
        table.remove(id.slot());
    }

    #[test]
    fn a_socket_costs_32_bytes() {
        assert_eq!(size_of::<Socket>(), 32);
    }

    #[test]
    fn an_old_id_never_names_the_next_socket_of_the_slot() {
        let mut table = SocketTable::new();
        let first = table.insert(0, Stage::Open, 1);
        leave(&mut table, first);
        assert!(table.get(first).is_none());
        let second = table.insert(3, Stage::Open, 2);
        assert_eq!(first.slot(), second.slot());
        assert!(table.get(first).is_none());
        assert_eq!(table.get(second).unwrap().context, 2);
        assert_eq!(table.live(), 1);
        assert_eq!(table.ids(), vec![second]);
    }

    #[test]
    fn ids_survive_the_way_through_a_number() {
        let id = SocketId::new(5, 7);
        assert_eq!(SocketId::from_raw(id.raw()), id);
        assert_eq!((id.slot(), id.generation()), (5, 7));
        assert!(SocketTable::new().get(SocketId::from_raw(0)).is_none());
    }
}
